"""Every error that tracker raises on purpose.

Owns the tree; each class is one decision that a caller can make. The room where a library's error arises translates it
(requests in ``elevate``, SQLAlchemy in ``database``), so that no caller imports a library to handle it.

    TrackerError
    ├── BadConfiguration        stop: a person must repair the settings or the set-up
    │   ├── DatabaseMissing     make the database first
    │   ├── DatabaseUnusable    write nothing more, a daemon too
    │   │   ├── DatabaseMoved       the file is another one now
    │   │   ├── DatabaseDamaged     the file is damaged
    │   │   └── DatabaseRefused     a right is missing, or the schema is another one now
    │   ├── SchemaMismatch      upgrade the schema, or the program
    │   └── GuardsMissing       the history is not protected: refuse to run
    ├── DatabaseUnavailable     try again later
    ├── Refused                 what was asked for cannot be done: say why, change nothing
    │   ├── InvalidField        one declared value is wrong
    │   ├── Conflict            the job is registered already, with other facts
    │   ├── TryAgain            something changed meanwhile: the same command may succeed
    │   └── BadCheckpoint       a text is not a checkpoint of ours, or is damaged
    └── AskError                one request to Elevate brought no answer
        ├── Unavailable         refused, DNS, timeout, 408, 5xx: back off
        ├── WrongTarget         404, a redirect, TLS not verified: pause the cluster, the address is wrong
        ├── KeyRefused          401, 403: pause the cluster and call a person
        ├── RateLimited         429, 503 with Retry-After: pause the cluster as long as asked
        ├── ReceiverAhead       409 to a checkpoint: the receiver has others, so an older copy was restored
        └── BadAnswer           400, a body that is no answer, another job's jid: count a failure
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import ClassVar


class TrackerError(Exception):
    """The base of all errors of ours; ``str()`` of it is one clear message without secrets."""

    exit_code: ClassVar[int] = 1
    """What a command exits with when this error ends it (sysexits.h for 69 and 78)."""


class BadConfiguration(TrackerError):
    """A setting or the set-up is wrong; the message says where, and what to do."""

    exit_code = 78


class DatabaseMissing(BadConfiguration):
    """There is no database at the URL, and only ``tracker db upgrade`` and ``tracker demo`` make one."""


class DatabaseUnusable(BadConfiguration):
    """The database cannot be used until a person repairs it: a daemon stops, too, and writes nothing more."""


class DatabaseMoved(DatabaseUnusable):
    """The SQLite file was moved, replaced or deleted while it was open."""


class DatabaseDamaged(DatabaseUnusable):
    """The file is not a SQLite database, or is damaged."""


class DatabaseRefused(DatabaseUnusable):
    """PostgreSQL refuses a statement: the role lacks a right, or a table is missing or has other columns."""


class SchemaMismatch(BadConfiguration):
    """The schema is not the one of this version."""


class GuardsMissing(BadConfiguration):
    """A guard or a view is missing or altered, so the history is not protected."""


class DatabaseUnavailable(TrackerError):
    """The database did not answer, or is locked or full; nothing was written."""

    exit_code = 69


class Refused(TrackerError):
    """What was asked for cannot be done; nothing was changed."""


class InvalidField(Refused):
    """One declared value is wrong.

    Attributes:
        field: The column's name.
        problem: What is wrong with it, and what would be right.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class Conflict(Refused):
    """The job is registered already, with other facts.

    Attributes:
        differences: For each differing column, (registered, given), as text.
    """

    def __init__(self, cluster: str, jid: str, differences: dict[str, tuple[str, str]]) -> None:
        facts = "; ".join(f"{name} is {there[:60]}, not {given[:60]}" for name, (there, given) in differences.items())
        super().__init__(f"job {jid} of cluster {cluster} is already registered with other facts: {facts}")
        self.differences = differences


class TryAgain(Refused):
    """Something changed while the command ran; the command changed nothing."""

    exit_code = 75


class BadCheckpoint(Refused):
    """A text is not a checkpoint, or is damaged; the message names its line."""


class AskError(TrackerError):
    """One request to Elevate brought no answer. An error is not a status.

    Attributes:
        code: A short fixed word such as ``http_503`` or ``timeout``; never a body, a header or a URL.
        sent_at: When the request was sent (aware UTC): a gap begins there.
    """

    exit_code = 69

    def __init__(self, code: str, message: str, *, sent_at: datetime) -> None:
        super().__init__(message)
        self.code = code
        self.sent_at = sent_at


class Unavailable(AskError):
    """Refused, DNS, timeout, 408 or 5xx: Elevate or the network is down."""


class WrongTarget(AskError):
    """404, a redirect, or TLS that cannot be verified: the address does not lead to this cluster."""


class KeyRefused(AskError):
    """401 or 403: the key is not accepted; a person has to act."""


class RateLimited(AskError):
    """429, or 503 with Retry-After.

    Attributes:
        retry_after: The wait that the server asked for, if it has a form that RFC 9110 (10.2.3) defines.
    """

    def __init__(self, code: str, message: str, *, sent_at: datetime, retry_after: timedelta | None) -> None:
        super().__init__(code, message, sent_at=sent_at)
        self.retry_after = retry_after


class ReceiverAhead(AskError):
    """409: the receiver has other checkpoints. *newest*: the SHA-256 of its newest; empty if it did not say."""

    def __init__(self, newest: str, *, sent_at: datetime) -> None:
        super().__init__("http_409", "the receiver has other checkpoints (409)", sent_at=sent_at)
        self.newest = newest


class BadAnswer(AskError):
    """400, or a body that is not an answer about this job."""


def name_of(error: Exception) -> str:
    """Return the class of *error* as logs and metrics name it, such as ``key_refused``."""
    return re.sub(r"\B(?=[A-Z])", "_", type(error).__name__).lower()
