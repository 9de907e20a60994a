"""C-CHAIN on stacked networks: the reference batch travels through the same passes as the training batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from supple import fresh
from supple.interventions import CChain


class StackedCChain:
    """The gradient of λ · KL(f(B; θ_{t−1}) ‖ f(B; θ_t)) for every slot, as `supple.interventions.CChain`.

    A step needs the outputs at θ_t on three batches: the one to learn, the reference B whose outputs before
    the last update are known, and the reference of the next step. They are concatenated, so that all of it
    costs one forward pass over three batches and one backward pass over two.

    Legend: S slots, B batch, D inputs, C classes.
    """

    def __init__(self, rules: Sequence[CChain]) -> None:
        self.rules = list(rules)
        self.coef_S11 = torch.tensor([r.coef for r in rules]).view(-1, 1, 1)
        self.ring: deque[Tensor] = deque(maxlen=rules[0].memory)
        self.steps = 0
        self.inputs: Tensor | None = None  # the reference (S, B, D) ...
        self.before: Tensor | None = None  # ... and its outputs (S, B, C) before the last update
        self._next: Tensor | None = None

    def task(self) -> None:
        """Cross a boundary: the change over it is not damped."""
        if self.rules[0].restart:
            self.inputs = self.before = None

    def extend(self, x_SBD: Tensor) -> Tensor:
        """The training batch, then the reference and the next reference as far as there are such."""
        self._next = self._draw()
        self.ring.append(x_SBD.clone())  # the caller's buffer is used again
        return torch.cat([t for t in (x_SBD, self.inputs, self._next) if t is not None], dim=1)

    def _draw(self) -> Tensor | None:
        """For each slot one of the batches before this one; as many as the ring holds beside this one."""
        older = list(self.ring)[-(self.rules[0].memory - 1) :]
        if not older:
            return None
        picks = []
        for slot, rule in enumerate(self.rules):
            rng = fresh.generator(rule.seed, self.steps, "CChain")
            picks.append(older[int(torch.randint(len(older), (1,), generator=rng))][slot])
        return torch.stack(picks)

    def join(self, delta_SBC: Tensor, outputs: Tensor) -> Tensor:
        """∂loss/∂outputs of the batch, followed by that of the reference; ends the step.

        d/dz KL(p ‖ softmax(z)) = softmax(z) − p, and cross entropy has the same gradient.
        """
        batch = delta_SBC.shape[1]
        if self.before is not None:
            now = outputs[:, batch : 2 * batch].softmax(-1)
            pull = (now - self.before.softmax(-1)) * (self.coef_S11 / batch)
            delta_SBC = torch.cat([delta_SBC, pull], dim=1)
        self.inputs, self.before = self._next, None
        if self._next is not None:
            self.before = outputs[:, -batch:].clone()
        self.steps += 1
        return delta_SBC

    def state_dict(self) -> dict[str, Any]:
        """Everything that later steps depend on."""
        return {"ring": list(self.ring), "steps": self.steps, "inputs": self.inputs, "before": self.before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.ring.clear()
        self.ring.extend(state["ring"])
        self.steps, self.inputs, self.before = state["steps"], state["inputs"], state["before"]


def refusal(rule: CChain) -> str | None:
    """None, or which option has no stacked form."""
    plain = CChain(coef=rule.coef, kind=rule.kind, memory=rule.memory, restart=rule.restart, seed=rule.seed)
    if rule.kind == "mse" or rule != plain:
        return "C-CHAIN is stacked with a fixed coefficient, KL or CE, and a whole recent batch"
    return None
