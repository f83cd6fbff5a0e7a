"""Exports for other GPUs than NVIDIA's: each pool has its maker's image, resource and variables, or is refused."""

import pytest
import yaml

from export_cases import commands, pods, refused
from headway.cost import EngineSettings, Replica
from headway.errors import BadInput
from headway.export import export, read_command
from headway.export.recorded import recorded
from headway.export.vendors import VENDORS
from headway.hardware import gpu, gpu_keys
from headway.sim import Deployment, Pool

NVIDIA_WORDS = ("nvidia", "CUDA", "nvcr.io")


def one(role=None, count=1, **replica):
    made = Replica(**{"model": "llama-3.1-8b", "gpu": "mi300x", **replica})
    roles = ("prefill", "decode") if role else ("mixed",)
    return Deployment(pools=tuple(Pool(role=each, count=count, replica=made) for each in roles))


def engine_images(to, files):
    """The image of each engine's container."""
    if to == "compose":
        services = yaml.safe_load(files["compose.yaml"])["services"]
        return {name: each["image"] for name, each in services.items() if name not in ("gateway", "router")}
    text = files.get("kubernetes.yaml") or files["modelservers.yaml"]
    found = pods(list(yaml.safe_load_all(text)))
    return {name: pod["containers"][0]["image"] for name, pod in found if name != "router"}


@pytest.mark.parametrize("role", [None, "split"])
@pytest.mark.parametrize("to", ["vllm", "compose", "kubernetes", "llm-d"])
def test_nothing_of_nvidia_is_in_an_export_for_amd(to, role):
    made = export(one(role=role, cap_watts=500.0, clock_mhz=1500.0), to)
    for name, text in made.files.items():
        assert not [word for word in NVIDIA_WORDS if word in text], name
    assert not [note for note in made.notes if "nvidia" in note]


@pytest.mark.parametrize("to", ["compose", "kubernetes", "llm-d"])
def test_a_pool_has_the_image_of_its_maker(to):
    images = engine_images(to, export(one(), to).files)
    assert set(images.values()) == {f"vllm/vllm-openai-rocm:v{recorded('vllm').version}"}


@pytest.mark.parametrize(("card", "suffix"), [("mi300x", "mi30x"), ("mi325x", "mi30x"), ("mi355x", "mi35x")])
def test_sglangs_image_is_the_one_of_the_architecture(card, suffix):
    files = export(one(gpu=card, engine=EngineSettings(name="sglang")), "compose").files
    (found,) = engine_images("compose", files).values()
    assert found == f"lmsysorg/sglang:v{recorded('sglang').version}-rocm720-{suffix}"


def test_scripts_hide_the_other_devices_and_limit_power_as_rocm_does():
    text = export(one(count=2, tp=2, cap_watts=500.0, clock_mhz=1500.0), "vllm").files["mixed-1.sh"]
    assert "\nexport HIP_VISIBLE_DEVICES=2,3\n" in text
    assert text.index("sudo rocm-smi -d 2 3 --setpoweroverdrive 500 --autorespond y\n") < text.index("exec vllm")
    assert "sudo rocm-smi -d 2 3 --setperfdeterminism 1500\n" in text


def test_a_service_gets_the_driver_and_sees_its_own_devices_alone():
    services = yaml.safe_load(export(one(count=2, tp=2), "compose").files["compose.yaml"])["services"]
    for name, seen in (("mixed-0", "0,1"), ("mixed-1", "2,3")):
        assert services[name]["devices"] == ["/dev/kfd", "/dev/dri"]
        assert services[name]["environment"]["HIP_VISIBLE_DEVICES"] == seen
        assert "deploy" not in services[name]


