"""Alerts: what is sent when, by tables and any course of events; then real rows, real receivers and a real kill."""

from __future__ import annotations

import json
import os
import signal
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from tests.history import answer, daemon, register, stand
from tests.processes import Process, look_once
from tests.test_daemon import until
from tests.test_deliver import Receiver
from tracker import alerts, cli, database
from tracker.alerts import Alerts, Notice, PendingMessage, decide, gathered, message, standby
from tracker.errors import BadConfiguration
from tracker.models import ALERTS, CLUSTERS, WORKERS
from tracker.needs import KINDS, Alerted, Daemon, Need, Overview, needs
from tracker.settings import Settings
from tracker.status import Cause
from tracker.text import INVISIBLE

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
AFTER = 15 * MINUTE
LONG_AGO = datetime(2026, 1, 2, 12, tzinfo=UTC)
EVE: dict[str, Any] = {"acked_by": "eve", "ack_reason": "OPS-1"}


def need(kind: str = "key_refused", subject: str = "w1", **values: Any) -> Need:
    return replace(Need(kind, subject, NOW - HOUR, KINDS[kind][0], 1, f"{subject}: it is so", "Do it."), **values)


def row(kind: str = "key_refused", subject: str = "w1", **values: Any) -> Alerted:
    return replace(Alerted(kind, subject, NOW - HOUR, "urgent", told_at=NOW - MINUTE), **values)


@pytest.mark.parametrize(
    ("found", "rows", "expected"),
    [
        ([need()], [], ["new key_refused"]),
        ([need("lost")], [], ["new lost"]),
        ([need()], [row(told_at=None)], ["key_refused"]),  # entered, and then the process was killed
        ([need()], [row()], []),
        ([need(count=9)], [row()], []),
        ([need()], [row(told_at=None), row(since=NOW)], []),  # two daemons both entered it, one sent it
        # an outage of the network waits
        ([need("unreachable", since=NOW - AFTER + MINUTE)], [], []),
        ([need("unreachable", since=NOW - AFTER)], [], ["new unreachable"]),
        ([need("bad_answer", since=NOW)], [], ["new bad_answer"]),
        # it has become urgent; a day later; urgent no more
        ([need("undelivered", is_urgent=True)], [row("undelivered", level="normal")], ["undelivered"]),
        ([need()], [row(told_at=NOW - DAY)], ["again key_refused"]),
        ([need("lost")], [row("lost", level="normal", told_at=NOW - 9 * DAY)], []),
        ([need("undelivered")], [row("undelivered")], []),
        # in hand, until it is not
        ([need(is_acked=True, is_urgent=False)], [row(**EVE, told_at=NOW - 9 * DAY)], []),
        ([need()], [row(**EVE, acked_until=NOW)], ["again key_refused"]),
        ([need()], [row(**EVE, acked_until=NOW - HOUR)], []),
        ([need()], [row(**EVE, acked_until=NOW, told_at=None)], ["key_refused"]),
        # over
        ([], [row()], ["over key_refused"]),
        ([], [row(told_at=None)], ["over key_refused"]),  # it came and went while nobody could be reached
        ([], [row(ended_at=NOW)], ["over key_refused"]),
        ([need()], [row(ended_at=NOW)], ["over key_refused", "new key_refused"]),
        ([need("failed")], [row()], ["over key_refused", "new failed"]),
        ([], [row("alert_undelivered", told_at=None)], []),  # ends when a message arrives there
    ],
)
def test_what_is_sent(found: list[Need], rows: list[Alerted], expected: list[str]) -> None:
    """What is new, has become urgent, stands for a day, is no longer in hand or is over, and nothing else."""
    due = decide(found, rows, NOW, AFTER)
    words = [["over"] * (one.need is None) + ["new"] * one.is_new + ["again"] * one.is_again for one in due]
    assert [" ".join([*word, one.row.kind]) for word, one in zip(words, due, strict=True)] == expected


moments = st.tuples(st.integers(1, 40), st.sets(st.sampled_from("abc")), st.sets(st.sampled_from("abc")), st.booleans())


