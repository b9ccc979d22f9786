"""The sealer: no row left out, one chain, and nobody held up."""

from __future__ import annotations

import hashlib
import itertools
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.history import register
from tracker import database, models
from tracker.audit import lines
from tracker.audit import seal as sealer
from tracker.audit.checkpoint import Signed, sign
from tracker.audit.keys import SigningKey
from tracker.audit.lines import TABLES
from tracker.audit.seal import chain, head, seal
from tracker.errors import BadCheckpoint, BadConfiguration, DatabaseUnavailable

OLD, NEW, THIRD = (SigningKey(Ed25519PrivateKey.from_private_bytes(bytes([n] * 32))) for n in range(3))
AT = "2026-01-05 10:00:00.000000"
GAP = f"INSERT INTO gaps (cluster, began_at, ended_at, cause) VALUES ('%s', '{AT}', '{AT}', 'paused')"
SOURCE = (
    "INSERT INTO sources (cluster, base_url, path, timezone, archive_days, lost_after_polls, lost_after_seconds,"
    f" legal_timezone, version, recorded_at) VALUES ('%s', 'https://x', '/p', 'UTC', 5, 5, 172800, 'UTC', '1', '{AT}')"
)


def run(engine: sa.Engine, *statements: str) -> None:
    with database.writing(engine) as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def jobs(engine: sa.Engine, count: int, name: str = "j", cluster: str = "w1") -> None:
    """Register *count* jobs in one statement."""
    numbers = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"
    insert = f"INSERT INTO jobs (cluster, jid) SELECT '{cluster}', '{name}' || i FROM n"
    run(engine, f"{numbers} {insert}")


def whole(engine: sa.Engine) -> list[Signed]:
    """Return the chain, checked: its links, and that its segments are every row, each once, in order and as sealed."""
    with database.reading(engine) as connection:
        found = list(chain(connection))
        rows = {table: list(lines.stream(connection, table, 0)) for table in TABLES}
        seals = connection.execute(sa.select(models.SEALS).order_by(models.SEALS.c.id)).all()
        segments = connection.execute(sa.select(models.SEGMENTS)).all()
    assert [signed.checkpoint.number for signed in found] == list(range(1, len(found) + 1))
    assert len({signed.checkpoint.origin for signed in found}) <= 1
    before: Signed | None = None
    wanted: set[tuple[object, ...]] = set()
    for signed, row in zip(found, seals, strict=True):
        checkpoint = signed.checkpoint
        assert checkpoint.previous_sha256 == (before.sha256 if before else None)
        assert (row.checkpoint, row.checkpoint_sha256, row.rows) == (signed.text, signed.sha256, checkpoint.rows)
        assert row.sealed_at == checkpoint.sealed_at
        assert row.key_id == (checkpoint.key.id if checkpoint.key else None)
        assert signed.is_genuine() is (True if checkpoint.key else None)
        count, parts = 0, list(checkpoint.segments)
        for table in TABLES:
            after, upto = checkpoint.ids[table]
            assert after == (before.checkpoint.ids[table][1] if before else 0)
            assert upto == getattr(row, f"last_{table.removesuffix('s')}_id")
            inside = [each for each in rows[table] if after < each[0] <= upto]
            count += len(inside)
            for part, start in enumerate(range(0, len(inside), 1000), 1):
                own = inside[start : start + 1000]
                digest = hashlib.sha256(lines.header(table) + b"".join(line for _, line in own)).hexdigest()
                segment = parts.pop(0)
                assert (segment.name, segment.part, segment.sha256) == (table, part, digest)
                wanted.add((row.id, table, part, own[0][0], own[-1][0], len(own), digest))
        assert (parts, count) == ([], checkpoint.rows)
        assert before is None or checkpoint.sealed_at >= before.checkpoint.sealed_at
        before = signed
    assert {tuple(row) for row in segments} == wanted
    return found


def unsealed(engine: sa.Engine) -> int:
    """Return how many rows no checkpoint holds, whatever their ids."""
    with database.reading(engine) as connection:
        rows = sum(connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one() for table in TABLES)
        sealed = connection.execute(sa.select(sa.func.coalesce(sa.func.sum(models.SEALS.c.rows), 0))).scalar_one()
    return int(rows - sealed)


