"""Settings: precedence, names, values, several errors at once, and no secret where anyone can see it."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import certifi
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.hostile import Hostile, free_port
from tracker import cli
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
)

ONE = {"TRACKER_CLUSTER": "w1", "TRACKER_API_KEY": "k3y"}


def read(folder: Path, environ: dict[str, str] | None = None, toml: str = "", *, keys: bool = True) -> Settings:
    """Load from *folder* alone, whatever secrets this machine has."""
    if toml:
        (folder / "tracker.toml").write_text(toml, "utf-8")
    return load({"CREDENTIALS_DIRECTORY": str(folder / "nothing"), **(environ or {})}, folder, keys=keys)


def refusal(folder: Path, environ: dict[str, str] | None = None, toml: str = "") -> str:
    """Return the message with which a wrong configuration is refused."""
    with pytest.raises(BadConfiguration) as caught:
        read(folder, environ, toml)
    return str(caught.value)


def shown(settings: Settings) -> dict[str, tuple[str, str]]:
    return {row.name: (row.value, row.source) for row in explain(settings)}


def key(cluster: ClusterSettings) -> str:
    return cluster.api_key.get_secret_value()


# Names and places


def test_one_cluster_needs_two_variables_only(tmp_path: Path) -> None:
    """Everything else has a default."""
    loaded = read(tmp_path, ONE)
    assert key(loaded.cluster()) == "k3y"
    assert loaded.cluster().base_url == "https://w1.api.esales.apptus.cloud"
    given = {name for name, (_, source) in shown(loaded).items() if not source.startswith("default")}
    assert given == {"clusters.w1.api_key", "secrets_dir"}
    assert read(tmp_path).clusters == {}


VALUES = {  # for each setting another than the default
    "timezone": "Europe/Oslo",
    "database_url": "postgresql+psycopg://u@h/db",
    "http_port": "9090",
    "http_bind": "0.0.0.0",  # noqa: S104
    "http_page": "on",
    "signing_key_file": "{folder}/sign.pem",
    "seal_after": "0 d",
    "retention": "1095 d",
    "checkpoint_file": "/var/log/checkpoints",
    "checkpoint_url": "https://example.com",
    "alert_urls": "json://localhost/x mailto://u:p@example.com",
    "alert_after": "1 h",
    "ping_url": "https://hc-ping.com",
    "receiver_ca_bundle": "{folder}/ca.pem",
    "receiver_proxy": "http://proxy.example.com:3128",
    "lost_after_polls": "7",
    "lost_after": "3 d",
    "delay_per_poll": "90 s",
    "request_timeout": "5 s",
}
VALUES_OF_CLUSTER = {
    "base_url": "https://w1.elevate-api.cloud",
    "path": "/api/admin/v4/event-data/job-status",
    "archive_days": "1",
    "max_requests_per_second": "0.5",
    "max_concurrency": "2",
    "ca_bundle": "{folder}/ca.pem",
    "proxy": "http://proxy.example.com:3128",
}


SHOWN = {"alert_urls": "json://**** mailto://****"}


def test_every_setting_can_be_given_by_variable(tmp_path: Path) -> None:
    """Each has an effect, and its place is shown; paths begin in the current folder."""
    shutil.copy(certifi.where(), tmp_path / "ca.pem")
    (tmp_path / "key").write_text("k3y\n")
    (tmp_path / "other.toml").touch()
    values = {name: value.format(folder=tmp_path) for name, value in (VALUES | VALUES_OF_CLUSTER).items()}
    environ = {f"TRACKER_{name.upper()}": value.removeprefix(f"{tmp_path}/") for name, value in values.items()}
    environ |= {"TRACKER_CONFIG": "other.toml", "TRACKER_SECRETS_DIR": ".", "TRACKER_CLUSTER": "w1"}
    environ |= {"TRACKER_API_KEY_FILE": "key"}
    assert {*environ, "TRACKER_API_KEY"} == set(VARIABLES)
    loaded = read(tmp_path, environ)
    rows = shown(loaded)
    for name, value in values.items():
        place = name if name in VALUES else f"clusters.w1.{name}"
        assert rows[place] == (SHOWN.get(name, value), f"TRACKER_{name.upper()}")
    assert rows["clusters.w1.api_key"] == ("****", f"{tmp_path}/key (TRACKER_API_KEY_FILE)")
    assert key(loaded.cluster()) == "k3y"


def test_every_key_can_be_given_in_the_file_and_its_paths_begin_there(tmp_path: Path) -> None:
    """So it is with tracker.toml, which can have several clusters, each with a time zone of its own."""
    folder = tmp_path / "etc"
    folder.mkdir()
    shutil.copy(certifi.where(), folder / "ca.pem")
    (folder / "key").write_text("k3y\n")
    lines = [f"{name} = {value.removeprefix('{folder}/')!r}" for name, value in VALUES.items()]
    lines += ["[clusters.w1]", "api_key_file = 'key'", "timezone = 'UTC'"]
    lines += [f"{name} = {value.removeprefix('{folder}/')!r}" for name, value in VALUES_OF_CLUSTER.items()]
    for number in ("http_port", "archive_days", "max_requests_per_second"):  # numbers may be numbers
        lines = [line.replace("'", "") if line.startswith(number) else line for line in lines]
    (folder / "t.toml").write_text("\n".join([*lines, "[clusters.w2]", "api_key = 'k2'"]))
    loaded = read(tmp_path, {"TRACKER_CONFIG": "etc/t.toml"})
    rows = shown(loaded)
    for name, value in (VALUES | VALUES_OF_CLUSTER).items():
        place = name if name in VALUES else f"clusters.w1.{name}"
        assert rows[place][0] == SHOWN.get(name, value.format(folder=folder))
    assert rows["clusters.w1.api_key"] == ("****", f"{folder}/key ({folder}/t.toml: [clusters.w1] api_key_file)")
    assert rows["clusters.w1.path"][1] == f"{folder}/t.toml: [clusters.w1] path"
    assert (loaded.clusters["w1"].zone.key, loaded.clusters["w2"].zone.key) == ("UTC", "Europe/Oslo")
    default = {name for name, (_, source) in rows.items() if source.startswith("default")}
    assert default & {*GLOBAL_KEYS, *(f"clusters.w1.{name}" for name in CLUSTER_KEYS)} == set()


@pytest.mark.parametrize(
    ("places", "value", "source"),
    [
        ("t", "1 h", "{folder}/tracker.toml: lost_after"),
        ("ts", "2 h", "{folder}/secrets/tracker_lost_after"),
        ("tse", "3 h", "TRACKER_LOST_AFTER"),
    ],
)
def test_a_stronger_place_wins_and_is_named(tmp_path: Path, places: str, value: str, source: str) -> None:
    """Defaults, then tracker.toml, then secrets, then variables."""
    (tmp_path / "secrets").mkdir()
    environ = {"TRACKER_SECRETS_DIR": "secrets"}
    if "s" in places:
        (tmp_path / "secrets" / "tracker_lost_after").write_text("2h\n")
    if "e" in places:
        environ["TRACKER_LOST_AFTER"] = "3h"
    assert shown(read(tmp_path, environ, "lost_after = '1h'"))["lost_after"] == (value, source.format(folder=tmp_path))


def test_a_cluster_is_put_together_from_all_places(tmp_path: Path) -> None:
    """A stronger place that gives the key keeps a weaker one's missing key file from being looked for."""
    (tmp_path / "tracker_api_key").write_text(" from-secret \n")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path), "TRACKER_MAX_CONCURRENCY": "9", "TRACKER_PROXY": " "}
    toml = "[clusters.w1]\npath = '/p'\nmax_concurrency = 2\napi_key_file = 'missing'"
    for named in ({}, {"TRACKER_CLUSTER": "w1"}):  # the only cluster of the file need not be named
        cluster = read(tmp_path, environ | named, toml).cluster()
        assert (cluster.path, cluster.max_concurrency, key(cluster)) == ("/p", 9, "from-secret")
        assert cluster.proxy is None, "an empty variable is not set"


