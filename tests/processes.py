"""The tracker command as a process of its own that starts in a tenth of a second.

It is a fork of a process that has imported tracker already. A daemon among them looks for due jobs ten times a second.
A test that is about the console script, another user or another locale starts the script itself.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import SecretStr

from tracker import cli, daemon, database
from tracker.alerts import Alerts
from tracker.settings import Settings

_SERVER = multiprocessing.get_context("forkserver")
_MODULES = ["run", "status", "db", "intake", "look", "report", "operate", "config"]
_SERVER.set_forkserver_preload([*(f"tracker.cli.{name}" for name in _MODULES), "tracker.web", "tracker.audit.sealing"])
_QUICK = {"LOOK_SECONDS": 0.1, "AWAY_SECONDS": 0.2, "BEAT_SECONDS": 1}


class Process:
    """A process that runs *work*, with the interface of `subprocess.Popen` as far as tests need it."""

    def __init__(self, work: Callable[..., None], *arguments: object) -> None:
        self._process = _SERVER.Process(target=work, args=arguments, daemon=True)
        self._process.start()
        # Or a thread that starts another process could take the exit code from the thread that waits for this one.
        vars(multiprocessing.process)["_children"].discard(self._process)
        self.pid = self._process.pid or 0

    def send_signal(self, number: int) -> None:
        if self._process.is_alive():
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def wait(self, seconds: float = 60) -> int:
        """Return its exit code; that of a signal is below zero."""
        self._process.join(seconds)
        assert self._process.exitcode is not None, "it still runs"
        return self._process.exitcode


class Tracker(Process):
    """``tracker`` with *words*, in *folder* (else here); stderr is appended to the file *log*."""

    def __init__(
        self, *words: str, env: Mapping[str, str], log: Path, out: Path | None = None, folder: Path | None = None
    ) -> None:
        log.touch()
        super().__init__(_command, words, dict(env), folder or Path.cwd(), out or os.devnull, log)


def _command(words: tuple[str, ...], env: dict[str, str], folder: Path, out: Path | str, log: Path) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    for number, path in ((1, out), (2, log)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOCTTY, 0o644), number)
    for name, seconds in _QUICK.items():
        setattr(daemon, name, seconds)
    sys.exit(cli.main(words))


def tracker(*words: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run ``tracker`` to its end."""
    with TemporaryDirectory() as folder:
        out, log = Path(folder, "out"), Path(folder, "log")
        code = Tracker(*words, env=env, log=log, out=out).wait()
        return subprocess.CompletedProcess(words, code, out.read_text(), log.read_text())


def look_once(url: str, destination: str) -> None:
    """Send the alerts that are due in the database *url* (a `work` of `Process`)."""
    Alerts(Settings(alert_urls=(SecretStr(destination),)), once=True).look(database.open_database(url))
