"""``tracker report``: what the record says, one subcommand a report. Arguments and printing.

Owns the options that all reports share, how what a person types becomes a filter, which columns fit a terminal, where
the output goes, and what every report says of itself: in a table and in JSON with the figures, in CSV on standard
error, so that the file is a table and nothing else. The figures are those of `tracker.reports`.

CSV and JSON are written to a file first, in bounded memory, and then go where they should: so a pager that waits holds
no transaction open, and what fails half-way leaves nothing behind.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field, replace
from datetime import date, datetime, time, timedelta
from itertools import chain, islice
from pathlib import Path
from stat import S_ISREG
from typing import IO, TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import click

from tracker import cli
from tracker.cli.look import opened
from tracker.cli.output import FORMATS, Column, chosen, emit, example, human, plain, spooled, utc
from tracker.errors import InvalidField
from tracker.status import Kind

if TYPE_CHECKING:
    import sqlalchemy as sa

    from tracker.reports.about import About, Filters
    from tracker.reports.durations import Durations, Row
    from tracker.settings import Settings

ROWS = 200
"""Rows of a report in a table; ours: what a person scrolls through. CSV and JSON have all, in an order of their own."""

_NOTHING = "Nothing to report: there is nothing like that in the record."
_NOT_REACHED = "not reached"
_THEN = "What could be known then: of open jobs no sight after their last change."


def _when(ctx: click.Context, param: click.Parameter, value: str | None) -> date | datetime | None:
    """Return what was typed as a date or an aware datetime."""
    if value is None:
        return None
    when = _read(date.fromisoformat, value) or _read(datetime.fromisoformat, value)
    if when is None:
        raise click.BadParameter(
            f"{value[:80]!r} is no date: write one as in 2026-11-24, or a time with its offset as in "
            "2026-11-24T10:00+01:00"
        )
    if isinstance(when, datetime) and when.tzinfo is None:
        raise click.BadParameter(f"{value!r} has no offset: write {value}+01:00, for instance, or the date alone")
    if not 1970 <= when.year <= 9998:  # what the database can hold
        raise click.BadParameter(f"{value!r} is before 1970 or after 9998")
    return when


def _read(parse: Callable[[str], date], value: str) -> date | None:
    try:
        return parse(value)
    except ValueError:
        return None


class _Reports(click.Group):
    """A group that names its reports when asked for one that is not there."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands:
            hint = f" (what you mean may be: tracker {args[0]})" if args[0] in cli.COMMANDS else ""
            ctx.fail(f"There is no report {args[0]!r}; there are: {', '.join(self.commands)}{hint}")
        return super().resolve_command(ctx, args)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a report is asked for, read from the command line.

    Attributes:
        filters: Which jobs.
        as_of: At which time; None: now.
        zone: The legal time zone.
        most: So many rows, the first that a person looks for; None: all.
        more: The values of the options that only this report has.
    """

    filters: Filters
    as_of: datetime | None
    zone: ZoneInfo
    most: int | None
    more: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Output:
    """A report, ready to be printed.

    Attributes:
        about: What it says of itself.
        columns: Of CSV and JSON.
        rows: Of CSV and JSON; to be read once, while the transaction lasts; none: there is nothing to report.
        shown: Of *rows*, columns and rows for people, where those differ.
        note: What a person should know who reads the table.
        options: Those that only this report has, as they were given.
        left_out: How many more rows there are.
    """

    about: About
    columns: Sequence[Column | str]
    rows: Iterable[Sequence[object]]
    shown: Callable[[Sequence[Sequence[Any]]], tuple[Sequence[Column | str], Sequence[Sequence[object]]]] | None = None
    note: str = ""
    options: Mapping[str, str | None] = field(default_factory=dict)
    left_out: int = 0

    def close(self) -> None:
        """Let go of the database, if rows are left: after the transaction's end it would be too late."""
        if isinstance(self.rows, Generator):
            self.rows.close()