def test_each_of_several_clusters_has_a_file_for_its_key_in_the_secrets_folder(tmp_path: Path) -> None:
    """Its name is in lower case; it is stronger than tracker.toml and weaker than a variable, and may be unreadable."""
    for name in ("w1", "w2", "w3"):
        (tmp_path / f"tracker_api_key_{name}").write_text(f"key of {name}\n".replace(" ", "-"))
    toml = "[clusters.W1]\n[clusters.w2]\napi_key_file = 'missing'"
    secrets = {"TRACKER_SECRETS_DIR": "."}
    loaded = read(tmp_path, secrets, toml)
    assert [key(cluster) for cluster in loaded.clusters.values()] == ["key-of-w1", "key-of-w2"]
    assert shown(loaded)["clusters.W1.api_key"] == ("****", f"{tmp_path}/tracker_api_key_w1")
    loaded = read(tmp_path, {**secrets, "TRACKER_CLUSTER": "w3"}, "timezone = 'UTC'")
    assert key(loaded.cluster()) == "key-of-w3"
    assert key(read(tmp_path, {**secrets, **ONE, "TRACKER_CLUSTER": "w2"}, toml).cluster("w2")) == "k3y"
    (tmp_path / "tracker_api_key").write_text("k3y")
    assert refusal(tmp_path, {**secrets, "TRACKER_CLUSTER": "w2"}, toml) == (
        f"{tmp_path}/tracker_api_key_w2: tracker_api_key is also there; keep one of them"
    )
    (tmp_path / "tracker_api_key").unlink()
    (tmp_path / "tracker_api_key_w2").unlink()
    (tmp_path / "tracker_api_key_w2").mkdir()
    assert "tracker_api_key_w2: cannot be read" in refusal(tmp_path, secrets, toml)
    assert len(read(tmp_path, secrets, toml, keys=False).clusters) == 2


