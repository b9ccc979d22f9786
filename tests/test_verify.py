"""`audit verify`: what it says of a chain, of files from outside and of the database itself, and its command line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from tests import history
from tests.history import ZONE, register
from tests.test_checks import unguarded as unchecked
from tracker import database, guards
from tracker.audit import seal as sealer
from tracker.audit.checkpoint import Signed, sign
from tracker.audit.findings import AskedServer, FindingKind, Report, may_be_loopback
from tracker.audit.keys import SigningKey, keygen
from tracker.audit.verify import verify
from tracker.cli.audit import verify as command
from tracker.errors import BadConfiguration
from tracker.models import JOBS, TRANSITIONS

HOUR = timedelta(hours=1)
on_sqlite = pytest.mark.parametrize("dialect", ["sqlite"])


@pytest.fixture
def keys(tmp_path: Path) -> list[SigningKey]:
    for name in ("first", "second"):
        keygen(tmp_path / name)
    return [SigningKey.load(tmp_path / name) for name in ("first", "second")]


def register_many(engine: sa.Engine, count: int, prefix: str = "j") -> None:
    with database.writing(engine) as connection:
        connection.execute(sa.insert(JOBS), [{"cluster": "w1", "jid": f"{prefix}{n}"} for n in range(count)])


@contextmanager
def unguarded(engine: sa.Engine) -> Iterator[sa.Connection]:
    with database.writing(engine) as connection:
        guards.drop(connection)
        yield connection
        guards.create(connection)


def verified(engine: sa.Engine, **given: Any) -> Report:
    with database.reading(engine) as connection:
        return verify(connection, zone=ZONE, **given)


def found(report: Report) -> list[str]:
    return [f"{finding.what}: {finding.message}" for finding in report.findings]


def sealed(engine: sa.Engine, key: SigningKey | None, *jids: str, **more: Any) -> Signed:
    for jid in jids:
        register(engine, jid)
    signed = sealer.seal(engine, key, **more)
    assert signed is not None
    return signed


# The chain


def test_a_finding_names_the_segment_of_a_thousand_rows(engine: sa.Engine) -> None:
    """Rows of the next segment, and ids that were rolled back, are not accused; nor is an empty database."""
    report = verified(engine)
    assert (found(report), report.number, report.qualifications) == ([], None, ("NOTHING SEALED",))
    register_many(engine, 1500)
    with engine.connect() as connection:
        connection.execute(sa.insert(JOBS).values(cluster="w1", jid="rolled-back"))
        connection.rollback()
    register_many(engine, 1000, "k")
    now = datetime.now(UTC)
    assert found(verified(engine, now=now + 23 * HOUR)) == []
    [finding] = verified(engine, now=now + 25 * HOUR).findings
    assert (finding.what, verified(engine).unsealed) == (FindingKind.UNSEALED, 2500)
    sealer.seal(engine, None)
    assert found(verified(engine, now=now + 25 * HOUR)) == []
    with unguarded(engine) as connection:
        connection.execute(sa.update(TRANSITIONS).where(TRANSITIONS.c.id == 1200).values(actor="eve"))
        connection.execute(sa.update(JOBS).where(JOBS.c.id == 1200).values(registered_by="eve"))
    [finding] = verified(engine).findings
    assert (finding.checkpoint, finding.segment) == (1, "segments/000001-transitions-2.csv")
    with unguarded(engine) as connection:
        connection.execute(sa.update(JOBS).values(reference="R"))
    report = verified(engine)
    assert (len(report.findings), report.more) == (1000, 1501), "the rest is counted, and does not fill the memory"


@on_sqlite
def test_only_the_succession_of_the_keys_is_right(
    engine: sa.Engine, keys: list[SigningKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each key announces the next; the old key that goes on after it, or no key, is one finding."""
    first, second = keys
    sealed(engine, None, "unsigned")
    assert "PARTLY NOT SIGNED" not in verified(engine).qualifications
    sealed(engine, first, "a", next_key=second.public)
    report = verified(engine, public_key=second.public)
    assert "it is announced, but has not signed yet" in report.findings[0].message
    assert (report.unsigned, "PARTLY NOT SIGNED" in report.qualifications) == (1, True)
    sealed(engine, second, "b")
    for key in (first.public, second.public, None):
        assert found(verified(engine, public_key=key)) == []
    assert verified(engine).keys == {first.public.id: (2, 2), second.public.id: (3, 3)}
    monkeypatch.setattr(sealer, "require_key", lambda *arguments: None)
    for key_, jid in ((first, "c"), (first, "d"), (None, "e")):
        sealed(engine, key_, jid)
    findings = verified(engine, public_key=second.public).findings
    assert [(finding.what, finding.checkpoint) for finding in findings] == [(FindingKind.KEY, 4), (FindingKind.KEY, 6)]
    assert f"it is signed with key {first.public.id}, which the chain did not" in findings[0].message
    assert "1 more up to checkpoint 5" in findings[0].message


