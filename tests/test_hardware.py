"""The hardware catalogue: laws every entry obeys, lookups and their errors, then figures from data sheets."""

import csv
import gzip
import math
import re
from datetime import date
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import headway.hardware
from gpu_cases import AROUND
from headway.cost import Replica, compile_replica
from headway.errors import BadInput, HeadwayError, UnknownName
from headway.hardware import Gpu, gpu, gpu_keys, node, nodes, silicon
from headway.specs import from_mapping, read_yaml, to_mapping, write_yaml

PROMISED = {"a100-40gb-sxm", "a100-40gb-pcie", "a100-80gb-sxm", "a100-80gb-pcie", "h100-sxm", "h100-pcie"}
PROMISED |= {"h200", "h20", "b200", "gb200", "rtx-pro-6000", "l4", "l40s", "rtx-4090", "a10g"}
PROMISED |= {"mi300x", "mi325x", "gaudi-2", "cpu-xeon-8480"}
PROMISED |= {"h100-nvl", "h200-nvl", "h800", "gh200-96gb", "gh200-144gb", "b300", "gb300", "mi250", "mi350x", "mi355x"}
PROMISED |= {"max-1550", "gaudi-3", "arc-pro-b60", "arc-pro-b70", "gb10", "rtx-5090", "rtx-3090", "t4", "v100"}
PROMISED |= {"rx-7900-xt", "gtx-1050-ti", "m1-max", "m5-max", "cpu-xeon-6787p", "cpu-xeon-6980p"}
TEXT_FIELDS = {"key", "like", "name", "vendor", "link_kind", "link_topology", "price_date", "sources", "peak_flops"}

every_gpu = pytest.mark.parametrize("card", [gpu(key) for key in gpu_keys()], ids=gpu_keys())


# --- laws of every entry ------------------------------------------------------------------------------------


@every_gpu
def test_every_number_has_a_source_and_nothing_else_has(card: Gpu) -> None:
    numbers = {field.name for field in msgspec.structs.fields(Gpu)} - TEXT_FIELDS
    numbers -= {name for name in ("usd_per_hour", "boost_mhz", "compute_capability") if getattr(card, name) is None}
    assert set(card.sources) == numbers | {f"peak_flops.{dtype}" for dtype in card.peak_flops}
    for name, source in card.sources.items():
        assert source.kind in ("vendor", "measured", "modelled"), name
        assert len(source.source) > 10, name


@every_gpu
def test_every_number_is_positive_and_finite(card: Gpu) -> None:
    numbers = {name: getattr(card, name) for name in card.sources if "." not in name} | card.peak_flops
    assert all(math.isfinite(value) and value > 0 for value in numbers.values()), numbers


@every_gpu
def test_modelled_figures_say_how(card: Gpu) -> None:
    for name, source in card.sources.items():
        if source.kind == "modelled":
            assert ";" in source.source, f"{name}: an estimate without its reason"


@every_gpu
def test_fewer_bits_are_never_slower(card: Gpu) -> None:
    peaks = card.peak_flops
    assert set(peaks) <= {"bf16", "fp8", "int8", "fp4"}
    assert min(peaks.values()) == peaks["bf16"]
    assert peaks.get("fp4", math.inf) >= peaks.get("fp8", 0)


@every_gpu
def test_memory_is_faster_than_links_and_links_than_the_network(card: Gpu) -> None:
    assert card.memory_bytes_per_s > card.link_bytes_per_s >= card.rdma_bytes_per_s
    assert card.memory_bytes_per_s > card.pcie_bytes_per_s
    if card.link_kind == "pcie":
        assert card.link_bytes_per_s == card.pcie_bytes_per_s
    assert 1e-6 <= card.link_latency_s <= 20e-6
    assert 1e-6 <= card.rdma_latency_s <= 100e-6


@every_gpu
def test_power_and_price_are_plausible(card: Gpu) -> None:
    assert 0.02 <= card.idle_watts / card.tdp_watts <= 0.35
    if card.usd_per_hour is None:
        assert card.price_date == ""
    else:
        assert date(2024, 1, 1) <= date.fromisoformat(card.price_date) <= date(2027, 1, 1)
        assert card.price_date in card.sources["usd_per_hour"].source


