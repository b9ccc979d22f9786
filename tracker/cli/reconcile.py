"""``tracker reconcile``: arguments and printing; `tracker.reconcile` compares.

The findings go to standard output and the summary to standard error, so that a file of findings is only a table.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, BinaryIO

import click

from tracker.cli import times
from tracker.cli.intake import INPUT, say
from tracker.cli.look import opened
from tracker.cli.output import Column, chosen, counted, emit, example, format_option, plain, utc
from tracker.errors import InvalidField, Refused

if TYPE_CHECKING:
    from tracker.reconcile import Reconciliation

SHOWN = 100
"""Most findings in a table; ours: more than a person reads."""


@click.command(
    epilog=example(
        "tracker reconcile submitted.csv",
        "tracker reconcile submitted.csv --since 2026-11-01 --until 2026-11-30 --format csv > findings.csv",
        "export-jobs | tracker reconcile - --cluster w1a2b3c4d",
    )
)
@click.argument("file", type=INPUT)
@click.option(
    "--cluster",
    metavar="NAME",
    help="For rows without a cluster; always in scope. Not needed if only one is configured.",
)
@click.option(
    "--since",
    callback=times.when,
    metavar="TIME",
    help=f"Expect in the file only jobs submitted (else registered) at this time or later: {times.HELP}.",
)
@click.option(
    "--until",
    callback=times.when,
    metavar="TIME",
    help="Expect in the file only jobs submitted (else registered) before this time, or up to the end of this day.",
)
@format_option
def reconcile(
    file: BinaryIO, cluster: str | None, since: times.When | None, until: times.When | None, format: str | None
) -> int:
    """Compare the company's own list of submitted jobs with what is registered.

    FILE (- for standard input) is CSV or JSON Lines, as for `tracker import`; only the column jid is required. The exit
    code is 1 if there is a finding, and 2 if the file or an option cannot be used. The findings:

    \b
      missing_here   in the file, but not registered: tracker does not follow it
      missing_there  registered, but not in the file
      differs        the registered value (here) and the row's (there) differ;
                     facts that the row leaves out do not count
      wrong_row      the row cannot be read; its job counts as not in the file

    A registered job must be in the file if it is in scope. In scope are the clusters that the file names, and
    --cluster; with --since and --until only the jobs submitted (if unknown: registered) in that time. Days are those
    of the legal time zone. A job in the file may be registered at any time. If jobs are submitted all the time, set
    --until to the time at which the file was made.

    Nothing is written to the database. `tracker import` of the same file registers the jobs that are missing here.
    """
    from tracker import database, files, intake
    from tracker import reconcile as _reconcile

    notes = files.Notes()
    with opened() as (settings, engine):
        try:
            with database.reading(engine) as connection:
                now = database.now(connection)
            begin = None if since is None else since.instant(now, settings.zone)
            end = None if until is None else until.instant(now, settings.zone, at_end=True)
            rows = intake.read(file, settings.zone, notes, cluster=cluster)
            made = _reconcile.reconcile(engine, rows, settings=settings, cluster=cluster, since=begin, until=end)
        except InvalidField as error:  # of an option; a wrong value in a row is a finding
            raise click.BadParameter(plain(error.problem), param_hint=f"'--{error.field}'") from None
        except Refused as error:  # exit code 2: 1 means that they do not agree
            raise click.BadParameter(plain(str(error)), param_hint="'FILE'") from None
    if chosen(format) != "table":
        emit(made.findings, _reconcile.Difference._fields, format)
    elif made.findings:
        shown = made.findings[:SHOWN]
        filled = [name for name in shown[0]._fields if any(getattr(found, name) is not None for found in shown)]
        # A time as text has its microseconds: they may be all that differs.
        cells = [
            [str(cell) if isinstance(cell := getattr(one, name), datetime) else cell for name in filled]
            for one in shown
        ]
        emit(cells, [Column(name, optional=name == "cluster") for name in filled], "table")
        if len(made.findings) > SHOWN:
            click.echo(f"These are {SHOWN} of {len(made.findings)} findings; --format csv has all.", err=True)
    say(notes)
    click.echo(_summary(made, begin, end), err=True)
    return 1 if made.findings else 0


def _summary(made: Reconciliation, begin: datetime | None, end: datetime | None) -> str:
    """Return in words what was compared, and the result."""
    where = f" in {', '.join(made.clusters)}" if made.clusters else ""
    since = f" from {utc(begin).isoformat(' ')}" if begin else ""
    until = f" until before {utc(end).isoformat(' ')}" if end else ""
    when = f", submitted (else registered){since}{until}" if since or until else ""
    rows = counted(made.rows, "row")
    compared = f"{counted(made.jobs, 'job')} in {rows} in the file, {made.registered} registered{plain(where)}{when}"
    counts = Counter(found.finding.value for found in made.findings)
    found = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    return f"They do not agree: {found}. Compared: {compared}." if found else f"All agree: {compared}."
