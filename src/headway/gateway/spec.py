"""The section `gateway:` of a deployment file: addresses, tenants, classes of service, limits, health.

It stands beside the deployment's own fields in one file, so that what `simulate` judged is what `serve` runs.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from headway.errors import BadInput
from headway.gateway.steering import RESERVED
from headway.metrics import Slo
from headway.specs import Spec
from headway.units import parse_seconds

_HASH = re.compile(r"[0-9a-f]{64}")
RATES, BUDGETS = ("requests_per_min", "tokens_per_min"), ("tokens_per_day", "tokens_per_month")
SOCKET_PATH_MOST = 107  # Linux's bound
ENGINE_PRIORITIES = ("", "low-first", "high-first", "caller")


class Tenant(Spec, frozen=True, kw_only=True):
    """Who may ask, by the SHA-256 of each API key, and how much: no limit where none is given.

    `tokens_per_min` counts prompts and what is expected to be generated, corrected when a request ends.
    `tokens_per_day` and `tokens_per_month` are budgets of calendar days and months (UTC) that are never exceeded: what
    a request may use at most is set aside until it is over. `weight`: of its share where tenants wait for each other.
    `slo_class` is the class of requests that name none ("" is the first).

    Raises:
        BadInput: a key that is not a hash, or a limit that is not above zero.
    """

    name: str
    keys_sha256: tuple[str, ...] = ()
    requests_per_min: float | None = None
    tokens_per_min: float | None = None
    tokens_per_day: float | None = None
    tokens_per_month: float | None = None
    concurrency: int | None = None
    weight: float = 1.0
    slo_class: str = ""

    def __post_init__(self) -> None:
        for key in self.keys_sha256:
            if not _HASH.fullmatch(key):
                raise BadInput(
                    f"tenant {self.name!r}: a key is kept as its SHA-256, 64 lower-case hexadecimal digits; came text "
                    f"of {len(key)} characters; `printf %s KEY | sha256sum` hashes one"
                )
        for field in (*RATES, *BUDGETS, "concurrency", "weight"):
            value = getattr(self, field)
            if value is not None and not 0 < value < float("inf"):
                raise BadInput(
                    f"tenant {self.name!r}: {field}={value:g}: expected a number above 0, or none for no limit"
                )

    @property
    def budgeted(self) -> bool:
        """Whether the tenant has a budget."""
        return any(getattr(self, field) is not None for field in BUDGETS)

    @property
    def remembered(self) -> bool:
        """Whether the tenant has a limit that must survive a restart."""
        return self.budgeted or any(getattr(self, field) is not None for field in RATES)


class SloClass(Spec, frozen=True, kw_only=True):
    """A class of requests: what is promised, how urgent it is, and when a promise is not worth making.

    A request is refused at once when the chance that it meets one of the limits of `slo`, or tighter ones of its own,
    is predicted below `refuse_below`; 0 never refuses. `priority`: lower is more urgent. `offline`: nobody waits for
    it; it goes after all that is not offline, whatever its priority and age, and is shed first. `deadline_s`: from
    arrival to the last token, none when absent.
    """

    name: str = "default"
    slo: Slo = Slo()
    priority: int = 0
    offline: bool = False
    deadline_s: float | None = None
    refuse_below: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.refuse_below < 1:
            raise BadInput(
                f"class {self.name!r}: refuse_below={self.refuse_below:g}: expected a share from 0 to below 1"
            )
        if self.deadline_s is not None and self.deadline_s <= 0:
            raise BadInput(f"class {self.name!r}: deadline_s={self.deadline_s:g}: expected a time above 0")


class Limits(Spec, frozen=True, kw_only=True):
    """Bounds that keep the gateway and the engines behind it whole.

    `in_flight` requests at a replica at once (absent: the engine's `max_seqs`, or 64 where no engine is described);
    further ones wait in Headway's queue, at most `held` of them and each at most `hold_s`. There the most urgent class
    goes first, then the tenant that was served least for its weight (`fair`), then whom the order policy puts first; a
    request's priority rises by one for every `aging_s` it waits (0: never). `output_tokens`: the `max_tokens` sent
    on for a request that gives none and whose tenant has a budget.
    `body_bytes`, `headers_kb`: of one request; it has `upload_s` to come whole. `idle_s`: a stream without a byte for
    so long is closed; it also bounds waiting for the first one. `drain_s`: what running streams are given when the
    gateway stops.
    """

    in_flight: int | None = None
    held: int = 1024
    hold_s: float = 30.0
    aging_s: float = 10.0
    fair: bool = True
    output_tokens: int = 4096
    body_bytes: int = 4 << 20
    headers_kb: int = 32
    connections: int = 10_000
    upload_s: float = 30.0
    idle_s: float = 300.0
    drain_s: float = 30.0

    def __post_init__(self) -> None:
        for field in ("held", "hold_s", "aging_s", "drain_s"):
            if getattr(self, field) < 0:
                raise BadInput(f"limits.{field}={getattr(self, field):g}: expected 0 or more")
        for field in ("upload_s", "idle_s"):
            if getattr(self, field) < 0.001:  # to Envoy 0 is no limit
                raise BadInput(f"limits.{field}={getattr(self, field):g}: expected a time of at least 1 ms")
        for field in ("output_tokens", "body_bytes", "headers_kb", "connections"):
            if getattr(self, field) <= 0:
                raise BadInput(f"limits.{field}={getattr(self, field):g}: expected a number above 0")
        if self.in_flight is not None and self.in_flight < 1:
            raise BadInput(f"limits.in_flight={self.in_flight}: expected 1 or more, or none for the engine's max_seqs")
        if self.idle_s <= self.hold_s:
            raise BadInput(
                f"limits.idle_s={self.idle_s:g} is not above hold_s={self.hold_s:g}: the timer runs while a request "
                "is held, so it must exceed the longest hold and the time to the first token"
            )


class Health(Spec, frozen=True, kw_only=True):
    """`failures` to connect or answer in a row, or a failed probe, eject a replica.

    A probe is a GET of `path` every `probe_s`; one that is answered below 500 brings the replica back. So many `errors`
    (answers of 5xx) in a row leave a replica out for a while when another one of its model answers; 0: never.
    """

    failures: int = 3
    errors: int = 5
    probe_s: float = 1.0
    timeout_s: float = 2.0
    path: str = "/health"

    def __post_init__(self) -> None:
        if self.failures < 1 or self.errors < 0 or self.probe_s <= 0 or self.timeout_s <= 0:
            raise BadInput(
                "health: expected failures of at least 1, errors of at least 0, and probe_s and timeout_s above 0"
            )
        if not self.path.startswith("/"):
            raise BadInput(f"health.path {self.path!r}: expected a path, as in /health")


class LogSpec(Spec, frozen=True, kw_only=True):
    """The decision log: Parquet files in `folder`, the oldest deleted to keep them below `max_bytes` and `max_age_s`.

    `prompts`: keep the bodies of requests, too; without, no text of a caller is kept.
    """

    folder: str
    max_bytes: int = 1 << 30
    max_age_s: float = 7 * 86400.0
    prompts: bool = False

    def __post_init__(self) -> None:
        if not self.folder:
            raise BadInput("log.folder is empty: name a folder for the files")
        if self.max_bytes < 1 << 20 or self.max_age_s <= 0:
            came = f"max_bytes={self.max_bytes}, max_age_s={self.max_age_s:g}"
            raise BadInput(f"log: {came}: expected 1 MiB at least, and a time above 0")


class ShadowSpec(Spec, frozen=True, kw_only=True):
    """Policies that are asked beside the live ones and decide nothing; `params` as in `policies:`."""

    route: str = ""
    admit: str = ""
    params: dict[str, dict[str, Any]] = {}  # noqa: RUF012 - msgspec copies it

    def __post_init__(self) -> None:
        if not self.route and not self.admit:
            raise BadInput("shadow names no policy: give route or admit, as in `shadow: {route: prefix-affinity}`")


class Hedging(Spec, frozen=True, kw_only=True):
    """A stream without a first byte after so long is sent to a second replica, too, and the first answer wins.

    `after_s` seconds; or the time within which the first byte is predicted to come with the probability `quantile`, at
    the replica that was chosen. At most `budget` of all requests are hedged.
    """

    after_s: float | None = None
    quantile: float | None = None
    budget: float = 0.05

    def __post_init__(self) -> None:
        if (self.after_s is None) == (self.quantile is None):
            raise BadInput("hedging: expected after_s or quantile, as in `hedging: {quantile: 0.95}`, and not both")
        if self.after_s is not None and not 0.001 <= self.after_s < float("inf"):
            raise BadInput(f"hedging.after_s={self.after_s:g}: expected a time of at least 1 ms")
        if self.quantile is not None and not 0.5 <= self.quantile < 1:
            raise BadInput(f"hedging.quantile={self.quantile:g}: expected a share from 0.5 to below 1")
        if not 0 < self.budget <= 1:
            raise BadInput(f"hedging.budget={self.budget:g}: expected a share above 0, and at most 1, of all requests")


class Traces(Spec, frozen=True, kw_only=True):
    """Where traces go: the URL that a collector takes OTLP over HTTP at, as in http://127.0.0.1:4318/v1/traces.

    `sample`: the share of requests that are traced where no caller's `traceparent` has decided that. What a collector
    wants as headers is taken from OTEL_EXPORTER_OTLP_HEADERS, so that no secret stands in the file.
    """

    endpoint: str
    sample: float = 1.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"https?://[^\s@]+", self.endpoint):
            raise BadInput(
                f"traces.endpoint: came {self.endpoint.rpartition('@')[2][:80]!r}; expected a URL without user and "
                "password, as in http://127.0.0.1:4318/v1/traces"
            )
        if not 0 <= self.sample <= 1:
            raise BadInput(f"traces.sample={self.sample:g}: expected a share from 0 to 1")


class Tls(Spec, frozen=True, kw_only=True):
    """PEM files that callers are met with: the certificate with its chain, and its key."""

    certificate: str
    key: str

    def read(self) -> tuple[str, str]:
        """Return certificate and key as text.

        Raises:
            BadInput: a file that cannot be read, or that holds no PEM.
        """
        return _pem(self.certificate, "certificate", "CERTIFICATE"), _pem(self.key, "key", "PRIVATE KEY")


class Peers(Spec, frozen=True, kw_only=True):
    """Other gateways in front of the same replicas. Each tells the others what it has at each, by UDP.

    `listen`: where this one hears them; `others`: where they do, and a name may stand for several (and for this one).
    `key_file`: a file that is the same for all of them, whose text nobody else knows; to be left out on loopback only.

    Raises:
        BadInput: an address that is none, or others than on this machine without a key.
    """

    listen: str
    others: tuple[str, ...]
    key_file: str = ""

    def __post_init__(self) -> None:
        for where in (self.listen, *self.others):
            address(where, "gateway.peers")
        if not self.others:
            raise BadInput("gateway.peers.others is empty: name where the other gateways listen, or leave peers out")
        if not self.key_file and not all(map(is_loopback, (self.listen, *self.others))):
            raise BadInput(
                "gateway.peers.key_file is missing: what peers say is believed, so beyond this machine they need a "
                "common secret; `head -c 32 /dev/urandom | base64 > peers.key` makes one"
            )

    def key(self) -> bytes:
        """Return the secret; raises `BadInput` for a file that cannot be read or is too short to be one."""
        if not self.key_file:
            return b""
        try:
            key = Path(self.key_file).read_bytes().strip()
        except OSError as error:
            raise BadInput(f"gateway.peers.key_file: {self.key_file} cannot be read: {error.strerror}") from None
        if len(key) < 16:
            raise BadInput(f"gateway.peers.key_file: {self.key_file} holds {len(key)} bytes, expected 16 or more")
        return key


class Upstream(NamedTuple):
    """Where a replica is: a name or an address, its port, and whether it is spoken to in TLS."""

    host: str
    port: int
    tls: bool


class GatewaySpec(Spec, frozen=True, kw_only=True):
    """What `headway serve` needs beside the deployment.

    `upstreams`: one address per replica, in the order of the pools: host:port, with https:// before it where it
    takes TLS, or unix:/path. A certificate is checked against its name and the authorities in `upstream_ca` (absent:
    the system's).
    `tls`: callers are met with TLS, and HTTP/2 where they know it; without it with plain HTTP/1.1.
    `models`: names that requests may ask for; the first is the deployment's model where none is given.
    `tenants`: without any, everyone may ask.
    `salt_prefixes`: requests are sent on with a `cache_salt` of their tenant, so that engines that know it (vLLM) share
    no prefix between tenants; where it is not given, as soon as there are several. A caller's own is always removed.
    `log`: where decisions are written down; `shadow`: policies that are asked beside the live ones.
    `hedging`: late streams are sent to a second replica, too; none without it.
    `engine_priority`: how the engines read the field `priority` of a request, where they run with priority scheduling:
    "low-first" (vLLM) or "high-first" (SGLang) sends each request on with the priority of its class; "caller" passes
    the caller's own on; "" removes it.
    `caller_fields`: those fields of `RESERVED` (`steering.py`) that callers may use all the same.
    `ledger`: the SQLite file that keeps what tenants have used of their limits, beside the deployment's file.
    `admin`: where the live page, `/metrics` and `/status` are, for whoever shows the key whose SHA-256 is
    `admin_key_sha256`. `traces`: none are made without it. `peers`: gateways beside this one.

    Raises:
        BadInput: an address that is none, two tenants with one key, or a name that comes twice.
    """

    listen: str = "127.0.0.1:8080"
    admin: str = "127.0.0.1:8081"
    admin_key_sha256: str = ""
    tls: Tls | None = None
    upstream_ca: str = ""
    upstreams: tuple[str, ...]
    models: tuple[str, ...] = ()
    tenants: tuple[Tenant, ...] = ()
    classes: tuple[SloClass, ...] = (SloClass(),)
    limits: Limits = Limits()
    health: Health = Health()
    salt_prefixes: bool | None = None
    engine_priority: str = ""
    caller_fields: tuple[str, ...] = ()
    ledger: str = "headway-ledger.sqlite"
    scrape_s: float = 1.0
    log: LogSpec | None = None
    shadow: ShadowSpec | None = None
    hedging: Hedging | None = None
    traces: Traces | None = None
    peers: Peers | None = None
    envoy: str = ""
    envoy_threads: int = 1

    def __post_init__(self) -> None:
        for where in ("listen", "admin"):
            address(getattr(self, where), f"gateway.{where}")
        for i, text in enumerate(self.upstreams):
            upstream(text, f"gateway.upstreams.{i}")
        if not self.upstreams:
            raise BadInput("gateway.upstreams is empty: give the address of each replica, as in 127.0.0.1:8000")
        _once("upstreams", [_place(text) for text in self.upstreams])
        _once("tenants", [tenant.name for tenant in self.tenants])
        _once("classes", [klass.name for klass in self.classes])
        _once("keys of tenants", [key for tenant in self.tenants for key in tenant.keys_sha256])
        if not self.classes:
            raise BadInput("gateway.classes is empty: leave it out for one class without limits")
        if self.engine_priority not in ENGINE_PRIORITIES:
            raise BadInput(
                f"gateway.engine_priority {self.engine_priority!r}: expected low-first (vLLM), high-first (SGLang), "
                "caller, or none for engines without priority scheduling"
            )
        for field in self.caller_fields:
            if field not in RESERVED:
                raise BadInput(
                    f"gateway.caller_fields: {field[:80]!r} is not among the fields that are removed from what callers "
                    f"send and may be let through: {', '.join(RESERVED)}"
                )
        if not self.ledger and any(tenant.remembered for tenant in self.tenants):
            raise BadInput("gateway.ledger is empty: limits of tenants are kept in a file, as in headway-ledger.sqlite")
        if self.scrape_s <= 0 or self.envoy_threads < 1:
            raise BadInput("gateway: expected scrape_s above 0 and envoy_threads of at least 1")
        if self.admin_key_sha256 and not _HASH.fullmatch(self.admin_key_sha256):
            raise BadInput(
                "gateway.admin_key_sha256: expected 64 hexadecimal digits; `printf %s KEY | sha256sum` hashes one"
            )
        known = [klass.name for klass in self.classes]
        for tenant in self.tenants:
            if tenant.slo_class and tenant.slo_class not in known:
                raise BadInput(f"tenant {tenant.name!r}: slo_class {tenant.slo_class!r} is none of {', '.join(known)}")

    @property
    def salts(self) -> bool:
        """Whether each tenant's prefixes are its own at the engines."""
        return len(self.tenants) > 1 if self.salt_prefixes is None else self.salt_prefixes

    def class_index(self, name: str) -> int:
        """Return the place of a class by its name; raises ValueError when there is none."""
        return [klass.name for klass in self.classes].index(name)


def address(text: str, where: str) -> tuple[str, int]:
    """Return host and port of ``host:port``.

    Raises:
        BadInput: another form, a scheme, or a port out of range.
    """
    host, colon, port = text.rpartition(":")
    host = host.strip("[]")
    if "://" in text or not colon or not host or "/" in text:
        raise BadInput(
            f"{where}: {text!r}: expected host:port without scheme and path, as in 127.0.0.1:8000; plain HTTP"
        )
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise BadInput(f"{where}: {text!r}: expected a port from 1 to 65535 after the last colon")
    return host, int(port)


def upstream(text: str, where: str) -> Upstream:
    """Return what ``host:port`` says, with or without http:// before it; after https:// the port may be left out.

    ``unix:/path`` is a socket of this machine: its path stands for the host, and the port is 0.

    Raises:
        BadInput: another form, another scheme, or a port out of range.
    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/") or "," in path or len(path) > SOCKET_PATH_MOST:
            raise BadInput(
                f"{where}: {text!r}: expected unix: and the absolute path of a socket, without commas, of at most "
                f"{SOCKET_PATH_MOST} characters"
            )
        return Upstream(path, 0, tls=False)
    scheme, mark, rest = text.partition("://")
    if mark and scheme not in ("http", "https"):
        raise BadInput(f"{where}: {text!r}: expected http:// or https://, or host:port alone")
    rest = rest.removesuffix("/") if mark else text
    if scheme == "https" and mark and not re.search(r":\d+$", rest):
        rest += ":443"
    return Upstream(*address(rest, where), tls=bool(mark) and scheme == "https")


def is_loopback(text: str) -> bool:
    """Whether an address listens on this machine alone."""
    host, _ = address(text, "address")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def seconds_of_header(text: str) -> float:
    """Return the seconds that a header gives: ``2s``, ``1500ms``; raises `BadInput` for zero, too."""
    seconds = parse_seconds(text)
    if seconds <= 0:
        raise BadInput(f"{text!r} is not above zero")
    return seconds


def _pem(path: str, field: str, holds: str) -> str:
    try:
        text = Path(path).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise BadInput(f"gateway.tls.{field}: {path} cannot be read: {why}; give a file in PEM form") from None
    if f"{holds}-----" not in text:
        raise BadInput(f"gateway.tls.{field}: {path} holds no PEM block of a {holds.lower()}")
    return text


def _place(text: str) -> str:
    """One name for each place, however its address is written."""
    host, port, _ = upstream(text, "gateway.upstreams")
    host = "127.0.0.1" if host.lower() == "localhost" else host.lower() if port else host
    return f"{host}:{port}" if port else f"unix:{host}"


def _once(what: str, names: list[str]) -> None:
    twice = sorted({name if len(name) < 64 else name[:8] + "..." for name in names if names.count(name) > 1})
    if twice:
        raise BadInput(f"gateway: {what} come twice: {', '.join(twice)}")


def with_models(spec: GatewaySpec, models: tuple[str, ...]) -> GatewaySpec:
    """Return the spec with these names where it gives none."""
    return spec if spec.models else msgspec.structs.replace(spec, models=models)
