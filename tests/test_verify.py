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
from tracker.audit.checkpoint import parse, sign
from tracker.audit.findings import Report, Source, What
from tracker.audit.keys import SigningKey, keygen
from tracker.audit.seal import seal
from tracker.audit.verify import verify
from tracker.cli.audit_verify import verify as command
from tracker.errors import BadConfiguration
from tracker.models import JOBS, SEALS, TRANSITIONS

HOUR = timedelta(hours=1)


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


# The chain


def test_a_database_that_was_never_used_is_good(engine: sa.Engine) -> None:
    """Nothing is found where nothing is, and the result says so."""
    report = verified(engine)
    assert (found(report), report.number, report.qualifications) == ([], None, ("NOTHING SEALED",))


def test_a_finding_names_the_segment_of_a_thousand_rows(engine: sa.Engine) -> None:
    """Rows of the next segment, and a stretch of ids that were rolled back, are not accused."""
    register_many(engine, 1500)
    with engine.connect() as connection:
        connection.execute(sa.insert(JOBS).values(cluster="w1", jid="rolled back"))
        connection.rollback()
    register_many(engine, 1000, "k")
    seal(engine, None)
    assert found(verified(engine)) == []
    with unguarded(engine) as connection:
        connection.execute(sa.update(TRANSITIONS).where(TRANSITIONS.c.id == 1200).values(actor="eve"))
        connection.execute(sa.update(JOBS).where(JOBS.c.id == 1200).values(registered_by="eve"))
    [finding] = verified(engine).findings
    assert (finding.checkpoint, finding.segment) == (1, "segments/000001-transitions-2.csv")


def test_a_key_that_the_one_before_announced_is_right_and_any_other_is_not(
    engine: sa.Engine, keys: list[SigningKey]
) -> None:
    """The keys of the chain's own succession are accepted; the old key that goes on after it is one finding."""
    first, second = keys
    register_many(engine, 1)
    seal(engine, first, next_key=second.public)
    [finding] = verified(engine, public_key=second.public).findings
    assert "it is announced, but has not signed yet" in finding.message
    register_many(engine, 1, "more")
    seal(engine, second)
    for key in (first.public, second.public, None):
        assert found(verified(engine, public_key=key)) == []
    assert verified(engine).keys == {first.public.id: (1, 1), second.public.id: (2, 2)}
    for number in range(2):
        register_many(engine, 1, f"{number}-")
        seal(engine, first)
    [finding] = verified(engine, public_key=second.public).findings
    assert (finding.what, finding.checkpoint) == (What.KEY, 3)
    assert f"checkpoints 3 to 4 (2) are signed with key {first.public.id}" in finding.message


def test_unsigned_first_and_signed_later_is_good_and_the_other_way_round_is_not(
    engine: sa.Engine, keys: list[SigningKey]
) -> None:
    """A chain may begin without a key; once one has signed, a checkpoint without a signature is a finding."""
    for number, key in enumerate((None, keys[0], None), 1):
        register_many(engine, 1, f"{number}-")
        seal(engine, key)
        report = verified(engine, public_key=keys[0].public if number > 1 else None)
        assert [finding.checkpoint for finding in report.findings] == ([3] if number == 3 else [])
        assert "PARTLY NOT SIGNED" in report.qualifications or number == 1
    assert verified(engine).unsigned == 2


def test_in_an_unsigned_chain_a_changed_checkpoint_accuses_no_segment(engine: sa.Engine) -> None:
    """Without signatures the next checkpoint says which text was sealed."""
    for number in range(2):
        register_many(engine, 1, f"{number}-")
        seal(engine, None)
    with database.reading(engine) as connection:
        one = parse(
            connection.execute(sa.select(SEALS.c.checkpoint).order_by(SEALS.c.id).limit(1)).scalar_one()
        ).checkpoint
    changed = sign(replace(one, segments=(replace(one.segments[0], sha256="0" * 64),)), None)
    with unguarded(engine) as connection:
        values = {"checkpoint": changed.text, "checkpoint_sha256": changed.sha256}
        connection.execute(sa.update(SEALS).where(SEALS.c.id == 1).values(values))
        connection.exec_driver_sql(f"UPDATE segments SET sha256 = '{'0' * 64}' WHERE seal_id = 1")
    accused = [(finding.what, finding.checkpoint) for finding in verified(engine).findings]
    assert accused == [(What.CHECKPOINT, 1), (What.CHECKPOINT, 2)]


