"""``tracker report``: one subcommand a report. Arguments and printing.

Owns the options that all reports share, the way from options to filters, and the head of each report. A table and JSON
include the head. With CSV it goes to standard error, so that the file is only a table. ``reports/catalog`` lists the
reports; `tracker.reports` has the figures.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import click

from tracker.cli import durations as quantiles
from tracker.cli import times
from tracker.cli.destination import format_of, output_to, spare_database
from tracker.cli.look import opened
from tracker.cli.output import (
    FORMATS,
    Column,
    chosen,
    counted,
    emit,
    example,
    json_value,
    of_one_cluster,
    plain,
    spreadsheet_option,
    utc,
)
from tracker.errors import InvalidField
from tracker.reports.catalog import ALL, BY, CHANGES, COUNTED, REPORTS, TableReport, shown
from tracker.status import Kind

if TYPE_CHECKING:
    import sqlalchemy as sa

    from tracker.reports.about import About, Filters
    from tracker.settings import Settings

ROWS = 200
"""Most rows of a report in a table; ours: as many as a person scrolls through. CSV and JSON have all, in a fixed
order."""
_TIMES = "--since and --until select by a job's submission (else registration); gaps and changes by their own time."


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a person asked for.

    Attributes:
        connection: Sees one state of the database.
        filters: Which jobs.
        as_of: What could be known at this time; None: now.
        zone: The legal time zone.
        most: At most this many rows, the most urgent or newest; None: all.
        by: The columns by which quantiles of durations are grouped, as typed.
    """

    connection: sa.Connection
    filters: Filters
    as_of: datetime | None
    zone: ZoneInfo
    most: int | None
    by: str


@dataclass(frozen=True, slots=True)
class _Output:
    """A report, ready to be printed.

    Attributes:
        about: Its time, filters and number of jobs.
        tables: Columns and rows. A person gets several; CSV and JSON have one, to be read once during the transaction.
        note: How to read the tables.
        has_more: There are more rows than *tables* show.
    """

    about: About
    tables: Sequence[tuple[Sequence[Column | str], Iterable[Sequence[object]]]]
    note: str = ""
    has_more: bool = False


_TIME: dict[str, Any] = {"callback": times.when, "metavar": "TIME"}
_OPTIONS = (
    click.option("--since", **_TIME, help=f"From this time on: {times.HELP}."),
    click.option("--until", **_TIME, help="Up to the end of this day, or before this time."),
    click.option(
        "--as-of",
        **_TIME,
        help="What could be known at this time, or at the end of this day. --since 7d counts back from it.",
    ),
    click.option("--cluster", multiple=True, metavar="NAME", help="Of this cluster; may be repeated."),
    click.option(
        "--kind",
        multiple=True,
        type=click.Choice([kind.value for kind in Kind]),
        help="As it was declared; may be repeated.",
    ),
    click.option(
        "--format",
        "format",
        type=click.Choice((*FORMATS, "html")),
        help="The output format. Default: by FILE's ending, else table on a terminal, csv in a pipe.",
    ),
    click.option(
        "-o",
        "--output",
        metavar="FILE",
        callback=lambda ctx, param, value: None if value in (None, "-") else Path(value),
        help="Write to FILE. It is replaced as a whole, or not at all.",
    ),
    spreadsheet_option,
)


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give *command* the options that all reports share."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.group(
    invoke_without_command=True,
    epilog=example(
        "tracker report durations --since 2026-11-01 --cluster w1a2b3c4d",
        "tracker report changes --since yesterday",
        "tracker report --format html -o page.html",
    ),
)
@_with_options
@click.pass_context
def report(ctx: click.Context, /, format: str | None, output: Path | None, **given: Any) -> None:
    """Report what is recorded, with bounds where it is uncertain.

    Without the name of a report, --format html -o FILE writes one page with all reports.
    """
    name = ctx.invoked_subcommand
    if name is not None:
        if format or output or any(given.values()):
            ctx.fail(f"put options after the name of the report, as in: tracker report {name} --since 2026-11-01")
    elif not (format or output or any(given.values())):
        raise click.exceptions.NoArgsIsHelpError(ctx)
    elif format_of(format, output) == "html":
        _page(None, output, **given)
    else:
        ctx.fail(f"name a report ({', '.join(report.commands)}), or write a page of all: --format html -o FILE")


