"""The presets against the traces they were fitted on, and the public traces themselves."""

import re
from pathlib import Path

import numpy as np
import pytest

from headway.specs import from_mapping, to_mapping
from headway.workload import WorkloadSpec, parse_arrival, workload, workload_names
from headway.workload.readers import read_trace
from workload_cases import all_of, chain

PAGE = Path(__file__).parents[1] / "docs" / "workloads.md"
FITTED_ON = {
    "chat": "azure_2023_conv.csv.gz",
    "code": "azure_2023_code.csv.gz",
    "summarize": "lengths/arxiv_summarization_llama2tok.csv.gz",
    "reasoning": "lengths/mlperf_deepseek-r1.csv.gz",
}


def apart(measured: np.ndarray, fitted: np.ndarray) -> float:
    """The Kolmogorov-Smirnov distance of two samples."""
    grid = np.unique(measured)
    below = [np.searchsorted(np.sort(x), grid, side="right") / len(x) for x in (measured, fitted)]
    return float(np.abs(below[0] - below[1]).max())


def test_there_are_five() -> None:
    assert workload_names() == ["agent", "chat", "code", "reasoning", "summarize"]


@pytest.mark.parametrize("name", workload_names())
def test_a_preset_is_a_spec_with_a_source_that_survives_yaml(name: str) -> None:
    spec = workload(name).spec
    assert spec.name == name
    assert "(" in spec.about
    assert from_mapping(WorkloadSpec, to_mapping(spec), name) == spec


@pytest.mark.parametrize("name", workload_names())
def test_a_preset_has_its_means_and_its_rate(name: str) -> None:
    made = workload(name, requests=40_000)
    batch = all_of(made, seed=1)
    assert batch.prompt_tokens.mean() == pytest.approx(made.mean_prompt_tokens, rel=0.04)
    assert batch.output_tokens.mean() == pytest.approx(made.mean_output_tokens, rel=0.04)
    rate = made.rate_req_s
    assert rate is not None
    # the bursts of `code` have a standard error of sqrt(154 / 40,000) = 6 %
    assert len(batch) / batch.arrival_s[-1] == pytest.approx(rate, rel=0.2 if name == "code" else 0.05)


@pytest.mark.parametrize("name", FITTED_ON)
def test_a_preset_has_the_lengths_of_its_trace(name: str, shared_data: Path) -> None:
    trace = read_trace(shared_data / "traces" / FITTED_ON[name]).requests
    batch = all_of(workload(name, requests=100_000))
    assert apart(trace.prompt_tokens, batch.prompt_tokens) < 0.025
    assert apart(trace.output_tokens, batch.output_tokens) < 0.02
    assert batch.output_tokens.mean() == pytest.approx(trace.output_tokens.mean(), rel=0.04)
    edges = np.quantile(trace.prompt_tokens, (0.25, 0.5, 0.75))
    for quarter in range(4):
        measured, fitted = (
            requests.output_tokens[np.searchsorted(edges, requests.prompt_tokens) == quarter].mean()
            for requests in (trace, batch)
        )
        assert fitted == pytest.approx(measured, rel=0.12)


def test_code_comes_in_the_bursts_of_its_trace(shared_data: Path) -> None:
    times = read_trace(shared_data / "traces" / FITTED_ON["code"]).requests.arrival_s
    batch = all_of(workload("code", requests=200_000))
    for window_s in (1, 10, 60):
        measured, fitted = (
            counts.var() / counts.mean()
            for counts in (np.bincount((t / window_s).astype(int)) for t in (times, batch.arrival_s))
        )
        assert fitted == pytest.approx(measured, rel=0.25)


