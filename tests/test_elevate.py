"""The client against a real server on loopback that misbehaves in every way we could think of."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.hostile import Hostile, Wire, free_port
from tests.hostile import http as response
from tracker import elevate as elevate_module
from tracker.elevate import Elevate
from tracker.errors import AskError, BadAnswer, KeyRefused, RateLimited, Unavailable, WrongTarget
from tracker.settings import DEFAULT_PATH, ClusterSettings
from tracker.status import Answer

KEY = "k3y-that-must-stay-secret"
JID = "ca24b4e2-34ab-406a-a4db-b30b0247837a"
GOOD = json.dumps({"jid": JID, "status": "waiting"})
SHORT = timedelta(seconds=0.25)

Play = Callable[[Wire], object]


def now() -> datetime:
    return datetime.now(UTC)


def client(url: str, **options: Any) -> Elevate:
    timeout = options.pop("timeout", timedelta(seconds=10))
    given = {"name": "w1", "base_url": url, "api_key": SecretStr(KEY)} | options
    return Elevate(ClusterSettings.model_validate(given), timeout)


@contextmanager
def asking(play: Play = Wire.answer, **options: Any) -> Iterator[tuple[Hostile, Elevate]]:
    """Yield a server that does *play* at each request, and its client."""
    tls = options.pop("tls", None)
    with Hostile(play, tls=tls) as server, client(server.url, **options) as elevate:
        yield server, elevate


def failure(elevate: Elevate, kind: type[AskError] = AskError, jid: str = JID, words: str | None = None) -> AskError:
    """Return the error with which asking ends."""
    with pytest.raises(kind, match=words) as caught:
        elevate.ask(jid, now)
    return caught.value


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


# One question, one answer


def test_an_answer_has_the_status_and_the_times_around_it() -> None:
    """sent_at is read before the server sees the request, completed_at after the last byte; Date is the server's."""
    instants: list[tuple[str, datetime]] = []

    def clock() -> datetime:
        instants.append(("clock", now()))
        return instants[-1][1]

    def play(wire: Wire) -> None:
        instants.append(("server", now()))
        data = response(GOOD.encode(), "200 OK", f"Content-Length: {len(GOOD)}", "Date: Tue, 24 Nov 2026 10:00:00 GMT")
        wire.send(data[:-1])
        time.sleep(0.05)
        instants.append(("last byte", now()))
        wire.send(data[-1:])

    with asking(play) as (_, elevate):
        answer = elevate.ask(JID, clock)
    assert [name for name, _ in instants] == ["clock", "server", "last byte", "clock"]
    assert answer == Answer("waiting", instants[0][1], instants[3][1], datetime(2026, 11, 24, 10, tzinfo=UTC))


def test_the_request_is_the_documented_one() -> None:
    """GET, the path, the jid, the key in its header, and no compression."""
    with asking() as (server, elevate):
        elevate.ask(JID, now)
    lines = server.requests[0].decode().split("\r\n")
    assert lines[0] == f"GET {DEFAULT_PATH}?jid={JID} HTTP/1.1"
    assert {f"Host: 127.0.0.1:{server.port}", f"Api-Key: {KEY}", "Accept-Encoding: identity"} < set(lines)


def test_no_jid_alters_the_url() -> None:
    """Each jid reaches the server as the value of one parameter; one that no URL can carry is its job's own error."""
    jids = ["a&jid=b", "a#b", "a b", "ä/ö?x=%41+\\", "../..", "a;b", "\u2028\U0001f600", "x\r\nHost: evil", "%00"]
    with asking() as (server, elevate):
        for jid in jids:
            assert elevate.ask(jid, now).status == "waiting"
        assert type(failure(elevate, jid="\ud800", words="jid")) is BadAnswer
    assert len(server.requests) == len(jids)
    for request in server.requests:
        first = request.split(b"\r\n")[0].decode()
        assert first.startswith(f"GET {DEFAULT_PATH}?jid=")
        assert not set(first.removeprefix(f"GET {DEFAULT_PATH}?jid=").removesuffix(" HTTP/1.1")) & set("&#;+?/= ")
        assert request.count(b"\r\nHost:") == 1


