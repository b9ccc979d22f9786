"""``tracker report``: one subcommand a report. Arguments and printing.

Owns the options that all reports share, how what a person types becomes a filter, and what every report says of itself:
in a table and in JSON with the figures, in CSV on standard error, so that the file is a table and nothing else. Which
reports there are is ``reports/catalog``'s; the figures are those of `tracker.reports`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import click

from tracker import cli
from tracker.cli import durations as quantiles
from tracker.cli import times
from tracker.cli.destination import destination, file_of, format_of, spare_database
from tracker.cli.look import opened
from tracker.cli.output import FORMATS, Column, chosen, counted, emit, example, plain, spreadsheet_option, utc
from tracker.errors import InvalidField
from tracker.reports.catalog import BY, CHANGES, COUNTED, REPORTS, TableReport, shown
from tracker.status import Kind

if TYPE_CHECKING:
    import sqlalchemy as sa

    from tracker.reports.about import About, Filters
    from tracker.reports.durations import Durations
    from tracker.settings import Settings

ROWS = 200
"""Rows of a report in a table; ours: what a person scrolls through. CSV and JSON have all, in an order of their own."""
_TIMES = "--since and --until go by a job's submission (else registration), of gaps and changes by their own time."
_NOTHING = "Nothing to report: no rows match."


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a report is asked for; *most*: so many rows, the first that a person looks for (None: all)."""

    filters: Filters
    as_of: datetime | None
    zone: ZoneInfo
    most: int | None
    by: str | None


@dataclass(frozen=True, slots=True)
class _Output:
    """A report, ready to be printed.

    Attributes:
        about: What it says of itself.
        columns: Of CSV and JSON.
        rows: Of CSV and JSON; to be read once, while the transaction lasts.
        tables: Columns and cells for people.
        note: What a person should know who reads the tables.
        has_more: There are more rows than *tables* show.
    """

    about: About
    columns: Sequence[str]
    rows: Iterable[Sequence[Any]]
    tables: Sequence[tuple[Sequence[Column], Sequence[Sequence[object]]]] = ()
    note: str = ""
    has_more: bool = False


_TIME: dict[str, Any] = {"callback": times.when, "metavar": "TIME"}
_OPTIONS = (
    click.option("--since", **_TIME, help=f"From then on: {times.HELP}."),
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
        help="How it comes out. Default: by FILE's ending, else table on a terminal, csv in a pipe.",
    ),
    click.option("-o", "--output", metavar="FILE", help="Write to FILE. It is replaced as a whole, or not at all."),
    spreadsheet_option,
)