@given(st.lists(moments, max_size=20))
def test_each_need_is_sent_and_so_is_its_end(course: list[tuple[int, set[str], set[str], bool]]) -> None:
    """Whatever stands when, urgent or not, and however often a process dies before it can note what it sent."""
    rows: dict[tuple[str, str, datetime], Alerted] = {}
    unsent: set[str] = set()
    standing_to_reader: set[str] = set()
    now = NOW
    for hours, stands, urgent, survives in [*course, (1, set(), set(), True)]:
        now += hours * HOUR
        found = [need(subject=name, since=now, is_urgent=name in urgent) for name in sorted(stands)]
        unsent |= stands - {one.subject for one in rows.values() if one.ended_at is None}
        pending = [one for one in rows.values() if not (one.told_at and one.ended_at and one.told_at >= one.ended_at)]
        for one in decide(found, pending, now, AFTER):
            its = one.row.kind, one.row.subject, one.row.since
            rows[its] = one.row if one.need or one.row.ended_at else replace(one.row, ended_at=now)
            unsent.discard(one.row.subject)
            (standing_to_reader.add if one.need else standing_to_reader.discard)(one.row.subject)
            if survives:
                level = "urgent" if one.is_urgent else one.row.level
                rows[its] = replace(rows[its], told_at=now, level=level)
        assert not unsent
        assert decide(found, [one for one in rows.values() if not one.ended_at], now, AFTER) == [] or not survives
    assert not standing_to_reader


def test_one_message_for_all_that_comes_together() -> None:
    """It goes 10 s after the last job was added, or after a minute; another daemon leaves it a minute to this one."""
    due = [Notice(row("failed", ""), need("failed", "", count=1))]
    waiting: PendingMessage | None = None
    for second in range(100):
        due = [replace(due[0], need=replace(need("failed", ""), count=min(1000 * second, 10_000)))]
        waiting = gathered(waiting, due, second)
        assert waiting is not None
        assert waiting.is_ripe(second, 0) is (second >= 20)
        assert waiting.is_ripe(second, 60) is (second >= 80)
    for second in range(200, 262):
        waiting = gathered(waiting if second > 200 else None, [replace(due[0], need=need(count=second))], second)
        assert waiting is not None
        assert waiting.is_ripe(second, 0) is (second >= 260)
    assert gathered(waiting, [], 262) is None
    daemons = [Daemon(name, name, 1, "1", NOW, NOW) for name in ("a", "b")]
    assert [standby(daemons, name, 1) for name in ("a", "b", "c")] == [0, 60, 120]
    assert standby([], "a", 1) == 0


def test_a_message_says_what_and_what_to_do() -> None:
    """The urgent ones first; of ten thousand jobs the number; not more lines than a person reads."""
    due = [
        Notice(row("failed", "-"), None),
        Notice(row(), need("lost", "", what="10000 jobs lost", count=10_000)),
        Notice(row(), need("failed", "", what="2 jobs failed", count=2)),
        Notice(row(), need(what="w1: refused\n"), is_again=True),
    ]
    made = message(due)
    assert made["title"] == "tracker: 1 urgent, 2 not urgent, 1 over"
    assert made["notify_type"] == "failure"
    assert made["body"].splitlines() == [
        "URGENT still [key_refused] w1: refused . Do it.",
        "[lost] 10000 jobs lost. Do it.",
        "[failed] 2 jobs failed. Do it.",
        "RESOLVED [failed] (since 2026-11-27 11:00 UTC)",
    ]
    many = message([Notice(row(subject=f"w{n}"), need(subject=f"w{n}")) for n in range(90)])
    assert len(many["body"].splitlines()) == 21
    assert many["body"].endswith("70 more: `tracker status`")
    assert message(due[:1])["notify_type"] == "success"


def test_what_a_person_has_in_hand_is_shown_and_not_urgent() -> None:
    """Until the time is over, or it becomes worse than what that person saw."""

    def seen(**values: Any) -> list[tuple[bool, bool]]:
        rows = (row("overdue", "-", **EVE | values), row("alert_undelivered", "slack (1)", since=NOW - HOUR))
        group = replace(Overview(NOW, HOUR).overdue, count=2, since=NOW - HOUR)
        found = needs(Overview(NOW, HOUR, overdue=group, alerts=rows))
        assert {one.kind for one in found} == {"overdue", "alert_undelivered"}
        [text] = [one.what for one in found if one.kind == "overdue"]
        assert ("eve" in text) is any(one.is_acked for one in found)
        assert len(text) < 400
        return [(one.is_acked, one.is_urgent) for one in found if one.kind == "overdue"]

    assert seen() == [(True, False)]
    assert seen(acked_until=NOW + HOUR, ack_reason="x" * 1000, acked_by="eve" * 85) == [(True, False)]
    assert seen(acked_until=NOW) == [(False, True)]
    assert seen(level="normal") == [(False, True)]
    assert seen(ended_at=NOW) == [(False, True)]


