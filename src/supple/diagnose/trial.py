"""A measured what-if: each candidate on copies of the network, over fresh probe tasks in sequence, paired.

The network is trained on random-target tasks one after the other, as it would be in a stream; what counts
is how well it learns the later ones, old answers and all. Every arm sees the same tasks, the same batches
and the same fresh optimizer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import torch
from torch import nn

from supple.diagnose.copies import recipe, same_trainable
from supple.diagnose.inputs import check_budget, check_model
from supple.diagnose.intervals import mean_interval
from supple.diagnose.probe_tasks import LossFn, ProbeKind, ProbeTask, learn, read_kind
from supple.diagnose.trainability import FEWEST_SAMPLES, TOO_LITTLE
from supple.diagnose.types import Prescription, plain
from supple.errors import InputError, SuppleError
from supple.interventions.base import Intervention
from supple.interventions.handle import Optimizers, optimizer_list
from supple.interventions.registry import create
from supple.observe.batch import check_batch, main_output
from supple.observe.copies import clean_copy, unwrap
from supple.observe.guard import guard
from supple.observe.reference import Reference, resolve
from supple.topology.inputs import Forward, call, shrink

NOTHING, RESTART = "nothing", "restart"
FAMOUS = "ContinualBackprop"
DEFAULT_BUDGET = 60.0
ROUNDS = 3  # tasks in sequence; the first one, where an intervention has had no time to act, does not count
STEPS, LEAST_STEPS = 250, 40
PAIRS, LEAST_PAIRS = 8, 3
DIVERGED = -1.0  # the lowest score there is


@dataclass(frozen=True)
class Arm:
    """One candidate: mean score over sequences, its gain over doing nothing (paired, 95 %), its cost in time.

    ``failed`` says why a candidate has no score.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    score: float = math.nan
    gain: float = math.nan
    lo: float = math.nan
    hi: float = math.nan
    cost: float = math.nan
    scores: tuple[float, ...] = ()
    failed: str = ""


@dataclass(frozen=True)
class Trial:
    """Arms, best first. ``clear`` says whether the first is better than the second with 95 % certainty.

    ``problem`` says why the order means nothing: no arm learned, or all of them diverged.
    """

    arms: tuple[Arm, ...]
    clear: bool
    pairs: int
    steps: int
    seconds: float
    optimizer: str
    score: str
    problem: str = ""

    @property
    def best(self) -> Arm:
        return self.arms[0]

    def reorder(self, prescription: Prescription) -> Prescription:
        """The prescription in the measured order; lines that were not measured come last.

        Where the trial has a ``problem`` the order stays, and the note says why.
        """
        if self.problem:
            return replace(prescription, note=f"Not reordered: in a trial on copies {self.problem}.")
        order = {a.name: i for i, a in enumerate(self.arms) if not a.failed}
        lines = sorted(prescription.lines, key=lambda x: order.get(x.intervention, len(order)))
        note = f"Reordered by a trial on copies: best {self.best.name} ({self.best.score:.2f})."
        return replace(prescription, lines=tuple(lines), note=note)

    def to_dict(self) -> dict[str, Any]:
        row = {
            k: getattr(self, k)
            for k in ("clear", "pairs", "steps", "seconds", "optimizer", "score", "problem")
        }
        return plain({**row, "arms": [vars(a) for a in self.arms]})

    def __str__(self) -> str:
        from supple.diagnose.text import wrap

        lines = ["Trial on copies", *wrap(f"{self.score}; {self.pairs} sequences of {ROUNDS} tasks with "
                                           f"{self.steps} steps; {self.optimizer}", "  ")]  # fmt: skip
        lines.append(f"  {'candidate':<26} {'score':>6} {'gain over nothing':>24} {'time':>6}")
        for arm in self.arms:
            if arm.failed:
                lines += wrap(f"{arm.name}: {arm.failed}", "  ")
                continue
            gain = "-" if arm.name == NOTHING else f"{arm.gain:+.3f} [{arm.lo:+.3f}, {arm.hi:+.3f}]"
            lines.append(f"  {arm.name:<26} {arm.score:>6.3f} {gain:>24} {arm.cost:>5.1f}x")
        verdict = f"First: {self.best.name}" + ("." if self.clear else ", not clearly ahead of the second.")
        if self.problem:
            verdict = f"No order: {self.problem}."
        return "\n".join([*lines, *wrap(verdict)])