@every_gpu
def test_dense_intensity_is_of_this_world(card: Gpu) -> None:
    # A peak printed with sparsity, or a bandwidth in both directions, would leave this band. Chips without matrix
    # units for 16 bits (Pascal, Apple before the M5, Radeon before RDNA 3) have less.
    operations_per_byte = card.peak_flops["bf16"] / card.memory_bytes_per_s
    lowest = 15 if set(card.peak_flops) == {"bf16"} else 30
    highest = 1000 if card.key == "thor" else 500  # a large GPU beside memory of a laptop
    assert lowest < operations_per_byte < highest


@every_gpu
def test_an_entry_survives_the_way_through_builtins(card: Gpu) -> None:
    assert from_mapping(Gpu, to_mapping(card), card.key) == card


def test_no_key_is_defined_twice_and_every_document_is_used() -> None:
    folder = Path(headway.hardware.__file__).with_name("data")
    keys: list[str] = []
    for path in folder.glob("*.yaml"):
        data = read_yaml(path)
        keys += data["gpus"]
        cited = {figure["source"] for entry in data["gpus"].values() for figure in entry["figures"].values()}
        assert cited == set(data["sources"]), path.name
    assert sorted(keys) == gpu_keys()


# --- nodes --------------------------------------------------------------------------------------------------


@every_gpu
def test_nodes_come_in_the_sizes_sold(card: Gpu) -> None:
    sizes = [size for size in (1, 2, 4, 8, 72) if size <= card.gpus_per_node]
    built = [node(card.key, size) for size in sizes]
    assert [n.gpu_count for n in built] == sizes
    assert sizes[-1] == card.gpus_per_node
    assert [n.key for n in built] == [key for key in nodes() if key in {n.key for n in built}]
    assert built[-1].scale_up.bytes_per_s == pytest.approx(card.link_bytes_per_s)
    for n in built:
        assert n.gpu == card.key
        assert n.scale_up.latency_s == card.link_latency_s
        assert n.scale_out.bytes_per_s == card.rdma_bytes_per_s


@every_gpu
def test_a_larger_node_never_has_slower_links(card: Gpu) -> None:
    sizes = [size for size in (2, 4, 8, 72) if size <= card.gpus_per_node]
    speeds = [node(card.key, size).scale_up.bytes_per_s for size in sizes]
    assert speeds == sorted(speeds)
    if card.link_topology == "switch":
        assert set(speeds) <= {card.link_bytes_per_s}


def test_node_keys_are_unique() -> None:
    assert len(set(nodes())) == len(nodes())
    assert {"h100-sxm-x8", "gb200-x4", "gb200-nvl72"} <= set(nodes())
    assert not any("nvl72" in key for key in nodes() if not key.startswith(("gb200", "gb300")))


@given(st.sampled_from(gpu_keys()), st.integers(-3, 200))
def test_any_other_size_is_refused_with_the_sizes_there_are(key: str, count: int) -> None:
    if count in (1, 2, 4, 8, 72) and count <= gpu(key).gpus_per_node:
        assert node(key, count).gpu_count == count
    else:
        with pytest.raises(BadInput, match=rf"no node of {count} {key}: allowed are 1"):
            node(key, count)


# --- names --------------------------------------------------------------------------------------------------


def test_the_promised_names_are_there() -> None:
    assert set(gpu_keys()) >= PROMISED
    assert all(gpu(key).key == key for key in PROMISED)


@given(st.text(max_size=20).filter(lambda text: text not in gpu_keys()))
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(UnknownName, match="headway list gpus"):
        gpu(name)
    with pytest.raises(UnknownName):
        node(name, 1)


@pytest.mark.parametrize(
    ("came", "meant"),
    [
        ("h100", "h100-sxm"),
        ("H100-SXM", "h100-sxm"),
        ("h200-sxm", "h200"),
        ("a100-80g-sxm", "a100-80gb-sxm"),
        ("rtx4090", "rtx-4090"),
        ("gaudi2", "gaudi-2"),
        ("mi300", "mi300x"),
        ("b200-sxm", "b200"),
    ],
)
def test_a_near_miss_names_what_was_meant(came: str, meant: str) -> None:
    with pytest.raises(UnknownName) as caught:
        gpu(came)
    assert meant in caught.value.nearest
    assert meant in str(caught.value)


# --- files of one's own -------------------------------------------------------------------------------------


