"""How a replica may be cut: the layouts that the question, the model, the GPU and the engine leave."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

from headway.cost import Replica
from headway.cost.engines import cut_blocks, spreads
from headway.cost.handover import Side, withheld
from headway.cost.replica import drafting_model, tp_degrees
from headway.errors import BadInput
from headway.hardware import Gpu
from headway.model import Model
from headway.plan.question import Question
from headway.units import counted

__all__ = ["Shape", "shape_of", "shapes_of"]

_STAGES = (1, 2, 4)
_NODES = 4  # a replica of data-parallel ranks spans so many at most, unless the question names degrees
_STARTS = {"vllm": "ep 1 or tp * dp", "trtllm": "dp 1, or tp 1 with ranks"}  # what `spreads` allows, in words

Rule = tuple[Callable[["Shape"], bool], str]


class Shape(NamedTuple):
    """How a replica spreads over GPUs."""

    tp: int
    pp: int = 1
    dp: int = 1
    ep: int = 1
    apart: bool = False

    @property
    def gpus(self) -> int:
        """GPUs of one replica."""
        return self.tp * self.pp * self.dp

    def __str__(self) -> str:
        degrees = (("pp", self.pp), ("dp", self.dp), ("ep", self.ep))
        cut = "".join(f"{name}{degree}" for name, degree in degrees if degree > 1)
        return f"tp{self.tp}{cut}{'apart' if self.apart else ''}"


def shape_of(replica: Replica) -> Shape:
    """Return how a replica is cut."""
    return Shape(replica.tp, replica.pp, replica.dp, replica.ep, replica.apart)


def shapes_of(question: Question, engine: str, most: int, spec: Model, card: Gpu) -> list[Shape]:
    """Return the layouts of replicas on up to `most` GPUs; those that need no ranks or groups of experts first.

    TP: powers of two within one node, unless the question names degrees; no more stages than layers. With speculation
    neither stages nor ranks, and the TP degrees that cut the draft too. A model with experts may be served by ranks
    (DP) that attend their own sequences, powers of two of them, and its experts are each cut over all their GPUs or
    divided among these (EP). With one rank dividing them shortens no step by more than 4 % (eight models on four GPUs),
    and is tried where the question names it, or the engine does not load them cut.

    Raises:
        BadInput: what the question names leaves none; the message has the two that contradict each other.
    """
    shapes = _all(question, engine, most, spec, card)
    for keeps, against in _rules(question, engine, spec):
        left = [shape for shape in shapes if keeps(shape)]
        if not left:
            raise BadInput(against)
        shapes = left
    sides = [Side(card, shape.tp, shape.pp, 1) for shape in shapes]
    if "mixed" not in question.layouts and all(reasons := [withheld(engine, spec, side, side) for side in sides]):
        against = _named(pp=list(question.pp or ())) or f"gpu {card.key}"
        raise BadInput(
            f"layouts split against engine {engine} and {against}: {reasons[0]}; allow layouts mixed, or name another "
            "of these"
        )
    fitting = [shape for shape in shapes if shape.gpus <= most]
    if not fitting:
        named = (("tp", question.tp), ("pp", question.pp), ("dp", question.dp), ("ep", question.ep))
        asked = [f"{name} {list(of)}" for name, of in named if of]
        raise BadInput(
            f"gpus {most} of {card.key} against {' and '.join(asked)}: the smallest replica asked for takes "
            f"{counted(min(shape.gpus for shape in shapes), 'GPU')}; raise the one or lower the other"
        )
    return fitting


def _all(question: Question, engine: str, most: int, spec: Model, card: Gpu) -> list[Shape]:
    speculation = question.engine.speculation
    draft = None if speculation is None else drafting_model(speculation)
    allowed = [tp for tp in tp_degrees(spec, card) if draft is None or tp in tp_degrees(draft, card)]
    degrees = question.tp or [tp for tp in allowed if tp & (tp - 1) == 0]
    degrees = [tp for tp in degrees if question.max_tp is None or tp <= question.max_tp]
    stages = question.pp or (_STAGES if speculation is None else (1,))
    ranks = question.dp or (1,)
    if question.dp is None and spec.experts and speculation is None:
        widest = min(most, _NODES * card.gpus_per_node)
        ranks = tuple(1 << i for i in range(widest.bit_length()) if 1 << i <= widest)

    def groups(tp: int, dp: int) -> tuple[int, ...]:
        divided = dp > 1 or cut_blocks(engine, spec, tp, dp, 1)
        return (1, tp * dp) if divided and 1 < tp * dp <= spec.experts else (1,)

    shapes = [
        Shape(tp, pp, dp, ep)
        for dp, tp, pp in product(ranks, degrees, stages)
        for ep in question.ep or groups(tp, dp)
    ]
    return sorted(shapes, key=lambda shape: (shape.dp > 1, shape.ep > 1))


def _rules(question: Question, engine: str, spec: Model) -> list[Rule]:
    """What a layout must keep, and what to say where none does: one constraint after the other."""
    tp, pp, dp, ep = ([] if of is None else list(of) for of in (question.tp, question.pp, question.dp, question.ep))
    dense = f"model {spec.key}, which has no experts"
    split = "a number of groups divides the tp * dp GPUs of a stage"
    return [
        (lambda s: s.pp <= spec.layers,
         f"pp {pp} against the {spec.layers} layers of {spec.key}: a stage needs at least one"),
        (lambda s: s.dp == 1 or spec.experts > 0,
         f"dp {dp} against {dense} for ranks to share: replicas are the same thing there; leave dp out"),
        (lambda s: s.ep == 1 or spec.experts > 0, f"ep {ep} against {dense} to divide; leave ep out"),
        (lambda s: s.dp == 1 or question.engine.speculation is None,
         f"dp {dp} against engine.speculation: it is not modelled where ranks step together; leave one out"),
        (lambda s: s.dp == 1 or s.pp == 1,
         f"dp {dp} against pp {pp}: ranks that step together are not modelled in stages; allow 1 of one of them"),
        (lambda s: s.ep <= max(1, spec.experts), f"ep {ep} against the {spec.experts} experts of {spec.key}"),
        (lambda s: s.tp * s.dp % s.ep == 0,
         f"ep {ep} against {_named(tp=tp, dp=dp) or 'the TP degrees and ranks there are'}: {split}"),
        (lambda s: spreads(engine, s.tp, s.dp, s.ep),
         f"{_named(tp=tp, dp=dp, ep=ep)} against engine {engine}, which starts no such replica: "
         f"{_STARTS.get(engine, 'dp 1 and ep 1')} with it, any with sglang"),
        (lambda s: not cut_blocks(engine, spec, s.tp, s.dp, s.ep),
         f"{_named(tp=tp, dp=dp, ep=ep) or 'the degrees there are'} against engine {engine}, which does not load "
         f"{spec.key} cut within blocks of fp8 weights: divide the experts (ep), or cut them less"),
    ]  # fmt: skip


def _named(**degrees: list[int]) -> str:
    return " and ".join(f"{name} {of}" for name, of in degrees.items() if of)
