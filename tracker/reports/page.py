"""The reports as a page: one file of HTML, without a script or a request, to be read, printed or served.

Owns which figures are on the page, in which order and how many of each; they are aggregated by the database and cut off
there, so that a million jobs make no longer a page than a hundred. What a column means is the views'; the curves are
``survival``'s, the shapes ``pictures``', the look is in ``templates/``. The same data and as-of time give the same
bytes.
"""

from __future__ import annotations

import os
import tempfile
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from functools import cache
from heapq import heappush, heappushpop
from importlib.metadata import version
from importlib.resources import files
from math import ceil, floor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from markupsafe import Markup

from tracker import database
from tracker.errors import InvalidField, Refused
from tracker.models import UtcDateTime
from tracker.reports import pictures
from tracker.reports.about import Filters
from tracker.reports.as_of import LEGAL_ZONE, AsOf, instant, kept, shadows
from tracker.reports.durations import Bounds, Lateness, Quantiles, cohorts_of, row_of
from tracker.reports.survival import Curve
from tracker.reports.words import ANOMALIES, NOTE, human, plain, verdict_meaning
from tracker.status import UNSETTLED, Action, Anomaly, Kind, State, Status

if TYPE_CHECKING:
    from jinja2 import Template

LIMIT: Final = 200
"""Rows of a table: what a person scrolls through. The commands list all."""
POINTS: Final = 48
"""Instants at which jobs in flight are counted; as many rows has the table."""
AHEAD: Final = timedelta(days=31)
"""Deadlines are drawn for so long ahead: no legal month is longer."""
LINES: Final = 12
"""Clusters on the time line, and panels of durations by month, at most."""

MARK: Final = '<meta name="generator" content="tracker'
"""In the head of each page: by this it is known for one of ours."""
MET: Final = (
    "Met means: Elevate reported the job done in time. That the person was informed of it is not shown: no system here "
    "sees that."
)
_DECLARED: Final = ("received", "extended to")
"""Headings over times that people declared: nobody observed them."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: As it is shown.
        is_number: It stands on the right.
        at: The instant in full, the day or the month, where the text is one.
        is_code: It is a jid, a reference or a status: shown letter by letter.
    """

    text: str
    is_number: bool = False
    at: str = ""
    is_code: bool = False

    @property
    def is_long(self) -> bool:
        """It may be broken; others stand on one line."""
        return len(self.text) > (40 if self.is_code else 28)


@dataclass(frozen=True, slots=True)
class Table:
    """Figures.

    Attributes:
        caption: What they are.
        columns: (heading, whether people declared what stands below).
        rows: The first cell of each is its heading.
        more: What is left out, and which command lists it.
    """

    caption: str
    columns: Sequence[tuple[str, bool]]
    rows: Sequence[Sequence[Cell]]
    more: str = ""

    def is_number(self, column: int) -> bool:
        """Return whether a column, counted from 0, has numbers: its heading stands on the right, too."""
        return any(row[column].is_number for row in self.rows)


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawing, and what its colours mean: (class, word)."""

    svg: Markup
    caption: str
    legend: Sequence[tuple[str, str]] = ()


@dataclass(slots=True)
class Section:
    """A part of the page."""

    name: str
    title: str
    text: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    empty: str = ""


def render(
    connection: sa.Connection,
    filters: Filters | None = None,
    *,
    as_of: AsOf = None,
    zone: ZoneInfo = LEGAL_ZONE,
    names: Collection[str] | None = None,
) -> str:
    """Return the page.

    Args:
        connection: In a transaction that sees one state of the database throughout (`tracker.database.reading`).
        filters: Which jobs it is about; default all.
        as_of: What could be known then (aware), or what a checkpoint closed; default: now, by the database's clock.
        zone: The legal time zone (setting ``timezone``) of clusters that have no source yet.
        names: Of the reports (`NAMES`) that are on it; default all.

    Raises:
        InvalidField: There is no such report; the message lists what there is.
        DatabaseUnavailable: The database did not answer.
    """
    wanted = tuple(NAMES if names is None else names)
    for name in wanted:
        if name not in NAMES:
            raise InvalidField("report", f"{name[:80]!r} is none of {', '.join(NAMES)}")
    with kept(connection, as_of, zone) as is_kept, ExitStack() as opened:
        data = _Data(connection, filters or Filters(), as_of, zone, is_kept, opened)
        sections = [section for name in NAMES if name in wanted for section in _SECTIONS[name](data)]
        jobs = data.jobs
    title = "GDPR jobs" if len(wanted) > 1 else f"GDPR jobs: {wanted[0]}"
    return _template().render(
        title=title,
        sections=sections,
        as_of=_instant(data.at),
        is_past=as_of is not None,
        jobs=f"{jobs:,} job{'' if jobs == 1 else 's'}",
        is_empty=not jobs,
        version=version("tracker"),
        filters=_filters(data.filters),
        met=MET,
        note=Markup(NOTE),  # noqa: S704 - ours
    )


def write(
    path: Path,
    connection: sa.Connection,
    filters: Filters | None = None,
    *,
    as_of: AsOf = None,
    zone: ZoneInfo = LEGAL_ZONE,
    names: Collection[str] | None = None,
) -> None:
    """Write the page to *path*: whole or not at all. The arguments are those of `render`.

    Raises:
        Refused: It cannot be written there; what was there still is.
        InvalidField, DatabaseUnavailable: As `render`.
    """
    save(path, render(connection, filters, as_of=as_of, zone=zone, names=names))


def save(path: Path, page: str) -> None:
    """Write *page* to *path*: whole or not at all.

    Raises:
        Refused: It cannot be written there; what was there still is.
    """
    temporary = None
    try:
        if path.exists() and not path.is_file():  # a pipe or a device cannot be replaced
            path.write_text(page, encoding="utf-8")
            return
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
            temporary = Path(file.name)
            file.write(page)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # the file is made readable by its owner alone
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()
        raise Refused(f"the page cannot be written to {path}: {error.strerror}; name another file with -o") from error


@cache
def _template() -> Template:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    folder = files(__package__).joinpath("templates")

    def source(name: str) -> str:
        return folder.joinpath(name).read_text(encoding="utf-8")

    environment = Environment(
        loader=FunctionLoader(source), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["style"] = Markup(source("page.css"))  # noqa: S704 - ours
    return environment.get_template("page.html")


def _filters(filters: Filters) -> str:
    """Return in words which jobs were asked for."""
    said = []
    if filters.clusters:
        said.append(f"cluster {', '.join(filters.clusters)}")
    if filters.kinds:
        said.append(f"kind {', '.join(filters.kinds)}")
    if filters.since:
        said.append(f"submitted (else registered) from {filters.since.astimezone(UTC).isoformat(' ')}")
    if filters.until:
        said.append(f"submitted (else registered) before {filters.until.astimezone(UTC).isoformat(' ')}")
    return plain("; ".join(said))


# -- what the sections read ----------------------------------------------------------------------------------------


def _view(name: str, columns: str) -> sa.TableClause:
    """Return the view *name*: a column's name tells its type, which SQLite does not."""

    def kind(column: str) -> sa.types.TypeEngine[Any] | None:
        if column.endswith("_on"):
            return sa.Date()
        if column.endswith(("_at", "_after", "_by")):
            return UtcDateTime()
        return None

    return sa.table(name, *(sa.column(column, kind(column)) for column in columns.split()))


