"""Sealing beside the polling: when a daemon seals and delivers.

``seal`` owns what a seal is, ``deliver`` how checkpoints leave the database.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from time import monotonic
from typing import Final

import sqlalchemy as sa

from tracker.audit.deliver import Courier
from tracker.audit.keys import SigningKey
from tracker.audit.seal import after_loss, seal
from tracker.errors import DatabaseUnavailable
from tracker.logs import DATABASE, event
from tracker.settings import Settings

LOOK_SECONDS: Final = 10.0  # how often to look for rows that have waited long enough
AWAY_SECONDS: Final = 30.0  # between tries while the database is away
FAILED_SECONDS: Final = 300.0  # after a failure that a person must repair
CLOSING_SECONDS: Final = 20.0  # for the end: the work under way, the last seal and its delivery
LAST_DELIVERY_SECONDS: Final = 10.0  # of these; the next start delivers the rest


class Sealing:
    """Seals and delivers in a thread while ``with sealing(engine):`` runs; if it fails, polling goes on.

    Before it seals, it compares the destinations with the database. *restored_after*: see `seal`; for the first seal.
    At the end it seals everything new. For ``run --once``, which has only an end, `Settings.seal_after` decides.

    Attributes:
        failure: Why the last attempt to seal failed, if it did.

    Raises:
        BadConfiguration: The signing key cannot be used.
    """

    def __init__(self, settings: Settings, *, once: bool = False, restored_after: str | None = None) -> None:
        self._settings = settings
        self._once = once
        self._restored_after = restored_after
        self._key = SigningKey.load(settings.signing_key_file) if settings.signing_key_file else None
        self.failure: Exception | None = None

    @contextmanager
    def __call__(self, engine: sa.Engine) -> Iterator[None]:
        """Run in a thread during the block."""
        over = threading.Event()
        thread = threading.Thread(target=self._run, args=(engine, over), name="tracker-sealing", daemon=True)
        if not self._once:
            thread.start()
        try:
            yield
        finally:
            over.set()
            if self._once:
                thread.start()
            thread.join(CLOSING_SECONDS)
            if thread.is_alive():  # a seal is written in one transaction, so it is safe to stop in the middle
                event("sealing_unfinished", logging.WARNING)

    def _run(self, engine: sa.Engine, over: threading.Event) -> None:
        courier = Courier.of(engine, self._settings)
        seal_at = monotonic()
        while not over.is_set():
            if monotonic() >= seal_at:
                seal_at = monotonic() + self._tried(lambda: self._seal(engine, courier, self._settings.seal_after))
            again = self._tried(lambda: courier.deliver(over))
            over.wait(max(0.0, min(seal_at - monotonic(), again)))
        self._tried(lambda: self._seal(engine, courier, self._settings.seal_after if self._once else timedelta()))
        self._tried(lambda: courier.deliver(seconds=LAST_DELIVERY_SECONDS))

    def _seal(self, engine: sa.Engine, courier: Courier, seal_after: timedelta) -> None:
        self.failure = None
        try:
            lost = self._restored_after
            if lost is not None and after_loss(engine, lost) is not None:
                event("restored_after_known", sha256=lost, note="a checkpoint names it already: nothing to do")
                lost = None
            courier.refuse_older_copy(lost, self._key.public if self._key else None)
            seal(engine, self._key, seal_after=seal_after, restored_after=lost)
            self._restored_after = None
        except Exception as error:
            self.failure = error
            raise

    @staticmethod
    def _tried(work: Callable[[], float | None]) -> float:
        """Do *work*, log a failure, and return in how many seconds to do it again."""
        try:
            again = work()
            return LOOK_SECONDS if again is None else again
        except DatabaseUnavailable as error:
            DATABASE.went_away(error, work="sealing")
            return AWAY_SECONDS
        except Exception as error:
            event("sealing_failed", logging.ERROR, error=f"{type(error).__name__}: {error}")
            logging.getLogger("tracker").debug("sealing_failed", exc_info=error)
            return FAILED_SECONDS