def test_a_row_of_the_future_is_found_before_and_after_it_is_sealed(engine: sa.Engine) -> None:
    """A sealed row must have come about by the time of its checkpoint; what is not sealed yet, by now."""
    job_id = register(engine, "a")
    history.answer(engine, job_id, ("waiting", datetime.now(UTC) + 200 * 24 * HOUR))
    for _ in range(2):
        assert {(finding.what, finding.jid) for finding in verified(engine).findings} >= {(What.HISTORY, "a")}
        seal(engine, None)


def test_rows_that_wait_longer_than_a_day_for_a_seal_are_found(engine: sa.Engine) -> None:
    """A daemon seals every hour; where none does, nothing protects the rows."""
    register_many(engine, 1)
    now = datetime.now(UTC)
    assert found(verified(engine, now=now + 23 * HOUR)) == []
    [finding] = verified(engine, now=now + 25 * HOUR).findings
    assert (finding.what, verified(engine).unsealed) == (What.UNSEALED, 1)
    seal(engine, None)
    assert found(verified(engine, now=now + 25 * HOUR)) == []


def test_a_thousand_findings_are_kept_and_the_rest_is_counted(engine: sa.Engine) -> None:
    """A database in which nothing fits does not fill the memory."""
    register_many(engine, 1100)
    with unguarded(engine) as connection:
        connection.execute(sa.update(JOBS).values(reference="R"))
    report = verified(engine)
    assert (len(report.findings), report.more) == (1000, 100)


@pytest.mark.parametrize("value", ["CAST(x'41ff' AS TEXT)", "x'6131'", "'a' || char(10)", "1.5"])
def test_a_value_that_no_program_stores_is_a_finding_and_not_an_error(
    engine: sa.Engine, dialect: str, run: Callable[..., Result], value: str
) -> None:
    """SQLite holds anything in any column, if its CHECKs are switched off for a moment."""
    if dialect != "sqlite":
        pytest.skip("PostgreSQL's columns hold their own types only")
    register(engine, "a")
    seal(engine, None)
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
    register(engine, "a")
    seal(engine, None)
    if dialect == "sqlite":
        engine.dispose()
        (tmp_path / "tracker.db").chmod(0o400)
        assert found(verified(database.create_engine(url))) == []
        return
    with engine.connect().execution_options(postgresql_readonly=True) as connection:
        assert found(verify(connection, zone=ZONE)) == []


# Checkpoints from outside


def test_a_trusted_checkpoint_that_is_not_in_the_chain_says_why(engine: sa.Engine, keys: list[SigningKey]) -> None:
    """Cut off, replaced or of another database: one finding, with the lowest number."""
    register_many(engine, 1)
    [signed] = seal(engine, keys[0])
    assert found(verified(engine, trusted=[signed])) == []
    other = sign(replace(signed.checkpoint, sealed_at=signed.checkpoint.sealed_at + HOUR), keys[0])
    elsewhere = sign(replace(signed.checkpoint, origin="0" * 32), keys[0])
    longer = sign(replace(signed.checkpoint, number=2, previous_sha256=signed.sha256, rows=0, segments=()), keys[0])
    for trusted, why in (
        ([other], "in the chain is a different one, or missing"),
        ([elsewhere], "it belongs to another database"),
        ([signed, longer], "the chain ends with 1: its end was cut off"),
        ([longer, other], "in the chain is a different one, or missing (and 1 more)"),
    ):
        [finding] = verified(engine, trusted=trusted).findings
        assert (finding.what, why in finding.message) == (What.TRUSTED, True), finding.message


