"""Whether ``jobs`` is the replay of ``transitions``: each job's history, read once, in bounded memory.

Owns the reading and the comparison. What a legal history is, and what it comes to, is said by ``status.replay`` alone:
most histories look alike but for their times and numbers, so it is asked once for each shape and not for each job
(`_Shapes`); a history that is odd in any way is given to it as it is.

Works on the values as the driver gives them (SQLite: times as text of one form, which sort and compare as the instants
do), since making a million rows into values of ours takes most of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import chain, groupby, islice
from operator import itemgetter
from typing import Any, Final
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from tracker.audit import lines
from tracker.audit.findings import Finding, What
from tracker.deadline import deadline, extension_recorded_at
from tracker.status import Action, Anomaly, Facts, Job, Kind, State, Transition, replay

FACTS = ("kind", "reference", "received_at", "submitted_at", "extended_on")
OBSERVED = ("state", "status", "status_after", "status_by", "ended_after", "ended_by", "seq")
_FIRST = ("registered_at", "registered_by")
COMPARED = (*OBSERVED, *FACTS, *_FIRST)
"""The columns of jobs that are exactly what the history comes to; polls and seen_at are only bounded by it."""

_READ: Final = (
    *("id", "job_id", "source_id", "seq", "polls", "last_seen_at", "observed_at", "server_date"),
    *("action", "from_status", "to_status", "from_state", "to_state", "anomaly", "actor", "reason"),
    *FACTS,
)
_ID, _JOB, _SOURCE, _SEQ, _POLLS, _SEEN, _AT, _CLAIMED, _ACTION, _FROM, _TO = range(11)
_TO_STATE, _ANOMALY, _ACTOR, _REASON, _FACTS = 12, 13, 14, 15, 16
_SHAPE = slice(_ACTION, _ANOMALY)

_LONG = 500  # transitions; a longer history is replayed as it is read, not kept
_SHAPES = 10_000  # kept: unknown statuses are anyone's words
_PIECE = 2_000  # rows fetched at a time
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ZONES = timedelta(days=6)  # one zone may make 28 February of what another makes 1 March of, so 28 March and 1 April
_EVER = 1 << 63

Row = Sequence[Any]


@dataclass(frozen=True, slots=True)
class Suspicion:
    """A finding about a job, and the rows that it may come from.

    Attributes:
        finding: As it is if the segments show nothing.
        rows: Id and seq of the job's transitions that may have been changed, the likeliest first.
        missing: Between which ids (both excluded) a transition may be missing.
        is_zonal: It is a deadline that another time zone may explain.
    """

    finding: Finding
    rows: tuple[tuple[int, int], ...] = ()
    missing: tuple[int, int] | None = None
    is_zonal: bool = False


@dataclass(slots=True)
class Use:
    """What transitions say of one source: how many, and the first and last time, as the driver gives them."""

    transitions: int
    first_at: Any
    last_at: Any
    cluster: str
    jid: str
    row_id: int


@dataclass(slots=True)
class Histories:
    """What was read.

    Attributes:
        jobs: How many.
        transitions: How many.
        deadlines: How many were computed anew.
        sources: By source id.
    """

    jobs: int
    transitions: int
    deadlines: int
    sources: dict[int, Use]


@dataclass(frozen=True, slots=True)
class _Traced:
    """What each history of one shape comes to: its last state and status, and where in it the other values stand."""

    state: str
    status: str | None
    times: tuple[tuple[int, int] | None, ...]  # (row, column) of status_after, status_by, ended_after, ended_by
    facts: int


class _Shapes:
    """Asks ``status.replay`` once for each shape of history.

    A shape is all that a history says but for its times and numbers. `of` gives a verdict only where those are in the
    plain order that the made-up history has, which replay is asked about: so that it would say the same of both.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], _Traced | None] = {}

    def of(self, rows: Sequence[Row]) -> _Traced | None:
        """Return what the history comes to, or None if it has to be replayed as it is."""
        first = rows[0]
        if (
            first[_SEQ] != 0
            or first[_POLLS] != 0
            or first[_ACTOR] is None
            or not (first[_SEEN] is first[_CLAIMED] is first[_ANOMALY] is first[_REASON] is None)
        ):
            return None
        seen: Any = None
        polls = 0
        for number, row in enumerate(rows):
            if not number:
                continue
            row_seen = row[_SEEN]
            if row_seen is None:
                if row[_FROM] is not None or seen is not None:
                    return None
            elif row[_FROM] is None or row_seen > row[_AT] or (seen is not None and row_seen < seen):
                return None
            if row[_SEQ] != number or row[_POLLS] < polls + (row[_ACTION] == "observed"):
                return None
            if row[_ACTION] == "attested" and (row[_CLAIMED] is None or row[_CLAIMED] > row[_AT]):
                return None
            seen, polls = row_seen, row[_POLLS]
        shape = tuple([row[_SHAPE] for row in rows])
        try:
            return self._known[shape]
        except KeyError:
            if len(self._known) >= _SHAPES:
                self._known.clear()
            traced = self._known[shape] = _trace(rows)
            return traced