_OPTIONS = (
    click.option(
        "--since",
        callback=_when,
        metavar="TIME",
        help="Submitted (else registered) then or later: a date of the legal time zone, or a time with its offset.",
    ),
    click.option(
        "--until",
        callback=_when,
        metavar="TIME",
        help="Submitted (else registered) on this date or sooner, or before this time.",
    ),
    click.option(
        "--as-of",
        callback=_when,
        metavar="TIME",
        help="What could be known at this time, or at the end of this date. Says the same whenever it is run again.",
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
        help="How it comes out. Default: what FILE is named after, or table on a terminal, csv in a pipe.",
    ),
    click.option(
        "-o",
        "--output",
        metavar="FILE",
        help="Write to FILE, all at once at the end: what is there is replaced by all of it or kept.",
    ),
)


def _with_options(command: Callable[..., None], more: Sequence[Callable[[Any], Any]] = ()) -> Callable[..., None]:
    """Give *command* the options that all reports share, and *more*."""
    for option in reversed((*_OPTIONS, *more)):
        command = option(command)
    return command


@click.pass_context
def _all(ctx: click.Context, /, format: str | None, **given: Any) -> None:
    """Report what the record says, with bounds where it leaves something open.

    With --format html instead of a report's name, all of them come out as one page.
    """
    name, file = ctx.invoked_subcommand, _file(given["output"])
    if name is not None:
        if format or any(given.values()):
            ctx.fail(f"options stand after the report's name, as in: tracker report {name} --since 2026-11-01")
    elif (format or (file and _named_after(file))) == "html":
        _page(None, **given)
    elif format or any(given.values()):
        ctx.fail(f"name a report ({', '.join(report.commands)}), or have all of them as a page: --format html")
    else:
        raise click.exceptions.NoArgsIsHelpError(ctx)


report = click.command(
    "report",
    cls=_Reports,
    invoke_without_command=True,
    help=_all.__doc__,
    epilog=example(
        "tracker report durations --since 2026-11-01 --cluster w1a2b3c4d", "tracker report --format html -o page.html"
    ),
)(_with_options(_all))


def _page(
    names: Sequence[str] | None,
    since: date | datetime | None,
    until: date | datetime | None,
    as_of: date | datetime | None,
    cluster: tuple[str, ...],
    kind: tuple[str, ...],
    output: str | None,
) -> None:
    """Write the reports *names* (None: all) as a page."""
    from tracker import database
    from tracker.reports.page import render

    file = _file(output)
    with _destination(file) as destination, opened() as (settings, engine):
        _spare_database(file, engine)
        filters = _filters(settings.zone, since, until, cluster, kind)
        then = _instant(as_of, settings.zone, at_end=True)
        with database.reading(engine, temporary=True) as connection:
            _check_clusters(connection, settings, cluster)
            try:
                destination.write(render(connection, filters, as_of=then, zone=settings.zone, names=names))
            except InvalidField as error:
                raise _bad(error, as_of) from None


def _file(output: str | None) -> Path | None:
    """Return the file that is named by what was typed; None: standard output."""
    return None if output is None or output == "-" else Path(output)


def _subcommand(
    title: str, *examples: str, options: Sequence[Callable[[Any], Any]] = ()
) -> Callable[[Callable[[sa.Connection, _Asked], _Output]], click.Command]:
    """Return a decorator that makes a function a report: its name is the subcommand's, its docstring the help.

    Args:
        title: What the report is, in its caption.
        examples: For the help.
        options: That only this report has.
    """

    def decorate(build: Callable[[sa.Connection, _Asked], _Output]) -> click.Command:
        name = build.__name__

        def command(
            since: date | datetime | None,
            until: date | datetime | None,
            as_of: date | datetime | None,
            cluster: tuple[str, ...],
            kind: tuple[str, ...],
            format: str | None,
            output: str | None,
            **more: Any,
        ) -> None:
            from tracker import database

            file = _file(output)
            form = format or (_named_after(file) if file else chosen(None))
            if form == "html":
                if unused := [f"--{option.replace('_', '-')}" for option, value in more.items() if value]:
                    raise click.UsageError(f"a page has no place for {', '.join(unused)}: choose another format")
                _page([name], since, until, as_of, cluster, kind, output)
                return
            # A table goes straight to the terminal, so that it is seen to be one.
            straight = form == "table" and file is None
            with nullcontext(sys.stdout) if straight else _destination(file) as destination:
                with opened() as (settings, engine):
                    _spare_database(file, engine)
                    filters = _filters(settings.zone, since, until, cluster, kind)
                    then = _instant(as_of, settings.zone, at_end=True)
                    asked = _Asked(filters, then, settings.zone, ROWS if form == "table" else None, more)
                    with database.reading(engine) as connection:
                        _check_clusters(connection, settings, cluster)
                        try:
                            made = build(connection, asked)
                        except InvalidField as error:
                            raise _bad(error, as_of) from None
                        with closing(made):
                            if form == "table":
                                made = replace(made, rows=list(made.rows))
                            else:
                                with redirect_stdout(destination):
                                    _print(name, title, made, form)
                if form == "table":
                    with redirect_stdout(destination):
                        _print(name, title, made, form)

        shown = report.command(name, help=build.__doc__, epilog=example(*examples))
        return shown(_with_options(command, options))

    return decorate


