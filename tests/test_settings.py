"""Settings: precedence, names, values, several errors at once, and no secret where anyone can see it."""

from __future__ import annotations

import os
import traceback
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from tracker.errors import BadConfiguration, InvalidField
from tracker.settings import (
    CLUSTER_KEYS,
    GLOBAL_KEYS,
    VARIABLES,
    ClusterSettings,
    Settings,
    duration,
    explain,
    is_loopback,
    load,
    mask_url,
    may_be_loopback,
)

ONE = {"TRACKER_CLUSTER": "w1", "TRACKER_API_KEY": "k3y"}


def read(folder: Path, environ: dict[str, str] | None = None, toml: str = "", *, keys: bool = True) -> Settings:
    """Load from *folder* alone, whatever secrets this machine has."""
    if toml:
        (folder / "tracker.toml").write_text(toml, "utf-8")
    return load({"CREDENTIALS_DIRECTORY": str(folder / "nothing"), **(environ or {})}, folder, keys=keys)


def told(folder: Path, environ: dict[str, str] | None = None, toml: str = "") -> str:
    """Return what a wrong configuration is refused with."""
    with pytest.raises(BadConfiguration) as caught:
        read(folder, environ, toml)
    return str(caught.value)


def sources(settings: Settings) -> dict[str, tuple[str, str]]:
    return {row.name: (row.value, row.source) for row in explain(settings)}


# Defaults and names


def test_without_anything_there_are_the_documented_defaults_and_no_cluster(tmp_path: Path) -> None:
    settings = read(tmp_path)
    assert settings.clusters == {}
    assert settings.timezone == "Europe/Stockholm"
    assert settings.zone.key == "Europe/Stockholm"
    assert settings.database_url == "sqlite:///tracker.db"
    assert settings.http_port is None
    assert settings.lost_after_polls == 5
    assert settings.lost_after == timedelta(days=2)
    assert settings.delay_per_poll == timedelta(seconds=60)
    assert settings.request_timeout == timedelta(seconds=10)


def test_one_cluster_needs_two_variables_only(tmp_path: Path) -> None:
    cluster = read(tmp_path, ONE).cluster()
    assert cluster == ClusterSettings(
        name="w1",
        api_key=SecretStr("k3y"),
        base_url="https://w1.api.esales.apptus.cloud",
        path="/api/v2/event-data/job-status",
        timezone="Europe/Stockholm",
        archive_days=5,
        max_requests_per_second=10.0,
        max_concurrency=4,
        ca_bundle=None,
        proxy=None,
    )
    assert cluster == ClusterSettings(name="w1", api_key=SecretStr("k3y"))


