"""Record an engine's own parser: `record_engine_flags.py vllm FOLDER VERSION` rewrites `vllm.json` of `headway.export`.

FOLDER holds the unpacked wheel (`pip download --no-deps vllm==VERSION`, `unzip`), with pydantic and regex installed
beside it (`pip install --target FOLDER`). The engine's own code builds the parser; what needs a GPU to be imported is
replaced by empty stand-ins, which the definitions of arguments do not read.
"""

from __future__ import annotations

import abc
import argparse
import importlib
import importlib.abc
import importlib.machinery
import json
import os
import sys
import types
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

DATA = Path(__file__).parents[1] / "src" / "headway" / "export" / "data"
STAND_INS = {
    "vllm": ("vllm.ir", "vllm.ir.ops", "vllm.ir.op", "vllm.kernels"),
    "sglang": ("sglang.srt.utils.hf_transformers_patches",),
    "vllm-router": (),
}
MODULES = ("nn", "distributed", "cuda", "utils", "functional", "library")  # of torch, as attributes


class _Meta(abc.ABCMeta):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith(("__", "_abc")) or name == "_is_protocol":
            raise AttributeError(name)
        return MagicMock(name=name)


def _any_schema(cls: type, source: Any, handler: Any) -> Any:
    return importlib.import_module("pydantic_core").core_schema.any_schema()


def _class(name: str) -> type:
    body = {
        "__init__": lambda self, *_, **__: None,
        "__class_getitem__": classmethod(lambda cls, _: cls),
        "__getattr__": lambda self, other: MagicMock(name=other),
        "__get_pydantic_core_schema__": classmethod(_any_schema),
    }
    return _Meta(name, (), body)


class _StandIn(types.ModuleType):
    __version__ = "2.9.0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name[:1].isupper() or name in ("dtype", "device"):
            value: Any = _class(name)
        else:
            value = _StandIn(name) if name in MODULES else MagicMock(name=name)
        setattr(self, name, value)
        return value


class _Missing(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds whatever nothing else on the path provides."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or any(
            os.path.exists(os.path.join(folder, top + end)) for folder in sys.path for end in ("", ".py")
        ):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        return _stand_in(spec.name, [])

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


def _stand_in(name: str, path: list[str]) -> types.ModuleType:
    module = _StandIn(name)
    module.__path__ = path
    return module


def parser_of(engine: str, folder: Path) -> argparse.ArgumentParser:
    """The engine's parser, made by its own code."""
    sys.path.insert(0, str(folder))
    sys.meta_path.append(_Missing())
    for name in STAND_INS[engine]:
        sys.modules[name] = _stand_in(name, [])
    if engine == "vllm-router":
        parser = argparse.ArgumentParser()
        arguments = importlib.import_module("vllm_router.router_args").RouterArgs
        arguments.add_cli_args(parser, use_router_prefix=False)
        return parser
    if engine == "vllm":
        sys.modules["vllm.platforms"] = _stand_in("vllm.platforms", [str(folder / "vllm" / "platforms")])
        parser = importlib.import_module("vllm.utils.argparse_utils").FlexibleArgumentParser()
        importlib.import_module("vllm.entrypoints.common.cli_args").make_arg_parser(parser)
        return parser  # type: ignore[no-any-return]
    parser = argparse.ArgumentParser()
    importlib.import_module("sglang.srt.server_args").ServerArgs.add_cli_args(parser)
    return parser


def flags_of(parser: argparse.ArgumentParser) -> dict[str, dict[str, Any]]:
    """Every option: the names that are accepted, how many values it takes, their type and choices."""
    flags: dict[str, dict[str, Any]] = {}
    for name, action in sorted(parser._option_string_actions.items()):
        if not name.startswith("--"):
            continue
        kind = getattr(action.type, "__name__", "")
        flag: dict[str, Any] = {"values": 0 if action.nargs == 0 else action.nargs or 1}
        if kind in ("int", "float"):
            flag["type"] = kind
        elif kind.startswith("human_readable_int"):
            flag["type"] = "int"
        if action.choices:
            flag["choices"] = [str(choice) for choice in action.choices]
        flags[name] = flag
    return flags


def main() -> None:
    """Record one engine."""
    engine, folder, version = sys.argv[1], Path(sys.argv[2]).resolve(), sys.argv[3]
    sys.argv = [engine]
    file = DATA / f"{engine}.json"
    flags = flags_of(parser_of(engine, folder))
    where = {
        "vllm": "vllm/entrypoints and vllm/engine/arg_utils.py", "sglang": "sglang/srt/server_args.py",
        "vllm-router": "vllm_router/router_args.py",
    }[engine]  # fmt: skip
    source = f"the parser of {engine} {version} itself, {where} (Apache-2.0)"
    lines = [f"  {json.dumps(name)}: {json.dumps(flag)}" for name, flag in flags.items()]
    head = "".join(
        f"{json.dumps(key)}: {json.dumps(value)},\n" for key, value in (("version", version), ("source", source))
    )
    file.write_text(f'{{{head}"flags": {{\n' + ",\n".join(lines) + "\n}}\n", encoding="utf-8")
    print(f"{file}: {len(flags)} flags")


if __name__ == "__main__":
    main()
