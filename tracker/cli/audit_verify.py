"""``tracker audit verify``. Arguments and printing; what is checked is `tracker.audit.verify`'s."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import click

from tracker.cli.look import opened
from tracker.cli.output import Column, chosen, emit, example, format_option, plain, utc

if TYPE_CHECKING:
    from tracker.audit.checkpoint import Signed
    from tracker.audit.findings import Finding, Report

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_COLUMNS = ("what", "checkpoint", "segment", "cluster", "jid", "seq", "message")
SHOWN_NOTES = 10  # a server whose clock is wrong makes a note of each answer
MEANING = (
    "What OK means: no row sealed up to checkpoint {number} was changed, removed or added since it was sealed, as far"
    " as this key and this checkpoint reach. It does not mean that each row was true when it was written: actor is"
    " self-asserted, and clusters, workers and alerts are not sealed."
)


@click.command(
    epilog=example(
        "tracker audit verify",
        "tracker audit verify --public-key tracker.pem --trusted checkpoints.txt",
        "tracker audit verify --format json > verified.json",
    )
)
@click.option(
    "--public-key",
    type=_FILE,
    metavar="FILE",
    help="The right key (PEM), from somebody who does not run the database. Default: any key of one succession.",
)
@click.option(
    "--trusted",
    type=_FILE,
    multiple=True,
    metavar="FILE",
    help="Checkpoints kept outside, as in TRACKER_CHECKPOINT_FILE: all must be in the chain. A line of the log is not a"
    " checkpoint: it has the number and SHA-256 only.",
)
@format_option
def verify(public_key: Path | None, trusted: tuple[Path, ...], format: str | None) -> int:
    """Check that no sealed row was changed, removed or added, and that the record can be true.

    Checks guards, CHECKs, views, rights and indexes, checkpoints and signatures, each sealed row, each job's history,
    and that each row of jobs follows from it. Names every finding, and then exits with 1. Notes, which may well be
    honest, do not count. Lists where answers came from; in csv, what is not a finding is on standard error. Changes
    nothing.

    Without --trusted nobody can see that the newest rows were cut off, or that all of it was sealed anew: keep
    checkpoints where the people who run the database cannot change them.
    """
    from tracker import database
    from tracker.audit import verify as checks
    from tracker.audit.keys import PublicKey

    key = None if public_key is None else PublicKey.load(public_key)
    outside = (signed for path in trusted for signed in _checkpoints(path))
    with opened() as (settings, engine), _progress() as progress, database.reading(engine) as connection:
        report = checks.verify(
            connection, public_key=key, trusted=outside, zone=ZoneInfo(settings.timezone), progress=progress
        )
    match chosen(format):
        case "json":
            click.echo(json.dumps(_json(report), indent=2))
        case "csv":
            with redirect_stdout(sys.stderr):  # a person reads it in any case: no source or key stays unseen
                _print_context(report)
            emit((_row(finding) for finding in report.findings), _COLUMNS, "csv")
            for line in _result(report):
                click.echo(plain(line), err=True)
        case _:
            _print_context(report)
            for finding in report.findings:
                click.echo(plain(f"FOUND {finding.what}: {finding.message}"))
            for line in _result(report):
                click.echo(plain(line))
    return 0 if report.is_good else 1


def _checkpoints(path: Path) -> Iterator[Signed]:
    """Yield the checkpoints in a file of one or many, with empty lines between, one in memory at a time."""
    from tracker.audit.checkpoint import parse
    from tracker.errors import BadCheckpoint

    text: list[str] = []
    number = first = 0
    with path.open(encoding="ascii", errors="replace", newline="\n") as file:
        for number, line in enumerate(chain(file, "\n"), 1):
            if line != "\n":
                text.append(line)
            elif text:
                first = number - len(text)
                try:
                    yield parse("".join(text))
                except BadCheckpoint as error:  # 2, not 1: it says nothing about the record
                    raise _bad(f"{path}: the checkpoint that begins at line {first}: {error}") from None
                text = []
    if not first:
        raise _bad(f"{path} has no checkpoint in it")


def _bad(message: str) -> click.BadParameter:
    return click.BadParameter(plain(message), param_hint="'--trusted'")


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int | None], None]]:
    """Yield what shows the progress: on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda phase, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=Console(stderr=True, highlight=False), transient=True) as bar:
        tasks = {}

        def shown(phase: str, done: int, total: int | None) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=total)
            bar.update(tasks[phase], completed=done)

        yield shown


def _row(finding: Finding) -> list[object]:
    return [getattr(finding, name) for name in _COLUMNS]


def _json(report: Report) -> dict[str, object]:
    told = asdict(report)
    for source, listed in zip(report.sources, told["sources"], strict=True):
        listed["flags"] = source.flags
    at = None if report.sealed_at is None else utc(report.sealed_at).isoformat(timespec="microseconds")
    return {"is_good": report.is_good, "qualifications": report.qualifications} | told | {"sealed_at": at}


def _print_context(report: Report) -> None:
    """Print what is not a finding, and what a person has to judge: who was asked, whose key it is, what to compare."""
    rows = ((s.cluster, s.asked, s.recorded_at, ", ".join(s.flags)) for s in report.sources)
    columns = ("cluster", "asked", Column("recorded_at", "since"), Column("flags", "look at this"))
    emit(rows, columns, "table", title="Where answers came from", empty="No source is on record: no answer came yet.")
    for note in report.notes[:SHOWN_NOTES]:
        click.echo(plain(f"note: {note.message}"))
    if (more := len(report.notes) - SHOWN_NOTES + report.more_notes) > 0:
        click.echo(f"note: {more} more (--format json lists {len(report.notes)})")
    for key_id, (first, last) in report.keys.items():
        click.echo(f"Signed with key {key_id}: checkpoints {first} to {last}.")
    if report.sha256:
        click.echo(f"Last checkpoint: number {report.number}, SHA-256 {report.sha256}, sealed at {report.sealed_at}.")


def _result(report: Report) -> list[str]:
    """Return the last lines: the result, what it does not rest on, and what it means."""
    counts = (
        f"{report.jobs} jobs, {report.transitions} transitions, {report.checkpoints} checkpoints over {report.sealed}"
        f" rows, {report.unsealed} rows since"
    )
    if number := len(report.findings) + report.more:
        more = f" ({report.more} not shown)" if report.more else ""
        return [f"NOT OK: {number} finding{'s' if number > 1 else ''}{more}: {counts}."]
    but = f", BUT {', '.join(report.qualifications)}" if report.qualifications else ""
    lines = [f"OK{but}: {counts}.", MEANING.format(number=report.number or 0)]
    explained = {
        "NOT SIGNED": "anyone who can write to the database can seal it anew",
        "KEY NOT CHECKED": "compare the key's id with the one that you were given, or give --public-key",
        "NOTHING TRUSTED GIVEN": "give --trusted: nothing else shows that the end was cut off or all of it sealed anew",
        "A SIMULATOR MAY HAVE ANSWERED": "a server is on the same machine, or was asked over plain HTTP",
    }
    return lines + [f"{words}: {explained[words]}." for words in report.qualifications if words in explained]
