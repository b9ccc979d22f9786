"""`audit verify`: what it reads, in how much memory, and that its quick way agrees with the slow one."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from tests import lives
from tests.lives import Life
from tracker.audit import histories
from tracker.models import facts_values, transition_of, transition_values
from tracker.status import Action, Anomaly, Kind, State, replay

REQUIRED = ("seq", "polls", "observed_at", "action", "to_state")
"""NOT NULL."""


def as_row(number: int, job_id: int, transition: Any) -> dict[str, Any]:
    """Return a transition as a row of SQLite's driver."""
    values = transition_values(job_id, transition) | {"id": number}
    return {name: _raw(values[name]) for name in histories._READ}


def _raw(value: Any) -> Any:
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"
    return None if value is None else value if isinstance(value, int) else str(value)


def slowly(rows: list[dict[str, Any]]) -> tuple[Any, ...] | None:
    """Return what the history comes to, by ``models`` and ``status`` alone; None if it is not legal."""
    typed = []
    try:
        for row in rows:
            words = {"action": Action, "from_state": State, "to_state": State, "anomaly": Anomaly, "kind": Kind}
            values = {
                name: words[name](value)
                if name in words and value is not None
                else histories.instant(value)
                if name.endswith("_at") or name == "server_date"
                else value
                for name, value in row.items()
            }
            typed.append(transition_of(SimpleNamespace(**values)))  # type: ignore[arg-type]
        job = replay(typed).job
    except ValueError:
        return None
    told = [_raw(getattr(job, name)) for name in histories.OBSERVED]
    facts = [_raw(value) for value in facts_values(job.facts).values()]
    return (*told, *facts, _raw(job.registered_at), job.registered_by)


def quickly(shapes: histories._Shapes, rows: list[dict[str, Any]]) -> tuple[Any, ...] | None:
    """Return the same as `histories` does where it need not replay; None where it has to."""
    plain = [tuple(row.values()) for row in rows]
    traced = shapes.of(plain)
    if traced is None:
        return None
    times = [None if where is None else plain[where[0]][where[1]] for where in traced.times]
    facts = plain[traced.facts][histories._FACTS :]
    first = plain[0]
    return (traced.state, traced.status, *times, len(plain) - 1, *facts, first[histories._AT], first[histories._ACTOR])


def histories_of(seed: int, size: int) -> list[list[dict[str, Any]]]:
    made: list[Life] = [*lives.told(), *lives.drawn(seed, size)]
    return [
        [as_row(100 * n + i, n, transition) for i, (_, transition, _) in enumerate(life.steps)]
        for n, life in enumerate(made)
    ]


def test_nearly_every_legal_history_takes_the_quick_way_and_comes_to_the_same() -> None:
    shapes = histories._Shapes()
    for rows in histories_of(1, 300):
        right = slowly(rows)
        assert right is not None
        assert quickly(shapes, rows) == right


def test_no_falsified_history_passes_the_quick_way_that_a_replay_refuses() -> None:
    r = random.Random(2)
    shapes = histories._Shapes()
    told = histories_of(3, 120)
    values: dict[str, list[Any]] = {name: [] for name in histories._READ}
    for rows in told:
        for row in rows:
            for name, value in row.items():
                values[name].append(value)
    refused = 0
    for _ in range(3000):
        rows = [dict(row) for row in r.choice(told)]
        for _ in range(r.choice([1, 1, 2])):
            change = r.random()
            if change < 0.1 and len(rows) > 1:
                del rows[r.randrange(len(rows))]
            elif change < 0.2:
                rows.insert(r.randrange(len(rows) + 1), dict(r.choice(r.choice(told))))
            elif change < 0.3 and len(rows) > 1:
                i, j = r.sample(range(len(rows)), 2)
                rows[i], rows[j] = rows[j], rows[i]
            elif change < 0.5:  # numbers that fit, so that the rest decides
                for i, row in enumerate(rows):
                    row["seq"] = i
                    row["polls"] = i
            else:
                name = r.choice(histories._READ[3:])
                r.choice(rows)[name] = r.choice([*r.sample(values[name], 3), *([] if name in REQUIRED else [None])])
        right, quick = slowly(rows), quickly(shapes, rows)
        refused += right is None
        assert quick is None or quick == right
    assert 500 < refused < 2950
