"""Whole lives of jobs, drawn by a seed or written step by step, and stored in a database in one transaction.

Owns the making: each step is a decision of ``status``, each deadline ``deadline_of``'s, and what is written is what the
intake, the poller and an operator would have written. In memory first, so that hundreds of steps cost one transaction,
and so that both databases get the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from tests.history import ZONE, source
from tests.replay import registration, replay
from tracker import database, status
from tracker.clusters import utc_offsets
from tracker.deadline import Deadline, add_months, deadline_of
from tracker.models import CLUSTERS, GAPS, JOBS, SEALS, TRANSITIONS, facts_values, observed_values, transition_values
from tracker.status import Answer, Cause, Decision, Facts, Job, Kind, LostRule, State, Transition

MICROSECOND, SECOND, MINUTE = timedelta(microseconds=1), timedelta(seconds=1), timedelta(minutes=1)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
BEGAN = datetime(2025, 1, 7, 9, 0, 0, 123_456, tzinfo=UTC)
END = datetime(2025, 8, 31, 22, 0, tzinfo=UTC)
"""Nothing happens after it; a midnight of the legal time zone, so that a deadline can be exactly then."""
RULE = LostRule(polls=2, duration=timedelta())
WORDS = ("created", "waiting", "waiting", "started", "running", "running", "done", "done", "error", "not_found", "a_é")
OPEN_CLUSTERS = ("w1", "w2", "W3", "wnone")
"""Clusters with a row in clusters; wnone has no job."""


@dataclass
class Life:
    """A job from its registration on; each method lets one thing happen and returns the life.

    Attributes:
        has_deadline: It was registered by the intake; else by plain SQL, and the first answer brings the deadline.
        working: Its working columns in the end.
    """

    cluster: str
    jid: str
    facts: Facts
    at: datetime
    has_deadline: bool = True
    working: dict[str, Any] = field(default_factory=dict)
    steps: list[tuple[Job, Transition, Deadline | None]] = field(init=False, default_factory=list)
    due: Deadline | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.job = Job(self.facts, self.at, "alice")
        made = registration(self.facts, self.at, "alice")
        self.steps.append((self.job, made, None))
        if self.has_deadline:
            self.due = self.compute()
            self.steps[0] = (self.job, made, self.due)

    def compute(self) -> Deadline:
        """Return the deadline by the facts of the job, and all that were declared."""
        declared = [(made.observed_at, made.facts.extended_on) for _, made, _ in self.steps if made.facts]
        return deadline_of(self.job.facts, self.at, ZONE, declared)

    def _take(self, decision: Decision) -> Life:
        self.job = decision.job
        if decision.transition is not None:
            self.steps.append((decision.job, decision.transition, self.due))
        return self

    def answer(self, word: str, sent_at: datetime, took: timedelta = SECOND) -> Life:
        self.due = self.due or self.compute()
        past = replay(transition for _, transition, _ in self.steps).past
        server_date = sent_at.replace(microsecond=0) - 3 * MINUTE
        answer = Answer(word, sent_at, sent_at + took, server_date)
        return self._take(status.decide(self.job, answer, RULE, past, self.due.at))

    def withdraw(self, at: datetime) -> Life:
        return self._take(status.withdraw(self.job, at, "bob", "a mistake"))

    def reopen(self, at: datetime) -> Life:
        return self._take(status.reopen(self.job, at, "bob", "try again"))

    def attest(self, at: datetime, done_by: datetime) -> Life:
        return self._take(status.attest(self.job, done_by, at, "bob", "the file is here"))

    def amend(self, at: datetime, **changes: Any) -> Life:
        facts = replace(self.job.facts, **changes)
        if facts == self.job.facts:
            return self
        self._take(status.amend(self.job, facts, at, "bob", "the mail says so"))
        job, made, _ = self.steps[-1]
        self.due = self.compute()
        self.steps[-1] = (job, made, self.due)
        return self

    @property
    def last_at(self) -> datetime:
        return max(self.steps[-1][1].observed_at, self.job.seen_at or self.at)


def on_boundaries() -> list[Life]:
    """Return the lives in which something falls on a boundary, or a microsecond beside it."""
    received = datetime(2025, 3, 31, 8, 30, 0, 1, tzinfo=UTC)
    facts = Facts(Kind.EXPORT, "R-1", received, received + HOUR)
    made: list[Life] = []

    def life(jid: str, facts: Facts = facts, at: datetime = received + 2 * HOUR, cluster: str = "w1") -> Life:
        made.append(Life(cluster, jid.replace(" ", "-"), facts, at))
        return made[-1]

    due = deadline_of(facts, received, ZONE, ()).at
    for name, by in (("on", due), ("after", due + MICROSECOND)):
        life(f"done {name} the deadline").answer("waiting", due - HOUR).answer("done", by - SECOND)
        life(f"done unseen {name} the deadline").answer("done", by - SECOND)
        life(f"seen waiting {name} the deadline").answer("waiting", by - MICROSECOND)
        life(f"done {name} a sight of waiting").answer("waiting", by - MICROSECOND).answer("done", by + HOUR)
        life(f"gone {name} the deadline").answer("running", by - MICROSECOND).answer("not_found", by + DAY)
    life("done at once on the deadline").answer("waiting", due, timedelta()).answer("done", due, timedelta())
    life("not found since").answer("waiting", due - DAY).answer("not_found", due - HOUR).answer("not_found", due + DAY)
    life("failed").answer("error", due - DAY)
    life("lost at once").answer("not_found", received + DAY).answer("not_found", received + 2 * DAY)
    for days in (1, 7, 14):
        for more in (-MICROSECOND, timedelta(), MICROSECOND):
            taken = received + HOUR + days * DAY + more
            life(f"{days} days {more.days or more.microseconds}").answer("waiting", taken - HOUR).answer(
                "done", taken - SECOND
            )
    march = datetime(2025, 3, 1, tzinfo=UTC)  # in Stockholm it has begun an hour before
    for name, at in (("in", march), ("before", march - MICROSECOND)):
        submitted = Facts(Kind.REMOVAL, "R-2", None, at)
        life(f"submitted {name} March", submitted, at + DAY, "w2").answer("waiting", at + 2 * DAY, MICROSECOND)
    unknown = Facts(Kind.EXPORT)
    tomorrow = received + DAY
    life("unknown", unknown, cluster="w2").answer("done", tomorrow)
    life("unknown, and waited", unknown, cluster="w2").answer("waiting", tomorrow).answer("done", tomorrow + DAY)
    life("declared too late", unknown, cluster="wlate").answer("done", received + DAY).amend(
        received + 3 * DAY, submitted_at=received + 2 * DAY
    )
    life("never answered", unknown, cluster="w2")
    late = Facts(Kind.EXPORT, "R-9", received, due + DAY)
    life("submitted after the deadline", late, due + 2 * DAY).answer("done", due + 3 * DAY)
    last = datetime(2025, 7, 31, 12, tzinfo=UTC)  # its month ends with END
    for word in ("waiting", "error"):
        life(f"{word} to the end", Facts(Kind.EXPORT, "R-3", last), last, "w2").answer(word, last + DAY)
    extended = add_months(received.date(), 3)
    life("extended in time", facts).amend(due - MICROSECOND, extended_on=extended)
    life("extended too late", facts).amend(due, extended_on=extended)
    life("extended at once", replace(facts, extended_on=extended))
    life("done before it was registered", Facts(), received, "W3").attest(received + DAY, received - DAY)
    later, gap_over = received + 9 * DAY, received + 10 * DAY
    life("shut at once", Facts(), received, "W3").withdraw(tomorrow).reopen(later).withdraw(later)
    life("failed before a gap, withdrawn after", Facts(), march, "W3").answer("error", march + DAY).withdraw(gap_over)
    life("failed before a gap, attested after", Facts(), march, "W3").answer("error", march + DAY).attest(
        gap_over, later
    )
    life("waiting", Facts(Kind.REMOVAL), cluster="w2").answer("waiting", tomorrow)
    life("waiting", Facts(Kind.EXPORT), cluster="w1").answer("waiting", tomorrow).answer("waiting", later)
    life("open over gaps that touch", Facts(), BEGAN, "W3").withdraw(BEGAN + 20 * HOUR)
    life("opened where a gap ends", Facts(), BEGAN + 12 * HOUR, "W3").withdraw(BEGAN + DAY)
    return made


def drawn(seed: int, size: int) -> list[Life]:
    """Return *size* lives in which anything may happen."""
    r = random.Random(seed)
    made = []

    def facts(clock: datetime) -> Facts:
        submitted = r.choice([None, clock, clock - HOUR - MICROSECOND, clock - 3 * DAY])
        received = r.choice([None, clock - 20 * DAY - HOUR, clock - 35 * DAY])
        extended = r.choice([None, None, add_months((received or submitted or clock).date(), r.choice([2, 3, 4]))])
        reference = r.choice([None, *(f"R-{number}" for number in range(4, 12))])
        return Facts(r.choice(list(Kind)), reference, received, submitted, extended)

    for number in range(size):
        clock = BEGAN + r.random() * 200 * DAY
        life = Life(r.choice(["w1", "w2", "W3", "wbare", "w2"]), f"j{number}", facts(clock), clock, r.random() < 0.8)
        for _ in range(r.randrange(12)):
            clock = max(clock, life.last_at)
            clock += r.choice([timedelta(), MICROSECOND, MINUTE, HOUR, 7 * HOUR, DAY, 5 * DAY, 20 * DAY])
            clock += r.choice([0, 1, r.random()]) * MINUTE
            if clock > END - 2 * DAY:
                break
            state, chance = life.job.state, r.random()
            if chance < 0.15:
                new = facts(clock - r.choice([timedelta(), 30 * DAY]))
                names = r.sample(list(Facts.__dataclass_fields__), r.randrange(1, 6))
                life.amend(clock, **{name: getattr(new, name) for name in names})
            elif state is State.OPEN and chance < 0.9:
                same = life.job.status or "not_found"
                life.answer(r.choice([*WORDS, same, same, same]), clock, r.choice([timedelta(), MICROSECOND, SECOND]))
            elif state in (State.OPEN, State.FAILED, State.LOST):
                if r.random() < 0.4:
                    life.withdraw(clock)
                elif r.random() < 0.6:
                    life.attest(clock, clock - r.choice([timedelta(), HOUR, 9 * DAY]))
                else:
                    life.withdraw(clock).reopen(clock)
            elif state is not State.DONE:
                life.reopen(clock)
        behind = END - MINUTE + r.choice([-MICROSECOND, timedelta(), MICROSECOND, -DAY, DAY])
        life.working = {"due_at": behind, "failures": r.randrange(3), "last_error": r.choice([None, "Unavailable 503"])}
        made.append(life)
    return made


def gaps(seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return rows of gaps and of clusters: gaps that overlap, touch, have no length, and are open."""
    r = random.Random(seed)
    spans = [("W3", BEGAN, BEGAN + 12 * HOUR), ("W3", BEGAN + 12 * HOUR, BEGAN + 13 * HOUR + MICROSECOND)]
    spans.append(("W3", BEGAN + DAY, BEGAN + DAY))
    spans.append(("W3", datetime(2025, 3, 20, tzinfo=UTC), datetime(2025, 4, 9, 8, 30, 0, 1, tzinfo=UTC)))
    spans.append(("W3", datetime(2025, 4, 10, tzinfo=UTC), datetime(2025, 5, 20, tzinfo=UTC)))  # two are open at times
    for _ in range(20):
        began = BEGAN + r.random() * 220 * DAY
        lasted = r.random() * r.choice([MINUTE, DAY, 9 * DAY])
        spans.append((r.choice(["w1", "w2", "W3", "wbare"]), began, began + lasted))
    causes = [cause for cause in Cause if cause is not Cause.CLOCK_SET]  # a clock is seldom set
    closed = [
        {"cluster": cluster, "began_at": began, "ended_at": ended, "detail": "timeout"}
        | {"cause": Cause.CLOCK_SET if began == ended == BEGAN + DAY else r.choice(causes)}
        for cluster, began, ended in spans
    ]
    standing: list[dict[str, Any]] = [{"cluster": name} for name in OPEN_CLUSTERS]
    standing[0] |= {"gap_began_at": END - 3 * DAY, "gap_cause": Cause.KEY_REFUSED, "gap_detail": "401"}
    standing[0] |= {"pause_cause": Cause.KEY_REFUSED, "paused_until": END + HOUR, "answered_at": END - 4 * DAY}
    standing[2] |= {"gap_began_at": BEGAN + 100 * DAY, "gap_cause": Cause.PAUSED, "gap_detail": "moving"}
    standing[2] |= {"pause_cause": Cause.PAUSED}
    return closed, standing


