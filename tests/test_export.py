"""Exports: what is written says the deployment, all of it or with a note; engines and Kubernetes would take it."""

import re
import shlex
from pathlib import Path

import kubernetes_validate
import msgspec
import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cli_cases import run
from export_cases import REPOSITORIES, commands, deployments, engines, fits, pods, refused
from headway.cost import EngineSettings, Replica, memory_fit
from headway.cost.speculation import Speculation
from headway.errors import BadInput, HeadwayError, UnknownName
from headway.export import Command, export, read_command, targets
from headway.export.engine import settings as said_of
from headway.export.llmd import PICKERS, picker
from headway.export.manifests import check
from headway.export.place import host_gpus, place, spread
from headway.export.recorded import parse, recorded
from headway.export.target import target
from headway.gateway import GatewaySpec
from headway.hardware import Link, gpu
from headway.metrics import Slo
from headway.sim import Deployment, Policies, Pool
from headway.specs import from_mapping, read_yaml

GOLDEN = Path(__file__).parent / "exports"
NAMES = [each.name for each in targets()]
KUBERNETES = "1.33"


def one(count=1, role=None, policies=None, **replica):
    """A deployment of one replica's kind, mixed or prefill and decode."""
    made = Replica(**{"model": "llama-3.1-70b", "gpu": "h100-sxm", "tp": 4, **replica})
    pools = (Pool(count=count, replica=made),)
    if role:
        pools = (Pool(role="prefill", count=count, replica=made), Pool(role="decode", count=count, replica=made))
    return Deployment(pools=pools, policies=policies or Policies())


# --- laws ---


def expressible(deployment: Deployment, to: str) -> bool:
    """What the targets are documented to hold: docs/export.md, the table of refusals."""
    replica, engine = deployment.pools[0].replica, deployment.pools[0].replica.engine
    split, hosts = deployment.pools[0].role != "mixed", spread(replica)
    if to == "gateway":
        return not split or engine.name == "vllm"
    if to in ("vllm", "sglang", "trtllm") and to != engine.name:
        return False
    whole_ranks = host_gpus(gpu(replica.gpu)) % (replica.tp * replica.pp) == 0
    if engine.name == "vllm" and replica.ep not in (1, replica.tp * replica.dp):
        return False
    if engine.name == "vllm" and hosts > 1 and replica.dp > 1 and not whole_ranks and to != "dynamo":
        return False
    if engine.name == "trtllm" and replica.dp > 1 and replica.tp > 1:
        return False
    if engine.name == "trtllm" and replica.model == "llama-3.1-70b" and replica.weights == "fp8":
        return False
    one_machine = max(max(each.hosts) for each in place(deployment)) == 0
    return {
        "compose": one_machine,
        "kubernetes": not (split and engine.name != "vllm") and not (engine.name == "trtllm" and hosts > 1),
        "llm-d": engine.name == "vllm",
    }.get(to, True)


def equal_or_noted(made: Command, deployment: Deployment, role: str, notes: tuple[str, ...]) -> None:
    """Every setting is in the command, or a note begins with its name."""
    replica = deployment.pools[0].replica
    got, want = read_command(made), said_of(replica, role)
    if want["drafted"]:
        want["drafted"] = (REPOSITORIES.get(want["drafted"][0], want["drafted"][0]), want["drafted"][1])
    for name, value in want.items():
        assert got[name] == value or any(re.match(rf"(engine\.)?{name}\b", note) for note in notes), name


@pytest.mark.parametrize("to", NAMES)
@settings(max_examples=40, deadline=None)
@given(deployment=deployments())
def test_what_a_target_can_express_is_exported_and_reads_back_as_the_same_settings(to, deployment):
    assume(fits(deployment))
    if not expressible(deployment, to):
        with pytest.raises(HeadwayError):
            export(deployment, to)
        return
    made = export(deployment, to)
    found = commands(made.files, deployment.pools[0].replica.engine.name)
    for name, command in found.items():
        role = name.split("-")[0]
        equal_or_noted(command, deployment, role, made.notes)
    if to != "gateway":
        assert {name.split("-")[0] for name in found} == {pool.role for pool in deployment.pools}


