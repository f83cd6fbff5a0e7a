"""Specs: what is written reads back, every field is reached by its path, and errors name the place."""

import math
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from headway.errors import BadInput
from headway.specs import Spec, check_types, from_mapping, override, read_yaml, set_path, to_mapping, write_yaml


class Constant(Spec, tag_field="kind", tag="constant"):
    n: int = 1


class Uniform(Spec, tag_field="kind", tag="uniform"):
    lo: int
    hi: int = 10


class Engine(Spec):
    max_seqs: int = 256
    prefix_cache: bool = True


class Replica(Spec):
    model: str
    tp: int = 1
    engine: Engine = Engine()
    weights: str = "bf16"

    def __post_init__(self) -> None:
        if self.tp < 1:
            raise BadInput(f"tp is a number of GPUs, at least 1; came {self.tp}")


class Deployment(Spec):
    name: str = "plain"
    replicas: tuple[Replica, ...] = ()
    lengths: Constant | Uniform = Constant(n=7)
    wait_s: float = 0.5
    link_bytes_per_s: float = 1e9
    kv_bytes: int = 0
    rate_req_s: float | None = None
    spare: Engine | None = None
    engines: dict[str, Engine] = msgspec.field(default_factory=dict)


numbers = st.integers(-(1 << 63), 1 << 63)
engine_specs = st.builds(Engine, max_seqs=st.integers(1, 9999), prefix_cache=st.booleans())
replicas = st.builds(
    Replica,
    model=st.text(max_size=9),
    tp=st.integers(1, 64),
    engine=engine_specs,
    weights=st.text(max_size=9),
)
deployments = st.builds(
    Deployment,
    name=st.text(),
    replicas=st.lists(replicas, max_size=3).map(tuple),
    lengths=st.builds(Constant, n=numbers) | st.builds(Uniform, lo=numbers, hi=numbers),
    wait_s=st.floats(allow_nan=False, allow_infinity=False),
    rate_req_s=st.none() | st.floats(0, 1e300),
    spare=st.none() | engine_specs,
    engines=st.dictionaries(st.text(max_size=5), engine_specs, max_size=3),
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(deployments, st.booleans())
def test_a_spec_survives_its_mapping(spec, defaults):
    assert from_mapping(Deployment, to_mapping(spec, defaults=defaults), "here") == spec


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("specs") / "spec.yaml"


@given(spec=deployments)
def test_a_spec_survives_its_yaml(path, spec):
    assert write_yaml(spec, path) == path.read_text(encoding="utf-8")
    assert from_mapping(Deployment, read_yaml(path), str(path)) == spec


@given(data=st.dictionaries(st.text(), trees, max_size=4))
def test_builtins_survive_their_yaml_here_and_in_a_yaml_1_1_reader(path, data):
    write_yaml(data, path)
    assert read_yaml(path) == data
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == data


@given(deployments.filter(lambda spec: spec.replicas), st.integers(1, 99))
def test_an_override_changes_its_field_and_nothing_else(spec, tp):
    changed = override(spec, [f"replicas.0.tp={tp}"])
    first = msgspec.structs.replace(spec.replicas[0], tp=tp)
    assert changed == msgspec.structs.replace(spec, replicas=(first, *spec.replicas[1:]))


def test_defaults_are_left_out():
    assert to_mapping(Deployment()) == {}
    assert to_mapping(Deployment(lengths=Uniform(lo=1))) == {"lengths": {"kind": "uniform", "lo": 1}}
    assert write_yaml(Deployment(replicas=(Replica(model="m", tp=4),))) == "replicas:\n- model: m\n  tp: 4\n"


def test_an_override_inside_a_default_keeps_the_rest_of_that_default():
    assert override(Deployment(), ["lengths.n=8"]).lengths == Constant(n=8)
    assert override(Deployment(), ["wait_s=20ms"]).lengths == Constant(n=7)
    assert override(Deployment(), ["spare.max_seqs=3"]).spare == Engine(max_seqs=3)


def test_a_star_reaches_every_entry():
    spec = Deployment(replicas=(Replica(model="a"), Replica(model="b")))
    assert [r.tp for r in override(spec, ["replicas.*.tp=2"]).replicas] == [2, 2]


def test_set_path_leaves_its_input_alone():
    data = {"replicas": [{"model": "a"}]}
    assert set_path(data, "replicas.0.engine.max_seqs=4") == {
        "replicas": [{"model": "a", "engine": {"max_seqs": 4}}]
    }
    assert data == {"replicas": [{"model": "a"}]}


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("wait_s", "500ms", 0.5),
        ("kv_bytes", "80GiB", 80 << 30),
        ("rate_req_s", "90req/min", 1.5),
        ("wait_s", "1e-3", 0.001),
    ],
)
def test_a_field_takes_what_a_person_writes_in_its_unit(field, text, value):
    assert getattr(from_mapping(Deployment, {field: text}, "here"), field) == value


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"nmae": 1}, "f.yaml: unknown field 'nmae': nearest: name; allowed: engines, "),
        ({"replicas": [{"model": "m", "tpp": 2}]}, "f.yaml: replicas.0: unknown field 'tpp': nearest: tp; "),
        ({"replicas": [{"tp": 2}]}, "f.yaml: replicas.0: the field 'model' is missing; fields: model, tp"),
        ({"replicas": [{"model": "m", "tp": "four"}]}, "f.yaml: replicas.0.tp: expected int, came 'four'"),
        (
            {"replicas": [{"model": "m", "tp": 0}]},
            "f.yaml: replicas.0: tp is a number of GPUs, at least 1; came 0",
        ),
        ({"replicas": {"model": "m"}}, "f.yaml: replicas: expected array, came a mapping of 1"),
        ({"replicas": None}, "f.yaml: replicas: expected array, came nothing"),
        (
            {"lengths": {"kind": "uniform", "low": 1}},
            "f.yaml: lengths: unknown field 'low': nearest: lo; allowed: hi, lo",
        ),
        (
            {"lengths": {"kind": "unifrom"}},
            "f.yaml: lengths.kind: unknown kind 'unifrom': nearest: uniform; allowed: ",
        ),
        ({"lengths": {"lo": 1}}, "f.yaml: lengths: the field 'kind' is missing; allowed: constant, uniform"),
        ({"engines": {"a": {"max_seqs": "x"}}}, "f.yaml: engines.a.max_seqs: expected int, came 'x'"),
        ({"engines": {"a": {}, "b": {"max_seqs": "x"}, "c": {}}}, "f.yaml: engines.b.max_seqs: expected int, came 'x'"),
        ({"wait_s": "500parsecs"}, "f.yaml: wait_s: time '500parsecs' is not understood: write 500ms"),
        ({"wait_s": math.nan}, "f.yaml: wait_s: expected a finite number, came nan"),
        ({"wait_s": "inf"}, "f.yaml: wait_s: expected a finite number, came inf"),
        ([1], "f.yaml: expected object, came a list of 1"),
    ],
)
def test_an_error_names_the_place_what_came_and_what_is_allowed(data, message):
    with pytest.raises(BadInput) as caught:
        from_mapping(Deployment, data, "f.yaml")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("replicas.0.tpp=2", "--set: replicas.0: unknown field 'tpp': nearest: tp"),
        ("replicas.3.tp=2", "--set: replicas: allowed is 0 to 0, or * for all; came '3'"),
        ("name.x=2", "--set: name is 'plain', it has no field 'x'"),
        ("name", "--set 'name': write PATH=VALUE, as in pools.0.replica.tp=4"),
        ("a..b=2", "--set 'a..b=2': write PATH=VALUE"),
        ("name={", "--set 'name={': the value is not YAML"),
        ("replicas.0.tp=", "--set: replicas.0.tp: expected int, came nothing"),
        ("name=0.11", """--set: name: expected str, came 0.11; quote it to give text: name='"0.11"'"""),
        ("replicas.0.weights=8", "--set: replicas.0.weights: expected str, came 8; quote it to give text: weights='"),
    ],
)
def test_a_wrong_assignment_is_explained(assignment, message):
    with pytest.raises(BadInput) as caught:
        override(Deployment(replicas=(Replica(model="m"),)), [assignment])
    assert str(caught.value).startswith(message)


