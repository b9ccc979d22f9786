"""The fake Elevate: the fate of its jobs, its two calls over a real socket, and each way to misbehave."""

from __future__ import annotations

import http.client
import json
import logging
import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracker.demo.simulator import (
    CREATE_PATHS,
    DEFAULT_KEY,
    DEFAULT_RUNNING,
    FAULT_KINDS,
    STATUS_PATHS,
    CannotListen,
    Fault,
    Simulator,
    check_faults,
    draw_fate,
    fast_clock,
)
from tracker.status import Kind, Status

STATUS_PATH = "/api/v2/event-data/job-status"
EXPORT_PATH = "/api/v2/event-data/create-export-customer-job"
REMOVE_PATH = "/api/v2/event-data/create-remove-customer-job"
STOCKHOLM = ZoneInfo("Europe/Stockholm")
START = datetime(2026, 11, 24, 10, tzinfo=UTC)
WEEK = timedelta(days=7)
TICK = timedelta(microseconds=1)


class Hand:
    """A clock that is moved by hand."""

    def __init__(self, at: datetime = START) -> None:
        self.at = at

    def __call__(self) -> datetime:
        return self.at


@dataclass
class Got:
    """One answer, read to its end."""

    code: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def answer(self) -> dict[str, str]:
        read = json.loads(self.body)
        assert isinstance(read, dict)
        return read


class Client:
    """One connection to the simulator."""

    def __init__(self, url: str, timeout: float = 5.0) -> None:
        address = urlsplit(url)
        assert address.hostname == "127.0.0.1"
        assert address.port is not None
        self.connection = http.client.HTTPConnection(address.hostname, address.port, timeout=timeout)

    def ask(self, method: str, target: str, key: str | None = DEFAULT_KEY, **headers: str) -> Got:
        self.connection.request(method, target, headers=headers | ({} if key is None else {"Api-Key": key}))
        response = self.connection.getresponse()
        return Got(response.status, response.headers, response.read())

    def status(self, jid: str) -> str:
        got = self.ask("GET", f"{STATUS_PATH}?jid={jid}")
        assert (got.code, set(got.answer), got.answer["jid"]) == (200, {"jid", "status"}, jid)
        return got.answer["status"]

    def close(self) -> None:
        self.connection.close()


@contextmanager
def served(simulator: Simulator, timeout: float = 5.0) -> Iterator[Client]:
    with simulator.serve() as url, closing(Client(url, timeout)) as client:
        yield client


def faulty(fault: str) -> Simulator:
    return Simulator(Hand(), seed=1, faults=[Fault.parse(fault)])


# Fates


@given(
    seed=st.integers(),
    kind=st.sampled_from([Kind.EXPORT, Kind.REMOVAL]),
    created_at=st.timedeltas(timedelta(days=-2500), timedelta(days=2500)).map(START.__add__),
    zone=st.sampled_from(["UTC", "Europe/Stockholm", "America/Havana", "Asia/Beirut", "Pacific/Apia", "Asia/Kolkata"]),
    archive_days=st.integers(1, 30),
    failing=st.sampled_from([0.0, 0.5, 1.0]),
)
@settings(deadline=None, max_examples=200)
def test_a_fate_keeps_the_vendors_calendar(
    seed: int, kind: Kind, created_at: datetime, zone: str, archive_days: int, failing: float
) -> None:
    """A job begins on its archive day, runs for a time within bounds, and its words come in order."""
    timezone = ZoneInfo(zone)
    fate = draw_fate(
        random.Random(seed),
        kind,
        created_at,
        timezone=timezone,
        archive_days=archive_days,
        running=DEFAULT_RUNNING,
        failing=failing,
        kept=WEEK,
    )
    assert fate.created_at <= fate.waits_at <= fate.runs_at < fate.ends_at
    days = (fate.runs_at.astimezone(timezone).date() - created_at.astimezone(timezone).date()).days
    assert days == archive_days
    assert fate.runs_at.astimezone(timezone).hour <= 1
    assert DEFAULT_RUNNING[0] <= fate.ends_at - fate.runs_at <= DEFAULT_RUNNING[1]
    if failing in (0.0, 1.0):
        assert fate.end is (Status.ERROR if failing else Status.DONE)
    assert fate.done_at == (fate.ends_at if fate.end is Status.DONE else None)
    assert fate.gone_at == (fate.ends_at + WEEK if kind is Kind.EXPORT and fate.end is Status.DONE else None)
    assert UUID(fate.jid).version == 4


