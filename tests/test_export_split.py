"""Exports of prefill and decode pools: what their engines and their pods need to hand over KV."""

import pytest
import yaml

from export_cases import commands
from headway.cost import EngineSettings, Replica
from headway.export import export, read_command
from headway.sim import Deployment, Pool


def split(gpu="h100-sxm", counts=(1, 1), engine=None, **replica):
    made = Replica(model="llama-3.1-8b", gpu=gpu, engine=engine or EngineSettings(), **replica)
    pools = zip(("prefill", "decode"), counts, strict=True)
    return Deployment(pools=tuple(Pool(role=role, count=count, replica=made) for role, count in pools))


@pytest.mark.parametrize("ahead", [None, True, False])
@pytest.mark.parametrize("to", ["trtllm", "compose", "dynamo"])
def test_prefill_servers_of_tensorrt_llm_have_no_overlap_scheduler(to, ahead):
    made = export(split(engine=EngineSettings(name="trtllm", ahead=ahead)), to)
    found = commands(made.files, "trtllm")
    by_role = {name.split("-")[0]: yaml.safe_load(command.config) for name, command in found.items()}
    assert by_role["prefill"]["disable_overlap_scheduler"] is True
    assert by_role["decode"].get("disable_overlap_scheduler") is (None if ahead is None else not ahead)
    assert any(note.startswith("engine.ahead: ") for note in made.notes) is (ahead is not False)
    assert all(read_command(command)["hands_over"] for command in found.values())
