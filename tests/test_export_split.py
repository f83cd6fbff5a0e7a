"""Exports of prefill and decode pools: what their engines and their pods need to hand over KV."""

import re
from collections import Counter

import kubernetes_validate
import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from export_cases import commands, pods
from headway.cost import EngineSettings, Replica
from headway.errors import BadInput, DoesNotFit
from headway.export import export, read_command
from headway.export.place import place
from headway.export.recorded import parse
from headway.export.routers import ROUTER_PORT
from headway.export.wires import RDMA
from headway.hardware import gpu
from headway.model import model as native
from headway.sim import Deployment, Policies, Pool, handoff
from headway.specs import override


def split(gpu="h100-sxm", counts=(1, 1), engine=None, **replica):
    made = Replica(model="llama-3.1-8b", gpu=gpu, engine=engine or EngineSettings(), **replica)
    pools = zip(("prefill", "decode"), counts, strict=True)
    return Deployment(pools=tuple(Pool(role=role, count=count, replica=made) for role, count in pools))


@pytest.mark.parametrize("ahead", [None, True, False])
@pytest.mark.parametrize("to", ["trtllm", "compose", "dynamo"])
def test_prefill_servers_of_tensorrt_llm_have_no_overlap_scheduler(to, ahead):
    made = export(split(engine=EngineSettings(name="trtllm", ahead=ahead)), to)
    found = commands(made.files, "trtllm")
    by_role = {name.split("-")[0]: yaml.safe_load(command.config) for name, command in found.items()}
    assert by_role["prefill"]["disable_overlap_scheduler"] is True
    assert by_role["decode"].get("disable_overlap_scheduler") is (None if ahead is None else not ahead)
    assert any(note.startswith("engine.ahead: ") for note in made.notes) is (ahead is not False)
    assert all(read_command(command)["hands_over"] for command in found.values())


def pods_of(deployment, to):
    """The pods of an export that hold an engine, by their pool."""
    files = export(deployment, to).files
    text = files.get(f"{to}.yaml") or files["modelservers.yaml"]
    found = pods(list(yaml.safe_load_all(text)))
    return {name: pod for name, pod in found if name not in ("router", "Frontend")}


@pytest.mark.parametrize("to", ["kubernetes", "llm-d", "dynamo"])
def test_pods_that_hand_over_ask_for_network_cards_and_others_do_not(to):
    for pod in pods_of(split(), to).values():
        engine = pod["containers"][0]
        assert engine["resources"]["limits"][RDMA] == engine["resources"]["requests"][RDMA] == "1"
        assert engine["securityContext"] == {"capabilities": {"add": ["IPC_LOCK"]}}
    mixed = Deployment(pools=(Pool(replica=Replica(model="llama-3.1-8b", gpu="h100-sxm")),))
    for pod in pods_of(mixed, to).values():
        assert RDMA not in str(pod)
    assert not [note for note in export(mixed, to).notes if note.startswith("KV: ")]


@pytest.mark.parametrize("to", ["kubernetes", "llm-d", "dynamo"])
def test_pods_that_are_one_replica_ask_for_network_cards(to):
    wide = Deployment(pools=(Pool(replica=Replica(model="llama-3.1-405b", gpu="h100-sxm", tp=8, pp=2)),))
    made = pods_of(wide, to)
    assert made and all(RDMA in pod["containers"][0]["resources"]["limits"] for pod in made.values())
    [said] = [note for note in export(wide, to).notes if note.startswith("a replica of several hosts")]
    assert "50 GB/s a GPU" in said and RDMA in said


@pytest.mark.parametrize("to", ["kubernetes", "llm-d"])
@pytest.mark.parametrize(("counts", "when"), [((4, 4), "required"), ((4, 5), "preferred"), ((12, 1), None)])
def test_pods_that_fit_one_node_are_kept_on_one_and_others_drawn_together(to, counts, when):
    """Of 12 and 1 a node has prefill pods alone."""
    made = split(counts=counts)
    for name, pod in pods_of(made, to).items():
        assert ("affinity" in pod) is (when is not None)
        assert ("topologySpreadConstraints" in pod) is (when == "preferred")
        if when:
            [term] = pod["affinity"]["podAffinity"][f"{when}DuringSchedulingIgnoredDuringExecution"]
            term = term.get("podAffinityTerm", term)
            assert term["topologyKey"] == "kubernetes.io/hostname"
            [selected] = term["labelSelector"]["matchExpressions"]
            assert selected == {"key": "headway/role", "operator": "In", "values": ["prefill", "decode"]}
        if when == "preferred":
            [even] = pod["topologySpreadConstraints"]
            component = even["labelSelector"]["matchLabels"]["app.kubernetes.io/component"]
            assert component == name and even["topologyKey"] == "kubernetes.io/hostname"