def test_a_source_on_the_same_machine_is_flagged_however_it_is_spelled() -> None:
    """Anyone who lets a server of their own answer writes its address as they like."""
    for host in ("localhost.", "LOCALHOST:443", "0.0.0.0", "[::ffff:127.0.0.1]", "2130706433", "127.1:80", "[::]"):  # noqa: S104
        assert Source("w1", f"https://{host}/p", "").flags == ("loopback",), host
    assert Source("w1", "http://[::1]:9/p", "").flags == ("loopback", "plain http")
    assert Source("w1", "https://127.evil.example/p", "").flags == ()
    assert Source("w1", "https://[::1", "").flags == ("no address",)


# The command


@pytest.fixture
def run(url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("TRACKER_DATABASE_URL", url)

    def run(*arguments: str | Path) -> Result:
        return CliRunner().invoke(command, [str(argument) for argument in arguments], standalone_mode=False)

    return run


def test_a_simulators_ok_is_not_the_same_as_a_good_one(
    engine: sa.Engine, run: Callable[..., Result], keys: list[SigningKey], tmp_path: Path
) -> None:
    """What the result does not rest on stands in its line, and what OK means stands below."""
    with database.writing(engine) as connection:
        history.source(connection, "w1", database.now(connection), base_url="http://127.0.0.1:8080")
    seal(engine, None)
    result = run("--format", "table")
    ok = next(line for line in result.stdout.splitlines() if line.startswith("OK"))
    assert result.return_value == 0
    for words in ("NOT SIGNED", "NOTHING TRUSTED GIVEN", "A SIMULATOR MAY HAVE ANSWERED"):
        assert words in ok
        assert f"\n{words}: " in result.stdout
    assert "no row sealed up to checkpoint 1 was changed, removed or added since it was sealed" in result.stdout


def test_a_good_record_gets_a_plain_ok(
    engine: sa.Engine, run: Callable[..., Result], keys: list[SigningKey], tmp_path: Path
) -> None:
    """With the right key and a checkpoint from outside nothing qualifies it; in csv it is on standard error."""
    history.answer(engine, register(engine, "a"), ("waiting", datetime.now(UTC)))
    [signed] = seal(engine, keys[0])
    (tmp_path / "key.pem").write_text(keys[0].public.pem())
    (tmp_path / "trusted").write_text(f"{signed.text}\n")
    given = ("--public-key", tmp_path / "key.pem", "--trusted", tmp_path / "trusted")
    result = run("--format", "table", *given)
    assert "\nOK: 1 job, 2 transitions, 1 checkpoint over 3 rows, 0 rows not sealed yet.\n" in result.stdout
    piped = run(*given)
    assert (piped.return_value, piped.stdout, piped.stderr) == (
        0,
        "what,checkpoint,segment,cluster,jid,seq,message\n",
        result.stdout,
    )
    report = json.loads(run("--format", "json", *given).stdout)
    assert (report["is_good"], report["qualifications"], report["number"]) == (True, [], 1)


def test_the_command_exits_with_1_and_names_each_finding(engine: sa.Engine, run: Callable[..., Result]) -> None:
    """A finding is a row of the csv, and a line of the table."""
    register(engine, "j0")
    with unguarded(engine) as connection:
        connection.execute(sa.update(JOBS).values(reference="R"))
    result = run("--format", "csv")
    assert result.return_value == 1
    [row] = csv.DictReader(io.StringIO(result.stdout))
    assert (row["what"], row["cluster"], row["jid"]) == ("job", "w1", "j0")
    assert "NOT OK: 1 finding: 1 job, " in result.stderr
    assert "FOUND job: job j0 of cluster w1: reference is R" in run("--format", "table").stdout


def test_a_bad_file_is_an_error_in_words(
    engine: sa.Engine, run: Callable[..., Result], keys: list[SigningKey], tmp_path: Path
) -> None:
    """Rubbish, CR LF, a cut file, an empty one, the wrong kind of key: the message names file and line."""
    register(engine, "a")
    [signed] = seal(engine, keys[0])
    (tmp_path / "tracker.toml").write_text("")
    file = tmp_path / "file"
    for content, words in (
        (b"\xff\x00 rubbish", "line 1: not a checkpoint: line 1 is"),
        (b"\n\n" + signed.text.encode() + b"\nrubbish\n", f"line {signed.text.count(chr(10)) + 4}: not a checkpoint"),
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
