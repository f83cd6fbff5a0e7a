"""GPUs described by files: what is written in one folder is read in another, and names are those that people gave."""

import json

import pytest

from cli_cases import refused, run
from gpu_cases import AROUND
from headway.errors import BadInput
from headway.hardware import gpu
from headway.metrics import Slo
from headway.plan import Plan, Question
from headway.sim import Deployment
from headway.specs import from_mapping, read_yaml, write_yaml

LIMITS = ("--rate", "2", "--ttft", "1s", "--tpot", "60ms", "--requests", "60")
POOLS = {"pools": [{"replica": {"model": "llama-3.1-8b", "gpu": "ours.yaml"}}]}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the file, in which one works."""
    (tmp_path / "ours.yaml").write_text(AROUND)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def planned(folder):
    words = ("--gpu", "./ours.yaml", "--gpus", "1", "--price", "a100-of-ours=3", *LIMITS)
    made = run("plan", "--model", "llama-3.1-8b", *words, "--json", "plan.json", "--yaml", "best.yaml")
    assert made.exit_code == 0, made.output
    assert str(folder) not in made.stdout and "1 ours.yaml, $3.00 per hour" in " ".join(made.stdout.split())
    return folder


def test_a_plan_of_a_gpu_in_a_file_is_read_in_every_folder(planned, monkeypatch):
    monkeypatch.chdir(planned / "elsewhere")
    again = run("report", "../plan.json", "--html", "plan.html")
    assert again.exit_code == 0 and "up to 1 ours.yaml" in again.stdout, again.output
    assert "<title>Headway plan: llama-3.1-8b on ours.yaml<" in (planned / "elsewhere" / "plan.html").read_text()
    for file in ("../plan.json", "../best.yaml"):
        made = run("simulate", file, "--rate", "2", "--requests", "20")
        assert made.exit_code == 0, made.output
    text = (planned / "plan.json").read_text()
    plan = Plan.from_json(text)
    assert plan.question.gpu == str(planned / "ours.yaml")
    assert json.loads(plan.to_json()) == json.loads(text)


@pytest.mark.parametrize(
    ("was", "wrong", "said"),
    [
        ("like: a100-80gb-sxm", "like: h100", "like: unknown GPU 'h100': nearest: h100-"),
        ("value: 4,", "value: 4.5,", "gpus_per_node 4.5: expected a whole number, 1 to 1,024"),
        ("value: 3.1e9,", "value: 0,", "rdma_bytes_per_s 0: expected a number, above 0"),
        ("rdma_bytes_per_s: {value: 3.1e9", "usd_per_hour: {value: -1", "usd_per_hour -1: expected a number, 0 or"),
        ("rdma_bytes_per_s: {value: 3.1e9", "rdma_latency_s: {value: 3 h 5", "rdma_latency_s: time '3 h 5' is not"),
    ],
)
def test_what_is_wrong_within_a_file_names_the_file(folder, was, wrong, said):
    assert was in AROUND
    (folder / "ours.yaml").write_text(AROUND.replace(was, wrong))
    made = run("plan", "--model", "llama-3.1-8b", "--gpu", "ours.yaml", "--gpus", "1", *LIMITS)
    refused(made, f"{folder / 'ours.yaml'}: {said}")


def test_a_figure_of_no_group_is_refused_by_its_file(folder):
    whole = {
        "sources": {"ours": {"kind": "measured", "source": "our own cluster"}},
        "gpus": {"mine": {"name": "Mine", "vendor": "Us", "link_kind": "pcie", "figures": {}}},
    }
    for figure in ("links.bf16", "name.bf16"):
        whole["gpus"]["mine"]["figures"] = {figure: {"value": 1, "source": "ours"}}
        (folder / f"{figure[:2]}mine.yaml").write_text(json.dumps(whole))
        with pytest.raises(BadInput, match=rf"mine\.yaml: unknown figure '{figure}': only those of peak_flops"):
            gpu(f"{figure[:2]}mine.yaml")


def test_a_gateways_file_brings_the_gpus_file_along(planned, monkeypatch):
    monkeypatch.chdir(planned / "elsewhere")
    assert run("export", "../plan.json", "--to", "gateway", "--out", "ex").exit_code == 0
    (planned / "ours.yaml").unlink()  # as on another machine
    written = planned / "elsewhere" / "ex"
    assert (written / "ours.yaml").read_text() == AROUND
    assert read_yaml(written / "gateway.yaml")["pools"][0]["replica"]["gpu"] == "ours.yaml"
    for place, file in ((written, "gateway.yaml"), (planned, "elsewhere/ex/gateway.yaml")):
        monkeypatch.chdir(place)
        found = run("simulate", file, "--rate", "2", "--requests", "20")
        assert found.exit_code == 0, found.output


def test_containers_find_the_gpus_file_beside_the_gateways(folder):
    write_yaml(POOLS, folder / "gateway-of.yaml")
    assert run("export", "gateway-of.yaml", "--to", "compose", "--out", "ex").exit_code == 0
    front = read_yaml(folder / "ex" / "compose.yaml")["services"]["gateway"]
    assert "./ours.yaml:/etc/headway/ours.yaml:ro" in front["volumes"]
    assert (folder / "ex" / "ours.yaml").read_text() == AROUND


def test_files_of_one_name_are_kept_apart(folder):
    (folder / "gateway.yaml").write_text(AROUND)
    (folder / "elsewhere" / "ours.yaml").write_text(AROUND.replace("4,", "2,"))
    paths = ["ours.yaml", "elsewhere/ours.yaml", "gateway.yaml", "ours.yaml"]
    pools = [{"replica": {"model": "llama-3.1-8b", "gpu": path}} for path in paths]
    write_yaml({"pools": pools}, folder / "three.yaml")
    assert run("export", "three.yaml", "--to", "gateway", "--out", "ex").exit_code == 0
    ours = [pool["replica"]["gpu"] for pool in read_yaml(folder / "ex" / "gateway.yaml")["pools"]]
    assert ours == ["ours.yaml", "gpu-ours.yaml", "gpu-gateway.yaml", "ours.yaml"]
    assert [gpu(f"ex/{name}").gpus_per_node for name in ours] == [4, 2, 4, 4]


def test_a_deployments_file_may_name_what_lies_beside_it(folder, monkeypatch):
    write_yaml(POOLS, folder / "ours-deployed.yaml")
    monkeypatch.chdir(folder / "elsewhere")
    found = run("simulate", "../ours-deployed.yaml", "--rate", "2", "--requests", "20")
    assert found.exit_code == 0 and "on ours.yaml" in found.stdout, found.output
    (folder / "ours.yaml").unlink()
    refused(run("simulate", "../ours-deployed.yaml", "--rate", "2"), "no such file here", "nor beside", "../ours.yaml")


def test_paths_to_one_file_are_one_gpu(folder):
    one, same = (
        from_mapping(Deployment, {"pools": [{"replica": {"model": "llama-3.1-8b", "gpu": path}}]}, "")
        for path in ("ours.yaml", "elsewhere/../ours.yaml")
    )
    assert one == same
    with pytest.raises(BadInput, match="name each kind once"):
        asked({"ours.yaml": 1, "./ours.yaml": 1})


def asked(stock, **usd):
    return Question(model="llama-3.1-8b", gpu=stock, slo=Slo(tpot_s=0.05), rate_req_s=1.0, usd_per_gpu_hour=usd)


def test_a_price_is_of_the_name_in_the_file_where_one_file_has_it(folder):
    path = str(folder / "ours.yaml")
    assert asked({"ours.yaml": 1, "l4": 1}, **{"a100-of-ours": 3.0, "l4": 0.5}).usd_per_hour(path) == 3.0
    assert asked({"ours.yaml": 1}, **{"./ours.yaml": 2.0}).usd_per_hour(path) == 2.0
    (folder / "twin.yaml").write_text(AROUND)
    for stock, name in (({"ours.yaml": 1, "twin.yaml": 1}, "a100-of-ours"), ({"ours.yaml": 1}, "a100-of-theirs")):
        with pytest.raises(BadInput, match=f"usd_per_gpu_hour of {name} against gpu .*ours.yaml"):
            asked(stock, **{name: 3.0})
