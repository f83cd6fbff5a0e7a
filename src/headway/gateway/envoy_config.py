"""Envoy's configuration, generated: one listener, one cluster of all replicas, one decision per request.

Order of filters: ext_proc (asks Headway, with the body in one message) -> buffer (holds the headers back until the body
is read: without it the router picks a host before the decision) -> lua (counts tokens) -> router. The host is the one
that the decision names (`override_host`); a request without a decision finds none, because the fallback is a subset
that no replica is in: where a decision is missing, nothing is routed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from headway.gateway.edge_replies import error_body, local_replies
from headway.gateway.hedge_config import hedged_too, told_to_router, upstream_filters
from headway.gateway.spec import GatewaySpec, address
from headway.gateway.steering import KEEP_HINT, PREFILLER, STEERING

TYPE = "type.googleapis.com/"
HTTP = TYPE + "envoy.extensions.filters.http."
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
DESTINATION = "x-gateway-destination-endpoint"
HEADERS = (
    "authorization", "x-headway-class", "x-headway-deadline", "x-headway-ttft", "x-headway-tpot", "x-headway-session",
)  # fmt: skip
TRACEPARENT = "traceparent"  # of W3C's trace context; passed on, and replaced where we trace
DECISION_TIMEOUT_S = 1.0
ATTEMPTS = 3  # at a request: a host that closed a kept connection as it came is not down, and is asked once more
FAILED = ("UF", "UR", "UC", "UPE")  # no connection; reset, closed or no HTTP from the replica
KEPT_S = 3.0  # an idle connection to a replica; uvicorn (vLLM, SGLang) and llama.cpp close theirs after 5
TLS_PARAMS = {"tls_minimum_protocol_version": "TLSv1_2"}
HTTP2_LIMITS = {
    "max_concurrent_streams": 100,
    "initial_stream_window_size": 65536,
    "initial_connection_window_size": 1 << 20,
}
AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
RECORDS_BYTES = 3 << 18  # kept while their stream is new or slow; what comes beyond them is lost
RECORDS_WITHIN_S = 0.01  # one by one they would wake the decision process for each
TAIL_BYTES = 4096  # of an answer's end, where its engine's own counts are
LINE_BYTES = 1 << 16  # of an event that has not come whole: what is longer is counted in parts
OVERWRITE = "OVERWRITE_IF_EXISTS_OR_ADD"
EARLY_REMOVED = ("x-request-id", DESTINATION, KEEP_HINT, *PREFILLER, *STEERING)

# Counts server-sent events that carry data, and those that carry text, keeps the last count of tokens that the engine
# reports, and notes when the first event came. Events are counted when their line is whole, since a network cuts them
# anywhere. Handles do not survive a yield, so each is fetched anew. It runs for every token: plain searches only
# (patterns and copies cost 4 us an event), metadata at every 16th event only, and as one text, of the numbers in the
# order of `Seen`: each field of metadata costs Envoy microseconds, and its reader, too. Of the counts in the tail the
# last is taken; without the ^ a search in vain would begin anew at each of its bytes.
LUA = """
local find, sub = string.find, string.sub
local usage = {"completion_tokens", "prompt_tokens", "cached_tokens"}
local function said(text, field)
  local count, _, at = 0, find(text, field, 1, true)
  while at do
    if find(text, '^%s*:%s*"[^"]', at + 1) then count = count + 1 end
    _, at = find(text, field, at + 1, true)
  end
  return count
