"""`headway bench`: a workload against a live endpoint gives a `Result`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headway.cli import options as o
from headway.cli.asked import beside_file, check_records, slo_of, split_assignments, workload_of
from headway.cli.simulate import INTERRUPTED, with_trace, write_files
from headway.cli.terminal import Bar, Terminal, check_files
from headway.errors import BadInput
from headway.units import format_count, format_seconds

if TYPE_CHECKING:
    from headway.bench import Target
    from headway.bench.crew import Seen
    from headway.workload import Workload

KEY_VARIABLE = "HEADWAY_API_KEY"
LONG_S = 60.0  # of a run: it is said before it begins
CHOICES = (("completions", "ids"), ("completions", "words"), ("chat", "words"))


@click.command(cls=o.Verb, short_help="Drive a live endpoint with a workload, and measure it.")
@click.argument("url", metavar="URL")
@o.options(o.ENDPOINT, o.WORKLOAD, o.ARRIVALS, o.TRACES, o.FIELDS, o.SLO, o.SEED, o.LOAD, o.OUTPUT, o.RECORDS[:1])
@o.options(o.QUIET)
@click.pass_context
def bench(ctx: click.Context, /, url: str, **asked: Any) -> None:
    """Send a workload to an OpenAI-compatible endpoint, and print what its clients saw.

    Requests are sent when they are due, whatever the answers do, and latencies count from then. Afterwards the same
    processes read a source of known timing as busily, and the client's own error is printed beside the result.

    \b
    headway bench http://localhost:8000 --workload chat --rate 8 --requests 2000 --ttft 500ms --tpot 50ms
    headway bench http://localhost:8000 --input 512 --output 128 --arrival closed:32 --requests 500
    headway bench https://llm.example.org --endpoint chat --model m --key-env MY_KEY --rate 2 --json measured.json
    """
    terminal = Terminal(asked["json_to"], asked["html_to"], quiet=asked["quiet"])
    check_files(asked["html_to"], asked["json_to"], asked["records_to"])
    check_records(asked["records_to"], False)
    sets = split_assignments(asked["assignments"])
    if sets["deployment"]:
        raise BadInput(f"--set {sets['deployment'][0]}: only fields of workload. and slo. can be set here")
    key, target = _key(asked), _target(url, asked)
    workload, slo = workload_of(asked, sets["workload"], terminal), slo_of(asked, sets["slo"])
    serving = _serving(asked["deployment_file"])
    import math

    from headway.bench import bench as run
    from headway.bench import probe
    from headway.sim import CtrlC

    target, how = probe(target, key, _choices(target, asked))
    named = dict.fromkeys(name or target.model for name in workload.models or [""])
    terminal.keep(f"{target.endpoint} at {target.url}, model {', '.join(named)}; prompts: {how}")
    _say_length(terminal, workload)
    with CtrlC(math.inf) as ctrl_c, terminal.bar("driving") as bar:
        result = run(
            target, workload, key=key, slo=slo, seed=asked["seed"], processes=int(asked["processes"]),
            salt=asked["salt"], check=not asked["no_check"], how=how, progress=_Live(bar, workload.requests).tell,
            stop=lambda: bool(ctrl_c.came), **serving,
        )  # fmt: skip
    result = with_trace(result, workload)
    for warning in result.provenance["measured"]["client"]["warnings"]:
        terminal.note(f"warning: {warning}")
    if not terminal.quiet:
        from headway.report import result_text

        terminal.show(result_text(result))
    if asked["json_to"]:
        terminal.write(asked["json_to"], result.to_json() + "\n")
    write_files(terminal, result, asked, bool(ctrl_c.came))
    if "stopped" in result.provenance:
        ctx.exit(INTERRUPTED)


class _Live:
    """Turns what the processes tell into the progress line."""

    def __init__(self, bar: Bar, requests: int) -> None:
        self.bar, self.requests = bar, requests

    def tell(self, doing: str, seen: Seen) -> None:
        """Show how far it is, how much is in flight, and what goes wrong."""
        wrong = "".join(f", {count:,} {reason}" for reason, count in sorted(seen.problems.items()))
        total = self.requests if doing == "driving" else None
        self.bar.say(f"{doing}: {seen.in_flight:,} in flight, {seen.ended:,} ended{wrong[:100]}")
        self.bar.tell(seen.ended if doing == "driving" else 0, total)


def _key(asked: o.Options) -> str | None:
    """The API key: of a file, of the variable that was named, or of ours where it is set."""
    file, variable = asked["key_file"], asked["key_env"]
    if file and variable:
        raise BadInput("--key-file and --key-env: leave one of them out")
    if file:
        try:
            key = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise BadInput(f"{file}: the key cannot be read: {why}") from None
    else:
        key = os.environ.get(variable or KEY_VARIABLE, "").strip()
        if variable and not key:
            raise BadInput(f"the environment has no {variable}: export it, or name a file with --key-file")
    if (file and not key) or not (key.isascii() and key.isprintable()) or " " in key:
        raise BadInput("the API key is empty or holds what no header may: expected one line of printable characters")
    return key or None


def _target(url: str, asked: o.Options) -> Target:
    from headway.bench import Target

    given: dict[str, Any] = {}
    if asked["chars_per_token"]:
        given["chars_per_token"] = asked["chars_per_token"]
    if asked["timeout"]:
        given["timeout_s"] = asked["timeout"]
    if asked["body"]:
        try:
            given["body"] = json.loads(asked["body"])
        except ValueError as error:
            raise BadInput(f'--body is no JSON: {error}; write {{"temperature": 0}}') from None
        if not isinstance(given["body"], dict):
            raise BadInput('--body is no JSON object: write {"temperature": 0}')
        for field in ("stream", "messages", "prompt", "max_tokens"):
            if field in given["body"]:
                raise BadInput(f"--body names {field!r}, which the workload decides; leave it out")
    return Target(url=url, model=asked["model"] or "", **given)


def _choices(target: Target, asked: o.Options) -> list[tuple[str, str]]:
    """The ways to ask that are tried, in order."""
    endpoint, prompts = asked["endpoint"], asked["prompts"]
    if endpoint is None:
        path = target.url.rstrip("/")
        endpoint = "chat" if path.endswith("/chat/completions") else None
        endpoint = endpoint or ("completions" if path.endswith("/completions") else None)
    if endpoint == "chat" and prompts == "ids":
        raise BadInput("a chat takes no token ids: --prompts words, or --endpoint completions")
    return [pair for pair in CHOICES if endpoint in (None, pair[0]) and prompts in (None, pair[1])]


def _serving(file: str | None) -> dict[str, Any]:
    """What is known of what serves: GPUs and prices."""
    if file is None:
        return {}
    from headway.sim import Deployment
    from headway.specs import from_mapping, read_yaml, to_mapping

    data = beside_file(read_yaml(file), file)
    data.pop("gateway", None)  # how `headway serve` reaches the replicas
    deployment = from_mapping(Deployment, data, file)
    return {"gpus": deployment.gpus, "prices": deployment.priced(), "deployment": to_mapping(deployment)}


def _say_length(terminal: Terminal, workload: Workload) -> None:
    rate = workload.rate_req_s
    if rate and workload.requests / rate > LONG_S:
        count, takes = format_count(workload.requests), format_seconds(workload.requests / rate)
        terminal.note(f"{count} requests take {takes}; --requests N sends fewer, Ctrl-C shows what there is")