def _trace(rows: Sequence[Row]) -> _Traced | None:
    """Return what a history of this shape comes to, or None if it is not legal: by replaying one with made-up times."""
    places: dict[datetime, tuple[int, int]] = {}

    def made_up(number: int, column: int) -> datetime:
        at = _EPOCH + timedelta(seconds=10 * number + column)
        places[at] = number, column
        return at

    history = []
    try:
        for number, row in enumerate(rows):
            has_facts = row[_ACTION] in ("registered", "amended")
            history.append(
                Transition(
                    seq=number,
                    action=Action(row[_ACTION]),
                    from_status=row[_FROM],
                    to_status=row[_TO],
                    from_state=row[_TO + 1] and State(row[_TO + 1]),
                    to_state=State(row[_TO_STATE]),
                    last_seen_at=None if row[_FROM] is None else made_up(number, _SEEN),
                    observed_at=made_up(number, _CLAIMED),  # the later of the two, so that a claim can be before it
                    server_date=made_up(number, _AT) if row[_ACTION] == "attested" else None,
                    polls=number,
                    actor="someone" if number == 0 else None,
                    anomaly=None,
                    reason=None,
                    facts=Facts(reference=str(number)) if has_facts else None,
                )
            )
        job = replay(history).job
    except ValueError:
        return None

    def place(at: datetime | None) -> tuple[int, int] | None:
        if at is None:
            return None
        number, column = places[at]
        return number, {_SEEN: _SEEN, _CLAIMED: _AT, _AT: _CLAIMED}[column]

    times = tuple(place(at) for at in (job.status_after, job.status_by, job.ended_after, job.ended_by))
    return _Traced(str(job.state), job.status, times, int(job.facts.reference or 0))


def instant(value: object) -> datetime | None:
    """Return a time as the driver gives it as an aware one; None if it is none.

    Raises:
        ValueError: It is text of another form than the tables', or no text.
    """
    if value is None:
        return None
    if isinstance(value, datetime):
        return value.astimezone(UTC)
    at = datetime.fromisoformat(str(value))
    if at.isoformat(" ", "microseconds") != value:  # the same time in other words, which do not sort as ours do
        raise ValueError(f"{value!r} is no time")
    return at.replace(tzinfo=UTC)


def day(value: object) -> date | None:
    if value is None or isinstance(value, date):
        return value
    day = date.fromisoformat(str(value))
    if day.isoformat() != value:
        raise ValueError(f"{value!r} is no day")
    return day


def _facts(row: Row, start: int) -> Facts:
    kind, reference, received_at, submitted_at, extended_on = row[start : start + len(FACTS)]
    return Facts(kind and Kind(kind), reference, instant(received_at), instant(submitted_at), day(extended_on))


