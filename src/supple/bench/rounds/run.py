"""One arm of one seed: a byte-level GPT over languages in one order, and what is written down of every round."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from supple.bench.lab.run import lines
from supple.bench.networks import keyed
from supple.diagnose.types import plain
from supple.errors import InputError
from supple.functional import effective_rank, singular_values
from supple.interventions import create
from supple.models import GPT
from supple.nn import svf_
from supple.observe.probe import observe
from supple.streams import generator
from supple.streams.data.languages import languages

RECORDS = "rounds.jsonl"
RATE, BATCH, CONTEXT, DIM, DEPTH, HEADS = 3e-3, 16, 64, 64, 2, 4
SVF_RATE = 3e-2  # of the singular-value vectors, which are few and start at 1
BLOCK = 10  # steps whose loss is averaged
#: last part of a layer's name -> what it is called here
PLACES = {
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "out": "o", "up": "up", "down": "down",
}  # fmt: skip
END = 2  # blocks at the end of a round that are its end loss


@dataclass(frozen=True)
class Arm:
    """``start``: "go on" with the last round's model, "restart" from that of round 0, or "fresh"."""

    name: str
    start: str = "go on"
    attention: str = "softmax"
    intervention: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    svf: bool = False


ARMS: tuple[Arm, ...] = (
    Arm("full"),
    Arm("fresh", "fresh"),
    Arm("restart", "restart"),
    Arm("l2init", intervention="L2Init", settings={"coef": 1e-3}),
    Arm("spectral", intervention="SpectralRegularization", settings={"coef": 1e-3}),
    Arm("regrama", intervention="ReGraMa", settings={"every": "task", "tau": 0.1}),
    Arm("shrink_perturb", intervention="ShrinkAndPerturb", settings={"every": "task", "shrink": 0.8}),
    Arm("svf", svf=True),
    Arm("forgetting", attention="forgetting"),
    Arm("forgetting_fresh", "fresh", attention="forgetting"),
)


@dataclass(frozen=True)
class Length:
    seeds: int
    rounds: int
    steps: int


LENGTHS: Mapping[str, Length] = {
    "tiny": Length(1, 3, 20), "small": Length(3, 16, 120), "day": Length(5, 60, 150),
}  # fmt: skip


class Course:
    """The languages of one seed, in one order for every arm."""

    def __init__(self, seed: int, length: Length) -> None:
        self.seed, self.length = seed, length
        texts = languages()
        names = list(texts)
        order = torch.randperm(len(names), generator=generator(seed, "languages")).tolist()
        if length.rounds > len(names):
            raise InputError("more rounds than languages", found=f"{length.rounds} of {len(names)}")
        self.names = [names[i] for i in order[: length.rounds]]
        self.texts = [texts[n] for n in self.names]

    def batch(self, turn: int, key: str, count: int = BATCH) -> tuple[Tensor, Tensor]:
        """(B, T) bytes and the bytes that follow them."""
        text = self.texts[turn]
        g = generator(self.seed, "batch", turn, key)
        at = torch.randint(len(text) - CONTEXT - 1, (count,), generator=g)
        window = text[at[:, None] + torch.arange(CONTEXT + 1)]
        return window[:, :-1], window[:, 1:]


