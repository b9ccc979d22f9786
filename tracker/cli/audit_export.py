"""``tracker audit export``: the evidence pack. Arguments and printing; what is in it is `tracker.audit.pack`'s."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from tracker.cli.output import example, plain


@click.command(epilog=example("tracker audit export pack"))
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def export(folder: Path) -> None:
    """Write the evidence to the new folder DIR: everything that is sealed, the reports that follow, and verify.sh.

    Its README.txt says how anyone checks it with sha256sum, openssl and sqlite3. With TRACKER_SIGNING_KEY_FILE the pack
    is signed. DIR must not exist; a pack is whole or not there at all.
    """
    from tracker.audit import pack
    from tracker.audit.keys import SigningKey
    from tracker.cli.look import opened

    with opened() as (settings, engine), _progress() as progress:
        key = SigningKey.load(settings.signing_key_file) if settings.signing_key_file else None
        made = pack.export(engine, folder, zone=settings.zone, key=key, progress=progress)
    as_of = f"{made.as_of:%Y-%m-%d %H:%M:%S} UTC"
    lines = [f"{made.folder}: checkpoints 1 to {made.number}, {made.rows} rows, as of {as_of}"]
    if made.key_id is None:
        lines.append("The last checkpoint is not signed: set TRACKER_SIGNING_KEY_FILE (tracker audit keygen FILE)")
    elif not made.is_signed:
        why = f"is not the key {made.key_id} of the last checkpoint" if key else "is not set"
        lines.append(f"The pack is NOT SIGNED: TRACKER_SIGNING_KEY_FILE {why}")
    if made.unsealed:
        lines.append(f"{made.unsealed} rows are not sealed yet and not in the pack: the daemon seals them")
    lines.append(f"SHA-256 of {pack.SUMS}, which lists all files: {made.sha256}")
    for line in lines:
        click.echo(plain(line), err=True)


@contextmanager
def _progress() -> Iterator[Callable[[float], None]]:
    """Yield what moves a bar on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda share: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda share: bar.update(task, completed=share)
