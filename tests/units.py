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
from time import monotonic, sleep

SECONDS = 60


def below(root: Path, text: str) -> str:
    """Return *text* with each path of a server moved below *root*."""
    return re.sub(r"(?<![\w.])/(opt/tracker|etc|var/lib|run/credentials|srv)\b", rf"{root}/\1", text)


def main(root: Path, verb: str, *words: str) -> None:
    unit = next((word for word in words if not word.startswith("-")), "").removesuffix(".timer")
    verb = {"enable": "start", "disable": "stop"}[verb] if "--now" in words else verb
    pid_file = root / f"{unit}.pid"
    if verb in ("stop", "restart") and pid_file.exists():
        os.kill(pid := int(pid_file.read_text()), signal.SIGTERM)
        while Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
            sleep(0.05)
        pid_file.unlink()
    if verb in ("start", "restart", "reload"):
        file = root / f"etc/systemd/system/{unit}.service"
        service = read(root, file)
        if verb == "reload":
            command = service["ExecReload"].replace("$MAINPID", pid_file.read_text())
            journal = root / "journal"
            before = journal.read_text()
            subprocess.run(shlex.split(command), check=True)
            end = monotonic() + SECONDS
            while not re.search("reloaded|settings_refused", journal.read_text()[len(before) :]) and monotonic() < end:
                sleep(0.05)
        else:
            start(root, file.name, service, pid_file)


def read(root: Path, file: Path) -> configparser.SectionProxy:
    """Return the section [Service] of a unit."""
    lines = configparser.RawConfigParser(strict=False, delimiters="=", comment_prefixes="#")
    lines.read_string(below(root, file.read_text()))
    return lines["Service"]


def start(root: Path, name: str, service: configparser.SectionProxy, pid_file: Path) -> None:
    """Start a unit, and wait until it is ready (``Type=notify``) or has ended (``oneshot``)."""
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        ready.bind(f"{short}/notify")
        ready.settimeout(0.2)
        process = spawn(root, name, service, f"{short}/notify")
        if service["Type"] == "oneshot":
            sys.exit(process.wait(SECONDS))
        pid_file.write_text(str(process.pid))
        end = monotonic() + SECONDS
        while process.poll() is None and monotonic() < end:
            with suppress(TimeoutError):
                if b"READY=1" in ready.recv(4096):
                    return
        sys.exit(f"{name} is not ready")


def spawn(root: Path, name: str, service: configparser.SectionProxy, notify_socket: str) -> subprocess.Popen[bytes]:
    """Hand over the secrets, and run the unit's command; it writes to the journal."""
    key, folder = service["LoadCredential"].split(":")
    credentials = root / "run/credentials" / name
    credentials.mkdir(parents=True, exist_ok=True)
    for file in Path(folder).iterdir():
        copy = credentials / f"{key}_{file.name}"
        copy.unlink(missing_ok=True)
        copy.write_bytes(file.read_bytes())
        copy.chmod(0o400)
    environment = dict([service["Environment"].split("=", 1)]) | {"CREDENTIALS_DIRECTORY": str(credentials)}
    environment |= {"NOTIFY_SOCKET": notify_socket, "WATCHDOG_USEC": "180000000"}
    with (root / "journal").open("ab") as journal:
        return subprocess.Popen(
            shlex.split(service["ExecStart"]),
            cwd=service["WorkingDirectory"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=journal,
            stderr=journal,
            start_new_session=True,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