def _bad(error: InvalidField, as_of: date | datetime | None) -> click.BadParameter:
    """Return what is said of a value that only the reports can judge."""
    if error.field == "as_of" and not isinstance(as_of, datetime):
        problem = f"{as_of} has not ended yet, so nobody knows all of it: give a time with its offset, or leave it out"
    else:
        problem = error.problem
    return click.BadParameter(plain(problem), param_hint=f"'--{error.field.replace('_', '-')}'")


def _named_after(file: Path) -> str:
    """Return the format that the name of *file* tells; CSV, as in a pipe, if none."""
    return {".json": "json", ".html": "html"}.get(file.suffix.lower(), "csv")


@contextmanager
def _destination(file: Path | None) -> Iterator[IO[str]]:
    """Yield where to write what shall be in *file* (None: on standard output) once all of it is there."""
    if file is None:
        with spooled() as spool:
            yield spool
        return
    try:
        there = file.stat() if file.exists() else None
        if there is not None and not S_ISREG(there.st_mode):  # a pipe or /dev/null: nothing that could be replaced
            with file.open("w", encoding="utf-8", newline="") as stream:
                yield stream
            return
        target = Path(os.path.realpath(file))  # a link stays one
        if there is not None and not os.access(target, os.W_OK):
            raise PermissionError(13, "Permission denied")
        part = target.with_name(f".{target.name[:50]}.{os.urandom(4).hex()}.part")
        with part.open("x", encoding="utf-8", newline="") as stream:
            try:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
                if there is not None:
                    os.chmod(part, there.st_mode & 0o777)
                os.replace(part, target)
            finally:
                part.unlink(missing_ok=True)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        why = error.strerror or type(error).__name__
        raise click.BadParameter(
            plain(f"cannot write {str(file)!r}: {why}; name a file in a folder that is there and may be written to"),
            param_hint="'--output'",
        ) from None


def _spare_database(file: Path | None, engine: sa.Engine) -> None:
    """Refuse to write over the database, or over a file that SQLite keeps beside it, there or not yet."""
    if file is None or engine.dialect.name != "sqlite":
        return
    place = os.path.realpath(str(engine.url.database))
    for theirs in (Path(place + ending) for ending in ("", "-wal", "-shm", "-journal")):
        if Path(os.path.realpath(file)) == theirs or (file.exists() and theirs.exists() and file.samefile(theirs)):
            problem = f"{str(file)!r} belongs to the database, and is not replaced: name another file"
            raise click.BadParameter(plain(problem), param_hint="'--output'")


def _filters(
    zone: ZoneInfo,
    since: date | datetime | None,
    until: date | datetime | None,
    clusters: tuple[str, ...],
    kinds: tuple[str, ...],
) -> Filters:
    from tracker.reports.about import Filters

    try:
        return Filters(_instant(since, zone), _instant(until, zone, at_end=True), clusters, tuple(map(Kind, kinds)))
    except InvalidField:  # of what it refuses, only the order is left
        raise click.BadParameter(
            f"{until} is not after --since {since}: nothing lies between", param_hint="'--until'"
        ) from None


def _instant(when: date | datetime | None, zone: ZoneInfo, *, at_end: bool = False) -> datetime | None:
    """Return when a date begins or, since the day itself is meant too, ends."""
    if when is None or isinstance(when, datetime):
        return when
    return datetime.combine(when + timedelta(days=at_end), time(), zone)


