"""Fresh optimizers for copies of a network: step 0 and a trial train these, never the original."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from supple.interventions.handle import Optimizers, optimizer_list

FALLBACK = "Adam with lr 1e-3 (no optimizer was given)"


def ready_to_train(network: nn.Module) -> nn.Module:
    """Train mode with dropout off: learning is compared, not the luck of the masks."""
    network.train()
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    return network


@dataclass(frozen=True)
class OptimizerRecipe:
    """How to make a fresh optimizer of the caller's class and settings for a copy of the network.

    ``groups`` holds (parameter names, settings) per optimizer; parameters that the caller's optimizer does
    not hold are not trained, in the copies as in the original.
    """

    text: str
    classes: tuple[type[Optimizer], ...]
    defaults: tuple[Mapping[str, Any], ...]
    groups: tuple[tuple[tuple[tuple[str, ...], Mapping[str, Any]], ...], ...]

    def build(self, network: nn.Module) -> list[Optimizer]:
        """Fresh optimizers without any state, for the parameters of the same names."""
        named = dict(network.named_parameters())
        made: list[Optimizer] = []
        for cls, defaults, groups in zip(self.classes, self.defaults, self.groups, strict=True):
            filled = [
                {"params": [named[n] for n in names if n in named], **_fresh(settings)}
                for names, settings in groups
            ]
            filled = [g for g in filled if g["params"]]
            if filled:
                made.append(cls(filled, **_fresh(defaults)))
        return made


def recipe(model: nn.Module, optimizer: Optimizers | None) -> OptimizerRecipe:
    """Read the class and the settings off the caller's optimizers; Adam 1e-3 where that cannot be done.

    Settings are those of the param groups now, except the learning rate of a group under a scheduler, which
    is its initial one: a decayed rate would make every network look unable to learn.
    """
    if optimizer is None:
        return _fallback(model, FALLBACK)
    names = {id(p): n for n, p in model.named_parameters()}
    optimizers = optimizer_list(optimizer)
    classes, defaults, groups, words = [], [], [], []
    for item in optimizers:
        accepted = set(inspect.signature(type(item).__init__).parameters)
        classes.append(type(item))
        defaults.append({k: v for k, v in item.defaults.items() if k in accepted})
        groups.append(tuple(_group(g, names, accepted) for g in item.param_groups))
        words.append(f"{type(item).__name__} with lr {_rate(item):.3g}, fresh state")
    made = OptimizerRecipe(" and ".join(words), tuple(classes), tuple(defaults), tuple(groups))
    if not any(held for group in groups for held, _ in group):
        return _fallback(model, "Adam with lr 1e-3 (the given optimizer holds no parameter of this model)")
    if any(c.__name__ == "LBFGS" for c in classes):
        return _fallback(model, "Adam with lr 1e-3 (LBFGS steps through a closure)")
    try:
        made.build(model)
    except (TypeError, ValueError, KeyError) as error:
        text = f"Adam with lr 1e-3 ({made.text.split(',')[0]} cannot be re-created: {error})"
        return _fallback(model, text)
    return made


def _group(
    group: Mapping[str, Any], names: Mapping[int, str], accepted: set[str]
) -> tuple[tuple[str, ...], Any]:
    held = tuple(names[id(p)] for p in group["params"] if id(p) in names)
    settings = {k: v for k, v in group.items() if k != "params" and k in accepted}
    if "initial_lr" in group:
        settings["lr"] = group["initial_lr"]
    return held, settings


def _rate(optimizer: Optimizer) -> float:
    group = optimizer.param_groups[0]
    return float(group.get("initial_lr", group.get("lr", float("nan"))))


def _fallback(model: nn.Module, text: str) -> OptimizerRecipe:
    names = tuple(n for n, p in model.named_parameters() if p.requires_grad)
    return OptimizerRecipe(text, (torch.optim.Adam,), ({"lr": 1e-3},), (((names, {}),),))


def _fresh(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in settings.items()}


def same_trainable(network: nn.Module, like: nn.Module) -> nn.Module:
    """Freeze in ``network`` what is frozen in ``like`` (by name): both may move the same parameters."""
    frozen = {n for n, p in like.named_parameters() if not p.requires_grad}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return network