def test_a_file_says_what_differs_around_a_gpu_whose_laws_hold(tmp_path):
    file = tmp_path / "ours.yaml"
    file.write_text(AROUND)
    own, known = gpu(str(file)), gpu("a100-80gb-sxm")
    assert (own.gpus_per_node, own.rdma_bytes_per_s) == (4, 3.1e9)
    assert own.memory_bytes_per_s == known.memory_bytes_per_s
    assert silicon(str(file)) == own.like == known.key
    assert node(str(file), 4).scale_out.bytes_per_s == 3.1e9
    one, same = (compile_replica(Replica(model="llama-3.1-8b", gpu=name)) for name in (str(file), known.key))
    assert one.step_seconds(8, 8192, 1024) == same.step_seconds(8, 8192, 1024)
    with pytest.raises(BadInput, match=r"tp=8: .*at most 4 GPUs"):
        compile_replica(Replica(model="llama-3.1-8b", gpu=str(file), tp=8))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("rdma_bytes_per_s", "memory_bytes", "would make another GPU than a100-80gb-sxm"),
        ("like: a100-80gb-sxm", "like: a100-80gb", "nearest"),
        ("source: ours, note", "source: theirs, note", "not in `sources`; there are ours"),
        ("value: 4,", "value: nan,", "gpus_per_node 'nan'|gpus_per_node nan"),
        ("value: 4,", "value: 0,", "gpus_per_node 0: expected a whole number, 1 to 1,024"),
        ("value: 4,", "value: 2.5,", "gpus_per_node 2.5: expected a whole number"),
        ("value: 4,", "value: 1.0e+30,", "gpus_per_node 1e.30: expected a whole number"),
        ("value: 3.1e9,", "value: fast,", "rdma_bytes_per_s 'fast': expected a number"),
        ("value: 3.1e9,", "value: 0,", "rdma_bytes_per_s 0: expected a number, above 0"),
        ("value: 3.1e9,", "value: -1,", "rdma_bytes_per_s -1: expected a number, above 0"),
    ],
)
def test_a_file_that_says_something_else_of_a_gpu_is_refused(tmp_path, old, new, words):
    file = tmp_path / "ours.yaml"
    file.write_text(AROUND.replace(old, new))
    with pytest.raises(HeadwayError, match=words):
        gpu(str(file))


CORE = Path(__file__).resolve().parents[1] / "examples" / "llamacpp" / "core-share.yaml"


def test_hardware_of_ones_own_is_named_by_its_file() -> None:
    card = gpu(str(CORE))
    assert card.key == str(CORE)
    assert card.sources["memory_bytes_per_s"].kind == "modelled"
    assert str(CORE) not in gpu_keys()


def test_a_file_of_none_or_several_is_refused(tmp_path: Path) -> None:
    data = read_yaml(CORE)
    (entry,) = data["gpus"].values()
    for gpus, said in (({}, "describes 0 GPUs"), ({"a": entry, "b": entry}, "describes 2 GPUs")):
        file = tmp_path / f"{len(gpus)}.yaml"
        write_yaml(data | {"gpus": gpus}, file)
        with pytest.raises(BadInput, match=said):
            gpu(str(file))
    with pytest.raises(BadInput, match="no such file"):
        gpu(str(tmp_path / "none.yaml"))


# --- families -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slower", "faster"),
    [
        ("a100-40gb-sxm", "a100-80gb-sxm"),
        ("a100-80gb-pcie", "a100-80gb-sxm"),
        ("a100-80gb-sxm", "h100-sxm"),
        ("h100-pcie", "h100-sxm"),
        ("h100-sxm", "h20"),
        ("h20", "h200"),
        ("h200", "b200"),
        ("mi300x", "mi325x"),
        ("a10g", "l40s"),
        ("l4", "a10g"),
        ("l40s", "rtx-pro-6000"),
        ("cpu-xeon-8480", "a10g"),
    ],
)
def test_memory_bandwidth_orders_the_generations(slower: str, faster: str) -> None:
    assert gpu(slower).memory_bytes_per_s < gpu(faster).memory_bytes_per_s


def test_which_hardware_has_which_formats() -> None:
    blackwell = ("b200", "b300", "gb", "rtx-pro", "rtx-50", "thor", "mi35")
    assert all(("fp4" in gpu(key).peak_flops) == key.startswith(blackwell) for key in gpu_keys())
    fp8 = (*blackwell, "h100", "h200", "h20", "h800", "gh200", "l4", "l20", "rtx-40", "rtx-6000", "rtx-5880", "mi3")
    fp8 += ("gaudi", "rx-90", "ai-pro")
    assert all(("fp8" in gpu(key).peak_flops) == key.startswith(fp8) for key in gpu_keys())


