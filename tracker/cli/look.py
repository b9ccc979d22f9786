"""Looking: ``tracker jobs`` and ``show``. Arguments and printing.

`tracker.reports.jobs` has the queries; this module has the words and the columns. Each command reads one state of the
database and closes it before it prints, so that an open pager blocks no writer. Large results wait in a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from tracker.cli import times
from tracker.cli.destination import output_to
from tracker.cli.output import (
    Column,
    chosen,
    counted,
    emit,
    example,
    format_option,
    human,
    json_value,
    of_one_cluster,
    plain,
    utc,
)
from tracker.deadline import Verdict
from tracker.reports import words
from tracker.status import Action, Facts, Kind, State

if TYPE_CHECKING:
    import sqlalchemy as sa

    from tracker.settings import Settings

ROWS = 50
"""Most rows of ``tracker jobs`` in a table without --limit; ours: as many as a person scrolls through."""
_LONG = 15
"""Most characters of a status in the table of jobs; an undocumented status may have 255. ``show`` shows all."""


@contextmanager
def opened() -> Iterator[tuple[Settings, sa.Engine]]:
    """Yield the settings, keys left unread, and the database that they name."""
    from tracker import database, settings

    effective = settings.load(keys=False)
    engine = database.open_database(effective.database_url)
    try:
        yield effective, engine
    finally:
        engine.dispose()


@click.command(
    epilog=example(
        "tracker jobs",
        "tracker jobs --state failed --state lost",
        "tracker jobs --due-within 7d --cluster w1a2b3c4d",
        "tracker jobs --reference DSR-1042 --format json",
    )
)
@click.option(
    "--state",
    multiple=True,
    type=click.Choice([state.value for state in State]),
    help="The conclusion of tracker.",
)
@click.option("--status", multiple=True, metavar="WORD", help="What Elevate said last, verbatim.")
@click.option("--cluster", multiple=True, metavar="NAME", help="Of this cluster.")
@click.option("--kind", multiple=True, type=click.Choice([kind.value for kind in Kind]), help="As it was declared.")
@click.option("--reference", multiple=True, metavar="TICKET", help="Of this request.")
@click.option(
    "--verdict",
    multiple=True,
    type=click.Choice([word.value for word in Verdict]),
    help="The verdict on its deadline.",
)
@click.option(
    "--due-within",
    callback=times.length,
    metavar="TIME",
    help="Not settled, with a deadline within this time from now: 7d, 36h.",
)
@click.option(
    "--past-deadline", is_flag=True, help="The deadline is past, and the verdict missed, overdue or undecidable."
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    metavar="N",
    help=f"At most N jobs. Default: {ROWS} in a table, all in csv and json.",
)
@format_option
def jobs(
    due_within: timedelta | None,
    past_deadline: bool,
    limit: int | None,
    format: str | None,
    **wanted: tuple[str, ...],
) -> None:
    """List jobs, the most urgent first.

    Unsettled jobs come first (open, failed, lost), the nearest deadline first. Settled jobs follow, the last to end
    first. A filter may be repeated: a job must match one value of each filter.

    A table shows the columns that fit; csv and json have every column of the view report_jobs.
    """
    from tracker import database, text
    from tracker.reports import jobs as queries

    wanted = {name: tuple(map(text.strip, values)) for name, values in wanted.items()}
    for name, values in wanted.items():
        if any(text.INVISIBLE.search(value) for value in values):
            raise click.UsageError(f"--{name} contains an invisible character, or bytes that are not UTF-8")
    if due_within is not None and past_deadline:
        raise click.UsageError("use either --due-within or --past-deadline: a deadline is in the future or in the past")
    form = chosen(format)
    most = limit or ROWS
    with output_to(None, form), opened() as (_, engine), database.reading(engine) as connection:
        at_most = most + 1 if form == "table" else limit
        found = queries.jobs(connection, wanted, past_deadline=past_deadline, due_within=due_within, limit=at_most)
        if form != "table":
            emit(found, queries.columns(connection), form)
            return
        rows = list(found)
    cells = [[_state(row) if one.name == "state" else getattr(row, one.name) for one in _JOBS] for row in rows[:most]]
    emit(cells, of_one_cluster(_JOBS, {row.cluster for row in rows}), "table", empty="No jobs match.")
    if len(rows) > most:
        click.echo(f"There are more than {most} jobs. Add filters, or set --limit N.", err=True)


_JOBS = (
    Column("jid"),
    Column("state"),
    Column("verdict"),
    Column("deadline_on", "deadline", optional=True),
    Column("age_seconds", "age", optional=True),
    Column("kind", optional=True),
    Column("reference", optional=True),
    Column("cluster"),
)


def _state(row: sa.Row[Any]) -> str:
    """Return the state, with Elevate's last status if that says more: ``open: waiting``."""
    if row.status in (None, row.state):
        return str(row.state)
    return f"{row.state}: {row.status if len(row.status) <= _LONG else row.status[:_LONG] + '…'}"


