"""Per-request records: every file form reads back to the same bits, and broken rows are named."""

import math
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.errors import BadInput, MissingExtra, UnknownName
from headway.metrics import Records, Status, record_files

FORMS = ("parquet", "csv", "json", "jsonl")
TIMES = st.floats(0, 1e9) | st.just(math.nan)
NEEDED = ("id", "arrival_s", "first_token_s", "last_token_s", "prompt_tokens", "output_tokens", "status")


def few(**columns):
    """Three requests: two finished, one rejected."""
    nan = math.nan
    return Records(
        {
            "id": [0, 1, 2],
            "arrival_s": [0.0, 1.0, 2.0],
            "first_token_s": [0.5, 1.25, nan],
            "last_token_s": [2.5, 1.25, nan],
            "prompt_tokens": [10, 20, 30],
            "output_tokens": [5, 1, 0],
            "status": [Status.FINISHED, Status.FINISHED, Status.REJECTED],
        }
        | columns
    )


@st.composite
def any_records(draw):
    n = draw(st.integers(0, 12))

    def column(values):
        return draw(st.lists(values, min_size=n, max_size=n))

    counts, small = st.integers(0, 2**62), st.integers(0, 2**31 - 1)
    return Records(
        {name: np.array(column(TIMES)) for name in ("admitted_s", "first_token_s", "last_token_s")}
        | {name: column(counts) for name in ("id", "prompt_tokens", "output_tokens", "cached_tokens")}
        | {name: column(small) for name in ("preemptions", "pool", "replica", "slo_class", "tenant")}
        | {"arrival_s": column(st.floats(0, 1e9)), "status": column(st.sampled_from(Status))}
        | {"measured": column(st.booleans())}
    )


def same(a, b):
    return all(
        a[name].dtype == b[name].dtype
        and np.array_equal(a[name], b[name], equal_nan=a[name].dtype.kind == "f")
        for name in a.columns
    )


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=30, deadline=None)
@given(records=any_records())
def test_every_form_reads_back_to_the_same_bits(form, records):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"records.{form}"
        records.write(path)
        assert same(Records.read(path), records)


@pytest.mark.parametrize("form", FORMS)
def test_rows_written_in_slices_are_all_there(form, tmp_path, monkeypatch):
    monkeypatch.setattr("headway.metrics.record_files._ROWS_PER_SLICE", 2)
    few().write(tmp_path / f"r.{form}")
    assert same(Records.read(tmp_path / f"r.{form}"), few())


def test_latencies_by_definition():
    records = few()
    assert records.ttft_s[:2].tolist() == [0.5, 0.25] and np.isnan(records.ttft_s[2])
    assert records.e2e_s[:2].tolist() == [2.5, 0.25]
    assert records.tpot_s[0] == 0.5  # 2 s over the 4 gaps of 5 tokens
    assert np.isnan(records.tpot_s[1:]).all()  # one token and none: undefined


def test_text_forms_say_the_status_in_words_and_leave_what_did_not_happen_empty(tmp_path):
    few().write(tmp_path / "r.csv")
    header, first, *_, last = (tmp_path / "r.csv").read_text().splitlines()
    assert header.startswith("id,arrival_s,admitted_s,first_token_s")
    assert ",finished," in first and last.startswith("2,2.0,,,,") and ",rejected," in last
    few().write(tmp_path / "r.jsonl")
    assert '"first_token_s":null' in (tmp_path / "r.jsonl").read_text().splitlines()[2]


def test_columns_of_the_right_type_are_not_copied():
    ids = np.arange(3)
    assert few(id=ids)["id"] is ids


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_column_is_named(name):
    columns = few().columns
    with pytest.raises(BadInput, match=f"column '{name}' is missing"):
        Records({key: values for key, values in columns.items() if key != name})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt_tokens": [1, 2]}, "has shape"),
        ({"prompt_tokens": [1.5, 2, 3]}, "holds int64, came float64"),
        ({"preemptions": [0, 0, 2**40]}, "holds int32, came int64"),
        ({"status": [0, 1, 4]}, "finished, rejected, failed, unfinished"),
        ({"slo_class": [0, -1, 0]}, "classes from 0"),
        ({"arrival_s": [0.0, math.nan, 1.0]}, "finite times"),
    ],
)
def test_values_a_column_cannot_hold_are_refused(columns, message):
    with pytest.raises(BadInput, match=message):
        few(**columns)


def test_an_unknown_column_offers_the_nearest():
    with pytest.raises(UnknownName, match="arrival_s"):
        few(arival_s=[0, 0, 0])