def test_every_setting_can_be_given_by_variable(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").touch()
    values = {
        "TRACKER_CONFIG": "other.toml",
        "TRACKER_SECRETS_DIR": ".",
        "TRACKER_CLUSTER": "w1",
        "TRACKER_API_KEY": "k3y",
        "TRACKER_BASE_URL": "https://w1.elevate-api.cloud",
        "TRACKER_PATH": "/api/admin/v4/event-data/job-status",
        "TRACKER_ARCHIVE_DAYS": "1",
        "TRACKER_MAX_REQUESTS_PER_SECOND": "0.5",
        "TRACKER_MAX_CONCURRENCY": "2",
        "TRACKER_CA_BUNDLE": "ca.pem",
        "TRACKER_PROXY": "http://proxy.example.com:3128",
        "TRACKER_TIMEZONE": "Europe/Oslo",
        "TRACKER_DATABASE_URL": "postgresql+psycopg://u:p@h/db",
        "TRACKER_HTTP_PORT": "9090",
        "TRACKER_SIGNING_KEY_FILE": "sign.pem",
        "TRACKER_SEAL_AFTER": "0 s",
        "TRACKER_CHECKPOINT_FILE": "/var/log/checkpoints",
        "TRACKER_CHECKPOINT_URL": "https://example.com/c",
        "TRACKER_ALERT_URL": "https://example.com/a",
        "TRACKER_PING_URL": "https://example.com/p",
        "TRACKER_LOST_AFTER_POLLS": "7",
        "TRACKER_LOST_AFTER": "3 days",
        "TRACKER_DELAY_PER_POLL": "90",
        "TRACKER_REQUEST_TIMEOUT": "5s",
    }
    assert set(values) == set(VARIABLES)
    (tmp_path / "other.toml").touch()
    settings = read(tmp_path, values)
    assert settings.cluster() == ClusterSettings(
        name="w1",
        api_key=SecretStr("k3y"),
        base_url="https://w1.elevate-api.cloud",
        path="/api/admin/v4/event-data/job-status",
        timezone="Europe/Oslo",
        archive_days=1,
        max_requests_per_second=0.5,
        max_concurrency=2,
        ca_bundle=tmp_path / "ca.pem",
        proxy="http://proxy.example.com:3128",
    )
    expected = Settings(
        timezone="Europe/Oslo",
        database_url="postgresql+psycopg://u:p@h/db",
        http_port=9090,
        signing_key_file=tmp_path / "sign.pem",
        seal_after=timedelta(),
        checkpoint_file=Path("/var/log/checkpoints"),
        checkpoint_url="https://example.com/c",
        alert_url="https://example.com/a",
        ping_url="https://example.com/p",
        lost_after_polls=7,
        lost_after=timedelta(days=3),
        delay_per_poll=timedelta(seconds=90),
        request_timeout=timedelta(seconds=5),
    )
    assert settings.model_dump(exclude={"clusters"}) == expected.model_dump(exclude={"clusters"})
    assert {name for name, (_, source) in sources(settings).items() if source.startswith("default")} == {
        "clusters.w1.timezone"
    }


def test_every_key_can_be_given_in_the_file_and_its_paths_begin_there(tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "ca.pem").touch()
    (folder / "key").write_text("k3y\n")
    (folder / "t.toml").write_text(
        """
        timezone = "Europe/Oslo"
        database_url = "sqlite:////var/lib/tracker.db"
        http_port = 9090
        signing_key_file = "sign.pem"
        checkpoint_file = "checkpoints"
        seal_after = "0 s"
        checkpoint_url = "https://example.com/c"
        alert_url = "https://example.com/a"
        ping_url = "http://127.0.0.1:8000/p"
        lost_after_polls = 7
        lost_after = "1d 12h"
        delay_per_poll = 90.5
        request_timeout = "5 s"
        [clusters.w1]
        api_key_file = "key"
        base_url = "https://w1.elevate-api.cloud/"
        path = "/p"
        timezone = "UTC"
        archive_days = 1
        max_requests_per_second = 2
        max_concurrency = 3
        ca_bundle = "ca.pem"
        proxy = "http://u:p@proxy.example.com:3128"
        [clusters.w2]
        api_key = "k2"
        """
    )
    settings = read(tmp_path, {"TRACKER_CONFIG": "etc/t.toml"})
    assert settings.lost_after == timedelta(hours=36)
    assert settings.delay_per_poll == timedelta(seconds=90.5)
    assert settings.signing_key_file == folder / "sign.pem"
    assert list(settings.clusters) == ["w1", "w2"]
    assert settings.clusters["w1"].api_key.get_secret_value() == "k3y"
    assert settings.clusters["w1"].ca_bundle == folder / "ca.pem"
    assert settings.clusters["w1"].base_url == "https://w1.elevate-api.cloud"
    assert settings.clusters["w1"].zone.key == "UTC"
    assert settings.clusters["w2"].zone.key == "Europe/Oslo"
    shown = sources(settings)
    assert shown["clusters.w1.api_key"] == ("****", f"{folder}/key ({folder}/t.toml: [clusters.w1] api_key_file)")
    default = {name for name, (_, source) in shown.items() if source.startswith("default")}
    of_file = {*GLOBAL_KEYS, *(f"clusters.w1.{key}" for key in CLUSTER_KEYS)}
    assert default & of_file == set()


# Precedence


@pytest.mark.parametrize(
    ("places", "value", "source"),
    [
        ("", "2 d", "default"),
        ("t", "1 h", "{folder}/tracker.toml: lost_after"),
        ("ts", "2 h", "{folder}/secrets/tracker_lost_after"),
        ("tse", "3 h", "TRACKER_LOST_AFTER"),
        ("te", "3 h", "TRACKER_LOST_AFTER"),
        ("s", "2 h", "{folder}/secrets/tracker_lost_after"),
    ],
)
def test_a_stronger_place_wins_and_is_named(tmp_path: Path, places: str, value: str, source: str) -> None:
    (tmp_path / "secrets").mkdir()
    environ = {"TRACKER_SECRETS_DIR": "secrets"}
    if "s" in places:
        (tmp_path / "secrets" / "tracker_lost_after").write_text("2h\n")
    if "e" in places:
        environ["TRACKER_LOST_AFTER"] = "3h"
    settings = read(tmp_path, environ, "lost_after = '1h'" if "t" in places else "")
    assert sources(settings)["lost_after"] == (value, source.format(folder=tmp_path))
    assert f"{settings.lost_after.total_seconds() / 3600:g}" == ("48" if value == "2 d" else value[0])


def test_a_cluster_is_laid_together_from_all_places(tmp_path: Path) -> None:
    (tmp_path / "tracker_api_key").write_text("from-secret\n")
    environ = {"TRACKER_SECRETS_DIR": str(tmp_path), "TRACKER_CLUSTER": "w1", "TRACKER_MAX_CONCURRENCY": "9"}
    settings = read(tmp_path, environ, "[clusters.w1]\npath = '/p'\nmax_concurrency = 2\napi_key_file = 'missing'")
    cluster = settings.cluster("w1")
    assert (cluster.path, cluster.max_concurrency) == ("/p", 9)
    assert cluster.api_key.get_secret_value() == "from-secret", "and the weaker place's missing file is not looked for"


def test_the_only_cluster_of_the_file_takes_the_variables_without_being_named(tmp_path: Path) -> None:
    settings = read(tmp_path, {"TRACKER_API_KEY": "k3y"}, "[clusters.w1]\npath = '/p'")
    assert settings.cluster().api_key.get_secret_value() == "k3y"


def test_the_variables_of_one_cluster_are_refused_where_nobody_knows_which(tmp_path: Path) -> None:
    toml = "[clusters.a]\napi_key='k'\n[clusters.b]\napi_key='k'"
    assert told(tmp_path, {"TRACKER_PROXY": "https://p"}, toml) == (
        "TRACKER_PROXY: no cluster to use it for; set TRACKER_CLUSTER"
    )


def test_systemd_credentials_are_a_secrets_folder(tmp_path: Path) -> None:
    (tmp_path / "tracker_api_key").write_text(" k3y \n")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path), "TRACKER_CLUSTER": "w1"}
    assert load(environ, tmp_path).cluster().api_key.get_secret_value() == "k3y"