end
function envoy_on_response(handle)
  local kind = handle:headers():get("content-type") or ""
  local streamed = find(kind, "event-stream", 1, true) ~= nil
  local events, tokens, due, first, field, tail, rest = 0, 0, 1, nil, nil, "", ""
  local told = {"0", "0", "0"}
  local function note()
    if tail ~= "" then
      for i, name in ipairs(usage) do
        told[i] = string.match(tail, '^.*"' .. name .. '"%s*:%s*(%d+)') or told[i]
      end
    end
    local seen = {events, tokens, first or "0", told[1], told[2], told[3]}
    handle:streamInfo():dynamicMetadata():set("headway", "seen", table.concat(seen, " "))
  end
  local function count(text)
    local _, at = find(text, "data:", 1, true)
    if at and not first then first = handle:timestampString(EnvoyTimestampResolution.MICROSECOND) end
    while at do
      events = events + 1
      _, at = find(text, "data:", at + 1, true)
    end
    for _, name in ipairs(field or {'content"', 'text"'}) do
      local more = said(text, name)
      if more > 0 then field, tokens = field or {name}, tokens + more end
    end
    if find(text, '_tokens"', 1, true) then tail = sub(tail .. text, -%TAIL%) end
  end
  for chunk in handle:bodyChunks() do
    local size = chunk:length()
    if size > 0 then
      local text = chunk:getBytes(0, size)
      if not streamed then
        tail = sub(tail .. text, -%TAIL%)
      else
        if rest ~= "" then text, rest = rest .. text, "" end
        if string.byte(text, -1) ~= 10 then
          local ended = find(text, "\\n[^\\n]*$") or 0
          if #text - ended <= %LINE% then text, rest = sub(text, 1, ended), sub(text, ended + 1) end
        end
        count(text)
      end
    end
    if events >= due then
      note()
      due = events + 16
    end
  end
  count(rest)
  note()
end
""".replace("%TAIL%", str(TAIL_BYTES)).replace("%LINE%", str(LINE_BYTES))


class Seen(NamedTuple):
    """What the filter on the answer has counted, 0 where it has not: `text` as it writes them.

    `tokens` are events with text; `first_us` is the Unix time of the first event; the last three are the engine's.
    """

    events: int
    tokens: int
    first_us: int
    completion: int
    prompt: int
    cached: int

    @classmethod
    def read(cls, text: str) -> Seen:
        """Read what the filter wrote; "" where it saw no answer. An engine may say any number."""
        return cls(*[int(number[:DIGITS_MAX]) for number in text.split()]) if text else NOTHING_SEEN


DIGITS_MAX = 18
NOTHING_SEEN = Seen(0, 0, 0, 0, 0, 0)


class Host(NamedTuple):
    """A replica: its address as IP:port, or the path of its socket ("" while its name does not resolve); its name, if
    it has one, and whether it takes TLS."""

    at: str
    name: str = ""
    tls: bool = False


def envoy_config(spec: GatewaySpec, hosts: list[Host], admin: Path, decisions: Path) -> dict[str, Any]:
    """Return the configuration in one piece, as Envoy can validate it; `bootstrap` takes it apart for serving.

    Args:
        spec: what to listen on, and the limits.
        hosts: the replicas.
        admin: socket of Envoy's own admin.
        decisions: folder of the sockets of the decision process.
    """
    return {
        "node": {"id": "headway", "cluster": "headway"},
        "admin": {"address": {"pipe": {"path": str(admin), "mode": 0o600}}},
        "static_resources": {
            "listeners": [_listener(spec)],
            "clusters": [_replicas(spec, hosts), _own("decisions", decisions), _own("records", decisions)],
        },
        "overload_manager": {
            "resource_monitors": [
                _extension(
                    "envoy.resource_monitors.global_downstream_max_connections",
                    TYPE + "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                    max_active_downstream_connections=spec.limits.connections,
                )
            ]
        },
    }


def bootstrap(config: dict[str, Any], folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Take a configuration apart: what Envoy starts with, and the files in `folder` it watches, as text by name.

    A listener that changes is drained, which its streams survive; hosts come and go without that.
    """
    static = config["static_resources"]
    listener = {"@type": TYPE + "envoy.config.listener.v3.Listener", **static["listeners"][0]}
    files = {"listener.json": _discovered(listener)}
    clusters = []
    for cluster in static["clusters"]:
        file = f"{cluster['name']}.json"
        files[file] = _discovered_endpoints(cluster["load_assignment"])
        kept = {name: value for name, value in cluster.items() if name not in ("type", "load_assignment")}
        clusters.append({**kept, "type": "EDS", "eds_cluster_config": {"eds_config": _watched(folder / file)}})
    dynamic = {"lds_config": _watched(folder / "listener.json")}
    return {**config, "static_resources": {"clusters": clusters}, "dynamic_resources": dynamic}, files


