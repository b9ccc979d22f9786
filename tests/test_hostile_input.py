"""All input, from a server, a file, a setting or SQL, is accepted and shown as text, or refused by a clear error.

Inputs are good examples, changed at random from one seed. Slow tests try more of them; pure parsers get a million.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from time import process_time

import pytest
import sqlalchemy as sa
from rich.cells import cell_len

from tests.conftest import Run
from tests.history import ZONE, answer, change, record, register, stand
from tests.hostile import Wire
from tests.test_checkpoint import SIGNED
from tests.test_elevate import GOOD, HEAD, JID, asking
from tests.test_intake import ONE
from tests.test_keys import ED25519, private
from tests.test_metrics import samples
from tests.test_page import is_sound
from tracker import database, elevate, intake, settings
from tracker.audit import checkpoint, pack
from tracker.audit.keys import PublicKey, SigningKey
from tracker.audit.seal import seal
from tracker.errors import AskError, BadCheckpoint, BadConfiguration, Refused, TrackerError
from tracker.files import Notes
from tracker.logs import LineFormatter
from tracker.metrics import Metrics, StoredMetrics
from tracker.models import GAPS, JOBS, METADATA
from tracker.status import withdraw
from tracker.text import INVISIBLE
from tracker.transport import flight

NOW, DAY = datetime(2026, 11, 27, tzinfo=UTC), timedelta(days=1)
SLOW = pytest.mark.slow
counts = pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=[SLOW, pytest.mark.timeout(1500)])])
pure_counts = pytest.mark.parametrize("count", [1000, pytest.param(1_000_000, marks=[SLOW, pytest.mark.timeout(3000)])])
on_sqlite = pytest.mark.parametrize("dialect", ["sqlite"])
BITS = (
    *b"\0 \t \n \r \n\n \" ' \\ , ; : { } [ ] = + - / % $ # @ < > 0 9 | ~ \x1b \x7f \xff \xed\xa0\x80 \xf0\x9f".split(
        b" "
    ),
    *(one.encode() for one in ("\ufeff", "\u202e", "\u0301", "\u2028", "é", "😀", "\ufffe", "\uffff", "\ufffd", "٣")),
    *(b"null", b"true", b"NaN", b"1e999", b"9" * 5000, b"[" * 3000, b"sep=;\n", b"\\u0000", b"\\ud800", b"2026-02-30"),
)


def mutants(count: int, *good: bytes | str) -> Iterator[bytes]:
    """Yield *good* and changed copies: bytes put in, replaced, left out, repeated, or the end of another."""
    rng, whole = random.Random(count), [one.encode() if isinstance(one, str) else one for one in good]
    yield from whole
    for _ in range(count):
        data = rng.choice(whole)
        for _ in range(rng.choice((1, 1, 2, 3, 6))):
            at, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
            end = min(end, at + rng.choice((0, 1, 3, 200)))
            other = bytes([rng.randrange(256)]), rng.choice(whole)[at:], data[at:end] * 2, b"", rng.choice(BITS)
            data = data[:at] + rng.choice(other) + data[end:]
        yield data


@contextmanager
def nothing_but(*errors: type[Exception], of: object) -> Iterator[None]:
    """Let the block take *of* within a second, or raise one of *errors*, with a message that is short and plain."""
    began = process_time()
    try:
        yield
    except errors as error:
        if len(str(error)) > 1000 or re.search(r"[\0-\x09\x0b-\x1f\x7f-\x9f\u202e]", str(error)):
            raise AssertionError(of) from error
    except Exception as error:
        raise AssertionError(of) from error
    assert process_time() - began < 1, of


def send_and_close(wire: Wire, data: bytes) -> None:
    wire.send(data)
    wire.close()


@counts
def test_any_bytes_of_a_server_are_an_answer_or_an_error(count: int) -> None:
    """Whatever a server sends, ask() returns an answer about this very job or raises an AskError."""
    with asking() as (server, client):
        for data in mutants(count, HEAD + GOOD.encode()):
            server.play = partial(send_and_close, data=data)
            with nothing_but(AskError, of=data):
                assert client.ask(JID, lambda: NOW).status in data.decode("utf-8", "replace")


@pure_counts
def test_any_body_is_an_answer_or_an_error(count: int) -> None:
    """With any body and any header it does the same; a Retry-After is at most six hours."""
    flight.sent_at = NOW
    for body in mutants(count, GOOD, GOOD.replace("waiting", "é" * 255), GOOD[:-1] + ', "x": [1, {"y": null}]}'):
        with nothing_but(AskError, of=body):
            assert 1 <= len(elevate._status(JID, body)) <= 255
    for header in mutants(count, "120", "Fri, 27 Nov 2026 07:28:00 GMT", "Friday, 27-Nov-26 07:28:00 GMT"):
        with nothing_but(of=header):
            wait = elevate._retry_after(header.decode("latin-1"), NOW)
            assert wait is None or timedelta() <= wait <= timedelta(hours=6)


ROW = 'J000{0},w1,export,"R {0}",2026-01-0{0}T10:00:00+01:00,2026-01-0{0}\n'
CSV = "jid,cluster,kind,reference,submitted_at,received_at\n" + "".join(map(ROW.format, range(1, 6)))
LINES = "".join(f'{{"jid": "J000{n}", "cluster": "w1", "reference": "\\u00e9", "kind": null}}\n' for n in (6, 7))


@counts
def test_each_row_of_any_file_is_registered_or_refused(count: int, connection: sa.Connection) -> None:
    """Each jid of a file is in its row, or in the lines of a refused row; the database accepts the good rows."""
    good: list[intake.Registration] = []
    for data in mutants(count, CSV, CSV.replace(",", ";"), CSV.replace("\n", "\r\n"), LINES):
        with nothing_but(Refused, of=data):
            rows = list(intake.read(io.BytesIO(data), ZONE, Notes()))
            assert [row.line for row in rows] == sorted({row.line for row in rows})
            for number, line in enumerate(data.split(b"\n"), 1):
                for jid in re.findall(rb"\bJ000[1-7]\b", line):
                    declared = [row.declared for row in rows if row.line <= number][-1]
                    assert isinstance(declared, Refused) or jid.decode() in str(declared)
            good += [row.declared for row in rows if isinstance(row.declared, intake.Registration)]
    for start in range(0, len(good), 500):
        assert list(intake.register_many(connection, good[start : start + 500], settings=ONE))
    assert len(connection.execute(sa.select(JOBS)).all()) > 7


TOML = f"""timezone = "Europe/Stockholm"\nhttp_port = 8080\nalert_urls = ["json://h/x"]\nalert_after = "15 min"
lost_after = "2 days"\nlost_after_polls = 5\nrequest_timeout = 2.5\n[clusters.w1]\napi_key = "Marked"
base_url = "https://h:8443"\narchive_days = 5\nmax_requests_per_second = 1e1\nproxy = "http://u:Marked@h:3128"
ca_bundle = "{Path(__file__).parent}/nothing.pem"\n"""
HOLDERS = ("API_KEY", "PROXY", "RECEIVER_PROXY", "PING_URL", "CHECKPOINT_URL", "ALERT_URLS")


@counts
def test_any_settings_are_settings_or_name_what_is_wrong(count: int, tmp_path: Path) -> None:
    """tracker.toml, environment and secrets are read, or refused by messages that name a place and no secret."""
    file, secret, rng = tmp_path / "tracker.toml", tmp_path / "tracker_ping_url", random.Random(1)
    given = mutants(2 * count + 9, "5", "2 days", "on", "Europe/Rome", "https://h/Marked", "sqlite:///x?a=Marked", "/p")
    for text in mutants(count, TOML, TOML.replace("ca_bundle", "#")):
        file.write_bytes(text)
        secret.write_bytes(ping := next(given))
        variable, value = (
            rng.choice(settings.VARIABLES),
            next(given).decode("utf-8", "surrogateescape").replace("\0", ""),
        )
        environ = {"TRACKER_SECRETS_DIR": str(tmp_path), "TRACKER_CONFIG": str(file), variable: value}
        try:
            shown = repr(settings.explain(settings.load(environ, tmp_path)))
        except BadConfiguration as error:
            shown = str(error) if re.search(r"TRACKER_|tracker_|\.toml|cluster", str(error)) else "Marked"
        except Exception as error:
            raise AssertionError(text, environ) from error
        # A change can turn a mark into a host or another setting; then it is no secret.
        kept = len(re.findall(rb'^api_key = "Marked|^proxy = "http://u:Marked', text, re.MULTILINE))
        is_secret = text.count(b"Marked") == kept and (b"Marked" not in ping or b"//h/Marked" in ping)
        if is_secret and ("Marked" not in value or (variable[8:] in HOLDERS and "//h/Marked" in value)):
            assert "Marked" not in shown, (text, environ, shown)


@pure_counts
def test_any_checkpoint_is_read_as_it_is_or_refused(count: int) -> None:
    """What is read is written back byte for byte, also from a file of many checkpoints, as --trusted reads it."""
    for data in mutants(count, SIGNED, SIGNED + "\n" + SIGNED):
        for text in checkpoint.split(data.decode("ascii", "replace")):
            with nothing_but(BadCheckpoint, of=text):
                assert checkpoint.parse(text).text == text


@counts
def test_any_key_file_is_a_key_or_refused(count: int, tmp_path: Path) -> None:
    """Any file of a private or a public key is read, or refused by a BadConfiguration."""
    (file := tmp_path / "key.pem").touch(0o600)
    for data in mutants(count, private(ED25519), SigningKey(ED25519).public.pem()):
        file.write_bytes(data)
        for load in (PublicKey.load, SigningKey.load):
            with nothing_but(BadConfiguration, of=data):
                load(file)


TEXTS = (
    *(
        "<script>x</script>",
        "\"><img src=x onerror='x'>",
        "</title></svg></table><h1>",
        "<!--x",
        "&lt;b&gt;&amp;",
        "`y`",
    ),
    *("=1+1", "=cmd|'/C calc'!A0", "+1", "-1", "'); DROP TABLE jobs;--", "{0}%s%(x)s", "[bold]x[/]", "[/]:smile:"),
    *("{{7*7}}", "{% x %}", "$(reboot)`id`", 'x"} 1evil{a="', "\\u001b", "\\", "'", "NaN", "None", "--help", "x" * 255),
    *("אבג", "e\u0301\u0301\u0301", "ﷺ", "😀" * 40),
)
REFUSED = ("x\x1b[2Jx", "x\x9b2J", "x\u202ex", "a\u200bb", "x" * 256, "a\udcffb", "a\nb")
NAMES = ("durations", "statuses", "monthly", "deadlines", "requests", "anomalies", "gaps", "coverage", "changes")
LISTS = (["jobs"], ["clusters"], *(["report", name] for name in NAMES))


@on_sqlite
def test_any_text_is_shown_as_text(engine: sa.Engine, run: Run, now: datetime, tmp_path: Path) -> None:
    """Every text column appears in tables, CSV, JSON, page, log and metrics without any effect."""
    for text in TEXTS:
        declared = {"reference": text, "submitted_at": now - 40 * DAY}
        job = register(engine, text.replace(" ", ""), text[:63], at=now - 40 * DAY, **declared)
        change(engine, job, failures=1, last_error=text)
        answer(engine, job, (text, now - 39 * DAY), ("waiting", now - 38 * DAY))
        ended = partial(withdraw, at=now - DAY, actor=text, reason=text)
        record(engine, job, lambda one, past, ended=ended: ended(one))  # type: ignore[misc]
        stand(engine, text[:63], pause_cause="paused", gap_began_at=now, gap_cause="paused", gap_detail=text)
    jids = {text.replace(" ", "") for text in TEXTS}
    for command in LISTS:
        tables = {form: run(*command, "--format", form)[1] for form in ("table", "csv", "json")}
        assert max(map(cell_len, tables["table"].splitlines())) <= 80
        rows = [*csv.DictReader(io.StringIO(tables["csv"], newline="")), *json.loads(tables["json"])]
        assert {row["jid"] for row in rows if "jid" in row} in (set(), jids), command
    cells = csv.reader(io.StringIO(run("jobs", "--format", "csv", "--for-spreadsheet")[1], newline=""))
    assert not [cell for row in cells for cell in row if cell[:1] in ("=", "+", "-", "@")]
    for text in TEXTS:
        assert run("show", "--", text.replace(" ", ""))[0] == 0
        line = LineFormatter(as_json=True).format(logging.makeLogRecord({"msg": text, "fields": {"jid": text}}))
        assert (json.loads(line)["jid"], line.isprintable()) == (text, True)
    assert run("report", "--format", "html", "-o", "page.html")[0] == 0
    page = is_sound((tmp_path / "page.html").read_text("utf-8")).text
    assert all(page.count(text) >= 3 for text in TEXTS)
    found = samples(Metrics().text(StoredMetrics(engine, settings.Settings())))
    assert all(f"tracker_jobs_open {text[:63]}" in found for text in TEXTS)


@on_sqlite
def test_what_drives_a_terminal_is_refused_by_a_safe_message(run: Run) -> None:
    """Neither a message nor a log line holds such characters, wherever on the command line they were."""
    for text in REFUSED:
        for command in (
            *(["add", "--", text], ["add", "a", "--reference", text], ["show", "--", text], ["import", text], [text]),
            *(["jobs", f"--{text}"], ["jobs", "--format", text], ["report", text], ["report", "--cluster", text]),
            *(["withdraw", "a", f"--reason={text}"], ["pause", "w1", "--reason=x", f"--actor={text}"]),
            *(["audit", "verify", f"--trusted={text}"], ["ack", text, "--reason=x"], ["report", "-o", f"{text}.xml"]),
        ):
            code, _, err = run(*command)
            assert (code != 0, len(err) < 1500) == (True, True), (command, err)
            assert not INVISIBLE.search(err.replace("\n", "")), (command, err)
        for as_json in (True, False):
            noted = logging.makeLogRecord({"msg": text, "fields": {"path": text}})
            assert LineFormatter(as_json=as_json).format(noted).isprintable()


LITERALS = {
    "String": "'x' '' ' ' '<b>' '=1' '{0}' '../../etc/passwd' 'https://[x' 'אבג' 'a''b' 'a@b' '[b]' 1.5 NULL",
    "Enum": "'done' 'open' 'paused' 'export' 'waiting' NULL",
    "UtcDateTime": "'1970-01-01 00:00:00.000000' '9998-12-31 23:59:59.999999' '2026-02-30 00:00:00.000000' 'x' NULL",
    "Date": "'1970-01-01' '9998-12-31' '2026-02-30' '9999-01-01' '-infinity' NULL ''",
    "not UTF-8": "X'E5'||'' X'41' 9e999 X'410042'||'' X'F09F98'||''",
}
NUMBERS = "0 1 -1 2147483647 2147483648 9223372036854775807 NULL '12' 1.5"
LIKE = {  # a new row is like this one, but for one or two columns
    "gaps": "gaps WHERE cluster = 'w{n}'",
    "sources": "sources WHERE cluster = 'w{n}'",
    "transitions": "transitions WHERE seq = 1 AND job_id = {job}",
}


@counts
def test_rows_by_plain_sql_are_refused_or_shown(
    count: int, engine: sa.Engine, run: Run, now: datetime, tmp_path: Path
) -> None:
    """Any value in a column is read by commands and views, closed by a seal, and judged by `audit verify`."""
    rng, taken, is_sqlite = random.Random(count), 0, engine.dialect.name == "sqlite"
    jobs = [register(engine, f"a{n}", f"w{n}", at=now - 30 * DAY) for n in range(40)]
    for n, job in enumerate(jobs):
        answer(engine, job, ("waiting", now - 29 * DAY))
        with database.writing(engine) as connection:
            gap = {"began_at": now - DAY, "ended_at": now, "cause": "unreachable", "cluster": f"w{n}"}
            connection.execute(sa.insert(GAPS).values(gap))
    for number in range(count):
        table, n = rng.choice(["jobs", *LIKE]), number % len(jobs)
        columns = {column.name: type(column.type).__name__ for column in [*METADATA.tables[table].columns][1:]}
        values = {"cluster": "'c'", "jid": f"'j{number}'"} if table == "jobs" else {name: name for name in columns}
        if table == "transitions":
            values |= {"seq": "2", "from_status": "'waiting'", "from_state": "'open'", "last_seen_at": "observed_at"}
        for name in rng.choices([*columns], k=rng.choice((1, 1, 2))):
            kind = "not UTF-8" if is_sqlite and table == "jobs" and rng.random() < 0.2 else columns[name]
            values[name] = rng.choice(re.findall(r"(?:'[^']*'|[^ '])+", LITERALS.get(kind, NUMBERS)))
        like = f" FROM {LIKE[table].format(n=n, job=jobs[n])} ORDER BY id LIMIT 1" if table in LIKE else ""
        row = f"INSERT INTO {table} ({', '.join(values)}) SELECT {', '.join(values.values())}{like}"
        with suppress(sa.exc.DBAPIError, TrackerError), database.writing(engine) as connection:
            database.execute(connection, row)
            taken += 1
    assert taken > count / 10
    for command in (["status"], *LISTS, ["report", "-o", "page.html"], ["audit", "verify"]):
        code, _, err = run(*command)
        assert code in (0, 1), (command, err)
    for n in range(len(jobs)):
        code, _, err = run("show", f"a{n}")
        assert code == 0 or "which this machine does not know" in err
    seal(engine, None)
    pack.export(engine, tmp_path / "pack", zone=ZONE, key=None)
    assert run("audit", "verify")[0] == 1
