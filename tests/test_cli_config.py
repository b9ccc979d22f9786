"""`tracker config check`: every effective value and where it came from, secrets masked; what is wrong, all at once.

And whether each cluster answers.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile import Hostile, free_port
from tracker import cli

KEY = "hush-hush-0123456789"


def test_an_odd_password_is_used_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What can be understood is used, shown with the password masked, and not in an error either."""
    for password in ("hu/sh", "hu%40sh"):
        monkeypatch.setenv("TRACKER_DATABASE_URL", f"postgresql://app:{password}@127.0.0.1:1/db?application_name=x")
        assert cli.main(["config", "check", "--format", "csv"]) == 0
        out, err = capsys.readouterr()
        assert "postgresql://app:****@127.0.0.1:1/db?application_name=x" in out
        assert cli.main(["jobs"]) == 69
        more = capsys.readouterr()
        for part in ("hu", "sh="):
            assert part not in out + err + more.out + more.err


def test_each_cluster_is_asked_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line a cluster says what came of it; a refused key counts most; without --ask nobody is asked."""
    with (
        Hostile(lambda wire: wire.answer("not_found")) as good,
        Hostile(lambda wire: wire.answer("done")) as odd,
        Hostile(lambda wire: wire.reply("", "401 Unauthorized")) as refusing,
    ):
        urls = {"good": good.url, "odd": odd.url, "refusing": refusing.url}
        urls["away"] = f"http://127.0.0.1:{free_port()}"

        def ask(*names: str) -> tuple[int, dict[str, str]]:
            tables = [f"[clusters.{name}]\napi_key = '{KEY}'\nbase_url = '{urls[name]}'" for name in names]
            (tmp_path / "tracker.toml").write_text("\n".join(tables))
            code = cli.main(["config", "check", "--ask"])
            out, err = capsys.readouterr()
            assert out.startswith("name,value,source")
            assert KEY not in out + err
            assert err.startswith("The settings are valid")
            return code, dict(line.split(": ", 1) for line in err.splitlines()[1:])

        assert ask("good") == (0, {"good": "good: the cluster answers and accepts the key"})
        code, said = ask("good", "odd", "away")
        assert code == 69
        assert "'done' instead of 'not_found'" in said["odd"]
        assert "refused" in said["away"]
        code, said = ask("refusing", "away", "good")
        assert code == 78
        assert "check api_key" in said["refusing"]
        assert said["good"].startswith("good")
        asked = [request.split()[1].decode().partition("jid=")[2] for request in good.requests]
        assert len(set(asked)) == 3
        assert cli.main(["config", "check"]) == 0
        assert len(good.requests) == 3
    (tmp_path / "tracker.toml").write_text("")
    assert cli.main(["config", "check", "--ask"]) == 78
    assert "no cluster is configured" in capsys.readouterr().err