@pytest.mark.parametrize(
    ("zone", "created_at", "midnight"),
    [
        ("Europe/Stockholm", "2026-03-25T12:00+00:00", "2026-03-29T23:00+01:00"),  # into summer time: 23 h
        ("Europe/Stockholm", "2026-10-21T12:00+00:00", "2026-10-26T00:00+01:00"),  # out of it: 25 h
        ("Europe/Stockholm", "2026-11-24T23:30+00:00", "2026-11-30T00:00+01:00"),  # already tomorrow there
        ("Asia/Beirut", "2024-03-26T12:00+00:00", "2024-03-31T01:00+03:00"),  # that day begins at one o'clock
        ("America/Havana", "2026-10-27T12:00+00:00", "2026-11-01T00:00-04:00"),  # it has two midnights: the first
    ],
)
def test_the_archive_day_begins_at_midnight_of_the_zone(zone: str, created_at: str, midnight: str) -> None:
    """A job begins within the hour after the local midnight, however long the days before were."""
    expected = datetime.fromisoformat(midnight)
    begins = []
    for seed in range(40):
        simulator = Simulator(Hand(), timezone=ZoneInfo(zone), seed=seed)
        begins.append(simulator.truth(simulator.create(Kind.REMOVAL, datetime.fromisoformat(created_at))).runs_at)
    assert expected <= min(begins) < expected + timedelta(minutes=15)
    assert expected + timedelta(minutes=45) < max(begins) < expected + timedelta(hours=1)


@pytest.mark.parametrize(("kind", "first"), [(Kind.EXPORT, "created"), (Kind.REMOVAL, "started")])
def test_each_status_holds_from_its_instant_on(kind: Kind, first: str) -> None:
    """At each instant of a fate the next word is said, and a microsecond before it the last one."""
    simulator = Simulator(Hand(), seed=3)
    jid = simulator.create(kind)
    fate = simulator.truth(jid)
    steps = [(fate.created_at, first), (fate.waits_at, "waiting"), (fate.runs_at, "running"), (fate.ends_at, "done")]
    if fate.gone_at is not None:
        steps.append((fate.gone_at, "not_found"))
    before = "not_found"
    for at, word in steps:
        assert (simulator.status_at(jid, at - TICK), simulator.status_at(jid, at)) == (before, word)
        before = word
    assert simulator.status_at(jid, fate.ends_at + timedelta(days=300)) == before
    assert fate.created_at == START


def test_a_share_of_the_jobs_fails_and_is_not_forgotten() -> None:
    """A failed job says `error` for good and was never done."""
    simulator = Simulator(Hand(), seed=5, failing=0.25)
    fates = [simulator.truth(simulator.create(Kind.EXPORT)) for _ in range(400)]
    failed = [fate for fate in fates if fate.end is Status.ERROR]
    assert 70 <= len(failed) <= 130
    assert {fate.status_at(START + timedelta(days=400)) for fate in failed} == {"error"}
    assert {fate.done_at for fate in failed} == {None}


def test_a_seed_repeats_jobs_and_faults_do_not_change_them() -> None:
    """The same seed gives the same jids and fates, whatever faults are drawn between; another gives others."""

    def fates(seed: int | None, fault: str = "503=0") -> list[object]:
        simulator = Simulator(Hand(), seed=seed, faults=[Fault.parse(fault)])
        made = []
        with served(simulator) as client:
            for _ in range(5):
                made.append(simulator.create(Kind.EXPORT))
                client.ask("GET", f"{STATUS_PATH}?jid={made[-1]}")
        return [simulator.truth(jid) for jid in made]

    assert fates(1) == fates(1, "503=0.5")
    assert fates(1) != fates(2)
    assert fates(None) != fates(None)


