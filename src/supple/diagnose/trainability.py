"""Step 0: is there a loss at all? Copies of the network and of fresh twins learn the same new tasks.

Plasticity is measured by learning, never inferred from a rank. The verdict is the ratio of the two learning curves'
means with a paired interval over probe tasks and twins. A loss of a tenth must be found, one of 3 % must not be
claimed, and between the two the nearer one decides: without such a zone no loss near a tenth could ever be told.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from supple.diagnose.copies import OptimizerRecipe, recipe, same_trainable
from supple.diagnose.inputs import check_budget
from supple.diagnose.intervals import ratio_interval
from supple.diagnose.probe_tasks import LossFn, ProbeKind, ProbeTask, learn, read_kind
from supple.diagnose.types import Evidence, Finding
from supple.errors import InputError
from supple.interventions.handle import Optimizers
from supple.observe.copies import clean_copy
from supple.status import Mechanism, Status
from supple.topology.inputs import Forward, call

FEWEST_SAMPLES = 8  # with fewer, batches have one sample
LOST = 0.90  # the definition: a loss of a tenth of the learning is a loss
UNHURT = 0.97  # a loss of less than this is none
MIDDLE = (LOST + UNHURT) / 2
LOOKS = (4, 6, 8, 10, 12, 16, 20)  # numbers of pairs after which the interval is looked at
MIN_STEPS, MAX_STEPS, BLOCK = 60, 2000, 20
SATISFIED = 0.97  # the course ends where the twin has learned this share of what can be learned
TOO_LITTLE = 0.15  # a twin that learned less than this says nothing about the network
STUCK = 0.30  # with old answers in the way, less than this share of the twin's learning is reported


@dataclass(frozen=True)
class Trainability:
    """How well the network learns something new, against fresh twins on the same tasks.

    ``ratio`` is mean score of the network / of its twins, ``cold`` the same without centring (the network
    pays for unlearning its old answers). ``scores`` and ``twin_scores`` are per pair, in [-1, 1].
    """

    status: Status
    reason: str
    ratio: float = math.nan
    lo: float = math.nan
    hi: float = math.nan
    cold: float = math.nan
    scores: tuple[float, ...] = ()
    twin_scores: tuple[float, ...] = ()
    steps: int = 0
    seconds: float = 0.0
    samples: int = 0
    optimizer: str = ""
    score: str = ""

    @property
    def severity(self) -> float | None:
        """Share of the twin's learning that is missing, 0 to 1."""
        return None if math.isnan(self.ratio) else min(1.0, max(0.0, 1.0 - self.ratio))

    def finding(self) -> Finding:
        """The verdict as the first finding of a report."""
        rows: list[Evidence] = []
        if not math.isnan(self.ratio):
            note = f"{self.score}, {self.steps} steps, {len(self.scores)} pairs; {self.optimizer}"
            rows.append(
                Evidence("learning_ratio", self.ratio, self.lo, self.hi, 1.0, MIDDLE, self.samples, note)
            )
            rows.append(
                Evidence(
                    "learning_score",
                    fmean(self.scores),
                    reference=fmean(self.twin_scores),
                    samples=len(self.scores),
                    decides=False,
                )
            )
        if not math.isnan(self.cold):
            rows.append(
                Evidence(
                    "learning_ratio_with_unlearning",
                    self.cold,
                    reference=1.0,
                    decides=False,
                    samples=self.samples,
                    note="old answers not subtracted",
                )
            )
        return Finding(
            Mechanism.PLASTICITY_LOSS,
            self.status,
            self.severity,
            (),
            tuple(rows),
            ADVICE.get(self.status, ""),
            self.reason,
        )


SCORES = {
    "classes": "accuracy above chance on random labels",
    "binary": "share of the loss removed on random binary targets",
    "values": "share of the loss removed on random targets",
}

ADVICE = {
    Status.PRESENT: "find the mechanism below and follow the prescription; supple.trial measures candidates",
    Status.ABSENT: "nothing to repair; keep a Monitor attached to see it coming",
    Status.INCONCLUSIVE: "give step 0 a larger budget",
}  # fmt: skip


