"""`tracker deploy`: its files pass their own checkers, and agree with the program."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest

from tracker import cli, daemon, database, needs, settings
from tracker.cli.deploy import FILES

FOLDER = Path(__file__).parent.parent / "tracker/deploy"
RULES = (FOLDER / "alerts.rules.yml").read_text()
SERVICES = ("tracker.service", "tracker-once.service")


def needs_tool(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not installed")


def check(*words: str | Path, cwd: Path | None = None) -> str:
    """Run a checker, require that it finds nothing wrong, and return what it printed."""
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", FILES)
def test_it_prints_and_writes_files(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is printed whole, or written to a folder; a file of other content there is left alone, and so are all."""
    assert cli.main(["deploy", name]) == 0
    out = capsys.readouterr().out
    assert all((FOLDER / file).read_text() in out for file in FILES[name])
    for _ in range(2):
        assert cli.main(["deploy", name, "-o", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == set(FILES[name])
    *others, last = (tmp_path / file for file in FILES[name])
    last.write_text("mine")
    for other in others:
        other.unlink()
    assert cli.main(["deploy", name, "-o", str(tmp_path)]) == 1
    assert "move it away" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_every_file_is_printed_by_some_name_and_names_settings_that_exist() -> None:
    """No file is left out, and no TRACKER_ variable in them is unknown."""
    assert {file for of_name in FILES.values() for file in of_name} | {"OPERATIONS.md"} == set(os.listdir(FOLDER))
    for path in FOLDER.iterdir():
        assert set(re.findall(r"TRACKER_[A-Z_]+[A-Z]", path.read_text())) <= set(settings.VARIABLES), path.name


@needs_tool("systemd-analyze")
def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    """`verify` says nothing, exposure is under 3.0 of 10, and both services have one sandbox."""
    (tmp_path / "opt").mkdir()
    (tmp_path / "opt/tracker").symlink_to(sys.prefix)
    for file in (*SERVICES, "tracker-once.timer"):
        text = (FOLDER / file).read_text()
        (tmp_path / file).write_text(re.sub("/opt/tracker", f"{tmp_path}/opt/tracker", text))
    assert check("systemd-analyze", "verify", *(tmp_path / file for file in (*SERVICES, "tracker-once.timer"))) == ""
    for file in SERVICES:
        check("systemd-analyze", "security", "--offline=yes", "--threshold=30", tmp_path / file)
    first, second = ((FOLDER / file).read_text().partition("Environment=")[2] for file in SERVICES)
    assert first.partition("\n[Install]")[0].strip() == second.strip()


def test_the_daemon_has_the_time_that_it_takes() -> None:
    """Nobody kills it before its last answers are recorded, or for waiting for a lock of the database."""
    unit = (FOLDER / "tracker.service").read_text()
    timeout = settings.Settings.model_fields["request_timeout"].default.total_seconds()
    closing = 2 * timeout + daemon.CLOSING_SECONDS
    (stop,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert int(stop) >= 2 * closing
    assert f"stop_grace_period: {stop}s" in (FOLDER / "compose.yaml").read_text()
    (watchdog,) = re.findall(r"^WatchdogSec=(\d+)min$", unit, re.MULTILINE)
    assert int(watchdog) * 60 >= 3 * max(database.LOCK_SECONDS, database.BUSY_SECONDS)


@needs_tool("promtool")
def test_prometheus_reads_its_files() -> None:
    """promtool finds nothing wrong with the configuration and the rules."""
    check("promtool", "check", "config", FOLDER / "prometheus.yml")
    check("promtool", "check", "rules", FOLDER / "alerts.rules.yml")


PROMETHEUS_TEST = """
rule_files: [{rules}]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {{series: 'up{{job="tracker", instance="a"}}', values: '1x20 0x20'}}
      - {{series: 'tracker_jobs_open{{cluster="w1", instance="a"}}', values: '5x10 stale'}}
      - {{series: 'tracker_needs{{kind="key_refused", instance="a"}}', values: '0 1x40'}}
      - {{series: 'tracker_needs{{kind="lost", instance="a"}}', values: '3x40'}}
    alert_rule_test:
      - {{eval_time: 5m, alertname: TrackerUrgent, exp_alerts: [{{exp_labels: {{severity: critical,
          kind: key_refused, instance: a}}, exp_annotations: {{summary: 'tracker: key_refused (1)',
          description: '`tracker status` says what is wrong and what to do.'}}}}]}}
      - {{eval_time: 10m, alertname: TrackerNeedsAPerson}}
      - {{eval_time: 18m, alertname: TrackerNeedsAPerson, exp_alerts: [{{exp_labels: {{severity: warning,
          kind: lost, instance: a}}, exp_annotations: {{summary: 'tracker: lost (3)',
          description: '`tracker status` says what is wrong and what to do.'}}}}]}}
      - {{eval_time: 9m, alertname: TrackerDatabaseAway}}
      - {{eval_time: 20m, alertname: TrackerDatabaseAway, exp_alerts: [{{exp_labels: {{severity: critical,
          job: tracker, instance: a}}, exp_annotations: {{summary: tracker cannot read its database,
          description: 'Nothing is recorded meanwhile: `tracker db check` says why.'}}}}]}}
      - {{eval_time: 20m, alertname: TrackerDown}}
      - {{eval_time: 27m, alertname: TrackerDown, exp_alerts: [{{exp_labels: {{severity: critical,
          job: tracker, instance: a}}, exp_annotations: {{summary: tracker does not answer Prometheus,
          description: 'Nothing is polled while no daemon runs: `systemctl status tracker`, `journalctl -u tracker`.'
          }}}}]}}
"""


@needs_tool("promtool")
def test_each_alert_comes_when_it_should(tmp_path: Path) -> None:
    """Prometheus' own test runner sees an urgent need at once, another later, and a database that is away."""
    (tmp_path / "test.yml").write_text(PROMETHEUS_TEST.format(rules=FOLDER / "alerts.rules.yml"))
    check("promtool", "test", "rules", tmp_path / "test.yml")


def test_the_rules_know_each_urgent_need_and_metric() -> None:
    """The kinds that are critical are those that are urgent, and each metric in a rule is one of the program's."""
    urgent = "|".join(kind for kind, (is_urgent, _) in needs.KINDS.items() if is_urgent)
    assert re.findall(r'kind[=!]~"(.*)"', RULES) == [urgent, urgent]
    if find_spec("tracker.metrics") is not None:
        named = {re.sub("_(sum|count)$", "", name) for name in re.findall(r"\btracker_[a-z_]+", RULES)}
        source = (FOLDER.parent / "metrics.py").read_text()
        assert {name for name in named if f'"{name}"' not in source} == set()


@needs_tool("hadolint")
def test_the_linter_of_dockerfiles_finds_nothing() -> None:
    """hadolint has nothing to say."""
    assert check("hadolint", FOLDER / "Dockerfile") == ""


@pytest.mark.parametrize(("code", "expected"), [(200, 0), (503, 1)])
def test_the_containers_health_is_the_daemons(code: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image's health check succeeds when /healthz does, whatever proxy the environment names."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    (line,) = re.findall(r'CMD \["python", "-c", "(.*)"\]', (FOLDER / "Dockerfile").read_text())
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        environment = {"TRACKER_HTTP_PORT": str(server.server_port), "http_proxy": "http://127.0.0.1:9"}
        words = [sys.executable, "-c", line.replace('\\"', '"')]
        assert subprocess.run(words, env=environment, stderr=subprocess.DEVNULL).returncode == expected


@pytest.mark.parametrize("tool", ["docker-compose", "podman-compose"])
def test_compose_reads_its_file(tool: str, tmp_path: Path) -> None:
    """The tool finds nothing wrong with the file."""
    if shutil.which(tool) is None or (tool == "podman-compose" and shutil.which("podman") is None):
        pytest.skip(f"{tool} is not installed")
    shutil.copy(FOLDER / "compose.yaml", tmp_path)
    check(tool, "config", cwd=tmp_path)
