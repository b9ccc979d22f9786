"""The fake Elevate: the fate of its jobs, its calls over a real socket, and each way to misbehave."""

from __future__ import annotations

import http.client
import json
import logging
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
import requests
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scripted import START, SetClock
from tracker.cli.simulate import simulate
from tracker.demo.simulator import (
    DEFAULT_KEY,
    DEFAULT_TIMEZONE,
    FAULT_KINDS,
    KEPT,
    RUNNING,
    STATUS_PATHS,
    Fault,
    Simulator,
)
from tracker.settings import load
from tracker.status import Kind, Status

STATUS_PATH = "/api/v2/event-data/job-status"
EXPORT_PATH = "/api/v2/event-data/create-export-customer-job"
REMOVE_PATH = "/api/v2/event-data/create-remove-customer-job"
TICK = timedelta(microseconds=1)


class Client:
    """One connection to the simulator."""

    def __init__(self, url: str, timeout: float = 5.0) -> None:
        self.connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=timeout)

    def ask(self, method: str, target: str, key: str = DEFAULT_KEY) -> tuple[int, bytes, http.client.HTTPMessage]:
        self.connection.request(method, target, headers={"Api-Key": key})
        response = self.connection.getresponse()
        return response.status, response.read(), response.headers

    def answer(self, method: str, target: str) -> dict[str, str]:
        code, body, headers = self.ask(method, target)
        read: dict[str, str] = json.loads(body)
        assert (code, headers["Content-Type"], set(read)) == (200, "application/json", {"jid", "status"})
        return read

    def status(self, jid: str) -> str:
        answer = self.answer("GET", f"{STATUS_PATH}?jid={jid}")
        assert answer["jid"] == jid
        return answer["status"]


@contextmanager
def served(simulator: Simulator, timeout: float = 5.0) -> Iterator[Client]:
    with simulator.serve() as url:
        client = Client(url, timeout)
        with closing(client.connection):
            yield client


def faulty(fault: str) -> Simulator:
    return Simulator(SetClock(), seed=1, faults=[Fault.parse(fault)])


# -- fates -----------------------------------------------------------------------------------------------------------


@given(
    seed=st.integers(),
    kind=st.sampled_from([Kind.EXPORT, Kind.REMOVAL]),
    created_at=st.timedeltas(timedelta(days=-2500), timedelta(days=2500)).map(START.__add__),
    zone=st.sampled_from(["UTC", "Europe/Stockholm", "America/Havana", "Asia/Beirut", "Pacific/Apia"]).map(ZoneInfo),
    archive_days=st.integers(1, 30),
    failing=st.sampled_from([0.0, 0.5, 1.0]),
)
@settings(deadline=None, max_examples=100)
def test_a_fate_keeps_the_vendors_calendar(
    seed: int, kind: Kind, created_at: datetime, zone: ZoneInfo, archive_days: int, failing: float
) -> None:
    """A job begins on its archive day, runs for a time within bounds, and each status holds from its instant on."""
    simulator = Simulator(SetClock(), seed=seed, timezone=zone, archive_days=archive_days, failing=failing)
    jid = simulator.create(kind, created_at)
    fate = simulator.truth(jid)
    assert UUID(jid).version == 4
    assert (fate.runs_at.astimezone(zone).date() - created_at.astimezone(zone).date()).days == archive_days
    assert fate.runs_at.astimezone(zone).hour <= 1
    assert RUNNING[0] <= fate.ends_at - fate.runs_at <= RUNNING[1]
    assert fate.end in {0.0: ("done",), 0.5: ("done", "error"), 1.0: ("error",)}[failing]
    assert fate.gone_at == (fate.ends_at + KEPT if kind is Kind.EXPORT and fate.end is Status.DONE else None)
    words = ["created" if kind is Kind.EXPORT else "started", "waiting", "running", fate.end]
    assert [*fate.entered] == words + ["not_found"] * (fate.gone_at is not None)
    assert sorted(fate.entered.values()) == [*fate.entered.values()]
    before = "not_found"
    for word, at in fate.entered.items():
        if at == created_at or at - TICK >= created_at:
            assert (simulator.status_at(jid, at - TICK), simulator.status_at(jid, at)) == (before, word)
        before = word
    assert simulator.status_at(jid, fate.ends_at + timedelta(days=300)) == before
    simulator.forget(jid, fate.waits_at + timedelta(hours=1))
    assert simulator.status_at(jid, fate.waits_at + timedelta(hours=1)) == "not_found"


