"""`headway list`: the catalogues, as a table or as JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from headway.cli.options import Verb
from headway.cli.terminal import Terminal
from headway.errors import UnknownName
from headway.units import format_bytes, format_count, format_rate

Row = dict[str, Any]
GB = 1e9


def _models() -> list[Row]:
    from headway.model import model, model_keys
    from headway.specs import to_mapping

    rows = []
    for spec in map(model, model_keys()):
        facts = {
            "total_params": spec.total_params(),
            "active_params": spec.active_params(),
            "weight_bytes": spec.weight_bytes(spec.native_dtype),
            "kv_bytes_per_token": spec.kv_bytes_per_token("bf16"),
        }
        rows.append(to_mapping(spec, defaults=True) | facts)
    return rows


def _gpus() -> list[Row]:
    from headway.hardware import gpu, gpu_keys
    from headway.specs import to_mapping

    return [to_mapping(gpu(key), defaults=True) for key in gpu_keys()]


def _nodes() -> list[Row]:
    from headway.hardware import nodes
    from headway.specs import to_mapping

    return [to_mapping(made, defaults=True) for made in map(_node, nodes())]


def _node(key: str) -> Any:
    from headway.hardware import node

    gpu, _, size = key.rpartition("-")
    return node(gpu, int(size.lstrip("xnvl")))


def _policies() -> list[Row]:
    from headway.policies import policy, policy_names

    return [
        {"kind": kind, "name": name, "about": (type(policy(kind, name)).__doc__ or "").partition("\n")[0]}
        for kind in ("route", "order", "admit", "choose_model", "retain", "scale")
        for name in policy_names(kind)
    ]


def _workloads() -> list[Row]:
    from headway.workload import workload, workload_names

    return [
        {
            "name": made.name,
            "rate_req_s": made.rate_req_s,
            "mean_prompt_tokens": made.mean_prompt_tokens,
            "mean_output_tokens": made.mean_output_tokens,
            "arrival": type(made.spec.arrival).__name__.lower(),
            "block_tokens": made.block_tokens,
            "requests": made.requests,
            "about": made.spec.about,
        }
        for made in map(workload, workload_names())
    ]


def _exports() -> list[Row]:
    from headway.export import targets
    from headway.specs import to_mapping

    return [to_mapping(each, defaults=True) for each in targets()]


def _tera(value: float | None) -> str:
    return "" if value is None else f"{value / 1e12:,.0f}"


_GPU = (
    ("memory", lambda r: format_bytes(r["memory_bytes"])),
    ("GB/s", lambda r: f"{r['memory_bytes_per_s'] / GB:,.0f}"),
    ("bf16 TFLOP/s", lambda r: _tera(r["peak_flops"].get("bf16"))),
    ("fp8", lambda r: _tera(r["peak_flops"].get("fp8"))),
    ("fp4", lambda r: _tera(r["peak_flops"].get("fp4"))),
    ("link", lambda r: r["link_kind"]),
    ("GB/s one way", lambda r: f"{r['link_bytes_per_s'] / GB:,.0f}"),
    ("watts", lambda r: f"{r['tdp_watts']:,.0f}"),
    ("$/h", lambda r: "" if r["usd_per_hour"] is None else f"{r['usd_per_hour']:.2f}"),
    ("price of", lambda r: r["price_date"]),
)
_MODEL = (
    ("parameters", lambda r: format_count(r["total_params"])),
    ("active", lambda r: format_count(r["active_params"]) if r["experts"] else ""),
    ("published in", lambda r: r["native_dtype"]),
    ("weights", lambda r: format_bytes(r["weight_bytes"])),
    ("KV per token, bf16", lambda r: format_bytes(r["kv_bytes_per_token"])),
    ("layers", lambda r: str(r["layers"])),
    ("context", lambda r: f"{r['max_context']:,}"),
)
_WORKLOAD = (
    ("rate", lambda r: format_rate(r["rate_req_s"])),
    ("arrivals", lambda r: r["arrival"]),
    ("prompt tokens", lambda r: f"{r['mean_prompt_tokens']:,.0f}"),
    ("output tokens", lambda r: f"{r['mean_output_tokens']:,.0f}"),
    ("shared prefixes", lambda r: "yes" if r["block_tokens"] else "no"),
    ("fitted on", lambda r: r["about"]),
)
_NODE = (
    ("GPUs", lambda r: str(r["gpu_count"])),
    ("inside", lambda r: r["scale_up"]["name"]),
    ("GB/s one way", lambda r: f"{r['scale_up']['bytes_per_s'] / GB:,.0f}"),
    ("to other nodes", lambda r: r["scale_out"]["name"]),
    ("GB/s per GPU", lambda r: f"{r['scale_out']['bytes_per_s'] / GB:,.0f}"),
)
_POLICY = (("name", lambda r: r["name"]), ("what it does", lambda r: r["about"]))

_EXPORT = (
    ("for", lambda r: r["version"]),
    ("what it writes", lambda r: r["about"]),
    ("what is checked", lambda r: r["checked"]),
)

Columns = tuple[tuple[str, Callable[[Row], str]], ...]
CATALOGUES: dict[str, tuple[Callable[[], list[Row]], str, Columns]] = {
    "exports": (_exports, "name", _EXPORT),
    "models": (_models, "key", _MODEL),
    "gpus": (_gpus, "key", _GPU),
    "nodes": (_nodes, "key", _NODE),
    "policies": (_policies, "kind", _POLICY),
    "workloads": (_workloads, "name", _WORKLOAD),
}


@click.command("list", cls=Verb, short_help="Models, GPUs, nodes, policies, workloads, exports.")
@click.argument("what", metavar=f"[{'|'.join(CATALOGUES)}]")
@click.option("--json", "as_json", is_flag=True, help="Every field, as a JSON list on stdout.")
def list_(what: str, as_json: bool) -> None:
    """List what the catalogues hold."""
    if what not in CATALOGUES:
        raise UnknownName("catalogue", what, CATALOGUES)
    read, key, columns = CATALOGUES[what]
    rows = read()
    if as_json:
        from headway.specs import json_text

        click.echo(json_text(rows))
        return
    terminal = Terminal()
    terminal.show(_table(rows, key, columns))
    if what == "models":
        terminal.note("parameters are those of the text model; parts for images or sound are left out")


def _table(rows: list[Row], key: str, columns: Columns) -> Any:
    from headway.report.sheet import Sheet

    table = Sheet()
    table.add_column(key, right=False)
    for heading, _ in columns:
        words = heading in (
            "what it does",
            "fitted on",
            "arrivals",
            "link",
            "published in",
            "name",
            "price of",
            "inside",
            "to other nodes",
            "for",
            "what it writes",
            "what is checked",
        )
        table.add_column(heading, words=words)
    for row in rows:
        table.add_row(str(row[key]), *(show(row) for _, show in columns))
    return table