class _Reports(click.Group):
    """A group that names its reports when asked for one that is not there."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands:
            hint = f" (you may mean: tracker {args[0]})" if args[0] in cli.COMMANDS else ""
            ctx.fail(f"There is no report {args[0]!r}; there are: {', '.join(self.commands)}{hint}")
        return super().resolve_command(ctx, args)


def _with_options(command: Callable[..., None], more: Sequence[Callable[[Any], Any]] = ()) -> Callable[..., None]:
    """Give *command* the options that all reports share, and *more*."""
    for option in reversed((*_OPTIONS, *more)):
        command = option(command)
    return command


@click.pass_context
def _all(ctx: click.Context, /, format: str | None, output: str | None, **given: Any) -> None:
    """Report what is recorded, with bounds where it leaves something open.

    Without a report's name, --format html -o FILE makes one page of all of them.
    """
    name = ctx.invoked_subcommand
    if name is not None:
        if format or output or any(given.values()):
            ctx.fail(f"options stand after the report's name, as in: tracker report {name} --since 2026-11-01")
    elif not (format or output or any(given.values())):
        raise click.exceptions.NoArgsIsHelpError(ctx)
    elif format_of(format, file_of(output)) == "html":
        _page(None, output, **given)
    else:
        ctx.fail(f"name a report ({', '.join(report.commands)}), or make a page of all: --format html -o FILE")


report = click.command(
    "report",
    cls=_Reports,
    invoke_without_command=True,
    help=_all.__doc__,
    epilog=example(
        "tracker report durations --since 2026-11-01 --cluster w1a2b3c4d",
        "tracker report changes --since yesterday",
        "tracker report --format html -o page.html",
    ),
)(_with_options(_all))


@contextmanager
def _reading(
    file: Path | None,
    since: times.When | None,
    until: times.When | None,
    as_of: times.When | None,
    cluster: tuple[str, ...],
    kind: tuple[str, ...],
    **options: Any,
) -> Iterator[tuple[sa.Connection, Filters, datetime | None, Settings]]:
    """Yield a connection that sees one state of the database, and what was asked for.

    Raises:
        click.BadParameter: What was asked for cannot be.
    """
    from tracker import database
    from tracker.reports.about import Filters

    with opened() as (settings, engine):
        spare_database(file, engine)
        with database.reading(engine, **options) as connection:
            now, zone = database.now(connection), settings.zone
            _check_clusters(connection, settings, cluster)
            then = as_of.instant(now, zone, at_end=True) if as_of else None
            if as_of and then and then > now and as_of.is_day:
                problem = f"{as_of.text} has not ended yet: give a time with its offset, or leave --as-of out"
                raise click.BadParameter(problem, param_hint="'--as-of'")
            begin = since.instant(then or now, zone) if since else None
            end = until.instant(then or now, zone, at_end=True) if until else None
            if since and until and begin and end and begin >= end:
                raise click.BadParameter(f"{until.text} is not after --since {since.text}", param_hint="'--until'")
            try:
                yield connection, Filters(begin, end, cluster, tuple(map(Kind, kind))), then, settings
            except InvalidField as error:
                hint = f"'--{error.field.replace('_', '-')}'"
                raise click.BadParameter(plain(error.problem), param_hint=hint) from None


def _page(names: Sequence[str] | None, output: str | None, **given: Any) -> None:
    """Write the reports *names* (None: all) as a page."""
    file = file_of(output)
    with (
        destination(file) as place,
        _reading(file, **given, temporary=True) as (connection, filters, then, settings),
    ):
        from tracker.reports.about import Filters
        from tracker.reports.overview import overview
        from tracker.reports.page import render

        seen = None
        if names is None and then is None and filters == Filters():
            seen = overview(connection, settings.clusters, settings.seal_after)
        place.write(render(connection, filters, as_of=then, zone=settings.zone, names=names, overview=seen))


def _subcommand(
    of: TableReport, build: Callable[[sa.Connection, _Asked], _Output], *options: Callable[[Any], Any], help: str
) -> None:
    """Add the subcommand that prints what *build* returns; *options*: those that only it has."""

    def command(format: str | None, output: str | None, by: str | None = None, **given: Any) -> None:
        file = file_of(output)
        form = format_of(format, file)
        if of is CHANGES:
            given["since"] = given["since"] or times.DAY_AGO
        if form == "html":
            if of is CHANGES:
                raise click.UsageError("changes are not on the page: choose another format")
            _page([of.name], output, **given)
            return
        # A table goes straight to the terminal, so that it is seen to be one.
        straight = form == "table" and file is None
        with nullcontext(sys.stdout) if straight else destination(file) as place, redirect_stdout(place):
            with _reading(file, **given) as (connection, filters, then, settings):
                most = ROWS if form == "table" else None
                made = build(connection, _Asked(filters, then, settings.zone, most, by))
                if then is not None:
                    note = "What could be known then. Polls after an open job's last change are not included."
                    made = replace(made, note=f"{made.note}\n{note}".strip())
                if form != "table":
                    _print(of, made, form)
            if form == "table":
                _print(of, made, form)

    examples = example(f"tracker report {of.name} --since 2026-11-01", f"tracker report {of.name} -o {of.name}.csv")
    report.command(of.name, help=f"{help}\n\n{_TIMES}", short_help=of.title, epilog=examples)(
        _with_options(command, options)
    )


def _check_clusters(connection: sa.Connection, settings: Settings, wanted: tuple[str, ...]) -> None:
    """Refuse an unknown cluster: a misspelt name must not look like one without jobs."""
    import sqlalchemy as sa

    from tracker.models import CLUSTERS, JOBS

    if not set(wanted) - set(settings.clusters):
        return
    query = sa.union(sa.select(JOBS.c.cluster), sa.select(CLUSTERS.c.cluster))
    known = sorted({*settings.clusters, *connection.scalars(query)})
    for name in wanted:
        if name not in known:
            there = f"there are: {', '.join(known)}" if known else "none is known yet"
            raise click.BadParameter(plain(f"there is no cluster {name!r}; {there}"), param_hint="'--cluster'")


def _caption(of: TableReport, about: About) -> str:
    """Return what a report says of itself, two lines."""
    # Of gaps and changes times choose which are listed, not which jobs are counted.
    what = {"gaps": "overlapping the time", "changes": "recorded"}.get(of.name, "submitted (else registered)")
    return (
        f"{of.title}: {counted(about.jobs, 'job')}, as of {utc(about.as_of).isoformat(' ', 'seconds')}\n"
        f"tracker {about.version}; filters: {about.filters.in_words(what) or 'none'}"
    )


def _head(of: TableReport, about: About) -> dict[str, object]:
    def iso(at: datetime | None) -> str | None:
        return None if at is None else utc(at).isoformat(timespec="microseconds")

    filters = about.filters
    return {
        "report": of.name,
        "as_of": iso(about.as_of),
        "version": about.version,
        "since": iso(filters.since),
        "until": iso(filters.until),
        "clusters": filters.clusters or None,
        "kinds": filters.kinds or None,
        "jobs": about.jobs,
    }


def _print(of: TableReport, made: _Output, format: str) -> None:
    caption = _caption(of, made.about)
    if format == "table":
        title = f"{caption}\n{made.note}".strip()
        if not made.tables:
            click.echo(f"{title}\n\n{_NOTHING}")
        for place, (columns, cells) in enumerate(made.tables):
            if place:
                click.echo()
            emit(cells, columns, "table", title="" if place else f"{title}\n")
        if made.has_more:
            click.echo(f"\nThese are the first {ROWS} rows; --format csv has all.")
        return
    with closing(_each(made.rows)) as rows:  # before the transaction ends
        if format == "csv":
            click.echo(caption, err=True)
            emit(rows, made.columns, "csv")
        else:
            sys.stdout.write(f'{json.dumps(_head(of, made.about))[:-1]}, "rows": ')
            emit(rows, made.columns, "json")
            sys.stdout.write("}\n")


def _each(rows: Iterable[Sequence[Any]]) -> Generator[Sequence[Any]]:
    """Yield *rows*, and say so where there are none."""
    row = None
    for row in rows:
        yield row
    if row is None:
        click.echo(_NOTHING, err=True)


# -- the reports that are tables -----------------------------------------------------------------------------------


def _table(of: TableReport, connection: sa.Connection, asked: _Asked) -> _Output:
    """Return the report *of* the catalog."""
    from tracker.reports.tables import read

    made = read(connection, of.name, asked.filters, as_of=asked.as_of, zone=asked.zone, most=asked.most)
    if asked.most is None:
        return _Output(made.about, made.columns, made.rows)
    rows = [dict(zip(made.columns, row, strict=True)) for row in made.rows]
    cells = [[shown(column.name, row[column.name]) for column in of.columns] for row in rows]
    tables = [(_of_one_cluster(of.columns, rows), cells)] if rows else []
    return _Output(made.about, made.columns, (), tables, has_more=made.has_more)


def _of_one_cluster(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Return *columns*; of one cluster only, its name is what a narrow terminal can best do without."""
    is_one = len({row.get("cluster") for row in rows}) < 2
    return [replace(one, optional=True) if is_one and one.name == "cluster" else one for one in columns]


