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

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.history import register
from tracker import database, models
from tracker.audit import lines
from tracker.audit import seal as sealer
from tracker.audit.checkpoint import Signed
from tracker.audit.keys import PublicKey, SigningKey
from tracker.audit.lines import TABLES
from tracker.audit.seal import chain, head, seal
from tracker.errors import BadConfiguration

OLD, NEW, THIRD = (SigningKey(Ed25519PrivateKey.from_private_bytes(bytes([n] * 32))) for n in range(3))
HOUR = timedelta(hours=1)
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


def jobs(engine: sa.Engine, count: int, name: str = "j") -> None:
    """Register *count* jobs in one statement."""
    numbers = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"
    run(engine, f"{numbers} INSERT INTO jobs (cluster, jid) SELECT 'w1', '{name}' || i FROM n")


def sealed(
    engine: sa.Engine,
    key: SigningKey | None,
    *new: str,
    next_key: PublicKey | None = None,
    after: timedelta | None = None,
) -> Signed:
    """Run statements, and return the checkpoint that then closes the new rows."""
    run(engine, *new)
    made = seal(engine, key, next_key=next_key, seal_after=after)
    assert made is not None
    return made


def whole(engine: sa.Engine) -> list[Signed]:
    """Return the chain, checked: its links, and that its segments are every row, each once, in order and as sealed."""
    with database.reading(engine) as connection:
        found = list(chain(connection))
        rows = {table: list(lines.stream(connection, table, 0)) for table in TABLES}
        seals = connection.execute(sa.select(models.SEALS).order_by(models.SEALS.c.id)).all()
        segments = connection.execute(sa.select(models.SEGMENTS)).all()
        assert head(connection) == (found[-1] if found else None)
    assert [signed.checkpoint.number for signed in found] == list(range(1, len(found) + 1))
    assert len({signed.checkpoint.origin for signed in found}) <= 1
    before: Signed | None = None
    wanted: set[tuple[object, ...]] = set()
    for signed, row in zip(found, seals, strict=True):
        checkpoint = signed.checkpoint
        assert checkpoint.previous_sha256 == (before.sha256 if before else None)
        assert row.checkpoint == signed.text
        assert {name: getattr(row, name) for name in sealer.columns(signed)} == sealer.columns(signed)
        assert signed.is_genuine() is (True if checkpoint.key else None)
        count, parts = 0, list(checkpoint.segments)
        for table in TABLES:
            after, upto = checkpoint.ids[table]
            assert after == (before.checkpoint.ids[table][1] if before else 0)
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
        held = connection.execute(sa.select(sa.func.coalesce(sa.func.sum(models.SEALS.c.rows), 0))).scalar_one()
    return int(rows - held)


