"""Tenants: whose key it is, and how much they may still ask for."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import msgspec

from headway.gateway.spec import Tenant

DAY_S = 86_400.0


class Usage(msgspec.Struct, frozen=True):
    """What has been used of one limit of a tenant: `value` as of the Unix time `at_s`.

    Of a budget the tokens spent or set aside in the period that began at `at_s`; of a rate the level of its bucket.
    """

    tenant: str
    limit: str  # the field of `Tenant`
    value: float
    at_s: float


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


class Budget:
    """Tokens for a calendar day or month (UTC). What a request may use at most is set aside until it is over.

    So spent and set aside together never exceed the budget, whatever is under way. A request counts in the period in
    which it ends. `others`: tokens that other processes have spent or set aside in this period. Times are Unix times.
    """

    def __init__(self, tokens: float, monthly: bool) -> None:
        self.tokens = tokens
        self.monthly = monthly
        self.spent = 0.0
        self.reserved = 0.0
        self.others = 0.0
        self.start_s, self.end_s = self._period(0.0)

    def left(self, unix_s: float) -> float:
        """Return the tokens that may still be asked for."""
        if unix_s >= self.end_s:  # never back, whatever the machine's clock is set to
            self.start_s, self.end_s = self._period(unix_s)
            self.spent = self.others = 0.0
        return self.tokens - self.spent - self.reserved - self.others

    def settle(self, unix_s: float, reserved: float, spent: float) -> None:
        """A request for which so much was set aside is over, and has used so much."""
        self.left(unix_s)
        self.reserved -= reserved
        self.spent += spent

    def states(self) -> dict[str, float]:
        """Return the tokens of the budget, those spent of it, and those set aside."""
        return {"limit": self.tokens, "spent": self.spent, "reserved": self.reserved, "others": self.others}

    def _period(self, unix_s: float) -> tuple[float, float]:
        if not self.monthly:
            start_s = unix_s // DAY_S * DAY_S
            return start_s, start_s + DAY_S
        first = datetime.fromtimestamp(unix_s, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        following = (first + timedelta(days=32)).replace(day=1)
        return first.timestamp(), following.timestamp()


class Account:
    """One tenant's live use. `epoch_s`: the Unix time at which `now` is 0."""

    def __init__(self, tenant: Tenant) -> None:
        self.tenant = tenant
        self.epoch_s = 0.0
        self.buckets = {name: Bucket(getattr(tenant, name)) for name in ("requests_per_min", "tokens_per_min")}
        self.requests, self.tokens = self.buckets.values()
        periods = {"tokens_per_day": False, "tokens_per_month": True}
        limits = {name: getattr(tenant, name) for name in periods}
        self.budgets = {name: Budget(most, periods[name]) for name, most in limits.items() if most is not None}
        self.live = 0

    def refusal(self, now: float, tokens: int, bound: int) -> tuple[str, str, float] | None:
        """Return why a request is too much: code, words, and in how many seconds it is not; None if it is not.

        Args:
            now: the time.
            tokens: expected of the request.
            bound: the most that it may use.
        """
        most = self.tenant.concurrency
        rate, budget = "rate_limit_exceeded", "insufficient_quota"
        if most is not None and self.live >= most:
            return rate, f"{self.live} requests of this tenant are under way, {most} are allowed", 1.0
        wait_s = self.requests.wait_s(now, 1)
        if wait_s:
            return rate, f"the limit of {self.tenant.requests_per_min:g} requests a minute is reached", wait_s
        wait_s = self.tokens.wait_s(now, tokens)
        if wait_s:
            return rate, f"the limit of {self.tenant.tokens_per_min:g} tokens a minute is reached", wait_s
        unix_s = self.epoch_s + now
        for each in self.budgets.values():
            left = each.left(unix_s)
            if bound > left:
                period = "month" if each.monthly else "day"
                words = f"{left:.0f} tokens are left of this {period}'s {each.tokens:.0f}, the request may use {bound}"
                return budget, f"{words}: ask for fewer by max_tokens, or wait", each.end_s - unix_s
        return None

    def reserve(self, now: float, tokens: int, bound: int) -> None:
        """A request is accepted."""
        self.live += 1
        self.requests.take(now, 1)
        self.tokens.take(now, tokens)
        for each in self.budgets.values():
            each.left(self.epoch_s + now)
            each.reserved += bound

    def settle(self, now: float, reserved: tuple[int, int], spent: tuple[int, int]) -> None:
        """A request is over for which so many tokens were expected, and so many set aside: what it used of either."""
        self.tokens.take(now, spent[0] - reserved[0])
        for each in self.budgets.values():
            each.settle(self.epoch_s + now, reserved[1], spent[1])

    def usage(self) -> Iterator[Usage]:
        """What this process has used; what is set aside counts as spent, for it may be so when it is read."""
        name = self.tenant.name
        for limit, bucket in self.buckets.items():
            if bucket.per_min is not None:
                yield Usage(name, limit, bucket.level, self.epoch_s + bucket.at_s)
        for limit, budget in self.budgets.items():
            yield Usage(name, limit, budget.spent + budget.reserved, budget.start_s)

    def elsewhere(self, now: float, usage: Usage) -> None:
        """Take in what other processes, earlier or beside, have used; what is of an earlier period is over."""
        if usage.limit in self.budgets:
            budget = self.budgets[usage.limit]
            budget.left(max(self.epoch_s + now, usage.at_s))
            budget.others = usage.value if usage.at_s == budget.start_s else 0.0
        elif usage.limit in self.buckets:
            bucket = self.buckets[usage.limit]
            if bucket.per_min is not None:
                passed_s = max(self.epoch_s + now - usage.at_s, 0.0)
                bucket.level -= max(bucket.per_min - usage.value - passed_s * bucket.per_min / 60.0, 0.0)


class Accounts(list[Account]):
    """All tenants, by number; `changed` are those of whose use a ledger does not know yet."""

    def __init__(self, tenants: tuple[Tenant, ...]) -> None:
        super().__init__(Account(tenant) for tenant in tenants)
        self.changed: set[int] = set()

    def dated(self, now: float, unix_s: float) -> None:
        """Now it is this Unix time."""
        for account in self:
            account.epoch_s = unix_s - now

    def reserve(self, now: float, tenant: int, reserved: tuple[int, int]) -> None:
        """A request is accepted: tokens expected of it, and tokens to set aside."""
        self[tenant].reserve(now, *reserved)
        self.changed.add(tenant)

    def settle(self, now: float, tenant: int, reserved: tuple[int, int], spent: tuple[int, int]) -> None:
        """A request is over, once: what it used of the tokens expected, and of those set aside."""
        self[tenant].settle(now, reserved, spent)
        self.changed.add(tenant)

    def elsewhere(self, now: float, used: list[Usage]) -> None:
        """Other processes have used so much, of tenants who may not be here."""
        by_name = {account.tenant.name: account for account in self}
        for usage in used:
            if usage.tenant in by_name:
                by_name[usage.tenant].elsewhere(now, usage)

    def unsaved(self) -> list[Usage]:
        """What a ledger must learn: the use of each tenant for which it has changed since this was asked."""
        rows = [usage for tenant in sorted(self.changed) for usage in self[tenant].usage()]
        self.changed.clear()
        return rows


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