@given(st.text(max_size=300))
def test_any_subject_can_be_stored(subject: str) -> None:
    """As a text that the database's CHECK accepts, whatever a file's name has in it."""
    kind, stored = need(subject=subject).key
    assert kind == "key_refused"
    assert 1 <= len(stored) <= 255
    assert not INVISIBLE.search(stored)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def bodies(receiver: Receiver, path: str = "/good") -> list[str]:
    return [json.loads(body)["message"] for where, _, _, body, _ in receiver.got if where == path]


def settings(*urls: str, **more: Any) -> Settings:
    return Settings(**{"alert_urls": " ".join(urls)} | more)


def made(receiver: Receiver, *paths: str, once: bool = True) -> Alerts:
    """Return alerts that go to these paths of *receiver*, and wait for nothing if *once*."""
    return Alerts(settings(*(f"json://127.0.0.1:{receiver.port}/{path}" for path in paths)), once=once)


@pytest.fixture
def _without_apprise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process send, as Apprise's child does, which takes a quarter of a second for each message."""

    def send(self: alerts.Destination, message: dict[str, str] | None) -> str:
        if message is None:
            return ""
        answer = requests.post(self._url.replace("json", "http", 1), json={"message": message["body"]}, timeout=10)
        return "" if answer.ok else f"http_{answer.status_code}"

    monkeypatch.setattr(alerts.Destination, "send", send)


def refused(engine: sa.Engine, cluster: str = "w1", *, is_over: bool = False) -> None:
    """Make the key of *cluster* be refused, or accepted."""
    with database.writing(engine) as connection:
        connection.execute(sa.delete(CLUSTERS).where(CLUSTERS.c.cluster == cluster))
    if not is_over:
        stand(engine, cluster, gap_began_at=LONG_AGO, gap_cause=Cause.KEY_REFUSED)


def table(engine: sa.Engine) -> list[Any]:
    with database.reading(engine) as connection:
        return list(connection.execute(sa.select(ALERTS).order_by(ALERTS.c.since, ALERTS.c.kind)))


@pytest.mark.usefixtures("_without_apprise")
def test_a_need_and_its_end_are_sent_once(engine: sa.Engine, receiver: Receiver) -> None:
    """Also over a restart; with no jid and no reference; and again if it stands again."""
    refused(engine)
    with database.reading(engine) as connection:
        now = database.now(connection)
    for number in range(7):
        job = register(engine, f"jid-{number}", at=now - 3 * DAY, reference="secret-ticket")
        answer(engine, job, ("not_found", now - 2 * DAY - HOUR), ("not_found", now - 2 * DAY))
    for _ in range(2):
        assert made(receiver, "good").look(engine)
    [body] = bodies(receiver)
    assert "URGENT [key_refused] w1: Elevate refuses the API key" in body
    assert "[lost] 7 jobs lost" in body
    assert "jid-" not in body
    assert "secret-ticket" not in body
    refused(engine, is_over=True)
    for _ in range(2):
        assert not made(receiver, "good").look(engine)
    assert bodies(receiver)[1:] == ["RESOLVED [key_refused] w1 (since 2026-01-02 12:00 UTC)"]
    first = table(engine)[0]
    assert (first.kind, first.told_at >= first.ended_at) == ("key_refused", True)
    refused(engine)
    made(receiver, "good").look(engine)
    assert "URGENT [key_refused]" in bodies(receiver)[2]
    assert len(bodies(receiver)) == 3


