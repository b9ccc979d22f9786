"""``tracker audit``: the newest checkpoint, a signing key, and by way of their own files ``verify`` and ``export``.

Arguments and printing; what a checkpoint and a key are is said by `tracker.audit.checkpoint`.
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
from tracker.errors import DatabaseUnavailable, Refused, TrackerError

if TYPE_CHECKING:
    from tracker.audit.checkpoint import PublicKey, Signed


@click.group(epilog=example("tracker audit head", "tracker audit verify", "tracker audit export pack"))
def audit() -> None:
    """Prove that nothing in the record was changed, removed or cut off."""


audit.add_command(verify)
audit.add_command(export)


@audit.command(epilog=example("tracker audit head > checkpoint.txt", "tracker audit head --public-key > key.pem"))
@click.option("--public-key", is_flag=True, help="Print the public key that it is signed with (PEM) instead.")
def head(public_key: bool) -> int:
    """Print the newest checkpoint's text: what to keep where nobody of the database's can change it.

    On standard error: its number, its SHA-256, when it was made, and who signed it. Exits with 1 if nothing is sealed
    yet.
    """
    from tracker import database
    from tracker.audit import seal

    with opened() as (_, engine), database.reading(engine) as connection:
        newest = seal.head(connection)
    if newest is None:
        click.echo("Nothing is sealed yet: `tracker run` does it, and `tracker run --once`.", err=True)
        return 1
    one = newest.checkpoint
    if not public_key:
        click.echo(newest.text, nl=False)
    elif one.key is None:
        click.echo(f"Checkpoint {one.number} is NOT SIGNED: there is no key.", err=True)
        return 1
    else:
        click.echo(one.key.pem(), nl=False)
    sealed_at = one.sealed_at.isoformat(" ", "seconds")
    click.echo(f"checkpoint {one.number}, SHA-256 {newest.sha256}, sealed at {sealed_at}, {_signed(newest)}", err=True)
    return 0


def _signed(newest: Signed) -> str:
    """Return by whom a checkpoint says that it is signed, and whether it is."""
    one = newest.checkpoint
    match newest.is_genuine():
        case None:
            return "NOT SIGNED (TRACKER_SIGNING_KEY_FILE; `tracker audit keygen FILE` makes a key)"
        case False:
            return "ITS SIGNATURE IS FALSE: run `tracker audit verify`"
    assert one.key is not None  # noqa: S101 - else it has no signature
    following = f", which names {one.next_key.id} as the next" if one.next_key else ""
    return f"signed with key {one.key.id}{following}"


@audit.command(
    epilog=example(
        "tracker audit keygen /etc/tracker/signing.pem", "tracker audit keygen /etc/tracker/signing-2.pem --rotate"
    )
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--rotate",
    is_flag=True,
    help="Let the present key (TRACKER_SIGNING_KEY_FILE) seal a last checkpoint, which names the new one.",
)
def keygen(file: Path, rotate: bool) -> None:
    """Make a signing key in FILE, which only you can read, and print its public key and its id.

    A file that exists is never overwritten. Give the id to whoever is to check the record, on another way than the
    record goes: a key that nobody knows proves nothing.

    With --rotate the keys change without a break in the chain: from the checkpoint on that names the new key, only that
    is right. Running daemons stop sealing then until they are restarted with the new key.
    """
    if rotate:
        public = _rotated(file)
    else:
        from tracker.audit import checkpoint

        public = checkpoint.keygen(file)
    click.echo(f"{public.pem()}key id {public.id}")
    click.echo(f"The private key is in {plain(str(file))}: keep it off the database's machine if you can.", err=True)
    if rotate:
        click.echo(
            f"Now set TRACKER_SIGNING_KEY_FILE to {plain(str(file))} and restart every daemon: until then nothing is"
            " sealed. Tell whoever checks the record the new id.",
            err=True,
        )
        return
    with suppress(TrackerError):  # it is a hint, and a key needs no database
        if (signer := _signer()) is not None:
            click.echo(
                f"The last checkpoint is signed with key {signer.id}. If this key is to take its place, remove"
                f" {plain(str(file))} and say --rotate: a key that the one before did not name is a finding of"
                " `tracker audit verify`.",
                err=True,
            )


def _signer() -> PublicKey | None:
    """Return the key that the next checkpoint is expected to be signed with; None: any, or none."""
    from tracker import database
    from tracker.audit import seal

    with opened() as (_, engine), database.reading(engine) as connection:
        newest = seal.head(connection)
    return None if newest is None else newest.checkpoint.next_key or newest.checkpoint.key


def _rotated(file: Path) -> PublicKey:
    """Make the new key, and seal a checkpoint of the present one that names it.

    The key that was made goes again if nothing names it.
    """
    from tracker import database, guards, logs
    from tracker.audit import seal
    from tracker.audit.checkpoint import SigningKey
    from tracker.audit.checkpoint import keygen as make
    from tracker.audit.deliver import Courier
    from tracker.errors import BadConfiguration

    with opened() as (settings, engine):
        logs.setup()
        if settings.signing_key_file is None:
            raise BadConfiguration("--rotate: set TRACKER_SIGNING_KEY_FILE to the present key, which names the new one")
        present = SigningKey.load(settings.signing_key_file)
        with database.reading(engine) as connection:
            guards.check(connection)
        expected = _signer()
        if expected is not None and expected != present.public:
            raise Refused(
                f"--rotate: the next checkpoint has to be signed with key {expected.id}, and TRACKER_SIGNING_KEY_FILE"
                f" is key {present.public.id}: set it to the right one"
            )
        public = make(file)
        try:
            seal.seal(engine, present, next_key=public)
        except TrackerError as error:
            try:
                is_named = _signer() == public
            except TrackerError:
                raise DatabaseUnavailable(
                    f"{error}. Nobody knows now whether key {public.id} was named: keep {file}, and see"
                    " `tracker audit head`; if it does not name it, remove the file and begin again"
                ) from error
            if not is_named:
                file.unlink()
                raise
        courier = Courier(engine, settings.checkpoint_file, settings.checkpoint_url)
        with suppress(TrackerError):  # it is in the chain: the next daemon delivers it
            courier.deliver()
    return public
