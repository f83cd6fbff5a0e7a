"""Settings and lengths that a row leaves unsaid and the recipe of its benchmark says."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accuracy_cases import SPLIT, point
from headway.accuracy.express import drawn, express
from headway.accuracy.reading import sweep, token_budget
from headway.workload.lengths import Constant, Uniform

IN_INFERENCEX = "measured=2026-01-01 "


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


# --- tokens in a step


def deepseek(**changes):
    return point(**({"model_key": "deepseek-v3-r1", "notes": IN_INFERENCEX} | changes))


@given(st.integers(1, 4096), st.integers(1, 16384))
def test_a_recipe_of_the_load_is_that_of_its_script(users, prompt):
    row = deepseek(concurrency=float(users), isl_mean=float(prompt))
    script = (users + prompt + 64 + 63) // 64 * 64
    assert token_budget(row, "trtllm") == script
    of_later = msgspec.structs.replace(row, notes=IN_INFERENCEX + "release:1.2.0rc4")
    assert token_budget(of_later, "trtllm") == max(8192, script)


@pytest.mark.parametrize(
    ("changes", "engine", "tokens"),
    [
        ({"concurrency": 64.0, "isl_mean": 1024.0}, "trtllm", 1152),
        ({"concurrency": 65.0, "isl_mean": 1024.0}, "trtllm", 1216),
        ({"notes": IN_INFERENCEX + SPLIT, "isl_mean": 16000.0}, "trtllm", 8192),
        ({"notes": f"{IN_INFERENCEX}release:1.2.0 {SPLIT}", "isl_mean": 16000.0}, "trtllm", 8192),
        ({"notes": SPLIT}, "trtllm", 8192),
        ({"notes": "", "isl_mean": 16000.0}, "trtllm", 8192),
        ({"model_key": "gpt-oss-120b"}, "trtllm", 20000),
        ({"model_key": "llama-3-70b"}, "trtllm", 16384),
        ({"model_key": "qwen3-32b"}, "trtllm", 8192),
        ({"precision_weights": "fp4"}, "sglang", 16384),
        ({"precision_weights": "fp8"}, "sglang", 32768),
        ({"notes": ""}, "sglang", 8192),
        ({}, "vllm", 8192),
        ({"notes": ""}, "vllm", 4096),
        ({}, "unheard-of", 8192),
    ],
)
def test_the_first_recipe_that_fits_is_taken_and_none_by_a_vendors_own_sweep(changes, engine, tokens):
    assert token_budget(deepseek(**changes), engine) == tokens


def test_tokens_that_a_row_states_come_before_any_recipe():
    row = {"engine": "trtllm", "gpu_key": "B200", "tp": 8, "gpu_count": 8, "concurrency": 64.0, "isl_mean": 1024.0}
    of_recipe, stated = (
        deepseek(**row, notes=IN_INFERENCEX + notes) for notes in ("", "max_num_batched_tokens=4000")
    )
    settings = [express(one).deployment.pools[0].replica.engine.max_batched_tokens for one in (of_recipe, stated)]
    assert settings == [1152, 4000]


# --- lengths


@given(st.floats(1.0, 1e5))
def test_clients_of_inferencex_draw_lengths_from_four_fifths_of_the_nominal_one(nominal):
    length = drawn(deepseek(), nominal)
    assert isinstance(length, Uniform)
    assert length.high_tokens == round(nominal)
    assert 1 <= length.low_tokens <= max(1.0, 0.8 * nominal) < length.low_tokens + 1
    assert drawn(point(), nominal) == Constant(tokens=round(nominal))


@pytest.mark.parametrize("form", [{}, {"mode": "disagg", "notes": IN_INFERENCEX + SPLIT, "gpu_count": 4, "tp": None}])
def test_no_request_of_inferencex_is_longer_than_the_nominal_one(form):
    row = point(**({"notes": IN_INFERENCEX, "isl_mean": 1024.0, "osl_mean": 8192.0} | form))
    load = express(row).workload
    assert load.prompt == Uniform(low_tokens=819, high_tokens=1024)
    assert load.output == Uniform(low_tokens=6553, high_tokens=8192)


@pytest.mark.parametrize(
    ("engine", "version", "share"),
    [("vllm", "0.12.0", 0.05), ("sglang", "0.5.6.post2", 0.05), ("vllm", "0.11.0", 0.0), ("trtllm", "0.12.0", 0.0)],
)
def test_outputs_of_some_releases_sweeps_vary_and_their_prompts_do_not(engine, version, share):
    row = point(engine=engine, engine_version=version, isl_mean=1000.0, osl_mean=1000.0)
    assert sweep(row).output_share == share
    load = express(row).workload
    assert load.prompt == Constant(tokens=1000)
    assert load.output == (Uniform(low_tokens=950, high_tokens=1050) if share else Constant(tokens=1000))
    of_inferencex = express(msgspec.structs.replace(row, notes=IN_INFERENCEX)).workload
    assert of_inferencex.output == of_inferencex.prompt == Uniform(low_tokens=800, high_tokens=1000)


@pytest.mark.parametrize(("key", "most"), [("llama-3-8b", 7), ("qwen3-32b", 16)])
def test_a_sweep_with_whole_prompts_has_one_in_a_step_and_its_engine_may_leave_a_user_waiting(key, most):
    sweep_of = {"engine": "trtllm", "engine_version": "1.0.0rc3", "model_key": key, "isl_mean": 4096.0}
    row = point(**sweep_of, concurrency=8.0)
    settings = express(row).deployment.pools[0].replica.engine
    assert (settings.max_batched_tokens, settings.max_seqs) == (4096, most)
    of_inferencex = express(msgspec.structs.replace(row, notes=IN_INFERENCEX)).deployment.pools[0].replica.engine
    assert of_inferencex.max_seqs == 16 and of_inferencex.max_batched_tokens != 4096
