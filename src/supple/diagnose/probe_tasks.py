"""Fresh tasks to learn from here: the probe inputs with targets that have nothing to do with them.

N probe samples, C classes. Random targets leave nothing to transfer, so what is measured is the ability to
learn and not what the network knows. The network's answer is read relative to its own answer before the
task, f(x) - f0(x): both the worn network and its twin then start from the same (zero) answer, and neither is
charged for old answers that it has to unlearn first. That cost is measured too (``centred=False``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supple.diagnose.copies import ready_to_train
from supple.errors import InputError
from supple.observe.batch import main_output, run_loss, user_code
from supple.topology.inputs import Forward, batch_size, call, shrink

IGNORED = -100  # a target that cross entropy leaves out
LossFn = Callable[[Any, Any], Tensor]


def take(inputs: Any, index: Tensor) -> Any:
    """The samples of ``index`` of any inputs that `supple.topology.call` takes.

    >>> take({"x": torch.arange(4), "scale": torch.tensor(2.0)}, torch.tensor([3, 0]))["x"]
    tensor([3, 0])
    """
    size = batch_size(inputs)

    def cut(item: Any) -> Any:
        if isinstance(item, Tensor):
            return item[index.to(item.device)] if item.dim() > 0 and item.shape[0] == size else item
        if isinstance(item, tuple) and hasattr(item, "_fields"):
            return type(item)(*(cut(x) for x in item))
        if isinstance(item, tuple | list):
            return type(item)(cut(x) for x in item)
        if isinstance(item, Mapping):
            return {k: cut(v) for k, v in item.items()}
        return item

    return cut(inputs)


@dataclass(frozen=True)
class ProbeKind:
    """What the targets are like, read off one batch: ``kind`` "classes" | "binary" | "values".

    ``outputs`` says what the network returns: "logits" (or values), "log-probabilities", "probabilities".
    ``class_dim`` is the axis of the classes, ``scale`` the standard deviation of real targets. ``structured``:
    the network returns more than a tensor, so that its main output (`supple.observe.batch.main_output`) is
    taught with a loss of the kind instead of the caller's.
    """

    kind: str
    outputs: str = "logits"
    classes: int = 0
    class_dim: int = -1
    scale: float = 1.0
    structured: bool = False

    @property
    def chance(self) -> float:
        """Accuracy of a guess; 0 for values, where the score is the share of the loss taken away."""
        return 1.0 / self.classes if self.kind == "classes" else 0.0


def read_kind(outputs: Any, targets: Any) -> ProbeKind:
    """Find out which random targets fit; refuse, by what was found, where none do.

    >>> read_kind(torch.randn(4, 3), torch.tensor([0, 1, 2, 0])).classes
    3
    """
    if not isinstance(outputs, Tensor):
        main = main_output(outputs)
        if main is not None and isinstance(targets, Tensor):
            return dataclasses.replace(read_kind(main, targets), structured=True)
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        raise InputError(
            "random targets need an output tensor and tensor targets",
            found=f"{type(outputs).__name__} and {type(targets).__name__}",
            do="pass forward=lambda model, inputs: the tensor of logits or values, and a loss on it",
        )
    if targets.is_floating_point():
        return _read_values(outputs.float(), targets.float())
    if outputs.shape[:-1] == targets.shape:
        dim = outputs.dim() - 1
    elif outputs.dim() > 1 and (outputs.shape[0], *outputs.shape[2:]) == tuple(targets.shape):
        dim = 1
    else:
        raise InputError(
            "the class axis cannot be told from the shapes",
            found=f"outputs {tuple(outputs.shape)}, targets {tuple(targets.shape)}",
        )
    classes = outputs.shape[dim]
    if classes < 2:
        raise InputError("classification needs at least two classes", found=classes)
    z = outputs.float()
    form = "logits"
    if bool((z >= 0).all()) and torch.allclose(z.sum(dim), torch.ones(()).to(z), atol=1e-3):
        form = "probabilities"
    elif bool((z.logsumexp(dim).abs() < 1e-3).all()):
        form = "log-probabilities"
    return ProbeKind("classes", form, classes, dim)


def _read_values(outputs: Tensor, targets: Tensor) -> ProbeKind:
    if outputs.shape != targets.shape and outputs.numel() != targets.numel():
        raise InputError(
            "random targets need targets of the shape of the outputs",
            found=f"outputs {tuple(outputs.shape)}, targets {tuple(targets.shape)}",
        )
    if bool(((targets == 0) | (targets == 1)).all()) and len(targets.unique()) == 2:
        inside = bool(((outputs >= 0) & (outputs <= 1)).all())
        return ProbeKind("binary", "probabilities" if inside else "logits")
    scale = float(targets.std()) if targets.numel() > 1 else 0.0
    return ProbeKind("values", scale=scale if scale > 0 and math.isfinite(scale) else 1.0)


@dataclass(frozen=True)
class ProbeTask:
    """Inputs with fresh targets, the order in which batches come, and how learning is scored.

    Everything is drawn from ``seed`` alone: the same task for every network that is compared on it.
    """

    inputs: Any
    targets: Tensor
    kind: ProbeKind
    loss_fn: LossFn
    seed: int
    batch: int
    forward: Forward | None = None

    @classmethod
    def draw(
        cls,
        batch: tuple[Any, Tensor],
        kind: ProbeKind,
        loss_fn: LossFn,
        seed: int,
        *,
        samples: int = 256,
        forward: Forward | None = None,
        fresh: bool = True,
    ) -> ProbeTask:
        """A new task on the first ``samples`` samples; without ``fresh`` with the batch's own targets."""
        inputs, targets = shrink(batch[0], samples), batch[1][:samples]
        g = torch.Generator().manual_seed(seed)
        if not fresh:
            taught = targets
        elif kind.kind == "classes":
            drawn = torch.randint(kind.classes, targets.shape, generator=g, dtype=torch.int64)
            taught = torch.where(targets.cpu() < 0, targets.cpu().long(), drawn)  # keep ignored positions
            taught = taught.to(targets.dtype)
        elif kind.kind == "binary":
            taught = torch.randint(2, targets.shape, generator=g).to(targets.dtype)
        else:
            taught = (torch.randn(targets.shape, generator=g) * kind.scale).to(targets.dtype)
        size = len(targets)
        return cls(
            inputs, taught.to(targets.device), kind, loss_fn, seed, max(1, min(32, size // 4)), forward
        )

    def batches(self, steps: int) -> Iterator[Tensor]:
        """``steps`` index batches, epoch after epoch, in an order of this task."""
        g = torch.Generator().manual_seed(self.seed + 1)
        n, queue = len(self.targets), torch.empty(0, dtype=torch.int64)
        for _ in range(steps):
            if len(queue) < self.batch:
                queue = torch.randperm(n, generator=g)
            yield queue[: self.batch]
            queue = queue[self.batch :]

    def answer(self, network: nn.Module, inputs: Any) -> Tensor:
        """The network's outputs as logits or values."""
        with user_code(
            "the model fails when a copy is trained on parts of the probe",
            do="let it take a batch of any size in train mode, or pass forward=",
        ):
            z = call(network, inputs, self.forward)
        if self.kind.structured:
            z = cast("Tensor", main_output(z))  # `read_kind` found it
        if self.kind.outputs == "probabilities":
            z = z.clamp(1e-6, 1 - 1e-6) if self.kind.kind == "binary" else z.clamp_min(1e-6)
            return torch.logit(z) if self.kind.kind == "binary" else z.log()
        return z

    def loss(self, z: Tensor, y: Tensor) -> Tensor:
        """The caller's loss; the one of the kind where the network returns probabilities or a structure."""
        if self.kind.outputs == "logits" and not self.kind.structured:
            return run_loss(self.loss_fn, z, y)
        if self.kind.kind == "values":
            return F.mse_loss(z, y.reshape(z.shape))
        if self.kind.kind == "binary":
            return F.binary_cross_entropy_with_logits(z, y.reshape(z.shape))
        return F.cross_entropy(z.movedim(self.kind.class_dim, 1), torch.where(y < 0, IGNORED, y))

    def base(self, network: nn.Module) -> Tensor:
        """Its answer to every probe sample now, in the mode in which it will be trained."""
        modes = [(m, m.training) for m in network.modules()]
        buffers = {k: v.clone() for k, v in network.named_buffers()}
        ready_to_train(network)
        with torch.no_grad():
            z = self.answer(network, self.inputs).clone()
            for key, buffer in network.named_buffers():
                buffer.copy_(buffers[key])
        for module, mode in modes:
            module.training = mode
        return z


def learn(
    network: nn.Module,
    task: ProbeTask,
    steps: int,
    optimizers: list[torch.optim.Optimizer],
    *,
    centred: bool = True,
    stop: Callable[[list[float]], bool] | None = None,
) -> list[float]:
    """Train ``network`` in place on the task; the score of every batch before its update.

    Classes: (accuracy - chance) / (1 - chance). Binary and values: share of the zero answer's loss that is
    gone, clipped to [-1, 1]. A non-finite loss ends the course with NaN; ``stop(scores)`` may end it early.
    """
    start = task.base(network) if centred else None
    ready_to_train(network)
    scores: list[float] = []
    for index in task.batches(steps):
        z = task.answer(network, take(task.inputs, index))
        if start is not None:
            z = z - start[index.to(start.device)]
        y = task.targets[index.to(task.targets.device)]
        loss = task.loss(z, y)
        scores.append(_score(task, z.detach(), y, float(loss.detach())))
        if not math.isfinite(scores[-1]):
            return [*scores, math.nan]
        _update(loss, optimizers)
        if stop is not None and stop(scores):
            break
    return scores


def _update(loss: Tensor, optimizers: list[torch.optim.Optimizer]) -> None:
    if not loss.requires_grad:
        raise InputError(
            "the loss cannot be trained on: it does not depend on a trainable parameter",
            where="loss_fn",
            do="compute it from the outputs, without detach, item or numpy",
        )
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()


def _score(task: ProbeTask, z: Tensor, y: Tensor, loss: float) -> float:
    if not math.isfinite(loss):
        return math.nan
    if task.kind.kind == "classes":
        hit = (z.argmax(task.kind.class_dim) == y)[y >= 0].float().mean()
        return (float(hit) - task.kind.chance) / (1 - task.kind.chance)
    zero = float(task.loss(torch.zeros_like(z), y))
    return min(1.0, max(-1.0, 1 - loss / zero)) if zero > 0 else math.nan