def trial(
    model: nn.Module,
    optimizer: Optimizers | None,
    batch: tuple[Any, Any],
    loss_fn: LossFn,
    *,
    reference: Any = None,
    candidates: Iterable[Intervention | str] | None = None,
    budget: float | None = None,
    forward: Forward | None = None,
    seed: int = 0,
) -> Trial:
    """Measure what each candidate would do to the learning of new tasks, and rank them.

    Args:
        model, optimizer, batch, loss_fn, forward: as for a diagnosis; nothing of them changes. The copies
            start with a fresh optimizer of the same class and settings.
        reference: needed for the candidate ``"restart"``, and for the default candidates.
        candidates: interventions, registered names, ``"nothing"`` or ``"restart"``; by default the live lines
            of the prescription, ContinualBackprop, nothing, and a restart. ``"nothing"`` is always measured.
        budget: seconds (60 by default), kept to within one sequence of one arm; it ends early when the first
            is clearly ahead of every other.

    Raises:
        InputError: an unknown candidate, targets for which no random ones can be drawn, a network that
            returns NaN, a loss without a gradient, fewer than 8 samples, a budget that is too small or no
            positive number.
    """
    check_model(model, "a trial")
    if optimizer is not None:
        optimizer_list(optimizer)
    seconds = check_budget(DEFAULT_BUDGET if budget is None else budget)
    if candidates is not None and (isinstance(candidates, str) or not isinstance(candidates, Iterable)):
        raise InputError("candidates must be a list", found=repr(candidates), do=f"pass [{candidates!r}]")
    checked = check_batch(batch, strict=True)
    if checked.samples < FEWEST_SAMPLES:
        raise InputError(
            "too few probe samples for a trial", found=checked.samples, do=f"pass {FEWEST_SAMPLES} or more"
        )
    pair = (checked.inputs, checked.targets)
    with guard(model, optimizer):
        model = unwrap(model)
        healthy = resolve(reference, model, seed)
        arms = _arms(model, optimizer, pair, loss_fn, healthy, candidates, forward)
        return _Contest(model, optimizer, pair, loss_fn, healthy, arms, forward, seed, seconds).run()


def default_candidates(prescription: Prescription) -> list[Intervention | str]:
    """What a prescription would attach, the famous remedy, and a restart."""
    live = [x for x in prescription.lines if x.kind != "architectural"]
    return [*(create(x.intervention, **x.settings) for x in live), FAMOUS, RESTART]


def _arms(
    model: nn.Module,
    optimizer: Optimizers | None,
    pair: tuple[Any, Any],
    loss_fn: LossFn,
    healthy: Reference | None,
    candidates: Iterable[Intervention | str] | None,
    forward: Forward | None,
) -> dict[str, Intervention | None]:
    if candidates is None:
        if healthy is None:
            raise InputError(
                "the default candidates come from a diagnosis, which needs a reference",
                do="pass reference=factory, or candidates=[...]",
            )
        from supple.diagnose.run import run

        report = run(model, pair, loss_fn, optimizer=optimizer, reference=healthy, forward=forward, budget=0)
        candidates = default_candidates(report.prescription)
    arms: dict[str, Intervention | None] = {NOTHING: None}
    for item in candidates:
        if item == RESTART and healthy is None:
            raise InputError('the candidate "restart" needs a reference', do="pass reference=factory")
        if item in (NOTHING, RESTART):
            arms[str(item)] = None
            continue
        made = create(item) if isinstance(item, str) else item
        if not isinstance(made, Intervention):
            raise InputError("a candidate is an intervention or a name", found=type(made).__name__)
        name, number = made.name, 2
        while name in arms:
            name, number = f"{made.name} {number}", number + 1
        arms[name] = made
    return arms


