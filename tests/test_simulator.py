"""The fake Elevate: the fate of its jobs, its calls over a real socket, and each way to misbehave."""

from __future__ import annotations

import http.client
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scripted import START, SetClock
from tracker.demo.simulator import (
    DEFAULT_KEY,
    FAULT_KINDS,
    KEPT,
    RUNNING,
    STATUS_PATHS,
    CannotListen,
    Fault,
    Simulator,
)
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


def test_a_seed_repeats_jobs_and_faults() -> None:
    """The same seed gives the same jids, fates and faults; faults change no job."""

    def scene(seed: int | None, share: float) -> tuple[list[object], list[int]]:
        simulator = Simulator(SetClock(), seed=seed, faults=[Fault("503", share)])
        with served(simulator) as client:
            jids = [simulator.create(Kind.EXPORT) for _ in range(5)]
            codes = [client.ask("GET", f"{STATUS_PATH}?jid={jid}")[0] for jid in jids * 6]
        return [simulator.truth(jid) for jid in jids], codes

    assert scene(1, 0.5) == scene(1, 0.5)
    assert scene(1, 0)[0] == scene(1, 0.5)[0]
    assert scene(1, 0.5) != scene(2, 0.5)
    assert scene(None, 0) != scene(None, 0)


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
            (404, "GET", "/"),
            (404, "GET", STATUS_PATH + "/?jid=1"),
            (405, "POST", STATUS_PATH + "?jid=1"),
            (405, "GET", EXPORT_PATH + "?customerKey=1"),
            (400, "GET", STATUS_PATH),
            (400, "GET", STATUS_PATH + "?jid=1&jid=2"),
            (400, "POST", REMOVE_PATH + "?customerKey="),
        ):
            assert client.ask(method, target)[0] == code
        for key in ("", "other", DEFAULT_KEY + "x", DEFAULT_KEY.upper()):
            for method, path in (("GET", STATUS_PATH), ("POST", EXPORT_PATH), ("POST", REMOVE_PATH)):
                assert client.ask(method, f"{path}?jid=1&customerKey=1", key)[0] == 403
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


