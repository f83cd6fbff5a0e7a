"""The state of a brain as bytes, so that a log whose beginning is gone can still be decided again.

Pickle, because a state is whatever policies and books keep. What belongs to the deployment (specs, step tables) is
named instead of kept, so that no key is in a log; and only classes of the gateway, of the policies in use and plain
containers are read back, so that a log from elsewhere runs no code of its own.
"""

from __future__ import annotations

import io
import pickle
from inspect import isroutine
from typing import Any

import msgspec

from headway.cost import StepTable
from headway.errors import BadInput
from headway.gateway.brain import Brain
from headway.specs import Spec

ROOMS = ("headway.gateway.", "headway.state.", "headway.policies.", "headway.cost.")
CONTAINERS = {
    ("collections", "Counter"), ("collections", "OrderedDict"), ("collections", "defaultdict"),
    ("collections", "deque"), ("random", "Random"), ("builtins", "set"), ("builtins", "frozenset"),
    ("builtins", "bytearray"), ("builtins", "complex"), ("numpy", "ndarray"), ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar"),
}  # fmt: skip
ELSEWHERE = ("figures", "shadow")  # of a brain; what they hold decides nothing, nor do functions that a host has put in


def kept(brain: Brain) -> bytes:
    """Return what decides of a brain, between two events.

    Raises:
        pickle.PicklingError, TypeError, AttributeError: a part of it, as a policy's, cannot be kept.
    """
    file = io.BytesIO()
    parts = {name: value for name, value in vars(brain).items() if name not in ELSEWHERE and not isroutine(value)}
    _Writer(file, brain).dump(parts)
    return file.getvalue()


def restore(brain: Brain, state: bytes) -> None:
    """Put a kept state into a brain of the same deployment.

    Raises:
        BadInput: the bytes are no such state.
    """
    try:
        found = _Reader(io.BytesIO(state), brain).load()
    except (pickle.PickleError, EOFError, AttributeError, ImportError, LookupError, TypeError, ValueError) as error:
        said = f"the state in the log cannot be read: {error}; replay it with the version of Headway that wrote it"
        raise BadInput(said) from None
    vars(brain).update(found)


def made(struct: type[msgspec.Struct], fields: dict[str, Any]) -> msgspec.Struct:
    """Make a struct of its fields: how a kept one comes back."""
    return struct(**fields)


def _named(brain: Brain) -> dict[str, Any]:
    """The parts of a brain that are made from the deployment, by name."""
    found: dict[str, Any] = {"figures": brain.figures}

    def add(name: str, value: Any) -> None:
        if isinstance(value, Spec):
            found.setdefault(name, value)
            for field in value.__struct_fields__:
                add(f"{name}.{field}", getattr(value, field))
        elif isinstance(value, tuple | list):
            for i, one in enumerate(value):
                add(f"{name}.{i}", one)

    add("spec", brain.spec)
    add("tenant", [account.tenant for account in brain.accounts])
    return found | {f"table.{book.index}": book.pace.table for book in brain.books if book.pace.table is not None}


class _Writer(pickle.Pickler):
    def __init__(self, file: io.BytesIO, brain: Brain) -> None:
        super().__init__(file, protocol=5)
        self.names = {id(value): name for name, value in reversed(_named(brain).items())}

    def persistent_id(self, value: Any) -> str | None:
        """Name what belongs to the deployment."""
        if id(value) in self.names:
            return self.names[id(value)]
        if isinstance(value, Spec | StepTable):
            raise pickle.PicklingError(f"{type(value).__name__} is not of the deployment")
        return None

    def reducer_override(self, value: Any) -> Any:
        """Keep a struct by its fields' names."""
        if isinstance(value, msgspec.Struct):
            return made, (type(value), msgspec.structs.asdict(value))
        return NotImplemented


class _Reader(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, brain: Brain) -> None:
        super().__init__(file)
        self.parts = _named(brain)
        self.modules = {type(policy).__module__ for policy in brain.fence.policies.values()}

    def persistent_load(self, name: Any) -> Any:
        """Find what belongs to the deployment."""
        if name not in self.parts:
            raise pickle.UnpicklingError(f"the deployment has no {str(name)[:80]}")
        return self.parts[name]

    def find_class(self, module: str, name: str) -> Any:
        """Find a class of those that a state is made of."""
        ours = module.startswith(ROOMS) or module in self.modules
        if (module, name) in CONTAINERS or (ours and "." not in name):
            found = super().find_class(module, name)
            if (
                isinstance(found, type)
                or found is made
                or name.startswith("__pyx_unpickle_")
                or (module, name) in CONTAINERS
            ):
                return found
        raise pickle.UnpicklingError(f"{module}.{name} is nothing that a state holds")