@on_sqlite
def test_a_value_that_no_program_stores_is_a_finding_and_not_an_error(
    engine: sa.Engine, run: Callable[..., Result]
) -> None:
    """SQLite holds anything in any column, if its CHECKs are switched off for a moment."""
    sealed(engine, None, "a")
    for value in ("CAST(x'41ff' AS TEXT)", "x'6131'", "'a' || char(10)", "1.5"):
        with unchecked(engine) as connection:
            connection.exec_driver_sql(f"UPDATE transitions SET actor = {value}, reference = {value}")
            connection.exec_driver_sql(f"UPDATE jobs SET jid = {value}, seq = {value}, registered_at = {value}")
            connection.exec_driver_sql(f"UPDATE segments SET first_id = {value}")
            connection.exec_driver_sql(f"UPDATE seals SET key_id = {value}, sealed_at = {value}")
        for format_ in ("table", "csv", "json"):
            result = run("--format", format_)
            assert result.return_value == 1, result.exception


def test_a_reader_can_verify(engine: sa.Engine, dialect: str, url: str, tmp_path: Path) -> None:
    """A role that only reads, and a file that cannot be written, are enough."""
    sealed(engine, None, "a")
    if dialect == "sqlite":
        engine.dispose()
        (tmp_path / "tracker.db").chmod(0o400)
        assert found(verified(database.create_engine(url))) == []
        return
    with engine.connect().execution_options(postgresql_readonly=True) as connection:
        assert found(verify(connection, zone=ZONE)) == []


# Checkpoints from outside


@on_sqlite
def test_a_trusted_checkpoint_that_is_not_in_the_chain_says_why(engine: sa.Engine, keys: list[SigningKey]) -> None:
    """Cut off, replaced or of another database: one finding, with the lowest number."""
    signed = sealed(engine, keys[0], "a")
    assert found(verified(engine, trusted=[signed])) == []
    other = sign(replace(signed.checkpoint, sealed_at=signed.checkpoint.sealed_at + HOUR), keys[0])
    elsewhere = sign(replace(signed.checkpoint, origin="0" * 32), keys[0])
    longer = sign(replace(signed.checkpoint, number=2, previous_sha256=signed.sha256, rows=0, segments=()), keys[0])
    for trusted, why in (
        ([other], "the chain has another checkpoint in its place"),
        ([elsewhere], "it belongs to another database"),
        ([signed, longer], "the chain ends with 1: its end was cut off"),
        ([longer, other], "the chain has another checkpoint in its place, or none (and 1 more)"),
    ):
        [finding] = verified(engine, trusted=trusted).findings
        assert (finding.what, why in finding.message) == (FindingKind.TRUSTED, True), finding.message


def test_a_source_on_the_same_machine_is_flagged_however_it_is_spelled() -> None:
    """Anyone who lets a server of their own answer writes its address as they like."""
    for host in ("localhost.", "LOCALHOST:443", "0.0.0.0", "[::ffff:127.0.0.1]", "2130706433", "127.1:80", "[::]"):  # noqa: S104
        assert AskedServer("w1", f"https://{host}/p", "").flags == ("loopback",), host
    assert AskedServer("w1", "http://[::1]:9/p", "").flags == ("loopback", "plain http")
    assert AskedServer("w1", "https://127.evil.example/p", "").flags == ()
    assert AskedServer("w1", "https://[::1", "").flags == ("no address",)


# The command