def test_only_real_kinds_and_instants_are_created() -> None:
    """A job without a kind, or at a time without offset, is refused, and a jid from elsewhere has no truth."""
    simulator = Simulator(Hand())
    with pytest.raises(ValueError, match="export or a removal"):
        simulator.create(Kind.UNKNOWN)
    with pytest.raises(ValueError, match="no offset"):
        simulator.create(Kind.EXPORT, START.replace(tzinfo=None))
    with pytest.raises(KeyError):
        simulator.truth("elsewhere")
    assert simulator.status_at("elsewhere", START) == "not_found"


def test_a_fast_clock_runs_a_day_in_a_second() -> None:
    """The clock begins at its start and multiplies what passes."""
    ticks = iter([100.0, 100.0, 101.5])
    clock = fast_clock(86_400, START, lambda: next(ticks))
    assert clock() == START
    assert clock() == START + timedelta(days=1.5)
    for speed in (0, -1, float("nan"), 1e9):
        with pytest.raises(ValueError, match="speed"):
            fast_clock(speed, START)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"api_key": ""}, "key"),
        ({"api_key": "a\r\nb"}, "key"),
        ({"api_key": "a b"}, "key"),
        ({"api_key": "ä"}, "key"),
        ({"archive_days": 0}, "archive days"),
        ({"archive_days": 366}, "archive days"),
        ({"running": (timedelta(), timedelta(hours=1))}, "running"),
        ({"running": (timedelta(hours=2), timedelta(hours=1))}, "running"),
        ({"failing": 1.1}, "failing"),
        ({"failing": float("nan")}, "failing"),
        ({"faults": [Fault("503", 0.6), Fault("hang", 0.5)]}, "1.1"),
    ],
)
def test_arguments_out_of_range_are_refused(wrong: dict[str, object], named: str) -> None:
    """Each wrong argument is named."""
    with pytest.raises(ValueError, match=named):
        Simulator(**wrong)  # type: ignore[arg-type]  # wrong on purpose


# The calls


def test_a_job_is_created_by_the_vendors_calls_and_followed_to_its_end() -> None:
    """Over HTTP an export goes from `created` to `not_found`, a removal from `started` to `done`, as the truth says."""
    clock = Hand()
    simulator = Simulator(clock, seed=1, archive_days=1)
    with served(simulator) as client:
        jids = {}
        for path, first in ((EXPORT_PATH, "created"), (REMOVE_PATH, "started")):
            got = client.ask("POST", f"{path}?customerKey=c1")
            assert (got.code, got.answer["status"], set(got.answer)) == (200, first, {"jid", "status"})
            assert got.headers["Content-Type"] == "application/json"
            jids[got.answer["jid"]] = first
        for jid, first in jids.items():
            fate = simulator.truth(jid)
            said = []
            for clock.at in (START, fate.waits_at, fate.runs_at, fate.ends_at, fate.ends_at + WEEK):
                said.append(client.status(jid))
            assert said == [first, "waiting", "running", "done", "not_found" if first == "created" else "done"]
        assert client.status("0b0e7e3c-0000-4000-8000-000000000000") == "not_found"
        assert [simulator.truth(jid).kind for jid in jids] == [Kind.EXPORT, Kind.REMOVAL]


@pytest.mark.parametrize("path", sorted(STATUS_PATHS))
def test_successor_paths_answer_the_same(path: str) -> None:
    """The status call is there on the Elevate 3 path and on its successors' paths."""
    simulator = Simulator(Hand())
    jid = simulator.create(Kind.EXPORT)
    with served(simulator) as client:
        assert client.ask("GET", f"{path}?jid={jid}").answer == {"jid": jid, "status": "created"}


