"""A network, its optimizer and its intervention, learning one task after another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from supple.bench import methods
from supple.bench.spec import RunSpec
from supple.streams import Task, generator
from supple.topology.inputs import call

if TYPE_CHECKING:
    from supple.interventions.handle import Handle

#: steps whose outputs are kept before they are counted; bounds the memory of long tasks
CHUNK = 1024
#: samples at a time when a whole task is answered
PART = 4096


@dataclass(frozen=True)
class TaskResult:
    """What one task gave. Outputs that are not finite count as wrong answers, and are counted."""

    online: float  # the protocol's metric, of each batch before it was learned
    loss: float
    samples: int
    nonfinite: int
    #: further rows of the task, by name
    extra: Mapping[str, float] = field(default_factory=dict)


class Learner:
    """Everything that changes during a run, with a state that continues it bit for bit."""

    def __init__(self, spec: RunSpec) -> None:
        self.spec = dataclasses.replace(spec, protocol=spec.taught)
        self.method = methods.get(spec.method)
        self.steps = 0
        torch.manual_seed(generator(spec.seed, "training").initial_seed())
        self.handle: Handle | None = None
        self._begin(0)

    def _begin(self, task: int) -> None:
        if self.handle is not None:
            self.handle.detach()
        self._build(task)
        self._attach()

    def _build(self, task: int) -> None:
        """Network and optimizers, as they are at the start of ``task``."""
        self.model: nn.Module = self.method.build(self.spec.protocol, self.spec.seed, task)
        self.optimizers = self.spec.protocol.build_optimizers(self.model.parameters())

    def _attach(self) -> None:
        protocol, method = self.spec.protocol, self.method
        intervention = method.create(self.spec.method_settings, self.spec.seed, protocol.initial)
        if intervention is not None:
            self.handle = intervention.attach(self.model, self.optimizers, inputs=protocol.example())

    def start(self, task: int) -> None:
        """Cross the boundary into ``task``; the first task begins with the network as built."""
        self._cross(task)
        if self.spec.protocol.zero_head and not self.spec.protocol.hidden_boundaries:
            with torch.no_grad():
                for parameter in list(self.model.parameters())[-2:]:
                    parameter.zero_()

    def _cross(self, task: int) -> None:
        if task == 0:
            return
        if self.method.fresh:
            self._begin(task)
        elif self.handle is not None and not self.spec.protocol.hidden_boundaries:
            self.handle.task(f"task-{task}")

    def learn(self, task: Task) -> TaskResult:
        """One pass over the task's batches; each batch is answered before it is learned."""
        model, optimizers, protocol = self.model, self.optimizers, self.spec.protocol
        counts, loss_fn, show = _Counts(protocol.judge), protocol.loss, protocol.presenter(task, "learn")
        for batch in task.batches(protocol.batch, protocol.epochs):
            inputs, targets = show(*batch)
            outputs = protocol.answers(task, call(model, inputs))
            loss = loss_fn(outputs, targets)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            counts.add(outputs.detach(), targets, loss.detach())
        self.steps += counts.steps
        return counts.result()

    @torch.no_grad()
    def score(self, task: Task) -> float:
        """The metric now on what the task is judged on: the share of samples that the network answers rightly."""
        protocol = self.spec.protocol
        show, total = protocol.presenter(task, "end"), 0.0
        self.model.eval()
        judged = task.judged
        for batch in zip(*(part.split(PART) for part in judged), strict=True):
            inputs, targets = show(*batch)
            total += protocol.judge(protocol.answers(task, call(self.model, inputs)), targets)[0]
        self.model.train()
        return total / len(judged[1])

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types: all that later steps depend on."""
        return {
            "steps": self.steps,
            "model": dict(self.model.state_dict()),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "handle": None if self.handle is None else self.handle.state_dict(),
            "rng": torch.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.steps = state["steps"]
        self.model.load_state_dict(state["model"])
        # checkpoints of older runs, which had one optimizer, are continued too
        states = state["optimizers"] if "optimizers" in state else [state["optimizer"]]
        for optimizer, kept in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(kept)
        if self.handle is not None:
            self.handle.load_state_dict(state["handle"])
        torch.set_rng_state(state["rng"])


class _Counts:
    """Answers and losses of a task, counted a chunk of steps at a time: no `.item()` in a step."""

    def __init__(self, judge: Callable[[Tensor, Tensor], tuple[float, int]]) -> None:
        self.judge = judge
        self.outputs: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.losses: list[Tensor] = []
        self.steps = self.samples = self.nonfinite = 0
        self.hits = self.loss = 0.0

    def add(self, outputs: Tensor, targets: Tensor, loss: Tensor) -> None:
        self.outputs.append(outputs)
        self.targets.append(targets)
        self.losses.append(loss)
        self.steps += 1
        if len(self.losses) == CHUNK:
            self.flush()

    def flush(self) -> None:
        if not self.losses:
            return
        targets = torch.cat(self.targets)
        hits, nonfinite = self.judge(torch.cat(self.outputs), targets)
        self.hits += hits
        self.nonfinite += nonfinite
        self.samples += len(targets)
        self.loss += torch.stack(self.losses).double().sum().item()
        self.outputs, self.targets, self.losses = [], [], []

    def result(self) -> TaskResult:
        self.flush()
        return TaskResult(
            self.hits / max(self.samples, 1), self.loss / max(self.steps, 1), self.samples, self.nonfinite
        )