@settings(max_examples=40, deadline=None)
@given(engine=engines(), order=st.sampled_from(["fcfs", "priority", "sjf"]))
def test_nothing_is_dropped_in_silence(engine, order):
    replica = Replica(model="llama-3.1-70b", gpu="h200", tp=4, cap_watts=400.0, engine=engine)
    deployment = Deployment(pools=(Pool(replica=replica),), policies=Policies(order=order))
    assume(fits(deployment))
    notes = "\n".join(export(deployment, engine.name).notes)
    unsaid = {
        "engine.version": engine.version != "",
        "engine.poll_steps": engine.poll_steps != 1 and engine.name != "sglang",
        "engine.align_steps": engine.align_steps != 0,
        "engine.speculation.acceptance": engine.speculation is not None,
        "policies.order": order != "fcfs"
        and (order, engine.name) not in (("priority", "vllm"), ("priority", "sglang")),
        "cap_watts": True,
        "policies.route": True,
    }
    assert {name: name in notes for name in unsaid} == unsaid


@settings(max_examples=30, deadline=None)
@given(deployment=deployments())
def test_no_gpu_is_given_to_two_replicas(deployment):
    taken = [(host, number) for each in place(deployment) for host in each.hosts for number in each.gpus]
    assert len(taken) == len(set(taken)) == deployment.gpus
    most = host_gpus(gpu(deployment.pools[0].replica.gpu))
    assert max(number for _, number in taken) < most
    ports = [(each.hosts[0], each.port) for each in place(deployment)]
    assert len(ports) == len(set(ports))


# --- theory ---


@pytest.mark.parametrize("utilization", [0.8, 0.9])
def test_engines_that_count_memory_otherwise_get_the_same_kv_bytes(utilization):
    engine = EngineSettings(name="sglang", memory_utilization=utilization)
    fit = memory_fit(one(engine=engine).pools[0].replica)
    words = commands(export(one(engine=engine), "sglang").files, "sglang")["mixed-0"].words
    static = parse("sglang", list(words[3:]))["--mem-fraction-static"]
    assert static * fit.memory_bytes - fit.weight_bytes == pytest.approx(fit.kv_bytes, abs=0.001 * fit.memory_bytes)
    files = export(one(engine=EngineSettings(name="trtllm", memory_utilization=utilization)), "trtllm").files
    free = yaml.safe_load(files["mixed-0.yaml"])["kv_cache_config"]["free_gpu_memory_fraction"]
    left = fit.memory_bytes - fit.needed_bytes
    assert free * left == pytest.approx(fit.kv_bytes, abs=0.001 * fit.memory_bytes)


def test_sglang_is_given_the_sums_that_it_divides_among_ranks():
    engine = EngineSettings(name="sglang", max_batched_tokens=4096, max_seqs=128)
    deployment = one(model="deepseek-v3", gpu="h200", tp=1, dp=8, ep=8, weights="fp8", engine=engine)
    flags = parse("sglang", list(commands(export(deployment, "sglang").files, "sglang")["mixed-0"].words[3:]))
    assert (flags["--tp-size"], flags["--attn-dp-size"]) == (8, 8)
    assert (flags["--chunked-prefill-size"], flags["--max-running-requests"]) == (8 * 4096, 8 * 128)


# --- parity: engines and Kubernetes take it ---


def test_every_flag_is_one_of_the_recorded_parser_and_a_wrong_one_is_refused():
    assert parse("vllm", ["--max-num-seqs", "4", "--enable-prefix-caching"]) == {
        "--max-num-seqs": 4,
        "--enable-prefix-caching": True,
    }
    with pytest.raises(UnknownName, match="--max-num-seqs"):
        parse("vllm", ["--max-num-seq", "4"])
    with pytest.raises(BadInput, match="expected int"):
        parse("vllm", ["--max-num-seqs", "many"])
    with pytest.raises(UnknownName, match="priority"):
        parse("vllm", ["--scheduling-policy", "prioritie"])
    with pytest.raises(BadInput, match="takes a value"):
        parse("sglang", ["--tp-size"])


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_a_recorded_parser_says_its_version_and_source(engine):
    assert re.match(r"\d+\.\d+", recorded(engine).version)
    assert "Apache-2.0" in recorded(engine).source
    assert len(recorded(engine).flags) > 10


