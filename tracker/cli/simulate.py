"""``tracker simulate``: serve the fake Elevate. What is served is in `tracker.demo.simulator`."""

from __future__ import annotations

import logging
import shlex
import signal
import sys
import threading
from datetime import UTC, datetime
from types import FrameType
from zoneinfo import ZoneInfo

import click

from tracker.demo import simulator


def _faults(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[simulator.Fault, ...]:
    try:
        return simulator.check_faults([simulator.Fault.parse(value) for value in values])
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _zone(ctx: click.Context, param: click.Parameter, value: str) -> ZoneInfo:
    try:
        return ZoneInfo(value)
    except (LookupError, ValueError, OSError) as error:  # unknown, not a name, a folder of names
        raise click.BadParameter(f"{value!r} is no time zone; write one as in Europe/Stockholm") from error


_EPILOG = f"""\b
Faults meet GET requests with the right key; creating a job never fails.
{chr(10).join(f"  {kind:<10} {what}" for kind, what in simulator.FAULT_KINDS.items())}

\b
Example, a week in seven seconds, with every tenth answer a 503:
  tracker simulate --speed 86400 --fault 503=0.1
"""


@click.command(epilog=_EPILOG)
@click.option("--port", type=click.IntRange(0, 65_535), default=8710, show_default=True, help="0: a free one.")
@click.option("--api-key", default=simulator.DEFAULT_KEY, show_default=True, help="The only key accepted.")
@click.option(
    "--speed",
    type=click.FloatRange(0, simulator.FASTEST, min_open=True),
    default=1.0,
    show_default=True,
    help="How fast its clock runs from now on; 86400 makes a day a second.",
)
@click.option(
    "--timezone",
    metavar="ZONE",
    callback=_zone,
    default=simulator.DEFAULT_TIMEZONE.key,
    show_default=True,
    help="Where its days begin.",
)
@click.option(
    "--archive-days",
    type=click.IntRange(1, simulator.MOST_ARCHIVE_DAYS),
    default=5,
    show_default=True,
    help="A job runs so many days after it was created.",
)
@click.option(
    "--failing",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="The share of jobs that end in `error`.",
)
@click.option("--seed", type=int, help="Same seed, same calls: same jids, fates and faults.")
@click.option(
    "--fault",
    "faults",
    callback=_faults,
    multiple=True,
    metavar="KIND=SHARE[:SECONDS]",
    help="Misbehave in this share of answers, as in 503=0.1 or hang=0.05:12; may be repeated.",
)
def simulate(
    port: int,
    api_key: str,
    speed: float,
    timezone: ZoneInfo,
    archive_days: int,
    failing: float,
    seed: int | None,
    faults: tuple[simulator.Fault, ...],
) -> None:
    """Serve a fake Elevate on 127.0.0.1 until Ctrl-C or SIGTERM.

    It answers the job-status call and the two calls that create jobs. A job waits for the archive days, runs for some
    minutes or hours, and ends; an export is forgotten a week later. Its log, a line a created job, tells in its own
    clock what will become of it.

    Only its clock is fast, never that of `tracker run`; `tracker demo` runs both.
    """
    try:
        fake = simulator.Simulator(
            simulator.fast_clock(speed, datetime.now(UTC)),
            api_key=api_key,
            timezone=timezone,
            archive_days=archive_days,
            seed=seed,
            faults=faults,
            failing=failing,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    _log_to_stderr()
    # A second signal, while it ends, is not caught: it ends at once.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        with fake.serve(port) as url:
            click.echo(_greeting(url, api_key, speed, timezone, archive_days))
            sys.stdout.flush()
            # Not for ever: a signal that comes just before the wait begins would not wake it.
            while not threading.Event().wait(0.5):
                pass
    except KeyboardInterrupt:
        click.echo("ended", err=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_DFL)
    raise KeyboardInterrupt


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    simulator.log.addHandler(handler)
    simulator.log.setLevel(logging.INFO)
    simulator.log.propagate = False


def _greeting(url: str, api_key: str, speed: float, timezone: ZoneInfo, archive_days: int) -> str:
    """Return what to try against it, ready to be pasted into a shell."""
    settings = {
        "TRACKER_CLUSTER": "simulated",
        "TRACKER_API_KEY": api_key,
        "TRACKER_BASE_URL": url,
        "TRACKER_TIMEZONE": timezone.key,
        "TRACKER_ARCHIVE_DAYS": str(archive_days),
    }
    exports = " \\\n    ".join(f"{name}={shlex.quote(value)}" for name, value in settings.items())
    header = shlex.quote(f"Api-Key: {api_key}")
    create, status = f"{url}{next(iter(simulator.CREATE_PATHS))}", f"{url}/api/v2/event-data/job-status"
    return f"""\
Fake Elevate at {url}, Api-Key {api_key}, clock speed {speed:g}; Ctrl-C ends it.
Try in another terminal: create a job, ask for it, let tracker follow it (tracker add JID, tracker run).

  export {exports}
  curl -X POST -H {header} '{create}?customerKey=anyone'
  curl -H {header} '{status}?jid=JID'
"""