_JOBS: Final = _view(
    "report_jobs",
    "cluster jid kind reference state status seen_at submitted_at registered_at received_at deadline_on verdict "
    "ended_after ended_by",
)
_DURATIONS: Final = _view("report_durations", "cluster jid")
_MONTHLY: Final = _view(
    "report_monthly",
    "cluster kind month submitted open done failed lost attested withdrawn done_within_1d done_within_7d "
    "done_within_14d met missed undecidable pending overdue",
)
_DEADLINES: Final = _view(
    "report_deadlines",
    "cluster jid kind reference state received_at received_at_first amendments basis deadline_on deadline_at "
    "extended_on done_after done_by verdict days_left",
)
_REQUESTS: Final = _view(
    "report_requests", "reference jobs open done not_done received_at deadline_on done_after done_by verdict"
)
_ANOMALIES: Final = _view(
    "report_anomalies", "id cluster jid kind reference action from_status to_status observed_at anomaly"
)
_GAPS: Final = _view("report_gaps", "cluster began_at ended_at is_open cause detail seconds open_jobs")
_COVERAGE: Final = _view("report_coverage", "cluster jid covered_share longest_unobserved_seconds")
_STAYS: Final = _view("report_statuses", "status left_by seconds_min seconds_max")
_STEPS: Final = _view("transitions", "job_id action from_status to_status from_state to_state observed_at")


@dataclass(slots=True)
class _Data:
    """The database as the sections see it: as if there were no other jobs than those asked for, now or then."""

    connection: sa.Connection
    filters: Filters
    as_of: AsOf
    zone: ZoneInfo
    is_kept: bool
    opened: ExitStack  # what is being read when a section fails is closed by it, before the transaction ends
    at: datetime = field(init=False)
    shadows: tuple[sa.CTE, ...] = field(init=False)
    jobs: int = field(init=False)

    def __post_init__(self) -> None:
        self.at = instant(self.as_of) or database.now(self.connection)
        views = (_JOBS, _DURATIONS, _STAYS, _MONTHLY, _DEADLINES, _REQUESTS, _ANOMALIES, _COVERAGE)
        self.shadows = self._shadows(self.filters, *(view.name for view in views))
        self.jobs = self.value(sa.select(sa.func.count()).select_from(_JOBS))

    def _shadows(self, filters: Filters, *names: str) -> tuple[sa.CTE, ...]:
        return shadows(self.connection, filters, self.as_of, self.zone, *names, is_kept=self.is_kept)

    def rows(self, query: sa.Select[Any]) -> Iterable[Any]:
        """Yield the rows of *query*, a few thousand at a time."""
        options = {"yield_per": 10_000}
        result = self.connection.execute(query.add_cte(*self.shadows), execution_options=options)
        yield from self.opened.enter_context(result)

    def value(self, query: sa.Select[Any]) -> Any:
        return self.connection.execute(query.add_cte(*self.shadows)).scalar_one()

    def gaps(self) -> list[sa.Row[Any]]:
        """Return the rows of ``report_gaps`` that overlap the time asked for, newest first."""
        g, f = _GAPS.c, self.filters
        query = sa.select(_GAPS).order_by(g.began_at.desc(), g.cluster)
        if f.clusters:
            query = query.where(g.cluster.in_(f.clusters))
        if f.since is not None:
            query = query.where(sa.func.coalesce(g.ended_at, sa.literal(self.at, UtcDateTime())) >= f.since)
        if f.until is not None:
            query = query.where(g.began_at < f.until)
        counted = replace(f, since=None, until=None)  # these choose the gaps, not which jobs were open meanwhile
        return list(self.connection.execute(query.add_cte(*self._shadows(counted, _GAPS.name))))