MALFORMED = [b"five words are no request\r\n\r\n", b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n"]
MALFORMED += [b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"]
MALFORMED += [b"POST / HTTP/1.1\r\nContent-Length: %s\r\n\r\n" % length for length in (b"-1", b"9" * 5000)]


def test_a_malformed_request_is_refused_and_ends_the_connection() -> None:
    """It gets a 4xx and the connection's end, and the server lives on."""
    with served(Simulator(SetClock())) as client:
        for sent in MALFORMED:
            with socket.create_connection((client.connection.host, client.connection.port), timeout=5) as connection:
                connection.sendall(sent)
                with suppress(ConnectionResetError):  # the rest of an over-long request was not read
                    assert re.search(rb"\b4\d\d\b", connection.recv(65_536))
                    while connection.recv(65_536):
                        pass
        assert client.status("1") == "not_found"


def test_leaving_ends_every_connection_and_thread() -> None:
    """On leaving, idle and hanging connections end at once, no thread is left, and nobody listens."""
    before = threading.active_count()
    with faulty("hang=1:60").serve() as url:
        address = ("127.0.0.1", urlsplit(url).port or 0)
        idle, hanging = socket.create_connection(address), socket.create_connection(address)
        hanging.sendall(f"GET {STATUS_PATH}?jid=1 HTTP/1.1\r\nApi-Key: {DEFAULT_KEY}\r\n\r\n".encode())
        while threading.active_count() < before + 3:
            time.sleep(0.01)
    assert threading.active_count() == before
    with idle, hanging:
        assert idle.recv(1) == hanging.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_a_taken_port_is_named() -> None:
    """A port that is in use, or does not exist, is a clear error with the exit code for an unavailable service."""
    with Simulator(SetClock()).serve() as url:
        port = urlsplit(url).port or 0
        taken = f"127.0.0.1 port {port}: .* in use; choose another port"
        with pytest.raises(CannotListen, match=taken) as caught, Simulator(SetClock()).serve(port):
            pytest.fail("two servers on one port")
    assert caught.value.exit_code == 69
    with pytest.raises(CannotListen), Simulator(SetClock()).serve(70_000):
        pytest.fail("there is no such port")


# -- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "code", "headers"),
    [
        ("503=1", 503, {"Retry-After": None}),
        ("503=1:120", 503, {"Retry-After": "120"}),
        ("429=1", 429, {"Retry-After": "30"}),
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
    """Garbage says nothing of the job, `wrong_jid` answers about another, `unknown` with an undocumented status."""
    with served(faulty("garbage=1")) as client:
        bodies = {client.ask("GET", f"{STATUS_PATH}?jid=1")[1] for _ in range(60)}
    assert len(bodies) > 4
    assert not any(b'"jid": "1"' in body for body in bodies)
    with served(faulty("wrong_jid=1")) as client:
        assert client.answer("GET", f"{STATUS_PATH}?jid=1")["jid"] != "1"
    with served(faulty("unknown=1")) as client:
        assert client.status("1") not in set(Status)


def test_no_answer_comes() -> None:
    """A hang outlasts the client's patience or ends without an answer; a body is cut; a connection is reset."""
    for fault, error in (
        ("hang=1:60", TimeoutError),
        ("hang=1:0.05", http.client.RemoteDisconnected),
        ("truncate=1", http.client.IncompleteRead),
        ("reset=1", ConnectionResetError),
    ):
        with served(faulty(fault), timeout=0.5) as client, pytest.raises(error):
            client.status("1")


def test_slow_answers() -> None:
    """One comes after the pause and the connection goes on; a drip comes whole, byte by byte."""
    with served(faulty("slow=1:0.1")) as client:
        asked_at = time.monotonic()
        assert [client.status("1"), client.status("1")] == ["not_found"] * 2
        assert time.monotonic() - asked_at >= 0.2
    with served(faulty("drip=1:0.002")) as client:
        asked_at = time.monotonic()
        assert client.status("1") == "not_found"
        assert time.monotonic() - asked_at >= 0.002 * 100


def test_faults_come_in_their_shares_and_can_change_meanwhile() -> None:
    """Of many answers each fault has about its share; no more faults come once they are taken away."""
    simulator = Simulator(SetClock(), seed=1, faults=[Fault("503", 0.1), Fault("unknown", 0.2), Fault("404", 0.0)])
    with served(simulator) as client:
        got = [client.ask("GET", f"{STATUS_PATH}?jid=1")[:2] for _ in range(1000)]
        assert 70 <= sum(code == 503 for code, _ in got) <= 130
        assert 160 <= sum(b"postponed" in body for _, body in got) <= 240
        assert not any(code == 404 for code, _ in got)
        simulator.faults = ()
        assert {client.status("1") for _ in range(50)} == {"not_found"}


def test_a_fault_is_read() -> None:
    """KIND=SHARE and KIND=SHARE:SECONDS are understood; shares that make 1 but for rounding are accepted."""
    texts = ("503=0.1", "hang=1:12.5", "slow=.25", "429=0:0")
    right = [Fault("503", 0.1), Fault("hang", 1, 12.5), Fault("slow", 0.25), Fault("429", 0, 0)]
    assert [Fault.parse(text) for text in texts] == right
    Simulator(SetClock(), faults=[Fault("503", 0.56), Fault("500", 0.34), Fault("hang", 0.1)])
    with pytest.raises(ValueError, match=r"make 1\.1"):
        Simulator(SetClock(), faults=[Fault("503", 0.6), Fault("hang", 0.5)])


WRONG = "|503|=0.1|hnag=0.1|CODE=0.1|200=0.1|600=0.1|٥٠٣=0.1|503=|503=often|hang=0.1:|503=1.5|503=-1|503=nan|"
WRONG += "hang=0.1:-1|hang=0.1:inf|hang=1:90000|garbage=0.1:5"


def test_a_wrong_fault_is_named_with_the_kinds() -> None:
    """The message has the fault, how to write it, and all kinds."""
    for text in WRONG.split("|"):
        with pytest.raises(ValueError, match="write KIND=SHARE or KIND=SHARE:SECONDS") as caught:
            Fault.parse(text)
        assert repr(text) in str(caught.value)
        assert all(kind in str(caught.value) for kind in FAULT_KINDS)
