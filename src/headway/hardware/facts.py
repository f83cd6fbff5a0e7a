"""What is known of a GPU, of a link and of a node.

Bandwidths are bytes per second in ONE direction; vendors mostly print both directions added. Peaks are dense;
vendors mostly print them with 2:4 sparsity, which serving does not use.
"""

from __future__ import annotations

from typing import Literal

from headway.errors import BadInput
from headway.specs import Spec, check_types

__all__ = ["Gpu", "Link", "LinkKind", "LinkTopology", "Node", "Source", "SourceKind"]

SourceKind = Literal["vendor", "measured", "modelled"]
LinkKind = Literal["nvlink", "pcie", "xgmi", "roce", "upi"]
LinkTopology = Literal["switch", "mesh"]
_BF16_SINCE = 8.0  # NVIDIA's compute capability, from Ampere on


class Source(Spec, frozen=True, kw_only=True):
    """Where a number is from.

    `vendor`: data sheet or price list of who sells it. `measured`: read off real hardware. `modelled`:
    derived or estimated by us, as `source` says.
    """

    kind: SourceKind
    source: str


class Gpu(Spec, frozen=True, kw_only=True):
    """One accelerator as it is commonly sold; a CPU socket counts as one too.

    Attributes:
        key: the name users type.
        memory_bytes: what the driver reports, less than the data sheet where ECC takes its part.
        memory_bytes_per_s: peak bandwidth of that memory.
        peak_flops: dense operations per second by dtype, of `bf16` (fp16 is equal), `fp8`, `int8`, `fp4`;
            only those the hardware has.
        sm_count: streaming multiprocessors, compute units, tensor processor cores or CPU cores.
        compute_capability: of GPUs of NVIDIA below 8.0, which have no bf16: their peaks of `bf16` are those of fp16, or
            of FP32 where that is faster; None for all others.
        boost_mhz: highest clock of the SMs, which locked clocks are counted from; None where no vendor prints it.
        link_bytes_per_s: all scale-up links of one GPU together, one direction.
        link_latency_s: smallest all-reduce between two GPUs of a node, launched from a graph.
        link_topology: over a `switch` any peer gets the whole bandwidth; in a `mesh` each peer has its own
            equal part.
        pcie_bytes_per_s: between GPU and host, one direction.
        rdma_bytes_per_s: one GPU's share of the node's network cards, one direction.
        rdma_latency_s: one small message between GPUs of two nodes.
        gpus_per_node: the largest scale-up domain commonly sold.
        idle_watts: with the driver loaded and no process; a resident engine keeps clocks up and draws more.
        usd_per_hour: on demand, for one GPU with its share of the host; None when nobody lists a price.
        price_date: ISO date of that price.
        sources: one entry per number, keyed by field name, for peaks by `peak_flops.<dtype>`.
        like: the catalogue's key of the same GPU, whose laws hold, where only its node, links or price differ.
    """

    key: str
    name: str
    vendor: str
    memory_bytes: int
    memory_bytes_per_s: float
    peak_flops: dict[str, float]
    sm_count: int
    compute_capability: float | None = None
    boost_mhz: float | None = None
    link_kind: LinkKind
    link_bytes_per_s: float
    link_latency_s: float
    link_topology: LinkTopology = "switch"
    pcie_bytes_per_s: float
    rdma_bytes_per_s: float
    rdma_latency_s: float
    gpus_per_node: int
    tdp_watts: float
    idle_watts: float
    usd_per_hour: float | None
    price_date: str
    sources: dict[str, Source]
    like: str = ""

    @property
    def has_bf16(self) -> bool:
        """Whether it computes in bf16; where not, fp16 stands in for it, of the same size."""
        return self.compute_capability is None or self.compute_capability >= _BF16_SINCE


class Link(Spec, frozen=True, kw_only=True):
    """One GPU's way to its peers: bandwidth in one direction and the fixed time of a small exchange.

    Raises:
        BadInput: a value of another type, no bandwidth, or a time below 0.
    """

    name: str = ""
    bytes_per_s: float
    latency_s: float

    def __post_init__(self) -> None:
        """Refuse a link that moves nothing, or answers before it is asked."""
        check_types(self, "link")
        if not self.bytes_per_s > 0 or not self.latency_s >= 0:
            raise BadInput(
                f"link of {self.bytes_per_s:g} B/s and {self.latency_s:g} s: give bytes_per_s above 0, as in 3.1e9 "
                "for 25 Gbit/s, and latency_s of 0 or more, as in 30e-6"
            )


class Node(Spec, frozen=True, kw_only=True):
    """GPUs that reach each other over `scale_up`, and other nodes over `scale_out`."""

    key: str
    gpu: str
    gpu_count: int
    scale_up: Link
    scale_out: Link