# -- cells ---------------------------------------------------------------------------------------------------------

_NONE: Final = Cell("–")


def _text(value: object) -> Cell:
    return _NONE if value is None or value == "" else Cell(plain(str(value)))


def _code(value: object) -> Cell:
    return _NONE if value is None else Cell(plain(str(value)), is_code=True)


def _number(value: int | None) -> Cell:
    return _NONE if value is None else Cell(f"{value:,}", is_number=True)


def _day(value: date | None) -> Cell:
    return _NONE if value is None else Cell(value.isoformat(), at=value.isoformat())


def _instant(value: datetime | None) -> Cell:
    if value is None:
        return _NONE
    at = value.astimezone(UTC)
    return Cell(at.strftime("%Y-%m-%d %H:%M:%S"), at=at.isoformat(timespec="microseconds"))


def _seconds(value: float | None, *, up: bool = False, none: str = "–") -> Cell:
    return Cell(none) if value is None else Cell(human(float(value), up=up), is_number=True)


def _percent(share: float, digits: int, *, up: bool = False) -> Cell:
    """Return *share* rounded down, or *up*: 100.0 % at least must not be said while one is left (see `human`)."""
    steps = 100 * share * 10**digits
    whole = ceil(steps - 1e-6) if up else floor(steps + 1e-6)  # floats are no exact fractions
    return Cell(f"{whole / 10**digits:.{digits}f} %", is_number=True)


def _bounds(pair: Bounds) -> Cell:
    """Return both bounds of a duration in few words."""
    if pair.seconds_min is None:
        return Cell("not reached")
    low = human(pair.seconds_min)
    if pair.seconds_max is None:
        return Cell(f"{low} or more", is_number=True)
    high = human(pair.seconds_max, up=True)
    return Cell(low if low == high else f"{low} to {high}", is_number=True)


def _table(caption: str, headings: str, rows: Iterable[Sequence[Cell]], more: str = "") -> Table:
    """Return a table; *headings* are separated by commas."""
    columns = [(heading, heading in _DECLARED) for heading in headings.split(", ")]
    return Table(caption, columns, list(rows), more)


def _more(shown: int, total: int, order: str, command: str) -> str:
    if total <= shown:
        return ""
    return f"The first {shown:,} of {total:,}, {order}. All of them: {command} --format csv"


# -- the sections --------------------------------------------------------------------------------------------------


def _durations(data: _Data) -> list[Section]:
    by = cohorts_of(data.connection, Filters(), data.shadows)
    rows = [row_of(by[key], {"cluster": key[0], "kind": key[1]}) for key in sorted(by)]
    section = Section("durations", "How long jobs take")
    if not rows:
        section.empty = "No registered job is like that."
        return [section]
    everything = by.pop(next(iter(sorted(by))))
    for key in sorted(by):
        everything.take(by.pop(key))
    early, sure = curves = everything.curves()
    total = rows[0] if len(rows) == 1 else row_of(everything, {}, curves)
    section.text.append(
        "From submission (where that is unknown, registration) to done. Elevate gives no times, so each figure is a "
        "pair: at least so long, and at most. They are estimates (Kaplan–Meier): a job that is not done counts as at "
        "least as old as when it was last seen not done, and leaves the curve there, also a failed, lost or attested "
        "one. So where many fail, the curve is that of jobs that do not, and lies above the share that is done. "
        "Withdrawn jobs are left out."
    )
    end = max((*early.ends[-1:], *sure.ends[-1:]), default=0.0) * 1.03
    end = max(end, max(everything.unended, default=0.0) if not early.ends else 0.0, 60.0)
    done = total.median
    if done.seconds_min is None:
        words = "The estimate does not reach half."
    elif done.seconds_max is None:
        words = f"Estimated: half are done after {human(done.seconds_min)} at the earliest."
    else:
        latest = human(done.seconds_max, up=True)
        words = f"Estimated: half are done after {human(done.seconds_min)} at the earliest, {latest} at the latest."
    title = "Estimated share of jobs done, by time since submission"
    svg = pictures.completion("curve", title, words, pictures.Band(_steps(sure), _steps(early), end))
    legend = [("band", "between the two bounds: what the observations leave open")]
    section.pictures.append(Picture(svg, f"{title}. {words}", legend))
    section.tables.append(_curve_table(sure, early, end))
    # These are rare, and there is little room: a column only where there are any.
    rare = [name for name in ("failed", "lost", "attested", "withdrawn") if getattr(total, name)]
    section.tables.append(
        _table(
            "By this time half (median), nine tenths (p90), nineteen twentieths (p95) and all are done, estimated",
            ", ".join(("cluster, kind, jobs, median, p90, p95, max, done, open", *rare)),
            [_duration_row(row, rare) for row in ([*rows, total] if len(rows) > 1 else rows)],
        )
    )
    return [section, _late(rows, total.registered)]


