"""Settings of how rows are read that were chosen by trying: what else was tried, and how a fold chooses for itself.

`reading.yaml` has one value of each, the best of a few on all rows. Where the model is judged on rows left out, every
fold chooses among the same few on the rows that it keeps, so that no setting has seen what it is judged on.
"""

from __future__ import annotations

import functools
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from fit.engines import PULL, WEIGHTS, Point
from headway.accuracy import express as expressed
from headway.accuracy import reading as read
from headway.accuracy.reading import Reading, reading

Floats = npt.NDArray[np.float64]
Place = tuple[str | int, ...]
INNER_FOLDS = 4
RIDGES = (0.025, 0.1)  # beside `PULL`
FAR = 1.0  # an error in logs beyond which it counts no more
TRIED: dict[Place, tuple[Any, ...]] = {  # beside the value of the file
    ("token_budget", "vllm", "sweep"): (2048, 8192),
    ("token_budget", "trtllm", "sweep"): (2048, 4096),
    ("token_budget", "sglang", "sweep"): (16384, 32768),
    ("sweeps", 0, "output_share"): (0.0, 0.1, 0.2),
    ("sweeps", 1, "output_share"): (0.0, 0.1, 0.2),
    ("sweeps", 2, "users_waiting"): (0,),
    ("prompts", "gpqa"): (150, 600),
    ("prompts", "image-chat"): (600, 2400),
    ("prompts", "lm-arena-chat"): (90, 350),
    ("prompts", "sourcegraph-fim"): (600, 2400),
    ("prompts", "video-chat"): (600, 2500),
}
WHOLE_PROMPTS = (("sweeps", 2, "prompt_a_step"), ("sweeps", 3, "prompt_a_step"))
CHUNKED = (2048, 4096, 8192)  # tokens a step, where prompts of TensorRT-LLM's sweeps would be cut


@functools.cache
def others() -> dict[str, Reading]:
    """Return every other reading that was tried, by what is changed: one setting, or what goes together."""
    plain = msgspec.to_builtins(reading())
    found = {}
    for place, values in TRIED.items():
        for value in values:
            changed = msgspec.convert(_with(plain, place, value), Reading)
            found[f"{'.'.join(map(str, place))}={value}"] = changed
    for tokens in CHUNKED:
        tree = _with(plain, ("token_budget", "trtllm", "sweep"), tokens)
        for place in WHOLE_PROMPTS:
            tree = _with(tree, place, False)
        found[f"prompts cut={tokens}"] = msgspec.convert(tree, Reading)
    return found


def _with(tree: Any, place: Place, value: Any) -> Any:
    if not place:
        return value
    if isinstance(tree, dict):
        return {**tree, place[0]: _with(tree[place[0]], place[1:], value)}
    return [_with(part, place[1:], value) if i == place[0] else part for i, part in enumerate(tree)]


@contextmanager
def read_as(other: Reading) -> Iterator[None]:
    """Let rows be read in another way."""
    shipped = read.reading
    read.reading = expressed.reading = lambda: other
    try:
        yield
    finally:
        read.reading = expressed.reading = shipped


Key = tuple[str, str]
Fitter = Callable[[Sequence[Point], Sequence[Key], Sequence[Point], Sequence[Key]], list[Floats]]


def settled(
    points: Sequence[Point], keys: Sequence[Key], out: Sequence[bool], tried: Sequence[Mapping[str, Point]], fit: Fitter
) -> list[Point]:
    """Return the points as read by the settings that predict best those not `out`.

    `tried` are each point's other readings by setting and value, `keys` the releases; `fit` predicts the log ratios of
    some points by others. A value is judged on the points it touches, in parts of the pairs left out in turn, against
    the file's. One is changed at a time; of two that touch a point the one that gains more is taken.
    """
    kept = [i for i in range(len(points)) if not out[i]]
    plain: dict[frozenset[Key], dict[int, Floats]] = {}
    gains = {}
    for name in sorted({name for i in kept for name in tried[i]}):
        touched = [i for i in kept if name in tried[i] and not points[i].suspect]
        releases = frozenset(keys[i] for i in touched)
        at = [i for i in kept if keys[i] in releases]
        if releases not in plain:
            plain[releases] = _left_out({i: points[i] for i in at}, keys, fit)
        other = _left_out({i: tried[i].get(name, points[i]) for i in at}, keys, fit)
        gains[name] = _gain(touched, points, plain[releases], other)
    better = sorted((name for name, gain in gains.items() if gain > 0.0), key=lambda name: -gains[name])
    taken = [next((name for name in better if name in some), "") for some in tried]
    return [some[name] if name else point for point, some, name in zip(points, tried, taken, strict=True)]


def pulled(points: Sequence[Point], keys: Sequence[Key], out: Sequence[bool], fit: Callable[[float], Fitter]) -> float:
    """Return the ridge on the host terms that predicts best the pairs not `out`; `fit` makes the fitter of a ridge."""
    kept = {i: point for i, point in enumerate(points) if not out[i]}
    judged = [i for i, point in kept.items() if not point.suspect]
    plain = _left_out(kept, keys, fit(PULL))
    gains = {ridge: _gain(judged, points, plain, _left_out(kept, keys, fit(ridge))) for ridge in RIDGES}
    best = max(gains, key=lambda ridge: gains[ridge])
    return best if gains[best] > 0.0 else PULL


def _left_out(points: dict[int, Point], keys: Sequence[Key], fit: Fitter) -> dict[int, Floats]:
    """Log ratios by place, of pairs predicted by fits without them."""
    parts = {i: zlib.crc32("|".join(point.pair).encode()) % INNER_FOLDS for i, point in points.items()}
    found: dict[int, Floats] = {}
    for part in sorted(set(parts.values())):
        asked, kept = ([i for i in points if (parts[i] == part) is same] for same in (True, False))
        told = fit([points[i] for i in kept], [keys[i] for i in kept],
                   [points[i] for i in asked], [keys[i] for i in asked])  # fmt: skip
        found |= zip(asked, told, strict=True)
    return found


def _gain(at: Sequence[int], points: Sequence[Point], plain: dict[int, Floats], other: dict[int, Floats]) -> float:
    """How much less the mean error is, in logs, each kind of figure weighing as in the fit."""
    off: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for i in at:
        for figure, *logs in zip(points[i].figures, plain[i], other[i], strict=True):
            off[figure.kind].append((min(abs(logs[0]), FAR), min(abs(logs[1]), FAR)))
    means = {kind: np.mean(pairs, axis=0) for kind, pairs in off.items()}
    return sum(WEIGHTS[kind] * float(np.log(before / after)) for kind, (before, after) in means.items())
