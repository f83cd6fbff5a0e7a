"""The catalogue of public models: one file per family, any `config.json` by its path, any size by `sized:`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from headway.errors import BadInput, UnknownName, nearest
from headway.model.hf_config import from_hf_config
from headway.model.sized import PREFIX, sized
from headway.model.spec import DTYPE_BYTES, Model
from headway.specs import from_mapping, read_yaml

_DATA = Path(__file__).parent / "data"


def model(key_or_path: str) -> Model:
    """Return a model by catalogue key, or from the path of a Hugging Face `config.json` or of its folder.

    `sized:8b` and `sized:35b-a3b` are typical architectures of that size (`sized.py`). A key may end with how a copy
    differs: `llama-3.1-8b:q4_k_m` is published in that format, `qwen3-8b:131072` is served up to that context.

    Raises:
        UnknownName: no such key or format; names the nearest.
        BadInput: no such file, not JSON, a config that cannot be read (see `from_hf_config`), or no size.
    """
    if key_or_path.endswith(".json") or "/" in key_or_path or "\\" in key_or_path:
        return _from_path(Path(key_or_path))
    try:
        return _by_key(key_or_path)
    except UnknownName:
        if (Path(key_or_path) / "config.json").is_file():
            return _from_path(Path(key_or_path))
        raise


def model_keys() -> list[str]:
    """Return all catalogue keys, family by family."""
    return [key for path in _families() for key in _family(path)]


@cache
def _by_key(key: str) -> Model:
    if ":" in key.removeprefix(PREFIX):
        bare, _, differs = key.rpartition(":")
        return _copy(bare, differs, key)
    if key.startswith(PREFIX):
        return sized(key)
    # A family's file is named by the prefix of its keys, so that one model costs the reading of one file.
    for path in _families():
        if key.startswith(path.stem) and key in _family(path):
            return _family(path)[key]
    raise UnknownName("model", key, model_keys())


def _copy(bare: str, differs: str, key: str) -> Model:
    if differs.isdecimal():
        return msgspec.structs.replace(_by_key(bare), key=key, max_context=int(differs))
    if differs not in DTYPE_BYTES:
        _by_key(bare)
        raise UnknownName("dtype", differs, DTYPE_BYTES)
    return msgspec.structs.replace(_by_key(bare), key=key, native_dtype=differs)


@cache
def _families() -> tuple[Path, ...]:
    return tuple(sorted(_DATA.glob("*.yaml")))


@cache
def _family(path: Path) -> dict[str, Model]:
    """The models of one file: what stands under `common`, then each model's own fields."""
    data = read_yaml(path)
    common: dict[str, Any] = data.get("common", {})
    return {
        key: from_mapping(Model, {**common, **own, "key": key}, f"{path.name}: {key}")
        for key, own in data["models"].items()
    }


def _from_path(path: Path) -> Model:
    file = path / "config.json" if path.is_dir() else path
    try:
        config = msgspec.json.decode(file.read_bytes())
    except FileNotFoundError:
        near = nearest(path.stem if path.suffix == ".json" else path.name, model_keys())
        hint = f" (nearest: {', '.join(near)})" if near else ""
        raise BadInput(
            f"{file}: no such file. A model is a catalogue key{hint} or the path of a config.json"
        ) from None
    except OSError as error:
        raise BadInput(f"{file}: cannot be read: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise BadInput(f"{file}: not JSON: {error}; expected a Hugging Face config.json") from None
    if not isinstance(config, dict):
        raise BadInput(f"{file}: expected a JSON object with the fields of a config.json")
    return from_hf_config(config, str(path))