def _duration_row(row: Quantiles, rare: Sequence[str]) -> list[Cell]:
    counts = [row.done, row.open, *(getattr(row, name) for name in rare)]
    quantiles = [_bounds(pair) for pair in (row.median, row.p90, row.p95, row.max)]
    return [_text(row.cluster or "all"), _text(row.kind or "all"), _number(row.jobs), *quantiles, *map(_number, counts)]


def _steps(curve: Curve) -> pictures.Steps:
    return pictures.Steps(curve.ends, lambda at: 1 - curve.left(at))


def _curve_table(sure: Curve, early: Curve, end: float) -> Table:
    """Return the figures of the picture at round times."""
    step = next(s for s in (60, 300, 900, 3600, 3 * 3600, 6 * 3600, *(86400 * n for n in (1, 2, 5, 10, 30, 100, 365))
                            ) if end / s <= 12 or s == 365 * 86400)  # fmt: skip
    times = [i * step for i in range(1, ceil(end / step) + 1)]

    # Where the curves cross (see durations), the pair is put in order, as the quantiles are.
    rows = []
    for at in times:
        least, most = sorted((1 - sure.left(at), 1 - early.left(at)))
        rows.append([Cell(human(at)), _percent(least, 1), _percent(most, 1, up=True)])
    caption = "Estimated share of jobs done by then (Kaplan–Meier)"
    return _table(caption, "time since submission, at least, at most", rows)


def _late(rows: Sequence[Quantiles], total: Lateness) -> Section:
    """How late registrations came: only from then on is a job followed."""
    section = Section("registrations", "How late registrations came")
    section.text.append(
        "A job is followed from its registration on. What Elevate did with it before that, nobody saw: the later it is "
        "registered, the wider its bounds. Counted from the declared submission; jobs without one are left out."
    )
    if not total.jobs:
        section.empty = "No job has a declared time of submission."
        return section
    section.text.append(
        f"Registered more than a day after submission: {total.over_a_day:,}. Without a declared submission: "
        f"{total.unknown:,}."
    )
    late = [(row, row.registered) for row in rows if row.registered.jobs]
    section.tables.append(
        _table(
            "Registered so long after submission (nearest rank)",
            "cluster, kind, jobs, median, p95, max",
            (
                [
                    *(_text(row.cluster), _text(row.kind), _number(its.jobs)),
                    *(_seconds(rank, up=True) for rank in (its.median, its.p95, its.max)),
                ]
                for row, its in late
            ),
        )
    )
    return section


_WAYS_OUT: Final = {
    (State.OPEN, "overdue"): "tell the colleague who answers the person; tracker jobs --past-deadline",
    (State.OPEN, "undecidable"): "tracker poll JID asks now",
    (State.FAILED, "overdue"): "submit it again, add the new jid, withdraw the old",
    (State.FAILED, "pending"): "submit it again, add the new jid, withdraw the old",
    (State.LOST, "undecidable"): "check jid and cluster, then reopen or withdraw",
}
_GRAVITY: Final = ("overdue", "undecidable", "missed", "pending", "attested", "withdrawn", "met")


def _verdicts(data: _Data) -> Section:
    section = Section("person", "What needs a person")
    j = _JOBS.c
    query = sa.select(j.state, j.verdict, sa.func.count())
    counted = {(State(row[0]), row[1]): row[2] for row in data.rows(query.group_by(j.state, j.verdict))}
    order = sorted(counted, key=lambda key: (key not in _WAYS_OUT, _GRAVITY.index(key[1]), key[0]))
    needed = sum(counted[key] for key in order if key in _WAYS_OUT)
    if not counted:
        section.empty = "No registered job is like that."
        return section
    if needed:
        section.text.append(f"{needed:,} job{' needs' if needed == 1 else 's need'} somebody to decide or to act.")
    else:
        section.text.append("No job needs anybody.")
    rows = [
        [
            Cell(verdict),
            Cell(state),
            _number(counted[state, verdict]),
            Cell(verdict_meaning(verdict, state)),
            _text(_WAYS_OUT.get((state, verdict), "nothing")),
        ]
        for state, verdict in order
    ]
    caption = "Jobs by verdict on the legal deadline, and what is to be done"
    section.tables.append(_table(caption, "verdict, state, jobs, it says, to do", rows))
    return section


_ORDER: Final = (None, Status.CREATED, Status.STARTED, Status.WAITING, Status.RUNNING, Status.NOT_FOUND)


