"""The client: one question to Elevate about one job, to one `Answer` or one `AskError`.

Owns the only HTTP to Elevate, and trusts nobody in it: what answers there may be slow, wrong, hostile or not Elevate at
all, and the key that goes with each question can do far more than ask. Leaves alone: what an answer means (`status`),
when to ask again (`cadence`), pauses, rates and records (`poller`). What goes to other servers, such as checkpoints,
goes by `post` over the same sockets, and knows no key.

Requests makes the template of all questions and sends it, but for three of its habits. There is no Session, hence no
redirect (it would take ``Api-Key`` to another host), cookie, ``.netrc`` or proxy variable. Each socket obeys the one
deadline of the whole request, since ``timeout=`` bounds only the wait for the next byte. And no error of a library
leaves this room, since those of requests hold the request with its key.
"""

from __future__ import annotations

import codecs
import functools
import http.client
import json
import queue
import re
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from time import monotonic
from typing import Any, Self
from urllib.parse import SplitResult, quote, urlsplit

import urllib3
from pydantic import SecretStr
from requests import PreparedRequest, Request, RequestException, Response
from requests.adapters import HTTPAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.connection import HTTPConnection, HTTPSConnection

from tracker import text
from tracker.errors import AskError, BadAnswer, BadConfiguration, KeyRefused, RateLimited, Unavailable, WrongTarget
from tracker.settings import is_loopback
from tracker.status import Answer

_CAP = 64 * 1024
"""Bytes that are read of one response, headers included; an answer has about 100, and its headers a few hundred."""

_IDLE_SECONDS = 2.0
"""A connection that nobody used for longer may be dead without a word: the way between forgot it."""

_LONGEST_PAUSE = timedelta(hours=6)
"""However long a server asks to be left alone: a typing error of its owner must not blind us for weeks."""


class _Flight(threading.local):
    """What the one request that this thread has under way may still take: every socket of ours obeys it.

    Attributes:
        deadline: On the monotonic clock.
        room: Bytes that may still come.
        reused: The connection was open before, so the server may have closed it just as we wrote.
        idle: Seconds that the connection had not been used for.
        sent_at: Goes into each error.
    """

    deadline = 0.0
    room = 0
    reused = False
    idle = 0.0
    sent_at: datetime


_flight = _Flight()


def _unavailable(code: str, words: str) -> Unavailable:
    return Unavailable(code, words, sent_at=_flight.sent_at)


def _wrong_target(code: str, words: str) -> WrongTarget:
    return WrongTarget(code, words, sent_at=_flight.sent_at)


def _bad_answer(code: str, words: str) -> BadAnswer:
    return BadAnswer(code, words, sent_at=_flight.sent_at)


def _left() -> float:
    """Return the seconds until the deadline; TimeoutError after it."""
    left = _flight.deadline - monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _Socket(socket.socket):
    """A socket that waits for its peer no longer than until the deadline of the calling thread's request.

    http.client reads headers and chunks with as many receives as it takes: with a timeout that begins anew at each, a
    server could drip one byte after another for ever. (Sending needs no more than the timeout that urllib3 sets: a
    request fits into any socket's buffer.)
    """

    def recv(self, *args: Any) -> bytes:
        self.settimeout(_left())
        data = super().recv(*args)
        self._take(len(data))
        return data

    def recv_into(self, *args: Any) -> int:
        self.settimeout(_left())
        count = super().recv_into(*args)
        self._take(count)
        return count

    def _take(self, count: int) -> None:
        # Here and not at the body, since headers, interim responses, chunk sizes and trailers have no end either.
        _flight.room -= count
        if _flight.room < 0:
            raise _bad_answer("too_large", f"the answer is longer than {_CAP} bytes")


class _TLSSocket(_Socket, ssl.SSLSocket):
    """The same under TLS."""

    def do_handshake(self, *args: Any) -> None:
        self.settimeout(_left())
        super().do_handshake(*args)


