"""The pictures of the page: numbers in, SVG out, drawn with classes that the page's style sheet colours.

Owns scales, ticks and shapes. Pure: knows no jobs and no database. Every text is escaped; every coordinate is
rounded to a tenth, so that the same numbers give the same bytes. A picture has a title and a description for people who
do not see it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from math import ceil, floor, log10
from typing import Final

from markupsafe import Markup, escape

from tracker.reports.survival import Curve

WIDTH: Final = 480
"""Of a picture in its own units; so narrow that its text, 13 units high, can be read on a screen of 390 pixels."""
HEIGHT: Final = 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 28
_DAY: Final = 86400.0

Point = tuple[float, float]


def completion(name: str, title: str, description: str, lower: Curve, upper: Curve, end: float) -> Markup:
    """Return the share that is done over time (0 to *end* seconds): the band between the curves of two bounds."""
    unit, step, label = _duration_ticks(end)
    x_max = max(end, step)
    x, y = _scale(0, x_max, _LEFT, WIDTH - _RIGHT), _scale(0, 1, HEIGHT - _BOTTOM, _TOP)
    shapes = _rows([(share / 4, f"{share * 25} %") for share in range(5)], y)
    shapes += _columns([(i * step, label(i * step / unit)) for i in range(floor(x_max / step + 1e-9) + 1)], x)
    low, high = _corners(lower, end, x, y), _corners(upper, end, x, y)
    shapes.append(_path("band", [*high, *reversed(low)], is_closed=True))
    shapes += [_path("edge", high), _path("edge", low)]
    return _svg(name, title, description, shapes)


def layers(
    name: str, title: str, description: str, times: Sequence[datetime], series: Sequence[tuple[str, Sequence[int]]]
) -> Markup:
    """Return counts over time, one layer upon the other.

    Args:
        name: Of the picture, in ids.
        title: Of the picture.
        description: What it shows, in words.
        times: At least two, ascending.
        series: (class of its colour, a count for each of *times*), the lowest first.
    """
    top = max(map(sum, zip(*(counts for _, counts in series), strict=True)), default=0)
    x = _scale(times[0].timestamp(), times[-1].timestamp(), _LEFT, WIDTH - _RIGHT)
    ticks = _count_ticks(top)
    y = _scale(0, ticks[-1], HEIGHT - _BOTTOM, _TOP)
    shapes = _rows([(tick, _short(tick)) for tick in ticks], y) + _columns(_time_ticks(times[0], times[-1]), x)
    below = [0] * len(times)
    for colour, counts in series:
        above = [a + b for a, b in zip(below, counts, strict=True)]
        upper, lower = (
            [(x(at.timestamp()), y(value)) for at, value in zip(times, line, strict=True)] for line in (above, below)
        )
        shapes.append(_path(f"layer {colour}", [*upper, *reversed(lower)], is_closed=True))
        below = above
    return _svg(name, title, description, shapes)


def bars(name: str, title: str, description: str, items: Sequence[tuple[str, int, bool]]) -> Markup:
    """Return a bar for each of *items*: label (empty: none), count, and whether it is one that worries."""
    ticks = _count_ticks(max((count for _, count, _ in items), default=0))
    x = _scale(0, max(len(items), 1), _LEFT, WIDTH - _RIGHT)
    y = _scale(0, ticks[-1], HEIGHT - _BOTTOM, _TOP)
    shapes = _rows([(tick, _short(tick)) for tick in ticks], y)
    for i, (label, count, worries) in enumerate(items):
        if label:
            shapes.append(_text(x(i + 0.5), HEIGHT - 9, label, "start" if i == 0 else "middle"))
        if count:
            kind, height = "bar worry" if worries else "bar", max(y(0) - y(count), 1)
            form = Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"/>')
            shapes.append(form.format(kind, _n(x(i + 0.15)), _n(y(0) - height), _n(x(0.7) - x(0)), _n(height)))
    return _svg(name, title, description, shapes)


# -- shapes --------------------------------------------------------------------------------------------------------


def _scale(low: float, high: float, begin: float, end: float) -> Callable[[float], float]:
    width = (high - low) or 1
    return lambda value: begin + (value - low) / width * (end - begin)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _path(kind: str, points: Iterable[Point], *, is_closed: bool = False) -> Markup:
    line = " ".join(f"{'L' if i else 'M'}{_n(x)} {_n(y)}" for i, (x, y) in enumerate(points))
    return Markup('<path class="{}" d="{}{}"/>').format(kind, line, " Z" if is_closed else "")


def _corners(curve: Curve, end: float, x: Callable[[float], float], y: Callable[[float], float]) -> list[Point]:
    """Return the corners of the share that is done: at most one step for each half unit of width."""

    def column(at: float) -> int:
        return round(2 * x(at))

    corners, level, place = [(x(0), y(0))], 0.0, 0
    while place < len(curve.ends):
        at = curve.ends[place]
        place = bisect_right(curve.ends, column(at), place, key=column)
        done = 1 - curve.left(curve.ends[place - 1])
        corners += [(x(at), y(level)), (x(at), y(done))]
        level = done
    return [*corners, (x(end), y(level))]


def _svg(name: str, title: str, description: str, shapes: Sequence[Markup]) -> Markup:
    return Markup(
        '<svg role="img" viewBox="0 0 {w} {h}" width="{w}" height="{h}" aria-labelledby="{n}-title {n}-desc">'
        '<title id="{n}-title">{title}</title><desc id="{n}-desc">{desc}</desc>{shapes}</svg>'
    ).format(w=WIDTH, h=HEIGHT, n=name, title=title, desc=description, shapes=Markup("").join(shapes))


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    form = Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>')
    return form.format(kind, _n(x1), _n(y1), _n(x2), _n(y2))


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(_n(x), _n(y), anchor, escape(text))


def _rows(ticks: Sequence[tuple[float, str]], y: Callable[[float], float]) -> list[Markup]:
    """Return a line across for each tick, with its label on the left."""
    shapes = []
    for at, label in ticks:
        shapes.append(_line("grid", _LEFT, y(at), WIDTH - _RIGHT, y(at)))
        shapes.append(_text(_LEFT - 6, y(at) + 4, label, "end"))
    return shapes


def _columns(ticks: Sequence[tuple[float, str]], x: Callable[[float], float]) -> list[Markup]:
    """Return a mark at the foot for each tick, with its label below."""
    shapes = []
    for at, label in ticks:
        px = x(at)
        shapes.append(_line("grid", px, HEIGHT - _BOTTOM, px, HEIGHT - _BOTTOM + 4))
        anchor = "end" if px > WIDTH - _RIGHT - 3.6 * len(label) else "middle"
        shapes.append(_text(px, HEIGHT - 9, label, anchor))
    return shapes


# -- ticks ---------------------------------------------------------------------------------------------------------


def _duration_ticks(most: float) -> tuple[float, float, Callable[[float], str]]:
    """Return the unit in seconds, the step between two ticks in seconds, and how a number of units is written."""
    units = ((_DAY, "d"), (3600.0, "h"), (60.0, "m"), (1.0, "s"))
    unit, letter = next(((size, name) for size, name in units if most >= 2 * size), units[-1])
    return unit, unit * max(1.0, _nice(most / unit / 6)), lambda number: f"{number:.10g}{letter}"


def _nice(value: float) -> float:
    """Return the least of 1, 2, 5, 10, 20, 50 … that is no less than *value*."""
    power = 10.0 ** floor(log10(value)) if value > 0 else 1.0
    return next(power * i for i in (1, 2, 5, 10) if power * i >= value - 1e-12)


def _count_ticks(most: int) -> list[int]:
    step = max(1, round(_nice(most / 4)))
    return [i * step for i in range(max(1, ceil(most / step)) + 1)]


def _short(count: int) -> str:
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if count >= size * 10 or (count >= size and count % (size // 10) == 0):
            return f"{count / size:.10g}{letter}"
    return str(count)


def _time_ticks(began: datetime, ended: datetime) -> list[tuple[float, str]]:
    """Return a few instants (seconds of the epoch) in [began, ended], in UTC, with labels."""
    steps = [timedelta(hours=hours) for hours in (1, 2, 3, 6, 12)]
    steps += [timedelta(days=days) for days in (1, 2, 5, 10, 30, 60, 180, 365)]
    step = next((one for one in steps if (ended - began) / one <= 5), (ended - began) / 5)
    form = "%H:%M" if step < timedelta(days=1) else "%d %b" if step < timedelta(days=60) else "%Y-%m-%d"
    at = began.replace(hour=0, minute=0, second=0, microsecond=0)
    instants = (at + i * step for i in range(ceil((ended - at) / step) + 1))
    return [(one.timestamp(), one.strftime(form)) for one in instants if began <= one <= ended]
