"""The core is compiled or interpreted as a whole: a mixture would hide which of the two was tested."""

import importlib
import re
import sysconfig
from pathlib import Path
from shutil import which

import headway

HERE = Path(headway.__file__).parent
CORE = sorted(
    ".".join(("headway", *path.relative_to(HERE).with_suffix("").parts))
    for path in HERE.rglob("*.pxd")
    if path.with_suffix(".py").exists()
)


def test_modules_said_to_be_interpreted_are_those_python_runs():
    assert CORE, "the core's .pxd files are not where the package was imported from"
    plain = [name for name in CORE if str(importlib.import_module(name).__file__).endswith(".py")]
    assert headway.interpreted_modules() == plain


def test_source_runs_interpreted_and_an_install_with_a_compiler_runs_compiled():
    if (HERE.parents[1] / "pyproject.toml").exists():
        assert headway.interpreted_modules() == CORE
    elif which((sysconfig.get_config_var("CC") or "cc").split()[0]):
        assert headway.interpreted_modules() == []
    else:
        assert headway.interpreted_modules() in ([], CORE)


def test_the_decisions_way_is_compiled_where_the_core_is():
    """What is compiled as it stands is named in setup.py alone; nothing of it has C types of its own."""
    setup = (Path(__file__).parents[2] / "setup.py").read_text()
    names = re.findall(r'"(\w+)"', setup[setup.index("DECISION =") : setup.index("TYPED =")])
    modules = [importlib.import_module(f"headway.gateway.{name}") for name in names]
    assert len(modules) >= 7
    compiled = {str(module.__file__).endswith((".so", ".pyd")) for module in modules}
    assert compiled == {not headway.interpreted_modules()}
    assert not [name for name in names if (HERE / "gateway" / f"{name}.pxd").exists()]