def test_a_setting_that_would_do_nothing_is_refused(tmp_path: Path) -> None:
    """Those of one cluster where nobody knows which, one that needs another, and a key that is given twice."""
    toml = "[clusters.a]\napi_key='k'\n[clusters.b]\napi_key='k'"
    assert refusal(tmp_path, {"TRACKER_PROXY": "https://p"}, toml) == (
        "TRACKER_PROXY: no cluster to use it for; set TRACKER_CLUSTER"
    )
    of_receivers = ["CHECKPOINT_URL", "ALERT_URLS", "PING_URL"]
    for setting, value, needed in (
        ("HTTP_BIND", "::1", ["HTTP_PORT"]),
        ("HTTP_PAGE", "off", ["HTTP_PORT"]),
        ("ALERT_AFTER", "1h", ["ALERT_URLS"]),
        ("RECEIVER_CA_BUNDLE", certifi.where(), of_receivers),
        ("RECEIVER_PROXY", "https://p", of_receivers),
    ):
        others = " or ".join(f"TRACKER_{other}" for other in needed)
        assert refusal(tmp_path, {f"TRACKER_{setting}": value}, "timezone = 'UTC'") == (
            f"TRACKER_{setting}: has no effect without {others}: set that too, or remove this one"
        )
        read(tmp_path, {f"TRACKER_{setting}": value}, "timezone = 'UTC'", keys=False)  # systemd may have the other one
        for other in needed:  # what is wrong is reported alone
            wrong = {f"TRACKER_{setting}": value, f"TRACKER_{other}": "wrong"}
            message = refusal(tmp_path, wrong)
            assert message.startswith(f"TRACKER_{other}: "), message
            assert "\n" not in message
            right = {"HTTP_PORT": "80", "ALERT_URLS": "json://h"}.get(other, "https://h")
            read(tmp_path, {f"TRACKER_{setting}": value, f"TRACKER_{other}": right})
    (tmp_path / "b").touch()
    assert "keep one of them" in refusal(tmp_path, toml="[clusters.w1]\napi_key = 'a'\napi_key_file = 'b'")
    assert "keep one of them" in refusal(tmp_path, {**ONE, "TRACKER_API_KEY_FILE": "b"}, "timezone = 'UTC'")