@pytest.mark.parametrize(
    ("suffix", "edit", "message"),
    [
        ("csv", lambda text: text.replace("0.5", "soon"), r"r\.csv:2: .*float.*first_token_s"),
        ("csv", lambda text: text.replace("rejected", "lost"), r"r\.csv:4: Invalid enum value 'lost'"),
        ("csv", lambda text: "", r"r\.csv:1: expected a first line with the columns' names"),
        ("csv", lambda text: text + "7,1.0\n", r"r\.csv:5: expected 15 cells"),
        ("csv", lambda text: text.replace("tenant", "tennant"), r"r\.csv:2: .*unknown field tennant"),
        ("csv", lambda text: text.replace("\n0,", "\n,"), r"r\.csv:2: .*int.*null.*id"),
        ("jsonl", lambda text: text.replace('"id":1', '"id":"one"'), r"r\.jsonl:2: Expected int, got str"),
        ("jsonl", lambda text: text[:-10], r"r\.jsonl:3: Input data was truncated"),
        ("jsonl", lambda text: text.replace('"status"', '"state"'), r"r\.jsonl:1: .*unknown field state"),
        ("json", lambda text: text.replace('"id":1,', ""), r"r\.json: Object missing required field id"),
        ("json", lambda text: text.replace('"tenant":0', f'"tenant":{2**80}'), r"r\.json: column 'tenant'"),
    ],
)
def test_a_broken_row_is_named_with_file_and_line(suffix, edit, message, tmp_path):
    path = tmp_path / f"r.{suffix}"
    few().write(path)
    path.write_text(edit(path.read_text()))
    with pytest.raises(BadInput, match=message):
        Records.read(path)


def test_a_parquet_file_with_other_words_or_types_is_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "r.parquet"
    few().write(path)
    table = parquet.read_table(path)
    for name, values in (("status", ["finished", "lost", "failed"]), ("id", ["a", "b", "c"])):
        at = table.column_names.index(name)
        parquet.write_table(table.set_column(at, name, pyarrow.array(values)), path)
        with pytest.raises(BadInput, match=f"column '{name}'"):
            Records.read(path)
    path.write_bytes(b"PAR1 but no more")
    with pytest.raises(BadInput, match="not Parquet"):
        Records.read(path)


@pytest.mark.parametrize("form", ["csv", "json", "jsonl", "parquet"])
def test_an_interrupt_while_writing_leaves_what_was_there(form, tmp_path, monkeypatch):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"r.{form}"
    few().write(path)
    before = path.read_bytes()

    def interrupted(part, columns):
        part.write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setitem(record_files._WRITERS, f".{form}", interrupted)
    for target in (path, tmp_path / f"new.{form}"):
        with pytest.raises(KeyboardInterrupt):
            few().write(target)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_a_link_and_a_device_stay_what_they_are(tmp_path):
    real, link = tmp_path / "real.csv", tmp_path / "link.csv"
    link.symlink_to(real)
    few().write(link)
    assert link.is_symlink() and len(Records.read(real)) == len(few())
    null = tmp_path / "null.csv"
    null.symlink_to(os.devnull)
    few().write(null)
    assert not os.path.isfile(os.devnull)


def test_other_suffixes_and_places_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(BadInput, match=r"\.parquet, \.csv, \.json, \.jsonl; came the suffix '\.xlsx'"):
        few().write(tmp_path / "r.xlsx")
    for form in FORMS:
        with pytest.raises(BadInput, match="cannot be read: No such file"):
            Records.read(tmp_path / f"absent.{form}")
        with pytest.raises(BadInput, match="cannot be written: "):
            few().write(tmp_path / "absent" / f"r.{form}")
    (tmp_path / "r.csv").write_bytes(b"id,arrival_s\n\xff\xfe,1\n")
    with pytest.raises(BadInput, match="not UTF-8"):
        Records.read(tmp_path / "r.csv")


def test_parquet_without_its_extra_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"writing Parquet needs pyarrow: .*headway\[parquet\]"):
        few().write(tmp_path / "r.parquet")
    with pytest.raises(MissingExtra, match="reading Parquet"):
        Records.read(tmp_path / "r.parquet")


@pytest.mark.parametrize(
    "columns",
    [
        {"first_token_s": [0.5, 0.9, math.nan]},  # before its arrival
        {"last_token_s": [0.4, 1.25, math.nan]},  # before the first token
        {"admitted_s": [0.6, 1.0, math.nan]},  # after the first token
        {"last_token_s": [math.nan, 1.25, math.nan]},  # finished without a last token
        {"output_tokens": [5, 0, 0]},  # finished without any
    ],
)
def test_causality_is_checked(columns):
    few().check_integrity()
    with pytest.raises(ValueError, match="law broken"):
        few(**columns).check_integrity()