# --- figures from data sheets -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "field", "figure"),
    [
        ("a100-80gb-sxm", "memory_bytes_per_s", 2039e9),
        ("a100-80gb-sxm", "link_bytes_per_s", 600e9 / 2),
        ("h100-sxm", "memory_bytes_per_s", 3.35e12),
        ("h100-sxm", "sm_count", 132),
        ("h100-pcie", "sm_count", 114),
        ("h100-sxm", "link_bytes_per_s", 900e9 / 2),
        ("h100-sxm", "tdp_watts", 700),
        ("h200", "memory_bytes_per_s", 4.8e12),
        ("b200", "link_bytes_per_s", 1.8e12 / 2),
        ("b200", "tdp_watts", 1000),
        ("l40s", "memory_bytes_per_s", 864e9),
        ("l4", "tdp_watts", 72),
        ("mi300x", "memory_bytes_per_s", 5.3e12),
        ("gaudi-2", "memory_bytes_per_s", 2.45e12),
        ("gb300", "tdp_watts", 1400),
        ("mi355x", "memory_bytes_per_s", 8e12),
        ("max-1550", "memory_bytes_per_s", 3.2768e12),
        ("rtx-3090", "memory_bytes_per_s", 936.2e9),
        ("gtx-1050-ti", "memory_bytes_per_s", 112.1e9),
        ("m5-max", "memory_bytes_per_s", 614e9),
        ("v100", "compute_capability", 7.0),
        ("t4", "compute_capability", 7.5),
        ("p40", "compute_capability", 6.1),
        ("p100", "compute_capability", 6.0),
    ],
)
def test_data_sheet_figures(key: str, field: str, figure: float) -> None:
    assert getattr(gpu(key), field) == figure


@pytest.mark.parametrize(
    ("key", "dtype", "dense_flops"),
    [
        ("a100-80gb-sxm", "bf16", 312e12),
        ("h100-sxm", "bf16", 1979e12 / 2),
        ("h100-sxm", "fp8", 3958e12 / 2),
        ("h20", "bf16", 148e12),
        ("b200", "fp4", 18e15 / 2),
        ("gb200", "fp4", 1440e15 / 72 / 2),
        ("l4", "fp8", 485e12 / 2),
        ("rtx-4090", "bf16", 165.2e12),
        ("mi325x", "fp8", 2614.9e12),
        ("gaudi-2", "bf16", 432e12),
        ("gaudi-3", "fp8", 1835e12),
        ("gb300", "fp4", 1080e15 / 72),
        ("mi355x", "fp8", 5033.2e12),
        ("t4", "int8", 130e12),
    ],
)
def test_data_sheet_peaks(key: str, dtype: str, dense_flops: float) -> None:
    assert gpu(key).peak_flops[dtype] == dense_flops


def test_nvidias_before_ampere_have_no_bf16() -> None:
    without = {key for key in gpu_keys() if not gpu(key).has_bf16}
    older = {key for key in gpu_keys() if re.match(r"(t4|v100|p40|p100|gtx-1\d+|rtx-20\d\d)\b", key)}
    assert without == older and len(older) == 19


@every_gpu
def test_the_driver_reports_what_the_name_says(card: Gpu) -> None:
    gigabytes = int(re.findall(r"(\d+) Gi?B", card.name)[-1])
    assert gigabytes * 1e9 * 0.98 <= card.memory_bytes <= gigabytes * 2**30


# --- figures from measurements ------------------------------------------------------------------------------


def test_measured_link_latencies_are_those_of_the_timings(shared_data: Path) -> None:
    names = {"A100": "a100-80gb-sxm", "H100": "h100-sxm", "H200": "h200", "B200": "b200", "GB200": "gb200"}
    names |= {"L40S": "l40s", "RTXPRO6000": "rtx-pro-6000"}
    best = dict.fromkeys(names, math.inf)
    with gzip.open(shared_data / "measured" / "ops_collectives.csv.gz", "rt") as file:
        for row in csv.DictReader(file):
            if (row["lib"], row["op"], row["num_gpus"]) == ("vllm", "all_reduce", "2") and row["gpu"] in best:
                best[row["gpu"]] = min(best[row["gpu"]], float(row["time_us"]) * 1e-6)
    measured = {key for key in gpu_keys() if gpu(key).sources["link_latency_s"].kind == "measured"}
    assert measured == {*names.values(), "a100-40gb-sxm"}
    for name, key in names.items():
        assert gpu(key).link_latency_s == pytest.approx(best[name], rel=0.02)
