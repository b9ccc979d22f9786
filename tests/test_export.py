"""The evidence pack and verify.sh: whole or not there, the same from both databases, and every falsification found."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests import checks_sql, lives
from tests.history import ZONE, register, source
from tests.independent import problems
from tests.test_checks import unguarded
from tracker import database, guards
from tracker.audit import pack
from tracker.audit.checkpoint import parse, sign
from tracker.audit.keys import SigningKey
from tracker.audit.seal import seal
from tracker.cli.audit import export as export_command
from tracker.errors import Refused
from tracker.models import GAPS, SEALS, SEGMENTS
from tracker.reports import as_of
from tracker.reports.views import VIEWS

KEY, OTHER = (SigningKey(Ed25519PrivateKey.from_private_bytes(bytes([n] * 32))) for n in (1, 2))
SCRIPT = Path(str(files("tracker.audit").joinpath("verify.sh")))
NOTE = 'says ""no""; =1+1, é 😀'


def history(engine: sa.Engine, at: datetime) -> None:
    """Write whole lives of jobs, and later, *at*, one more job and a gap with awkward text."""
    lives.write(engine, 3, [*lives.on_boundaries(), *lives.drawn(3, 20)])
    with unguarded(engine) as connection:
        connection.execute(sa.delete(SEALS))  # they hold no real checkpoints
        guards.create(connection)
    register(engine, 'late-"job",1', at=at, reference=NOTE)
    with database.writing(engine) as connection:
        connection.execute(sa.insert(GAPS).values(cluster="w1", began_at=at, ended_at=at, cause="paused", detail=NOTE))


@dataclass
class Packs:
    """A signed pack of three checkpoints, and one that is neither signed nor of a server elsewhere."""

    signed: Path
    unsigned: Path
    at: datetime
    seals: list[dict[str, Any]]
    segments: list[dict[str, Any]]


@pytest.fixture(scope="module")
def packs(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Packs:
    folder = tmp_path_factory.mktemp("packs")
    files = [shutil.copy(sqlite_template, folder / name) for name in ("1", "2")]
    engine, other = (database.open_database(f"sqlite:///{file}") for file in files)
    at = datetime.now(UTC)
    history(engine, at)
    seal(engine, KEY)
    for name in ("b", "c"):
        register(engine, name, at=at)
        seal(engine, KEY)
    pack.export(engine, folder / "signed", zone=ZONE, key=KEY)
    with database.reading(engine) as connection:
        rows = [[dict(row._mapping) for row in connection.execute(sa.select(t))] for t in (SEALS, SEGMENTS)]
    with database.writing(other) as connection:
        source(connection, "w1", at, base_url="http://127.0.0.1:8080")
    register(other, "a")
    seal(other, None)
    pack.export(other, folder / "unsigned", zone=ZONE, key=KEY)
    return Packs(folder / "signed", folder / "unsigned", at, *rows)


@pytest.fixture
def copy(packs: Packs, tmp_path: Path) -> Path:
    """A copy of the signed pack, to be falsified."""
    return Path(shutil.copytree(packs.signed, tmp_path / "pack"))


def verify(folder: Path, *options: str | Path, shell: str = "sh", tools: Path | None = None) -> tuple[int, str]:
    """Return the exit status of verify.sh in *folder* and what it printed, run by *shell* with *tools* as only PATH."""
    environment = os.environ | ({"PATH": str(tools)} if tools else {})
    name, *rest = shell.split()
    if shutil.which(name) is None:
        pytest.skip(f"this machine has no {name}")
    words = [str(shutil.which(name)), *rest, str(SCRIPT), *map(str, options)]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True)
    return done.returncode, (done.stdout + done.stderr).decode()


def without(tools: Path, *missing: str, sqlite: str | None = None) -> Path:
    """Make *tools* with what verify.sh needs, but for *missing*, and a sqlite3 that says its version is *sqlite*."""
    found = re.search(r"for tool in (.*) \$\{", SCRIPT.read_text())
    assert found
    tools.mkdir()
    if sqlite:
        with (tools / "sqlite3").open("x") as file:  # "x": never through a link to the machine's own
            file.write(f"#!/bin/sh\necho {sqlite}\n")
        (tools / "sqlite3").chmod(0o755)
    for name in {"sh", *found[1].split(), *([] if sqlite else ["sqlite3"])} - {*missing}:
        (tools / name).symlink_to(str(shutil.which(name)))
    return tools


def resum(folder: Path, key: SigningKey = KEY) -> None:
    """Make SHA256SUMS again, as somebody does who has *key*."""
    for name in ("SHA256SUMS", "SHA256SUMS.sig"):
        (folder / name).unlink(missing_ok=True)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    sums = "".join(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    (folder / "SHA256SUMS").write_text(sums)
    (folder / "SHA256SUMS.sig").write_bytes(key.sign(sums.encode()))


def rechain(folder: Path, key: SigningKey) -> None:
    """Make the chain again over the segments that are there, and SHA256SUMS, as somebody does who has *key*."""
    previous = None
    for path in sorted((folder / "checkpoints").iterdir()):
        one = parse(path.read_text()).checkpoint
        sums = [hashlib.sha256((folder / part.path(one.number)).read_bytes()).hexdigest() for part in one.segments]
        segments = tuple(replace(part, sha256=sha256) for part, sha256 in zip(one.segments, sums, strict=True))
        new = sign(replace(one, previous_sha256=previous, segments=segments, next_key=None), key)
        path.write_text(new.text)
        previous = new.sha256
    (folder / "public_key.pem").write_text(key.public.pem())
    resum(folder, key)


# -- the export ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["postgresql"])
def test_both_databases_give_the_same_bytes(
    engine: sa.Engine, packs: Packs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same history has the same pack, whether SQLite or PostgreSQL holds it, and however much is done at once."""
    monkeypatch.setattr(as_of, "_KEPT_AT_ONCE", 7)
    history(engine, packs.at)
    for name in ("b", "c"):
        register(engine, name, at=packs.at)
    with database.writing(engine) as connection:
        for row in packs.seals:
            connection.execute(sa.insert(SEALS).values({column: row[column] for column in row if column != "id"}))
        connection.execute(sa.insert(SEGMENTS), packs.segments)
    pack.export(engine, tmp_path / "pack", zone=ZONE, key=KEY)
    for path in sorted(path for path in packs.signed.rglob("*") if path.is_file()):
        assert (tmp_path / "pack" / path.relative_to(packs.signed)).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_pack_is_everything_up_to_the_last_checkpoint(engine: sa.Engine, url: str, tmp_path: Path) -> None:
    """The command says what is not in it: rows that are not sealed yet, and a signature."""
    register(engine, "a")
    seal(engine, KEY)
    register(engine, "b")
    run = CliRunner().invoke(export_command, [str(tmp_path / "pack")], env={"TRACKER_DATABASE_URL": url})
    assert run.exit_code == 0, run.output
    assert "up to checkpoint 1, 1 row," in run.output
    assert "Not in the pack: 1 newer row not sealed yet" in run.output
    assert "The pack is NOT SIGNED: TRACKER_SIGNING_KEY_FILE is not set" in run.output
    names = {path.name for path in (tmp_path / "pack").rglob("*") if path.is_file()}
    assert names == {"000001.txt", "000001-transitions-1.csv", "report.html", "zone.csv", "public_key.pem"} | {
        *("README.txt", "verify.sh", "checks.sql", "SHA256SUMS"),
        *(f"{view}.csv" for view in VIEWS),
    }
    jobs = (tmp_path / "pack/reports/report_jobs.csv").read_text().splitlines()
    assert (len(jobs), jobs[0].split(",")[:2]) == (2, ["cluster", "jid"])  # the header, and the job that is sealed