def test_an_empty_variable_is_not_set(tmp_path: Path) -> None:
    settings = read(tmp_path, {**ONE, "TRACKER_HTTP_PORT": "", "TRACKER_PROXY": " "})
    assert settings.http_port is None
    assert settings.cluster().proxy is None


def test_the_process_environment_and_folder_are_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("TRACKER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TRACKER_HTTP_PORT", "1234")
    (tmp_path / "tracker.toml").write_text("lost_after_polls = 9")
    monkeypatch.chdir(tmp_path)
    settings = load()
    assert (settings.http_port, settings.lost_after_polls) == (1234, 9)


# Keys


def test_a_command_that_asks_nothing_needs_no_key_and_reads_none(tmp_path: Path) -> None:
    settings = read(tmp_path, {"TRACKER_CLUSTER": "w1"}, "[clusters.w2]\napi_key_file = 'unreadable'", keys=False)
    assert list(settings.clusters) == ["w2", "w1"]
    assert {cluster.api_key.get_secret_value() for cluster in settings.clusters.values()} == {""}
    assert sources(settings)["clusters.w2.api_key"] == ("", "not read")
    given = read(tmp_path, {**ONE, "TRACKER_CLUSTER": "w2"}, keys=False)
    assert given.cluster("w2").api_key.get_secret_value() == ""


