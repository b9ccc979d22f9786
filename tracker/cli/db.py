"""``tracker db``: make, check and copy the database, remove jobs, give roles their rights. Owns arguments and printing.

`tracker.guards` defines tables, CHECKs and guards, `tracker.reports.views` the views, `tracker.models` the indexes.
`tracker.audit.copy` copies, `tracker.audit.prune` removes.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tracker.cli.look import opened
from tracker.cli.output import counted, example, plain, progress
from tracker.errors import BadCheckpoint, SchemaMismatch

if TYPE_CHECKING:
    import sqlalchemy as sa


@click.group(epilog=example("tracker db upgrade", "tracker db check"))
def db() -> None:
    """Make, upgrade, check and copy the database, and remove ended jobs."""


@db.command(epilog=example("tracker db upgrade", "TRACKER_DATABASE_URL=sqlite:////srv/tracker.db tracker db upgrade"))
def upgrade() -> None:
    """Upgrade the schema to this version, and make guards and views again.

    Creates a missing SQLite file; a PostgreSQL database must exist. On an error nothing is changed. You can repeat it.
    """
    from tracker import database, settings

    click.echo(plain(database.upgrade(settings.load(keys=False).database_url)))


@db.command(epilog=example("tracker db check"))
def check() -> int:
    """Check that schema, guards and views are as this version makes them.

    Lists everything that is missing or changed, and exits with 1 if there is anything. Changes nothing.
    """
    from tracker import database, guards, settings
    from tracker.audit import roles
    from tracker.reports import views

    url = settings.load(keys=False).database_url
    engine = database.create_engine(url)
    try:
        with database.reading(engine) as connection:
            database.require_schema(connection)
            rooms = (_index_problems, guards.problems, views.problems, roles.problems)
            problems = [problem for room in rooms for problem in room(connection)]
    except SchemaMismatch as error:  # without the schema, every other check fails too
        click.echo(plain(str(error)))
        return 1
    finally:
        engine.dispose()
    for problem in problems:
        click.echo(plain(problem))
    if problems:
        click.echo("Find out who changed it. `tracker db upgrade` makes guards and views again.", err=True)
        return 1
    shown = settings.mask_url(url)
    click.echo(plain(f"{shown}: schema, guards and views are as version {database.HEAD} makes them."))
    return 0


@db.command(epilog=example("tracker db copy sqlite:////srv/backup.db", "tracker db copy postgresql://me@db/tracker"))
@click.argument("url", metavar="URL")
def copy(url: str) -> None:
    """Copy all data to the empty database at URL while daemons run.

    The copy has all rows as they are at one moment, with their ids and seals, and its own guards and views. URL is
    sqlite:///FILE, where FILE must not exist, or an empty PostgreSQL database. On an error nothing is left at URL.

    The source is TRACKER_DATABASE_URL; a role that may only read is enough. Others can see a password on a command
    line: write it to ~/.pgpass. Never run daemons on both databases: stop the daemon before a move.
    """
    import signal

    from tracker.audit import checkpoint
    from tracker.audit.copy import copy as copy_all
    from tracker.settings import mask_url

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # as Ctrl-C does; nohup ignores SIGHUP
            signal.signal(number, signal.default_int_handler)
    with opened() as (_, engine), progress("rows") as report_progress:
        made = copy_all(engine, url, report_progress)
    nouns = {"jobs": "job", "transitions": "transition", "seals": "checkpoint"}
    counts = (counted(made.rows[table], noun) for table, noun in nouns.items())
    click.echo(plain(f"Copied to {mask_url(url)}: {', '.join(counts)}."))
    with suppress(BadCheckpoint):  # `audit verify` reports it
        newest = checkpoint.parse(made.checkpoint or "")
        click.echo(f"Newest checkpoint: number {newest.checkpoint.number}, SHA-256 {newest.sha256}.")
    click.echo("Now check the copy: set TRACKER_DATABASE_URL to it and run `tracker audit verify`.")


@db.command(epilog=example("tracker db grants --owner t_owner --writer t_writer --auditor t_auditor > roles.sql"))
@click.option("--owner", required=True, metavar="ROLE", help="Owns the tables and runs `tracker db upgrade`.")
@click.option("--writer", required=True, metavar="ROLE", help="Runs the daemon and every other command.")
@click.option("--auditor", required=True, metavar="ROLE", help="Reads, exports and verifies.")
def grants(owner: str, writer: str, auditor: str) -> None:
    """Print the SQL that gives three roles on PostgreSQL their rights and takes away all others.

    This command changes nothing. Read the SQL, then let a superuser run it with psql. The SQL creates missing roles.
    """
    from tracker import database, settings
    from tracker.audit import roles

    engine = database.create_engine(settings.load(keys=False).database_url)
    try:
        roles.require_postgresql(engine.dialect)
        with database.reading(engine) as connection:
            click.echo(roles.grants(connection, owner=owner, writer=writer, auditor=auditor), nl=False)
    finally:
        engine.dispose()


@db.command(epilog=example("tracker db prune --ended-before 2025-01-01 --export /srv/packs/2024"))
@click.option(
    "--ended-before", type=click.DateTime(["%Y-%m-%d"]), metavar="DATE", help="Jobs that ended before this day (UTC)."
)
@click.option("--jid", "jids", multiple=True, metavar="JID", help="This ended job, whenever it ended. Repeatable.")
@click.option("--cluster", metavar="NAME", help="Needed if several clusters have a job with this jid.")
@click.option("--export", "to", type=click.Path(path_type=Path), metavar="DIR", help="A new folder for the pack.")
@click.option("--dry-run", is_flag=True, help="Only count what would be removed.")
@click.option("--yes", is_flag=True, help="Do not ask on a terminal.")
def prune(
    ended_before: datetime | None, jids: tuple[str, ...], cluster: str | None, to: Path | None, dry_run: bool, yes: bool
) -> None:
    """Remove ended jobs with all their rows.

    First an evidence pack of all data is written to DIR and verified. At the end a base checkpoint seals what is left
    and names the pack. On an error nothing is removed. Only the owner of the tables may do this.

    The pack, backups and other copies keep the rows: delete them, too, when their time is over.
    """
    from tracker import database, operate
    from tracker.audit import prune as room
    from tracker.audit.deliver import Courier
    from tracker.audit.keys import SigningKey

    if (ended_before is None) == (not jids):
        raise click.UsageError("give either --ended-before DATE or --jid JID")
    if to is None and not dry_run:
        raise click.UsageError("give --export DIR, a new folder for the pack, or --dry-run")
    with opened() as (settings, engine), progress() as report_progress:
        with database.reading(engine) as connection:
            ids = {operate.find(connection, jid, cluster).job_id for jid in jids}
            choice = room.Choice(ended_before and ended_before.replace(tzinfo=UTC), tuple(ids))
            jobs, transitions = choice.count(connection)
        what = f"{counted(jobs, 'job')} with {counted(transitions, 'transition')}"
        if to is None or dry_run or not jobs:
            nothing = "Nothing to remove: no job ended before that day."
            click.echo(f"{what} would be removed." if jobs else nothing, err=True)
            return
        if sys.stdin.isatty() and not yes:
            click.confirm(f"Remove {what} from the database, permanently?", abort=True, err=True)
        key = SigningKey.load(settings.signing_key_file) if settings.signing_key_file else None
        removed = room.prune(Courier.of(engine, settings), choice, to, settings.zone, key, report_progress)
    base = f"The base checkpoint names the SHA-256 of its SHA256SUMS: {removed.pack_sha256}"
    rest = f"The pack in {to} still has their rows: delete it when its time is over. {base}"
    click.echo(plain(f"{counted(removed.jobs, 'job')} removed. {rest}"), err=True)


def _index_problems(connection: sa.Connection) -> list[str]:
    """Return a line for each index that is missing or has other columns; indexes of a company's own are ignored."""
    import sqlalchemy as sa

    from tracker.models import METADATA

    inspector = sa.inspect(connection)
    found: list[str] = []
    for table in METADATA.sorted_tables:
        there = {}
        if inspector.has_table(table.name):
            there = {index["name"]: index["column_names"] for index in inspector.get_indexes(table.name)}
        found += [
            f"index {index.name} of table {table.name} is missing or changed"
            for index in sorted(table.indexes, key=lambda index: str(index.name))
            if there.get(str(index.name)) != [column.name for column in index.columns]
        ]
    return found
