"""`trtllm-serve` on the PyTorch backend, all settings in its YAML."""

from __future__ import annotations

from typing import Any

import yaml

from headway.cost import memory_fit
from headway.cost.engines import spreads
from headway.errors import BadInput, UnknownName
from headway.export import engine as e
from headway.export.recorded import parse
from headway.specs import write_yaml

KV = {"bf16": "auto", "fp8": "fp8"}
DRAFTS = {"mtp": "MTP", "ngram": "NGram"}
TARGET = "Draft_Target"  # another model drafts
FIELDS: dict[str, Any] = {  # of the YAML, as tensorrt_llm/llmapi/llm_args.py has them: a type, or fields of its own
    "dtype": str,
    "tensor_parallel_size": int,
    "pipeline_parallel_size": int,
    "moe_expert_parallel_size": int,
    "moe_tensor_parallel_size": int,
    "gpus_per_node": int,
    "enable_attention_dp": bool,
    "attention_dp_config": {"enable_balance": bool, "timeout_iters": int, "batching_wait_iters": int},
    "max_batch_size": int,
    "max_num_tokens": int,
    "max_seq_len": int,
    "enable_chunked_prefill": bool,
    "disable_overlap_scheduler": bool,
    "kv_cache_config": {
        "dtype": str,
        "tokens_per_block": int,
        "enable_block_reuse": bool,
        "free_gpu_memory_fraction": float,
    },
    "speculative_config": {
        "decoding_type": str,
        "num_nextn_predict_layers": int,
        "max_draft_len": int,
        "speculative_model": str,
    },
    "cache_transceiver_config": {"backend": str},
}


def command(ask: e.Ask) -> e.Command:
    """Return the command of one replica and the YAML that it names.

    Raises:
        BadInput: pipeline stages beside data-parallel ranks, or weights that need another checkpoint.
    """
    replica = ask.replica
    e.online_quantization(ask, ())
    if not spreads("trtllm", replica.tp, replica.dp, replica.ep):
        raise BadInput(
            f"{ask.where}.replica: dp={replica.dp} with tp={replica.tp}: in TensorRT-LLM each GPU of a stage attends "
            "its own sequences (enable_attention_dp) or all share them; set tp or dp to 1"
        )
    words = ["trtllm-serve", ask.model_path, "--host", "0.0.0.0", "--port", str(ask.port), "--config", ask.config]
    if ask.hosts > 1:
        tasks = ["-N", str(ask.hosts), "--ntasks", str(replica.gpus), "--ntasks-per-node", str(ask.host_gpus)]
        words = ["srun", *tasks, "--mpi=pmix", "trtllm-llmapi-launch", *words]
    config = config_of(ask)
    check_config(config)
    return e.Command(engine="trtllm", words=tuple(words), config=write_yaml(config), notes=tuple(_notes(ask)))


