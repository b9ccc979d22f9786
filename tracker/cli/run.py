"""``tracker run``, the daemon, and ``tracker poll``, one question out of turn. Arguments and printing."""

from __future__ import annotations

import sys

import click

from tracker.cli.output import Column, emit, example, format_option

_PAGE = "from tracker import cli; raise SystemExit(cli.main(['report', '--format', 'html']))"
"""Python that writes the page of all reports to standard output."""


@click.command(epilog=example("tracker run", "tracker run --once   # for cron"))
@click.option("--once", is_flag=True, help="Poll everything that is due, and exit.")
def run(once: bool) -> None:
    """Poll open jobs until SIGTERM or Ctrl-C, and record each transition.

    After the first signal the requests under way end and are recorded; a second one exits at once. Events go to stderr,
    one line each: key=value on a terminal, JSON otherwise.
    """
    from contextlib import ExitStack

    from tracker import daemon, logs, settings, web
    from tracker.audit.sealing import Sealing

    effective = settings.load()
    logs.setup()
    sealing = Sealing(effective, once=once)
    with ExitStack() as stack:
        if effective.http_port is not None and not once:
            page = web.PageProcess([sys.executable, "-P", "-c", _PAGE])  # -P: import nothing from the current folder
            stack.callback(page.close)
            stack.enter_context(web.serving(effective.http_port, {"/": page.response}))
        tally = daemon.run(effective, once=once, beside=[sealing])
    if once:
        click.echo(
            f"{tally.asked} asked, {tally.failed} failed, {tally.transitions} transitions recorded"
            + (f", {tally.lost} left to another daemon" if tally.lost else ""),
            err=True,
        )


@click.command(epilog=example("tracker poll ca24b4e2-34ab-406a-a4db-b30b0247837a"))
@click.argument("jids", metavar="JID...", nargs=-1, required=True)
@click.option("--cluster", metavar="NAME", help="Where the same jid is in several clusters.")
@format_option
def poll(jids: tuple[str, ...], cluster: str | None, format: str | None) -> int:
    """Ask Elevate about jobs now, out of turn.

    Keeps to the cluster's rate. Asks also while an error pauses the cluster; a valid answer ends that pause. Exits with
    69 if some job got no valid answer.
    """
    from tracker import daemon, logs, settings

    effective = settings.load()
    logs.setup()
    asked = daemon.poll_now(effective, jids, cluster)
    columns = ("cluster", "jid", "before", "status", "state", "next_poll_at", "last_error")
    emit(
        [(job.cluster, job.jid, job.before, job.status, job.state, job.next_poll_at, job.last_error) for job in asked],
        [Column(name, optional=name == "before") for name in columns],
        format,
    )
    left = [job.jid for job in asked if not job.was_asked]
    if left:
        click.echo(f"Not asked, because another daemon is asking now: {', '.join(left)}", err=True)
    return 69 if any(job.last_error for job in asked) else 0
