"""What Envoy needs beside the rest to hedge: to send a request to a second host when the first byte does not come.

Envoy's own hedging waits for the *head* of a reply, and engines send that of a stream before they have computed
anything. So a filter beside each replica holds a head back until a byte of the body follows: then whoever has the
first byte wins, and the router cancels the other. The filter is WebAssembly of a few instructions, written here.
"""

from __future__ import annotations

import base64
from typing import Any

TYPE = "type.googleapis.com/"
HTTP = TYPE + "envoy.extensions.filters.http."
HEDGE_AFTER, HEDGE_RETRIES = "headway-hedge-after-ms", "headway-hedge-retries"  # metadata of a decision
TOLD = {HEDGE_AFTER: "x-envoy-upstream-rq-per-try-timeout-ms", HEDGE_RETRIES: "x-envoy-max-retries"}

_I32, _FUNCTION, _END = 0x7F, 0x60, 0x0B
_LOCAL_GET, _CONST, _EQZ = 0x20, 0x41, 0x45


def hold_heads() -> bytes:
    """Return the module: a head waits for its body's first part (Proxy-Wasm's ABI 0.2.1, github.com/proxy-wasm/spec).

    In text:

        (memory (export "memory") 1)
        (func (export "proxy_abi_version_0_2_1"))
        (func (export "malloc") (param i32) (result i32) i32.const 1024)
        (func (export "proxy_on_context_create") (param i32 i32))
        (func (export "proxy_on_vm_start") (param i32 i32) (result i32) i32.const 1)
        (func (export "proxy_on_configure") (param i32 i32) (result i32) i32.const 1)
        (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32) local.get 2 i32.eqz)

    The last one answers 1, which is to pause, unless the head is all there is. Nothing is called for a body, which goes
    on as it comes and takes the head with it.
    """
    functions: list[tuple[str, int, bool, list[int]]] = [  # name, parameters, whether it answers, instructions
        ("proxy_abi_version_0_2_1", 0, False, []),
        ("malloc", 1, True, [_CONST, 0x80, 0x08]),
        ("proxy_on_context_create", 2, False, []),
        ("proxy_on_vm_start", 2, True, [_CONST, 1]),
        ("proxy_on_configure", 2, True, [_CONST, 1]),
        ("proxy_on_response_headers", 3, True, [_LOCAL_GET, 2, _EQZ]),
    ]
    types = [[_FUNCTION, many, *[_I32] * many, *([1, _I32] if answers else [0])] for _, many, answers, _ in functions]
    exports = [_export(name, 0, i) for i, (name, *_) in enumerate(functions)] + [_export("memory", 2, 0)]
    bodies = [[len(code) + 2, 0, *code, _END] for *_, code in functions]
    sections = {1: types, 3: [[i] for i in range(len(functions))], 5: [[0, 1]], 7: exports, 10: bodies}
    return b"\0asm\1\0\0\0" + b"".join(_section(number, parts) for number, parts in sections.items())


def _export(name: str, kind: int, index: int) -> list[int]:
    return [len(name), *name.encode(), kind, index]


def _section(number: int, parts: list[list[int]]) -> bytes:
    body = bytes([len(parts)]) + b"".join(map(bytes, parts))
    return bytes([number, len(body) & 0x7F | 0x80, len(body) >> 7]) + body  # its length in two digits of 128


def upstream_filters() -> list[dict[str, Any]]:
    """Return the filters beside a replica."""
    code = {"local": {"inline_bytes": base64.b64encode(hold_heads()).decode()}}
    plugin = {
        "name": "hold-heads",
        "vm_config": {"vm_id": "hold-heads", "runtime": "envoy.wasm.runtime.v8", "code": code},
        "allow_on_headers_stop_iteration": True,  # of the head alone: the body is what it waits for
    }
    return [
        _filter("envoy.filters.http.wasm", HTTP + "wasm.v3.Wasm", config=plugin),
        _filter("envoy.filters.http.upstream_codec", HTTP + "upstream_codec.v3.UpstreamCodec"),
    ]


def told_to_router() -> dict[str, Any]:
    """Return the filter that tells the router what the decision says of hedging; nothing where it says nothing."""
    mutations = [
        {
            "append": {
                "header": {"key": header, "value": f"%DYNAMIC_METADATA(envoy.lb:{key})%"},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
        }
        for key, header in TOLD.items()
    ]
    url = HTTP + "header_mutation.v3.HeaderMutation"
    return _filter("envoy.filters.http.header_mutation", url, mutations={"request_mutations": mutations})


def hedged_too(failed: dict[str, Any]) -> dict[str, Any]:
    """Return the filter of the log of attempts: these, and all of requests that have had more than one.

    Those are told when they are sent and when they are over; the count is in a header that the router keeps.
    """
    many = {"name": "x-envoy-attempt-count", "range_match": {"start": 2, "end": 1000}}
    return {"or_filter": {"filters": [failed, {"header_filter": {"header": many}}]}}


def _filter(name: str, url: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "typed_config": {"@type": url, **fields}}