@pytest.mark.parametrize("path", [STATUS_PATH, EXPORT_PATH, REMOVE_PATH])
@pytest.mark.parametrize("key", [None, "", "other", DEFAULT_KEY + "x", DEFAULT_KEY.upper()])
def test_a_wrong_key_is_refused(path: str, key: str | None) -> None:
    """Without the very key each call is answered 403, and no job comes of it."""
    simulator = Simulator(Hand(), seed=1)
    with served(simulator) as client:
        method = "POST" if path in CREATE_PATHS else "GET"
        got = client.ask(method, f"{path}?jid=1&customerKey=1", key)
        assert got.code == 403
        assert b"jid" not in got.body
    assert simulator.create(Kind.EXPORT) == Simulator(Hand(), seed=1).create(Kind.EXPORT)


def test_the_case_of_header_names_does_not_matter() -> None:
    """`api-KEY` is as good as `Api-Key`."""
    with served(Simulator(Hand())) as client:
        assert client.ask("GET", f"{STATUS_PATH}?jid=1", None, **{"api-KEY": DEFAULT_KEY}).code == 200


@pytest.mark.parametrize(
    ("method", "target", "code"),
    [
        ("GET", "/", 404),
        ("GET", STATUS_PATH + "/?jid=1", 404),
        ("POST", "/api/v2/event-data/create?customerKey=1", 404),
        ("POST", STATUS_PATH + "?jid=1", 405),
        ("GET", EXPORT_PATH + "?customerKey=1", 405),
        ("GET", STATUS_PATH, 400),
        ("GET", STATUS_PATH + "?jid=", 400),
        ("GET", STATUS_PATH + "?jid=1&jid=2", 400),
        ("GET", STATUS_PATH + "?jid=1" + "&a=1" * 30, 400),
        ("POST", EXPORT_PATH, 400),
        ("POST", REMOVE_PATH + "?customerKey=", 400),
    ],
)
def test_wrong_requests_are_told_so_and_the_connection_goes_on(method: str, target: str, code: int) -> None:
    """A wrong path, method or argument has its code, and the next request on the connection is answered."""
    with served(Simulator(Hand())) as client:
        assert client.ask(method, target).code == code
        kept = client.connection.sock
        assert client.status("1") == "not_found"
        assert client.connection.sock is kept


def test_the_customer_key_leaves_no_trace(caplog: pytest.LogCaptureFixture) -> None:
    """The key of the person is in no log line, no answer, and nothing that the simulator keeps."""
    simulator = Simulator(Hand(), seed=1)
    with caplog.at_level(logging.DEBUG), served(simulator) as client:
        body = client.ask("POST", f"{EXPORT_PATH}?customerKey=ann%40example.com").body
        refused = client.ask("POST", f"{REMOVE_PATH}?customerKey=ann%40example.com&customerKey=ann").body
    assert json.loads(body)["jid"] in caplog.text
    for kept in (body.decode(), refused.decode(), caplog.text, repr(vars(simulator))):
        assert "ann" not in kept
        assert "example.com" not in kept


def test_the_jid_comes_back_verbatim() -> None:
    """An odd jid is echoed character for character, so that a client can compare it."""
    with served(Simulator(Hand())) as client:
        got = client.ask("GET", f"{STATUS_PATH}?jid=%22a%2Bb%20c%C3%A5%22")
        assert got.answer == {"jid": '"a+b cå"', "status": "not_found"}


def test_the_date_is_the_simulators() -> None:
    """`Date` shows the simulated time in UTC, whatever the zone of the injected clock."""
    clock = Hand(START.astimezone(STOCKHOLM))
    with served(Simulator(clock)) as client:
        got = client.ask("GET", f"{STATUS_PATH}?jid=1")
        assert parsedate_to_datetime(got.headers["Date"]) == START


# The connection


def raw(url: str, sent: bytes) -> bytes:
    """Send bytes as they are and return all that comes back until the server ends the connection."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=5) as connection:
        connection.sendall(sent)
        came = b""
        while piece := connection.recv(65_536):
            came += piece
        return came


@pytest.mark.parametrize(
    "sent",
    [
        b"rubbish\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\r\n",  # TLS on a plain port
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\nC: " + b"d" * 70_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"A%d: b\r\n" % n for n in range(200)) + b"\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 2000000\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused_and_ends_the_connection(sent: bytes) -> None:
    """Malformed bytes get 400 or the connection's end, and the server lives on."""
    simulator = Simulator(Hand())
    with simulator.serve() as url:
        try:
            assert raw(url, sent).startswith(b"HTTP/1.1 400 ")
        except ConnectionResetError:  # the rest of an over-long request was not read
            assert len(sent) > 65_536
        with closing(Client(url)) as client:
            assert client.status("1") == "not_found"


