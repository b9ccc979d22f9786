"""The durations report: the estimator against an established one, and which jobs enter it where, on both databases."""

from __future__ import annotations

import random
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from itertools import count
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tracker import database, models, status
from tracker.errors import InvalidField
from tracker.reports import durations as room
from tracker.reports.durations import SHARES, Bounds, Durations, durations
from tracker.reports.survival import Curve
from tracker.status import Answer, Facts, Job, Kind, LostRule, Past, State

Lives = tuple[list[float], list[float]]

# The estimator


def drawn(seed: int, size: int, draw: Callable[[random.Random], tuple[float, float]]) -> Lives:
    """Return *size* lives, ended and unended; *draw* gives how long each takes, and how old it is when last seen."""
    rng = random.Random(seed)
    lives: Lives = ([], [])
    for _ in range(size):
        takes, seen = draw(rng)
        lives[takes > seen].append(min(takes, seen))
    return lives


# Weeks of remission of 42 children with leukaemia (E. J. Freireich et al., Blood 21, 1963), a textbook's example.
TREATED: Lives = ([6, 6, 6, 7, 10, 13, 16, 22, 23], [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35])
PLACEBO: Lives = ([1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23], [])
MICROSECONDS = drawn(
    3, 400, lambda r: (round((r.random() + r.random() * r.random()) * 600_000, 6), round(r.random() * 1_500_000, 6))
)
TIES = drawn(5, 300, lambda r: (int(r.random() * 20), int(r.random() * 40)))
MOSTLY_OPEN = drawn(8, 200, lambda r: (round(r.random() ** 3 * 900_000, 6), round(r.random() * 300_000, 6)))