@click.command(
    epilog=example(
        "tracker show ca24b4e2-34ab-406a-a4db-b30b0247837a",
        "tracker show ca24b4e2-34ab-406a-a4db-b30b0247837a --cluster w1a2b3c4d --format json",
    )
)
@click.argument("jid")
@click.option("--cluster", metavar="NAME", help="Needed if several clusters have a job with this jid.")
@format_option
def show(jid: str, cluster: str | None, format: str | None) -> None:
    """Show one job: what was declared, what was observed, its next poll, and its timeline.

    Each change happened between two instants: not before the request that last saw the old status was sent, and no
    later than the answer that first showed the new one was complete. Elevate itself gives no times. Bounds are wide
    where nothing could be observed: `tracker report gaps` says when and why.

    csv has the timeline only. json is one object with the job and its timeline.
    """
    import sqlalchemy as sa

    from tracker import database, models, operate
    from tracker.reports import jobs as queries

    form = chosen(format)
    with opened() as (settings, engine), database.reading(engine) as connection:
        found = operate.find(connection, jid, cluster)
        now = database.now(connection)
        row = connection.execute(sa.select(models.JOBS).where(models.JOBS.c.id == found.job_id)).one()
        [seen] = queries.jobs(connection, {"cluster": [found.cluster], "jid": [jid]})
        changes = queries.timeline(connection, found.cluster, jid)
        declared = queries.declared(connection, found.job_id)
    meaning = words.verdict_meaning(seen.verdict, seen.state)
    if form == "csv":
        emit(changes, changes[0]._fields, "csv")
    elif form == "json":
        job = seen._asdict() | {"verdict_meaning": meaning}
        job |= {name: getattr(row, name) for name in ("deadline_at", "extended_on", "status_polls")}
        timeline = [change._asdict() | {"declared": declared.get(change.seq)} for change in changes]

        def plain_value(value: object) -> object:
            return asdict(value) if isinstance(value, Facts) else json_value(value)

        # ASCII only: a server's text in it cannot control the terminal.
        click.echo(json.dumps({"job": job, "timeline": timeline}, indent=2, default=plain_value))
    else:
        facts = _facts(row, seen, meaning, now, settings.timezone)
        emit([list(facts.values())], [*facts], "table", title=plain(f"Job {jid}"), records=True)
        click.echo()
        lines = [_change(change, row.submitted_at, declared) for change in changes]
        emit(lines, ["#", "not before", "no later than", "change", "note"], "table", title="Timeline")


def amended(was: Facts, now: Facts) -> list[str]:
    """Return in words which declared facts of a job changed, and how."""

    def worded(value: object) -> str:
        if isinstance(value, datetime):
            return utc(value).isoformat(" ")
        return "unknown" if value is None else str(value)

    pairs = zip(asdict(was).items(), asdict(now).values(), strict=True)
    return [f"{name} {worded(old)} -> {worded(new)}" for (name, old), new in pairs if old != new]


