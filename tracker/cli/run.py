"""``tracker run``, the daemon, and ``tracker poll``, one question out of turn. Arguments and printing."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
from typing import TYPE_CHECKING

import click

from tracker.cli.output import Column, emit, example, format_option
from tracker.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from tracker.settings import Settings

_PAGE = "from tracker import cli; raise SystemExit(cli.main(['report', '--format', 'html']))"
"""Python that writes the page of all reports to standard output."""
_BY_WEIGHT = (78, 69, 75, 1)
"""Exit codes of ``run --once``: a key refused, a cluster not asked, the database away, only sealing failed."""


@click.command(epilog=example("tracker run", "tracker run --once   # for cron"))
@click.option("--once", is_flag=True, help="Poll everything that is due, and exit.")
@click.option("--restored-after", metavar="SHA256", help="After a restore: the SHA-256 of the last lost checkpoint.")
def run(once: bool, restored_after: str | None) -> int:
    """Poll open jobs until SIGTERM or Ctrl-C, and record each transition.

    After the first signal, requests in progress finish and are recorded; a second signal exits at once. SIGHUP makes
    the daemon read its settings again, or stop if stderr is a terminal. Events go to stderr, one line each: key=value
    on a terminal, JSON otherwise.

    After an older copy of the database was restored, nothing is sealed until --restored-after gives the SHA-256 of the
    last lost checkpoint. The log and `tracker status` show it.

    --once exits with 78 if a key was refused, else 69 if a cluster could not be asked, else 75 if the database was
    away, else 1 if only sealing failed. If stderr is not a terminal (cron), it prints nothing while all is well.
    """
    from tracker import daemon, logs, metrics, notify, settings, web
    from tracker.alerts import Alerts
    from tracker.audit.sealing import Sealing

    if restored_after is not None and not re.fullmatch("[0-9a-f]{64}", restored_after):
        raise click.BadParameter("must be 64 hexadecimal digits in lower case", param_hint="'--restored-after'")
    stop = daemon.Stop()
    if not os.isatty(2):
        # From now on, not only once the daemon runs: a SIGHUP that comes this early would end the process.
        signal.signal(signal.SIGHUP, lambda number, frame: setattr(stop, "wants_reload", not once))
    effective = settings.load()
    if once:
        return _once(effective, restored_after)
    logs.setup()
    counts = metrics.Metrics()
    port = web.Web([sys.executable, "-P", "-c", _PAGE], counts.age, counts)  # -P: import nothing from this folder
    systemd = notify.Systemd(counts.age, stop)

    def beside(new: Settings) -> list[daemon.Beside]:
        # Alerts end after sealing: they report what the last seal could not do.
        return [Alerts(new, age=counts.age), Sealing(new, restored_after=restored_after), port.beside(new)]

    def reread() -> Settings:
        systemd.reloading()
        return settings.load()

    with systemd.running():
        daemon.run(effective, stop=stop, beside=beside, pulse=counts, reload=reread)
    return 0


def _once(settings: Settings, restored_after: str | None) -> int:
    """Poll what is due, report on stderr what is wrong, and return the exit code."""
    from tracker import daemon, logs
    from tracker.alerts import Alerts
    from tracker.audit.sealing import Sealing
    from tracker.reports.words import visible

    is_watched = sys.stderr.isatty()  # otherwise cron mails whatever is printed
    logs.setup(level=logging.INFO if is_watched else logging.WARNING)
    sealing = Sealing(settings, once=True, restored_after=restored_after)
    try:
        tally, troubles = daemon.run(settings, once=True, beside=lambda new: [Alerts(new, once=True), sealing])
    except DatabaseUnavailable as error:
        click.echo(f"tracker: error: {visible(str(error))}", err=True)
        return 75
    wrong = [(one.exit_code, f"cluster {one.cluster}: {one.why}") for one in troubles]
    if sealing.failure is not None:
        wrong.append((75 if isinstance(sealing.failure, DatabaseUnavailable) else 1, str(sealing.failure)))
    code = next((code for code in _BY_WEIGHT if code in dict(wrong)), 0)
    for its_code, why in wrong:
        if its_code or is_watched:
            click.echo(f"tracker: {'error: ' if its_code else ''}{visible(why)}", err=True)
    if code or is_watched:
        click.echo(
            f"{tally.asked} asked, {tally.failed} failed, {tally.transitions} transitions recorded"
            + (f", {tally.lost} left to another daemon" if tally.lost else ""),
            err=True,
        )
    return code


@click.command(epilog=example("tracker poll ca24b4e2-34ab-406a-a4db-b30b0247837a"))
@click.argument("jids", metavar="JID...", nargs=-1, required=True)
@click.option("--cluster", metavar="NAME", help="Needed if several clusters have a job with this jid.")
@format_option
def poll(jids: tuple[str, ...], cluster: str | None, format: str | None) -> int:
    """Ask Elevate about jobs now, out of turn.

    Respects the cluster's rate. Also asks while an error pauses the cluster; a valid answer ends that pause. Exits with
    69 if any job got no valid answer.
    """
    from tracker import daemon, logs, settings

    effective = settings.load()
    logs.setup()
    polled = daemon.poll_now(effective, jids, cluster)
    columns = ("cluster", "jid", "before", "status", "state", "next_poll_at", "last_error")
    emit(
        [(new.cluster, new.jid, old.status, new.status, new.state, new.due_at, new.last_error) for old, new in polled],
        [Column(name, optional=name == "before") for name in columns],
        format,
    )
    left = [new.jid for old, new in polled if new.polls == old.polls]
    if left:
        click.echo(f"Not asked, because another daemon is asking about them now: {', '.join(left)}", err=True)
    return 69 if any(new.last_error for _, new in polled) else 0