def test_a_cluster_without_a_key_is_told_every_way_to_give_one(tmp_path: Path) -> None:
    message = told(tmp_path, {"TRACKER_CLUSTER": "w1"}, "[clusters.w2]")
    lines = message.splitlines()
    assert lines[0] == "2 settings are wrong:"
    assert lines[1] == "  cluster w2: has no key; give it by api_key_file in [clusters.w2] of tracker.toml"
    for way in ("TRACKER_API_KEY", str(tmp_path / "nothing" / "tracker_api_key"), "[clusters.w1]"):
        assert way in lines[2]


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "No such file"), (b"", "empty"), (b" \n", "empty"), (b"\xff\xfe", "not UTF-8"), (b"a\nb", "line break")],
)
def test_a_bad_key_file_is_named_once(tmp_path: Path, content: bytes | None, problem: str) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    message = told(tmp_path, toml="[clusters.w1]\napi_key_file = 'key'")
    assert message.startswith(f"{tmp_path}/key ({tmp_path}/tracker.toml: [clusters.w1] api_key_file): ")
    assert problem in message
    assert "\n" not in message


def test_a_key_may_be_given_once_only(tmp_path: Path) -> None:
    assert "keep one of them" in told(tmp_path, toml="[clusters.w1]\napi_key = 'a'\napi_key_file = 'b'")


# What is wrong, where, and the way out


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    message = told(
        tmp_path,
        {"TRACKER_TIMEZON": "UTC", "TRACKER_HTTP_PORT": "0", "TRACKER_DATABASE_URL": "mysql://h"},
        "lost_aftr = 1\n[clusters.w1]\npathh = 'x'\narchive_days = -1\n[clusters.'w 2']\napi_key = 'k'",
    )
    assert message.splitlines() == [
        "8 settings are wrong:",
        "  TRACKER_TIMEZON: there is no such setting; did you mean TRACKER_TIMEZONE?",
        f"  {tmp_path}/tracker.toml: lost_aftr: there is no such setting; did you mean lost_after?",
        f"  {tmp_path}/tracker.toml: [clusters.w1] pathh: there is no such setting; did you mean path?",
        "  cluster w1: has no key; give it by api_key_file in [clusters.w1] of tracker.toml",
        "  TRACKER_DATABASE_URL: must begin with sqlite:/// (and a path) or postgresql+psycopg://",
        "  TRACKER_HTTP_PORT: must be a port number from 1 to 65535, not '0'",
        f"  {tmp_path}/tracker.toml: [clusters.w1] archive_days: "
        "must be a whole number of days from 1 to 365, not '-1'",
        f"  {tmp_path}/tracker.toml: [clusters.w 2]: "
        "a cluster's name has letters, digits and hyphens only, at most 63, and no hyphen at either end",
    ]


def test_what_kubernetes_sets_is_no_setting_and_what_resembles_it_is_an_error(tmp_path: Path) -> None:
    service = {
        "TRACKER_PORT": "tcp://10.0.0.1:80",
        "TRACKER_PORT_80_TCP_ADDR": "10.0.0.1",
        "TRACKER_SERVICE_HOST": "10.0.0.1",
        "TRACKER_SERVICE_PORT_HTTP": "80",
    }
    assert read(tmp_path, service) == read(tmp_path)
    assert told(tmp_path, {"TRACKER_SERVICES": "x"}).startswith("TRACKER_SERVICES: there is no such setting")


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        ("api_key = 'k'", "api_key: belongs in a [clusters.NAME] table"),
        ("[cluster.w1]\napi_key = 'k'", "cluster: there is no such setting; did you mean clusters?"),
        ("[clusters.w1]\napi_key = 'k'\nlost_after = 1", "lost_after: is a global setting: write it above the first"),
        ("[clusters.w1]\napi_key = 'k'\nname = 'w2'", "name: there is no such setting"),
        ("[clusters]\nw1 = 'k'", "clusters.w1: must be a table: write [clusters.w1]"),
        ("clusters = 'w1'", "clusters: must be tables: write [clusters.NAME]"),
        ("lost_after = 1\ntimezone = UTC", "(at line 2, column 12)"),
        ("timezone = 5", "timezone: must be text"),
        ("checkpoint_file = ''", "checkpoint_file: is a folder; must be the path of a file"),
        ("[clusters.w1]\napi_key_file = 5", "api_key_file: must be the path of a file that holds the key"),
        ("[clusters.w1]\napi_key = 5", "api_key: must be text"),
        (
            "[clusters.w1]\napi_key = 'k'\n[clusters.W1]\napi_key = 'k'",
            "w1 and W1 are one cluster, since case does not count",
        ),
        ("[clusters.w1]\napi_key = 'k'\nca_bundle = 'no.pem'", "[clusters.w1] ca_bundle: there is no file"),
    ],
)
def test_a_wrong_file_is_told_where(tmp_path: Path, toml: str, problem: str) -> None:
    message = told(tmp_path, toml=toml)
    assert problem in message
    assert str(tmp_path / "tracker.toml") in message or "case does not count" in message
    assert "\n" not in message


