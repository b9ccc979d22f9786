"""The evidence pack: the sealed rows as files that anyone can verify with sha256sum, openssl and SQL.

Owns the folder that ``tracker audit export`` writes: it is complete, or not there. Segments are the rows as they were
sealed (``lines``). Reports are the views as of the last checkpoint (``reports.as_of``); nothing is computed here. The
same history gives the same bytes from SQLite and PostgreSQL.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from importlib.resources import files
from itertools import islice
from pathlib import Path
from string import Template
from typing import Any, Final
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from tracker import database
from tracker.audit import checkpoint, lines, seal
from tracker.audit.checkpoint import instant
from tracker.audit.keys import SigningKey, sync_folder
from tracker.audit.verify import Progress
from tracker.errors import Refused
from tracker.models import SEGMENTS
from tracker.reports import page
from tracker.reports.about import Filters
from tracker.reports.as_of import Sealed, kept, legal_days, shadows
from tracker.reports.tables import column_type
from tracker.reports.views import VIEWS

SUMS: Final = "SHA256SUMS"
_UNKNOWN: Final = frozenset(("next_poll_at", "failures", "last_error"))  # in no sealed row, so always NULL
_STREAM: Final = {"yield_per": 1000}  # rows that are fetched together: some hundred kB


@dataclass(frozen=True, slots=True)
class Pack:
    """What was written."""

    folder: Path
    last: checkpoint.Checkpoint
    rows: int  # in the segments
    is_signed: bool  # whether the key of the last checkpoint signed SHA256SUMS
    sha256: str  # of SHA256SUMS, which lists all files
    unsealed: int  # rows of the database that are not sealed yet


def export(
    engine: sa.Engine,
    folder: Path,
    *,
    zone: ZoneInfo,
    key: SigningKey | None = None,
    progress: Progress = lambda done, total, what: None,
) -> Pack:
    """Write everything up to the last checkpoint to the new folder *folder*; on an error nothing is left there.

    Args:
        engine: The database; it is only read, in one transaction.
        folder: It must not exist; the folder above it must.
        zone: The legal time zone of the settings: for a cluster without a source.
        key: Signs SHA256SUMS if it also signed the last checkpoint.

    Raises:
        Refused: The folder exists or cannot be written, nothing is sealed yet, or the record was changed.
        BadCheckpoint: A checkpoint in the database is damaged.
    """
    folder = Path(os.path.abspath(folder))  # so that "." and ".." have names
    if folder.exists() or folder.is_symlink():
        raise Refused(f"{folder} exists: name a new folder")
    temporary = folder.with_name(f"{folder.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir()
        with database.reading(engine, temporary=True) as connection:
            pack = _write(connection, temporary, folder, zone, key, progress)
        os.sync()  # all files are on the disk before the pack has its name
        temporary.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        why = error.strerror or str(error)
        raise Refused(f"the pack cannot be written to {folder}: {why}; nothing is left there") from error
    except (ArithmeticError, ValueError) as error:  # every CHECK refuses such a value
        raise Refused(f"the record holds a value that is not valid ({error}): run `tracker audit verify`") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return pack


class _Folder:
    """The pack that is being written, and the SHA-256 of each file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sums: dict[str, str] = {}
        for name in ("checkpoints", "segments", "reports"):
            (path / name).mkdir()

    def put(self, name: str, content: Iterable[bytes]) -> str:
        """Write a file, and return its SHA-256."""
        digest = sha256()
        with (self.path / name).open("wb") as file:
            for piece in content:
                file.write(piece)
                digest.update(piece)
        self.sums[name] = digest.hexdigest()
        return self.sums[name]


def _write(
    connection: sa.Connection, temporary: Path, target: Path, zone: ZoneInfo, key: SigningKey | None, progress: Progress
) -> Pack:
    head = seal.head(connection)
    if head is None:
        raise Refused("nothing is sealed yet, so there is nothing to export: `tracker run` seals, `run --once` too")
    last = head.checkpoint
    folder = _Folder(temporary)
    rows = _put_segments(connection, folder, last, progress)
    sealed = Sealed(last.number, last.sealed_at, *(last.ids[table][1] for table in lines.TABLES))
    _put_reports(connection, folder, sealed, zone, progress)
    folder.put("reports/report.html", [page.render(connection, as_of=sealed, zone=zone).encode()])
    room = files(__package__)
    facts = {
        "number": f"{last.number}",
        "as_of": f"{last.sealed_at:%Y-%m-%d %H:%M:%S} UTC",
        "key": last.key.id if last.key else "missing, since it is not signed",
        "version": version("tracker"),
    }
    readme = Template(room.joinpath("README.txt").read_text("utf-8")).substitute(facts)
    folder.put("README.txt", [readme.encode()])
    for name in ("verify.sh", "checks.sql"):
        folder.put(name, [room.joinpath(name).read_bytes()])
    if last.key is not None:
        folder.put("public_key.pem", [last.key.pem().encode()])
    listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(folder.sums.items())).encode()
    digest = folder.put(SUMS, [listing])
    is_signed = key is not None and key.public == last.key
    if key is not None and is_signed:
        folder.put(f"{SUMS}.sig", [key.sign(listing)])
    above = " UNION ALL ".join(f"SELECT id FROM {table} WHERE id > {last.ids[table][1]}" for table in lines.TABLES)
    unsealed = connection.exec_driver_sql(f"SELECT count(*) FROM ({above}) unsealed").scalar_one()
    return Pack(target, last, rows, is_signed, digest, unsealed)


