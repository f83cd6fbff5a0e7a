"""`vllm serve`."""

from __future__ import annotations

import json
from typing import Any

from headway.cost import memory_fit
from headway.cost.engines import spreads
from headway.errors import BadInput
from headway.export import engine as e
from headway.export.recorded import parse
from headway.hardware import gpu
from headway.model import model

KV = {"bf16": "bfloat16", "fp8": "fp8"}
ORDERS = {"fcfs": "fcfs", "priority": "priority"}  # of Headway, of vLLM: in both, lower values go first
TRANSFER = {"kv_connector": "NixlConnector", "kv_role": "kv_both"}
RPC_PORT = 13345
MASTER_ABOVE = 21_501  # its server: replicas whose stages share hosts meet on a port of their own
# The scheduler of each data-parallel rank listens, on the port of the environment plus the rank's index: one port
# without such ranks (kv_connector/v1/nixl/base_scheduler.py of vllm-project/vllm: side_channel_port). Up to 0.11 each
# tensor-parallel rank did too, so a replica has as many ports as any host has GPUs. The first is vLLM's own default,
# far below the routers, the engines and the sidecars (7000, 8000 and 9000 up). A replica of more ranks than there are
# ports has its hosts to itself.
NIXL_PORT, NIXL_PORTS = 5600, 16


def command(ask: e.Ask) -> e.Command:
    """Return the command of one replica, or of its part on one host.

    Raises:
        BadInput: experts divided among some of the GPUs, weights in a precision that needs another checkpoint.
    """
    replica, engine = ask.replica, ask.replica.engine
    _check_experts(ask)
    words = [
        "vllm",
        "serve",
        ask.model_path,
        "--served-model-name",
        ask.name,
        "--host",
        "0.0.0.0",
        "--port",
        str(ask.port),
    ]
    words += ["--tensor-parallel-size", str(replica.tp), "--pipeline-parallel-size", str(replica.pp)]
    words += ["--data-parallel-size", str(replica.dp)] if replica.dp > 1 else []
    words += ["--enable-expert-parallel"] if replica.ep > 1 else []
    words += _hosts(ask)
    quantization = e.online_quantization(ask, ("fp8",))
    words += ["--quantization", quantization] if quantization else []
    words += [*e.precision_words(ask, KV), "--block-size", str(e.page_tokens(replica))]
    words += ["--gpu-memory-utilization", f"{engine.memory_utilization:g}"]
    words += ["--max-num-batched-tokens", str(engine.max_batched_tokens), "--max-num-seqs", str(_seqs(ask))]
    words += ["--enable-prefix-caching" if engine.prefix_cache else "--no-enable-prefix-caching"]
    if engine.ahead is not None:
        words += ["--async-scheduling" if engine.ahead else "--no-async-scheduling"]
    context = ask.context
    words += ["--max-model-len", str(context)] if context else []
    words += ["--scheduling-policy", "priority"] if ask.order == "priority" else []
    words += _speculation(ask)
    env = {}
    if ask.role != "mixed":
        words += ["--kv-transfer-config", json.dumps(TRANSFER)]
        words += ["--attention-backend", agreed] if (agreed := _agreed(ask)) else []
        if model(ask.replica.model).state_layers:
            env["VLLM_SSM_CONV_STATE_LAYOUT"] = "DS"  # without it the connector stops the engine
        env["VLLM_NIXL_SIDE_CHANNEL_HOST"] = ask.address  # of this host: each rank's scheduler listens on its own
        env["VLLM_NIXL_SIDE_CHANNEL_PORT"] = str(NIXL_PORT + NIXL_PORTS * (ask.port - 8000))
    return e.Command(engine="vllm", words=tuple(words), env=env, notes=tuple(_notes(ask)))


def read(built: e.Command) -> dict[str, Any]:
    """Return the settings of a command, named as `engine.settings` has them; raises BadInput, see `parse`."""
    flags = parse("vllm", list(built.words[3:]))
    tp, dp = flags["--tensor-parallel-size"], flags.get("--data-parallel-size", 1)
    drafts = json.loads(flags.get("--speculative-config", "null"))
    ahead = {"--async-scheduling": True, "--no-async-scheduling": False}
    return {
        "hands_over": "--kv-transfer-config" in flags,
        "tp": tp,
        "pp": flags["--pipeline-parallel-size"],
        "dp": dp,
        "ep": tp * dp if "--enable-expert-parallel" in flags else 1,
        "kv": e.kv_of(flags["--kv-cache-dtype"], KV),
        "weights": flags.get("--quantization", ""),
        "max_batched_tokens": flags["--max-num-batched-tokens"],
        "max_seqs": flags["--max-num-seqs"],
        "block_tokens": flags["--block-size"],
        "prefix_cache": "--enable-prefix-caching" in flags,
        "ahead": next((value for flag, value in ahead.items() if flag in flags), None),
        "drafted": drafts and (drafts.get("model", drafts["method"]), drafts["num_speculative_tokens"]),
        "memory_utilization": flags["--gpu-memory-utilization"],
    }


