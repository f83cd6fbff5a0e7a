"""Docker compose on one machine: a service for each replica, before them Headway's gateway or the engine's router."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from headway.cost import Replica
from headway.errors import BadInput
from headway.export.engine import HEALTH, Ask, Command, command
from headway.export.gateway import carried, gateway_file
from headway.export.place import Placed
from headway.export.routers import ROUTER_PORT, router_command, router_image, router_notes
from headway.export.script import commented
from headway.export.vendors import devices, image, power_limits
from headway.export.wires import host_notes
from headway.gateway import SloClass
from headway.metrics import Slo
from headway.sim import Deployment
from headway.specs import write_yaml

PORT = 8000  # in every container
CONFIG = "/etc/headway/engine.yaml"
ROUTER_CONFIG = "/etc/headway/router.yaml"
GATEWAY = """FROM python:3.11-slim
COPY gateway.Dockerfile headway-*.whl /tmp/
RUN pip install --no-cache-dir "$(ls /tmp/headway-*.whl 2>/dev/null || echo headway)[serve]"
"""
GATEWAY_NOTE = (
    "gateway: its image installs the wheel of headway beside gateway.Dockerfile (in a checkout: pip wheel --no-deps -w "
    "FOLDER .), or where there is none what the package index has by that name"
)


def compose(
    deployment: Deployment, placed: list[Placed], asks: list[Ask], slo: Slo | Sequence[SloClass] | None, head: str
) -> tuple[dict[str, str], list[str]]:
    """Return the files and notes.

    Raises:
        BadInput: more than one machine's GPUs.
    """
    if any(host for each in placed for host in each.hosts):
        raise BadInput(
            f"compose starts containers on one machine, and the deployment's {deployment.gpus} GPUs are on several: "
            "export to kubernetes, or to the engine, a script for each host"
        )
    services: dict[str, Any] = {}
    files: dict[str, str] = {}
    notes = host_notes(deployment)
    for each in placed:
        head_ask = msgspec.structs.replace(asks[each.pool], port=PORT, config=CONFIG, head=each.name, address=each.name)
        made = command(head_ask)
        services[each.name] = _service(each, head_ask.replica, made)
        notes += [note for note in made.notes if note not in notes]
        if made.config:
            files[f"{each.name}.yaml"] = commented([head], made.config)
            services[each.name]["volumes"].append(f"./{each.name}.yaml:{CONFIG}:ro")
        power = power_limits(head_ask.replica, ",".join(map(str, each.gpus)))
        notes += [f"on the machine, before docker compose up: {line}" for line in power]
    front, more = _front(deployment, placed, asks, slo, head)
    services |= front
    if "gateway" in front:
        notes.append(GATEWAY_NOTE)
    if "router" in front:
        notes += router_notes(asks[0].replica.engine.name, deployment.policies.route)
    text = write_yaml({"name": "headway", "services": services, "volumes": {"models": {}}})
    return {"compose.yaml": commented([head, *notes], text), **files, **more}, notes


def _service(each: Placed, replica: Replica, made: Command) -> dict[str, Any]:
    seen, granted = devices(replica, each.gpus)
    return {
        "image": image(made.engine, replica.gpu),
        "entrypoint": [],
        "command": [word.replace("$", "$$") for word in made.words],
        "environment": {"HF_TOKEN": "${HF_TOKEN:-}", **seen, **made.env},
        "ipc": "host",
        "restart": "unless-stopped",
        "volumes": ["models:/root/.cache/huggingface"],
        "healthcheck": {
            "test": [
                "CMD",
                "python3",
                "-c",
                f"import urllib.request as u; u.urlopen('http://127.0.0.1:{PORT}{HEALTH}')",
            ],
            "interval": "10s",
            "timeout": "5s",
            "retries": 3,
            "start_period": "20m",
        },
        **granted,
    }


def _front(
    deployment: Deployment, placed: list[Placed], asks: list[Ask], slo: Slo | Sequence[SloClass] | None, head: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """What stands before the replicas: the gateway, or between prefill and decode the engine's own router."""
    after = {each.name: {"condition": "service_healthy"} for each in placed}
    if asks[0].role == "mixed":
        # Names of services, and every interface of the container: the port below is published on loopback alone.
        file = gateway_file(deployment, [f"{each.name}:{PORT}" for each in placed], slo, listen="0.0.0.0:8080")
        cards = carried(file, ["compose.yaml", "gateway.yaml", *(f"{each.name}.yaml" for each in placed)])
        service = {
            "build": {"context": ".", "dockerfile": "gateway.Dockerfile"},
            "command": ["headway", "serve", "/etc/headway/gateway.yaml"],
            "ports": ["127.0.0.1:8080:8080"],
            "volumes": [f"./{name}:/etc/headway/{name}:ro" for name in ("gateway.yaml", *cards)],
            "depends_on": after,
            "restart": "unless-stopped",
        }
        return {"gateway": service}, {
            "gateway.yaml": commented([head], write_yaml(file)),
            "gateway.Dockerfile": GATEWAY,
            **cards,
        }
    urls = {
        role: [f"{each.name}:{PORT}" for each in placed if asks[each.pool].role == role]
        for role in ("prefill", "decode")
    }
    engine = asks[0].replica.engine.name
    words, config = router_command(engine, urls, deployment.policies.route, ROUTER_CONFIG)
    service = {
        "image": router_image(engine, image(engine, asks[0].replica.gpu)),
        "entrypoint": [],
        "ports": [f"127.0.0.1:8080:{ROUTER_PORT}"],
        "depends_on": after,
    }
    if config:
        service["volumes"] = [f"./router.yaml:{ROUTER_CONFIG}:ro"]
    files = {"router.yaml": commented([head], config)} if config else {}
    return {"router": service | {"command": list(words)}}, files
