"""Settings that a row leaves unsaid and the recipe of its benchmark says."""

import pytest

from accuracy_cases import point
from headway.accuracy.express import express


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, (60, 0)),
        ({"source": "trtllm-docs"}, (60, 0)),
        ({"model_key": "gpt-oss-120b"}, (50, 10)),
        ({"source": "trtllm-docs", "model_key": "gpt-oss-120b"}, (0, 0)),
        ({"engine": "sglang"}, (0, 0)),
        ({"dp": 1, "tp": 8}, (0, 0)),
    ],
)
def test_recipes_of_data_parallel_ranks_align_their_prompts(changes, steps):
    source, parallel = {"source": "aiconfigurator-silicon", "engine": "trtllm"}, {"gpu_count": 8, "dp": 8, "ep": 8}
    row = point(**({"model_key": "deepseek-v3-r1", "gpu_key": "B200", **source, **parallel} | changes))
    engine = express(row).deployment.pools[0].replica.engine
    assert (engine.align_steps, engine.gather_steps) == steps
