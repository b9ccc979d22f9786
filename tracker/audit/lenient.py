"""Reading rows that no honest program writes, so that the verifier can name them.

Owns how a connection reads values that the CHECKs refuse and its driver cannot hold; the findings print them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import sqlalchemy as sa


@contextmanager
def lenient(connection: sa.Connection) -> Iterator[None]:
    """Let *connection* also read, more slowly, values that its driver and the CHECKs refuse.

    SQLite: bytes that are not UTF-8, as lone surrogates, so that different bytes are different texts. PostgreSQL: times
    and days that Python cannot hold, as the server's text.
    """
    raw: Any = connection.connection.driver_connection
    if connection.dialect.name == "sqlite":
        before, raw.text_factory = raw.text_factory, partial(str, encoding="utf-8", errors="surrogateescape")
        try:
            yield
        finally:
            raw.text_factory = before
        return
    from psycopg import DataError
    from psycopg.pq import Format
    from psycopg.types.datetime import DateLoader, TimestamptzLoader

    def falling_back(loader: Any) -> Any:
        class TextWhereRefused(loader):  # type: ignore[misc]  # the base class is a variable
            def load(self, data: Any) -> object:
                try:
                    return super().load(data)
                except DataError:
                    return bytes(data).decode()

        return TextWhereRefused

    usual = {
        name: raw.adapters.get_loader(raw.adapters.types[name].oid, Format.TEXT) for name in ("timestamptz", "date")
    }
    raw.adapters.register_loader("timestamptz", falling_back(TimestamptzLoader))
    raw.adapters.register_loader("date", falling_back(DateLoader))
    try:
        yield
    finally:
        for name, loader in usual.items():
            raw.adapters.register_loader(name, loader)
