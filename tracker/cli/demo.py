"""``tracker demo``: arguments and printing; the scene is `tracker.demo.demo`."""

from __future__ import annotations

import logging
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tracker.cli.output import example, progress

if TYPE_CHECKING:
    from tracker.demo.demo import Outcome


@click.command(epilog=example("tracker demo", "tracker demo --jobs 50 --database /tmp/try.db"))
@click.option(
    "--database",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    default="tracker-demo.db",
    show_default=True,
    metavar="FILE",
    help="Where to make the database. A file that is there already is refused.",
)
@click.option("--jobs", type=click.IntRange(1, 5000), default=300, show_default=True, help="Number of jobs.")
@click.option(
    "--days",
    type=click.IntRange(1, 60),
    default=7,
    show_default=True,
    help="Simulated days. A job ends on its 6th day or later.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed gives the same jobs.")
@click.pass_context
def demo(ctx: click.Context, path: Path, jobs: int, days: int, seed: int) -> None:
    """Show everything tracker does, on this machine, in about 20 seconds, without a key.

    Two fake Elevates start here, with a clock that begins a week ago. An invented company submits exports and removals
    to them and registers the jids. The real client and pollers follow the jobs over HTTP until the clock reaches the
    present; one cluster has an outage. At the end the durations report and some commands to try are printed.

    The demo reads no settings and contacts no other host. Ctrl-C ends it and keeps the database.
    """
    click.echo(f"Simulating {days} days; Ctrl-C ends it.", err=True)
    from tracker import database
    from tracker.cli.report import print_durations
    from tracker.daemon import Stop
    from tracker.demo import demo as scene

    log = logging.getLogger("tracker")
    level = log.level
    log.setLevel(logging.CRITICAL)  # a vanished job and an outage are planned here
    stop = Stop()
    try:
        with stop.listening(reloads=False), progress("hours") as report_progress:
            outcome = scene.run(path, jobs=jobs, days=days, seed=seed, stop=stop, report_progress=report_progress)
    finally:
        log.setLevel(level)
    states = ", ".join(f"{number} {state}" for state, number in outcome.states.items()) or "no jobs"
    click.echo(f"{outcome.now:%Y-%m-%d %H:%M} UTC: {states}; {outcome.polls:,} polls.", err=True)
    if stop.is_set():
        click.echo(f"Interrupted; nothing is left running.\n{_place(path, outcome)}", err=True)
        ctx.exit(130)
    click.echo(f"That took {outcome.seconds:.0f} s.\n", err=True)
    engine = database.open_database(scene.url_of(path))
    with database.reading(engine) as connection:
        print_durations(connection)
    engine.dispose()
    page = scene.write_page(path)
    click.echo(f"\n{_place(path, outcome)}", err=True)
    click.echo(f"All reports on one page, for a browser: {page.absolute().as_uri()}", err=True)


def _place(path: Path, outcome: Outcome) -> str:
    """Return where the database is, and commands to try on it, ready to be pasted into a shell."""
    from tracker.demo.demo import url_of

    example = f"show {outcome.example}" if outcome.example else "jobs --state open"
    commands = ["jobs --past-deadline", example, "report durations --kind removal", "report gaps", "audit verify"]
    # Started as .venv/bin/tracker, there is no `tracker` on the PATH.
    started = sys.argv[0] if Path(sys.argv[0]).name == "tracker" and not shutil.which("tracker") else "tracker"
    prefix = f"TRACKER_DATABASE_URL={shlex.quote(url_of(path))} {shlex.quote(started)}"
    lines = [f"The database is {path.absolute()}. Commands to try:", *(f"{prefix} {command}" for command in commands)]
    return "\n  ".join(lines)