def test_rows_of_all_tables_are_sealed(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """One checkpoint, however many rows, hostile texts too; without new rows none; its time is never set back."""
    assert seal(engine, None) is None
    assert whole(engine) == []
    run(engine, *(SOURCE % name for name in ("w2", "w1", "w1")), *(GAP % name for name in ("w1", "w2", 'w3 é,"')))
    for number in range(3):
        register(engine, f'😀,"\\{number}', f"w{number}")
    jobs(engine, 1000)
    with engine.connect() as connection:  # it leaves a hole in the ids on PostgreSQL
        connection.exec_driver_sql("INSERT INTO jobs (cluster, jid) VALUES ('w1', 'never')")
        connection.rollback()
    jobs(engine, 1001, "k")
    first = sealed(engine, OLD)
    assert [(each.name, each.part) for each in first.checkpoint.segments] == [
        *(("transitions", 1), ("transitions", 2), ("transitions", 3), ("gaps", 1), ("sources", 1)),
    ]
    assert first.checkpoint.rows == 3 + 3 + 3 + 2001
    assert seal(engine, OLD) is None
    with database.reading(engine) as connection:
        assert abs(first.checkpoint.sealed_at - database.now(connection)) < timedelta(minutes=1)
    monkeypatch.setattr(database, "now", lambda connection: first.checkpoint.sealed_at - 9 * HOUR)
    second = sealed(engine, OLD, GAP % "w1")
    assert (second.checkpoint.rows, second.checkpoint.ids["gaps"]) == (1, (3, 4))
    assert second.checkpoint.sealed_at == first.checkpoint.sealed_at
    assert whole(engine) == [first, second]
    assert unsealed(engine) == 0


def test_rows_wait_until_they_are_many_or_old(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sealed when 1,000 rows wait or the oldest is `seal_after` old, all at once; 0 s: whenever any is new."""
    assert seal(engine, None, seal_after=HOUR) is None
    jobs(engine, 999)
    assert seal(engine, None, seal_after=HOUR) is None
    jobs(engine, 1, "k")
    assert sealed(engine, None, after=HOUR).checkpoint.rows == 1000
    jobs(engine, 1, "l")
    start = datetime.now(UTC)
    monkeypatch.setattr(database, "now", lambda connection: start + timedelta(minutes=59))
    assert seal(engine, None, seal_after=HOUR) is None
    monkeypatch.setattr(database, "now", lambda connection: start + timedelta(minutes=61))
    assert sealed(engine, None, after=HOUR).checkpoint.rows == 1
    monkeypatch.undo()
    run(engine, GAP.replace("2026", "2099") % "w1")
    assert seal(engine, None, seal_after=HOUR) is None
    assert sealed(engine, None, GAP % "w1", after=HOUR).checkpoint.rows == 2, "a row of the future hides none"
    jobs(engine, 1, "m")
    assert sealed(engine, None, after=timedelta()).checkpoint.rows == 1
    assert seal(engine, None, seal_after=timedelta()) is None
    whole(engine)


def test_a_key_is_changed_by_the_one_before_it(engine: sa.Engine) -> None:
    """The old key's last checkpoint names the new one, also when nothing is new; then the old one seals nothing."""
    for key in (None, None, OLD):
        sealed(engine, key, GAP % "w1")
    assert seal(engine, None) is None, "nothing to seal"
    run(engine, GAP % "w1")
    with pytest.raises(BadConfiguration, match=r"a key has signed the chain.* TRACKER_SIGNING_KEY_FILE"):
        seal(engine, None)
    sealed(engine, OLD)
    announced = sealed(engine, OLD, next_key=NEW.public).checkpoint
    assert (announced.rows, announced.key, announced.next_key) == (0, OLD.public, NEW.public)
    for _ in range(2):
        for wrong, words in ((OLD, "announced another"), (None, "a key has signed")):
            run(engine, GAP % "w1")
            with pytest.raises(BadConfiguration, match=words):
                seal(engine, wrong)
        after = sealed(engine, NEW).checkpoint
        assert (after.key, after.next_key) == (NEW.public, None)
    sealed(engine, NEW, next_key=OLD.public)
    assert sealed(engine, OLD, GAP % "w1").checkpoint.key == OLD.public, "it is the right one again"
    assert sealed(engine, THIRD, GAP % "w1").checkpoint.key == THIRD.public, "the key was lost; verify reports it"
    assert len(whole(engine)) == 10


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


@pytest.mark.parametrize("dialect", ["postgresql"])
def test_an_idle_transaction_stalls_nobody(
    engine: sa.Engine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain SQL left open: the sealer waits 150 ms at a time, writers go on, and all of it is sealed later."""
    assert sealer.TRIES * (sealer.LOCK_MS / 1000 + sealer.PAUSE_SECONDS) < 5
    monkeypatch.setattr(sealer, "TRIES", 3)
    numbers = itertools.count()
    jobs(engine, 1)
    with engine.connect() as idle:
        idle.exec_driver_sql("INSERT INTO jobs (cluster, jid) VALUES ('w1', 'idle')")
        assert seal(engine, OLD, wait=lambda seconds: jobs(engine, 1, f"beside{next(numbers)}-")) is None
        assert "seal_postponed" in [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
        announced = seal(engine, OLD, next_key=NEW.public, wait=lambda seconds: None)
        assert announced is not None
        assert announced.checkpoint.rows == 0, "a key can be changed all the same"
        idle.commit()
    assert sealed(engine, NEW).checkpoint.rows == 4
    whole(engine)
    assert unsealed(engine) == 0
