"""The optimizers of the protocols, by name: what a name stands for beyond its learning rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

Make = Callable[[Iterable[Tensor], float], Optimizer]

#: name -> optimizer of (parameters, learning rate); fused where PyTorch has such a form on the CPU
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p, lr: torch.optim.SGD(p, lr=lr, fused=True),
    "momentum": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, fused=True),
    "adam": lambda p, lr: torch.optim.Adam(p, lr=lr, fused=True),
    "adamw": lambda p, lr: torch.optim.AdamW(p, lr=lr, fused=True),
    "rmsprop": lambda p, lr: torch.optim.RMSprop(p, lr=lr),
    "adagrad": lambda p, lr: torch.optim.Adagrad(p, lr=lr, fused=True),
}