def _transition(row: Row) -> Transition:
    """Return the transition in a row, as `models.transition_of` does; ValueError if it cannot be one."""
    action = Action(row[_ACTION])
    observed_at = instant(row[_AT])
    if observed_at is None:
        raise ValueError("it has no time")
    return Transition(
        seq=row[_SEQ],
        action=action,
        from_status=row[_FROM],
        to_status=row[_TO],
        from_state=row[_TO + 1] and State(row[_TO + 1]),
        to_state=State(row[_TO_STATE]),
        last_seen_at=instant(row[_SEEN]),
        observed_at=observed_at,
        server_date=instant(row[_CLAIMED]),
        polls=row[_POLLS],
        actor=row[_ACTOR],
        anomaly=row[_ANOMALY] and Anomaly(row[_ANOMALY]),
        reason=row[_REASON],
        facts=_facts(row, _FACTS) if action in (Action.REGISTERED, Action.AMENDED) else None,
    )


_COLUMNS = (  # a name that is no text is still to be told
    *("id", "CAST(cluster AS text)", "CAST(jid AS text)", "polls", "seen_at"),
    *(*COMPARED, "deadline_on", "deadline_at"),
)
_POLLS_OF, _SEEN_OF, _OF = 3, 4, 5
_DUE_ON = _OF + len(COMPARED)
_ODD = _DUE_ON + 2

_UNTOLD: Final = {
    **dict.fromkeys(("status_polls", "polls", "failures"), "integer"),
    **dict.fromkeys(("seen_at", "due_at", "leased_until"), "instant"),
    **dict.fromkeys(("last_error", "leased_by"), "text"),
}
"""The columns of jobs whose values no transition tells: that they are values of ours, the database looks at."""
_NEVER: Final = "due_at is NULL, and the job is open: nobody would ever ask for it again"


def _odd(dialect: str) -> str:
    """Return the SQL that gives what is wrong with the first of these columns of a job; NULL: nothing."""
    cases = [
        f"WHEN {lines.is_other(column, type_, dialect)}"
        + (f" OR coalesce({column}, -1) < 0" if type_ == "integer" else "")
        + f" THEN '{column} is no value that tracker writes'"
        for column, type_ in _UNTOLD.items()
    ]
    return f"CASE {' '.join(cases)} WHEN CAST(state AS text) = 'open' AND due_at IS NULL THEN '{_NEVER}' END"


def stream(connection: sa.Connection, query: str, piece: int) -> Generator[Row, None, None]:
    """Yield the rows of *query*, a statement of ours without parameters, *piece* at a time in memory."""
    options = {"stream_results": True, "max_row_buffer": piece}
    with closing(connection.exec_driver_sql(query, execution_options=options)) as result:
        for rows in result.partitions(piece):
            yield from rows


