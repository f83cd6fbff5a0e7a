"""Fit the workload presets on public traces and print how well they fit.

    python scripts/fit_workloads.py TRACES            # the table of docs/workloads.md
    python scripts/fit_workloads.py TRACES --write    # and src/headway/workload/data/*.yaml

TRACES is a folder with azure_2023_conv.csv.gz, azure_2023_code.csv.gz,
agent_swe_glm4.7flash_{calls,tools}.csv.gz, lengths/arxiv_summarization_llama2tok.csv.gz and
lengths/mlperf_deepseek-r1.csv.gz. Only quantiles leave it.
"""

from __future__ import annotations

import argparse
import csv
import gzip
from collections.abc import Callable
from itertools import product
from pathlib import Path

import msgspec
import numpy as np
import yaml

from headway.specs import to_mapping
from headway.workload import Batch, Sessions, Workload, WorkloadSpec
from headway.workload.arrivals import Clock, OnOff, Poisson
from headway.workload.batch import join
from headway.workload.lengths import Binned, Empirical
from headway.workload.spec import Wait

FINE = (0, 0.005, 0.01, 0.02, *(i / 100 for i in range(4, 98, 2)), 0.97, 0.98, 0.99, 0.995, 0.999, 1)
COARSE = (0, 0.01, 0.025, *(i / 20 for i in range(1, 20)), 0.96, 0.97, 0.98, 0.99, 0.995, 1)
SHOWN = (10, 25, 50, 75, 90, 95, 99)
POISSON = Poisson()
AZURE = "(Azure/AzurePublicDataset, CC-BY 4.0; Patel et al., Splitwise, ISCA 2024)"
Table = dict[str, np.ndarray]


def main() -> None:
    """Fit every preset, print the error table, write the data files when asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("traces", type=Path)
    parser.add_argument("--write", action="store_true", help="write src/headway/workload/data/*.yaml")
    asked = parser.parse_args()
    print(f"| preset | quantity | | mean | {' | '.join(f'p{q}' for q in SHOWN)} | KS |")
    print(f"|---|---|---|{'---:|' * (len(SHOWN) + 2)}")
    for fit in (chat, code, summarize, reasoning, agent):
        spec = fit(asked.traces)
        if asked.write:
            folder = Path(__file__).parents[1] / "src/headway/workload/data"
            text = yaml.safe_dump(
                short(to_mapping(spec)), sort_keys=False, default_flow_style=None, width=100
            )
            (folder / f"{spec.name}.yaml").write_text(text)


def chat(traces: Path) -> WorkloadSpec:
    """Azure's conversation service: lengths joint, arrivals Poisson."""
    data = read(traces / "azure_2023_conv.csv.gz")
    about = f"Conversation service of Azure, Nov 2023 {AZURE}"
    rate = (len(data["arrival_s"]) - 1) / np.ptp(data["arrival_s"])
    spec = joint("chat", data, about, bins=12, arrival=Poisson(rate_req_s=round(float(rate), 3)))
    show_lengths(spec, data)
    show_gaps(spec, data["arrival_s"])
    return spec


def code(traces: Path) -> WorkloadSpec:
    """Azure's code service: lengths independent, arrivals in bursts."""
    data = read(traces / "azure_2023_code.csv.gz")
    about = f"Code completion of Azure, Nov 2023 {AZURE}"
    spec = WorkloadSpec(
        name="code",
        about=about,
        arrival=bursts(data["arrival_s"]),
        prompt=empirical(data["input_tokens"]),
        output=empirical(data["output_tokens"]),
    )
    show_lengths(spec, data)
    show_gaps(spec, data["arrival_s"])
    return spec


def summarize(traces: Path) -> WorkloadSpec:
    """Summaries of arXiv papers: lengths joint; no arrivals were recorded."""
    data = read(traces / "lengths/arxiv_summarization_llama2tok.csv.gz")
    about = "arXiv summarization, Llama 2 tokens, prompt + output <= 4096 (microsoft/vidur, MIT)"
    spec = joint("summarize", data, about, bins=12)
    show_lengths(spec, data)
    return spec


def reasoning(traces: Path) -> WorkloadSpec:
    """Questions to DeepSeek-R1: lengths joint; no arrivals were recorded."""
    data = read(traces / "lengths/mlperf_deepseek-r1.csv.gz")
    about = "MLPerf data set of DeepSeek-R1, cut at 32768 tokens (openshift-psap/performance-dashboard)"
    spec = joint("reasoning", data, about, bins=8)
    show_lengths(spec, data)
    return spec


