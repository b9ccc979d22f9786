"""A daemon under a file of settings: SIGHUP, many clusters, a terminal that is gone, and what it reports meanwhile."""

from __future__ import annotations

import os
import pty
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.conftest import run_sql
from tests.hostile import free_port
from tests.processes import Tracker
from tests.scripted import Script, cluster_settings
from tests.test_daemon import TRACKER, add, environment, logged, until
from tests.test_deliver import texts
from tests.test_poller import histories_are_whole, job, on_sqlite
from tracker import cli, daemon, database, settings
from tracker.errors import BadConfiguration
from tracker.models import WORKERS
from tracker.settings import Settings


def is_listening(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


class Served:
    """A daemon as a process under a tracker.toml that a test changes."""

    def __init__(self, url: str, folder: Path) -> None:
        self._folder = folder
        self._top = f'database_url = "{url}"'
        self.process: Tracker

    def write(self, top: str = "", **clusters: str) -> None:
        """Write the file: what is above the clusters beside the database's URL, and the base_url of each."""
        tables = (f'[clusters.{name}]\napi_key = "hush"\nbase_url = "{url}"\n' for name, url in clusters.items())
        above = top if "database_url" in top else f"{self._top}\n{top}"
        (self._folder / "tracker.toml").write_text("\n".join([above, *tables]))

    def start(self) -> None:
        self.process = Tracker("run", env=os.environ, log=self._folder / "daemon.log", folder=self._folder)
        until(lambda: bool(self.logged("started")))

    def logged(self, name: str) -> list[dict[str, Any]]:
        return logged(self._folder, name)

    def reload(self, event: str) -> dict[str, Any]:
        """Send SIGHUP, wait for one more *event*, and return it."""
        before = len(self.logged(event))
        self.process.send_signal(signal.SIGHUP)
        until(lambda: len(self.logged(event)) > before)
        return self.logged(event)[-1]

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(30)


@pytest.fixture
def served(url: str, tmp_path: Path) -> Iterator[Served]:
    served = Served(url, tmp_path)
    yield served
    served.process.kill()


def test_clusters_and_addresses_change_without_a_restart(engine: sa.Engine, script: Script, served: Served) -> None:
    """A repaired address is asked at once, a cluster is added, another one removed; the worker is the same.

    That a cluster is back is logged once.
    """
    served.write(w1="http://127.0.0.1:1", w2=script.url)
    served.start()
    add(engine, "j0", "j1", "j2")
    add(engine, "of-w2", cluster="w2")
    add(engine, "of-w3", cluster="w3")
    until(lambda: script.asked == ["of-w2"])
    until(lambda: bool(served.logged("cluster_paused")))
    served.write(w1=script.url, w3=script.url)
    assert served.reload("reloaded")["clusters"] == "w1,w3"
    until(lambda: sorted(script.asked) == ["j0", "j1", "j2", "of-w2", "of-w3"])
    add(engine, "late", cluster="w2")
    add(engine, "last", cluster="w3")
    until(lambda: script.asked[-1] == "last")
    assert served.stop() == 0
    assert "late" not in script.asked
    with database.reading(engine) as connection:
        assert connection.execute(sa.select(WORKERS.c.stopped_at.is_not(None))).scalars().all() == [True]
    once = ("started", "cluster_paused", "reloaded", "cluster_resumed", "stopped")
    assert [len(served.logged(name)) for name in once] == [1] * 5
    assert len(texts(engine)) >= 2  # sealed at the reload and at the stop
    histories_are_whole(engine)


@on_sqlite
def test_settings_that_are_wrong_change_nothing(
    engine: sa.Engine, script: Script, served: Served, tmp_path: Path
) -> None:
    """Each is logged in one line with what to do, and the daemon polls on with the old ones; then they are right."""
    first, second = free_port(), free_port()
    served.write(f"http_port = {first}", w1=script.url)
    served.start()
    good = {"w1": script.url}
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        (tmp_path / "rubbish.pem").write_text("rubbish")
        for number, (top, clusters, message) in enumerate(
            [
                ("= rubbish", good, "tracker.toml"),
                ('database_url = "sqlite:///other.db"', good, "restart the daemon"),
                ("", {}, "no cluster is configured"),
                ('signing_key_file = "missing.pem"', good, "missing.pem"),
                (f"http_port = {taken.getsockname()[1]}", good, "cannot listen on 127.0.0.1"),
                ("", {"w1": f'https://localhost"\nca_bundle = "{tmp_path}/rubbish.pem'}, "is not a PEM file"),
            ]
        ):
            served.write(top, **clusters)
            assert message in served.reload("settings_refused")["error"]
            add(engine, f"j{number}")
            until(lambda number=number: script.asked[-1:] == [f"j{number}"])  # type: ignore[misc]
            assert is_listening(first)
    assert served.logged("reloaded") == []
    served.write(f"http_port = {second}", w1=script.url)
    served.reload("reloaded")
    assert (is_listening(first), is_listening(second)) == (False, True)
    assert served.stop() == 0


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
def test_ten_clusters_that_hang_delay_none_of_ninety(engine: sa.Engine, script: Script, served: Served) -> None:
    """All are due at once; what hangs holds threads of its own cluster only."""
    names = [f"c{i}" for i in range(100)]
    hung, others = names[:10], names[10:]
    go_on = threading.Event()
    script.hold = lambda jid: go_on.wait(30) if jid in hung else None
    served.write('request_timeout = "25s"', **dict.fromkeys(names, script.url))
    served.start()
    for name in hung:
        add(engine, name, cluster=name)
    until(lambda: set(hung) <= set(script.asked), 40)
    began = time.monotonic()
    for name in others:
        add(engine, f"a-{name}", cluster=name)
    until(lambda: len(set(script.asked)) == 100, 20)
    assert time.monotonic() - began < 12
    go_on.set()
    assert served.stop() == 0


def test_a_terminal_that_is_gone_stops_the_daemon(engine: sa.Engine, script: Script, url: str) -> None:
    """Everything is recorded and sealed, as after SIGTERM."""
    add(engine, "a")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(TRACKER, ["tracker", "run"], environment(url, script.url))  # noqa: S606  # in a terminal of its own
    until(lambda: job(engine, "a").status == "waiting")
    os.close(terminal)  # the kernel sends SIGHUP
    until(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid)
    with database.reading(engine) as connection:
        assert connection.execute(sa.select(WORKERS.c.stopped_at)).scalar_one() is not None
    assert len(texts(engine)) == 1


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
def test_a_reload_waits_for_the_database(engine: sa.Engine, script: Script, served: Served, url: str) -> None:
    """While it is away all that runs goes on with the old settings; the log says once that it is away, and back."""
    port = free_port()
    served.write(f"http_port = {port}", w1=script.url)
    served.start()
    add(engine, "early")
    until(lambda: job(engine, "early").status == "waiting")
    engine.dispose()
    name, maintenance = sa.make_url(url).database, sa.make_url(url).set(database="postgres")
    run_sql(maintenance, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    run_sql(maintenance, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    until(lambda: bool(served.logged("database_unavailable")))
    served.process.send_signal(signal.SIGHUP)
    time.sleep(0.5)  # the daemon takes note of a signal five times as fast
    assert (is_listening(port), served.logged("reloaded")) == (True, [])
    run_sql(maintenance, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    until(lambda: bool(served.logged("reloaded")))
    until(lambda: bool(served.logged("database_available")))
    add(engine, "a")
    until(lambda: job(engine, "a").status == "waiting")
    assert served.stop() == 0
    assert [len(served.logged(f"database_{word}")) for word in ("unavailable", "available")] == [1, 1]


@on_sqlite
def test_the_pulse_gets_each_look_and_each_request(engine: sa.Engine, script: Script, url: str) -> None:
    """What is beside the polling knows when a look was completed, and what came of each request."""

    class Counting(daemon.Pulse):
        def tick(self, seconds: float) -> None:
            super().tick(seconds)
            ticks.append(seconds)

        def asked(self, cluster: str, outcome: str, seconds: float) -> None:
            assert 0 < seconds < 10
            outcomes.append((cluster, outcome))
            if len(outcomes) == 2:
                stop.set()

    ticks, outcomes = list[float](), list[tuple[str, str]]()
    add(engine, "a", "b")
    script.answers["b"] = 400
    stop, pulse = daemon.Stop(), Counting()
    settings = Settings(database_url=url, clusters={"w1": cluster_settings(script.url)})
    daemon.run(settings, stop=stop, pulse=pulse)
    assert sorted(outcomes) == [("w1", "answer"), ("w1", "bad_answer")]
    assert ticks
    assert pulse.age() < 10


def test_a_signal_that_comes_too_early_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGHUP while the settings are read the first time: wrong settings are still what ends the process."""

    def load() -> Settings:
        os.kill(os.getpid(), signal.SIGHUP)
        raise BadConfiguration("these settings are wrong")

    monkeypatch.setattr(settings, "load", load)
    before = signal.getsignal(signal.SIGHUP)
    try:
        assert cli.main(["run"]) == 78
    finally:
        signal.signal(signal.SIGHUP, before)
