"""`audit verify`: what it reads, in how much memory, and that its quick way agrees with the slow one."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import click
import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from tests import history, lives
from tests.history import register
from tests.lives import HOUR, Life
from tracker import database, guards
from tracker.audit import findings, histories
from tracker.audit.checkpoint import SigningKey, keygen, parse, sign
from tracker.audit.findings import KeyUse, Report, What
from tracker.audit.seal import seal
from tracker.audit.verify import checkpoints, verify
from tracker.cli.audit_verify import verify as command
from tracker.errors import BadConfiguration, Refused
from tracker.models import JOBS, TRANSITIONS, Seal, Source, facts_values, transition_of, transition_values
from tracker.status import Action, Anomaly, Kind, State, replay

REQUIRED = ("seq", "polls", "observed_at", "action", "to_state")
"""NOT NULL."""


def as_row(number: int, job_id: int, transition: Any) -> dict[str, Any]:
    """Return a transition as a row of SQLite's driver."""
    values = transition_values(job_id, transition) | {"id": number}
    return {name: _raw(values[name]) for name in histories._READ}


def _raw(value: Any) -> Any:
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"
    return None if value is None else value if isinstance(value, int) else str(value)


def slowly(rows: list[dict[str, Any]]) -> tuple[Any, ...] | None:
    """Return what the history comes to, by ``models`` and ``status`` alone; None if it is not legal."""
    typed = []
    try:
        for row in rows:
            words = {"action": Action, "from_state": State, "to_state": State, "anomaly": Anomaly, "kind": Kind}
            values = {
                name: words[name](value)
                if name in words and value is not None
                else histories.instant(value)
                if name.endswith("_at") or name == "server_date"
                else value
                for name, value in row.items()
            }
            typed.append(transition_of(SimpleNamespace(**values)))  # type: ignore[arg-type]
        job = replay(typed).job
    except ValueError:
        return None
    told = [_raw(getattr(job, name)) for name in histories.OBSERVED]
    facts = [_raw(value) for value in facts_values(job.facts).values()]
    return (*told, *facts, _raw(job.registered_at), job.registered_by)


def quickly(shapes: histories._Shapes, rows: list[dict[str, Any]]) -> tuple[Any, ...] | None:
    """Return the same as `histories` does where it need not replay; None where it has to."""
    plain = [tuple(row.values()) for row in rows]
    traced = shapes.of(plain)
    if traced is None:
        return None
    times = [None if where is None else plain[where[0]][where[1]] for where in traced.times]
    facts = plain[traced.facts][histories._FACTS :]
    first = plain[0]
    return (traced.state, traced.status, *times, len(plain) - 1, *facts, first[histories._AT], first[histories._ACTOR])


def histories_of(seed: int, size: int) -> list[list[dict[str, Any]]]:
    made: list[Life] = [*lives.told(), *lives.drawn(seed, size)]
    return [
        [as_row(100 * n + i, n, transition) for i, (_, transition, _) in enumerate(life.steps)]
        for n, life in enumerate(made)
    ]


def test_nearly_every_legal_history_takes_the_quick_way_and_comes_to_the_same() -> None:
    shapes = histories._Shapes()
    for rows in histories_of(1, 300):
        right = slowly(rows)
        assert right is not None
        assert quickly(shapes, rows) == right


def test_no_falsified_history_passes_the_quick_way_that_a_replay_refuses() -> None:
    r = random.Random(2)
    shapes = histories._Shapes()
    made = histories_of(3, 120)
    values: dict[str, list[Any]] = {name: [] for name in histories._READ}
    for rows in made:
        for row in rows:
            for name, value in row.items():
                values[name].append(value)
    refused = 0
    for _ in range(3000):
        rows = [dict(row) for row in r.choice(made)]
        for _ in range(r.choice([1, 1, 2])):
            change = r.random()
            if change < 0.1 and len(rows) > 1:
                del rows[r.randrange(len(rows))]
            elif change < 0.2:
                rows.insert(r.randrange(len(rows) + 1), dict(r.choice(r.choice(made))))
            elif change < 0.3 and len(rows) > 1:
                i, j = r.sample(range(len(rows)), 2)
                rows[i], rows[j] = rows[j], rows[i]
            elif change < 0.5:  # numbers that fit, so that the rest decides
                for i, row in enumerate(rows):
                    row["seq"] = i
                    row["polls"] = i
            else:
                name = r.choice(histories._READ[3:])
                r.choice(rows)[name] = r.choice([*r.sample(values[name], 3), *([] if name in REQUIRED else [None])])
        right, quick = slowly(rows), quickly(shapes, rows)
        refused += right is None
        assert quick is None or quick == right
    assert 500 < refused < 2950


