"""Networks that have the same resets as the model: the target networks of an agent."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from supple.errors import InputError
from supple.interventions.reset_plan import ResetPlan, Write, write_


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name.

    >>> list(tensors_of(nn.Linear(2, 1)))
    ['weight', 'bias']
    """
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def check_follower(model: nn.Module, network: nn.Module, name: str) -> None:
    """Refuse a network that is not a copy of the model in names and shapes, or shares its tensors."""
    do = "pass the target network, a copy.deepcopy of the model, without a wrapper around it"
    if not isinstance(network, nn.Module):
        raise InputError(f"{name}: a network that follows is a module", found=type(network).__name__, do=do)
    own, other = tensors_of(model), tensors_of(network)
    wrong = [n for n, t in own.items() if n not in other or other[n].shape != t.shape]
    shared = [] if wrong else [n for n, t in own.items() if t.numel() and other[n].data_ptr() == t.data_ptr()]
    if wrong or shared:
        raise InputError(
            f"{name}: a network that follows is a copy of the model",
            found=f"missing or of another shape: {', '.join(wrong)}"
            if wrong
            else f"the model's own tensors: {', '.join(shared)}",
            where=type(network).__name__,
            do=do,
        )


@torch.no_grad()
def mirror_(plan: ResetPlan, network: nn.Module) -> None:
    """Make the resets of a plan in another network of the same names and shapes.

    Fresh values are those that the model got, so both have the same new units. What a write keeps of the old value
    (a bias that takes up a mean contribution, a blended weight) is the other network's own.
    """
    tensors = tensors_of(network)
    for write in plan.writes:
        _write(write, tensors[write.name])


def _write(write: Write, target: Tensor) -> None:
    where = write.where.to(target.device)
    values, keep = (v.to(target) if isinstance(v, Tensor) else v for v in (write.values, write.keep))
    mixed = isinstance(keep, Tensor) or keep != 0.0
    write_(target, where, keep * target[where.at] + values if mixed else values)