class _Reader:
    """Goes through all jobs and their histories."""

    def __init__(
        self,
        connection: sa.Connection,
        suspect: Callable[[Suspicion], None],
        floor: Callable[[int], tuple[int, Any] | None],
        zone: ZoneInfo | None,
        progress: Callable[[int], None],
    ) -> None:
        self._connection = connection
        self._suspect = suspect
        self._floor = floor
        self._zone = zone
        self._progress = progress
        self._shapes = _Shapes()
        self.read = Histories(0, 0, 0, {})

    def run(self) -> None:
        columns = ", ".join((*_COLUMNS, _odd(self._connection.dialect.name)))
        of_jobs = f"SELECT {columns} FROM jobs ORDER BY id"
        of_transitions = f"SELECT {', '.join(_READ)} FROM transitions ORDER BY job_id, seq"
        with (
            closing(stream(self._connection, of_jobs, _PIECE)) as jobs,
            closing(stream(self._connection, of_transitions, _PIECE)) as transitions,
        ):
            self._all(jobs, transitions)

    def _all(self, jobs: Iterator[Row], transitions: Iterator[Row]) -> None:
        job = next(jobs, None)
        for job_id, history in groupby(transitions, itemgetter(_JOB)):
            if not isinstance(job_id, int):  # what SQLite sorts before or after all numbers
                self._without_job(job_id, history)
                continue
            while job is not None and job[0] < job_id:
                self._without_history(job)
                job = next(jobs, None)
            if job is None or job[0] > job_id:
                self._without_job(job_id, history)
                continue
            self._one(job, history)
            job = next(jobs, None)
        while job is not None:
            self._without_history(job)
            job = next(jobs, None)

    def _without_history(self, job: Row) -> None:
        self.read.jobs += 1
        finding = Finding(
            What.HISTORY,
            f"job {job[2]} of cluster {job[1]} has no transition, not even its registration",
            table="jobs",
            row_id=job[0],
            cluster=job[1],
            jid=job[2],
            seq=0,
        )
        self._suspect(Suspicion(finding, missing=(-_EVER, _EVER)))

    def _without_job(self, job_id: object, history: Iterator[Row]) -> None:
        rows = list(islice(history, _LONG))
        count = len(rows) + sum(1 for _ in history)
        self.read.transitions += count
        of = f"its {count} transitions are" if count > 1 else "its transition is"
        row_id = job_id if isinstance(job_id, int) else None
        message = f"the job with id {job_id!r} is missing, and {of} there"
        finding = Finding(What.HISTORY, message, table="jobs", row_id=row_id)
        self._suspect(Suspicion(finding, tuple((row[_ID], row[_SEQ]) for row in rows), missing=(-_EVER, _EVER)))

    def _one(self, job: Row, history: Iterator[Row]) -> None:
        rows = list(islice(history, _LONG))
        self.read.jobs += 1
        if self.read.jobs % 1000 == 0:
            self._progress(self.read.transitions)
        if len(rows) == _LONG:
            suspicion = self._replayed(job, chain(rows, history), is_long=True)
            for _ in history:  # what the replay did not come to
                self.read.transitions += 1
        else:
            late = self._note(job, rows)
            try:
                suspicion = None if self._fits(job, rows) else self._replayed(job, iter(rows))
            except TypeError:  # a value of another type than its column's
                suspicion = self._replayed(job, iter(rows))
            suspicion = suspicion or late or (self._deadline(job, rows) if self._zone else None)
        if not job[1] or not job[2]:
            message = f"the job with id {job[0]} has no {'jid' if job[1] else 'cluster'}"
            finding = Finding(What.HISTORY, message, table="jobs", row_id=job[0])
            suspicion = Suspicion(finding, tuple((row[_ID], row[_SEQ]) for row in rows))
        elif job[_ODD] is not None:
            message = f"job {job[2]} of cluster {job[1]}: in its row {job[_ODD]}"
            finding = Finding(What.JOB, message, table="jobs", row_id=job[0], cluster=job[1], jid=job[2])
            suspicion = Suspicion(finding)
        if suspicion is not None:
            self._suspect(suspicion)

    def _fits(self, job: Row, rows: Sequence[Row]) -> bool:
        """Whether the row is what the history comes to, as far as can be told without a replay."""
        traced = self._shapes.of(rows)
        if traced is None:
            return False
        first, facts, values = rows[0], rows[traced.facts], [None, None, None, None]
        for place, where in enumerate(traced.times):
            if where is not None:
                values[place] = rows[where[0]][where[1]]
        expected = (
            traced.state,
            traced.status,
            *values,
            len(rows) - 1,
            *facts[_FACTS:],
            first[_AT],
            first[_ACTOR],
        )
        return job[_OF:_DUE_ON] == expected and self._is_bounded(job, rows[-1][_POLLS], rows[-1][_SEEN])

    def _is_bounded(self, job: Row, polls: int, seen: Any) -> bool:
        """Whether what the history only bounds is within its bounds: polls, and the last sight."""
        seen_at = job[_SEEN_OF]
        if job[_POLLS_OF] < polls or (seen_at is None) is not (job[_OF + 1] is None):
            return False
        return bool(seen is None or seen_at >= seen)

    def _note(self, job: Row, rows: Sequence[Row]) -> Suspicion | None:
        """Count *rows* and their sources; return a suspicion if one claims to be older than a checkpoint before it."""
        self.read.transitions += len(rows)
        late = None
        for row in rows:
            at = row[_AT]
            try:
                # A job of another system's may be registered as of then: it is declared.
                floor = None if row[_ACTION] == "registered" else self._floor(row[_ID])
                if floor is not None and at < floor[1] and late is None:
                    message = (
                        f"transition {row[_SEQ]} of job {job[2]} of cluster {job[1]} says that it was observed at {at},"
                        f" and was recorded after checkpoint {floor[0]}, which is newer"
                    )
                    late = Suspicion(self._finding(What.BACKDATED, message, job, row), ((row[_ID], row[_SEQ]),))
                source = row[_SOURCE]
                if source is not None:
                    use = self.read.sources.get(source)
                    if use is None:
                        self.read.sources[source] = Use(1, at, at, job[1], job[2], row[_ID])
                    else:
                        use.transitions += 1
                        if at < use.first_at:
                            use.first_at = at
                        elif at > use.last_at:
                            use.last_at = at
            except TypeError:  # a value of another type, of which the replay or the segment tells
                continue
        return late

    @staticmethod
    def _finding(what: What, message: str, job: Row, row: Row) -> Finding:
        return Finding(what, message, table="transitions", row_id=row[_ID], cluster=job[1], jid=job[2], seq=row[_SEQ])

    def _replayed(self, job: Row, rows: Iterator[Row], *, is_long: bool = False) -> Suspicion | None:
        """Replay a history as it is and compare the job with it; return what is wrong."""
        kept: list[Row] = []  # the first, the last two, and where the newest facts and statuses are
        before: Row | None = None
        last: Row | None = None

        def typed() -> Iterator[Transition]:
            nonlocal before, last
            for row in rows:
                before, last = last, row
                if len(kept) < _LONG:
                    kept.append(row)
                if is_long:
                    self._note(job, [row])
                yield _transition(row)

        of = f"job {job[2]} of cluster {job[1]}"
        try:
            replayed = replay(typed()).job
        except (ValueError, TypeError) as error:  # TypeError: a value of another type than its column's
            assert last is not None  # noqa: S101 - a history has a row
            near = tuple((row[_ID], row[_SEQ]) for row in (last, before) if row is not None)
            due = before[_SEQ] + 1 if before is not None else 0
            if isinstance(last[_SEQ], int) and last[_SEQ] > due:
                gone = f"transition {due}" if last[_SEQ] == due + 1 else f"transitions {due} to {last[_SEQ] - 1}"
                finding = Finding(
                    What.HISTORY,
                    f"{of}: {gone} missing: {last[_SEQ]} is there",
                    table="transitions",
                    cluster=job[1],
                    jid=job[2],
                    seq=due,
                )
                return Suspicion(finding, near, (before[_ID] if before else -_EVER, last[_ID]))
            return Suspicion(self._finding(What.HISTORY, f"{of}: {error}", job, last), near)
        assert last is not None  # noqa: S101 - replay raises without a row
        differing = self._differing(job, replayed, last)
        if not differing:
            return None
        shown = "; ".join(
            f"{column} is {there}, its history says {right}" for column, (there, right) in differing.items()
        )
        finding = Finding(
            What.JOB, f"{of}: in its row {shown}", table="jobs", row_id=job[0], cluster=job[1], jid=job[2]
        )
        likely = _responsible(kept, last, set(differing))
        others = ((row[_ID], row[_SEQ]) for row in reversed(kept) if row is not likely)
        is_behind = isinstance(job[_OF + 6], int) and job[_OF + 6] > last[_SEQ]
        missing = (last[_ID], _EVER) if is_behind else None
        return Suspicion(finding, ((likely[_ID], likely[_SEQ]), *others), missing)

    def _differing(self, job: Row, replayed: Job, last: Row) -> dict[str, tuple[object, object]]:
        """Return, by column, what the row says and what it should."""
        facts = replayed.facts
        expected: dict[str, object] = {
            **{name: getattr(replayed, name) for name in OBSERVED},
            **{name: getattr(facts, name) for name in FACTS},
            **{name: getattr(replayed, name) for name in _FIRST},
        }
        found: dict[str, tuple[object, object]] = {}
        for place, (name, right) in enumerate(expected.items(), _OF):
            there = job[place]
            try:
                if name.endswith(("_at", "_by", "_after")) and name != "registered_by":
                    there = instant(there)
                elif name == "extended_on":
                    there = day(there)
            except ValueError:
                pass
            if there != right:
                found[name] = there, right
        if not found and job[_ODD] is None and not self._is_bounded(job, last[_POLLS], last[_SEEN]):
            found["polls, seen_at"] = f"{job[_POLLS_OF]}, {job[_SEEN_OF]}", f"at least {last[_POLLS]}, {last[_SEEN]}"
        return found

    def _deadline(self, job: Row, rows: Sequence[Row]) -> Suspicion | None:
        """Compare the deadline with what is declared; None if it fits, or was not computed yet (plain SQL)."""
        on, at = job[_DUE_ON], job[_DUE_ON + 1]
        if on is None and at is None:
            return None
        self.read.deadlines += 1
        assert self._zone is not None  # noqa: S101 - the caller's condition
        facts = _facts(job, _OF + len(OBSERVED))
        registered_at = instant(job[_OF + len(OBSERVED) + len(FACTS)])
        assert registered_at is not None  # noqa: S101 - it equals a transition's time, which is one
        recorded_at = None
        if facts.extended_on is not None:
            stating = (row for row in rows if row[_ACTION] in ("registered", "amended"))
            recorded_at = extension_recorded_at([(instant(row[_AT]) or registered_at, day(row[-1])) for row in stating])
        due = deadline(
            facts.received_at,
            facts.submitted_at,
            registered_at,
            self._zone,
            extended_on=facts.extended_on,
            extension_recorded_at=recorded_at,
        )
        is_zonal = False
        try:
            there = instant(at)
            if (day(on), there) == (due.on, due.at):
                return None
            is_zonal = there is not None and abs(there - due.at) <= _ZONES
        except ValueError:
            pass
        message = (
            f"job {job[2]} of cluster {job[1]}: its deadline is {on} ({at}), and by what is declared {due.on}"
            f" ({due.at}) in {self._zone.key}"
        )
        finding = Finding(What.JOB, message, table="jobs", row_id=job[0], cluster=job[1], jid=job[2])
        return Suspicion(finding, is_zonal=is_zonal)


