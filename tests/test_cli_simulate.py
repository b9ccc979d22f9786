"""``tracker simulate`` as a person meets it: a process that greets, serves, and ends at a signal."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from click.testing import CliRunner

from tracker.cli.simulate import simulate
from tracker.demo.simulator import DEFAULT_TIMEZONE, FAULT_KINDS
from tracker.settings import load

COMMAND = [sys.executable, "-c", "import sys; from tracker.cli import main; sys.exit(main())", "simulate"]


@contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Start the command on a free port and yield the process and the lines of its greeting; never leave it behind."""
    command = [*COMMAND, "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        greeting: list[str] = []
        while not greeting or not greeting[-1].startswith("  curl -H"):
            assert process.poll() is None
            greeting.append(process.stdout.readline().rstrip("\n"))
        yield process, greeting
    finally:
        process.kill()
        process.communicate()


def curl(line: str, jid: str = "") -> dict[str, str]:
    """Do what a greeting's curl line does and return the answer."""
    words = shlex.split(line.replace("jid=JID", f"jid={jid}"))
    assert words[0] == "curl"
    method = "POST" if "POST" in words else "GET"
    response = requests.request(method, words[-1], headers=dict([words[words.index("-H") + 1].split(": ")]), timeout=30)
    read: dict[str, str] = response.json()
    return read


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_greeting_works_as_printed_and_a_signal_ends_it(number: signal.Signals, tmp_path: Path) -> None:
    """What is printed can be pasted: the settings load, one line creates a job, the other sees it done; exit 0."""
    options = ["--api-key", "it's-a-key", "--speed", "1000000", "--archive-days", "1"]
    with running(*options, "--seed", "1") as (process, greeting):
        text = "\n".join(greeting)
        exports = shlex.split(text[text.index("export ") : text.index("  curl")].replace("\\\n", ""))[1:]
        create, ask = greeting[-2:]

        cluster = load(dict(export.split("=", 1) for export in exports), tmp_path).clusters["simulated"]
        assert (cluster.api_key.get_secret_value(), cluster.archive_days) == ("it's-a-key", 1)
        assert cluster.timezone == DEFAULT_TIMEZONE.key
        assert cluster.base_url.rstrip("/") in greeting[0]

        created = curl(create)
        assert created["status"] == "created"
        for _ in range(100):  # at most a day and nine hours of its clock, 0.12 s
            if curl(ask, created["jid"])["status"] == "done":
                break
            time.sleep(0.05)
        assert curl(ask, created["jid"])["status"] in ("done", "not_found")

        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out.strip()) == (0, "")
        logged, ended = err.splitlines()
        assert re.fullmatch(rf"\S+ \S+ created export {created['jid']}, runs from .*, done at .*", logged)
        assert ended == "stopped"
        assert "anyone" in create
        assert "anyone" not in err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--fault", "hnag=0.1"], list(FAULT_KINDS)),
        (["--fault", "503=0.6", "--fault", "hang=0.6"], ["1.2"]),
        (["--archive-days", "0"], ["archive days"]),
        (["--speed", "nan"], ["speed"]),
    ],
)
def test_wrong_usage_is_refused(arguments: list[str], named: list[str]) -> None:
    """Exit 2 with what is wrong and what would be right, and nothing is served."""
    result = CliRunner().invoke(simulate, arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    flat = " ".join(result.stderr.split())
    assert all(each in flat for each in named)
