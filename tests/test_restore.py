"""After an older copy is restored: a daemon notices it, the chain does not fork unnoticed, verifiers name the loss."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.conftest import Run
from tests.history import ZONE, register
from tests.test_deliver import Receiver, texts
from tests.test_deliver import receiver as receiver
from tests.test_export import verify as verify_sh
from tests.test_poller import on_sqlite
from tests.test_verify import found, verified
from tracker import database
from tracker.audit import pack
from tracker.audit.checkpoint import parse, sign, split
from tracker.audit.deliver import Courier
from tracker.audit.keys import SigningKey, keygen
from tracker.audit.seal import seal
from tracker.audit.sealing import Sealing
from tracker.models import DELIVERIES
from tracker.needs import Need, needs
from tracker.reports.overview import overview
from tracker.settings import Settings

Backup = Callable[[], sa.Engine]


@pytest.fixture
def backup(dialect: str, engine: sa.Engine, request: pytest.FixtureRequest, tmp_path: Path) -> Backup:
    """Return a function that copies the database and opens the copy."""

    def backup() -> sa.Engine:
        engine.dispose()
        source, file = str(engine.url.database), tmp_path / f"{len([*tmp_path.iterdir()])}.db"
        if dialect == "sqlite":
            made = database.open_database(f"sqlite:///{shutil.copy(source, file)}")
        else:
            made = database.open_database(request.getfixturevalue("postgres_of_its_own")(source))
        request.addfinalizer(made.dispose)
        return made

    return backup


@pytest.fixture
def given(tmp_path: Path, receiver: Receiver) -> Settings:
    """Settings with a key, a file and a receiver."""
    keygen(tmp_path / "key")
    file, url = tmp_path / "c.txt", receiver.url
    return Settings(seal_after=timedelta(), checkpoint_file=file, checkpoint_url=url, signing_key_file=tmp_path / "key")


def once(engine: sa.Engine, given: Settings, *jids: str, lost: str | None = None) -> str:
    """Register jobs, do what `run --once` does beside the polling, and return why sealing failed."""
    for jid in jids:
        register(engine, jid)
    sealing = Sealing(given, once=True, restored_after=lost)
    with sealing(engine):
        pass
    return str(sealing.failure or "")


def urgent(engine: sa.Engine) -> list[Need]:
    with database.reading(engine) as connection:
        found = needs(overview(connection, [], timedelta()))
    return sorted((need for need in found if need.is_urgent), key=lambda need: need.subject)


def strict(receiver: Receiver, *, says: bool = True) -> list[str]:
    """Let a receiver take only what follows its newest checkpoint or names a lost one; return what it has."""
    got: list[str] = []

    def judge(text: str) -> tuple[int, str]:
        newest, one = parse(got[-1]).sha256 if got else None, parse(text).checkpoint
        if text not in got[-1:] and one.previous_sha256 != newest and one.restored_after is None:
            return 409, f"{newest} is my newest" if says else ""
        got.extend([text] if text not in got[-1:] else [])
        return 200, ""

    receiver.judge = judge
    return got


def outside(given: Settings) -> list[str]:
    return split(Path(str(given.checkpoint_file)).read_text())


def test_a_loss_is_noticed_said_and_verified(
    engine: sa.Engine, backup: Backup, receiver: Receiver, given: Settings, tmp_path: Path
) -> None:
    """Nothing is sealed until the next checkpoint may name the lost one; then delivery continues, twice in a row."""
    got = strict(receiver)
    assert [once(engine, given, jid) for jid in "ab"] == ["", ""]
    copy, second = backup(), backup()
    assert [once(engine, given, jid) for jid in "cd"] == ["", ""]
    before = texts(engine)
    lost = parse(before[3]).sha256
    ends = f"c.txt ends with checkpoint 4 (SHA-256 {lost}), which this database lacks"
    assert ends in once(copy, given, "e")
    assert ends in once(copy, given, lost=parse(before[2]).sha256)  # it is not the last one
    assert (texts(copy), outside(given), got) == (before[:2], before, before)
    one, other = urgent(copy)
    assert one.what.startswith("Sealing has stopped: file ")
    assert f"`tracker run --restored-after {lost}`" in one.action
    assert f"ends with SHA-256 {lost}, which" in other.what
    assert max(len(need.what + need.action) for need in (one, other)) < 500
    assert once(copy, given, lost=lost) == ""
    assert once(copy, given, "f", lost=lost) == ""  # a unit file may keep the option
    chain = texts(copy)
    assert [parse(text).checkpoint.restored_after for text in chain] == [None, None, lost, None]
    assert outside(given) == got == before + chain[2:]
    assert urgent(copy) == []
    file, begin = tmp_path / "c.txt", sum(len(text) + 1 for text in before)
    whole = file.read_bytes()
    for cut in (begin, begin + 1, begin + 300, len(whole) - 1):  # a crash in the middle of a write
        file.write_bytes(whole[:cut])
        assert (Courier.of(copy, given).deliver(), file.read_bytes()) == (None, whole), cut
    copy, lost = second, parse(chain[3]).sha256
    assert "ends with checkpoint 4" in once(copy, given, "g")
    assert once(copy, given, lost=lost) == ""
    assert outside(given) == got == before + chain[2:] + texts(copy)[2:]
    trusted = [parse(text) for text in outside(given)]
    report = verified(copy, trusted=trusted)
    assert (found(report), report.qualifications) == ([], ("KEY NOT CHECKED", "RESTORED AFTER A LOSS"))
    says = f"checkpoint 3 says: an older copy was restored; checkpoints up to SHA-256 {lost} were lost, among"
    assert [note.message for note in report.notes] == [f"{says} them the trusted numbers 3 to 4"]
    alone = verified(copy, trusted=trusted[-2:-1])  # the lost head
    assert (found(alone), "NOTHING TRUSTED GIVEN" in alone.qualifications) == ([], True)
    key = SigningKey.load(tmp_path / "key")
    changed = [*trusted[:3], sign(replace(trusted[3].checkpoint, rows=2), key), *trusted[4:]]
    [finding] = verified(copy, trusted=changed).findings
    assert "checkpoint 3: the trusted one" in finding.message  # nothing names it, or the changed one
    pack.export(copy, tmp_path / "pack", zone=ZONE, key=key)
    good, head = "lost\ncheckpoints (3 to 4 of the trusted)", f"number 3: restored_after {lost}"
    for content, code, words in ((trusted, 0, good), (trusted[-2:-1], 0, head), (changed, 1, "number 4")):
        (tmp_path / "trusted").write_text("".join(f"{signed.text}\n" for signed in content))
        status, said = verify_sh(tmp_path / "pack", "--trusted", tmp_path / "trusted")
        assert (status, words in said) == (code, True), said
    assert " was restored. Rows of lost\ncheckpoints may be missing" in verify_sh(tmp_path / "pack")[1]
    file.unlink()
    assert (once(copy, given), outside(given)) == ("", texts(copy))  # all of them, from number 1


@on_sqlite
@pytest.mark.parametrize("says", [True, False])
def test_a_receiver_alone(engine: sa.Engine, backup: Backup, receiver: Receiver, given: Settings, says: bool) -> None:
    """A receiver is enough, even if it does not name its newest checkpoint or was away at the start."""
    given = given.model_copy(update={"checkpoint_file": None})
    got, empty = strict(receiver, says=says), backup()
    once(engine, given, "a")
    copy = backup()
    once(engine, given, "b")
    before = texts(engine)
    judge, receiver.judge = receiver.judge, lambda text: (503, "")
    assert once(copy, given, "c") == ""  # it could not be asked
    receiver.judge = judge
    assert "which this database lacks" in once(copy, given, "d")
    assert once(copy, given, lost=parse(before[1]).sha256) == ""
    with database.writing(copy) as connection:
        connection.execute(sa.update(DELIVERIES).values(last_number=9))  # a note that is ahead
    assert once(copy, given, "e") == ""
    assert got == before + texts(copy)[2:]  # it lacks the fork, which the next one names
    assert once(empty, given, "f") == ""  # nothing was delivered from there, so nothing is sent again
    assert "which this database lacks" in once(empty, given, "g")
    assert once(empty, given, lost=parse(got[-1]).sha256) == ""
    assert got[-1] == texts(empty)[-1]


@on_sqlite
def test_a_key_that_was_announced_in_what_was_lost_is_refused(
    engine: sa.Engine, backup: Backup, given: Settings, tmp_path: Path
) -> None:
    """With it each later checkpoint would be a permanent finding; with the old key, nothing is found."""
    once(engine, given, "a")
    copy = backup()
    new = given.model_copy(update={"signing_key_file": tmp_path / "new"})
    announced = keygen(tmp_path / "new")
    seal(engine, SigningKey.load(tmp_path / "key"), next_key=announced)
    for jid in "bc":
        assert once(engine, new, jid) == ""
    lost, before = parse(texts(engine)[-1]).sha256, texts(copy)
    assert "the key was changed in what was lost. Run it with the old key" in once(copy, new, lost=lost)
    assert texts(copy) == before
    assert once(copy, given, lost=lost) == ""
    assert found(verified(copy, trusted=[parse(text) for text in outside(given)])) == []


def test_what_was_not_lost_is_refused(engine: sa.Engine, backup: Backup, given: Settings, run: Run) -> None:
    """A checkpoint of this database, or one that is not the last in the file, is refused; a copy may lack all."""
    empty = backup()
    once(engine, given, "a")
    copy, [text] = backup(), texts(engine)
    last = parse(text).sha256
    assert once(copy, given) == ""
    for lost in (last, "0" * 64):
        assert f"this database has checkpoint 1 (SHA-256 {last})" in once(copy, given, lost=lost)
    assert "nothing was lost" in once(copy, given.model_copy(update={"checkpoint_file": None}), lost=last)
    assert texts(copy) == [text]
    assert "ends with checkpoint 1" in once(empty, given, "b")
    assert once(empty, given, lost=last) == ""
    assert outside(given) == [text, *texts(empty)]
    for wrong in ("", "3b1c", last.upper()):
        assert run("run", "--once", "--restored-after", wrong)[0] == 2