def _seqs(ask: e.Ask) -> int:
    """Sequences of a step: of a model with states as many as have room for theirs.

    With more than it has blocks of states the engine stops (`max_num_seqs` in vllm/config/compilation.py).
    """
    most, fit = ask.replica.engine.max_seqs, memory_fit(ask.replica)
    return min(most, max(1, fit.kv_blocks // (1 + fit.window_group))) if model(ask.replica.model).state_layers else most


def _unlike(ask: e.Ask) -> bool:
    """Whether the engine may choose another attention backend than the replicas that it passes KV with.

    They have to agree on it (docs/features/nixl_connector_compatibility.md of vllm-project/vllm). NVIDIA's GPUs from
    8.0 up to Hopper all choose FLASH_ATTN where nothing but bf16 is asked of it (vllm/platforms/cuda.py); fp8 KV, sinks
    and windows it takes on some of them. For sparse attention Blackwell chooses by the heads of a rank.
    """
    spec, cards = model(ask.replica.model), [gpu(name) for name in ask.gpus]
    plain = ask.replica.kv == "bf16" and not spec.attention_sinks and not spec.window and spec.attention != "mla"
    blackwell = any("fp4" in card.peak_flops for card in cards)
    usual = all(card.vendor == "NVIDIA" and card.has_bf16 for card in cards) and not blackwell
    return (len(cards) > 1 and not (plain and usual)) or (spec.sparse_topk > 0 and blackwell)


def _agreed(ask: e.Ask) -> str:
    """The attention backend that all of its GPUs have for its model; "" where there is no need, or none is known."""
    spec, cards = model(ask.replica.model), [gpu(name) for name in ask.gpus]
    if not _unlike(ask):
        return ""
    if spec.sparse_topk:  # on Hopper and data-centre Blackwell alone
        both = all("fp8" in card.peak_flops and card.link_kind == "nvlink" for card in cards)
        return "FLASHMLA_SPARSE" if both and ask.replica.kv == "bf16" else ""
    return "TRITON_MLA" if spec.attention == "mla" else "TRITON_ATTN"


def _check_experts(ask: e.Ask) -> None:
    replica = ask.replica
    if not spreads("vllm", replica.tp, replica.dp, replica.ep):
        raise BadInput(
            f"{ask.where}.replica.ep={replica.ep}: vLLM divides the experts among all tp * dp GPUs of a stage "
            f"(--enable-expert-parallel) or among none; set ep to 1 or {replica.tp * replica.dp}"
        )


def _hosts(ask: e.Ask) -> list[str]:
    """Flags of a replica that spans hosts: whole data-parallel ranks on each, or one rank over all of them."""
    replica = ask.replica
    if ask.hosts == 1:
        return []
    first = [] if ask.host == 0 else ["--headless"]
    if replica.dp == 1:
        return ["--nnodes", str(ask.hosts), "--node-rank", str(ask.host), "--master-addr", ask.head,
                "--master-port", str(MASTER_ABOVE + ask.port), *first]  # fmt: skip
    local, left = divmod(ask.host_gpus, replica.rank_gpus)
    if left or not local or not isinstance(ask.host, int):
        raise BadInput(
            f"{ask.where}: a data-parallel rank of {replica.rank_gpus} GPUs does not lie whole on a host that has "
            f"{ask.host_gpus} of the replica's: vLLM starts whole ranks there; lower tp or pp"
        )
    return ["--data-parallel-size-local", str(local), "--data-parallel-start-rank", str(ask.host * local),
            "--data-parallel-address", ask.head, "--data-parallel-rpc-port", str(RPC_PORT), *first]  # fmt: skip


def _speculation(ask: e.Ask) -> list[str]:
    speculation = ask.replica.engine.speculation
    if speculation is None:
        return []
    said: dict[str, Any] = {"num_speculative_tokens": speculation.tokens}
    if speculation.draft in ("mtp", "ngram"):
        said = {"method": speculation.draft, **said}
    else:
        said = {"method": "draft_model", "model": e.draft_path(ask), **said}
    return ["--speculative-config", json.dumps(said)]


def _notes(ask: e.Ask) -> list[str]:
    replica, said = ask.replica, e.page_notes(ask)
    engine: Any = replica.engine
    if (seqs := _seqs(ask)) < engine.max_seqs:
        said.append(f"engine.max_seqs={engine.max_seqs}: {seqs} here, as many as memory holds states of")
    if ask.order not in ORDERS:
        said.append(
            f"policies.order={ask.order}: vLLM's queue knows {' and '.join(ORDERS)}; headway serve orders before it"
        )
    if engine.poll_steps != 1:
        said.append(f"engine.poll_steps={engine.poll_steps}: vLLM looks for requests at every step")
    if engine.align_steps:
        said.append("engine.align_steps, gather_steps: vLLM does not make ranks wait for each other's prompts")
    if _unlike(ask):
        agreed = _agreed(ask)
        how = f"{agreed} is set for both" if agreed else "give both --attention-backend with one that both have"
        said.append(
            "gpu: pools that pass KV need one attention backend, and these may choose unlike ones: "
            f"{how}; what was predicted rests on each GPU's own kernels"
        )
    if ask.role != "mixed":
        said.append(
            "role: prefill and decode servers take the same flags; a router sends a request to the one, then the other"
        )
    return said
