"""How the quantiles of ``tracker report durations`` are printed. The figures are `tracker.reports.durations`'."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tracker.cli.output import Column

if TYPE_CHECKING:
    from tracker.reports.durations import Durations, Quantiles

HELP = """How long jobs take, by cluster and kind, or by the columns of --by.

The time runs from submission (if unknown: registration) to done. Elevate gives no times, so each figure is a pair: at
least, and at most. The median is the estimated time (Kaplan-Meier) until half of the jobs are done; p90, p95 and max
are the times until 90 %, 95 % and all are done. A job that is not done counts until it was last seen not done; so does
a failed, lost or attested job. If many jobs fail, the figures describe the jobs that do not fail. Withdrawn jobs are
left out. "not reached" (csv: empty, json: null) means that too few jobs are done.

The last row is the total: its groups are "all" in a table, empty in csv, null in json.
"""

_COUNTS = ("jobs", "done", "open", "failed", "lost", "attested", "withdrawn")
_QUANTILES = ("median", "p90", "p95", "max")


def columns(made: Durations) -> list[str]:
    """Return the columns of CSV and JSON."""
    bounds = [f"{name}_seconds_{bound}" for name in _QUANTILES for bound in ("min", "max")]
    return [*made.by, *_COUNTS, *bounds]


def rows(made: Durations) -> Iterator[list[object]]:
    """Yield the rows of CSV and JSON, the total last; none where there are no jobs."""
    for row in _with_total(made):
        pairs = [getattr(row, name) for name in _QUANTILES]
        bounds = [bound for pair in pairs for bound in (pair.seconds_min, pair.seconds_max)]
        head = [getattr(row, name) for name in (*made.by, *_COUNTS)]
        yield [*head, *bounds]


def table(made: Durations) -> tuple[list[Column], list[list[object]]]:
    """Return columns and cells for people, a line a quantile: all bounds in one line do not fit 80 columns."""
    # Other states than done and open are rare, and there is little room: a state without jobs has no column.
    counts = [*_COUNTS[:3], *(name for name in _COUNTS[3:6] if getattr(made.total, name))]
    is_one = len({row.cluster for row in made.rows}) == 1
    heads = [
        *(Column(name, optional=is_one and name == "cluster") for name in made.by),
        *(Column(name, optional=name not in _COUNTS[:3]) for name in counts),
    ]
    lines: list[list[object]] = []
    for row in _with_total(made):
        head = [*(getattr(row, name) or "all" for name in made.by), *(getattr(row, name) for name in counts)]
        for name in _QUANTILES:
            pair = getattr(row, name)
            bounds = ["not reached" if bound is None else bound for bound in (pair.seconds_min, pair.seconds_max)]
            lines.append([*head, name, *bounds])
            head = [None] * len(head)
    return [*heads, Column("quantile"), Column("seconds_min", "at least"), Column("seconds_max", "at most")], lines


def note(made: Durations) -> str:
    """Return the note below the table: how to read it, and how many jobs are left out."""
    lines = [
        "Estimated (Kaplan-Meier). A job that is not done counts until it was last",
        "seen not done; so does a failed, lost or attested job.",
    ]
    if made.total.withdrawn:
        lines.append(f"Withdrawn jobs, left out: {made.total.withdrawn}.")
    return "\n".join(lines)


def _with_total(made: Durations) -> Sequence[Quantiles]:
    return [*made.rows, made.total] if made.rows else []
