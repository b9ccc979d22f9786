"""Whether all is well: ``tracker status`` and ``tracker clusters``. Arguments and printing.

`tracker.needs` decides what needs a person; `tracker.reports.overview` gathers the facts for that. The database is
closed before anything is printed. Rich is imported only for a table: importing it takes a tenth of the time.
"""

from __future__ import annotations

import shutil
import sys
from datetime import datetime
from typing import TYPE_CHECKING

import click

from tracker.cli.look import ago, opened
from tracker.cli.output import Column, chosen, counted, emit, example, format_option, plain
from tracker.status import Cause

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracker.needs import ClusterOverview, Need, Overview


@click.command(epilog=example("tracker status", "tracker status > now.txt || mail -s 'tracker: urgent' ops < now.txt"))
@click.pass_context
def status(ctx: click.Context) -> None:
    """Show what needs a person, and how daemons, jobs and clusters are; exit with 1 if something is urgent.

    Each need is one line: urgent or not, its kind, what is wrong, what to do. Times are UTC, by the database's clock.
    """
    from tracker import database
    from tracker.needs import needs
    from tracker.reports.overview import overview

    with opened() as (settings, engine), database.reading(engine) as connection:
        seen = overview(connection, settings.clusters, settings.seal_after, settings.retention)
    found = needs(seen)
    for need in found:
        line = _line(need)
        click.echo(_wrapped(line, "       ") if sys.stdout.isatty() else line)  # in a file it is one line, for grep
    if not found:
        click.echo("Nothing needs a person.")
    click.echo()
    for name, text in _facts(seen).items():
        click.echo(_wrapped(f"{name:<10}{text}", " " * 10))
    if seen.clusters:
        click.echo()
        _show(seen.clusters, seen.now)
    if any(need.is_urgent for need in found):
        ctx.exit(1)


def _line(need: Need) -> str:
    return plain(f"{'URGENT' if need.is_urgent else 'need  '} [{need.kind}] {need.what}. {need.action}")


def _wrapped(line: str, indent: str) -> str:
    return click.wrap_text(line, shutil.get_terminal_size().columns, subsequent_indent=indent)


def _facts(seen: Overview) -> dict[str, str]:
    """Return the state of daemons, jobs and seals by heading; on a new database, what to do next."""
    daemons = [
        f"{one.host}:{one.pid}, version {one.version}, started {ago(one.started_at, seen.now)}, "
        f"last sign of life {ago(one.beat_at, seen.now)}"
        for one in seen.daemons
    ]
    none = "none is running: `tracker run` starts one"
    if not daemons and seen.last_beat_at is not None:
        none = f"none is running (last sign of life {ago(seen.last_beat_at, seen.now)}): `tracker run` starts one"
    jobs = f"{seen.open} open, {seen.failed.count} failed, {seen.lost.count} lost; past the deadline: "
    jobs += f"{seen.overdue.count} overdue, {seen.undecidable.count} not seen since; "
    jobs += f"{sum(seen.due_within.values())} with at most 7 days left"
    if not seen.clusters:
        jobs = "No cluster is configured: set TRACKER_CLUSTER and TRACKER_API_KEY, then `tracker config check`."
    elif seen.seals.sealed_at is None and seen.seals.unsealed_since is None:
        jobs = "None is registered yet: `tracker add JID` registers one."
    return {
        "Now": f"{seen.now:%Y-%m-%d %H:%M:%S} UTC",
        "Daemons": plain("; ".join(daemons)) or none,
        "Jobs": jobs,
        "Seals": _seals(seen),
    }


def _seals(seen: Overview) -> str:
    its = seen.seals
    unsealed = f"; {counted(its.unsealed, 'row')} not sealed yet" if its.unsealed else ""
    if its.sealed_at is None:
        return f"none yet{unsealed}"
    number = "DAMAGED (`tracker audit verify`)" if its.number is None else f"number {its.number}"
    signed = f"signed with key {its.key_id}" if its.key_id else "NOT SIGNED"
    return f"{number}, {ago(its.sealed_at, seen.now)}, {signed}{unsealed}"


@click.command(epilog=example("tracker clusters", "tracker clusters --format json"))
@format_option
def clusters(format: str | None) -> None:
    """Show a row for each cluster that is configured or has jobs.

    A poll is late when it has been due for more than a minute. The next deadline is the nearest future deadline of an
    open, failed or lost job.
    """
    from dataclasses import astuple, fields

    from tracker import database
    from tracker.needs import ClusterOverview
    from tracker.reports import overview

    with opened() as (settings, engine), database.reading(engine) as connection:
        now = database.now(connection)
        rows = overview.clusters(connection, settings.clusters)
    if chosen(format) == "table":
        _show(rows, now)
    else:
        emit(map(astuple, rows), [field.name for field in fields(ClusterOverview)], format)


def _show(rows: Iterable[ClusterOverview], now: datetime) -> None:
    """Print a table of clusters that fits 80 columns."""
    emit(
        [
            (
                row.cluster,
                row.open,
                row.polls_behind,
                ago(row.answered_at, now) if row.answered_at else "never",
                row.next_deadline_on,
                _state(row),
            )
            for row in rows
        ],
        ["cluster", "open", "late", "last answer", "next deadline", Column("state")],
        "table",
        empty="No cluster is configured, and none is in the database.",
    )


def _state(row: ClusterOverview) -> str:
    """Return in words why a cluster is not polled; empty if it is polled."""
    since = "" if row.gap_began_at is None else f" since {row.gap_began_at:%Y-%m-%d %H:%M}"
    detail = f": {row.gap_detail}" if row.gap_detail else ""
    words = []
    if row.pause_cause is Cause.PAUSED:
        words.append(f"paused by hand{since}{detail}" if row.gap_cause is Cause.PAUSED else "paused by hand")
    elif row.gap_cause is Cause.PAUSED:
        words.append(f"resumed, no answer yet; was paused by hand{since}{detail}")
    elif row.gap_cause is not None or row.pause_cause is not None:
        words.append(f"{row.gap_cause or row.pause_cause}{since}{detail}")
        if row.pause_cause is not None and row.paused_until is not None:
            words.append(f"asks again at {row.paused_until:%Y-%m-%d %H:%M}")
    if not row.is_configured:
        words.append("not in these settings")
    return "; ".join(words)