def test_nothing_new_makes_no_checkpoint(engine: sa.Engine) -> None:
    """A checkpoint says something: an empty database has none, and there is no second one over the same rows."""
    assert seal(engine, None) == []
    with database.reading(engine) as connection:
        assert head(connection) is None
    run(engine, GAP % "w1")
    [first] = seal(engine, None)
    assert first.is_genuine() is None
    assert seal(engine, None) == []
    assert whole(engine) == [first]
    with database.reading(engine) as connection:
        assert head(connection) == first
        assert abs(first.checkpoint.sealed_at - database.now(connection)) < timedelta(minutes=1)


def test_rows_of_all_tables_are_sealed(engine: sa.Engine) -> None:
    """Segments of one table, 1,000 rows at most; hostile texts too."""
    run(engine, *(SOURCE % name for name in ("w2", "w1", "w1")), *(GAP % name for name in ("w1", "w2", 'w3 é,"')))
    for number in range(3):
        register(engine, f'😀,"\\{number}', f"w{number}")
    jobs(engine, 2001)
    [first] = seal(engine, OLD)
    assert [(each.name, each.part) for each in first.checkpoint.segments] == [
        *(("transitions", 1), ("transitions", 2), ("transitions", 3), ("gaps", 1), ("sources", 1)),
    ]
    assert first.checkpoint.rows == 3 + 3 + 3 + 2001
    assert whole(engine) == [first]
    run(engine, GAP % "w1")
    [second] = seal(engine, OLD)
    assert (second.checkpoint.rows, second.checkpoint.ids["gaps"]) == (1, (3, 4))
    assert whole(engine) == [first, second]


