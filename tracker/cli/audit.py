"""``tracker audit``: verify and export the evidence, the newest checkpoint, the signing key.

Owns arguments and printing; `tracker.audit` owns the rest.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tracker.cli.look import opened
from tracker.cli.output import Column, chosen, counted, emit, example, format_option, plain, progress, utc
from tracker.errors import BadCheckpoint, BadConfiguration, DatabaseUnavailable, Refused, TrackerError

if TYPE_CHECKING:
    from tracker.audit.checkpoint import Signed
    from tracker.audit.findings import Report
    from tracker.audit.keys import PublicKey

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_COLUMNS = ("what", "checkpoint", "segment", "cluster", "jid", "seq", "message")
SHOWN_NOTES = 10  # a server with a wrong clock causes a note for each answer
MEANING = (
    "What OK means: no row sealed up to checkpoint {number} was changed, removed or added since it was sealed, as far"
    " as this key and this checkpoint reach. It does not mean that each row was true when it was written: actor is"
    " self-asserted, and clusters, workers and alerts are not sealed."
)


@click.group(epilog=example("tracker audit head", "tracker audit verify", "tracker audit export pack"))
def audit() -> None:
    """Prove that nothing in the record was changed, removed or cut off."""


@audit.command(
    epilog=example("tracker audit verify", "tracker audit verify --public-key tracker.pem --trusted checkpoints.txt")
)
@click.option(
    "--public-key",
    type=_FILE,
    metavar="FILE",
    help="The expected key (PEM), from a person who does not run the database. Default: any key of the chain.",
)
@click.option(
    "--trusted",
    type=_FILE,
    multiple=True,
    metavar="FILE",
    help="Checkpoints kept outside, such as TRACKER_CHECKPOINT_FILE: the chain must contain all of them. A line of"
    " the log is not a checkpoint.",
)
@format_option
def verify(public_key: Path | None, trusted: tuple[Path, ...], format: str | None) -> int:
    """Check that no sealed row was changed, removed or added, and that every history is possible.

    Checks guards, CHECKs, views, rights, indexes, checkpoints, signatures, each sealed row and each job's history, and
    that the table jobs follows from it. Lists every finding, and exits with 1 if there is one. A note may have a
    harmless cause and is not a finding. Lists the servers that answered. With csv, standard output has the findings
    only; the rest goes to standard error. Changes nothing.

    Only --trusted shows that the newest rows were cut off, or that everything was sealed again. Keep checkpoints where
    the people who run the database cannot change them.
    """
    from tracker import database
    from tracker.audit import verify as checks
    from tracker.audit.keys import PublicKey

    key = None if public_key is None else PublicKey.load(public_key)
    outside = (signed for path in trusted for signed in _checkpoints(path))
    with opened() as (settings, engine), progress() as report_progress, database.reading(engine) as connection:
        report = checks.verify(
            connection, public_key=key, trusted=outside, zone=settings.zone, progress=report_progress
        )
    match chosen(format):
        case "json":
            click.echo(json.dumps(_json(report), indent=2))
        case "csv":
            with redirect_stdout(sys.stderr):  # a person still sees the sources and keys
                _print_context(report)
            emit(([getattr(one, name) for name in _COLUMNS] for one in report.findings), _COLUMNS, "csv")
            click.echo(_result(report), err=True)
        case _:
            _print_context(report)
            for finding in report.findings:
                click.echo(plain(f"FOUND {finding.what}: {finding.message}"))
            click.echo(_result(report))
    return 0 if report.is_good else 1


def _checkpoints(path: Path) -> Iterator[Signed]:
    """Yield the checkpoints in a file, which empty lines separate."""
    from tracker.audit.checkpoint import parse, split

    texts = split(path.read_bytes().decode("ascii", "replace"))
    for number, text in enumerate(texts or [""], 1):
        try:
            yield parse(text)
        except BadCheckpoint as error:  # exit code 2, not 1: this says nothing about the record
            message = plain(f"{path}: checkpoint {number} in this file: {error}")
            raise click.BadParameter(message, param_hint="'--trusted'") from None


def _json(report: Report) -> dict[str, object]:
    values = asdict(report)
    for source, listed in zip(report.sources, values["sources"], strict=True):
        listed["flags"] = source.flags
    at = None if report.sealed_at is None else utc(report.sealed_at).isoformat(timespec="microseconds")
    return {"is_good": report.is_good, "qualifications": report.qualifications} | values | {"sealed_at": at}


def _print_context(report: Report) -> None:
    """Print what a person must judge besides the findings: the servers, the notes, the keys, the last checkpoint."""
    rows = ((s.cluster, s.asked, s.recorded_at, ", ".join(s.flags)) for s in report.sources)
    columns = ("cluster", "asked", Column("recorded_at", "since"), Column("flags", "warning"))
    emit(rows, columns, "table", title="Where answers came from", empty="No source is recorded: no answer yet.")
    for note in report.notes[:SHOWN_NOTES]:
        click.echo(plain(f"note: {note.message}"))
    if (more := len(report.notes) - SHOWN_NOTES + report.more_notes) > 0:
        click.echo(f"note: {more} more (--format json lists {len(report.notes)})")
    for key_id, (first, last) in report.keys.items():
        which = f"checkpoint {first}" if first == last else f"checkpoints {first} to {last}"
        click.echo(f"Signed with key {key_id}: {which}.")
    if report.sha256:
        click.echo(f"Last checkpoint: number {report.number}, SHA-256 {report.sha256}, sealed at {report.sealed_at}.")


def _result(report: Report) -> str:
    """Return the last lines: the result, what it means, and what qualifies it."""
    counts = (
        f"{counted(report.jobs, 'job')}, {counted(report.transitions, 'transition')},"
        f" {counted(report.checkpoints, 'checkpoint')} over {counted(report.sealed, 'row')},"
        f" {counted(report.unsealed, 'row')} not sealed yet"
    )
    if number := len(report.findings) + report.more:
        more = f" ({report.more} not shown)" if report.more else ""
        return f"NOT OK: {counted(number, 'finding')}{more}: {counts}."
    but = f", BUT {', '.join(report.qualifications)}" if report.qualifications else ""
    explained = {
        "NOTHING SEALED": "anyone who can write to the database can change every row",
        "NOT SIGNED": "anyone who can write to the database can change rows and seal them again",
        "PARTLY NOT SIGNED": f"checkpoints without a signature of their own: {report.unsigned} of {report.checkpoints};"
        " a later signature covers them",
        "KEY NOT CHECKED": "compare the id of the key with the id that you were given, or give --public-key",
        "NOTHING TRUSTED GIVEN": "only --trusted shows that the end was cut off, or that everything was sealed again",
        "RESTORED AFTER A LOSS": "rows that the lost checkpoints sealed may be missing, or were recorded again",
        "A SIMULATOR MAY HAVE ANSWERED": "a server that answered is on the same machine, or was asked over plain HTTP",
    }
    qualified = [f"{words}: {explained[words]}." for words in report.qualifications]
    return "\n".join([f"OK{but}: {counts}.", MEANING.format(number=report.number or 0), *qualified])


@audit.command(epilog=example("tracker audit export pack"))
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def export(folder: Path) -> None:
    """Write the evidence to the new folder DIR: all sealed rows, the reports on them, and verify.sh.

    Its README.txt says how to check it with sha256sum, openssl and sqlite3. TRACKER_SIGNING_KEY_FILE signs the pack.
    DIR must not exist. If anything fails, DIR is removed.
    """
    from tracker.audit import pack
    from tracker.audit.keys import SigningKey

    with opened() as (settings, engine), progress() as report_progress:
        key = SigningKey.load(settings.signing_key_file) if settings.signing_key_file else None
        made = pack.export(engine, folder, zone=settings.zone, key=key, progress=report_progress)
    last = made.last
    as_of = f"{last.sealed_at:%Y-%m-%d %H:%M:%S} UTC"
    lines = [f"{made.folder}: up to checkpoint {last.number}, {counted(made.rows, 'row')}, as of {as_of}"]
    if last.key is None:
        way_out = "let the daemon seal with the key first" if key else "`tracker audit keygen FILE` makes a key"
        lines.append(f"The pack is NOT SIGNED, since the last checkpoint is not: {way_out}")
    elif not made.is_signed:
        why = f"is not the key {last.key.id} of the last checkpoint" if key else "is not set"
        lines.append(f"The pack is NOT SIGNED: TRACKER_SIGNING_KEY_FILE {why}")
    if made.unsealed:
        lines.append(f"Not in the pack: {counted(made.unsealed, 'newer row')} not sealed yet")
    lines.append(f"SHA-256 of {pack.SUMS}, which lists all files: {made.sha256}")
    for line in lines:
        click.echo(plain(line), err=True)


@audit.command(epilog=example("tracker audit head > checkpoint.txt", "tracker audit head --public-key > key.pem"))
@click.option("--public-key", is_flag=True, help="Print the public key of its signature instead (PEM).")
def head(public_key: bool) -> int:
    """Print the newest checkpoint. Keep it where no administrator of the database can change it.

    Standard error gets its number, its SHA-256, its time and its key. Exits with 1 if nothing is sealed yet.
    """
    newest = _newest()
    if newest is None:
        click.echo("Nothing is sealed yet: `tracker run` seals rows that are TRACKER_SEAL_AFTER old.", err=True)
        return 1
    one = newest.checkpoint
    if public_key and one.key is None:
        click.echo(f"Checkpoint {one.number} is NOT SIGNED: it has no key.", err=True)
        return 1
    click.echo(one.key.pem() if public_key and one.key else newest.text, nl=False)
    if one.key is None:
        signed = "NOT SIGNED (TRACKER_SIGNING_KEY_FILE; `tracker audit keygen FILE` makes a key)"
    elif not newest.is_genuine():
        signed = "ITS SIGNATURE IS FALSE: run `tracker audit verify`"
    else:
        announced = f", which announces key {one.next_key.id}" if one.next_key else ""
        signed = f"signed with key {one.key.id}{announced}"
    sealed_at = one.sealed_at.isoformat(" ", "seconds")
    click.echo(f"checkpoint {one.number}, SHA-256 {newest.sha256}, sealed at {sealed_at}, {signed}", err=True)
    return 0


def _newest() -> Signed | None:
    from tracker import database
    from tracker.audit import seal

    with opened() as (_, engine), database.reading(engine) as connection:
        return seal.head(connection)


@audit.command(
    epilog=example(
        "tracker audit keygen /etc/tracker/signing.pem", "tracker audit keygen /etc/tracker/signing-2.pem --rotate"
    )
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--rotate",
    is_flag=True,
    help="Let the current key (TRACKER_SIGNING_KEY_FILE) sign a last checkpoint, which announces the new key.",
)
def keygen(file: Path, rotate: bool) -> None:
    """Make a signing key in FILE, which only you can read, and print its public key and its id.

    An existing file is never overwritten. Give the id to your auditor through a separate channel. Without the id, the
    auditor cannot distinguish your key from another.

    With --rotate the chain continues: the current key signs a last checkpoint, which announces the new key. After that,
    only the new key is valid. Daemons stop sealing until you restart them with the new key.
    """
    from tracker.audit import keys

    public = _rotated(file) if rotate else keys.keygen(file)
    shown = plain(str(file))
    click.echo(f"{public.pem()}key id {public.id}")
    hints = [f"The private key is in {shown}: keep it off the database's machine if you can."]
    if rotate:
        hints.append(
            f"Now set TRACKER_SIGNING_KEY_FILE to {shown} and restart every daemon: until then nothing is sealed. Give"
            " the new id to your auditor, and withdraw the old one."
        )
    with suppress(TrackerError):  # keygen needs no database
        if not rotate and (newest := _newest()) is not None and (signer := newest.checkpoint.signs_next) is not None:
            hints.append(
                f"The last checkpoint is signed with key {signer.id}. To replace that key, remove {shown} and use"
                " --rotate: `tracker audit verify` reports a key that was not announced."
            )
    click.echo("\n".join(hints), err=True)


def _rotated(file: Path) -> PublicKey:
    """Make the new key, and let the current key seal a checkpoint that announces it; else remove the new key."""
    from tracker import database, guards, logs
    from tracker.audit import keys, seal
    from tracker.audit.deliver import Courier

    with opened() as (settings, engine):
        logs.setup()
        if settings.signing_key_file is None:
            raise BadConfiguration("--rotate: set TRACKER_SIGNING_KEY_FILE to the current key, which announces the new")
        present = keys.SigningKey.load(settings.signing_key_file)
        courier = Courier.of(engine, settings)
        courier.refuse_older_copy()
        with database.reading(engine) as connection:
            guards.check(connection)
            newest = seal.head(connection)
        expected = newest.checkpoint.signs_next if newest else None
        if expected not in (None, present.public):
            raise Refused(
                f"--rotate: the next checkpoint needs key {expected.id}, but TRACKER_SIGNING_KEY_FILE is key"
                f" {present.public.id}: set it to the right file"
            )
        public = keys.keygen(file)
        try:
            seal.seal(engine, present, next_key=public)
        except TrackerError as error:
            try:
                newest = _newest()
            except TrackerError:
                raise DatabaseUnavailable(
                    f"{error}. It is unknown whether key {public.id} was announced: keep {file}, and run"
                    " `tracker audit head`. If no key is announced there, remove the file and start again"
                ) from error
            if newest is None or newest.checkpoint.next_key != public:
                file.unlink()
                raise
        with suppress(TrackerError):  # the checkpoint is in the chain: the next daemon delivers it
            courier.deliver()
    return public
