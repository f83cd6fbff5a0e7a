"""Results and plans for the tests of reports, and what their pages hold."""

import json
from html.parser import HTMLParser

import msgspec

from headway.cost import Replica
from headway.metrics import Result, Slo
from headway.plan import Candidate, Plan, Question, capacity
from headway.sim import Deployment, Pool, simulate
from headway.specs import to_mapping
from headway.workload import parse_length, workload
from headway.workload.spec import WorkloadSpec

SLO = Slo(ttft_s=0.5, tpot_s=0.05)
NASTY = "</script><script>alert('x')</script><img src=x onerror=alert(1)> & [bold red]\"quoted\"[/]"


def deployment(count=2, role="mixed", name=""):
    replica = Replica(model="llama-3.1-8b", gpu="h100-sxm")
    pools = [Pool(count=count, replica=replica)]
    if role == "split":
        pools = [Pool(role="prefill", replica=replica), Pool(role="decode", count=count, replica=replica)]
    return Deployment(name=name, pools=tuple(pools))


def result(slo=SLO, records=True, name="custom", requests=80, **changes) -> Result:
    spec = WorkloadSpec(name=name, prompt=parse_length("exp:300"), output=parse_length("exp:30"), requests=requests)
    made = simulate(deployment(), workload(spec, rate=20), slo=slo, records=records)
    return msgspec.structs.replace(made, **changes)


def day(slo=SLO):
    """A day of three slots."""
    spec = WorkloadSpec(prompt=parse_length("exp:300"), output=parse_length("exp:30"))
    return capacity(deployment(), workload(spec, rate=1), slo, curve=[5, 0, 60], workers=1)


def candidate(name="2x tp1 bf16/bf16 b8192", gpus=2, meets=True, **changes) -> Candidate:
    fields = {
        "name": name, "deployment": to_mapping(deployment(gpus, name=name)), "gpus": gpus, "goodput_req_s": 10.0 * gpus,
        "goodput_low_req_s": 9.9 * gpus, "goodput_high_req_s": 10.2 * gpus, "goodput_req_s_per_gpu": 10.0,
        "attainment": 0.97, "attainment_low": 0.96, "attainment_high": 0.98, "ttft_p90_s": 0.12, "tpot_p90_s": 0.021,
        "usd_per_hour": 3.99 * gpus, "usd_per_million_output_tokens": 0.61, "joules_per_output_token": 0.31,
        "meets": meets, "binding": "ttft", "reason": f"costs more than the best: {gpus} GPUs", "requests": 4000,
        "simulations": 9,
    }  # fmt: skip
    return Candidate(**(fields | changes))


def plan(ranked=None, feasible=True, model="llama-3.1-8b", **changes) -> Plan:
    if ranked is None:
        ranked = [candidate(f"{n}x tp1 bf16/bf16 b8192", n, n < 4) for n in (2, 3, 4, 5)]
    fields = {
        "question": Question(model=model, gpu="h100-sxm", gpus=8, rate_req_s=20.0, slo=SLO), "rate_req_s": 20.0,
        "requests": 4000, "feasible": feasible, "binding": None if feasible else "ttft",
        "message": "Two replicas do. They cost $7.98 per hour." if feasible else "Nothing meets the TTFT limit.",
        "interrupted": False, "enumerated": len(ranked) + 7, "evaluated": len(ranked), "discarded": {"memory": 7},
        "tolerance": 0.03, "seconds": 1.5, "best": ranked[0] if feasible and ranked else None,
        "front": [ranked[0].name] if ranked else [], "ranked": ranked,
    }  # fmt: skip
    return Plan(**(fields | changes))


class Seen(HTMLParser):
    """Tags with their attributes, and all text outside scripts and styles."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.words, self.within = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.within = tag

    def handle_data(self, data):
        if self.within not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split()).replace("\N{NO-BREAK SPACE}", " ")

    def count(self, tag):
        return sum(1 for name, _ in self.tags if name == tag)


def drawn(page):
    """The specs that a page hands to its charts, and the data sets, as rows."""
    call = page.rpartition("draw(")[2].partition(");\n</script>")[0]
    decoder = json.JSONDecoder()
    specs, end = decoder.raw_decode(call)
    datasets = decoder.raw_decode(call[end:].lstrip(", "))[0]
    rows = {
        name: [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        for name, columns in datasets.items()
    }
    return specs, rows


def shown(renderable):
    """What a renderable prints on a wide terminal."""
    from rich.console import Console

    console = Console(width=200)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()
