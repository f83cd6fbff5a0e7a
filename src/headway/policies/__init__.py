"""Policies: one file per decision point; pure decisions over `state`.

Lives here: the contract (`Policy`), the built-in routers, queue orders and admission rules, and their registry.
May import: state, errors. No I/O, no clock, no randomness but the view's own stream.
Start reading in `base.py`, then `routing.py`; `registry.py` finds a policy by name or by `module:Class`.
A user's policy is a subclass of `Policy` that overrides only what it decides.
"""

from headway.policies.base import Policy
from headway.policies.registry import policy, policy_names

__all__ = ["Policy", "policy", "policy_names"]
