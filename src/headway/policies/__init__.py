"""Policies: one file per decision point; pure decisions over `state`.

Lives here: `Policy`, `check_policy` (the contract as a test), the built-in routers, orders, admission, their registry.
May import: state, errors. No I/O, no clock, no randomness but the view's own stream.
Start reading in `base.py`, then `routing.py`; `registry.py` finds a policy by name or by `module:Class`.
A user's policy is a subclass of `Policy` that overrides only what it decides.
"""

from headway.policies.base import Policy
from headway.policies.contract import check_policy
from headway.policies.registry import policy, policy_names

__all__ = ["Policy", "check_policy", "policy", "policy_names"]