def agent(traces: Path) -> WorkloadSpec:
    """Sessions of a coding agent: growth by place in the session, gaps and service times as measured."""
    data = read(traces / "agent_swe_glm4.7flash_calls.csv.gz")
    main_line = data["sidechain"] == 0
    data = {name: column[main_line] for name, column in data.items()}
    session, prompt, output = data["session"], data["input_tokens"], data["output_tokens_reported"]
    calls = np.unique(session, return_counts=True)[1]
    starts = np.cumsum(calls) - calls
    place = np.arange(len(session)) - np.repeat(starts, calls)
    later = np.flatnonzero(place > 0)
    growth = prompt[later] - prompt[later - 1]
    gap_s = np.maximum(data["prev_event_s"][later] - data["last_block_s"][later - 1], 0)
    service_s = data["last_block_s"] - data["prev_event_s"]
    first = prompt[starts]
    spec = WorkloadSpec(
        name="agent",
        about="111 SWE-bench sessions of a coding agent on GLM-4.7-Flash (from eunomia-bpf/agentcgroup)",
        prompt=empirical(first, COARSE),
        output=empirical(output),
        sessions=Sessions(
            calls=empirical(calls, tuple(i / 16 for i in range(17))),
            growth=binned(place[later], growth, (4, 9, 19, 39)),
            gap=wait(gap_s),
            service=wait(service_s),
            system_tokens=int(first.min()) // 64 * 64,
        ),
    )
    made = sample(spec)
    show("agent", "prompt", prompt, made.prompt_tokens)
    show("agent", "output", output, made.output_tokens)
    show("agent", "calls/session", calls, np.bincount(np.unique(made.session, return_inverse=True)[1]))
    order = np.argsort(made.session, kind="stable")
    same = np.diff(made.session[order]) == 0
    show("agent", "growth/call", growth, np.diff(made.prompt_tokens[order])[same])
    columns = (made.prompt_tokens[order], made.output_tokens[order], made.session[order])
    was = data["last_block_s"][later] - data["last_block_s"][later - 1]
    show("agent", "call to call, s", was, np.diff(made.arrival_s[order])[same])
    for who, p, o, s in (("measured", prompt, output, session), ("fitted", *columns)):
        print(
            f"<!-- agent {who}: share of later prompts already seen in the session {reused(p, o, s):.4f} -->"
        )
    return spec


def reused(prompt: np.ndarray, output: np.ndarray, session: np.ndarray) -> float:
    """The share of prompt tokens that the session's last call had, its output included where it fits."""
    later = np.diff(session) == 0
    kept = np.where(np.diff(prompt) >= output[:-1], output[:-1], 0)
    return float((prompt[:-1] + kept)[later].sum() / prompt[1:][later].sum())


# --- models ---


def joint(name: str, data: Table, about: str, bins: int, arrival: Poisson = POISSON) -> WorkloadSpec:
    """Prompt lengths as quantiles; output lengths as quantiles in equally full bins of the prompt."""
    prompt, output = data["input_tokens"], data["output_tokens"]
    limits = np.unique(np.quantile(prompt, np.arange(1, bins) / bins).astype(int))
    return WorkloadSpec(
        name=name,
        about=about,
        arrival=arrival,
        prompt=empirical(prompt),
        output=binned(prompt, output, tuple(limits.tolist())),
    )


def empirical(values: np.ndarray, at: tuple[float, ...] = FINE) -> Empirical:
    """A quantile table."""
    return Empirical(tokens=tuple(np.quantile(values, at).round(1).tolist()), at=at)


def wait(seconds: np.ndarray) -> Wait:
    """A quantile table of times."""
    return Wait(seconds=tuple(np.quantile(seconds, FINE).round(4).tolist()), at=FINE)


def binned(key: np.ndarray, values: np.ndarray, limits: tuple[int, ...]) -> Binned:
    """A quantile table per bin of the key."""
    bins = np.searchsorted(limits, key)
    tables = [np.maximum(np.quantile(values[bins == b], COARSE), 1).round(1) for b in range(len(limits) + 1)]
    return Binned(upto=limits, tables=tuple(tuple(table.tolist()) for table in tables), at=COARSE)


