"""The client: one question to Elevate about one job, to one `Answer` or one `AskError`.

Owns what is asked, and which of what comes back is an answer: the key that goes with each question can do far more than
ask. Leaves alone: sockets, TLS and deadlines (`transport`), what an answer means (`status`), when to ask again
(`cadence`), pauses, rates and records (`health`, `poller`). `post` sends other things, such as checkpoints, to other
servers over the same sockets, without a key.
"""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from time import monotonic
from typing import Self
from urllib.parse import quote

import urllib3
from requests import PreparedRequest, Request, RequestException

from tracker import text
from tracker.errors import AskError, BadAnswer, KeyRefused, RateLimited, ReceiverAhead, Unavailable, WrongTarget
from tracker.settings import ClusterSettings
from tracker.status import Answer
from tracker.transport import CAP, IDLE_SECONDS, Adapter, bad_answer, flight, tls_context, unavailable

_LONGEST_PAUSE = timedelta(hours=6)
"""The longest wait that a server can ask for: a mistake in its configuration must not stop polling for weeks."""

RECEIVER_HINTS = {
    "tls_unverified": "the receiver's certificate is not trusted: check TRACKER_RECEIVER_CA_BUNDLE",
    "proxy": "the proxy made no connection: check TRACKER_RECEIVER_PROXY",
}
"""What to do about an error of `post`, by its code; the messages of the errors themselves are about Elevate."""


class Elevate:
    """One cluster's client. Thread-safe, and a context manager; its repr holds no secret.

    Args:
        cluster: Where to ask, with which key; its settings are valid.
        timeout: For one complete request: look-up, connection, TLS, headers and body. One that times out on a
            connection that was idle is sent once more, on a new one, with as much time.

    Raises:
        BadConfiguration: The file of authorities cannot be used.
    """

    def __init__(self, cluster: ClusterSettings, timeout: timedelta) -> None:
        self._where = cluster.base_url + cluster.path
        self._timeout = timeout.total_seconds()
        tls = tls_context(cluster.ca_bundle) if cluster.base_url.lower().startswith("https:") else None
        self._adapter = Adapter(cluster.base_url, tls, cluster.proxy, cluster.max_concurrency)
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "tracker"}
        self._template = Request("GET", f"{self._where}?jid=", headers).prepare()
        self._template.headers["Api-Key"] = cluster.api_key.get_secret_value()

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
            AskError: there is no answer; `tracker.errors` lists the subclasses. Nothing attached to it holds the key:
                neither a cause nor a context, nor a frame below this one (a server can echo the key into a body).
        """
        try:
            return self._ask(jid, now)
        except AskError as error:
            failure = error.with_traceback(None)
        failure.__context__ = failure.__cause__ = None
        raise failure

    def _ask(self, jid: str, now: Callable[[], datetime]) -> Answer:
        flight.deadline = monotonic() + self._timeout
        flight.sent_at = now()
        request = self._template.copy()
        try:
            request.url = f"{self._where}?jid={quote(jid, safe='')}"
        except UnicodeEncodeError:
            raise bad_answer("bad_jid", "the jid has a character that no URL can carry") from None
        try:
            response, body = self._exchange(request)
        except Unavailable as error:
            if not flight.reused or (error.code == "timeout" and flight.idle < IDLE_SECONDS):
                raise
            # A connection that was idle may be closed just as we write, or be dead without a word; a GET may be
            # repeated then (RFC 9110, 9.2.2).
            if error.code == "timeout":
                self._adapter.drop()
                flight.deadline = monotonic() + self._timeout
            flight.sent_at = now()
            response, body = self._exchange(request)
        completed_at = now()
        server_date = _http_date(response.headers.get("date", ""))
        if response.status != 200:
            raise _refusal(response, server_date or completed_at)
        return Answer(_status(jid, body), flight.sent_at, max(completed_at, flight.sent_at), server_date)

    def _exchange(self, request: PreparedRequest) -> tuple[urllib3.HTTPResponse, bytes]:
        """Send *request* and return the response with its body, which is left unread if it cannot be an answer."""
        flight.reused = True
        flight.room = CAP
        try:
            response: urllib3.HTTPResponse = self._adapter.send(request, stream=True, timeout=self._timeout).raw
        except (RequestException, urllib3.exceptions.HTTPError, OSError):
            raise unavailable("network", "the request could not be sent") from None
        try:
            if response.status != 200:
                return response, b""
            # Not decoded: a compressed answer, which we do not ask for, counts as invalid JSON.
            body = response.read(CAP)
            if response.length_remaining:  # incomplete (RFC 9112, 8), although what came may be valid JSON
                raise bad_answer("truncated", "the answer was cut off")
            return response, body
        except urllib3.exceptions.ReadTimeoutError:
            raise unavailable("timeout", "no complete answer within the time limit") from None
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            if isinstance(error.__cause__, OSError):
                raise unavailable("reset", "the connection broke during the answer") from None
            raise bad_answer("truncated", "the answer was cut off") from None
        finally:
            # A connection that was read to its end is back in the pool by now; no other may get there.
            response.close()


def post(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    timeout: timedelta,
    *,
    method: str = "POST",
    ca_bundle: Path | None = None,
    proxy: str | None = None,
) -> None:
    """Send *body* to a server of the operator's, and return once it answered with any 2xx.

    Args:
        url: A valid one, with ``https://``, or ``http://`` for this machine; may hold a secret.
        body: It can have arrived although an error is raised.
        headers: In addition to those of every request.
        timeout: For the complete request.
        method: A ping is a GET without a body.
        ca_bundle: PEM file of the authorities to trust in place of the usual ones.
        proxy: For ``https://``; this machine is asked without it.

    Raises:
        AskError: It was not accepted. Class and code of the error say why; neither has the URL in it.
        BadConfiguration: The file of authorities cannot be used.
    """
    is_tls = url.lower().startswith("https:")
    adapter = Adapter(url, tls_context(ca_bundle) if is_tls else None, proxy if is_tls else None, 1)
    flight.deadline, flight.room = monotonic() + timeout.total_seconds(), CAP
    flight.sent_at, flight.reused = datetime.now(UTC), False
    try:
        request = Request(method, url, {"User-Agent": "tracker", "Accept-Encoding": "identity", **headers}, data=body)
        response = adapter.send(request.prepare(), stream=True, timeout=timeout.total_seconds()).raw
        newest = re.match(rb"[0-9a-f]{64}\b", response.read(65)) if response.status == 409 else None
        response.close()
        if response.status == 409:
            raise ReceiverAhead(newest[0].decode() if newest else "", sent_at=flight.sent_at)
        if not 200 <= response.status < 300:
            raise _refusal(response, flight.sent_at)
    except (RequestException, urllib3.exceptions.HTTPError, OSError):
        raise unavailable("network", "the request could not be sent") from None
    finally:
        adapter.close()


_GUID = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


def _is_same(answered: object, jid: str) -> bool:
    """Whether an answer's jid is the one that was asked for: capitals do not matter in a GUID (RFC 9562, 4)."""
    if isinstance(answered, str) and _GUID.fullmatch(jid):
        return answered.lower() == jid.lower()
    return answered == jid