def config_of(ask: e.Ask) -> dict[str, Any]:
    """Return the fields of the YAML."""
    replica, engine, fit = ask.replica, ask.replica.engine, memory_fit(ask.replica)
    ranks = replica.tp * replica.dp
    free = fit.memory_bytes - fit.needed_bytes
    config: dict[str, Any] = {
        "tensor_parallel_size": ranks,
        "pipeline_parallel_size": replica.pp,
        "max_batch_size": engine.max_seqs,
        "max_num_tokens": engine.max_batched_tokens,
        "enable_chunked_prefill": True,
        "kv_cache_config": {
            "dtype": KV[replica.kv],
            "tokens_per_block": e.page_tokens(replica),
            "enable_block_reuse": engine.prefix_cache,
            "free_gpu_memory_fraction": round(fit.kv_bytes / free, 3),
        },
    }
    if replica.ep > 1:
        config |= {"moe_expert_parallel_size": replica.ep, "moe_tensor_parallel_size": ranks // replica.ep}
    if replica.dp > 1:
        config["enable_attention_dp"] = True
        if engine.align_steps:
            balance = {"timeout_iters": engine.align_steps, "batching_wait_iters": engine.gather_steps}
            config["attention_dp_config"] = {"enable_balance": True, **balance}
    if ask.role == "prefill":  # context servers have no overlap scheduler (its examples/disaggregated/README.md)
        config["disable_overlap_scheduler"] = True
    elif engine.ahead is not None:
        config["disable_overlap_scheduler"] = not engine.ahead
    if ask.hosts > 1:
        config["gpus_per_node"] = ask.host_gpus
    dtype = e.dtype_of(ask)
    config |= {"dtype": dtype} if dtype else {}
    context = ask.context
    config |= {"max_seq_len": context} if context else {}
    config |= _speculation(ask)
    return config | ({"cache_transceiver_config": {"backend": "NIXL"}} if ask.role != "mixed" else {})


def check_config(config: dict[str, Any], fields: dict[str, Any] = FIELDS, where: str = "") -> None:
    """Refuse a YAML that TensorRT-LLM would refuse, which forbids unknown fields.

    Raises:
        UnknownName: a field that there is not. BadInput: a value of another type.
    """
    for name, value in config.items():
        if name not in fields:
            raise UnknownName("field of TensorRT-LLM", where + name, fields)
        kind = fields[name]
        if isinstance(kind, dict):
            check_config(value, kind, f"{where}{name}.")
        elif type(value) is not kind:
            raise BadInput(f"TensorRT-LLM: {where}{name}: expected {kind.__name__}, came {value!r}")


def read(built: e.Command) -> dict[str, Any]:
    """Return the settings of a command and its YAML, named as `engine.settings` has them; raises BadInput."""
    words = list(built.words[built.words.index("trtllm-serve") + 2 :])
    parse("trtllm", words)
    config = yaml.safe_load(built.config)
    check_config(config)
    kv, drafts = config["kv_cache_config"], config.get("speculative_config")
    ranks, attention_dp = config["tensor_parallel_size"], config.get("enable_attention_dp", False)
    late = config.get("disable_overlap_scheduler")
    return {
        "hands_over": "cache_transceiver_config" in config,
        "tp": 1 if attention_dp else ranks,
        "pp": config["pipeline_parallel_size"],
        "dp": ranks if attention_dp else 1,
        "ep": config.get("moe_expert_parallel_size", 1),
        "kv": {value: key for key, value in KV.items()}[kv["dtype"]],
        "weights": "",
        "max_batched_tokens": config["max_num_tokens"],
        "max_seqs": config["max_batch_size"],
        "block_tokens": kv["tokens_per_block"],
        "prefix_cache": kv["enable_block_reuse"],
        "ahead": None if late is None else not late,
        "drafted": drafts and _drafted(drafts),
    }


def _drafted(drafts: dict[str, Any]) -> tuple[str, int]:
    kinds = {value: key for key, value in DRAFTS.items()}
    draft = kinds.get(drafts["decoding_type"]) or drafts["speculative_model"]
    return draft, drafts.get("num_nextn_predict_layers") or drafts["max_draft_len"]


def _speculation(ask: e.Ask) -> dict[str, Any]:
    speculation = ask.replica.engine.speculation
    if speculation is None:
        return {}
    said: dict[str, Any] = {"decoding_type": DRAFTS.get(speculation.draft, TARGET)}
    if speculation.draft == "mtp":
        said["num_nextn_predict_layers"] = speculation.tokens
    else:
        said["max_draft_len"] = speculation.tokens
    if speculation.draft not in DRAFTS:
        said["speculative_model"] = e.draft_path(ask)
    return {"speculative_config": said}


def _notes(ask: e.Ask) -> list[str]:
    engine: Any = ask.replica.engine
    said = [
        f"engine.memory_utilization={engine.memory_utilization:g}: TensorRT-LLM is told the share of the memory left "
        "beside weights and activations, as the memory model has them",
        f"served name {ask.name}: trtllm-serve calls the model by the last part of its path",
        *e.page_notes(ask),
    ]
    if ask.order != "fcfs":
        said.append(f"policies.order={ask.order}: TensorRT-LLM's queue is fcfs; headway serve orders before it")
    if engine.poll_steps != 1:
        said.append(f"engine.poll_steps={engine.poll_steps}: TensorRT-LLM looks for requests at every step")
    if ask.role == "prefill" and engine.ahead is not False:
        said.append("engine.ahead: TensorRT-LLM's prefill servers compose no step ahead (disable_overlap_scheduler)")
    if engine.align_steps and ask.replica.dp == 1:
        said.append("engine.align_steps, gather_steps: only ranks wait for each other, and dp is 1")
    return said
