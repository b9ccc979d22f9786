"""The checks find what no honest history says, and nothing in honest ones, on both databases."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from tests import lives
from tests.history import ZONE
from tracker import database
from tracker.audit.checks import Problem, findings


def found(engine: sa.Engine) -> list[Problem]:
    with database.reading(engine) as connection:
        return list(findings(connection, ZONE))


@pytest.mark.parametrize("seed", [1, 2])
def test_honest_histories_have_no_findings(engine: sa.Engine, seed: int) -> None:
    """Of hundreds of lives of jobs none is a finding."""
    lives.write(engine, seed, [*lives.told(), *lives.drawn(seed, 100)])
    assert [problem for problem in found(engine) if not problem.is_note] == []
