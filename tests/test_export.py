"""The evidence pack: what is in it, that a stranger can verify it, and that each tampering is found and named."""

from __future__ import annotations

import base64
import csv
import fcntl
import hashlib
import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from tests.history import ZONE, answer, record, register
from tracker import database, guards
from tracker.audit import pack
from tracker.audit.checkpoint import SigningKey, keygen
from tracker.audit.seal import seal
from tracker.cli.audit_export import export as command
from tracker.errors import DatabaseUnavailable, Refused
from tracker.models import Gap, Source
from tracker.reports import tables
from tracker.reports.words import cell
from tracker.status import Facts, Kind, amend, attest, reopen, withdraw

ROOT = Path(__file__).parent.parent
T = datetime(2026, 1, 30, 9, 0, 0, 123456, UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def insert(engine: sa.Engine, model: Any, **values: Any) -> None:
    with database.writing(engine) as connection:
        connection.execute(sa.insert(model).values(values))


def source(engine: sa.Engine, cluster: str, base_url: str) -> None:
    rule = {"archive_days": 5, "lost_after_polls": 5, "lost_after_seconds": 99}
    place = {"base_url": base_url, "path": "/api|x", "timezone": "Europe/Stockholm", "version": "0.1.0"}
    insert(engine, Source, cluster=cluster, recorded_at=T, **rule, **place)


def change_facts(engine: sa.Engine, job: int, facts: Facts, at: datetime, reason: str) -> None:
    columns = {name: getattr(facts, name) for name in Facts.__dataclass_fields__}
    record(engine, job, lambda j, _: amend(j, facts, at, "eve", reason), **columns)


def first_half(engine: sa.Engine) -> int:
    """Record jobs with hostile text, of three clusters, and return the id of the first."""
    source(engine, "w1", "https://w1.example")
    insert(engine, Gap, cluster="w1", began_at=T, ended_at=T + HOUR, cause="unreachable", detail='x|y\\z\n"q", =1')
    first = register(
        engine, '=cmd|"x", 😀\\n', at=T, submitted_at=T - HOUR, kind="export", reference="DSR,1|\u202e\u2067"
    )
    answer(engine, first, ("waiting", T + HOUR), ("running", T + 2 * HOUR), ("done", T + 3 * HOUR))
    second = register(engine, "b", "w2", at=T, received_at=T - DAY)
    answer(engine, second, ('wéird, "st"', T + HOUR), ("done", T + 40 * DAY))
    ahead = register(engine, "c", at=T, submitted_at=T + timedelta(seconds=50), kind="export", reference="-x")
    answer(engine, ahead, ("done", T + timedelta(seconds=20)))  # by a clock that was not ahead
    register(engine, "only registered", at=T)
    return first


def second_half(engine: sa.Engine, first: int) -> None:
    """Go on with extensions, an amendment, a loss, a reopening, an attestation and a withdrawal."""
    source(engine, "w2", "http://127.0.0.1:80")
    due = {"deadline_on": date(2026, 4, 15), "deadline_at": datetime(2026, 4, 15, 22, tzinfo=UTC)}
    extended = register(engine, "d\\", "Wé|\\ 3", at=T, extended_on=date(2026, 4, 15), **due)
    answer(engine, extended, ("waiting", T + HOUR), ("error", T + 50 * DAY))
    lost = register(engine, "＝e", at=T)
    answer(engine, lost, ("waiting", T + HOUR), ("not_found", T + 2 * HOUR), ("not_found", T + 40 * DAY))
    why = "again\nline 2, \x1b[1m\u2028 \t\x85"
    record(engine, lost, lambda j, _: reopen(j, T + 41 * DAY, "bob|\\", why), due_at=T + 41 * DAY)
    late = Facts(Kind.EXPORT, "z", T - 60 * DAY, T - HOUR, date(2026, 3, 1))
    change_facts(engine, first, late, T + 42 * DAY, "@typo \\N")
    in_time = register(engine, "f", "w2", at=T + 43 * DAY)
    change_facts(engine, in_time, Facts(Kind.REMOVAL, None, T + 20 * DAY, None, date(2026, 5, 1)), T + 44 * DAY, "x")
    change_facts(engine, in_time, Facts(Kind.REMOVAL, "r", T + 21 * DAY, None, date(2026, 5, 1)), T + 70 * DAY, "y")
    record(engine, in_time, lambda j, _: attest(j, T + 43 * DAY + HOUR, T + 71 * DAY, "eve", "saw it"))
    closed = register(engine, "g", "w2", at=T + 45 * DAY)
    record(engine, closed, lambda j, _: withdraw(j, T + 46 * DAY, "eve", "wrong cluster"))
    waiting = register(engine, "h", at=T + 90 * DAY)
    answer(engine, waiting, ("waiting", T + 91 * DAY), ("running", T + 150 * DAY))


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    path = tmp_path_factory.mktemp("key") / "key.pem"
    keygen(path)
    return SigningKey.load(path)


def export(engine: sa.Engine, folder: Path, **options: Any) -> pack.Pack:
    return pack.export(engine, folder, **{"zone": ZONE} | options)


NO_ROOM = """
import os, resource, signal, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write fails, and the process lives
os.execvp(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class Shell:
    """A POSIX shell with one awk, and nothing of Python."""

    command: tuple[str, ...]
    path: str

    def verify(self, folder: Path, *options: str | Path, script: Path | None = None) -> tuple[int, list[str]]:
        """Run a pack's verify.sh and return the exit code and the lines but for notes and sources."""
        code, lines = self.lines(folder, *options, script=script)
        return code, [line for line in lines if not line.startswith(("note: ", "source "))]

    def lines(self, folder: Path, *options: str | Path, script: Path | None = None) -> tuple[int, list[str]]:
        """Run a pack's verify.sh and return the exit code and all lines."""
        run = self.run(script or folder / "verify.sh", *options)
        assert run.stderr == b"", run.stderr
        return run.returncode, run.stdout.decode().splitlines()

    def run(self, script: Path, *options: str | Path, room: int | None = None) -> subprocess.CompletedProcess[bytes]:
        """Run a script; with *room*, no file can be longer than so many bytes, as if the disk were full then."""
        limit = [sys.executable, "-c", NO_ROOM, str(room)] if room is not None else []
        return subprocess.run(
            [*limit, *self.command, script, *options],
            capture_output=True,
            check=False,
            env={"PATH": self.path, "TMPDIR": os.environ.get("TMPDIR", "/tmp")},  # noqa: S108 - where else
            cwd="/",
        )


@pytest.fixture(scope="session")
def dash() -> Shell:
    if shutil.which("dash") is None:
        pytest.skip("there is no dash")
    return Shell(("dash",), os.environ["PATH"])


@pytest.fixture(params=["mawk", "gawk", "busybox"])
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Shell:
    """Each of the shells and awks that this machine has."""
    name = str(request.param)
    if shutil.which(name) is None:
        pytest.skip(f"there is no {name}")
    tools = tmp_path / "tools"
    tools.mkdir()
    if name == "busybox":  # and nothing else but openssl
        subprocess.run(["busybox", "--install", "-s", tools], check=True)
        openssl = shutil.which("openssl")
        assert openssl
        (tools / "openssl").symlink_to(openssl)
        return Shell((str(tools / "sh"),), str(tools))
    (tools / "awk").symlink_to(str(shutil.which(name)))
    return Shell((str(shutil.which("dash") or "sh"),), f"{tools}:{os.environ['PATH']}")


def test_a_pack_is_verified_by_each_shell_and_awk(
    engine: sa.Engine, tmp_path: Path, shell: Shell, key: SigningKey
) -> None:
    """Hostile text, three clusters and two seals: what tracker writes, awk computes anew to the last byte."""
    first = first_half(engine)
    seal(engine, key)
    second_half(engine, first)
    seal(engine, key)
    made = export(engine, tmp_path / "pack", key=key)
    assert (made.checkpoints, made.first, made.jobs, made.is_signed, made.unsealed) == (2, 1, 9, True, 0)
    assert made.differing == ()
    code, told = shell.verify(tmp_path / "pack", "--key-id", key.public.id, "--all")
    assert (code, len(told)) == (0, 1), told
    assert told[0].startswith("OK: checkpoints 1 to 2, segments from checkpoint 1 on, all clusters: ")


HERE = """
    localhost LocalHost:80 localhost. elevate.localhost e.localhost.:1 127.0.0.1 127.9.8.7:443 127.0.0.1. 0.0.0.0
    0.0.0.0:80 user:x@127.0.0.1:1 [::1] [::1]:80 [::1%lo] [0:0:0:0:0:0:0:1] [0000::0001] [::]:80 [0:0:0:0:0:0:0:0]
    [::ffff:127.1.2.3] [::FFFF:7f01:203] [0:0:0:0:0:ffff:7f00:1] [::ffff:0.0.0.0] [::ffff:0:0]
"""
ELSEWHERE = """
    w1.example w1.example:443 localhost.example notlocalhost 127.example 127.0.0.1.example 10.0.0.1 128.0.0.1
    [2001:db8::1] [::2] [1::] [::10] [::1:1] [::ffff:10.0.0.1] [::ffff:7e00:1] [::ffff:7f0:1]
    localhost@w1.example w1.example/localhost w1.example?@localhost
"""


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_source_that_may_not_be_elevate_is_flagged(engine: sa.Engine, tmp_path: Path, shell: Shell) -> None:
    """This machine itself by any of its names, and whoever was not asked by https."""
    for host in (HERE + ELSEWHERE).split():
        source(engine, "w1", f"https://{host}")
        source(engine, "w1", f"HTTP://{host}")
    register(engine, "a")
    seal(engine, None)
    export(engine, tmp_path / "pack")
    told = [line for line in shell.lines(tmp_path / "pack")[1] if line.startswith("source ")]
    flags = [re.findall(r"(?: \(([a-z, ]+)\))?$", line)[0] for line in told]
    assert flags == ["loopback", "loopback, plain http"] * len(HERE.split()) + ["", "plain http"] * len(
        ELSEWHERE.split()
    )


def cells(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6f}"
    if isinstance(value, datetime):
        return value.isoformat(timespec="microseconds")
    return "" if value is None else cell(value) if isinstance(value, str) else str(value)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_csv_files_say_what_the_views_say_as_of_the_last_seal(engine: sa.Engine, tmp_path: Path) -> None:
    """Durations, deadlines and gaps are computed from sealed lines alone, and equal the views' rows of that time."""
    first = first_half(engine)
    second_half(engine, first)
    seal(engine, None)
    made = export(engine, tmp_path / "pack")
    with database.reading(engine) as connection:
        for name, by in (("durations", ("cluster", "jid")), ("deadlines", ("cluster", "jid")), ("gaps", ("cluster",))):
            found = read_csv(tmp_path / "pack" / f"{name}.csv")
            report = tables.read(connection, name, as_of=made.as_of, zone=ZONE)
            whole = [dict(zip(report.columns, map(cells, row), strict=True)) for row in report.rows]
            told = [{column: row[column] for column in pack.TABLES[f"{name}.csv"]} for row in whole]
            if name == "gaps":  # as of an earlier time, reports leave out what an operator may have added
                told[0]["detail"] = found[0]["detail"]
            for rows in (found, told):
                rows.sort(key=lambda row: [row[column] for column in by])
            for ours, views in zip(found, told, strict=True):
                assert {c: (ours[c], v) for c, v in views.items() if ours[c] != v} == {}
            assert found


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_database_and_range_give_the_same_bytes(
    engine: sa.Engine, tmp_path: Path, key: SigningKey, dash: Shell
) -> None:
    """Neither the clock, nor later observations, nor a later seal is in a pack that ends before them."""
    first = first_half(engine)
    [signed] = seal(engine, key)
    before = export(engine, tmp_path / "a", key=key)
    second_half(engine, first)
    insert(engine, Gap, cluster="w2", began_at=T, ended_at=T + HOUR, cause="paused", detail=None)
    again = export(engine, tmp_path / "b", key=key)
    assert again.unsealed > 0
    seal(engine, key)
    until = signed.checkpoint.sealed_at + timedelta(microseconds=1)
    export(engine, tmp_path / "c", key=key, until=until)
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b") == snapshot(tmp_path / "c")
    assert before.digest == hashlib.sha256((tmp_path / "a" / "SHA256SUMS").read_bytes()).hexdigest()
    assert dash.verify(tmp_path / "c")[0] == 0


def test_a_pack_of_a_range_and_a_cluster_says_what_it_leaves_out(
    engine: sa.Engine, tmp_path: Path, dash: Shell
) -> None:
    """Whole segments of the chosen seals and clusters, all checkpoints, and no CSV row of half a history."""
    first = first_half(engine)
    seal(engine, None)
    second_half(engine, first)
    [signed] = seal(engine, None)
    made = export(engine, tmp_path / "pack", since=signed.checkpoint.sealed_at, clusters=("w1",))
    assert (made.first, made.checkpoints, made.segments, made.jobs, made.earlier) == (2, 2, 1, 2, 1)
    assert {row["jid"] for row in read_csv(tmp_path / "pack" / "jobs.csv")} == {"'＝e", "h"}
    assert len(read_csv(tmp_path / "pack" / "transitions.csv")) == made.transitions == 9
    assert "transitions_of_jobs_begun_earlier: 1\n" in (tmp_path / "pack" / "about.txt").read_text()
    code, told = dash.verify(tmp_path / "pack")
    assert (code, told[0][:71]) == (0, "OK: checkpoints 1 to 2, segments from checkpoint 2 on, only w1: 1 segme")
    assert "1 transitions of jobs begun earlier" in told[0]


@pytest.mark.parametrize("dialect", ["sqlite"])
@pytest.mark.parametrize(
    ("zone", "days"),
    [
        ("Europe/Stockholm", ["2026-02-28", "2026-09-24", "2026-09-25"]),
        ("America/Sao_Paulo", ["2018-10-03", "2018-10-04", "2018-01-17", "2018-01-18"]),  # no midnight; two
        ("America/Havana", ["2026-02-07", "2026-10-01"]),
        ("Pacific/Apia", ["2011-11-29", "2011-11-30"]),  # 2011-12-30 was skipped
        ("UTC", ["2024-01-30", "2024-01-31"]),
    ],
)
def test_awk_counts_the_month_as_python_does(
    engine: sa.Engine, tmp_path: Path, dash: Shell, zone: str, days: list[str]
) -> None:
    """On the days when clocks change, and where midnight is skipped or comes twice."""
    legal = ZoneInfo(zone)
    for number, (day, hour) in enumerate(itertools.product(days, (0, 12, 23))):
        local = datetime.fromisoformat(day).replace(hour=hour, minute=59, tzinfo=legal)
        later = date.fromisoformat(day) + timedelta(days=45)
        register(engine, f"j{number}", received_at=local.astimezone(UTC), at=local + DAY)
        register(engine, f"x{number}", received_at=local.astimezone(UTC), extended_on=later, at=local + HOUR)
    seal(engine, None)
    export(engine, tmp_path / "pack", zone=legal)
    assert dash.verify(tmp_path / "pack")[1][0].startswith("OK: ")


# -- What cannot be written ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_what_cannot_be_exported_is_refused_and_nothing_is_left(engine: sa.Engine, tmp_path: Path) -> None:
    """No seal, a folder that is there, a range without a seal, an unknown cluster, no folder above."""
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(Refused, match="nothing is sealed yet"):
        export(engine, place / "pack")
    first_half(engine)
    seal(engine, None)
    with pytest.raises(Refused, match="nothing was sealed between"):
        export(engine, place / "pack", until=T)
    with pytest.raises(Refused, match="no segment is of cluster w9; there are: w1, w2"):
        export(engine, place / "pack", clusters=("w1", "w9"))
    with pytest.raises(Refused, match="No such file or directory; nothing was left"):
        export(engine, place / "no" / "pack")
    assert list(place.iterdir()) == []
    (place / "pack").mkdir()
    with pytest.raises(Refused, match="is there already"):
        export(engine, place / "pack")
    assert list((place / "pack").iterdir()) == []


LIMITED = """
import resource, signal, sys
from pathlib import Path
from zoneinfo import ZoneInfo
from tracker import database
from tracker.audit import pack
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
engine = database.open_database(sys.argv[1])
folder, limit = Path(sys.argv[2]), int(sys.argv[3])
connected = engine.connect()  # SQLite makes its own files before
connected.exec_driver_sql("SELECT 1")
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
pack.export(engine, folder, zone=ZoneInfo("UTC"))
"""


@pytest.mark.timeout(30)
@pytest.mark.parametrize("stops", [1, 2])
def test_an_export_that_is_stopped_does_not_wait_for_its_page(
    engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: int
) -> None:
    first_half(engine)
    seal(engine, None)
    forever = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1e11) SELECT max(i) FROM n"
    ended: list[object] = []

    def render(connection: sa.Connection, *arguments: object, **named: object) -> str:
        try:
            return str(connection.exec_driver_sql(forever).scalar())
        except DatabaseUnavailable as error:
            ended.append(error)
            raise

    left = [KeyboardInterrupt() for _ in range(stops)]

    def stop(*arguments: object, **named: object) -> None:
        if left:
            raise left.pop()

    monkeypatch.setattr(futures, "wait", stop)
    monkeypatch.setattr("tracker.reports.page.render", render)
    with pytest.raises(KeyboardInterrupt):
        pack.export(engine, tmp_path / "pack", zone=ZONE, told=stop)
    assert len(ended) == 1
    assert not list(tmp_path.glob("*pack*"))


