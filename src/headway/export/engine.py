"""What an engine's exporter is given and what it gives back: one replica, its place, and the command that starts it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Literal

import msgspec

from headway.cost import Replica
from headway.cost.memory import named_context
from headway.errors import BadInput
from headway.export.vendors import vendor
from headway.hardware import gpu
from headway.model import Model, model
from headway.specs import Spec

__all__ = ["Ask", "Command", "Role", "check_command", "command", "read_command", "settings"]

Role = Literal["mixed", "prefill", "decode"]
ENGINES = ("vllm", "sglang", "trtllm")
HEALTH = "/health"  # where each of them says that it is well
KERNEL_BLOCK = 64  # tokens; what kernels of latent attention read is that, or divides it
CONFIG = "engine.yaml"  # what a command calls its file, until an orchestrator says where it lies


class Ask(Spec, frozen=True, kw_only=True):
    """One replica to be started, or its part on one of several hosts.

    Attributes:
        where: names the replica in messages, as pools.0.
        model_path: a repository of Hugging Face or a path; `given` says that the user named it, precision and all.
        name: what requests call the model.
        order: the policy that orders the engine's queue.
        hosts: how many share the replica, `host` of them is this at `address`, `head` the address of the first.
        without_bf16: the GPU, of this pool or of one that it hands KV over with, that has no bf16; "" is none.
        gpus: the kinds of GPU of its pool and of those that it hands KV over with.
        context: the most tokens of a request, where it is not the model's own.
        config: where the engine's own file will lie.
    """

    where: str
    replica: Replica
    role: Role = "mixed"
    model_path: str
    given: bool = False
    name: str
    order: str = "fcfs"
    port: int = 8000
    hosts: int = 1
    host: int | str = 0
    head: str = "127.0.0.1"
    address: str = "127.0.0.1"
    without_bf16: str = ""
    gpus: frozenset[str] = frozenset()
    context: int | None = None
    config: str = CONFIG

    @property
    def host_gpus(self) -> int:
        """GPUs of the replica on this host."""
        return self.replica.gpus // self.hosts


class Command(Spec, frozen=True, kw_only=True):
    """Words to run; `config` is the text of the file that they name ("" for none); `notes`: what they do not say.

    `note`s begin with the field that they are about, as a path below the replica.
    """

    engine: str
    words: tuple[str, ...]
    config: str = ""
    env: dict[str, str] = msgspec.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def command(ask: Ask) -> Command:
    """Return the command of the engine that the replica names, one of `ENGINES`, held against its recorded parser.

    Raises:
        BadInput: settings that the engine has no way to be given.
    """
    from headway.export import sglang, trtllm, vllm

    made = {"vllm": vllm.command, "sglang": sglang.command, "trtllm": trtllm.command}
    engine = ask.replica.engine.name
    built = made[engine](ask)
    check_command(built)
    noted = (*built.notes, *_common_notes(ask))
    return Command(engine=engine, words=built.words, config=built.config, env=built.env, notes=noted)


def read_command(built: Command) -> dict[str, Any]:
    """Return the settings that a command gives its engine, named as fields of a replica; see `settings`.

    Raises:
        BadInput: a flag or a value that the engine's recorded parser does not accept.
    """
    from headway.export import sglang, trtllm, vllm

    return {"vllm": vllm.read, "sglang": sglang.read, "trtllm": trtllm.read}[built.engine](built)


def check_command(built: Command) -> None:
    """Refuse words that the engine's recorded parser would refuse.

    Raises:
        BadInput: a flag or a value that it does not accept.
    """
    read_command(built)


def settings(replica: Replica, role: Role = "mixed") -> dict[str, Any]:
    """Return what a command must say of a replica, as `read_command` returns it.

    `weights` is "" where the checkpoint is served as published; `drafted` is what drafts and how many tokens, or None;
    `hands_over`: whether KV goes from or to another replica.
    """
    engine, spec = replica.engine, model(replica.model)
    speculation = engine.speculation
    return {
        "hands_over": role != "mixed",
        **{name: getattr(replica, name) for name in ("tp", "pp", "dp", "ep", "kv")},
        "weights": "" if replica.weights == spec.native_dtype else replica.weights,
        **{name: getattr(engine, name) for name in ("max_batched_tokens", "max_seqs", "prefix_cache")},
        "block_tokens": page_tokens(replica),
        "ahead": engine.ahead,
        "drafted": None if speculation is None else (speculation.draft, speculation.tokens),
    }


def page_tokens(replica: Replica, gpus: Collection[str] = ()) -> int:
    """Return the tokens of a KV block that an engine is told: `engine.block_tokens`, or what its kernels read.

    Kernels of latent attention read blocks of 32 or 64, of sparse attention of 64 alone: told of 16, vLLM 0.33 finds
    none or a slow one (`get_supported_kernel_block_sizes`), and SGLang 0.5.23 takes 64 on Blackwell whatever it is told
    (arg_groups/overrides.py), for models with states too (model_overrides/qwen3_5.py), so that `gpus` that pass KV to
    each other would have unlike blocks.
    """
    spec, told = model(replica.model), replica.engine.block_tokens
    blackwell = replica.engine.name == "sglang" and any("fp4" in gpu(name).peak_flops for name in gpus)
    fixed = spec.attention == "mla" or (spec.state_layers > 0 and blackwell)
    return told if not fixed else -(-told // KERNEL_BLOCK) * KERNEL_BLOCK


def page_notes(ask: Ask) -> list[str]:
    """Return that blocks are larger than those simulated, where they are."""
    told, simulated = page_tokens(ask.replica, ask.gpus), ask.replica.engine.block_tokens
    if told == simulated:
        return []
    return [f"engine.block_tokens={simulated}: {told} here, as the kernels for this model and these GPUs have them"]


def repository(spec: Model) -> str:
    """Return the Hugging Face repository that a model of the catalogue was read from, or ""."""
    found = re.match(r"([\w.-]+/[\w.-]+) config\.json", spec.source)
    return found[1] if found and not spec.key.startswith("sized:") else ""


def draft_path(ask: Ask) -> str:
    """Return the repository of the model that drafts.

    Raises:
        BadInput: one that the catalogue knows no repository of.
    """
    assert ask.replica.engine.speculation is not None
    key = ask.replica.engine.speculation.draft
    found = repository(model(key))
    if not found:
        raise BadInput(
            f"{ask.where}: the draft {key} has no repository in the catalogue: name one that `headway list models` has"
        )
    return found


def online_quantization(ask: Ask, can: tuple[str, ...]) -> str:
    """Return the precision that the engine has to convert weights to when it loads them, "" where it need not.

    Raises:
        BadInput: another precision than the checkpoint's that the engine cannot make from it.
    """
    spec, replica = model(ask.replica.model), ask.replica
    if ask.given or replica.weights == spec.native_dtype:
        return ""
    if spec.native_dtype == "bf16" and replica.weights in can:
        return replica.weights
    raise BadInput(
        f"{ask.where}.replica.weights={replica.weights}: {ask.model_path} is published in {spec.native_dtype} and "
        f"{replica.engine.name} converts it when loading to {' or '.join(can) or 'nothing else'}: give a checkpoint in "
        f"{replica.weights} with --model-path"
    )


def dtype_of(ask: Ask) -> str:
    """Return what the engine has to be told to compute in, "" where the checkpoint's own type will do."""
    return "float16" if ask.without_bf16 else ""


