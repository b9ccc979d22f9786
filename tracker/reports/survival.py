"""Quantiles of durations of which some are known by a lower bound only: the Kaplan–Meier estimator.

Owns the curve and how a quantile is read from it. Pure: knows numbers, not jobs. Without the jobs that have not ended,
a report would be too optimistic while jobs are open, because mostly the long ones are open.

E. L. Kaplan, P. Meier, *Nonparametric estimation from incomplete observations*, 1958.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import Final

ROUNDING: Final = 1e-9
"""How far above a level the curve still counts as having reached it. Floats are not exact: 1 - 0.9 is a little less
than 0.1, but the ninth of ten is the p90. Ours: far above such errors, far below the step of one job in a million."""


class Curve:
    """The share that takes longer than each duration, by Kaplan and Meier.

    An unended one that is as old as another's end was still there at that end: in a tie ends come first, as is usual.

    Args:
        ended: How long each took that has ended.
        unended: How old each of the others was when last seen unended: it takes at least that long.

    Attributes:
        ends: How long those took that have ended, ascending, each duration once.
    """

    def __init__(self, ended: Iterable[float], unended: Iterable[float]) -> None:
        self.ends = array("d")
        self._left = array("d")  # the share that is left after each of them
        ordered, ages = sorted(ended), sorted(unended)
        left, place = 1.0, 0
        while place < len(ordered):
            at = ordered[place]
            at_risk = len(ordered) - place + len(ages) - bisect_left(ages, at)
            following = bisect_right(ordered, at, place)
            left *= (at_risk - (following - place)) / at_risk
            self.ends.append(at)
            self._left.append(left)
            place = following

    def left(self, at: float) -> float:
        """Return the share that takes longer than *at*."""
        place = bisect_right(self.ends, at)
        return self._left[place - 1] if place else 1.0

    def quantiles(self, shares: Sequence[float]) -> list[float | None]:
        """Return for each of *shares* the shortest duration by which that share has ended; None: not reached.

        With none unended it is the nearest rank: the median of 1, 2, 3, 4 is 2. The share 1 gives the longest of all,
        which is known only if every unended one is younger.

        Args:
            shares: Above 0, at most 1.
        """
        found: list[float | None] = []
        for share in shares:  # what is left only falls: with the sign turned it is in order
            place = bisect_left(self._left, share - 1 - ROUNDING, key=lambda left: -left)
            found.append(self.ends[place] if place < len(self.ends) else None)
        return found