def _changes(connection: sa.Connection, asked: _Asked) -> _Output:
    from tracker.reports.tables import changes

    made = _table(CHANGES, connection, asked)
    if not made.tables:
        return made
    rows = changes(connection, asked.filters, as_of=asked.as_of, zone=asked.zone)
    rare = ("attested", "withdrawn", "reopened")
    columns = [Column("cluster"), Column("kind"), *(Column(name, optional=name in rare) for name in COUNTED)]
    return replace(made, tables=[(columns, rows), *made.tables])


def _durations(connection: sa.Connection, asked: _Asked) -> _Output:
    from tracker.reports.durations import durations

    filters = asked.filters
    made = durations(
        connection,
        since=filters.since,
        until=filters.until,
        cluster=filters.clusters,
        kind=filters.kinds,
        by=[name.strip() for name in (asked.by or "").split(",")],
        as_of=asked.as_of,
    )
    return _durations_output(made)


def _durations_output(made: Durations) -> _Output:
    if not made.rows:
        return _Output(made.about, quantiles.columns(made), ())
    tables = [quantiles.table(made)]
    return _Output(made.about, quantiles.columns(made), quantiles.rows(made), tables, quantiles.note(made))


def print_durations(made: Durations) -> None:
    """Print the report on standard output, as ``tracker report durations`` does."""
    _print(REPORTS["durations"], _durations_output(made), chosen(None))


_BY = click.option(
    "--by",
    default="cluster,kind",
    show_default=True,
    metavar="NAMES",
    help=f"A row for each of these, comma separated: {', '.join(BY)}. Months and ISO weeks go by submission, in UTC.",
)
_subcommand(REPORTS["durations"], _durations, _BY, help=quantiles.HELP)
for _report in REPORTS.values():
    if _report.name != "durations":
        _subcommand(_report, partial(_table, _report), help=_report.help)
_subcommand(CHANGES, _changes, help=CHANGES.help)