@pytest.mark.usefixtures("_without_apprise")
@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_daemon_leaves_it_to_one_that_began_before(
    engine: sa.Engine, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until that one is dead; then it sends what is still to be sent."""
    monkeypatch.setattr(alerts, "SETTLED_SECONDS", 0.0)
    refused(engine)
    with database.reading(engine) as connection:
        now = database.now(connection)
    daemon(engine, "other", now)
    younger = made(receiver, "good", once=False)
    younger.look(engine)
    assert receiver.got == []
    with database.writing(engine) as connection:
        connection.execute(sa.update(WORKERS).values(beat_at=now - HOUR))
    younger.look(engine)
    assert len(receiver.got) == 1


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_daemon_that_is_killed_before_it_notes_loses_nothing(engine: sa.Engine, url: str, receiver: Receiver) -> None:
    """The next daemon sends it again, and notes it; the one after that sends nothing."""
    refused(engine)
    running: list[Process] = []
    receiver.watch = lambda: os.kill(running[-1].pid, signal.SIGKILL) if len(running) == 1 else None
    for expected, code in ((1, -signal.SIGKILL), (2, 0), (2, 0)):
        running.append(Process(look_once, url, f"json://127.0.0.1:{receiver.port}/good"))
        assert running[-1].wait() == code
        assert len(bodies(receiver)) == expected
        assert [one.told_at is not None for one in table(engine)] == [code == 0]


@pytest.mark.usefixtures("_without_apprise")
@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_destination_that_fails_gets_what_it_missed(
    engine: sa.Engine, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """It holds up no other, is a need after a quarter of an hour, and is tried again after a restart."""
    receiver.by_path["/bad"] = 500
    refused(engine)
    both = made(receiver, "good", "bad")
    for _ in range(2):
        both.look(engine)
    assert (len(bodies(receiver, "/good")), len(bodies(receiver, "/bad"))) == (1, 1)  # it is not tried at once
    [failed] = [vars(record)["fields"] for record in caplog.records if record.message == "alert_failed"]
    assert (failed["error"], failed["again_in_seconds"]) == ("http_500", 15)
    assert str(receiver.port) not in str(failed)
    refused(engine, is_over=True)
    refused(engine, "w2")
    made(receiver, "good", "bad").look(engine)
    assert (len(bodies(receiver, "/good")), len(bodies(receiver, "/bad"))) == (2, 2)
    with database.writing(engine) as connection:
        earlier = sa.update(ALERTS).where(ALERTS.c.kind == "alert_undelivered")
        connection.execute(earlier.values(since=LONG_AGO))
    receiver.by_path.clear()
    made(receiver, "good", "bad").look(engine)
    assert "URGENT [alert_undelivered] Alerts do not reach json (" in bodies(receiver, "/good")[-1]
    told = bodies(receiver, "/bad")[-1]
    assert "URGENT [key_refused] w2" in told
    assert "RESOLVED [key_refused] w1" in told
    assert [one for one in table(engine) if one.kind == "alert_undelivered" and one.ended_at is None] == []
    made(receiver, "good", "bad").look(engine)
    assert "RESOLVED [alert_undelivered] json (" in bodies(receiver, "/good")[-1]
    assert len(bodies(receiver, "/good")) == 4
    receiver.by_path["/bad"] = 500
    refused(engine)
    made(receiver, "good", "bad").look(engine)
    made(receiver, "good").look(engine)  # that destination is given up
    assert [one.ended_at is None for one in table(engine) if one.kind == "alert_undelivered"] == [False, False]


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_the_polling_does_not_wait(
    engine: sa.Engine, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A child that waits for its receiver is left after its time, while what runs beside it goes on."""
    beside = made(receiver, "good", once=False)
    for name, seconds in {"LOOK_SECONDS": 0.05, "SETTLED_SECONDS": 0.05, "SEND_SECONDS": 0.3}.items():
        monkeypatch.setattr(alerts, name, seconds)
    monkeypatch.setattr(alerts, "_APPRISE", "import time; time.sleep(60)")
    refused(engine)
    began = time.monotonic()
    with beside(engine):
        assert time.monotonic() - began < 1
        until(lambda: "alert_failed" in [record.message for record in caplog.records], 10)
    assert "timeout" in str([vars(record)["fields"] for record in caplog.records if record.message == "alert_failed"])
    assert [one.told_at for one in table(engine) if one.kind == "key_refused"] == [None]


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_the_dead_mans_switch(engine: sa.Engine, receiver: Receiver) -> None:
    """A ping after each good minute, ``/fail`` while something is urgent or the run failed; none if polling stands."""
    pinging = settings(ping_url=f"http://127.0.0.1:{receiver.port}/p/?create=1")
    watched = Alerts(pinging, once=True)
    for _ in range(3):
        with watched(engine):
            pass
    refused(engine)
    with watched(engine):
        pass
    with Alerts(pinging, once=True, age=lambda: 61.0)(engine):
        pass
    refused(engine, is_over=True)
    with pytest.raises(KeyError), Alerts(pinging, once=True)(engine):
        raise KeyError
    assert [path for path, *_ in receiver.got] == ["/p/?create=1", "/p/fail?create=1", "/p/fail?create=1"]


def test_a_url_that_cannot_be_used_is_named_by_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has the position and never the URL; without Apprise it says how to install it."""
    for wrong in ("https://example.com/s3cret", "slack://s3cret"):
        with pytest.raises(BadConfiguration, match=r"TRACKER_ALERT_URLS: URL 2 of 2 is not a valid Apprise") as caught:
            Alerts(settings("json://localhost", wrong))
        assert "s3cret" not in str(caught.value)
    monkeypatch.setattr(alerts, "find_spec", lambda name: None)
    with pytest.raises(BadConfiguration, match=r"pip install 'tracker\[alerts\]'"):
        Alerts(settings("json://localhost"))


def test_only_the_proxy_of_the_settings_is_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the environment's; and none for this machine."""
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    urls = "json://far.invalid/x", f"json://127.0.0.1:{receiver.port}/good"
    ways = alerts.destinations(settings(*urls, receiver_proxy=f"http://127.0.0.1:{receiver.port}"))
    text = {"title": "a", "body": "b", "notify_type": "info"}
    assert [one.send(text) for one in ways] == ["", ""]
    assert [path for path, *_ in receiver.got] == ["http://far.invalid/x", "/good"]


def test_a_certificate_that_is_not_trusted_is_named(tls: ssl.SSLContext, certificate: Path) -> None:
    """It is not taken for a receiver that is away; and with its authority in the settings, the message arrives."""
    text = {"title": "a", "body": "b", "notify_type": "info"}
    with Receiver(tls) as receiver:
        url = f"jsons://localhost:{receiver.port}/good"
        ways = [alerts.destinations(settings(url, receiver_ca_bundle=path))[0] for path in (None, certificate)]
        assert [one.send(text) for one in ways] == ["tls_unverified", ""]


def test_ack(engine: sa.Engine, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It is shown with who and until when, does not exit with 1, ends by itself, and must name what stands."""
    monkeypatch.setenv("TRACKER_DATABASE_URL", url)

    def run(*words: str) -> tuple[int, str]:
        code = cli.main(words)
        return code, "".join(capsys.readouterr())

    refused(engine)
    refused(engine, "w2")
    assert run("status")[0] == 1
    code, said = run("ack", "key_refused", "--reason", "OPS-1")
    assert (code, said) == (
        1,
        "tracker: error: several needs have the kind key_refused; add the subject of one:"
        " key_refused w1, key_refused w2\n",
    )
    assert "there is no need nonsense; current needs: key_refused w1" in run("ack", "nonsense", "--reason", "x")[1]
    assert "not in the future" in run("ack", "key_refused", "w1", "--reason", "x", "--until", "2020-01-01")[1]
    assert "@" in run("ack", "key_refused", "w1", "--reason", "a@b")[1]
    assert table(engine) == []
    assert run("ack", "key_refused", "w1", "--reason", "OPS-1", "--until", "2099-11-27", "--actor", "eve")[0] == 0
    assert run("status")[0] == 1
    assert run("ack", "key_refused", "w2", "--reason", "OPS-2", "--actor", "eve")[0] == 0
    assert run("ack", "key_refused", "w2", "--reason", "OPS-3", "--actor", "bob")[0] == 0
    code, said = run("status")
    assert code == 0
    assert "eve is handling it until 2099-11-27 23:00 UTC (OPS-1)" in said
    assert "bob is handling it (OPS-3)" in said
    assert "silenced until 2" in run("ack", "key_refused", "w2", "--reason", "OPS-3", "--until", "2d")[1]
    refused(engine, is_over=True)
    monkeypatch.setattr(alerts, "SETTLED_SECONDS", 0.0)
    Alerts(Settings()).look(engine)  # without URLs, too
    assert [one.told_at >= one.ended_at for one in table(engine) if one.ended_at] == [True]
    refused(engine)
    assert run("status")[0] == 1


def test_a_test_alert(receiver: Receiver, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It reports for each destination what came of it, without a secret, and exits with 69 if one failed."""
    receiver.by_path["/bad"] = 503
    place = f"json://127.0.0.1:{receiver.port}"
    monkeypatch.setenv("TRACKER_ALERT_URLS", f"{place}/good {place}/bad")
    assert cli.main(["alerts", "test"]) == 69
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("URL 1 json (")
    assert first.endswith("): sent")
    assert second.endswith("): not sent (http_503)")
    assert str(receiver.port) not in first + second
    assert "This is a test." in bodies(receiver)[0]