@pytest.mark.parametrize("to", ["kubernetes", "llm-d", "dynamo"])
@pytest.mark.parametrize(
    "replica", [{}, {"model": "deepseek-v3", "gpu": "h200", "tp": 1, "dp": 16, "ep": 16, "weights": "fp8"}]
)
@pytest.mark.parametrize("role", [None, "split"])
def test_kubernetes_takes_the_objects(to, replica, role):
    deployment = one(role=role, count=2, **replica)
    files = export(deployment, to).files
    text = files.get(f"{to}.yaml") or files["modelservers.yaml"]
    objects = list(yaml.safe_load_all(text))
    for body in objects:
        if body["apiVersion"] in ("v1", "apps/v1", "rbac.authorization.k8s.io/v1"):
            kubernetes_validate.validate(body, KUBERNETES, strict=True)
    for name, spec in pods(objects):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name.lower()}, "spec": spec}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        limits = spec["containers"][0]["resources"]["limits"]
        assert int(limits.get("nvidia.com/gpu", 0)) <= 8


def test_a_replica_on_two_hosts_is_a_group_whose_workers_count_their_ranks():
    body = next(
        body
        for body in yaml.safe_load_all(export(one(tp=8, pp=2), "kubernetes").files["kubernetes.yaml"])
        if body["kind"] == "LeaderWorkerSet"
    )
    template = body["spec"]["leaderWorkerTemplate"]
    assert template["size"] == 2
    worker = template["workerTemplate"]["spec"]["containers"][0]
    assert worker["command"][worker["command"].index("--node-rank") + 1] == "$(LWS_WORKER_INDEX)"
    assert "--headless" in worker["command"]
    assert "readinessProbe" not in worker
    ranks = one(model="deepseek-v3", gpu="h200", tp=1, dp=16, ep=16, weights="fp8")
    text = export(ranks, "kubernetes").files["kubernetes.yaml"]
    assert "$((LWS_WORKER_INDEX * 8))" in " ".join(text.split())


def test_dynamo_is_told_on_how_many_nodes_and_where_to_route():
    deployment = one(tp=8, pp=2, policies=Policies(route="prefix-affinity"))
    front, worker = yaml.safe_load(export(deployment, "dynamo").files["dynamo.yaml"])["spec"]["components"]
    assert worker["multinode"] == {"nodeCount": 2}
    limits = worker["podTemplate"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"nvidia.com/gpu": "8", "rdma/ib": "1"}
    assert front["podTemplate"]["spec"]["containers"][0]["args"] == ["--router-mode", "kv"]


def words_of_router(deployment, to):
    """The router's command in an export, its flags with all their values."""
    files = export(deployment, to).files
    if to == "compose":
        words = yaml.safe_load(files["compose.yaml"])["services"]["router"]["command"]
    elif to == "kubernetes":
        found = dict(pods(list(yaml.safe_load_all(files["kubernetes.yaml"]))))
        words = found["router"]["containers"][0]["command"]
    else:
        words = shlex.split(files["router.sh"].partition("exec ")[2].replace("\\\n", " "))
    assert words[0] == "vllm-router"
    flags = {}
    for word in words[1:]:
        if word.startswith("--"):
            last = flags.setdefault(word, [])
        else:
            last.append(word)
    parse("vllm-router", words[1:])
    return flags


@pytest.mark.parametrize("to", ["vllm", "compose"])
@pytest.mark.parametrize(("route", "policy"), [("least-requests", "power_of_two"), ("prefix-affinity", "cache_aware")])
def test_vllms_router_is_told_of_every_replica_and_a_policy(to, route, policy):
    made = one(role="split", count=3, tp=1, model="llama-3.2-1b", policies=Policies(route=route))
    flags = words_of_router(made, to)
    assert flags["--vllm-pd-disaggregation"] == []
    assert flags["--policy"] == [policy]
    for role in ("prefill", "decode"):
        assert len(set(flags[f"--{role}"])) == 3
        assert all(url.startswith("http://") for url in flags[f"--{role}"])
    notes = export(made, to).notes
    assert any(note.startswith("router: vLLM Router 0.1.17") for note in notes)
    assert any(note.startswith(f"policies.route={route}: ") for note in notes)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_no_two_programs_of_a_host_share_a_port(engine):
    many = one(role="split", count=4, tp=1, model="llama-3.2-1b", engine=EngineSettings(name=engine))
    files = export(many, engine).files
    ports = []
    for text in files.values():
        ports += re.findall(r"--port (\d+)|--disaggregation-bootstrap-port (\d+)|SIDE_CHANNEL_PORT=(\d+)", text)
    used = [int(next(filter(None, found))) for found in ports]
    assert len(used) == len(set(used)) >= 8 + 4 + 1