def test_one_connection_serves_many_questions() -> None:
    """Answers of every honest framing leave the connection usable."""

    def play(wire: Wire) -> None:
        if wire.number % 2:
            body = json.dumps({"jid": wire.jid, "status": "x"}).encode()
            pieces = [body[:9], body[9:]]
            chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
            wire.send(response(chunks + b"0\r\n\r\n", "200 OK", "Transfer-Encoding: chunked"))
        else:
            wire.answer("x")

    with asking(play) as (server, elevate):
        assert {elevate.ask(f"jid {number}", now).status for number in range(10)} == {"x"}
    assert (server.connections, len(server.requests)) == (1, 10)


def test_a_clock_that_is_set_back_cannot_turn_an_answer_over() -> None:
    """completed_at is never before sent_at."""
    instants = iter([datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)])
    with asking() as (_, elevate):
        answer = elevate.ask(JID, lambda: next(instants))
    assert answer.completed_at == answer.sent_at == datetime(2026, 1, 2, tzinfo=UTC)


# What is an answer, and what is not


def test_what_is_an_answer() -> None:
    """A status is taken verbatim; further members and a byte order mark do not count."""
    bodies = {
        f'{{"jid": "{JID}", "status": "mystery word Ω"}}': "mystery word Ω",
        f' {{"status":"waiting","more":[1,{{"x":null}}],"jid":"{JID}"}}\n': "waiting",
        "\ufeff" + GOOD: "waiting",
        f'{{"jid": "{JID}", "status": "\\u00e4\\ud83d\\ude00"}}': "ä😀",
        f'{{"jid": "{JID}", "status": "{"s" * 255}"}}': "s" * 255,
        " " * 60_000 + GOOD: "waiting",
    }
    with asking() as (server, elevate):
        for body, status in bodies.items():
            server.play = partial(Wire.reply, body=body)
            assert elevate.ask(JID, now).status == status


NO_STATUS: list[Any] = [None, 1, True, [], {}, ["done"], "", "s" * 256, "a\nb", "\0", "\x7f", "\x85", "\x1b[2J"]
NO_STATUS += ["\ud800", "\udc00done"]


def with_member(text: str) -> str:
    return GOOD[:-1] + f", {text}}}"


NO_ANSWER: dict[str, list[str | bytes]] = {
    "not_json": [
        *("", GOOD[:-1], GOOD + GOOD, GOOD.replace('"', "'"), GOOD.encode("utf-16"), b"\xff\xfe", "[" * 60000),
        *(GOOD.encode().replace(b"waiting", word) for word in (b"\xed\xa0\x80", b"wait\x00ing")),
        *('{"a":' * 10000, with_member('"status": "done"'), with_member('"x": {"y": 1, "y": 1}')),
        *(with_member('"x": NaN'), with_member('"x": -Infinity'), with_member(f'"x": {"9" * 60000}')),
    ],
    "not_object": ["null", '"done"', f"[{GOOD}]"],
    "other_jid": [
        "{}",
        *(json.dumps({"jid": jid, "status": "done"}) for jid in (None, [JID], JID + " ", JID.replace("c", "d"))),
    ],
    "bad_status": [
        json.dumps({"jid": JID}),
        *(json.dumps({"jid": JID, "status": status}) for status in NO_STATUS),
    ],
}


@pytest.mark.parametrize("code", NO_ANSWER)
def test_what_is_no_answer(code: str) -> None:
    """Anything but one unambiguous answer about this job is BadAnswer, and never a status."""
    with asking() as (server, elevate):
        for body in NO_ANSWER[code]:
            server.play = partial(Wire.reply, body=body)
            error = failure(elevate)
            assert (type(error), error.code) == (BadAnswer, code), body[:80]


def test_capitals_do_not_matter_in_a_guid() -> None:
    """A GUID in capitals whose answer comes in lower case is that job's; other jids are compared to the letter."""
    answered = JID
    with asking(lambda wire: wire.reply(json.dumps({"jid": answered, "status": "waiting"}))) as (_, elevate):
        assert elevate.ask(JID.upper(), now).status == "waiting"
        for asked, other in ((JID.upper(), JID.replace("c", "d")), ("Job-1", "job-1"), (JID + "X", JID + "x")):
            answered = other
            assert failure(elevate, BadAnswer, asked).code == "other_jid"


