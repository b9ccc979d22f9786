"""What a text from people or Elevate may look like: a jid, a reference, a reason, a status, a JSON document.

Owns the list of invisible characters. The CHECKs of the database refuse the same ones (migration ``0001``). Pure.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from tracker.errors import InvalidField

LONGEST: Final = 255
"""Most characters of a text, by default."""

INVISIBLE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
"""C0, DEL and C1, which control terminals; characters without width or that change the direction of reading; and
surrogates, which Python makes of bytes that are not UTF-8."""


def check(field: str, value: object, longest: int = LONGEST) -> str:
    """Return *value* without white space around it.

    Raises:
        InvalidField: It is not text, is empty, is longer than *longest* characters, or has an invisible character.
    """
    if not isinstance(value, str):
        raise InvalidField(field, f"must be text, not {type(value).__name__}")
    text = value.strip()
    if not text:
        raise InvalidField(field, "is empty")
    if match := INVISIBLE.search(text):
        is_half = "\ud800" <= match[0] <= "\udfff"
        what = "a byte or half a character that is not UTF-8" if is_half else f"the invisible character {match[0]!r}"
        raise InvalidField(field, f"has {what} in it")
    if len(text) > longest:
        raise InvalidField(field, f"has {len(text)} characters; at most {longest} are allowed")
    return text


def check_no_address(field: str, value: object, longest: int = LONGEST) -> str:
    """Return *value* as `check` does, but refuse an ``@``: an address cannot be removed from the history."""
    if isinstance(value, str) and "@" in value:  # the message does not repeat it: it would stay in the log
        raise InvalidField(
            field,
            "has an @ in it: an address is personal data, and nobody can remove it from the history; name a ticket"
            " instead",
        )
    return check(field, value, longest)


def parse_json(text: str) -> Any:
    """Return what a JSON document says.

    Raises:
        ValueError: It is not JSON (``NaN`` is not), or an object has a key twice: readers would differ about what it
            says (RFC 8259, section 4).
        RecursionError: It is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_object, parse_constant=_constant)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise ValueError("it has a key twice")
    return document


def _constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