def _look_up(host: str, port: int) -> list[tuple[Any, ...]]:
    """Return what getaddrinfo says; TimeoutError at the deadline, which getaddrinfo itself knows nothing of."""
    found: queue.SimpleQueue[list[tuple[Any, ...]] | OSError] = queue.SimpleQueue()

    def look() -> None:
        try:
            found.put(list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except OSError as error:
            found.put(error)

    # A thread for each new connection is nothing beside the handshake. One that hangs ends when the resolver gives up.
    threading.Thread(target=look, name="tracker-lookup", daemon=True).start()
    try:
        addresses = found.get(timeout=_left())
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(addresses, OSError):
        raise addresses
    return addresses


def _open(host: str, port: int, options: list[tuple[int, int, int | bytes]]) -> _Socket:
    """Return a socket connected to *host*, or raise the last address's OSError."""
    addresses = _look_up(host, port)
    failure = OSError("the name has no address")
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        sock = None
        try:
            sock = _Socket(family, kind, protocol)
            for option in options:
                sock.setsockopt(*option)
            # An even share for each address, so that a dead IPv6 route does not eat the time for IPv4.
            sock.settimeout(_left() / (len(addresses) - number))
            sock.connect(address)
            return sock
        except OSError as error:
            if sock is not None:
                sock.close()
            failure = error
    raise failure


class _Connection(HTTPConnection):
    """urllib3's connection over our sockets. What goes wrong is an `AskError` at once: all layers above let it pass."""

    used_at = 0.0  # monotonic time
    debuglevel = 0  # http.client would print the request with its key to stdout, if someone set it for all connections

    def _new_conn(self) -> socket.socket:
        return _open(self._dns_host, self.port, self.socket_options or [])

    def connect(self) -> None:
        _flight.reused = False
        at = self.host  # the proxy's, where there is one
        try:
            super().connect()
        except TimeoutError:
            raise _unavailable("timeout", f"{at}: no connection in the time for one request") from None
        except socket.gaierror as error:
            raise _unavailable("dns", f"{at}: the name was not resolved ({error.strerror})") from None
        except ConnectionRefusedError:
            raise _unavailable("refused", f"{at}: the connection was refused") from None
        except (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError):
            raise _unavailable("reset", f"{at}: the connection was closed while it was made") from None
        except ssl.SSLCertVerificationError as error:
            words = f"{at}: the certificate is not trusted ({error.verify_message}): check base_url and ca_bundle"
            raise _wrong_target("tls_unverified", words) from None
        except ssl.SSLError as error:
            raise _wrong_target("tls", f"{at}: what answers speaks no TLS with us ({error.reason})") from None
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.strerror:
                raise _unavailable("unreachable", f"{at}: no connection ({error.strerror})") from None
            code = re.search(r"\b[1-5]\d\d\b", str(error))  # all else in there is the proxy's own words
            words = f"{at}: the proxy made no connection ({code[0] if code else 'no HTTP'}): check proxy"
            raise _unavailable("proxy", words) from None

    def request(self, *args: Any, **kwargs: Any) -> None:
        _flight.idle = monotonic() - self.used_at if self.sock is not None and self.used_at else 0.0
        super().request(*args, **kwargs)

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # urllib3's own differs so from http.client's
        try:
            response = super().getresponse()
            self.used_at = monotonic()
            return response
        except TimeoutError:
            raise _unavailable("timeout", "no answer in the time for one request") from None
        except OSError:
            raise _unavailable("reset", "the connection was closed before an answer") from None
        except (http.client.HTTPException, urllib3.exceptions.HTTPError):
            raise _bad_answer("not_http", "what answers does not speak HTTP") from None


class _TLSConnection(_Connection, HTTPSConnection):
    """The same over TLS."""


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


class _Adapter(HTTPAdapter):
    """Requests' adapter for one origin only: what it works out anew for each request is known here beforehand.

    That and the cookies it looks for in each response take more time than sending and receiving.
    """

    def __init__(self, url: str, context: ssl.SSLContext | None, proxy: str | None, pool_size: int) -> None:
        # Retry(False) raises the error itself; a stale connection is the only thing worth a repetition, see `Elevate`.
        super().__init__(pool_connections=1, pool_maxsize=pool_size, max_retries=urllib3.Retry(False))
        manager = self.proxy_manager_for(proxy, proxy_ssl_context=context) if proxy else self.poolmanager
        manager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}
        parts = urlsplit(url)
        tls = {"ssl_context": context} if context else {}
        self._pool: urllib3.HTTPConnectionPool = manager.connection_from_host(
            parts.hostname, parts.port, parts.scheme, pool_kwargs=tls
        )

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> urllib3.HTTPConnectionPool:
        return self._pool

    def cert_verify(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the pool's own context verifies, and nothing given with a request can tell it not to."""

    def request_url(self, request: PreparedRequest, proxies: Mapping[str, str] | None) -> str:
        return request.path_url

    def close(self) -> None:
        self._pool.close()  # the managers only forget it
        super().close()

    def drop(self) -> None:
        """Close the connections that are kept and not in use, so that the next request opens one."""
        kept = self._pool.pool
        if kept is None:
            return
        found = []
        with suppress(queue.Empty):
            while True:
                found.append(kept.get(block=False))
        for connection in found:
            if connection is not None:
                connection.close()
            with suppress(queue.Full):
                kept.put(None, block=False)

    def build_response(self, req: PreparedRequest, resp: urllib3.BaseHTTPResponse) -> Response:
        response = Response()
        response.raw = resp
        return response


class _Key(str):
    """The key where it has to be text: printing the headers that hold it, as debuggers do, does not print it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'****'"


class Elevate:
    """One cluster's client. Thread-safe, and a context manager; its repr holds no secret.

    Args:
        base_url: Scheme, host and port; ``http://`` for this machine only.
        path: The job-status call's path.
        api_key: The private key.
        timeout: For the whole of one request: look-up, connection, TLS, headers and body. One that times out on a
            connection that was idle is sent once more, on a new one, with as much time.
        ca_bundle: PEM file of the authorities to trust in place of the usual ones.
        proxy: URL of an HTTP proxy, which sees the host's name and encrypted bytes; may hold a user and a password.
        pool_size: Connections that are kept; more threads than that cost a new one each time.

    Raises:
        BadConfiguration: An argument cannot be used; the message names it, and no secret.
    """

    def __init__(
        self,
        base_url: str,
        path: str,
        api_key: SecretStr,
        *,
        timeout: timedelta = timedelta(seconds=10),
        ca_bundle: Path | None = None,
        proxy: str | None = None,
        pool_size: int = 4,
    ) -> None:
        _check(base_url, path, api_key, proxy)
        if timeout <= timedelta():
            raise BadConfiguration("request_timeout: must be above 0")
        self._where = base_url.rstrip("/") + path
        self._timeout = timeout.total_seconds()
        tls = _tls_context(ca_bundle) if base_url.lower().startswith("https:") else None
        self._adapter = _Adapter(base_url, tls, proxy, pool_size)
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "tracker"}
        self._template = Request("GET", f"{self._where}?jid=", headers).prepare()
        self._template.headers["Api-Key"] = _Key(api_key.get_secret_value())

    def __repr__(self) -> str:
        return f"<Elevate at {self._where}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections that are kept; those in use are closed when their request ends."""
        self._adapter.close()

    def ask(self, jid: str, now: Callable[[], datetime]) -> Answer:
        """Return what Elevate says about *jid*, within the timeout.

        Args:
            jid: The job; any text that is not empty.
            now: The clock (aware UTC), read just before the request is sent and when the answer is complete.

        Raises:
            AskError: there is no answer; which subclass, see `tracker.errors`. Nothing hangs on it that holds the key:
                neither a cause nor a context, nor a frame below this one (a server can echo the key into a body).
        """
        try:
            return self._ask(jid, now)
        except AskError as error:
            failure = error.with_traceback(None)
        failure.__context__ = failure.__cause__ = None
        raise failure

    def _ask(self, jid: str, now: Callable[[], datetime]) -> Answer:
        _flight.deadline = monotonic() + self._timeout
        _flight.sent_at = now()
        request = self._template.copy()
        request.url = f"{self._where}?jid={_quoted(jid)}"
        try:
            response, body = self._exchange(request)
        except Unavailable as error:
            if not _flight.reused or (error.code == "timeout" and _flight.idle < _IDLE_SECONDS):
                raise
            # A connection that was idle may be closed just as we write, or be dead without a word; a GET may be
            # repeated then (RFC 9110, 9.2.2).
            if error.code == "timeout":
                self._adapter.drop()
                _flight.deadline = monotonic() + self._timeout
            _flight.sent_at = now()
            response, body = self._exchange(request)
        completed_at = now()
        server_date = _http_date(response.headers.get("date", ""))
        if response.status != 200:
            raise _refusal(response, server_date or completed_at)
        if server_date is not None and server_date.year >= 9999:
            server_date = None  # the databases keep none so late, and the answer counts all the same
        return Answer(_status(jid, body), _flight.sent_at, max(completed_at, _flight.sent_at), server_date)

    def _exchange(self, request: PreparedRequest) -> tuple[urllib3.HTTPResponse, bytes]:
        """Send *request* and return the response with its body, which is left unread if it cannot be an answer."""
        _flight.reused = True
        _flight.room = _CAP
        try:
            response: urllib3.HTTPResponse = self._adapter.send(request, stream=True, timeout=self._timeout).raw
        except (RequestException, urllib3.exceptions.HTTPError, OSError):
            raise _unavailable("network", "the request could not be sent") from None
        try:
            if response.status != 200:
                return response, b""
            _check_type(response.headers)
            body = response.read(_CAP)
            if response.length_remaining:
                raise _bad_answer("truncated", "the answer ended before its end")
            return response, body
        except urllib3.exceptions.ReadTimeoutError:
            raise _unavailable("timeout", "no whole answer in the time for one request") from None
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            if isinstance(error.__cause__, OSError):
                raise _unavailable("reset", "the connection broke in the answer") from None
            raise _bad_answer("truncated", "the answer ended before its end") from None
        finally:
            # What was read to its end is back in the pool by now, and this does nothing; nothing else may get there.
            response.close()


def post(url: str, body: bytes, headers: Mapping[str, str], timeout: timedelta) -> None:
    """Hand *body* to a server of the operator's, and return once it answered with any 2xx; its words are not read.

    Args:
        url: With ``https://``, or ``http://`` for this machine; may hold a secret.
        body: Arrives twice, perhaps, where an error said that it did not arrive.
        headers: Beside those of every request.
        timeout: For the whole of it.

    Raises:
        AskError: It was not taken; of the error only class and code are about that server, and neither has the URL.
        BadConfiguration: *url* cannot be used.
    """
    parts = _split("url", url)
    adapter = _Adapter(url, _tls_context(None) if parts.scheme == "https" else None, None, 1)
    _flight.deadline, _flight.room = monotonic() + timeout.total_seconds(), _CAP
    _flight.sent_at, _flight.reused = datetime.now(UTC), False
    try:
        request = Request("POST", url, {"User-Agent": "tracker", "Accept-Encoding": "identity", **headers}, data=body)
        response: urllib3.HTTPResponse = adapter.send(
            request.prepare(), stream=True, timeout=timeout.total_seconds()
        ).raw
        response.close()
        if not 200 <= response.status < 300:
            raise _refusal(response, _flight.sent_at)
    except (RequestException, urllib3.exceptions.HTTPError, OSError):
        raise _unavailable("network", "the request could not be sent") from None
    finally:
        adapter.close()


def _check(base_url: str, path: str, api_key: SecretStr, proxy: str | None) -> None:
    """Refuse what cannot be used or would give the key away. No message repeats a URL, which may hold a password."""
    parts = _split("base_url", base_url)
    if parts.username is not None or parts.path.strip("/") or "?" in base_url or "#" in base_url:
        raise BadConfiguration("base_url: must be no more than https://, the host and the port")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise BadConfiguration(
            f"base_url: http:// would show the key to everyone on the way to {parts.hostname}; "
            "write https:// (http:// is for this machine only: localhost, 127.0.0.1, [::1])"
        )
    if not re.fullmatch(r"/[!-~]*", path) or "?" in path or "#" in path:
        raise BadConfiguration("path: must begin with / and have no space, ? or #")
    if not re.fullmatch(r"[!-~]+", api_key.get_secret_value()):
        raise BadConfiguration("api_key: is empty or has a character that an HTTP header cannot carry")
    if proxy is not None:
        _split("proxy", proxy)
        if parts.scheme == "http":
            raise BadConfiguration("proxy: cannot be used with an http:// base_url: the key would pass it unencrypted")


def _split(name: str, url: str) -> SplitResult:
    """Return the parts of *url*; BadConfiguration about the setting *name* unless it is an http(s) URL of a host."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
        # Both are what requests and urllib3 refuse only later, with other errors.
        usable = bool(re.fullmatch(r"[!-~]+", url)) and host[:1] not in ("", "*") and bool(host.encode("idna"))
    except ValueError:  # UnicodeError is one
        usable = False
    if not usable or parts.scheme not in ("https", "http"):
        raise BadConfiguration(f"{name}: must begin with https:// or http:// and a valid host name")
    return parts


def _tls_context(ca_bundle: Path | None) -> ssl.SSLContext:
    """Return how TLS is made: always verified, by *ca_bundle* or the authorities that requests brings."""
    # Not by ssl's or urllib3's helpers, which also obey SSLKEYLOGFILE and so can write down what decrypts the key.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.sslsocket_class = _TLSSocket
    try:
        context.load_verify_locations(cafile=str(ca_bundle or DEFAULT_CA_BUNDLE_PATH))
    except OSError as error:  # ssl.SSLError is one
        problem = "is not a PEM file of certificates" if isinstance(error, ssl.SSLError) else error.strerror
        raise BadConfiguration(f"ca_bundle: {ca_bundle}: {problem}") from None
    return context


def _quoted(jid: str) -> str:
    try:
        return quote(jid, safe="")
    except UnicodeEncodeError:
        raise _bad_answer("bad_jid", "the jid has a character that no URL can carry") from None


def _check_type(headers: Mapping[str, str]) -> None:
    """Refuse whatever its headers call other than plain JSON in UTF-8."""
    kind, *parameters = headers.get("content-type", "").lower().replace(" ", "").split(";")
    charsets = [text[8:].strip('"') for text in parameters if text.startswith("charset=")]
    if kind != "application/json" or not {"utf-8", "utf8"}.issuperset(charsets):
        raise _bad_answer("content_type", "the answer is not called JSON in UTF-8")
    if headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
        # It was not asked for, and a few kilobytes of it can become gigabytes.
        raise _bad_answer("content_encoding", "the answer is compressed")


def _one_of_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of *pairs*; with a key twice, it would depend on the reader what was said (RFC 8259, 4)."""
    document = dict(pairs)
    if len(document) < len(pairs):
        raise ValueError("a key twice")
    return document


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_decoder = json.JSONDecoder(object_pairs_hook=_one_of_each, parse_constant=_no_constant)


_GUID = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


def _is_same(answered: object, jid: str) -> bool:
    """Whether an answer's jid is the one that was asked for: capitals do not matter in a GUID (RFC 9562, 4)."""
    if answered == jid:
        return True
    return isinstance(answered, str) and bool(_GUID.fullmatch(jid)) and answered.lower() == jid.lower()


def _status(jid: str, body: bytes) -> str:
    """Return the status in *body*, or raise BadAnswer unless it is one valid answer about *jid*, beyond any doubt."""
    try:
        # A byte order mark changes nothing of what is said, and may be ignored (RFC 8259, 8.1).
        document = _decoder.decode(body.removeprefix(codecs.BOM_UTF8).decode())
    except (ValueError, RecursionError):
        raise _bad_answer("not_json", "the answer is not valid JSON") from None
    if not isinstance(document, dict):
        raise _bad_answer("not_object", "the answer is not a JSON object")
    if not _is_same(document.get("jid"), jid):
        raise _bad_answer("other_jid", "the answer is not about this job")
    status = document.get("status")
    if not isinstance(status, str) or not 1 <= len(status) <= text.LONGEST or text.INVISIBLE.search(status):
        raise _bad_answer("bad_status", "the answer has no status that could be one")
    return status


def _refusal(response: urllib3.HTTPResponse, server_now: datetime) -> AskError:
    """Return what an HTTP code other than 200 means (DESIGN.md, "The poll")."""
    code, at = response.status, _flight.sent_at
    name = f"http_{code}"
    if code in (401, 403):
        return KeyRefused(name, f"the key is refused ({code}): check api_key", sent_at=at)
    if 300 <= code <= 399:
        return WrongTarget(name, f"a redirect ({code}), never followed: check base_url and path", sent_at=at)
    if code == 404:
        return WrongTarget(name, "no such cluster or path (404): check base_url and path", sent_at=at)
    pause = _retry_after(response.headers.get("retry-after", ""), server_now)
    if code == 429 or (code == 503 and pause is not None):
        return RateLimited(name, f"asked to wait ({code})", sent_at=at, retry_after=pause)
    if code == 408 or 500 <= code <= 599:
        return Unavailable(name, f"the server has no answer now ({code})", sent_at=at)
    return BadAnswer(name, f"the server does not answer this question ({code})", sent_at=at)


def _retry_after(text: str, server_now: datetime) -> timedelta | None:
    """Return the wait that *text* asks for, 0 to 6 h; None if it is not in a form of RFC 9110, 10.2.3.

    Args:
        text: Seconds, or an HTTP date.
        server_now: What the same server calls now, so that a clock that is off does not matter.
    """
    text = text.strip()
    if re.fullmatch(r"[0-9]+", text):
        # Not int, which refuses more than 4300 digits.
        return timedelta(seconds=min(float(text), _LONGEST_PAUSE.total_seconds()))
    until = _http_date(text)
    return None if until is None else min(max(until - server_now, timedelta()), _LONGEST_PAUSE)


@functools.lru_cache(maxsize=64)  # many answers come within one second
def _http_date(text: str) -> datetime | None:
    """Return an HTTP date (RFC 9110, 5.6.7, and whatever else e-mail calls a date) in UTC, or None."""
    try:
        date = parsedate_to_datetime(text)
        date = date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return date if date.year >= 1970 else None
