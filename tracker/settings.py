"""Settings: their names, their sources, their valid values, and how to show them without secrets.

Owns the names, the defaults and the precedence: defaults < tracker.toml < files in the secrets folder < TRACKER_*
variables. Reads files and an environment, never a database or the network, and keeps no global: `load` returns a value.
An unknown name is an error, since nobody notices for months that a misspelt setting is ignored.

Plain pydantic, not pydantic-settings: one dict merge combines the sources here, and we must know which source won (for
`explain`, and to name the place of an error). pydantic-settings also reads only the environment of the process, and
adds 0.1 s of import to every command.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import socket
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
    model_validator,
)

from tracker.errors import BadConfiguration, InvalidField

DEFAULT_TIMEZONE = "Europe/Stockholm"
DEFAULT_PATH = "/api/v2/event-data/job-status"
DEFAULT_SECRETS_DIR = "/run/secrets"
"""Where Docker and Kubernetes conventionally mount secrets."""

_MASK = "****"
_UNITS = {"w": 604800, "d": 86400, "h": 3600, "min": 60, "s": 1}
_DURATION = re.compile(
    r"(\d+(?:\.\d+)?)\s*(w|weeks?|d|days?|h|hours?|m|min|minutes?|s|sec|seconds?)(?=[\s\d]|$)\s*", re.IGNORECASE
)
_LONGEST = timedelta(days=3650)
"""Beyond it, sums with today's date leave the calendar."""


def duration(text: object) -> timedelta:
    """Return *text* as a timedelta: a number of seconds, or a string such as ``2 days``, ``36h`` or ``1d 12h``.

    Raises:
        ValueError: It is not a duration.
    """
    if isinstance(text, timedelta):
        return text
    wrong = ValueError("must be a duration such as '2 days', '36h', '1d 12h' or a number of seconds")
    try:
        if isinstance(text, int | float) and not isinstance(text, bool):
            return timedelta(seconds=text)
        if not isinstance(text, str):
            raise wrong
        left = text.strip()
        if re.fullmatch(r"\d+(\.\d+)?", left):
            return timedelta(seconds=float(left))
        seconds = 0.0
        while match := _DURATION.match(left):
            seconds += float(match[1]) * next(size for unit, size in _UNITS.items() if unit[0] == match[2][0].lower())
            left = left[match.end() :]
        if left or not text.strip():
            raise wrong
        return timedelta(seconds=seconds)
    except (OverflowError, ValueError):  # nan and infinity are ValueError and OverflowError of timedelta
        raise wrong from None


def is_loopback(host: str | None) -> bool:
    """Return whether *host*, a name or an address as `urlsplit` gives it, is this machine for certain."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def may_be_loopback(host: str | None) -> bool:
    """Return whether *host* may lead to this machine, however it is spelled: a superset of `is_loopback`.

    The resolver decides about a name below ``localhost`` or with a dot at its end, the system about 0.0.0.0. So no key
    goes there without TLS, and the lists of sources mark such a host.
    """
    bare = (host or "").casefold().rstrip(".")
    if is_loopback(bare) or bare.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        try:
            address = ipaddress.IPv4Address(socket.inet_aton(bare))  # a resolver also reads 127.1 and 2130706433
        except OSError:
            return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


_HOST = r"(?:[\w.%-]*|\[[\da-fA-F:.%]+\])(?::\d{1,5})?"
_URL = re.compile(
    r"(?is)(?P<scheme>[a-z][\w+.-]*://)(?:(?P<user>(?:(?!%3a)[^\s:/?#@])*)(?P<password>:.*)?(?P<at>@))?"
    rf"(?P<hosts>{_HOST}(?:,{_HOST})*)(?P<path>(?:/[^?#@:]*)?)(?P<query>(?:[?#][^@]*)?)"
)
"""Only a password may hold an unescaped ``@``, ``/`` or ``?``: it ends at the last ``@`` that can end a password."""
_SECRET = re.compile("pass|pwd|secret|token|key|sig", re.IGNORECASE)


def mask_url(url: str) -> str:
    """Return *url* with its password masked, and the query from the first key that looks secret.

    Of a URL that it cannot parse, only the scheme is shown: masking too much is harmless.
    """
    scheme, separator, _ = url.partition("://")
    if not separator:
        return _MASK if re.match(r"(?s)[a-zA-Z][\w+.-]*:/|.*:.*@", url) else url
    if not re.fullmatch(r"[a-zA-Z][\w+.-]*", scheme):
        return _MASK
    if scheme.startswith("sqlite"):  # a path: any character may be in it
        shown, mark, query = url.partition("?")
    elif parts := _URL.fullmatch(url):
        password = f":{_MASK}" if parts["password"] else ""
        shown = f"{parts['scheme']}{parts['user'] or ''}{password}{parts['at'] or ''}{parts['hosts']}{parts['path']}"
        mark, query = parts["query"][:1], parts["query"][1:]
    else:
        return f"{scheme}://{_MASK}"
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


def _suggest(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean X?``, or nothing when no known name is near."""
    folded = {one.casefold(): one for one in known}
    near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    return f"; did you mean {folded[near[0]]}?" if near else ""


