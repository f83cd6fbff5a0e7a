"""Work that is done behind the decisions: a bounded queue with a thread of its own, which may block."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Behind(Generic[T]):
    """Hands items to `take`, up to `together` at once, in a thread; where that is too slow they are lost and counted.

    Args:
        name: of the thread.
        take: is given a batch; returns how many of it were lost.
        waiting: items that may wait.
        together: items in a batch.
        pause_s: after a batch's first item, so that others go with it.
    """

    def __init__(
        self, name: str, take: Callable[[list[T]], int], waiting: int, together: int, pause_s: float = 0.0
    ) -> None:
        self.take, self.together, self.pause_s = take, together, pause_s
        self.refused = self.failed = 0  # each counted in one thread only
        self.queue: queue.Queue[T | None] = queue.Queue(waiting)
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    @property
    def dropped(self) -> int:
        """Items that were lost."""
        return self.refused + self.failed

    def put(self, item: T) -> None:
        """Add an item, or count it as lost; never waits."""
        try:
            self.queue.put_nowait(item)
        except queue.Full:
            self.refused += 1

    def close(self, within_s: float) -> None:
        """Take what waits, as far as that goes within so long."""
        try:
            self.queue.put(None, timeout=within_s)
        except queue.Full:
            return
        self.thread.join(within_s)

    def _run(self) -> None:
        more = True
        while more:
            batch = [self.queue.get()]
            if batch[0] is not None and self.pause_s:
                time.sleep(self.pause_s)
            while len(batch) < self.together and not self.queue.empty():
                batch.append(self.queue.get_nowait())
            more = None not in batch
            items = [item for item in batch if item is not None]
            if items:
                self.failed += self.take(items)
