"""``tracker audit export``: the evidence pack. Arguments and printing; what is in it is `tracker.audit.pack`'s."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path

import click

from tracker.cli.output import example, plain, utc
from tracker.cli.report import _instant, _when


@click.command(
    epilog=example(
        "tracker audit export pack",
        "tracker audit export pack-2026 --since 2026-01-01 --until 2026-12-31",
        "tracker audit export pack-w1 --cluster w1a2b3c4d",
    )
)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--since",
    callback=_when,
    metavar="WHEN",
    help="Only what was sealed then or later: a date of the legal time zone, or a time with its offset.",
)
@click.option(
    "--until", callback=_when, metavar="WHEN", help="Only what was sealed before; with a date, that day included."
)
@click.option("--cluster", multiple=True, metavar="NAME", help="Only segments of this cluster.")
def export(
    folder: Path, since: date | datetime | None, until: date | datetime | None, cluster: tuple[str, ...]
) -> None:
    """Write what is sealed to the folder DIR, for somebody who trusts nobody.

    With it go the checkpoints, reports as CSV and as a page, and verify.sh, which needs only sh, awk, sha256sum and
    openssl. With TRACKER_SIGNING_KEY_FILE the pack is signed. It is as of the last seal in it and the same bytes each
    time. DIR must not be there; a pack is whole or not there at all.
    """
    from tracker.audit import pack
    from tracker.audit.checkpoint import SigningKey
    from tracker.cli.look import opened

    with opened() as (settings, engine), _progress() as told:
        key = SigningKey.load(settings.signing_key_file) if settings.signing_key_file else None
        made = pack.export(
            engine,
            folder,
            since=_instant(since, settings.zone),
            until=_instant(until, settings.zone, at_end=True),
            clusters=cluster,
            zone=settings.zone,
            key=key,
            told=told,
        )
    said = [
        f"{made.folder}: checkpoints 1 to {made.checkpoints}, {made.segments} segments from checkpoint {made.first} on,"
        f" {made.transitions} transitions, {made.jobs} jobs, as of {utc(made.as_of).isoformat(' ', 'seconds')}"
    ]
    if made.earlier:
        said.append(f"{made.earlier} of the transitions are of jobs begun earlier: only transitions.csv tells them")
    if made.key_id is None:
        said.append("The checkpoints are not signed (TRACKER_SIGNING_KEY_FILE; tracker audit keygen)")
    elif not made.is_signed:
        why = f"it is not the key {made.key_id} that signed the last checkpoint" if key else "it is not set"
        said.append(f"The pack as a whole is not signed by TRACKER_SIGNING_KEY_FILE: {why}")
    if made.unsealed:
        said.append(
            f"{made.unsealed} rows are not sealed yet, so not in the pack:"
            " the daemon seals them, or `tracker run --once`"
        )
    if made.differing:
        more = f" and {len(made.differing) - 3} more" if len(made.differing) > 3 else ""
        said.append(
            f"THE RECORD WAS CHANGED since it was sealed: {', '.join(made.differing[:3])}{more} (tracker audit verify)"
        )
    said.append(f"SHA-256 of SHA256SUMS, which stands for all of it: {made.digest}")
    for line in said:
        click.echo(plain(line), err=True)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Yield what moves a bar on standard error, if a person sees it."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

    shown = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*shown, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
