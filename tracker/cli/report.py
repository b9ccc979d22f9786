"""``tracker report``: what the record says, one subcommand a report. Arguments and printing.

Owns the options that all reports share, how what a person types becomes a filter, and what every report says of itself:
in a table and in JSON with the figures, in CSV on standard error, so that the file is a table and nothing else. The
figures are those of `tracker.reports`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import click

from tracker.cli.look import opened
from tracker.cli.output import Column, chosen, emit, example, format_option, plain, utc
from tracker.errors import InvalidField
from tracker.status import Kind

if TYPE_CHECKING:
    import sqlalchemy as sa

    from tracker.reports.about import About, Filters
    from tracker.reports.durations import Durations, Row
    from tracker.settings import Settings

_NOTHING = "Nothing to report: no registered job is like that."
_NOT_REACHED = "not reached"


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
            ctx.fail(f"There is no report {args[0]!r}; there are: {', '.join(self.commands)}")
        return super().resolve_command(ctx, args)


@dataclass(frozen=True, slots=True)
class _Output:
    """A report, ready to be printed.

    Attributes:
        about: What it says of itself.
        columns: Of CSV and JSON.
        rows: Of CSV and JSON; empty: there is nothing to report.
        shown: Columns and rows for people, where those differ.
        note: What a person should know who reads the table.
    """

    about: About
    columns: Sequence[Column | str]
    rows: Sequence[Sequence[object]]
    shown: tuple[Sequence[Column | str], Sequence[Sequence[object]]] | None = None
    note: str = ""


@click.group(cls=_Reports, epilog=example("tracker report durations --since 2026-11-01 --cluster w1a2b3c4d"))
def report() -> None:
    """Report what the record says, with bounds where it leaves something open."""


def _subcommand(title: str, *examples: str) -> Callable[[Callable[[sa.Connection, Filters], _Output]], click.Command]:
    """Return a decorator that makes a function a report: its name is the subcommand's, its docstring the help.

    Args:
        title: What the report is, in its caption.
        examples: For the help.
    """

    def decorate(build: Callable[[sa.Connection, Filters], _Output]) -> click.Command:
        @report.command(build.__name__, help=build.__doc__, epilog=example(*examples))
        @click.option(
            "--since",
            callback=_when,
            metavar="TIME",
            help="Submitted (else registered) then or later: a date of the legal time zone, or a time with its offset.",
        )
        @click.option(
            "--until",
            callback=_when,
            metavar="TIME",
            help="Submitted (else registered) on this date or sooner, or before this time.",
        )
        @click.option("--cluster", multiple=True, metavar="NAME", help="Of this cluster; may be repeated.")
        @click.option(
            "--kind",
            multiple=True,
            type=click.Choice([kind.value for kind in Kind]),
            help="As it was declared; may be repeated.",
        )
        @format_option
        def command(
            since: date | datetime | None,
            until: date | datetime | None,
            cluster: tuple[str, ...],
            kind: tuple[str, ...],
            format: str | None,
        ) -> None:
            from tracker import database

            with opened() as (settings, engine):
                filters = _filters(settings.zone, since, until, cluster, kind)
                with database.reading(engine) as connection:
                    _check_clusters(connection, settings, cluster)
                    made = build(connection, filters)
            _print(build.__name__, title, made, format)

        return command

    return decorate


def _filters(
    zone: ZoneInfo,
    since: date | datetime | None,
    until: date | datetime | None,
    clusters: tuple[str, ...],
    kinds: tuple[str, ...],
) -> Filters:
    from tracker.reports.about import Filters

    end = until
    if until is not None and not isinstance(until, datetime):
        end = until + timedelta(days=1)  # the day itself is meant too
    try:
        return Filters(_instant(since, zone), _instant(end, zone), clusters, tuple(map(Kind, kinds)))
    except InvalidField:  # of what it refuses, only the order is left
        raise click.BadParameter(
            f"{until} is not after --since {since}: nothing lies between", param_hint="'--until'"
        ) from None


def _instant(when: date | datetime | None, zone: ZoneInfo) -> datetime | None:
    return when if when is None or isinstance(when, datetime) else datetime.combine(when, time(), zone)


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


def _caption(title: str, about: About) -> str:
    """Return what a report says of itself, two lines."""
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
        said.append(f"submitted (else registered){since}{until}")
    return (
        f"{title}: {jobs}, as of {utc(about.as_of).isoformat(' ', 'seconds')}\n"
        f"tracker {about.version}; filters: {'; '.join(said) or 'none'}"
    )


def _head(name: str, about: About) -> dict[str, object]:
    filters = about.filters
    return {
        "report": name,
        "as_of": utc(about.as_of).isoformat(timespec="microseconds"),
        "version": about.version,
        "since": filters.since and utc(filters.since).isoformat(timespec="microseconds"),
        "until": filters.until and utc(filters.until).isoformat(timespec="microseconds"),
        "clusters": filters.clusters or None,
        "kinds": filters.kinds or None,
        "jobs": about.jobs,
    }


def _print(name: str, title: str, made: _Output, format: str | None) -> None:
    caption = _caption(title, made.about)
    match chosen(format):
        case "csv":
            click.echo(caption, err=True)
            emit(made.rows, made.columns, "csv")
        case "json":
            sys.stdout.write(f'{json.dumps(_head(name, made.about))[:-1]}, "rows": ')
            emit(made.rows, made.columns, "json")
            sys.stdout.write("}\n")
        case _:
            columns, rows = made.shown or (made.columns, made.rows)
            lines = f"{caption}\n{made.note}" if made.note else caption
            emit(rows, columns, "table", title=f"{lines}\n", empty=f"{caption}\n{_NOTHING}")
            return
    if not made.rows:
        click.echo(_NOTHING, err=True)


@_subcommand(
    "From submission to done",
    "tracker report durations",
    "tracker report durations --since 2026-11-01 --until 2026-11-30 --kind export",
    "tracker report durations --format json | jq '.rows[] | {cluster, kind, median_seconds_max}'",
)
def durations(connection: sa.Connection, filters: Filters) -> _Output:
    """How long jobs take, by cluster and kind.

    From submission (where that is unknown, registration) to done. Elevate gives no times, so each
    figure is a pair: at least, and at most, so long. A job that is not done counts as at least as old as when it was
    last seen not done (Kaplan-Meier), also a failed, lost or attested one; withdrawn jobs are left out. "not reached"
    (csv: empty, json: null): too few are done to say.

    The median is the time by which half of the jobs are done, p90 and p95 nine tenths and nineteen twentieths, max all.
    The last row is the total: its cluster and kind are "all" in a table, empty in csv, null in json.
    """
    from tracker.reports.durations import durations

    return _durations_output(
        durations(connection, since=filters.since, until=filters.until, cluster=filters.clusters, kind=filters.kinds)
    )


def print_durations(made: Durations, format: str | None = None) -> None:
    """Print the report on standard output, as ``tracker report durations`` does."""
    _print("durations", "From submission to done", _durations_output(made), format)


_COUNTS = ("jobs", "done", "open", "failed", "lost", "attested", "withdrawn")
_QUANTILES = ("median", "p90", "p95", "max")


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
    return _Output(
        made.about,
        ["cluster", "kind", *_COUNTS, *bounds],
        [[row.cluster, row.kind, *_counted(row, _COUNTS), *_bounds(row)] for row in rows],
        (columns, [line for row in rows for line in _lines(row, counts)]),
        f"A job that is not done counts as at least as old as when last seen not done.{withdrawn}",
    )


def _counted(row: Row, names: Sequence[str]) -> list[int]:
    return [getattr(row, name) for name in names]


def _bounds(row: Row) -> list[float | None]:
    """Return both bounds of each quantile."""
    quantiles = (row.median, row.p90, row.p95, row.max)
    return [bound for pair in quantiles for bound in (pair.seconds_min, pair.seconds_max)]


def _lines(row: Row, counts: Sequence[str]) -> list[list[object]]:
    """Return the lines of *row* in a table: one a quantile, for both bounds of all would not fit 80 columns."""
    head = [row.cluster or "all", row.kind or "all", *_counted(row, counts)]
    bounds = [_NOT_REACHED if bound is None else bound for bound in _bounds(row)]
    return [
        [*(head if i == 0 else [None] * len(head)), quantile, bounds[2 * i], bounds[2 * i + 1]]
        for i, quantile in enumerate(_QUANTILES)
    ]