# The whole, on a database


@pytest.fixture
def keys(tmp_path: Path) -> list[SigningKey]:
    for name in ("first", "second"):
        keygen(tmp_path / name)
    return [SigningKey.load(tmp_path / name) for name in ("first", "second")]


def register_many(engine: sa.Engine, count: int, prefix: str = "j") -> None:
    with database.writing(engine) as connection:
        rows = [{"cluster": "w1", "jid": f"{prefix}{number}"} for number in range(count)]
        connection.execute(sa.insert(JOBS), rows)


@contextmanager
def unguarded(engine: sa.Engine) -> Iterator[sa.Connection]:
    with database.writing(engine) as connection:
        guards.drop(connection)
        yield connection
        guards.create(connection)


def verified(engine: sa.Engine, **given: Any) -> Report:
    with database.reading(engine) as connection:
        return verify(connection, **given)


def told(report: Report) -> list[str]:
    return [f"{finding.what}: {finding.message}" for finding in report.findings]


def test_a_database_that_was_never_used_is_good(engine: sa.Engine) -> None:
    report = verified(engine)
    assert (report.is_good, report.number, report.sealed, report.unsealed) == (True, None, 0, 0)


def test_rows_of_a_segment_are_told_apart_from_those_of_the_next(engine: sa.Engine) -> None:
    add_source(engine, "w2", "https://w2.example")
    register_many(engine, 2500)
    seal(engine, None)
    with unguarded(engine) as connection:
        connection.execute(sa.update(TRANSITIONS).where(TRANSITIONS.c.id == 1500).values(source_id=1))
    [finding] = verified(engine).findings
    assert (finding.what, finding.checkpoint, finding.segment, finding.cluster) == (What.ROWS, 1, 2, "w1")
    assert "transitions 1001 to 2000" in finding.message


def test_a_thousand_findings_are_told_and_the_rest_is_counted(engine: sa.Engine) -> None:
    register_many(engine, 1100)
    with unguarded(engine) as connection:
        connection.execute(sa.update(JOBS).values(reference="R"))
    report = verified(engine)
    assert (len(report.findings), report.more) == (1000, 100)


def test_a_history_that_is_too_long_to_keep_is_replayed_as_it_is_read(engine: sa.Engine) -> None:
    job_id = register(engine, "long")
    at = datetime(2030, 1, 1, tzinfo=UTC)
    with database.writing(engine) as connection:
        row: dict[str, Any] = {"job_id": job_id, "action": "observed", "from_state": "open", "to_state": "open"}
        rows = [
            row
            | {"seq": n, "from_status": f"s{n - 1}" if n > 1 else None, "to_status": f"s{n}", "polls": n}
            | {"last_seen_at": at + n * HOUR - HOUR if n > 1 else None, "observed_at": at + n * HOUR}
            for n in range(1, 1200)
        ]
        connection.execute(sa.insert(TRANSITIONS), rows)
        last = {"status": "s1199", "status_after": rows[-1]["last_seen_at"], "status_by": rows[-1]["observed_at"]}
        seen = {"seen_at": rows[-1]["observed_at"], "seq": 1199, "polls": 1199}
        connection.execute(sa.update(JOBS).values(last | seen))
    report = verified(engine)
    assert (told(report), report.transitions) == ([], 1200)
    with unguarded(engine) as connection:
        connection.execute(sa.delete(TRANSITIONS).where(TRANSITIONS.c.seq == 700))
    report = verified(engine)
    assert [(f.what, f.jid, f.seq) for f in report.findings] == [(What.HISTORY, "long", 700)]
    assert report.transitions == 1199


