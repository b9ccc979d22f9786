"""The evidence pack: what is sealed, as files that a stranger can verify with sh, awk, sha256sum and openssl.

Owns what is in the folder that ``tracker audit export`` writes, and that it is whole or not there at all. The sealed
rows are written as they were hashed (``lines``); the CSV files are made from those very lines, by rules that the views
and `tracker.deadline` have too, and that ``verify.sh`` beside this file states once more in awk. Everything is as of
the last seal in the pack: the same database, range, version and key give the same bytes, whenever and wherever.

Leaves alone: sealing (``seal``), and judging the record (``verify``, ``verify.sh``). A record that somebody has changed
is packed as it is, so that a verifier finds it.
"""

from __future__ import annotations

import csv
import fcntl
import glob
import os
import re
import shutil
import tempfile
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from importlib.metadata import version
from importlib.resources import files
from itertools import groupby, product
from operator import call
from pathlib import Path
from string import Template
from typing import BinaryIO, Final, NamedTuple
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from tracker import database
from tracker.audit import lines
from tracker.audit.checkpoint import Checkpoint, Segment, Signed, SigningKey, parse, token
from tracker.audit.histories import day
from tracker.deadline import Deadline, deadline, extension_recorded_at, verdict
from tracker.errors import Refused
from tracker.models import Gap, Seal, Source, Transition
from tracker.reports import page
from tracker.reports.about import Filters
from tracker.reports.as_of import Sealed
from tracker.reports.words import cell
from tracker.status import Action, Kind, State

SUMS: Final = "SHA256SUMS"
TABLES: Final = {
    "transitions.csv": ("checkpoint", *lines.COLUMNS["transition"]),
    "gaps.csv": ("cluster", "began_at", "ended_at", "cause", "detail", "seconds"),
    "jobs.csv": (
        *("cluster", "jid", "kind", "reference", "state", "status", "status_after", "status_by", "seen_at"),
        *("submitted_at", "registered_at", "registered_by", "received_at", "deadline_on", "verdict"),
        *("ended_after", "ended_by", "age_seconds", "polls"),
    ),
    "durations.csv": (
        *("cluster", "jid", "kind", "reference", "submitted_at", "registered_at", "done_after", "done_by"),
        *("seconds_min", "seconds_max", "uncertainty_seconds", "download_by", "polls"),
    ),
    "deadlines.csv": (
        *("cluster", "jid", "kind", "reference", "state", "received_at", "received_at_first", "amendments", "basis"),
        *("deadline_on", "deadline_at", "extended_on", "done_after", "done_by", "verdict", "days_left"),
    ),
}
"""The columns of each CSV file: the views' of the same name, as far as sealed rows tell them.

Of jobs, the next poll and the failures are not recorded in transitions; of gaps, an open one is not sealed, and
``open_jobs`` is no fact of the gap."""

_BEGIN: Final = "v1|transition|"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_DAY: Final = 86_400_000_000  # microseconds
_DOWNLOAD: Final = 7 * _DAY  # an export's data last about a week (``report_durations.download_by``)
_ROWS_AT_ONCE: Final = 1000  # of a CSV file that are written together
_CHUNK: Final = 500  # jobs whose transitions are fetched together: some hundred kB


class _Chosen(NamedTuple):
    """What was asked for: the ids of the first and the last seal, and the checkpoint of the last."""

    first_id: int
    last_id: int
    last: Checkpoint


class _Row(NamedTuple):
    """What the reports need of a transition; times are microseconds since 1970, as in its line."""

    job_id: int
    jid: str
    action: str
    from_status: str | None
    to_status: str | None
    to_state: str
    last_seen_at: int | None
    observed_at: int
    server_date: int | None
    polls: int
    actor: str | None
    kind: str | None
    reference: str | None
    received_at: int | None
    submitted_at: int | None
    extended_on: object