def _no_bool(value: object) -> object:
    if isinstance(value, bool):  # pydantic would take TOML's `true` for 1
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


def _cluster_name(value: str) -> str:
    # It becomes a label of a host name (RFC 1123, 2.1), so nothing else may get into it.
    if not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?", value):
        raise ValueError(
            "a cluster's name has letters, digits and hyphens only, at most 63, and no hyphen at either end"
        )
    return value


def _url(value: str, *, http_anywhere: bool = False, userinfo: bool = True) -> str:
    """Return *value* if it is an http(s) URL of a host; no error repeats it, since it may hold a secret."""
    if re.search(r"[\x00-\x20\x7f-\x9f\\]", value):  # urlsplit would drop some of these silently
        raise ValueError("has a space, a backslash or a control character in it")
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


def _base_url(value: str) -> str:
    parts = urlsplit(_url(value, userinfo=False))
    if parts.path.strip("/") or parts.query or parts.fragment or "?" in value or "#" in value:
        raise ValueError("must end after the host and port; the rest belongs in path")
    return value.rstrip("/")


def _path(value: str) -> str:
    if not re.fullmatch(r"/[!-~]*", value) or re.search(r"[?#\\]", value) or value.startswith("//"):
        raise ValueError(f"must begin with one / and have no space, ? or #, such as {DEFAULT_PATH}")
    return value


def _proxy(value: str) -> str:
    # http:// is fine anywhere: to an https:// server a proxy only passes on bytes that it cannot read (CONNECT).
    if (parts := urlsplit(_url(value, http_anywhere=True))).path.strip("/") or parts.query:
        raise ValueError("must end after the host and port, such as http://proxy.example.com:3128")
    return value


def _api_key(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[!-~]*", value.get_secret_value()):  # never repeated
        raise ValueError("the key has a space, a line break or another character that an HTTP header cannot carry")
    return value


def _file(value: Path) -> Path:
    if os.path.isdir(value):  # unlike Path.is_dir never raises
        raise ValueError("is a folder; must be the path of a file")
    return value


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


Zone = Annotated[str, AfterValidator(_zone_name)]
Duration = Annotated[
    timedelta,
    BeforeValidator(duration),
    Field(gt=timedelta(0), le=_LONGEST, description="a duration above 0 such as '2 days', '36h' or '60 s'"),
]
DurationOrZero = Annotated[
    timedelta,
    BeforeValidator(duration),
    Field(ge=timedelta(0), le=_LONGEST, description="a duration such as '1 h' or '0 s'"),
]
Count = Annotated[int, BeforeValidator(_no_bool)]
File = Annotated[Path, AfterValidator(_file)]
HookUrl = Annotated[str, AfterValidator(_url)]

_CONFIG = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, str_strip_whitespace=True)