def test_two_makers_in_a_deployment_are_each_asked_for_by_their_own_names():
    pools = [Pool(replica=Replica(model="llama-3.1-8b", gpu=card)) for card in ("h100-sxm", "mi300x")]
    both = Deployment(pools=tuple(pools))
    made = export(both, "kubernetes")
    found = [pod["containers"][0] for _, pod in pods(list(yaml.safe_load_all(made.files["kubernetes.yaml"])))]
    asked = [
        ({key for key in each["resources"]["limits"] if key.endswith("/gpu")}, "rocm" in each["image"])
        for each in found
    ]
    assert asked == [({"nvidia.com/gpu"}, False), ({"amd.com/gpu"}, True)]
    scripts = export(both, "vllm").files
    assert "CUDA_VISIBLE_DEVICES" in scripts["mixed-0-0.sh"]
    assert "HIP_VISIBLE_DEVICES" in scripts["mixed-1-0.sh"]
    assert len(commands(scripts, "vllm")) == 2


@pytest.mark.parametrize("to", ["vllm", "compose", "kubernetes", "llm-d", "dynamo"])
@pytest.mark.parametrize("card", ["gaudi-3", "arc-pro-b60", "m4-max", "cpu-xeon-8480"])
def test_a_maker_that_no_export_is_known_for_is_refused(card, to):
    deployment = one(gpu=card, model="llama-3.2-1b", weights="bf16")
    with pytest.raises(BadInput, match=f"gpu={card}.*exports are known for GPUs of NVIDIA and AMD: --to gateway"):
        export(deployment, to)
    assert "upstreams" in export(deployment, "gateway").files["gateway.yaml"]


@pytest.mark.parametrize(
    ("deployment", "to", "parts"),
    [
        (one(), "dynamo", ["gpu=mi300x", "GPUs of NVIDIA", "AMD's", "export to vllm"]),
        (one(gpu="mi250", engine=EngineSettings(name="sglang")), "sglang", ["sglang publishes no image", "mi300..."]),
        (one(gpu="mi100"), "vllm", ["vllm publishes no image", "mi2..."]),
        (one(role="split", engine=EngineSettings(name="sglang")), "sglang", ["images for AMD find", "plan again"]),
    ],
)
def test_what_amd_gpus_cannot_be_given_says_why_and_what_to_try(deployment, to, parts):
    refused(BadInput, deployment, to, parts)


def test_tensorrt_llm_is_nvidias_alone():
    deployment = one(engine=EngineSettings(name="trtllm"))
    with pytest.raises(BadInput, match="GPUs of NVIDIA alone"):
        export(deployment, "trtllm")


def test_the_table_names_makers_as_the_catalogue_does():
    assert set(VENDORS) < {gpu(key).vendor for key in gpu_keys()}


@pytest.mark.parametrize("card", ["v100", "t4"])
def test_a_gpu_without_bf16_is_told_float16_and_a_note_says_so(card):
    for name in ("vllm", "sglang", "trtllm"):
        made = export(one(gpu=card, model="llama-3.2-1b", engine=EngineSettings(name=name)), name)
        text = "".join(made.files.values())
        flag = "dtype: float16" if name == "trtllm" else "--dtype float16"
        assert flag in text and "bfloat16" not in text and "bf16" not in text.replace("has no bf16", "")
        assert any(f"{card} has no bf16 (compute capability 7." in note for note in made.notes)
        (command,) = commands(made.files, name).values()
        assert read_command(command)["kv"] == "bf16"


def test_a_gpu_with_bf16_is_told_nothing_of_the_kind():
    made = export(one(gpu="l4", model="llama-3.2-1b"), "vllm")
    text = "".join(made.files.values())
    assert "--kv-cache-dtype bfloat16" in text and "float16" not in text.replace("bfloat16", "")
    assert not any("no bf16" in note for note in made.notes)


def test_pools_that_hand_over_kv_hold_it_in_one_type():
    pools = [
        Pool(role=role, replica=Replica(model="llama-3.2-1b", gpu=card))
        for role, card in (("prefill", "h100-sxm"), ("decode", "v100"))
    ]
    made = commands(export(Deployment(pools=tuple(pools)), "vllm").files, "vllm")
    assert [command.words[command.words.index("--dtype") + 1] for command in made.values()] == ["float16", "float16"]
    mixed = [Pool(replica=pool.replica) for pool in pools]
    beside = export(Deployment(pools=tuple(mixed)), "vllm")
    said = [" ".join(command.words) for command in commands(beside.files, "vllm").values()]
    assert ["--dtype float16" in each for each in said] == [False, True]
