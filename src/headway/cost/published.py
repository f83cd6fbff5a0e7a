"""What published measurements of a model on a GPU tell of its steps there: calibrations that come with the package.

`--calibration published` takes them in. Each is what `headway calibrate` would fit to the rows of one model, GPU,
engine release and precisions, around the shipped law, and for layouts with rows enough around that
(`data/published.yaml`, written by `fit/published.py`). Where nothing was measured the shipped law stays.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from math import exp
from typing import Final

import msgspec

from headway.cost.calibration import FACTORS, SHIFTS, Calibration, Term
from headway.cost.datafile import packaged
from headway.cost.engines import engine_facts
from headway.cost.replica import Replica, limits
from headway.cost.uncertainty import shape
from headway.hardware import silicon
from headway.specs import Spec

__all__ = ["PUBLISHED", "asked_of", "followed", "offered", "published", "with_published"]

PUBLISHED: Final = "published"
_SDS: Final = 1.645  # 90 % of a normal distribution
_TERMS: Final = (*FACTORS, *SHIFTS)

Layout = tuple[int, int, int, int]  # tp, pp, dp, ep


class _Own(Spec):
    """The terms of one layout, in the order of `FACTORS` and `SHIFTS`, with standard deviations."""

    layout: Layout
    terms: tuple[float, ...]
    sds: tuple[float, ...]


class _Group(Spec):
    """What was measured of one model on one GPU; `off`: the median error of rows left out, of how many figures."""

    model: str
    gpu: str
    engine: str
    since: str
    weights: str
    kv: str
    points: int
    sources: tuple[str, ...]
    off: dict[str, tuple[float, int]]
    layouts: tuple[Layout, ...]
    terms: tuple[float, ...]
    sds: tuple[float, ...]
    own: tuple[_Own, ...]


class _File(Spec):
    groups: list[_Group]


@functools.cache
def _by_place() -> dict[tuple[object, ...], _Group]:
    groups = packaged(_File, "published.yaml").groups
    return {(shape(one.model), one.gpu, one.engine, one.since, one.weights, one.kv): one for one in groups}


@functools.lru_cache(maxsize=4096)
def published(replica: Replica) -> Calibration | None:
    """Return the calibration of what was measured of a replica's model on its GPU, or None.

    Measured is what runs the same shape of model under the same engine release in the same precisions, without
    speculation, pictures or a power limit. A layout without terms of its own has those of all that were measured; one
    that was not measured has them too, but `layouts` is then empty: left out in turn, layouts between others were no
    surer than by the shipped law.

    Raises:
        UnknownName: a model, a GPU or an engine that is not known.
    """
    engine = replica.engine
    if engine.speculation is not None or replica.media != "text" or any(limits(replica)):
        return None
    since = engine_facts(engine.name, engine.version, replica.gpu).since
    here = shape(replica.model), silicon(replica.gpu), engine.name, since, replica.weights, replica.kv
    found = _by_place().get(here)
    if found is None:
        return None
    layout = (replica.tp, replica.pp, replica.dp, replica.ep)
    own = next((one for one in found.own if one.layout == layout), None)
    terms, sds = (found.terms, found.sds) if own is None else (own.terms, own.sds)
    return Calibration(
        gpu=replica.gpu,
        engine=engine.name,
        versions=(since,) if since != "0" else (),
        models=(replica.model,),
        weights=(found.weights,),
        kv=(found.kv,),
        gpu_counts=tuple(sorted({tp * pp * dp for tp, pp, dp, _ in found.layouts})),
        precisions=((found.weights, found.kv),),
        layouts=(layout,) if layout in found.layouts else (),
        limits=(limits(replica),),
        source=f"{found.points} published operating points of {found.model} on it ({', '.join(found.sources)})",
        held_out=tuple((name, off) for name, (off, _) in found.off.items()),
        held_out_figures=tuple((name, count) for name, (_, count) in found.off.items()),
        **{name: _term(name, value, sd) for name, value, sd in zip(_TERMS, terms, sds, strict=True)},
    )


def offered(model_key: str, gpu_key: str) -> list[str]:
    """Return what there is of a model on a GPU, as in "vllm 0.12 in fp8, KV fp8".

    Raises:
        UnknownName: no such model.
    """
    like = shape(model_key), silicon(gpu_key)
    return [_named(*key[2:]) for key in _by_place() if key[:2] == like]


def asked_of(replica: Replica) -> str:
    """Return what a replica would have to be among: its engine release and precisions, as `offered` says them.

    Raises:
        UnknownName: an engine that is not known.
    """
    engine = replica.engine
    since = engine_facts(engine.name, engine.version, replica.gpu).since
    return _named(engine.name, since, replica.weights, replica.kv)


def with_published(replica: Replica) -> Replica:
    """Return the replica calibrated by what was published of it, or as it is."""
    found = published(_bare(replica))
    return replica if found is None else msgspec.structs.replace(replica, calibration=found)


def followed(replica: Replica, known: Collection[Calibration]) -> Replica:
    """Return a changed replica by what is published of what it is now, where it has one of `known` published ones."""
    if replica.calibration is None or replica.calibration not in known:
        return replica
    return msgspec.structs.replace(replica, calibration=published(_bare(replica)))


def _bare(replica: Replica) -> Replica:
    return msgspec.structs.replace(replica, calibration=None)


def _named(engine: object, since: object, weights: object, kv: object) -> str:
    return f"{engine}{'' if since == '0' else f' {since}'} in {weights}, KV {kv}"


def _term(name: str, value: float, sd: float) -> Term:
    far = _SDS * sd
    low, high = (value / exp(far), value * exp(far)) if name in FACTORS else (value - far, value + far)
    return Term(value=value, low=low, high=high)
