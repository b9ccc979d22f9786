"""What systemctl does with tracker's units, where no systemd runs: ``python -m tests.units ROOT VERB [--now] [UNIT]``.

It starts, stops and reloads a unit by the unit's own lines: command, folder, environment, secrets, READY, signals. Each
absolute path in them is below ROOT. Leaves out the sandbox, which `systemd-analyze` judges.
"""

from __future__ import annotations

import configparser
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from time import sleep

SECONDS = 60


def below(root: str, text: str) -> str:
    """Return *text* with each path of a server moved below *root*."""
    return re.sub(r"(?<![\w.])/(opt/tracker|etc|var/lib|run/credentials|srv)\b", rf"{root}/\1", text)


def main(root: str, verb: str, *words: str) -> None:
    name = next((word for word in words if not word.startswith("-")), "").removesuffix(".service")
    if verb == "daemon-reload" or not name:
        return
    if verb in ("enable", "disable"):
        if not Path(f"{root}/etc/systemd/system/{name}").exists():
            name += ".service" * (not name.endswith(".timer"))
        assert "[Install]" in Path(f"{root}/etc/systemd/system/{name}").read_text()
        verb = {"enable": "start", "disable": "stop"}[verb] if "--now" in words else ""
    name = name.removesuffix(".service").removesuffix(".timer")
    unit = configparser.RawConfigParser(strict=False, delimiters="=", comment_prefixes="#")
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(below(root, Path(f"{root}/etc/systemd/system/{name}.service").read_text()))
    service, pid_file = unit["Service"], Path(root, f"{name}.pid")
    if verb in ("stop", "restart") and pid_file.exists():
        pid = int(pid_file.read_text())
        os.kill(pid, signal.SIGTERM)
        for _ in range(SECONDS * 10):
            if not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                break
            sleep(0.1)
        pid_file.unlink()
    if verb in ("start", "restart"):
        start(root, f"{name}.service", service, pid_file)
    elif verb == "reload":
        subprocess.run(shlex.split(service["ExecReload"].replace("$MAINPID", pid_file.read_text())), check=True)


def start(root: str, name: str, service: configparser.SectionProxy, pid_file: Path) -> None:
    """Start the unit, and wait until it is ready (``Type=notify``) or has ended (``oneshot``)."""
    key, folder = service["LoadCredential"].split(":")
    credentials = Path(root, "run/credentials", name)
    credentials.mkdir(parents=True, exist_ok=True)
    for file in Path(folder).iterdir():
        (credentials / f"{key}_{file.name}").write_bytes(file.read_bytes())
        (credentials / f"{key}_{file.name}").chmod(0o400)
    environment = dict([service["Environment"].split("=", 1)])
    environment |= {"CREDENTIALS_DIRECTORY": str(credentials), "LANG": "C", "PATH": "/usr/bin:/bin"}
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        ready.bind(f"{short}/notify")
        ready.settimeout(0.2)
        environment["NOTIFY_SOCKET"] = f"{short}/notify"
        environment["WATCHDOG_USEC"] = "180000000"
        with Path(root, "journal").open("ab") as journal:
            process = subprocess.Popen(
                shlex.split(service["ExecStart"]),
                cwd=service["WorkingDirectory"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=journal,
                stderr=journal,
                start_new_session=True,
            )
        if service["Type"] == "oneshot":
            sys.exit(process.wait(SECONDS))
        pid_file.write_text(str(process.pid))
        for _ in range(SECONDS * 5):
            with suppress(TimeoutError):
                if b"READY=1" in ready.recv(4096):
                    return
            if process.poll() is not None:
                break
        sys.exit(f"{name} is not ready")


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        main(*sys.argv[1:])