def _check_clusters(connection: sa.Connection, settings: Settings, wanted: tuple[str, ...]) -> None:
    """Refuse a cluster of which nobody has heard: a misspelt name must not pass for one without jobs."""
    import sqlalchemy as sa

    from tracker.models import CLUSTERS, JOBS

    if not set(wanted) - set(settings.clusters):
        return
    query = sa.union(sa.select(JOBS.c.cluster), sa.select(CLUSTERS.c.cluster))
    known = sorted({*settings.clusters, *connection.scalars(query)})
    for name in wanted:
        if name not in known:
            there = f"there are: {', '.join(known)}" if known else "there is none yet"
            raise click.BadParameter(plain(f"there is no cluster {name!r}; {there}"), param_hint="'--cluster'")


def _caption(name: str, title: str, made: _Output) -> str:
    """Return what a report says of itself, two lines."""
    about = made.about
    jobs = "1 job" if about.jobs == 1 else f"{about.jobs} jobs"
    filters = about.filters
    said = []
    if filters.clusters:
        said.append(plain(f"cluster {', '.join(filters.clusters)}"))
    if filters.kinds:
        said.append(f"kind {', '.join(filters.kinds)}")
    if filters.since or filters.until:
        since = f" from {utc(filters.since).isoformat(' ')}" if filters.since else ""
        until = f" until before {utc(filters.until).isoformat(' ')}" if filters.until else ""
        # Of gaps they choose which are listed, not which jobs are counted.
        said.append(f"{'overlapping the time' if name == 'gaps' else 'submitted (else registered)'}{since}{until}")
    options = "".join(f"; {name.replace('_', ' ')} of {value}" for name, value in made.options.items() if value)
    return (
        f"{title}: {jobs}, as of {utc(about.as_of).isoformat(' ', 'seconds')}\n"
        f"tracker {about.version}; filters: {'; '.join(said) or 'none'}{options}"
    )


def _head(name: str, made: _Output) -> dict[str, object]:
    about, filters = made.about, made.about.filters
    return {
        "report": name,
        "as_of": utc(about.as_of).isoformat(timespec="microseconds"),
        "version": about.version,
        "since": filters.since and utc(filters.since).isoformat(timespec="microseconds"),
        "until": filters.until and utc(filters.until).isoformat(timespec="microseconds"),
        "clusters": filters.clusters or None,
        "kinds": filters.kinds or None,
        "jobs": about.jobs,
        **made.options,
    }


def _print(name: str, title: str, made: _Output, format: str) -> None:
    caption = _caption(name, title, made)
    rows = iter(made.rows)
    first = list(islice(rows, 1))
    match format:
        case "csv":
            click.echo(caption, err=True)
            emit(chain(first, rows), made.columns, "csv")
        case "json":
            sys.stdout.write(f'{json.dumps(_head(name, made))[:-1]}, "rows": ')
            emit(chain(first, rows), made.columns, "json")
            sys.stdout.write("}\n")
        case _:
            if not first:
                click.echo(f"{caption}\n\n{_NOTHING}")  # not a message: all that a file says of its own
                return
            most = [*first, *rows]
            columns, cells = made.shown(most) if made.shown else (made.columns, most)
            lines = f"{caption}\n{made.note}" if made.note else caption
            emit(cells, columns, "table", title=f"{lines}\n")
            if made.left_out:
                total = len(most) + made.left_out
                click.echo(f"\nThese are the first {len(most)} of {total:,} rows; --format csv has all.")
            return
    if not first:
        click.echo(_NOTHING, err=True)