def test_what_is_compressed_is_not_unpacked() -> None:
    """A few kilobytes that would become gigabytes are no JSON."""
    bomb = gzip.compress(bytes(20_000_000))
    with asking(lambda wire: wire.reply(bomb, "200 OK", "Content-Encoding: gzip")) as (_, elevate), at_most(1):
        assert failure(elevate, BadAnswer).code == "not_json"


def endless(head: bytes, piece: bytes) -> Play:
    def play(wire: Wire) -> None:
        wire.send(head)
        for _ in range(4000):  # 4 MB at least, if it is let
            wire.send(piece)

    return play


CHUNKED = response(b"", "200 OK", "Transfer-Encoding: chunked")


@pytest.mark.parametrize(
    "play",
    [
        lambda wire: wire.reply(b" " * 65536 + GOOD.encode()),
        endless(response(b""), b"x" * 1000),
        endless(CHUNKED, b"3e8\r\n" + b"x" * 1000 + b"\r\n"),
        endless(CHUNKED, b"-1\r\n" + b"x" * 1000),  # http.client takes this for: read to the end
        endless(CHUNKED + b"2\r\n{}\r\n0\r\n", b"Trailer: " + b"x" * 1000 + b"\r\n"),
        endless(b"", b"HTTP/1.1 100 Continue\r\nX: " + b"x" * 1000 + b"\r\n\r\n"),
    ],
    ids=["padded", "undeclared", "chunks", "negative-chunk", "trailers", "interim"],
)
def test_no_answer_is_read_beyond_the_cap(play: Play) -> None:
    """64 KiB are read of an answer, however it is framed; what goes on is cut off at once."""
    with asking(play) as (_, elevate), at_most(1):
        error = failure(elevate)
    assert (type(error), error.code) == (BadAnswer, "too_large")


BROKEN = (
    b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    b"HTTP/2.0 200 OK\r\n\r\n",
    b"\x15\x03\x01\x00\x02\x02\x46",
    b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70000 + b"\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n123456",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: -7\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\n\xff\xfe\x00: \x80\r\nContent-Length: 2\r\n\r\n{}",
)


def test_broken_http_is_no_answer() -> None:
    """What does not speak HTTP, or breaks its rules, is BadAnswer."""
    following = iter(BROKEN)

    def play(wire: Wire) -> None:
        wire.send(next(following))
        wire.close()

    with asking(play) as (_, elevate):
        for head in BROKEN:
            assert type(failure(elevate)) is BadAnswer, head


def test_the_servers_date_is_aware_utc_or_none() -> None:
    """Every form of RFC 9110, 5.6.7, and e-mail's; what is not a date, and odd bytes, never cost an answer."""
    ten = datetime(2026, 11, 24, 10, tzinfo=UTC)
    dates: dict[str, datetime | None] = dict.fromkeys(
        ("Tue, 24 Nov 2026 10:00:00 GMT", "Tuesday, 24-Nov-26 10:00:00 GMT", "Tue Nov 24 10:00:00 2026"), ten
    )
    dates |= dict.fromkeys(("now", "", "0", "Tue, 31 Feb 2026 10:00:00 GMT", "\xe4\xf6"))
    dates |= dict.fromkeys(("Tue, 24 Nov 2026 10:00:00 +99999999999", "Fri, 31 Dec 9999 23:59:59 GMT"))
    dates |= dict.fromkeys(("Thu, 01 Jan 1900 00:00:00 GMT", "Tue, 24 Nov " + "9" * 5000 + " 10:00:00 GMT"))
    with asking() as (server, elevate):
        for text, date in dates.items():
            server.play = lambda wire, text=text: wire.reply(GOOD, "200 \xff\xfe", "X-Odd: \xff\x80", f"Date: {text}")  # type: ignore[misc]
            answer = elevate.ask(JID, now)
            assert (answer.status, answer.server_date) == ("waiting", date), text
            assert answer.server_date is None or answer.server_date.tzinfo is UTC