@pytest.mark.parametrize("to", ["kubernetes", "llm-d"])
def test_kubernetes_takes_pods_that_hand_over(to):
    both = [*pods_of(split(), to).items(), *pods_of(split(counts=(6, 6)), to).items()]
    for name, spec in both:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        kubernetes_validate.validate(pod, "1.33", strict=True)


@pytest.mark.parametrize("to", ["kubernetes", "llm-d", "dynamo"])
def test_the_files_state_the_bandwidth_that_the_forecast_took(to):
    wide = split(counts=(8, 8))
    card = gpu("h100-sxm")
    assert wide.link("llama-3.1-8b") == handoff_link(wide)
    [said] = [note for note in export(wide, to).notes if note.startswith("KV: ")]
    assert f"{card.rdma_bytes_per_s / 1e9:g} GB/s a GPU (rdma)" in said
    close = export(split(), to)
    first, second = [note for note in close.notes if note.startswith("KV: ")]
    assert f"{card.link_bytes_per_s / 1e9:g} GB/s a GPU (nvlink)" in first
    assert "kv_link={name: rdma, bytes_per_s: 5e+10" in second
    assert any(second in text.replace("\n# ", "\n") for text in close.files.values())


def handoff_link(deployment):
    """The link that a simulation takes, by its speed."""
    taken = handoff(deployment, deployment.models[0])
    found = deployment.link(deployment.models[0])
    assert (found.bytes_per_s, found.latency_s) == (taken.far if deployment.wide(deployment.models[0]) else taken.near)
    return found


def test_the_link_that_is_named_for_slower_pods_is_one_that_simulate_takes():
    [_, said] = [note for note in export(split(), "kubernetes").notes if note.startswith("KV: ")]
    words = said.split("--set '")[1].split("'")[0]
    assert override(split(), [words]).kv_link.bytes_per_s == gpu("h100-sxm").rdma_bytes_per_s


@pytest.mark.parametrize("to", ["kubernetes", "llm-d", "dynamo"])
def test_every_kind_of_gpu_has_its_label_named(to):
    both = [Replica(model="llama-3.1-8b", gpu=card) for card in ("h100-sxm", "h200")]
    pools = tuple(Pool(role=role, replica=each) for role, each in zip(("prefill", "decode"), both, strict=True))
    notes = export(Deployment(pools=pools), to).notes
    for card in ("h100-sxm", "h200"):
        assert f"label the nodes by their GPU: kubectl label node NODE headway/gpu={card}" in notes


@pytest.mark.parametrize("to", ["kubernetes", "llm-d", "dynamo"])
def test_a_plan_that_keeps_kv_on_its_node_is_not_exported_with_a_router_that_does_not(to):
    made = split(counts=(6, 6))
    near = msgspec.structs.replace(made, policies=Policies(route="same-node"))
    with pytest.raises(BadInput, match=f"same-node: {to}'s router does not know where KV is"):
        export(near, to)
    scripts = export(near, "vllm")
    assert "router.sh" in export(made, "vllm").files and "router.sh" not in scripts.files
    assert len(scripts.files) == 12 and any("--to gateway does" in note for note in scripts.notes)
    file = yaml.safe_load(export(near, "gateway").files["gateway.yaml"])
    assert file["policies"]["route"] == "same-node"
    one = msgspec.structs.replace(split(counts=(1, 1)), policies=Policies(route="same-node"))
    assert export(one, to).files, "on one node all are near"


def test_replicas_whose_stages_share_hosts_meet_on_ports_of_their_own():
    made = split(engine=EngineSettings(name="sglang"), tp=4, pp=2, apart=True)
    files = export(made, "sglang").files
    assert {f"{role}-0-host-{host}.sh" for role in ("prefill", "decode") for host in (0, 1)} < set(files)
    ports = [text.split("--dist-init-addr ")[1].split()[0] for name, text in files.items() if name != "router.sh"]
    assert len(ports) == 4 and len(set(ports)) == 2
    for host in (0, 1):
        texts = [files[f"{role}-0-host-{host}.sh"] for role in ("prefill", "decode")]
        seen = [text.split("VISIBLE_DEVICES=")[1].split()[0] for text in texts]
        assert seen == ["0,1,2,3", "4,5,6,7"]
    with pytest.raises(BadInput, match="does not say which stage stands on which host"):
        export(made, "kubernetes")


