"""``tracker simulate``: serve the fake Elevate of `tracker.demo.simulator`."""

from __future__ import annotations

import logging
import shlex
import sys
from datetime import UTC, datetime

import click

from tracker.demo import simulator

_EPILOG = f"""\b
Faults affect GET requests with the right key. Creating a job never fails.
{chr(10).join(f"  {kind:<10} {what}" for kind, what in simulator.FAULT_KINDS.items())}

\b
Example, a week in seven seconds, with every tenth answer a 503:
  tracker simulate --speed 86400 --fault 503=0.1
"""


@click.command(epilog=_EPILOG)
@click.option("--port", type=click.IntRange(0, 65_535), default=8710, show_default=True, help="0 takes a free port.")
@click.option("--api-key", default=simulator.DEFAULT_KEY, show_default=True, help="The key that it accepts.")
@click.option(
    "--speed", type=float, default=1.0, show_default=True, help="Speed of its clock; 86400 makes a day last a second."
)
@click.option(
    "--archive-days", type=int, default=5, show_default=True, help="A job runs this many days after creation."
)
@click.option("--failing", type=float, default=0.0, show_default=True, help="The share of jobs that end in `error`.")
@click.option("--seed", type=int, help="The same seed and calls give the same jobs and faults.")
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="KIND=SHARE[:SECONDS]",
    help="A fault in this share of answers, as in 503=0.1 or hang=0.05:12; may be repeated.",
)
def simulate(
    port: int, api_key: str, speed: float, archive_days: int, failing: float, seed: int | None, faults: tuple[str, ...]
) -> None:
    """Serve a fake Elevate on 127.0.0.1 until Ctrl-C or SIGTERM.

    It answers the job-status call and the two calls that create jobs. A job waits for the archive days, runs for some
    minutes or hours, and ends; an export is forgotten a week later. For each created job it logs when the job will run
    and end, by its own clock.

    --speed changes only this clock, not that of `tracker run`. `tracker demo` changes both.
    """
    from tracker.daemon import Stop

    try:
        clock = simulator.fast_clock(speed, datetime.now(UTC))
        read = [simulator.Fault.parse(fault) for fault in faults]
        fake = simulator.Simulator(
            clock, api_key=api_key, archive_days=archive_days, seed=seed, faults=read, failing=failing
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    logging.basicConfig(format="%(message)s")
    simulator.log.setLevel(logging.INFO)
    stop = Stop()
    with stop.listening(reloads=False), fake.serve(port) as url:
        click.echo(_greeting(url, api_key, speed, archive_days))
        sys.stdout.flush()
        stop.wait()
    click.echo("stopped", err=True)


def _greeting(url: str, api_key: str, speed: float, archive_days: int) -> str:
    """Return commands to try against it, ready to paste into a shell."""
    header = shlex.quote(f"Api-Key: {api_key}")
    create, status = f"{url}{next(iter(simulator.CREATE_PATHS))}", f"{url}/api/v2/event-data/job-status"
    return f"""\
Fake Elevate at {url}, Api-Key {api_key}, clock speed {speed:g}; Ctrl-C ends it.
In another terminal: create a job, ask for its status, let tracker follow it (tracker add JID, tracker run).

  export TRACKER_CLUSTER=simulated TRACKER_API_KEY={shlex.quote(api_key)} \\
    TRACKER_BASE_URL={url} TRACKER_TIMEZONE={simulator.DEFAULT_TIMEZONE.key} TRACKER_ARCHIVE_DAYS={archive_days}
  curl -X POST -H {header} '{create}?customerKey=anyone'
  curl -H {header} '{status}?jid=JID'
"""
