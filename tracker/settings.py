"""Settings: their names, their sources, their valid values, and how to show them without secrets.

Owns the names, the defaults and the precedence: defaults < tracker.toml < files in the secrets folder < TRACKER_*
variables. Reads files and an environment, never a database or the network. An unknown name is an error, since a
misspelt setting that is ignored may go unnoticed for months.

Plain pydantic, not pydantic-settings: `explain` and the errors name the place that gave each value, which that library
does not record; it also adds 0.1 s to the start of every command.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import unquote_plus, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from tracker.errors import BadConfiguration, InvalidField

DEFAULT_TIMEZONE = "Europe/Stockholm"
DEFAULT_PATH = "/api/v2/event-data/job-status"
DEFAULT_SECRETS_DIR = "/run/secrets"
"""Where Docker and Kubernetes conventionally mount secrets."""

NO_CLUSTER_HINT = "set TRACKER_CLUSTER and TRACKER_API_KEY, or write [clusters.NAME] into tracker.toml"

_MASK = "****"
_UNITS = {"w": 604800, "d": 86400, "h": 3600, "min": 60, "s": 1}
_DURATION = r"(\d+(?:\.\d+)?)\s*(w|weeks?|d|days?|h|hours?|m|min|minutes?|s|sec|seconds?)(?=[\s\d]|$)\s*"
_LONGEST = timedelta(days=3650)
"""Beyond it, sums with today's date leave the calendar."""


def duration(value: object) -> timedelta:
    """Return *value* as a timedelta: a number of seconds, or a string such as ``2 days``, ``36h`` or ``1d 12h``.

    Raises:
        ValueError: It is not a duration.
    """
    if isinstance(value, timedelta):
        return value
    text = str(value).strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        text += "s"
    parts = re.findall(_DURATION, text, re.IGNORECASE)
    try:
        if not re.fullmatch(f"({_DURATION})+", text, re.IGNORECASE):
            raise ValueError
        units = {unit[0]: seconds for unit, seconds in _UNITS.items()}
        return timedelta(seconds=sum(float(number) * units[unit[0].lower()] for number, unit in parts))
    except (ValueError, OverflowError):
        raise ValueError("must be a duration such as '2 days', '36h', '1d 12h' or a number of seconds") from None


def is_loopback(host: str | None) -> bool:
    """Return whether *host*, a name or an address as `urlsplit` gives it, is this machine for certain."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


_HOST = r"(?:[\w.%-]*|\[[\da-fA-F:.%]+\])(?::\d{1,5})?"
_URL = re.compile(
    r"(?is)(?P<scheme>[a-z][\w+.-]*://)(?:(?P<user>(?:(?!%3a)[^\s:/?#@])*)(?P<password>:.*)?(?P<at>@))?"
    rf"(?P<hosts>{_HOST}(?:,{_HOST})*)(?P<path>(?:/[^?#@:]*)?)(?P<query>(?:[?#][^@]*)?)"
)
"""Only a password may hold an unescaped ``@``, ``/`` or ``?``: it ends at the last ``@`` that can end a password."""
_SECRET = re.compile("pass|pwd|secret|token|key|sig", re.IGNORECASE)


def mask_url(url: str) -> str:
    """Return *url* with its password masked, and the query from the first key that looks secret.

    All of a URL that it cannot parse is masked.
    """
    if url.startswith("sqlite"):  # a path: any character may be in it
        shown, mark, query = url.partition("?")
    elif parts := _URL.fullmatch(url):
        password = f":{_MASK}" if parts["password"] else ""
        shown = f"{parts['scheme']}{parts['user'] or ''}{password}{parts['at'] or ''}{parts['hosts']}{parts['path']}"
        mark, query = parts["query"][:1], parts["query"][1:]
    else:
        return _MASK
    pairs = query.split("&")
    for place, (key, equals, _) in enumerate(pair.partition("=") for pair in pairs):
        if equals and _SECRET.search(unquote_plus(key)):  # the rest may belong to the secret
            pairs[place:] = [f"{key}={_MASK}"]
            break
    return shown + mark + "&".join(pairs)


def mask_hook(url: str) -> str:
    """Return only scheme and host of *url*: anyone who knows the path of a webhook can use it."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}/{_MASK}" if parts.path.strip("/") or parts.query else f"{parts.scheme}://{host}"