def test_the_wrong_legal_zone_is_told_once(engine: sa.Engine) -> None:
    """An auditor on her own machine must not take a setting for a falsified record, nor lose what is falsified."""
    begin = datetime(2026, 2, 28, 22, 30, tzinfo=UTC)  # 1 March in Stockholm from the second hour on
    for number in range(1100):  # more than is kept
        register(engine, f"j{number}", received_at=begin + number * HOUR)
    with database.writing(engine) as connection:  # as one registered with SQL before anyone asked about it
        connection.execute(sa.insert(JOBS).values(cluster="w1", jid="new"))
    assert told(verified(engine, zone=history.ZONE)) == []
    assert told(verified(engine, zone=ZoneInfo("Europe/Berlin"))) == []
    report = verified(engine, zone=ZoneInfo("UTC"))
    [finding] = report.findings
    assert (finding.what, finding.jid, report.more) == (What.JOB, None, 0)
    assert finding.message.startswith(
        "the deadlines were not computed in the zone UTC (setting timezone): 1100 of 1100"
    )
    assert "the first: job j0 of cluster w1: its deadline is 2026-03-28" in finding.message
    assert "TRACKER_TIMEZONE" in finding.message
    with unguarded(engine) as connection:  # by more than a zone can: it is named even so
        far = {"deadline_on": date(2026, 6, 1), "deadline_at": datetime(2026, 6, 1, 22, tzinfo=UTC)}
        connection.execute(sa.update(JOBS).where(JOBS.c.jid == "j7").values(far))
    assert [f.jid for f in verified(engine, zone=ZoneInfo("UTC")).findings] == ["j7", None]
    assert [f.jid for f in verified(engine, zone=history.ZONE).findings] == ["j7"]


def test_a_deadline_that_was_changed_by_a_day_is_named(engine: sa.Engine) -> None:
    """Where most fit, or there is one alone, it is no matter of the zone."""
    for number in range(4):
        register(engine, f"j{number}")
        with unguarded(engine) as connection:
            later = {"deadline_on": date(2026, 6, 1), "deadline_at": JOBS.c.deadline_at}
            connection.execute(sa.update(JOBS).where(JOBS.c.jid == "j0").values(later))
        assert [f.jid for f in verified(engine, zone=history.ZONE).findings] == ["j0"]


def test_rows_that_wait_longer_than_a_day_for_a_seal_are_found(engine: sa.Engine) -> None:
    register_many(engine, 1)
    with database.reading(engine) as connection:
        now = database.now(connection)
    assert verified(engine, now=now + 23 * HOUR).is_good
    [finding] = verified(engine, now=now + 25 * HOUR).findings
    assert (finding.what, "none was made ever" in finding.message) == (What.UNSEALED, True)
    seal(engine, None)
    assert verified(engine, now=now + 25 * HOUR).is_good
    register_many(engine, 1, "later")
    [finding] = verified(engine, now=now + 25 * HOUR).findings
    assert (finding.what, "since checkpoint 1" in finding.message) == (What.UNSEALED, True)


