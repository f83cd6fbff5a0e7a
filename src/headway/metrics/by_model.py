"""`by_model`: what became of the requests of each model, where a run had several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headway.metrics import result as r
from headway.metrics.attainment import attained, count_by_batch, count_by_class, judge
from headway.metrics.columns import STATUS_WORDS
from headway.metrics.records import Records
from headway.metrics.slo import Slos
from headway.metrics.summary import exact

__all__ = ["by_model"]

NONE_CHOSEN = ""  # of requests that were refused before a model was chosen for them


def by_model(records: Records | None, names: Sequence[str], slo: Slos | None) -> dict[str, r.ModelOutcome]:
    """Return the outcome of each model, and under "" that of requests for which none was chosen, if there are any.

    Args:
        records: a row per request, their column `measured` set; None gives nothing.
        names: of the models, by number in the column `pool`; one name may stand several times. Below two: nothing.
        slo: as for the whole run.
    """
    several = list(dict.fromkeys(names))
    if records is None or len(several) < 2:
        return {}
    place = np.array([several.index(name) for name in names])
    pool = records["pool"]
    model = np.where(pool >= 0, place[np.maximum(pool, 0)], len(several))
    good = attained(records, slo) if slo is not None else np.zeros(len(records), np.bool_)
    known = [(name, model == i) for i, name in enumerate(several)]
    nowhere = model == len(several)
    known += [(NONE_CHOSEN, nowhere)] if nowhere.any() else []
    return {name: _outcome(records, rows, good & rows, slo) for name, rows in known}


def _outcome(records: Records, rows: NDArray[np.bool_], good: NDArray[np.bool_], slo: Slos | None) -> r.ModelOutcome:
    measured = rows & records["measured"]
    good = good & measured
    told = measured & records.finished
    tpot_s = records.tpot_s[told]
    ends = np.bincount(records["status"][rows], minlength=len(STATUS_WORDS)).tolist()
    tokens = {name: int(records[name][rows].sum()) for name in ("prompt_tokens", "cached_tokens", "output_tokens")}
    batches = count_by_batch(records, measured, good)
    return r.ModelOutcome(
        requests=r.Requests(arrived=int(rows.sum()), **dict(zip(STATUS_WORDS, ends, strict=True))),
        **tokens,
        ttft_s=exact(records.ttft_s[told]),
        tpot_s=exact(tpot_s[~np.isnan(tpot_s)]),
        e2e_s=exact(records.e2e_s[told]),
        slo=judge(count_by_class(records, measured), count_by_class(records, good), slo, None, batches),
    )