def _facts(row: sa.Row[Any], seen: sa.Row[Any], meaning: str, now: datetime, timezone: str) -> dict[str, object]:
    """Return the facts about a job that a table shows, by heading."""
    late = ""
    if row.submitted_at is not None and row.registered_at >= row.submitted_at:
        late = f", {words.exact(row.registered_at - row.submitted_at)} after its submission"
    facts: dict[str, object] = {
        "cluster": row.cluster,
        "kind": _declared(row.kind.value),
        "reference": _declared(row.reference),
        "request received": _declared(row.received_at),
        "submitted": _declared(row.submitted_at),
        "registered": f"{_time(row.registered_at)} by {row.registered_by}{late}",
        "state": row.state.value,
        "status": "not answered yet",
    }
    if row.status is not None:
        began = _between(seen.status_after, row.status_by)
        facts["status"] = f"{row.status}; began {began}; {counted(row.status_polls, 'answer')} in a row"
        facts["last answer"] = row.seen_at
    match row.state:
        case State.ATTESTED:
            facts["ended"] = f"by {_time(row.ended_by)}, as an operator says"
        case State.WITHDRAWN:
            facts["ended"] = row.ended_by
        case State.DONE | State.FAILED | State.LOST:
            facts["ended"] = _between(seen.ended_after, row.ended_by)
    facts["deadline"] = "computed at the first answer"
    if row.deadline_at is not None:
        away = f"in {human(row.deadline_at - now)}" if row.deadline_at > now else ago(row.deadline_at, now)
        facts["deadline"] = f"{row.deadline_on} in {timezone}; it ends {_time(row.deadline_at)}, {away}"
    if row.extended_on is not None:
        idle = "" if row.deadline_on == row.extended_on else "; does not count: recorded too late, or too long"
        facts["extended"] = _declared(row.extended_on) + idle
    facts["verdict"] = f"{seen.verdict}: {meaning}"
    if row.due_at is not None:
        due = f"in {human(row.due_at - now)}" if row.due_at > now else f"due for {human(now - row.due_at)}"
        facts["next poll"] = f"{_time(row.due_at)}, {due}"
    facts["polls"] = f"{row.polls}, {row.failures} of them failed in a row" if row.failures else row.polls
    if row.last_error is not None:
        facts["last error"] = row.last_error
    return facts


def _change(change: sa.Row[Any], submitted_at: datetime | None, declared: dict[int, Facts]) -> list[object]:
    """Return a row of the timeline's table: number, both bounds, what changed, and notes about it."""
    moved = change.from_state != change.to_state
    notes = [f"{change.anomaly}: {words.ANOMALIES[change.anomaly]}"] if change.anomaly else []
    after: object = None
    if change.action == Action.OBSERVED:
        what = change.to_status
        if change.from_status not in (None, change.to_status):
            what = f"{change.from_status} -> {change.to_status}"
        elif change.from_status is not None and not moved:
            what = f"still {change.to_status}"
            notes.append("first seen not done after its deadline")
        if moved and change.to_status != change.to_state:
            what += f" ({change.to_state})"
        after = change.last_seen_at or (submitted_at and f"{_time(submitted_at)} (declared)")
    else:
        what = change.action
        if moved and change.from_state is not None:
            what += f" (was {change.from_state})"
        notes.append(f"by {change.actor}" + (f": {change.reason}" if change.reason else ""))
        if change.action == Action.ATTESTED:
            notes.append(f"done by {_time(change.claimed_at)} (declared)")
        if change.action == Action.AMENDED:
            before = declared[max(seq for seq in declared if seq < change.seq)]
            notes += [f"{fact} (declared)" for fact in amended(before, declared[change.seq])]
    return [change.seq, after, change.observed_at, what, "; ".join(notes)]


def _declared(value: object) -> str:
    if value is None:
        return "unknown"
    return f"{_time(value) if isinstance(value, datetime) else value} (declared)"


def _time(at: datetime) -> str:
    return utc(at).isoformat(" ", "seconds")


def _between(after: datetime | None, by: datetime) -> str:
    return f"by {_time(by)}" if after is None else f"between {_time(after)} and {_time(by)}"


def ago(at: datetime, now: datetime) -> str:
    """Return how long before *now* something was, as ``2h 5m ago``."""
    return f"{human(max(now - at, timedelta()))} ago"
