"""The probe batch: checked before anything runs, and what its outputs are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from supple.errors import InputError
from supple.topology.inputs import batch_size


@dataclass(frozen=True)
class Batch:
    """A checked probe: ``samples`` along the first axis; ``problem`` says why its values cannot be used."""

    inputs: Any
    targets: Any
    samples: int
    problem: str = ""


def check_batch(batch: Any, *, strict: bool = False) -> Batch:
    """Check the form of ``(inputs, targets)``, and whether all numbers are finite.

    Tensors come back detached (and cloned where they were made in inference mode).

    Args:
        batch: a pair; inputs are a tensor, a tuple, a mapping, or anything that holds tensors.
        strict: raise on NaN and Inf too, instead of telling in ``problem``.

    Raises:
        InputError: not a pair, no tensor in the inputs, no sample; with ``strict`` NaN or Inf.

    >>> check_batch((torch.zeros(4, 2), torch.zeros(4))).samples
    4
    >>> check_batch((torch.full((4, 2), torch.nan), torch.zeros(4))).problem
    'the probe inputs hold NaN or Inf'
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        found = f"a {type(batch).__name__}" + (
            f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
        )
        raise InputError(
            "a probe batch is a pair (inputs, targets)", found=found, do="pass one batch: (inputs, targets)"
        )
    inputs, targets = _detached(batch[0]), _detached(batch[1])
    samples = batch_size(inputs)
    if samples is None:
        raise InputError(
            "the inputs of the probe hold no tensor with a sample axis",
            found=type(batch[0]).__name__,
            do="pass torch tensors whose first axis runs over samples",
        )
    if samples == 0:
        raise InputError("the probe is empty", found="no sample", do="pass at least a few dozen samples")
    problem = ""
    for name, side in (("inputs", inputs), ("targets", targets)):
        if not _finite(side):
            problem = f"the probe {name} hold NaN or Inf"
            break
    if problem and strict:
        raise InputError(problem, do="remove those samples, or repair the preprocessing")
    return Batch(inputs, targets, samples, problem)


