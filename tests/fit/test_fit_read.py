"""Reading timings: columns as they are, families known, and files that cannot be read."""

from __future__ import annotations

import gzip

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fit.read import DTYPES, FAMILIES, PEAK_OF, choose, columns, groups, sheet
from headway.hardware import gpu

CSV = """gpu,engine,m,time_us,power_w
H100,vllm,8,2.5,
Arc9000,vllm,8,9.5,100
B200,,16,1.5,310.5
H100,sglang,32,,
"""


def written(folder, text, name="gemm"):
    (folder / f"ops_{name}.csv.gz").write_bytes(gzip.compress(text.encode()))
    return folder


def test_rows_of_known_families_are_read_and_empty_numbers_are_nan(tmp_path):
    table = columns(written(tmp_path, CSV), "gemm")
    assert list(table["gpu"]) == ["H100", "B200", "H100"]
    assert list(table["engine"]) == ["vllm", "", "sglang"]
    assert table["m"].tolist() == [8, 16, 32]
    assert table["time_us"][:2].tolist() == [2.5, 1.5] and np.isnan(table["time_us"][2])
    assert np.isnan(table["power_w"][[0, 2]]).all() and table["power_w"][1] == 310.5


def test_a_file_that_is_absent_is_named(tmp_path):
    with pytest.raises(OSError, match=r"ops_moe\.csv\.gz"):
        columns(tmp_path, "moe")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"gpu,m\nH100,1\n",
        gzip.compress(b"", mtime=0),
        gzip.compress(CSV.encode(), mtime=0)[:-20],
        gzip.compress(b"gpu,m\nH100\n", mtime=0),
    ],
    ids=["empty", "not compressed", "no header", "cut off", "a cell too few"],
)
def test_a_file_that_cannot_be_read_gives_an_error_and_no_rows(tmp_path, data):
    (tmp_path / "ops_gemm.csv.gz").write_bytes(data)
    with pytest.raises((OSError, pa.ArrowInvalid)):
        columns(tmp_path, "gemm")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), min_size=1, max_size=30))
def test_groups_hold_every_row_once_in_its_order(rows):
    first, second = (np.array(column) for column in zip(*rows, strict=True))
    table = {"name": first.astype(object), "number": second, "place": np.arange(len(rows))}
    found = groups(table, "name", "number")
    assert sorted(np.concatenate([part["place"] for part in found.values()])) == list(range(len(rows)))
    for (name, number), part in found.items():
        assert set(zip(part["name"], part["number"], strict=True)) == {(name, int(number))}
        assert np.all(np.diff(part["place"]) > 0)
    assert list(found) == sorted(found)


def test_rows_are_chosen_by_mask_or_by_index():
    table = {"a": np.arange(5), "b": np.arange(5) * 2}
    assert choose(table, table["a"] > 2)["b"].tolist() == [6, 8]
    assert choose(table, np.array([4, 0]))["b"].tolist() == [8, 0]


def test_the_data_sheet_of_a_family_is_that_of_the_card_timed():
    for family, key in FAMILIES.values():
        found, card = sheet(family), gpu(key)
        assert (found.bytes_per_s, found.sms, found.flops) == (
            card.memory_bytes_per_s,
            card.sm_count,
            card.peak_flops,
        )
        assert 30e6 < found.l2_bytes < 200e6


def test_every_precision_timed_has_a_peak_and_sizes():
    assert set(DTYPES.values()) <= set(PEAK_OF)
    assert all(value >= weight or value == weight for _, weight, value in PEAK_OF.values())
