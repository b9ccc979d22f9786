"""The faults: each with what it does, and what must come of it."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.conftest import run_sql
from tests.faults import hurry
from tests.faults.cell import BOTH, JIDS, Cell, Cron, Fault, lasting, nothing
from tests.faults.databases import Postgres, Sqlite, addresses
from tests.hostile import Wire, http
from tests.processes import Process

# What a server does in place of an answer. Each body that looks like an answer says `done`: nobody may believe it.

KEY_REFUSED, RATE_LIMITED = (("key_refused",), ("key_refused", 1)), (("rate_limited",), ("rate_limited", 0))
UNREACHABLE, BAD_ANSWER = (("unreachable",), ("unreachable", 1)), (("bad_answer",), ("bad_answer", 1))
AWAY = (("not_running",), ("database", 69))
"""The causes of gaps, and what `tracker status` says meanwhile."""


def done(wire: Wire, jid: str = "") -> bytes:
    return json.dumps({"jid": jid or wire.jid, "status": "done"}).encode()


def code(words: str, *headers: str) -> Callable[[Wire], object]:
    return lambda wire: wire.reply(done(wire), words, *headers)


def raw(make: Callable[[Wire], bytes], then: Callable[[Wire], object] = Wire.close) -> Callable[[Wire], object]:
    """Send what *make* returns, then end the connection."""

    def play(wire: Wire) -> None:
        wire.send(make(wire))
        then(wire)

    return play


def body(text: str) -> Callable[[Wire], object]:
    return lambda wire: wire.reply(text.replace("JID", wire.jid))


HTTP: dict[str, tuple[Callable[[Wire], object], Any]] = {
    "401": (code("401 Unauthorized"), KEY_REFUSED),
    "403": (code("403 Forbidden"), KEY_REFUSED),
    "404": (code("404 Not Found"), UNREACHABLE),
    "redirect": (code("302 Found", "Location: https://localhost/login"), UNREACHABLE),
    "429": (code("429 Too Many Requests"), RATE_LIMITED),
    "429, Retry-After": (code("429 Too Many Requests", "Retry-After: 2"), RATE_LIMITED),
    "429, rubbish in Retry-After": (code("429 Too Many Requests", "Retry-After: soon"), RATE_LIMITED),
    "503, Retry-After": (code("503 Service Unavailable", "Retry-After: 2"), RATE_LIMITED),
    "503": (code("503 Service Unavailable"), UNREACHABLE),
    "500": (code("500 Internal Server Error"), UNREACHABLE),
    "408": (code("408 Request Timeout"), UNREACHABLE),
    "400": (code("400 Bad Request"), BAD_ANSWER),
    "204, nothing": (lambda wire: wire.reply(b"", "204 No Content"), BAD_ANSWER),
    "empty": (body(""), BAD_ANSWER),
    "a page, not JSON": (body("<html>done</html>"), BAD_ANSWER),
    "a list": (body('[{"jid": "JID", "status": "done"}]'), BAD_ANSWER),
    "no status": (body('{"jid": "JID"}'), BAD_ANSWER),
    "two statuses": (body('{"jid": "JID", "status": "done", "status": "waiting"}'), BAD_ANSWER),
    "another job's jid": (lambda wire: wire.reply(done(wire, JIDS[JIDS.index(wire.jid) - 1])), BAD_ANSWER),
    "cut-off body": (raw(lambda wire: http(done(wire)[:-4], "200 OK", "Content-Length: 90")), BAD_ANSWER),
    "cut-off head": (raw(lambda wire: b"HTTP/1.1 200 OK\r\nContent-"), BAD_ANSWER),
    "not HTTP": (raw(lambda wire: b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), BAD_ANSWER),
    "huge body": (raw(lambda wire: http(b" " * 2_000_000 + done(wire), "200 OK", "Content-Length: 2000070")), BAD_ANSWER),
    "dripped body": (lambda wire: wire.drip(http(done(wire), "200 OK", "Content-Length: 67")), UNREACHABLE),
    "dripped head": (lambda wire: wire.drip(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20), UNREACHABLE),
    "no answer": (Wire.stall, UNREACHABLE),
    "reset": (Wire.reset, UNREACHABLE),
    "reset in mid-answer": (raw(lambda wire: http(done(wire)[:-4], "200 OK", "Content-Length: 90"), Wire.reset), UNREACHABLE),
    "closed": (Wire.close, UNREACHABLE),
}


@contextmanager
def answering(fault: Callable[[Wire], object], share: float, cell: Cell) -> Iterator[None]:
    """Let the server do *fault* to a *share* of the requests."""
    cell.elevate.share, cell.elevate.fault = share, fault
    try:
        yield
    finally:
        cell.elevate.fault = None


def of_http() -> Iterator[Fault]:
    for name, (fault, (gap, shows)) in HTTP.items():
        for share in (1.0, 0.1):
            inject = partial(answering, fault, share)
            yield Fault(f"HTTP {name}, {share:.0%}", inject, gap, shows, share=share, within=10 if share == 1 else 60)
        exits = (78,) if shows[0] == "key_refused" else (69,)
        once = Fault(f"HTTP {name}, cron", partial(answering, fault, 1.0), gap, shows, start=Cron, on=BOTH[:1], exits=exits)
        yield replace(once, seconds=2)


class Skipped(Exception):
    """A fault cannot be made on this machine."""


FAULTS = [*of_http()]
