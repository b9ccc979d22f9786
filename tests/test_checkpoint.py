"""The checkpoint's text and its signature."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import given, settings
from hypothesis import strategies as st

from tracker.audit.checkpoint import Base, Checkpoint, SealedSegment, Signed, parse, path, sign, split
from tracker.audit.keys import SigningKey
from tracker.audit.lines import TABLES
from tracker.errors import BadCheckpoint

KEY = SigningKey(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
OTHER = SigningKey(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33))))
DER = "MCowBQYDK2VwAyEAA6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg="  # KEY's public half
H = "0123456789abcdef" * 4
SEGMENTS = (
    SealedSegment("transitions", 1, H),
    SealedSegment("transitions", 2, "f" * 64),
    SealedSegment("sources", 1, H),
)
FIRST = Checkpoint(
    origin="7f3a" * 8,
    number=1,
    previous_sha256=None,
    sealed_at=datetime(2026, 1, 29, 12, 0, 0, 1, tzinfo=UTC),
    ids={"transitions": (0, 1200), "gaps": (0, 0), "sources": (0, 1)},
    rows=1201,
    segments=SEGMENTS,
)
EMPTY_IDS = {"transitions": (1200, 1200), "gaps": (0, 0), "sources": (1, 1)}
SECOND = replace(FIRST, number=2, previous_sha256=H, ids=EMPTY_IDS, rows=0, segments=(), next_key=OTHER.public)
BASE = replace(FIRST, number=3, previous_sha256=H, base=Base(date(2025, 11, 1), 120, "e" * 64), restored_after="d" * 64)


def test_the_text_is_as_specified() -> None:
    """The format that FORMAT.md gives, to the byte."""
    assert sign(FIRST, KEY).text.splitlines()[:-1] == [
        "tracker checkpoint v2",
        "origin 7f3a7f3a7f3a7f3a7f3a7f3a7f3a7f3a",
        "number 1",
        "sealed_at 2026-01-29T12:00:00.000001Z",
        "ids transitions 0 1200",
        "ids gaps 0 0",
        "ids sources 0 1",
        "rows 1201",
        f"sha256 {H}  segments/000001-transitions-1.csv",
        f"sha256 {'f' * 64}  segments/000001-transitions-2.csv",
        f"sha256 {H}  segments/000001-sources-1.csv",
        f"key {KEY.public.id} {DER}",
    ]
    assert sign(FIRST, None).text == FIRST.body()
    lines = sign(SECOND, KEY).text.splitlines()
    assert lines[8] == f"sha256 {H}  checkpoints/000001.txt"
    assert lines[10].split()[:2] == ["next_key", OTHER.public.id]
    assert BASE.body().splitlines()[8:11] == [
        f"restored_after {'d' * 64}",
        f"base ended_before 2025-11-01 jobs 120 pack {'e' * 64}",
        f"follows {H}",
    ]
    assert (path(1_234_567), SEGMENTS[2].path(1_234_567)) == (
        "checkpoints/1234567.txt",
        "segments/1234567-sources-1.csv",
    )


@st.composite
def checkpoints(draw: st.DrawFn) -> Checkpoint:
    ids, segments = {}, []
    number = draw(st.integers(1, 10**12))
    base = draw(st.sampled_from([None, BASE.base, Base(None, 1, H)])) if number > 1 else None
    for table in TABLES:
        after = 0 if base else draw(st.integers(0, 10**17))
        parts = draw(st.integers(0, 3))
        ids[table] = (after, after + draw(st.integers(parts, 10**17)))
        segments += [SealedSegment(table, part, draw(st.sampled_from([H, "f" * 64]))) for part in range(1, parts + 1)]
    return Checkpoint(
        origin=draw(st.binary(min_size=16, max_size=16)).hex(),
        number=number,
        previous_sha256=None if number == 1 else H,
        sealed_at=draw(st.datetimes(datetime(1970, 1, 1), timezones=st.just(UTC))),  # noqa: DTZ001
        ids=ids,
        rows=draw(st.integers(len(segments), 1000 * len(segments))),
        segments=tuple(segments),
        next_key=draw(st.sampled_from([None, OTHER.public])),
        base=base,
        restored_after=draw(st.sampled_from([None, H])),
    )


@given(checkpoints(), st.data())
@settings(deadline=None, max_examples=60)
def test_any_checkpoint_is_read_back_and_no_change_passes(checkpoint: Checkpoint, data: st.DataObject) -> None:
    """One character changed, dropped or put in: it is not a checkpoint, or its signature is false."""
    unsigned = sign(replace(checkpoint, next_key=None), None)
    assert (parse(unsigned.text), unsigned.is_genuine()) == (unsigned, None)
    signed = sign(checkpoint, KEY)
    assert (parse(signed.text), signed.is_genuine()) == (signed, True)
    at = data.draw(st.integers(0, len(signed.text) - 1))
    way = data.draw(st.sampled_from(["drop", "put", "change"]))
    character = data.draw(st.sampled_from(list("0123456789abcdefA -/+=\n\r\t|")) | st.characters())
    rest = signed.text[at + 1 :] if way != "put" else signed.text[at:]
    changed = signed.text[:at] + ("" if way == "drop" else character) + rest
    if changed == signed.text:
        return
    try:
        back = parse(changed)
    except BadCheckpoint:
        return
    assert back.text == changed
    assert back.is_genuine() is not True


def lines_of(text: str) -> list[str]:
    return text.splitlines(keepends=True)


SIGNED = sign(FIRST, KEY).text
GARBAGE = {
    "nothing": "",
    "another version": SIGNED.replace("v2", "v1", 1),
    "CR LF": SIGNED.replace("\n", "\r\n"),
    "no LF at its end": SIGNED[:-1],
    "a blank more": SIGNED.replace("number 1", "number  1"),
    "a leading zero": SIGNED.replace("number 1", "number 01"),
    "a huge number": SIGNED.replace("number 1", "number " + "9" * 5000),
    "number 0": SIGNED.replace("number 1", "number 0"),
    "a second without": SIGNED.replace("number 1", "number 2").replace("000001-", "000002-"),
    "not a time": SIGNED.replace("2026-01-29T12", "2026-02-30T12"),
    "too few rows": SIGNED.replace("rows 1201", "rows 2"),
    "a first part missing": "".join(lines_of(SIGNED)[:8] + lines_of(SIGNED)[9:]),
    "a segment of another table": SIGNED.replace("sources-1", "jobs-1"),
    "ids backwards": SIGNED.replace("gaps 0 0", "gaps 4 3"),
    "a table missing": SIGNED.replace("ids gaps 0 0\n", ""),
    "another key's id": SIGNED.replace(KEY.public.id, OTHER.public.id),
    "a key of another kind": SIGNED.replace("MCowBQYDK2Vw", "MCowBQYDK2Vv"),
    "a next key and no key": FIRST.body() + f"next_key {KEY.public.id} {DER}\n",
    "a key and no signature": "".join(lines_of(SIGNED)[:-1]),
    "a base that follows nothing": sign(BASE, KEY).text.replace(f"follows {H}\n", ""),
    "a first base": sign(BASE, KEY).text.replace("number 3", "number 1").replace("000003-", "000001-"),
    "a base with ids left out": sign(BASE, KEY).text.replace("gaps 0 0", "gaps 4 4"),
    "a base of a day that is not": sign(BASE, KEY).text.replace("2025-11-01", "2025-11-31"),
    "a line in between": SIGNED.replace("rows 1201\n", "rows 1201\ncomment x\n"),
}  # fmt: skip


def test_garbage_is_refused_in_a_short_line() -> None:
    """What is not a checkpoint, or contradicts itself, is refused, and the message says where."""
    for name, text in GARBAGE.items():
        assert text != SIGNED, name
        with pytest.raises(BadCheckpoint, match="not a checkpoint: ") as caught:
            parse(text)
        assert len(str(caught.value)) < 400, name
        assert "\n" not in str(caught.value), name


def test_base64_has_one_form() -> None:
    """Bits that base64 ignores must not make two texts of one signature."""
    at = SIGNED.rindex("==")
    character = SIGNED[at - 1]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    twin = alphabet[alphabet.index(character) ^ 1]
    with pytest.raises(BadCheckpoint, match="line 13"):
        parse(SIGNED[: at - 1] + twin + SIGNED[at:])


def test_a_forged_body_is_not_genuine() -> None:
    """A checkpoint that reads well but was changed is not genuine; nor is one that another key signed in its name."""
    assert parse(SIGNED.replace("7f3a" * 8, "7f3b" * 8)).is_genuine() is False
    named = replace(FIRST, key=KEY.public)
    forged = Signed(named, OTHER.sign(named.body().encode()))
    assert forged.is_genuine() is False
    with pytest.raises(ValueError, match="announce"):
        sign(SECOND, None)


def test_a_file_of_many_is_split() -> None:
    """One checkpoint, or many with an empty line after each, come apart as they were."""
    one, two = SIGNED, sign(SECOND, KEY).text
    assert split(one) == [one]
    assert split(f"{one}\n{two}\n") == [one, two]
    assert split(f"\n\n{one}\n\n\n{two}") == [one, two]
    assert split("") == split("\n\n") == []