# -- the calls -------------------------------------------------------------------------------------------------------


def test_a_job_is_created_by_the_vendors_calls_and_followed_to_its_end() -> None:
    """Over HTTP, on each path, an export and a removal go through the statuses of the truth; so does ``Date``."""
    clock = SetClock(START.astimezone(ZoneInfo("Europe/Stockholm")))
    simulator = Simulator(clock, seed=1)
    with served(simulator) as client:
        for create in (EXPORT_PATH, REMOVE_PATH):
            clock.now = START
            jid = client.answer("POST", f"{create}?customerKey=c1")["jid"]
            for word, clock.now in simulator.truth(jid).entered.items():
                for path in STATUS_PATHS:
                    assert client.answer("GET", f"{path}?jid={jid}") == {"jid": jid, "status": word}
        sent = client.ask("GET", f"{STATUS_PATH}?jid=1")[2]["Date"]
        assert parsedate_to_datetime(sent) == clock.now.replace(microsecond=0)
        odd = client.answer("GET", f"{STATUS_PATH}?jid=%22a%2Bb%20c%C3%A5%22")
        assert odd == {"jid": '"a+b cå"', "status": "not_found"}


def test_wrong_requests_have_their_code_and_the_connection_goes_on() -> None:
    """A wrong key, path, method or argument is refused and creates no job, and the next request is answered."""
    simulator = Simulator(SetClock(), seed=1)
    with served(simulator) as client:
        assert client.status("1") == "not_found"
        kept = client.connection.sock
        for code, method, target in (
            (404, "GET", STATUS_PATH + "/?jid=1"),
            (405, "POST", STATUS_PATH + "?jid=1"),
            (405, "GET", EXPORT_PATH + "?customerKey=1"),
            (400, "GET", STATUS_PATH + "?jid=1&jid=2"),
            (400, "POST", REMOVE_PATH + "?customerKey="),
        ):
            assert client.ask(method, target)[0] == code
        for method, path in (("GET", STATUS_PATH), ("POST", EXPORT_PATH)):
            assert client.ask(method, f"{path}?jid=1&customerKey=1", "other")[0] == 403
        assert client.status("1") == "not_found"
        assert client.connection.sock is kept
    assert simulator.create(Kind.EXPORT) == Simulator(SetClock(), seed=1).create(Kind.EXPORT)


def test_the_customer_key_leaves_no_trace(caplog: pytest.LogCaptureFixture) -> None:
    """The key of the person is in no log line, no answer, and nothing that the simulator keeps."""
    simulator = Simulator(SetClock(), seed=1)
    with caplog.at_level(logging.DEBUG), served(simulator) as client:
        body = client.ask("POST", f"{EXPORT_PATH}?customerKey=ann%40example.com")[1]
        refused = client.ask("POST", f"{REMOVE_PATH}?customerKey=ann%40example.com&customerKey=ann")[1]
    assert json.loads(body)["jid"] in caplog.text
    for kept in (body.decode(), refused.decode(), caplog.text, repr(vars(simulator))):
        assert "ann" not in kept
        assert "example.com" not in kept


# -- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "code", "headers"),
    [
        ("503=1:120", 503, {"Retry-After": "120"}),
        ("204=1", 204, {"Content-Length": None}),
        ("308=1", 308, {"Location": "https://elsewhere.invalid/"}),
    ],
)
def test_a_code_is_answered_as_asked(fault: str, code: int, headers: dict[str, str | None]) -> None:
    """A code comes with its headers, the connection goes on, and neither creation nor a wrong key meets it."""
    with served(faulty(fault)) as client:
        for _ in range(2):
            got, body, its = client.ask("GET", f"{STATUS_PATH}?jid=1")
            assert got == code
            assert {name: its[name] for name in headers} == headers
            assert (body == b"") == (code == 204)
        assert client.ask("POST", f"{EXPORT_PATH}?customerKey=1")[0] == 200
        assert client.ask("GET", f"{STATUS_PATH}?jid=1", "other")[0] == 403


def test_wrong_answers() -> None:
    """Garbage says nothing of the job, `unknown` has an undocumented status."""
    with served(faulty("garbage=1")) as client:
        bodies = {client.ask("GET", f"{STATUS_PATH}?jid=1")[1] for _ in range(60)}
    assert len(bodies) > 4
    assert not any(b'"jid": "1"' in body for body in bodies)
    with served(faulty("unknown=1")) as client:
        assert client.status("1") not in set(Status)


