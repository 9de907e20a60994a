"""Interventions on the networks of a Stable-Baselines3 agent: which goes where, and what each of them needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from supple.errors import InputError
from supple.integrations.sb3_loss import overhear
from supple.integrations.sb3_networks import Network, SquashedActor, View


class Feed:
    """A forward pre-hook that hands on the inputs of training passes; copies of the module do not.

    Inputs that carry gradients are no stored batch: an actor that asks the critic about its own actions.
    """

    def __init__(self, receive: Callable[..., None] | None) -> None:
        self.receive = receive

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        learns = module.training and torch.is_grad_enabled() and not any(x.requires_grad for x in args)
        if self.receive is not None and learns:
            self.receive(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Feed:
        return Feed(None)

    def __reduce__(self) -> tuple[Any, ...]:
        return Feed, (None,)


class Carried:
    """All interventions of a callback, attached: all of them or none.

    Args:
        agent: the agent, whose loss C-CHAIN may have to hear.
        networks: its networks, see `supple.integrations.sb3_networks.networks`.
        interventions: a sequence for all networks, or a mapping from network to sequence.
        batch: raw observations and actions, by which networks are traced.
    """

    def __init__(
        self, agent: Any, networks: Mapping[str, Network], interventions: Any, batch: tuple[Tensor, Tensor]
    ) -> None:
        self._agent = agent
        self.handles: list[Any] = []
        self._removers: list[Any] = []
        with ExitStack() as undo:  # where one refuses, those before it are detached again
            undo.callback(self.detach)
            for network, intervention in chosen(networks, interventions):
                inputs = network.inputs(*batch)
                handle = intervention.attach(network.module, network.optimizer, inputs=inputs)
                self.handles.append(handle)
                self._serve(network, handle)
            undo.pop_all()

    def _serve(self, network: Network, handle: Any) -> None:
        """Target networks follow resets; a view is never called by SB3, so its inputs are told."""
        for part in getattr(handle, "handles", [handle]):  # a combination serves its parts
            if network.target is not None and hasattr(part, "follow"):
                part.follow(network.target)
            if hasattr(part, "observe_inputs") and isinstance(network.module, View):
                fed = network.module.fed
                self._removers.append(fed.register_forward_pre_hook(Feed(part.observe_inputs)))
            if hasattr(part, "observe_loss") and hears_loss(part.intervention):
                self._removers += overhear(self._agent, part.observe_loss)

    def load(self, states: Sequence[dict[str, Any]]) -> None:
        """Restore every handle; another number of states is refused before one is touched."""
        if len(states) != len(self.handles):
            raise InputError(
                "the state belongs to other interventions", found=f"{len(states)} for {len(self.handles)}"
            )
        for handle, state in zip(self.handles, states, strict=True):
            handle.load_state_dict(state)

    def detach(self) -> None:
        for remover in self._removers:
            remover.remove()
        for handle in self.handles:
            handle.detach()


def chosen(networks: Mapping[str, Network], interventions: Any) -> list[tuple[Network, Any]]:
    """Pairs of network and intervention, after a check of names and of the kind of C-CHAIN.

    Raises:
        InputError: an unknown network; what is no intervention; a C-CHAIN that does not fit the network.
    """
    table = check_interventions(interventions)
    if not isinstance(table, Mapping):
        table = dict.fromkeys(networks, tuple(interventions))
    unknown = sorted(set(table) - set(networks))
    if unknown:
        raise InputError("this agent has no such network", found=unknown, do=f"choose of {list(networks)}")
    pairs = [(networks[name], item) for name, items in table.items() for item in items]
    for network, intervention in pairs:
        for part in getattr(intervention, "parts", (intervention,)):
            if part.name == "CChain":
                _fits(network, part)
    return pairs


def check_interventions(given: Any) -> Any:
    """The same, if it is a sequence of interventions or a mapping from networks to such sequences."""
    from supple.interventions import Intervention

    for items in given.values() if isinstance(given, Mapping) else [given]:
        wrong = [items] if isinstance(items, str) or not isinstance(items, Sequence) else [
            x for x in items if not isinstance(x, Intervention)
        ]  # fmt: skip
        if wrong:
            raise InputError(
                "interventions are a list of them, or a mapping from network to list",
                found=", ".join(repr(x)[:60] for x in wrong),
                do='for example [ReDo()] or {"critic": [ReDo()]}; by name: supple.interventions.create("ReDo")',
            )
    return given


def hears_loss(rule: Any) -> bool:
    """Whether the coefficient of a C-CHAIN depends on the loss."""
    return rule.by_loss or rule.target is not None


def distances(network: Network) -> tuple[str, ...]:
    """The kinds of churn that make sense for the outputs of a network."""
    if isinstance(network.module, SquashedActor):
        return ("gaussian", "mse")
    return ("kl", "ce", "mse") if network.kind == "logits" else ("mse",)


def _fits(network: Network, rule: Any) -> None:
    """Refuse a C-CHAIN whose distance or whose coefficient this network cannot have."""
    kinds = distances(network)
    if rule.kind not in kinds:
        raise InputError(
            f"C-CHAIN on {network.kind} needs another distance", found=f"kind={rule.kind!r}", where=network.name,
            do=" or ".join(f'kind="{k}"' for k in kinds) + ", or a mapping that leaves this network out",
        )  # fmt: skip
    if hears_loss(rule) and network.name != "actor":
        raise InputError(
            "C-CHAIN's coefficient cannot follow the loss here: SB3 shows it for the actors of SAC and TD3 only",
            found="by_loss=True" if rule.by_loss else f"target={rule.target:g}", where=network.name,
            do="a fixed coef, or a mapping that leaves this network out",
        )  # fmt: skip
