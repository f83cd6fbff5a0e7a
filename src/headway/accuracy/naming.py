"""What a model's name says: which catalogue entry it is, else its size, and the format of its weights."""

from __future__ import annotations

import re
from functools import cache
from typing import Final

from headway.errors import BadInput
from headway.model import DTYPE_BYTES, model, model_keys

__all__ = ["gguf_format", "named_format", "named_model", "named_size", "slug"]

_WORDS: Final = re.compile(r"\d+(?:\.\d+)?[bm](?![a-z])|[a-z]+|\d+(?:\.\d+)*")
_SIZE: Final = re.compile(
    r"(?<![a-z0-9.])(?:e|r|ms\d\.\d-)?(\d+(?:\.\d+)?)([bm])(?:-?a(\d+(?:\.\d+)?)([bm]))?(?![a-z0-9])"
)
_FORMAT: Final = re.compile(r"i?q\d(?:_\d|_k_(?:xl|[sml])|_k|_nl|_xs|_xxs)?(?![a-z0-9])")
_UNIT: Final = {"b": 1e9, "m": 1e6}
_IS_SIZE: Final = re.compile(r"\d+(?:\.\d+)?[bm]")


def named_model(name: str, patterns: tuple[tuple[str, str], ...]) -> str | None:
    """Return the key of the model that a free name means, or None.

    `patterns` are pairs of a part of the name and the key it stands for, the first that occurs wins. Then comes the
    catalogue entry all of whose words are in the name, with the same sizes; then a typical model of the size named.
    """
    plain = _plain(name)
    for part, key in patterns:
        if part in plain:
            return key
    words = _WORDS.findall(_FORMAT.sub("", plain))
    sizes = {word for word in words if _IS_SIZE.fullmatch(word)}
    fitting = [key for key, parts in _catalogue() if parts <= set(words) and sizes == _sizes(parts)]
    if fitting:
        return max(fitting, key=len)
    return _sized(plain)


def named_size(name: str) -> float | None:
    """Return the parameters that a free name gives, the largest of several, or None."""
    found = [float(number) * _UNIT[unit] for number, unit, _, _ in _SIZE.findall(_plain(name))]
    return max(found, default=None)


def named_format(name: str, formats: tuple[tuple[str, str], ...]) -> str | None:
    """Return the format of the weights that a free name gives, or None: a GGUF type, else the first of `formats`."""
    plain = name.lower().replace("-", "_")
    gguf = _FORMAT.search(plain)
    if gguf and (found := gguf_format(gguf[0])):
        return found
    return next((dtype for part, dtype in formats if part in plain), None)


def gguf_format(text: str) -> str | None:
    """Return the format a GGUF type stands for: itself, or the nearest of the same bits ("q4_k_xl" is "q4_k_m")."""
    text = text.lower()
    tried = (text, text.replace("_xl", "_m").replace("_l", "_m"), f"{text}_m", f"{text}_0", f"i{text}")
    return next((dtype for dtype in tried if dtype in DTYPE_BYTES), None)


def slug(name: str, words: tuple[str, ...]) -> str:
    """Return a name as catalogue keys are written: lower case, without the `words` of makers, joined by hyphens."""
    plain = re.sub(r"\(.*?\)|\[.*?\]", " ", name.lower())
    kept = [word for word in re.split(r"[\s_/-]+", plain) if word and word not in words]
    return "-".join(kept)


def _plain(name: str) -> str:
    """The name's last part in lower case, with an Ollama tag as one more word."""
    last = name.lower().removesuffix(".gguf").rsplit("/", 1)[-1]
    return last.replace(":", "-").replace("_", "-").replace("-k-m", "_k_m").replace(" ", "-")


@cache
def _catalogue() -> tuple[tuple[str, frozenset[str]], ...]:
    return tuple((key, frozenset(_WORDS.findall(key))) for key in model_keys())


def _sizes(words: frozenset[str]) -> set[str]:
    return {word for word in words if _IS_SIZE.fullmatch(word)}


def _sized(plain: str) -> str | None:
    """The largest size in the name, with the active one beside it where there is one."""
    found = _SIZE.findall(plain)
    if not found:
        return None
    number, unit, active, active_unit = max(found, key=lambda size: float(size[0]) * _UNIT[size[1]])
    key = f"sized:{number}{unit}" + (f"-a{active}{active_unit}" if active else "")
    try:
        return model(key).key
    except BadInput:
        return None