class ClusterSettings(BaseModel):
    """One cluster: where it is asked, with which key, and how fast. Its repr holds no secret.

    Attributes:
        name: The cluster's id, as jobs name it.
        api_key: The private key; empty when it was not asked for (`load` with ``keys=False``).
        base_url: Scheme, host and port, without a slash at the end.
        path: The job-status call's path, with a slash at its beginning.
        timezone: Where Elevate's next day begins (undocumented, hence a setting).
        archive_days: Days until a day's data is archived and its jobs may start (ELEVATE.md).
        max_requests_per_second: Over all daemons on one database.
        max_concurrency: Requests under way at once, in one daemon.
        ca_bundle: PEM file of the authorities to trust in place of the usual ones.
        proxy: May hold a password.
    """

    model_config = _CONFIG

    name: Annotated[str, AfterValidator(_cluster_name)]
    api_key: Annotated[SecretStr, AfterValidator(_api_key)] = SecretStr("")
    base_url: Annotated[str, AfterValidator(_base_url)] = Field(
        default_factory=lambda data: f"https://{data['name']}.api.esales.apptus.cloud"
    )
    path: Annotated[str, AfterValidator(_path)] = DEFAULT_PATH
    timezone: Zone = DEFAULT_TIMEZONE
    archive_days: Annotated[Count, Field(ge=1, le=365, description="a whole number of days from 1 to 365")] = 5
    max_requests_per_second: Annotated[
        float,
        BeforeValidator(_no_bool),
        Field(ge=0.001, le=1e6, allow_inf_nan=False, description="a number from 0.001 to 1000000"),
    ] = 10.0
    max_concurrency: Annotated[Count, Field(ge=1, le=1000, description="a whole number from 1 to 1000")] = 4
    ca_bundle: File | None = None
    proxy: Annotated[str, AfterValidator(_proxy)] | None = None

    @model_validator(mode="after")
    def _proxy_reads_nothing(self) -> ClusterSettings:
        if self.proxy and self.base_url.startswith("http://"):
            raise ValueError("proxy cannot be used with an http:// base_url: the key would pass it unencrypted")
        return self

    @property
    def zone(self) -> ZoneInfo:
        """The time zone in which Elevate's next day begins."""
        return ZoneInfo(self.timezone)

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        return _shown(self).items()


class Explained(NamedTuple):
    """One effective setting.

    Attributes:
        name: As in tracker.toml, such as ``timezone`` or ``clusters.w1.base_url``.
        value: As text, secrets masked, "" when it is not set.
        source: ``default``, a variable's name, or a file.
    """

    name: str
    value: str
    source: str


class Settings(BaseModel):
    """All settings, valid and unchanging. `load` makes one; its repr holds no secret.

    Attributes:
        clusters: By name; empty for commands that only read the database.
        timezone: Of the legal clock.
        database_url: SQLAlchemy's form; may hold a password.
        http_port: On 127.0.0.1; None is off.
        lost_after_polls, lost_after: When ``not_found`` ends a job.
        delay_per_poll: How much mean delay one poll may save (the cadence's price).
        request_timeout: For the whole of one request to Elevate.
        seal_after: How old the oldest unsealed row may get; 0: every new row is sealed at once.
    """

    model_config = _CONFIG

    timezone: Zone = DEFAULT_TIMEZONE
    database_url: Annotated[str, AfterValidator(checked_database_url)] = "sqlite:///tracker.db"
    http_port: Annotated[Count | None, Field(ge=1, le=65535, description="a port number from 1 to 65535")] = None
    signing_key_file: File | None = None
    checkpoint_file: File | None = None
    checkpoint_url: HookUrl | None = None
    seal_after: DurationOrZero = timedelta(hours=1)
    alert_url: HookUrl | None = None
    ping_url: HookUrl | None = None
    lost_after_polls: Annotated[Count, Field(ge=1, le=10_000, description="a whole number from 1 to 10000")] = 5
    lost_after: Duration = timedelta(days=2)
    delay_per_poll: Duration = timedelta(seconds=60)
    request_timeout: Duration = timedelta(seconds=10)
    clusters: dict[str, ClusterSettings] = {}

    _places: dict[_Where, str] = PrivateAttr(default_factory=dict)
    _read: tuple[Explained, ...] = PrivateAttr(())

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
            raise BadConfiguration(
                "no cluster is configured: set TRACKER_CLUSTER and TRACKER_API_KEY, or write [clusters.NAME] into "
                "tracker.toml"
            )
        known = ", ".join(self.clusters)
        if name is None:
            if len(self.clusters) > 1:
                raise InvalidField("cluster", f"several are configured, name one of them: {known}")
            return next(iter(self.clusters.values()))
        if name not in self.clusters:
            near = _suggest(name, self.clusters)
            raise InvalidField("cluster", f"{name[:80]!r} is not configured (configured: {known}){near}")
        return self.clusters[name]

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        return _shown(self).items()


_GLOBAL = tuple(name for name in Settings.model_fields if name != "clusters")
_PER_CLUSTER = tuple(name for name in ClusterSettings.model_fields if name != "name")
_PATHS = frozenset({"signing_key_file", "checkpoint_file", "ca_bundle"})
_HOOKS = frozenset({"checkpoint_url", "alert_url", "ping_url"})