def test_rows_wait_until_they_are_many_or_old(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sealed when 1,000 rows wait or the oldest is `seal_after` old, all at once; 0 s: whenever any is new."""
    hour = timedelta(hours=1)
    assert seal(engine, None, seal_after=hour) == []
    jobs(engine, 999)
    assert seal(engine, None, seal_after=hour) == []
    jobs(engine, 1, "k")
    assert [each.checkpoint.rows for each in seal(engine, None, seal_after=hour)] == [1000]
    jobs(engine, 1, "l")
    assert seal(engine, None, seal_after=hour) == []
    start = datetime.now(UTC)
    monkeypatch.setattr(database, "now", lambda connection: start + timedelta(minutes=59))
    assert seal(engine, None, seal_after=hour) == []
    monkeypatch.setattr(database, "now", lambda connection: start + timedelta(minutes=61))
    assert [each.checkpoint.rows for each in seal(engine, None, seal_after=hour)] == [1]
    monkeypatch.undo()
    run(engine, GAP.replace("2026", "2099") % "w1")
    assert seal(engine, None, seal_after=hour) == []
    run(engine, GAP % "w1")
    assert [each.checkpoint.rows for each in seal(engine, None, seal_after=hour)] == [2], (
        "a row of the future hides none"
    )
    jobs(engine, 1, "m")
    assert [each.checkpoint.rows for each in seal(engine, None, seal_after=timedelta())] == [1]
    assert seal(engine, None, seal_after=timedelta()) == []
    whole(engine)


def test_a_clock_that_is_set_back_does_not_set_back_the_chain(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sealed_at` is never before the previous one's."""
    run(engine, GAP % "w1")
    [first] = seal(engine, None)
    run(engine, GAP % "w1")
    monkeypatch.setattr(database, "now", lambda connection: first.checkpoint.sealed_at - timedelta(days=9))
    [second] = seal(engine, None)
    assert second.checkpoint.sealed_at == first.checkpoint.sealed_at
    whole(engine)


def test_a_backlog_is_one_checkpoint(engine: sa.Engine) -> None:
    """However many rows wait, one checkpoint closes them: those of a second would look older than the first."""
    jobs(engine, 4500)
    run(engine, *(GAP % "w1" for _ in range(3)))
    [made] = seal(engine, OLD, next_key=NEW.public)
    assert made.checkpoint.ids == {"transitions": (0, 4500), "gaps": (0, 3), "sources": (0, 0)}
    assert [segment.part for segment in made.checkpoint.segments] == [1, 2, 3, 4, 5, 1]
    assert whole(engine) == [made]
    with database.reading(engine) as connection:
        assert list(chain(connection)) == [made]
        assert list(chain(connection, 1)) == list(chain(connection, 9)) == []


def test_holes_in_the_ids_are_no_matter(engine: sa.Engine) -> None:
    """Rows that were rolled back leave holes on PostgreSQL, at the end of a segment and between."""
    for number in range(3):
        jobs(engine, 3, f"a{number}-")
        with engine.connect() as connection:
            connection.exec_driver_sql("INSERT INTO jobs (cluster, jid) VALUES ('w1', 'never')")
            connection.rollback()
        if number != 1:
            seal(engine, None)
    assert len(whole(engine)) == 2
    assert unsealed(engine) == 0


# Keys


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    caplog.clear()
    return found


def test_a_key_is_changed_by_the_one_before(engine: sa.Engine, caplog: pytest.LogCaptureFixture) -> None:
    """The old key's last checkpoint names the new one, also when nothing is new; then the new one signs, unremarked."""
    run(engine, GAP % "w1")
    seal(engine, None)
    run(engine, GAP % "w1")
    seal(engine, OLD)
    [announced] = seal(engine, OLD, next_key=NEW.public)
    assert (announced.checkpoint.rows, announced.checkpoint.key) == (0, OLD.public)
    assert announced.checkpoint.next_key == NEW.public
    run(engine, GAP % "w1")
    [after] = seal(engine, NEW)
    assert (after.checkpoint.key, after.checkpoint.next_key) == (NEW.public, None)
    assert len(whole(engine)) == 4
    assert warnings_of(caplog) == []


def test_an_unexpected_key_is_logged(engine: sa.Engine, caplog: pytest.LogCaptureFixture) -> None:
    """Another key, none after one, and the old one after it named another: sealed all the same, and logged."""
    keys = [OLD, NEW, None, NEW]
    for number, key in enumerate(keys):
        run(engine, GAP % "w1")
        seal(engine, key)
        expected = ["signing_key_unexpected"] if number in (1, 2) else []
        assert warnings_of(caplog) == expected
    seal(engine, NEW, next_key=THIRD.public)
    assert warnings_of(caplog) == []
    run(engine, GAP % "w1")
    seal(engine, NEW)
    assert warnings_of(caplog) == ["signing_key_unexpected"]
    assert len(whole(engine)) == 6


def test_an_old_key_never_seals_after_the_new_one(engine: sa.Engine, caplog: pytest.LogCaptureFixture) -> None:
    """Daemons are restarted one by one: what the new key of one has sealed does not let the old key of another on."""
    run(engine, GAP % "w1")
    seal(engine, OLD)
    seal(engine, OLD, next_key=NEW.public)
    for _ in range(2):
        run(engine, GAP % "w1")
        assert len(seal(engine, NEW, obeys=True)) == 1
        run(engine, GAP % "w1")
        with pytest.raises(BadConfiguration, match="announced another"):
            seal(engine, OLD, obeys=True)
    seal(engine, NEW, next_key=OLD.public)
    run(engine, GAP % "w1")
    assert len(seal(engine, OLD, obeys=True)) == 1, "it is the right one again"
    assert len(whole(engine)) == 6
    assert warnings_of(caplog) == []


def test_nothing_is_sealed_without_a_key_once_one_has_signed(engine: sa.Engine) -> None:
    """A run whose environment lacks the key must not leave a permanent finding: what waits, the next one seals."""
    for _ in range(2):
        run(engine, GAP % "w1")
        assert len(seal(engine, None, obeys=True)) == 1, "none has signed yet"
    run(engine, GAP % "w1")
    seal(engine, OLD, obeys=True)
    assert seal(engine, None, obeys=True) == [], "nothing to seal"
    for last in (False, True):
        run(engine, GAP % "w1")
        with pytest.raises(BadConfiguration, match=r"a key signs the chain.* TRACKER_SIGNING_KEY_FILE"):
            seal(engine, None, obeys=True)
        if not last:
            seal(engine, None)  # somebody did it all the same: it stays as it is
    seal(engine, OLD, next_key=NEW.public)
    run(engine, GAP % "w1")
    with pytest.raises(BadConfiguration, match="a key signs"):
        seal(engine, None, obeys=True)
    assert len(seal(engine, NEW, obeys=True)) == 1
    assert len(whole(engine)) == 6


# Damage


def damage(engine: sa.Engine, table: str, statement: str) -> None:
    """Run *statement* past the guards, as the tables' owner can."""
    with database.writing(engine) as connection:
        if engine.dialect.name == "sqlite":
            names = connection.exec_driver_sql(
                f"SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = '{table}'"
            ).scalars()
            for name in list(names):
                connection.exec_driver_sql(f"DROP TRIGGER {name}")
        else:
            connection.exec_driver_sql(f"ALTER TABLE {table} DISABLE TRIGGER ALL")
        connection.exec_driver_sql(statement)


def test_nothing_is_built_on_a_damaged_checkpoint(engine: sa.Engine) -> None:
    """Where the newest text is no checkpoint any more, sealing stops and says what to do."""
    run(engine, GAP % "w1")
    seal(engine, None)
    damage(engine, "seals", "UPDATE seals SET checkpoint = replace(checkpoint, 'rows 1', 'rows one')")
    run(engine, GAP % "w1")
    with pytest.raises(BadCheckpoint, match="tracker audit verify"):
        seal(engine, None)


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_row_that_was_forced_in_is_sealed_like_any_other(engine: sa.Engine) -> None:
    """Bytes that are not text, a time that is not one: the sealer refuses no row; finding it is for verify."""
    run(engine, GAP % "w1")
    with engine.connect() as connection:
        connection.rollback()
        raw = connection.connection.driver_connection
        assert raw is not None
        raw.execute("PRAGMA ignore_check_constraints = ON")
        for name in [row[0] for row in raw.execute("SELECT name FROM sqlite_master WHERE tbl_name = 'gaps'")]:
            if name.startswith("guard"):
                raw.execute(f"DROP TRIGGER {name}")
        raw.execute("UPDATE gaps SET detail = CAST(x'61ff00' AS TEXT), began_at = x'00', ended_at = 'never'")
        raw.execute("PRAGMA ignore_check_constraints = OFF")
    run(engine, GAP % "w1")
    [first] = seal(engine, None, seal_after=timedelta(hours=1))
    assert first.checkpoint.rows == 2
    assert whole(engine) == [first]


def test_rows_that_went_before_they_were_sealed_stop_nobody(engine: sa.Engine) -> None:
    """Deleted rows, and a highest id below the sealed one, are for verify to find: sealing goes on."""
    run(engine, *(GAP % "w1" for _ in range(3)))
    seal(engine, None)
    damage(engine, "gaps", "DELETE FROM gaps WHERE id > 1")
    assert seal(engine, None) == []
    jobs(engine, 1)
    [second] = seal(engine, None)
    assert second.checkpoint.ids["gaps"] == (3, 3)
    assert second.checkpoint.rows == 1


# Writers and sealers at once


@contextmanager
def threads(*targets: Callable[[], object]) -> Iterator[None]:
    """Run *targets* beside the block, and raise what one of them raised."""
    failed: list[BaseException] = []

    def guarded(target: Callable[[], object]) -> None:
        try:
            target()
        except BaseException as error:
            failed.append(error)

    running = [threading.Thread(target=guarded, args=(target,)) for target in targets]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        for thread in running:
            thread.join(60)
    if failed:
        raise failed[0]


def test_no_row_is_left_out_however_writers_commit(engine: sa.Engine) -> None:
    """Six writers hold their ids for different times and commit out of order, some roll back; every row is sealed."""
    done = threading.Event()
    numbers = itertools.count()

    def write(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(12):
            with engine.connect() as connection:
                for _ in range(chance.randint(1, 3)):
                    values = f"('w{seed}', 'j{next(numbers)}')"
                    connection.exec_driver_sql(f"INSERT INTO jobs (cluster, jid) VALUES {values}")
                    if engine.dialect.name == "postgresql":
                        time.sleep(chance.random() / 50)
                connection.rollback() if chance.random() < 0.2 else connection.commit()
            time.sleep(chance.random() / 50)  # SQLite's lock is not fair: the sealers need a turn

    def seal_on() -> None:
        while not done.is_set():
            seal(engine, None, wait=lambda seconds: done.wait(0.01))

    with threads(seal_on, seal_on):
        try:
            with threads(*(lambda seed=seed: write(seed) for seed in range(6))):
                pass
        finally:
            done.set()
    seal(engine, None)
    found = whole(engine)
    assert unsealed(engine) == 0
    assert len(found) > 3, "it was sealed while they wrote"


def test_two_sealers_make_one_chain(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both start from the same head with the same rows: one wins, the other builds on what it wrote, or has nothing."""
    jobs(engine, 10)
    both = threading.Barrier(2)
    build, met = sealer._build, set[int]()

    def meet(*arguments: Any) -> tuple[Signed, list[dict[str, Any]]]:
        built = build(*arguments)
        if threading.get_ident() not in met:
            met.add(threading.get_ident())
            both.wait(10)
        return built

    monkeypatch.setattr(sealer, "_build", meet)
    made: list[list[Signed]] = []
    with threads(*(lambda: made.append(seal(engine, OLD)) for _ in range(2))):
        pass
    assert sorted(map(len, made)) == [0, 1]
    assert len(whole(engine)) == 1


def test_a_sealer_that_always_loses_gives_up(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It never spins: after some defeats it says so, and the next round tries again."""
    monkeypatch.setattr(sealer, "_write", lambda *arguments: False)
    run(engine, GAP % "w1")
    with pytest.raises(DatabaseUnavailable, match="other sealers"):
        seal(engine, None)


def longest(engine: sa.Engine, seconds: Callable[[], bool], took: list[float]) -> None:
    """Register jobs one by one, a transaction each, while *seconds* says so, and note how long each took."""
    number = 0
    while seconds():
        start = time.monotonic()
        run(engine, f"INSERT INTO jobs (cluster, jid) VALUES ('w9', 'one-{threading.get_ident()}-{number}')")
        took.append(time.monotonic() - start)
        number += 1
        time.sleep(0.005)


@pytest.mark.parametrize("dialect", ["postgresql"])
def test_an_idle_transaction_stalls_nobody_for_long(
    engine: sa.Engine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain SQL left open: the sealer gives up after a while and seals it all later; writers wait 150 ms at a time."""
    assert sealer.TRIES * (sealer.LOCK_MS / 1000 + sealer.PAUSE_SECONDS) < 5
    monkeypatch.setattr(sealer, "TRIES", 5)
    jobs(engine, 5)
    took: list[float] = []
    over = threading.Event()
    with engine.connect() as idle:
        idle.exec_driver_sql("INSERT INTO jobs (cluster, jid) VALUES ('w1', 'idle')")
        with threads(lambda: longest(engine, lambda: not over.is_set(), took)):
            try:
                start = time.monotonic()
                assert seal(engine, OLD, wait=lambda seconds: time.sleep(seconds / 10)) == []
                assert 0.75 < time.monotonic() - start < 3
                assert "seal_postponed" in warnings_of(caplog)
                [announced] = seal(engine, OLD, next_key=NEW.public, wait=lambda seconds: None)
                assert announced.checkpoint.rows == 0, "a key can be changed all the same"
            finally:
                over.set()
        idle.commit()
    assert len(took) > 10
    assert max(took) < 0.5
    seal(engine, NEW)
    whole(engine)
    assert unsealed(engine) == 0


@pytest.mark.parametrize("dialect", ["postgresql"])
def test_a_long_import_is_sealed_between_its_pieces(engine: sa.Engine) -> None:
    """An importer that commits every 0.1 s and starts again at once: the sealer finds its way in, and it goes on."""
    over = threading.Event()

    def bring() -> None:
        for piece in itertools.count():
            if over.is_set():
                return
            with database.writing(engine) as connection:
                for number in range(5):
                    connection.exec_driver_sql(
                        "INSERT INTO jobs (cluster, jid)"
                        f" SELECT 'w1', 'p{piece}-{number}-' || i FROM generate_series(1, 20) i"
                    )
                    time.sleep(0.02)

    with threads(bring):
        try:
            made: list[Signed] = []
            end = time.monotonic() + 10
            while len(made) < 3 and time.monotonic() < end:
                made += seal(engine, None)
                time.sleep(0.05)
        finally:
            over.set()
    seal(engine, None)
    assert len(made) >= 3
    whole(engine)
    assert unsealed(engine) == 0


def test_sealing_100_000_rows_holds_no_writer_up(engine: sa.Engine) -> None:
    """A writer beside the sealer of a large backlog commits each row in less than 0.2 s."""
    jobs(engine, 10_000)
    gaps = f"INSERT INTO gaps (cluster, began_at, ended_at, cause) SELECT 'w' || i / 30000, '{AT}', '{AT}', 'paused'"
    run(engine, f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 90000) {gaps} FROM n")
    took: list[float] = []
    over = threading.Event()
    with threads(lambda: longest(engine, lambda: not over.is_set(), took)):
        try:
            made = seal(engine, OLD)
        finally:
            over.set()
    assert sum(each.checkpoint.rows for each in made) >= 100_000
    assert len(took) > 10
    took.sort()
    assert took[-2] < 0.2, "one hiccup may be the machine's"


def test_a_checkpoint_that_was_signed_for_another_chain_does_not_fit(engine: sa.Engine) -> None:
    """What is written is built on the head it was built for, or not at all."""
    run(engine, GAP % "w1")
    [first] = seal(engine, None)
    run(engine, GAP % "w1")
    [second] = seal(engine, None)
    stale = sign(first.checkpoint, OLD)
    assert sealer._write(engine, None, stale, []) is False
    assert sealer._write(engine, first, stale, []) is False
    assert whole(engine) == [first, second]
