"""``tracker audit verify``. Arguments and printing; what is checked is `tracker.audit.verify`'s."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import asdict
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
_COLUMNS = ("what", "checkpoint", "segment", "table", "row_id", "cluster", "jid", "seq", "message")


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
    help="The right key (PEM), from somebody else than who runs the database. Default: any that the checkpoints name.",
)
@click.option(
    "--trusted",
    type=_FILE,
    multiple=True,
    metavar="FILE",
    help="The texts of checkpoints kept outside, as in TRACKER_CHECKPOINT_FILE: none may be missing. A line of the log"
    " is no such text: it has a checkpoint's number and SHA-256 only.",
)
@format_option
def verify(public_key: Path | None, trusted: tuple[Path, ...], format: str | None) -> int:
    """Check that nothing in the record was changed, removed, put in between or cut off.

    Reads everything once: guards, checkpoints, signatures, each sealed row, and whether each job is what its history
    says. Names every finding and its place, and then exits with 1. Lists where answers came from; in csv, what is no
    finding is on standard error. Changes nothing.

    Without --trusted nobody can see that the newest rows were cut off, or all of it sealed anew: keep checkpoints
    where who runs the database cannot change them.
    """
    from tracker import database
    from tracker.audit import verify as checks
    from tracker.audit.checkpoint import PublicKey
    from tracker.errors import Refused

    key = None if public_key is None else PublicKey.load(public_key)
    with ExitStack() as stack:

        def outside() -> Iterator[Signed]:
            for path in trusted:
                last = None
                try:
                    with path.open(encoding="ascii", errors="replace", newline="\n") as file:
                        for last in checks.checkpoints(file):
                            yield last
                except Refused as error:  # 2, not 1: it says nothing about the record
                    raise click.BadParameter(plain(f"{path}: {error}"), param_hint="'--trusted'") from None
                if last is None:
                    raise click.BadParameter(plain(f"there is no checkpoint in {path}"), param_hint="'--trusted'")

        settings, engine = stack.enter_context(opened())
        with _progress() as progress, database.reading(engine) as connection:
            report = checks.verify(
                connection, public_key=key, trusted=outside(), zone=ZoneInfo(settings.timezone), progress=progress
            )
    match chosen(format):
        case "json":
            click.echo(json.dumps(_json(report), indent=2))
        case "csv":
            with redirect_stdout(sys.stderr):  # a person reads it all the same: no source, no key goes untold
                _tell(report, is_key_given=key is not None)
            emit((_row(finding) for finding in report.findings), _COLUMNS, "csv")
            click.echo(plain(_summary(report)), err=True)
        case _:
            _tell(report, is_key_given=key is not None)
            for finding in report.findings:
                click.echo(plain(f"FOUND {finding.what}: {finding.message}"))
            if report.more:
                click.echo(f"FOUND {report.more} more.")
            click.echo(plain(_summary(report)))
    return 0 if report.is_good else 1


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yield what tells of the progress: on a terminal, and nowhere else."""
    if not sys.stderr.isatty():
        yield lambda phase, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=Console(stderr=True, highlight=False), transient=True) as bar:
        tasks = {}

        def told(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase)
            bar.update(tasks[phase], completed=min(done, total), total=total)

        yield told


def _row(finding: Finding) -> list[object]:
    return [getattr(finding, name) for name in _COLUMNS]


def _json(report: Report) -> dict[str, object]:
    told = asdict(report)
    for source, listed in zip(report.sources, told["sources"], strict=True):
        listed |= {name: _text(listed[name]) for name in ("recorded_at", "first_at", "last_at")}
        listed["flags"] = source.flags
    return {"is_good": report.is_good, **told, "sealed_at": _text(report.sealed_at)}


def _text(at: object) -> str | None:
    from datetime import datetime

    return utc(at).isoformat(timespec="microseconds") if isinstance(at, datetime) else None


def _tell(report: Report, *, is_key_given: bool) -> None:
    """Print what is no finding, and what a person has to judge: who was asked, whose key it is, what to compare."""
    sources = (
        (s.cluster, s.base_url + s.path, s.transitions, s.first_at, s.last_at, ", ".join(s.flags))
        for s in report.sources
    )
    columns = (
        "cluster",
        "asked",
        "transitions",
        Column("first_at", "first"),
        Column("last_at", "last"),
        "look at this",
    )
    emit(
        sources, columns, "table", title="Where answers came from", empty="No source is on record: no answer came yet."
    )
    for key in report.keys:
        click.echo(f"Signed with key {key.key_id}: checkpoints {key.first} to {key.last}.")
    if report.keys and not is_key_given:
        click.echo("Is that key the right one? Compare its id with what somebody else told you, or give --public-key.")
    if report.unsigned:
        click.echo(
            f"NOT SIGNED: {report.unsigned} of {report.checkpoints} checkpoints."
            " Whoever can write the database can seal anew."
        )
    if report.sha256:
        click.echo(f"Last checkpoint: number {report.number}, SHA-256 {report.sha256}, sealed at {report.sealed_at}.")
        if not report.trusted:
            click.echo(
                "Compare it with one kept outside, or give --trusted: a tail that was cut off shows nowhere else."
            )


def _summary(report: Report) -> str:
    number = len(report.findings) + report.more
    result = "Nothing was found" if report.is_good else f"{number} finding{'s' if number > 1 else ''}"
    unsigned = f" ({report.unsigned} not signed)" if report.unsigned else ""
    return (
        f"{result}: {report.jobs} jobs, {report.transitions} transitions, {report.checkpoints} checkpoints{unsigned}"
        f" over {report.sealed} rows, {report.unsealed} rows since."
    )
