"""Frozen specs: how a mapping or a YAML file becomes one, and back.

A spec is a frozen `msgspec.Struct` that forbids unknown fields. Its constructor does no I/O. Errors name the
place, what came, what is allowed and the nearest known field. Every field is reachable by a dotted path
(``pools.0.replica.tp=4``), so no option has to be added per field.
"""

from __future__ import annotations

import copy
import functools
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from operator import is_not
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, TypeVar, dataclass_transform, get_args

import msgspec
import yaml

from headway.errors import BadInput, UnknownName, nearest
from headway.units import parse_bytes, parse_count, parse_rate, parse_seconds

__all__ = [
    "Spec",
    "check_argument",
    "check_types",
    "from_json",
    "from_mapping",
    "json_text",
    "override",
    "read_yaml",
    "set_path",
    "to_mapping",
    "write_yaml",
]

_SHOWN = 80  # characters of a value that a message repeats

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every spec: frozen, built by keyword, unknown fields refused."""


def check_types(spec: msgspec.Struct, where: str) -> None:
    """Refuse values of other types than the fields have: constructors of Python take any. For `__post_init__`.

    What converts without loss becomes what the field has: a list a tuple, an int a float, numbers of NumPy those of
    Python, a `Path` text. Specs inside are taken as they are: they were checked when they were built.

    Raises:
        BadInput: with `where`, the field, what came, what is expected and the nearest value.
    """
    values, twin = msgspec.structs.astuple(spec), _twin(type(spec))
    try:
        taken = msgspec.structs.astuple(msgspec.convert(values, twin))
    except msgspec.ValidationError:
        taken = msgspec.structs.astuple(_taken(tuple(map(_of_python, values)), type(spec), where))
    if any(map(is_not, taken, values)):  # all at once: the planner builds tens of thousands, field by field took twice
        for field, value, came in zip(_struct_fields(type(spec)), taken, values, strict=True):
            if value is not came:
                msgspec.structs.force_setattr(spec, field.name, value)


def check_argument(name: str, value: object, type_: Any, as_in: str = "") -> None:
    """Refuse an argument of another type than a public function declares.

    Of a class, or one of several, it has to be an object; of anything else, as `float | None` or `list[str]`, what
    converts without loss will do, as in `check_types`. `as_in` is an example for the message.

    Raises:
        BadInput: with its name, what came, what is expected.
    """
    kinds, said = get_args(type_) if isinstance(type_, UnionType) else (type_,), ""
    if type(value) in kinds:  # the planner simulates often
        return
    if all(isinstance(kind, type) and kind not in (str, int, float, bool) for kind in kinds):
        if not isinstance(value, kinds):
            names = ("None" if kind is NoneType else kind.__name__ for kind in kinds)
            said = f"{name}: expected {' | '.join(names)}, came {_show(value)}"
    else:
        named, kind = {name: _of_python(value)}, dict[str, type_]
        if wrong := _problem(kind, named, strict=True):
            said = _explain(wrong, kind, named, "", strict=True)
    if said:
        raise BadInput(f"{said}; as in {as_in}" if as_in else said)


def from_mapping(type_: type[T], data: object, where: str) -> T:
    """Return `data` (builtins, as YAML gives them) as `type_`.

    Numbers may be text (``1e9``), and a field whose name ends in its unit takes what a person writes:
    ``ttft_s: 500ms``, ``memory_bytes: 80GiB``, ``rate_req_s: 90req/min``, ``prompt_tokens: 4k``.

    Raises:
        BadInput: with `where`, the path inside, what came, what is expected and the nearest field.
    """
    data = _with_units(data, where, ())
    try:
        value = msgspec.convert(data, type_, strict=False)
    except msgspec.ValidationError as error:
        raise BadInput(_explain(str(error), type_, data, where)) from None
    _refuse_non_finite(msgspec.to_builtins(value), where, ())
    return value


def from_json(type_: type[T], text: str | bytes, schema: str, where: str) -> T:
    """Return a JSON object whose field "schema" names `schema` as `type_`.

    Raises:
        BadInput: not JSON, another schema, or a field that is missing, unknown or of a wrong type.
    """
    try:
        data = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise BadInput(f"{where}: not JSON: {error}") from None
    came = data.get("schema") if isinstance(data, dict) else None
    if came != schema:
        raise BadInput(f"{where}: expected a JSON object of the schema {schema!r}, came {came!r}")
    return from_mapping(type_, data, where)


def json_text(data: object, indent: int = 2) -> str:
    """Return builtins as JSON; equal data give equal bytes, NaN and infinity are null."""
    return msgspec.json.format(msgspec.json.encode(data), indent=indent).decode()


def to_mapping(spec: msgspec.Struct, *, defaults: bool = False) -> dict[str, Any]:
    """Return a spec as builtins, leaving out fields that equal their default unless `defaults` is true."""
    data: dict[str, Any] = {}
    config = spec.__struct_config__
    if config.tag_field is not None:
        data[config.tag_field] = config.tag
    for field in _struct_fields(type(spec)):
        value = getattr(spec, field.name)
        if defaults or field.required or value != _default(field):
            data[field.encode_name] = value if type(value) in _AS_IT_IS else _plain(value, defaults)
    return data


def override(spec: S, assignments: Iterable[str], where: str = "--set") -> S:
    """Return a copy of `spec` with every ``path=value`` assignment applied, checked like any other input."""
    data = to_mapping(spec, defaults=True)
    for assignment in assignments:
        data = set_path(data, assignment)
    return from_mapping(type(spec), data, where)


def set_path(data: Mapping[str, Any], assignment: str) -> dict[str, Any]:
    """Return a copy of `data` with ``path=value`` applied; the value is read as YAML.

    A path runs through mappings by name and through lists by index, or by ``*`` for all entries. A mapping
    that is absent or null is made; `from_mapping` judges names and types afterwards.

    Raises:
        BadInput: no ``=``, a value that is not YAML, a step into a scalar, an index out of range.
    """
    path, equals, text = assignment.partition("=")
    steps = path.strip().split(".")
    if not equals or not all(steps):
        raise BadInput(f"--set {assignment!r}: write PATH=VALUE, as in pools.0.replica.tp=4")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise BadInput(f"--set {assignment!r}: the value is not YAML ({_yaml_problem(error)[1]})") from None
    changed = copy.deepcopy(dict(data))
    _assign(changed, steps, value, ())
    return changed


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML file (YAML 1.2 scalars: ``on`` and ``no`` are text, ``1e9`` is a number).

    Raises:
        BadInput: no such file (names the nearest beside it), not YAML or a key twice (file:line), no mapping.
    """
    path = Path(path)
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        beside = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        near = nearest(path.name, beside)
        raise BadInput(f"{path}: no such file{'; nearest: ' + ', '.join(near) if near else ''}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read as text: {error}") from None
    except yaml.YAMLError as error:
        line, problem = _yaml_problem(error)
        raise BadInput(f"{path}:{line}: not YAML: {problem}") from None
    if not isinstance(data, dict):
        raise BadInput(f"{path}: expected a mapping of fields, came {_show(data)}")
    return data


