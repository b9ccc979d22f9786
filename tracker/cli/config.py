"""``tracker config``: what the settings are and where they come from."""

from __future__ import annotations

import click

from tracker.cli.output import Column, emit, example, format_option


@click.group(epilog=example("tracker config check"))
def config() -> None:
    """What the settings are, and where each comes from."""


@config.command(epilog=example("tracker config check", "TRACKER_CONFIG=prod.toml tracker config check --format json"))
@format_option
def check(format: str | None) -> None:
    """Check all settings and show each effective value, secrets masked, and where it came from.

    Names every wrong setting, its place and what to do; then the exit code is 78. Asks neither Elevate nor the
    database.
    """
    from tracker import settings

    effective = settings.load()
    emit(settings.explain(effective), [Column("name"), Column("value"), Column("source")], format)
    if effective.clusters:
        click.echo("The settings are good.", err=True)
    else:
        hint = f"no cluster is configured, so tracker run has nothing to poll: {settings.NO_CLUSTER_HINT}."
        click.echo(f"The settings are good, but {hint}", err=True)