@pytest.fixture
def lost(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seal something of which no page can be drawn."""
    first_half(engine)
    seal(engine, None)

    def render(connection: sa.Connection, *arguments: object, **named: object) -> str:
        raise DatabaseUnavailable("the connection was lost")

    monkeypatch.setattr("tracker.reports.page.render", render)


@pytest.mark.usefixtures("lost")
def test_a_page_that_cannot_be_drawn_leaves_no_pack(engine: sa.Engine, tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="the connection was lost"):
        pack.export(engine, tmp_path / "pack", zone=ZONE)
    assert not list(tmp_path.glob("*pack*"))


class AtOnce(futures.Executor):
    """Does what it is given before anything else is done."""

    def __init__(self, workers: int) -> None:
        assert workers == 1

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> futures.Future[Any]:
        done: futures.Future[Any] = futures.Future()
        try:
            done.set_result(function(*arguments, **named))
        except DatabaseUnavailable as error:
            done.set_exception(error)
        return done


@pytest.mark.usefixtures("lost")
def test_a_page_that_failed_ends_the_export_at_once(
    engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    monkeypatch.setattr(futures, "ThreadPoolExecutor", AtOnce)
    with pytest.raises(DatabaseUnavailable, match="the connection was lost"):
        pack.export(engine, tmp_path / "pack", zone=ZONE, told=lambda done, total: steps.append(done))
    assert steps == []


def test_a_page_that_is_done_early_holds_no_transaction(
    engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL ends one that is idle for a minute: an export of millions failed at its end."""
    first_half(engine)
    seal(engine, None)
    open_now: list[int] = []
    monkeypatch.setattr(futures, "ThreadPoolExecutor", AtOnce)
    pool = cast(sa.pool.QueuePool, engine.pool)
    export(engine, tmp_path / "pack", told=lambda done, total: open_now.append(pool.checkedout()))
    assert set(open_now) == {1}


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_what_a_killed_export_left_is_removed_by_the_next_one(engine: sa.Engine, tmp_path: Path) -> None:
    """Only of the same name, and never what a living export writes, nor anything else."""
    first_half(engine)
    seal(engine, None)
    place = tmp_path / "place"
    place.mkdir()
    names = (".pack.partial-dead0000", ".pack.partial-living_1", ".pack.partial-notes", ".other.partial-dead0000")
    for name in names:
        (place / name).mkdir()
        (place / name / "jobs.csv").touch()
    (place / ".pack.partial-link0000").symlink_to(place / names[2])
    living = os.open(place / names[1], os.O_RDONLY)
    fcntl.flock(living, fcntl.LOCK_EX)
    export(engine, place / "pack")
    os.close(living)
    left = {path.name for path in place.iterdir()}
    assert left == {"pack", ".pack.partial-link0000", *names[1:]}
    assert all((place / name / "jobs.csv").exists() for name in names[1:])


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_disk_that_is_full_in_the_middle_leaves_nothing(
    engine: sa.Engine, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever file the room ends in: a clear error, no pack, no partial folder."""
    first_half(engine)
    seal(engine, None)
    place = tmp_path / "place"
    place.mkdir()
    write = Path.write_bytes
    for names in ("segments", "checkpoints", "report.html", "about.txt", "verify.sh"):

        def full(path: Path, content: bytes, names: str = names) -> int:
            if names in str(path):
                raise OSError(28, "No space left on device")
            return write(path, content)

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(Refused, match="No space left on device; nothing was left there"):
            export(engine, place / "pack")
        assert list(place.iterdir()) == []
    engine.dispose()
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, url, place / "pack", "40000"],
        capture_output=True,
        check=False,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 1
    assert "Refused" in run.stderr
    assert "File too large; nothing was left there" in run.stderr
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_the_command_says_what_is_not_in_the_pack(
    engine: sa.Engine, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unsealed rows, an unsigned chain: on standard error, while the pack is good."""
    monkeypatch.setenv("TRACKER_DATABASE_URL", url)
    first = first_half(engine)
    seal(engine, None)
    second_half(engine, first)
    run = CliRunner().invoke(command, [str(tmp_path / "pack"), "--until", "9998-01-01"], catch_exceptions=False)
    assert run.exit_code == 0
    assert "rows are not sealed yet, so not in the pack" in run.stderr
    assert "The checkpoints are not signed" in run.stderr
    assert (tmp_path / "pack" / "SHA256SUMS").is_file()


# -- Tampering -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, key: SigningKey) -> dict[str, Path]:
    """A signed and an unsigned pack of three seals, and the checkpoints of the first as they left the database."""
    folder = tmp_path_factory.mktemp("packs")
    made = {}
    for name, its in (("signed", key), ("unsigned", None)):
        shutil.copy(sqlite_template, folder / f"{name}.db")
        engine = database.open_database(f"sqlite:///{folder / name}.db")
        first = first_half(engine)
        kept = seal(engine, its)
        second_half(engine, first)
        kept += seal(engine, its)
        register(engine, "last")
        kept += seal(engine, its)
        made[name] = folder / name
        export(engine, made[name], key=its)
        engine.dispose()
        (folder / f"{name}.checkpoints").write_text("\n".join(signed.text for signed in kept))
    return made


def rehash(folder: Path) -> None:
    """Make the list of sums anew, as an attacker would."""
    names = sorted(name for name in snapshot(folder) if not name.startswith("SHA256SUMS"))
    sums = (f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    (folder / "SHA256SUMS").write_text("".join(sums))


def edit(folder: Path, name: str, old: str, new: str) -> None:
    [path] = folder.glob(name)
    content = path.read_bytes()
    assert old.encode() in content
    path.write_bytes(content.replace(old.encode(), new.encode(), 1))


def swap(folder: Path) -> None:
    one, other = (next(folder.glob(f"segments/000001-*-{name}.txt")) for name in ("w1", "w2"))
    one.rename(folder / "x")
    other.rename(one)
    (folder / "x").rename(other)


def drop_line(folder: Path, name: str, number: int) -> None:
    lines = (folder / name).read_text().splitlines(keepends=True)
    del lines[number - 1]
    (folder / name).write_text("".join(lines))


def cut_tail(folder: Path) -> None:
    """Take the last seal away, and tell about.txt so."""
    for path in (*folder.glob("segments/000003-*"), folder / "checkpoints/000003.txt"):
        path.unlink()
    last = (folder / "checkpoints/000002.txt").read_bytes()
    about = (folder / "about.txt").read_text()
    at = re.findall(r"^sealed_at \d+ (\S+)Z$", last.decode(), re.MULTILINE)[0]
    for name, value in (("last_checkpoint", "2"), ("as_of", f"{at}+00:00")):
        about = re.sub(rf"^{name}: .*$", f"{name}: {value}", about, flags=re.MULTILINE)
    digest = hashlib.sha256(last).hexdigest()
    about = re.sub(r"^last_checkpoint_sha256: .*$", f"last_checkpoint_sha256: {digest}", about, flags=re.MULTILINE)
    (folder / "about.txt").write_text(about)


def recode(folder: Path, how: Callable[[bytes], bytes]) -> None:
    path = folder / "SHA256SUMS"
    path.write_bytes(how(path.read_bytes()))


AT_LAST = datetime(9999, 1, 1, tzinfo=UTC)


def forget(folder: Path, since: datetime, until: datetime = AT_LAST) -> None:
    """Take the changes of the clocks in between out of timezone.csv."""
    path = folder / "timezone.csv"
    heading, *rows = path.read_text().splitlines(keepends=True)
    kept = [row for row in rows if not since.timestamp() <= int(row.split(",")[0]) < until.timestamp()]
    assert len(kept) < len(rows)
    path.write_text("".join([heading, *kept]))


def endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def two_lines(folder: Path) -> None:
    """Add a file whose path reads as jobs.csv and about.txt, which are both listed."""
    (folder / "jobs.csv\n.").mkdir()
    (folder / "jobs.csv\n./about.txt").write_text("x")


def chosen(folder: Path, *clusters: str) -> None:
    """Say that only some clusters were asked for."""
    content = (folder / "about.txt").read_bytes().replace(b"clusters: all", b"clusters: chosen")
    content += b"".join(b"cluster: %s\n" % name.encode() for name in clusters)
    (folder / "about.txt").write_bytes(content)


ALL = ("w1", "w2", "Wé|\\ 3")
SEGMENT = "segments/000001-0001-w1.txt"
TAMPERINGS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    # what is done to a pack, and what verify.sh says, one line each: nothing else
    "edit a CSV": (lambda p: edit(p, "durations.csv", "3601", "3602"), [r"durations.csv: line 2: is `w1,.*3602"]),
    "edit jobs.csv": (lambda p: edit(p, "jobs.csv", "alice", "mallory"), [r"jobs.csv: line 2: is "]),
    "drop a row": (lambda p: drop_line(p, "deadlines.csv", 3), [r"deadlines.csv: line 3: is .* more lines differ"]),
    "drop the last row": (lambda p: drop_line(p, "gaps.csv", 3), [r"gaps.csv: line 3: it ends here, but"]),
    "add a row": (lambda p: edit(p, "gaps.csv", '1",', '1",3600.000000\nw1,,,,,'), [r"gaps.csv: line 4: the segments"]),
    "cut the end": (lambda p: edit(p, "jobs.csv", ",pending,,", ",pending,,\0"), [r"jobs.csv: "]),
    "edit a transition": (lambda p: edit(p, "transitions.csv", "saw it", "saw IT"), [r"transitions.csv: line \d+: is"]),
    "edit a segment": (lambda p: edit(p, SEGMENT, "alice", "carol"), [rf"{SEGMENT}: not what checkpoint 1 sealed"]),
    "drop a segment's line": (lambda p: drop_line(p, SEGMENT, 5), [rf"{SEGMENT}: not what checkpoint 1 sealed"]),
    "swap segments": (swap, [rf"{SEGMENT}: not what", r"segments/000001-0002-w2.txt: not what checkpoint 1 sealed"]),
    "remove a segment": (lambda p: (p / SEGMENT).unlink(), [rf"{SEGMENT}: missing"]),
    "edit a checkpoint": (
        lambda p: edit(p, "checkpoints/000001.txt", "origin ", "origin 0"),
        [r"checkpoints/000001.txt: line 2: not 32 hexadecimal digits"],
    ),
    "forge a checkpoint": (
        lambda p: edit(p, "checkpoints/000002.txt", "segment 1 W", "segment 1 w"),
        [r"checkpoints/000002.txt: "],
    ),
    "edit the last checkpoint": (
        lambda p: edit(p, "checkpoints/000003.txt", "transitions ", "transitions 1"),
        [r"checkpoints/000003.txt: line 6: "],
    ),
    "remove a checkpoint": (
        lambda p: (p / "checkpoints/000002.txt").unlink(),
        [r"checkpoints/000002.txt: missing"],
    ),
    "remove the first checkpoint": (
        lambda p: (p / "checkpoints/000001.txt").unlink(),
        [r"checkpoints/000001.txt: missing"],
    ),
    "remove the last checkpoint": (
        lambda p: (p / "checkpoints/000003.txt").unlink(),
        [r"checkpoints/000003.txt: missing"],
    ),
    "edit verify.sh": (lambda p: edit(p, "verify.sh", "# Verify", "# verify"), [r"verify.sh: changed since"]),
    "edit README.txt": (lambda p: edit(p, "README.txt", "evidence", "proof"), [r"README.txt: changed since"]),
    "edit report.html": (lambda p: edit(p, "report.html", "GDPR", "gdpr"), [r"report.html: changed since"]),
    "edit about.txt": (lambda p: edit(p, "about.txt", "jobs: 10", "jobs: 9"), [r"about.txt: jobs is `9`"]),
    "cut about.txt": (lambda p: os.truncate(p / "about.txt", 100), [r"about.txt: "]),
    "remove about.txt": (lambda p: (p / "about.txt").unlink(), [r"about.txt: missing"]),
    "remove timezone.csv": (lambda p: (p / "timezone.csv").unlink(), [r"timezone.csv: missing"]),
    "edit timezone.csv": (lambda p: edit(p, "timezone.csv", ",3600", ",7200"), [r"timezone.csv: line 2: \+0200 at"]),
    "end the lines of SHA256SUMS as another system does": (
        lambda p: recode(p, lambda text: text.replace(b"\n", b"\r\n")),
        [r"SHA256SUMS: line 1: not `SHA-256  name`: nothing else was checked"],
    ),
    "write SHA256SUMS in capitals": (lambda p: recode(p, bytes.upper), [r"SHA256SUMS: line 1: not `SHA-256  name`"]),
    "turn SHA256SUMS round": (
        lambda p: recode(p, lambda text: b"".join(reversed(text.splitlines(keepends=True)))),
        [r"SHA256SUMS: line 2: double or out of order: nothing else was checked"],
    ),
    "empty SHA256SUMS": (lambda p: recode(p, lambda text: b""), [r"SHA256SUMS: there is no line in it"]),
    "add a file": (lambda p: (p / "segments/note.txt").write_text("x"), [r"segments/note.txt: not listed"]),
    "add an empty folder": (
        lambda p: (p / "segments/of/2026").mkdir(parents=True),
        [r"segments/of/2026: an empty folder: it was added"],
    ),
    "add a folder": (
        lambda p: shutil.copytree(p / "checkpoints", p / "old"),
        [rf"old/00000{n}.txt: not" for n in "123"],
    ),
    "add a link": (lambda p: (p / "x").symlink_to("/etc/passwd"), [r"x: a link or a device, not a file"]),
    "replace a file by one without end": (lambda p: endless(p / "about.txt"), [r"about.txt: a link or a device"]),
    "replace a file by a pipe": (lambda p: pipe(p / "report.html"), [r"report.html: a link or a device"]),
    "add a file whose name passes for two": (lambda p: two_lines(p), [r"\.: a name with a line end"]),
    "remove a file": (lambda p: (p / "report.html").unlink(), [r"report.html: missing"]),
    "remove a CSV": (lambda p: (p / "durations.csv").unlink(), [r"durations.csv: missing"]),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_each_tampering_with_a_pack_is_found_and_named(
    packs: dict[str, Path], tmp_path: Path, dash: Shell, name: str
) -> None:
    """One change, one finding, which names the file and line, or the segment."""
    tamper, expected = TAMPERINGS[name]
    shutil.copytree(packs["unsigned"], tmp_path / "pack")
    tamper(tmp_path / "pack")
    # Whoever edits verify.sh decides what it says: hers is from elsewhere.
    code, told = dash.verify(tmp_path / "pack", tmp_path / "pack", script=packs["unsigned"] / "verify.sh")
    assert code == 1
    found = sorted(told[:-1])
    assert len(found) == len(expected), told
    for line, pattern in zip(found, sorted(expected), strict=True):
        assert re.match(pattern, line), told


FORGERIES: dict[str, tuple[Callable[[Path], object], str]] = {
    # what is done to an unsigned pack whose sums are then made anew
    "edit durations.csv": (lambda p: edit(p, "durations.csv", "3601", "3602"), r"durations.csv: line 2: is"),
    "edit deadlines.csv": (lambda p: edit(p, "deadlines.csv", "missed", "met"), r"deadlines.csv: line \d+: is"),
    "edit gaps.csv": (lambda p: edit(p, "gaps.csv", "unreachable", "paused"), r"gaps.csv: line 2: is"),
    "remove a CSV": (lambda p: (p / "gaps.csv").unlink(), r"gaps.csv: missing, and not listed"),
    "edit a segment": (lambda p: edit(p, SEGMENT, "alice", "carol"), rf"{SEGMENT}: not what checkpoint 1 sealed"),
    "remove a segment": (lambda p: (p / SEGMENT).unlink(), rf"{SEGMENT}: missing: checkpoint 1 has it"),
    "add a segment": (
        lambda p: shutil.copy(p / SEGMENT, p / "segments/000002-0009-w1.txt"),
        r"segments/000002-0009-w1.txt: a segment that no checkpoint has",
    ),
    "edit a checkpoint": (
        lambda p: edit(p, "checkpoints/000001.txt", "origin ", "origin 0"),
        r"checkpoints/000001.txt: line 2: not 32 hex",
    ),
    "edit a sum in a checkpoint": (
        lambda p: edit(p, "checkpoints/000001.txt", "transitions 0 ", "transitions 00 "),
        r"checkpoints/000001.txt: line 6",
    ),
    "hide a cluster": (
        lambda p: edit(p, "about.txt", "clusters: all", "clusters: chosen\ncluster: w2"),
        r"segments/.*: not of the clusters and range",
    ),
    "empty timezone.csv": (
        lambda p: os.truncate(p / "timezone.csv", 0),
        r"timezone.csv: there is no offset in it",
    ),
    "leave out the change of clocks in spring, and what comes later": (
        lambda p: forget(p, datetime(2026, 3, 1, tzinfo=UTC)),
        r"timezone.csv: line \d+: \+0100 at @\d+, but this machine's zone data say \+0200",
    ),
    "leave out one summer": (
        lambda p: forget(p, datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC)),
        r"timezone.csv: line \d+: \+0100 at @\d+, but this machine's zone data say \+0200",
    ),
    "another zone": (lambda p: edit(p, "about.txt", "Stockholm", "London"), r"timezone.csv: line 2: \+0100"),
    "a zone that is off by seconds": (
        lambda p: edit(p, "timezone.csv", ",3600", ",3659"),
        r"timezone.csv: line 2: no zone has that offset",
    ),
    "a zone that is off by days": (
        lambda p: edit(p, "timezone.csv", ",3600", ",864000"),
        r"timezone.csv: line 2: ",
    ),
    "add a file, and list it": (lambda p: (p / "SUMMARY.txt").write_text("all met"), r"SUMMARY.txt: no file of a pack"),
    "add a key that signed nothing": (
        lambda p: (p / "public_key.pem").write_text("x"),
        r"public_key.pem: the last checkpoint is not signed",
    ),
    "count otherwise": (lambda p: edit(p, "about.txt", "jobs: 10", "jobs: 9"), r"about.txt: jobs is `9`"),
    "say two things": (
        lambda p: edit(p, "about.txt", "tracker: ", "tracker: 9\ntracker: "),
        r"about.txt: line 3: no fact about a pack, or twice",
    ),
    "add a checkpoint of another name": (
        lambda p: shutil.copy(p / "checkpoints/000001.txt", p / "checkpoints/one.txt"),
        r"checkpoints/one.txt: no checkpoint of a pack",
    ),
    "add a checkpoint under another number": (
        lambda p: shutil.copy(p / "checkpoints/000001.txt", p / "checkpoints/1.txt"),
        r"checkpoints/1.txt: no checkpoint of a pack",
    ),
    "remove a checkpoint": (
        lambda p: (p / "checkpoints/000002.txt").unlink(),
        r"checkpoints/000002.txt: missing: there are later ones",
    ),
    "name a cluster that rewrites the verdict": (
        lambda p: chosen(p, *ALL, "x\rOK: all clusters"),
        "about.txt: cluster x\ufffdOK: all clusters: no checkpoint has it",
    ),
    "name a cluster that echo would read": (
        lambda p: chosen(p, *ALL, "\\033[2J\\c"),
        r"about.txt: cluster \\033\[2J\\c: no checkpoint has it",
    ),
    "another as_of": (lambda p: edit(p, "about.txt", "as_of: 2", "as_of: 3"), r"about.txt: as_of is `3"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_an_attacker_who_makes_the_sums_anew_is_found(
    packs: dict[str, Path], tmp_path: Path, dash: Shell, name: str
) -> None:
    """The CSV files must follow from the segments, these from the checkpoints, and those from one another."""
    forge, expected = FORGERIES[name]
    shutil.copytree(packs["unsigned"], tmp_path / "pack")
    forge(tmp_path / "pack")
    rehash(tmp_path / "pack")
    code, told = dash.verify(tmp_path / "pack")
    assert code == 1
    assert any(re.match(expected, line) for line in told), told


def test_each_shell_and_awk_tells_a_finding_once(packs: dict[str, Path], tmp_path: Path, shell: Shell) -> None:
    """What an awk program read of earlier findings, and wrote of its own, is one file: busybox must not mix them up."""
    folder = tmp_path / "pack"
    shutil.copytree(packs["signed"], folder)
    edit(folder, "durations.csv", "3601", "3602")
    assert len(shell.verify(folder)[1]) == 2
    (folder / "checkpoints/000003.txt").unlink()
    assert [line.split(":")[0] for line in shell.verify(folder)[1]] == [
        *("checkpoints/000003.txt", "durations.csv", "NOT OK"),
    ]


@pytest.mark.parametrize("room", [0, 40, 300, 1500, 8000])
def test_a_full_disk_hides_no_finding(packs: dict[str, Path], tmp_path: Path, shell: Shell, room: int) -> None:
    """Whatever could not be written: exit status 2, or the truth. And OK says of how much."""
    falsified = {
        "a row": FORGERIES["edit deadlines.csv"][0],
        "a page": TAMPERINGS["edit report.html"][0],
        "a link": TAMPERINGS["add a link"][0],
        "a file": TAMPERINGS["add a file"][0],
    }
    for name, falsify in falsified.items():
        folder = tmp_path / name
        shutil.copytree(packs["unsigned"], folder)
        falsify(folder)
        if name == "a row":
            rehash(folder)
        run = shell.run(packs["unsigned"] / "verify.sh", folder, room=room)
        told = run.stdout.decode().splitlines()[-1:]
        assert (run.returncode, told) in ((1, ["NOT OK: 1 finding"]), (2, [])), (name, run)
        assert room or run.returncode == 2
        assert b"cannot write" in run.stderr or b"awk failed" in run.stderr or run.returncode == 1
    for good in packs.values():
        run = shell.run(good / "verify.sh", room=room)
        assert run.returncode == (0 if room == 8000 else 2), run
        assert run.returncode == 2 or b" 10 jobs, 1 gaps, " in run.stdout, run


def test_a_tail_that_was_cut_off_is_found_with_a_checkpoint_from_outside(
    packs: dict[str, Path], tmp_path: Path, dash: Shell
) -> None:
    """Without it a chain that ends earlier is a good chain: the README says so."""
    pack_ = tmp_path / "pack"
    shutil.copytree(packs["unsigned"], pack_)
    cut_tail(pack_)
    rehash(pack_)
    told = dash.verify(pack_)[1]
    assert not any("checkpoint" in line for line in told[:-1]), told  # only CSV files that were not made anew
    kept = packs["unsigned"].with_suffix(".checkpoints")
    code, told = dash.verify(pack_, "--trusted", kept)
    assert code == 1
    assert any("checkpoint 3 is not in the pack, which ends with 2: the tail was cut off" in line for line in told)
    assert dash.verify(packs["unsigned"], "--trusted", kept)[0] == 0


def test_trusted_checkpoints_later_than_the_pack_are_one_finding(
    packs: dict[str, Path], tmp_path: Path, shell: Shell
) -> None:
    """The file that is kept grows with each seal, and a pack does not; but it may have been cut."""
    kept = packs["unsigned"].with_suffix(".checkpoints").read_text()
    last = kept.split("\n\n")[-1]
    later = [re.sub("^number 3$", f"number {number}", last, flags=re.MULTILINE) for number in range(4, 1004)]
    (tmp_path / "kept").write_text("\n".join([kept, *later]))
    code, told = shell.verify(packs["unsigned"], "--trusted", tmp_path / "kept")
    assert (code, len(told)) == (1, 2), told
    assert told[0].startswith(f"{tmp_path / 'kept'}: checkpoints 4 to 1003 are not in the pack, which ends with 3: ")


def test_trusted_checkpoints_of_another_chain_or_rubbish_are_findings(
    packs: dict[str, Path], tmp_path: Path, dash: Shell
) -> None:
    """A file that is none of ours is said to be none; another history's checkpoint is not in the chain."""
    other = packs["signed"].with_suffix(".checkpoints")
    code, told = dash.verify(packs["unsigned"], f"--trusted={other}")
    assert (code, len(told)) == (1, 4)
    assert told[0].startswith("checkpoints/000001.txt: not the checkpoint 1 of ")
    for text, expected in (("", "there is no checkpoint in it"), ("rubbish\n\nmore", "its text number 2 is no")):
        (tmp_path / "rubbish").write_text(text)
        code, told = dash.verify(packs["unsigned"], "--trusted", tmp_path / "rubbish")
        assert code == 1
        assert any(expected in line for line in told)


def test_signatures_are_checked(packs: dict[str, Path], tmp_path: Path, dash: Shell, key: SigningKey) -> None:
    """Of the list, of the checkpoints, by the right key, and that a signed pack stays one."""
    pack_ = tmp_path / "pack"

    def fresh() -> None:
        shutil.rmtree(pack_, ignore_errors=True)
        shutil.copytree(packs["signed"], pack_)

    fresh()
    assert dash.verify(pack_, "--key-id", key.public.id)[0] == 0
    told = dash.verify(pack_, "--key-id", "0" * 32)[1]
    assert told[0].startswith(f"checkpoints: none is signed by key {'0' * 32}, which you asked for")
    edit(pack_, "report.html", "GDPR", "gdpr")
    rehash(pack_)
    told = dash.verify(pack_)[1]
    assert (len(told), told[0].split(":")[0]) == (2, "SHA256SUMS")
    (pack_ / "SHA256SUMS.sig").unlink()
    assert dash.verify(pack_)[1][0] == "SHA256SUMS.sig: missing: about.txt says that the pack is signed"
    fresh()
    keygen(tmp_path / "other.pem")
    other = SigningKey.load(tmp_path / "other.pem")
    (pack_ / "SHA256SUMS.sig").write_bytes(other.sign((pack_ / "SHA256SUMS").read_bytes()))
    assert dash.verify(pack_)[1][0].startswith("SHA256SUMS: changed since the pack was made")
    fresh()  # sign all anew with another key: the chain is whole, and only the key's id tells
    previous = "-"
    for number in (1, 2, 3):
        path = pack_ / f"checkpoints/00000{number}.txt"
        body = re.sub(r"^previous .*$", f"previous {previous}", path.read_text(), flags=re.MULTILINE)
        body = re.sub(r"^signature .*\n", "", body, flags=re.MULTILINE)
        named = f"key {other.public.id} {base64.b64encode(other.public.der).decode()}"
        body = re.sub(r"^key .*$", named, body, flags=re.MULTILINE)
        path.write_text(f"{body}signature {base64.b64encode(other.sign(body.encode())).decode()}\n")
        previous = hashlib.sha256(path.read_bytes()).hexdigest()
    about = (pack_ / "about.txt").read_text().replace(key.public.id, other.public.id)
    (pack_ / "about.txt").write_text(re.sub(r"(last_checkpoint_sha256): .*", rf"\1: {previous}", about))
    (pack_ / "public_key.pem").write_text(other.public.pem())
    rehash(pack_)
    (pack_ / "SHA256SUMS.sig").write_bytes(other.sign((pack_ / "SHA256SUMS").read_bytes()))
    assert dash.verify(pack_)[0] == 0
    assert dash.verify(pack_, "--key-id", key.public.id)[0] == 1
    path = pack_ / "checkpoints/000003.txt"
    bare = path.read_text()  # base64 that is read as the same signature, written in another way
    path.write_text(re.sub(r"(signature .*)[AQgw]==", r"\1B==", bare))
    told = dash.verify(pack_)[1]
    assert any(line.startswith("checkpoints/000003.txt: line 12: should be `signature BASE64`") for line in told), told
    path.write_text(bare)
    path.write_text(re.sub(r"(signature ....)....", r"\1AAAA", path.read_text()))
    rehash(pack_)
    (pack_ / "SHA256SUMS.sig").write_bytes(other.sign((pack_ / "SHA256SUMS").read_bytes()))
    told = dash.verify(pack_)[1]
    assert any(line.startswith("checkpoints/000003.txt: its signature is not by key") for line in told)


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_rotated_key_is_followed(engine: sa.Engine, tmp_path: Path, dash: Shell, key: SigningKey) -> None:
    """The old key names the new one; an id that signed any checkpoint vouches for what follows."""
    keygen(tmp_path / "new.pem")
    new = SigningKey.load(tmp_path / "new.pem")
    first = first_half(engine)
    seal(engine, None)
    second_half(engine, first)
    seal(engine, key, next_key=new.public)
    register(engine, "last")
    seal(engine, new)
    assert not export(engine, tmp_path / "other", key=key).is_signed
    export(engine, tmp_path / "pack", key=new)
    for id_ in (key.public.id, new.public.id):
        assert dash.verify(tmp_path / "pack", "--key-id", id_, "--all")[0] == 0
    path = tmp_path / "pack" / "checkpoints/000002.txt"
    path.write_text(re.sub(r"next_key .*\n", "", path.read_text()))
    rehash(tmp_path / "pack")
    assert dash.verify(tmp_path / "pack")[0] == 1


def test_a_record_that_was_changed_is_packed_as_it_is_and_found(
    engine: sa.Engine, url: str, dialect: str, tmp_path: Path, dash: Shell
) -> None:
    """Whoever can drop a guard can change a row; what was sealed tells."""
    first_half(engine)
    seal(engine, None)
    with database.writing(engine) as connection:
        if dialect == "sqlite":
            connection.exec_driver_sql("DROP TRIGGER guard_transitions_update")
        else:
            connection.exec_driver_sql("ALTER TABLE transitions DISABLE TRIGGER guard_transitions_change")
        connection.exec_driver_sql("UPDATE transitions SET actor = 'mallory' WHERE id = 1")
    made = export(engine, tmp_path / "pack")
    assert made.differing == (SEGMENT,)
    code, told = dash.verify(tmp_path / "pack")
    assert code == 1
    assert told[0].startswith(f"{SEGMENT}: not what checkpoint 1 sealed")


@pytest.mark.parametrize(
    ("column", "value"), [("kind", "zz"), ("to_state", "zz"), ("received_at", "9999-12-31 23:59:59.999999")]
)
def test_a_record_that_holds_what_it_cannot_is_refused(
    engine: sa.Engine, dialect: str, tmp_path: Path, column: str, value: str
) -> None:
    """Who can take guards and CHECKs away can write what has no meaning: no traceback, and where verify tells more."""
    register(engine, "a")
    seal(engine, None)
    with database.writing(engine) as connection:
        guards.drop(connection)
        if dialect == "sqlite":
            connection.exec_driver_sql("PRAGMA ignore_check_constraints = ON")
        else:
            for check in sa.inspect(connection).get_check_constraints("transitions"):
                connection.exec_driver_sql(f"ALTER TABLE transitions DROP CONSTRAINT {check['name']}")
        connection.exec_driver_sql(f"UPDATE transitions SET {column} = '{value}'")
    with pytest.raises(Refused, match=r"cannot be exported .*: run `tracker audit verify`"):
        export(engine, tmp_path / "pack")
    assert not list(tmp_path.glob("*pack*"))


def test_usage_is_refused_with_status_2(packs: dict[str, Path], dash: Shell, tmp_path: Path) -> None:
    """A wrong option, a folder that is no pack: nothing is verified, and it is not said to be good."""
    script = packs["unsigned"] / "verify.sh"
    for options, said in (
        (["--wrong"], "there is no option --wrong"),
        (["--trusted"], "--trusted needs a value"),
        (["--key-id", ""], "--key-id needs a value"),
        (["--key-id="], "--key-id needs a value"),
        (["--trusted", str(tmp_path / "none")], "cannot read"),
        ([str(tmp_path)], "it is no pack, or one whose export did not end"),
    ):
        run = subprocess.run([*dash.command, script, *options], capture_output=True, check=False, text=True)
        assert (run.returncode, said in run.stderr) == (2, True), run
    run = subprocess.run([*dash.command, script, "--help"], capture_output=True, check=False, text=True)
    assert (run.returncode, "usage: sh verify.sh" in run.stdout) == (0, True)


def test_the_readme_tells_the_sum_of_verify_sh() -> None:
    """An auditor compares the script in a pack with the release's README."""
    digest = hashlib.sha256((ROOT / "tracker/audit/verify.sh").read_bytes()).hexdigest()
    assert f"verify.sh of this version has SHA-256\n`{digest}`" in (ROOT / "README.md").read_text()


def falsifications() -> str:
    """Return the table in README.md of what verify.sh finds."""
    return "\n".join(
        (
            "| what was done to a pack | found |",
            "|---|---|",
            f"| {'; '.join(TAMPERINGS)} | the file and line, or the segment |",
            f"| and SHA256SUMS made anew: {'; '.join(FORGERIES)} | the same |",
            "| cut off the end, all of it made anew | with `--trusted` |",
            "| of a signed pack: change a file, and the sums; take the signature away; damage one | the signature |",
            "| sign all of it anew with another key | with `--key-id` |",
            "| sign all of it anew with the stolen key | with `--trusted` |",
        )
    )


def test_the_readme_tells_what_verify_sh_finds() -> None:
    """Each falsification of these tests, and what it takes to find it."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert falsifications() in readme, falsifications()


def test_the_wheel_has_what_goes_into_a_pack() -> None:
    """verify.sh and README.txt are no Python, and in the wheel all the same."""
    builders = pytest.importorskip("hatchling.builders.wheel")
    names = {file.distribution_path for file in builders.WheelBuilder(str(ROOT)).recurse_included_files()}
    assert {"tracker/audit/verify.sh", "tracker/audit/README.txt"} <= names