def test_what_cannot_be_exported_is_refused_and_nothing_is_left(engine: sa.Engine, tmp_path: Path) -> None:
    """Nothing sealed, a folder that exists, no folder above, a changed row, nonsense, Ctrl-C: no files are left."""
    place = tmp_path / "place"
    place.mkdir()
    (place / "file").touch()

    def refused(folder: Path, why: str) -> None:
        with pytest.raises(Refused, match=why):
            pack.export(engine, folder, zone=ZONE)
        assert [path.name for path in place.iterdir()] == ["file"]

    def stop(done: float, total: float | None, what: str) -> None:
        raise KeyboardInterrupt

    refused(place / "pack", "nothing is sealed yet")
    for name in ("a", "b"):
        register(engine, name)
    seal(engine, KEY)
    with pytest.raises(KeyboardInterrupt):
        pack.export(engine, place / "pack", zone=ZONE, progress=stop)
    refused(place, "exists: name a new folder")
    refused(place / "missing" / "pack", "No such file or directory; nothing is left")
    refused(place / "file" / "pack", "Not a directory; nothing is left")
    with unguarded(engine) as connection:
        connection.exec_driver_sql("UPDATE transitions SET observed_at = '9999-12-31 23:59:59.999999' WHERE id = 1")
    refused(place / "pack", "rows of segments/000001-transitions-1.csv are not those that were sealed: run `tracker")
    with database.writing(engine) as connection:
        connection.execute(sa.delete(SEGMENTS))
        connection.execute(sa.delete(SEALS))
    seal(engine, KEY)
    refused(place / "pack", "a value that is not valid .*: run `tracker audit verify`")


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_full_disk_leaves_nothing(engine: sa.Engine, url: str, tmp_path: Path) -> None:
    """A disk that is full in the middle: a sentence, and no part of a pack."""
    history(engine, datetime.now(UTC))
    seal(engine, KEY)
    (place := tmp_path / "place").mkdir()
    engine.dispose()
    limited = (
        "import resource, sys; from tracker.cli import main;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)); sys.exit(main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", limited, "audit", "export", str(place / "pack")]
    run = subprocess.run(words, env=os.environ | {"TRACKER_DATABASE_URL": url}, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (1, "")
    assert "File too large; nothing is left there" in run.stderr
    assert list(place.iterdir()) == []


# -- verify.sh -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox sh"])
def test_a_good_pack_is_ok_in_each_shell(packs: Packs, tmp_path: Path, shell: str) -> None:
    """With key, checkpoints from outside and reports: OK and nothing else; busybox with its own tools only."""
    tools = None
    if shell == "busybox sh" and shutil.which("busybox"):
        tools = tmp_path / "tools"
        tools.mkdir()
        subprocess.run(["busybox", "--install", "-s", tools], check=True)
        for other in ("openssl", "sqlite3"):
            if found := shutil.which(other):
                (tools / other).symlink_to(found)
    outside = tmp_path / "outside.txt"
    texts = [path.read_text() for path in sorted((packs.signed / "checkpoints").iterdir())]
    outside.write_text("\n".join([*texts, texts[1], ""]))  # one was delivered twice
    options = ("--key-id", KEY.public.id, "--trusted", outside, "--reports")
    code, text = verify(packs.signed, *options, shell=shell, tools=tools)
    assert code == 0, text
    assert f"\nOK: checkpoints 1 to 3, key {KEY.public.id}" in text
    assert "BUT" not in text
    shutil.copytree(packs.signed, tmp_path / "pack")
    (tmp_path / "pack/zone.csv").write_bytes(b"x")
    code, text = verify(tmp_path / "pack", *options, shell=shell, tools=tools)
    assert (code, text) == (1, "NOT OK: files that are not as in SHA256SUMS:\n    zone.csv\n")


def test_ok_says_what_it_does_not_rest_on(packs: Packs, copy: Path) -> None:
    """No signature, an unchecked key, nothing from outside, a simulator's answers: named in that very line."""
    code, text = verify(packs.signed)
    assert code == 0
    assert "\nOK, BUT KEY NOT CHECKED, NOTHING TRUSTED GIVEN, REPORTS NOT CHECKED: checkpoints 1 to 3, key" in text
    code, text = verify(packs.unsigned)
    assert (code, text) == (1, "NOT OK: the last checkpoint is not signed (accepted with --unsigned)\n")
    code, text = verify(packs.unsigned, "--unsigned")
    assert code == 0
    assert "\nOK, BUT NOT SIGNED, NOTHING TRUSTED GIVEN, A SIMULATOR MAY HAVE ANSWERED, REPORTS NOT CHECKED: " in text
    assert "    w1 http://127.0.0.1:8080\n" in text
    assert verify(packs.unsigned, "--unsigned", "--key-id", KEY.public.id)[0] == 1
    (copy / "SHA256SUMS.sig").unlink()  # the key that signs is seldom where the pack is made
    assert "\nOK, BUT PACK NOT SIGNED, KEY NOT CHECKED" in verify(copy, "--unsigned")[1]


A, B = "segments/000002-transitions-1.csv", "segments/000003-transitions-1.csv"
FIRST, CHECKPOINT, HEAD = (f"checkpoints/00000{number}.txt" for number in (1, 2, 3))
FILES = "NOT OK: files that are in the folder or in SHA256SUMS, but not in both:\n    "
SUMS = "NOT OK: files that are not as in SHA256SUMS:\n    "
CHAIN = "NOT OK: checkpoints or segments that are not as the chain names them:\n    "
ODD = "NOT OK: links, folders or names that no pack has\n    "
SWAPPED = "mv {0} x; mv {1} {0}; mv x {1}"

FOUND = {
    f"sed -i s/w1/w2/ {A}": f"{SUMS}{A}\n",
    f"sed -i 's/$/\\r/' {CHECKPOINT}": f"{SUMS}{CHECKPOINT}\n",
    "sed -i s/job/fob/ reports/report.html": f"{SUMS}reports/report.html\n",
    f"rm {A}": f"{FILES}{A}\n",
    f"cp {A} segments/000003-gaps-1.csv": f"{FILES}segments/000003-gaps-1.csv\n",
    SWAPPED.format(A, B): f"{SUMS}{A}\n    {B}\n",
    "cp zone.csv .zone.csv": f"{FILES}.zone.csv\n",
    "mv zone.csv ..; ln -s ../zone.csv zone.csv": f"{ODD}./zone.csv\n",
    "mkdir x": f"{ODD}./x\n",
    "cp zone.csv $(printf 'zone.csv\\033[2K')": f"{ODD}./zone.csv [2K\n",
    "rm SHA256SUMS": "NOT OK: not a pack: SHA256SUMS or checkpoints/ is missing\n",
    "sed -i -e '1s/^[0-7]/8/;t' -e '1s/^./0/' SHA256SUMS": SUMS,
    "sed -i 's/  zone.csv/  zone_csv/' SHA256SUMS": FILES,
    "cp zone.csv SHA256SUMS.sig": "NOT OK: SHA256SUMS.sig: not the signature of SHA256SUMS",
    "rm SHA256SUMS.sig": "NOT OK: SHA256SUMS.sig is missing",
}
"""By what is done to a pack: a line of what verify.sh says."""

FOUND_BY_THE_CHAIN = {
    f"sed -i s/w1/w2/ {A}": CHAIN,
    f"rm {A}": CHAIN,
    f"cp {A} segments/000003-gaps-1.csv": CHAIN,
    SWAPPED.format(A, B): CHAIN,
    f"sed -i 's/rows 1/rows 2/' {CHECKPOINT}": CHAIN,
    f"rm {FIRST}": CHAIN,
    SWAPPED.format(FIRST, CHECKPOINT): "NOT OK: checkpoints with a wrong number or form:\n",
    f"sed -i '1s/ /\\t/' {HEAD}": "NOT OK: a checkpoint with tabs",
    f"sed -i 's/rows 1/rows 2/' {HEAD}": "txt: not signed by its key",
    f"sed -i -e '/^key/d' -e '/^signature/d' {HEAD}": "NOT OK: the last checkpoint is not signed, but others are",
    "sed -i s/A/B/ public_key.pem": "NOT OK: public_key.pem: not the key",
    "rm checkpoints/*": "NOT OK: there is no checkpoint",
}
"""The same by somebody who makes SHA256SUMS again and can sign that."""


@pytest.mark.parametrize("command", FOUND)
def test_each_falsification_is_found_and_named(copy: Path, command: str) -> None:
    """Whatever was changed, added or removed: verify.sh names it, and the independent verifier finds it, too."""
    subprocess.run(["sh", "-ec", command], cwd=copy, check=True)
    code, text = verify(copy)
    assert (code, FOUND[command] in text, "OK" in text.replace("NOT OK", "")) == (1, True, False), text
    if not FOUND[command].startswith(ODD):  # links and names are those of shells and archives
        assert list(problems(copy)) != []


@pytest.mark.parametrize("command", FOUND_BY_THE_CHAIN)
def test_new_sums_do_not_hide_it_from_the_chain(copy: Path, command: str) -> None:
    """Even signed with the right key; and without it by the signature alone."""
    subprocess.run(["sh", "-ec", command], cwd=copy, check=True)
    resum(copy)
    code, text = verify(copy, "--unsigned")
    assert (code, FOUND_BY_THE_CHAIN[command] in text) == (1, True), text
    if "public_key" not in command:  # a copy of what the checkpoint says
        assert list(problems(copy)) != []
    resum(copy, OTHER)
    assert verify(copy)[0] == 1


def test_what_only_the_key_or_a_checkpoint_from_outside_shows(packs: Packs, copy: Path) -> None:
    """A chain made again with another key, or with the right one, and a tail that was cut off."""
    (copy / A).write_text((copy / A).read_text().replace("w1", "w2"))
    rechain(copy, OTHER)
    assert list(problems(copy)) == []
    assert "\nOK, BUT KEY NOT CHECKED" in verify(copy)[1]
    code, text = verify(copy, "--key-id", KEY.public.id)
    assert (code, text) == (1, f"NOT OK: the key of the last checkpoint is {OTHER.public.id}, not {KEY.public.id}\n")
    assert list(problems(copy, KEY.public.id)) != []
    rechain(copy, KEY)
    assert verify(copy, "--key-id", KEY.public.id)[0] == 0
    assert verify(copy, "--trusted", packs.signed / CHECKPOINT)[0] == 1
    shutil.rmtree(copy)
    shutil.copytree(packs.signed, copy)
    for name in (B, HEAD):
        (copy / name).unlink()
    resum(copy)
    assert list(problems(copy)) == []
    assert verify(copy, "--trusted", packs.signed / CHECKPOINT)[0] == 0
    head = packs.signed / HEAD
    code, text = verify(copy, "--trusted", head)
    assert (code, " number 3 " in text) == (1, True)
    assert f"NOT OK: checkpoints in {head} that are not in this pack, which ends with {CHECKPOINT}:\n" in text


def test_wrong_usage_and_missing_tools_have_status_2(packs: Packs, tmp_path: Path) -> None:
    """Nothing is said about the pack then, nor where the file of trusted checkpoints holds none, or has CR LF."""
    windows = (packs.signed / CHECKPOINT).read_bytes().replace(b"\n", b"\r\n")
    for content in (b"\n\n", b"\x00\xff\n", windows):
        (tmp_path / "outside").write_bytes(content)
        code, text = verify(packs.signed, "--trusted", tmp_path / "outside")
        assert (code, text.startswith(f"verify.sh: {tmp_path / 'outside'}: no checkpoints, or CR LF")) == (2, True)
    for options in (["--key-id"], ["--trusted", "missing"], ["folder"]):
        code, text = verify(packs.signed, *options)
        assert (code, text[:11]) == (2, "verify.sh: ")
    for missing, version, why in (
        ("openssl", None, "this machine has no openssl"),
        ("sqlite3", None, "this machine has no sqlite3"),
        ("", "3.39.4 2022-09-29", "sqlite3 is older than 3.40"),
    ):
        code, text = verify(packs.signed, "--reports", tools=without(tmp_path / why, missing, sqlite=version))
        assert (code, why in text) == (2, True), text


T, S = (f"segments/000001-{table}-1.csv" for table in ("transitions", "sources"))
SOURCE = '99,"w1","https://x","/x","UTC",5,2,0,"UTC","1",2025-01-07T09:00:00.000000Z'
FOUND_BY_CHECKS_SQL = {
    f"""sed -i '0,/"running"/{{/"running"/d}}' {T}""": "NOT OK: transitions id ",
    f"sed -n '$p' {T} >> {T}": "2 rows have this id",
    f"echo '{SOURCE}' >> {S}": "no checkpoint closes this row",
    f"sed -i '$s/,20[0-9]*-/,2099-/' {T}": "but its checkpoint closes",
    "sed -i s/T22:/T21:/g zone.csv": "report_deadlines.csv",
    """sed -i '0,/"undecidable"/s//"met"/' reports/report_jobs.csv""": "report_jobs.csv has a row that does not",
    "sed -i '$d' reports/report_gaps.csv": "report_gaps.csv lacks a row",
    "sed -n '$p' reports/report_coverage.csv >> reports/report_coverage.csv": "report_coverage.csv has",
    """sed -i "2s/\"w/\"$(printf '\\033')[2Jw/" reports/report_jobs.csv""": "?[2Jw",
}
"""The same by somebody who makes the whole chain again with the right key: what checks.sql says."""


@pytest.mark.parametrize("command", FOUND_BY_CHECKS_SQL)
def test_an_impossible_record_is_found_however_well_it_is_signed(copy: Path, command: str) -> None:
    """Impossible histories, and reports that do not follow from the segments; no terminal obeys what is printed."""
    subprocess.run(["sh", "-ec", command], cwd=copy, check=True)
    rechain(copy, KEY)
    code, text = verify(copy, "--key-id", KEY.public.id, "--reports")
    assert (code, FOUND_BY_CHECKS_SQL[command] in text, "\x1b" in text) == (1, True, False), text


def test_checks_sql_is_made_of_todays_sql() -> None:
    """`python -m tests.checks_sql` would write the file that is there."""
    assert checks_sql.FILE.read_text(encoding="utf-8") == checks_sql.text()


def test_the_commands_of_format_md_work_by_hand(packs: Packs, tmp_path: Path) -> None:
    """As they stand, they say OK of an honest pack, as the verifier does that was written from the page alone."""
    page = SCRIPT.with_name("FORMAT.md").read_text()
    commands = page.split("## By hand\n\n", 1)[1].split("\n\n", 1)[0].replace("/tmp", str(tmp_path))  # noqa: S108
    done = subprocess.run(["sh", "-ec", commands], cwd=packs.signed, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert KEY.public.id in done.stdout
    assert done.stdout.count("Signature Verified Successfully") == 2
    assert list(problems(packs.signed, KEY.public.id)) == []
    example, digest = page.split("$ printf", 1)[1].strip().rsplit("\n", 1)
    done = subprocess.run(["sh", "-ec", f"printf {example}"], capture_output=True, text=True, timeout=30)
    assert done.stdout.split() == digest.split()
    assert len(page.split()) <= 700


def test_a_file_among_the_reports_that_is_none_is_found(copy: Path) -> None:
    """Nobody compares it; and one with the name of a table adds no row to the segments' own."""
    gap = '0,"w1",2026-01-01T00:00:00.000000Z,2026-01-02T00:00:00.000000Z,"x",,\n'
    for name, rows in (("gaps.csv", gap), ("report_final.csv", "verdict\nmet\n")):
        (copy / "reports" / name).write_text(rows)
    resum(copy)
    code, text = verify(copy, "--reports")
    assert (code, text.count("NOT OK")) == (1, 1), text
    assert "NOT OK: reports/report_final.csv is no report of tracker's\n" in text


def test_the_changes_name_the_sums_of_the_script_and_its_sql() -> None:
    """An auditor takes them from the release, and compares."""
    changes = Path(__file__).parents[1].joinpath("tracker/CHANGES.md").read_text()
    for name in ("verify.sh", "checks.sql"):
        assert hashlib.sha256(SCRIPT.with_name(name).read_bytes()).hexdigest() in changes, name
    assert len(SCRIPT.read_text().splitlines()) <= 160