_OF_ONE_CLUSTER = {f"TRACKER_{name.upper()}": name for name in _PER_CLUSTER if name != "timezone"}
VARIABLES = (
    "TRACKER_CONFIG",
    "TRACKER_SECRETS_DIR",
    "TRACKER_CLUSTER",
    *_OF_ONE_CLUSTER,
    *(f"TRACKER_{name.upper()}" for name in _GLOBAL),
)
"""Every variable that means something."""
GLOBAL_KEYS = (*_GLOBAL, "clusters")
"""Every key at the top of tracker.toml."""
CLUSTER_KEYS = ("api_key_file", *_PER_CLUSTER)
"""Every key of a [clusters.NAME] table."""


@dataclass(frozen=True, slots=True)
class _KeyFile:
    """A key that is still in its file: read only if no stronger place gives the key."""

    path: Path


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
            which the account that registers or reads jobs may be unable to read; each `api_key` is empty.

    Raises:
        BadConfiguration: The message names every wrong place and what to do, and never repeats a secret.
    """
    environ = os.environ if environ is None else environ
    cwd = Path.cwd() if cwd is None else cwd
    problems = [
        f"{name}: there is no such setting{_suggest(name, VARIABLES)}"
        for name in sorted(environ)
        # Kubernetes sets these two groups for a service that is called tracker.
        if name.startswith("TRACKER_")
        and name not in VARIABLES
        and not name.startswith(("TRACKER_PORT", "TRACKER_SERVICE_"))
    ]
    # An empty variable counts as not set: compose files write ${NAME:-}.
    variables = {name: environ[name].strip() for name in VARIABLES if environ.get(name, "").strip()}

    toml_path = _toml_path(variables, cwd, problems)
    toml = _from_toml(toml_path, problems) if toml_path else {}
    folder_from = next((one for one in ("TRACKER_SECRETS_DIR", "CREDENTIALS_DIRECTORY") if environ.get(one)), "default")
    folder = _at(cwd, environ.get(folder_from, DEFAULT_SECRETS_DIR))
    folder_there = os.path.isdir(folder) and os.access(folder, os.X_OK)
    secrets = _read_secrets(folder, variables, keys, problems) if folder_there else {}
    if not folder_there and folder_from == "TRACKER_SECRETS_DIR":
        problems.append(f"{folder_from}: there is no folder {folder}; make it, or unset the variable")

    tables = {where[1] for where in toml if where[0] == "clusters"}
    name = variables.get("TRACKER_CLUSTER") or secrets.get("TRACKER_CLUSTER", ("", ""))[0]
    if not name and len(tables) == 1:
        name = next(iter(tables))
    stray = sorted(set(variables) & set(_OF_ONE_CLUSTER)) if not name else []
    problems += [f"{one}: no cluster to use it for; set TRACKER_CLUSTER" for one in stray]

    found = dict(toml)
    given = {**secrets, **{variable: (value, variable) for variable, value in variables.items()}}
    for variable, (value, place) in given.items():
        if (setting := variable.removeprefix("TRACKER_").lower()) in _GLOBAL:
            found[setting,] = _absolute(setting, value, cwd), place
        elif name and variable in _OF_ONE_CLUSTER:
            setting = _OF_ONE_CLUSTER[variable]
            found["clusters", name, setting] = _absolute(setting, value, cwd), place
        elif variable == "TRACKER_CLUSTER":
            found["clusters", name, "name"] = name, place

    _resolve_keys(found, keys, name, folder, problems)
    settings = _validate(found, problems)
    if problems or settings is None:
        problems = list(dict.fromkeys(problems))
        if len(problems) == 1:
            raise BadConfiguration(problems[0])
        raise BadConfiguration(f"{len(problems)} settings are wrong:" + "".join(f"\n  {one}" for one in problems))
    settings._places = {where: place for where, (_, place) in found.items()}
    settings._read = (
        Explained("config", str(toml_path or ""), "TRACKER_CONFIG" if "TRACKER_CONFIG" in variables else "default"),
        Explained("secrets_dir", str(folder) if folder_there else "", folder_from),
    )
    return settings


def explain(settings: Settings) -> list[Explained]:
    """Return a row for each effective setting, secrets masked, and where it came from."""

    def source(where: _Where) -> str:
        default = "default: the global one" if where[2:] == ("timezone",) else "default"
        return settings._places.get(where, default)

    rows = list(settings._read)
    rows += [Explained(name, value, source((name,))) for name, value in _shown(settings).items() if name != "clusters"]
    for cluster in settings.clusters.values():
        for name, value in _shown(cluster).items():
            if name != "name":
                where = ("clusters", cluster.name, name)
                rows.append(Explained(".".join(where), value, source(where)))
    return rows


def _shown(model: BaseModel) -> dict[str, str]:
    """Return each field as text that anyone may see."""
    shown: dict[str, str] = {}
    for name in type(model).model_fields:
        value = getattr(model, name)
        if value is None:
            text = ""
        elif isinstance(value, SecretStr):
            text = _MASK if value.get_secret_value() else ""
        elif isinstance(value, timedelta):
            seconds = value.total_seconds()
            unit = next((unit for unit, size in _UNITS.items() if seconds % size == 0), "s")
            text = f"{seconds / _UNITS[unit]:.15g} {unit}"
        elif isinstance(value, dict):
            text = ", ".join(value)
        else:
            text = mask_hook(value) if name in _HOOKS else mask_url(str(value))
        shown[name] = text
    return shown


def _absolute(setting: str, value: object, folder: Path) -> object:
    """Return *value*, and a file's path as seen from *folder*: a daemon's own folder is nobody's intention."""
    return _at(folder, value) if setting in _PATHS and isinstance(value, str) else value


