"""The optimizers of the protocols, by name: what a name stands for beyond its learning rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from supple.errors import InputError

Make = Callable[[Iterable[Tensor], float], list[Optimizer]]


def _muon(parameters: Iterable[Tensor], lr: float) -> list[Optimizer]:
    """Muon takes hidden matrices alone; AdamW the rest: biases, norms, kernels, and the last matrix (the head).

    Its update is scaled to the size of an AdamW update, so that one learning rate serves both. A network of kernels
    alone is refused: nothing would be left for Muon. A linear model is its head, which AdamW takes.
    """
    every = list(parameters)
    matrices = [p for p in every if p.dim() == 2][:-1]
    rest = [p for p in every if not any(p is m for m in matrices)]
    adamw: list[Optimizer] = [torch.optim.AdamW(rest, lr=lr, weight_decay=0.0)]
    if not matrices and any(p.dim() > 2 for p in every):
        raise InputError(
            "muon takes hidden matrices, and this network has none: its hidden layers are convolutions",
            do="take a protocol with hidden linear layers (an MLP or a ConvNet), or another optimizer",
        )
    if not matrices:
        return adamw
    return [torch.optim.Muon(matrices, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"), *adamw]


#: name -> optimizers of (parameters, learning rate); fused where PyTorch has such a form on the CPU
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p, lr: [torch.optim.SGD(p, lr=lr, fused=True)],
    "momentum": lambda p, lr: [torch.optim.SGD(p, lr=lr, momentum=0.9, fused=True)],
    "adam": lambda p, lr: [torch.optim.Adam(p, lr=lr, fused=True)],
    "adamw": lambda p, lr: [torch.optim.AdamW(p, lr=lr, fused=True)],
    "rmsprop": lambda p, lr: [torch.optim.RMSprop(p, lr=lr)],
    "adagrad": lambda p, lr: [torch.optim.Adagrad(p, lr=lr, fused=True)],
    "muon": _muon,
}
#: those that are several optimizers: no cohort form
SEVERAL = ("muon",)
