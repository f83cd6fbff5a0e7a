"""What a policy answers: typed, immutable, each with a short reason for the decision log."""

import cython


class Route:
    """Send the request to the replica at `index` of the pool's `replicas`."""

    def __init__(self, index: cython.Py_ssize_t, reason: str = "") -> None:
        self.index = index
        self.reason = reason

    def __repr__(self) -> str:
        return f"Route({self.index}, {self.reason!r})"


def route_to(index: cython.Py_ssize_t, reason: str) -> Route:
    """`Route(index, reason)` without the price of a Python call, for compiled routers."""
    made: Route = Route.__new__(Route)
    made.index = index
    made.reason = reason
    return made


class Accept:
    """Let the request in."""

    def __init__(self, reason: str = "") -> None:
        self.reason = reason


class Reject:
    """Refuse the request now; it counts as arrived and as not served."""

    def __init__(self, reason: str = "") -> None:
        self.reason = reason


class Hold:
    """Send the request nowhere yet: it waits for the pool, and the router is asked again when something there ends."""

    def __init__(self, reason: str = "") -> None:
        self.reason = reason

    def __repr__(self) -> str:
        return f"Hold({self.reason!r})"


class Defer:
    """Neither let the request in nor refuse it: the admission rule is asked again at `until_s`, an absolute time."""

    def __init__(self, until_s: cython.double, reason: str = "") -> None:
        self.until_s = until_s
        self.reason = reason

    def __repr__(self) -> str:
        return f"Defer({self.until_s!r}, {self.reason!r})"


class Choose:
    """Let this model serve the request: one of those that it may be served by."""

    def __init__(self, model: str, reason: str = "") -> None:
        self.model = model
        self.reason = reason

    def __repr__(self) -> str:
        return f"Choose({self.model!r}, {self.reason!r})"


class Scale:
    """Let pool number `pool` have `replicas` replicas that serve or start, as far as there are so many."""

    def __init__(self, pool: cython.Py_ssize_t, replicas: cython.longlong, reason: str = "") -> None:
        self.pool = pool
        self.replicas = replicas
        self.reason = reason

    def __repr__(self) -> str:
        return f"Scale({self.pool}, {self.replicas}, {self.reason!r})"
