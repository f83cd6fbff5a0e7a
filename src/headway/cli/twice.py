"""Settings of a plan that are named twice, by an option and by `--set`: one of them would silently lose."""

from __future__ import annotations

import click

from headway.cli.options import Options
from headway.errors import BadInput

PATHS = {  # where the options of `headway plan` live in a question
    "model": "model",
    "gpu": "gpu",
    "gpus": "gpus",
    "skip_bad": "skip_bad",
    "rate": "rate_req_s",
    "requests": "requests",
    "arrival": "workload.arrival",
    "input": "workload.prompt",
    "output": "workload.output",
    "ttft": "slo.ttft_s",
    "tpot": "slo.tpot_s",
    "e2e": "slo.e2e_s",
    "attainment": "slo.attainment",
    "by_class": "slos",
    "objective": "objective",
    "front": "front",
    "max_usd_per_hour": "max_usd_per_hour",
    "max_tp": "max_tp",
    "max_watts": "max_watts",
    "watts_per_rack": "watts_per_rack",
    "gpus_per_rack": "gpus_per_rack",
    "spare": "spare",
    "cap_watts": "cap_watts",
    "clock_mhz": "clock_mhz",
    "prices": "usd_per_gpu_hour",
    "calibration_from": "calibration",
    "seed": "seed",
}
ALSO = {"requests": "workload.requests", "rate": "workload.arrival.rate_req_s"}  # the same by another path


def check_twice(context: click.Context, asked: Options) -> None:
    """Refuse an option of a plan and a `--set` of the same field, or two of them.

    Raises:
        BadInput: with both, as they were given.
    """
    seen: dict[str, str] = {}
    for assignment in asked["assignments"]:
        path = assignment.partition("=")[0].strip()
        for before, other in seen.items():
            if _same(before, path):
                raise BadInput(f"--set {other} against --set {assignment}: give one of them")
        seen[path] = assignment
    for option in context.command.params:
        name = option.name or ""
        if name not in PATHS or context.get_parameter_source(name) == click.core.ParameterSource.DEFAULT:
            continue
        for path, assignment in seen.items():
            if any(_same(own, path) for own in (PATHS[name], ALSO.get(name)) if own):
                raise BadInput(f"{option.opts[0]} against --set {assignment}: give one of them")


def _same(path: str, other: str) -> bool:
    """Whether one path is the other or leads to it."""
    return path == other or path.startswith(f"{other}.") or other.startswith(f"{path}.")
