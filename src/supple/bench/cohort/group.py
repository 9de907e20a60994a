"""Slots that share a shape and a rhythm: one stack, one optimizer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from supple.bench import methods
from supple.bench.cohort.chain import StackedCChain
from supple.bench.cohort.stack import Stack, cross_entropy_gradient
from supple.bench.spec import RunSpec
from supple.interventions import L2, CChain, L2Init
from supple.streams import Task

#: steps whose data are gathered, and whose outputs are counted, at once
CHUNK = 64


class Group:
    """Networks of one shape that are either all kept or all renewed at a boundary.

    The pull of L2 and L2-Init is coef · ‖θ − anchor‖² with anchor 0 or θ₀, one line for all slots.
    """

    def __init__(self, specs: Sequence[RunSpec]) -> None:
        self.specs = list(specs)
        self.protocol = specs[0].protocol
        self.fresh = methods.get(specs[0].method).fresh
        self._begin(0)
        self.pull = torch.tensor([[pull_of(s)] for s in specs])
        self.anchor = torch.stack(
            [
                row if s.method == "l2init" else torch.zeros_like(row)
                for s, row in zip(specs, self.stack.flat, strict=True)
            ]
        )
        self.pulled = bool((self.pull != 0).any())
        self.chain: StackedCChain | None = None
        if methods.get(specs[0].method).intervention == "CChain":
            self.chain = StackedCChain([intervention_of(s) for s in specs])

    def _begin(self, task: int) -> None:
        self.stack = Stack([methods.get(s.method).build(self.protocol, s.seed, task) for s in self.specs])
        (self.optimizer,) = self.protocol.build_optimizers([self.stack.flat])

    def start(self, task: int) -> None:
        """Cross the boundary into ``task``."""
        if task and self.fresh:
            self._begin(task)
        if task and self.chain is not None:
            self.chain.task()

    @torch.no_grad()
    def learn(self, tasks: dict[int, Task]) -> list[tuple[int, int, float]]:
        """One pass over the tasks; for each slot (right answers, answers not finite, sum of losses)."""
        seeds = sorted({s.seed for s in self.specs})
        slot_seed = torch.tensor([seeds.index(s.seed) for s in self.specs])
        walks = zip(
            *(tasks[s].batches(self.protocol.batch, self.protocol.epochs) for s in seeds), strict=True
        )
        counts = _Counts(len(self.specs))
        while steps := list(itertools.islice(walks, CHUNK)):
            # (steps, seeds, B, ...) -> (steps, slots, B, ...)
            x_TSBD, y_TSB = (
                torch.stack([b[i] for step in steps for b in step]).unflatten(0, (len(steps), len(seeds)))[
                    :, slot_seed
                ]
                for i in (0, 1)
            )
            onehot_TSBC = F.one_hot(y_TSB, self.protocol.outputs).to(x_TSBD.dtype)
            logits = []
            for x_SBD, onehot_SBC in zip(x_TSBD, onehot_TSBC, strict=True):
                logits.append(self._gradient(x_SBD, onehot_SBC))
                self._pull()
                self.optimizer.step()
            counts.add(torch.stack(logits), y_TSB)
        return counts.result()

    def _gradient(self, x_SBD: Tensor, onehot_SBC: Tensor) -> Tensor:
        """Logits of the batch; the gradient of its loss goes into ``flat.grad``."""
        chain = self.chain
        outputs = self.stack.forward(x_SBD if chain is None else chain.extend(x_SBD))
        logits = outputs[:, : x_SBD.shape[1]]
        delta = cross_entropy_gradient(logits, onehot_SBC)
        self.stack.backward(delta if chain is None else chain.join(delta, outputs))
        return logits

    def _pull(self) -> None:
        if self.pulled:
            grad = self.stack.flat.grad
            assert grad is not None
            grad.addcmul_(self.pull, self.stack.flat - self.anchor, value=2.0)

    @torch.no_grad()
    def accuracies(self, tasks: dict[int, Task]) -> list[float]:
        """Share of what the task is judged on that each slot answers rightly now."""
        x, y = (torch.stack([tasks[s.seed].judged[i] for s in self.specs]) for i in (0, 1))
        logits = self.stack.forward(x)
        right = (logits.argmax(-1) == y) & logits.isfinite().all(-1)
        return right.double().mean(-1).tolist()

    def network(self, slot: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        """One slot as a module and an optimizer of its own, as the loop would hold them."""
        spec = self.specs[slot]
        model = self.stack.read(slot, methods.get(spec.method).build(self.protocol, spec.seed))
        (optimizer,) = self.protocol.build_optimizers(model.parameters())
        shared = self.optimizer.state.get(self.stack.flat, {})
        pieces = {
            k: self.stack.pieces(v, slot) for k, v in shared.items() if isinstance(v, Tensor) and v.dim() == 2
        }
        for i, parameter in enumerate(model.parameters()):
            if shared:
                optimizer.state[parameter] = {
                    k: pieces[k][i] if k in pieces else (v.clone() if isinstance(v, Tensor) else v)
                    for k, v in shared.items()
                }
        return model, optimizer

    def state_dict(self) -> dict[str, Any]:
        """Everything that later steps depend on."""
        return {
            "flat": self.stack.flat,
            "anchor": self.anchor,
            "optimizer": self.optimizer.state_dict(),
            "chain": None if self.chain is None else self.chain.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.stack.flat.copy_(state["flat"])
        self.anchor = state["anchor"]
        self.optimizer.load_state_dict(state["optimizer"])
        if self.chain is not None:
            self.chain.load_state_dict(state["chain"])


def intervention_of(spec: RunSpec) -> Any:
    """The intervention of a run, None for plain training."""
    method = methods.get(spec.method)
    return method.create(method.settings_in(spec.protocol, spec.settings), spec.seed, spec.protocol.initial)


def pull_of(spec: RunSpec) -> float:
    """Coefficient of the squared distance, 0 without one."""
    rule = intervention_of(spec)
    return float(rule.coef) if isinstance(rule, L2 | L2Init) else 0.0


def rhythm(spec: RunSpec) -> tuple[Any, ...]:
    """What the runs of one group have in common: the shape of the network and what happens at a step."""
    method, rule = methods.get(spec.method), intervention_of(spec)
    chain = (rule.memory, rule.restart) if isinstance(rule, CChain) else ()
    return (method.depth, method.fresh, *chain)


class _Counts:
    """Right answers, answers that are not finite, and losses of each slot, counted a chunk at a time."""

    def __init__(self, slots: int) -> None:
        self.hits = torch.zeros(slots, dtype=torch.int64)
        self.nonfinite = torch.zeros_like(self.hits)
        self.losses = torch.zeros(slots, dtype=torch.float64)

    def add(self, logits_TSBC: Tensor, targets_TSB: Tensor) -> None:
        finite = logits_TSBC.isfinite().all(-1)
        self.hits += ((logits_TSBC.argmax(-1) == targets_TSB) & finite).sum((0, 2))
        self.nonfinite += (~finite).sum((0, 2))
        losses = -logits_TSBC.log_softmax(-1).gather(-1, targets_TSB.unsqueeze(-1)).squeeze(-1)
        self.losses += losses.mean(-1).double().sum(0)

    def result(self) -> list[tuple[int, int, float]]:
        columns = (self.hits.tolist(), self.nonfinite.tolist(), self.losses.tolist())
        return list(zip(*columns, strict=True))
