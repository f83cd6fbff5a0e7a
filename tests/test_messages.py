"""What is said of bad input: what came, what is allowed, nothing of how it was found."""

import json

import pytest

from cli_cases import refused, run
from headway.errors import BadInput
from headway.model import model
from headway.sim import Deployment
from headway.specs import from_mapping
from headway.workload import workload

ONE = ("simulate", "--model", "llama-3.2-1b", "--gpu", "l4")
PLAN = ("plan", "--model", "llama-3.2-1b", "--gpu", "l4", "--gpus", "1", "--ttft", "1s", "--rate", "1")


def test_an_unknown_arrival_is_no_model():
    result = run(*ONE, "--arrival", "gama:cv=3")
    refused(result, "unknown process in the arrival 'gama:cv=3': 'gama': nearest: gamma")
    assert "list models" not in result.stderr


def test_the_forms_of_arrivals_name_every_field_of_bursts():
    refused(run(*ONE, "--arrival", "onoff:on=5s"), "onoff:rate_on=20,rate_off=2,on=5s,off=30s,cv=1")


def test_a_value_that_is_not_one_of_a_few_names_them():
    refused(run(*PLAN, "--set", "layouts=[foo]"), "layouts.0: unknown value 'foo': allowed: mixed, split")
    refused(run(*ONE, "--set", "pools.0.role=mixd"), "pools.0.role: unknown value 'mixd': nearest: mixed")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            '{"headway":"workload/1"}\n{"prompt_tokens":5,"output\n',
            ':2: came \'{"prompt_tokens":5,"output\'; expected valid',
        ),
        ('{"headway":"workload/1","block_tokens":63}\n', "expected a multiple of 16 at block_tokens"),
    ],
)
def test_broken_lines_say_what_is_expected_in_words(tmp_path, lines, said):
    path = tmp_path / "t.jsonl"
    path.write_text(lines)
    with pytest.raises(BadInput) as error:
        workload(str(path))
    assert said in str(error.value)
    assert "truncated" not in str(error.value) and "that's" not in str(error.value)


def test_times_that_no_number_can_hold_are_refused():
    refused(run(*ONE, "--rate", "1e-300"), "longer than 136 years", "raise the rate, or ask for fewer requests")
    assert workload("chat", rate=1e-5, requests=10_000).rate_req_s == 1e-5
    with pytest.raises(BadInput, match="136 years"):
        workload("chat", rate=1e-5, requests=1_000_000)


def test_what_is_assumed_does_not_stand_before_an_error():
    result = run(*ONE, "--ttft", "1s", "--set", "slo.ttft_z=1")
    refused(result, "unknown field 'ttft_z'")
    assert "assuming" not in result.stderr
    result = run("simulate", "--model", "llama-3.1-405b", "--gpu", "l4")
    assert result.exit_code == 1 and "assuming" not in result.stderr
    assert "assuming workload chat" in run(*ONE, "--requests", "10").stderr


def test_a_link_needs_no_name():
    pool = {"replica": {"model": "llama-3.2-1b", "gpu": "l4"}}
    data = {"pools": [{"role": "prefill", **pool}, {"role": "decode", **pool}]}
    data["kv_link"] = {"bytes_per_s": 1e9, "latency_s": 1e-5}
    link = from_mapping(Deployment, data, "d.yaml").kv_link
    assert link is not None and link.bytes_per_s == 1e9


def test_a_folder_that_holds_a_config_is_a_model(tmp_path, monkeypatch):
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1000,
        "max_position_embeddings": 2048,
    }
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    assert model("mine").layers == model("mine/config.json").layers == 2
