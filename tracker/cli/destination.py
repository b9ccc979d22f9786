"""Where output goes: standard output, or a file that is replaced as a whole or not at all.

Rows are written to a file first, in bounded memory, and then go where they should: so a pager that waits holds no
transaction open, and what fails half-way leaves nothing behind.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from stat import S_ISREG
from typing import IO, TYPE_CHECKING

import click

from tracker.cli.output import chosen, plain
from tracker.errors import Refused

if TYPE_CHECKING:
    import sqlalchemy as sa


def file_of(output: str | None) -> Path | None:
    """Return the file that is named by what was typed; None: standard output."""
    return None if output is None or output == "-" else Path(output)


def format_of(format: str | None, file: Path | None) -> str:
    """Return *format*, else the one that the name of *file* ends with, else what standard output gets.

    Raises:
        click.BadParameter: The name has another ending.
    """
    if format is not None or file is None or (file.exists() and not file.is_file()):
        return chosen(format)
    if file.suffix.lower() not in (".csv", ".json", ".html"):
        raise click.BadParameter(
            plain(f"{file.name!r} does not end with .csv, .json or .html: name the format with --format"),
            param_hint="'--output'",
        )
    return file.suffix.lower()[1:]


@contextmanager
def spooled() -> Iterator[IO[str]]:
    """Yield a file whose content goes to standard output at the end, if nothing fails.

    So a reader that waits, such as a pager, holds no transaction open, and the rows need no memory.

    Raises:
        Refused: There is no room for it on the disk.
    """
    try:
        spool = tempfile.TemporaryFile("w+", encoding="utf-8", newline="")  # noqa: SIM115 - closed below
    except OSError as error:
        raise _no_room(error) from error
    with closing(spool):
        try:
            yield spool
            spool.seek(0)
        except OSError as error:
            with suppress(OSError):
                spool.close()  # it would try to write the rest once more, and fail once more
            raise _no_room(error) from error
        shutil.copyfileobj(spool, sys.stdout)


def _no_room(error: OSError) -> Refused:
    why = error.strerror or str(error)
    return Refused(f"cannot keep the rows in a temporary file: {why}; make room, or name another folder in TMPDIR")


@contextmanager
def destination(file: Path | None) -> Iterator[IO[str]]:
    """Yield where to write what shall be in *file* (None: on standard output) once all of it is there."""
    if file is None:
        with spooled() as spool:
            yield spool
        return
    try:
        there = file.stat() if file.exists() else None
        if there is not None and not S_ISREG(there.st_mode):  # a pipe or /dev/null: nothing that could be replaced
            with file.open("w", encoding="utf-8", newline="") as stream:
                yield stream
            return
        target = Path(os.path.realpath(file))  # a link stays one
        if there is not None and not os.access(target, os.W_OK):
            raise PermissionError(13, "Permission denied")
        part = target.with_name(f".{target.name[:50]}.{os.urandom(4).hex()}.part")
        with part.open("x", encoding="utf-8", newline="") as stream:
            try:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
                if there is not None:
                    os.chmod(part, there.st_mode & 0o777)
                os.replace(part, target)
            finally:
                part.unlink(missing_ok=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise click.BadParameter(
            plain(f"cannot write {str(file)!r}: {why}; name a file in a folder that exists and that you may write to"),
            param_hint="'--output'",
        ) from None


def spare_database(file: Path | None, engine: sa.Engine) -> None:
    """Refuse to write over the database, or over a file that SQLite keeps beside it, there or not yet."""
    if file is None or engine.dialect.name != "sqlite":
        return
    place = os.path.realpath(str(engine.url.database))
    for theirs in (Path(place + ending) for ending in ("", "-wal", "-shm", "-journal")):
        if Path(os.path.realpath(file)) == theirs or (file.exists() and theirs.exists() and file.samefile(theirs)):
            problem = f"{str(file)!r} belongs to the database, and is not replaced: name another file"
            raise click.BadParameter(plain(problem), param_hint="'--output'")
