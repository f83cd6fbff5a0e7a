"""Many emulated replicas in one process, each on a port of its own."""

from __future__ import annotations

import asyncio
import gc
import resource
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec

from headway.cost import Replica, compile_replica
from headway.emulate.conductor import Conductor, Player
from headway.emulate.faults import check_replicas, check_whole
from headway.emulate.pool_port import PoolPlayer, PoolPort
from headway.emulate.pools import Link, PacedPools, Seat
from headway.emulate.port import Port
from headway.emulate.replica import PacedReplica
from headway.emulate.settings import Settings
from headway.errors import BadInput

_FILES_EACH = 16  # descriptors of a port beside its connections


class Split(NamedTuple):
    """Replicas of one model, from number `first` on, that prefill or decode; `link` is what their KV moves over."""

    first: int
    roles: tuple[str, ...]
    link: Link


class Emulator:
    """Replicas that listen on consecutive ports from `settings.port` on (or each on any free one, with port 0).

    `names`: what the model of each is called, where `settings` give no names; by default as in the catalogue. `splits`:
    the replicas that are prefill and decode pools.

    Raises:
        BadInput: a port beyond the last, a fault of a replica that is not there, or one that befalls a prefill or a
            decode replica as a whole.
        DoesNotFit: a model that its GPUs cannot hold.
        MissingExtra: the HTTP parser is not installed.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        settings: Settings,
        order: Any = None,
        names: Sequence[str] = (),
        splits: Sequence[Split] = (),
    ) -> None:
        check_replicas(settings.faults, len(replicas))
        if settings.port and settings.port + len(replicas) - 1 > 65_535:
            raise BadInput(f"{len(replicas)} ports from {settings.port} on go beyond 65535: choose a lower --port")
        tables = {replica: compile_replica(replica) for replica in dict.fromkeys(replicas)}
        self.settings = settings
        own = [settings] * len(replicas)
        if names and not settings.names:
            own = [msgspec.structs.replace(settings, names=(name,)) for name in names]
        ports: dict[int, Port] = {}
        self.players: list[Player] = []
        for split in splits:
            members = range(split.first, split.first + len(split.roles))
            check_whole(settings.faults, members)
            of_each = [(tables[replicas[i]], replicas[i], role) for i, role in zip(members, split.roles, strict=True)]
            pools = PacedPools(of_each, split.link, sum(replica.dp for replica in replicas[: split.first]), order)
            seated = [PoolPort(i, replicas[i], Seat(pools, n), own[i]) for n, i in enumerate(members)]
            self.players.append(PoolPlayer(pools, seated))
            ports |= dict(zip(members, seated, strict=True))
        for i, replica in enumerate(replicas):
            if i not in ports:
                ports[i] = Port(i, replica, partial(PacedReplica, tables[replica], replica.engine, order), own[i])
                self.players.append(ports[i])
        self.ports = [ports[i] for i in range(len(replicas))]

    async def start(self) -> None:
        """Begin to listen; what exists by now is left out of garbage collection, whose pauses would be lateness.

        Raises:
            BadInput: a port cannot be had; then none is kept.
        """
        _allow_files(len(self.ports) * (self.settings.limits.connections + _FILES_EACH))
        self.conductor = Conductor(asyncio.get_running_loop(), self.players)
        opened: list[Port] = []
        try:
            for i, port in enumerate(self.ports):
                await port.listen(self.settings.port + i if self.settings.port else 0, self.conductor)
                opened.append(port)
        except BadInput:
            for port in opened:
                port.close()
            self.conductor.close()
            raise
        gc.collect()
        gc.freeze()

    def close(self) -> None:
        """Stop, cutting what is under way."""
        for port in self.ports:
            port.close()
        self.conductor.close()
        gc.unfreeze()

    def summary(self) -> list[dict[str, Any]]:
        """Return for each replica where it listened, what it did, and how late its tokens were."""
        rows = []
        for port in self.ports:
            late, meters = port.meters.late, port.meters
            steps = sum(late.counts)
            rows.append(
                {
                    "url": port.url,
                    "ended": dict(meters.ended),
                    "prompt_tokens": meters.prompt_tokens,
                    "output_tokens": meters.output_tokens,
                    "steps": steps,
                    "mean_lateness_s": late.sum_s / steps if steps else None,
                    "steps_within_2ms": sum(late.counts[: late.limits_s.index(0.002) + 1]) / steps if steps else None,
                }
            )
        return rows


def _allow_files(wanted: int) -> None:
    """Raise the limit on open files as far as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
