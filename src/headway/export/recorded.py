"""Parsers of the engines, recorded by `scripts/record_engine_flags.py`, and commands held against them.

TensorRT-LLM's was written down from its source: no package of it installs without a driver.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec

from headway.errors import BadInput, UnknownName

__all__ = ["Parser", "parse", "recorded"]

_DATA = Path(__file__).with_name("data")


class Flag(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`values`: how many words follow: a number, or `?`, `+` and `*` as argparse has them."""

    values: int | str = 1
    type: Literal["str", "int", "float"] = "str"
    choices: tuple[str, ...] = ()


class Parser(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The flags that one version of an engine accepts, and where they were read."""

    version: str
    source: str
    flags: dict[str, Flag]


@cache
def recorded(engine: str) -> Parser:
    """Return the recorded parser of "vllm", "sglang" or "trtllm"."""
    return msgspec.json.decode((_DATA / f"{engine}.json").read_bytes(), type=Parser)


def parse(engine: str, words: list[str]) -> dict[str, Any]:
    """Return the flags of a command (its words after the program's and the model's name) with their values.

    Raises:
        UnknownName: a flag that this version does not have. BadInput: a value missing, out of the choices or no number.
    """
    parser, found, at = recorded(engine), dict[str, Any](), 0
    while at < len(words):
        name, at = words[at], at + 1
        if name not in parser.flags:
            raise UnknownName(f"flag of {engine} {parser.version}", name, parser.flags)
        flag = parser.flags[name]
        if flag.values == 0:
            found[name] = True
            continue
        if at == len(words) or words[at].startswith("--"):
            raise BadInput(f"{engine}: {name} takes a value and has none")
        found[name], at = _value(engine, name, flag, words[at]), at + 1
    return found


def _value(engine: str, name: str, flag: Flag, word: str) -> Any:
    if flag.choices and word not in flag.choices:
        raise UnknownName(f"value of {engine}'s {name}", word, flag.choices)
    try:
        return {"int": int, "float": float, "str": str}[flag.type](word)
    except ValueError:
        raise BadInput(f"{engine}: {name} {word!r}: expected {flag.type}") from None