@pytest.mark.parametrize(
    ("engine", "stages"), [("vllm", (2, 1)), ("vllm", (1, 2)), ("vllm", (2, 2)), ("sglang", (1, 2))]
)
def test_stages_that_an_engine_does_not_pass_kv_between_are_refused(engine, stages):
    pools = split(engine=EngineSettings(name=engine)).pools
    pools = tuple(override(pool, [f"replica.pp={pp}"]) for pool, pp in zip(pools, stages, strict=True))
    told = rf"pools.0.replica and pools.1.replica: {engine} passes KV .* not from pp {stages[0]} to pp {stages[1]}"
    for to in (engine, "compose", "kubernetes", "dynamo"):
        with pytest.raises(BadInput, match=told):
            export(Deployment(pools=pools), to)
    others = ("sglang", "trtllm") if stages[1] == 1 or stages[0] == stages[1] else ("trtllm",)
    for other in others:
        there = tuple(override(pool, [f"replica.engine.name={other}"]) for pool in pools)
        assert export(Deployment(pools=there), other).files


@pytest.mark.parametrize(
    ("model", "kv", "cards", "backend"),
    [
        ("llama-3.1-8b", "bf16", ("b200", "h200"), "TRITON_ATTN"),
        ("llama-3.1-8b", "bf16", ("h100-sxm", "rtx-pro-6000"), "TRITON_ATTN"),
        ("llama-3.1-8b", "fp8", ("h100-sxm", "l40s"), "TRITON_ATTN"),
        ("gpt-oss-20b", "bf16", ("h100-sxm", "l40s"), "TRITON_ATTN"),
        ("llama-3.1-8b", "bf16", ("h100-sxm", "a100-80gb-sxm"), None),
        ("llama-3.1-8b", "fp8", ("h100-sxm", "h100-sxm"), None),
    ],
)
def test_pools_that_may_choose_unlike_attention_backends_are_told_one(model, kv, cards, backend):
    replicas = [Replica(model=model, gpu=card, kv=kv, weights=native(model).native_dtype) for card in cards]
    pools = tuple(Pool(role=role, replica=each) for role, each in zip(("prefill", "decode"), replicas, strict=True))
    made = export(Deployment(pools=pools), "vllm")
    told = [parse("vllm", list(each.words[3:])) for each in commands(made.files, "vllm").values()]
    assert [flags.get("--attention-backend") for flags in told] == [backend] * 2
    assert any("one attention backend" in note for note in made.notes) is (backend is not None)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_pools_that_no_kv_goes_between_are_refused(engine):
    pools = [override(pool, [f"replica.engine.name={engine}"]) for pool in split().pools]
    larger = override(pools[0], ["replica.engine.block_tokens=32"])
    with pytest.raises(BadInput, match=r"pools\.0\.replica and pools\.1\.replica: .* from block_tokens 32 to 16"):
        export(Deployment(pools=(larger, pools[1])), engine)


@pytest.mark.parametrize(
    ("model", "cards", "tps", "backend"),
    [
        ("deepseek-v3", ("b200", "h200"), (8, 8), "TRITON_MLA"),
        ("deepseek-v3", ("h200", "h200"), (8, 8), None),
        ("deepseek-v3.2", ("b200", "h200"), (8, 8), "FLASHMLA_SPARSE"),
        ("deepseek-v3.2", ("b200", "b200"), (8, 8), "FLASHMLA_SPARSE"),
        ("deepseek-v3.2", ("h200", "h200"), (8, 8), None),
    ],
)
def test_pools_with_latent_attention_are_told_one_backend(model, cards, tps, backend):
    replicas = [Replica(model=model, gpu=card, tp=tp, weights="fp8") for card, tp in zip(cards, tps, strict=True)]
    pools = tuple(Pool(role=role, replica=each) for role, each in zip(("prefill", "decode"), replicas, strict=True))
    made = export(Deployment(pools=pools), "vllm")
    told = [parse("vllm", list(each.words[3:])) for each in commands(made.files, "vllm").values()]
    assert {flags.get("--attention-backend") for flags in told} == {backend}
    assert any("one attention backend" in note for note in made.notes) is (backend is not None)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
