"""What differs between the makers of GPUs: images, the variable that hides devices, resources, power limits.

Sources are in docs/export.md. Who is not in the table is refused: no image and no resource of theirs was looked up.
"""

from __future__ import annotations

from typing import Any

import msgspec

from headway.cost import Replica
from headway.errors import BadInput
from headway.export.recorded import recorded
from headway.hardware import gpu

__all__ = ["Vendor", "devices", "image", "power_limits", "vendor"]

CDNA3, CDNA4 = ("mi300", "mi325"), ("mi350", "mi355")
ROCM = (*CDNA3, *CDNA4, "mi2", "rx-79", "rx-90", "w7900", "ai-pro-r9700")  # that vLLM's ROCm build is made for
ANY = ("",)


class Vendor(msgspec.Struct, frozen=True):
    """How one maker's GPUs are given to an engine.

    Attributes:
        visible: the variable that says which devices a process sees.
        resource: what a pod asks Kubernetes for.
        images: by engine: beginnings of GPUs' names, and the image for these, with {version} of the recorded parser.
        tool: what sets limits, on the host and as root.
        power, clock: its command for {devices} and {watts} or {mhz}; `joint` stands between devices.
        grants: what a service of compose has beside its variables; None where it reserves devices by number.
    """

    visible: str
    resource: str
    images: dict[str, tuple[tuple[tuple[str, ...], str], ...]]
    tool: str
    power: str
    clock: str
    joint: str
    grants: dict[str, list[str]] | None = None


VENDORS = {
    "NVIDIA": Vendor(
        visible="CUDA_VISIBLE_DEVICES",
        resource="nvidia.com/gpu",
        images={
            "vllm": ((ANY, "vllm/vllm-openai:v{version}"),),
            "sglang": ((ANY, "lmsysorg/sglang:v{version}"),),
            "trtllm": ((ANY, "nvcr.io/nvidia/tensorrt-llm/release:{version}.0"),),
        },
        tool="nvidia-smi",
        power="sudo nvidia-smi -i {devices} -pl {watts:g}",
        clock="sudo nvidia-smi -i {devices} -lgc {mhz:g},{mhz:g}",
        joint=",",
    ),
    "AMD": Vendor(
        visible="HIP_VISIBLE_DEVICES",
        resource="amd.com/gpu",
        images={
            "vllm": ((ROCM, "vllm/vllm-openai-rocm:v{version}"),),
            "sglang": (
                (CDNA3, "lmsysorg/sglang:v{version}-rocm720-mi30x"),
                (CDNA4, "lmsysorg/sglang:v{version}-rocm720-mi35x"),
            ),
        },
        tool="rocm-smi",  # amd-smi took the arguments of a power cap in another order with each of its last releases
        power="sudo rocm-smi -d {devices} --setpoweroverdrive {watts:g} --autorespond y",
        clock="sudo rocm-smi -d {devices} --setperfdeterminism {mhz:g}",
        joint=" ",
        grants={
            "devices": ["/dev/kfd", "/dev/dri"],
            "group_add": ["video"],
            "cap_add": ["SYS_PTRACE"],
            "security_opt": ["seccomp=unconfined"],
        },
    ),
}


def vendor(replica: Replica, where: str) -> Vendor:
    """Return how the GPUs of a replica are given to its engine; `where` names the replica in messages.

    Raises:
        BadInput: GPUs of a maker, or an engine on them, that no export is known for.
    """
    card, engine = gpu(replica.gpu), replica.engine.name
    found = VENDORS.get(card.vendor)
    if found is None:
        raise BadInput(
            f"{where}.replica.gpu={replica.gpu}: it is {card.vendor}'s, and exports are known for GPUs of "
            f"{' and '.join(VENDORS)}: --to gateway writes the file that `headway serve` reads, before servers that "
            "you start yourself; or plan with another --gpu"
        )
    if engine not in found.images:
        raise BadInput(
            f"{where}.replica.gpu={replica.gpu}: {engine} has no image for {card.vendor} GPUs, "
            f"{' and '.join(found.images)} have: plan with --engine {next(iter(found.images))}, or with another --gpu"
        )
    image(engine, replica.gpu, where)
    return found


def image(engine: str, key: str, where: str = "pools") -> str:
    """Return the published image of the recorded version for a GPU of the catalogue.

    Raises:
        BadInput: none for this GPU.
    """
    card = gpu(key)
    known = VENDORS[card.vendor].images[engine]
    for starts, name in known:
        if (card.like or card.key).startswith(starts):
            return name.format(version=recorded(engine).version)
    allowed = ", ".join(f"{start}..." for starts, _ in known for start in starts)
    raise BadInput(
        f"{where}.replica.gpu={key}: {engine} publishes no image for it; there are some for {allowed}: plan with "
        "one of these, or --to gateway before servers that you start yourself"
    )


def power_limits(replica: Replica, numbers: str) -> list[str]:
    """Return the commands that set the power limit and the clock of a host's GPUs; `numbers` as 0,1,2."""
    maker = VENDORS[gpu(replica.gpu).vendor]
    which, lines = numbers.replace(",", maker.joint), []
    if replica.cap_watts is not None:
        lines.append(maker.power.format(devices=which, watts=replica.cap_watts))
    if replica.clock_mhz is not None:
        lines.append(maker.clock.format(devices=which, mhz=replica.clock_mhz))
    return lines


def devices(replica: Replica, numbers: tuple[int, ...]) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the variables and the fields by which a service of compose gets these GPUs."""
    maker = VENDORS[gpu(replica.gpu).vendor]
    if maker.grants is not None:  # the whole of the driver, and a variable that hides the others
        return {maker.visible: ",".join(map(str, numbers))}, dict(maker.grants)
    device = {"driver": "nvidia", "device_ids": [str(number) for number in numbers], "capabilities": ["gpu"]}
    return {}, {"deploy": {"resources": {"reservations": {"devices": [device]}}}}