def _mask_alerts(urls: tuple[SecretStr, ...]) -> str:
    """Return the scheme of each URL: some services put a token where other URLs have the host."""
    return " ".join(f"{url.get_secret_value().partition(':')[0]}://{_MASK}" for url in urls)


def _suggest(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean X?``, or nothing when no known name is near."""
    folded = {one.casefold(): one for one in known}
    near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    return f"; did you mean {folded[near[0]]}?" if near else ""


def _no_bool(value: object) -> object:
    if isinstance(value, bool):  # pydantic would read TOML's `true` for 1
        raise ValueError("must be a number")
    return value


def _zone_name(value: str) -> str:
    try:
        if value == "localtime":  # each machine has another one
            raise ValueError
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        way_out = _suggest(value, available_timezones()) or f"; write one such as {DEFAULT_TIMEZONE}"
        raise ValueError(f"there is no time zone {value[:60]!r}{way_out}") from None
    return value


def _url(value: str, *, http_anywhere: bool = False, userinfo: bool = True) -> str:
    """Return *value* if it is an http(s) URL of a host; no error repeats it, since it may hold a secret."""
    if re.search(r"[\x00-\x20\x7f-\x9f\\]", value):  # urlsplit would drop some of these silently
        raise ValueError("contains a space, a backslash or a control character")
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
        # Both are what requests and urllib3 refuse only later, with other errors.
        usable = (host or "*")[:1] != "*" and bool(host and host.encode("idna"))
    except ValueError:  # UnicodeError is one
        raise ValueError("is not a valid URL") from None
    if parts.scheme not in ("https", "http") or not usable:
        raise ValueError("must begin with https:// and a host name")
    if not userinfo and "@" in parts.netloc:
        raise ValueError("must not hold a user or a password")
    if parts.scheme == "http" and not (http_anywhere or is_loopback(host)):
        raise ValueError("must begin with https://; http:// is accepted for this machine (127.0.0.1, localhost) only")
    return value


def _origin(value: str) -> str:
    parts = urlsplit(value)
    if parts.path.strip("/") or "?" in value or "#" in value:
        raise ValueError("must end after the host and port; the rest of a cluster's URL belongs in path")
    return value.rstrip("/")


def _base_url(value: str) -> str:
    return _origin(_url(value, userinfo=False))


def _path(value: str) -> str:
    if not re.fullmatch(r"/[!-~]*", value) or re.search(r"[?#\\]", value) or value.startswith("//"):
        raise ValueError(f"must begin with one / and have no space, ? or #, such as {DEFAULT_PATH}")
    return value


def _proxy(value: str, info: ValidationInfo) -> str:
    # http:// is accepted for any host: a proxy only passes on bytes that it cannot read (CONNECT).
    if urlsplit(info.data.get("base_url", "")).scheme == "http":
        raise ValueError("proxy cannot be used with an http:// base_url: the key would pass it unencrypted")
    return _origin(_url(value, http_anywhere=True))


def _api_key(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[!-~]*", value.get_secret_value()):  # never repeated
        raise ValueError("the key has a space, a line break or another character that an HTTP header cannot carry")
    return value


def _file(value: Path) -> Path:
    if os.path.isdir(value):  # unlike Path.is_dir never raises
        raise ValueError("is a folder; must be the path of a file")
    return value


def _authorities(value: Path) -> Path:
    import ssl  # imported here: it takes some milliseconds, and few settings need it

    if not os.path.isfile(value):
        raise ValueError(f"there is no file {value}")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(value)
    except ssl.SSLError:
        raise ValueError(f"{value} is not a PEM file of certificates") from None
    except OSError:  # this account may not read it; commands that use it say so
        pass
    return value


def _address(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise ValueError("must be an IP address of this machine, such as 127.0.0.1, or 0.0.0.0 for all") from None


def _alert_urls(urls: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    """Check only the form: Apprise knows its schemes, and is needed by the daemon alone."""
    for number, url in enumerate(urls, 1):
        if not re.match(r"[A-Za-z][\w+.-]*://\S", url.get_secret_value()):  # never repeated
            raise ValueError(f"URL {number} must look like SCHEME://..., as Apprise has them, with a blank between two")
    return urls


def _with_effect(*needed: str) -> AfterValidator:
    """Refuse a setting that has no effect because none of *needed* (earlier fields of `Settings`) is set."""

    def check(value: object, info: ValidationInfo) -> object:
        # One that is wrong is missing in `data`, and is reported by itself. One that only the daemon gets may be set.
        has_secrets = (info.context or {}).get("keys", True)
        if has_secrets and not any(info.data.get(name, "wrong") for name in needed):
            others = " or ".join(f"TRACKER_{name.upper()}" for name in needed)
            raise PydanticCustomError("no_effect", f"has no effect without {others}: set that too, or remove this one")
        return value

    return AfterValidator(check)


def checked_database_url(value: str) -> str:
    """Return *value* if it is a URL that the database room can open.

    Raises:
        ValueError: It is not such a URL. The message says what to write and repeats no part of it.
    """
    if re.match(r"sqlite(\+pysqlite)?://", value):
        return value
    if not re.match(r"postgresql(\+psycopg)?://", value):
        raise ValueError("must begin with sqlite:/// (and a path) or postgresql+psycopg://")
    parts = _URL.fullmatch(value)
    if parts is None or "@" in (parts["password"] or ""):
        raise ValueError(
            "must be like postgresql+psycopg://user:password@host:5432/name; in a password write @ as %40, / as %2F,"
            " : as %3A, % as %25"
        )
    if "," in parts["hosts"] and ":" in parts["hosts"]:
        raise ValueError(
            "several hosts with ports are written postgresql+psycopg://user:password@/name?host=one:5432&host=two:5432"
            "&target_session_attrs=read-write"
        )
    return value


def _number(least: float, most: float, what: str = "a whole number") -> Any:
    return Field(ge=least, le=most, allow_inf_nan=False, description=f"{what} from {least} to {most}")


Zone = Annotated[str, AfterValidator(_zone_name)]
ClusterName = Annotated[  # it becomes a label of a host name (RFC 1123, 2.1), so nothing else may get into it
    str,
    Field(
        pattern="^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$",
        description="at most 63 letters, digits and hyphens, without a hyphen at either end",
    ),
]
DurationOrZero = Annotated[
    timedelta,
    BeforeValidator(duration),
    Field(ge=timedelta(0), le=_LONGEST, description="a duration such as '2 days', '36h' or '60 s'"),
]
Duration = Annotated[DurationOrZero, Field(gt=timedelta(0), description="a duration above 0 such as '2 days'")]
Count = Annotated[int, BeforeValidator(_no_bool)]
File = Annotated[Path, AfterValidator(_file)]
CaBundle = Annotated[Path, AfterValidator(_authorities)]
HookUrl = Annotated[str, AfterValidator(_url)]
SecretUrl = Annotated[SecretStr, AfterValidator(lambda value: SecretStr(_url(value.get_secret_value())))]
AlertUrls = Annotated[
    tuple[SecretStr, ...],
    BeforeValidator(lambda value: value.split() if isinstance(value, str) else value),
    AfterValidator(_alert_urls),
]
_ON_HTTP = _with_effect("http_port")
_ON_RECEIVERS = _with_effect("checkpoint_url", "alert_urls", "ping_url")


class _Model(BaseModel):
    """Valid and unchanging values; the repr holds no secret."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, str_strip_whitespace=True)

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        return _shown(self).items()


class ClusterSettings(_Model):
    """One cluster: where it is asked, with which key, and how fast."""

    name: ClusterName  # the cluster's id, as jobs name it
    api_key: Annotated[SecretStr, AfterValidator(_api_key)] = SecretStr("")  # empty after `load` with ``keys=False``
    base_url: Annotated[str, AfterValidator(_base_url)] = Field(  # without a slash at the end
        default_factory=lambda data: f"https://{data['name']}.api.esales.apptus.cloud"
    )
    path: Annotated[str, AfterValidator(_path)] = DEFAULT_PATH  # of the job-status call
    timezone: Zone = DEFAULT_TIMEZONE  # in which Elevate's days begin (undocumented, so a setting)
    archive_days: Annotated[Count, _number(1, 365, "a whole number of days")] = 5  # until a day's jobs may start
    max_requests_per_second: Annotated[  # over all daemons on one database
        float, BeforeValidator(_no_bool), _number(0.001, 1_000_000, "a number")
    ] = 10.0
    max_concurrency: Annotated[Count, _number(1, 1000)] = 4  # requests at the same time, in one daemon
    ca_bundle: CaBundle | None = None  # PEM, in place of the usual authorities
    proxy: Annotated[str, AfterValidator(_proxy)] | None = None  # may hold a password

    @property
    def zone(self) -> ZoneInfo:
        """The time zone in which Elevate's next day begins."""
        return ZoneInfo(self.timezone)


class Explained(NamedTuple):
    """One effective setting, and where it came from: ``default``, a variable's name, or a file."""

    name: str  # as in tracker.toml, such as ``timezone`` or ``clusters.w1.base_url``
    value: str  # secrets masked; "" when it is not set
    source: str


class Settings(_Model):
    """All settings; `load` makes one."""

    timezone: Zone = DEFAULT_TIMEZONE  # of the legal clock
    database_url: Annotated[str, AfterValidator(checked_database_url)] = "sqlite:///tracker.db"  # may hold a password
    http_port: Annotated[Count | None, _number(1, 65535, "a port number")] = None  # None is off
    http_bind: Annotated[str, AfterValidator(_address), _ON_HTTP] = "127.0.0.1"
    http_page: Annotated[bool, _ON_HTTP, Field(description="on or off")] = Field(  # off beyond this machine
        default_factory=lambda data: is_loopback(data["http_bind"])
    )
    signing_key_file: File | None = None
    checkpoint_file: File | None = None
    checkpoint_url: HookUrl | None = None
    seal_after: DurationOrZero = timedelta(hours=1)  # how old the oldest unsealed row may get; 0: seal each new row
    alert_urls: AlertUrls = ()  # of Apprise
    alert_after: Annotated[Duration, _with_effect("alert_urls")] = timedelta(minutes=15)  # a cluster is unreachable
    ping_url: SecretUrl | None = None  # of a service that speaks Healthchecks' protocol
    receiver_ca_bundle: Annotated[CaBundle, _ON_RECEIVERS] | None = None  # of checkpoints, alerts and pings
    receiver_proxy: Annotated[str, AfterValidator(_proxy), _ON_RECEIVERS] | None = None  # may hold a password
    retention: Duration | None = None  # of ended jobs: `tracker status` counts older ones; None: all are kept
    lost_after_polls: Annotated[Count, _number(1, 10_000)] = 5  # ``not_found`` answers in a row that end a job …
    lost_after: Duration = timedelta(days=2)  # … over at least this long
    delay_per_poll: Duration = timedelta(seconds=60)  # how much mean delay one poll may save
    request_timeout: Duration = timedelta(seconds=10)  # for one complete request to Elevate
    clusters: dict[str, ClusterSettings] = {}  # by name; empty for commands that only read the database

    _places: dict[_Where, str] = PrivateAttr(default_factory=dict)
    _folders: tuple[Explained, ...] = PrivateAttr(())

    @model_validator(mode="after")
    def _clusters_differ(self) -> Settings:
        names: dict[str, str] = {}
        for name in self.clusters:
            if (other := names.setdefault(name.lower(), name)) != name:
                raise ValueError(f"clusters {other} and {name} are one cluster, since case does not count: keep one")
        return self

    @property
    def zone(self) -> ZoneInfo:
        """The legal time zone."""
        return ZoneInfo(self.timezone)

    def cluster(self, name: str | None = None) -> ClusterSettings:
        """Return the cluster called *name*, or the only one when None.

        Raises:
            BadConfiguration: no cluster is configured at all.
            InvalidField: *name* is not configured, or is None where several are; the message names the configured ones.
        """
        if not self.clusters:
            raise BadConfiguration(f"no cluster is configured: {NO_CLUSTER_HINT}")
        known = ", ".join(self.clusters)
        if name is None and len(self.clusters) > 1:
            raise InvalidField("cluster", f"several are configured; name one of them: {known}")
        name = next(iter(self.clusters)) if name is None else name
        if name not in self.clusters:
            near = _suggest(name, self.clusters)
            raise InvalidField("cluster", f"{name[:80]!r} is not configured (configured: {known}){near}")
        return self.clusters[name]


_GLOBAL = tuple(name for name in Settings.model_fields if name != "clusters")
_PATHS = frozenset({"signing_key_file", "checkpoint_file", "ca_bundle", "receiver_ca_bundle", "api_key_file"})
_SECRET_URLS: dict[str, Callable[[Any], str]] = {
    "database_url": mask_url,
    "proxy": mask_url,
    "receiver_proxy": mask_url,
    "checkpoint_url": mask_hook,
    "ping_url": lambda url: mask_hook(url.get_secret_value()),
    "alert_urls": _mask_alerts,
}

GLOBAL_KEYS = (*_GLOBAL, "clusters")
"""Every key at the top of tracker.toml."""
CLUSTER_KEYS = ("api_key_file", *(name for name in ClusterSettings.model_fields if name != "name"))
"""Every key of a [clusters.NAME] table."""
_SETTINGS_BY_VARIABLE = {
    f"TRACKER_{name.upper()}": name
    for name in ("cluster", *(key for key in CLUSTER_KEYS if key != "timezone"), *_GLOBAL)
}
VARIABLES = ("TRACKER_CONFIG", "TRACKER_SECRETS_DIR", *_SETTINGS_BY_VARIABLE)
"""Every variable that means something."""
_OF_A_SERVICE = re.compile(
    r"TRACKER_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_\w+)=|\w+_PORT=(tcp|udp|sctp)://"
)
"""What Kubernetes sets for a service whose name begins with ``tracker``."""

_Where = tuple[str, ...]
"""A setting's way from the top, such as ``("timezone",)`` or ``("clusters", "w1", "path")``."""
_Found = dict[_Where, tuple[object, str]]
"""Each setting's value, and what to call the place that gave it."""


def load(environ: Mapping[str, str] | None = None, cwd: Path | None = None, *, keys: bool = True) -> Settings:
    """Return the settings that are in force.

    Args:
        environ: The environment; None is the process's.
        cwd: Where tracker.toml is looked for and the relative paths of variables begin; None is the current folder.
        keys: False for a command that does not ask Elevate. Then keys are not needed and not read from their files,
            which the account that registers or reads jobs may be unable to read; each `api_key` is empty. A setting
            that does nothing is no error then: it may be for a secret that systemd hands to the daemon alone.

    Raises:
        BadConfiguration: The message names every wrong place and what to do, and never repeats a secret.
    """
    environ = os.environ if environ is None else environ
    cwd = Path.cwd() if cwd is None else cwd
    ours = {
        name: value.strip()
        for name, value in sorted(environ.items())
        if name.startswith("TRACKER_") and not _OF_A_SERVICE.match(f"{name}={value}")
    }
    problems = [
        f"{name}: there is no such setting{_suggest(name, VARIABLES)}" for name in ours if name not in VARIABLES
    ]
    for name in [name for name, value in ours.items() if re.search("[\ud800-\udfff]", value)]:
        problems.append(f"{name}: is not UTF-8 text")
        del ours[name]
    # An empty variable counts as not set: compose files write ${NAME:-}.
    given = {name: (ours[name], name) for name in VARIABLES if ours.get(name)}
    if {"TRACKER_API_KEY", "TRACKER_API_KEY_FILE"} <= given.keys():
        problems.append("TRACKER_API_KEY: TRACKER_API_KEY_FILE is also set; keep one of them")

    config = cwd / os.path.expanduser(ours.get("TRACKER_CONFIG") or "tracker.toml")
    found: _Found = {}
    if has_config := os.path.exists(config):
        found = _from_toml(config, problems)
    elif "TRACKER_CONFIG" in given:
        problems.append(f"TRACKER_CONFIG: there is no file {config}; make it, or unset the variable")

    folder_from = next((one for one in ("TRACKER_SECRETS_DIR", "CREDENTIALS_DIRECTORY") if environ.get(one)), "default")
    folder = cwd / os.path.expanduser(environ.get(folder_from, DEFAULT_SECRETS_DIR))
    if has_folder := os.path.isdir(folder) and os.access(folder, os.X_OK):
        given = _from_secrets(folder, {*given} | (set() if keys else {"TRACKER_API_KEY"}), problems) | given
    elif folder_from == "TRACKER_SECRETS_DIR":
        problems.append(f"{folder_from}: there is no folder {folder}; make it, or unset the variable")

    tables = [where[1] for where in found if where[2:] == ("name",)]
    name = given["TRACKER_CLUSTER"][0] if "TRACKER_CLUSTER" in given else tables[0] if len(tables) == 1 else ""
    for cluster in filter(None, dict.fromkeys((*tables, name)) if keys and has_folder else ()):
        file = folder / f"tracker_api_key_{cluster.lower()}"
        if os.path.lexists(file) and (key := _text_of(file, str(file), problems)):
            _put(found, ("clusters", cluster, "api_key"), key, str(file), cwd)
            if cluster == name and given.get("TRACKER_API_KEY", ("", ""))[1] == f"{folder}/tracker_api_key":
                problems.append(f"{file}: tracker_api_key is also there; keep one of them")
    for variable in [one for one in given if one in _SETTINGS_BY_VARIABLE]:
        (value, place), setting = given[variable], _SETTINGS_BY_VARIABLE[variable]
        if setting in _GLOBAL:
            _put(found, (setting,), value, place, cwd)
        elif name:
            _put(found, ("clusters", name, "name" if setting == "cluster" else setting), value, place, cwd)
        else:
            problems.append(f"{place}: no cluster to use it for; set TRACKER_CLUSTER")

    _read_keys(found, keys, name, folder, problems)
    settings = _validate(found, keys, problems)
    if problems or settings is None:
        if len(problems) == 1:
            raise BadConfiguration(problems[0])
        raise BadConfiguration(f"{len(problems)} settings are wrong:" + "".join(f"\n  {one}" for one in problems))
    settings._places.update((where, place) for where, (_, place) in found.items())
    settings._folders = (
        Explained("config", str(config) if has_config else "", given.get("TRACKER_CONFIG", ("", "default"))[1]),
        Explained("secrets_dir", str(folder) if has_folder else "", folder_from),
    )
    return settings


def explain(settings: Settings) -> list[Explained]:
    """Return a row for each effective setting, secrets masked, and where it came from."""
    shown: dict[_Where, str] = {(name,): value for name, value in _shown(settings).items() if name != "clusters"}
    for cluster in settings.clusters.values():
        values = _shown(cluster).items()
        shown |= {("clusters", cluster.name, name): value for name, value in values if name != "name"}

    def source(where: _Where) -> str:
        default = "default: the global one" if where[2:] == ("timezone",) else "default"
        return settings._places.get(where, default)

    rows = [Explained(".".join(where), value, source(where)) for where, value in shown.items()]
    return [*settings._folders, *rows]


def _shown(model: BaseModel) -> dict[str, str]:
    """Return each field as text that anyone may see."""
    shown: dict[str, str] = {}
    for name in type(model).model_fields:
        value = getattr(model, name)
        if value is None:
            text = ""
        elif name in _SECRET_URLS:
            text = _SECRET_URLS[name](value)
        elif isinstance(value, bool):
            text = "on" if value else "off"
        elif isinstance(value, SecretStr):
            text = _MASK if value.get_secret_value() else ""
        elif isinstance(value, timedelta):
            seconds = value.total_seconds()
            unit = next((unit for unit in ("d", "h", "min") if seconds % _UNITS[unit] == 0), "s")
            text = f"{seconds / _UNITS[unit]:.15g} {unit}"
        elif isinstance(value, dict):
            text = ", ".join(value)
        else:
            text = str(value)
        shown[name] = text
    return shown


def _put(found: _Found, where: _Where, value: object, place: str, folder: Path) -> None:
    """Add what *place* says, over what a weaker place says; a relative path begins at *folder*."""
    *above, setting = where
    if setting in _PATHS and isinstance(value, str):
        value = folder / os.path.expanduser(value)  # Path.expanduser raises where there is no home
    if setting in ("api_key", "api_key_file"):  # two ways to give one thing
        found.pop((*above, "api_key"), None)
        found.pop((*above, "api_key_file"), None)
    found[where] = value, place


def _text_of(file: Path, place: str, problems: list[str]) -> str:
    """Return the text of a file, without white space around it; "" if it cannot be read, which *problems* says."""
    try:
        return file.read_text("utf-8").strip()
    except OSError as error:
        problems.append(f"{place}: cannot be read: {error.strerror or type(error).__name__}")
    except ValueError:  # the codec's, or a NUL in the path
        problems.append(f"{place}: is not UTF-8 text")
    return ""


def _from_toml(path: Path, problems: list[str]) -> _Found:
    """Return what tracker.toml says; unknown keys and a file that cannot be read are added to *problems*."""
    found: _Found = {}
    try:
        document = tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror}")
        return found
    except (ValueError, RecursionError) as error:
        # TOML's own error names line and column; others (the codec's, a number too long) repeat what is in the file.
        shown = error if isinstance(error, tomllib.TOMLDecodeError) else "is not valid TOML in UTF-8"
        problems.append(f"{path}: {shown}")
        return found

    def take(above: _Where, table: dict[str, object]) -> None:
        known, others, hint = _GLOBAL, CLUSTER_KEYS, "belongs in a [clusters.NAME] table"
        if above:
            known, others, hint = (
                CLUSTER_KEYS,
                _GLOBAL,
                "is a global setting: write it above the first [clusters.…] line",
            )
        for key, value in table.items():
            place = f"{path}: [{'.'.join(above)}] {key}" if above else f"{path}: {key}"
            if key in known:
                _put(found, (*above, key), value, place, path.parent)
            else:
                problem = hint if key in others else f"there is no such setting{_suggest(key, (*known, 'clusters'))}"
                problems.append(f"{place}: {problem}")

    clusters = document.pop("clusters", {})
    take((), document)
    if not isinstance(clusters, dict):
        problems.append(f"{path}: clusters: must be tables: write [clusters.NAME]")
        return found
    for name, table in clusters.items():
        found["clusters", name, "name"] = name, f"{path}: [clusters.{name}]"
        if not isinstance(table, dict):
            problems.append(f"{path}: clusters.{name}: must be a table: write [clusters.{name}]")
            del found["clusters", name, "name"]
            continue
        if {"api_key", "api_key_file"} <= table.keys():
            problems.append(f"{path}: [clusters.{name}]: api_key and api_key_file are both set; keep one of them")
        take(("clusters", name), table)
    return found


