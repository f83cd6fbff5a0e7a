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
    else the file of `headway serve`.
    """
    from headway.export import export

    engine = deployment.pools[0].replica.engine.name
    try:
        export(deployment, engine)
    except HeadwayError as error:
        why = str(error)
    else:
        return f"--to {engine} --out launch", DOES
    held = "_OR_".join(dict.fromkeys(pool.replica.weights.upper() for pool in deployment.pools))
    checkpoint = f"CHECKPOINT_IN_{held}"
    try:
        export(deployment, engine, model_path=checkpoint)
    except HeadwayError:
        return (
            "--to gateway --out launch",
            f"writes the file of `headway serve`, for servers that you start yourself ({why})",
        )
    return (
        f"--to {engine} --model-path {checkpoint} --out launch",
        f"{DOES}, with a repository or a folder of yours in place of {checkpoint} ({why})",
    )