@dataclass(frozen=True, slots=True)
class Pack:
    """What was written.

    Attributes:
        folder: Where.
        as_of: When the last seal in it was made.
        checkpoints: How many; their numbers begin with 1.
        first: The number of the first checkpoint whose segments are in it.
        segments: How many segments.
        transitions: How many transitions are in them.
        earlier: How many of these are of jobs begun before the first segment: no row of the other CSV files tells them.
        jobs: How many jobs the CSV files are about.
        key_id: Of the key that signed the last checkpoint; None: nobody signed it.
        is_signed: SHA256SUMS is signed by that key.
        digest: The SHA-256 of SHA256SUMS: it stands for all of the pack.
        unsealed: How many rows of the database no checkpoint closes yet.
        differing: The segments whose rows in the database are not those that were sealed.
    """

    folder: Path
    as_of: datetime
    checkpoints: int
    first: int
    segments: int
    transitions: int
    earlier: int
    jobs: int
    key_id: str | None
    is_signed: bool
    digest: str
    unsealed: int
    differing: tuple[str, ...]


def export(
    engine: sa.Engine,
    folder: Path,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    clusters: Sequence[str] = (),
    zone: ZoneInfo,
    key: SigningKey | None = None,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> Pack:
    """Write the pack to *folder*, which must not be there: whole, or not at all.

    Args:
        engine: The database; it is only read, each file in one transaction.
        folder: Where to; the folder above it must be there.
        since: Only what was sealed at this instant or later (aware).
        until: Only what was sealed before this instant (aware); the checkpoints end there, too.
        clusters: Only segments of these; empty: of all.
        zone: The legal time zone (setting ``timezone``).
        key: Signs SHA256SUMS, if it is the key that signed the last checkpoint.
        told: Is given how many steps of how many are done.

    Raises:
        Refused: The folder is there or cannot be written, nothing that was asked for is sealed, or the record holds
            what it cannot. Nothing is left.
        BadCheckpoint: A seal in the database holds no checkpoint.
        DatabaseUnavailable: The database did not answer. Nothing is left.
    """
    folder = Path(os.path.abspath(folder))  # so that "." and ".." have names
    if folder.exists() or folder.is_symlink():
        raise Refused(f"{folder} is there already: name a folder that is not, so that the pack holds nothing else")
    temporary: Path | None = None
    lock: int | None = None
    try:
        with _sense("something in the record"), ExitStack() as stack:
            connection = stack.enter_context(database.reading(engine))
            chosen = _chosen(connection, since, until)
            drawn = stack.enter_context(_page(engine, Filters(clusters=tuple(clusters)), chosen.last, zone))
            _clear(folder)
            temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
            with suppress(OSError):  # a file system that has no locks
                lock = _lock(temporary)
            pack = _write(connection, temporary, folder, chosen, clusters, zone, key, drawn, told)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)  # it was made for its owner alone
        temporary.rename(folder)
        _sync(folder.parent)
    except BaseException as error:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            why = error.strerror or str(error)
            raise Refused(f"the pack cannot be written to {folder}: {why}; nothing was left there") from error
        raise
    finally:
        if lock is not None:
            os.close(lock)
    return pack


@contextmanager
def _sense(what: str) -> Iterator[None]:
    """Refuse *what* cannot be exported, as over values that are only there if somebody took the CHECKs away."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, sa.exc.DataError) as error:
        why = f"{type(error).__name__}: {error}".partition("\n")[0]  # without the statement, of SQL's
        way_out = "run `tracker audit verify`; if it finds nothing, that is a fault of tracker's"
        raise Refused(f"{what} cannot be exported ({why}): {way_out}") from error


def _clear(folder: Path) -> None:
    """Remove what an export to *folder* left that was killed; the one of a process that lives is locked, and stays."""
    begin = f".{folder.name}.partial-"
    for path in folder.parent.glob(f"{glob.escape(begin)}*"):
        if re.fullmatch("[a-z0-9_]{8}", path.name.removeprefix(begin)):  # as `tempfile` names them
            with suppress(OSError):
                lock = _lock(path)
                try:
                    shutil.rmtree(path, ignore_errors=True)
                finally:
                    os.close(lock)


def _lock(folder: Path) -> int:
    """Return a descriptor of *folder* that holds the lock on it until it is closed, or the process ends."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _chosen(connection: sa.Connection, since: datetime | None, until: datetime | None) -> _Chosen:
    s = Seal.__table__.c
    query = sa.select(sa.func.min(s.id), sa.func.max(s.id))
    if since is not None:
        query = query.where(s.sealed_at >= since)
    if until is not None:
        query = query.where(s.sealed_at < until)
    first, last = connection.execute(query).one()
    if first is None:
        if since is None and until is None:
            raise Refused("nothing is sealed yet, so nothing can be proven: the daemon seals, or `tracker run --once`")
        raise Refused("nothing was sealed between --since and --until; `tracker audit head` shows the last checkpoint")
    text = connection.execute(sa.select(s.checkpoint).where(s.id == last)).scalar_one()
    return _Chosen(first, last, _parsed(last, text).checkpoint)


