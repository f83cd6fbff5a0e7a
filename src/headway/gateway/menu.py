"""Which models requests may ask for: what each name means, and how long a prompt each model takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from headway.errors import UnknownName
from headway.gateway.events import Arrival
from headway.gateway.predict import TokenSizes

ANY = "auto"  # any model, where there are several and the file gives the name no other meaning


class Menu(msgspec.Struct, frozen=True, kw_only=True):
    """`models`: of the replicas, in the order of the file. `names`: that may be asked for, with the models they mean.

    `aliases`: names that the engines do not know, so that what a request says is replaced by the model chosen.
    `contexts`: tokens that prompt and output may have together, by model, where that is known.
    """

    models: tuple[str, ...] = ("",)
    names: dict[str, tuple[str, ...]] = {}
    aliases: frozenset[str] = frozenset()
    contexts: dict[str, int] = {}

    def context(self, asked: str) -> int | None:
        """Return the most tokens that a model which may serve this name takes; None where one's is not known."""
        limits = [self.contexts.get(model) for model in self.names[asked]]
        return None if None in limits else max(limit for limit in limits if limit is not None)

    def roomy(self, facts: Arrival, models: tuple[str, ...], sizes: Sequence[TokenSizes]) -> tuple[str, ...]:
        """Return those of the models whose contexts have room for a request; none where it fits no one's.

        `sizes`: by which the tokens of its prompts are expected where it does not say them, for each model. Where
        none is expected to have room the longest context is left: the text may be shorter than expected.
        """
        limits = self.contexts
        if len(self.models) == 1 or facts.longest is None or not all(model in limits for model in models):
            return models
        output = (facts.max_tokens or 0) // facts.samples
        models = tuple(model for model in models if facts.longest + output <= limits[model])
        most = max((limits[model] for model in models), default=0)
        known = [sizes[self.models.index(model)].tokens(facts.tenant, facts.prompt_bytes) for model in models]
        expected = [(facts.prompt_tokens or tokens) // facts.prompts + output for tokens in known]
        fitting = [model for model, size in zip(models, expected, strict=True) if size <= limits[model]]
        return tuple(fitting or [model for model in models if limits[model] == most])


def menu_of(
    models: Sequence[str],
    offered: tuple[str, ...] = (),
    aliases: Mapping[str, tuple[str, ...]] | None = None,
    contexts: Mapping[str, int] | None = None,
) -> Menu:
    """Return the menu of replicas.

    Args:
        models: of each replica; "" where it is not known.
        offered: names that may be asked for. Where all replicas have one model they are passed on as they are; of
            several models, and of aliases, they say which are offered. All, where none is given.
        aliases: further names with the models that each may mean.
        contexts: by model.

    Raises:
        UnknownName: a name is offered that means nothing.
    """
    served = tuple(dict.fromkeys(models))
    named = {name: tuple(meant) for name, meant in (aliases or {}).items()}
    if len(served) > 1:
        known = {model: (model,) for model in served} | named
        known.setdefault(ANY, served)
        for name in offered:
            if name not in known:
                raise UnknownName("name in gateway.models: of a model of the pools or an alias", name, known)
        own = {name: known[name] for name in offered} or known
    else:
        own = {name: served for name in offered or served if name and name not in named} | named
    rewritten = frozenset(name for name in own if name in named or (len(served) > 1 and name not in served))
    return Menu(models=served, names=own, aliases=rewritten, contexts=dict(contexts or {}))
