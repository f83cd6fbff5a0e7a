"""The room's data files, and which entry of one holds for a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from typing import TypeVar

from headway.specs import from_mapping, read_yaml

__all__ = ["alike", "family_of", "packaged"]

T = TypeVar("T")


def packaged(type_: type[T], name: str) -> T:
    """Return the YAML file `data/name` of this room as a spec."""
    with resources.as_file(resources.files("headway.cost") / "data" / name) as path:
        return from_mapping(type_, read_yaml(path), name)


def family_of(key: str, families: Iterable[str]) -> str | None:
    """Return the family a GPU belongs to: "h100" is that of "h100" and of "h100-sxm", not of "h1000"."""
    return next((name for name in families if key == name or key.startswith(f"{name}-")), None)


def alike(key: str, families: Mapping[str, str]) -> str | None:
    """Return the family of a GPU's architecture, by how its key begins."""
    return next((name for start, name in families.items() if key.startswith(start)), None)