def trainability(
    model: nn.Module,
    batch: tuple[Any, Tensor],
    loss_fn: LossFn,
    *,
    twin: Callable[[int], nn.Module] | None,
    optimizer: Optimizers | None = None,
    forward: Forward | None = None,
    budget: float = 30.0,
    samples: int = 256,
    seed: int = 0,
    task: tuple[Any, Tensor] | None = None,
) -> Trainability:
    """Train copies of the network and of fresh twins on fresh random-target tasks, and compare.

    ``score`` = mean over the course of (accuracy - chance) / (1 - chance) on each batch before its update
    (values: share of the loss taken away); ``ratio`` = mean score of the network / mean score of its twins;
    Fieller interval over pairs (one probe task and one twin each), 95 %. The length of the course is set on
    one twin: until it has learned nearly all, or as far as the budget goes.

    Args:
        model: read only; its copies are trained.
        batch: ``(inputs, targets)``; the targets only say what random targets must look like.
        twin: ``twin(i)`` gives the i-th fresh network; None makes the answer NOT MEASURED.
        optimizer: class and settings to re-create; Adam 1e-3 without.
        budget: seconds of wall time, kept to within one course.
        samples: at most this many samples are used.
        seed: keys the tasks and the order of their batches.
        task: ``(inputs, targets)`` of the user's next task, learned in place of random ones; pairs then differ
            in the order of the batches and in the twin.

    Returns:
        PRESENT when the ratio is below 0.935 and its interval below 0.97; ABSENT when the ratio is not below 0.935
        and its interval above 0.90; INCONCLUSIVE where the interval is too wide for either or the twin itself hardly
        learns; INVALID where the network returns NaN or its training diverges.

    Raises:
        InputError: a budget that is no number of seconds.
    """
    budget = check_budget(budget, zero="to leave step 0 out")
    if twin is None:
        return Trainability(
            Status.NOT_MEASURED,
            "no reference: pass reference=factory (a callable that builds a fresh network)",
        )
    if budget == 0:
        return Trainability(Status.NOT_MEASURED, "step 0 was left out (budget=0)")
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        torch.manual_seed(seed)
        race = _Race(
            model, batch if task is None else task, loss_fn, twin, optimizer, forward, budget, samples, seed
        )
        race.given = task is not None
        return race.run()


def judge_ratio(ratio: float, lo: float, hi: float) -> Status:
    """The verdict on a ratio of learning and its interval; a NaN decides nothing.

    >>> str(judge_ratio(0.89, 0.84, 0.94)), str(judge_ratio(0.95, 0.92, 0.98)), str(judge_ratio(0.92, 0.85, 0.99))
    ('present', 'absent', 'inconclusive')
    """
    if ratio < MIDDLE and hi < UNHURT:
        return Status.PRESENT
    return Status.ABSENT if ratio >= MIDDLE and lo > LOST else Status.INCONCLUSIVE