@pytest.mark.parametrize(
    ("model", "gpus", "blocks"),
    [
        ("llama-3.1-8b", ("h200", "b200"), (16, 16, 16)),
        ("deepseek-v3", ("h200", "b200"), (64, 64, 64)),
        ("deepseek-v3", ("h200",), (64, 64, 64)),
        ("deepseek-v3.2", ("b200",), (64, 64, 64)),
        ("qwen3-next-80b-a3b", ("h200", "b200"), (16, 64, None)),
        ("qwen3-next-80b-a3b", ("h200", "h200"), (16, 16, None)),
        ("qwen3-next-80b-a3b", ("b200",), (16, 64, 16)),
    ],
)
def test_blocks_are_those_that_kernels_read_and_the_same_in_both_pools(model, gpus, blocks, engine):
    told = blocks[("vllm", "sglang", "trtllm").index(engine)]
    if told is None:
        return  # it passes no states
    weights, settings = native(model).native_dtype, EngineSettings(name=engine)
    replicas = [Replica(model=model, gpu=card, tp=8, weights=weights, engine=settings) for card in gpus]
    roles = ("prefill", "decode") if len(gpus) > 1 else ("mixed",)
    pools = tuple(Pool(role=role, replica=each) for role, each in zip(roles, replicas, strict=True))
    made = export(Deployment(pools=pools), engine)
    assert {read_command(each)["block_tokens"] for each in commands(made.files, engine).values()} == {told}
    assert any(note.startswith("engine.block_tokens=16: 64 here") for note in made.notes) is (told == 64)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_requests_are_no_longer_than_kv_has_room_for_in_both_pools(engine):
    def told(model, *cards):
        replicas = [Replica(model=model, gpu=card, engine=EngineSettings(name=engine)) for card in cards]
        roles = ("prefill", "decode") if len(cards) > 1 else ("mixed",)
        pools = [Pool(role=role, replica=each) for role, each in zip(roles, replicas, strict=True)]
        made = export(Deployment(pools=tuple(pools)), engine)
        flag = {"vllm": r"--max-model-len (\d+)", "sglang": r"--context-length (\d+)", "trtllm": r"max_seq_len: (\d+)"}
        found = {int(each) for text in made.files.values() for each in re.findall(flag[engine], text)}
        return found, any(note.startswith("context: ") for note in made.notes)

    (alone,), noted = told("llama-3.1-8b", "a10g")
    assert 10_000 < alone < 30_000 and noted
    assert told("llama-3.1-8b", "h100-sxm", "a10g") == ({alone}, True)
    assert told("llama-3.1-8b", "h100-sxm") == (set(), False)
    assert told("llama-3.1-8b:16384", "a10g") == ({16384}, False)
    with pytest.raises(DoesNotFit, match="65,536 tokens"):
        told("llama-3.1-8b:65536", "a10g")


def test_vllm_takes_no_more_sequences_than_it_has_room_for_states_of():
    def told(model, card):
        made = export(Deployment(pools=(Pool(replica=Replica(model=model, gpu=card)),)), "vllm")
        (command,) = commands(made.files, "vllm").values()
        return read_command(command)["max_seqs"], any(note.startswith("engine.max_seqs=256: ") for note in made.notes)

    few, noted = told("qwen3.5-9b", "a10g")
    assert 10 <= few <= 100 and noted, "it has some 107 blocks there"
    assert told("qwen3.5-9b", "h200") == (256, False)
    assert told("llama-3.1-8b", "a10g") == (256, False)


def test_a_window_has_room_for_what_two_steps_add_to_it():
    def told(budget_tokens):
        engine = EngineSettings(max_batched_tokens=budget_tokens)
        replica = Replica(model="gemma-3-12b", gpu="a100-40gb-sxm", engine=engine)
        (text,) = export(Deployment(pools=(Pool(replica=replica),)), "vllm").files.values()
        found = re.search(r"--max-model-len (\d+)", text)
        return int(found[1]) if found else None

    assert told(2048) is None and told(8192) < 131_072


def test_sglang_computes_prompts_in_whole_blocks():
    made = split(engine=EngineSettings(name="sglang", max_batched_tokens=2040))
    with pytest.raises(BadInput, match=r"max_batched_tokens=2040: .* whole blocks, here of 16; set a multiple"):
        export(made, "sglang")


