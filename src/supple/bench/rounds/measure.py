"""What is measured at the end of a round; nothing of it touches the training.

Shape letters: B windows, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from supple import functional
from supple.bench.rounds.course import Course, loss_fn
from supple.bench.rounds.learner import Learner
from supple.errors import SuppleError
from supple.functional import effective_rank, singular_values
from supple.observe.guard import guard
from supple.observe.kernel import ntk
from supple.observe.probe import Observation, observe
from supple.streams import generator
from supple.topology.graph import Topology

BLOCK = 10  # steps whose loss is averaged
SHARES = (0.8, 0.65)  # of the entropy of single tokens: the fixed losses to be reached
#: last part of a layer's name -> what it is called here
PLACES = {
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "out": "o", "out_proj": "o", "dense": "o",
    "up": "up", "up_proj": "up", "c_fc": "up", "fc1": "up", "fc_in": "up", "dense_h_to_4h": "up",
    "gate": "gate", "gate_proj": "gate",
    "down": "down", "down_proj": "down", "fc2": "down", "fc_out": "down", "dense_4h_to_h": "down",
}  # fmt: skip


def blocks(losses: Sequence[float]) -> list[float]:
    """Mean loss of every ten steps."""
    return [round(fmean(losses[i : i + BLOCK]), 5) for i in range(0, len(losses), BLOCK)]


def steps_to_shares(losses: Sequence[float], entropy: float) -> dict[str, int | None]:
    """Share of the entropy -> steps until the mean loss of the last ten steps is at or under it, or None.

    >>> steps_to_shares([3.0] * 10 + [1.0] * 10, entropy=2.0)
    {'0.8': 17, '0.65': 19}
    """
    means = [(i, fmean(losses[i - BLOCK : i])) for i in range(BLOCK, len(losses) + 1)]
    return {f"{s:g}": next((i for i, m in means if m <= s * entropy), None) for s in SHARES}


@torch.no_grad()
def held_out(model: nn.Module, course: Course, turn: int) -> float:
    """Loss on windows of a round that were not drawn for training."""
    tokens, targets = course.batch(turn, "held", course.base.sizes.held)
    model.eval()
    found = float(loss_fn(course.forward(model, tokens), targets))
    model.train()
    return found


class Eye:
    """Looks at one arm after each of its rounds; the structure of the network is traced once."""

    def __init__(self, course: Course) -> None:
        self.course = course
        self.probe = course.probe()
        self.topology: Topology | None = None

    def look(self, learner: Learner, turn: int) -> dict[str, Any]:
        """Memory of round 0, ranks, the fixed probe, and in the first and last round units on its language.

        Settles the round: a low-rank adapter is merged.
        """
        model, course = learner.model, self.course
        sizes = course.base.sizes
        found: dict[str, Any] = {"probe": self._churn(learner)}
        learner.settle()
        found["first_language"] = held_out(model, course, 0)
        found |= course.judged(model, turn)
        found["ranks"] = ranks(model)
        if turn in (0, course.length.rounds - 1):
            batch = course.batch(turn, "probe", sizes.batch)
            seen = observe(model, batch, loss_fn, instruments=["dead", "grama"], forward=course.forward)
            found["dead"] = seen.value("dead")
            found["grama"] = seen.value("grama", "*", "preactivation,tau=0.025")
        with learner.whole() as network:
            if learner.adapter is not None:
                found["ranks_adapted"] = ranks(network)  # "ranks" are those of the weights below the adapter
            found["probe"] |= self._units(network) | kernel(
                network, self.probe[0], sizes.kernel, sizes.kernel_context
            )
        return found

    def _units(self, network: nn.Module) -> dict[str, float]:
        seen = self._observe(network, ["dead", "dormant", "cloned"])
        return {
            "loss": seen.loss,
            "dead": _of_mlps(seen, "dead"),
            "dormant": _of_mlps(seen, "dormant", "tau=0.025"),
            "cloned": _of_mlps(seen, "cloned"),
        }

    def _churn(self, learner: Learner) -> dict[str, float]:
        if learner.adapter is not None:
            parameters = list(learner.adapter.parameters())
            rate = learner.optimizer.param_groups[0]["lr"]
            return churn(learner.model, parameters, rate, self.probe, self.course.forward)
        seen = self._observe(learner.model, ["churn"], learner.optimizer)
        return {
            "churn": seen.value("churn", "*", "kl"), "churn_relative": seen.value("churn", "*", "relative"),
        }  # fmt: skip

    def _observe(
        self, model: nn.Module, names: list[str], optimizer: torch.optim.Optimizer | None = None
    ) -> Observation:
        seen = observe(
            model,
            self.probe,
            loss_fn,
            optimizer=optimizer,
            instruments=names,
            topology=self.topology,
            forward=self.course.forward,
        )
        self.topology = seen.topology
        return seen


def _of_mlps(seen: Observation, name: str, variant: str = "") -> float:
    """Mean over blocks of the share of the MLP's hidden units; NaN where none was judged."""
    rows = [r for r in seen.records if (r.instrument, r.variant, r.status) == (name, variant, "measured")]
    values = [r.value for r in rows if PLACES.get(r.layer.rpartition(".")[2]) in ("up", "gate")]
    return fmean(values) if values else math.nan


