"""The core is compiled or interpreted as a whole: a mixture would hide which of the two was tested."""

import importlib
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
