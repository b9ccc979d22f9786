"""The pictures of the page: numbers in, SVG out, drawn with classes that the page's style sheet colours.

Owns scales, ticks and shapes. Pure: knows neither jobs nor databases. Every text is escaped; every coordinate is
rounded to a tenth, so that the same numbers give the same bytes. A picture has a title and a description for those who
do not see it; its figures stand in a table beside it, which is the page's.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import ceil, floor, log10
from typing import Final

from markupsafe import Markup, escape

WIDTH: Final = 480
"""Of a picture in its own units; so narrow that its text, 13 units high, can be read on a screen of 390 pixels."""
HEIGHT: Final = 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 28
_DAY: Final = 86400.0

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Steps:
    """A curve in steps.

    Attributes:
        at: The x of each step, ascending.
        height: Returns its y at an x.
    """

    at: Sequence[float]
    height: Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Band:
    """A curve known between two bounds.

    Attributes:
        lower: What is at least so.
        upper: What is at most so.
        end: The x up to which it is known.
    """

    lower: Steps
    upper: Steps
    end: float


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch on a line of a time line, in seconds since its beginning."""

    began: float
    ended: float
    is_open: bool
    label: str


def completion(name: str, title: str, description: str, band: Band) -> Markup:
    """Return the share that is done (0 to 1) over time (seconds), as the band between its two bounds."""
    unit, step, name_of = _duration_ticks(band.end)
    x_max = max(band.end, step)
    x, y = _scale(0, x_max, _LEFT, WIDTH - _RIGHT), _scale(0, 1, HEIGHT - _BOTTOM, _TOP)
    shapes = _rows([(share / 4, f"{share * 25} %") for share in range(5)], y)
    shapes += _columns([(i * step, name_of(i * step / unit)) for i in range(floor(x_max / step + 1e-9) + 1)], x)
    low, high = _steps(band.lower, band.end, x, y), _steps(band.upper, band.end, x, y)
    back = " ".join(f"L{_n(px)} {_n(py)}" for px, py in reversed(low))
    shapes.append(Markup('<path class="band" d="{} {} Z"/>').format(_path(high), Markup(back)))  # noqa: S704 - numbers
    shapes.append(Markup('<path class="edge" d="{}"/>').format(_path(high)))
    shapes.append(Markup('<path class="edge" d="{}"/>').format(_path(low)))
    return _svg(name, title, description, shapes)


def layers(
    name: str, title: str, description: str, times: Sequence[datetime], series: Sequence[tuple[int, Sequence[int]]]
) -> Markup:
    """Return counts over time, one layer upon the other.

    Args:
        name: Of the picture, in ids.
        title: Of the picture.
        description: What it shows, in words.
        times: At least two, ascending.
        series: (which colour, a count for each of *times*), the lowest first.
    """
    began, ended = times[0].timestamp(), times[-1].timestamp()
    top = max(map(sum, zip(*(counts for _, counts in series), strict=True)), default=0)
    x = _scale(began, ended, _LEFT, WIDTH - _RIGHT)
    ticks = _count_ticks(top)
    y = _scale(0, max(top, ticks[-1]), HEIGHT - _BOTTOM, _TOP)
    shapes = _rows([(tick, _short(tick)) for tick in ticks], y) + _columns(_time_ticks(times[0], times[-1]), x)
    below = [0] * len(times)
    for colour, counts in series:
        above = [a + b for a, b in zip(below, counts, strict=True)]
        corners = [(x(at.timestamp()), y(value)) for at, value in zip(times, above, strict=True)]
        corners += [(x(at.timestamp()), y(value)) for at, value in reversed(list(zip(times, below, strict=True)))]
        shapes.append(Markup('<path class="layer s{}" d="{} Z"/>').format(colour, _path(corners)))
        below = above
    return _svg(name, title, description, shapes)