def write_yaml(obj: object, path: str | Path | None = None) -> str:
    """Return `obj` (a spec or builtins) as YAML text, defaults left out, and write it to `path` if given."""
    # Not allow_unicode: PyYAML then writes line separators of Unicode that it reads back as spaces.
    text: str = yaml.dump(_plain(obj, False), Dumper=_Dumper, sort_keys=False, width=100)
    if path is not None:
        try:
            Path(path).write_text(text, encoding="utf-8")
        except OSError as error:
            raise BadInput(f"{path}: cannot be written: {error.strerror}") from None
    return text


# --- YAML ---

_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where PyYAML was built with it


class _Loader(_SafeLoader):  # type: ignore[misc]
    """YAML 1.2 core scalars: 1.1 reads `no` as false, `12:30` as 750 and `1e9` as text."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                problem = f"the key {key.value!r} comes twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(str(key.value))
        return dict(super().construct_mapping(node, deep))


class _Dumper(yaml.SafeDumper):
    """Quotes what either YAML 1.1 or 1.2 would read as something else than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Lines of text as a block; PyYAML quotes what a block cannot hold."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
_SCALARS = (
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("null", r"(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+$", "-+0123456789"),
    ("float", r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$", "-+0123456789."),
    ("float", r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", "-+."),
)
for _class in (_Loader, _Dumper):
    for _tag, _pattern, _first in _SCALARS:
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))  # 010 is ten, not eight


def _yaml_problem(error: yaml.YAMLError) -> tuple[int, str]:
    mark = getattr(error, "problem_mark", None)
    text = getattr(error, "problem", None) or str(error).splitlines()[0]
    return (mark.line + 1 if mark else 1), str(text)


# --- paths ---


def _assign(node: Any, steps: list[str], value: Any, done: tuple[str, ...]) -> None:
    here = ".".join(done) or "the top"
    step, rest = steps[0], steps[1:]
    if isinstance(node, list):
        if step != "*" and not (step.isdigit() and int(step) < len(node)):
            raise BadInput(f"--set: {here}: allowed is 0 to {len(node) - 1}, or * for all; came {step!r}")
        for index in range(len(node)) if step == "*" else [int(step)]:
            _assign_at(node, index, rest, value, (*done, str(index)))
    elif isinstance(node, dict):
        _assign_at(node, step, rest, value, (*done, step))
    else:
        raise BadInput(f"--set: {here} is {_show(node)}, it has no field {step!r}")