def test_a_file_that_is_not_utf8_is_refused_and_one_from_windows_is_read(tmp_path: Path) -> None:
    (tmp_path / "tracker.toml").write_bytes(b"timezone = '\xe5'")
    assert told(tmp_path).endswith("is not valid TOML in UTF-8")
    (tmp_path / "tracker.toml").write_bytes(b"\xef\xbb\xbftimezone = 'UTC'\r\n")
    assert read(tmp_path).timezone == "UTC"


@pytest.mark.parametrize(
    ("variable", "value"),
    [("TRACKER_CONFIG", "no.toml"), ("TRACKER_SECRETS_DIR", "no"), ("TRACKER_CA_BUNDLE", "no.pem")],
)
def test_a_file_that_was_asked_for_must_be_there(tmp_path: Path, variable: str, value: str) -> None:
    message = told(tmp_path, {**ONE, variable: value})
    assert message.startswith(f"{variable}: there is no ")
    assert str(tmp_path / value) in message


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("TIMEZONE", ["Europe/Stokholm", "localtime", "../etc/passwd", "/etc/localtime", "Europe", "CET+1"]),
        ("DATABASE_URL", ["tracker.db", "mysql://h/d", "postgresql+psycopg2://h/d", "sqlite:tracker.db"]),
        ("HTTP_PORT", ["0", "-1", "65536", "http", "80.5"]),
        ("LOST_AFTER_POLLS", ["0", "-3", "five", "1.5", "nan"]),
        ("LOST_AFTER", ["0", "0 s", "-1 d", "soon", "1 week", "2d3", "inf", "nan", "1e400", "9" * 30, "4000 days"]),
        ("DELAY_PER_POLL", ["0", "x"]),
        ("REQUEST_TIMEOUT", ["0", "-1"]),
        ("SEAL_AFTER", ["-1", "never", "4000 days"]),
        ("ARCHIVE_DAYS", ["0", "366", "-5", "1.5", ""]),
        ("MAX_REQUESTS_PER_SECOND", ["0", "-1", "inf", "nan", "many"]),
        ("MAX_CONCURRENCY", ["0", "-1", "1001", "2.5"]),
        ("ALERT_URL", ["example.com/x", "ftp://example.com", "http://example.com/x", "https://", "https://h:99999"]),
        ("PING_URL", ["http://192.168.0.1/x", "https://a b", "https://h\\@evil"]),
        ("CHECKPOINT_URL", ["http://localhost.evil.com"]),
        ("PROXY", ["proxy.example.com:3128", "socks5://h", "http://h/path", "http://h:port", "http://"]),
        (
            "BASE_URL",
            [
                "w1.api.esales.apptus.cloud",
                "http://w1.api.esales.apptus.cloud",
                "http://127.0.0.1.evil.com",
                "http://localhost@evil.com",
                "https://u:p@h",
                "http://10.0.0.1",
                "http://0.0.0.0",
                "https://h/path",
                "https://h?x=1",
                "https://h#x",
                "https://h\nx",
                "https://[::1",
                "https://*.example.com",
                "https://a..b",
                f"https://{'a' * 64}.com",
            ],
        ),
        ("PATH", ["api", "//evil.com/x", "/a b", "/a?b", "/a#b", "/å", "\\x"]),
        ("CLUSTER", ["w.1", "w/1", "w_1", "w1@evil", "wå", "-w1", "w1-", "w" * 64, "w1\n2", "w 1"]),
        ("API_KEY", ["a b", "a\nb", "a\r\nX-Evil: 1", "kåy", "a\x00b"]),
    ],
)
def test_a_wrong_value_is_refused_by_its_variable(tmp_path: Path, name: str, wrong: list[str]) -> None:
    for value in filter(None, wrong):
        message = told(tmp_path, {**ONE, f"TRACKER_{name}": value})
        assert message.startswith(f"TRACKER_{name}: "), value
        assert "\n" not in message, value


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080", "http://localhost", "http://[::1]:80", "http://127.8.8.8"])
def test_http_is_accepted_for_this_machine(tmp_path: Path, url: str) -> None:
    assert read(tmp_path, {**ONE, "TRACKER_BASE_URL": url}).cluster().base_url == url