def discovered_hosts(hosts: list[Host]) -> str:
    """Return the file of the replicas, for these ones."""
    return _discovered_endpoints(_assignment(hosts))


def _discovered_endpoints(assigned: dict[str, Any]) -> str:
    return _discovered({"@type": TYPE + "envoy.config.endpoint.v3.ClusterLoadAssignment", **assigned})


def _watched(path: Path) -> dict[str, Any]:
    return {"path_config_source": {"path": str(path)}, "resource_api_version": "V3"}


def _discovered(resource: dict[str, Any]) -> str:
    return json.dumps({"resources": [resource]})


def _extension(name: str, url: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "typed_config": {"@type": url, **fields}}


def _socket(text: str) -> dict[str, Any]:
    host, port = address(text, "address")
    return {"socket_address": {"address": host, "port_value": port}}


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f}s"


def _listener(spec: GatewaySpec) -> dict[str, Any]:
    limits = spec.limits
    manager = {
        "stat_prefix": "ingress",
        "codec_type": "AUTO" if spec.tls else "HTTP1",
        "http2_protocol_options": HTTP2_LIMITS,
        "use_remote_address": True,
        "generate_request_id": True,
        "server_name": "headway",
        "early_header_mutation_extensions": [
            _extension(
                "envoy.http.early_header_mutation.header_mutation",
                TYPE + "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
                mutations=[{"remove": name} for name in EARLY_REMOVED],
            )
        ],
        "common_http_protocol_options": {"max_headers_count": 64, "headers_with_underscores_action": "REJECT_REQUEST"},
        "max_request_headers_kb": limits.headers_kb,
        "request_headers_timeout": "10s",
        "request_timeout": _seconds(limits.upload_s),
        "stream_idle_timeout": _seconds(limits.idle_s),
        "delayed_close_timeout": "0.050s",
        "access_log": [_access_log("requests")],
        "http_filters": [
            _extension(
                "envoy.filters.http.ext_proc", HTTP + "ext_proc.v3.ExternalProcessor", **_ext_proc(spec)
            ),
            _extension("envoy.filters.http.buffer", HTTP + "buffer.v3.Buffer", max_request_bytes=limits.body_bytes),
            _extension("envoy.filters.http.lua", HTTP + "lua.v3.Lua", default_source_code={"inline_string": LUA}),
            *([told_to_router()] if spec.hedging else []),
            _extension("envoy.filters.http.router", HTTP + "router.v3.Router", **_router(spec)),
        ],
        "local_reply_config": {"mappers": local_replies(limits.body_bytes)},
        "route_config": {"name": "openai", "virtual_hosts": [_virtual_host(spec)]},
    }
    url = TYPE + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    chain: dict[str, Any] = {"filters": [_extension("envoy.filters.network.http_connection_manager", url, **manager)]}
    if spec.tls is not None:
        certificate, key = spec.tls.read()
        pair = {"certificate_chain": {"inline_string": certificate}, "private_key": {"inline_string": key}}
        shown = {"alpn_protocols": ["h2", "http/1.1"], "tls_certificates": [pair], "tls_params": TLS_PARAMS}
        chain["transport_socket"] = _tls("DownstreamTlsContext", common_tls_context=shown)
        chain["transport_socket_connect_timeout"] = "10s"
    return {
        "name": "openai",
        "address": _socket(spec.listen),
        "per_connection_buffer_limit_bytes": max(1 << 20, limits.body_bytes),
        "filter_chains": [chain],
    }


def _tls(context: str, **fields: Any) -> dict[str, Any]:
    url = TYPE + f"envoy.extensions.transport_sockets.tls.v3.{context}"
    return _extension("envoy.transport_sockets.tls", url, **fields)


def _ext_proc(spec: GatewaySpec) -> dict[str, Any]:
    asked = HEADERS if spec.traces is None else (*HEADERS, TRACEPARENT)
    headers = [f"request.headers['{name}']" for name in asked]
    return {
        "grpc_service": {"envoy_grpc": {"cluster_name": "decisions"}, "timeout": "0s"},
        "failure_mode_allow": True,  # streams outlive the decision process; what has no decision finds no host: 503
        "message_timeout": _seconds(DECISION_TIMEOUT_S),
        "max_message_timeout": _seconds(spec.limits.hold_s + DECISION_TIMEOUT_S),
        "processing_mode": _processing("SKIP", "BUFFERED"),
        "request_attributes": ["request.id", "request.path", "request.method", *headers],
        "metadata_options": {"receiving_namespaces": {"untyped": ["envoy.lb"]}},
    }


