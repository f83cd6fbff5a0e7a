"""After a plan: the command that writes what starts it, tried before it is printed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.errors import HeadwayError

if TYPE_CHECKING:
    from headway.sim import Deployment

__all__ = ["launch_words"]

DOES = "writes the commands that start it"


def launch_words(deployment: Deployment) -> tuple[str, str]:
    """Return what follows `headway export FILE` for a deployment, and what that does.

    The engine's own files where they can be written, with a checkpoint to be named where the precision needs one;
    else the file of `headway serve`. Where that cannot be written either there is no command, and the second says why.
    """
    from headway.export import export

    engine = deployment.pools[0].replica.engine.name
    held = "_OR_".join(dict.fromkeys(pool.replica.weights.upper() for pool in deployment.pools))
    checkpoint, reasons = f"CHECKPOINT_IN_{held}", []
    for target, path in ((engine, ""), (engine, checkpoint), ("gateway", "")):
        try:
            export(deployment, target, model_path=path)
        except HeadwayError as error:
            reasons.append(str(error))
        else:
            break
    else:
        return "", f"nothing that `headway export` writes starts it: {reasons[0]}"
    if target == "gateway":
        does = f"writes the file of `headway serve`, for servers that you start yourself ({reasons[0]})"
        return "--to gateway --out launch", does
    if not path:
        return f"--to {engine} --out launch", DOES
    return (
        f"--to {engine} --model-path {checkpoint} --out launch",
        f"{DOES}, with a repository or a folder of yours in place of {checkpoint} ({reasons[0]})",
    )
