"""``tracker demo``: a week in seconds, checked against what the simulators know to be true."""

from __future__ import annotations

import shlex
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import datetime
from pathlib import Path
from threading import Event

import pytest

from tracker import cli, database
from tracker.demo import demo
from tracker.demo.simulator import SimulatedJob
from tracker.errors import BadConfiguration
from tracker.status import Status


def test_no_file_but_a_demos_own_is_replaced(tmp_path: Path) -> None:
    """A file of somebody else's, a database in use, or another page is refused with the way out."""
    stop = Event()
    stop.set()
    own, page = tmp_path / "own.db", tmp_path / "own.html"
    assert demo.run(own, stop=stop).interrupted
    demo.run(own, stop=stop)  # its own is replaced
    assert demo.write_page(own) == page
    demo.make_way(own)

    def refused(path: Path, reason: str) -> None:
        before = path.read_bytes() if path.exists() else b""
        with pytest.raises(BadConfiguration, match=rf"{reason}.*name another file with --database"):
            demo.run(path)
        assert (path.read_bytes() if path.exists() else b"") == before

    (tmp_path / "notes.db").write_text("my notes")
    database.upgrade(demo.url_of(tmp_path / "another.db"))
    for name in ("notes.db", "another.db"):
        refused(tmp_path / name, "is not a demo's")
    refused(tmp_path / "nowhere" / "a.db", "nowhere")
    page.write_text("<title>my own</title>", encoding="utf-8")
    refused(own, "was not written by tracker")
    page.unlink()
    database.upgrade(demo.url_of(own))
    with closing(sqlite3.connect(own)) as other:
        other.execute("SELECT * FROM jobs")
        with pytest.raises(BadConfiguration, match=r"locked.* --database"):
            demo.make_way(own)


def test_it_ends_with_the_report_and_commands_that_work(tmp_path: Path) -> None:
    """The report is on standard output, all else on standard error; each command works as printed, on any PATH."""
    program = Path(sys.executable).with_name("tracker")
    command: list[str | Path] = [program, "demo", "--jobs", "6", "--days", "1", "--database", "it's a demo.db"]
    env, path = {"PATH": "/nowhere"}, tmp_path / "it's a demo.db"
    done = subprocess.run(command, env=env, cwd=tmp_path, text=True, capture_output=True, timeout=60, check=True)
    assert "cluster" in done.stdout
    assert "happened between their two bounds" in " ".join(done.stderr.split())
    place, *commands, page = done.stderr.splitlines()[-7:]
    assert place == f"The database is {path}. Commands to try:"
    assert page == f"All reports on one page, for a browser: {path.with_suffix('.html').as_uri()}"
    assert "6 jobs" in path.with_suffix(".html").read_text(encoding="utf-8")
    for line in commands:
        assert str(program) in shlex.split(line)
        subprocess.run(["/bin/sh", "-c", line], env=env, cwd=tmp_path, capture_output=True, timeout=60, check=True)


def test_a_bound_without_the_truth_fails_it(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 1, and the job, the bounds and the truth are printed: the check can fail."""

    def wrong(fate: SimulatedJob) -> dict[Status, datetime]:
        return dict.fromkeys(Status, fate.gone_at or fate.ends_at)

    monkeypatch.setattr(SimulatedJob, "entered", property(wrong))
    monkeypatch.setattr(SimulatedJob, "status_at", lambda fate, at: Status.WAITING)
    assert cli.main(["demo", "--jobs", "4", "--days", "1"]) == 1
    assert "recorded changes of status were not between their bounds" in " ".join(capfd.readouterr().err.split())