def test_a_command_that_asks_nothing_needs_no_key_and_reads_none(tmp_path: Path) -> None:
    """The account that registers jobs may have no right to read keys."""
    loaded = read(tmp_path, ONE, "[clusters.w2]\napi_key_file = 'unreadable'", keys=False)
    assert list(loaded.clusters) == ["w2", "w1"]
    assert {key(cluster) for cluster in loaded.clusters.values()} == {""}
    assert shown(loaded)["clusters.w2.api_key"] == ("", "not read")


def test_a_cluster_is_found_by_name_or_by_being_the_only_one(tmp_path: Path) -> None:
    """Otherwise the message names the clusters that there are."""
    two = read(tmp_path, {}, "[clusters.alpha]\napi_key = 'k'\n[clusters.beta]\napi_key = 'k'")
    assert two.cluster("beta").name == "beta"
    with pytest.raises(InvalidField, match=r"^cluster: several are configured; name one of them: alpha, beta$"):
        two.cluster(None)
    with pytest.raises(InvalidField, match=r"'Alfa' is not configured \(configured: alpha, beta\); did you mean alpha"):
        two.cluster("Alfa")
    with pytest.raises(BadConfiguration, match="TRACKER_CLUSTER and TRACKER_API_KEY"):
        Settings().cluster()


# What is wrong, where, and the way out


def test_everything_that_is_wrong_is_reported_at_once(tmp_path: Path) -> None:
    """Each in a line of its own: the place, what is wrong, what to do."""
    message = refusal(
        tmp_path,
        {"TRACKER_TIMEZON": "UTC", "TRACKER_HTTP_PORT": "0", "TRACKER_DATABASE_URL": "mysql://h"},
        "lost_aftr = 1\n[clusters.w1]\npathh = 'x'\narchive_days = -1\n[clusters.'w 2']\napi_key = 'k'",
    )
    assert message.splitlines() == [
        "8 settings are wrong:",
        "  TRACKER_TIMEZON: there is no such setting; did you mean TRACKER_TIMEZONE?",
        f"  {tmp_path}/tracker.toml: lost_aftr: there is no such setting; did you mean lost_after?",
        f"  {tmp_path}/tracker.toml: [clusters.w1] pathh: there is no such setting; did you mean path?",
        f"  cluster w1: has no key; give it by the file {tmp_path}/nothing/tracker_api_key_w1"
        " or api_key_file in its section of tracker.toml",
        "  TRACKER_DATABASE_URL: must begin with sqlite:/// (and a path) or postgresql+psycopg://",
        "  TRACKER_HTTP_PORT: must be a port number from 1 to 65535, not '0'",
        f"  {tmp_path}/tracker.toml: [clusters.w1] archive_days: "
        "must be a whole number of days from 1 to 365, not '-1'",
        f"  {tmp_path}/tracker.toml: [clusters.w 2]: "
        "must be at most 63 letters, digits and hyphens, without a hyphen at either end, not 'w 2'",
    ]
    lines = refusal(tmp_path, {"TRACKER_CLUSTER": "w1"}, "[clusters.w2]").splitlines()
    for way in ("TRACKER_API_KEY", f"{tmp_path}/nothing/tracker_api_key_w1", "api_key_file"):
        assert way in lines[2]


