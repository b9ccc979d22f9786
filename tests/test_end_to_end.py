"""As a user would: from nothing to `done` against a server that is not ours."""

from __future__ import annotations

import json

import pytest

from tests import nginx
from tests.processes import tracker
from tests.test_daemon import environment
from tests.test_poller import on_sqlite


@pytest.mark.skipif(nginx.BINARY is None, reason="nginx is not installed (Debian: nginx-light); CI installs it")
@on_sqlite
def test_from_add_to_done_against_a_server_that_is_not_ours(empty_url: str) -> None:
    """`db upgrade`, `add`, `run --once` and the reports, with nginx in Elevate's place."""
    with nginx.nginx("done") as base_url:
        env = environment(empty_url, base_url)
        for words in (
            ("db", "upgrade"),
            ("db", "check"),
            ("add", "ca24b4e2-34ab-406a-a4db-b30b0247837a", "--kind", "export", "--submitted-at", "2026-01-05"),
            ("run", "--once"),
        ):
            done = tracker(*words, env=env)
            assert done.returncode == 0, (words, done.stderr)
        shown = json.loads(tracker("show", "ca24b4e2-34ab-406a-a4db-b30b0247837a", "--format", "json", env=env).stdout)
        assert (shown["job"]["state"], shown["job"]["verdict"]) == ("done", "undecidable")
        assert shown["job"]["ended_after"] == "2026-01-04T23:00:00.000000+00:00"  # the start of that day in Stockholm
        report = json.loads(tracker("report", "durations", "--format", "json", env=env).stdout)
        assert report["rows"][0]["done"] == 1
