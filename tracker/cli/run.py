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
    polled = daemon.poll_now(effective, jids, cluster)
    columns = ("cluster", "jid", "before", "status", "state", "next_poll_at", "last_error")
    emit(
        [(new.cluster, new.jid, old.status, new.status, new.state, new.due_at, new.last_error) for old, new in polled],
        [Column(name, optional=name == "before") for name in columns],
        format,
    )
    left = [new.jid for old, new in polled if new.polls == old.polls]
    if left:
        click.echo(f"Not asked, because another daemon is asking now: {', '.join(left)}", err=True)
    return 69 if any(new.last_error for _, new in polled) else 0