def test_what_kubernetes_sets_is_no_setting_and_what_resembles_it_is_an_error(tmp_path: Path) -> None:
    """A service called tracker, tracker-web or tracker-http sets variables in each pod of its namespace."""
    for service in ("TRACKER", "TRACKER_DB", "TRACKER_HTTP"):
        environ = {
            f"{service}_PORT": "tcp://10.0.0.1:80",
            f"{service}_PORT_5432_TCP": "tcp://10.0.0.1:5432",
            f"{service}_PORT_5432_TCP_ADDR": "10.0.0.1",
            f"{service}_SERVICE_HOST": "10.0.0.1",
            f"{service}_SERVICE_PORT": "80",
            f"{service}_SERVICE_PORT_HTTP": "80",
        }
        assert read(tmp_path, environ) == read(tmp_path)
    for name in ("TRACKER_SERVICES", "TRACKER_PORT", "TRACKER_WEB_PORT", "TRACKER_PORTAL", "TRACKER_SERVICE_HOSTS"):
        assert refusal(tmp_path, {name: "80"}).startswith(f"{name}: there is no such setting")


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        ("api_key = 'k'", "api_key: belongs in a [clusters.NAME] table"),
        ("[cluster.w1]\napi_key = 'k'", "cluster: there is no such setting; did you mean clusters?"),
        ("[clusters.w1]\napi_key = 'k'\nlost_after = 1", "lost_after: is a global setting: write it above the first"),
        ("[clusters]\nw1 = 'k'", "clusters.w1: must be a table: write [clusters.w1]"),
        ("clusters = 'w1'", "clusters: must be tables: write [clusters.NAME]"),
        ("lost_after = 1\ntimezone = UTC", "(at line 2, column 12)"),
        ("timezone = 'UTC' # \xff", "is not valid TOML in UTF-8"),
        ("checkpoint_file = ''", "checkpoint_file: is a folder; must be the path of a file"),
        ("[clusters.w1]\napi_key_file = 5", "api_key_file: must be the path of a file that holds the key"),
        ("[clusters.w1]\napi_key = 'k'\n[clusters.W1]\napi_key = 'k'", "w1 and W1 are one cluster"),
        ("[clusters.w1]\napi_key = 'k'\nca_bundle = 'no.pem'", "[clusters.w1] ca_bundle: there is no file"),
        ("http_port = true", "not 'True'"),
        ("alert_urls = [1]", "alert_urls: must be text"),
    ],
)
def test_what_is_wrong_in_the_file_is_reported_once_with_its_place(tmp_path: Path, toml: str, problem: str) -> None:
    """A wrong key, table, value or character set."""
    (tmp_path / "tracker.toml").write_bytes(toml.encode("latin-1"))
    message = refusal(tmp_path)
    assert problem in message
    assert message.startswith(str(tmp_path / "tracker.toml")) or "one cluster" in message
    assert "\n" not in message


def test_a_file_that_windows_wrote_is_read(tmp_path: Path) -> None:
    """Its byte order mark and line ends are accepted."""
    (tmp_path / "tracker.toml").write_bytes(b"\xef\xbb\xbftimezone = 'UTC'\r\n")
    assert read(tmp_path).timezone == "UTC"


def test_a_file_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    """A configuration, a secrets folder or a certificate that is missing is not replaced by a default."""
    for variable in ("TRACKER_CONFIG", "TRACKER_SECRETS_DIR", "TRACKER_CA_BUNDLE"):
        message = refusal(tmp_path, {**ONE, variable: "no.pem"})
        assert message.startswith(f"{variable}: there is no ")
        assert str(tmp_path / "no.pem") in message


def test_a_bad_key_file_is_named_once(tmp_path: Path) -> None:
    """Missing, empty, not text, or with a line break in the key."""
    for content, problem in (
        *((None, "No such file"), (b"", "empty"), (b" \n", "empty")),
        *((b"\xff\xfe", "not UTF-8"), (b"a\nb", "line break")),
    ):
        if content is not None:
            (tmp_path / "key").write_bytes(content)
        message = refusal(tmp_path, toml="[clusters.w1]\napi_key_file = 'key'")
        assert message.startswith(f"{tmp_path}/key ({tmp_path}/tracker.toml: [clusters.w1] api_key_file): ")
        assert problem in message
        assert "\n" not in message


