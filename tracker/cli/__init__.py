"""The command line's door: it finds commands, and turns errors into one line and an exit code.

Owns `main` (the console script), the table of commands, and what every failure looks like. Imports click only: a
command's module, and all that it needs (SQLAlchemy takes a second), is imported when that command is called.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

import click

from tracker.errors import TrackerError
from tracker.text import INVISIBLE

HEADINGS = ("Start", "Register", "Follow", "Decide", "Report", "Prove", "Keep")
"""The headings of ``tracker --help``, in order."""

COMMANDS = {
    "demo": ("Start", "tracker.cli.demo:demo", "Try everything on this machine, without a key."),
    "simulate": ("Start", "tracker.cli.simulate:simulate", "Serve a fake Elevate on this machine."),
    "config": ("Start", "tracker.cli.config:config", "Show the settings, and where each comes from."),
    "db": ("Start", "tracker.cli.db:db", "Make, check and copy the database, remove ended jobs."),
    "deploy": ("Start", "tracker.cli.deploy:deploy", "Print files for systemd, containers and Prometheus."),
    "add": ("Register", "tracker.cli.intake:add", "Register jobs by their jids."),
    "import": ("Register", "tracker.cli.intake:import_", "Register jobs from a file: CSV or JSON Lines."),
    "run": ("Follow", "tracker.cli.run:run", "Poll open jobs and record each transition: the daemon."),
    "poll": ("Follow", "tracker.cli.run:poll", "Poll jobs now, out of turn."),
    "jobs": ("Follow", "tracker.cli.look:jobs", "List jobs, the most urgent first."),
    "show": ("Follow", "tracker.cli.look:show", "Show one job: facts, timeline, next poll."),
    "clusters": ("Follow", "tracker.cli.status:clusters", "List clusters: late polls, pauses, gaps."),
    "status": ("Follow", "tracker.cli.status:status", "Show what runs, and what needs a person."),
    "alerts": ("Follow", "tracker.cli.alerts:alerts", "Test where alerts go."),
    "ack": ("Decide", "tracker.cli.alerts:ack", "Silence a need that a person is handling."),
    "withdraw": ("Decide", "tracker.cli.operate:withdraw", "Close jobs, with a reason."),
    "reopen": ("Decide", "tracker.cli.operate:reopen", "Resume failed, lost, attested or withdrawn jobs."),
    "attest": ("Decide", "tracker.cli.operate:attest", "Declare that jobs were done, though tracker did not see it."),
    "amend": ("Decide", "tracker.cli.operate:amend", "Correct what was declared about jobs."),
    "pause": ("Decide", "tracker.cli.operate:pause", "Stop polling a cluster."),
    "resume": ("Decide", "tracker.cli.operate:resume", "Poll a paused cluster again."),
    "report": ("Report", "tracker.cli.report:report", "Show how long jobs take, deadlines, gaps and more."),
    "reconcile": (
        "Report",
        "tracker.cli.reconcile:reconcile",
        "Compare a list of submitted jids with the registered jobs.",
    ),
    "audit": ("Prove", "tracker.cli.audit:audit", "Verify and export the evidence."),
}
"""By command: its heading, where it is, and its line in ``tracker --help``."""


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
            raise TypeError(f"{module}.{attribute} is not a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading in HEADINGS:
            rows = [(name, summary) for name, (under, _, summary) in COMMANDS.items() if under == heading]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


@click.command(
    cls=_Root,
    context_settings={"help_option_names": ["--help", "-h"]},
    epilog="\b\nExamples:\n  tracker config check\n  tracker COMMAND --help",
)
@click.version_option(package_name="tracker", prog_name="tracker")
def root() -> None:
    """Record what happens to every GDPR job submitted to Voyado Elevate 3."""


def main(args: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's) and return the exit code.

    0 good, 1 the check failed, 2 usage, 69 a service is unavailable, 75 try again, 78 bad configuration, 130
    interrupted. A command that fails raises a `TrackerError`; one whose check fails returns 1 or calls ``ctx.exit(1)``.
    """
    _open_streams()
    try:
        code = root.main(args, prog_name="tracker", standalone_mode=False)
        sys.stdout.flush()  # so that a closed pipe raises here, not when the interpreter ends
    except TrackerError as error:
        _complain(f"tracker: error: {error}\n")
        return error.exit_code
    except click.ClickException as error:
        said = io.StringIO()
        error.show(said)
        _complain(said.getvalue())
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:  # the program that reads our output has ended
        _drop_output()
        return 1
    except OSError as error:  # such as a full disk: not a fault of the program
        _drop_output()
        place = f" {error.filename!r}" if error.filename else ""
        _complain(f"tracker: error: cannot read or write{place}: {error.strerror or error}\n")
        return 75
    except Exception as error:
        # An unforeseen refusal of the database is one line, too. A fault of ours keeps its traceback.
        if not any(base.__module__.startswith("sqlalchemy.") for base in type(error).__mro__):
            raise
        line = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        _complain(f"tracker: error: the database refused a statement: {line}. Run `tracker db check`\n")
        return 69
    return code if isinstance(code, int) else 0


def _complain(message: str) -> None:
    """Print *message* on standard error. A name in it may come from a server or a file: no control character stays."""
    click.echo(INVISIBLE.sub(lambda match: "\n" if match[0] == "\n" else " ", message), err=True, nl=False)


def _open_streams() -> None:
    """Make standard output and standard error usable, whatever this process was given.

    Python sets a closed stream (``>&-``) to None. It is replaced by a stream that drops everything. That also takes its
    number, so that no file of ours, such as the database, gets it. Characters that a terminal cannot show are escaped.
    A file or a pipe gets UTF-8 in any locale, so that one command can read the output of another.
    """
    if sys.stdin is None:
        os.open(os.devnull, os.O_RDONLY)  # commands that read it report an error
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the end
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        encoding = sys.stdout.encoding if sys.stdout.isatty() else "utf-8"
        sys.stdout.reconfigure(encoding=encoding, errors="backslashreplace")


def _drop_output() -> None:
    """Discard what standard output still holds: otherwise Python tries to write it again when it ends."""
    with suppress(OSError):  # it is no file: a test reads it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