def _at(folder: Path, text: str) -> Path:
    return folder / os.path.expanduser(text)  # Path.expanduser raises where there is no home


def _why(error: OSError) -> str:
    return error.strerror or type(error).__name__


def _toml_path(variables: Mapping[str, str], cwd: Path, problems: list[str]) -> Path | None:
    if "TRACKER_CONFIG" in variables:
        path = _at(cwd, variables["TRACKER_CONFIG"])
        if os.path.exists(path):
            return path
        problems.append(f"TRACKER_CONFIG: there is no file {path}; make it, or unset the variable")
        return None
    path = cwd / "tracker.toml"
    return path if os.path.exists(path) else None


def _from_toml(path: Path, problems: list[str]) -> _Found:
    """Return what tracker.toml says; unknown keys and a file that cannot be read are added to *problems*."""
    found: _Found = {}
    try:
        document = tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        problems.append(f"{path}: cannot be read: {_why(error)}")
        return found
    except (ValueError, RecursionError) as error:
        # TOML's own error names line and column; others (the codec's, a number too long) repeat what is in the file.
        shown = error if isinstance(error, tomllib.TOMLDecodeError) else "is not valid TOML in UTF-8"
        problems.append(f"{path}: {shown}")
        return found
    tables = document.pop("clusters", {})
    for key, value in document.items():
        place = f"{path}: {key}"
        if key in _GLOBAL:
            found[key,] = _absolute(key, value, path.parent), place
        elif key in CLUSTER_KEYS:
            problems.append(f"{place}: belongs in a [clusters.NAME] table")
        else:
            problems.append(f"{place}: there is no such setting{_suggest(key, GLOBAL_KEYS)}")
    if not isinstance(tables, dict):
        problems.append(f"{path}: clusters: must be tables: write [clusters.NAME]")
        return found
    for name, table in tables.items():
        if not isinstance(table, dict):
            problems.append(f"{path}: clusters.{name}: must be a table: write [clusters.{name}]")
            continue
        found["clusters", name, "name"] = name, f"{path}: [clusters.{name}]"
        for key, value in table.items():
            place = f"{path}: [clusters.{name}] {key}"
            if key == "api_key_file":
                if "api_key" in table:
                    problems.append(f"{place}: api_key is also set; keep one of them")
                elif isinstance(value, str) and value:
                    file = _at(path.parent, value)
                    found["clusters", name, "api_key"] = _KeyFile(file), f"{file} ({place})"
                else:
                    problems.append(f"{place}: must be the path of a file that holds the key")
                    found["clusters", name, "api_key"] = "unknown", place  # reported here, not again as missing
            elif key in _PER_CLUSTER:
                found["clusters", name, key] = _absolute(key, value, path.parent), place
            elif key in _GLOBAL:
                problems.append(f"{place}: is a global setting: write it above the first [clusters.…] line")
            else:
                problems.append(f"{place}: there is no such setting{_suggest(key, CLUSTER_KEYS)}")
    return found