@contextmanager
def _reading(
    file: Path | None,
    since: times.When | None,
    until: times.When | None,
    as_of: times.When | None,
    cluster: tuple[str, ...],
    kind: tuple[str, ...],
    most: int | None = None,
    by: str = "",
    **options: Any,
) -> Iterator[tuple[_Asked, Settings]]:
    """Yield what was asked for, with a connection to read it, and the settings.

    Raises:
        click.BadParameter: An option has a value that is not valid.
    """
    from tracker import database, intake
    from tracker.reports.about import Filters

    with opened() as (settings, engine):
        spare_database(file, engine)
        with database.reading(engine, **options) as connection:
            now, zone = database.now(connection), settings.zone
            then = as_of.instant(now, zone, at_end=True) if as_of else None
            if then:
                _warn_of_removed(connection, then)
            begin = since.instant(then or now, zone) if since else None
            end = until.instant(then or now, zone, at_end=True) if until else None
            try:
                if set(cluster) - set(settings.clusters):
                    known = intake.known_clusters(connection, settings.clusters)
                    cluster = tuple(intake.check_cluster(name, known) for name in cluster)
                filters = Filters(begin, end, cluster, tuple(map(Kind, kind)))
                yield _Asked(connection, filters, then, zone, most, by), settings
            except InvalidField as error:
                hint = f"'--{error.field.replace('_', '-')}'"
                raise click.BadParameter(plain(error.problem), param_hint=hint) from None


def _warn_of_removed(connection: sa.Connection, then: datetime) -> None:
    """Say so if jobs were removed after *then*."""
    from tracker.audit import seal

    base = seal.head(connection, seal.IS_BASE)
    if base is not None and then < base.checkpoint.sealed_at:
        at = f"{base.checkpoint.sealed_at:%Y-%m-%d %H:%M} UTC"
        click.echo(f"Jobs that `tracker db prune` removed at {at} are missing here.", err=True)


def _page(names: Sequence[str] | None, output: Path | None, **given: Any) -> None:
    """Write the reports *names* (None: all) as a page."""
    with output_to(output, "html"), _reading(output, **given, temporary=True) as (asked, settings):
        from tracker.reports.about import Filters
        from tracker.reports.overview import overview
        from tracker.reports.page import render

        seen = None
        if names is None and asked.as_of is None and asked.filters == Filters():
            seen = overview(asked.connection, settings.clusters, settings.seal_after, settings.retention)
        sys.stdout.write(
            render(asked.connection, asked.filters, as_of=asked.as_of, zone=asked.zone, names=names, overview=seen)
        )


def _subcommand(of: TableReport, *options: Callable[[Any], Any], help: str) -> None:
    """Add the subcommand that prints the report *of*; *options*: those that only it has."""
    build = {"durations": _durations, "changes": _changes}.get(of.name, _table)

    def command(format: str | None, output: Path | None, by: str = "", **given: Any) -> None:
        form = format_of(format, output)
        if of is CHANGES and not given["until"]:
            given["since"] = given["since"] or times.DAY_AGO
        if form == "html":
            _page([of.name], output, **given)
            return
        most = ROWS if form == "table" else None
        with output_to(output, form), _reading(output, **given, most=most, by=by) as (asked, _):
            made = build(of, asked)
            if asked.as_of is not None:
                note = "What could be known then. Polls after an open job's last change are not included."
                made = replace(made, note=f"{made.note}\n{note}".strip())
            _print(of, made, form)

    examples = example(f"tracker report {of.name} --since 2026-11-01", f"tracker report {of.name} -o {of.name}.csv")
    for option in options:
        command = option(command)
    add = report.command(of.name, help=f"{help}\n\n{_TIMES}", short_help=of.title, epilog=examples)
    add(_with_options(command))


def _caption(of: TableReport, about: About) -> str:
    """Return the head of a report, two lines."""
    # For gaps and changes, times select which are listed, not which jobs are counted.
    what = {"gaps": "overlapping the time", "changes": "recorded"}.get(of.name, "submitted (else registered)")
    return (
        f"{of.title}: {counted(about.jobs, 'job')}, as of {utc(about.as_of).isoformat(' ', 'seconds')}\n"
        f"tracker {about.version}; filters: {about.filters.in_words(what) or 'none'}"
    )