def _in_flight(data: _Data) -> list[Section]:
    section = Section("statuses", "Jobs in flight")
    section.text.append(
        "Open jobs by the status that Elevate last reported, as it was known at each time: a change is counted when it "
        "was observed."
    )
    counts = _counts_over_time(data)
    if counts is None:
        section.empty = "No registered job is like that."
        return [section, _stays(data)]
    times, by_status = counts
    most: Counter[str | None] = Counter({status: max(values) for status, values in by_status.items()})
    known = [status for status in _ORDER if status in by_status and most[status]]
    foreign = sorted((s for s in by_status if s not in _ORDER and most[s]), key=lambda s: (-most[s], s or ""))
    series: list[tuple[int, str, list[int]]] = [
        (_ORDER.index(status), "not answered yet" if status is None else str(status), by_status[status])
        for status in known
    ]
    if foreign:
        rest = [sum(values) for values in zip(*(by_status[status] for status in foreign), strict=True)]
        name = foreign[0] if len(foreign) == 1 and foreign[0] else f"{len(foreign)} unknown statuses"
        name = plain(str(name))
        series.append((len(_ORDER), name if len(name) <= 40 else f"{name[:39]}…", rest))
    total = [sum(values) for values in zip(*(values for *_, values in series), strict=True)] or [0] * len(times)
    words = f"{total[-1]:,} open at the end; at most {max(total):,} at once."
    svg = pictures.layers(
        "flight", "Open jobs over time, by status", words, times, [(colour, values) for colour, _, values in series]
    )
    legend = [(f"s{colour}", name) for colour, name, _ in series]
    section.pictures.append(Picture(svg, f"Open jobs over time, by status. {words}", legend))
    columns = [("at the end of", False), *((name, False) for _, name, _ in series), ("open", False)]
    rows = [
        [_short_time(at, times), *(_number(values[i]) for *_, values in series), _number(total[i])]
        for i, at in reversed(list(enumerate(times)))
    ]
    section.tables.append(Table("Open jobs over time, by status; newest first", columns, rows))
    return [section, _stays(data)]


def _stays(data: _Data) -> Section:
    """How long jobs were in each status. Lengths are of stays that are over: others would make them too rosy."""
    section = Section("stays", "Time in each status")
    section.text.append(
        "The stays of jobs in each status that was seen, and how long those lasted that are over. Elevate gives no "
        "times, so each figure is a pair: at least so long, and at most. A stay of which nobody knows how long before "
        "the first answer it began (the submission is unknown) is not bounded, and left out of mean and longest."
    )
    # By cluster and kind, too, a million jobs take SQLite five seconds more: it sorts what it groups.
    s = _STAYS.c
    is_over = s.left_by.is_not(None)
    lengths = [sa.case((is_over, seconds)).label(seconds.name) for seconds in (s.seconds_min, s.seconds_max)]
    # With OFFSET 0 the databases do not compute the seconds again for each figure.
    stays = sa.select(s.status, *lengths).offset(0).subquery().c
    bounded = stays.seconds_max.is_not(None)
    query = (
        sa.select(
            *(stays.status, sa.func.count().label("stays"), sa.func.count(stays.seconds_min).label("over")),
            sa.func.count(stays.seconds_max).label("bounded"),
            sa.func.avg(stays.seconds_min).filter(bounded).label("mean_min"),
            sa.func.avg(stays.seconds_max).label("mean_max"),
            sa.func.max(stays.seconds_min).filter(bounded).label("longest_min"),
            sa.func.max(stays.seconds_max).label("longest_max"),
            sa.func.count().over().label("groups"),
        )
        .group_by(stays.status)
        .order_by(sa.func.count().desc(), stays.status)
        .limit(LIMIT)
    )
    found = list(data.rows(query))
    if not found:
        section.empty = "Elevate has reported no status yet."
        return section
    rows = [
        [
            _code(row.status),
            *(_number(number) for number in (row.stays, row.over, row.bounded)),
            *(_length(row.mean_min, row.mean_max), _length(row.longest_min, row.longest_max)),
        ]
        for row in sorted(found, key=lambda row: _place(row.status))
    ]
    head = "status, stays, over, of those bounded, mean, longest"
    more = _more(len(rows), found[0].groups, "those with the most stays", "tracker report statuses")
    section.tables.append(_table("Stays in each status, and how long those lasted that are over", head, rows, more))
    return section


def _length(least: float | None, most: float | None) -> Cell:
    """Return both bounds of a figure, to the microsecond: a mean of floats is not exact."""
    if least is None or most is None:
        return _NONE
    return _bounds(Bounds(round(least, 6), round(most, 6)))


def _place(status: str) -> tuple[int, str]:
    """Return where a status stands among the others: as jobs go through them, what nobody documented last."""
    words = [*Status]
    return words.index(Status(status)) if status in words else len(words), status


def _short_time(at: datetime, times: Sequence[datetime]) -> Cell:
    return Cell(at.strftime("%Y-%m-%d %H:%M"), at=at.isoformat())


