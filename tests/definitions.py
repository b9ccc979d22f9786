"""Writes ``tracker/tables.json``: what each table is after the migrations. ``python -m tests.definitions``"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from tests.conftest import serve_postgres
from tracker import database, guards

FILE = Path(guards.__file__).with_name("tables.json")


def of(url: str) -> dict[str, list[str]]:
    """Return the definitions at *url*, a migrated database."""
    engine = database.create_engine(url)
    try:
        with database.reading(engine) as connection:
            return guards.definitions(connection)
    finally:
        engine.dispose()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, serve_postgres() as make:
        made = {"sqlite": f"sqlite:///{folder}/t.db", "postgresql": make()}
        for url in made.values():
            database.upgrade(url)
        FILE.write_text(json.dumps({name: of(url) for name, url in made.items()}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
