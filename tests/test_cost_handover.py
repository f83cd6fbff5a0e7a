"""Between which replicas an engine passes KV: what a plan has, exports write; what they refuse, no plan has."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli_cases import run
from headway.cost import EngineSettings
from headway.cost.handover import Side, withheld
from headway.errors import BadInput
from headway.export import export
from headway.hardware import gpu
from headway.metrics import Slo
from headway.model import model
from headway.plan import Question
from headway.plan.shapes import shape_of
from headway.plan.space import enumerate_space

H100 = gpu("h100-sxm")
SIDE = Side(H100, 4, 1, 16)


def side(**changes):
    return SIDE._replace(**changes)


@pytest.mark.parametrize(
    ("engine", "spec", "prefill", "decode", "why"),
    [
        ("vllm", "llama-3.1-8b", side(), side(tp=2), ""),
        ("vllm", "llama-3.1-8b", side(), side(gpu=gpu("mi300x")), "NVIDIA's GPUs to AMD's"),
        ("vllm", "llama-3.1-8b", side(gpu=gpu("mi300x")), side(gpu=gpu("mi325x")), ""),
        ("sglang", "llama-3.1-8b", side(gpu=gpu("mi300x")), side(gpu=gpu("mi300x")), "images for AMD"),
        ("vllm", "llama-3.1-8b", side(pp=2), side(), "of one stage alone, not from pp 2 to pp 1"),
        ("sglang", "llama-3.1-8b", side(pp=2), side(), ""),
        ("sglang", "llama-3.1-8b", side(), side(pp=2), "not from pp 1 to pp 2"),
        ("trtllm", "llama-3.1-8b", side(), side(pp=2), ""),
        ("sglang", "llama-3.1-8b", side(tp=3), side(tp=2), "from tp 3 to tp 2, neither of which divides"),
        ("vllm", "qwen3-235b-a22b", side(tp=8), side(tp=4), "from tp 8 to tp 4 where qwen3-235b-a22b has 4 KV heads"),
        ("vllm", "qwen3-235b-a22b", side(tp=4), side(tp=8), ""),
        ("vllm", "qwen3-235b-a22b", side(tp=8), side(tp=8), ""),
        ("sglang", "qwen3-235b-a22b", side(tp=8), side(tp=4), ""),
        ("vllm", "deepseek-v3", side(tp=8), side(tp=1), ""),
        ("vllm", "qwen3-next-80b-a3b", side(tp=4), side(tp=2), "between replicas of one tp"),
        ("vllm", "qwen3-next-80b-a3b", side(tp=4), side(tp=4), ""),
        ("vllm", "qwen3-next-80b-a3b", side(), side(block_tokens=32), "of the same size, not"),
        ("sglang", "qwen3-next-80b-a3b", side(tp=4), side(tp=2), ""),
        ("trtllm", "qwen3-next-80b-a3b", side(), side(), "states beside KV"),
        ("trtllm", "decilm-7b", side(), side(), "heads differ from layer to layer"),
        ("vllm", "llama-3.1-8b", side(block_tokens=32), side(), "from block_tokens 32 to 16"),
        ("vllm", "llama-3.1-8b", side(), side(block_tokens=32), ""),
        ("vllm", "llama-3.1-8b", side(), side(block_tokens=24), "whole numbers of them"),
        ("sglang", "llama-3.1-8b", side(), side(block_tokens=64), "of the same size, not from block_tokens 16 to 64"),
        ("trtllm", "llama-3.1-8b", side(block_tokens=64), side(), "of the same size, not from block_tokens 64 to 16"),
    ],
)
def test_what_keeps_an_engine_from_passing_kv(engine, spec, prefill, decode, why):
    told = withheld(engine, model(spec), prefill, decode)
    assert why in told and bool(why) is bool(told)


@settings(max_examples=16, deadline=None)
@given(
    key=st.sampled_from(["llama-3.1-8b", "qwen2.5-1.5b", "nemotron-3-nano-30b-a3b", "deepseek-v2-lite"]),
    stock=st.sampled_from([{"h100-sxm": 8}, {"mi300x": 4}, {"h100-sxm": 4, "mi300x": 2}, {"h100-sxm": 2, "b200": 4}]),
    engine=st.sampled_from(["vllm", "sglang"]),
)
def test_prefill_and_decode_pools_of_every_space_are_exported(key, stock, engine):
    question = Question(
        model=key,
        gpu=stock,
        rate_req_s=1,
        slo=Slo(ttft_s=1.0, tpot_s=0.1),
        engine=EngineSettings(name=engine),
        budget_tokens=(2048,),
    )
    found = [option.deployment for option in enumerate_space(question).options]
    pairs = {
        tuple((pool.replica.gpu, shape_of(pool.replica)) for pool in made.pools): made
        for made in found
        if made.pools[0].role == "prefill"
    }
    assert pairs or (engine == "sglang" and "mi300x" in stock and len(stock) == 1)
    for made in pairs.values():
        assert export(made, engine, model_path="a/checkpoint").files


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--gpu", "mi300x:4", "--engine", "sglang"],
            "layouts split against engine sglang and gpu mi300x: SGLang's",
        ),
        (
            ["--gpu", "h100-sxm:4", "--set", "pp=[2]"],
            "layouts split against engine vllm and pp [2]: vllm passes KV between",
        ),
        (
            ["--gpu", "h100-sxm:4", "--engine", "trtllm", "--model", "qwen3-next-80b-a3b"],
            "layouts split against engine trtllm and gpu h100-sxm: trtllm 1.2 does not pass states",
        ),
    ],
)
def test_split_pools_that_no_kv_goes_between_are_refused_as_a_contradiction(words, told):
    asked = ["plan", "--model", "llama-3.1-8b", "--rate", "1", "--ttft", "1s", "--set", "layouts=[split]", *words]
    done = run(*asked)
    assert done.exit_code == 2 and told in " ".join(done.stderr.split())


def test_both_pools_of_a_hybrid_model_keep_states_as_the_connector_asks():
    question = Question(
        model="nemotron-3-nano-30b-a3b", gpu="h100-sxm", gpus=4, rate_req_s=1, slo=Slo(ttft_s=1.0), layouts=("split",)
    )
    made = enumerate_space(question).options[0].deployment
    for to in ("vllm", "compose", "kubernetes", "llm-d", "dynamo"):
        assert "\n".join(export(made, to).files.values()).count("VLLM_SSM_CONV_STATE_LAYOUT") == 2, to
    with pytest.raises(BadInput, match="does not pass states"):
        enumerate_space(msgspec.structs.replace(question, engine=EngineSettings(name="trtllm")))