@_subcommand(
    "From submission to done",
    "tracker report durations",
    "tracker report durations --since 2026-11-01 --until 2026-11-30 --kind export",
    "tracker report durations --format json | jq '.rows[] | {cluster, kind, median_seconds_max}'",
)
def durations(connection: sa.Connection, asked: _Asked) -> _Output:
    """How long jobs take, by cluster and kind.

    From submission (where that is unknown, registration) to done. Elevate gives no times, so each
    figure is a pair: at least, and at most, so long. A job that is not done counts as at least as old as when it was
    last seen not done (Kaplan-Meier), also a failed, lost or attested one, which leaves the curve there: where many
    fail, the figures are those of jobs that do not. Withdrawn jobs are left out. "not reached" (csv: empty, json:
    null): too few are done to say.

    Above the table, and in csv and json by row, stands how late registrations came, in seconds after the declared
    submission (late_median_seconds, late_max_seconds), how many came more than a day late (late_over_1d), and how many
    jobs have no declared submission (submission_unknown); withdrawn jobs count there.

    The median is the time by which half of the jobs are done, as estimated, p90 and p95 nine tenths and nineteen
    twentieths, max all.
    The last row is the total: its cluster and kind are "all" in a table, empty in csv, null in json.
    """
    from tracker.reports.durations import durations

    filters = asked.filters
    made = durations(
        connection,
        since=filters.since,
        until=filters.until,
        cluster=filters.clusters,
        kind=filters.kinds,
        as_of=asked.as_of,
        zone=asked.zone,
    )
    return _told(_durations_output(made), asked)


def _told(made: _Output, asked: _Asked) -> _Output:
    """Return *made* with its options, and with a note on what cannot be known of an earlier time."""
    note = made.note if asked.as_of is None else "\n".join(filter(None, (made.note, _THEN)))
    return replace(made, note=note, options=asked.more)


def print_durations(made: Durations, format: str | None = None) -> None:
    """Print the report on standard output, as ``tracker report durations`` does."""
    _print("durations", "From submission to done", _durations_output(made), chosen(format))


_COUNTS = ("jobs", "done", "open", "failed", "lost", "attested", "withdrawn")
_QUANTILES = ("median", "p90", "p95", "max")
_LATE = ("late_median_seconds", "late_max_seconds", "late_over_1d", "submission_unknown")


def _durations_output(made: Durations) -> _Output:
    rows = [*made.rows, made.total] if made.rows else []
    bounds = [f"{quantile}_{bound}" for quantile in _QUANTILES for bound in ("seconds_min", "seconds_max")]
    total = made.total
    # Those that are neither done nor open are rare, and there is little room: a column only where there are any.
    counts = ["jobs", "done", "open", *(name for name in ("failed", "lost", "attested") if getattr(total, name))]
    columns = [
        Column("cluster", optional=len({row.cluster for row in made.rows}) == 1),
        Column("kind"),
        *(Column(name, optional=name not in _COUNTS[:3]) for name in counts),
        Column("quantile"),
        Column("seconds_min", "at least"),
        Column("seconds_max", "at most"),
    ]
    withdrawn = f"\nWithdrawn, and left out: {total.withdrawn}." if total.withdrawn else ""
    late = total.registered
    came = "Without a declared submission nobody can say how late a registration came."
    if late.median is not None and late.max is not None:
        unknown = f"\nSubmission unknown: {late.unknown}." if late.unknown else ""
        came = (
            f"Registered after submission: median {human(late.median, up=True)}, max {human(late.max, up=True)}; "
            f"later than a day: {late.over_a_day}.{unknown}"
        )
    return _Output(
        made.about,
        ["cluster", "kind", *_COUNTS, *bounds, *_LATE],
        [[row.cluster, row.kind, *_counted(row, _COUNTS), *_bounds(row), *_late(row)] for row in rows],
        lambda _: (columns, [line for row in rows for line in _lines(row, counts)]),
        "Estimated (Kaplan-Meier): a job that is not done, also a failed, lost or\n"
        f"attested one, counts until last seen not done, and leaves the curve there.{withdrawn}\n{came}",
    )


def _counted(row: Row, names: Sequence[str]) -> list[int]:
    return [getattr(row, name) for name in names]


def _bounds(row: Row) -> list[float | None]:
    """Return both bounds of each quantile."""
    quantiles = (row.median, row.p90, row.p95, row.max)
    return [bound for pair in quantiles for bound in (pair.seconds_min, pair.seconds_max)]


def _late(row: Row) -> list[float | None]:
    """Return how late the registrations came."""
    late = row.registered
    return [late.median, late.max, late.over_a_day, late.unknown]