def test_containers_that_hand_over_have_a_router_that_waits_for_them_and_is_reached_on_loopback():
    made = export(one(role="split", count=1, tp=1, model="llama-3.2-1b"), "compose")
    services = yaml.safe_load(made.files["compose.yaml"])["services"]
    assert services["router"]["image"] == "vllm/vllm-router:v0.1.17"
    assert set(services["router"]["depends_on"]) == set(services) - {"router"}
    flags = words_of_router(one(role="split", count=1, tp=1, model="llama-3.2-1b"), "compose")
    for role in ("prefill", "decode"):
        (url,) = flags[f"--{role}"]
        assert url.removeprefix("http://").partition(":")[0] in services
    assert services["router"]["ports"] == [f"127.0.0.1:8080:{flags['--port'][0]}"]


@pytest.mark.parametrize("wide", [{}, {"model": "deepseek-v3", "weights": "fp8", "tp": 1, "dp": 16, "ep": 16}])
def test_on_kubernetes_the_router_finds_the_pods_that_answer_and_may_look_at_no_other_namespace(wide):
    made = one(role="split", count=2, **wide)
    objects = list(yaml.safe_load_all(export(made, "kubernetes").files["kubernetes.yaml"]))
    flags = words_of_router(made, "kubernetes")
    assert flags["--service-discovery-namespace"] == ["$(POD_NAMESPACE)"]
    by_kind = {body["kind"]: body for body in objects}
    assert "ClusterRole" not in by_kind
    assert by_kind["RoleBinding"]["subjects"][0]["name"] == by_kind["ServiceAccount"]["metadata"]["name"]
    for role in ("prefill", "decode"):
        (selector,) = flags[f"--{role}-selector"]
        key, _, value = selector.partition("=")
        found = [pod for pod in labelled(objects) if pod.get(key) == value]
        assert len(found) == 1
        assert found[0]["app.kubernetes.io/component"] == role
        assert found[0].get("headway/part", "leader") == "leader"
    service = next(body for body in objects if body["kind"] == "Service" and body["metadata"]["name"] == "router")
    assert [labels for labels in labelled(objects) if service["spec"]["selector"].items() <= labels.items()] == [
        {"app.kubernetes.io/name": "headway", "app.kubernetes.io/component": "router"}
    ]


def labelled(objects):
    """The labels of every kind of pod."""
    found = []
    for body in objects:
        spec = body.get("spec", {})
        templates = [spec["template"]] if body["kind"] == "Deployment" else []
        if body["kind"] == "LeaderWorkerSet":
            templates = [spec["leaderWorkerTemplate"][part] for part in ("leaderTemplate", "workerTemplate")]
        found += [template["metadata"]["labels"] for template in templates]
    return found


@pytest.mark.parametrize("name", [each.name for each in targets() if each.name not in ("compose", "gateway")])
def test_each_target_states_the_version_it_is_for(name):
    assert re.search(r"\d+\.\d+", target(name).version)


def test_a_decode_pod_of_llm_d_is_reached_through_its_sidecar():
    files = export(one(role="split"), "llm-d").files
    found = dict(pods(list(yaml.safe_load_all(files["modelservers.yaml"]))))
    engine, (sidecar,) = found["decode"]["containers"][0], found["decode"]["initContainers"]
    assert engine["command"][engine["command"].index("--port") + 1] == "8200"
    assert {"--port=8000", "--vllm-port=8200"} <= set(sidecar["args"])
    assert (sidecar["ports"][0]["name"], engine["ports"][0]["name"]) == ("http", "engine")
    assert engine["readinessProbe"]["httpGet"]["port"] == "engine"
    assert "initContainers" not in found["prefill"]
    pool = yaml.safe_load(files["inferencepool.values.yaml"])["inferencePool"]
    assert pool["targetPorts"] == [{"number": 8000}]


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("route", [*PICKERS, "mine:Router"])
def test_each_profile_of_the_picker_refers_to_plugins_that_are_there(route, split):
    config = picker(route, split)
    there = {plugin["type"] for plugin in config["plugins"]}
    used = [ref["pluginRef"] for profile in config["schedulingProfiles"] for ref in profile["plugins"]]
    assert set(used) <= there <= {*used, "prefill-header-handler", "pd-profile-handler", "single-profile-handler"}
    assert used[-1].endswith("-picker")