def _counts_over_time(data: _Data) -> tuple[list[datetime], dict[str | None, list[int]]] | None:
    """Return instants and, by status, how many jobs were open in it then; None: no job."""
    t = _STEPS.c
    theirs: list[sa.ColumnElement[bool]] = []
    if data.filters != Filters():
        theirs.append(t.job_id.in_(sa.select(sa.column("id")).select_from(sa.table("jobs"))))
    since = data.value(sa.select(sa.func.min(_JOBS.c.registered_at, type_=UtcDateTime())))  # its first transition's
    if since is None:
        return None
    hourly = data.at - since <= timedelta(days=10)
    length = 13 if hourly else 10
    if data.connection.dialect.name == "sqlite":
        bucket = sa.func.substr(t.observed_at, 1, length, type_=sa.String())
    else:
        bucket = sa.func.to_char(t.observed_at, "YYYY-MM-DD HH24" if hourly else "YYYY-MM-DD", type_=sa.String())
    query = (
        sa.select(bucket, t.from_state, t.from_status, t.to_state, t.to_status, sa.func.count())
        .where(t.action != Action.AMENDED, *theirs)
        .group_by(bucket, t.from_state, t.from_status, t.to_state, t.to_status)
    )
    changes: defaultdict[datetime, Counter[str | None]] = defaultdict(Counter)
    step = timedelta(hours=1) if hourly else timedelta(days=1)
    for text, from_state, from_status, to_state, to_status, number in data.rows(query):
        at = datetime.strptime(text, "%Y-%m-%d %H" if hourly else "%Y-%m-%d").replace(tzinfo=UTC) + step
        if from_state == State.OPEN:
            changes[at][from_status] -= number
        if to_state == State.OPEN:
            changes[at][to_status] += number
    first = min(changes) - step
    buckets = max(1, ceil((data.at - first) / step))
    every = ceil(buckets / (POINTS - 1))
    times = [first + i * every * step for i in range((buckets - 1) // every + 1)]
    if len(times) > 1 and data.at - times[-1] < every * step / 2:
        times.pop()
    times.append(data.at)
    now: Counter[str | None] = Counter()
    pending = sorted(changes)
    found: list[Counter[str | None]] = []
    for at in times:
        while pending and (pending[0] <= at or at == data.at):
            for status, number in changes[pending.pop(0)].items():
                now[status] += number
        found.append(now.copy())
    statuses = {status for each in found for status in each}
    return times, {status: [each[status] for each in found] for status in statuses}


def _monthly(data: _Data) -> list[Section]:
    section = Section("monthly", "Month by month")
    m = _MONTHLY.c
    query = sa.select(_MONTHLY).order_by(m.month.desc(), m.cluster, m.kind)
    rows = list(data.rows(query))
    if not rows:
        section.empty = "No registered job is like that."
        return [section]
    section.text.append(
        "By the month of submission (where that is unknown, of registration). For how long jobs took see Durations."
    )
    head = "month, cluster, kind, submitted, open, done, failed, lost, attested, withdrawn, "
    head += "within 1 d, within 7 d, within 14 d, met, missed, undecidable, pending, overdue"
    names = head.split(", ")[4:10]
    within = ["done_within_1d", "done_within_7d", "done_within_14d"]
    section.tables.append(
        _table(
            "Jobs by month of submission, newest first",
            head,
            [
                [
                    Cell(row.month, at=row.month),
                    _text(row.cluster),
                    _text(row.kind),
                    _number(row.submitted),
                    *(_number(getattr(row, name)) for name in (*names, *within)),
                    *(_number(getattr(row, name)) for name in head.split(", ")[13:]),
                ]
                for row in rows[:LIMIT]
            ],
            _more(min(LIMIT, len(rows)), len(rows), "newest first", "tracker report monthly"),
        )
    )
    return [section]


def _deadlines(data: _Data) -> list[Section]:
    section = Section("deadlines", "Deadlines")
    j = _JOBS.c
    section.text.append(
        "One calendar month after the request was received (where that is unknown, after submission, else after "
        f"registration). {MET}"
    )
    total = data.jobs
    if not total:
        section.empty = "No registered job is like that."
        return [_verdicts(data), section]
    _draw_ahead(data, section)
    unsettled = j.state.in_(UNSETTLED)
    urgent = (
        sa.select(j.cluster, j.jid)
        .order_by(
            sa.case((unsettled, 0), else_=1),
            sa.case((unsettled, j.deadline_on)).nulls_last(),
            j.ended_by.desc().nulls_last(),
            j.registered_at.desc(),
            j.cluster,
            j.jid,
        )
        .limit(LIMIT)
    )
    keys = [(row.cluster, row.jid) for row in data.rows(urgent)]
    d = _DEADLINES.c
    by = {
        (row.cluster, row.jid): row
        for row in data.rows(sa.select(_DEADLINES).where(d.jid.in_(sorted({jid for _, jid in keys}))))
    }
    section.tables.append(
        _table(
            "Legal deadlines, the most urgent first",
            "job, verdict, state, last day, days left, kind, reference, cluster, counted from, received, extended to, "
            "done after, done by",
            [
                [
                    _code(row.jid),
                    _text(row.verdict),
                    _text(row.state),
                    _day(row.deadline_on),
                    _number(row.days_left),
                    _text(row.kind),
                    _code(row.reference),
                    _text(row.cluster),
                    _text(row.basis),
                    _instant(row.received_at),
                    _day(row.extended_on),
                    _instant(row.done_after),
                    _instant(row.done_by),
                ]
                for row in (by[key] for key in keys if key in by)
            ],
            _more(len(keys), total, "the most urgent first", "tracker report deadlines"),
        )
    )
    return [_verdicts(data), section]


def _draw_ahead(data: _Data, section: Section) -> None:
    """Draw the deadlines of jobs for which somebody still waits: those that are past, and the next 31 days."""
    j = _JOBS.c
    query = (
        sa.select(j.deadline_on, j.verdict, sa.func.count())
        .where(j.state.in_(UNSETTLED), j.deadline_on.is_not(None))
        .group_by(j.deadline_on, j.verdict)
    )
    today = data.at.astimezone(data.zone).date()  # as deadline_on, a day of the legal time zone
    past, later, ahead = 0, 0, Counter[date]()
    for on, verdict, number in data.rows(query):
        if verdict != "pending" and on < today:
            past += number
        elif on > today + AHEAD:
            later += number
        else:
            ahead[on] += number
    first = min([*ahead, today])
    days = [first + timedelta(days=i) for i in range((today + AHEAD - first).days + 1)]
    items = [("past", past, True), *((day.strftime("%d %b"), ahead[day], False) for day in days)]
    words = f"{past:,} past, {sum(ahead.values()):,} within the next 31 days, {later:,} later."
    title = "Unfinished jobs by the last day of their deadline"
    section.pictures.append(Picture(pictures.bars("ahead", title, words, items), f"{title}. {words}"))
    rows = [[Cell("past"), _number(past)], *([_day(day), _number(ahead[day])] for day in days if ahead[day])]
    if later:
        rows.append([Cell("later"), _number(later)])
    section.tables.append(_table(f"{title}: open, failed and lost ones", "last day, jobs", rows))


def _requests(data: _Data) -> list[Section]:
    section = Section("requests", "Requests")
    j, r = _JOBS.c, _REQUESTS.c
    total = data.value(sa.select(sa.func.count(sa.distinct(j.reference))).where(j.reference.is_not(None)))
    if not total:
        section.empty = "No job has a reference, which groups the jobs of one person's request."
        return [section]
    unfinished = sa.and_(r.done_by.is_(None), r.verdict.not_in(("attested", "withdrawn")))
    query = (
        sa.select(_REQUESTS)
        .order_by(
            sa.case((unfinished, 0), else_=1), r.deadline_on.nulls_last(), r.done_by.desc().nulls_last(), r.reference
        )
        .limit(LIMIT)
    )
    section.text.append(
        "The jobs of one person's request, an export and a removal for instance, share a reference, and stand side by "
        "side. The verdict is the worst of its jobs."
    )
    requests = list(data.rows(query))
    its = _jobs_of(data, [row.reference for row in requests])
    rows = [
        [
            _code(row.reference),
            Cell(its[row.reference]),
            _number(row.jobs),
            _number(row.open),
            _number(row.done),
            _number(row.not_done),
            _text(row.verdict),
            _day(row.deadline_on),
            _instant(row.received_at),
            _instant(row.done_after),
            _instant(row.done_by),
        ]
        for row in requests
    ]
    head = "reference, its jobs, jobs, open, done, not done, verdict, last day, received, done after, done by"
    more = _more(len(rows), total, "unfinished ones first", "tracker report requests")
    section.tables.append(_table("Requests, the most urgent first", head, rows, more))
    return [section]


def _jobs_of(data: _Data, references: Sequence[str]) -> dict[str, str]:
    """Return for each reference in words which jobs it has and how they stand: "export done, removal open"."""
    j = _JOBS.c
    query = sa.select(j.reference, j.kind, j.state, sa.func.count()).where(j.reference.in_(references))
    query = query.group_by(j.reference, j.kind, j.state)
    kinds, states = [*Kind], [*State]
    told: defaultdict[str, list[str]] = defaultdict(list)
    for reference, kind, state, number in sorted(
        data.rows(query), key=lambda row: (kinds.index(row.kind), states.index(row.state))
    ):
        told[reference].append(f"{kind} {state}" if number == 1 else f"{number:,} {kind} {state}")
    return {reference: ", ".join(words) for reference, words in told.items()}


def _anomalies(data: _Data) -> list[Section]:
    section = Section("anomalies", "Anomalies")
    a = _ANOMALIES.c
    counts = sa.select(a.anomaly, sa.func.count()).group_by(a.anomaly).order_by(a.anomaly)
    counted = [(Anomaly(row[0]), row[1]) for row in data.rows(counts)]
    if not counted:
        section.empty = "Elevate has answered nothing that surprises."
        return [section]
    section.tables.append(
        _table(
            "Anomalies by kind",
            "anomaly, number, it means",
            [[Cell(anomaly), _number(number), Cell(ANOMALIES[anomaly])] for anomaly, number in counted],
        )
    )
    query = sa.select(_ANOMALIES).order_by(a.id.desc()).limit(LIMIT)
    rows = [
        [
            _code(row.jid),
            _text(row.cluster),
            _text(row.kind),
            _text(row.anomaly),
            _code(row.from_status),
            _code(row.to_status),
            _instant(row.observed_at),
        ]
        for row in data.rows(query)
    ]
    more = _more(len(rows), sum(number for _, number in counted), "newest first", "tracker report anomalies")
    head = "job, cluster, kind, anomaly, from, to, observed"
    section.tables.append(_table("Anomalies, newest first", head, rows, more))
    return [section]


def _gaps(data: _Data) -> list[Section]:
    section = Section("gaps", "Gaps")
    section.text.append(
        "Stretches in which nothing could be observed of a cluster: bounds that span one are wide. That no daemon ran "
        "is on record only once one runs again."
    )
    f, rows = data.filters, data.gaps()
    if not rows:
        section.empty = "No gap is on record."
        return [section]
    by: defaultdict[str, list[Any]] = defaultdict(list)
    for row in rows:
        by[row.cluster].append(row)
    longest = {name: _unobserved(its, data.at) for name, its in by.items()}
    began = f.since or min(row.began_at for row in rows)
    ended = min(f.until, data.at) if f.until is not None else data.at
    shown = sorted(sorted(longest, key=lambda name: (-longest[name], name))[:LINES])
    lines = []
    for name in shown:
        spans = [
            pictures.Span(
                max((row.began_at - began).total_seconds(), 0.0),
                (min(row.ended_at or data.at, ended) - began).total_seconds(),
                bool(row.is_open),
                f"{row.began_at:%Y-%m-%d %H:%M} {row.cause} {human(float(row.seconds))}",
            )
            for row in by[name]
        ]
        lines.append((plain(name), spans))
    unobserved = sum(longest.values())
    still = sum(bool(row.is_open) for row in rows)
    words = f"{len(rows):,} gap{'' if len(rows) == 1 else 's'}, {human(unobserved)} in all; {still} still open."
    title = "Gaps by cluster"
    legend = [("gap", "nothing observed"), *([("gap open", "still so")] if still else [])]
    svg = pictures.timeline("gaps-line", title, words, began, ended, lines)
    section.pictures.append(Picture(svg, f"{title}. {words}", legend))
    section.tables.append(
        _table(
            "Gaps, newest first",
            "began, cluster, ended, length, cause, detail, open jobs",
            [
                [
                    _instant(row.began_at),
                    _text(row.cluster),
                    Cell("still open") if row.is_open else _instant(row.ended_at),
                    _seconds(row.seconds),
                    _text(row.cause),
                    _text(row.detail),
                    _number(row.open_jobs),
                ]
                for row in rows[:LIMIT]
            ],
            _more(min(LIMIT, len(rows)), len(rows), "newest first", "tracker report gaps"),
        )
    )
    return [section]


def _unobserved(gaps: Sequence[Any], at: datetime) -> float:
    """Return how many seconds *gaps*, those of one cluster, last in all at *at*; where they overlap, once."""
    lasted, reached = timedelta(), datetime.min.replace(tzinfo=UTC)
    for began_at, ended_at in sorted((gap.began_at, gap.ended_at or at) for gap in gaps):
        lasted += max(ended_at - max(began_at, reached), timedelta())
        reached = max(reached, ended_at)
    return lasted.total_seconds()


_SHARES: Final = (0.5, 0.9, 0.99, 0.999)
_BANDS: Final = ("less than 50 %", "50 % to 90 %", "90 % to 99 %", "99 % to 99.9 %", "99.9 % and more, not all")
"""Between these shares of a job's life."""


def _coverage(data: _Data) -> list[Section]:
    section = Section("coverage", "Coverage")
    section.text.append(
        "Which share of each job's life, from its registration to its end or now, was observed, and the longest "
        "stretch in which it was not. What no gap on record of its cluster covers counts as observed."
    )
    total = data.jobs
    if not total:
        section.empty = "No registered job is like that."
        return [section]
    counted: Counter[str] = Counter()
    least: list[tuple[float, str, str, float]] = []  # a heap of those with the least share
    c = _COVERAGE.c
    # Most jobs saw no gap: those need not leave the database.
    seen = sa.select(c.cluster, c.jid, c.covered_share, c.longest_unobserved_seconds).offset(0).subquery()
    query = sa.select(seen).where(seen.c.covered_share < 1)  # with OFFSET 0 the share is computed once, not twice
    for cluster, jid, covered, unobserved in data.rows(query):
        counted[_BANDS[bisect_right(_SHARES, covered)]] += 1
        if len(least) < LIMIT:
            heappush(least, (-covered, cluster, jid, unobserved))
        elif covered <= -least[0][0]:
            heappushpop(least, (-covered, cluster, jid, unobserved))
    gapped = counted.total()
    counted["all of it"] = total - gapped
    section.tables.append(
        _table(
            "Jobs by the share of their life that was observed",
            "share, jobs",
            [[Cell(words), _number(counted[words])] for words in ("all of it", *reversed(_BANDS)) if counted[words]],
        )
    )
    if gapped:
        rows = [
            [_code(jid), _text(cluster), _percent(-share, 2), _seconds(unobserved, up=True)]
            for share, cluster, jid, unobserved in sorted(least, key=lambda one: (-one[0], -one[3], one[1], one[2]))
        ]
        more = _more(len(rows), gapped, "the least observed first", "tracker report coverage")
        head = "job, cluster, observed, longest unobserved"
        section.tables.append(_table("Jobs with a gap in their life, the least observed first", head, rows, more))
    return [section]


_SECTIONS: Final[dict[str, Callable[[_Data], list[Section]]]] = {
    "deadlines": _deadlines,
    "durations": _durations,
    "statuses": _in_flight,
    "monthly": _monthly,
    "requests": _requests,
    "anomalies": _anomalies,
    "gaps": _gaps,
    "coverage": _coverage,
}
NAMES: Final = tuple(_SECTIONS)
"""The reports that are on the page, in its order."""
