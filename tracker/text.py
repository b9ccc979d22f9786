"""What a text from people or Elevate may look like: a jid, a reference, a reason, a status, a JSON document.

Owns the list of invisible characters. The CHECKs of the database refuse the same ones (migration ``0001``). Pure.

One rule for every text: blanks and invisible characters around it are a mistake and are removed. Inside a text an
invisible character is refused, and so is a blank inside a jid.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from tracker.errors import InvalidField

LONGEST: Final = 255
"""Most characters of a text, by default."""
LONGEST_REASON: Final = 1000
"""Most characters of a reason; ours: a sentence or two, not a file."""

_INVISIBLE: Final = (
    *((0x00, 0x1F), (0x7F, 0x9F), (0xAD, 0xAD), (0x61C, 0x61C), (0x180E, 0x180E), (0x200B, 0x200F)),
    *((0x2028, 0x202E), (0x2060, 0x206F), (0xFEFF, 0xFEFF), (0xFFF9, 0xFFFB)),
)
"""First and last code point of C0, DEL and C1, which control terminals, and of characters that have no width or change
the direction of reading."""
_BLANKS: Final = "".join(map(chr, (0x20, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000)))
_AROUND: Final = _BLANKS + "".join(chr(code) for first, last in _INVISIBLE for code in range(first, last + 1))

INVISIBLE: Final = re.compile(
    "[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in _INVISIBLE) + "\ud800-\udfff]"
)
"""Characters that no text may contain. Python turns bytes that are not UTF-8 into surrogates."""


def strip(value: str) -> str:
    """Return *value* without the blanks and invisible characters around it. A surrogate stays: it was a letter."""
    return value.strip(_AROUND)


def check(field: str, value: object, longest: int = LONGEST) -> str:
    """Return *value*, stripped.

    Raises:
        InvalidField: It is not text, is empty, is longer than *longest* characters, or has an invisible character.
    """
    if not isinstance(value, str):
        raise InvalidField(field, f"must be text, not {type(value).__name__}")
    text = strip(value)
    if not text:
        raise InvalidField(field, "is empty")
    if match := INVISIBLE.search(text):
        is_half = "\ud800" <= match[0] <= "\udfff"
        what = "a byte or half a character that is not UTF-8" if is_half else f"the invisible character {match[0]!r}"
        raise InvalidField(field, f"contains {what}")
    if len(text) > longest:
        raise InvalidField(field, f"has {len(text)} characters; at most {longest} are allowed")
    return text


def check_jid(value: object) -> str:
    """Return a jid as `check` does, but refuse a blank inside it: two jids in one cell, or half of another text."""
    jid = check("jid", value)
    if re.search(r"\s", jid):
        raise InvalidField("jid", "contains a blank: give one jid at a time")
    return jid


def check_no_address(field: str, value: object, longest: int = LONGEST) -> str:
    """Return *value* as `check` does, but refuse an ``@``: an address cannot be removed from the history."""
    if isinstance(value, str) and "@" in value:  # the message does not repeat it: it would stay in the log
        raise InvalidField(
            field,
            "contains an @: an address is personal data and can never be removed from the history; name a ticket"
            " instead",
        )
    return check(field, value, longest)


def check_reason(value: object) -> str:
    """Return an operator's reason as `check_no_address` does."""
    return check_no_address("reason", value, LONGEST_REASON)


def parse_json(text: str) -> Any:
    """Return the content of a JSON document.

    Raises:
        ValueError: It is not JSON (``NaN`` is not), or a key appears twice in an object: then programs read it
            differently (RFC 8259, section 4).
        RecursionError: It is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_object, parse_constant=_constant)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise ValueError("a key appears twice")
    return document


def _constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