def test_a_number_for_text_in_a_file_is_told_how_to_quote_it(tmp_path):
    (tmp_path / "f.yaml").write_text("name: 0.11\n")
    with pytest.raises(BadInput, match=r'yaml: name: expected str, came 0\.11; quote it to give text: name: "0\.11"'):
        from_mapping(Deployment, read_yaml(tmp_path / "f.yaml"), "f.yaml")
    assert override(Deployment(), ["""name="0.11\""""]).name == "0.11"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [", "f.yaml:3: not YAML: "),
        ("a: 1\na: 2\n", "f.yaml:2: not YAML: the key 'a' comes twice"),
        ("- 1\n", "f.yaml: expected a mapping of fields, came a list of 1"),
        ("", "f.yaml: expected a mapping of fields, came nothing"),
        ("a: \x00", "f.yaml:1: not YAML: "),
        ("!!python/object/apply:os.getcwd []", "f.yaml:1: not YAML: "),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, text, message):
    (tmp_path / "f.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(BadInput) as caught:
        read_yaml(tmp_path / "f.yaml")
    assert str(caught.value).removeprefix(f"{tmp_path}/").startswith(message)


def test_a_missing_or_unreadable_file_is_named(tmp_path):
    (tmp_path / "plan.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match=r"pln\.yaml: no such file; nearest: plan\.yaml"):
        read_yaml(tmp_path / "pln.yaml")
    with pytest.raises(BadInput, match="cannot be read as text"):
        read_yaml(tmp_path / "plan.yaml")
    with pytest.raises(BadInput, match="cannot be written"):
        write_yaml({}, tmp_path / "nowhere" / "plan.yaml")


def test_scalars_are_those_of_yaml_1_2(tmp_path):
    text = "a: no\nb: 12:30\nc: 1e9\nd: 0x10\ne: 2024-01-02\nf: true\ng: ~\nh: 010\n"
    (tmp_path / "f.yaml").write_text(text)
    assert read_yaml(tmp_path / "f.yaml") == {
        "a": "no",
        "b": "12:30",
        "c": 1e9,
        "d": "0x10",
        "e": "2024-01-02",
        "f": True,
        "g": None,
        "h": 10,
    }


# --- types of what Python gives ---


class Inner(Spec, frozen=True, kw_only=True):
    n: int = 1


class Checked(Spec, frozen=True, kw_only=True):
    rate: float | None = None
    degrees: tuple[int, ...] = ()
    path: str = ""
    by_name: dict[str, float] = {}  # noqa: RUF012 - msgspec copies it
    inner: Inner = Inner()
    goal: Literal["cost", "energy"] = "cost"

    def __post_init__(self):
        check_types(self, "asked")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rate": "3"}, "asked: rate: expected float | None, came '3'"),
        ({"degrees": 3}, "asked: degrees: expected list, came 3"),
        ({"degrees": (1, "2")}, "asked: degrees.1: expected int, came '2'"),
        ({"degrees": (1, 2.5)}, "asked: degrees.1: expected int, came 2.5"),
        ({"path": 3}, "asked: path: expected str, came 3"),
        ({"by_name": {"a": 1.0, "b": "x"}}, "asked: by_name.b: expected float, came 'x'"),
        ({"inner": 3}, "asked: inner: expected Inner, came 3"),
        ({"goal": "costs"}, "asked: goal: unknown value 'costs': nearest: cost"),
        ({"goal": 3}, "asked: goal: expected str, came 3"),
    ],
)
def test_a_constructor_refuses_other_types(fields, message):
    with pytest.raises(BadInput) as caught:
        Checked(**fields)
    assert str(caught.value).startswith(message)


def test_a_constructor_takes_what_converts_without_loss():
    inner = Inner(n=2)
    made = Checked(
        rate=np.float64(2.5), degrees=np.array([1, 2]), path=Path("a.csv"), by_name={"a": np.int64(3)}, inner=inner
    )
    assert to_mapping(made) == {
        "rate": 2.5, "degrees": [1, 2], "path": "a.csv", "by_name": {"a": 3.0}, "inner": {"n": 2},
    }  # fmt: skip
    assert [type(each) for each in (made.rate, *made.degrees, made.path)] == [float, int, int, str]
    assert made.inner is inner
    assert Checked(rate=2, degrees=[4]) == Checked(rate=2.0, degrees=(4,))
