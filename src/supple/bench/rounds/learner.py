"""Model, optimizer, and what is put on them: an intervention or an adapter."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from supple.bench.rounds.arms import LORA, Arm
from supple.bench.rounds.course import Course, loss_fn
from supple.interventions import create
from supple.nn import LoRAAdapter, SVFAdapter, lora_, svf_
from supple.observe.guard import guard
from supple.streams import generator


class Learner:
    """One arm from a round on; a new one where its optimizer or its adapter begins anew."""

    def __init__(self, arm: Arm, model: nn.Module, course: Course, turn: int) -> None:
        self.model, self.course = model, course
        base = course.base
        self.adapter: SVFAdapter | LoRAAdapter | None = None
        if arm.adapter and turn >= base.adapt_from:
            if arm.adapter == "svf":
                self.adapter = svf_(model, targets=base.adapts)
            else:
                seed = generator(course.seed, "lora", turn).initial_seed() % 2**31
                self.adapter = lora_(model, targets=base.adapts, seed=seed, **LORA)  # type: ignore[arg-type]
        trained: list[Tensor] = list((self.adapter or model).parameters())
        rate = base.rates[arm.adapter if self.adapter else ""]
        self.optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
        self.handle = None
        if arm.intervention:
            made = create(arm.intervention, **arm.settings)
            self.handle = made.attach(model, self.optimizer, inputs=course.batch(0, "example", 2)[0])

    def learn(self, turn: int) -> list[float]:
        """One round: the loss of every step, before its update; a loss that is not finite ends it."""
        if turn and self.handle is not None:
            self.handle.task(f"round-{turn}")
        losses: list[float] = []
        for step in range(self.course.length.steps):
            x, y = self.course.batch(turn, f"step-{step}")
            loss = loss_fn(self.course.forward(self.model, x), y)
            losses.append(float(loss.detach()))
            if losses[-1] != losses[-1]:
                break
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return losses

    def settle(self) -> None:
        """The end of a round: the product of a low-rank adapter becomes a part of the weights."""
        if isinstance(self.adapter, LoRAAdapter):
            self.adapter.merge()
            self.adapter.detach()
            self.adapter = None

    @contextlib.contextmanager
    def whole(self) -> Iterator[nn.Module]:
        """The network as it computes, in its weights, all of them trainable; nothing stays changed."""
        if self.adapter is None:
            yield self.model
            return
        self.adapter.merge()
        try:
            with guard(self.model):
                for parameter in self.model.parameters():
                    parameter.requires_grad_(True)
                yield self.model
        finally:
            self.adapter.unmerge()