@contextmanager
def user_code(what: str, *, where: str | None = None, do: str | None = None) -> Iterator[None]:
    """Code that the caller passed in: what it raises becomes one clear message; out of memory stays what it is.

    >>> with user_code("the factory failed"):
    ...     {}["gone"]
    Traceback (most recent call last):
    supple.errors.InputError: the factory failed; found: KeyError: 'gone'
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(what, found=f"{type(error).__name__}: {error}", where=where, do=do) from error


def run_loss(loss_fn: Callable[..., Any], outputs: Any, targets: Any) -> Tensor:
    """``loss_fn(outputs, targets)`` as a scalar tensor.

    Raises:
        InputError: it fails, or does not return one real number.

    >>> run_loss(torch.nn.functional.mse_loss, torch.ones(2), torch.zeros(2)).item()
    1.0
    """
    with user_code(
        "loss_fn(outputs, targets) failed on the probe",
        do="check the shape and the type of the targets, and the loss",
    ):
        loss = loss_fn(outputs, targets)
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        found = (
            f"shape {tuple(loss.shape)}, {loss.dtype}" if isinstance(loss, Tensor) else type(loss).__name__
        )
        raise InputError(
            "loss_fn must return one real number (a scalar tensor)",
            found=found,
            do="take the mean over samples",
        )
    return loss.reshape(())


def main_output(outputs: Any) -> Tensor | None:
    """The tensor that instruments on outputs look at.

    The output itself; the entry ``"logits"`` of a mapping or an attribute of that name; else the first
    floating-point tensor found.

    >>> main_output({"aux": torch.zeros(1), "logits": torch.ones(2)}).tolist()
    [1.0, 1.0]
    """
    if isinstance(outputs, Tensor):
        return outputs if outputs.is_floating_point() else None
    if isinstance(outputs, Mapping):
        items = [outputs["logits"]] if "logits" in outputs else list(outputs.values())
    elif isinstance(getattr(outputs, "logits", None), Tensor):
        items = [outputs.logits]
    else:
        items = list(outputs) if isinstance(outputs, (tuple, list)) else []
    return next((found for item in items if (found := main_output(item)) is not None), None)


def as_classes(output: Tensor | None, targets: Any) -> tuple[Tensor, Tensor] | None:
    """Logits (M, C) and class numbers (M,) where outputs and targets have the shapes of a classification.

    Integer targets, and outputs with one more axis: (..., C) or (N, C, ...). Entries with a negative class
    (ignored tokens) are left out. None otherwise.

    >>> logits, classes = as_classes(torch.zeros(2, 3, 5), torch.zeros(2, 3, dtype=torch.long))
    >>> logits.shape, classes.shape
    (torch.Size([6, 5]), torch.Size([6]))
    """
    if output is None or not isinstance(targets, Tensor) or targets.is_floating_point():
        return None
    if targets.dtype == torch.bool or output.ndim < 2:
        return None
    if output.shape[:-1] == targets.shape or targets.numel() * output.shape[-1] == output.numel():
        logits = output.reshape(-1, output.shape[-1])
    elif (output.shape[0], *output.shape[2:]) == tuple(targets.shape):
        logits = output.movedim(1, -1).reshape(-1, output.shape[1])
    else:
        return None
    classes = targets.reshape(-1)
    seen = classes >= 0
    return (logits, classes) if bool(seen.all()) else (logits[seen], classes[seen])


def _detached(item: Any) -> Any:
    if isinstance(item, Tensor):
        if not item.is_inference():
            return item.detach()
        with torch.inference_mode(False):
            return item.clone()
    if isinstance(item, tuple) and hasattr(item, "_fields"):
        return type(item)(*(_detached(x) for x in item))
    if isinstance(item, (tuple, list)):
        return type(item)(_detached(x) for x in item)
    if isinstance(item, Mapping):
        return {key: _detached(value) for key, value in item.items()}
    return item


def all_finite(values: Tensor) -> bool:
    """True where no value is NaN or Inf: by the extremes, which is many times faster than value by value.

    >>> all_finite(torch.tensor([1.0, torch.inf])), all_finite(torch.tensor([])), all_finite(torch.ones(2))
    (False, True, True)
    """
    if values.layout is not torch.strided or values.numel() == 0 or values.is_complex():
        return bool(values.isfinite().all())
    low, high = torch.aminmax(values.detach())
    return bool(low.isfinite() & high.isfinite())


def _finite(item: Any) -> bool:
    if isinstance(item, Tensor):
        return not item.is_floating_point() or all_finite(item)
    if isinstance(item, Mapping):
        return all(_finite(x) for x in item.values())
    if isinstance(item, (tuple, list)):
        return all(_finite(x) for x in item)
    return True


def pick(item: Any, index: Tensor, samples: int) -> Any:
    """The samples ``index`` of inputs, targets or outputs; what has no sample axis is kept whole.

    A tensor is cut where its first axis has ``samples`` entries, or a multiple of them (flattened tokens:
    consecutive entries belong to one sample).

    >>> pick({"x": torch.arange(6), "scale": torch.ones(())}, torch.tensor([0, 2]), 3)["x"].tolist()
    [0, 1, 4, 5]
    """
    if isinstance(item, Tensor):
        if item.dim() == 0 or item.shape[0] == 0 or item.shape[0] % samples:
            return item
        rows = item.unflatten(0, (samples, item.shape[0] // samples))
        return rows.index_select(0, index.to(item.device)).flatten(0, 1)
    if isinstance(item, tuple) and hasattr(item, "_fields"):
        return type(item)(*(pick(x, index, samples) for x in item))
    if isinstance(item, (tuple, list)):
        return type(item)(pick(x, index, samples) for x in item)
    if isinstance(item, Mapping):
        return {key: pick(value, index, samples) for key, value in item.items()}
    return item
