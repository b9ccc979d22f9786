"""Deciding: ``tracker withdraw``, ``reopen``, ``attest``, ``amend``, ``pause`` and ``resume``. Arguments and printing.

What a decision does is in `tracker.operate`; here is who decides, and for which jobs: one, or those in a file.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TextIO, TypeAlias, TypeVar

import click

from tracker.cli.look import amended, opened
from tracker.cli.output import example, plain, utc
from tracker.errors import DatabaseUnavailable, InvalidField, Refused

if TYPE_CHECKING:
    import sqlalchemy as sa

    from tracker.operate import Amendment, Fact, Standing
    from tracker.settings import Settings
    from tracker.status import Decision

_F = TypeVar("_F", bound=Callable[..., Any])
_Given: TypeAlias = Mapping[str, str]
"""What is said about a job besides its jid, by name, as text."""

CLEARED: Final = "none"
"""What is written where a declared fact is to be cleared."""
_AMENDED: Final = ("kind", "reference", "received_at", "submitted_at", "extended_until")


class _Decide(Protocol):
    """A function of `tracker.operate` that decides about one job."""

    def __call__(
        self, connection: sa.Connection, job_id: int, actor: str, reason: str, *, dry_run: bool = False
    ) -> Decision: ...


class _Act(Protocol):
    """Decide about one job, and return what else is to be said of it; *given* is what its line in a file says."""

    def __call__(
        self, connection: sa.Connection, job_id: int, actor: str, reason: str, given: _Given, dry_run: bool
    ) -> str: ...


@dataclass(frozen=True, slots=True)
class _Command:
    """What sets one command about jobs apart from the others.

    Attributes:
        done: What a job then is.
        prepare: Returns what decides, after what is the same for all jobs has been read.
        options: What was said for all jobs, by the name that a file's column would have.
        columns: All that a file may have besides jid and cluster; None: whatever else it has is left unread.
        is_told: Whether each job of a file is told of, and not only counted.
    """

    done: str
    prepare: Callable[[Settings], _Act]
    options: _Given = field(default_factory=dict)
    columns: Collection[str] | None = None
    is_told: bool = False


def _plain_decision(decide: _Decide) -> Callable[[Settings], _Act]:
    def act(connection: sa.Connection, job_id: int, actor: str, reason: str, given: _Given, dry_run: bool) -> str:
        before = decide(connection, job_id, actor, reason, dry_run=dry_run).transition
        return f"; it was {before.from_state}" if before else ""

    return lambda settings: act


def _reason_option(required: bool) -> Callable[[_F], _F]:
    return click.option(
        "--reason",
        required=required,
        metavar="R",
        help="Why, for the readers of the history: at most 1,000 characters, no @ (no personal data; name a ticket).",
    )


def _of_jobs(command: _F) -> _F:
    """Give *command* the argument and the options that say who decides about which jobs, and why."""
    for add in (
        click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing."),
        click.option("--actor", metavar="WHO", help="Who decides. Default: your login."),
        click.option(
            "--from",
            "source",
            # What is not UTF-8 in one line is that line's error, not the file's.
            type=click.File(encoding="utf-8-sig", errors="surrogateescape"),
            metavar="FILE",
            help="Many jobs: a jid a line, CSV whose header has jid and perhaps cluster, or JSON Lines; - is stdin.",
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

    return _carry_out(_Command("withdrawn", _plain_decision(operate.withdraw)), **given)


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

    return _carry_out(_Command("reopened", _plain_decision(operate.reopen)), **given)


@click.command(
    epilog=example(
        "tracker attest ca24b4e2-34ab-406a-a4db-b30b0247837a --done-by 2026-11-20 --reason 'downloaded, OPS-311'",
        "tracker jobs --state lost --format csv | tracker attest --from - --done-by 2026-11-20 --reason OPS-312",
    )
)
@_of_jobs
@click.option("--done-by", metavar="TIME", help="When it was done at the latest: a time with its offset, or a day.")
def attest(done_by: str | None, **given: Any) -> int:
    """Say that a job was done, unseen by us: one that is open, failed or lost.

    Its verdict is then `attested`: your word is kept with who gave it, when and why, and is shown as declared. A time
    before Elevate was last seen to say otherwise is refused. A day is taken as its end in the legal time zone, or as
    now if that is still ahead. `tracker reopen` takes it back.

    With --from, CSV may have a column done_by, as JSON Lines a key. Each line that cannot be done is named with its
    reason, the rest is done, and the exit code is 1 if there was any. Each job is a transaction of its own.
    """
    from tracker import database, operate

    if done_by is None and given["source"] is None:
        raise click.UsageError("Missing option '--done-by'.")
    options = {} if done_by is None else {"done_by": done_by}

    def prepare(settings: Settings) -> _Act:
        def act(connection: sa.Connection, job_id: int, actor: str, reason: str, given: _Given, dry_run: bool) -> str:
            text = given.get("done_by")
            if text is None:
                raise InvalidField("done_by", "is left out; say it for all with --done-by")
            at, is_day = _time("done_by", text, settings)
            if is_day:
                at = min(_next_midnight(at, settings), database.now(connection))
            before = operate.attest(connection, job_id, actor, reason, at, dry_run=dry_run).transition
            was = f"; it was {before.from_state}" if before else ""
            return f": done by {_told(at)} (declared){was}"

        if options:
            _time("done_by", options["done_by"], settings)
        return act

    return _carry_out(_Command("attested", prepare, options, is_told=True), **given)


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
def amend(
    kind: str | None,
    reference: str | None,
    received_at: str | None,
    submitted_at: str | None,
    extended_until: str | None,
    **given: Any,
) -> int:
    """Correct what was declared about a job, in any state; what is left out stays as it is, and `none` clears it.

    The history keeps what is now declared, by whom and why, and what was before. The deadline is computed again, and
    where it or the submission moved, an open job is asked about at once. A day is taken as its start in the legal time
    zone.

    An extension (GDPR Article 12(3)) counts if it is recorded here before the first month is over, counted from what is
    declared now. One recorded later is kept, and undoes neither `missed` nor `overdue`.

    With --from, each row of CSV, or each object of JSON Lines, may have kind, reference, received_at, submitted_at and
    extended_until: an empty cell (or null) leaves a fact as it is, `none` clears it. What is the same for all jobs can
    be an option instead. Each line that cannot be done is named with its field and reason, the rest is done, and the
    exit code is 1 if there was any. Each job is a transaction of its own: what was done before an interruption stays
    done.
    """
    from tracker import operate

    values = (kind, reference, received_at, submitted_at, extended_until)
    options = {name: text for name, text in zip(_AMENDED, values, strict=True) if text is not None}
    if not options and given["source"] is None:
        told = ", ".join(f"--{name.replace('_', '-')}" for name in _AMENDED)
        raise click.UsageError(f"Say what is to be amended: {told}.")

    def prepare(settings: Settings) -> _Act:
        _facts(options, settings, is_hinted=True)  # what is wrong for all is said once

        def act(connection: sa.Connection, job_id: int, actor: str, reason: str, given: _Given, dry_run: bool) -> str:
            changes = _facts(given, settings)
            if not changes:
                raise Refused(f"says nothing that is to be amended: give one of {', '.join(_AMENDED)}")
            done = operate.amend(connection, job_id, actor, reason, changes, zone=settings.zone, dry_run=dry_run)
            return f": {_amendment(done)}"

        return act

    return _carry_out(_Command("amended", prepare, options, _AMENDED, is_told=True), **given)


def _amendment(done: Amendment) -> str:
    """Return in words what an amendment changed."""
    told = amended(done.was, done.decision.job.facts)
    if done.deadline_was == done.deadline.on:
        told.append(f"deadline {done.deadline.on} as before")
    else:
        told.append(f"deadline {done.deadline_was or 'not computed yet'} -> {done.deadline.on}")
    if done.verdict_was != done.verdict:
        told.append(f"verdict {done.verdict_was} -> {done.verdict}")
    if done.idle_extension is not None:
        why = "it was recorded after the first month was over, or goes beyond the two further months"
        told.append(f"the extension to {done.idle_extension} is not it: {why}")
    return "; ".join(told)


def _facts(given: _Given, settings: Settings, is_hinted: bool = False) -> dict[str, Fact]:
    """Return what is to be amended, by column of jobs; raise InvalidField for a value that cannot be read."""
    facts: dict[str, Fact] = {}
    for name in _AMENDED:
        text = given.get(name)
        if text is None:
            continue
        if name != "kind" and text.strip().lower() == CLEARED:
            facts["extended_on" if name == "extended_until" else name] = None
        elif name in ("received_at", "submitted_at"):
            facts[name], is_day = at, _ = _time(name, text, settings)
            if is_day and is_hinted:
                start = f"start in {settings.timezone}: {_told(at)}"
                click.echo(f"{name}: {text} is taken as that day's {start}", err=True)
        elif name == "extended_until":
            facts["extended_on"] = _day(name, text)
        else:
            facts[name] = text
    return facts


def _time(name: str, text: str, settings: Settings) -> tuple[datetime, bool]:
    from tracker import intake

    return intake.parse_time(name, text.strip(), settings.zone)


def _next_midnight(at: datetime, settings: Settings) -> datetime:
    """Return the instant at which the local day that begins *at* ends."""
    day = at.astimezone(settings.zone).date() + timedelta(days=1)
    return utc(datetime(day.year, day.month, day.day, tzinfo=settings.zone))


def _day(name: str, text: str) -> date:
    try:
        if re.fullmatch(r"\d{4}-\d\d-\d\d", text.strip(), re.ASCII):
            return date.fromisoformat(text.strip())
    except ValueError:
        pass
    raise InvalidField(name, f"{text[:60]!r} is no day: write it as 2026-03-31")


def _told(at: datetime) -> str:
    return utc(at).isoformat(" ")


def _carry_out(
    command: _Command,
    *,
    jid: str | None,
    cluster: str | None,
    source: TextIO | None,
    reason: str,
    actor: str | None,
    dry_run: bool,
) -> int:
    """Decide about one job, or all in a file, and return the exit code."""
    from tracker import database, intake, operate, text

    reason, actor = operate.check_reason(reason), text.check("actor", intake.login() if actor is None else actor)
    is_done = f"would be {command.done}" if dry_run else f"is {command.done}"
    transaction = database.reading if dry_run else database.writing
    if source is None:
        if jid is None:
            raise click.UsageError("Give a JID, or many by --from FILE.")
        with opened() as (settings, engine):
            act = command.prepare(settings)
            with transaction(engine) as connection:
                job = operate.find(connection, jid, cluster)
                told = act(connection, job.job_id, actor, reason, command.options, dry_run)
        click.echo(plain(f"{job.jid} of cluster {job.cluster} {is_done}{told}."), err=True)
        return 0
    if jid is not None:
        raise click.UsageError("Give a JID or --from FILE, not both.")
    counts: Counter[str] = Counter()
    first_lines: dict[int, int] = {}
    with opened() as (settings, engine):
        act = command.prepare(settings)
        for line in _lines(source, cluster, command):
            try:
                if line.problem:
                    raise Refused(line.problem)
                with transaction(engine) as connection:
                    job = operate.find(connection, line.jid, line.cluster)
                    if (first := first_lines.setdefault(job.job_id, line.number)) != line.number:
                        raise Refused(f"the same job as in line {first}")
                    told = act(connection, job.job_id, actor, reason, line.given, dry_run)
                counts["done"] += 1
                if command.is_told:
                    which = f"{job.jid} of cluster {job.cluster}"
                    click.echo(plain(f"line {line.number}: {which} {is_done}{told}."), err=True)
            except Refused as error:
                counts["refused"] += 1
                shown = repr(line.jid[:255])  # what is in a file may be anything
                which = f"{shown}: " if line.jid and shown not in str(error) else ""
                click.echo(plain(f"line {line.number}: {which}{error}"), err=True)
            except DatabaseUnavailable as error:
                raise DatabaseUnavailable(f"line {line.number}: {error}; the lines before it are done") from error
    were = is_done.removeprefix("is ")
    click.echo(f"{counts['done']} {were}, {counts['refused']} refused.", err=True)
    return 1 if counts["refused"] else 0


class _Line(NamedTuple):
    """What one line of a file names, what else it says, and what is wrong with the line itself."""

    number: int
    jid: str
    cluster: str | None
    given: _Given
    problem: str | None = None


def _lines(source: TextIO, cluster: str | None, command: _Command) -> Iterator[_Line]:
    """Yield what each line of *source* says that is not blank; the first tells whether it is CSV with a header.

    A line at a time, since nothing in it has a line break: a stray quotation mark spoils its own line only.

    Raises:
        Refused: A column of CSV is not known, is there twice, or says what an option says for all.
    """
    header: list[str] | None = None
    is_json, delimiter = False, ","
    for number, line in enumerate(source, 1):
        if not line.strip():
            continue
        if header is None:
            is_json = line.lstrip().startswith("{")
            delimiter = max(",;\t", key=line.count)  # the comma, if there is none of them
            names = [] if is_json else [cell.strip().lower() for cell in _cells(line, delimiter)]
            header = names if "jid" in names else []
            if header:
                if problem := _names_problem(header, command):
                    raise Refused(f"line {number}: {problem}")
                continue
        if is_json:
            said = _object(line)
            problem = said if isinstance(said, str) else _names_problem(list(said), command)
            named = {} if isinstance(said, str) else said
        elif header:
            cells = _cells(line, delimiter)
            problem = None if len(cells) == len(header) else f"has not the header's {len(header)} cells"
            named = dict(zip(header, map(str.strip, cells), strict=False))
        else:
            problem, named = None, {"jid": line.strip()}
        given = {name: text for name, text in named.items() if text and name not in ("jid", "cluster")}
        given = {**command.options, **given}
        yield _Line(number, named.get("jid", ""), named.get("cluster") or cluster, given, problem)


def _names_problem(names: list[str], command: _Command) -> str | None:
    """Return what is wrong with the columns of a file, or the keys of an object, or None.

    Where a file says more than which jobs, nothing in it is passed over in silence.
    """
    if both := [name for name in names if name in command.options]:
        return f"has {both[0]}, which --{both[0].replace('_', '-')} says for all jobs: leave one of them out"
    if command.columns is None:
        return None
    known = ("jid", "cluster", *command.columns)
    if unknown := [name for name in names if name not in known]:
        return f"has {unknown[0][:60]!r}, which is none of {', '.join(known)}"
    twice = [name for name, times in Counter(names).items() if times > 1]
    return f"has the column {twice[0]} twice" if twice else None


def _object(line: str) -> dict[str, str] | str:
    """Return what a line of JSON Lines says, or what is wrong with it."""
    try:
        said = json.loads(line, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return "is no JSON object on one line, each key once"
    if not isinstance(said, dict):
        return "is no JSON object"
    if wrong := [name for name, value in said.items() if not isinstance(value, str | None)]:
        return f"{wrong[0][:60]}: must be text, in quotes"
    return {name: value.strip() for name, value in said.items() if value is not None}


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    said = dict(pairs)
    if len(said) < len(pairs):
        raise ValueError("a key is there twice")
    return said


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line.strip("\r\n")], delimiter=delimiter))
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
    from tracker import database, intake, operate

    with opened() as (settings, engine), database.writing(engine) as connection:
        before, after = operate.pause(connection, cluster, intake.login(), reason, settings.clusters)
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
