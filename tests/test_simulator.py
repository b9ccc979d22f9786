"""The fake Elevate: the fate of its jobs, its calls over a real socket, and each way to misbehave."""

from __future__ import annotations

import http.client
import json
import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scripted import START, SetClock
from tracker.demo.simulator import DEFAULT_KEY, FAULT_KINDS, KEPT, RUNNING, STATUS_PATHS, Fault, Simulator
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
