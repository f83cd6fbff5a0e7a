"""What an emulator is told beside the deployment."""

from __future__ import annotations

import msgspec

from headway.emulate.faults import Fault
from headway.emulate.http import Limits
from headway.errors import BadInput
from headway.specs import Spec
from headway.workload import workload
from headway.workload.lengths import Binned, Length


def _chat_lengths() -> Length | Binned:
    output = workload("chat").spec.output
    assert output is not None
    return output


class Settings(Spec, frozen=True, kw_only=True):
    """Where to listen and how to answer.

    `names`: what the model is called, the first in answers; by default as in the deployment. `output`: how long answers
    are whose request does not say.

    Raises:
        BadInput: a port that is none.
    """

    host: str = "127.0.0.1"
    port: int = 8100
    names: tuple[str, ...] = ()
    output: Length | Binned = msgspec.field(default_factory=_chat_lengths)
    seed: int = 0
    faults: tuple[Fault, ...] = ()
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        """Check the port."""
        if not 0 <= self.port <= 65_535:
            raise BadInput(f"port {self.port}: expected 1 to 65535, or 0 for any that is free")