# HTTP codes


@pytest.mark.parametrize(
    ("codes", "kind"),
    [
        ((401, 403), KeyRefused),
        ((404, 300, 301, 302, 303, 304, 305, 307, 308, 399), WrongTarget),
        ((408, 500, 501, 502, 503, 504, 520, 599), Unavailable),
        ((429,), RateLimited),
        ((400, 402, 405, 406, 407, 409, 410, 414, 418, 422, 451, 499), BadAnswer),
        ((201, 202, 203, 204, 205, 206, 299, 101, 102, 103, 199, 600, 999), BadAnswer),
    ],
)
def test_what_each_code_means(codes: tuple[int, ...], kind: type[AskError]) -> None:
    """Only 200 can be an answer, even if the body of another is one; the code word names the code."""
    following = iter(codes)
    with asking(lambda wire: wire.reply(GOOD, f"{next(following)} X")) as (_, elevate):
        for code in codes:
            before = now()
            error = failure(elevate)
            assert (type(error), error.code) == (kind, f"http_{code}")
            assert before <= error.sent_at <= now()


SIX_HOURS = timedelta(hours=6)
PAUSES: dict[str, timedelta | None] = {
    "0": timedelta(0),
    "120": timedelta(seconds=120),
    " 007 ": timedelta(seconds=7),
    "21601": SIX_HOURS,
    "9" * 5000: SIX_HOURS,
    "Tue, 24 Nov 2026 10:00:30 GMT": timedelta(seconds=30),
    "Tue, 24 Nov 2026 09:00:00 GMT": timedelta(0),
    "Fri, 31 Dec 2100 23:59:59 GMT": SIX_HOURS,
    **dict.fromkeys(("-5", "1.5", "1e3", "5, 10", "\xb2", "soon", "", "Tue, 99 Nov 2026 10:00:30 GMT")),
}


def test_every_form_of_retry_after() -> None:
    """Seconds or a date (by the server's own clock), from 0 to 6 h; a 503 without a valid one is a plain 503."""
    with asking() as (server, elevate):
        for text, pause in PAUSES.items():
            headers = f"Retry-After: {text}", "Date: Tue, 24 Nov 2026 10:00:00 GMT"
            server.play = lambda wire, headers=headers: wire.reply("", f"{429 + 74 * (wire.number % 2)} X", *headers)  # type: ignore[misc]
            limited, busy = failure(elevate, RateLimited), failure(elevate)
            assert (limited.code, vars(limited)["retry_after"]) == ("http_429", pause), text
            assert (type(busy), busy.code) == (Unavailable if pause is None else RateLimited, "http_503"), text
            assert vars(busy).get("retry_after") == pause
        until = format_datetime(now().replace(microsecond=0) + timedelta(minutes=10), usegmt=True)
        server.play = lambda wire: wire.reply("", "429 X", f"Retry-After: {until}")  # no Date: by our own clock
        left = vars(failure(elevate, RateLimited))["retry_after"]
        assert timedelta(minutes=9) < left <= timedelta(minutes=10)


# Nothing but the one host is ever asked


def test_a_redirect_is_never_followed() -> None:
    """The key does not go to where a redirect points, another host or the same."""
    codes = iter((301, 302, 303, 307, 308))
    with Hostile() as other, asking() as (server, elevate):
        target = f"Location: {other.url}{DEFAULT_PATH}?jid={JID}"
        server.play = lambda wire: wire.reply("", f"{next(codes)} X", target)
        for _ in range(5):
            assert type(failure(elevate)) is WrongTarget
        assert (other.connections, len(server.requests)) == (0, 5)


def test_nothing_but_the_settings_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Proxy variables, .netrc and cookies are ignored: the key goes to the configured host alone, and no login."""
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login netrc-user password netrc-secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with Hostile() as proxy, asking(lambda wire: wire.answer("x", "Set-Cookie: mark=1")) as (server, elevate):
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        for _ in range(2):
            elevate.ask(JID, now)
        assert proxy.connections == 0
        assert b"uthorization" not in server.requests[0]
        assert b"ookie" not in server.requests[1]


# One deadline for the whole request


def times_out(url: str, *, within: float = 0.75, **options: Any) -> bool:
    """Return whether asking there ends with the timeout's error; AssertionError if not in time."""
    with client(url, **{"timeout": SHORT} | options) as elevate, at_most(within):
        return failure(elevate, Unavailable).code == "timeout"