class _Contest:
    """All arms over the same sequences of tasks."""

    def __init__(self, model: nn.Module, optimizer: Optimizers | None, pair: tuple[Any, Any], loss_fn: LossFn,
                 healthy: Reference | None, arms: dict[str, Intervention | None], forward: Forward | None,
                 seed: int, budget: float) -> None:  # fmt: skip
        self.model, self.pair, self.loss_fn, self.forward = model, pair, loss_fn, forward
        self.healthy, self.arms, self.seed, self.budget = healthy, arms, seed, budget
        self.recipe = recipe(model, optimizer)
        self.kind: ProbeKind = self._kind()
        self.started = time.monotonic()
        self.scores: dict[str, list[float]] = {name: [] for name in arms}
        self.seconds: dict[str, float] = dict.fromkeys(arms, 0.0)
        self.failed: dict[str, str] = {}
        self.steps = STEPS

    def _kind(self) -> ProbeKind:
        with torch.no_grad():
            outputs = call(clean_copy(self.model).eval(), self.pair[0], self.forward)
        seen = main_output(outputs)
        if seen is not None and not bool(seen.isfinite().all()):
            raise InputError("the network returns NaN or Inf on the probe", do="repair or restart it first")
        return read_kind(outputs, self.pair[1])

    def run(self) -> Trial:
        self._pace()
        for index in range(PAIRS):
            for name in self.arms:
                if name not in self.failed:
                    self._sequence(name, index)
            longest = sum(self.seconds.values()) / (index + 1)
            if self._clear(index + 1) or time.monotonic() - self.started + longest > self.budget:
                break
        return self._result()

    def _pace(self) -> None:
        """Shorten the course so that the least number of pairs fits into the budget."""
        begun = time.monotonic()
        probe = clean_copy(self.model)
        learn(probe, self._task(0, 0), 10, self.recipe.build(probe), centred=False)
        second_per_step = (time.monotonic() - begun) / 10
        room = self.budget / (LEAST_PAIRS * ROUNDS * len(self.arms) * second_per_step * 1.5)
        self.steps = int(min(STEPS, room))
        if self.steps < LEAST_STEPS:
            needed = self.budget * LEAST_STEPS / max(self.steps, 1)
            raise InputError(
                "the budget is too small for this trial",
                found=f"{self.budget:g} s for {len(self.arms)} candidates, about {self.steps} steps per task",
                do=f"raise budget to {math.ceil(needed)} s, or pass fewer candidates",
            )

    def _task(self, index: int, round_: int) -> ProbeTask:
        seed = self.seed * 20_011 + index * 101 + round_
        return ProbeTask.draw(self.pair, self.kind, self.loss_fn, seed, forward=self.forward)

    def _sequence(self, name: str, index: int) -> None:
        """One arm over one sequence; its score is the mean of the rounds after the first."""
        begun = time.monotonic()
        torch.manual_seed(self.seed + index)
        fresh = name == RESTART and self.healthy is not None
        network = clean_copy(self.healthy.twin(index) if fresh and self.healthy else self.model)
        network = same_trainable(network, self.model)
        optimizers = self.recipe.build(network)
        arm, handle = self.arms[name], None
        scores: list[float] = []
        try:
            if arm is not None:
                handle = arm.attach(network, optimizers, inputs=shrink(self.pair[0], 8))
            for round_ in range(ROUNDS):
                if fresh and round_ and self.healthy is not None:  # a restart is a new network at every task
                    network = same_trainable(clean_copy(self.healthy.twin(index + 97 * round_)), self.model)
                    optimizers = self.recipe.build(network)
                if handle is not None:
                    handle.task(f"probe-{round_}")
                course = learn(network, self._task(index, round_), self.steps, optimizers, centred=False)
                scores.append(DIVERGED if math.isnan(course[-1]) else fmean(course))
        except SuppleError as error:
            self.failed[name] = f"cannot be applied here: {error}"
        finally:
            if handle is not None:
                handle.detach()
        if scores and name not in self.failed:
            self.scores[name].append(fmean(scores[1:]))
            self.seconds[name] += time.monotonic() - begun

    def _clear(self, pairs: int) -> bool:
        ranked = self._ranked()
        return pairs >= LEAST_PAIRS and len(ranked) > 1 and all(self._ahead(ranked[0], x) for x in ranked[1:])

    def _ranked(self) -> list[str]:
        valid = [n for n in self.arms if n not in self.failed]
        return sorted(valid, key=lambda n: -fmean(self.scores[n]))

    def _ahead(self, first: str, second: str) -> bool:
        differences = [a - b for a, b in zip(self.scores[first], self.scores[second], strict=True)]
        return mean_interval(differences)[1] > 0

    def _result(self) -> Trial:
        ranked = self._ranked()
        arms = [self._arm(n) for n in ranked]
        arms += [Arm(n, failed=why) for n, why in self.failed.items()]
        clear = len(ranked) > 1 and self._ahead(ranked[0], ranked[1])
        kinds = {"classes": "accuracy above chance on random labels"}
        score = kinds.get(self.kind.kind, "share of the loss removed on random targets")
        pairs = len(self.scores[NOTHING])
        seconds = time.monotonic() - self.started
        problem = self._problem(arms[0].score, clear)
        return Trial(tuple(arms), clear, pairs, self.steps, seconds, self.recipe.text, score, problem)

    def _problem(self, best: float, clear: bool) -> str:
        if best <= DIVERGED:
            return f"every candidate diverges under {self.recipe.text}"
        if best < TOO_LITTLE and not clear:
            return (
                f"no candidate learns more than {best:.0%} in {self.steps} steps of {self.recipe.text}; "
                "raise budget, or check the learning rate"
            )
        return ""

    def _arm(self, name: str) -> Arm:
        mine, base = self.scores[name], self.scores[NOTHING]
        gain, lo, hi = mean_interval([a - b for a, b in zip(mine, base, strict=True)])
        made = self.arms[name]
        settings = {} if made is None else {k: v for k, v in made.to_dict().items() if k != "name"}
        cost = self.seconds[name] / self.seconds[NOTHING] if self.seconds[NOTHING] else math.nan
        return Arm(name, settings, fmean(mine), gain, lo, hi, cost, tuple(mine))