def test_more_rows_than_one_checkpoint_takes_are_not_backdated(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracker.audit.seal.MOST", 4)
    monkeypatch.setattr("tracker.audit.verify.MOST", 4)
    at = datetime(2025, 1, 1, tzinfo=UTC)
    for number in range(3):
        history.answer(
            engine, register(engine, f"j{number}", at=at), ("waiting", at + HOUR), ("running", at + 2 * HOUR)
        )
    assert len(seal(engine, None)) > 1
    assert told(verified(engine)) == []


def test_a_key_that_the_one_before_announced_is_right_and_any_other_is_not(
    engine: sa.Engine, keys: list[SigningKey]
) -> None:
    first, second = keys
    seal(engine, first)
    seal(engine, first, next_key=second.public)
    register_many(engine, 1)
    seal(engine, second)
    for key in (first.public, second.public, None):
        report = verified(engine, public_key=key)
        assert told(report) == []
    assert report.keys == [KeyUse(first.public.id, 1, 2), KeyUse(second.public.id, 3, 3)]
    for number in range(2):  # the old key once more, twice: one finding
        register_many(engine, 1, f"more{number}-")
        seal(engine, first, obeys=False)
    [finding] = verified(engine).findings
    assert (finding.what, finding.checkpoint) == (What.KEY, 4)
    assert first.public.id in finding.message
    assert second.public.id in finding.message
    assert "5" in finding.message


def test_unsigned_first_and_signed_later_is_no_finding(engine: sa.Engine, keys: list[SigningKey]) -> None:
    seal(engine, None)
    register_many(engine, 1)
    seal(engine, keys[0])
    report = verified(engine, public_key=keys[0].public)
    assert (told(report), report.unsigned, report.checkpoints) == ([], 1, 2)


@pytest.mark.parametrize("number", [1, 2])
def test_rubbish_after_a_signed_checkpoint_does_not_put_the_blame_on_it(
    engine: sa.Engine, keys: list[SigningKey], number: int
) -> None:
    """Whoever can add a row to seals cannot discredit what is sealed: its own signature speaks for it."""
    for one in range(number):
        register_many(engine, 1, f"{one}-")
        seal(engine, keys[0])
    with unguarded(engine) as connection:
        values = {"last_transition_id": 99, "last_gap_id": 9, "last_source_id": 9, "rows": 0, "checkpoint": "garbage"}
        values |= {"previous_sha256": "x", "checkpoint_sha256": "y", "sealed_at": database.now(connection)}
        connection.execute(sa.insert(Seal).values(values))
    for key in (None, keys[0].public):
        [finding] = verified(engine, public_key=key).findings
        assert (finding.what, finding.checkpoint) == (What.CHECKPOINT, number + 1)
        assert "is no checkpoint" in finding.message


def test_a_trusted_checkpoint_that_was_forged_is_not_in_the_chain_and_says_why(
    engine: sa.Engine, keys: list[SigningKey]
) -> None:
    [signed] = seal(engine, keys[0])
    forged = parse(signed.text.replace("\nnumber 1\nprevious -\n", "\nnumber 2\nprevious " + "0" * 64 + "\n"))
    [finding] = verified(engine, trusted=[signed, forged]).findings
    assert (finding.what, finding.checkpoint) == (What.TRUSTED, 2)
    other = sign(replace(signed.checkpoint, sealed_at=signed.checkpoint.sealed_at + HOUR, key=None), keys[1])
    [finding] = verified(engine, trusted=[other]).findings
    assert (finding.what, finding.checkpoint, "forged" in finding.message) == (What.TRUSTED, 1, False)
    body, word, signature = other.text.rpartition("signature ")
    bad = parse(f"{body}{word}{'B' if signature[0] == 'A' else 'A'}{signature[1:]}")
    [finding] = verified(engine, trusted=[bad]).findings
    assert "forged" in finding.message
    elsewhere = sign(replace(signed.checkpoint, origin="0" * 32, key=None), keys[0])
    [finding] = verified(engine, trusted=[elsewhere]).findings
    assert "another chain" in finding.message
    further = sign(replace(elsewhere.checkpoint, number=2, previous_sha256=elsewhere.sha256, key=None), keys[0])
    [finding] = verified(engine, trusted=[elsewhere, further]).findings  # a longer chain: one mistake all the same
    assert (finding.checkpoint, "(and 1 more)" in finding.message) == (1, True)
    [finding, cut] = verified(engine, trusted=[elsewhere, forged]).findings
    assert ("another chain" in finding.message, "the chain ends with 1" in cut.message) == (True, True)


def test_a_file_of_checkpoints_is_read_one_by_one_and_rubbish_in_it_is_named(
    engine: sa.Engine, keys: list[SigningKey]
) -> None:
    made = seal(engine, keys[0])
    register_many(engine, 1)
    made += seal(engine, keys[0])
    text = "\n".join(one.text for one in made) + "\n"
    assert [one.sha256 for one in checkpoints(io.StringIO(text))] == [one.sha256 for one in made]
    assert list(checkpoints(io.StringIO("\n\n"))) == []
    second = made[0].text.count("\n") + 2
    with pytest.raises(Refused, match=f"begins at line {second} "):
        list(checkpoints(io.StringIO(text.replace("\nnumber 2\n", "\nnumber two\n"))))
    with pytest.raises(Refused, match="begins at line 1 "):
        list(checkpoints(io.StringIO("rubbish\n" + text)))
    with pytest.raises(Refused, match=f"begins at line {second} "):
        list(checkpoints(io.StringIO(text[: len(made[0].text) + 60])))


def flags(base_url: str) -> tuple[str, ...]:
    return findings.Source(1, "w1", base_url, "/p", None).flags


def test_a_source_on_the_same_machine_is_flagged_however_it_is_spelled() -> None:
    """Whoever lets a server of his own answer writes its address as he likes."""
    for host in ("localhost.", "LOCALHOST:443", "0.0.0.0", "[::ffff:127.0.0.1]", "2130706433", "127.1:80", "[::]"):  # noqa: S104
        assert flags(f"https://{host}") == ("loopback",), host
    for host in ("[0:0:0:0:0:0:0:1]:9", "127.8.8.8", "localhost"):  # what the settings take
        assert flags(f"http://{host}") == ("loopback", "plain http"), host
    assert flags("https://127.evil.example") == ()
    assert flags("http://w1.example") == ("plain http",)
    assert flags("https://[::1") == ("no address",)


# The command


@pytest.fixture
def run(url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("TRACKER_DATABASE_URL", url)

    def run(*arguments: str | Path) -> Result:
        return CliRunner().invoke(command, [str(argument) for argument in arguments], standalone_mode=False)

    return run


def add_source(engine: sa.Engine, cluster: str, base_url: str) -> None:
    with database.writing(engine) as connection:
        values = {"cluster": cluster, "base_url": base_url, "path": "/p", "timezone": "UTC", "archive_days": "5"}
        values |= {"lost_after_polls": "5", "lost_after_seconds": "9", "version": "1"}
        connection.execute(sa.insert(Source).values(values | {"recorded_at": datetime(2025, 1, 1, tzinfo=UTC)}))


def test_the_command_tells_that_all_is_well_and_who_was_asked(
    engine: sa.Engine, run: Callable[..., Result], keys: list[SigningKey], tmp_path: Path
) -> None:
    add_source(engine, "w1", "https://w1.example")
    add_source(engine, "w2", "http://127.0.0.1:8080")
    [signed] = seal(engine, None)
    (tmp_path / "trusted").write_text(signed.text)
    result = run("--format", "table")
    assert result.return_value == 0
    lines = [line for line in result.stdout.splitlines() if "loopback, plain http" in line]
    assert ["127.0.0.1:8080" in line for line in lines] == [True]
    assert "NOT SIGNED: 1 of 1 checkpoints" in result.stdout
    assert signed.sha256 in result.stdout
    assert "or give --trusted" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("Nothing was found: 0 jobs, 0 transitions, 1 checkpoints")
    result = run("--format", "table", "--trusted", tmp_path / "trusted")
    assert (result.return_value, "or give --trusted" in result.stdout) == (0, False)
    (tmp_path / "key.pem").write_text(keys[0].public.pem())
    result = run("--format", "json", "--public-key", tmp_path / "key.pem")
    report = json.loads(result.stdout)
    assert (result.return_value, report["is_good"], report["findings"][0]["what"]) == (1, False, "key")
    assert [source["flags"] for source in report["sources"]] == [[], ["loopback", "plain http"]]


def test_a_pipe_takes_the_findings_and_a_person_still_sees_the_rest(
    engine: sa.Engine, run: Callable[..., Result], keys: list[SigningKey]
) -> None:
    """Whoever keeps the findings in a file learns who was asked, whose key it is and what to compare, too."""
    add_source(engine, "w2", "http://127.0.0.1:8080")
    [signed] = seal(engine, keys[0])
    piped = run()
    assert (piped.return_value, piped.stdout.count("\n")) == (0, 1)
    assert piped.stdout.startswith("what,checkpoint,")
    assert "127.0.0.1:8080" in piped.stderr
    assert "loopback, plain http" in piped.stderr
    assert f"Signed with key {keys[0].public.id}: checkpoints 1 to 1." in piped.stderr
    assert signed.sha256 in piped.stderr
    assert piped.stderr == run("--format", "table").stdout


def test_the_command_exits_with_1_and_names_each_finding(engine: sa.Engine, run: Callable[..., Result]) -> None:
    register_many(engine, 1)
    with unguarded(engine) as connection:
        connection.execute(sa.update(JOBS).values(reference="R"))
    result = run("--format", "csv")
    assert result.return_value == 1
    [row] = csv.DictReader(io.StringIO(result.stdout))
    assert (row["what"], row["table"], row["jid"]) == ("job", "jobs", "j0")
    assert "1 finding: 1 jobs" in result.stderr
    assert "FOUND job: job j0 of cluster w1" in run("--format", "table").stdout


def test_a_bad_file_is_an_error_in_words(engine: sa.Engine, run: Callable[..., Result], tmp_path: Path) -> None:
    seal(engine, None)
    (tmp_path / "rubbish").write_bytes(b"\xff\x00 rubbish")
    for option, kind in (("--trusted", click.UsageError), ("--public-key", BadConfiguration)):
        result = run(option, tmp_path / "rubbish")
        assert isinstance(result.exception, kind)
        assert "rubbish" in str(result.exception)
    (tmp_path / "tracker.toml").write_text("")
    result = run("--trusted", tmp_path / "missing")
    assert isinstance(result.exception, click.UsageError)
