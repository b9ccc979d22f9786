"""``tracker audit verify``. Owns arguments and printing; `tracker.audit.verify` owns the checks."""

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
from tracker.cli.output import Column, chosen, counted, emit, example, format_option, plain, utc

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
    help="The right key (PEM), from somebody who does not run the database. Default: any key that the chain announces.",
)
@click.option(
    "--trusted",
    type=_FILE,
    multiple=True,
    metavar="FILE",
    help="Checkpoints kept outside, such as TRACKER_CHECKPOINT_FILE: the chain must have them all. A line of the log is"
    " not a checkpoint.",
)
@format_option
def verify(public_key: Path | None, trusted: tuple[Path, ...], format: str | None) -> int:
    """Check that no sealed row was changed, removed or added, and that every history is possible.

    Checks guards, CHECKs, views, rights, indexes, checkpoints, signatures, each sealed row and each job's history, and
    that the table jobs follows from it. Lists every finding, and exits with 1 if there is one. A note may have an
    honest cause and is not a finding. Lists the servers that answered. In csv, standard output has the findings only;
    the rest goes to standard error. Changes nothing.

    Only --trusted shows that the newest rows were cut off, or that everything was sealed again. Keep checkpoints where
    the people who run the database cannot change them.
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
            with redirect_stdout(sys.stderr):  # a person still sees the sources and keys
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
    """Yield the checkpoints in a file, which empty lines separate; only one is in memory at a time."""
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
                except BadCheckpoint as error:  # exit code 2, not 1: this says nothing about the record
                    raise _bad(f"{path}: the checkpoint that begins at line {first}: {error}") from None
                text = []
    if not first:
        raise _bad(f"{path} holds no checkpoint")


def _bad(message: str) -> click.BadParameter:
    return click.BadParameter(plain(message), param_hint="'--trusted'")


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int | None], None]]:
    """Yield a function that shows the progress, on a terminal only."""
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
    values = asdict(report)
    for source, listed in zip(report.sources, values["sources"], strict=True):
        listed["flags"] = source.flags
    at = None if report.sealed_at is None else utc(report.sealed_at).isoformat(timespec="microseconds")
    return {"is_good": report.is_good, "qualifications": report.qualifications} | values | {"sealed_at": at}


def _print_context(report: Report) -> None:
    """Print what is not a finding and a person must judge: the servers, the notes, the keys, the last checkpoint."""
    rows = ((s.cluster, s.asked, s.recorded_at, ", ".join(s.flags)) for s in report.sources)
    columns = ("cluster", "asked", Column("recorded_at", "since"), Column("flags", "look at this"))
    emit(rows, columns, "table", title="Where answers came from", empty="No source is recorded: no answer yet.")
    for note in report.notes[:SHOWN_NOTES]:
        click.echo(plain(f"note: {note.message}"))
    if (more := len(report.notes) - SHOWN_NOTES + report.more_notes) > 0:
        click.echo(f"note: {more} more (--format json lists {len(report.notes)})")
    for key_id, (first, last) in report.keys.items():
        which = f"checkpoint {first}" if first == last else f"checkpoints {first} to {last}"
        click.echo(f"Signed with key {key_id}: {which}.")
    if report.sha256:
        click.echo(f"Last checkpoint: number {report.number}, SHA-256 {report.sha256}, sealed at {report.sealed_at}.")


def _result(report: Report) -> list[str]:
    """Return the last lines: the result, what it means, and what qualifies it."""
    counts = (
        f"{counted(report.jobs, 'job')}, {counted(report.transitions, 'transition')},"
        f" {counted(report.checkpoints, 'checkpoint')} over {counted(report.sealed, 'row')},"
        f" {counted(report.unsealed, 'row')} not sealed yet"
    )
    if number := len(report.findings) + report.more:
        more = f" ({report.more} not shown)" if report.more else ""
        return [f"NOT OK: {counted(number, 'finding')}{more}: {counts}."]
    but = f", BUT {', '.join(report.qualifications)}" if report.qualifications else ""
    lines = [f"OK{but}: {counts}.", MEANING.format(number=report.number or 0)]
    explained = {
        "NOTHING SEALED": "anyone who can write to the database can change every row",
        "NOT SIGNED": "anyone who can write to the database can change it and seal it again",
        "PARTLY NOT SIGNED": f"checkpoints without a signature of their own: {report.unsigned} of {report.checkpoints};"
        " a later signature covers them",
        "KEY NOT CHECKED": "compare the id of the key with the id that you were given, or give --public-key",
        "NOTHING TRUSTED GIVEN": "only --trusted shows that the end was cut off, or that everything was sealed again",
        "A SIMULATOR MAY HAVE ANSWERED": "a server that answered is on the same machine, or was asked over plain HTTP",
    }
    return lines + [f"{words}: {explained[words]}." for words in report.qualifications]
