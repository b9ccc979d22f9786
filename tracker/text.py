"""What a text may look like that people or Elevate give: a jid, a reference, a reason, a status.

Owns the one list of characters that nobody sees. The CHECKs of the database refuse the same ones (migration ``0001``).
Pure.
"""

from __future__ import annotations

import re
from typing import Final

from tracker.errors import InvalidField

LONGEST: Final = 255
"""Characters, where nothing else is said."""

INVISIBLE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
"""C0, DEL and C1, which drive terminals; what has no width or turns the direction of reading; and surrogates, which are
what Python makes of bytes that are not UTF-8."""


def check(field: str, value: object, longest: int = LONGEST) -> str:
    """Return *value* without white space around it.

    Raises:
        InvalidField: It is not text, empty, longer than *longest* characters, or has an invisible character in it.
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
        raise InvalidField(field, f"has {len(text)} characters; at most {longest} are kept")
    return text


def check_no_address(field: str, value: object, longest: int = LONGEST) -> str:
    """Return *value* as `check` does; refuse an ``@`` in it, too, since the history cannot forget an address."""
    if isinstance(value, str) and "@" in value:  # not repeated: it would stay in the log
        raise InvalidField(
            field,
            "has an @ in it: an address is personal data, and what is in the history cannot be taken out of it again; "
            "name a ticket instead",
        )
    return check(field, value, longest)
