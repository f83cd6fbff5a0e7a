"""From a log to a result: figures worked out by hand; and what the client says of its own error."""

import msgspec
import numpy as np
import pytest
from bench_cases import requests_of

from headway.bench.answer import Answer
from headway.bench.driver import Row
from headway.bench.measured import SYNTHETIC_WARMUP, Log, Run, measured_result, quantiles
from headway.bench.selfcheck import Pace, client_error, pace_of, warnings_of
from headway.metrics import Slo, Status

PACE = Pace(streams=2, first_s=0.05, gap_s=0.01, tokens=3, prompt_tokens=16)


def add(log, number, due_s, events, *, sent_s=None, status=Status.FINISHED, tokens=-1, written=(), problem=""):
    answer = Answer()
    answer.times_s = [100.0 + at for at in events]
    answer.output_tokens = tokens
    answer.sent_ns = [round((100.0 + at) * 1e9) for at in written]
    answer.prompt_tokens = 20
    log.sent(1)
    row = Row(number, due_s, 16, max(len(events), 1), -1, 0, 0, [])
    sent = due_s if sent_s is None else sent_s
    log.ended(row, answer, status, (100.0 + due_s, 100.0 + sent, 100.0), (problem, "said"))


def run_of(what=None, **more):
    run = Run(what or requests_of(n=4), 3, None, 0, None, None, {"measured": {"kind": "measured"}}, 0.0)
    return run._replace(**more)


def four():
    """Two that finish in two processes, one refused, one cut after a token."""
    one, two = Log(), Log()
    add(one, 0, 0.0, [0.1, 0.2, 0.4])
    add(two, 1, 0.5, [0.8, 1.0], tokens=4)
    add(one, 2, 1.0, [], status=Status.REJECTED, problem="HTTP 429")
    add(two, 3, 1.5, [1.6], status=Status.FAILED, problem="stream cut")
    return Log.joined([two.frozen(), one.frozen()])


def test_a_result_has_the_figures_one_works_out_by_hand():
    result = measured_result(four(), run_of(slo=Slo(ttft_s=0.2)))
    assert (result.requests.finished, result.requests.rejected, result.requests.failed) == (2, 1, 1)
    assert result.records["id"].tolist() == [0, 1, 2, 3]
    assert result.ttft_s.mean == pytest.approx((0.1 + 0.3) / 2)
    assert result.e2e_s.mean == pytest.approx((0.4 + 0.5) / 2)
    assert result.tpot_s.mean == pytest.approx((0.3 / 2 + 0.2 / 3) / 2)
    assert result.tokens.output == 3 + 4 + 1
    assert result.tokens.prompt == 80
    assert result.slo.attainment == 1 / 4
    assert result.duration_s == pytest.approx(1.6)
    assert result.throughput.output_tokens_per_s_per_gpu is None
    assert result.provenance["failed"] == {"stream cut": 1}
    assert result.provenance["measured"]["kind"] == "measured"
    assert result.seed == 3


def test_tokens_that_came_together_have_no_gap_between_them():
    result = measured_result(four(), run_of())
    gaps_s = [0.1, 0.2, 0.2, 0.0, 0.0]
    assert result.itl_s.count == len(gaps_s)
    assert result.itl_s.mean == pytest.approx(sum(gaps_s) / len(gaps_s))


def test_it_reads_back_as_any_other_result_and_reports_take_it():
    from headway.metrics import Result
    from headway.report import result_text

    result = measured_result(four(), run_of())
    client = {"processes": 2, "peak_in_flight": 3, "send_lateness_s": {"p50": 0.0, "p99": 0.1}, "error": None}
    told = {
        "kind": "measured", "url": "http://x.org", "endpoint": "chat", "model": "m", "prompts": "words", "refused": 1,
        "prompt_length_error": 0.25, "answers_of_other_length": 1, "examples": {"stream cut": "said"},
        "client": {**client, "warnings": ["much is late"]},
    }  # fmt: skip
    result = msgspec.structs.replace(result, provenance={"measured": told, "failed": {"stream cut": 1}})
    again = Result.from_json(result.to_json())
    assert again.to_json() == result.to_json()
    from rich.console import Console

    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(result_text(again))
    said = console.export_text()
    console.file.close()
    for words in ("http://x.org (chat), model m", "2 processes, up to 3 in flight", "1 by the service", "late", "25%"):
        assert words in said
    assert "J per output token" not in said, "a client reads no meter"


