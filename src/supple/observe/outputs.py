"""Instruments on outputs, the loss and its gradient."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from supple.observe.instruments import instrument
from supple.observe.probe import Probe
from supple.observe.views import square_sum
from supple.records import Record

NO_CLASSES = "outputs and targets do not have the shapes of a classification"


@instrument("loss", "economy", ["outputs"], ["loss", "accuracy"])
def loss(probe: Probe) -> Iterable[Record]:
    """Loss on the probe, and the share of right classes where there are classes."""
    if probe.loss is not None:
        yield probe.record("loss", probe.loss)
    found = accuracy(probe.classes)
    if found is None:
        yield probe.unmeasured("accuracy", NO_CLASSES)
    else:
        yield probe.record("accuracy", found)


def accuracy(classes: tuple[Tensor, Tensor] | None) -> float | None:
    """Share of samples whose largest logit is their class; None without classes."""
    if classes is None or classes[1].numel() == 0:
        return None
    return float((classes[0].argmax(-1) == classes[1]).double().mean())


@instrument("logits", "economy", ["outputs"], ["max_logit", "entropy"])
def logits(probe: Probe) -> Iterable[Record]:
    """Largest magnitude of an output; mean entropy of the predicted distribution in nats."""
    if probe.output is None:
        yield probe.unmeasured("max_logit", "the network has no real-valued output tensor")
    else:
        yield probe.record("max_logit", probe.output.abs().max() if probe.output.numel() else float("nan"))
    if probe.classes is None:
        yield probe.unmeasured("entropy", NO_CLASSES)
        return
    log_p = torch.log_softmax(probe.classes[0].double(), -1)
    yield probe.record("entropy", -(log_p.exp() * log_p).sum(-1).mean())


@instrument("gradient_norm", "economy", ["gradients"], ["gradient_norm"])
def gradient_norm(probe: Probe) -> Iterable[Record]:
    """Euclidean norm of the gradient of the probe loss: per weight, and over all parameters."""
    squares: dict[int, Tensor] = {}
    for name, parameter in probe.parameters.items():
        grad = probe.grads.get(name)
        if grad is not None:
            squares[id(parameter)] = square_sum(grad)
    if not squares:
        yield probe.unmeasured("gradient_norm", "no parameter receives a gradient")
        return
    yield probe.record("gradient_norm", torch.stack([s.cpu() for s in squares.values()]).sum().sqrt())
    for view in probe.layers:
        if view.weight_grad is None:
            yield probe.unmeasured("gradient_norm", "its weight receives no gradient", view)
            continue
        whole = None if view.part else squares.get(id(probe.parameters[view.layer.weight]))
        square = square_sum(view.weight_grad) if whole is None else whole
        yield probe.record("gradient_norm", square.sqrt(), view)