def churn(
    model: nn.Module,
    parameters: Sequence[Tensor],
    rate: float,
    probe: tuple[Tensor, Tensor],
    forward: Callable[[nn.Module, Tensor], Tensor],
) -> dict[str, float]:
    """The instrument ``churn`` where what trains lies outside of the model: KL in nats, and relative.

    One step of a new AdamW on the even windows, seen on the odd ones; the parameters are put back bit for bit.
    """
    x, y = probe
    on, off = slice(0, None, 2), slice(1, None, 2)
    before = [p.detach().clone() for p in parameters]
    with guard(model, evaluate=True):
        old = forward(model, x)
        gradients = torch.autograd.grad(loss_fn(old[on], y[on]), list(parameters))
        twins = [b.clone().requires_grad_(True) for b in before]
        for twin, gradient in zip(twins, gradients, strict=True):
            twin.grad = gradient
        torch.optim.AdamW(twins, lr=rate, weight_decay=0.0).step()
        with torch.no_grad():
            try:
                for p, twin in zip(parameters, twins, strict=True):
                    p.copy_(twin)
                new = forward(model, x)
            finally:
                for p, b in zip(parameters, before, strict=True):
                    p.copy_(b)
    old = old.detach()
    inside, outside = ((new[s] - old[s]).double().abs().mean() for s in (on, off))
    value = float(functional.churn(old[off].flatten(0, -2), new[off].flatten(0, -2)))
    return {"churn": value, "churn_relative": float(outside / inside)}


def kernel(model: nn.Module, tokens_BT: Tensor, windows: int, span: int) -> dict[str, float | None]:
    """Ranks and trace of the kernel of one number per window: a fixed random combination of the last logits.

    The signs are centred, so that a shift of all logits does nothing. In the mean over signs this is the
    trace kernel over V - 1 outputs, at the cost of one of them.
    """
    chosen = tokens_BT[torch.linspace(0, len(tokens_BT) - 1, windows).round().long(), -span:]

    def forward(network: nn.Module, tokens: Tensor) -> Tensor:
        last = network(tokens)[:, -1]
        signs = torch.randint(2, last.shape[-1:], generator=generator(0, "signs")).to(last) * 2 - 1
        return (last @ (signs - signs.mean()) / len(signs) ** 0.5)[:, None]

    try:
        found = functional.kernel_statistics(ntk(model, chosen, kind="scalar", forward=forward))
    except (SuppleError, RuntimeError, NotImplementedError):  # an operation without a derivative of this kind
        return {"ntk_rank99": None, "ntk_effective_rank": None, "ntk_trace": None}
    return {
        "ntk_rank99": float(found.rank99),
        "ntk_effective_rank": float(found.effective_rank),
        "ntk_trace": float(found.trace),
    }


def ranks(model: nn.Module) -> dict[str, float]:
    """Effective rank over the number of directions, mean over blocks: queries, keys, values, outputs, MLP."""
    by_part: dict[str, list[float]] = {}
    for name, weight in _weights(model):
        values = singular_values(weight.detach())
        by_part.setdefault(name, []).append(float(effective_rank(values)) / len(values))
    return {name: round(fmean(found), 5) for name, found in by_part.items()}


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        path, _, last = name.rpartition(".")
        if last in ("qkv", "c_attn") and module.out_features == 3 * module.in_features:
            yield from zip("qkv", module.weight.chunk(3), strict=True)
        elif last == "c_proj":
            yield ("down" if path.endswith("mlp") else "o"), module.weight
        elif last in PLACES:
            yield PLACES[last], module.weight
