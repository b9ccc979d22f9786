"""``tracker deploy``: print the files of ``tracker/deploy/``, which run tracker on a server. Arguments and printing."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import click

from tracker.cli.destination import output_to
from tracker.cli.output import example, plain
from tracker.errors import Refused

FILES = {
    "systemd": ("tracker.service",),
    "systemd-timer": ("tracker-once.service", "tracker-once.timer"),
    "docker": ("Dockerfile",),
    "compose": ("compose.yaml",),
    "prometheus": ("prometheus.yml", "alerts.rules.yml"),
}
"""By name: the files of it."""


@click.command(epilog=example("tracker deploy systemd", "tracker deploy prometheus -o /etc/prometheus"))
@click.argument("name", type=click.Choice(list(FILES)))
@click.option("-o", "--output", metavar="DIR", help="Write each file into this folder. Default: print them.")
def deploy(name: str, output: str | None) -> None:
    """Print files for a server: for systemd, containers or Prometheus.

    The first lines of each file say what it needs and how it was tested. tracker/deploy/OPERATIONS.md shows each step.
    If DIR already holds one of the files with different content, nothing is written.
    """
    texts = {file: (files("tracker") / "deploy" / file).read_text("utf-8") for file in FILES[name]}
    if output is None:
        for file, text in texts.items():
            click.echo((f"# ----- {file}\n" if len(texts) > 1 else "") + text, nl=False)
        return
    paths = {Path(output) / file: text for file, text in texts.items()}
    for path, text in paths.items():
        if path.exists() and (not path.is_file() or path.read_bytes() != text.encode()):
            raise Refused(
                plain(f"{str(path)!r} already exists with different content: compare the two, and move it away first")
            )
    try:
        Path(output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = plain(f"cannot make the folder {output!r}: {error.strerror}")
        raise click.BadParameter(why, param_hint="-o") from error
    for path, text in paths.items():
        with output_to(path, "csv"):
            click.echo(text, nl=False)
        click.echo(plain(f"{path} written."), err=True)