@pytest.mark.parametrize("host", ["127.1", "localhost.", "::ffff:10.0.0.1", "0.0.0.0", "", None, "example.com"])  # noqa: S104
def test_only_what_is_this_machine_for_certain_is_loopback(host: str | None) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LocalHost", "localhost.", "a.localhost", "a.LOCALHOST.", "127.0.0.1", "127.0.0.1."),
        *("0.0.0.0", "127.1", "2130706433", "0x7f000001", "0x7F.1", "0177.0.0.1", "017700000001", "0"),  # noqa: S104
        *("::1", "0:0:0:0:0:0:0:1", "::", "::ffff:127.0.0.1", "::FFFF:7f00:1", "::ffff:0.0.0.0", "::1%lo"),
    ],
)
def test_this_machine_is_known_however_it_is_spelled(host: str) -> None:
    """Each leads here, or may: what a name with a dot at its end means is up to the resolver."""
    assert may_be_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        *("", None, "example.com", "localhost.evil.com", "notlocalhost", "127.evil.com", "10.0.0.1", "3232235777"),
        *("::ffff:10.0.0.1", "fe80::1", "2001:db8::1", "128.0.0.1", "1", "é.example", "999999999999", "0x"),
    ],
)
def test_another_machine_is_none(host: str | None) -> None:
    assert not may_be_loopback(host)


def test_a_proxy_never_sees_a_key_in_clear(tmp_path: Path) -> None:
    environ = {**ONE, "TRACKER_BASE_URL": "http://127.0.0.1:1", "TRACKER_PROXY": "http://u:p@h:3128"}
    assert told(tmp_path, environ) == (
        "TRACKER_PROXY: proxy cannot be used with an http:// base_url: the key would pass it unencrypted"
    )


@pytest.mark.parametrize("name", ["w1", "W0A1b2C3d", "a", "my-cluster-1", "w" * 63])
def test_cluster_names_of_other_forms_are_accepted(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, {**ONE, "TRACKER_CLUSTER": name}).cluster(name).name == name


def test_true_is_no_number(tmp_path: Path) -> None:
    toml = "http_port = true\nlost_after = true\n[clusters.w1]\napi_key = 'k'\nmax_requests_per_second = true"
    assert told(tmp_path, toml=toml).count("not 'True'") == 3


# The convenience


def test_a_cluster_is_found_by_name_or_by_being_the_only_one(tmp_path: Path) -> None:
    two = read(tmp_path, {}, "[clusters.alpha]\napi_key = 'k'\n[clusters.beta]\napi_key = 'k'")
    assert two.cluster("beta").name == "beta"
    with pytest.raises(InvalidField, match=r"^cluster: several are configured, name one of them: alpha, beta$"):
        two.cluster(None)
    with pytest.raises(InvalidField, match=r"'Alfa' is not configured \(configured: alpha, beta\); did you mean alpha"):
        two.cluster("Alfa")
    with pytest.raises(BadConfiguration, match="TRACKER_CLUSTER and TRACKER_API_KEY"):
        Settings().cluster()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2 days", 172800),
        ("36h", 129600),
        ("1d 12h", 129600),
        ("1d12h", 129600),
        ("90 s", 90),
        ("1.5 min", 90),
        ("10", 10),
        (0.25, 0.25),
        (timedelta(1), 86400),
    ],
)
def test_durations_are_written_as_people_write_them(text: object, seconds: float) -> None:
    assert duration(text) == timedelta(seconds=seconds)


@given(st.integers(1, 10**8))
@settings(deadline=None, max_examples=50)
def test_a_duration_is_shown_in_a_form_that_is_read_back(seconds: int) -> None:
    shown, _ = sources(Settings(lost_after=timedelta(seconds=seconds)))["lost_after"]
    assert duration(shown) == timedelta(seconds=seconds)


# Secrets

SECRET = "s3cr3t-Zz9"  # noqa: S105 - no real one