WRONG = {
    "TIMEZONE": ["Europe/Stokholm", "localtime", "../etc/passwd", "/etc/localtime", "Europe", "CET+1"],
    "DATABASE_URL": ["tracker.db", "mysql://h/d", "postgresql+psycopg2://h/d", "sqlite:tracker.db"],
    "HTTP_PORT": ["0", "-1", "65536", "http", "80.5"],
    "HTTP_BIND": ["localhost", "127.0.0.1:80", "256.0.0.1", "*"],
    "HTTP_PAGE": ["sometimes", "2"],
    "ALERT_URLS": ["ops@example.com", "json://a,b c", "json://", "://h", "json://a /b"],
    "ALERT_AFTER": ["0", "soon"],
    "PING_URL": ["http://example.com/x", "ftp://h", "https://", "uuid"],
    "RECEIVER_CA_BUNDLE": ["no.pem", ".", "tracker.toml"],
    "RECEIVER_PROXY": ["socks5://h", "h:3128"],
    "LOST_AFTER_POLLS": ["0", "-3", "five", "1.5", "nan"],
    "LOST_AFTER": ["0", "0 s", "-1 d", "soon", "1 month", "2d3", "inf", "nan", "1e400", "9" * 30, "4000 days"],
    "SEAL_AFTER": ["-1", "never", "4000 days"],
    "RETENTION": ["0 d", "never", "3 years"],
    "ARCHIVE_DAYS": ["0", "366", "-5", "1.5"],
    "MAX_REQUESTS_PER_SECOND": ["0", "-1", "inf", "nan", "many"],
    "MAX_CONCURRENCY": ["0", "-1", "1001", "2.5"],
    "CHECKPOINT_URL": [
        *("example.com/x", "ftp://example.com", "http://example.com/x", "https://", "https://h:99999"),
        *("http://192.168.0.1/x", "https://a b", "https://h\\@evil", "http://localhost.evil.com"),
    ],
    "PROXY": ["proxy.example.com:3128", "socks5://h", "http://h/path", "http://h:port", "http://"],
    "BASE_URL": [
        *("w1.api.esales.apptus.cloud", "http://w1.api.esales.apptus.cloud", "http://127.0.0.1.evil.com"),
        *("http://localhost@evil.com", "https://u:p@h", "http://10.0.0.1", "http://0.0.0.0", "https://h/path"),
        *("https://h?x=1", "https://h#x", "https://h\nx", "https://[::1", "https://*.example.com", "https://a..b"),
        f"https://{'a' * 64}.com",
    ],
    "PATH": ["api", "//evil.com/x", "/a b", "/a?b", "/a#b", "/å", "\\x"],
    "CLUSTER": ["w.1", "w/1", "w_1", "w1@evil", "wå", "-w1", "w1-", "w" * 64, "w1\n2", "w 1"],
    "API_KEY": ["a b", "a\nb", "a\r\nX-Evil: 1", "kåy", "a\x00b"],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_refused_by_its_variable(tmp_path: Path, name: str) -> None:
    """The message begins with the variable and is one line."""
    (tmp_path / "tracker.toml").write_text("http_port = 80\nalert_urls = ['json://a', 'json://b']\n")
    for value in WRONG[name]:
        message = refusal(tmp_path, {**ONE, f"TRACKER_{name}": value})
        assert message.startswith(f"TRACKER_{name}: "), value
        assert "\n" not in message, value


def test_a_key_goes_without_tls_to_this_machine_only(tmp_path: Path) -> None:
    """And never through a proxy."""
    for url in ("http://127.0.0.1:8080", "http://localhost", "http://[::1]:80", "http://127.8.8.8", "HTTP://localhost"):
        assert read(tmp_path, {**ONE, "TRACKER_BASE_URL": url}).cluster().base_url == url
        assert refusal(tmp_path, {**ONE, "TRACKER_BASE_URL": url, "TRACKER_PROXY": "http://u:p@h:3128"}) == (
            "TRACKER_PROXY: proxy cannot be used with an http:// base_url: the key would pass it unencrypted"
        )
    for host in ("127.1", "localhost.", "::ffff:10.0.0.1", "0.0.0.0", "", None, "example.com"):  # noqa: S104
        assert not is_loopback(host)


def test_durations_are_written_as_people_write_them() -> None:
    """Units in words or letters, several of them, or a number of seconds."""
    for text, seconds in (
        *(("2 days", 172800), ("2 weeks", 1209600), ("36h", 129600), ("1D12h", 129600), ("1.5 min", 90)),
        *(("2 Minutes", 120), ("1m", 60), ("10", 10), (0.25, 0.25), (timedelta(1), 86400)),
    ):
        assert duration(text) == timedelta(seconds=seconds), text


# Secrets

SECRET = "s3cr3t-Zz9"  # noqa: S105 - no real one


def test_no_secret_is_shown(tmp_path: Path) -> None:
    """Keys, passwords and all of a URL that is a secret are masked; the program has them."""
    environ = {
        "TRACKER_CLUSTER": "w1",
        "TRACKER_API_KEY": SECRET,
        "TRACKER_PROXY": f"http://user:{SECRET}@proxy:3128",
        "TRACKER_DATABASE_URL": f"postgresql+psycopg://user:{SECRET}@host/db?sslpassword={SECRET}",
        "TRACKER_CHECKPOINT_URL": f"https://{SECRET}@hooks.example.com/services/{SECRET}",
        "TRACKER_ALERT_URLS": f"slack://{SECRET}/x mailto://me:{SECRET}@example.com",
        "TRACKER_PING_URL": f"https://hc-ping.com/{SECRET}",
        "TRACKER_RECEIVER_PROXY": f"http://user:{SECRET}@proxy:3128",
    }
    loaded = read(tmp_path, environ)
    for one in (loaded, loaded.cluster(), loaded.clusters, explain(loaded)):
        assert SECRET not in repr(one)
        assert SECRET not in str(one)
    rows = shown(loaded)
    assert rows["clusters.w1.api_key"][0] == "****"
    assert rows["clusters.w1.proxy"][0] == "http://user:****@proxy:3128"
    assert rows["database_url"][0] == "postgresql+psycopg://user:****@host/db?sslpassword=****"
    assert rows["checkpoint_url"][0] == "https://hooks.example.com/****"
    assert rows["alert_urls"][0] == "slack://**** mailto://****"
    assert rows["ping_url"][0] == "https://hc-ping.com/****"
    assert rows["receiver_proxy"][0] == "http://user:****@proxy:3128"
    assert loaded.cluster().proxy == environ["TRACKER_PROXY"]


PASSWORD = st.text("xyz@/?#:%&= 1", max_size=12).map(lambda text: f"PW{text}PW")


@given(
    start=st.sampled_from(["postgresql://", "postgresql:/", "postgresql+psycopg://", "http://", ""]),
    user=st.text("abc.@%-/ ", max_size=6),
    password=PASSWORD,
    end=st.sampled_from(["/db", "@h", "@host:", "@host:/db", "@host:x/db", "@ho st/db", "@a:1,b:2/db?x=@", "@[::1/db"]),
)
@settings(deadline=None, max_examples=200)
@example(start="postgresql:/", user="", password="PW://PW", end="/db")  # noqa: S106 - a test value
def test_no_password_is_shown_of_a_malformed_url(start: str, user: str, password: str, end: str) -> None:
    """However badly it is escaped; of a well-formed URL all else is shown."""
    if "@" not in end:
        password = password.replace("@", "")  # what follows it would be the host
    assert "PW" not in mask_url(f"{start}{user}:{password}{end}")
    assert "PW" not in mask_url(f"postgresql://host/db?user=a&pass%77ord={password}&x=y")
    assert mask_url(f"postgresql+psycopg://u:{password}@host/db") == "postgresql+psycopg://u:****@host/db"
    for url in ("sqlite:///tracker.db", "postgresql://host:5432/db", "https://h/p?x=1"):
        assert mask_url(url) == url


# The command


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
