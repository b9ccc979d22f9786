"""The product's SQL: jinja templates that become one SELECT of SQLite or PostgreSQL.

Owns how they are rendered. The templates are in ``views/`` (the reports), ``replay/`` (what was known at an earlier
time) and ``../audit/checks/`` (impossible histories); ``views/macros.sql`` has the differences of the two databases.
"""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


class Mode(StrEnum):
    """Which rows a relation holds, and what time it is now."""

    NOW = "now"
    """All rows; the time of the database's clock."""
    TIME = "time"
    """What was known at the time in the relation ``clock``."""
    CHECKPOINT = "checkpoint"
    """The rows up to the ids in the relation ``clock``; the time of that checkpoint."""
    PACK = "pack"
    """All rows of the pack; the time of its last checkpoint, in ``clock``."""


def sql(name: str, dialect: str, mode: Mode = Mode.NOW) -> str:
    """Return the SELECT in the file *name* (without ``.sql``, below ``tracker``) for *dialect*.

    Args:
        name: Such as ``reports/views/report_jobs``.
        dialect: ``sqlite`` or ``postgresql``.
        mode: Which rows and which time.
    """
    return _environment(dialect, mode).get_template(f"{name}.sql").render().strip()


@lru_cache(maxsize=8)  # compiling a template takes longer than most reports; a page needs each several times
def _environment(dialect: str, mode: Mode) -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    def source(file: str) -> str:
        path = f"reports/views/{file}" if file == "macros.sql" else file
        return files("tracker").joinpath(path).read_text(encoding="utf-8")

    environment = Environment(  # noqa: S701 - it is SQL, not HTML, and none of it comes from outside
        loader=FunctionLoader(source), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {"sqlite": dialect == "sqlite", "mode": str(mode)}
    # In PostgreSQL a CTE with the name of a table reads the table; in SQLite it would read itself.
    environment.globals["table"] = "main." if dialect == "sqlite" else ""
    return environment
