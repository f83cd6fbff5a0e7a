"""The live objects a policy may look at, and the decisions it may return.

Lives here: views (`Request`, `ReplicaState`, `PoolState`, `ClusterState`, `QueueView`) and decisions (`Route`, ...).
May import: nothing of Headway but errors and units, so that every host (simulator, gateway) can build on it.
Start reading in `views.py`; `decisions.py` holds what a policy answers.
Fields are read-only for policies in compiled code; hosts keep them up to date.
"""

from headway.state.decisions import Accept, Choose, Defer, Hold, Reject, Route, Scale
from headway.state.views import ClusterState, PoolState, QueueView, ReplicaState, Request

__all__ = [
    "Accept",
    "Choose",
    "ClusterState",
    "Defer",
    "Hold",
    "PoolState",
    "QueueView",
    "Reject",
    "ReplicaState",
    "Request",
    "Route",
    "Scale",
]