def bars(name: str, title: str, description: str, items: Sequence[tuple[str, int, bool]]) -> Markup:
    """Return a bar for each of *items*: label, count, and whether it is one that worries."""
    top = max((count for _, count, _ in items), default=0)
    ticks = _count_ticks(top)
    x = _scale(0, max(len(items), 1), _LEFT, WIDTH - _RIGHT)
    y = _scale(0, max(top, ticks[-1]), HEIGHT - _BOTTOM, _TOP)
    shapes = _rows([(tick, _short(tick)) for tick in ticks], y)
    every = ceil(len(items) / 6)
    for i, (label, count, worries) in enumerate(items):
        if i % every == 0:
            shapes.append(_text(x(i + 0.5), HEIGHT - 9, label, "middle"))
        if count:
            left, right = x(i + 0.15), x(i + 0.85)
            shapes.append(_rect("bar worry" if worries else "bar", left, y(count), right - left, y(0) - y(count)))
    return _svg(name, title, description, shapes)


def timeline(
    name: str,
    title: str,
    description: str,
    began_at: datetime,
    ended_at: datetime,
    lines: Sequence[tuple[str, Sequence[Span]]],
) -> Markup:
    """Return a line for each of *lines* from *began_at* to *ended_at*, with its spans upon it.

    Spans that would be one at the picture's size are drawn as one; none is narrower than can be seen.
    """
    row = 34
    height = _TOP + row * len(lines) + _BOTTOM
    seconds = max((ended_at - began_at).total_seconds(), 1)
    x = _scale(0, seconds, 10, WIDTH - _RIGHT)
    ticks = [(at - began_at.timestamp(), label) for at, label in _time_ticks(began_at, ended_at)]
    shapes = _columns(ticks, x, height)
    for i, (label, spans) in enumerate(lines):
        top = _TOP + i * row
        shapes.append(_text(10, top + 11, label if len(label) <= 60 else label[:59] + "…", "start"))
        shapes.append(_rect("track", 10, top + 16, WIDTH - _RIGHT - 10, 10))
        for left, right, is_open, words in _merged(spans, x):
            bar = _rect("gap open" if is_open else "gap", left, top + 16, right - left, 10)
            shapes.append(Markup("<g><title>{}</title>{}</g>").format(words, bar))
    return _svg(name, title, description, shapes, height)


def _merged(spans: Sequence[Span], x: Callable[[float], float]) -> list[tuple[float, float, bool, str]]:
    found: list[tuple[float, float, bool, str, int]] = []
    for span in sorted(spans, key=lambda one: one.began):
        left, right = x(span.began), max(x(span.ended), x(span.began) + 1.5)
        if found and left <= found[-1][1] + 0.5:
            first = found.pop()
            right = max(right, first[1])
            found.append((first[0], right, first[2] or span.is_open, first[3], first[4] + 1))
        else:
            found.append((left, right, span.is_open, span.label, 1))
    return [(left, right, is_open, words if n == 1 else f"{n} gaps") for left, right, is_open, words, n in found]


def _scale(low: float, high: float, begin: float, end: float) -> Callable[[float], float]:
    width = (high - low) or 1
    return lambda value: begin + (value - low) / width * (end - begin)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _path(points: Iterable[Point]) -> Markup:
    found = " ".join(f"{'L' if i else 'M'}{_n(x)} {_n(y)}" for i, (x, y) in enumerate(points))
    return Markup(found)  # noqa: S704 - numbers


def _steps(steps: Steps, end: float, x: Callable[[float], float], y: Callable[[float], float]) -> list[Point]:
    """Return the corners of a step curve that begins at 0, at most one step for each half unit of width."""

    def column(at: float) -> int:
        return round(2 * x(at))

    corners, level, place = [(x(0), y(0))], 0.0, 0
    while place < len(steps.at):
        at = steps.at[place]
        place = bisect_right(steps.at, column(at), place, key=column)
        value = steps.height(steps.at[place - 1])
        corners += [(x(at), y(level)), (x(at), y(value))]
        level = value
    return [*corners, (x(end), y(level))]


def _svg(name: str, title: str, description: str, shapes: Sequence[Markup], height: float = HEIGHT) -> Markup:
    return Markup(
        '<svg role="img" viewBox="0 0 {w} {h}" width="{w}" height="{h}" aria-labelledby="{n}-title {n}-desc">'
        '<title id="{n}-title">{title}</title><desc id="{n}-desc">{desc}</desc>{shapes}</svg>'
    ).format(w=WIDTH, h=_n(height), n=name, title=title, desc=description, shapes=Markup("").join(shapes))


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    form = Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>')
    return form.format(kind, _n(x1), _n(y1), _n(x2), _n(y2))


