"""systemd's notifications (``sd_notify``): whether the daemon is ready, reloads or stops, and its watchdog.

Owns the datagrams to ``$NOTIFY_SOCKET``; without that variable nothing happens. What is said rests on completed looks
at the clusters, seen from a thread beside them: a daemon that hangs is not ready, and systemd restarts it.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic, monotonic_ns
from typing import Final

STALE_SECONDS: Final = 60.0  # older than this, the last look says that polling stopped: a look may wait 30 s for a lock


class Systemd:
    """Says to systemd how the daemon is, while `running`.

    Args:
        age: Returns the seconds since the daemon completed a look at its clusters.
        stop: Set when it begins to stop.
    """

    def __init__(self, age: Callable[[], float], stop: threading.Event) -> None:
        self._age = age
        self._stop = stop
        self._ready_after: float | None = monotonic()  # the first look completed later is reported as READY

    @contextmanager
    def running(self) -> Iterator[None]:
        """Report READY after the first look, STOPPING at the end; feed the watchdog while looks are completed."""
        over = threading.Event()
        thread = threading.Thread(target=self._watch, args=(over,), name="systemd", daemon=True)
        if os.environ.get("NOTIFY_SOCKET"):
            thread.start()
        try:
            yield
        finally:
            over.set()
            if thread.is_alive():
                thread.join()

    def reloading(self) -> None:
        """Report that the settings are read again; READY follows after the next look, with the new ones or the old."""
        notify("RELOADING=1", f"MONOTONIC_USEC={monotonic_ns() // 1000}")
        self._ready_after = monotonic()

    def _watch(self, over: threading.Event) -> None:
        period = min(1.0, float(os.environ.get("WATCHDOG_USEC", "inf")) / 4e6)
        while not over.wait(period) and not self._stop.is_set():
            age = self._age()
            if age >= STALE_SECONDS:
                notify(f"STATUS=No look at the clusters was completed for {age:.0f} s")
            elif self._ready_after is None:
                notify("WATCHDOG=1")
            elif monotonic() - age > self._ready_after:
                self._ready_after = None
                notify("READY=1", "STATUS=Looks at its clusters every second", "WATCHDOG=1")
        notify("STOPPING=1")


def notify(*states: str) -> None:
    """Send *states*, such as ``READY=1``. systemd's time-outs notice what could not be sent."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    address = f"\0{path[1:]}" if path.startswith("@") else path  # an abstract socket of Linux is no file
    if address:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto("\n".join(states).encode(), address)
