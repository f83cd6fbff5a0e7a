"""Energy of a step from its time, bytes and FLOPs; estimated, never measured."""

from __future__ import annotations

import numpy as np

from headway.cost.efficiency import PowerLaw
from headway.cost.physics import Cost, Floats
from headway.hardware import Gpu

__all__ = ["dynamic_joules"]


def dynamic_joules(law: PowerLaw, card: Gpu, cost: Cost, gpus: int) -> Floats:
    """Return the joules above idle that `gpus` GPUs spend on an operator, each as long as `cost` says.

    Power above idle is a share for running at all, one by bytes and one by FLOPs, of what lies between idle
    and TDP; no operator draws more than TDP.
    """
    busy_s = law.resident * cost.seconds + law.memory * cost.byte_s + law.compute * cost.flop_s
    return np.asarray(np.minimum(busy_s, cost.seconds) * ((card.tdp_watts - card.idle_watts) * gpus))