def _rect(kind: str, x: float, y: float, width: float, height: float) -> Markup:
    form = Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"/>')
    return form.format(kind, _n(x), _n(y), _n(max(width, 0.5)), _n(max(height, 0.5)))


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(_n(x), _n(y), anchor, escape(text))


def _rows(ticks: Sequence[tuple[float, str]], y: Callable[[float], float]) -> list[Markup]:
    """Return a line across for each tick, with its label on the left."""
    shapes = []
    for at, label in ticks:
        shapes.append(_line("grid", _LEFT, y(at), WIDTH - _RIGHT, y(at)))
        shapes.append(_text(_LEFT - 6, y(at) + 4, label, "end"))
    return shapes


def _columns(ticks: Sequence[tuple[float, str]], x: Callable[[float], float], height: float = HEIGHT) -> list[Markup]:
    """Return a mark at the foot for each tick, with its label below."""
    shapes = []
    for at, label in ticks:
        px = x(at)
        shapes.append(_line("tick", px, height - _BOTTOM, px, height - _BOTTOM + 4))
        room = 3.6 * len(label)
        anchor = "end" if px > WIDTH - _RIGHT - room else "start" if px < room else "middle"
        shapes.append(_text(px, height - 9, label, anchor))
    return shapes


def _duration_ticks(most: float) -> tuple[float, float, Callable[[float], str]]:
    """Return the unit in seconds, the step between two ticks in seconds, and how a number of units is written."""
    for unit, letter in ((_DAY, "d"), (3600.0, "h"), (60.0, "m"), (1.0, "s")):
        if most >= 2 * unit or unit == 1:
            step = unit * max(1.0, _nice(most / unit / 6))
            return unit, step, lambda units, letter=letter: f"{units:.10g}{letter}"
    raise AssertionError(most)


def _nice(value: float) -> float:
    """Return the least of 1, 2, 5, 10, 20, 50 … that is no less than *value*."""
    power = 10.0 ** floor(log10(value)) if value > 0 else 1.0
    return next(power * i for i in (1, 2, 5, 10) if power * i >= value - 1e-12)


def _count_ticks(most: int) -> list[int]:
    step = max(1, round(_nice(most / 4))) if most else 1
    return [i * step for i in range(max(1, ceil(most / step)) + 1)]


def _short(count: int) -> str:
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if count >= size * 10 or (count >= size and count % (size // 10) == 0):
            return f"{count / size:.10g}{letter}"
    return str(count)


def _time_ticks(began: datetime, ended: datetime) -> list[tuple[float, str]]:
    """Return at most seven instants (seconds of the epoch) in [began, ended], in UTC, with labels."""
    span = ended - began
    if span <= timedelta(days=2):
        hours = max(1, ceil(span.total_seconds() / 3600 / 5))
        hours = next(step for step in (1, 2, 3, 6, 12) if step >= hours or step == 12)
        at = began.replace(minute=0, second=0, microsecond=0)
        at -= timedelta(hours=at.hour % hours)
        return _ticks(at, ended, began, lambda one: one + timedelta(hours=hours), "%H:%M")
    if span <= timedelta(days=62):
        days = ceil(span / timedelta(days=6))
        at = began.replace(hour=0, minute=0, second=0, microsecond=0)
        return _ticks(at, ended, began, lambda one: one + timedelta(days=days), "%d %b")
    months = ceil(span / timedelta(days=30) / 6)
    months = next((step for step in (1, 2, 3, 4, 6, 12) if step >= months), 12 * ceil(months / 12))
    at = datetime(began.year, 1, 1, tzinfo=UTC)

    def later(one: datetime) -> datetime:
        whole = one.year * 12 + one.month - 1 + months
        return datetime(whole // 12, whole % 12 + 1, 1, tzinfo=UTC)

    return _ticks(at, ended, began, later, "%Y-%m")


def _ticks(
    at: datetime, ended: datetime, began: datetime, later: Callable[[datetime], datetime], form: str
) -> list[tuple[float, str]]:
    found = []
    while at <= ended:
        if at >= began:
            found.append((at.timestamp(), at.strftime(form)))
        at = later(at)
    return found