def _lines(row: Row, counts: Sequence[str]) -> list[list[object]]:
    """Return the lines of *row* in a table: one a quantile, for both bounds of all would not fit 80 columns."""
    head = [row.cluster or "all", row.kind or "all", *_counted(row, counts)]
    bounds = [_NOT_REACHED if bound is None else bound for bound in _bounds(row)]
    return [
        [*(head if i == 0 else [None] * len(head)), quantile, bounds[2 * i], bounds[2 * i + 1]]
        for i, quantile in enumerate(_QUANTILES)
    ]


_CELLS: dict[str, Callable[[Any], object]] = {
    "ended_at": lambda at: at or "still open",
    "covered_share": lambda share: None if share is None else f"{math.floor(share * 1000) / 10:.1f} %",  # at least
}
"""What a table shows for a value."""


def _table(connection: sa.Connection, asked: _Asked, name: str, *columns: Column, note: str = "") -> _Output:
    """Return the report *name*; *columns* are those that people see, in their order."""
    from tracker.reports.tables import read

    made = read(connection, name, asked.filters, as_of=asked.as_of, zone=asked.zone, most=asked.most)
    shown = _shown(made.columns, columns)
    return _told(_Output(made.about, made.columns, made.rows, shown, note, left_out=made.left_out), asked)


def _shown(
    names: Sequence[str], columns: Sequence[Column]
) -> Callable[[Sequence[Sequence[Any]]], tuple[Sequence[Column | str], Sequence[Sequence[object]]]]:
    def shown(rows: Sequence[Sequence[Any]]) -> tuple[Sequence[Column | str], Sequence[Sequence[object]]]:
        at = [names.index(column.name) for column in columns]
        present = list(columns)
        if "cluster" in names and len({row[names.index("cluster")] for row in rows}) < 2:
            # Of one cluster only, its name is what a narrow terminal can best do without.
            present = [replace(one, optional=True) if one.name == "cluster" else one for one in present]
        cells = [
            [_CELLS.get(column.name, _same)(row[i]) for column, i in zip(columns, at, strict=True)] for row in rows
        ]
        return present, cells

    return shown


def _same(value: object) -> object:
    return value


@_subcommand("Time in each status seen", "tracker report statuses --since 2026-11-01 --format csv")
def statuses(connection: sa.Connection, asked: _Asked) -> _Output:
    """How long jobs were in each status.

    One row for each stay in a status that was seen, none for one that was not. A status that a job is still in was not
    left, and lasts at least until it was last seen.
    """
    return _table(
        connection,
        asked,
        "statuses",
        Column("jid"),
        Column("status"),
        Column("seconds_min", "at least"),
        Column("seconds_max", "at most"),
        Column("cluster", optional=True),
        Column("entered_by", optional=True),
        Column("left_by", optional=True),
        Column("kind", optional=True),
        Column("reference", optional=True),
    )


@_subcommand(
    "By month of submission",
    "tracker report monthly",
    "tracker report monthly --since 2026-01-01 --kind removal --format csv -o monthly.csv",
)
def monthly(connection: sa.Connection, asked: _Asked) -> _Output:
    """How jobs went, by the month of their submission; in a table the newest first.

    For each cluster, kind and month: how many jobs there are and what became of them, within how many days they were
    done, and their verdicts. For how long they took: tracker report durations --by month.
    """
    return _table(
        connection,
        asked,
        "monthly",
        Column("month"),
        Column("cluster"),
        Column("kind"),
        Column("submitted", "jobs"),
        Column("done"),
        Column("open"),
        Column("met"),
        Column("missed"),
        Column("overdue"),
        Column("failed", optional=True),
        Column("lost", optional=True),
        Column("undecidable", optional=True),
        Column("pending", optional=True),
    )


