"""Deciding: ``tracker withdraw``, ``reopen``, ``pause`` and ``resume``. Arguments and printing.

What a decision does is in `tracker.operate`; here is who decides, and for which jobs: one, or those in a file.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TextIO, TypeVar

import click

from tracker.cli.look import opened
from tracker.cli.output import example, plain, utc
from tracker.errors import DatabaseUnavailable, Refused

if TYPE_CHECKING:
    import sqlalchemy as sa

    from tracker.operate import Standing
    from tracker.status import Decision

_F = TypeVar("_F", bound=Callable[..., Any])


class _Decide(Protocol):
    """A function of `tracker.operate` that decides about one job."""

    def __call__(
        self, connection: sa.Connection, job_id: int, actor: str, reason: str, *, dry_run: bool = False
    ) -> Decision: ...


def _reason_option(required: bool) -> Callable[[_F], _F]:
    return click.option(
        "--reason",
        required=required,
        metavar="R",
        help="Why, for whoever reads the history: at most 1,000 characters, no @ (no personal data; name a ticket).",
    )


def _of_jobs(command: _F) -> _F:
    """Give *command* the argument and the options that say who decides about which jobs, and why."""
    for add in (
        click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing."),
        click.option("--actor", metavar="WHO", help="Who decides. Default: the login of whoever runs this."),
        click.option(
            "--from",
            "source",
            # What is not UTF-8 in one line is that line's error, not the file's.
            type=click.File(encoding="utf-8-sig", errors="surrogateescape"),
            metavar="FILE",
            help="Many jobs: a jid a line, or CSV whose header has jid and, if need be, cluster; - is stdin.",
        ),
        click.option("--cluster", metavar="NAME", help="Where several clusters have a job with this jid."),
        _reason_option(True),
        click.argument("jid", required=False),
    ):
        command = add(command)
    return command


@click.command(
    epilog=example(
        "tracker withdraw ca24b4e2-34ab-406a-a4db-b30b0247837a --reason 'registered by mistake'",
        "tracker withdraw --from jids.txt --reason 'migrated, OPS-311' --dry-run",
        "tracker jobs --state lost --format csv | tracker withdraw --from - --reason OPS-312",
    )
)
@_of_jobs
def withdraw(**given: Any) -> int:
    """Close a job that is open, failed or lost: it is polled no more.

    The history keeps who did it, when and why. `tracker reopen` takes it back.

    With --from, each line that cannot be done is named with its reason, the rest is done, and the exit code is 1 if
    there was any. Each job is a transaction of its own: what was done before an interruption stays done.
    """
    from tracker import operate

    return _carry_out(operate.withdraw, "withdrawn", **given)


@click.command(
    epilog=example(
        "tracker reopen ca24b4e2-34ab-406a-a4db-b30b0247837a --reason 'Elevate has it again'",
        "tracker jobs --state lost --format csv | tracker reopen --from - --reason 'wrong key until today'",
    )
)
@_of_jobs
def reopen(**given: Any) -> int:
    """Follow a job again that failed, was lost, attested or withdrawn; it is asked about at once.

    A done job is never reopened: Elevate said that it is done. The history keeps who did it, when and why.

    With --from, each line that cannot be done is named with its reason, the rest is done, and the exit code is 1 if
    there was any. Each job is a transaction of its own: what was done before an interruption stays done.
    """
    from tracker import operate

    return _carry_out(operate.reopen, "reopened", **given)


def _carry_out(
    decide: _Decide,
    done: str,
    *,
    jid: str | None,
    cluster: str | None,
    source: TextIO | None,
    reason: str,
    actor: str | None,
    dry_run: bool,
) -> int:
    """Decide about one job, or all in a file, and return the exit code."""
    from tracker import database, intake, operate

    reason, actor = operate.check_reason(reason), operate.check_actor(intake.login() if actor is None else actor)
    would_be = "would be " if dry_run else ""
    transaction = database.reading if dry_run else database.writing
    if source is None:
        if jid is None:
            raise click.UsageError("Give a JID, or many by --from FILE.")
        with opened() as (_, engine), transaction(engine) as connection:
            job = operate.find(connection, jid, cluster)
            before = decide(connection, job.job_id, actor, reason, dry_run=dry_run).transition
        was = f"; it was {before.from_state}" if before else ""
        click.echo(plain(f"{job.jid} of cluster {job.cluster} {would_be or 'is '}{done}{was}."), err=True)
        return 0
    if jid is not None:
        raise click.UsageError("Give a JID or --from FILE, not both.")
    count, refused = 0, 0
    first_lines: dict[int, int] = {}
    with opened() as (_, engine):
        for line in _lines(source, cluster):
            try:
                if line.problem:
                    raise Refused(line.problem)
                with transaction(engine) as connection:
                    job = operate.find(connection, line.jid, line.cluster)
                    if (first := first_lines.setdefault(job.job_id, line.number)) != line.number:
                        raise Refused(f"the same job as in line {first}")
                    decide(connection, job.job_id, actor, reason, dry_run=dry_run)
                count += 1
            except Refused as error:
                refused += 1
                shown = repr(line.jid[:255])  # what is in a file may be anything
                which = f"{shown}: " if line.jid and shown not in str(error) else ""
                click.echo(plain(f"line {line.number}: {which}{error}"), err=True)
            except DatabaseUnavailable as error:
                raise DatabaseUnavailable(f"line {line.number}: {error}; the lines before it are done") from error
    click.echo(f"{count} {would_be}{done}, {refused} refused.", err=True)
    return 1 if refused else 0


class _Line(NamedTuple):
    """What one line of a file names, and what is wrong with the line itself."""

    number: int
    jid: str
    cluster: str | None
    problem: str | None = None


def _lines(source: TextIO, cluster: str | None) -> Iterator[_Line]:
    """Yield what each line of *source* names that is not blank; the first tells whether it is CSV with a header.

    A line at a time, since no jid has a line break in it: a stray quotation mark spoils its own line only.
    """
    header: list[str] | None = None
    for number, line in enumerate(source, 1):
        if not line.strip():
            continue
        if header is None:
            names = [cell.strip().lower() for cell in _cells(line)]
            header = names if "jid" in names else []
            if header:
                continue
        if not header:
            yield _Line(number, line.strip(), cluster)
            continue
        named = dict(zip(header, map(str.strip, _cells(line)), strict=False))
        problem = None if len(_cells(line)) == len(header) else f"has not the header's {len(header)} cells"
        yield _Line(number, named.get("jid", ""), named.get("cluster") or cluster, problem)


def _cells(line: str) -> list[str]:
    try:
        return next(csv.reader([line.strip("\r\n")]))
    except csv.Error:  # longer than a cell of CSV may be: not a line of ours
        return []


@click.command(epilog=example("tracker pause w1a2b3c4d --reason 'Voyado maintains it until Monday'"))
@click.argument("cluster")
@_reason_option(True)
def pause(cluster: str, reason: str) -> None:
    """Stop polling a cluster until `tracker resume`.

    Requests that are under way still end and are recorded. The gap, in which nothing can be observed, begins now, and
    the reason is kept with it; a gap that is open already goes on as it is.
    """
    from tracker import database, operate

    with opened() as (settings, engine), database.writing(engine) as connection:
        before, after = operate.pause(connection, cluster, reason, settings.clusters)
    if before == after:
        click.echo(f"Cluster {cluster} is paused already{_since(after)}; nothing was changed.", err=True)
        return
    click.echo(f"Cluster {cluster} is paused until `tracker resume {cluster}`.", err=True)
    if before.pause_cause is not None:
        click.echo(f"It was paused {_how(before)}.", err=True)
    if before.gap_began_at is not None:
        click.echo(f"Its gap{_since(before)} goes on, with its own cause; your reason is kept with it.", err=True)


@click.command(epilog=example("tracker resume w1a2b3c4d", "tracker resume w1a2b3c4d --reason 'new key in place'"))
@click.argument("cluster")
@_reason_option(False)
def resume(cluster: str, reason: str | None) -> None:
    """Poll a cluster again, at once, whatever paused it.

    An automatic pause (the key refused, Elevate unreachable, too many requests) can be ended so too; if nothing has
    changed, the next answer pauses the cluster again. The gap stays open until the first valid answer; a reason is
    kept with it.
    """
    from tracker import database, operate

    with opened() as (settings, engine), database.writing(engine) as connection:
        before, after = operate.resume(connection, cluster, reason, settings.clusters)
    if before.pause_cause is None:
        click.echo(f"Cluster {cluster} is not paused; nothing was changed.", err=True)
        return
    click.echo(f"Cluster {cluster} is resumed; it was paused {_how(before)}.", err=True)
    if after.gap_began_at is not None:
        click.echo(f"Its gap{_since(after)} ends with the first valid answer.", err=True)


def _how(standing: Standing) -> str:
    if standing.paused_until is None:
        return "by hand"
    return f"until {utc(standing.paused_until).isoformat(' ', 'seconds')} ({standing.pause_cause})"


def _since(standing: Standing) -> str:
    if standing.gap_began_at is None:
        return ""
    detail = f": {plain(standing.gap_detail)}" if standing.gap_detail else ""
    return f" since {utc(standing.gap_began_at).isoformat(' ', 'seconds')} ({standing.gap_cause}{detail})"
