"""A verifier of a pack written from FORMAT.md alone, as a stranger would: ``python independent.py FOLDER [KEY_ID]``.

It shares no line with tracker, so a pack that passes both proves that the page is complete.
"""

from __future__ import annotations

import base64
import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

COLUMNS = {
    "transitions": "cluster,jid,id,job_id,seq,action,from_status,to_status,from_state,to_state,last_seen_at,"
    "observed_at,server_date,claimed_at,source_id,polls,actor,anomaly,reason,kind,reference,received_at,submitted_at,"
    "extended_on",
    "gaps": "id,cluster,began_at,ended_at,cause,detail,actor",
    "sources": "id,cluster,base_url,path,timezone,archive_days,lost_after_polls,lost_after_seconds,legal_timezone,"
    "version,recorded_at",
}
INTEGERS = {"id", "job_id", "seq", "source_id", "polls", "archive_days", "lost_after_polls", "lost_after_seconds"}
DAY = r"\d{4}-\d\d-\d\d"
INSTANT = DAY + r"T\d\d:\d\d:\d\d\.\d{6}Z"
NUMBER = r"(?:0|[1-9]\d*)"


def form(column: str) -> str:
    """Return the pattern of a field that is not NULL."""
    if column in INTEGERS:
        return f"-?{NUMBER}"
    if column.endswith("_at") or column == "server_date":
        return INSTANT
    return DAY if column == "extended_on" else r'"(?:[^"\x00-\x1f]|"")*"'


LINES = {
    table: re.compile(",".join(f"(?P<{name}>{form(name)})?" for name in header.split(",")), re.ASCII)
    for table, header in COLUMNS.items()
}
CHECKPOINT = re.compile(
    r"tracker checkpoint v2\norigin (?P<origin>[0-9a-f]{32})\n"
    rf"number (?P<number>[1-9]\d*)\nsealed_at (?P<sealed_at>{INSTANT})\n"
    + "".join(rf"ids {table} (?P<{table}>{NUMBER} {NUMBER})\n" for table in COLUMNS)
    + rf"rows (?P<rows>{NUMBER})\n(?:restored_after [0-9a-f]{{64}}\n)?"
    rf"(?P<base>base (?:ended_before {DAY} )?jobs {NUMBER} pack [0-9a-f]{{64}}\nfollows [0-9a-f]{{64}}\n)?"
    r"(?P<files>(?:sha256 [0-9a-f]{64}  \S+\n)*)"
    r"(?:key (?P<key>[0-9a-f]{32} \S+)\n(?:next_key (?P<next_key>[0-9a-f]{32} \S+)\n)?"
    r"signature (?P<signature>[A-Za-z0-9+/]{86}==)\n)?",
    re.ASCII,
)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"


def is_signed(key: str, signature: bytes, data: bytes) -> bool:
    """Return whether *key*, as a checkpoint names it, has its own id and signed *data*."""
    id_, text = key.split()
    try:
        der = base64.b64decode(text, validate=True)
        public = load_der_public_key(der)
        if not isinstance(public, Ed25519PublicKey) or hashlib.sha256(der).hexdigest()[:32] != id_:
            return False
        public.verify(signature, data)
    except (ValueError, InvalidSignature):
        return False
    return True


