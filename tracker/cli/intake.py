"""Registering: ``tracker add`` and ``tracker import``. Arguments and printing; what is done is in `tracker.intake`.

Results go to standard output, refusals to standard error.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from tracker.cli.look import opened
from tracker.cli.output import example, plain, progress
from tracker.errors import Conflict, Refused
from tracker.status import Kind

if TYPE_CHECKING:
    from tracker.files import Notes


class _Input(click.File):
    """A file to read, or standard input as ``-``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "-" and sys.stdin is None:
            self.fail("standard input is closed: name a file, or pipe one in", param, ctx)
        return super().convert(value, param, ctx)


INPUT = _Input("rb")

_kind = click.Choice([kind.value for kind in Kind])


@click.command(
    epilog=example(
        "tracker add ca24b4e2-34ab-406a-a4db-b30b0247837a",
        "tracker add JID JID --kind export --reference DSR-1042 --received-at 2026-11-20",
        "tracker add JID --cluster w1a2b3c4d --submitted-at 2026-11-23T14:05:00+01:00",
    )
)
@click.argument("jids", metavar="JID...", nargs=-1, required=True)
@click.option("--cluster", metavar="NAME", help="The cluster of the jobs. Not needed if only one is configured.")
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
@click.option("--dry-run", is_flag=True, help="Show what would be done; write nothing.")
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

    A day means its start in the legal time zone. Registering a job again with the same facts is harmless. Facts that
    you leave out are not compared; different facts are refused. Refused jobs are listed, the others are registered, and
    the exit code is then 1.
    """
    from tracker import database, intake

    with opened() as (settings, engine):
        times = {}
        for field, text in (("received_at", received_at), ("submitted_at", submitted_at)):
            if text is not None:
                times[field] = intake.parse_time(field, text.strip(), settings.zone)
        registrations = [intake.Registration(jid, cluster, kind, reference=reference, **times) for jid in jids]
        with (database.reading if dry_run else database.writing)(engine) as connection:
            outcomes = intake.register_many(connection, registrations, settings=settings, dry_run=dry_run)
        for jid, outcome in zip(jids, outcomes, strict=True):
            if isinstance(outcome, Refused):
                which = "" if isinstance(outcome, Conflict) else f"{jid[:255]!r}: "
                click.echo(plain(f"{which}{outcome}"), err=True)
                continue
            done, due = "would be registered" if dry_run else "registered", f"deadline {outcome.deadline.on}"
            if outcome.already:
                done = "registered already"
            else:
                due += f", counted from {[*times, 'registered_at'][0]}"
            click.echo(plain(f"{outcome.jid} of cluster {outcome.cluster}: {done}; {due}"))
    return 1 if any(isinstance(outcome, Refused) for outcome in outcomes) else 0


@click.command(
    "import",
    epilog=example(
        "tracker import jobs.csv",
        "tracker import jobs.csv --dry-run",
        "export-jobs | tracker import - --cluster w1a2b3c4d --kind removal",
    ),
)
@click.argument("file", type=INPUT)
@click.option("--cluster", metavar="NAME", help="For rows without a cluster. Not needed if only one is configured.")
@click.option("--kind", type=_kind, help="For rows without a kind. Default: unknown.")
@click.option("--dry-run", is_flag=True, help="Check everything; write nothing.")
def import_(file: BinaryIO, cluster: str | None, kind: str | None, dry_run: bool) -> int:
    """Register the jobs in a file, or in standard input if FILE is -.

    The file is UTF-8: CSV with a header (comma, semicolon or tab), or JSON Lines with one object a line. Only the
    column or key jid is required:

    \b
      jid           as Elevate gave it
      cluster       not needed if only one is configured
      kind          export, removal or unknown
      submitted_at  the job was submitted to Elevate
      received_at   the person's request reached the company: the legal month counts from here
      reference     the person's request, groups its jobs; no personal data

    Times have an offset, as in 2026-11-23T14:05:00+01:00; a plain date means the start of that day in the legal time
    zone. Blanks around a value are removed, and an empty value counts as missing. Empty rows and columns, and a
    repeated header (cat a.csv b.csv), are ignored.

    Each wrong row is reported with its line, field and reason. The others are registered, and the exit code is then 1.
    The file is committed in pieces. After an interruption, import it again; that is harmless.
    """
    from tracker import files, intake

    counts: Counter[str] = Counter()
    notes = files.Notes()
    would_be, nothing = ("would be ", "; nothing was written (--dry-run)") if dry_run else ("", "")
    early = "The import stopped early: "
    with opened() as (settings, engine):
        if cluster is not None:
            settings.cluster(cluster)  # once, not for each row
        rows = intake.read(file, settings.zone, notes, cluster=cluster, kind=kind)
        try:
            with progress("rows") as report_progress:
                for piece in intake.register_rows(engine, rows, settings=settings, dry_run=dry_run):
                    for row, outcome in piece:
                        if isinstance(outcome, Refused):
                            click.echo(plain(f"line {row.line}: {outcome}"), err=True)
                            counts["refused"] += 1
                        else:
                            counts["already" if outcome.already else "new"] += 1
                    report_progress(counts.total(), None, "")
            early = ""
        finally:
            say(notes)
            if counts or not early:
                done = f"{counts['new']} {would_be}registered, {counts['already']} registered already"
                click.echo(f"{early}{done}, {counts['refused']} refused{nothing}.", err=bool(early))
    return 1 if counts["refused"] else 0


def say(notes: Notes) -> None:
    """Print how values of a file were changed."""
    if notes.stripped:
        where = f"{notes.stripped} (first in line {notes.first_stripped})"
        click.echo(f"Blanks or invisible characters around a jid or reference were removed: {where}.", err=True)