def _put_segments(connection: sa.Connection, folder: _Folder, last: checkpoint.Checkpoint, progress: Progress) -> int:
    """Write the checkpoints from the newest base on, and their segments, and return how many rows they have.

    Each table is read once, in order. A row that was changed, removed or added changes its segment, or a later one.
    """
    written, total = 0, sum(last.ids[table][1] for table in lines.TABLES)
    with ExitStack() as stack:
        rows, sizes = {}, {}
        for table in lines.TABLES:
            rows[table] = stack.enter_context(closing(lines.stream(connection, table, 0, last.ids[table][1])))
            sizes[table] = stack.enter_context(closing(_sizes(connection, table)))
        for signed in stack.enter_context(closing(seal.chain(connection, whole=False))):
            one = signed.checkpoint
            folder.put(checkpoint.path(one.number), [signed.text.encode()])
            for segment in one.segments:
                name = segment.path(one.number)
                found = [line for _, line in islice(rows[segment.name], next(sizes[segment.name], 0))]
                if folder.put(name, [lines.header(segment.name), *found]) != segment.sha256:
                    raise Refused(f"the rows of {name} are not those that were sealed: run `tracker audit verify`")
                written += len(found)
                progress(written, total, "sealed rows")
        if any(next(left, None) is not None for left in rows.values()):
            raise Refused("there are more rows than were sealed: run `tracker audit verify`")
    return written


def _sizes(connection: sa.Connection, table: str) -> Generator[int, None, None]:
    """Yield how many rows each segment of *table* has."""
    s = SEGMENTS.c
    query = sa.select(s.rows).where(s.name == table).order_by(s.seal_id, s.part)
    with closing(connection.execute(query, execution_options=_STREAM)) as result:
        yield from result.scalars()


def _put_reports(
    connection: sa.Connection, folder: _Folder, sealed: Sealed, zone: ZoneInfo, progress: Progress
) -> None:
    """Write each view as of the checkpoint, and the days of the legal time zones that its deadlines need."""
    with kept(connection, sealed, zone) as is_kept:
        for done, view in enumerate(VIEWS, 1):
            folder.put(f"reports/{view}.csv", _report(connection, view, sealed, zone, is_kept))
            progress(done, len(VIEWS), "reports")
    days = (
        f'"{day.timezone}",{day.day},{instant(day.begins_at)},{instant(day.ends_at)}\n'.encode()
        for day in legal_days(connection, sealed, zone)
    )
    folder.put("zone.csv", [b"timezone,day,begins_at,ends_at\n", *days])


def _report(connection: sa.Connection, view: str, sealed: Sealed, zone: ZoneInfo, is_kept: bool) -> Iterator[bytes]:
    """Yield the lines of a report: a header, then the rows as canonical lines, sorted by id or by their bytes."""
    dialect = connection.dialect.name
    columns = tuple(connection.execute(sa.text(f"SELECT * FROM {view} LIMIT 0")).keys())
    yield f"{','.join(columns)}\n".encode()
    line = report_line(columns, dialect)
    # As bytes in SQLite, as in `lines.stream`; PostgreSQL sorts by bytes, too.
    line = f"CAST({line} AS BLOB)" if dialect == "sqlite" else f'({line}) COLLATE "C"'
    ctes = shadows(connection, Filters(), sealed, zone, view, is_kept=is_kept)
    query: sa.Select[Any] = sa.select(sa.literal_column(line)).select_from(sa.table(view)).add_cte(*ctes)
    query = query.order_by(sa.literal_column("id" if columns[0] == "id" else "1"))
    with closing(connection.execute(query, execution_options=_STREAM)) as result:
        for text in result.scalars():
            yield (text if isinstance(text, bytes) else text.encode()) + b"\n"


def report_line(columns: Sequence[str], dialect: str) -> str:
    """Return the SQL of a line of a published report, without LF, from the columns of a view."""
    return " || ',' || ".join(
        "''" if column in _UNKNOWN else f"coalesce({lines.field(column, column_type(column), dialect)}, '')"
        for column in columns
    )
