"""The reports as a page: one file of HTML, without a script or a request, to be read, printed or served.

Owns which sections are on the page, in which order, and how many rows each has; the database cuts them off, so that a
million jobs make no longer a page than a hundred. What needs a person is ``needs``', what a column means is the views',
the rows are ``tables``', the curves ``durations``', the shapes ``pictures``', the look is in ``templates/``. The same
data and as-of time give the same bytes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from math import ceil
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from markupsafe import Markup, escape

from tracker import database
from tracker.needs import ClusterOverview, Need, Overview, needs
from tracker.reports import catalog, pictures, tables, words
from tracker.reports.about import Filters
from tracker.reports.as_of import LEGAL_ZONE, AsOf, instant, kept, shadows
from tracker.reports.durations import Bounds, Quantiles, cohorts_of, row_of
from tracker.reports.survival import Curve
from tracker.reports.words import human, plain
from tracker.status import UNSETTLED, State
from tracker.utc import UtcDateTime

if TYPE_CHECKING:
    from jinja2 import Template

LIMIT: Final = 50
"""Rows of a table: the commands list all."""
POINTS: Final = 60
"""Instants at which jobs in flight are counted, at most."""
RECENT: Final = timedelta(days=90)
"""How far back the sections of gaps and coverage look where no times are asked for: each of their rows reads many."""
AHEAD: Final = 31
"""Deadlines are drawn for this many days ahead: no legal month is longer."""

NAMES: Final = ("deadlines", "requests", "changes", "durations", "statuses", "monthly", "anomalies", "gaps", "coverage")
"""The reports that are on the page, in its order."""

_SECOND: Final = "%Y-%m-%d %H:%M:%S"
_DECLARED: Final = frozenset(("received_at", "submitted_at", "extended_on", "claimed_at"))
"""Columns that people declared; they were not observed."""
_CODE: Final = frozenset(("jid", "reference", "status", "from_status", "to_status"))
"""Columns that are shown as code."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: As it is shown.
        kind: ``number``, ``code``, ``time``, or empty: words.
        at: Of a time, the whole instant or the day.
    """

    text: str
    kind: str = ""
    at: str = ""

    @property
    def is_long(self) -> bool:
        """It has a word that may be broken to fit."""
        return any(len(word) > 24 for word in self.text.split())


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of the page.

    Attributes:
        caption: What is in it.
        headings: Of its columns.
        rows: The first cell of each is its heading.
        more: Which rows are left out, and which command lists them.
    """

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    more: str = ""

    def is_number(self, column: int) -> bool:
        """Return whether a column, counted from 0, has numbers: its heading is on the right, too."""
        return any(row[column].kind == "number" for row in self.rows)


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawing.

    Attributes:
        svg: Its shapes.
        caption: What it shows, in words.
        legend: What its colours mean: (class, word).
    """

    svg: Markup
    caption: str
    legend: Sequence[tuple[str, str]] = ()


@dataclass(slots=True)
class Section:
    """A part of the page."""

    name: str
    title: str
    texts: list[str] = field(default_factory=list)
    needs: list[Need] = field(default_factory=list)
    picture: Picture | None = None
    grids: list[Grid] = field(default_factory=list)


def render(
    connection: sa.Connection,
    filters: Filters = Filters(),  # noqa: B008 - it is frozen
    *,
    as_of: AsOf = None,
    zone: ZoneInfo = LEGAL_ZONE,
    names: Collection[str] | None = None,
    overview: Overview | None = None,
) -> str:
    """Return the page.

    Args:
        connection: In a transaction that sees one state of the database throughout (`tracker.database.reading`).
        filters: Which jobs it is about.
        as_of: What could be known then (aware), or what a checkpoint closed; default: now, by the database's clock.
        zone: The legal time zone (setting ``timezone``) of clusters that have no source yet.
        names: Of the reports (`NAMES`) that are on it; default all.
        overview: The present state, read on *connection*; None: the page says that it lacks this.

    Raises:
        InvalidField: *as_of* is in the future.
        DatabaseUnavailable: The database did not answer.
    """
    wanted = NAMES if names is None else tuple(names)
    with kept(connection, as_of, zone) as is_kept:
        data = _Data(connection, filters, as_of, zone, is_kept)
        sections = [] if names is not None else _now(data, overview)
        sections += [
            (_durations(data) if name == "durations" else _report(data, name)) for name in NAMES if name in wanted
        ]
    jobs = sum(data.jobs.values())
    states = {state: sum(n for (its, _), n in data.jobs.items() if its is state) for state in State}
    return _template().render(
        title="GDPR jobs" if len(wanted) > 1 else f"GDPR jobs: {wanted[0]}",
        as_of=_cell("as_of", data.at),
        is_past=as_of is not None,
        jobs=f"{jobs:,} job{'' if jobs == 1 else 's'}",
        states=", ".join(f"{states[state]:,} {state}" for state in State if states[state]),
        filters=filters.in_words(),
        sections=sections,
        version=version("tracker"),
    )


@cache
def _template() -> Template:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    folder = files(__package__).joinpath("templates")

    def source(name: str) -> str:
        return folder.joinpath(name).read_text(encoding="utf-8")

    environment = Environment(
        loader=FunctionLoader(source), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["code"] = _with_code
    environment.globals["style"] = Markup(source("page.css"))  # noqa: S704 - ours
    return environment.get_template("page.html")


def _with_code(text: str) -> Markup:
    """Return *text* as HTML, with the words between backticks as code."""
    parts = plain(text).split("`")
    marked = (Markup("<code>{}</code>").format(part) if i % 2 else escape(part) for i, part in enumerate(parts))
    return Markup("").join(marked)


# -- what the sections read ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Data:
    """The database as the sections see it: as if there were no other jobs than those asked for, now or then."""

    connection: sa.Connection
    filters: Filters
    as_of: AsOf
    zone: ZoneInfo
    is_kept: bool
    at: datetime = field(init=False)
    jobs: dict[tuple[State, str], int] = field(init=False)  # how many there are, by state and verdict

    def __post_init__(self) -> None:
        self.at = instant(self.as_of) or database.now(self.connection)
        rows = self.count("report_jobs", sa.column("state"), sa.column("verdict"))
        self.jobs = {(State(state), verdict): number for state, verdict, number in rows}

    def ctes(self, *views: str) -> tuple[sa.CTE, ...]:
        """Return what a query that reads *views* needs (`tracker.reports.as_of.shadows`)."""
        return shadows(self.connection, self.filters, self.as_of, self.zone, *views, is_kept=self.is_kept)

    def count(
        self, view: str, *columns: sa.ColumnElement[Any], where: Sequence[sa.ColumnElement[bool]] = ()
    ) -> Sequence[Sequence[Any]]:
        """Return how many rows of *view* have each combination of *columns*: their values and the number."""
        query = sa.select(*columns, sa.func.count()).select_from(sa.table(view)).where(*where).group_by(*columns)
        return self.connection.execute(query.add_cte(*self.ctes(view))).all()


# -- cells ---------------------------------------------------------------------------------------------------------


def _cell(name: str, value: Any) -> Cell:
    """Return a value of the column *name* as it is shown."""
    match text := catalog.shown(name, value):
        case None:
            return Cell("–")
        case datetime():
            at = text.astimezone(UTC)
            return Cell(f"{at:{_SECOND}}", "time", at.isoformat(timespec="microseconds"))
        case date():
            return Cell(text.isoformat(), "time", text.isoformat())
        case str():
            return Cell(plain(text), "code" if name in _CODE else "" if isinstance(value, str) else "number")
    if "seconds" in name:
        return Cell(human(float(text), up="max" in name or "longest" in name), "number")
    return _number(text)


def _number(value: int) -> Cell:
    return Cell(f"{value:,}", "number")


def _bounds(pair: Bounds) -> Cell:
    """Return both bounds of a duration as one cell."""
    if pair.seconds_min is None:
        return Cell("not reached")
    low = human(pair.seconds_min)
    if pair.seconds_max is None:
        return Cell(f"{low} or more", "number")
    high = human(pair.seconds_max, up=True)
    return Cell(low if low == high else f"{low} to {high}", "number")


# -- what needs a person, daemons and clusters ---------------------------------------------------------------------


def _now(data: _Data, overview: Overview | None) -> list[Section]:
    """Return the sections about needs, daemons and clusters."""
    section = Section("needs", "What needs a person")
    if overview is None:
        why = "This page covers only some of the jobs, or was made without the settings."
        if data.as_of is not None:
            why = "It is not stored which daemons ran and what needed a person at an earlier time."
        section.texts.append(f"{why} `tracker status` shows what needs a person now.")
        return [section]
    section.needs = needs(overview)
    if not section.needs:
        begin = "" if data.jobs else " No job is registered yet: `tracker add JID` registers one."
        section.texts.append(f"Nothing needs a person.{begin}")
    overall = Section("clusters", "Daemons and clusters")
    for one in overview.daemons:
        times = f"started {one.started_at:{_SECOND}}, last alive {one.beat_at:{_SECOND}}"
        overall.texts.append(f"A daemon is running: {one.host}:{one.pid}, version {one.version}, {times}.")
    if not overview.daemons:
        last = overview.last_beat_at
        was = f"The last one was alive at {last:{_SECOND}}." if last else "No daemon has run on this database."
        overall.texts.append(f"No daemon is running. {was}")
    seals = overview.seals
    if seals.sealed_at is not None:
        name = f"checkpoint {seals.number}" if seals.number is not None else "a damaged checkpoint"
        rest = f"; newer rows that are not sealed: {seals.unsealed:,}" if seals.unsealed else ""
        overall.texts.append(f"The history is sealed up to {name} of {seals.sealed_at:{_SECOND}}{rest}.")
    if overview.clusters:
        headings = ("cluster", "open", "late polls", "last answer", "paused until", "no answers since", "next deadline")
        overall.grids.append(Grid("Clusters", headings, [_cluster(one) for one in overview.clusters]))
    return [section, overall]


def _cluster(one: ClusterOverview) -> list[Cell]:
    paused, gap = _cell("paused_until", one.paused_until), _cell("gap_began_at", one.gap_began_at)
    if one.pause_cause is not None:
        until = paused.text if one.paused_until else "an operator resumes it"
        paused = Cell(f"{until} ({one.pause_cause})")
    if one.gap_cause is not None:
        gap = Cell(plain(f"{gap.text} ({one.gap_cause}{f': {one.gap_detail}' if one.gap_detail else ''})"))
    return [
        *(Cell(plain(one.cluster)), _number(one.open), _number(one.polls_behind)),
        *(_cell("answered_at", one.answered_at), paused, gap, _cell("next_deadline_on", one.next_deadline_on)),
    ]


# -- the reports ---------------------------------------------------------------------------------------------------


def _report(data: _Data, name: str) -> Section:
    """Return the section of the report *name*: its first rows and its picture."""
    report = catalog.ALL[name]
    filters, texts = data.filters, [report.help]
    has_times = filters.since is not None or filters.until is not None
    if name == "changes" and not has_times:
        filters = replace(filters, since=data.at - timedelta(days=1))
    if name in ("gaps", "coverage") and not has_times:
        filters = replace(filters, since=data.at - RECENT)
        which = "Gaps" if name == "gaps" else "Jobs submitted"
        texts.append(f"{which} in the last {RECENT.days} days; `tracker report {name}` has all.")
    made = tables.read(
        data.connection, name, filters, as_of=data.as_of, zone=data.zone, most=LIMIT, is_kept=data.is_kept
    )
    places = [made.columns.index(column.name) for column in report.columns]
    rows = [[_cell(made.columns[place], row[place]) for place in places] for row in made.rows]
    section = Section(name, report.title, texts)
    if data.jobs and name in _DRAWN:
        section.picture = _DRAWN[name](data)
    if data.jobs and name == "deadlines":
        section.grids.append(_verdicts(data))
    if rows and name == "changes":
        counts = tables.changes(data.connection, filters, as_of=data.as_of, zone=data.zone)
        cells = [[Cell(plain(cluster)), Cell(kind), *map(_number, numbers)] for cluster, kind, *numbers in counts]
        section.grids.append(Grid("Jobs by what happened", ["cluster", "kind", *catalog.COUNTED], cells))
    if rows:
        more = f"Only the first {LIMIT} rows are shown. `tracker report {name} --format csv` has all."
        headings = [_heading(column) for column in report.columns]
        section.grids.append(Grid(report.title, headings, rows, more if made.has_more else ""))
    else:
        section.texts.append(_NOTHING)
    return section


_NOTHING: Final = "There is nothing to report."


def _heading(column: catalog.Column) -> str:
    heading = column.heading or column.name.replace("_", " ")
    return f"{heading} (declared)" if column.name in _DECLARED else heading


def _durations(data: _Data) -> Section:
    section = Section("durations", "How long jobs take")
    by = cohorts_of(data.connection, Filters(), data.ctes("report_durations", "report_jobs"))
    rows = [row_of(by[key], dict(zip(("cluster", "kind"), key, strict=True))) for key in sorted(by)]
    if not rows:
        section.texts.append(_NOTHING)
        return section
    everything = by.pop(min(by))
    for cohort in by.values():
        everything.take(cohort)
    early, sure = curves = everything.curves()
    total = row_of(everything, {}, curves)
    section.texts.append(
        "From submission (if unknown: registration) to done. Elevate gives no times, so each figure is a pair: at "
        "least, and at most. The figures are estimates (Kaplan–Meier): a job that is not done counts until it was last "
        "seen not done; so does a failed, lost or attested job. If many jobs fail, the curve is above the share that "
        "is done. Withdrawn jobs are left out."
    )
    end = max(1.03 * max((*early.ends[-1:], *sure.ends[-1:]), default=0.0), 60.0)
    if not early.ends:
        end = max(everything.unended, default=end)
    section.picture = _curve(early, sure, end, total.median)
    headings = ("cluster", "kind", "jobs", "median", "p90", "p95", "max", *_STATES)
    caption = "Estimated time until half (median), 90 % (p90), 95 % (p95) and all (max) are done"
    shown = [*rows[: LIMIT - 1], *([total] if len(rows) > 1 else [])]
    section.grids.append(Grid(caption, headings, [_duration_row(row) for row in shown]))
    return section


_STATES: Final = ("done", "open", "failed", "lost", "attested", "withdrawn")


def _duration_row(row: Quantiles) -> list[Cell]:
    quantiles = [_bounds(pair) for pair in (row.median, row.p90, row.p95, row.max)]
    counts = [_number(getattr(row, name)) for name in _STATES]
    return [Cell(plain(row.cluster or "all")), Cell(row.kind or "all"), _number(row.jobs), *quantiles, *counts]


def _curve(early: Curve, sure: Curve, end: float, median: Bounds) -> Picture:
    """Draw the share that is done: *early* at the lower bounds of durations, *sure* at the upper ones."""
    said = "The estimate does not reach half."
    if median.seconds_min is not None:
        latest = f", {human(median.seconds_max, up=True)} at the latest" if median.seconds_max is not None else ""
        said = f"Half are done after {human(median.seconds_min)} at the earliest{latest}."
    title = "Estimated share of jobs done, by time since submission"
    svg = pictures.completion("curve", title, said, sure, early, end)
    return Picture(svg, f"{title}. {said}", [("band", "between the bounds: uncertain")])


def _in_flight(data: _Data) -> Picture:
    """Draw the open jobs over time, by the status that was last reported then."""
    changes = _changes(data)
    first = min(changes) - _HOUR
    every = _HOUR * ceil((data.at - first) / _HOUR / POINTS)
    times = [first + i * every for i in range(ceil((data.at - first) / every))] + [data.at]
    pending, now, most = sorted(changes, reverse=True), Counter[str](), 0
    counts: list[Counter[str]] = []
    for at in times:
        while pending and pending[-1] <= at:
            now.update(changes[pending.pop()])
            most = max(most, now.total())
        counts.append(now.copy())
    layers = [layer for layer in _LAYERS if any(each[layer] for each in counts)] or [_LAYERS[0]]
    colours = [f"s{_LAYERS.index(layer)}" for layer in layers]
    title = "Open jobs over time, by the status that Elevate last reported"
    said = f"{counts[-1].total():,} open at the end; at most {most:,} at once."
    series = [(colour, [each[layer] for each in counts]) for colour, layer in zip(colours, layers, strict=True)]
    svg = pictures.layers("flight", title, said, times, series)
    return Picture(svg, f"{title}. {said}", list(zip(colours, layers, strict=True)))


_HOUR: Final = timedelta(hours=1)
_LAYERS: Final = ("not answered yet", "created", "started", "waiting", "running", "not_found", "another status")


def _changes(data: _Data) -> dict[datetime, Counter[str]]:
    """Return by how much the number of open jobs changed until the end of each hour, by status."""
    observed_at = sa.column("observed_at", UtcDateTime())
    if data.connection.dialect.name == "sqlite":
        hour = sa.func.substr(observed_at, 1, 13, type_=sa.String())
    else:
        hour = sa.func.to_char(observed_at, "YYYY-MM-DD HH24", type_=sa.String())
    names = ("from_state", "from_status", "to_state", "to_status")
    columns: list[sa.ColumnClause[Any]] = [sa.column(name) for name in names]
    changes: defaultdict[datetime, Counter[str]] = defaultdict(Counter)
    found = data.count("report_transitions", hour.label("hour"), *columns)
    for text, from_state, from_status, to_state, to_status, number in found:
        at = min(datetime.fromisoformat(text).replace(tzinfo=UTC) + _HOUR, data.at)
        if from_state == State.OPEN:
            changes[at][_layer(from_status)] -= number
        if to_state == State.OPEN:
            changes[at][_layer(to_status)] += number
    return changes


def _layer(status: str | None) -> str:
    return _LAYERS[0] if status is None else status if status in _LAYERS[1:-1] else _LAYERS[-1]


def _verdicts(data: _Data) -> Grid:
    by_gravity = sorted(data.jobs.items(), key=lambda one: (_GRAVITY.index(one[0][1]), one[0]))
    rows = [
        [Cell(verdict), Cell(state), _number(number), Cell(words.verdict_meaning(verdict, state))]
        for (state, verdict), number in by_gravity
    ]
    return Grid("Jobs by verdict on their legal deadline", ("verdict", "state", "jobs", "meaning"), rows)


_GRAVITY: Final = ("overdue", "undecidable", "missed", "pending", "attested", "withdrawn", "met")


def _ahead(data: _Data) -> Picture:
    """Draw the deadlines of unsettled jobs: those that are past, and those of the next 31 days."""
    state: sa.ColumnClause[str] = sa.column("state")
    left: sa.ColumnClause[int] = sa.column("days_left")
    days = Counter[int]()
    for day, number in data.count("report_deadlines", left, where=(state.in_(UNSETTLED), left.is_not(None))):
        days[max(-1, min(int(day), AHEAD + 1))] += number
    title = "Unfinished jobs by the days left until their deadline"
    ahead = sum(days[day] for day in range(AHEAD + 1))
    said = f"{days[-1]:,} past, {ahead:,} within the next {AHEAD} days, {days[AHEAD + 1]:,} later."
    bars = [(f"in {day} d" if day and day % 7 == 0 else "", days[day], False) for day in range(AHEAD + 1)]
    svg = pictures.bars("ahead", title, said, [("past", days[-1], True), *bars])
    return Picture(svg, f"{title}. {said}")


_DRAWN: Final[dict[str, Callable[[_Data], Picture]]] = {"deadlines": _ahead, "statuses": _in_flight}
"""By report: the function that draws its picture, if the report has one."""
