"""Transformer²: a bank of singular-value experts over one base model, chosen or mixed at inference.

Shape letters: K experts, P members of a population, V vocabulary, B batch, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from supple.errors import InputError
from supple.nn.svf import SVFAdapter

Prompt = TypeVar("Prompt")
Answer = TypeVar("Answer")


class ExpertBank:
    """Vectors z by name for one adapter; one of them, none or a mix is in use at a time.

    Sun, Cetin & Tang 2025 (arXiv 2501.06252). Train one expert after the other with the same adapter and `keep` each;
    the weights of the base model are never touched, so that experts do not interfere.

    >>> from supple.nn import svf_
    >>> bank = ExpertBank(svf_(torch.nn.Linear(3, 3)))
    >>> bank.adapter.z[0].data.fill_(1.5); bank.keep("sums")
    tensor([1.5000, 1.5000, 1.5000])
    >>> bank.use(None); bank.adapter.z[0].tolist()
    [1.0, 1.0, 1.0]
    >>> bank.mix({"sums": 0.5}); bank.adapter.z[0].tolist()
    [1.25, 1.25, 1.25]
    """

    def __init__(self, adapter: SVFAdapter) -> None:
        self.adapter = adapter
        self.experts: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def keep(self, name: str) -> None:
        """Take what the adapter has learned as the expert of this name."""
        if not name or "/" in name or name.startswith("."):
            raise InputError("an expert needs a name that a file can have", found=repr(name))
        if not all(bool(z.isfinite().all()) for z in self.adapter.z):
            raise InputError("the vectors of this expert are not finite", where=name)
        self.experts[name] = [z.detach().clone() for z in self.adapter.z]

    @torch.no_grad()
    def use(self, name: str | None) -> None:
        """Put an expert in, or the base model with None."""
        vectors = None if name is None else self._find(name)
        self.adapter.check_free("another expert")
        for i, z in enumerate(self.adapter.z):
            z.copy_(self._base(i) if vectors is None else vectors[i])

    @torch.no_grad()
    def mix(self, weights: Mapping[str, float]) -> None:
        """Put a mix of experts in: z = 1 + Σ α_k (z_k - 1), so that weights of 0 are the base model.

        In the published form the masks are mixed, m = Σ α_k σ(p_k), of which only ratios count; their weights may
        not all be 0.

        Raises:
            InputError: an unknown expert, no weight, or one that is not finite.
        """
        if not weights or not all(math.isfinite(w) for w in weights.values()):
            raise InputError("a mix takes finite weights by the names of experts", found=dict(weights))
        vectors = {name: self._find(name) for name in weights}
        self.adapter.check_free("a mix")
        mixed = []
        for i in range(len(self.adapter.z)):
            if self.adapter.form == "plain":
                mixed.append(1 + sum(w * (vectors[n][i] - 1) for n, w in weights.items()))  # type: ignore[arg-type]
                continue
            mask = torch.stack([w * torch.sigmoid(vectors[n][i]) for n, w in weights.items()]).sum(0)
            if not float(mask.min()) > 0:
                raise InputError("the masks of a mix must be above 0", found=float(mask.min()),
                                 do="give weights that are not negative, one of them above 0")  # fmt: skip
            mixed.append(torch.logit(0.9 * mask / mask.max()))
        for z, value in zip(self.adapter.z, mixed, strict=True):
            z.copy_(value)

    def few_shot(
        self, score: Callable[[], float], *, rounds: int = 10, population: int = 32, seed: int = 0
    ) -> dict[str, float]:
        """Mix all experts for a task of which a few examples are known: the third strategy of the paper.

        The weights are searched by `cross_entropy_method`; the best mix is in use afterwards.

        Args:
            score: of the model as it is, on the examples; larger is better.

        Returns:
            Name of an expert -> its weight.

        Raises:
            InputError: no expert, or no score that is a number. What was in use is in use again then, as after an
                error of the score.
        """
        names = list(self.experts)
        if not names:
            raise InputError("there is no expert to be mixed", do="train one and keep it")

        def of(weights: Tensor) -> float:
            self.mix(dict(zip(names, weights.tolist(), strict=True)))
            return float(score())

        before = [z.detach().clone() for z in self.adapter.z]
        try:
            found = cross_entropy_method(of, len(names), rounds=rounds, population=population, seed=seed)
        except BaseException:  # an interrupted search too leaves what was in use
            self._put(before)
            raise
        best = dict(zip(names, found.best.tolist(), strict=True))
        self.mix(best)
        return best

    def two_pass(
        self, prompt: Prompt, classify: Callable[[Prompt], str], answer: Callable[[Prompt], Answer], *,
        classifier: str | None = None,
    ) -> Answer:  # fmt: skip
        """Ask the model what kind of prompt it is, then answer with that expert; any other word means the base model.

        Without ``classifier`` the base model classifies (the paper's first strategy), with one that expert does (the
        second). The chosen expert is in use afterwards.
        """
        self.use(classifier)
        word = classify(prompt)
        self.use(word if word in self.experts and word != classifier else None)
        return answer(prompt)

    def save(self, folder: str | Path) -> None:
        """One file an expert, each with the checksums of the base weights that it fits."""
        before = [z.detach().clone() for z in self.adapter.z]
        Path(folder).mkdir(parents=True, exist_ok=True)
        try:
            for name in self.experts:
                self.use(name)
                self.adapter.save(Path(folder) / f"{name}.safetensors")
        finally:
            self._put(before)

    def load(self, folder: str | Path) -> None:
        """Read every expert of a folder; one that fits another base refuses the folder, and nothing has changed."""
        files = sorted(Path(folder).glob("*.safetensors"))
        if not files:
            raise InputError("there are no experts here", where=str(folder))
        before, found = [z.detach().clone() for z in self.adapter.z], {}
        try:
            for file in files:
                self.adapter.load(file)
                found[file.stem] = [z.detach().clone() for z in self.adapter.z]
        finally:
            self._put(before)
        self.experts |= found

    @torch.no_grad()
    def _put(self, vectors: Sequence[Tensor]) -> None:
        for z, value in zip(self.adapter.z, vectors, strict=True):
            z.copy_(value)

    def _base(self, index: int) -> Tensor:
        """The vector of the base model: ones, or any constant in the published form."""
        z = self.adapter.z[index]
        return torch.ones_like(z) if self.adapter.form == "plain" else torch.full_like(z, 0.1)

    def _find(self, name: str) -> list[Tensor]:
        if name not in self.experts:
            raise InputError(
                f"unknown expert {name!r}", do=f"choose from {', '.join(self.experts) or 'none yet'}"
            )
        return self.experts[name]


class Search(NamedTuple):
    """What the cross-entropy method found: the best member of all rounds, its score, the best of each round."""

    best: Tensor
    score: float
    course: tuple[float, ...]


def cross_entropy_method(
    score: Callable[[Tensor], float], size: int, *, rounds: int = 10, population: int = 32, elite: float = 0.2,
    std: float = 0.5, seed: int = 0,
) -> Search:  # fmt: skip
    """Maximise a score over [0, 1]^size without gradients, as the authors of Transformer² do.

    Each round draws P members N(mean, std²), clipped to [0, 1]; mean and standard deviation (n - 1) of the int(elite P)
    best are those of the next round, without smoothing. The first mean is 1 / size. Member 0 is the best of the
    round before, so that the best is never lost; in the first round the first members are the single ones, weight
    1 on one coordinate (the authors draw them too). A score that is NaN counts as the lowest.

    Args:
        score: of (size,) weights; larger is better.
        rounds, population: at least 1, and two elites; costs rounds x population scores.

    >>> found = cross_entropy_method(lambda w: -float((w - torch.tensor([0.2, 0.9])).square().sum()), 2, rounds=20)
    >>> [round(v, 1) for v in found.best.tolist()]
    [0.2, 0.9]
    """
    elites = int(elite * population)
    if size < 1 or rounds < 1 or elites < 2:
        raise InputError("the search needs a coordinate, a round and two elites",
                         found=f"{size}, {rounds}, {elites}")  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    mean, spread = torch.full((size,), 1 / size), torch.full((size,), std)
    best, top, course = mean.clone(), -math.inf, []
    for turn in range(rounds):
        members = (mean + spread * torch.randn(population, size, generator=g)).clamp(0, 1)
        if turn:
            members[0] = best
        else:
            singles = torch.eye(size)[: population - 1]
            members[: len(singles)] = singles
        scores = torch.tensor([_number(score(m)) for m in members], dtype=torch.float64)
        order = scores.argsort(descending=True, stable=True)
        if float(scores[order[0]]) > top or not turn:
            top, best = float(scores[order[0]]), members[order[0]].clone()
        course.append(top)
        chosen = members[order[:elites]]
        mean, spread = chosen.mean(0), chosen.std(0)
    if top == -math.inf:
        raise InputError(
            "no member had a score above -inf", found="NaN or -inf each time", do="mend the score"
        )
    return Search(best, top, tuple(course))


def _number(value: float) -> float:
    return -math.inf if math.isnan(value) else float(value)


def policy_gradient_loss(
    logits_BTV: Tensor, tokens_BT: Tensor, rewards_B: Tensor, base_logits_BTV: Tensor, *, kl: float = 0.0,
    counted_BT: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """REINFORCE with a KL penalty: -mean_B r Σ_t log π(y_t) + kl · mean_B Σ_t KL(π(·|t) || π_base(·|t)).

    The objective of Transformer² (arXiv 2501.06252, its code has kl 0 and rewards of ±1). The KL is exact over the
    vocabulary. Take the base logits under ``adapter.disabled()``.

    Args:
        logits_BTV: of the adapted model at the places that predict the answer's tokens.
        tokens_BT: the answer's tokens.
        rewards_B: one a sample, such as +1 and -1.
        base_logits_BTV: of the base model at the same places; no gradient flows through them.
        counted_BT: True for tokens of the answer; all without it.

    Returns:
        A scalar in float32 or better.

    Raises:
        InputError: shapes that do not fit, or a reward that is not finite.

    >>> flat = torch.zeros(1, 2, 4)
    >>> round(policy_gradient_loss(flat, torch.tensor([[0, 3]]), torch.tensor([1.0]), flat, kl=0.1).item(), 4)
    2.7726
    """
    fits = logits_BTV.shape[:2] == tokens_BT.shape and logits_BTV.shape == base_logits_BTV.shape
    if not fits or rewards_B.shape != tokens_BT.shape[:1] or not bool(rewards_B.isfinite().all()):
        raise InputError(
            "logits, tokens and rewards do not fit",
            found=f"{tuple(logits_BTV.shape)}, {tuple(tokens_BT.shape)}, {tuple(rewards_B.shape)}",
            do="give (B, T, V), (B, T) and (B,) finite rewards",
        )
    wide = torch.promote_types(logits_BTV.dtype, torch.float32)
    log_p = logits_BTV.to(wide).log_softmax(-1)
    log_base = base_logits_BTV.detach().to(wide).log_softmax(-1)
    said = log_p.gather(-1, tokens_BT[..., None])[..., 0]
    apart = (log_p.exp() * (log_p - log_base)).sum(-1)
    if counted_BT is not None:
        said, apart = said * counted_BT, apart * counted_BT
    return (-rewards_B.to(wide) * said.sum(-1) + kl * apart.sum(-1)).mean()
