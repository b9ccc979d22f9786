"""``tracker ack`` and ``tracker alerts test``. Arguments and printing; the rules are ``tracker.alerts``'."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import click

from tracker.cli.look import opened
from tracker.cli.output import example, plain
from tracker.cli.times import When, when
from tracker.errors import BadConfiguration, Refused

if TYPE_CHECKING:
    from tracker.needs import Need


@click.command(
    epilog=example(
        "tracker ack key_refused w1a2b3c4d --reason 'new key ordered, OPS-311' --until 2026-12-01",
        "tracker ack failed --reason OPS-312",
    )
)
@click.argument("kind")
@click.argument("subject", required=False)
@click.option("--reason", required=True, metavar="R", help="Why: at most 1,000 characters, no @ (name a ticket).")
@click.option(
    "--until",
    callback=when,
    metavar="TIME",
    help="Until when: a day, a time with its offset, or a duration (2d). Default: until the need ends.",
)
@click.option("--actor", metavar="WHO", help="Who is handling it. Default: your login.")
def ack(kind: str, subject: str | None, reason: str, until: When | None, actor: str | None) -> None:
    """Silence a need that a person is handling. `tracker status` and alerts show its KIND and SUBJECT.

    A silenced need is not urgent. `tracker status` still lists it, with the name of that person, but does not exit with
    1 because of it. No alert is sent about it. If it becomes urgent meanwhile, it counts again and an alert is sent.
    """
    from tracker import alerts, database, intake
    from tracker.needs import needs
    from tracker.reports.overview import overview

    with opened() as (settings, engine):
        with database.reading(engine) as connection:
            seen = overview(connection, settings.clusters, settings.seal_after, settings.retention)
        at = None if until is None else until.instant(seen.now, settings.zone, at_end=True)
        if until is not None and isinstance(until.meant, timedelta):
            at = seen.now + until.meant
        need = _chosen(needs(seen), kind, subject)
        with database.writing(engine) as connection:
            alerts.ack(connection, need, intake.login() if actor is None else actor, reason, at, seen.now)
    end = "it ends" if at is None else f"{at:%Y-%m-%d %H:%M} UTC"
    click.echo(plain(f"{need.kind} {need.subject}".strip() + f": silenced until {end}."), err=True)


def _chosen(found: list[Need], kind: str, subject: str | None) -> Need:
    """Return the one need that matches; raise Refused with a list of needs if none or several match."""
    of_kind = [need for need in found if need.kind == kind]
    meant = [need for need in of_kind if subject is None or subject in (need.subject, need.key[1])]
    if len(meant) == 1:
        return meant[0]
    names = ", ".join(f"{need.kind} {need.subject}".strip() for need in (of_kind or found)[:20])
    if meant:
        raise Refused(f"several needs have the kind {kind}; add the subject of one: {names}")
    raise Refused(
        f"there is no need {kind[:80]} {subject or ''}".strip() + (f"; current needs: {names}" if names else "")
    )


@click.group(epilog=example("tracker alerts test"))
def alerts() -> None:
    """Test where alerts go. `tracker run` sends them to TRACKER_ALERT_URLS when something needs a person."""


@alerts.command(epilog=example("tracker alerts test"))
def test() -> int:
    """Send a test message to each URL of TRACKER_ALERT_URLS; exit with 69 if one could not be sent."""
    from tracker import settings
    from tracker.alerts import destinations

    made = destinations(settings.load(keys=False))
    if not made:
        raise BadConfiguration("no destination is configured: set TRACKER_ALERT_URLS")
    body = "This is a test. Alerts about what needs a person will arrive here."
    message = {"title": "tracker: a test", "body": body, "notify_type": "info"}
    problems = [one.send(message) for one in made]
    for number, (one, problem) in enumerate(zip(made, problems, strict=True), 1):
        click.echo(f"URL {number} {one.name}: {f'not sent ({problem})' if problem else 'sent'}")
    return 69 if any(problems) else 0
