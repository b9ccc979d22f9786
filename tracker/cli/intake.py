"""Registering: ``tracker add`` and ``tracker import``. Arguments and printing; what is done is in `tracker.intake`.

What became of the jobs goes to standard output; what was refused, and hints, to standard error.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import click

from tracker.cli.look import opened
from tracker.cli.output import example, plain, utc
from tracker.errors import Conflict, Refused
from tracker.status import Kind

if TYPE_CHECKING:
    import sqlalchemy as sa

    from tracker.deadline import Deadline

_kind = click.Choice([kind.value for kind in Kind])


@click.command(
    epilog=example(
        "tracker add ca24b4e2-34ab-406a-a4db-b30b0247837a",
        "tracker add JID JID --kind export --reference DSR-1042 --received-at 2026-11-20",
        "tracker add JID --cluster w1a2b3c4d --submitted-at 2026-11-23T14:05:00+01:00",
    )
)
@click.argument("jids", metavar="JID...", nargs=-1, required=True)
@click.option("--cluster", metavar="NAME", help="Whose jobs they are; may be left out where one is configured.")
@click.option("--kind", type=_kind, help="What they do with the person's data. Default: unknown.")
@click.option(
    "--submitted-at",
    metavar="TIME",
    help="When they were submitted to Elevate: a time with its offset, or a day.",
)
@click.option(
    "--received-at",
    metavar="TIME",
    help="When the person's request reached the company: the legal month counts from here.",
)
@click.option("--reference", metavar="TICKET", help="The person's request; groups its jobs. No personal data.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and write nothing.")
def add(
    jids: tuple[str, ...],
    cluster: str | None,
    kind: str | None,
    submitted_at: str | None,
    received_at: str | None,
    reference: str | None,
    dry_run: bool,
) -> int:
    """Register jobs, so that they are followed until they end.

    A day is taken as its start in the legal time zone. To register a job again with the same facts is harmless, and
    what is left out is not compared; other facts are refused. Jobs that are refused are named, the rest goes in, and
    the exit code is 1 if there was any.
    """
    from tracker import database, intake

    with opened() as (settings, engine):
        times = {}
        for field, text in (("submitted_at", submitted_at), ("received_at", received_at)):
            if text is not None:
                times[field], is_day = intake.parse_time(field, text.strip(), settings.zone)
                if is_day:
                    start = f"start in {settings.timezone}: {utc(times[field]).isoformat(' ', 'seconds')}"
                    click.echo(f"{field}: {text} is taken as that day's {start}", err=True)
        registrations = [intake.Registration(jid, cluster, kind, reference=reference, **times) for jid in jids]
        if dry_run:
            with database.reading(engine) as connection, intake.rehearsing() as rehearsal:
                outcomes = intake.register_many(connection, registrations, settings=settings, rehearsal=rehearsal)
        else:
            with database.writing(engine) as connection:
                outcomes = intake.register_many(connection, registrations, settings=settings)
        for jid, outcome in zip(jids, outcomes, strict=True):
            if isinstance(outcome, Refused):
                which = "" if isinstance(outcome, Conflict) else f"{jid[:255]!r}: "
                click.echo(plain(f"{which}{outcome}"), err=True)
                continue
            done = "registered already" if outcome.already else "would be registered" if dry_run else "registered"
            due = outcome.deadline
            told = f"{outcome.jid} of cluster {outcome.cluster}: {done}; deadline {due.on}, {_counted(due)}"
            click.echo(plain(told))
        refused = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
        if len(refused) < len(jids) and not dry_run:
            _hint(engine)
    return 1 if refused else 0


def _counted(due: Deadline) -> str:
    """Return in words what a deadline is counted from; what people declared is called declared."""
    from tracker.deadline import Basis

    return {
        Basis.RECEIVED: "counted from the declared receipt of the request",
        Basis.SUBMITTED: "counted from the declared submission, since no receipt is declared",
        Basis.REGISTERED: "counted from the registration, since neither receipt nor submission is declared",
    }[due.basis]


def _hint(engine: sa.Engine) -> None:
    """Say what the next step is where no daemon is alive."""
    import sqlalchemy as sa

    from tracker import database
    from tracker.models import WORKERS
    from tracker.reports.overview import ALIVE

    with database.reading(engine) as connection:
        beaten = WORKERS.c.beat_at >= database.now(connection) - ALIVE
        alive = sa.select(sa.exists().where(WORKERS.c.stopped_at.is_(None), beaten))
        if not connection.execute(alive).scalar_one():
            click.echo("No daemon is alive to follow them: start one with `tracker run`.", err=True)


@dataclass(slots=True)
class _Counts:
    """Rows of a file, by what became of them, and the plain dates in them."""

    new: int = 0
    already: int = 0
    refused: int = 0
    plain_dates: int = 0

    @property
    def all(self) -> int:
        return self.new + self.already + self.refused


@click.command(
    "import",
    epilog=example(
        "tracker import jobs.csv",
        "tracker import jobs.csv --dry-run",
        "export-jobs | tracker import - --cluster w1a2b3c4d --kind removal",
    ),
)
@click.argument("file", type=click.File("rb"))
@click.option("--cluster", metavar="NAME", help="For rows that name none; may be left out where one is configured.")
@click.option("--kind", type=_kind, help="For rows that name none. Default: unknown.")
@click.option("--dry-run", is_flag=True, help="Check everything, and write nothing.")
def import_(file: BinaryIO, cluster: str | None, kind: str | None, dry_run: bool) -> int:
    """Register the jobs in a file, or in standard input if FILE is -.

    CSV with a header (comma, semicolon or tab), or JSON Lines, an object a line; UTF-8. Columns or keys, of which only
    jid must be there:

    \b
      jid           as Elevate gave it
      cluster       may be left out where one is configured
      kind          export, removal or unknown
      submitted_at  the job was submitted to Elevate
      received_at   the person's request reached the company: the legal month counts from here
      reference     the person's request, groups its jobs; no personal data

    Times have an offset, as in 2026-11-23T14:05:00+01:00; a plain date is taken as that day's start in the legal time
    zone. White space around a value is dropped, and an empty one counts as left out.

    A row that is wrong is named with its line, field and reason, the rest goes in, and the exit code is 1 if there was
    any. It is committed in pieces: after an interruption import the same file again, which is harmless.
    """
    from tracker import intake

    counts = _Counts()
    would_be = "would be " if dry_run else ""
    with opened() as (settings, engine):
        if cluster is not None:
            settings.cluster(cluster)  # once, not for each row
        rows = intake.read(file, settings.zone, cluster=cluster, kind=kind)
        try:
            with progress(file) as (tell, moved):
                for piece in intake.register_rows(engine, rows, settings=settings, dry_run=dry_run):
                    for row, outcome in piece:
                        counts.plain_dates += row.plain_dates
                        if isinstance(outcome, Refused):
                            counts.refused += 1
                            tell(plain(f"line {row.line}: {outcome}"))
                        elif outcome.already:
                            counts.already += 1
                        else:
                            counts.new += 1
                    moved(counts.all)
        except BaseException:
            if counts.all:
                told = "nothing was written" if dry_run else "they stay, and to import the file again is harmless"
                told = f"{counts.new} {would_be}registered; {told}"
                click.echo(f"It ended early, after {counts.all} rows: {told}.", err=True)
            raise
        if counts.plain_dates:
            start = f"start in {settings.timezone}"
            click.echo(f"Plain dates that were taken as that day's {start}: {counts.plain_dates}.", err=True)
        click.echo(
            f"{counts.new} {would_be}registered, {counts.already} registered already, {counts.refused} refused"
            + ("; nothing was written (--dry-run)." if dry_run else ".")
        )
        if counts.new and not dry_run:
            _hint(engine)
    return 1 if counts.refused else 0


@contextmanager
def progress(file: BinaryIO) -> Iterator[tuple[Callable[[str], None], Callable[[int], None]]]:
    """Yield what tells a line on standard error, and what moves the bar there on to so many rows, if a person sees it.

    The bar goes by the bytes read, where the size is known.
    """
    if not sys.stderr.isatty():
        yield (lambda line: click.echo(line, err=True)), (lambda rows: None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    size = _size(file)
    console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
    shown = (TextColumn("{task.fields[rows]:,} rows"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*shown, console=console, transient=True) as progress:
        bar = progress.add_task("", total=size, rows=0)
        yield (
            lambda line: progress.console.print(line),
            lambda rows: progress.update(bar, rows=rows, completed=file.tell() if size else 0),
        )


def _size(file: BinaryIO) -> int | None:
    """Return the file's size in bytes, or None where it has none, as a pipe."""
    try:
        status = os.fstat(file.fileno())
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
