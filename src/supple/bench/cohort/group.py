"""Slots that share a shape and a rhythm: one stack, one optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from supple.bench import methods
from supple.bench.cohort.chain import StackedCChain
from supple.bench.cohort.stack import Stack, cross_entropy_gradient
from supple.bench.spec import RunSpec
from supple.interventions import L2, CChain, L2Init
from supple.streams import Task

#: steps whose outputs are counted at once, and at most gathered at once
CHUNK = 64
#: bytes of inputs that are gathered at once: less makes for too many small copies, more leaves the cache
GATHER = 1 << 23


class Group:
    """Networks of one shape that are either all kept or all renewed at a boundary.

    The pull of L2 and L2-Init is coef · ‖θ − anchor‖² with anchor 0 or θ₀, one line for all slots.
    """

    def __init__(self, specs: Sequence[RunSpec]) -> None:
        self.specs = list(specs)
        self.protocol = specs[0].taught
        self.fresh = methods.get(specs[0].method).fresh
        self._begin(0)
        pulls = torch.tensor([[pull_of(s)] for s in specs])
        rows = self.stack.rows(self.stack.flat)
        kept = torch.tensor([[s.method == "l2init"] for s in specs])
        self.pulled = bool((pulls != 0).any())
        if self.pulled:
            self.pull = self.stack.of_rows(pulls.expand_as(rows))
            self.anchor = self.stack.of_rows(rows * kept)
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
        counts = _Counts(len(self.specs))
        for x_SBD, y_SB, onehot_SBC in self._batches(tasks):
            counts.add(self._gradient(x_SBD, onehot_SBC), y_SB)
            self._pull()
            self.optimizer.step()
        return counts.result()

    def _batches(self, tasks: dict[int, Task]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The batches of all slots step by step: inputs, targets, one-hot targets. Inputs are valid for a step."""
        size, some = self.protocol.batch, next(iter(tasks.values()))
        step_bytes = len(self.specs) * size * some.inputs[0].numel() * some.inputs.element_size()
        together = min(max(GATHER // step_bytes, 1), CHUNK)
        buffer = some.inputs.new_empty((together, len(self.specs), size, *some.inputs.shape[1:]))
        slots = {seed: [i for i, s in enumerate(self.specs) if s.seed == seed] for seed in tasks}
        classes_C1 = torch.arange(self.protocol.outputs).unsqueeze(1)
        for epoch in range(self.protocol.epochs):
            orders = {seed: task.order(size, epoch).view(-1, size) for seed, task in tasks.items()}
            for first in range(0, len(next(iter(orders.values()))), together):
                rows = {seed: order[first : first + together] for seed, order in orders.items()}
                x_TSBD = buffer[: len(next(iter(rows.values())))]
                y_TSB = torch.empty(x_TSBD.shape[:3], dtype=some.targets.dtype)
                for seed, places in slots.items():
                    task, rows_TB = tasks[seed], rows[seed]
                    x_TBD, y_TB = task.inputs[rows_TB], task.targets[rows_TB]
                    for slot in places:
                        x_TSBD[:, slot], y_TSB[:, slot] = x_TBD, y_TB
                onehot_TSCB = (y_TSB.unsqueeze(2) == classes_C1).to(x_TSBD.dtype)
                yield from zip(x_TSBD, y_TSB, onehot_TSCB.transpose(2, 3), strict=True)

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
            grad.addcmul_(self.pull, self.stack.flat - self.anchor, value=2.0)  # the anchor of L2 is 0

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
        pieces = {k: self.stack.pieces(v, slot) for k, v in shared.items() if self._is_flat(v)}
        for i, parameter in enumerate(model.parameters()):
            if shared:
                optimizer.state[parameter] = {
                    k: pieces[k][i] if k in pieces else (v.clone() if isinstance(v, Tensor) else v)
                    for k, v in shared.items()
                }
        return model, optimizer

    def _is_flat(self, value: Any) -> bool:
        """Whether a part of the optimizer's state has a number for every parameter of every slot."""
        return isinstance(value, Tensor) and value.numel() == self.stack.flat.numel() > 1

    def state_dict(self) -> dict[str, Any]:
        """Everything that later steps depend on; a network a row, however the stack keeps them."""
        rows, optimizer = self.stack.rows, self.optimizer.state_dict()
        optimizer["state"] = {
            i: {k: rows(v) if self._is_flat(v) else v for k, v in kept.items()}
            for i, kept in optimizer["state"].items()
        }
        return {
            "flat": rows(self.stack.flat),
            "anchor": rows(self.anchor) if self.pulled else None,
            "optimizer": optimizer,
            "chain": None if self.chain is None else self.chain.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        flat = self.stack.of_rows
        self.stack.flat.copy_(flat(state["flat"]))
        if self.pulled:
            self.anchor = flat(state["anchor"])
        optimizer = dict(state["optimizer"])
        optimizer["state"] = {
            i: {k: flat(v) if self._is_flat(v) else v for k, v in kept.items()}
            for i, kept in optimizer["state"].items()
        }
        self.optimizer.load_state_dict(optimizer)
        if self.chain is not None:
            self.chain.load_state_dict(state["chain"])


def intervention_of(spec: RunSpec) -> Any:
    """The intervention of a run, None for plain training."""
    return methods.get(spec.method).create(spec.method_settings, spec.seed, spec.protocol.initial)


def pull_of(spec: RunSpec) -> float:
    """Coefficient of the squared distance, 0 without one."""
    rule = intervention_of(spec)
    return float(rule.coef) if isinstance(rule, L2 | L2Init) else 0.0


def rhythm(spec: RunSpec) -> tuple[Any, ...]:
    """What the runs of one group have in common: the shape of the network, and what happens at a step how fast."""
    method, rule = methods.get(spec.method), intervention_of(spec)
    chain = (rule.memory, rule.restart) if isinstance(rule, CChain) else ()
    return (method.depth, method.fresh, spec.taught.lr, *chain)


class _Counts:
    """Right answers, answers that are not finite, and losses of each slot, counted a chunk of steps at a time."""

    def __init__(self, slots: int) -> None:
        self.hits = torch.zeros(slots, dtype=torch.int64)
        self.nonfinite = torch.zeros_like(self.hits)
        self.losses = torch.zeros(slots, dtype=torch.float64)
        self.kept: list[tuple[Tensor, Tensor]] = []

    def add(self, logits_SBC: Tensor, targets_SB: Tensor) -> None:
        self.kept.append((logits_SBC.transpose(1, 2), targets_SB))
        if len(self.kept) == CHUNK:
            self.flush()

    def flush(self) -> None:
        if not self.kept:
            return
        logits_TSCB, targets_TSB = (torch.stack(part) for part in zip(*self.kept, strict=True))
        finite = logits_TSCB.abs().amax(2).isfinite()
        answers_TSB = logits_TSCB.max(2).indices  # as argmax, which is several times slower along this axis
        self.hits += ((answers_TSB == targets_TSB) & finite).sum((0, 2))
        self.nonfinite += (~finite).sum((0, 2))
        losses = -logits_TSCB.log_softmax(2).gather(2, targets_TSB.unsqueeze(2)).squeeze(2)
        self.losses += losses.mean(-1).double().sum(0)
        self.kept = []

    def result(self) -> list[tuple[int, int, float]]:
        self.flush()
        columns = (self.hits.tolist(), self.nonfinite.tolist(), self.losses.tolist())
        return list(zip(*columns, strict=True))
