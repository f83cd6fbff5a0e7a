"""Shell scripts: one for each replica and host, and one for the router between prefill and decode replicas."""

from __future__ import annotations

import shlex

import msgspec

from headway.cost import Replica
from headway.export.engine import Ask, Command, command
from headway.export.place import Placed
from headway.export.routers import router_command, router_notes
from headway.export.vendors import power_limits, vendor


def scripts(
    placed: list[Placed], asks: list[Ask], at: list[str], route: str, head: str
) -> tuple[dict[str, str], list[str]]:
    """Return the files and the notes of every replica; `at` are the hosts' addresses, `head` says what is targeted."""
    files: dict[str, str] = {}
    notes: list[str] = []
    for each in placed:
        for rank, host in enumerate(each.hosts):
            ask = msgspec.structs.replace(
                asks[each.pool],
                port=each.port,
                hosts=len(each.hosts),
                host=rank,
                head=at[each.hosts[0]],
                address=at[host],
                config=f"./{each.name}.yaml",
            )
            made = command(ask)
            notes += [note for note in made.notes if note not in notes]
            if made.config:
                files[f"{each.name}.yaml"] = commented([head], made.config)
            if rank and made.words[0] == "srun":
                break  # srun starts the ranks on every host from the first
            name = each.name if len(each.hosts) == 1 else f"{each.name}-host-{rank}"
            files[f"{name}.sh"] = script(made, ask.replica, f"{name} on {at[host]}", each.gpus, head)
    if any(ask.role != "mixed" for ask in asks) and route == "same-node" and len(at) > 1:
        notes.append("router: none of an engine's keeps KV on its node, as policies.route=same-node: --to gateway does")
    elif any(ask.role != "mixed" for ask in asks):
        files |= router(placed, asks, at, route, head)
        notes += router_notes(asks[0].replica.engine.name, route)
    return files, notes


def script(made: Command, replica: Replica, what: str, gpus: tuple[int, ...], head: str) -> str:
    """Return a script that starts one command on these GPUs, their power limit and clock set first."""
    said = commented([head, what, *made.notes], "")
    devices = ",".join(str(number) for number in gpus)
    lines = ["#!/bin/sh", said.rstrip(), "set -e", *power_limits(replica, devices)]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in made.env.items()]
    if made.words[0] != "srun":
        lines.append(f"export {vendor(replica, what).visible}={devices}")
    return "\n".join([*lines, f"exec {wrapped(made.words)}"]) + "\n"


def wrapped(words: tuple[str, ...]) -> str:
    """Return words as a shell reads them, a flag and its values a line."""
    lines = [shlex.quote(words[0])]
    for word in words[1:]:
        if word.startswith("--"):
            lines.append(shlex.quote(word))
        else:
            lines[-1] += f" {shlex.quote(word)}"
    return " \\\n  ".join(lines)


def router(placed: list[Placed], asks: list[Ask], at: list[str], route: str, head: str) -> dict[str, str]:
    """Return what sends a request to a prefill and then to a decode replica, by the engine's own router."""
    urls = {role: [f"{at[each.hosts[0]]}:{each.port}" for each in placed if asks[each.pool].role == role]
            for role in ("prefill", "decode")}  # fmt: skip
    words, config = router_command(asks[0].replica.engine.name, urls, route, "./router.yaml")
    said = commented([head, "the router"], "")
    files = {"router.sh": f"#!/bin/sh\n{said}exec {wrapped(words)}\n"}
    return files | ({"router.yaml": commented([head], config)} if config else {})


def commented(lines: list[str], text: str) -> str:
    """Return text below comment lines."""
    return "".join(f"# {line}\n" for said in lines for line in said.splitlines()) + text