HEAD = response(b"", "200 OK", f"Content-Length: {len(GOOD)}")


def drip_after(head: bytes, dripped: bytes) -> Play:
    def play(wire: Wire) -> None:
        wire.send(head)
        wire.drip(dripped)

    return play


def half_a_body(wire: Wire) -> None:
    wire.send(HEAD + GOOD[:9].encode())
    wire.stall()


drip_body = drip_after(HEAD, GOOD.encode())


@pytest.mark.parametrize(
    "play",
    [
        Wire.stall,
        lambda wire: wire.drip(HEAD + b"X" * 500),
        lambda wire: wire.drip(cycle([b"HTTP/1.1 100 Continue\r\n\r\n"])),
        drip_after(HEAD[:-2], b"X: y\r\n" * 100),
        drip_body,
        drip_after(CHUNKED, b"1;" + b"x" * 500),
        drip_after(CHUNKED + b"%x\r\n%s\r\n0\r\n" % (len(GOOD), GOOD.encode()), b"X: y\r\n" * 100),
        half_a_body,
    ],
    ids=["silence", "head", "interim", "headers", "body", "chunk-sizes", "trailers", "half"],
)
def test_dripping_ends_at_the_deadline(play: Play) -> None:
    """However the bytes drip, all of it together ends at the deadline, and the next question is answered as ever."""
    with asking(play, timeout=SHORT) as (server, elevate):
        with at_most(0.75):
            assert failure(elevate, Unavailable).code == "timeout"
        server.play = Wire.answer
        assert elevate.ask(JID, now).status == "waiting"
        assert server.connections == 2


@contextmanager
def full_listener() -> Iterator[int]:
    """Yield a port on which connecting itself hangs: its backlog is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def test_no_connection_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a silent TLS handshake, nor connecting, nor a look-up, which knows no timeout, costs more."""
    with Hostile(greet=Wire.stall) as server:
        assert times_out(f"https://127.0.0.1:{server.port}")
    with full_listener() as port:
        assert times_out(f"http://127.0.0.1:{port}")
    real = socket.getaddrinfo

    def slow(*args: Any, **kwargs: Any) -> Any:  # no test can make a real resolver slow
        time.sleep(0.6)
        return real(*args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with Hostile() as server:
        assert times_out(server.url, within=0.5)


def test_a_dead_address_leaves_time_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a name has several addresses, one that never answers does not use up the time of the others."""
    with full_listener() as dead, asking(timeout=2 * SHORT) as (server, elevate):
        both = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port)) for port in (dead, server.port)]
        with monkeypatch.context() as patched:
            patched.setattr(socket, "getaddrinfo", lambda *args, **kwargs: both)
            assert elevate.ask(JID, now).status == "waiting"


# The way there is broken


def test_a_server_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens, or the resolver does not know the name: Unavailable."""
    with client(f"http://127.0.0.1:{free_port()}") as elevate:
        assert failure(elevate, Unavailable).code == "refused"

    def unknown(*args: Any, **kwargs: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)  # the real one may take seconds to say so without a network
    with client("https://no-such-cluster.invalid") as elevate:
        assert failure(elevate, Unavailable, words="invalid").code == "dns"


BREAKS: tuple[tuple[bytes, Callable[[Wire], None], type[AskError], str], ...] = (
    (b"", Wire.reset, Unavailable, "reset"),
    (b"HTTP/1.1 200 OK\r\nContent-", Wire.reset, Unavailable, "reset"),
    (HEAD + GOOD[:9].encode(), Wire.reset, Unavailable, "reset"),
    (HEAD + GOOD[:9].encode(), Wire.close, BadAnswer, "not_json"),
    (HEAD, Wire.close, BadAnswer, "truncated"),
    (CHUNKED + b"ff\r\n{", Wire.close, BadAnswer, "truncated"),
    (CHUNKED + b"1\r\n{\r\n", Wire.close, BadAnswer, "truncated"),
    (HEAD[:-2], Wire.close, BadAnswer, "truncated"),
)


def test_a_connection_that_ends_in_the_middle() -> None:
    """A connection that breaks is Unavailable, an answer that ends before its end is BadAnswer; neither is a status."""
    for sent, end, kind, code in BREAKS:

        def play(wire: Wire, sent: bytes = sent, end: Callable[[Wire], None] = end) -> None:
            wire.send(sent)
            time.sleep(0.02)  # a reset overtakes what was sent just before
            end(wire)

        with asking(play) as (server, elevate):
            error = failure(elevate)
            assert (type(error), error.code) == (kind, code), sent
            assert len(server.requests) == 1


@pytest.mark.parametrize("end", [Wire.close, Wire.reset])
@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])
def test_a_stale_connection_is_tried_once_more(
    tls: ssl.SSLContext, certificate: Path, end: Callable[[Wire], None], is_tls: bool
) -> None:
    """A kept connection that breaks under the question is replaced, only once; sent_at is the second request's."""
    options: dict[str, Any] = {"tls": tls, "ca_bundle": certificate} if is_tls else {}
    with asking(lambda wire: end(wire) if wire.number == 1 else wire.answer(), **options) as (server, elevate):
        elevate.ask(JID, now)
        instants = iter(datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2, 3))
        answer = elevate.ask(JID, lambda: next(instants))
        assert (answer.sent_at.day, answer.completed_at.day) == (2, 3)
        assert (server.connections, len(server.requests)) == (2, 3)
        server.play = end
        failure(elevate, Unavailable, words="closed|reset")
        assert len(server.requests) == 5