def precision_words(ask: Ask, names: Mapping[str, str]) -> list[str]:
    """Return the flags of what is computed in and of the KV cache, whose precisions the engine calls by these names."""
    dtype, kv = dtype_of(ask), ask.replica.kv
    return [*(["--dtype", dtype] if dtype else []), "--kv-cache-dtype", "auto" if dtype and kv == "bf16" else names[kv]]


def kv_of(flag: str, names: Mapping[str, str]) -> str:
    """Return the precision of the KV cache that such a flag means."""
    return "bf16" if flag == "auto" else {name: kv for kv, name in names.items()}[flag]


def _common_notes(ask: Ask) -> list[str]:
    replica, said = ask.replica, []
    if ask.context is not None and named_context(replica) is None:
        said.append(
            f"context: requests of up to {ask.context:,} tokens, as KV beside the weights has no room for one of the "
            f"model's {model(replica.model).max_context:,}; MODEL:TOKENS names a context"
        )
    if not ask.given:
        said.append(
            f"model: {ask.model_path} is where the architecture was read; --model-path names others, as one for chat"
        )
    elif replica.weights != model(replica.model).native_dtype:
        said.append(
            f"weights: {ask.model_path} is taken to hold {replica.weights}, as the user's choice; nothing converts it"
        )
    if ask.without_bf16:
        capability = gpu(ask.without_bf16).compute_capability
        said.append(
            f"weights, kv: {ask.without_bf16} has no bf16 (compute capability {capability}), so the engine computes in "
            "float16 and holds KV in it, which is as large; whether its image starts on so old a GPU was not looked up"
        )
    if replica.dp > 1:
        said.append(f"dp={replica.dp}: the engine chooses the rank of a request; policies.route chooses a replica")
    version = replica.engine.version
    if version:
        said.append(f"engine.version: predicted with the times of {version}; the flags are those of the version above")
    if replica.engine.speculation is not None:
        accepted = replica.engine.speculation.acceptance
        said.append(f"engine.speculation.acceptance: {accepted:g} was assumed; the engine's metrics show the true one")
    if replica.cap_watts is not None or replica.clock_mhz is not None:
        tool = vendor(replica, ask.where).tool
        said.append(f"cap_watts, clock_mhz: set by {tool} on the host, which needs root; no engine sets them")
    if replica.calibration is not None:
        said.append("calibration: corrects the prediction, and nothing that is launched")
    return said


def check_engine(to: str, ask: Ask) -> None:
    """Refuse an engine without an exporter, and another than the deployment was simulated with.

    Raises:
        BadInput: either of them.
    """
    engine, field = ask.replica.engine.name, f"{ask.where}.replica.engine.name"
    if engine not in ENGINES:
        raise BadInput(f"{field}={engine}: there are exporters for {', '.join(ENGINES)}")
    if to in ENGINES and engine != to:
        raise BadInput(
            f"{field}={engine}, and the export is for {to}: the figures rest on the steps of {engine}; export --to "
            f"{engine}, or set {field}={to} and predict again"
        )


def check_vendor(to: str, ask: Ask) -> None:
    """Refuse GPUs that no image, or no orchestrator, is known for.

    Raises:
        BadInput: naming the GPU, and who would do.
    """
    replica, field = ask.replica, f"{ask.where}.replica.gpu={ask.replica.gpu}"
    vendor(replica, ask.where)
    maker = gpu(replica.gpu).vendor
    if to == "dynamo" and maker != "NVIDIA":
        raise BadInput(
            f"{field}: Dynamo's images are for GPUs of NVIDIA, and this one is {maker}'s: export to "
            f"{replica.engine.name}, compose or kubernetes, or plan with another --gpu"
        )
