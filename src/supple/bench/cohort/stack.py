"""S networks of one shape as stacked tensors, with a hand-written backward pass.

Legend: S slots (networks), B batch, D inputs of a layer, U its units, C classes, P parameters of a network.
All parameters lie in one flat tensor, so that one fused optimizer step serves all slots; a parameter's values for all
slots are one block of it, so that gradients are written where they belong without a copy. Logits are computed with the
batch as last axis: ten classes are a poor length for vector instructions. No operation mixes slots: one that diverges
harms no other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from supple.errors import InputError


class Stack:
    """ReLU networks ``fc1, act1, …, head`` (see `supple.models.MLP`), stacked.

    ``flat`` (S · P,) is the parameter to give to an optimizer; ``flat.grad`` is written by `backward`. `rows` and
    `of_rows` turn anything of its shape into (S, P) and back.

    >>> from supple.models import MLP
    >>> nets = [MLP((4, 8, 3)) for _ in range(5)]
    >>> x = torch.randn(5, 6, 4)
    >>> out = Stack(nets).forward(x)
    >>> torch.allclose(out[2], nets[2](x[2]), atol=1e-6)
    True
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self.names = [n for n, _ in models[0].named_parameters()]
        self.shapes = [p.shape for p in models[0].parameters()]
        for model in models:
            check_chain(model)
            if [p.shape for p in model.parameters()] != self.shapes:
                raise InputError("the networks of a stack must have one shape")
        self.slots = len(models)
        rows = [torch.cat([p.detach().flatten() for p in m.parameters()]) for m in models]
        self.flat = self.of_rows(torch.stack(rows))
        self.flat.grad = torch.zeros_like(self.flat)
        self.parameters = self._views(self.flat)
        self.gradients = self._views(self.flat.grad)
        self.layers = [
            (self.parameters[f"{n}.weight"], self.parameters[f"{n}.bias"])
            for n in dict.fromkeys(x.rsplit(".", 1)[0] for x in self.names)
        ]
        self.grads = [
            (self.gradients[f"{n}.weight"], self.gradients[f"{n}.bias"])
            for n in dict.fromkeys(x.rsplit(".", 1)[0] for x in self.names)
        ]
        self._inputs: list[Tensor] = []

    def __len__(self) -> int:
        return self.slots

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        blocks = flat.split([self.slots * shape.numel() for shape in self.shapes])
        return {n: b.view(self.slots, *s) for n, b, s in zip(self.names, blocks, self.shapes, strict=True)}

    def rows(self, flat: Tensor) -> Tensor:
        """A copy (S, P) of anything of the shape of ``flat``: a network a row."""
        return torch.cat([v.flatten(1) for v in self._views(flat).values()], dim=1)

    def of_rows(self, rows_SP: Tensor) -> Tensor:
        """Inverse of `rows`."""
        pieces = rows_SP.split([shape.numel() for shape in self.shapes], dim=1)
        return torch.cat([piece.flatten() for piece in pieces])

    def forward(self, x_SBD: Tensor) -> Tensor:
        """Logits (S, B, C), in memory as (S, C, B); keeps what `backward` needs."""
        self._inputs, h_SBD = [], x_SBD
        for weight_SUD, bias_SU in self.layers[:-1]:
            self._inputs.append(h_SBD)
            h_SBD = torch.baddbmm(bias_SU.unsqueeze(1), h_SBD, weight_SUD.transpose(1, 2)).relu_()
        self._inputs.append(h_SBD)
        weight_SCD, bias_SC = self.layers[-1]
        return torch.baddbmm(bias_SC.unsqueeze(2), weight_SCD, h_SBD.transpose(1, 2)).transpose(1, 2)

    def backward(self, delta_SBC: Tensor) -> None:
        """Gradient into ``flat.grad`` from that of the logits; ``delta`` may cover the first rows alone."""
        rows = delta_SBC.shape[1]
        for i in reversed(range(len(self.layers))):
            inputs = self._inputs[i][:, :rows]
            grad_weight, grad_bias = self.grads[i]
            torch.bmm(delta_SBC.transpose(1, 2), inputs, out=grad_weight)
            torch.sum(delta_SBC, dim=1, out=grad_bias)
            if i:
                # the input of layer i is the ReLU's output, positive exactly where the gradient passes
                back = torch.bmm(delta_SBC, self.layers[i][0])
                delta_SBC = torch.ops.aten.threshold_backward(back, inputs, 0)

    @torch.no_grad()
    def read(self, slot: int, model: nn.Module) -> nn.Module:
        """Copy the parameters of a slot into ``model``."""
        for name, parameter in model.named_parameters():
            parameter.copy_(self.parameters[name][slot])
        return model

    def pieces(self, flat: Tensor, slot: int) -> list[Tensor]:
        """A slot of anything of the shape of ``flat`` (an optimizer's moments), cut by parameter."""
        return [v[slot].clone() for v in self._views(flat).values()]


def cross_entropy_gradient(logits_SBC: Tensor, onehot_SBC: Tensor) -> Tensor:
    """Gradient of each slot's mean cross-entropy by its logits: (softmax - one-hot) / B."""
    odds_SCB = logits_SBC.transpose(1, 2).softmax(1).sub_(onehot_SBC.transpose(1, 2))
    return odds_SCB.div_(logits_SBC.shape[1]).transpose(1, 2)


def check_chain(model: nn.Module) -> None:
    """Refuse what the hand-written backward does not know, by module path."""
    children = list(model.named_children())
    if not isinstance(model, nn.Sequential) or not children:
        raise InputError("a stack takes nn.Sequential chains of Linear and ReLU", found=type(model).__name__)
    for i, (name, module) in enumerate(children):
        expected = nn.Linear if i % 2 == 0 else nn.ReLU
        if type(module) is not expected or (isinstance(module, nn.Linear) and module.bias is None):
            raise InputError(
                "a stack takes Linear (with bias) and ReLU in turn", found=type(module).__name__, where=name
            )
    if len(children) % 2 == 0:
        raise InputError("a stack ends with a Linear layer", found=children[-1][0])
