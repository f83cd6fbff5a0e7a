"""The architecture as a test: which room may import which, and how large things may grow."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "headway"
BOTTOM = {"errors", "units", "specs"}
FACTS = {"hardware", "model", "workload", "state"}
SIM = FACTS | {"cost", "policies", "metrics", "engine"}
MAY_IMPORT = {  # of the rooms; everyone may import the bottom, a room its own files
    "errors": set(),
    "units": set(),
    "specs": set(),
    "hardware": set(),
    "model": set(),
    "workload": set(),
    "state": set(),
    "cost": {"hardware", "model"},
    "policies": {"state"},
    "metrics": {"workload"},
    "engine": {"cost", "policies", "state", "workload"},
    "sim": SIM,
    "gateway": FACTS | {"cost", "policies", "metrics"},
    "profile": {"cost", "hardware"},
    "emulate": {"hardware", "model", "workload", "state", "cost", "metrics", "engine"},
    "bench": {"workload", "metrics"},
    "plan": SIM | {"sim"},
    "accuracy": SIM | {"sim"},
    "export": SIM | {"sim", "gateway"},
    "report": {"metrics", "plan", "sim", "accuracy"},
    # "" is the root: what runs interpreted
    "cli": SIM | {"profile", "sim", "gateway", "emulate", "bench", "plan", "accuracy", "export", "report", ""},
}
HEAVY = {"scipy", "pyarrow", "altair", "rich", "jinja2", "vl_convert"}
FUNCTION_LINES, FILE_LINES, CONSTRUCTOR_PARAMETERS, PUBLIC_NAMES, DOCSTRING_LINES = 60, 500, 8, 12, 5

SOURCES = sorted(PACKAGE.rglob("*.py"))
DECLARATIONS = sorted(PACKAGE.rglob("*.pxd"))
FOLDERS = ("src", "tests", "benchmarks", "examples")
WRITTEN = sorted([ROOT / "setup.py", *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))])
ROOMS = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py").removesuffix(".pxd")


def imported(path: Path) -> set[str]:
    """Modules of Headway imported anywhere in a file, as dotted names below `headway` ("" is the root)."""
    text = path.read_text(encoding="utf-8")
    names = cimported(text) if path.suffix == ".pxd" else set(python_imports(ast.parse(text)))
    package = ("headway", *path.relative_to(PACKAGE).parent.parts)
    full = set()
    for name in names:
        level = len(name) - len(name.lstrip("."))
        base = ".".join(package[: len(package) - level + 1]) + "." if level else ""
        full.add((base + name[level:]).removeprefix("cython.cimports.").rstrip("."))
    return {name.removeprefix("headway").lstrip(".") for name in full if re.match(r"headway(\.|$)", name)}


def python_imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            in_package = base in ("headway", "cython.cimports.headway") or not base.strip(".")
            joint = "" if base.endswith(".") else "."
            yield from (f"{base}{joint}{alias.name}" for alias in node.names) if in_package else (base,)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant) and arg.value)


def cimported(text: str) -> set[str]:
    plain = re.findall(r"^\s*(?:cimport|import)\s+([\w.]+)", text, re.M)
    return {*plain, *re.findall(r"^\s*from\s+([\w.]+)\s+c?import\b", text, re.M)}


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def exported(path: Path) -> list[str]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


@pytest.mark.parametrize("path", [*SOURCES, *DECLARATIONS], ids=short)
def test_a_room_imports_only_what_lies_below_it(path):
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return  # the root only names where its rooms are
    assert room in MAY_IMPORT, f"{room} is not in the table of rooms"
    allowed = MAY_IMPORT[room] | BOTTOM | {room}
    if room in BOTTOM:
        allowed = {"errors": set(), "units": {"errors"}, "specs": {"errors", "units"}}[room]
    found = imported(path)
    assert {name.partition(".")[0] for name in found} <= allowed, f"{short(path)} imports {sorted(found)}"


def test_the_table_keeps_the_three_runtimes_apart_and_points_downwards():
    above: set[str] = set()
    for room in reversed(MAY_IMPORT):
        assert not MAY_IMPORT[room] & (above | {room}), f"{room} imports upwards"
        above.add(room)
    for room in ("sim", "gateway", "emulate", "bench"):
        assert not MAY_IMPORT[room] & {"sim", "gateway", "emulate", "bench"}
    assert MAY_IMPORT["policies"] == {"state"}


@pytest.mark.parametrize(
    ("suffix", "text", "expected"),
    [
        (".py", "def f():\n    from headway.cost import x\n", {"cost"}),
        (".py", "if TYPE_CHECKING:\n    import headway.sim.clock\n", {"sim.clock"}),
        (".py", "from headway import plan, sim\n", {"plan", "sim"}),
        (".py", "import headway\n", {""}),
        (".py", "from ..cost.table import x\n", {"cost.table"}),
        (".py", "from .. import cost\n", {"cost"}),
        (".py", "from . import table\n", {"state.table"}),
        (".py", "from cython.cimports.headway.engine.lane import Lane\n", {"engine.lane"}),
        (".py", "importlib.import_module('headway.engine')\n", {"engine"}),
        (".py", "import numpy, headwayer\n", set()),
        (
            ".pxd",
            "from headway.engine.lane cimport Lane\ncimport headway.sim\nfrom libc.math cimport sqrt\n",
            {"engine.lane", "sim"},
        ),
    ],
)
def test_every_form_of_import_is_seen(tmp_path, monkeypatch, suffix, text, expected):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / f"views{suffix}").write_text(text)
    assert imported(tmp_path / "state" / f"views{suffix}") == expected


@pytest.mark.parametrize("path", WRITTEN, ids=short)
def test_files_functions_and_constructors_stay_small(path):
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= FILE_LINES, f"{lines} lines"
    for function in functions(path):
        length = (function.end_lineno or 0) - function.lineno + 1
        assert length <= FUNCTION_LINES, f"{function.name}, line {function.lineno}: {length} lines"
        if function.name in ("__init__", "__cinit__"):
            parameters = len(function.args.posonlyargs + function.args.args + function.args.kwonlyargs) - 1
            assert parameters <= CONSTRUCTOR_PARAMETERS, f"line {function.lineno}: {parameters} parameters"


@pytest.mark.parametrize("room", ROOMS, ids=short)
def test_a_room_says_what_it_is_and_exports_little(room):
    tree = ast.parse((room / "__init__.py").read_text(encoding="utf-8"))
    said = [line for line in (ast.get_docstring(tree) or "").splitlines() if line.strip()]
    assert DOCSTRING_LINES - 1 <= len(said) <= DOCSTRING_LINES
    text = " ".join(said).lower()
    assert "may import" in text, "say what the room may import"
    assert "start" in text, "say where to start reading"
    names = exported(room / "__init__.py")
    assert 1 <= len(names) <= PUBLIC_NAMES
    assert len(set(names)) == len(names)


def test_there_is_no_drawer_for_everything():
    names = {part.removesuffix(".py") for path in SOURCES for part in path.relative_to(PACKAGE).parts}
    assert not names & {"util", "utils", "helpers", "common", "misc"}


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_every_room_loads_nothing_heavy():
    rooms = ", ".join(f"headway.{room.name}" for room in ROOMS)
    assert not loaded_after(f"import {rooms}") & HEAVY


def test_importing_headway_alone_loads_no_room_and_no_numpy():
    loaded = loaded_after("import headway")
    assert not loaded & {"numpy", "msgspec", "yaml", "click", *HEAVY}
    assert not [name for name in loaded if name.startswith("headway.")]


@pytest.mark.parametrize("path", [path for path in SOURCES if room_of(path) != "cli"], ids=short)
def test_only_the_command_line_prints_exits_or_reads_the_environment(path):
    spoken = {"print", "input", "exit", "sys.exit", "os._exit", "os.environ", "os.getenv", "sys.argv"}
    spoken |= {"sys.stdout", "sys.stderr", "sys.stdin"}
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    used = {ast.unparse(node) for node in nodes if isinstance(node, (ast.Name, ast.Attribute))}
    assert not used & spoken


def test_every_public_name_of_the_root_is_there():
    import headway

    assert len(headway.__all__) <= PUBLIC_NAMES
    for name in headway.__all__:
        assert getattr(headway, name).__module__.partition(".")[0] == "headway"
        assert name in dir(headway)
    with pytest.raises(AttributeError, match="no attribute 'simulat'"):
        _ = headway.simulat


def test_the_extra_all_names_each_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (everything,) = extras.pop("all")
    named = re.fullmatch(r"headway\[(.*)\]", everything)
    assert named is not None
    assert sorted(named[1].split(",")) == sorted(extras)


# A figure's public source may be cited; where and by what process the work was done may not.
FORBIDDEN = (
    r"/work/(?!flow)",
    r"\bshared/(?:design|hooks)",
    r"(?i)\bissues? #?\d+\b",
    r"(?i)\bworkplace\b",
    r"INTERFACES\.md",
    r"(?i)\b(?:index-url|find-links|PIP_[A-Z]+)\b",
    r"https?://(?!localhost\b)[\w-]+(?:[:/]|$)",
    r"(?:^|\W)(?:10|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.\d+\.\d+\.\d+",
    r"(?i)\bco-authored-by\b",
    r"\b(?:TODO|FIXME|XXX)\b",
)
TEXT = {".py", ".pxd", ".md", ".yaml", ".yml", ".toml", ".txt", ".json", ".html", ".j2", ".css", ".js", ""}
ELSEWHERE = {".git", ".venv", "build", "dist"}


def repository_texts() -> list[Path]:
    found = []
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        made = any(
            part in ELSEWHERE or part.endswith(("_cache", ".egg-info", "__pycache__")) for part in parts
        )
        if path.is_file() and path.suffix in TEXT and not made and parts[0] != ".hypothesis":
            found.append(path)
    return [path for path in found if path != Path(__file__).resolve()]


def test_no_text_speaks_of_how_and_where_the_work_was_done():
    texts = [(path, path.read_text(encoding="utf-8")) for path in repository_texts()]
    hits = [
        f"{short(path)}:{number}: {line.strip()[:100]}"
        for path, text in texts
        for pattern in FORBIDDEN
        if re.search(pattern, text, re.MULTILINE)  # which lines it is only matters where there is one
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not hits, "\n".join(hits)