def test_connections_that_went_silent_while_idle_cost_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that times out on a connection that had been idle is asked once more, on a new one."""
    monkeypatch.setattr(elevate_module, "IDLE_SECONDS", 0.5)
    at_once = 4
    used: dict[int, float] = {}

    def play(wire: Wire) -> None:
        before, used[id(wire.connection)] = used.get(id(wire.connection)), time.monotonic()
        if before is not None and time.monotonic() - before > 0.5:
            wire.stall()
        else:
            time.sleep(0.05)
            wire.answer()

    with asking(play, timeout=timedelta(seconds=0.5)) as (server, elevate):

        def all_at_once() -> list[Answer]:
            with ThreadPoolExecutor(at_once) as threads:
                return list(threads.map(lambda _: elevate.ask(JID, now), range(at_once)))

        all_at_once()
        assert server.connections == at_once
        time.sleep(0.6)
        asked_at = now()
        answers = all_at_once()
        assert [answer.status for answer in answers] == ["waiting"] * at_once
        assert min(answer.sent_at for answer in answers) - asked_at > timedelta(seconds=0.4)  # of the second request
        all_at_once()
        assert server.connections == 2 * at_once


def test_a_busy_connection_that_hangs_is_not_asked_twice() -> None:
    """A job whose requests hang must not hold a thread for twice the time."""
    jids: list[str] = []

    def play(wire: Wire) -> None:
        jids.append(wire.jid)
        wire.stall() if wire.jid == "hangs" else wire.answer()

    with asking(play, timeout=timedelta(seconds=0.5)) as (_, elevate):
        elevate.ask("a", now)
        with at_most(1):
            failure(elevate, Unavailable, "hangs")
        assert jids == ["a", "hangs"]


# TLS and proxies


def test_a_dripping_tls_server_ends_at_the_deadline(tls: ssl.SSLContext, certificate: Path) -> None:
    """The deadline holds under TLS as well, in the head and in the body."""
    with Hostile(drip_body, tls=tls) as server:
        for server.play in (drip_body, lambda wire: wire.drip(HEAD)):
            assert times_out(server.url, ca_bundle=certificate)


def test_a_dripping_server_behind_an_https_proxy_ends_at_the_deadline(tls: ssl.SSLContext, certificate: Path) -> None:
    """TLS within TLS reads by another way, and obeys the same deadline and the same cap."""
    with Hostile(drip_body, tls=tls) as server, Hostile(lambda wire: wire.tunnel(server.port), tls=tls) as proxy:
        assert times_out(server.url, ca_bundle=certificate, proxy=proxy.url, timeout=2 * SHORT)
        server.play = endless(response(b""), b"x" * 1000)
        with client(server.url, ca_bundle=certificate, proxy=proxy.url) as elevate, at_most(2):
            assert failure(elevate, BadAnswer).code == "too_large"


def test_a_certificate_that_is_not_trusted_gets_no_request(
    tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, certificate: Path, tmp_path: Path
) -> None:
    """It must be vouched for by our authorities, never the environment's, and be for the host that is asked."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, str(certificate))
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "secrets"))
    with Hostile(tls=tls) as server:
        with client(server.url) as elevate:
            assert failure(elevate, WrongTarget, words="self-signed certificate.*ca_bundle").code == "tls_unverified"
        with client(f"https://127.0.0.1:{server.port}", ca_bundle=certificate) as elevate:
            failure(elevate, WrongTarget, words="mismatch|not valid for")
        assert server.requests == []
        with client(server.url, ca_bundle=certificate) as elevate:
            assert elevate.ask(JID, now).status == "waiting"
    assert not (tmp_path / "secrets").exists(), "it would let anyone who recorded the traffic read the key"