def test_no_secret_is_shown(tmp_path: Path) -> None:
    settings = read(
        tmp_path,
        {
            "TRACKER_CLUSTER": "w1",
            "TRACKER_API_KEY": SECRET,
            "TRACKER_PROXY": f"http://user:{SECRET}@proxy:3128",
            "TRACKER_DATABASE_URL": f"postgresql+psycopg://user:{SECRET}@host/db?sslpassword={SECRET}",
            "TRACKER_ALERT_URL": f"https://hooks.example.com/services/{SECRET}",
            "TRACKER_PING_URL": f"https://{SECRET}@ping.example.com/?{SECRET}",
            "TRACKER_CHECKPOINT_URL": f"https://user:{SECRET}@example.com",
        },
    )
    cluster = settings.cluster()
    for one in (settings, cluster, settings.clusters, explain(settings)):
        assert SECRET not in repr(one)
        assert SECRET not in str(one)
    values = {row.name: row.value for row in explain(settings)}
    assert values["clusters.w1.api_key"] == "****"
    assert values["clusters.w1.proxy"] == "http://user:****@proxy:3128"
    assert values["database_url"] == "postgresql+psycopg://user:****@host/db?sslpassword=****"
    assert values["alert_url"] == "https://hooks.example.com/****"
    assert values["ping_url"] == "https://ping.example.com/****"
    assert values["checkpoint_url"] == "https://example.com"
    assert cluster.proxy is not None
    assert SECRET in cluster.proxy, "and the program itself has them"


@pytest.mark.parametrize(
    "environ",
    [
        {"TRACKER_API_KEY": f"{SECRET} x"},
        {"TRACKER_API_KEYS": SECRET},
        {"TRACKER_PROXY": f"socks5://u:{SECRET}@h"},
        {"TRACKER_PROXY": f"http://u:{SECRET}@h:99999"},
        {"TRACKER_PROXY": f"http://u:{SECRET}@h", "TRACKER_BASE_URL": "http://localhost"},
        {"TRACKER_DATABASE_URL": f"mysql://u:{SECRET}@h"},
        {"TRACKER_ALERT_URL": f"http://example.com/{SECRET}"},
        {"TRACKER_BASE_URL": f"https://u:{SECRET}@h"},
    ],
)
def test_no_error_repeats_a_secret_even_in_its_traceback(tmp_path: Path, environ: dict[str, str]) -> None:
    with pytest.raises(BadConfiguration) as caught:
        read(tmp_path, {**ONE, **environ})
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(BadConfiguration) as caught:
        read(tmp_path, {}, f"[clusters.w1]\napi_key = '{SECRET} x'\nproxy = 'socks5://{SECRET}'\n")
    assert SECRET not in "".join(traceback.format_exception(caught.value))


PASSWORD = st.text("xyz@/?#:%&= 1", max_size=12).map(lambda text: f"PW{text}PW")


@given(user=st.text("abc.%-", max_size=6), password=PASSWORD)
@settings(deadline=None, max_examples=100)
def test_a_password_is_masked_however_badly_it_is_escaped(user: str, password: str) -> None:
    assert mask_url(f"postgresql+psycopg://{user}:{password}@host/db") == f"postgresql+psycopg://{user}:****@host/db"


@given(
    start=st.sampled_from(["postgresql://", "postgresql:/", "postgresql+psycopg://", "http://", ""]),
    user=st.text("abc.@%-/ ", max_size=6),
    password=PASSWORD,
    end=st.sampled_from(["/db", "@h", "@host:", "@host:/db", "@host:x/db", "@ho st/db", "@a:1,b:2/db?x=@", "@[::1/db"]),
)
@settings(deadline=None, max_examples=300)
@example(start="postgresql:/", user="", password="PW://PW", end="/db")  # noqa: S106 - a test value
def test_no_password_is_shown_of_a_malformed_url(start: str, user: str, password: str, end: str) -> None:
    if "@" not in end:
        password = password.replace("@", "")  # what follows it would be the host
    if start or "@" in end:  # else it is a word with a colon
        assert "PW" not in mask_url(f"{start}{user}:{password}{end}")
    assert "PW" not in mask_url(f"postgresql://host/db?user=a&pass%77ord={password}&x=y")


@pytest.mark.parametrize("url", ["sqlite:///tracker.db", "postgresql://host:5432/db", "https://h/p?x=1", "/a/b", ""])
def test_what_holds_no_secret_is_shown_as_it_is(url: str) -> None:
    assert mask_url(url) == url
