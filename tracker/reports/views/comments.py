"""What a row and a column of each view mean: the one definition, in ``comments.toml``.

Owns reading it; `views.create` puts the words into PostgreSQL, where ``\\d+`` shows them.
"""

from __future__ import annotations

import tomllib
from importlib.resources import files
from typing import Final

_WORDS: Final = tomllib.loads(files(__package__).joinpath("comments.toml").read_text(encoding="utf-8"))
ROWS: Final[dict[str, str]] = _WORDS["rows"]
"""By view: what a row of it is."""
COLUMNS: Final[dict[str, str]] = _WORDS["columns"]
"""By column, or by view and column where another view means something else: what it holds."""


def of_view(view: str) -> str:
    """Return the comment on *view*."""
    return f"A row is {ROWS[view].replace('`', '')}."


def of_column(view: str, column: str) -> str:
    """Return the comment on *column* of *view*."""
    return COLUMNS.get(f"{view}.{column}") or COLUMNS[column]