def _processing(headers: str, body: str) -> dict[str, str]:
    skipped = {"response_header_mode": "SKIP", "request_trailer_mode": "SKIP", "response_trailer_mode": "SKIP"}
    return {"request_header_mode": headers, "request_body_mode": body, "response_body_mode": "NONE", **skipped}


def _router(spec: GatewaySpec) -> dict[str, Any]:
    """Each attempt that a replica failed is told when it happens: the request is at another one from then on."""
    failed: dict[str, Any] = {"response_flag_filter": {"flags": list(FAILED)}}
    return {
        "suppress_envoy_headers": True,
        "upstream_log": [_access_log("attempts") | {"filter": hedged_too(failed) if spec.hedging else failed}],
        "upstream_log_options": {"flush_upstream_log_on_upstream_stream": spec.hedging is not None},
    }


def _access_log(name: str) -> dict[str, Any]:
    return _extension(
        "envoy.access_loggers.http_grpc",
        TYPE + "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
        common_config={
            "log_name": name,
            "transport_api_version": "V3",
            "grpc_service": {"envoy_grpc": {"cluster_name": "records"}},
            "buffer_size_bytes": RECORDS_BYTES,
            "buffer_flush_interval": _seconds(RECORDS_WITHIN_S),
        },
    )


def _virtual_host(spec: GatewaySpec) -> dict[str, Any]:
    """Keys, classes and addresses of callers end here; engines see none of them."""
    hidden = [*HEADERS, "x-forwarded-for", "x-forwarded-proto", "x-envoy-external-address", DESTINATION]
    # The answer to a body cannot change headers where these are skipped. An empty value is left out.
    told = [*((PREFILLER[0], name) for name in PREFILLER), (KEEP_HINT, KEEP_HINT)]
    told += [(TRACEPARENT, TRACEPARENT)] if spec.traces else []
    added = [
        {"header": {"key": name, "value": f"%DYNAMIC_METADATA(envoy.lb:{key})%"}, "append_action": OVERWRITE}
        for key, name in told
    ]
    return {
        "name": "openai",
        "domains": ["*"],
        "request_headers_to_remove": hidden,
        "request_headers_to_add": added,
        "routes": _routes(spec),
        "include_request_attempt_count": spec.hedging is not None,  # by which a hedge is told from a first attempt
    }


def _routes(spec: GatewaySpec) -> list[dict[str, Any]]:
    """Endpoints go to the replicas; whatever else there is the decision process answers by its headers alone.

    Only Envoy sees whether a POST has a body: over HTTP/2 one may come without a length. One that has none asks nothing
    and so finds no host, which `local_replies` puts into words.
    """
    post = {"name": ":method", "string_match": {"exact": "POST"}}
    routes = [{"match": {"path": path, "headers": [post]}, "route": _to_replicas(spec)} for path in ENDPOINTS]
    overrides = {"overrides": {"processing_mode": _processing("SEND", "NONE")}}
    other = {"@type": HTTP + "ext_proc.v3.ExtProcPerRoute", **overrides}
    nobody = error_body("no decision is available: try again in a second", "server_error", "unavailable")
    last = _direct({"prefix": "/"}, 503, nobody)  # reached only where the decision process did not answer
    routes.append({**last, "typed_per_filter_config": {"envoy.filters.http.ext_proc": other}})
    return routes


def _direct(match: dict[str, Any], status: int, body: dict[str, Any]) -> dict[str, Any]:
    header = {"header": {"key": "content-type", "value": "application/json"}, "append_action": OVERWRITE}
    text = {"inline_string": json.dumps(body) + "\n"}
    return {"match": match, "direct_response": {"status": status, "body": text}, "response_headers_to_add": [header]}