def test_the_warm_up_is_that_of_a_simulation():
    from headway.sim.run import _warmup

    for what in (requests_of(), requests_of(arrival="closed:2")):
        synthetic = run_of(what, warmup=None)
        fraction = measured_result(four(), synthetic).window.warmup_fraction
        assert fraction == _warmup(what)
    assert fraction != SYNTHETIC_WARMUP


def test_nothing_sent_is_an_empty_result():
    result = measured_result(Log.joined([Log().frozen()]), run_of())
    assert result.requests.arrived == 0
    assert result.ttft_s.count == 0


# --- the client's own error ---


def paced(late_s=0.0, gap_error_s=0.0, sent_late_s=0.0):
    log = Log()
    for i in range(20):
        written = [0.05 + i, 0.06 + i, 0.07 + i]
        read = [written[0] + late_s, written[1] + late_s + gap_error_s, written[2] + late_s]
        add(log, i, float(i), read, written=written, sent_s=i + sent_late_s)
    return Log.joined([log.frozen()])


def test_the_error_is_what_was_read_later_than_written_and_sent_later_than_due():
    error = client_error(paced(late_s=0.004, gap_error_s=0.003, sent_late_s=0.002), PACE)
    assert error.ttft_s == pytest.approx({"p50": 0.006, "p99": 0.006}, abs=1e-7)
    assert error.lateness_s["p50"] == pytest.approx(0.002)
    assert error.itl_s["p50"] == pytest.approx(0.003, abs=1e-7)


def test_without_a_stamp_on_every_token_there_is_no_error_to_tell():
    log = Log()
    add(log, 0, 0.0, [0.1, 0.2], written=[0.1])
    assert client_error(Log.joined([log.frozen()]), PACE) is None
    assert client_error(Log.joined([Log().frozen()]), PACE) is None


def test_an_error_above_a_tenth_of_what_was_measured_is_a_warning():
    log = paced()
    result = measured_result(log, run_of())
    assert warnings_of(client_error(log, PACE), log, result) == []
    (p50, p99) = warnings_of(client_error(paced(late_s=0.006), PACE), log, result)
    assert "TTFT p50 is 6 ms, of 50 ms" in p50
    assert "p99" in p99
    assert any("ITL" in said for said in warnings_of(client_error(paced(gap_error_s=0.002), PACE), log, result))


def test_a_run_that_sent_late_says_so_even_without_a_check():
    log = paced(sent_late_s=0.02)
    assert any("sent late" in said for said in warnings_of(None, log, measured_result(log, run_of())))


def test_the_check_has_as_many_streams_as_the_run_and_a_pace_within_reason():
    log = paced()
    log.peak = 40
    pace = pace_of(log, measured_result(log, run_of()))
    assert (pace.streams, pace.prompt_tokens) == (40, 16)
    assert pace.first_s == pytest.approx(0.05) and pace.gap_s == pytest.approx(0.01, rel=0.01)
    log.peak = 100_000
    crowded = pace_of(log, measured_result(log, run_of()))
    assert crowded.streams / crowded.gap_s == pytest.approx(25_000)
    life_s = pace.first_s + pace.gap_s * (pace.tokens - 1)
    assert pace.workload().rate_req_s * life_s == pytest.approx(40)


def test_quantiles_of_nothing_are_none():
    assert quantiles(np.array([])) == {}
