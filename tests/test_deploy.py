"""`tracker deploy`: its files pass their own checkers, and agree with the program."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest

from tracker import cli, daemon, database, needs, settings
from tracker.cli.deploy import FILES

FOLDER = Path(__file__).parent.parent / "tracker/deploy"
UNITS = ("tracker.service", "tracker-once.service", "tracker-once.timer")


def check(*words: str | Path, cwd: Path | None = None) -> str:
    """Run a checker, require that it finds nothing wrong, and return what it printed."""
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", FILES)
def test_it_prints_and_writes_files(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is printed whole, or written to a folder; a file of other content there is left alone, and so are all."""
    assert cli.main(["deploy", name]) == 0
    out = capsys.readouterr().out
    assert all((FOLDER / file).read_text() in out for file in FILES[name])
    folder = tmp_path / "new" / "folder"
    for _ in range(2):
        assert cli.main(["deploy", name, "-o", str(folder)]) == 0
    assert cli.main(["deploy", name, "-o", str(folder / FILES[name][0])]) == 2
    assert "cannot make the folder" in capsys.readouterr().err
    tmp_path = folder
    assert {path.name for path in tmp_path.iterdir()} == set(FILES[name])
    for path in tmp_path.iterdir():
        path.unlink()
    (tmp_path / FILES[name][-1]).write_text("mine")
    assert cli.main(["deploy", name, "-o", str(tmp_path)]) == 1
    assert "move it away" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_every_file_is_printed_by_some_name_and_names_settings_that_exist() -> None:
    """No file is left out, and no TRACKER_ variable in them is unknown."""
    assert {file for names in FILES.values() for file in names} | {"OPERATIONS.md"} == set(os.listdir(FOLDER))
    for path in FOLDER.iterdir():
        assert set(re.findall(r"TRACKER_[A-Z_]+[A-Z]", path.read_text())) <= set(settings.VARIABLES), path.name


def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    """`verify` says nothing, exposure is under 3.0 of 10, and both services have one sandbox."""
    texts = [(FOLDER / unit).read_text() for unit in UNITS]
    first, second = (text.partition("Environment=")[2].partition("\n[Install]")[0].strip() for text in texts[:2])
    assert first == second
    for unit, text in zip(UNITS, texts, strict=True):
        (tmp_path / unit).write_text(text.replace("/opt/tracker", sys.prefix))
    assert check("systemd-analyze", "verify", *(tmp_path / unit for unit in UNITS)) == ""
    for unit in UNITS[:2]:
        check("systemd-analyze", "security", "--offline=yes", "--threshold=30", tmp_path / unit)


def test_the_daemon_has_the_time_that_it_takes() -> None:
    """Nobody kills it before its last answers are recorded, or for waiting for a lock of the database."""
    unit = (FOLDER / "tracker.service").read_text()
    closing = 2 * settings.Settings().request_timeout.total_seconds() + daemon.CLOSING_SECONDS
    (stop,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert int(stop) >= 2 * closing
    assert f"stop_grace_period: {stop}s" in (FOLDER / "compose.yaml").read_text()
    (watchdog,) = re.findall(r"^WatchdogSec=(\d+)min$", unit, re.MULTILINE)
    assert int(watchdog) * 60 >= 3 * database.BUSY_SECONDS  # PostgreSQL waits as long


@pytest.mark.parametrize(
    "command",
    [
        "promtool check config prometheus.yml",
        "promtool check rules alerts.rules.yml",
        "hadolint Dockerfile",
    ],
)
def test_its_checker_finds_nothing_wrong(command: str) -> None:
    """Each tool accepts the file that is its."""
    check(*command.split(), cwd=FOLDER)


def test_each_alert_comes_when_it_should(tmp_path: Path) -> None:
    """Prometheus' own test runner sees an urgent need soon, another later, a database away, and a daemon that died."""
    expected = {5: "TrackerUrgent", 18: "TrackerNeedsAPerson", 20: "TrackerDatabaseAway", 27: "TrackerDown"}
    series = {
        'up{job="tracker"}': "1x20 0x20",
        'tracker_jobs_open{cluster="w1"}': "5x14 stale",
        'tracker_needs{kind="key_refused"}': "1x8 0x40",
        'tracker_needs{kind="lost"}': "3x18 0x40",
    }
    lines = [f"rule_files: [{FOLDER}/alerts.rules.yml]", "tests:", "- interval: 1m", "  input_series:"]
    lines += [f"  - {{series: '{name}', values: '{values}'}}" for name, values in series.items()]
    lines += ["  promql_expr_test:"]
    for minute, alert in expected.items():
        query = 'count by (alertname) (ALERTS{alertstate="firing"})'
        found = f"{{labels: '{{alertname=\"{alert}\"}}', value: 1}}"
        lines.append(f"  - {{expr: '{query}', eval_time: {minute}m, exp_samples: [{found}]}}")
    (tmp_path / "test.yml").write_text("\n".join(lines))
    check("promtool", "test", "rules", tmp_path / "test.yml")


def test_the_rules_know_each_urgent_need_and_metric() -> None:
    """The kinds that are critical are those that are urgent, and each metric in a rule is one of the program's."""
    rules = (FOLDER / "alerts.rules.yml").read_text()
    urgent = "|".join(kind for kind, (is_urgent, _) in needs.KINDS.items() if is_urgent)
    assert re.findall(r'kind[=!]~"(.*)"', rules) == [urgent, urgent]
    if find_spec("tracker.metrics") is not None:
        source = (FOLDER.parent / "metrics.py").read_text()
        for name in set(re.findall(r"\btracker_([a-z_]+?)(?:_sum|_count)?\b", rules)):
            assert re.search(f'"(tracker_)?{name}"', source), name


def test_the_containers_health_is_that_of_healthz(tmp_path: Path) -> None:
    """The image's check succeeds while /healthz does, whatever proxy the environment names."""
    (line,) = re.findall(r'CMD \["python", "-c", "(.*)"\]', (FOLDER / "Dockerfile").read_text())
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {"TRACKER_HTTP_PORT": str(server.server_port), "http_proxy": "http://127.0.0.1:9"}
        words = [sys.executable, "-c", line.replace('\\"', '"')]
        assert subprocess.run(words, env=environment, stderr=subprocess.DEVNULL).returncode == 1
        (tmp_path / "healthz").touch()
        assert subprocess.run(words, env=environment).returncode == 0
        server.shutdown()
