"""``tracker config``: what the settings are and where they come from, and whether each cluster answers."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

from tracker.cli.output import Column, emit, example, format_option

if TYPE_CHECKING:
    from tracker.settings import ClusterSettings


@click.group(epilog=example("tracker config check"))
def config() -> None:
    """Show the settings, and where each comes from."""


@config.command(
    epilog=example(
        "tracker config check",
        "tracker config check --ask",
        "TRACKER_CONFIG=prod.toml tracker config check --format json",
    )
)
@click.option("--ask", is_flag=True, help="Also ask each cluster once, about a jid that no job has.")
@format_option
def check(ask: bool, format: str | None) -> int:
    """Check all settings; show each effective value (secrets masked) and where it comes from.

    Lists every wrong setting, where it is and what to do. The exit code is then 78. Does not open the database.

    With --ask, each cluster must answer "not_found". Exits with 78 if a key is refused, else with 69 if a cluster
    cannot be asked or gives another answer.
    """
    from tracker import settings

    effective = settings.load()
    emit(settings.explain(effective), [Column("name"), Column("value"), Column("source")], format)
    if effective.clusters:
        click.echo("The settings are valid.", err=True)
        return _ask(effective.clusters.values(), effective.request_timeout) if ask else 0
    hint = f"no cluster is configured, so tracker run has nothing to poll: {settings.NO_CLUSTER_HINT}."
    click.echo(f"The settings are valid, but {hint}", err=True)
    return 78 if ask else 0


def _ask(clusters: Iterable[ClusterSettings], timeout: timedelta) -> int:
    """Ask each cluster, print the result, and return the exit code."""
    from tracker.elevate import Elevate
    from tracker.errors import AskError, KeyRefused
    from tracker.status import Status

    codes = {0}
    for cluster in clusters:
        try:
            with Elevate(cluster, timeout) as elevate:
                answer = elevate.ask(str(uuid.uuid4()), lambda: datetime.now(UTC))
        except AskError as error:
            codes.add(78 if isinstance(error, KeyRefused) else 69)
            words = str(error)
        else:
            words = "good: the cluster answers and accepts the key"
            if answer.status != Status.NOT_FOUND:
                codes.add(69)
                words = (
                    f"for a jid that no job has, it answers {answer.status!r} instead of 'not_found': check base_url"
                )
        click.echo(f"{cluster.name}: {words}", err=True)
    return max(codes)
