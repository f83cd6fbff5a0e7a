"""The catalogue: reads a data file once, looks up GPUs by name or by the path of a file, builds nodes."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from headway.errors import BadInput, UnknownName
from headway.hardware.facts import Gpu, Link, LinkKind, LinkTopology, Node, Source
from headway.hardware.files import is_file, located
from headway.specs import Spec, from_mapping, read_yaml
from headway.units import parse_bytes, parse_seconds

__all__ = ["gpu", "gpu_keys", "name_within", "node", "nodes", "silicon"]

_NODE_SIZES = (1, 2, 4, 8, 72)

_DATA = Path(__file__).with_name("data")
_WHOLE = ("sm_count", "gpus_per_node")
_NODE_MOST = 1024  # GPUs joined by fast links: more than anybody sells
_AROUND = (
    "gpus_per_node", "link_bytes_per_s", "link_latency_s", "pcie_bytes_per_s", "rdma_bytes_per_s", "rdma_latency_s",
    "usd_per_hour",
)  # fmt: skip


def gpu(key: str) -> Gpu:
    """Return the GPU of that name, or the one that a YAML file of the catalogue's form describes, by its path.

    In place of the whole description a file may name the GPU of the catalogue that this one is `like`, and give the
    figures of the node, the links and the price alone: the laws of that GPU hold then.

    Raises:
        UnknownName: naming the nearest.
        BadInput: the file cannot be read, describes none or several, or changes a GPU that it says it is like.
    """
    return _described(key) if is_file(key) else _listed(key)


@cache
def _listed(key: str) -> Gpu:
    # An entry begins with its name on a line of its own, so that one GPU costs the reading of one file.
    for path in _paths():
        if f"\n  {key}:\n" in _text(path) and key in _cards(path):
            return _cards(path)[key]
    raise UnknownName("GPU", key, gpu_keys())


def name_within(path: str) -> str:
    """Return the name that a file gives to the GPU it describes; raises as `gpu`."""
    return _read(located(path))[0]


def silicon(key: str) -> str:
    """Return the name that the laws of a GPU go by: its own, or of a file that of the GPU it is like."""
    return _described(key).like or key if is_file(key) else key


def gpu_keys() -> list[str]:
    """Return the names of all GPUs, sorted."""
    return sorted(key for path in _paths() for key in _cards(path))


def gpus_named(name: str) -> list[str]:
    """Return the GPUs that a driver's name ("NVIDIA H100 80GB HBM3") can mean: their key begins with a word of it."""
    words = name.lower().replace("-", " ").split()
    return [key for key in gpu_keys() if key.partition("-")[0] in words]


@cache
def node(gpu_key: str, count: int) -> Node:
    """Return a node of `count` GPUs: 1, 2, 4, 8 or 72 (NVL72), up to the largest scale-up domain sold.

    Raises:
        UnknownName: no such GPU.
        BadInput: no such node of this GPU, with the counts there are.
    """
    card = gpu(gpu_key)
    sizes = _node_sizes(card)
    if count not in sizes:
        raise BadInput(
            f"no node of {count} {gpu_key}: allowed are {', '.join(map(str, sizes))}; "
            f"for more GPUs use several nodes of {sizes[-1]}"
        )
    bytes_per_s = card.link_bytes_per_s
    if card.link_topology == "mesh" and count > 1:
        bytes_per_s *= (count - 1) / (card.gpus_per_node - 1)  # links to absent peers carry nothing
    return Node(
        key=_node_key(gpu_key, count),
        gpu=gpu_key,
        gpu_count=count,
        scale_up=Link(name=card.link_kind, bytes_per_s=bytes_per_s, latency_s=card.link_latency_s),
        scale_out=Link(name="rdma", bytes_per_s=card.rdma_bytes_per_s, latency_s=card.rdma_latency_s),
    )


def nodes() -> list[str]:
    """Return the keys of all nodes (`h100-sxm-x8`, `gb200-nvl72`), by GPU and then by size."""
    return [_node_key(key, size) for key in gpu_keys() for size in _node_sizes(gpu(key))]


def _node_sizes(card: Gpu) -> list[int]:
    return [size for size in _NODE_SIZES if size <= card.gpus_per_node]


def _node_key(gpu_key: str, count: int) -> str:
    return f"{gpu_key}-nvl{count}" if count > 8 else f"{gpu_key}-x{count}"


# --- data files ------------------------------------------------------------------------------------------


class _Figure(Spec, frozen=True, kw_only=True):
    """A number, the document it is from (a key of the file's `sources`) and what else there is to say."""

    value: float | str
    source: str
    note: str = ""
    date: str = ""


class _Entry(Spec, frozen=True, kw_only=True):
    name: str
    vendor: str
    link_kind: LinkKind
    link_topology: LinkTopology = "switch"
    figures: dict[str, _Figure]


class _File(Spec, frozen=True, kw_only=True):
    sources: dict[str, Source]
    gpus: dict[str, _Entry]


