"""Points of engines made by known host terms, for the tests of the fits."""

from __future__ import annotations

from itertools import product

import numpy as np

from fit.engines import FAMILIES, NAMES, OF_FAMILIES, SHARED, SIZED, Figure, Point, family_of

_SECONDS = (20e-6, 15e-6, 30e-6, 25e-6, 200e-6, 12e-6, 150e-6, 300e-6, 350e-6, 30e-3, 10e-3, 2e-3, 15e-3)
TRUE_S = dict(zip(NAMES, _SECONDS, strict=True))
BLACKWELL_S = -5e-6
_OWN_S = [BLACKWELL_S if own == ("layer_s", "blackwell") else TRUE_S[own[0]] for own in OF_FAMILIES]
TERMS = np.array([*(TRUE_S[name] for name in SHARED), *_OWN_S])
ALIKE = np.array([TRUE_S[name] for name in SIZED])  # families that do not differ


def host_s(terms, gpu):
    """The terms of a GPU in the order of a figure's counts; of no family, the mean of the families."""
    known, of = dict(zip((*SHARED, *OF_FAMILIES), terms, strict=True)), family_of(gpu)
    families = [of] if of else list(FAMILIES)
    return [known[n] if n in SHARED else np.mean([known[n, family] for family in families]) for n in NAMES]


def synthetic(
    model="m", gpu="h100-sxm", spread=0.0, seed=1, factor=1.0, terms=TERMS, count=40, release_of="0.12"
):
    """Points of a pair whose time per token and time to first token follow the terms; what its name says, it has."""
    rng = np.random.default_rng([seed, sum(map(ord, model + gpu))])
    words = ("moe", "fp8", "state", "mla", "ranks", "image", "video")
    moe, fp8, state, mla, ranked, image, video = (word in model for word in words)
    made = []
    for i in range(count):
        layers = float(rng.choice([8, 32, 128]))
        users = float(rng.choice([1, 8, 64, 256]))
        figures = []
        for kind in ("tpot", "ttft"):
            waits = 1.0 if kind == "tpot" else float(rng.uniform(1.0, 6.0))
            prompts = waits * rng.uniform(0.05, 0.5) if kind == "tpot" else waits
            every, prompt_layers = waits * layers, prompts * layers
            states = 0.75 * every * state  # three such layers to one of attention
            counts = [every, every * moe, every * moe * fp8, states, waits, waits * users,
                      prompt_layers, prompt_layers * mla,
                      0.75 * prompt_layers * state, prompts * image, prompts * video,
                      waits * ranked, float(kind == "ttft")]  # fmt: skip
            kernels = waits * float(rng.uniform(5e-4, 5e-3))
            host = sum(c * t for c, t in zip(counts, host_s(terms, gpu), strict=True))
            seconds = (kernels * factor + host) * np.exp(spread * rng.standard_normal())
            figures.append(Figure(kind, kernels, tuple(counts), float(seconds)))
        made.append(
            Point(f"{model}{i}", "made-up", (model, gpu), "fp8", "vllm", release_of, gpu, "", tuple(figures))
        )
    return made


MODELS = ("dense", "dense2", "moe", "moe fp8", "moe2 fp8", "moe state", "dense state", "moe mla", "moe ranks",
          "dense image", "dense video")  # fmt: skip


def every(gpus=("h100-sxm", "b200"), **how):
    return [one for name, card in product(MODELS, gpus) for one in synthetic(name, card, **how)]