def bursts(arrival_s: np.ndarray) -> OnOff:
    """Bursts with silence between them: the mean rate, the dispersion of counts in windows, and the gaps.

    For Poisson bursts the variance of the count in t seconds over its mean is 1 + 2 r (1 - p)/s (1 - (1 -
    exp(-s t))/(s t)), with r the rate in a burst, p the share of time in bursts and s = 1/on + 1/off (Fischer
    and Meier-Hellstern, The MMPP cookbook, Performance Evaluation 18, 1993). Gamma gaps put about cv**2 in
    the place of its 1. On and off times are fitted to the dispersion for each cv, and the cv is the one whose
    gaps are nearest to the measured ones.
    """
    rate = (len(arrival_s) - 1) / np.ptp(arrival_s)
    windows_s = (1, 10, 60)
    measured = np.array([dispersion(arrival_s, w) for w in windows_s])
    gaps = np.diff(arrival_s)
    found = []
    for cv in np.arange(1, 4.01, 0.25).tolist():
        fits = []
        for on_s, off_s in product(np.geomspace(0.5, 60, 97).tolist(), np.geomspace(1, 240, 97).tolist()):
            p, s = on_s / (on_s + off_s), 1 / on_s + 1 / off_s
            st = s * np.array(windows_s)
            model = cv**2 + 2 * rate / p * (1 - p) / s * (1 + np.expm1(-st) / st)
            fits.append((float((np.log(model / measured) ** 2).sum()), on_s, off_s))
        _, on_s, off_s = min(fits)
        rate_on = round(float(rate * (on_s + off_s) / on_s), 2)
        model = OnOff(rate_on_req_s=rate_on, on_s=round(on_s, 2), off_s=round(off_s, 2), cv=cv)
        found.append((apart(gaps, np.diff(Clock(model, 0).take(100_000))), cv, model))
    return min(found)[2]


def dispersion(arrival_s: np.ndarray, window_s: float) -> float:
    """Variance over mean of the number of arrivals in windows."""
    counts = np.bincount(((arrival_s - arrival_s[0]) // window_s).astype(int))[:-1]
    return float(counts.var() / counts.mean())


# --- what comes out ---


def sample(spec: WorkloadSpec, requests: int = 400_000) -> Batch:
    """Many requests of the spec, without chains."""
    made = Workload(msgspec.structs.replace(spec, requests=requests)).batches(7)
    return join([msgspec.structs.replace(batch, hash_offsets=None, hashes=None) for batch in made])


def show_lengths(spec: WorkloadSpec, data: Table) -> None:
    """Print lengths, and the mean output in each quarter of the prompts."""
    made = sample(spec)
    prompt, output = data["input_tokens"], data["output_tokens"]
    show(spec.name, "prompt", prompt, made.prompt_tokens)
    show(spec.name, "output", output, made.output_tokens)
    edges = np.quantile(prompt, (0.25, 0.5, 0.75))
    for who, p, o in (("measured", prompt, output), ("fitted", made.prompt_tokens, made.output_tokens)):
        means = [o[np.searchsorted(edges, p) == quarter].mean() for quarter in range(4)]
        print(f"<!-- {spec.name} {who}: mean output by quarter of prompt {np.round(means, 1)} -->")


def show_gaps(spec: WorkloadSpec, arrival_s: np.ndarray) -> None:
    """Print gaps between arrivals and the dispersion of counts."""
    made = sample(spec).arrival_s
    show(spec.name, "gap, s", np.diff(arrival_s), np.diff(made))
    for who, times in (("measured", arrival_s), ("fitted", made)):
        gaps = np.diff(times)
        cells = [f"{dispersion(times, w):.1f} in {w} s" for w in (1, 10, 60)]
        print(
            f"<!-- {spec.name} {who}: CV of gaps {gaps.std() / gaps.mean():.2f}, "
            f"dispersion {', '.join(cells)} -->"
        )


def show(preset: str, quantity: str, measured: np.ndarray, fitted: np.ndarray) -> None:
    """Print measured and fitted quantiles and how far apart the distribution functions are."""
    for who, values, last in (
        ("measured", measured, ""),
        ("fitted", fitted, f"{apart(measured, fitted):.3f}"),
    ):
        cells = [f"{v:.4g}" for v in (values.mean(), *np.percentile(values, SHOWN))]
        print(f"| {preset} | {quantity} | {who} | {' | '.join(cells)} | {last} |")


def apart(measured: np.ndarray, fitted: np.ndarray) -> float:
    """The largest distance between two distribution functions (Kolmogorov-Smirnov)."""
    grid = np.unique(measured)
    return float(np.abs(below(measured)(grid) - below(fitted)(grid)).max())


def below(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The distribution function of a sample."""
    ordered = np.sort(values)
    return lambda x: np.searchsorted(ordered, x, side="right") / len(ordered)


def short(data: object) -> object:
    """The same with 512 for 512.0."""
    if isinstance(data, dict):
        return {key: short(value) for key, value in data.items()}
    if isinstance(data, list):
        return [short(value) for value in data]
    return int(data) if isinstance(data, float) and data.is_integer() else data


def read(path: Path) -> Table:
    """The numeric columns of a gzipped CSV file; True and False as 1 and 0, text left out."""
    with gzip.open(path, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    table = {}
    for name in rows[0]:
        texts = [row[name] for row in rows]
        if name not in ("task", "tool"):
            table[name] = np.array(
                [{"True": 1.0, "False": 0.0}.get(t) if t[:1] in "TF" else float(t) for t in texts]
            )
    return table


if __name__ == "__main__":
    main()