@pytest.mark.parametrize(
    ("lives", "percentiles", "curve"),
    [
        # What lifelines 0.30.3 gives: KaplanMeierFitter().fit(…).percentile() at 0.5, 0.1, 0.05 and 0, and predict().
        (TREATED, [23, None, None, None], {6: 0.857142857142857, 10: 0.7529411764705878, 23: 0.44817927170868327}),
        (PLACEBO, [8, 17, 22, 23], {1: 0.9047619047619045, 8: 0.3809523809523809, 22: 0.047619047619047616, 23: 0}),
        (
            MICROSECONDS,
            [436146.137337, 720540.749161, 825923.15873, 1072581.763551],
            {8290.522456: 0.99748743718593, 293336.59224: 0.7371004268703032, 492023.079354: 0.4219232976757773},
        ),
        (TIES, [9, 17, 19, 19], {0: 0.9333333333333331, 6: 0.6331130051810657, 13: 0.26054176674782364, 19: 0}),
        (
            MOSTLY_OPEN,
            [117581.268961, None, None, None],
            {0.2689: 0.9950000000000002, 43440.801483: 0.6564897606795471, 262494.327562: 0.34171177093774324},
        ),
        (([5], []), [5, 5, 5, 5], {5: 0}),
        (([], [1, 2, 3]), [None] * 4, {}),
        (([0, 0, 5], [0, 7]), [5, None, None, None], {0: 0.6000000000000001, 5: 0.30000000000000004}),
    ],
)
def test_the_estimator_agrees_with_an_established_one(
    lives: Lives, percentiles: list[float | None], curve: dict[float, float]
) -> None:
    """Quantiles equal lifelines' and the curve does to its last digits: ties, microseconds, all open, one job."""
    ours = Curve(*lives)
    assert ours.quantiles(SHARES) == percentiles
    assert {at: ours.left(at) for at in curve} == pytest.approx(curve, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("size", [1, 2, 4, 10, 20, 40, 100, 1000])
def test_without_open_jobs_it_is_the_nearest_rank(size: int) -> None:
    """The p90 of ten is the ninth, exactly, whatever floats make of nine tenths (lifelines takes the next at times)."""
    assert Curve(range(1, size + 1), []).quantiles(SHARES) == [
        -(-size * percent // 100) for percent in (50, 90, 95, 100)
    ]


def plain_quantile(ended: list[int], unended: list[int], share: Fraction) -> int | None:
    """The definition, in exact fractions: the curve falls at each duration by the share that ends of those at risk."""
    left = Fraction(1)
    for at in sorted(set(ended)):
        at_risk = sum(age >= at for age in ended + unended)
        left *= Fraction(at_risk - ended.count(at), at_risk)
        if left <= 1 - share:
            return at
    return None


PLAIN_SHARES = (Fraction(1, 2), Fraction(9, 10), Fraction(19, 20), Fraction(1))
AGES = st.lists(st.integers(0, 12), max_size=25)


@given(AGES, AGES)
@settings(deadline=None, max_examples=300)
def test_the_estimator_is_the_definition(ended: list[int], unended: list[int]) -> None:
    """On any data with ties the quantiles are those of the definition in exact fractions."""
    assert Curve(ended, unended).quantiles(SHARES) == [plain_quantile(ended, unended, share) for share in PLAIN_SHARES]


# Which jobs enter, and where

BEGAN = datetime(2026, 10, 2, 9, 0, tzinfo=UTC)  # no story reaches into the future, which a guard refuses
RULE = LostRule(polls=2, duration=timedelta())
_numbers = count()


@dataclass(frozen=True)
class Story:
    """A job's life, in microseconds.

    Attributes:
        answers: For each poll, how long after the last answer it was sent, how long it took, and the word.
        action: What an operator did in the end, if the job was open then.
        submitted: After `BEGAN`; None: unknown.
        registered: After the submission, or `BEGAN`.
    """

    answers: tuple[tuple[int, int, str], ...] = ()
    action: str | None = None
    cluster: str = "w1"
    kind: Kind = Kind.EXPORT
    submitted: int | None = 0
    registered: int = 0

    @property
    def registered_at(self) -> int:
        return (self.submitted or 0) + self.registered


def at(microseconds: int) -> datetime:
    return BEGAN + timedelta(microseconds=microseconds)


def tell(connection: sa.Connection, *stories: Story) -> None:
    """Write jobs with these lives, as intake, poller and operators do."""
    for story in stories:
        facts = Facts(kind=story.kind, submitted_at=None if story.submitted is None else at(story.submitted))
        job = Job(facts, at(story.registered_at), "alice")
        clock = story.registered_at
        for wait, took, word in story.answers:
            if job.state is State.OPEN:
                sent, clock = clock + wait, clock + wait + took
                job = status.decide(job, Answer(word, at(sent), at(clock)), RULE, Past()).job
        if story.action and job.state is State.OPEN:
            if story.action == "attest":
                job = status.attest(job, job.registered_at, at(clock), "alice", "a file").job
            else:
                job = status.withdraw(job, at(clock), "alice", "a mistake").job
        declared = {"cluster": story.cluster, "jid": f"j{next(_numbers)}", "registered_at": job.registered_at}
        declared |= {"kind": facts.kind, "submitted_at": facts.submitted_at, "registered_by": "alice"}
        insert = sa.insert(models.JOBS).values(declared).returning(models.JOBS.c.id)
        job_id = connection.execute(insert).scalar_one()
        update = sa.update(models.JOBS).where(models.JOBS.c.id == job_id)
        connection.execute(update.values(models.observed_values(job)))


@pytest.fixture
def connection(engine: sa.Engine) -> Iterator[sa.Connection]:
    with engine.connect() as connection:
        yield connection
        connection.rollback()


SECOND, HOUR = 10**6, 3_600 * 10**6


def done(seconds_min: int, seconds_max: int, **more: Any) -> Story:
    """Return a job whose end is known to lie between two ages, in microseconds."""
    return Story(((seconds_min, 0, "waiting"), (0, seconds_max - seconds_min, "done")), **more)


def test_a_done_job_has_its_bounds(connection: sa.Connection) -> None:
    """The only job's bounds, to the microsecond, are those of every quantile, in its row and in the total."""
    tell(connection, done(5 * HOUR + 1, 6 * HOUR + 3))
    made = durations(connection)
    bounds = Bounds(18_000.000001, 21_600.000003)
    for row in (*made.rows, made.total):
        assert (row.median, row.p90, row.p95, row.max) == (bounds,) * 4
    [row] = made.rows
    assert (row.cluster, row.kind, made.total.cluster, made.total.kind) == ("w1", Kind.EXPORT, None, None)


def test_bounds_are_those_of_the_view(connection: sa.Connection) -> None:
    """Whoever asks the view for the longest job gets what the report says."""
    tell(connection, *(done(hours * HOUR + hours, (hours + 2) * HOUR) for hours in range(7)))
    [(least, most)] = connection.exec_driver_sql("SELECT max(seconds_min), max(seconds_max) FROM report_durations")
    assert durations(connection).total.max == Bounds(least, most)


@pytest.mark.parametrize(
    ("story", "expected"),
    [
        (Story(((HOUR, SECOND, "waiting"), (HOUR, SECOND, "done")), submitted=None, registered=HOUR), 3600.0),
        (Story(((HOUR, SECOND, "done"),), submitted=None), 0.0),
    ],
)
def test_a_done_job_of_unknown_submission_has_no_upper_bound(
    connection: sa.Connection, story: Story, expected: float
) -> None:
    """It took at least as long as since its registration; at most nobody knows, and on that curve it never ends."""
    tell(connection, story)
    assert durations(connection).total.median == Bounds(expected, None)
    tell(connection, done(int(expected * SECOND), int(expected * SECOND)))
    total = durations(connection).total
    assert (total.median, total.max) == (Bounds(expected, expected), Bounds(expected, None))


@pytest.mark.parametrize(
    ("story", "state", "age"),
    [
        (Story(), "open", 0),
        (Story(((HOUR, SECOND, "waiting"), (HOUR, SECOND, "running"))), "open", 2 * HOUR + SECOND),
        (Story(((HOUR, SECOND, "a new word"),)), "open", HOUR),
        (Story(((HOUR, SECOND, "waiting"),), submitted=None, registered=HOUR), "open", HOUR),
        (Story(((HOUR, SECOND, "waiting"), (HOUR, SECOND, "not_found"))), "open", HOUR),
        (Story(((HOUR, SECOND, "not_found"),)), "open", 0),
        (Story(((HOUR, 0, "waiting"), (HOUR, 0, "not_found"), (HOUR, 0, "not_found"))), "lost", HOUR),
        (Story(((HOUR, 0, "not_found"), (HOUR, 0, "not_found"))), "lost", 0),
        (Story(((HOUR, SECOND, "running"), (HOUR, SECOND, "error"))), "failed", 2 * HOUR + SECOND),
        (Story(((HOUR, 9 * HOUR, "waiting"),), "attest"), "attested", HOUR),
    ],
)
def test_a_job_that_is_not_done_is_as_old_as_when_last_seen_so(
    connection: sa.Connection, story: Story, state: str, age: int
) -> None:
    """It is there when another ends at exactly that age, and is no more a microsecond later; now does not matter."""
    tell(connection, story, done(age, age))
    made = durations(connection).total
    assert (made.jobs, made.done, getattr(made, state)) == (2, 1, 1)
    assert made.max == Bounds(None, None)
    connection.rollback()
    tell(connection, story, done(age + 1, age + 1))
    assert durations(connection).total.max == Bounds((age + 1) / SECOND, (age + 1) / SECOND)


def test_withdrawn_jobs_are_left_out_and_counted(connection: sa.Connection) -> None:
    """Nobody waits for them: they count in a column of their own and nowhere else."""
    withdrawn = Story(((9 * HOUR, 0, "waiting"),), "withdraw")
    tell(connection, withdrawn, done(HOUR, 2 * HOUR), Story(((1, 0, "waiting"),), "withdraw", cluster="w2"))
    made = durations(connection)
    assert [(row.cluster, row.jobs, row.withdrawn, row.max.seconds_max) for row in (*made.rows, made.total)] == [
        ("w1", 1, 1, 7200.0),
        ("w2", 0, 1, None),
        (None, 1, 2, 7200.0),
    ]
    assert made.about.jobs == 3  # as of every report


def test_the_bounds_are_in_order_where_the_curves_cross(connection: sa.Connection) -> None:
    """Where a job was last seen open between the bounds of a done one, only the upper curve comes down to the p90."""
    tell(connection, done(HOUR, 3 * HOUR), Story(((2 * HOUR, 0, "waiting"),)))
    made = durations(connection).total
    assert (made.median, made.p90) == (Bounds(3600.0, 10_800.0), Bounds(10_800.0, None))


def test_a_submission_declared_after_the_end_turns_nothing_over(connection: sa.Connection) -> None:
    """Plain SQL may declare one within a minute, by a clock that is ahead: the job took no time at all, not less."""
    early = Story(((0, 0, "waiting"), (0, 0, "done")), submitted=59 * SECOND, registered=0)
    tell(connection, early, Story(((0, 0, "waiting"),), submitted=59 * SECOND, registered=0))
    total = durations(connection).total
    assert (total.median, total.max) == (Bounds(0.0, 0.0), Bounds(None, None))


# Filters, and what it says of itself


def test_filters_go_by_submission_else_registration(connection: sa.Connection) -> None:
    """Since is included, until is not; a job of unknown submission counts where it was registered."""
    begun = [Story(submitted=hour * HOUR, registered=9 * HOUR) for hour in range(4)]
    tell(connection, *begun, Story(submitted=None, registered=2 * HOUR))
    tell(connection, Story(cluster="w2", kind=Kind.REMOVAL), done(HOUR, HOUR, cluster="w2"))

    def jobs(**filters: Any) -> int:
        return durations(connection, **filters).total.jobs

    assert jobs() == 7
    assert jobs(since=at(2 * HOUR)) == 3
    assert jobs(since=at(2 * HOUR + 1)) == 1
    assert jobs(until=at(2 * HOUR)) == 4
    assert jobs(until=at(2 * HOUR + 1)) == 6
    assert jobs(since=at(HOUR), until=at(3 * HOUR)) == 3
    assert jobs(cluster="w2") == jobs(cluster=["w2", "w3"]) == 2
    assert jobs(kind="removal") == jobs(kind=[Kind.REMOVAL, Kind.UNKNOWN]) == 1
    assert jobs(cluster=["w1", "w2"], kind=Kind.EXPORT, since=at(0)) == 6


def test_it_says_what_it_is(connection: sa.Connection) -> None:
    """It carries its time by the database's clock, version, filters and number of jobs; and empty is no error."""
    before = database.now(connection)
    made = durations(connection, since=at(0), cluster="w9", kind="export")
    assert made.about.as_of >= before
    assert made.about.version
    assert astuple(made.about.filters) == (at(0), None, ("w9",), (Kind.EXPORT,))
    assert (made.rows, made.about.jobs, made.total.jobs, made.total.median) == ((), 0, 0, Bounds(None, None))


@pytest.mark.parametrize(
    ("filters", "field"),
    [
        ({"since": datetime(2026, 1, 1)}, "since"),  # noqa: DTZ001 - what is refused
        ({"since": at(1), "until": at(1)}, "until"),
        ({"kind": "exports"}, "kind"),
    ],
)
def test_filters_that_cannot_be_are_refused(connection: sa.Connection, filters: dict[str, Any], field: str) -> None:
    """A time without offset, an empty stretch of time and an unknown kind are named."""
    with pytest.raises(InvalidField) as caught:
        durations(connection, **filters)
    assert caught.value.field == field


# All of it against an independent reference

WORDS = st.sampled_from(["waiting", "running", "not_found", "done", "done", "done", "error", "never heard of"])
STEPS = st.integers(0, 5).map(lambda n: n * HOUR) | st.integers(0, 10**12)
STORIES = st.lists(
    st.builds(
        Story,
        answers=st.lists(st.tuples(STEPS, STEPS, WORDS), max_size=5).map(tuple),
        action=st.none() | st.sampled_from(["withdraw", "attest"]),
        cluster=st.sampled_from(["w1", "w2"]),
        kind=st.sampled_from(Kind),
        submitted=st.none() | STEPS,
        registered=STEPS,
    ),
    max_size=12,
)


def plain_life(story: Story) -> tuple[str, int, int | None]:
    """Return how *story* ended, and both bounds of its duration; of a job that is not done the age when last seen so.

    It knows nothing of transitions, views or states: it reads the story.
    """
    began = story.registered_at if story.submitted is None else story.submitted
    clock, sent_before, not_done, missing = story.registered_at, story.submitted, began, 0
    for wait, took, word in story.answers:
        sent, clock = clock + wait, clock + wait + took
        if word == "done":
            least = 0 if sent_before is None else sent_before - began
            return "done", least, None if story.submitted is None else clock - began
        missing = missing + 1 if word == "not_found" else 0
        not_done = not_done if missing else sent
        sent_before = sent
        if word == "error":
            return "failed", not_done - began, None
        if missing == 2:
            return "lost", not_done - began, None
    ended = {None: "open", "withdraw": "withdrawn", "attest": "attested"}
    return ended[story.action], not_done - began, None


def plain_row(stories: list[Story]) -> tuple[object, ...]:
    """Return the counts and the bounds of these jobs."""
    lives = [life for life in map(plain_life, stories) if life[0] != "withdrawn"]
    bounds = []
    for share in PLAIN_SHARES:
        never = 10**18
        lower = plain_quantile(
            [least for how, least, _ in lives if how == "done"], [age for how, age, _ in lives if how != "done"], share
        )
        upper = plain_quantile(
            [most for how, _, most in lives if how == "done" and most is not None],
            [age for how, age, most in lives if how != "done" or most is None],
            share,
        )
        pair = sorted(never if bound is None else bound for bound in (lower, upper))
        bounds.append(tuple(None if bound == never else bound / SECOND for bound in pair))
    how = [ended for ended, *_ in map(plain_life, stories)]
    late = sorted(story.registered for story in stories if story.submitted is not None)
    ranks = [late[-(-len(late) * percent // 100) - 1] / SECOND if late else None for percent in (50, 95, 100)]
    registered = (len(late), *ranks, sum(by > 24 * HOUR for by in late), len(stories) - len(late))
    counts = map(how.count, ("done", "open", "failed", "lost", "attested", "withdrawn"))
    return (len(lives), *counts, *bounds, registered)


def as_plain(made: Durations) -> dict[tuple[str | None, str | None], tuple[object, ...]]:
    return {(row[0], row[1]): row[2:] for row in map(astuple, (*made.rows, made.total))}


@given(STORIES)
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_report_is_what_the_stories_say(connection: sa.Connection, stories: list[Story]) -> None:
    """Whatever happened to the jobs, counts and bounds equal those read off their stories, to the microsecond."""
    connection.rollback()
    tell(connection, *stories)
    cohorts: dict[tuple[str | None, str | None], list[Story]] = defaultdict(list)
    cohorts[None, None] = []
    for story in stories:
        cohorts[story.cluster, story.kind].append(story)
        cohorts[None, None].append(story)
    made = durations(connection)
    assert as_plain(made) == {key: plain_row(cohort) for key, cohort in cohorts.items()}
    assert [(row.cluster, row.kind) for row in made.rows] == sorted(set(cohorts) - {(None, None)})


def test_jobs_are_streamed(connection: sa.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for a job is what its three numbers take, not its row's, in Python and in PostgreSQL's driver."""
    jobs = 20_000
    time = "'2026-10-02 09:00:00.000000'"
    connection.exec_driver_sql(
        "INSERT INTO jobs (cluster, jid, submitted_at, registered_at)"
        f" WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {jobs})"
        f" SELECT 'w1', 'many' || CAST(n AS VARCHAR), {time}, {time} FROM s"
    )
    half = sa.update(models.JOBS).where(models.JOBS.c.jid.like("%5"))
    connection.execute(half.values(state="done", status="done", ended_after=at(0), ended_by=at(HOUR)))
    cursors: list[str] = []
    sa.event.listen(connection, "after_cursor_execute", lambda _, cursor, *__: cursors.append(type(cursor).__name__))
    monkeypatch.setattr(room, "_BATCH", 100)
    tracemalloc.start()
    try:
        assert durations(connection).total.jobs == jobs
        assert tracemalloc.get_traced_memory()[1] < 80 * jobs
    finally:
        tracemalloc.stop()
    if connection.dialect.name == "postgresql":
        assert cursors.count("ServerCursor") == 2