def write(engine: sa.Engine, seed: int, lives: Iterable[Life]) -> None:
    """Write *lives*, in the order in which things happened, with gaps, sources and seals."""
    lives = list(lives)
    closed, standing = gaps(seed)
    closed.sort(key=lambda gap: gap["ended_at"])  # as they are written
    r = random.Random(seed)
    with database.writing(engine) as connection:
        for row in standing:
            connection.execute(sa.insert(CLUSTERS).values(row | {"utc_offsets": utc_offsets(ZONE.key, BEGAN)}))
        for gap in closed:
            connection.execute(sa.insert(GAPS).values(gap))
        sources: dict[str, list[int]] = {}
        for cluster in sorted({life.cluster for life in lives} | {"w1"}):
            hosts = ["a.example", "b.example"] if cluster == "w1" else ["a.example"]
            made = [source(connection, cluster, BEGAN, base_url=f"https://{host}") for host in hosts]
            sources[cluster] = made
        events = sorted(
            (step[1].observed_at, n, i) for n, life in enumerate(lives) for i, step in enumerate(life.steps)
        )
        ids: dict[int, int] = {}
        sealed = 0
        for place, (at, n, i) in enumerate(events, 1):
            life = lives[n]
            job, transition, due = life.steps[i]
            values: dict[str, Any] = {"deadline_on": due and due.on, "deadline_at": due and due.at}
            if i == 0:
                values |= {"cluster": life.cluster, "jid": life.jid, "registered_at": at, "registered_by": "alice"}
                query = sa.insert(JOBS).values(values | facts_values(job.facts) | {"due_at": at}).returning(JOBS.c.id)
                ids[n] = connection.execute(query).scalar_one()
            else:
                source_id = r.choice(sources[life.cluster]) if transition.actor is None else None
                connection.execute(sa.insert(TRANSITIONS).values(transition_values(ids[n], transition, source_id)))
                values |= facts_values(job.facts) | observed_values(job)
                connection.execute(sa.update(JOBS).where(JOBS.c.id == ids[n]).values(values))
            if place in (len(events) // 3, len(events) // 2):
                last = connection.execute(sa.select(sa.func.max(TRANSITIONS.c.id))).scalar_one()
                ended = sum(gap["ended_at"] <= at for gap in closed)
                for _ in range(2):  # the second has nothing to seal
                    sealed += 1
                    seal: dict[str, Any] = {"last_transition_id": last, "last_gap_id": ended}
                    seal |= {"last_source_id": sum(map(len, sources.values())), "rows": 1, "sealed_at": at + MINUTE}
                    previous = f"sha256 {sealed - 1:064}  checkpoints/\n" if sealed > 1 else ""
                    seal |= {
                        "checkpoint": f"tracker checkpoint v2\nnumber {sealed}\n{previous}",
                        "checkpoint_sha256": f"{sealed:064}",
                    }
                    connection.execute(sa.insert(SEALS).values(seal))
        for n, life in enumerate(lives):
            values = {"deadline_on": life.due and life.due.on, "deadline_at": life.due and life.due.at}
            working = {"due_at": END} | life.working
            if life.job.state is not State.OPEN:
                working["due_at"] = None
            values |= observed_values(life.job) | working
            connection.execute(sa.update(JOBS).where(JOBS.c.id == ids[n]).values(values))