@pytest.fixture
def run(url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("TRACKER_DATABASE_URL", url)

    def run(*arguments: str | Path) -> Result:
        return CliRunner().invoke(command, [str(argument) for argument in arguments], standalone_mode=False)

    return run


def test_a_good_record_gets_a_plain_ok(
    engine: sa.Engine, run: Callable[..., Result], keys: list[SigningKey], tmp_path: Path
) -> None:
    """With the right key and a checkpoint from outside nothing qualifies it; in csv it is on standard error."""
    job_id = register(engine, "a")
    history.answer(engine, job_id, ("waiting", datetime.now(UTC)))
    signed = sealed(engine, keys[0])
    (tmp_path / "key.pem").write_text(keys[0].public.pem())
    (tmp_path / "trusted").write_text(f"{signed.text}\n")
    given = ("--public-key", tmp_path / "key.pem", "--trusted", tmp_path / "trusted")
    result = run("--format", "table", *given)
    assert "\nOK: 1 job, 2 transitions, 1 checkpoint over 3 rows, 0 rows not sealed yet.\n" in result.stdout
    piped = run(*given)
    header = "what,checkpoint,segment,cluster,jid,seq,message\n"
    assert (piped.return_value, piped.stdout, piped.stderr) == (0, header, result.stdout)
    report = json.loads(run("--format", "json", *given).stdout)
    assert (report["is_good"], report["qualifications"], report["number"]) == (True, [], 1)
    with unguarded(engine) as connection:
        connection.execute(sa.update(JOBS).values(reference="R"))
    result = run("--format", "csv")
    assert result.return_value == 1
    [row] = csv.DictReader(io.StringIO(result.stdout))
    assert (row["what"], row["cluster"], row["jid"]) == ("job", "w1", "a")
    assert "NOT OK: 1 finding: 1 job, " in result.stderr
    assert "FOUND job: job a of cluster w1: reference is R" in run("--format", "table").stdout


def test_this_machine_is_known_however_it_is_spelled() -> None:
    """Each leads here, or may: what a name with a dot at its end means is up to the resolver."""
    for host in (
        *("localhost", "LocalHost", "localhost.", "a.localhost", "a.LOCALHOST.", "127.0.0.1", "127.0.0.1."),
        *("0.0.0.0", "127.1", "2130706433", "0x7f000001", "0x7F.1", "0177.0.0.1", "017700000001", "0"),  # noqa: S104
        *("::1", "0:0:0:0:0:0:0:1", "::", "::ffff:127.0.0.1", "::FFFF:7f00:1", "::ffff:0.0.0.0", "::1%lo"),
    ):
        assert may_be_loopback(host), host
    for other in (
        *("", None, "example.com", "localhost.evil.com", "notlocalhost", "127.evil.com", "10.0.0.1", "3232235777"),
        *("::ffff:10.0.0.1", "fe80::1", "2001:db8::1", "128.0.0.1", "1", "é.example", "999999999999", "0x"),
    ):
        assert not may_be_loopback(other), other


@on_sqlite
def test_a_bad_file_is_an_error_in_words(
    engine: sa.Engine, run: Callable[..., Result], keys: list[SigningKey], tmp_path: Path
) -> None:
    """Rubbish, CR LF, a cut file, an empty one, the wrong kind of key: the message names file and line."""
    signed = sealed(engine, keys[0], "a")
    file = tmp_path / "file"
    for content, words in (
        (b"\xff\x00 rubbish", "checkpoint 1 in this file: not a checkpoint: line 1 is"),
        (b"\n\n" + signed.text.encode() + b"\nrubbish\n", "checkpoint 2 in this file: not a checkpoint: line 1"),
        (signed.text.replace("\n", "\r\n").encode(), "its lines end in CR LF"),
        (signed.text[:200].encode(), "not a checkpoint: line"),
        (b"\n", "holds no checkpoint"),
    ):
        file.write_bytes(content)
        result = run("--trusted", file)
        assert isinstance(result.exception, click.UsageError), result
        assert words in str(result.exception)
    for wrong in (file, tmp_path / "first"):
        assert isinstance(run("--public-key", wrong).exception, BadConfiguration)
    assert isinstance(run("--trusted", tmp_path / "missing").exception, click.UsageError)