def _assign_at(node: Any, key: Any, rest: list[str], value: Any, done: tuple[str, ...]) -> None:
    if not rest:
        node[key] = value
        return
    if isinstance(node, dict) and node.get(key) is None:
        node[key] = {}
    _assign(node[key], rest, value, done)


# --- types of what Python gives ---


@functools.cache
def _twin(type_: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """A struct of the same fields without checks of its own, which msgspec fills from a tuple."""
    fields = [(field.name, field.type) for field in _struct_fields(type_)]
    return msgspec.defstruct(type_.__name__, fields, array_like=True)


def _of_python(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (list, tuple, range)):
        return [_of_python(item) for item in value]
    if isinstance(value, dict):
        return {key: _of_python(item) for key, item in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value  # scalars and arrays of NumPy


def _taken(values: tuple[Any, ...], type_: type[msgspec.Struct], where: str) -> msgspec.Struct:
    try:
        return msgspec.convert(values, _twin(type_))
    except msgspec.ValidationError:
        # Field by field, so that the message has the name.
        for field, value in zip(_struct_fields(type_), values, strict=True):
            named, kind = {field.name: value}, dict[str, field.type]  # type: ignore[name-defined]
            try:
                msgspec.convert(named, kind)
            except msgspec.ValidationError as error:
                raise BadInput(_explain(str(error), kind, named, where, strict=True)) from None
        raise


# --- checks and messages ---

_UNITS = (("_req_s", parse_rate), ("_s", parse_seconds), ("_bytes", parse_bytes), ("_tokens", parse_count))


def _with_units(data: Any, where: str, path: tuple[Any, ...]) -> Any:
    """A copy of the data with quantities in the unit their field's name ends in."""
    if isinstance(data, Mapping):
        return {key: _with_units(value, where, (*path, key)) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_with_units(value, where, (*path, index)) for index, value in enumerate(data)]
    name = str(path[-1]) if path else ""
    if isinstance(data, str) and data[:1].isdigit() and not name.endswith("_per_s"):
        for suffix, parse in _UNITS:
            if name.endswith(suffix):
                try:
                    return parse(data)
                except BadInput as error:
                    raise BadInput(f"{where}: {_dotted(path)}: {error}") from None
    return data


def _refuse_non_finite(data: Any, where: str, path: tuple[Any, ...]) -> None:
    if isinstance(data, float) and not math.isfinite(data):
        raise BadInput(f"{where}: {_dotted(path)}: expected a finite number, came {data}")
    if isinstance(data, (list, tuple)):
        data = dict(enumerate(data))
    for key, value in data.items() if isinstance(data, dict) else ():
        _refuse_non_finite(value, where, (*path, key))


@functools.cache
def _struct_fields(type_: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    """The fields of a struct; asking msgspec each time was 2 ms of every simulation that writes its deployment."""
    return msgspec.structs.fields(type_)


def _default(field: msgspec.structs.FieldInfo) -> Any:
    return field.default if field.default is not msgspec.NODEFAULT else field.default_factory()


_AS_IT_IS = frozenset((str, int, float, bool, NoneType))


def _plain(value: Any, defaults: bool) -> Any:
    if type(value) in _AS_IT_IS:
        return value
    if isinstance(value, msgspec.Struct):
        return to_mapping(value, defaults=defaults)
    if isinstance(value, Mapping):
        return {key: _plain(item, defaults) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [item if type(item) in _AS_IT_IS else _plain(item, defaults) for item in value]
    return msgspec.to_builtins(value)


_UNSEEN = object()  # the place a message of msgspec names inside a mapping may be `[...]`: any of its values


def _explain(message: str, type_: Any, data: Any, where: str, strict: bool = False) -> str:
    text, _, at = message.partition(" - at ")
    steps = [key or index for key, index in re.findall(r"\.([^.\[\]`]+)|\[([^\]]+)\]", at)]
    steps = _named(steps, data, lambda: _problem(type_, data, strict) == message)
    came, info, above = data, msgspec.inspect.type_info(type_), None
    for step in steps:
        above = info
        came, info = _into(came, info, step)
    place = ": ".join(part for part in (where, _dotted(tuple(steps))) if part)
    unknown = re.search(r"unknown field `(.*)`", text)
    if unknown:
        return f"{place}: {UnknownName('field', unknown[1], _fields(info, came))}"
    tags = _tags(above, steps[-1]) if steps else []
    if tags:
        return f"{place}: {UnknownName(steps[-1], came, tags)}"
    missing = re.search(r"missing required field `(.*)`", text)
    if missing and _tags(info, missing[1]):
        return f"{place}: the field {missing[1]!r} is missing; allowed: {', '.join(_tags(info, missing[1]))}"
    if missing:
        return f"{place}: the field {missing[1]!r} is missing; fields: {', '.join(_fields(info, came))}"
    allowed = [value for kind in _kinds(info) if isinstance(kind, msgspec.inspect.LiteralType) for value in kind.values]
    if text.startswith("Invalid enum value") and allowed:
        return f"{place}: {UnknownName('value', came, map(str, allowed))}"
    expected = re.match(r"Expected (.*?)(?:, got `.*`)?$", text)
    if expected:
        text = f"expected {expected[1].replace('`', '')}"
        text = _in_python(text, info) if strict else text
    if expected and expected[1].startswith("`str") and isinstance(came, (bool, int, float)) and steps:
        quoted = f"""{steps[-1]}='"{came}"'""" if where.startswith("--set") else f'{steps[-1]}: "{came}"'
        quoted = f'"{came}"' if strict else quoted
        return f"{place}: {text}, came {_show(came)}; quote it to give text: {quoted}"
    said = expected is None and isinstance(came, (dict, list))  # a constructor's own words about its fields
    return f"{place}: {text}" if said or came is _UNSEEN else f"{place}: {text}, came {_show(came)}"


def _in_python(text: str, info: Any) -> str:
    """What is expected in the words of Python, for JSON's."""
    kinds = _kinds(info)
    specs = [kind.cls.__name__ for kind in kinds if isinstance(kind, msgspec.inspect.StructType)]
    entries = [f" of {kind.item_type.cls.__name__}" for kind in kinds if hasattr(getattr(kind, "item_type", 0), "cls")]
    words = {"object": " | ".join(specs) or "dict", "array": "".join(["list", *entries[:1]]), "null": "None"}
    return re.sub(r"\b(object|array|null)\b", lambda found: words[found[0]], text)


def _problem(type_: Any, data: Any, strict: bool) -> str:
    try:
        msgspec.convert(data, type_, strict=strict)
    except msgspec.ValidationError as error:
        return str(error)
    return ""


def _named(steps: list[str], data: Any, still: Callable[[], bool]) -> list[str]:
    """The steps with the keys for which msgspec writes "...": the problem is there `still` without all others."""
    found: list[str] = []
    for step in steps:
        if step == "..." and isinstance(data, dict):
            whole = dict(data)
            for key, value in whole.items():
                data.clear()
                data[key] = value
                if still():
                    step = str(key)
                    break
            data.clear()
            data.update(whole)
        found.append(step)
        data = _into(data, None, step)[0]
    return found


def _into(came: Any, info: Any, step: str) -> tuple[Any, Any]:
    """One step down, in the data and in the type together."""
    below = None
    for kind in _kinds(info):
        if isinstance(kind, msgspec.inspect.StructType):
            below = next((f.type for f in kind.fields if f.encode_name == step), below)
        elif isinstance(kind, msgspec.inspect.DictType):
            below = kind.value_type
        elif isinstance(kind, msgspec.inspect.TupleType) and step.isdigit():
            below = kind.item_types[int(step)]
        elif hasattr(kind, "item_type"):
            below = kind.item_type
    if isinstance(came, dict):
        return came.get(step, _UNSEEN), below
    return (came[int(step)] if isinstance(came, list) and step.isdigit() else _UNSEEN), below


def _kinds(info: Any) -> tuple[Any, ...]:
    return tuple(info.types) if isinstance(info, msgspec.inspect.UnionType) else (info,)


def _tags(info: Any, field: str) -> list[str]:
    """The values that tell a union's structs apart, when `field` is where they are told apart."""
    structs = [kind for kind in _kinds(info) if isinstance(kind, msgspec.inspect.StructType)]
    return [str(struct.tag) for struct in structs if struct.tag_field == field]


def _fields(info: Any, came: Any) -> list[str]:
    structs = [kind for kind in _kinds(info) if isinstance(kind, msgspec.inspect.StructType)]
    if isinstance(came, dict):
        structs = [s for s in structs if s.tag_field is None or came.get(s.tag_field) == s.tag] or structs
    return list(dict.fromkeys(field.encode_name for struct in structs for field in struct.fields))


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


def _show(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, (dict, list)):
        return f"{'a mapping' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text):,} characters)"
