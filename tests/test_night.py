"""A night: the daemon as its unit runs it, an Elevate that fails in turn, receivers of alerts and pings, Prometheus.

Hours are seconds here, by the settings and by the times in Prometheus' files; everything else is as on a server.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.hostile import free_port
from tests.scripted import Script
from tests.test_alerts import bodies
from tests.test_daemon import until
from tests.test_deliver import Receiver
from tests.test_web import get
from tests.units import read, spawn

DEPLOY = Path(__file__).parent.parent / "tracker/deploy"
PROMETHEUS = shutil.which("prometheus")
SETTINGS = """
http_port = {port}
alert_after = "8 s"
request_timeout = "1 s"
seal_after = "5 s"
database_url = "sqlite:///{root}/var/lib/tracker/tracker.db"
signing_key_file = "{root}/run/credentials/tracker.service/tracker_signing.pem"
"""


def in_turn(values: Iterable[Any]) -> list[Any]:
    """Return *values* without repetitions."""
    return [value for value, _ in groupby(values)]


def fetch(port: int, path: str) -> tuple[int, str]:
    """Return the code and the body of an answer; 0: nobody listens."""
    try:
        answer, body = get(port, path)
    except OSError:
        return 0, ""
    return answer.status, body


class Machine:
    """A server below a folder, with tracker as a service, and what is heard of it.

    Attributes:
        receiver: Gets alerts and pings.
        datagrams: What systemd was sent, and when.
        health: The codes at /healthz and /readyz, in turn; 0: nobody listens.
    """

    def __init__(self, root: Path, receiver: Receiver) -> None:
        self.root, self.receiver, self.port, self.over = root, receiver, free_port(), threading.Event()
        self.datagrams: list[tuple[str, float]] = []
        self.health: dict[str, list[int]] = {"/healthz": [], "/readyz": []}
        self.started: list[subprocess.Popen[bytes]] = []
        for folder in ("opt", "etc/tracker/secrets", "var/lib/tracker"):
            (root / folder).mkdir(parents=True)
        (root / "opt/tracker").symlink_to(sys.prefix)
        place = f"127.0.0.1:{receiver.port}"
        secrets = {"alert_urls": f"json://{place}/good", "ping_url": f"http://{place}/ping"}
        for name, text in (secrets | {"api_key_w1": "hush", "api_key_w2": "hush"}).items():
            (root / "etc/tracker/secrets" / name).write_text(text)
        self.unit = read(root, DEPLOY / "tracker.service")

    def write(self, top: str = "", **clusters: str) -> None:
        tables = (f'[clusters.{name}]\nbase_url = "{url}"\n' for name, url in clusters.items())
        text = "\n".join([top, SETTINGS.format(port=self.port, root=self.root), *tables])
        (self.root / "etc/tracker/tracker.toml").write_text(text)

    def start(self) -> None:
        before = self.said().count("READY=1")
        self.started.append(spawn(self.root, "tracker.service", self.unit, f"@night-{self.port}"))
        until(lambda: self.said().count("READY=1") > before, 60)

    def reload(self) -> None:
        before = self.said().count("READY=1")
        self.started[-1].send_signal(signal.SIGHUP)
        until(lambda: self.said().count("READY=1") > before, 60)

    def stop(self) -> None:
        self.started[-1].terminate()
        assert self.started[-1].wait(60) == 0

    def tracker(self, *words: str, code: int = 0) -> str:
        """Run a command as an operator does, require its exit code, and return what it printed."""
        environment = dict([self.unit["Environment"].split("=", 1)])
        command = [f"{self.root}/opt/tracker/bin/tracker", *words]
        done = subprocess.run(command, env=environment, cwd=self.root, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stdout + done.stderr
        return f"{done.stdout}{done.stderr}"

    def said(self) -> list[str]:
        """Return the first line of each datagram that is not for the watchdog."""
        return [text.partition("\n")[0] for text, _ in self.datagrams if text != "WATCHDOG=1"]

    def told(self) -> list[str]:
        """Return the begin of each alert, in turn."""
        lines = "\n".join(bodies(self.receiver)).splitlines()
        return [re.sub(r"(\]( \w+)?).*", r"\1", line) for line in lines if not line.startswith(" ")]

    def pings(self) -> list[str]:
        """Return which pings came, in turn, without repetitions."""
        return in_turn(path for path, *_ in self.receiver.got if path.startswith("/ping"))

    def events(self) -> list[Any]:
        return [json.loads(line)["event"] for line in (self.root / "journal").read_text().splitlines()]

    def hear(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
            listening.bind(f"\0night-{self.port}")
            listening.settimeout(0.5)
            while not self.over.is_set():
                with suppress(TimeoutError):
                    self.datagrams.append((listening.recv(4096).decode(), time.monotonic()))

    def look(self) -> None:
        while not self.over.wait(0.3):
            for path, codes in self.health.items():
                codes.append(fetch(self.port, path)[0])


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with Receiver() as receiver:
        machine = Machine(tmp_path, receiver)
        threads = [threading.Thread(target=work) for work in (machine.hear, machine.look)]
        for thread in threads:
            thread.start()
        yield machine
        machine.over.set()
        for process in machine.started:
            process.kill()
            process.wait()
        for thread in threads:
            thread.join()


@pytest.fixture
def finds(machine: Machine) -> Iterator[Callable[[str], bool]]:
    """Start Prometheus by our files; return a function that says whether a query finds something.

    Where Prometheus is not installed, each does.
    """
    if PROMETHEUS is None:
        yield lambda query: True
        return
    folder, port = machine.root / "prometheus", free_port()
    folder.mkdir()
    rules = re.sub(r"for: \d+m", "for: 1s", (DEPLOY / "alerts.rules.yml").read_text())
    config = (DEPLOY / "prometheus.yml").read_text().replace("8080", str(machine.port)).replace(": 30s", ": 1s")
    (folder / "alerts.rules.yml").write_text(rules)
    (folder / "prometheus.yml").write_text(f"global: {{evaluation_interval: 1s}}\n{config}")
    words = ["--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "log").open("wb") as log, subprocess.Popen([PROMETHEUS, *words], cwd=folder, stderr=log) as process:

        def finds(query: str) -> bool:
            code, body = fetch(port, f"/api/v1/query?{urlencode({'query': query})}")
            return code == 200 and json.loads(body)["data"]["result"] != []

        yield finds
        process.kill()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_night(machine: Machine, finds: Callable[[str], bool]) -> None:
    """A refused key, a restart, an Elevate that hangs, two reloads, a failed job: each is sent once, in this order."""

    with Script().serve() as first, Script().serve() as second:
        machine.write(w1=first.url)
        machine.tracker("audit", "keygen", f"{machine.root}/etc/tracker/secrets/signing.pem")
        machine.tracker("db", "upgrade")
        machine.start()
        assert "Nothing needs a person" in machine.tracker("status")
        until(lambda: machine.pings() == ["/ping"])

        first.default = 403
        machine.tracker("add", "a", "--cluster", "w1")
        until(lambda: machine.told() == ["URGENT [key_refused] w1"], 60)
        assert "URGENT [key_refused] w1" in machine.tracker("status", code=1)
        until(lambda: machine.pings()[-1] == "/ping/fail")
        until(lambda: finds('ALERTS{alertname="TrackerUrgent",kind="key_refused",alertstate="firing"}'), 30)
        assert finds('up{job="tracker"} == 1')
        machine.tracker("ack", "key_refused", "w1", "--reason", "OPS-311: a new key is ordered", "--until", "1d")
        assert "OPS-311" in machine.tracker("status")
        until(lambda: (machine.pings()[-1], machine.health["/readyz"][-1]) == ("/ping", 200), 30)
        until(lambda: finds('absent(ALERTS{alertname="TrackerUrgent"})'), 30)

        machine.stop()
        first.default = "waiting"
        machine.start()
        until(lambda: machine.told()[1:] == ["RESOLVED [key_refused] w1"], 60)

        back = threading.Event()
        first.hold = lambda jid: back.wait(100)
        machine.tracker("add", "b", "c", "d", "--cluster", "w1")
        until(lambda: machine.events().count("cluster_paused") == 2, 30)
        machine.write(w1=first.url, w2=second.url)
        machine.reload()
        machine.tracker("add", "e", "--cluster", "w2")
        until(lambda: second.asked == ["e"])
        machine.write("http_prot = 1", w1=first.url, w2=second.url)
        machine.reload()
        machine.tracker("status", code=78)  # the file is wrong for every command
        machine.write(w1=first.url, w2=second.url)
        machine.tracker("add", "f", "--cluster", "w2")
        until(lambda: second.asked == ["e", "f"])
        until(lambda: machine.told()[2:] == ["URGENT [unreachable] w1"], 60)
        machine.tracker("status", code=1)
        until(lambda: finds('tracker_needs{kind="unreachable"} == 1'), 30)
        back.set()
        machine.tracker("resume", "w1")
        until(lambda: machine.told()[3:] == ["RESOLVED [unreachable] w1"], 60)

        many = [f"late-{number}" for number in range(12)]
        machine.tracker("add", *many, "--cluster", "w1", "--received-at", "2026-01-05", "--reference", "T-7")
        until(lambda: machine.told()[4:] == ["URGENT [overdue] 12"], 60)
        assert bodies(machine.receiver)[-1].count("late-") == 5
        assert "T-7" not in bodies(machine.receiver)[-1]
        until(lambda: machine.health["/readyz"][-1] == 503)
        machine.tracker("withdraw", *many, "--reason", "OPS-312")
        until(lambda: machine.told()[5:] == ["RESOLVED [overdue]"], 60)

        second.default = "error"
        machine.tracker("add", "g", "--cluster", "w2")
        until(lambda: machine.told()[6:] == ["[failed] 1"], 60)
        assert "[failed] 1 job" in machine.tracker("status")
        until(lambda: finds('max_over_time(tracker_needs{kind="failed"}[10m]) == 1'), 30)
        assert finds("count(max_over_time(tracker_needs[10m]) > 0) == 4")
        seen = {path: in_turn(codes) for path, codes in machine.health.items()}
        machine.stop()

    assert set(first.asked) == {*"abcd", *many}
    assert machine.pings() == ["/ping", *["/ping/fail", "/ping"] * 3]
    assert seen["/healthz"] == [0, 200, 0, 200]  # but for the restart, it always answers
    assert seen["/readyz"] == [0, 200, 503, 200, 0, 200, 503, 200, 503, 200]
    reloads = ["RELOADING=1", "READY=1"] * 2
    until(lambda: machine.said() == ["READY=1", "STOPPING=1", "READY=1", *reloads, "STOPPING=1"])
    running = [at for text, at in machine.datagrams if text != "STOPPING=1"]
    assert max(later - at for at, later in pairwise(running)) < 20  # systemd waits three minutes
    wanted = {"settings_refused": 1, "reloaded": 1, "started": 2, "stopped": 2, "alerts_failed": 0}
    assert {name: machine.events().count(name) for name in wanted} == wanted
    gaps = machine.tracker("report", "gaps", "--format", "json")
    assert re.findall('"cause": "(.*?)"', gaps) == ["key_refused", "unreachable"]
    assert "\nOK" in machine.tracker("audit", "verify")
