"""The core under a folded table: entries of `decode_s` may be negative, and it still equals the reference."""

from __future__ import annotations

from random import Random

import msgspec
import numpy as np
from drive import Case, make_case, run_core, run_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from test_parity import assert_same_gaps, assert_same_rows

from headway.cost import StepTable
from headway.cost.drafting import folded
from headway.cost.speculation import Speculation

SEEDS = st.integers(0, 2**40)


def longer(values: np.ndarray, last: int) -> np.ndarray:
    """The array to `last`, its last slope going on."""
    more = np.arange(len(values), last + 1)
    slope = values[-1] - values[-2] if len(values) > 1 else 0.0
    return np.concatenate([values, values[-1] + slope * (more - len(values) + 1)])[: last + 1]


def speculative(seed: int) -> Case:
    """A random case whose table is folded from that of another random one, and a draft of a tenth of its times."""
    rng, case = Random(seed), make_case(seed)
    table, seqs = msgspec.structs.replace(case.table, stages=1), case.table.max_seqs
    spec = Speculation(tokens=rng.randint(1, 4), acceptance=rng.choice([0.0, rng.random(), 1.0]), draft="ngram")
    rows = seqs * spec.verified
    lasts = {"linear": max(table.max_batched_tokens, rows), "seq": rows}
    arrays = {
        f"{name}_{unit}": longer(getattr(table, f"{name}_{unit}"), last)
        for name, last in lasts.items() for unit in "sj"
    }  # fmt: skip
    wide = msgspec.structs.replace(table, **arrays)
    draft = tenth(wide) if rng.random() < 0.5 else None
    law = folded(spec, seqs, wide, draft, 0.0)
    cut = {name: getattr(law, name)[: len(getattr(table, name))] for name in arrays}
    return Case(msgspec.structs.replace(law, **cut), case.settings, case.unit_tokens, case.order, case.rows)


def tenth(table: StepTable) -> StepTable:
    names = [name for name in table.__struct_fields__ if name.endswith(("_s", "_j")) and name != "intake_s"]
    found = {name: getattr(table, name) for name in names}
    return msgspec.structs.replace(table, **{name: 0.1 * value for name, value in found.items() if value is not None})


@settings(max_examples=100, deadline=None)
@given(SEEDS)
def test_core_equals_reference_under_speculation(seed: int) -> None:
    case = speculative(seed)
    reference = run_reference(case)
    columns, engine = run_core(case)
    assert_same_rows(columns, case.rows)
    assert engine.work.steps == reference.steps
    assert_same_gaps(engine, reference.gaps)


@settings(max_examples=100, deadline=None)
@given(SEEDS)
def test_leaping_equals_stepping_under_speculation(seed: int) -> None:
    leapt, fast = run_core(speculative(seed))
    stepped, slow = run_core(speculative(seed), leaps=False)
    for name, column in leapt.items():
        np.testing.assert_array_equal(column, stepped[name], err_msg=name)
    assert fast.gaps.sum_s(fast.law) == slow.gaps.sum_s(slow.law)
