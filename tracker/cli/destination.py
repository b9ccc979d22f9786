"""Where output goes: standard output, or a file that is replaced as a whole or not at all.

Rows are written to a temporary file first, in bounded memory, and then go where they should: so a pager that waits
holds no transaction open, and what fails half-way leaves nothing behind.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from tracker.cli.output import chosen, plain
from tracker.errors import Refused

if TYPE_CHECKING:
    import sqlalchemy as sa


def format_of(format: str | None, file: Path | None) -> str:
    """Return *format*, else the one that the name of *file* ends with, else what standard output gets.

    Raises:
        click.BadParameter: The name has another ending.
    """
    if format is not None or file is None or (file.exists() and not file.is_file()):
        return chosen(format)
    if file.suffix.lower() not in (".csv", ".json", ".html"):
        raise _not_to(f"{file.name!r} does not end with .csv, .json or .html: name the format with --format")
    return file.suffix.lower()[1:]


@contextmanager
def output_to(file: Path | None, format: str) -> Iterator[None]:
    """Keep what is printed, and write it to *file* (None: standard output) at the end, if nothing fails.

    A table for standard output is printed directly: it is short, and its layout depends on the terminal.

    Raises:
        Refused: There is no room for it on the disk.
        click.BadParameter: The file cannot be written.
    """
    if file is None and format == "table":
        yield
        return
    try:
        spool = tempfile.TemporaryFile("w+", encoding="utf-8", newline="")  # noqa: SIM115 - closed below
    except OSError as error:
        raise _no_room(error) from error
    with closing(spool):
        try:
            with redirect_stdout(spool):
                yield
            spool.seek(0)
        except OSError as error:
            with suppress(OSError):
                spool.close()  # closing tries to write the rest again, and fails again
            raise _no_room(error) from error
        if file is None:
            shutil.copyfileobj(spool, sys.stdout)
        else:
            _put(spool, file)


def _no_room(error: OSError) -> Refused:
    why = error.strerror or str(error)
    return Refused(f"cannot keep the rows in a temporary file: {why}; make room, or name another folder in TMPDIR")


def _put(spool: IO[str], file: Path) -> None:
    """Write what is in *spool* to *file*: a file is replaced, a pipe or /dev/null written to."""
    try:
        if file.exists() and not file.is_file():
            with file.open("w", encoding="utf-8", newline="") as stream:
                shutil.copyfileobj(spool, stream)
            return
        target = Path(os.path.realpath(file))  # a link stays one
        part = target.with_name(f".{target.name[:50]}.{os.urandom(4).hex()}.part")
        try:
            with part.open("x", encoding="utf-8", newline="") as stream:
                if target.exists():
                    shutil.copymode(target, part)
                shutil.copyfileobj(spool, stream)
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise _not_to(
            f"cannot write {str(file)!r}: {why}; name a file in a folder that exists and that you may write to"
        ) from None


def spare_database(file: Path | None, engine: sa.Engine) -> None:
    """Refuse to write over the database, or over a file that SQLite keeps beside it, there or not yet."""
    if file is None or engine.dialect.name != "sqlite":
        return
    database = os.path.realpath(str(engine.url.database))
    if os.path.realpath(file) in [database + ending for ending in ("", "-wal", "-shm", "-journal")]:
        raise _not_to(f"{str(file)!r} belongs to the database, and is not replaced: name another file")


def _not_to(problem: str) -> click.BadParameter:
    return click.BadParameter(plain(problem), param_hint="'--output'")