@st.composite
def shapes(draw):
    """Prefill and decode pools of vLLM: replicas of one GPU to four hosts, with data-parallel ranks."""
    key, card = draw(
        st.sampled_from([("llama-3.1-8b", "h100-sxm"), ("qwen3-30b-a3b", "h100-sxm"), ("deepseek-v3", "h200")])
    )
    pools = []
    for role in ("prefill", "decode"):
        layout = {"tp": draw(st.sampled_from([1, 2, 4, 8]))}
        if key != "llama-3.1-8b":
            dp = draw(st.sampled_from([2, 4] if key == "qwen3-30b-a3b" else [8, 16, 32]))
            layout = {"tp": 1, "dp": dp, "ep": dp}
        replica = Replica(model=key, gpu=card, weights="fp8", kv="fp8", **layout)
        pools.append(Pool(role=role, count=draw(st.integers(1, 8)), replica=replica))
    return Deployment(pools=tuple(pools))


@settings(max_examples=60, deadline=None)
@given(deployment=shapes())
def test_no_port_of_a_host_is_taken_twice_by_engines_sidecars_and_routers(deployment):
    """The router and the gateway may be started on any of the hosts."""
    files = export(deployment, "vllm").files
    replicas = dict(zip(deployment.pool_names(), (pool.replica for pool in deployment.pools), strict=True))
    used = Counter()
    for name, command in commands(files, "vllm").items():
        text, flags = files[f"{name}.sh"], parse("vllm", list(command.words[3:]))
        host, replica = re.search(rf"# {name} on (\S+)", text)[1], replicas[name.partition("-")[0]]
        ports = ["--port", "--master-port", "--data-parallel-rpc-port"]
        ports = [] if "--headless" in flags else [flags[port] for port in ports if port in flags]
        first = int(re.search(r"SIDE_CHANNEL_PORT=(\d+)", text)[1])
        ports += range(first, first + max(replica.dp, min(replica.gpus, 8)))  # or one for each GPU, as up to 0.11
        used.update((host, port) for port in ports)
    for note in export(deployment, "gateway").notes:
        if found := re.search(r"before .* on (\S+): .*--port=(\d+)", note):
            used[found[1], int(found[2])] += 1
    hosts = {host for host, _ in used}
    used.update((host, port) for host in hosts for port in (ROUTER_PORT, 8080))
    assert len(hosts) == 1 + max(host for each in place(deployment) for host in each.hosts)
    assert [where for where, programs in used.items() if programs > 1] == []


def test_ranks_on_other_hosts_hand_over_kv_at_their_own_address():
    ranks = Replica(model="deepseek-v3", gpu="h200", dp=16, ep=16, weights="fp8")
    pools = tuple(Pool(role=role, replica=ranks) for role in ("prefill", "decode"))
    files = export(Deployment(pools=pools), "vllm", hosts=["a", "b", "c", "d"]).files
    where = [f"{role}-0-host-{host}.sh" for role in ("prefill", "decode") for host in (0, 1)]
    assert [re.search(r"SIDE_CHANNEL_HOST=(\S+)", files[name])[1] for name in where] == ["a", "b", "c", "d"]


def standing_on(*nodes, **replica):
    made = split(counts=[len(each) for each in nodes], **replica)
    pools = zip(made.pools, nodes, strict=True)
    return Deployment(pools=tuple(msgspec.structs.replace(pool, nodes=each) for pool, each in pools))


@pytest.mark.parametrize("to", ["kubernetes", "llm-d", "dynamo"])
def test_nodes_that_pods_do_not_follow_are_in_a_note_and_a_comment(to):
    made = export(standing_on((0, 0, 1, 1), (2, 2), tp=4), to)
    [said] = [note for note in made.notes if note.startswith("pools.0.nodes, pools.1.nodes: pods stand where")]
    assert "export to vllm" in said and any(said in text for text in made.files.values())
    assert not any(".nodes" in note for note in export(split(counts=(4, 2), tp=4), to).notes), "none were named"
    together = export(standing_on((0, 0), (0,)), to).notes
    assert any(".nodes" in note for note in together) is (to == "dynamo"), "the others keep all pods on one node"


def test_scripts_stand_on_the_nodes_that_the_pools_name_and_hosts_of_a_rack_are_in_a_note():
    made = export(standing_on((0, 0, 1, 1), (2, 2), tp=4), "vllm")
    hosts = [re.search(r" on (\S+)", made.files[f"{name}.sh"])[1] for name in ("prefill-1", "prefill-2", "decode-0")]
    assert hosts == ["host-0", "host-1", "host-2"] and not any(".nodes" in note for note in made.notes)
    for to in ("vllm", "compose"):
        notes = export(standing_on((0,), (1,), gpu="gb200"), to).notes
        assert any(note.startswith("pools.0.nodes: a host has 4 of the 72 GPUs") for note in notes)