def _responsible(rows: Sequence[Row], last: Row, columns: set[str]) -> Row:
    """Return the transition from which *columns* of the job have their values."""

    def newest(fits: Callable[[Row], bool]) -> Row:
        return next((row for row in reversed(rows) if fits(row)), last)

    if columns <= set(_FIRST):
        return rows[0]
    if columns & set(FACTS):
        return newest(lambda row: row[_ACTION] in ("registered", "amended"))
    if columns & {"state", "ended_after", "ended_by"}:
        return newest(lambda row: row[_ACTION] != "amended")
    if columns & {"status", "status_after", "status_by"}:
        return newest(lambda row: row[_FROM] != row[_TO])
    return last


def read(
    connection: sa.Connection,
    suspect: Callable[[Suspicion], None],
    *,
    floor: Callable[[int], tuple[int, Any] | None] = lambda row_id: None,
    zone: ZoneInfo | None = None,
    progress: Callable[[int], None] = lambda transitions: None,
) -> Histories:
    """Compare each job with its history, and return what was read.

    Args:
        connection: In a transaction that sees one state of the database.
        suspect: Is given what is wrong with a job, at most once for each.
        floor: For a transition's id the newest checkpoint that was made before it was recorded, and the oldest time
            that it can then be of (as the driver gives times); None if there is none.
        zone: The legal time zone: deadlines are computed anew; None: they are not looked at.
        progress: Is told now and then how many transitions were read.
    """
    reader = _Reader(connection, suspect, floor, zone, progress)
    reader.run()
    return reader.read