def _from_secrets(folder: Path, left_out: set[str], problems: list[str]) -> dict[str, tuple[str, str]]:
    """Return by variable what the files of the secrets folder say: (value, place).

    A file is called as the variable in lower case: ``tracker_api_key``. Others are left alone: the folder is shared,
    and may hold files that ``api_key_file`` names, and a key for each of several clusters (`load`).
    """
    secrets: dict[str, tuple[str, str]] = {}
    for variable in _SETTINGS_BY_VARIABLE:
        file = folder / variable.lower()
        if variable not in left_out and os.path.lexists(file) and (text := _text_of(file, str(file), problems)):
            secrets[variable] = text, str(file)
    return secrets


def _read_keys(found: _Found, keys: bool, single: str, folder: Path, problems: list[str]) -> None:
    """Read the key files that count, and add a problem for each cluster without a key. Without *keys*: forget them."""
    for name in {where[1]: None for where in found if where[0] == "clusters"}:
        where = ("clusters", name, "api_key")
        file, place = found.pop(("clusters", name, "api_key_file"), (None, ""))
        if not keys:
            found[where] = "", "not read"
        elif isinstance(file, Path):
            place = f"{file} ({place})"
            before = len(problems)
            found[where] = _text_of(file, place, problems), place
            if not found[where][0] and len(problems) == before:
                problems.append(f"{place}: the file is empty")
        elif file is not None:
            problems.append(f"{place}: must be the path of a file that holds the key")
        elif not found.get(where, ("", ""))[0]:
            ways = ["TRACKER_API_KEY"] if name == single else []
            ways += [f"the file {folder}/tracker_api_key_{name[:80].lower()}"]
            ways += ["api_key_file in its section of tracker.toml"]
            problems.append(f"cluster {name[:80]}: has no key; give it by {' or '.join(ways)}")


