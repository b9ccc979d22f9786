"""The command line's door: it finds commands, and turns errors into one line and an exit code.

Owns `main` (the console script), the table of commands, and what every failure looks like. Imports click only: a
command's module, and all that it needs (SQLAlchemy takes a second), is imported when that command is called.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

import click

from tracker.errors import TrackerError

HEADINGS = ("Start", "Register", "Follow", "Decide", "Report", "Prove", "Keep")
"""The headings of ``tracker --help``, in order."""

COMMANDS = {
    "demo": ("Start", "tracker.cli.demo:demo", "See all of it on this machine, in about 20 seconds."),
    "config": ("Start", "tracker.cli.config:config", "What the settings are, and where each comes from."),
    "db": ("Start", "tracker.cli.db:db", "Make the database, bring it up to date, check it."),
    "deploy": ("Start", "tracker.cli.deploy:deploy", "Print files for systemd, containers and Prometheus."),
    "add": ("Register", "tracker.cli.intake:add", "Register jobs by their jids."),
    "import": ("Register", "tracker.cli.intake:import_", "Register the jobs in a file: CSV or JSON Lines."),
    "run": ("Follow", "tracker.cli.run:run", "The daemon: poll open jobs, record each transition."),
    "poll": ("Follow", "tracker.cli.run:poll", "Ask about jobs now, out of turn."),
    "jobs": ("Follow", "tracker.cli.look:jobs", "List jobs, the most urgent first."),
    "show": ("Follow", "tracker.cli.look:show", "One job: its facts, its timeline, its next poll and why."),
    "clusters": ("Follow", "tracker.cli.status:clusters", "A row for each cluster: late polls, pause, gap."),
    "status": ("Follow", "tracker.cli.status:status", "One screen: what needs a person, and what runs."),
    "withdraw": ("Decide", "tracker.cli.operate:withdraw", "Close jobs, with a reason."),
    "reopen": ("Decide", "tracker.cli.operate:reopen", "Follow jobs again that ended, but for done ones."),
    "attest": ("Decide", "tracker.cli.operate:attest", "Say that jobs were done, unseen by us."),
    "amend": ("Decide", "tracker.cli.operate:amend", "Correct what was declared about jobs."),
    "pause": ("Decide", "tracker.cli.operate:pause", "Stop polling a cluster."),
    "resume": ("Decide", "tracker.cli.operate:resume", "Poll a paused cluster again."),
    "report": ("Report", "tracker.cli.report:report", "How long jobs take, with bounds."),
    "reconcile": ("Report", "tracker.cli.reconcile:reconcile", "Compare the company's own list of jids with ours."),
    "audit": ("Prove", "tracker.cli.audit:audit", "Show that nothing in the record was changed."),
    "simulate": ("Start", "tracker.cli.simulate:simulate", "Serve a fake Elevate on this machine."),
}
"""By command: its heading, where it is, and its line in ``tracker --help``. A new command is one line here."""


class _Root(click.Group):
    """A group that imports a command when it is called, and lists all without importing any."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][1].partition(":")
        command = getattr(import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}.{attribute} is no click command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS:
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, n=1)
            ctx.fail(f"There is no command {args[0]!r}" + (f"; did you mean {near[0]}?" if near else "."))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading in HEADINGS:
            rows = [(name, summary) for name, (under, _, summary) in COMMANDS.items() if under == heading]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


@click.command(
    cls=_Root,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExamples:\n  tracker config check\n  tracker COMMAND --help",
)
@click.version_option(package_name="tracker", prog_name="tracker")
def root() -> None:
    """Remember what became of every GDPR job submitted to Voyado Elevate 3."""


def main(args: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's) and return the exit code.

    0 good, 1 the check failed, 2 usage, 69 a service is unavailable, 75 try again, 78 bad configuration, 130
    interrupted. A command that fails raises a `TrackerError`; one whose check fails returns 1 or calls ``ctx.exit(1)``.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # an odd letter is no reason to fail on a Latin-1 terminal
    try:
        code = root.main(args, prog_name="tracker", standalone_mode=False)
        sys.stdout.flush()  # so that a closed pipe is met here, not at the interpreter's end
    except TrackerError as error:
        # A name in a message may come from a server or a file: no control character of it reaches the terminal.
        message = re.sub(r"[^\S\n]|[\x00-\x09\x0b-\x1f\x7f-\x9f]", " ", str(error))
        click.echo(f"tracker: error: {message}", err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:  # whoever read our output has read enough
        _drop_output()
        return 1
    except OSError as error:  # a full disk below standard output, for instance: the place's fault, not the program's
        _drop_output()
        place = f" {error.filename!r}" if error.filename else ""
        click.echo(f"tracker: error: cannot read or write{place}: {error.strerror or error}", err=True)
        return 75
    except Exception as error:
        # What the database refuses for a reason that nobody foresaw is told in a line as well; faults of ours are not.
        if not any(base.__module__.startswith("sqlalchemy.") for base in type(error).__mro__):
            raise
        said = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        click.echo(f"tracker: error: the database refuses: {said} (tracker db check)", err=True)
        return 69
    return code if isinstance(code, int) else 0


def _drop_output() -> None:
    """Send what standard output still holds nowhere: Python would try to write it once more at its end."""
    with suppress(OSError):  # it is no file: a test reads it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
