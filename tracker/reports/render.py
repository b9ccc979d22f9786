"""The product's SQL: jinja templates that become one SELECT of SQLite or PostgreSQL.

Owns how they are rendered. What they say is theirs: ``views/`` (the reports), ``replay/`` (what was known at an earlier
time) and ``../audit/checks/`` (what no honest history says); ``views/macros.sql`` has what the two databases say
differently. They are rendered three ways: for the tables as they are, as of a time or a checkpoint (`Mode`), and for
``checks.sql``, where tables hold the rows of an evidence pack.
"""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


class Mode(StrEnum):
    """What a relation holds, and which time it is."""

    NOW = "now"
    """All rows; the database's clock."""
    TIME = "time"
    """What was known at the time in the relation ``clock``."""
    CHECKPOINT = "checkpoint"
    """The rows up to the ids in the relation ``clock``; the time of that checkpoint."""
    PACK = "pack"
    """All rows, since there are no others, with the time of the last checkpoint in ``clock``."""


def sql(name: str, dialect: str, mode: Mode = Mode.NOW) -> str:
    """Return the SELECT in the file *name* (without ``.sql``, below ``tracker``) for *dialect*.

    Args:
        name: As ``reports/views/report_jobs``.
        dialect: ``sqlite`` or ``postgresql``.
        mode: What the relations that it reads hold.
    """
    return _environment(dialect, mode).get_template(f"{name}.sql").render().strip()


@lru_cache(maxsize=8)  # compiling the templates takes longer than most reports do; a page asks for each several times
def _environment(dialect: str, mode: Mode) -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    def source(file: str) -> str:
        path = f"reports/views/{file}" if file == "macros.sql" else file
        return files("tracker").joinpath(path).read_text(encoding="utf-8")

    environment = Environment(  # noqa: S701 - it is SQL, not HTML, and none of it comes from outside
        loader=FunctionLoader(source), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {"sqlite": dialect == "sqlite", "mode": str(mode)}
    # In PostgreSQL a CTE of a table's name reads the table; in SQLite it would read itself.
    environment.globals["table"] = "main." if dialect == "sqlite" else ""
    return environment