def test_what_speaks_no_tls_gets_no_request() -> None:
    """A plain server behind https:// is WrongTarget; one that hangs up in the handshake is Unavailable."""

    def plain(wire: Wire) -> None:
        wire.connection.recv(100)
        wire.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    def hang_up(wire: Wire) -> None:
        wire.connection.recv(65536)

    for greet, kind, code in ((plain, WrongTarget, "tls"), (hang_up, Unavailable, "reset")):
        with Hostile(greet=greet) as server, client(f"https://localhost:{server.port}") as elevate:
            error = failure(elevate)
            assert (type(error), error.code) == (kind, code)


@pytest.mark.parametrize("over_tls", [False, True], ids=["http-proxy", "https-proxy"])
def test_a_proxy_passes_on_what_it_cannot_read(tls: ssl.SSLContext, certificate: Path, over_tls: bool) -> None:
    """The configured proxy gets its own login and the host's name; the key and the jid pass it encrypted."""
    with Hostile(tls=tls) as server:
        with Hostile(lambda wire: wire.tunnel(server.port), tls=tls if over_tls else None) as proxy:
            scheme, _, place = proxy.url.partition("://")
            options = {"ca_bundle": certificate, "proxy": f"{scheme}://user:pass@{place}"}
            with client(server.url, **options) as elevate:
                assert elevate.ask(JID, now).status == "waiting"
                assert elevate.ask(JID, now).status == "waiting"
        assert (proxy.connections, server.connections) == (1, 1)
    assert proxy.requests[0].startswith(b"CONNECT localhost:")
    assert b"Proxy-Authorization: Basic dXNlcjpwYXNz" in proxy.requests[0]
    seen = b"".join(proxy.passed + proxy.requests)
    assert KEY.encode() not in seen
    assert JID.encode() not in seen
    assert b"Proxy-" not in server.requests[0]
    assert KEY.encode() in server.requests[0]


@pytest.mark.parametrize(
    ("play", "code", "words"),
    [
        (lambda wire: wire.reply("", "407 pass"), "proxy", r"407.*check proxy"),
        (lambda wire: wire.send(b"nonsense\r\n\r\n"), "proxy", "no HTTP"),
        (Wire.close, "reset", "closed"),
        (lambda wire: wire.drip(cycle([b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"])), "timeout", "in the time"),
    ],
)
def test_a_proxy_that_makes_no_connection(play: Play, code: str, words: str) -> None:
    """What the proxy refuses is Unavailable, within the deadline, and its login is not shown."""
    with Hostile(play) as proxy, at_most(0.75):
        options = {"proxy": f"http://user:pass@127.0.0.1:{proxy.port}", "timeout": SHORT}
        with client("https://cluster.invalid", **options) as elevate:
            error = failure(elevate, Unavailable, words=words)
        assert error.code == code
        assert "pass" not in str(error)
