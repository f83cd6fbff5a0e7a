"""`headway export`: from a deployment or a plan to files, notes and exit codes."""

import json
import os

import pytest
import yaml

from cli_cases import refused, run
from headway.cli.launched import launch_words
from headway.cost import EngineSettings, Replica
from headway.export import targets
from headway.export.target import target
from headway.sim import Deployment, Pool
from headway.specs import from_mapping
from report_cases import plan

ASK = ("export", "--model", "llama-3.1-8b", "--gpu", "h100-sxm", "--replicas", "2")


def test_files_are_written_and_scripts_can_be_run(tmp_path):
    done = run(*ASK, "--to", "vllm", "--out", tmp_path / "new" / "launch")
    assert done.exit_code == 0, done.stderr
    names = sorted(path.name for path in (tmp_path / "new" / "launch").iterdir())
    assert names == ["mixed-0.sh", "mixed-1.sh"]
    assert os.access(tmp_path / "new" / "launch" / "mixed-0.sh", os.X_OK)
    assert done.stdout == ""
    assert "note: policies.route=least-requests" in done.stderr


@pytest.mark.parametrize(
    ("gpu", "engine", "weights", "words", "does"),
    [
        ("h100-sxm", "sglang", "fp8", "--to sglang --out launch", "writes the commands that start it"),
        ("h100-sxm", "trtllm", "fp8", "--to trtllm --model-path CHECKPOINT_IN_FP8 --out launch", "in place of CHECKP"),
        ("h100-sxm", "deepspeed-mii", "bf16", "", "nothing that `headway export` writes starts it: "),
        ("mi300x", "sglang", "fp8", "", "nothing that `headway export` writes starts it: "),
    ],
)
def test_the_command_that_a_plan_ends_with_is_one_that_writes_files(gpu, engine, weights, words, does):
    replica = Replica(model="llama-3.1-8b", gpu=gpu, weights=weights, engine=EngineSettings(name=engine))
    pools = tuple(Pool(role=role, replica=replica) for role in ("prefill", "decode"))
    told = launch_words(Deployment(pools=pools))
    assert told[0] == words and does in told[1]


def test_servers_that_headway_does_not_start_get_the_gateways_file():
    replica = Replica(model="llama-3.2-1b", gpu="m4-max", engine=EngineSettings(name="llamacpp"))
    words, does = launch_words(Deployment(pools=(Pool(replica=replica),)))
    assert words == "--to gateway --out launch" and "for servers that you start yourself" in does


def test_without_a_folder_the_files_are_the_answer():
    done = run(*ASK, "--to", "kubernetes", "-q")
    assert [body["kind"] for body in yaml.safe_load_all(done.stdout)] == ["Deployment", "Service"]
    assert done.stderr == ""


def test_the_route_of_llm_d_leads_to_the_pool_that_its_chart_makes(tmp_path):
    assert run(*ASK, "--to", "llm-d", "--out", tmp_path, "-q").exit_code == 0
    route = yaml.safe_load((tmp_path / "httproute.yaml").read_text())
    [backend] = route["spec"]["rules"][0]["backendRefs"]
    values = (tmp_path / "inferencepool.values.yaml").read_text()
    assert backend["kind"] == "InferencePool" and f"# helm install {backend['name']} oci://" in values
    assert " --version v" in values and f"from a Gateway {route['spec']['parentRefs'][0]['name']} " in values


def test_json_has_files_notes_and_the_source_of_the_check():
    data = json.loads(run(*ASK, "--to", "vllm", "--json", "-").stdout)
    assert set(data["files"]) == {"mixed-0.sh", "mixed-1.sh"}
    assert data["target"]["version"].startswith("vLLM 0.")
    assert any(note.startswith("policies.route") for note in data["notes"])


@pytest.fixture
def planned(tmp_path):
    """The file of a plan whose candidates have deployments of their own."""
    made = plan()
    (tmp_path / "plan.json").write_text(made.to_json())
    return made, tmp_path / "plan.json"


def test_a_plan_gives_its_best_and_its_slo(planned):
    made, file = planned
    data = yaml.safe_load(run("export", file, "--to", "gateway").stdout)
    section = data.pop("gateway")
    best = from_mapping(Deployment, made.best.deployment, "best")
    assert from_mapping(Deployment, data, "written") == best
    assert section["classes"][0]["slo"]["ttft_s"] == made.question.slo.ttft_s


def test_another_candidate_is_chosen_by_its_name(planned):
    made, file = planned
    name = made.ranked[1].name
    data = yaml.safe_load(run("export", file, "--to", "gateway", "--candidate", name).stdout)
    assert len(data["gateway"]["upstreams"]) == sum(pool["count"] for pool in made.ranked[1].deployment["pools"])
    refused(run("export", file, "--to", "gateway", "--candidate", "9x"), "unknown candidate '9x'")


