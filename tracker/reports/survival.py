"""Quantiles of durations of which some are known by a lower bound only: the Kaplan–Meier estimator.

Owns the curve and how a quantile is read off it. Pure: knows numbers, not jobs. Leaving the unended out would make
every report made while jobs are open too rosy, since it is the long ones that are open.

E. L. Kaplan, P. Meier, *Nonparametric estimation from incomplete observations*, 1958.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import Final

ROUNDING: Final = 1e-9
"""How far above its level a curve may be and count as there: floats are no exact fractions (1 - 0.9 is a little less
than 0.1, and the ninth of ten is the p90 nevertheless). Ours: far above such errors, and far below the step of one job
in a million."""


class Curve:
    """The share that takes longer than each duration, by Kaplan and Meier.

    An unended one that is as old as another's end was still there at that end: in a tie ends come first, as is usual.

    Args:
        ended: How long each took that has ended.
        unended: How old each of the others was when last seen unended: it takes at least that long.

    Attributes:
        ends: How long each took that has ended, ascending.
    """

    def __init__(self, ended: Iterable[float], unended: Iterable[float]) -> None:
        self.ends: Sequence[float] = array("d", sorted(ended))
        ages = sorted(unended)
        # Of each run of ends in which none leaves unended: the place of its first, the share and those at risk before
        # it. The steps within a run are of one height, so they need not be gone through one by one.
        self._first, self._share, self._at_risk = [0], [1.0], [len(self.ends) + len(ages)]
        for age in ages:
            place = bisect_right(self.ends, age, self._first[-1])
            if place > self._first[-1]:
                left, at_risk = self._after(place), self._at_risk[-1] - (place - self._first[-1])
                self._first.append(place)
                self._share.append(left)
                self._at_risk.append(at_risk)
            self._at_risk[-1] -= 1

    def left(self, at: float) -> float:
        """Return the share that takes longer than *at*."""
        return self._after(bisect_right(self.ends, at))

    def _after(self, ends: int) -> float:
        """Return the share that is left after so many ends."""
        if not ends:
            return 1.0
        run = bisect_left(self._first, ends) - 1
        at_risk = self._at_risk[run]
        return self._share[run] * (at_risk - (ends - self._first[run])) / at_risk

    def quantiles(self, shares: Sequence[float]) -> list[float | None]:
        """Return for each of *shares* the shortest duration by which that share has ended; None: not reached.

        With none unended it is the nearest rank: the median of 1, 2, 3, 4 is 2. The share 1 gives the longest of all,
        which is known only if every unended one is younger.

        Args:
            shares: Above 0, at most 1.
        """
        counts, found = range(1, len(self.ends) + 1), []
        for share in shares:  # what is left only falls: with the sign turned it is in order
            place = bisect_left(counts, share - 1 - ROUNDING, key=lambda ends: -self._after(ends))
            found.append(self.ends[place] if place < len(self.ends) else None)
        return found
