"""Tenants: whose key it is, and how much they may still ask for."""

from __future__ import annotations

from hashlib import sha256

from headway.gateway.spec import Tenant


class Bucket:
    """A token bucket: fills at `per_min` a minute up to a minute's worth; no limit when that is None.

    What is larger than the bucket passes when it is full and leaves a debt, so that nothing is refused for ever.
    """

    def __init__(self, per_min: float | None) -> None:
        self.per_min = per_min
        self.level = per_min or 0.0
        self.at_s = 0.0

    def wait_s(self, now: float, amount: float) -> float:
        """Return the seconds until `amount` may be taken; 0 when it may now."""
        if self.per_min is None:
            return 0.0
        self._fill(now, self.per_min)
        missing = min(amount, self.per_min) - self.level
        return max(missing * 60.0 / self.per_min, 0.0) if missing > 1e-9 else 0.0

    def take(self, now: float, amount: float) -> None:
        """Take `amount`; a negative one gives back."""
        if self.per_min is not None:
            self._fill(now, self.per_min)
            self.level = min(self.level - amount, self.per_min)

    def _fill(self, now: float, per_min: float) -> None:
        self.level = min(self.level + max(now - self.at_s, 0.0) * per_min / 60.0, per_min)
        self.at_s = max(now, self.at_s)


class Account:
    """One tenant's live use."""

    def __init__(self, tenant: Tenant) -> None:
        self.tenant = tenant
        self.requests = Bucket(tenant.requests_per_min)
        self.tokens = Bucket(tenant.tokens_per_min)
        self.live = 0

    def refusal(self, now: float, tokens: int) -> tuple[str, float] | None:
        """Return why this request is too much, and in how many seconds it would not be; None when it is not."""
        most = self.tenant.concurrency
        if most is not None and self.live >= most:
            return f"{self.live} requests of this tenant are under way, {most} are allowed", 1.0
        wait_s = self.requests.wait_s(now, 1)
        if wait_s:
            return f"the limit of {self.tenant.requests_per_min:g} requests a minute is reached", wait_s
        wait_s = self.tokens.wait_s(now, tokens)
        if wait_s:
            return f"the limit of {self.tenant.tokens_per_min:g} tokens a minute is reached", wait_s
        return None


class Keys:
    """Finds the tenant of an API key by its hash; without tenants everyone is the one anonymous tenant."""

    def __init__(self, tenants: tuple[Tenant, ...]) -> None:
        self.tenants = tenants or (Tenant(name="anonymous"),)
        self.open = not tenants
        self.by_hash = {key: i for i, tenant in enumerate(tenants) for key in tenant.keys_sha256}

    def tenant(self, authorization: str) -> int | None:
        """Return the tenant of an Authorization header ("Bearer KEY"); None for a key that is none."""
        if self.open:
            return 0
        kind, _, key = authorization.strip().partition(" ")
        if kind.lower() != "bearer":
            return None
        return self.by_hash.get(sha256(key.strip().encode()).hexdigest())