SEVERAL = """
pools:
  - {count: 2, replica: {model: llama-3.1-8b, gpu: h100-sxm}}
  - {serves: small, replica: {model: llama-3.2-1b, gpu: l4}}
  - {serves: small, replica: {model: llama-3.2-1b, gpu: h100-sxm}}
aliases: {any: [llama-3.1-8b, small], tiny: [small]}
policies:
  route: weighted-requests
  choose_model: by-class
  params: {route: {weights: {llama-3.1-8b: [1, 2], small: [1, 3]}}, choose_model: {models: [llama-3.1-8b, small]}}
"""


@pytest.mark.parametrize("to", ["kubernetes", "llm-d", "dynamo"])
def test_of_several_models_one_is_exported_by_its_name(tmp_path, to):
    file = tmp_path / "fleet.yaml"
    file.write_text(SEVERAL)
    refused(run("export", file, "--to", to), f"one route of {to} leads to one model", "--model llama-3.1-8b")
    done = run("export", file, "--to", to, "--model", "small")
    assert done.exit_code == 0, done.stderr
    assert "meta-llama/Llama-3.2-1B" in done.stdout and "Llama-3.1-8B" not in done.stdout
    assert {"kubectl label node NODE headway/gpu=l4", "kubectl label node NODE headway/gpu=h100-sxm"} <= {
        line.partition("GPU: ")[2] for line in done.stderr.splitlines()
    }
    refused(run("export", file, "--to", to, "--model", "smal"), "unknown model of the deployment 'smal'", "small")


def test_a_model_by_itself_keeps_what_policies_and_aliases_say_of_it(tmp_path):
    file = tmp_path / "fleet.yaml"
    file.write_text(SEVERAL)
    data = yaml.safe_load(run("export", file, "--to", "gateway", "--model", "small").stdout)
    data.pop("gateway")
    made = from_mapping(Deployment, data, "written")
    assert made.models == ("small",)
    assert made.policies.params == {"route": {"weights": {"small": [1, 3]}}}
    assert made.policies.choose_model == "first"
    assert made.aliases == {"any": ("small",), "tiny": ("small",)}


def test_the_one_model_of_a_file_may_be_named(planned):
    _, file = planned
    assert run("export", file, "--to", "vllm", "--model", "llama-3.1-8b").exit_code == 0
    refused(run("export", file, "--to", "vllm", "--model", "llama-3.1-9b"), "nearest: llama-3.1-8b")


def test_what_is_wrong_is_said(planned, tmp_path):
    _, file = planned
    refused(run(*ASK, "--to", "vlm"), "unknown export 'vlm'", "nearest: vllm")
    refused(run(*ASK, "--to", "vllm", "--candidate", "x"), "--candidate chooses from a plan")
    refused(run("export", file, "--to", "vllm", "--tp", "2"), "--tp beside the plan")
    refused(run("export", tmp_path / "none.json", "--to", "vllm"), "cannot be read")
    refused(run("export", "--to", "vllm"), "--model is missing")
    (tmp_path / "file").write_text("")
    refused(run(*ASK, "--to", "vllm", "--out", tmp_path / "file"), "cannot be made")
    nothing = plan(feasible=False)
    (tmp_path / "none.json").write_text(nothing.to_json())
    refused(run("export", tmp_path / "none.json", "--to", "vllm"), "no candidate meets the SLO", "--candidate")
    refused(run("export", "--model", "llama-3.1-70b", "--gpu", "l4", "--to", "vllm"), "does not fit", code=1)


@pytest.mark.parametrize("verb", [("export", "--to", "vllm"), ("whatif", "--replicas", "+1")])
def test_an_interrupted_plan_without_a_best_says_so_and_what_to_do(tmp_path, verb):
    file = tmp_path / "int.json"
    again = ("interrupted", "run `headway plan` again")
    file.write_text(plan([], feasible=False, interrupted=True).to_json())
    refused(run(verb[0], file, *verb[1:]), "before any candidate was simulated, so it has none", *again)
    file.write_text(plan(feasible=False, interrupted=True).to_json())
    refused(run(verb[0], file, *verb[1:]), "of those simulated by then no candidate meets the SLO", *again)


def test_what_is_said_of_a_check_is_what_was_done():
    for each in targets():
        if each.name in ("vllm", "sglang"):
            assert each.checked == "every command, by the engine's own parser, recorded"
    trtllm = target("trtllm")
    assert "source" in trtllm.checked and "parser" not in trtllm.checked
    assert "serve.py" in trtllm.source  # what was read
