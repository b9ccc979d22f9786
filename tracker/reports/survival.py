"""Quantiles of durations of which some are only known to be at least so long: the Kaplan–Meier estimator.

Owns the curve and how a quantile is read off it. Pure: knows numbers, not jobs. Leaving the unended out would make
every report made while jobs are open too rosy, since it is the long ones that are open.

E. L. Kaplan, P. Meier, *Nonparametric estimation from incomplete observations*, 1958.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

ROUNDING: Final = 1e-9
"""How far above its level a curve may be and count as there: floats are no exact fractions (1 - 0.9 is a little less
than 0.1, and the ninth of ten is the p90 nevertheless). Ours: far above such errors, and far below the step of one job
in a million."""


def kaplan_meier(ended: Iterable[float], unended: Iterable[float]) -> Iterator[tuple[float, float]]:
    """Yield (duration, share that takes longer) for each that has ended, the shortest first; of ties the last counts.

    The share begins at 1. An unended one that is as old as another's end was still there at that end: in a tie ends
    come first, as is usual. Sorts both, so it takes their memory once more, and n log n time.

    Args:
        ended: How long each took that has ended.
        unended: How old each of the others was when last seen unended: it takes at least so long.
    """
    ends, ages = sorted(ended), sorted(unended)
    share, at_risk, out = 1.0, len(ends) + len(ages), 0
    for at in ends:
        while out < len(ages) and ages[out] < at:
            out += 1
            at_risk -= 1
        share *= (at_risk - 1) / at_risk
        at_risk -= 1
        yield at, share


def quantiles(ended: Iterable[float], unended: Iterable[float], shares: Sequence[float]) -> list[float | None]:
    """Return for each of *shares* the least duration by which so large a share has ended; None: not reached.

    With none unended it is the nearest rank: the median of 1, 2, 3, 4 is 2. The share 1 gives the longest of all, which
    is known only if every unended one is younger.

    Args:
        ended: As in `kaplan_meier`.
        unended: As there.
        shares: Above 0, at most 1, ascending.
    """
    found: list[float | None] = []
    levels = [1 - share + ROUNDING for share in shares]
    level = levels[0]
    for at, left in kaplan_meier(ended, unended):
        while left <= level:
            found.append(at)
            level = levels[len(found)] if len(found) < len(levels) else -1.0
    return found + [None] * (len(shares) - len(found))