def loss_fn(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def run_arm(arm: Arm, course: Course) -> dict[str, Any]:
    """All rounds of one arm; a loss that is not finite ends it."""

    def make(turn: int) -> GPT:
        def build() -> GPT:
            return GPT(256, dim=DIM, depth=DEPTH, heads=HEADS, context=CONTEXT, attention=arm.attention)

        return keyed(build, course.seed, "gpt", turn)  # type: ignore[return-value]

    model = make(0)
    first: dict[str, Tensor] = {}
    learner = _Learner(arm, model, course, adapt=False)
    rows: list[dict[str, Any]] = []
    for turn in range(course.length.rounds):
        if turn and arm.start == "fresh":
            learner = _Learner(arm, model := make(turn), course, adapt=False)
        elif turn and arm.start == "restart":
            model.load_state_dict(first)
            learner = _Learner(arm, model, course, adapt=False)
        elif turn == 1 and arm.svf:
            learner = _Learner(arm, model, course, adapt=True)
        blocks = learner.learn(turn)
        rows.append({"language": course.names[turn], "blocks": blocks, **_state(model, course, turn)})
        if turn == 0:
            first = copy.deepcopy(model.state_dict())
        if not all(b == b for b in blocks):
            break
    return plain({"arm": arm.name, "seed": course.seed, "rounds": rows})


class _Learner:
    """Model, optimizer, intervention."""

    def __init__(self, arm: Arm, model: GPT, course: Course, adapt: bool) -> None:
        self.model, self.course = model, course
        if adapt:
            self.adapter = svf_(model, targets=["qkv", "out", "up", "down"])
            self.optimizer = torch.optim.AdamW(self.adapter.parameters(), lr=SVF_RATE, weight_decay=0.0)
        else:
            self.optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
        self.handle = None
        if arm.intervention:
            example = course.batch(0, "example", 2)[0]
            made = create(arm.intervention, **arm.settings)
            self.handle = made.attach(model, self.optimizer, inputs=example)

    def learn(self, turn: int) -> list[float]:
        """One round: the loss of every block of steps, before each update."""
        if turn and self.handle is not None:
            self.handle.task(f"round-{turn}")
        losses: list[float] = []
        for step in range(self.course.length.steps):
            x, y = self.course.batch(turn, f"step-{step}")
            loss = loss_fn(self.model(x), y)
            losses.append(float(loss.detach()))
            if losses[-1] != losses[-1]:
                break
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return [round(fmean(losses[i : i + BLOCK]), 5) for i in range(0, len(losses), BLOCK)]


@torch.no_grad()
def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> float:
    model.eval()
    found = float(loss_fn(model(batch[0]), batch[1]))
    model.train()
    return found


def _state(model: GPT, course: Course, turn: int) -> dict[str, Any]:
    """What is measured at the end of a round: memory of round 0, ranks, and at times units."""
    found: dict[str, Any] = {
        "first_language": _loss(model, course.batch(0, "held", 64)),
        "ranks": _ranks(model),
    }
    if turn in (0, course.length.rounds - 1):
        seen = observe(model, course.batch(turn, "probe", 16), loss_fn, instruments=["dead", "grama"])
        found["dead"] = seen.value("dead")
        found["grama"] = seen.value("grama", "*", "preactivation,tau=0.025")
    return found


def _ranks(model: GPT) -> dict[str, float]:
    """Effective rank over the number of directions, mean over blocks: queries, keys, values, outputs, MLP."""
    by_part: dict[str, list[float]] = {}
    for block in model.blocks:
        for name, weight in _weights(block):
            values = singular_values(weight.detach())
            by_part.setdefault(name, []).append(float(effective_rank(values)) / len(values))
    return {name: round(fmean(found), 5) for name, found in by_part.items()}


def _weights(block: nn.Module) -> Sequence[tuple[str, Tensor]]:
    table = {n.rpartition(".weight")[0]: p for n, p in block.named_parameters() if p.dim() == 2}
    found: list[tuple[str, Tensor]] = []
    for name, weight in table.items():
        last = name.rpartition(".")[2]
        if last == "qkv":
            found += list(zip("qkv", weight.chunk(3), strict=True))
        elif last in PLACES:
            found.append((PLACES[last], weight))
    return found


def run_rounds(
    folder: Path, preset: str = "small", *, say: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """Every arm and seed of a preset that ``folder`` has not; returns all records in it.

    Raises:
        InputError: an unknown preset, or no languages, with what to put where.
    """
    if preset not in LENGTHS:
        raise InputError(f"unknown preset {preset!r} of lm-rounds", do=f"choose one of {', '.join(LENGTHS)}")
    length = LENGTHS[preset]
    courses = [Course(seed, length) for seed in range(length.seeds)]
    folder.mkdir(parents=True, exist_ok=True)
    done = lines(folder / RECORDS)
    known = {(r["arm"], r["seed"]) for r in done}
    todo = [(a, c) for c in courses for a in ARMS if (a.name, c.seed) not in known]
    for index, (arm, course) in enumerate(todo, 1):
        record = run_arm(arm, course)
        with (folder / RECORDS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
        done.append(record)
        say(f"{index}/{len(todo)} {arm.name}, seed {course.seed}")
    return done
