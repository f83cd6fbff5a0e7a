"""`--calibration FILE|published`: read, compared with what is asked, and put into it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from headway.cli.terminal import Terminal
from headway.errors import BadInput

if TYPE_CHECKING:
    from headway.cost import Replica
    from headway.cost.calibration import Calibration
    from headway.plan import Question
    from headway.sim import Deployment


def read_noted(path: str | None, terminal: Terminal) -> Calibration | None:
    """Return the calibration of a file, and say what it rests on; None without a file.

    Raises:
        BadInput: no such file, or it is no calibration.
    """
    if path is None:
        return None
    from headway.cost.calibration import read_calibration

    file = read_calibration(path)
    evidence = file.evidence
    if not evidence.kept:
        terminal.note(f"{path} changes nothing: held-out points were predicted no better with it")
    elif evidence.held_out:
        errors = ", ".join(f"{name} {100 * error:.1f} %" for name, error in evidence.held_out.items())
        terminal.note(f"step times calibrated on {evidence.points} points of {path}; on held-out ones {errors} off")
    machine = ", ".join(f"{name} {value}" for name, value in file.fingerprint.items())
    if machine:
        terminal.note(f"{path} was measured on {machine}")
    return file.calibration


def read_fingerprint(path: str) -> dict[str, Any]:
    """Return what `headway profile` said of a machine.

    Raises:
        BadInput: no such file, or not its JSON.
    """
    from pathlib import Path

    import msgspec

    try:
        data = msgspec.json.decode(Path(path).read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise BadInput(f"{path}: not the JSON of `headway profile`: {error}") from None
    if not isinstance(data, dict):
        raise BadInput(f"{path}: expected a JSON object of names and values")
    return data


def compare_machines(asked: Mapping[str, Any], terminal: Terminal) -> None:
    """Compare the machine asked about (`--fingerprint`) with the one that was calibrated, where both are told.

    Raises:
        BadInput: another GPU than the calibrated one, or no calibration to compare with, or none with a fingerprint.
    """
    path, calibration = asked["fingerprint_from"], asked["calibration_from"]
    if path is None:
        return
    from headway.cost.calibration import read_calibration
    from headway.cost.published import PUBLISHED

    here = read_fingerprint(path)
    if calibration is None or calibration == PUBLISHED:
        raise BadInput(f"--fingerprint {path} is compared with a calibration's: name that with --calibration FILE")
    there = read_calibration(calibration).fingerprint
    if not there:
        raise BadInput(
            f"{calibration} does not say on which machine it was measured: leave --fingerprint out, or calibrate again "
            "with it"
        )
    differ = [name for name in sorted({*here, *there}) if here.get(name) != there.get(name)]
    said = "; ".join(f"{name} {here.get(name, 'unsaid')} here, {there.get(name, 'unsaid')} there" for name in differ)
    if "gpu" in differ:
        raise BadInput(f"{calibration} was measured on another machine than {path}: {said}; measure that one")
    if differ:
        terminal.note(f"{calibration} was measured on another machine: {said}; times may differ")


def with_calibration(deployment: Deployment, path: str | None, terminal: Terminal) -> Deployment:
    """Return the deployment with every replica calibrated by the file, if there is one.

    Raises:
        BadInput: it is of another GPU or engine, or cannot be read.
    """
    if path is None:
        return deployment
    import msgspec

    from headway.cost.published import PUBLISHED

    if path == PUBLISHED:
        return _as_published(deployment, terminal)
    calibration = read_noted(path, terminal)
    if calibration is None:
        return deployment
    replace = msgspec.structs.replace
    pools = tuple(
        replace(pool, replica=_fitting(pool.replica, calibration, path, terminal)) for pool in deployment.pools
    )
    return replace(deployment, pools=pools)


def ask_calibrated(question: Question, path: str | None, terminal: Terminal) -> Question:
    """Return the question about calibrated replicas, if there is a file.

    Raises:
        BadInput: it is of another GPU or engine, or cannot be read.
    """
    if path is None:
        return question
    import msgspec

    from headway.cost.published import PUBLISHED

    if path == PUBLISHED:
        _tell_offered(question, terminal)
        return msgspec.structs.replace(question, calibration=PUBLISHED)
    calibration = read_noted(path, terminal)
    if calibration is None:
        return question
    from headway.cost import Replica
    from headway.model import model

    if len(question.stock) > 1:
        raise BadInput(
            f"--calibration {path} against --gpu {','.join(question.stock)}: it is of one GPU, plan for that"
        )
    native = model(question.model).native_dtype
    weights = calibration.weights[0] if calibration.weights else native
    seen = Replica(model=question.model, gpu=next(iter(question.stock)), weights=weights, engine=question.engine)
    engine = _fitting(seen, calibration, path, terminal).engine
    return msgspec.structs.replace(question, engine=engine, calibration=calibration)


def _as_published(deployment: Deployment, terminal: Terminal) -> Deployment:
    """The deployment by what was published of it; says what that is, or that there is nothing."""
    from msgspec.structs import replace

    from headway.cost.published import asked_of, offered, published

    found = deployment.as_published()
    for name, pool in zip(found.pool_names(), found.pools, strict=True):
        replica = pool.replica
        taken = published(replace(replica, calibration=None)) if pool.role == "mixed" else None
        if taken is None:
            there = "; ".join(offered(replica.model, replica.gpu)) or "none of the model on the GPU"
            kept = "the shipped law" if replica.calibration is None else "the calibration that it has"
            terminal.note(
                f"{name}: no published times per token of {replica.model} on {replica.gpu} with {asked_of(replica)}, "
                f"in mixed replicas without speculation, pictures or limits of power (there are: {there}): {kept} stays"
            )
            continue
        errors = ", ".join(f"{metric} {100 * error:.1f} %" for metric, error in taken.held_out)
        elsewhere = "" if taken.layouts else "; none is of this layout, where they are no surer than the shipped law"
        terminal.note(f"{name}: step times by {taken.source}; on points left out {errors} off{elsewhere}")
    return found


def _tell_offered(question: Question, terminal: Terminal) -> None:
    """Say what was published of the model on each kind of GPU."""
    from headway.cost.published import offered

    for name in question.stock:
        there = "; ".join(offered(question.model, name))
        said = f"mixed candidates take what is published: {there}" if there else "nothing is published: the shipped law"
        terminal.note(f"{question.model} on {name}: {said}")


def read_calibrated(path: str | None, terminal: Terminal) -> Calibration | str | None:
    """Return what `--calibration` names, for a table of measurements: "published" stays that.

    Raises:
        BadInput: no such file, or it is no calibration.
    """
    from headway.cost.published import PUBLISHED

    if path != PUBLISHED:
        return read_noted(path, terminal)
    terminal.note("published terms were fitted on public tables: on rows of these, errors are of the fit, no forecast")
    return PUBLISHED


def refuse_elsewhere(calibration: Calibration | str | None, skipped: Mapping[str, int], used: int) -> None:
    """Refuse a table none of whose rows is of what was calibrated.

    Raises:
        BadInput: naming the difference.
    """
    from headway.accuracy.judge import ELSEWHERE

    if calibration is not None and not used:
        reason = next((text for text in skipped if text.startswith(ELSEWHERE)), None)
        if reason:
            raise BadInput(f"no row of the table is of the calibrated GPU and engine: {reason}")


def _fitting(replica: Replica, calibration: Calibration, path: str, terminal: Terminal) -> Replica:
    """The calibrated replica; an engine version left open becomes the measured one."""
    import msgspec

    from headway.cost.calibration import mismatch

    differs = mismatch(calibration, replica.gpu, replica.engine.name)
    if differs:
        raise BadInput(f"{path} does not hold here: {differs}; leave it out, or measure there and calibrate again")
    engine, versions = replica.engine, calibration.versions
    if not engine.version and len(versions) == 1:
        engine = msgspec.structs.replace(engine, version=versions[0])
    elif engine.version and versions and engine.version not in versions:
        measured = ", ".join(versions)
        terminal.note(f"{path} was measured with {engine.name} {measured}, not {engine.version}: times may differ")
    for what, came, seen in (
        ("model", replica.model, calibration.models),
        ("weights", replica.weights, calibration.weights),
        ("KV precision", replica.kv, calibration.kv),
        ("TP degree", str(replica.tp), tuple(str(tp) for tp in sorted({layout[0] for layout in calibration.layouts}))),
    ):
        if seen and came not in seen:
            terminal.note(f"{path} holds no points of {what} {came} (it has {', '.join(seen)}): less sure there")
    return msgspec.structs.replace(replica, engine=engine, calibration=calibration)
