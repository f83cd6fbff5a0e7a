"""`headway profile`: times the operators of a local NVIDIA GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from headway.cli import options as o
from headway.cli.terminal import Terminal
from headway.errors import BadInput, nearest

if TYPE_CHECKING:
    from headway.profile import Backend, Comparison


@click.command(cls=o.Verb, short_help="Time the operators of a local NVIDIA GPU.")
@o.options(o.PROFILE, o.JSON, o.QUIET)
def profile(**asked: Any) -> None:
    """Time products, attention and, over several GPUs, sums, and write tables as the cost model is fitted on.

    Needs an NVIDIA GPU (without one the exit code is 1) and PyTorch (pip install 'headway[profile]'). Buffers rotate,
    so that nothing is read from the cache; each figure is the median of repeats by the GPU's own clock.

    \b
    headway profile --out timings/
    headway profile --compare --gpu h100-sxm
    """
    from headway.profile import compare, grid, measure
    from headway.profile.timings import write_timings
    from headway.profile.torch_backend import TorchBackend, check_gpu

    terminal = Terminal(asked["json_to"], quiet=asked["quiet"])
    check_gpu()
    if asked["out_to"] is None and not asked["compare"]:
        raise BadInput("nothing to do with the timings: --out DIR writes them, --compare shows them beside our law")
    backend = TorchBackend()
    key = asked["gpu"] or _catalogued(backend)
    with terminal.bar("measuring") as bar:
        timings = measure(backend, grid(backend.dtypes, backend.gpus, asked["full"]), progress=bar.tell)
    if asked["out_to"]:
        for path in write_timings(asked["out_to"], timings, backend.fingerprint(), key or backend.properties.name):
            terminal.note(f"wrote {path}")
    compared = compare(timings, key) if key and asked["compare"] else []
    if asked["compare"] and not key:
        terminal.note(f"{backend.properties.name} is not in the catalogue: name the nearest one with --gpu")
    if compared:
        terminal.show(_table(compared, key or ""))
    if asked["json_to"]:
        from headway.specs import json_text

        told = {"fingerprint": backend.fingerprint(), "timings": len(timings),
                "compared": [one._asdict() for one in compared]}  # fmt: skip
        terminal.write(asked["json_to"], json_text(told) + "\n")


def _catalogued(backend: Backend) -> str | None:
    """The catalogue's key of the local GPU, or None."""
    from headway.hardware import gpus_named

    name = str(backend.fingerprint()["gpu"]).lower().replace("nvidia", "").strip()
    found = gpus_named(name)
    return next(iter(nearest(name, found)), found[0] if found else None)


def _table(compared: list[Comparison], key: str) -> Any:
    from headway.report.sheet import Sheet

    table = Sheet()
    for place, heading in enumerate((f"{key}, our law", "shapes", "predicted / measured", "median error")):
        table.add_column(heading, words=place == 0)
    for one in compared:
        table.add_row(one.kind, f"{one.n:,}", f"{one.ratio:.2f}", f"{100 * one.error:.0f} %")
    return table