def _validate(found: _Found, keys: bool, problems: list[str]) -> Settings | None:
    """Return the settings, or add what is wrong with the values to *problems* and return None."""
    document: dict[str, Any] = {where[0]: value for where, (value, _) in found.items() if len(where) == 1}
    clusters: dict[str, dict[str, object]] = {}
    for where, (value, _) in found.items():
        if where[0] == "clusters":
            clusters.setdefault(where[1], {"timezone": document.get("timezone", DEFAULT_TIMEZONE)})[where[2]] = value
    try:
        return Settings.model_validate(document | {"clusters": clusters}, context={"keys": keys})
    except ValidationError as error:
        for one in error.errors(include_url=False):
            where = tuple(map(str, one["loc"]))
            where = where if where[:1] == ("clusters",) else where[:1]  # not the place in a list
            if where and where not in found:  # it follows from an error that is reported by itself
                continue
            fields = ClusterSettings.model_fields if where[1:] else Settings.model_fields
            wanted = fields[where[-1]].description if where else ""
            text = f"must be {wanted}, not {str(one['input'])[:40]!r}"
            if one["type"] == "no_effect":
                text = one["msg"]
            elif not wanted:
                text = str(one.get("ctx", {}).get("error", "must be text"))
            problems.append(f"{found[where][1]}: {text}" if where else text)
    return None