def _to_replicas(spec: GatewaySpec) -> dict[str, Any]:
    """A retry takes the next host of the decision, and only before the first byte. Another host needs no pause."""
    return {
        "cluster": "replicas",
        "timeout": "0s",
        "auto_host_rewrite": True,
        "hedge_policy": {"hedge_on_per_try_timeout": spec.hedging is not None},
        "retry_policy": {
            "retry_on": "connect-failure,refused-stream,reset",
            "num_retries": ATTEMPTS - 1,
            "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.010s"},
        },
    }


def _replicas(spec: GatewaySpec, hosts: list[Host]) -> dict[str, Any]:
    nobody = _extension(
        "envoy.load_balancing_policies.subset",
        TYPE + "envoy.extensions.load_balancing_policies.subset.v3.Subset",
        fallback_policy="NO_FALLBACK",
        subset_selectors=[{"keys": ["headway.none"]}],
        subset_lb_policy={"policies": [{"typed_extension_config": _least_request()}]},
    )
    chosen = _extension(
        "envoy.load_balancing_policies.override_host",
        TYPE + "envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost",
        override_host_sources=[{"metadata": {"key": "envoy.lb", "path": [{"key": DESTINATION}]}}],
        fallback_policy={"policies": [{"typed_extension_config": nobody}]},
    )
    many = 1_000_000  # admission is Headway's: Envoy's breakers must not compete with it
    breaker = {"max_connections": many, "max_pending_requests": many, "max_requests": many, "max_retries": many}
    return {
        "name": "replicas",
        "type": "STATIC",
        "connect_timeout": "2s",
        "per_connection_buffer_limit_bytes": 1 << 20,
        "circuit_breakers": {"thresholds": [breaker]},
        "typed_extension_protocol_options": _protocol(
            explicit_http_config={"http_protocol_options": {}},
            common_http_protocol_options={"idle_timeout": _seconds(KEPT_S)},
            http_filters=upstream_filters() if spec.hedging else [],
        ),
        "load_balancing_policy": {"policies": [{"typed_extension_config": chosen}]},
        "transport_socket_matches": [_to_tls(spec)] if any(host.tls for host in hosts) else [],
        "load_assignment": _assignment(hosts),
    }


def _assignment(hosts: list[Host]) -> dict[str, Any]:
    """Return the replicas as endpoints; the same address once."""
    endpoints = []
    for host in dict.fromkeys(host for host in hosts if host.at):
        place = {"pipe": {"path": host.at}} if host.at.startswith("/") else _socket(host.at)
        endpoint = {"address": place, "hostname": host.name}
        marks = {"filter_metadata": {"envoy.transport_socket_match": {"tls": True}}} if host.tls else {}
        endpoints.append({"endpoint": endpoint, "metadata": marks})
    return {"cluster_name": "replicas", "endpoints": [{"lb_endpoints": endpoints}]}


def _to_tls(spec: GatewaySpec) -> dict[str, Any]:
    """TLS to a replica that is marked so: its name is asked for, and its certificate must be for it."""
    trusted = {"trusted_ca": {"filename": spec.upstream_ca or AUTHORITIES}}
    checked = {"validation_context": trusted, "tls_params": TLS_PARAMS}
    made = _tls("UpstreamTlsContext", common_tls_context=checked, auto_host_sni=True, auto_sni_san_validation=True)
    return {"name": "tls", "match": {"tls": True}, "transport_socket": made}


def _least_request() -> dict[str, Any]:
    url = TYPE + "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest"
    return _extension("envoy.load_balancing_policies.least_request", url)


def _protocol(**options: Any) -> dict[str, Any]:
    """How a cluster is spoken to."""
    name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {name: {"@type": TYPE + name, **options}}


def _own(name: str, folder: Path) -> dict[str, Any]:
    many = 1_000_000
    breaker = {"max_connections": many, "max_pending_requests": many, "max_requests": many, "max_retries": many}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "0.250s",
        "circuit_breakers": {"thresholds": [breaker]},
        "typed_extension_protocol_options": _protocol(explicit_http_config={"http2_protocol_options": {}}),
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": str(folder / f"{name}.sock")}}}}]}
            ],
        },
    }