def test_agents_reuse_nearly_all_of_their_prompts() -> None:
    """New is the growth: 1.5 % of the prompt tokens of the trace, and here half a block a call more."""
    batch = all_of(workload("agent", requests=5000))
    last: dict[int, np.ndarray] = {}
    reused = total = 0
    for request, session in enumerate(batch.session.tolist()):
        ids = chain(batch, request)
        if session in last:
            both = min(len(last[session]), int(batch.prompt_tokens[request]) // 64)
            reused += int((ids[:both] == last[session][:both]).sum())
            total += int(batch.prompt_tokens[request])
        last[session] = ids
    assert 64 * reused / total == pytest.approx(0.984, abs=0.004)


# --- the page ---


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_what_the_page_shows_works(tmp_path: Path) -> None:
    for code in blocks("python"):
        exec(code, {})
    for name, text in (("mine.yaml", blocks("yaml")[0]), ("own.jsonl", blocks("json")[0])):
        (tmp_path / name).write_text(text)
    made = workload(tmp_path / "mine.yaml")
    assert (made.name, made.requests, made.block_tokens, len(made.spec.classes)) == ("mine", 20_000, 64, 2)
    assert workload(tmp_path / "own.jsonl").mean_prompt_tokens == 200


def test_the_page_s_arrivals_can_be_written() -> None:
    texts = re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    arrivals = [text for text in texts if not text.startswith(("chat", "code", "summ", "reas", "agent"))]
    kinds = {type(parse_arrival(text)).__name__ for text in arrivals}
    assert kinds == {"Poisson", "Regular", "Gamma", "OnOff", "Diurnal", "Replay", "Closed"}


@pytest.mark.parametrize("name", workload_names())
def test_the_page_has_every_preset(name: str) -> None:
    rate = workload(name).rate_req_s
    assert rate is not None
    assert re.search(rf"^\| `{name}` \| .* \| {float(f'{rate:.3g}'):g} \|", PAGE.read_text(), re.MULTILINE)


# --- the traces ---


@pytest.mark.parametrize(
    ("file", "requests", "prompt", "output", "block_tokens"),
    [
        ("azure_2023_conv.csv.gz", 19_366, 1154.70, 211.13, 0),
        ("azure_2023_code.csv.gz", 8_819, 2047.85, 27.88, 0),
        ("mooncake_conversation.jsonl.gz", 12_031, 12_035.1, 342.6, 512),
        ("sharegpt_300_sps10_llama3.jsonl.gz", 300, 857.5, 652.5, 16),
        ("sharegpt_300_sps10_qwen3.jsonl.gz", 300, 862.3, 664.95, 16),
    ],
)
def test_public_traces_are_read_whole(
    shared_data: Path, file: str, requests: int, prompt: float, output: float, block_tokens: int
) -> None:
    made = workload(shared_data / "traces" / file)
    assert (made.requests, made.skipped, made.block_tokens) == (requests, 0, block_tokens)
    assert made.mean_prompt_tokens == pytest.approx(prompt, rel=1e-3)
    assert made.mean_output_tokens == pytest.approx(output, rel=2e-3)
    batch = all_of(made)
    assert (np.diff(batch.arrival_s) >= 0).all()
    if block_tokens:
        assert (np.diff(batch.hash_offsets) == batch.prompt_tokens // block_tokens).all()


def test_mooncake_shares_prefixes_and_has_no_steps_left(shared_data: Path) -> None:
    made = workload(shared_data / "traces" / "mooncake_conversation.jsonl.gz")
    batch = all_of(made)
    assert batch.hashes is not None and batch.hash_offsets is not None
    repeated = 1 - len(np.unique(batch.hashes)) / len(batch.hashes)
    assert repeated == pytest.approx(0.3819, abs=0.0001)
    within = batch.arrival_s % 3.0
    assert np.histogram(within, bins=6, range=(0, 3))[0] == pytest.approx(12_031 / 6, rel=0.1)


def test_broken_rows_of_a_real_file_are_counted(shared_data: Path) -> None:
    made = workload(shared_data / "traces" / "lengths" / "sharegpt_vicuna.csv.gz", skip_bad=True)
    assert (made.requests, made.skipped) == (80_675, 819)  # rows with an empty question or answer
