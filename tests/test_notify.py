"""What systemd is sent, on a real datagram socket."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tracker.notify import Systemd, notify


@pytest.fixture(params=["file", "abstract"])
def receive(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], str]]:
    """Return a function that returns the next datagram, or "" if there is none for a moment."""
    name = str(tmp_path / "notify") if request.param == "file" else f"@tracker-test-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name.replace("@", "\0"))

        listening.settimeout(0.4)

        def receive() -> str:
            with suppress(TimeoutError):
                return listening.recv(1000).decode()
            return ""

        yield receive


def but_the_watchdog(receive: Callable[[], str]) -> str:
    """Return the next datagram that is another one."""
    return next(said for said in iter(receive, None) if said != "WATCHDOG=1")


def test_ready_reload_stop(receive: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """READY comes after a completed look, at the start and after a reload; the watchdog is fed; then comes STOPPING."""
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    ticked_at, stop = time.monotonic(), threading.Event()
    systemd = Systemd(lambda: time.monotonic() - ticked_at, stop)
    with systemd.running():
        assert receive() == ""
        ticked_at = time.monotonic()
        assert receive().splitlines()[::2] == ["READY=1", "WATCHDOG=1"]
        assert receive() == receive() == "WATCHDOG=1"
        systemd.reloading()
        reloading, at = but_the_watchdog(receive).splitlines()
        assert reloading == "RELOADING=1"
        assert int(at.removeprefix("MONOTONIC_USEC=")) == pytest.approx(time.monotonic() * 1e6, abs=5e6)
        ticked_at = time.monotonic()
        assert but_the_watchdog(receive).startswith("READY=1\n")
        stop.set()
        assert but_the_watchdog(receive) == "STOPPING=1"


def test_the_watchdog_starves(receive: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that completes no look feeds it no more, and says since when."""
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    age = 0.0
    with Systemd(lambda: age, threading.Event()).running():
        but_the_watchdog(receive)
        age = 75.0
        for _ in range(5):
            assert but_the_watchdog(receive) == "STATUS=No look at the clusters was completed for 75 s"
        assert receive() != "WATCHDOG=1"


@pytest.mark.parametrize("path", ["", "/nowhere/notify"])
def test_nothing_happens_without_a_socket(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without systemd there is no thread; a socket that is gone is no error."""
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    threads = threading.active_count()
    with Systemd(lambda: 0.0, threading.Event()).running():
        assert threading.active_count() == threads + bool(path)
        notify("READY=1")