class _Around(Spec, frozen=True, kw_only=True):
    """What differs around a GPU of the catalogue."""

    like: str
    figures: dict[str, _Figure] = {}  # noqa: RUF012 - never changed


class _AroundFile(Spec, frozen=True, kw_only=True):
    sources: dict[str, Source] = {}  # noqa: RUF012 - never changed
    gpus: dict[str, _Around]


@cache
def _paths() -> tuple[Path, ...]:
    return tuple(sorted(_DATA.glob("*.yaml")))


@cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def _cards(path: Path) -> dict[str, Gpu]:
    file = from_mapping(_File, read_yaml(path), path.name)
    return {key: _gpu(key, entry, file.sources) for key, entry in file.gpus.items()}


def _described(path: str) -> Gpu:
    return _read(located(path))[1]


@cache
def _read(path: str) -> tuple[str, Gpu]:
    """The GPU of a file, and the name that it has there."""
    data = read_yaml(path)
    listed = data.get("gpus")
    around = isinstance(listed, dict) and any(isinstance(each, dict) and "like" in each for each in listed.values())
    file: _File | _AroundFile = from_mapping(_AroundFile, data, path) if around else from_mapping(_File, data, path)
    if len(file.gpus) != 1:
        raise BadInput(f"{path}: describes {len(file.gpus)} GPUs under `gpus`; expected one")
    ((name, entry),) = file.gpus.items()
    _check_sources(path, entry.figures, file.sources)
    return name, _like(path, entry, file.sources) if isinstance(entry, _Around) else _gpu(path, entry, file.sources)


def _check_sources(path: str, figures: dict[str, _Figure], documents: dict[str, Source]) -> None:
    for name, figure in figures.items():
        if figure.source not in documents:
            told = ", ".join(documents) or "none"
            raise BadInput(f"{path}: {name} is from {figure.source!r}, which is not in `sources`; there are {told}")


def _like(path: str, entry: _Around, documents: dict[str, Source]) -> Gpu:
    try:
        card = _listed(entry.like)
    except UnknownName as error:
        raise BadInput(f"{path}: like: {error}") from None
    other = [name for name in entry.figures if name not in _AROUND]
    if other:
        raise BadInput(
            f"{path}: {', '.join(other)} would make another GPU than {entry.like}, whose laws would not hold; allowed "
            f"are {', '.join(_AROUND)}; describe the GPU whole, without `like`, to change more"
        )
    return msgspec.structs.replace(
        card,
        key=path,
        like=entry.like,
        **{name: _number(path, name, figure.value) for name, figure in entry.figures.items()},
        sources=card.sources | {name: _source(figure, documents) for name, figure in entry.figures.items()},
    )


def _gpu(key: str, entry: _Entry, documents: dict[str, Source]) -> Gpu:
    fields: dict[str, Any] = {"key": key, "peak_flops": {}, "usd_per_hour": None, "price_date": ""}
    for name in ("name", "vendor", "link_kind", "link_topology"):
        fields[name] = getattr(entry, name)
    for name, figure in entry.figures.items():
        group, _, dtype = name.partition(".")
        if dtype and group != "peak_flops":
            raise BadInput(f"{key}: unknown figure {name!r}: only those of peak_flops have a dot, as peak_flops.bf16")
        if dtype:
            fields[group][dtype] = _number(key, name, figure.value)
        else:
            fields[name] = _number(key, name, figure.value)
    if "usd_per_hour" in entry.figures:
        fields["price_date"] = entry.figures["usd_per_hour"].date
    fields["sources"] = {name: _source(figure, documents) for name, figure in entry.figures.items()}
    return from_mapping(Gpu, fields, key)


def _number(key: str, name: str, value: float | str) -> float:
    try:
        number = _parsed(name, value)
    except BadInput as error:
        raise BadInput(f"{key}: {name}: {error}") from None
    except ValueError:
        raise BadInput(f"{key}: {name} {value!r}: expected a number") from None
    most = _NODE_MOST if name == "gpus_per_node" else math.inf
    least = 1 if name in _WHOLE else 0
    whole = name not in _WHOLE or float(number).is_integer()
    if not least <= number <= most or not whole or (number == 0 and name.endswith("_per_s")):
        kind = "a whole number" if name in _WHOLE else "a number"
        limit = f"{least} to {most:,}" if most < math.inf else f"{least} or more"
        limit = "above 0" if name.endswith("_per_s") else limit
        raise BadInput(f"{key}: {name} {number:g}: expected {kind}, {limit}")
    return int(number) if name in _WHOLE else number


def _parsed(name: str, value: float | str) -> float:
    if name.endswith("_bytes"):
        return parse_bytes(value)
    return parse_seconds(value) if name.endswith("_latency_s") else float(value)


def _source(figure: _Figure, documents: dict[str, Source]) -> Source:
    document = documents[figure.source]
    parts = [document.source, figure.note, figure.date]
    return Source(kind=document.kind, source="; ".join(part for part in parts if part))
