"""Exporters: a deployment becomes what people launch, for one engine or one orchestrator.

What lives here: `export` and its targets; recorded parsers of the engines, which every command must pass (`data/`).
May import: sim, gateway and every room below them; never report or cli.
Start reading in `run.py` (`export`), then `engine.py` (what a command is) and one engine, as `vllm.py`.
"""

from headway.export.engine import Command, read_command
from headway.export.run import export
from headway.export.target import Exported, Target, targets

__all__ = ["Command", "Exported", "Target", "export", "read_command", "targets"]