@_subcommand(
    "Deadlines",
    "tracker report deadlines --cluster w1a2b3c4d",
    "tracker report deadlines --working-days SE --format csv -o deadlines.csv",
    options=(
        click.option(
            "--working-days",
            metavar="COUNTRY",
            callback=lambda ctx, param, value: value and value.upper(),
            help="Add the last day as it is where weekends and public holidays do not count: a code such as SE, DE-BY.",
        ),
    ),
)
def deadlines(connection: sa.Connection, asked: _Asked) -> _Output:
    """Each job's legal deadline and verdict, the nearest first.

    A table begins with the jobs that are not settled, and ends with the oldest deadlines.

    One calendar month after the request was received (else after the job was submitted, else registered), in the legal
    time zone. The verdict "met" says that Elevate reported the job done in time; that the person was informed is not
    shown. The verdict goes by the unrolled date, the careful one, also with --working-days.
    """
    country = asked.more["working_days"]
    columns = [
        Column("jid"),
        Column("deadline_on", "deadline"),
        Column("verdict"),
        Column("days_left"),
        Column("state", optional=country is not None),
        Column("reference", optional=True),
        Column("cluster", optional=True),
        Column("kind", optional=True),
        Column("basis", optional=True),
    ]
    if country is None:
        return _table(connection, asked, "deadlines", *columns)
    from tracker.reports.working_days import roller

    roll = roller(country)
    made = _table(connection, asked, "deadlines")
    names = [str(name) for name in made.columns]
    on = names.index("deadline_on")
    names.insert(on + 1, "working_day_on")
    columns.insert(2, Column("working_day_on", "working day"))
    return replace(
        made,
        columns=names,
        rows=([*row[: on + 1], row[on] and roll(row[on]), *row[on + 1 :]] for row in made.rows),  # type: ignore[arg-type]
        shown=_shown(names, columns),
    )


@_subcommand("Requests", "tracker report requests --since 2026-11-01", "tracker report requests --format json")
def requests(connection: sa.Connection, asked: _Asked) -> _Output:
    """Each person's request: its export and its removal together.

    One row for each reference, the nearest deadline first, in a table those first that are not settled; the verdict is
    the worst of its jobs. A filter leaves jobs out, and with them what they count for: with --kind export it is about
    the exports only.
    """
    return _table(
        connection,
        asked,
        "requests",
        Column("reference"),
        Column("deadline_on", "deadline"),
        Column("verdict"),
        Column("jobs"),
        Column("done"),
        Column("open"),
        Column("not_done", "not done"),
        Column("done_by", optional=True),
        Column("received_at", optional=True),
    )


@_subcommand("Anomalies", "tracker report anomalies --since 2026-11-01")
def anomalies(connection: sa.Connection, asked: _Asked) -> _Output:
    """What was odd, in the order in which it was recorded; in a table the newest first.

    Every transition with an anomaly: unknown_status (a word that nobody documented), backwards (an earlier status after
    a later one), vanished (not found, although it was there before), reappeared, never_found. --since and --until go by
    the job's submission, as in all reports.
    """
    return _table(
        connection,
        asked,
        "anomalies",
        Column("observed_at", "seen"),
        Column("jid"),
        Column("anomaly"),
        Column("cluster", optional=True),
        Column("from_status", "from", optional=True),
        Column("to_status", "to", optional=True),
    )


@_subcommand("Gaps in the observation", "tracker report gaps --since 2026-11-01 --cluster w1a2b3c4d")
def gaps(connection: sa.Connection, asked: _Asked) -> _Output:
    """When nothing could be observed, why, and how many jobs were open meanwhile.

    A table begins with those that are still open, then the newest; csv and json begin with the oldest.

    --since and --until choose the gaps that overlap that stretch of time; --kind, which jobs are counted. That no
    daemon ran is on record only once one runs again.
    """
    return _table(
        connection,
        asked,
        "gaps",
        Column("cluster"),
        Column("began_at", "began"),
        Column("ended_at", "ended"),
        Column("seconds", "lasted"),
        Column("cause"),
        Column("open_jobs", "open jobs"),
        Column("detail", optional=True),
    )


@_subcommand("How much of each job's life was observed", "tracker report coverage --cluster w1a2b3c4d")
def coverage(connection: sa.Connection, asked: _Asked) -> _Output:
    """Which share of each job's life was observed, the least first.

    What no gap on record covers counts as observed. That no daemon ran is on record only once one runs again; until
    then `tracker status` tells it.
    """
    return _table(
        connection,
        asked,
        "coverage",
        Column("jid"),
        Column("covered_share", "observed"),
        Column("longest_unobserved_seconds", "longest unobserved"),
        Column("cluster", optional=True),
    )