def test_no_answer_comes() -> None:
    """A hang outlasts the client's patience, or ends without an answer."""
    for fault, error in (("hang=1:60", TimeoutError), ("hang=1:0.05", http.client.RemoteDisconnected)):
        with served(faulty(fault), timeout=0.5) as client, pytest.raises(error):
            client.status("1")


WRONG = "|503|=0.1|hnag=0.1|CODE=0.1|200=0.1|600=0.1|٥٠٣=0.1|503=|503=often|hang=0.1:|503=1.5|503=-1|503=nan|"
WRONG += "hang=0.1:-1|hang=0.1:inf|hang=1:90000|garbage=0.1:5"


def test_a_wrong_fault_is_named_with_the_kinds() -> None:
    """The message has the fault, how to write it, and all kinds."""
    for text in WRONG.split("|"):
        with pytest.raises(ValueError, match="write KIND=SHARE or KIND=SHARE:SECONDS") as caught:
            Fault.parse(text)
        assert repr(text) in str(caught.value)
        assert all(kind in str(caught.value) for kind in FAULT_KINDS)


# The command


COMMAND = [sys.executable, "-c", "import sys; from tracker.cli import main; sys.exit(main())", "simulate"]


@contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Start the command on a free port and yield the process and the lines of its greeting; never leave it behind."""
    command = [*COMMAND, "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        greeting: list[str] = []
        while not greeting or not greeting[-1].startswith("  curl -H"):
            assert process.poll() is None
            greeting.append(process.stdout.readline().rstrip("\n"))
        yield process, greeting
    finally:
        process.kill()
        process.communicate()


def curl(line: str, jid: str = "") -> dict[str, str]:
    """Do what a greeting's curl line does and return the answer."""
    words = shlex.split(line.replace("jid=JID", f"jid={jid}"))
    assert words[0] == "curl"
    method = "POST" if "POST" in words else "GET"
    response = requests.request(method, words[-1], headers=dict([words[words.index("-H") + 1].split(": ")]), timeout=30)
    read: dict[str, str] = response.json()
    return read


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_greeting_works_as_printed_and_a_signal_ends_it(number: signal.Signals, tmp_path: Path) -> None:
    """What is printed can be pasted: the settings load, one line creates a job, the other sees it done; exit 0."""
    options = ["--api-key", "it's-a-key", "--speed", "1000000", "--archive-days", "1"]
    with running(*options, "--seed", "1") as (process, greeting):
        text = "\n".join(greeting)
        exports = shlex.split(text[text.index("export ") : text.index("  curl")].replace("\\\n", ""))[1:]
        create, ask = greeting[-2:]

        cluster = load(dict(export.split("=", 1) for export in exports), tmp_path).clusters["simulated"]
        assert (cluster.api_key.get_secret_value(), cluster.archive_days) == ("it's-a-key", 1)
        assert cluster.timezone == DEFAULT_TIMEZONE.key
        assert cluster.base_url.rstrip("/") in greeting[0]

        created = curl(create)
        assert created["status"] == "created"
        for _ in range(100):  # at most a day and nine hours of its clock, 0.12 s
            if curl(ask, created["jid"])["status"] == "done":
                break
            time.sleep(0.05)
        assert curl(ask, created["jid"])["status"] in ("done", "not_found")

        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out.strip()) == (0, "")
        logged, ended = err.splitlines()
        assert re.fullmatch(rf"\S+ \S+ created export {created['jid']}, runs from .*, done at .*", logged)
        assert ended == "stopped"
        assert "anyone" in create
        assert "anyone" not in err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--fault", "hnag=0.1"], list(FAULT_KINDS)),
        (["--fault", "503=0.6", "--fault", "hang=0.6"], ["1.2"]),
        (["--archive-days", "0"], ["archive days"]),
        (["--speed", "nan"], ["speed"]),
    ],
)
def test_wrong_usage_is_refused(arguments: list[str], named: list[str]) -> None:
    """Exit 2 with what is wrong and what would be right, and nothing is served."""
    result = CliRunner().invoke(simulate, arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    flat = " ".join(result.stderr.split())
    assert all(each in flat for each in named)
