"""Deciding: ``tracker withdraw``, ``reopen``, ``attest``, ``amend``, ``pause`` and ``resume``. Arguments and printing.

`tracker.operate` carries decisions out. This module finds out who decides, and about which jobs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeAlias, TypeVar
from zoneinfo import ZoneInfo

import click

from tracker.cli.intake import INPUT, say
from tracker.cli.look import amended, opened
from tracker.cli.output import example, plain, utc
from tracker.errors import InvalidField, Refused

if TYPE_CHECKING:
    import sqlalchemy as sa

    from tracker.operate import Amendment, Fact
    from tracker.status import Decision

_F = TypeVar("_F", bound=Callable[..., Any])
_Texts: TypeAlias = Mapping[str, str]
"""What a command line or a row declares about a job besides its jid, by column."""
_Act: TypeAlias = Callable[["sa.Connection", int, str, str, "dict[str, Fact]", ZoneInfo], str]
"""Decides about a job (connection, job_id, actor, reason, declared values, legal time zone); returns the rest of the
message about it."""

CLEARED: Final = "none"
"""The word that clears a declared fact."""
_AMENDED: Final = ("kind", "reference", "received_at", "submitted_at", "extended_until")


def _closing_or_opening(decide: Callable[[sa.Connection, int, str, str], Decision]) -> _Act:
    return lambda connection, job_id, actor, reason, said, zone: _was(decide(connection, job_id, actor, reason))


def _was(decision: Decision) -> str:
    return f"; it was {decision.transition.from_state}" if decision.transition else ""


def _reason_option(required: bool) -> Callable[[_F], _F]:
    return click.option(
        "--reason",
        required=required,
        metavar="R",
        help="Why; kept in the history. At most 1,000 characters, no personal data, no @: name a ticket.",
    )


def _of_jobs(command: _F) -> _F:
    """Give *command* the argument and the options that say who decides about which jobs, and why."""
    command.__doc__ = f"""{command.__doc__}
    Refused jobs are listed with the reason; the command goes on with the others, and the exit code is then 1. Each job
    has its own transaction, so an interruption does not undo the jobs before it.
    """
    for add in (
        click.option("--dry-run", is_flag=True, help="Show what would be done; change nothing."),
        click.option("--actor", metavar="WHO", help="Who decides. Default: your login."),
        click.option(
            "--from",
            "source",
            type=INPUT,
            metavar="FILE",
            help="Many jobs: CSV with the column jid (and cluster), or JSON Lines. - is standard input.",
        ),
        click.option("--cluster", metavar="NAME", help="Needed if several clusters have a job with this jid."),
        _reason_option(True),
        click.argument("jids", metavar="[JID]...", nargs=-1),
    ):
        command = add(command)
    return command


@click.command(
    epilog=example(
        "tracker withdraw ca24b4e2-34ab-406a-a4db-b30b0247837a --reason 'registered by mistake'",
        "tracker withdraw --from jobs.csv --reason 'migrated, OPS-311' --dry-run",
        "tracker jobs --state lost --format csv | tracker withdraw --from - --reason OPS-312",
    )
)
@_of_jobs
def withdraw(**given: Any) -> int:
    """Close open, failed or lost jobs, so that they are no longer polled.

    The history keeps who did it, when and why. `tracker reopen` undoes it.
    """
    from tracker import operate

    return _carry_out("withdrawn", _closing_or_opening(operate.withdraw), **given)


@click.command(
    epilog=example(
        "tracker reopen ca24b4e2-34ab-406a-a4db-b30b0247837a --reason 'Elevate has it again'",
        "tracker jobs --state lost --format csv | tracker reopen --from - --reason 'wrong key until today'",
    )
)
@_of_jobs
def reopen(**given: Any) -> int:
    """Resume failed, lost, attested or withdrawn jobs; they are polled at once.

    A done job is never reopened: Elevate said that it is done. The history keeps who did it, when and why.
    """
    from tracker import operate

    return _carry_out("reopened", _closing_or_opening(operate.reopen), **given)


@click.command(
    epilog=example(
        "tracker attest ca24b4e2-34ab-406a-a4db-b30b0247837a --done-by 2026-11-20 --reason 'downloaded, OPS-311'",
        "tracker jobs --state lost --format csv | tracker attest --from - --done-by 2026-11-20 --reason OPS-312",
    )
)
@_of_jobs
@click.option("--done-by", metavar="TIME", help="When it was done at the latest: a time with its offset, or a day.")
def attest(done_by: str | None, **given: Any) -> int:
    """Declare that open, failed or lost jobs were done, though tracker did not see it.

    The verdict becomes `attested`. The history keeps who declared it, when and why. A time is refused if a later answer
    showed the job not done. A day means its end in the legal time zone, or now if it is today. `tracker reopen` undoes
    it. A file may have a column done_by.
    """
    from tracker import database, operate
    from tracker.deadline import start_of_day

    if done_by is None and given["source"] is None:
        raise click.UsageError("Missing option '--done-by'.")

    def act(
        connection: sa.Connection, job_id: int, actor: str, reason: str, said: dict[str, Fact], zone: ZoneInfo
    ) -> str:
        at = said.get("done_by")
        if at is None:
            raise InvalidField("done_by", "is missing; give it for all jobs with --done-by")
        if not isinstance(at, datetime):
            assert isinstance(at, date)  # noqa: S101 - a day
            began_at, ends_at = start_of_day(at, zone), start_of_day(at + timedelta(days=1), zone)
            at = min(max(began_at, database.now(connection)), ends_at)  # a later day stays one: it is refused
        decision = operate.attest(connection, job_id, actor, reason, at)
        return f": done by {utc(at).isoformat(' ')} (declared){_was(decision)}"

    options = {} if done_by is None else {"done_by": done_by}
    return _carry_out("attested", act, options, ("done_by",), **given)


@click.command(
    epilog=example(
        "tracker amend ca24b4e2-34ab-406a-a4db-b30b0247837a --received-at 2026-11-02 --reason 'the letter, OPS-311'",
        "tracker amend ca24b4e2-34ab-406a-a4db-b30b0247837a --reference none --reason 'not ours' --dry-run",
        "tracker amend --from corrected.csv --reason OPS-312",
        "tracker jobs --kind unknown --format csv | cut -d, -f1,2 | tracker amend --from - --kind export --reason R",
    )
)
@_of_jobs
@click.option("--kind", metavar="KIND", help="export, removal or unknown.")
@click.option("--reference", metavar="TICKET", help="The person's request; none clears it. No personal data.")
@click.option("--received-at", metavar="TIME", help="The request reached the company; none clears it.")
@click.option("--submitted-at", metavar="TIME", help="The job was submitted to Elevate; none clears it.")
@click.option(
    "--extended-until",
    metavar="DATE",
    help="The last day, if the deadline was extended by up to two further months; none clears it.",
)
def amend(**given: Any) -> int:
    """Correct what was declared about jobs in any state. Facts that you leave out stay; `none` clears a fact.

    The history keeps the old and the new facts, who changed them and why. The deadline is computed again. If the
    deadline or the submission changes, an open job is polled at once. A day means its start in the legal time zone.

    An extension (GDPR Article 12(3)) counts if it is recorded here before the first month ends, counted from the facts
    as they are now declared. A later extension is kept, but does not change a missed or overdue verdict.

    A file may have the columns kind, reference, received_at, submitted_at and extended_until. An empty cell keeps a
    fact, `none` clears it. Give a fact that is the same for all jobs as an option instead.
    """
    from tracker import operate

    options = {name: text for name in _AMENDED if (text := given.pop(name)) is not None}
    if not options and given["source"] is None:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in _AMENDED)
        raise click.UsageError(f"Give at least one fact to amend: {names}.")

    def act(
        connection: sa.Connection, job_id: int, actor: str, reason: str, said: dict[str, Fact], zone: ZoneInfo
    ) -> str:
        return f": {_amendment(operate.amend(connection, job_id, actor, reason, said, zone=zone))}"

    return _carry_out("amended", act, options, _AMENDED, others=False, **given)


def _amendment(done: Amendment) -> str:
    """Return in words what an amendment changed."""
    changes = amended(done.was, done.decision.job.facts)
    if done.deadline_was == done.deadline.on:
        changes.append(f"deadline {done.deadline.on} as before")
    else:
        changes.append(f"deadline {done.deadline_was or 'not computed yet'} -> {done.deadline.on}")
    if done.idle_extension is not None:
        why = "it was recorded after the first month ended, or is longer than two further months"
        changes.append(f"the extension to {done.idle_extension} does not count: {why}")
    return "; ".join(changes)


def _said(texts: _Texts, zone: ZoneInfo) -> dict[str, Fact]:
    """Return the declared values as `operate` takes them; raise InvalidField for a value that cannot be read."""
    from tracker import intake

    said: dict[str, Fact] = {}
    for name, text in texts.items():
        if name not in ("jid", "cluster", "kind") and text.strip().lower() == CLEARED:
            said[name] = None
        elif name in ("received_at", "submitted_at"):
            said[name] = intake.parse_time(name, text.strip(), zone)
        elif name in ("done_by", "extended_until"):
            try:
                said[name] = intake.day_or_instant(text.strip())
            except ValueError as error:
                raise InvalidField(name, str(error)) from None
        elif name in _AMENDED:
            said[name] = text.strip()
    if "extended_until" in said:
        said["extended_on"] = said.pop("extended_until")
    return said


def _carry_out(
    done: str,
    act: _Act,
    options: _Texts = MappingProxyType({}),
    columns: tuple[str, ...] = (),
    others: bool = True,
    *,
    jids: tuple[str, ...],
    cluster: str | None,
    source: BinaryIO | None,
    reason: str,
    actor: str | None,
    dry_run: bool,
) -> int:
    """Decide about the jobs of the arguments or of a file, and return the exit code.

    Args:
        done: The result in one word, such as ``withdrawn``.
        act: The part that differs between the commands.
        options: Values for all jobs, by column.
        columns: What a file may have besides jid and cluster. With such columns, a message is printed for each job.
        others: Whether other columns are ignored; otherwise they are refused.
        jids, cluster, source, reason, actor, dry_run: As they were typed. A dry run is rolled back.
    """
    from tracker import database, files, intake, operate, text

    if bool(jids) is bool(source):
        raise click.UsageError("Give either JIDs or --from FILE.")
    reason, actor = text.check_reason(reason), text.check("actor", intake.login() if actor is None else actor)
    is_done = f"would be {done}" if dry_run else f"is {done}"
    notes, counts = files.Notes(), Counter[str]()
    first_lines: dict[int, int] = {}
    records: Iterable[files.Record] = [files.Record(0, {"jid": jid}) for jid in jids]
    if source is not None:
        records = files.read(source, ("jid", "cluster", *columns), notes, others=others)
    early = "This stopped early: "
    with opened() as (settings, engine):
        _said(options, settings.zone)  # report a wrong option once, not for each job
        try:
            for line, values, problem in records:
                jid, where = values.get("jid", ""), f"line {line}: " if source else ""
                try:
                    if problem is not None:
                        raise problem
                    if both := sorted(options.keys() & values.keys()):
                        option = f"--{both[0].replace('_', '-')}"
                        raise Refused(f"has {both[0]}, but {option} gives it for all jobs: remove one of the two")
                    said = _said({**options, **values}, settings.zone)
                    with database.writing(engine) as connection:
                        job = operate.find(connection, text.check("jid", jid), values.get("cluster", cluster))
                        if (first := first_lines.setdefault(job.job_id, line)) != line:
                            raise Refused(f"the same job as in line {first}")
                        more = act(connection, job.job_id, actor, reason, said, settings.zone)
                        if dry_run:
                            connection.rollback()
                except Refused as error:
                    counts["refused"] += 1
                    which = f"{jid[:255]!r}: " if jid and repr(jid[:255]) not in str(error) else ""
                    click.echo(plain(f"{where}{which}{error}"), err=True)
                else:
                    counts["done"] += 1
                    if jids or columns:
                        click.echo(plain(f"{where}{job.jid} of cluster {job.cluster} {is_done}{more}."), err=True)
            early = ""
        finally:
            if (counts or not early) and len(jids) != 1:
                were = is_done.removeprefix("is ")
                click.echo(f"{early}{counts['done']} {were}, {counts['refused']} refused.", err=True)
        say(notes)
    return 1 if counts["refused"] else 0


@click.command(epilog=example("tracker pause w1a2b3c4d --reason 'Voyado maintains it until Monday'"))
@click.argument("cluster")
@_reason_option(True)
def pause(cluster: str, reason: str) -> None:
    """Stop polling a cluster until `tracker resume`.

    Requests in progress still finish and are recorded. A gap, in which nothing can be observed, begins now and keeps
    the reason. A gap that is already open continues.
    """
    from tracker import database, intake, operate

    with opened() as (settings, engine), database.writing(engine) as connection:
        was_paused = operate.pause(connection, cluster, intake.login(), reason, settings.clusters)
    if was_paused:
        click.echo(f"Cluster {cluster} is already paused; nothing was changed.", err=True)
    else:
        click.echo(f"Cluster {cluster} is paused until `tracker resume {cluster}`.", err=True)


@click.command(epilog=example("tracker resume w1a2b3c4d", "tracker resume w1a2b3c4d --reason 'new key in place'"))
@click.argument("cluster")
@_reason_option(False)
def resume(cluster: str, reason: str | None) -> None:
    """Poll a cluster again, at once, whatever paused it.

    This also ends an automatic pause (key refused, Elevate unreachable, too many requests). If the cause is still
    there, the next request pauses the cluster again. The gap stays open until the first valid answer; it keeps the
    reason.
    """
    from tracker import database, operate

    with opened() as (settings, engine), database.writing(engine) as connection:
        was_paused = operate.resume(connection, cluster, reason, settings.clusters)
    if was_paused:
        click.echo(f"Cluster {cluster} is resumed. An open gap ends with the first valid answer.", err=True)
    else:
        click.echo(f"Cluster {cluster} is not paused; nothing was changed.", err=True)