def problems(folder: Path, key_id: str | None = None) -> Iterator[str]:
    """Yield what is wrong with the pack in *folder*, whose last checkpoint should be signed by the key *key_id*."""
    listed = (folder / "SHA256SUMS").read_text() if (folder / "SHA256SUMS").is_file() else ""
    sums = {line[66:]: line[:64] for line in listed.splitlines()}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name in sorted(set(sums) ^ (there - {"SHA256SUMS", "SHA256SUMS.sig"})):
        yield f"{name}: {'missing' if name in sums else 'not in SHA256SUMS'}"
    yield from (f"{name}: not as in SHA256SUMS" for name in sorted(sums) if digest(folder / name) != sums[name])
    head, origin, sealed_at, expected = "", "", "", ""
    previous: list[tuple[str, str]] = []
    ids = dict.fromkeys(COLUMNS, 0)
    segments: set[str] = set()
    numbers = sorted(int(name[12:-4]) for name in there if re.fullmatch(r"checkpoints/\d{6,}\.txt", name))
    for number in range(numbers[0] if numbers else 1, numbers[-1] + 1 if numbers else 1):
        name = f"checkpoints/{number:06}.txt"
        text = (folder / name).read_text("utf-8", "replace") if name in there else ""
        found = CHECKPOINT.fullmatch(text)
        if found is None:
            yield f"{name}: missing, or not a checkpoint"
            return
        if int(found["number"]) != number or found["origin"] != (origin or found["origin"]):
            yield f"{name}: another number or origin"
        if (number == numbers[0]) != (number == 1 or bool(found["base"])):
            yield f"{name}: not where a pack begins, or where it does not"
        if found["sealed_at"] < sealed_at:
            yield f"{name}: sealed before the previous one"
        head = found["key"] or ""
        if expected not in ("", head):
            yield f"{name}: not the key that was to sign it"
        body = text[: text.index("signature ")].encode() if head else b""
        if head and not is_signed(head, base64.b64decode(found["signature"]), body):
            yield f"{name}: wrong signature"
        origin, sealed_at, expected = found["origin"], found["sealed_at"], found["next_key"] or head
        files = [(line[73:], line[7:71]) for line in found["files"].splitlines()]
        if files[: len(previous)] != previous:
            yield f"{name}: not the checkpoint after the previous one"
        names = [path for path, _ in files[len(previous) :]]
        previous = [(name, digest(folder / name))]
        rows, wanted = 0, []
        for table in COLUMNS:
            after, upto = map(int, found[table].split())
            if after != ids[table] or upto < after:
                yield f"{name}: ids {table} do not begin where the previous ones end"
            last, ids[table] = after, upto
            for part in range(1, sum(f"-{table}-" in path for path in names) + 1):
                wanted.append(f"segments/{number:06}-{table}-{part}.csv")
                count, last, wrong = read(folder / wanted[-1], table, last, upto)
                rows += count
                if wrong:
                    yield f"{wanted[-1]}: {wrong}"
        if names != wanted or rows != int(found["rows"]):
            yield f"{name}: {rows} rows, or other segments"
        yield from (f"{path}: not as sealed" for path, sha256 in files if digest(folder / path) != sha256)
        segments.update(names)
    for path in sorted(name for name in there if name.startswith("segments/") and name not in segments):
        yield f"{path}: in no checkpoint"
    signature = folder / "SHA256SUMS.sig"
    if head and not (signature.is_file() and is_signed(head, signature.read_bytes(), listed.encode())):
        yield "SHA256SUMS.sig: missing, or not the last checkpoint's key"
    if not origin or (key_id and key_id != head[:32]):
        yield "no checkpoint, or the last one is not signed with the key given"


def read(path: Path, table: str, last: int, upto: int) -> tuple[int, int, str]:
    """Return how many rows a segment has, its last id, and what is wrong with it."""
    lines = path.read_bytes().decode("utf-8", "replace").split("\n") if path.is_file() else []
    if lines[:1] != [COLUMNS[table]] or lines[-1] != "" or not 1 <= len(lines) - 2 <= 1000:
        return 0, last, "missing, or not 1 to 1,000 rows below the header"
    for line in lines[1:-1]:
        row = LINES[table].fullmatch(line)
        if row is None or not last < int(row["id"]) <= upto:
            return 0, last, f"not a row, or its id is out of order: {line[:80]}"
        last = int(row["id"])
    return len(lines) - 2, last, ""


if __name__ == "__main__":
    found = list(problems(Path(sys.argv[1]), *sys.argv[2:3]))
    print(*(f"NOT OK: {problem}" for problem in found), sep="\n")
    sys.exit(bool(found))