class _Race:
    """One measurement: the recipe, the clock, the pairs so far."""

    def __init__(self, model: nn.Module, batch: tuple[Any, Tensor], loss_fn: LossFn,
                 twin: Callable[[int], nn.Module], optimizer: Optimizers | None, forward: Forward | None,
                 budget: float, samples: int, seed: int) -> None:  # fmt: skip
        self.model, self.batch, self.loss_fn, self.forward = model, batch, loss_fn, forward
        self.make_twin, self.seed, self.samples = twin, seed, min(samples, len(batch[1]))
        self.started, self.budget = time.monotonic(), budget
        self.recipe: OptimizerRecipe = recipe(model, optimizer)
        self.kind: ProbeKind | None = None
        self.given = False  # the batch is the task itself, not a source of random ones
        self.steps, self.pair_seconds = 0, 0.0
        self.mine: list[float] = []
        self.twins: list[float] = []

    @property
    def left(self) -> float:
        return self.budget - (time.monotonic() - self.started)

    def run(self) -> Trainability:
        if self.samples < FEWEST_SAMPLES:
            reason = f"too few probe samples: {self.samples}, at least {FEWEST_SAMPLES} are needed"
            return self._end(Status.NOT_MEASURED, reason)
        outputs = self._outputs()
        if isinstance(outputs, Tensor) and not bool(outputs.isfinite().all()):
            return self._end(Status.INVALID, "the network returns NaN or Inf on the probe")
        try:
            self.kind = read_kind(outputs, self.batch[1])
            return self._pilot() or self._compare()
        except InputError as error:
            return self._end(Status.NOT_MEASURED, str(error))

    def _outputs(self) -> Any:
        with torch.no_grad():
            return call(clean_copy(self.model).eval(), self.batch[0], self.forward)

    def _task(self, index: int) -> ProbeTask:
        assert self.kind is not None  # set before the first task is drawn
        return ProbeTask.draw(self.batch, self.kind, self.loss_fn, self.seed * 10_007 + 31 * index,
                              samples=self.samples, forward=self.forward, fresh=not self.given)  # fmt: skip

    def _twin(self, index: int) -> nn.Module:
        return same_trainable(clean_copy(self.make_twin(index)), self.model)

    def _course(
        self,
        network: nn.Module,
        index: int,
        steps: int,
        *,
        centred: bool = True,
        stop: Callable[[list[float]], bool] | None = None,
    ) -> list[float]:
        made = self.recipe.build(network)
        return learn(network, self._task(index), steps, made, centred=centred, stop=stop)

    def _pilot(self) -> Trainability | None:
        """Set the length of the course on the first twin, whose score then opens the first pair."""
        begun = time.monotonic()
        share = self.budget / (2 * LOOKS[0] + 2)

        def stop(scores: list[float]) -> bool:
            learned = len(scores) >= MIN_STEPS and fmean(scores[-BLOCK:]) >= SATISFIED
            return learned or time.monotonic() - begun > share

        scores = self._course(self._twin(0), 0, MAX_STEPS, stop=stop)
        self.pair_seconds = 2 * (time.monotonic() - begun)
        self.steps = len(scores)
        if math.isnan(scores[-1]):
            return self._end(Status.INCONCLUSIVE, f"the twin itself diverges under {self.recipe.text}")
        if fmean(scores[-BLOCK:]) < TOO_LITTLE:
            return self._end(
                Status.INCONCLUSIVE,
                f"the twin itself learns next to nothing in {self.steps} steps of {self.recipe.text}; "
                "raise budget, or check the learning rate",
            )
        self.twins.append(fmean(scores))
        return None

    def _compare(self) -> Trainability:
        for pair in range(LOOKS[-1]):
            if pair and self.left < self.pair_seconds:
                break
            failed = self._pair(pair)
            if failed:
                return failed
            if pair + 1 in LOOKS and self._status() is not Status.INCONCLUSIVE:
                break
        n = len(self.mine)
        if n < 3:
            reason = f"the budget of {self.budget:g} s allowed only {n} comparison(s); at least 3 are needed"
            return self._end(Status.INCONCLUSIVE, reason)
        return self._verdict(self._status(), self._cold())

    def _pair(self, pair: int) -> Trainability | None:
        if pair:
            scores = self._course(self._twin(pair), pair, self.steps)
            if math.isnan(scores[-1]):
                return self._end(Status.INCONCLUSIVE, f"a twin diverges under {self.recipe.text}")
            self.twins.append(fmean(scores))
        scores = self._course(clean_copy(self.model), pair, self.steps)
        if math.isnan(scores[-1]):
            return self._end(Status.INVALID, f"its training diverges (NaN) under {self.recipe.text}")
        self.mine.append(fmean(scores))
        return None

    def _status(self) -> Status:
        return judge_ratio(*ratio_interval(self.mine, self.twins))

    def _cold(self) -> float:
        """The same with old answers in the way, on as many pairs as the time left allows (at most 3)."""
        mine, twins = [], []
        for pair in range(min(3, len(self.mine))):
            if self.left < self.pair_seconds:
                break
            both = [
                self._course(network, pair, self.steps, centred=False)
                for network in (clean_copy(self.model), self._twin(pair))
            ]
            if any(math.isnan(scores[-1]) for scores in both):
                return math.nan
            mine.append(fmean(both[0]))
            twins.append(fmean(both[1]))
        return fmean(mine) / fmean(twins) if twins and fmean(twins) > 0 else math.nan

    def _verdict(self, status: Status, cold: float) -> Trainability:
        ratio, lo, hi = ratio_interval(self.mine, self.twins)
        reason = (
            f"it learns {ratio:.0%} [{lo:.0%}, {hi:.0%}] of what a fresh twin learns in {self.steps} steps"
        )
        if status is Status.INCONCLUSIVE:
            reason += f"; the interval is too wide to tell after {len(self.mine)} pairs"
        if status is not Status.PRESENT and cold < LOST:
            reason += f"; with its old answers to unlearn first it learns {cold:.0%}"
            if status is Status.ABSENT and cold < STUCK:
                status = Status.INCONCLUSIVE
                reason += ", which leaves it stuck: look at saturation and the size of the outputs"
        return self._end(status, reason, ratio, lo, hi, cold)

    def _end(
        self,
        status: Status,
        reason: str,
        ratio: float = math.nan,
        lo: float = math.nan,
        hi: float = math.nan,
        cold: float = math.nan,
    ) -> Trainability:
        score = "" if self.kind is None else SCORES[self.kind.kind]
        if self.given:
            score = score.replace("random", "the given")
        if self.kind is not None and self.kind.structured:
            score += ", of the main output, with a loss of its own"
        return Trainability(
            status, reason, ratio, lo, hi, cold, tuple(self.mine), tuple(self.twins[: len(self.mine)]),
            self.steps, time.monotonic() - self.started, self.samples, self.recipe.text, score,
        )  # fmt: skip