def test_objects_without_what_their_kind_requires_are_refused():
    (body,) = [
        b for b in yaml.safe_load_all(export(one(), "kubernetes").files["kubernetes.yaml"]) if b["kind"] == "Deployment"
    ]
    check([body])
    for change, message in (
        ({"apiVersion": "v1"}, "no such kind"),
        ({"metadata": {"name": "Mixed"}}, "small letters"),
        ({"spec": {**body["spec"], "selector": {"matchLabels": {"app": "other"}}}}, "selects"),
        ({"spec": {**body["spec"], "selector": {}}}, "matchLabels is missing"),
    ):
        with pytest.raises(BadInput, match=message):
            check([{**body, **change}])


SERVICE = {  # fields of a service that are written, of the Compose specification (compose-spec.io, 05-services.md)
    "build", "command", "depends_on", "deploy", "entrypoint", "environment", "healthcheck", "image", "ipc", "ports",
    "restart", "volumes",
}  # fmt: skip


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_compose_gives_each_replica_its_own_gpus_and_the_gateway_their_names(engine):
    made = export(one(count=2, engine=EngineSettings(name=engine)), "compose", slo=Slo(ttft_s=0.5))
    services = yaml.safe_load(made.files["compose.yaml"])["services"]
    assert all(set(service) <= SERVICE for service in services.values())
    devices = [
        services[name]["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
        for name in ("mixed-0", "mixed-1")
    ]
    assert devices == [["0", "1", "2", "3"], ["4", "5", "6", "7"]]
    gateway = yaml.safe_load(made.files["gateway.yaml"])
    assert gateway["gateway"]["upstreams"] == ["mixed-0:8000", "mixed-1:8000"]
    assert set(services["gateway"]["depends_on"]) == {"mixed-0", "mixed-1"}
    assert services["gateway"]["ports"] == ["127.0.0.1:8080:8080"]  # no tenants: not for other machines


def test_the_gateway_file_is_what_serve_reads(tmp_path):
    deployment = one(count=2, policies=Policies(route="prefix-affinity", order="edf"))
    made = export(deployment, "gateway", slo=Slo(ttft_s=0.5, tpot_s=0.05), hosts=["node-a"])
    file = tmp_path / "gateway.yaml"
    file.write_text(made.files["gateway.yaml"])
    data = read_yaml(file)
    spec = from_mapping(GatewaySpec, data.pop("gateway"), "gateway")
    assert spec.upstreams == ("node-a:8000", "node-a:8001")
    assert spec.classes[0].slo == Slo(ttft_s=0.5, tpot_s=0.05)
    assert from_mapping(Deployment, data, "file") == deployment


def test_the_gateway_file_of_pools_that_hand_over_is_what_serve_reads(tmp_path):
    replica = Replica(model="llama-3.1-8b", gpu="h100-sxm")
    pools = Pool(role="prefill", count=2, replica=replica), Pool(role="decode", count=2, replica=replica)
    made = export(Deployment(pools=pools), "gateway", slo=Slo(ttft_s=0.5))
    file = tmp_path / "gateway.yaml"
    file.write_text(made.files["gateway.yaml"])
    checked = run("serve", file, "--check")
    assert checked.exit_code == 0, checked.output
    for port, role in ((8000, "prefill"), (8001, "prefill"), (9002, "decode"), (9003, "decode")):
        assert f"127.0.0.1:{port}, {role}" in checked.output
    before = "--port=9002 --vllm-port=8002 --connector=nixlv2 --secure-proxy=false"
    assert any(before in note and "decode-0" in note for note in made.notes)
    engines = export(Deployment(pools=pools), "vllm").files
    assert command_port(engines["prefill-0.sh"]) == 8000 and command_port(engines["decode-0.sh"]) == 8002


def test_in_the_gateway_file_of_pools_that_hand_over_ranks_have_the_sum_of_their_weights():
    weights = {"prefill": [1.0, 3.0], "decode": [1.0, 1.0, 2.0, 2.0]}
    policies = Policies(route="weighted-requests", params={"route": {"weights": weights}})
    replica = Replica(model="llama-3.1-8b", gpu="h100-sxm")
    ranks = msgspec.structs.replace(replica, dp=2)
    pools = Pool(role="prefill", count=2, replica=replica), Pool(role="decode", count=2, replica=ranks)
    made = export(Deployment(pools=pools, policies=policies), "gateway")
    route = yaml.safe_load(made.files["gateway.yaml"])["policies"]["params"]["route"]
    assert route["weights"] == {"prefill": [1.0, 3.0], "decode": [2.0, 4.0]}


def command_port(script: str) -> int:
    return int(script.split("--port ")[1].split()[0])


# --- golden: one typical deployment a target ---


@pytest.mark.parametrize("to", NAMES)
def test_a_typical_deployment(to):
    """`headway export TARGET.deployment.yaml --to TARGET --out TARGET`, run in tests/exports, writes these anew."""
    deployment = from_mapping(Deployment, read_yaml(GOLDEN / f"{to}.deployment.yaml"), to)
    written = {path.name: path.read_text(encoding="utf-8") for path in (GOLDEN / to).iterdir()}
    assert export(deployment, to).files == written


# --- refusals ---


@pytest.mark.parametrize(
    ("deployment", "to", "parts"),
    [
        (one(), "vlm", ["unknown export", "nearest: vllm"]),
        (one(), "sglang", ["pools.0.replica.engine.name=vllm", "--to vllm"]),
        (one(engine=EngineSettings(name="llama.cpp")), "compose", ["llama.cpp", "vllm, sglang, trtllm"]),
        (one(model="sized:8b", tp=1), "vllm", ["sized:8b", "--model-path"]),
        (one(tp=3), "vllm", ["pools.0.replica", "tp=3", "allowed"]),
        (one(weights="fp8", engine=EngineSettings(name="trtllm")), "trtllm", ["published in bf16", "--model-path"]),
        (one(role="split", engine=EngineSettings(name="sglang")), "kubernetes", ["router of sglang", "dynamo"]),
        (one(role="split", engine=EngineSettings(name="sglang")), "gateway", ["sidecar", "sglang", "layouts=[mixed]"]),
        (one(count=3), "compose", ["one machine", "12 GPUs"]),
        (one(engine=EngineSettings(name="sglang")), "llm-d", ["vLLM's metrics", "dynamo"]),
        (one(gpu="a100-40gb-sxm", tp=1), "vllm", ["does not fit on a100-40gb-sxm", "tp=8 would do"]),
    ],
)
def test_what_cannot_be_exported_says_why_and_what_to_try(deployment, to, parts):
    refused(HeadwayError, deployment, to, parts)


def test_the_hosts_given_are_as_many_as_it_takes():
    assert "on b" in export(one(count=4), "vllm", hosts=["a", "b"]).files["mixed-2.sh"]
    with pytest.raises(BadInput, match="3 addresses of hosts for a deployment on 2"):
        export(one(count=4), "vllm", hosts=["a", "b", "c"])
    with pytest.raises(BadInput, match="kubernetes finds its hosts"):
        export(one(), "kubernetes", hosts=["a"])


def test_a_checkpoint_of_ones_own_is_served_as_it_is_and_that_is_said():
    made = export(one(weights="fp8"), "vllm", model_path="/models/mine fp8")
    (command,) = commands(made.files, "vllm").values()
    assert command.words[2] == "/models/mine fp8"
    assert "--quantization" not in command.words
    assert any(note.startswith("weights: /models/mine fp8") for note in made.notes)
    (converted,) = commands(export(one(weights="fp8"), "vllm").files, "vllm").values()
    assert read_command(converted)["weights"] == "fp8"


def test_what_the_simulator_decides_and_an_engine_does_itself_is_a_note():
    ranks = one(model="deepseek-v3", gpu="h200", tp=1, dp=8, ep=8, weights="fp8", role="split")
    link = Link(name="slow", bytes_per_s=1e9, latency_s=1e-5)
    notes = export(msgspec.structs.replace(ranks, kv_link=link), "vllm").notes
    assert any(note.startswith("dp=8: the engine chooses the rank") for note in notes)
    assert any(note.startswith("kv_link=slow") for note in notes)


def test_a_power_limit_is_set_before_the_engine_starts():
    text = export(one(count=2, cap_watts=450.0, clock_mhz=1200.0), "vllm").files["mixed-1.sh"]
    assert text.index("nvidia-smi -i 4,5,6,7 -pl 450") < text.index("exec vllm")
    assert "nvidia-smi -i 4,5,6,7 -lgc 1200,1200" in text


def test_another_model_drafts_and_is_named_by_its_repository():
    engine = EngineSettings(speculation=Speculation(tokens=3, acceptance=0.7, draft="llama-3.2-1b"))
    (command,) = commands(export(one(engine=engine), "vllm").files, "vllm").values()
    assert read_command(command)["drafted"] == ("meta-llama/Llama-3.2-1B", 3)
