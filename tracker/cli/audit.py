"""``tracker audit``: the newest checkpoint and the signing key; ``verify`` and ``export`` have files of their own.

Arguments and printing; checkpoints are those of `tracker.audit.checkpoint`, keys those of `tracker.audit.keys`.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tracker.cli.audit_export import export
from tracker.cli.audit_verify import verify
from tracker.cli.look import opened
from tracker.cli.output import example, plain
from tracker.errors import BadConfiguration, DatabaseUnavailable, Refused, TrackerError

if TYPE_CHECKING:
    from tracker.audit.checkpoint import Signed
    from tracker.audit.keys import PublicKey


@click.group(epilog=example("tracker audit head", "tracker audit verify", "tracker audit export pack"))
def audit() -> None:
    """Prove that nothing in the record was changed, removed or cut off."""


audit.add_command(verify)
audit.add_command(export)


@audit.command(epilog=example("tracker audit head > checkpoint.txt", "tracker audit head --public-key > key.pem"))
@click.option("--public-key", is_flag=True, help="Print the public key that it is signed with (PEM) instead.")
def head(public_key: bool) -> int:
    """Print the newest checkpoint: keep it where no administrator of the database can change it.

    On standard error: its number, its SHA-256, when it was made, and its key. Exits with 1 if nothing is sealed yet.
    """
    from tracker import database
    from tracker.audit import seal

    with opened() as (_, engine), database.reading(engine) as connection:
        newest = seal.head(connection)
    if newest is None:
        click.echo("Nothing is sealed yet: `tracker run` seals rows when they are TRACKER_SEAL_AFTER old.", err=True)
        return 1
    one = newest.checkpoint
    if not public_key:
        click.echo(newest.text, nl=False)
    elif one.key is None:
        click.echo(f"Checkpoint {one.number} is NOT SIGNED: it has no key.", err=True)
        return 1
    else:
        click.echo(one.key.pem(), nl=False)
    sealed_at = one.sealed_at.isoformat(" ", "seconds")
    click.echo(f"checkpoint {one.number}, SHA-256 {newest.sha256}, sealed at {sealed_at}, {_signed(newest)}", err=True)
    return 0


def _signed(newest: Signed) -> str:
    """Return whose signature a checkpoint has."""
    one = newest.checkpoint
    if one.key is None:
        return "NOT SIGNED (TRACKER_SIGNING_KEY_FILE; `tracker audit keygen FILE` makes a key)"
    if not newest.is_genuine():
        return "ITS SIGNATURE IS FALSE: run `tracker audit verify`"
    return f"signed with key {one.key.id}" + (f", which announces key {one.next_key.id}" if one.next_key else "")


@audit.command(
    epilog=example(
        "tracker audit keygen /etc/tracker/signing.pem", "tracker audit keygen /etc/tracker/signing-2.pem --rotate"
    )
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--rotate",
    is_flag=True,
    help="Let the present key (TRACKER_SIGNING_KEY_FILE) sign a last checkpoint, which announces the new key.",
)
def keygen(file: Path, rotate: bool) -> None:
    """Make a signing key in FILE, which only you can read, and print its public key and its id.

    A file that exists is never overwritten. Give the id to your auditor through a separate channel: a key that nobody
    knows proves nothing.

    With --rotate the keys change without a break in the chain: after the checkpoint that announces the new key, only
    that key is right. Daemons stop sealing until they are restarted with it.
    """
    from tracker.audit import keys

    public = _rotated(file) if rotate else keys.keygen(file)
    shown = plain(str(file))
    click.echo(f"{public.pem()}key id {public.id}")
    click.echo(f"The private key is in {shown}: keep it off the database's machine if you can.", err=True)
    if rotate:
        click.echo(
            f"Now set TRACKER_SIGNING_KEY_FILE to {shown} and restart every daemon: until then nothing is sealed. Give"
            " the new id to your auditor, and withdraw the old one.",
            err=True,
        )
        return
    with suppress(TrackerError):  # it is a hint, and a key needs no database
        if (signer := _signer()) is not None:
            click.echo(
                f"The last checkpoint is signed with key {signer.id}. To replace that key, remove {shown} and use"
                " --rotate: `tracker audit verify` reports a key that was not announced.",
                err=True,
            )


def _signer() -> PublicKey | None:
    """Return the key that is to sign the next checkpoint; None: any, or none."""
    from tracker import database
    from tracker.audit import seal

    with opened() as (_, engine), database.reading(engine) as connection:
        newest = seal.head(connection)
    return None if newest is None else newest.checkpoint.next_key or newest.checkpoint.key


def _rotated(file: Path) -> PublicKey:
    """Make the new key, and seal a checkpoint of the present one that announces it; without that, no key stays."""
    from tracker import database, guards, logs
    from tracker.audit import keys, seal
    from tracker.audit.deliver import Courier

    with opened() as (settings, engine):
        logs.setup()
        if settings.signing_key_file is None:
            raise BadConfiguration("--rotate: set TRACKER_SIGNING_KEY_FILE to the present key, which announces the new")
        present = keys.SigningKey.load(settings.signing_key_file)
        with database.reading(engine) as connection:
            guards.check(connection)
        expected = _signer()
        if expected is not None and expected != present.public:
            raise Refused(
                f"--rotate: key {expected.id} is to sign the next checkpoint, and TRACKER_SIGNING_KEY_FILE is key"
                f" {present.public.id}: set it to the right one"
            )
        public = keys.keygen(file)
        try:
            seal.seal(engine, present, next_key=public)
        except TrackerError as error:
            try:
                is_announced = _signer() == public
            except TrackerError:
                raise DatabaseUnavailable(
                    f"{error}. It is unknown whether key {public.id} was announced: keep {file}, and see"
                    " `tracker audit head`; if that does not announce it, remove the file and begin again"
                ) from error
            if not is_announced:
                file.unlink()
                raise
        courier = Courier(engine, settings.checkpoint_file, settings.checkpoint_url)
        with suppress(TrackerError):  # it is in the chain: the next daemon delivers it
            courier.deliver()
    return public