def _head(of: TableReport, about: About) -> dict[str, object]:
    """Return the head of a report in JSON."""
    filters = about.filters
    said: dict[str, object] = {"report": of.name, "as_of": about.as_of, "version": about.version}
    said |= {"since": filters.since, "until": filters.until}
    said |= {"clusters": filters.clusters or None, "kinds": filters.kinds or None, "jobs": about.jobs}
    return said


def _print(of: TableReport, made: _Output, format: str) -> None:
    caption = _caption(of, made.about)
    if format == "table":
        title = f"{caption}\n{made.note}".strip()
        if not made.tables:
            click.echo(f"{title}\n\nNothing to report: no rows match.")
        for place, (columns, cells) in enumerate(made.tables):
            if place:
                click.echo()
            emit(cells, columns, "table", title="" if place else f"{title}\n")
        if made.has_more:
            click.echo(f"\nOnly the first {ROWS} rows are shown; --format csv has all.")
        return
    [(columns, rows)] = made.tables
    if format == "csv":
        click.echo(caption, err=True)
        emit(rows, columns, "csv")
        return
    sys.stdout.write(f'{json.dumps(_head(of, made.about), default=json_value)[:-1]}, "rows": ')
    emit(rows, columns, "json")
    sys.stdout.write("}\n")


def _table(of: TableReport, asked: _Asked) -> _Output:
    """Return a report of the catalog."""
    from tracker.reports.tables import read

    made = read(asked.connection, of.name, asked.filters, as_of=asked.as_of, zone=asked.zone, most=asked.most)
    if asked.most is None:
        return _Output(made.about, [(made.columns, made.rows)])
    rows = [dict(zip(made.columns, row, strict=True)) for row in made.rows]
    cells = [[shown(column.name, row[column.name]) for column in of.columns] for row in rows]
    tables = [(of_one_cluster(of.columns, {row.get("cluster") for row in rows}), cells)] if rows else []
    return _Output(made.about, tables, has_more=made.has_more)


def _changes(of: TableReport, asked: _Asked) -> _Output:
    from tracker.reports.tables import changes

    made = _table(of, asked)
    if asked.most is None or not made.tables:
        return made
    rows = changes(asked.connection, asked.filters, as_of=asked.as_of, zone=asked.zone)
    rare = ("attested", "withdrawn", "reopened")
    columns = [Column("cluster"), Column("kind"), *(Column(name, optional=name in rare) for name in COUNTED)]
    return replace(made, tables=[(columns, rows), *made.tables])


def _durations(of: TableReport, asked: _Asked) -> _Output:
    from tracker.reports.durations import durations

    filters = asked.filters
    made = durations(
        asked.connection,
        since=filters.since,
        until=filters.until,
        cluster=filters.clusters,
        kind=filters.kinds,
        by=[name.strip() for name in asked.by.split(",")],
        as_of=asked.as_of,
    )
    if asked.most is None:
        return _Output(made.about, [(quantiles.columns(made), quantiles.rows(made))])
    return _Output(made.about, [quantiles.table(made)], quantiles.note(made)) if made.rows else _Output(made.about, [])


def print_durations(connection: sa.Connection) -> None:
    """Print the report on standard output, as ``tracker report durations`` does."""
    from tracker.reports.about import Filters
    from tracker.reports.as_of import LEGAL_ZONE

    of, form = REPORTS["durations"], chosen(None)
    asked = _Asked(connection, Filters(), None, LEGAL_ZONE, ROWS if form == "table" else None, "cluster,kind")
    _print(of, _durations(of, asked), form)


_BY = click.option(
    "--by",
    default="cluster,kind",
    show_default=True,
    metavar="NAMES",
    help=f"Group by these, separated by commas: {', '.join(BY)}. Months and ISO weeks are those of submission, in UTC.",
)
_subcommand(REPORTS["durations"], _BY, help=quantiles.HELP)
for _report in ALL.values():
    if _report.name != "durations":
        _subcommand(_report, help=_report.help)
