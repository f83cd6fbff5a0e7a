"""Rows that declare speculative decoding: what their notes say, what is refused, what physics then allows."""

import pytest

from accuracy_cases import point
from headway.accuracy.express import express
from headway.accuracy.physics import broken
from headway.accuracy.reading import Inexpressible
from headway.cost.speculation import Speculation


def test_speculative_decoding_is_read_where_the_notes_declare_it_and_nowhere_else():
    def declared(notes, **changes):
        engine = express(point(notes=notes, **changes)).deployment.pools[0].replica.engine
        return engine.speculation, engine.max_seqs * engine.step_tokens <= engine.max_batched_tokens

    told = "speculative_tokens=3; draft=llama-3.2-1b; acceptance=0.7"
    assert declared(told) == (Speculation(tokens=3, acceptance=0.7, draft="llama-3.2-1b"), True)
    assert declared("num_speculative_tokens=1 draft=mtp", concurrency=4000.0) == (
        Speculation(tokens=1, acceptance=0.85, draft="mtp"), True,
    )  # fmt: skip
    assert declared("measured=2026-01-14", model="a-model-mtp")[0] is None
    for notes, why in (
        ("speculative_tokens=3", "what drafts is not stated"),
        ("speculative_tokens=3 draft=ngram", "acceptance not stated"),
        ("speculative_tokens=40 draft=mtp", "notes not understood"),
        ("speculative_tokens=3 draft=nothing acceptance=0.5", "speculation refused by the cost model"),
    ):
        with pytest.raises(Inexpressible, match=why):
            express(point(notes=notes))


def test_a_token_may_take_a_share_of_a_step_where_several_are_drafted():
    figures = {"tpot_mean": 0.001}
    plain, drafting = (point(notes=notes, measured=figures) for notes in ("", "speculative_tokens=3 draft=mtp"))
    assert "below the time to read the weights" in broken(plain, express(plain))
    assert not broken(drafting, express(drafting))