def _parsed(seal_id: int, text: str) -> Signed:
    try:
        return parse(text)
    except Refused as error:
        raise type(error)(f"seal {seal_id} in the database: {error}; run `tracker audit verify`") from error


@contextmanager
def _page(engine: sa.Engine, filters: Filters, last: Checkpoint, zone: ZoneInfo) -> Iterator[futures.Future[str]]:
    """Have the page as of *last* drawn meanwhile: the database takes most of its time, and Python of the other files'.

    It is of what is sealed, so another transaction sees the same. It ends with the page: PostgreSQL would end it, idle
    for a minute while the other files of millions of rows are written.
    """
    sealed = Sealed(last.transitions[1], last.gaps[1], last.sources[1])
    connections: list[sa.Connection] = []

    def draw() -> str:
        with database.reading(engine, temporary=True) as connection:
            connections.append(connection)
            return page.render(connection, filters, as_of=last.sealed_at, zone=zone, sealed=sealed)

    with futures.ThreadPoolExecutor(1) as pool:
        drawn = pool.submit(draw)
        try:
            yield drawn
        finally:
            while not drawn.done():  # something failed: in one query or between two
                with suppress(KeyboardInterrupt):  # a second one changes nothing
                    for connection in connections:
                        database.interrupt(connection)
                    futures.wait((drawn,), timeout=0.1)