def _status(jid: str, body: bytes) -> str:
    """Return the status in *body*, or raise BadAnswer unless it is one valid answer about *jid*, beyond any doubt."""
    try:
        # A byte order mark changes nothing of what is said, and may be ignored (RFC 8259, 8.1).
        document = text.parse_json(body.removeprefix(codecs.BOM_UTF8).decode())
    except (ValueError, RecursionError):
        raise bad_answer("not_json", "the answer is not valid JSON") from None
    if not isinstance(document, dict):
        raise bad_answer("not_object", "the answer is not a JSON object")
    if not _is_same(document.get("jid"), jid):
        raise bad_answer("other_jid", "the answer is not about this job")
    status = document.get("status")
    if not isinstance(status, str) or not 1 <= len(status) <= text.LONGEST or text.INVISIBLE.search(status):
        raise bad_answer("bad_status", "the answer has no valid status")
    return status


def _refusal(response: urllib3.HTTPResponse, server_now: datetime) -> AskError:
    """Return what an HTTP code other than 200 means (DESIGN.md, "The poll")."""
    code, at = response.status, flight.sent_at
    name = f"http_{code}"
    pause = _retry_after(response.headers.get("retry-after", ""), server_now)
    if code == 429 or (code == 503 and pause is not None):
        return RateLimited(name, f"the server asked us to wait ({code})", sent_at=at, retry_after=pause)
    kind: type[AskError] = BadAnswer
    words = f"the server refuses this request ({code})"
    if code in (401, 403):
        kind, words = KeyRefused, f"the key is refused ({code}): check api_key"
    elif 300 <= code <= 399:
        kind, words = WrongTarget, f"the server redirects ({code}), which is not followed: check base_url and path"
    elif code == 404:
        kind, words = WrongTarget, "no such cluster or path (404): check base_url and path"
    elif code == 408 or 500 <= code <= 599:
        kind, words = Unavailable, f"the server has no answer now ({code})"
    return kind(name, words, sent_at=at)


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
    return date if 1970 <= date.year < 9999 else None  # the databases keep no other
