"""Compiles the core where a C compiler is found; without one the same files run as they are.

The wheel is built in either case, and one line says so when it holds no compiled module.
"""

import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError

SRC = Path("src")
# The way from question to decision, compiled as it stands: no variable has a C type and every index is checked, so
# that what strangers send meets what it meets in Python.
DECISION = [SRC / "headway/gateway" / f"{name}.py" for name in (
    "books", "brain", "channel", "decider", "lines", "predict", "reading"
)]  # fmt: skip
# More optimizing takes the compiler longer, for the contract alone twice as long, and gains nothing.
LIGHTLY = {*DECISION, SRC / "headway/policies/contract.py"}
TYPED = {
    "language_level": "3",
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
}
UNTYPED = {"language_level": "3", "annotation_typing": False, "infer_types": False}
# Cython's own code, that of memoryviews above all, once instead of in every module: `build_ext` takes 85 s, not 137.
SHARED = "headway._cython"
# Compiled and interpreted must agree to the bit: no -ffast-math, no fused multiply-add, no -march=native.
C_FLAGS = ["-ffp-contract=off", "-g0"]


def core_modules() -> list[Path]:
    """Every .py of the package with a .pxd of the same name beside it."""
    return sorted(path.with_suffix(".py") for path in SRC.glob("headway/**/*.pxd"))


def extension(path: Path) -> Extension:
    name = ".".join(path.relative_to(SRC).with_suffix("").parts)
    return Extension(name, [str(path)], depends=["setup.py"])


class BuildCore(build_ext):
    """Compiles when a trial against Python.h works; optional as a whole, not module by module."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or 2

    def run(self) -> None:
        self.drop_leftovers()
        super().run()

    def build_extensions(self) -> None:
        if not self.compiler_works():
            self.leave_uncompiled("no working C compiler")
            return
        from Cython.Build import cythonize

        untyped, lightly = {str(path) for path in DECISION}, {str(path) for path in LIGHTLY}
        for directives in (TYPED, UNTYPED):
            mine = [each for each in self.extensions if (each.sources[0] in untyped) == (directives is UNTYPED)]
            translated = cythonize(
                mine, build_dir="build/cython", include_path=[str(SRC)], compiler_directives=directives,
                shared_utility_qualified_name=SHARED,
                nthreads=self.parallel if sys.platform == "linux" else 0,  # elsewhere they would run this file anew
            )  # fmt: skip
            for extension, made in zip(mine, translated, strict=True):
                level = "-O1" if extension.sources[0] in lightly else "-O3"
                extension.sources = made.sources
                if self.compiler.compiler_type == "unix":
                    extension.extra_compile_args = [level, *C_FLAGS]
        try:
            super().build_extensions()
        except CCompilerError as error:
            self.leave_uncompiled(f"compiling failed ({error})")

    def leave_uncompiled(self, why: str) -> None:
        """All or none: a compiled module reads C structs of its neighbours, so a mixture does not load."""
        for extension in self.extensions:
            Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
        self.extensions = []
        print(f"headway: {why}; the core will run interpreted (same results, slower)")

    def compiler_works(self) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            trial = Path(folder, "trial.c")
            trial.write_text("#include <Python.h>\nint main(void) { return 0; }\n")
            try:
                self.compiler.compile([str(trial)], output_dir=folder, include_dirs=self.include_dirs)
            except Exception:  # whatever a missing or broken compiler raises on this platform
                return False
        return True

    def drop_leftovers(self) -> None:
        """Keep out of the wheel what the source no longer has and an earlier build left in its folder."""
        names = {extension._file_name for extension in self.extensions}
        for path in Path(self.build_lib).rglob("*"):
            relative = path.relative_to(self.build_lib)
            if path.is_file() and not (SRC / relative).exists() and str(relative) not in names:
                path.unlink()


extensions = [Extension(SHARED, ["_cython.c"]), *map(extension, (*core_modules(), *DECISION))]
setup(ext_modules=extensions, cmdclass={"build_ext": BuildCore})