class _Folder:
    """The files of a pack while it is written, and the SHA-256 of each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sums: dict[str, str] = {}

    def put(self, name: str, content: bytes) -> str:
        """Write a file and return its SHA-256."""
        (self.path / name).write_bytes(content)
        self.sums[name] = sha256(content).hexdigest()
        return self.sums[name]


class _Table:
    """A CSV file while it is written."""

    def __init__(self, folder: _Folder, name: str) -> None:
        self._folder, self._name = folder, name
        self._file: BinaryIO = (folder.path / name).open("wb")
        self._sum = sha256()
        self._ahead: list[str] = []
        self._writer = csv.writer(self, lineterminator="\n")
        self.row(TABLES[name])

    def row(self, cells: Sequence[str]) -> None:
        """Write a row of as many cells as the table has columns."""
        text = ",".join(cells)
        if text.count(",") == len(cells) - 1 and '"' not in text and "\n" not in text:
            self.write(f"{text}\n")  # nothing to quote, as in nearly all of them: a fifth of the time
        else:
            self._writer.writerow(cells)

    def write(self, text: str) -> None:
        self._ahead.append(text)
        if len(self._ahead) == _ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        content = "".join(self._ahead).encode()
        self._ahead.clear()
        self._file.write(content)
        self._sum.update(content)

    def close(self) -> None:
        try:
            self._flush()
        finally:
            self._file.close()
        self._folder.sums[self._name] = self._sum.hexdigest()


@dataclass(slots=True)
class _Contents:
    """What has been found while the segments were written."""

    last: Checkpoint
    sha256: str = ""  # of the last checkpoint
    first: int = 0  # the number of the first checkpoint whose segments are wanted
    segments: list[tuple[str, int, int, str]] = field(default_factory=list)  # cluster, checkpoint, part, name
    differing: list[str] = field(default_factory=list)
    known: set[str] = field(default_factory=set)  # all clusters that have a segment anywhere


def _write(
    connection: sa.Connection,
    temporary: Path,
    target: Path,
    chosen: _Chosen,
    clusters: Sequence[str],
    zone: ZoneInfo,
    key: SigningKey | None,
    drawn: futures.Future[str],
    told: Callable[[int, int], None],
) -> Pack:
    if connection.dialect.name == "postgresql":
        # A long stretch of writing files, or of the page, is no reason to end this transaction; it holds nobody up.
        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = '1h'")
    folder = _Folder(temporary)
    (temporary / "segments").mkdir()
    (temporary / "checkpoints").mkdir()
    progress = _Progress(told, drawn)
    last = chosen.last
    contents = _segments(connection, folder, chosen, clusters, progress)
    if unknown := sorted(set(clusters) - contents.known):
        there = f"there are: {', '.join(sorted(contents.known))}" if contents.known else "there is none"
        raise Refused(f"no segment is of cluster {', '.join(unknown)}; {there}")
    counts = _tables(connection, folder, contents, zone, progress)
    folder.put("report.html", drawn.result().encode())
    folder.put("timezone.csv", _timezone(zone, _instant(counts.earliest), last.sealed_at))
    is_signed = key is not None and last.key is not None and key.public.id == last.key.id
    if last.key is not None:
        folder.put("public_key.pem", last.key.pem().encode())
    facts = {
        "format": "tracker pack v1",
        "tracker": version("tracker"),
        "origin": last.origin,
        "last_checkpoint": str(last.number),
        "last_checkpoint_sha256": contents.sha256,
        "as_of": last.sealed_at.isoformat(timespec="microseconds"),
        "timezone": zone.key,
        "first_checkpoint": str(contents.first),
        "clusters": "chosen" if clusters else "all",
        "segments": str(len(contents.segments)),
        "transitions": str(counts.transitions),
        "transitions_of_jobs_begun_earlier": str(counts.transitions - counts.covered),
        "jobs": str(counts.jobs),
        "key": last.key.id if last.key else "none",
        "signature": f"{SUMS}.sig" if is_signed else "none",
    }
    told_facts = [f"{name}: {value}\n" for name, value in facts.items()]
    told_facts += [f"cluster: {name}\n" for name in sorted(set(clusters))]
    folder.put("about.txt", "".join(told_facts).encode())
    template = Template(files(__package__).joinpath("README.txt").read_text(encoding="utf-8"))
    folder.put("README.txt", template.substitute(facts, met=page.MET).encode())
    folder.put("verify.sh", files(__package__).joinpath("verify.sh").read_bytes())
    (temporary / "verify.sh").chmod(0o755)
    os.sync()  # the list comes after all that it lists, also on the disk
    listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(folder.sums.items())).encode()
    for name, content in ((SUMS, listing), (f"{SUMS}.sig", key.sign(listing) if key and is_signed else b"")):
        if content:
            with (temporary / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
    for part in (temporary / "segments", temporary / "checkpoints", temporary):
        _sync(part)
    return Pack(
        folder=target,
        as_of=last.sealed_at,
        checkpoints=last.number,
        first=contents.first,
        segments=len(contents.segments),
        transitions=counts.transitions,
        earlier=counts.transitions - counts.covered,
        jobs=counts.jobs,
        key_id=last.key.id if last.key else None,
        is_signed=is_signed,
        digest=sha256(listing).hexdigest(),
        unsealed=_unsealed(connection),
        differing=tuple(contents.differing),
    )


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unsealed(connection: sa.Connection) -> int:
    """Return how many rows came after the newest seal of the database."""
    newest = connection.execute(sa.select(Seal.__table__).order_by(Seal.id.desc()).limit(1)).one()
    after = ((Transition, newest.last_transition_id), (Gap, newest.last_gap_id), (Source, newest.last_source_id))
    return sum(
        connection.execute(sa.select(sa.func.count()).select_from(table).where(table.id > (last or 0))).scalar_one()
        for table, last in after
    )


class _Progress:
    """Tells how far it is: each transition is gone through three times."""

    def __init__(self, told: Callable[[int, int], None], drawn: futures.Future[str]) -> None:
        self._told, self._drawn, self._done, self._total = told, drawn, 0, 1

    def begin(self, transitions: int) -> None:
        self._total = max(transitions * 3, 1)

    def step(self, transitions: int) -> None:
        if self._drawn.done():
            self._drawn.result()  # where the page has failed, all else is in vain
        self._done += transitions
        self._told(min(self._done, self._total), self._total)


# -- segments and checkpoints ---------------------------------------------------------------------------------------


def _segments(
    connection: sa.Connection,
    folder: _Folder,
    chosen: _Chosen,
    clusters: Sequence[str],
    progress: _Progress,
) -> _Contents:
    """Write all checkpoints up to the last that was asked for, and the segments of those asked for."""
    s = Seal.__table__.c
    query = sa.select(s.id, s.checkpoint, s.checkpoint_sha256).where(s.id <= chosen.last_id).order_by(s.id)
    ends = sa.select(s.last_transition_id).where(s.id.in_((chosen.first_id, chosen.last_id)))
    known = sorted(connection.execute(ends).scalars())
    progress.begin(known[-1] - known[0])
    contents = _Contents(chosen.last)
    names: dict[str, str] = {}
    with ExitStack() as stack:
        seals = stack.enter_context(connection.execute(query, execution_options={"yield_per": 100}))
        reader: _Reader | None = None
        for row in seals:
            signed = _parsed(row.id, row.checkpoint)
            checkpoint = signed.checkpoint
            name = f"checkpoints/{checkpoint.number:06d}.txt"
            if name in folder.sums:
                raise Refused(f"two seals have number {checkpoint.number}: run `tracker audit verify`")
            contents.sha256 = folder.put(name, signed.text.encode())
            contents.known.update(names.setdefault(segment.cluster, segment.cluster) for segment in checkpoint.segments)
            if row.id < chosen.first_id:
                continue
            if reader is None:
                contents.first = checkpoint.number
                reader = _Reader(connection, checkpoint, chosen.last)
                stack.callback(reader.close)
            _one_seal(folder, checkpoint, reader, clusters, names, contents)
            progress.step(checkpoint.transitions[1] - checkpoint.transitions[0])
    contents.segments.sort()
    return contents


class _Reader:
    """The lines of all rows, seal after seal; one statement a table, however many seals there are."""

    def __init__(self, connection: sa.Connection, first: Checkpoint, last: Checkpoint) -> None:
        self._streams = {
            kind: lines.stream(connection, kind, getattr(first, f"{kind}s")[0], getattr(last, f"{kind}s")[1])
            for kind in lines.KINDS
        }
        self._ahead: dict[str, tuple[int, str, str] | None] = dict.fromkeys(lines.KINDS)

    def upto(self, kind: str, last: int) -> Iterator[tuple[int, str, str]]:
        """Yield (id, cluster, line) of the rows of *kind* not yet read, up to id *last*."""
        stream = self._streams[kind]
        while True:
            row = self._ahead[kind] or next(stream, None)
            self._ahead[kind] = None
            if row is None:
                return
            if row[0] > last:
                self._ahead[kind] = row
                return
            yield row

    def close(self) -> None:
        for stream in self._streams.values():
            with suppress(Exception):  # what ended the export has been told
                stream.close()


def _one_seal(
    folder: _Folder,
    checkpoint: Checkpoint,
    reader: _Reader,
    clusters: Sequence[str],
    names: dict[str, str],
    contents: _Contents,
) -> None:
    """Write the segments of one seal: each row into the segment whose ids it lies among.

    A row that was added since lies in none or makes its segment another; one that is gone makes it another, too. At
    any time the segment that each cluster's rows are being read for is in memory.
    """
    its: dict[str, list[Segment]] = defaultdict(list)
    for segment in checkpoint.segments:
        if not clusters or segment.cluster in clusters:
            its[segment.cluster].append(segment)
    texts: dict[str, list[str]] = {cluster: [] for cluster in its}
    at: dict[str, int] = dict.fromkeys(its, 0)

    def end(cluster: str) -> None:
        segment = its[cluster][at[cluster]]
        name = f"segments/{checkpoint.number:06d}-{segment.part:04d}-{token(cluster)[:100]}.txt"
        if folder.put(name, "".join(texts[cluster]).encode()) != segment.sha256:
            contents.differing.append(name)
        contents.segments.append((names[cluster], checkpoint.number, segment.part, name))
        texts[cluster].clear()
        at[cluster] += 1

    bounds = {"source": checkpoint.sources, "gap": checkpoint.gaps, "transition": checkpoint.transitions}
    ranges: dict[str, Callable[[Segment], tuple[int, int] | None]] = {
        "source": lambda segment: segment.sources,
        "gap": lambda segment: segment.gaps,
        "transition": lambda segment: segment.transitions,
    }
    for kind in lines.KINDS:
        for id_, cluster, line in reader.upto(kind, bounds[kind][1]):
            segments = its.get(cluster)
            if segments is None:
                continue
            while at[cluster] < len(segments) - 1:
                here = ranges[kind](segments[at[cluster]])
                later = ranges[kind](segments[at[cluster] + 1])
                if later is None or id_ < later[0] or (here is not None and id_ <= here[1]):
                    break
                end(cluster)
            texts[cluster].append(line)
    for cluster, segments in its.items():
        while at[cluster] < len(segments):
            end(cluster)


# -- the CSV files --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Counts:
    """Of the rows in the CSV files.

    Attributes:
        earliest: The earliest instant that a deadline is counted from, in microseconds since 1970.
        transitions: All in the segments.
        covered: Those of the jobs whose whole history is in them.
        jobs: These jobs.
    """

    earliest: int
    transitions: int = 0
    covered: int = 0
    jobs: int = 0


def _tables(
    connection: sa.Connection, folder: _Folder, contents: _Contents, zone: ZoneInfo, progress: _Progress
) -> _Counts:
    """Write the CSV files: cluster by cluster, the jobs of each in the order of their first transitions."""
    as_of, last_id = _microseconds(contents.last.sealed_at), contents.last.transitions[1]
    counts = _Counts(earliest=as_of)
    with ExitStack() as stack:
        tables = {name: stack.enter_context(closing(_Table(folder, name))) for name in TABLES}
        transitions = tables["transitions.csv"]
        for cluster, segments in groupby(contents.segments, key=lambda segment: segment[0]):
            jobs = array("q")
            for _, number, _, name in segments:
                found = 0
                with (folder.path / name).open(encoding="utf-8", newline="\n") as file:
                    for line in file:
                        if line.startswith(_BEGIN):
                            found += 1
                            cells = _cells(line, str(number))
                            if cells is None:
                                cells = [str(number), *map(call, _AS_TEXT, _decoded(line, name)[1].values())]
                            transitions.row(cells)
                            if cells[_SEQ] == "0":
                                jobs.append(int(cells[_JOB_ID] or 0))
                            continue
                        kind, gap = _decoded(line, name)
                        if kind == "gap":
                            began_at, ended_at = _int(gap["began_at"]), _int(gap["ended_at"])
                            told = gap["cause"] or "", _cell(gap["detail"]), _seconds(began_at, ended_at)
                            tables["gaps.csv"].row((_cell(cluster), _time(began_at), _time(ended_at), *told))
                counts.transitions += found
                progress.step(found)
            for chunk in (jobs[start : start + _CHUNK] for start in range(0, len(jobs), _CHUNK)):
                read = 0
                for rows in _histories(connection, chunk, last_id):
                    read += len(rows)
                    with _sense(f"the history of job {rows[0].jid} of cluster {cluster}"):
                        _job(tables, cluster, rows, as_of, zone, counts)
                counts.covered += read
                counts.jobs += len(chunk)
                progress.step(read)
    return counts


_CLOCK: Final = tuple(f"{hour:02}:{at:02}:{second:02}" for hour, at, second in product(range(24), range(60), range(60)))
"""What a clock shows in each second of a day."""


@lru_cache(maxsize=10_000)
def _date(days: int) -> str:
    return (_EPOCH + timedelta(days=days)).date().isoformat()


def _time(at: int | str | None) -> str:
    """Return an instant, in microseconds since 1970, as ``tracker report --format csv`` writes it; of None, nothing.

    Quicker than a datetime does: a million transitions have three each.
    """
    if at is None:
        return ""
    second, rest = divmod(int(at), 1_000_000)
    days, second = divmod(second, 86400)
    return f"{_date(days)}T{_CLOCK[second]}.{rest:06}+00:00"


@lru_cache(maxsize=10_000)  # most columns say the same few things again and again
def _cell(text: str | None) -> str:
    return "" if text is None else cell(text)


def _raw(value: str | None) -> str:
    return value or ""


_AS_TEXT: Final = tuple(
    {
        **dict.fromkeys(("id", "job_id", "seq", "action", "to_state", "polls"), _raw),
        **dict.fromkeys(("last_seen_at", "observed_at", "server_date", "received_at", "submitted_at"), _time),
    }.get(column, _cell)
    for column in lines.COLUMNS["transition"]
)
"""By column of a transition: how its value becomes text; numbers and our own words are text already, and safe."""
_CELLS: Final = TABLES["transitions.csv"]
_JOB_ID, _SEQ = map(_CELLS.index, ("job_id", "seq"))
_TIMES: Final = tuple(place for place, function in enumerate(_AS_TEXT, 1) if function is _time)
_UNLIKE_CELLS: Final = ("\\", "|=", "|+", "|-", "|@")
"""Where none of these is in a line, NULLs apart, each of its fields is a cell as it is."""


def _cells(line: str, number: str) -> list[str] | None:
    """Return the row of transitions.csv that a transition's line is, of checkpoint *number*; None: decode it.

    For lines like nearly all, a third of the time.
    """
    text = line[len(_BEGIN) - 1 : -1].replace("|\\N", "|")
    if not text.isascii() or not text.isprintable() or any(map(text.__contains__, _UNLIKE_CELLS)):
        return None
    cells = text.split("|")
    if len(cells) != len(_CELLS):
        return None
    cells[0] = number
    for place in _TIMES:
        if cells[place]:
            cells[place] = _time(cells[place])
    return cells


def _decoded(line: str, name: str) -> tuple[str, dict[str, str | None]]:
    try:
        return lines.decode(line)
    except ValueError as error:
        raise Refused(f"a row of {name} is none that tracker writes: {error}; run `tracker audit verify`") from error


def _histories(connection: sa.Connection, jobs: Sequence[int], last_id: int) -> Iterator[list[_Row]]:
    """Yield the sealed transitions of each job, in the order of *jobs*.

    Their lines are in the segments and have been read: so they hold what their types can, and need not be lines again.
    """
    dialect = connection.dialect.name
    columns = ", ".join(
        "j.jid"
        if column == "jid"
        else lines.microseconds(f"t.{column}", dialect)
        if column.endswith(("_at", "_date"))
        else f"t.{column}"
        for column in _Row._fields
    )
    query = (
        f"SELECT {columns} FROM jobs j JOIN transitions t ON t.job_id = j.id"
        f" WHERE j.id IN ({', '.join(map(str, jobs))}) AND t.id <= {last_id} ORDER BY t.job_id, t.seq"
    )
    found: dict[int, list[_Row]] = defaultdict(list)
    for row in map(_Row._make, connection.exec_driver_sql(query).all()):
        found[row.job_id].append(row)
    for job_id in jobs:
        if job_id in found:
            yield found[job_id]


def _job(
    tables: dict[str, _Table], cluster: str, rows: Sequence[_Row], as_of: int, zone: ZoneInfo, counts: _Counts
) -> None:
    """Write the rows about a job, from its transitions; the rules are those of the views, as of *as_of*."""
    begun = moved = rows[0]
    entry: _Row | None = None
    declared = [begun]
    for row in rows[1:]:
        if row.action == Action.AMENDED:
            declared.append(row)
        else:
            moved = row
            if row.action == Action.OBSERVED and row.to_status != row.from_status:
                entry = row
    facts, last = declared[-1], rows[-1]
    state, status, seen_at = State(last.to_state), last.to_status, last.last_seen_at
    status_after, status_by = (entry.last_seen_at, entry.observed_at) if entry else (None, None)
    received_at, submitted_at, registered_at = facts.received_at, facts.submitted_at, begun.observed_at
    ended_after, ended_by = _end(moved)
    if state in (State.DONE, State.FAILED, State.LOST):
        ended_after = _begin(ended_after, submitted_at, ended_by)
    due = _deadline(declared, registered_at, zone)
    due_at = _microseconds(due.at)
    found = verdict(state, status, status_after, seen_at, ended_after, ended_by, due_at, as_of).value
    began_at = registered_at if submitted_at is None else submitted_at
    counts.earliest = min(counts.earliest, began_at if received_at is None else received_at)
    reference = "" if facts.reference is None else cell(facts.reference)
    names = (_cell(cluster), cell(begun.jid), facts.kind or "", reference)
    received, submitted, registered = _time(received_at), _time(submitted_at), _time(registered_at)
    after, by, due_on = _time(ended_after), _time(ended_by), due.on.isoformat()
    is_done, is_unsettled = state is State.DONE, state in (State.OPEN, State.FAILED, State.LOST)
    tables["jobs.csv"].row(
        (
            *names,
            state.value,
            _cell(status),
            _time(_begin(status_after, submitted_at, status_by)) if status else "",
            _time(status_by),
            _time(seen_at),
            submitted,
            registered,
            _cell(begun.actor),
            received,
            due_on,
            found,
            after,
            by,
            _passed(began_at, as_of if ended_by is None else ended_by),
            str(last.polls),
        )
    )
    tables["deadlines.csv"].row(
        (
            *names,
            state.value,
            received,
            _time(begun.received_at),
            str(len(declared) - 1),
            due.basis.value,
            due_on,
            _time(due_at),
            str(facts.extended_on or ""),
            after if is_done else "",
            by if is_done else "",
            found,
            str((due_at - as_of) // _DAY) if is_unsettled else "",
        )
    )
    if is_done:
        is_export = facts.kind == Kind.EXPORT
        tables["durations.csv"].row(
            (
                *names,
                submitted,
                registered,
                after,
                by,
                _passed(began_at, began_at if ended_after is None else ended_after),
                _passed(submitted_at, ended_by),
                _seconds(ended_after, ended_by),
                _time(ended_after + _DOWNLOAD) if ended_after is not None and is_export else "",
                str(last.polls),
            )
        )


def _end(moved: _Row) -> tuple[int | None, int | None]:
    """Return the bounds of a job's end, from the last transition that was no amendment."""
    if moved.to_state == State.OPEN:
        return None, None
    if moved.action == Action.ATTESTED:
        return None, moved.server_date
    if moved.action == Action.WITHDRAWN:
        return moved.observed_at, moved.observed_at
    return moved.last_seen_at, moved.observed_at