@pytest.mark.parametrize(
    "request_line_and_headers",
    [b"GET %s HTTP/1.0\r\n", b"GET %s HTTP/1.1\r\nConnection: Close\r\n", b"HEAD %s HTTP/1.1\r\n"],
)
def test_the_connection_ends_when_the_client_says_so(request_line_and_headers: bytes) -> None:
    """HTTP/1.0, `Connection: close` and HEAD get one answer and the end of the connection."""
    target = f"{STATUS_PATH}?jid=1".encode()
    with Simulator(Hand()).serve() as url:
        came = raw(url, request_line_and_headers % target + b"Api-Key: " + DEFAULT_KEY.encode() + b"\r\n\r\n")
    assert came.startswith(b"HTTP/1.1 405" if request_line_and_headers.startswith(b"HEAD") else b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nConnection: close\r\n" in came


def test_requests_in_one_packet_and_bodies_are_read_to_their_end() -> None:
    """Two requests in one piece, the first with a body, get two answers in order."""
    key = f"Api-Key: {DEFAULT_KEY}\r\n"
    first = f"POST {EXPORT_PATH}?customerKey=1 HTTP/1.1\r\n{key}Content-Length: 5\r\n\r\nGET /"
    second = f"GET {STATUS_PATH}?jid=1 HTTP/1.1\r\n{key}Connection: close\r\n\r\n"
    with Simulator(Hand()).serve() as url:
        came = raw(url, (first + second).encode())
    assert came.count(b"HTTP/1.1 200 OK") == 2
    assert came.index(b'"created"') < came.index(b'"not_found"')


def test_many_threads_at_once() -> None:
    """Eight clients create and ask at the same time: each job is one of its own and each answer is about its jid."""
    simulator = Simulator(Hand(), seed=1)
    with simulator.serve() as url:

        def work(_: int) -> list[str]:
            with closing(Client(url)) as client:
                jids = [client.ask("POST", f"{EXPORT_PATH}?customerKey=1").answer["jid"] for _ in range(50)]
                assert {client.status(jid) for jid in jids} == {"created"}
                return jids

        with ThreadPoolExecutor(8) as pool:
            jids = [jid for made in pool.map(work, range(8)) for jid in made]
    assert len(set(jids)) == 400
    assert {simulator.truth(jid).created_at for jid in jids} == {START}


def test_leaving_ends_every_connection_and_thread() -> None:
    """On leaving, idle and hanging connections end at once, no thread is left, and nobody listens."""
    before = threading.active_count()
    simulator = faulty("hang=1:60")
    with simulator.serve() as url:
        address = ("127.0.0.1", urlsplit(url).port or 0)
        idle, hanging = socket.create_connection(address), socket.create_connection(address)
        request = f"GET {STATUS_PATH}?jid=1 HTTP/1.1\r\nApi-Key: {DEFAULT_KEY}\r\n\r\n"
        hanging.sendall(request.encode())
        while threading.active_count() < before + 3:
            time.sleep(0.01)
        left_at = time.monotonic()
    assert time.monotonic() - left_at < 2
    assert threading.active_count() == before
    with idle, hanging:
        assert idle.recv(1) == b""
        assert hanging.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_a_taken_port_is_named() -> None:
    """A port that is in use, or is none, is a clear error with the exit code for an unavailable service."""
    with Simulator(Hand()).serve() as url:
        port = urlsplit(url).port or 0
        taken = f"127.0.0.1 port {port}: .* in use; choose another port"
        with pytest.raises(CannotListen, match=taken) as caught, Simulator(Hand()).serve(port):
            pytest.fail("two servers on one port")
    assert caught.value.exit_code == 69
    with pytest.raises(CannotListen), Simulator(Hand()).serve(70_000):
        pytest.fail("there is no such port")


# Faults


@pytest.mark.parametrize(
    ("fault", "code", "headers"),
    [
        ("503=1", 503, {"Retry-After": None}),
        ("503=1:120", 503, {"Retry-After": "120"}),
        ("429=1", 429, {"Retry-After": "30"}),
        ("429=1:1.5", 429, {"Retry-After": "2"}),
        ("401=1", 401, {"Location": None}),
        ("204=1", 204, {"Content-Length": None}),
        ("599=1", 599, {}),
        ("redirect=1", 302, {"Location": "https://elsewhere.invalid/"}),
        ("308=1", 308, {"Location": "https://elsewhere.invalid/"}),
    ],
)
def test_a_code_is_answered_as_asked(fault: str, code: int, headers: dict[str, str | None]) -> None:
    """A code comes with its headers, and the connection goes on."""
    with served(faulty(fault)) as client:
        for _ in range(2):
            got = client.ask("GET", f"{STATUS_PATH}?jid=1")
            assert got.code == code
            assert {name: got.headers[name] for name in headers} == headers
            assert (got.body == b"") == (code == 204)


def test_garbage_is_never_an_answer() -> None:
    """Garbage is 200 with, in turn, all sorts of bodies, none of which says what became of the job."""
    bodies = set()
    with served(faulty("garbage=1")) as client:
        for _ in range(60):
            got = client.ask("GET", f"{STATUS_PATH}?jid=1")
            assert got.code == 200
            bodies.add(got.body)
    assert len(bodies) > 4
    for body in bodies:
        try:
            read = json.loads(body)
        except (ValueError, RecursionError):
            continue
        assert not isinstance(read, dict) or not isinstance(read.get("status"), str)


def test_a_lie_about_another_job_and_an_unknown_word() -> None:
    """`wrong_jid` answers with another jid, `unknown` with this one and a word that nobody documented."""
    with served(faulty("wrong_jid=1")) as client:
        assert client.ask("GET", f"{STATUS_PATH}?jid=1").answer["jid"] != "1"
    with served(faulty("unknown=1")) as client:
        answer = client.ask("GET", f"{STATUS_PATH}?jid=1").answer
        assert answer["jid"] == "1"
        assert answer["status"] not in set(Status)


@pytest.mark.parametrize("kind", ["hang", "timeout"])
def test_a_hang_outlasts_the_clients_patience(kind: str) -> None:
    """No byte comes while it hangs, and afterwards the connection ends without an answer."""
    with served(faulty(f"{kind}=1:60"), timeout=0.1) as client, pytest.raises(TimeoutError):
        client.status("1")
    with served(faulty(f"{kind}=1:0.05")) as client, pytest.raises(http.client.RemoteDisconnected):
        client.status("1")


def test_a_slow_answer_comes_late_and_whole() -> None:
    """The answer comes after the pause, and the connection goes on."""
    with served(faulty("slow=1:0.1")) as client:
        for _ in range(2):
            asked_at = time.monotonic()
            assert client.status("1") == "not_found"
            assert time.monotonic() - asked_at >= 0.1


def test_a_drip_comes_byte_by_byte() -> None:
    """The answer comes whole, in many pieces, and no sooner than all the pauses between its bytes."""
    request = f"GET {STATUS_PATH}?jid=1 HTTP/1.1\r\nApi-Key: {DEFAULT_KEY}\r\nConnection: close\r\n\r\n"
    with faulty("drip=1:0.002").serve() as url, closing(Client(url).connection) as connection:
        connection.connect()
        connection.sock.sendall(request.encode())
        pieces = []
        began_at = time.monotonic()
        while piece := connection.sock.recv(65_536):
            pieces.append(piece)
    assert b"".join(pieces).endswith(b'{"jid": "1", "status": "not_found"}')
    assert len(pieces) > 50
    assert time.monotonic() - began_at > 0.002 * 100


def test_a_reset_is_a_reset() -> None:
    """The connection is torn down, not closed in good order."""
    with served(faulty("reset=1")) as client:
        client.connection.request("GET", f"{STATUS_PATH}?jid=1", headers={"Api-Key": DEFAULT_KEY})
        with pytest.raises(ConnectionResetError):
            client.connection.sock.recv(1)


def test_a_truncated_body_is_shorter_than_promised() -> None:
    """Content-Length promises more than comes before the connection ends."""
    with served(faulty("truncate=1")) as client, pytest.raises(http.client.IncompleteRead) as caught:
        client.status("1")
    assert 0 < len(caught.value.partial) < len('{"jid": "1", "status": "not_found"}')


def test_faults_come_in_their_shares_and_can_change_meanwhile() -> None:
    """Of many answers each fault has about its share, no more faults come once they are taken away."""
    simulator = Simulator(Hand(), seed=1, faults=[Fault("503", 0.1), Fault("unknown", 0.2), Fault("404", 0.0)])
    with served(simulator) as client:
        got = [client.ask("GET", f"{STATUS_PATH}?jid=1") for _ in range(1000)]
        assert 70 <= sum(each.code == 503 for each in got) <= 130
        assert 160 <= sum(b"postponed" in each.body for each in got) <= 240
        assert not any(each.code == 404 for each in got)
        simulator.faults = ()
        assert {client.status("1") for _ in range(100)} == {"not_found"}


def test_a_seed_repeats_the_faults() -> None:
    """The same seed meets the same requests with the same faults."""

    def codes(seed: int) -> list[int]:
        with served(Simulator(Hand(), seed=seed, faults=[Fault("503", 0.5)])) as client:
            return [client.ask("GET", f"{STATUS_PATH}?jid=1").code for _ in range(40)]

    assert codes(1) == codes(1)
    assert codes(1) != codes(2)


def test_faults_meet_only_status_requests_with_the_right_key() -> None:
    """Creation always works, and a wrong key is 403 whatever else goes wrong."""
    with served(faulty("500=1")) as client:
        assert client.ask("POST", f"{EXPORT_PATH}?customerKey=1").code == 200
        assert client.ask("GET", f"{STATUS_PATH}?jid=1", "other").code == 403
        assert client.ask("GET", f"{STATUS_PATH}?jid=1").code == 500


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("503=0.1", Fault("503", 0.1)),
        ("hang=1:12.5", Fault("hang", 1, 12.5)),
        ("slow=.25", Fault("slow", 0.25)),
        ("429=0:0", Fault("429", 0, 0)),
    ],
)
def test_a_fault_is_read(text: str, fault: Fault) -> None:
    """KIND=SHARE and KIND=SHARE:SECONDS are understood."""
    assert Fault.parse(text) == fault


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "share is missing"),
        ("503", "share is missing"),
        ("=0.1", "no such kind"),
        ("hnag=0.1", "no such kind"),
        ("CODE=0.1", "no such kind"),
        ("200=0.1", "no such kind"),
        ("100=0.1", "no such kind"),
        ("600=0.1", "no such kind"),
        ("٥٠٣=0.1", "no such kind"),
        ("503=", "no number"),
        ("503=often", "no number"),
        ("hang=0.1:", "no number"),
        ("503=1.5", "not between 0 and 1"),
        ("503=-1", "not between 0 and 1"),
        ("503=nan", "not between 0 and 1"),
        ("hang=0.1:-1", "seconds"),
        ("hang=0.1:inf", "seconds"),
        ("garbage=0.1:5", "takes no seconds"),
    ],
)
def test_a_wrong_fault_names_the_problem_and_the_kinds(text: str, problem: str) -> None:
    """Whoever misspells a fault reads what is wrong, how to write it, and all kinds."""
    with pytest.raises(ValueError, match=problem) as caught:
        Fault.parse(text)
    assert "KIND=SHARE" in str(caught.value)
    assert all(kind in str(caught.value) for kind in FAULT_KINDS)


def test_shares_that_make_one_but_for_rounding_are_accepted() -> None:
    """0.56 + 0.34 + 0.1 is a little more than 1 in floating point, and no mistake."""
    faults = (Fault("503", 0.56), Fault("500", 0.34), Fault("hang", 0.1))
    assert sum(fault.share for fault in faults) > 1
    assert check_faults(faults) == faults