def _read_secrets(
    folder: Path, variables: Mapping[str, str], keys: bool, problems: list[str]
) -> dict[str, tuple[str, str]]:
    """Return by variable what the files of the secrets folder say: (value, place).

    A file is called as the variable in lower case: ``tracker_api_key``. Others are left alone: the folder is shared,
    and may hold files that ``api_key_file`` names.
    """
    secrets: dict[str, tuple[str, str]] = {}
    for variable in VARIABLES[2:]:  # those two say where to look, and are not looked for
        if variable in variables or (variable == "TRACKER_API_KEY" and not keys):
            continue
        file = folder / variable.lower()
        try:
            if value := file.read_text("utf-8").strip():
                secrets[variable] = (value, str(file))
        except FileNotFoundError:
            continue
        except OSError as error:
            problems.append(f"{file}: cannot be read: {_why(error)}")
        except UnicodeDecodeError:
            problems.append(f"{file}: is not UTF-8 text")
    return secrets


def _resolve_keys(found: _Found, keys: bool, single: str, folder: Path, problems: list[str]) -> None:
    """Read the key files that count, and add a problem for each cluster without a key. Without *keys*: forget them."""
    for name in {where[1]: None for where in found if where[0] == "clusters"}:
        where = ("clusters", name, "api_key")
        value, place = found.get(where, (None, ""))
        if not keys:
            found[where] = "", "not read"
        elif isinstance(value, _KeyFile):
            found[where] = "", place
            try:
                if not (text := value.path.read_text("utf-8").strip()):
                    problems.append(f"{place}: the file is empty")
                found[where] = text, place
            except OSError as error:
                problems.append(f"{place}: cannot be read: {_why(error)}")
            except ValueError:  # the codec's, or a NUL in the path
                problems.append(f"{place}: is not UTF-8 text")
        elif not value:
            ways = [f"api_key_file in [clusters.{name}] of tracker.toml"]
            if name == single:
                ways = ["TRACKER_API_KEY", f"the file {folder / 'tracker_api_key'}", *ways]
            problems.append(f"cluster {name[:80]}: has no key; give it by {' or '.join(ways)}")


def _validate(found: _Found, problems: list[str]) -> Settings | None:
    """Return the settings, or add what is wrong with the values to *problems* and return None."""
    flat = {where[0]: value for where, (value, _) in found.items() if len(where) == 1}
    tables: dict[str, dict[str, object]] = {}
    for where, (value, _) in found.items():
        if len(where) == 3:
            tables.setdefault(where[1], {"name": where[1]})[where[2]] = value
    settings: Settings | None = None
    try:
        settings = Settings.model_validate(flat)
    except ValidationError as error:
        problems += _wrong_values(error, Settings, (), found)
    clusters: dict[str, ClusterSettings] = {}
    for name, table in tables.items():
        if settings is not None:
            table.setdefault("timezone", settings.timezone)
        try:
            clusters[name] = ClusterSettings.model_validate(table)
        except ValidationError as error:
            problems += _wrong_values(error, ClusterSettings, ("clusters", name), found)
    hosts: dict[str, str] = {}
    for name, cluster in clusters.items():
        if (other := hosts.setdefault(name.lower(), name)) != name:
            problems.append(f"clusters {other} and {name} are one cluster, since case does not count: keep one")
        if cluster.ca_bundle is not None and not os.path.isfile(cluster.ca_bundle):
            problems.append(f"{found['clusters', name, 'ca_bundle'][1]}: there is no file {cluster.ca_bundle}")
    return settings.model_copy(update={"clusters": clusters}) if settings is not None else None


def _wrong_values(error: ValidationError, model: type[BaseModel], above: _Where, found: _Found) -> list[str]:
    """Return one line for each wrong value: its place, and what would be right."""
    lines: list[str] = []
    for one in error.errors(include_url=False):
        if one["type"] == "default_factory_not_called":  # follows from an error that is already reported
            continue
        setting = str(one["loc"][0]) if one["loc"] else ""
        if not setting:  # a rule about two fields
            setting = "proxy"
        place = found.get((*above, setting), (None, ".".join((*above, setting))))[1]
        wanted = model.model_fields[setting].description
        if one["type"] == "value_error" and not wanted:
            text = str(one["ctx"]["error"])
        elif wanted:
            text = f"must be {wanted}, not {str(one['input'])[:40]!r}"
        else:
            text = "must be text" if one["type"] in ("string_type", "path_type") else one["msg"]
        lines.append(f"{place}: {text}")
    return lines