def _begin(seen: int | None, submitted: int | None, by: int | None) -> int | None:
    """Return what something began not before (the views' macro ``begin``)."""
    if seen is None and submitted is not None and by is not None and submitted > by:
        return by
    return submitted if seen is None else seen


def _deadline(declared: Sequence[_Row], registered_at: int, zone: ZoneInfo) -> Deadline:
    facts = declared[-1]
    times = _at(facts.received_at), _at(facts.submitted_at), _instant(registered_at)
    if facts.extended_on is None:
        return deadline(*times, zone)
    history = [(_instant(row.observed_at), day(row.extended_on)) for row in declared]
    return deadline(*times, zone, extended_on=history[-1][1], extension_recorded_at=extension_recorded_at(history))


def _int(text: str | None) -> int | None:
    return None if text is None else int(text)


def _instant(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


def _microseconds(at: datetime) -> int:
    return (at - _EPOCH) // _MICROSECOND


def _at(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else _instant(microseconds)


def _passed(since: int | None, until: int | None) -> str:
    """Return the seconds between, 0 where a clock put *since* after *until* (the views' macro ``passed``)."""
    return "" if since is None or until is None else _seconds(since, max(since, until))


def _seconds(since: int | None, until: int | None) -> str:
    """Return the seconds between, with six decimals, exactly."""
    if since is None or until is None:
        return ""
    passed = until - since
    whole, rest = divmod(abs(passed), 1_000_000)
    return f"{'-' if passed < 0 else ''}{whole}.{rest:06d}"


def _timezone(zone: ZoneInfo, earliest: datetime, as_of: datetime) -> bytes:
    """Return, for all years that a deadline may fall into, from when on which offset holds in *zone*."""
    begin = datetime(earliest.year - 1, 1, 1, tzinfo=UTC)
    end = datetime(as_of.year + 2, 1, 1, tzinfo=UTC)

    def offset(at: datetime) -> int:
        shift = at.astimezone(zone).utcoffset() or timedelta()
        return shift // timedelta(seconds=1)

    found = [(begin, offset(begin))]
    step = timedelta(hours=12)
    at = begin
    while at < end:
        if offset(at + step) != found[-1][1]:
            low, high = at, at + step
            while high - low > timedelta(seconds=1):
                middle = low + (high - low) // timedelta(seconds=2) * timedelta(seconds=1)
                low, high = (middle, high) if offset(middle) == found[-1][1] else (low, middle)
            found.append((high, offset(high)))
        at += step
    rows = (f"{(since - _EPOCH) // timedelta(seconds=1)},{seconds}\n" for since, seconds in found)
    return ("from_epoch_seconds,offset_seconds\n" + "".join(rows)).encode()
