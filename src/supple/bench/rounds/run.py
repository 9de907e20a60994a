"""One arm of one seed: a language model over texts in one order, and what is written down of every round."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from supple.bench.lab.run import lines
from supple.bench.rounds.arms import ARMS, LENGTHS, Arm, Length
from supple.bench.rounds.bases import SMALL, Base
from supple.bench.rounds.course import Course, Identification
from supple.bench.rounds.learner import Learner
from supple.bench.rounds.measure import Eye, blocks, steps_to_shares
from supple.bench.rounds.sources import LANGUAGES, Folder
from supple.diagnose.types import plain
from supple.errors import InputError, SuppleError

RECORDS = "rounds.jsonl"
#: name of an experiment -> its rounds, the file of its records
KINDS: Mapping[str, tuple[type[Course], str]] = {
    "lm-rounds": (Course, RECORDS), "lm-classification": (Identification, "classification.jsonl"),
}  # fmt: skip
__all__ = [
    "ARMS",
    "KINDS",
    "LENGTHS",
    "RECORDS",
    "Arm",
    "Course",
    "Length",
    "folder_of",
    "run_arm",
    "run_rounds",
]


def run_arm(arm: Arm, course: Course) -> dict[str, Any]:
    """All rounds of one arm; a loss that is not finite ends it."""
    base = course.base
    model = base.make(course.seed, 0, arm.attention)
    first: dict[str, Tensor] = {}
    learner = Learner(arm, model, course, 0)
    eye = Eye(course)
    rows: list[dict[str, Any]] = []
    for turn in range(course.length.rounds):
        if turn and arm.start == "fresh":
            model = base.make(course.seed, turn, arm.attention)
            learner = Learner(arm, model, course, turn)
        elif turn and arm.start == "restart":
            model.load_state_dict(first)
            learner = Learner(arm, model, course, turn)
        elif turn and arm.adapter and (turn == base.adapt_from or arm.adapter == "lora"):
            learner = Learner(arm, model, course, turn)
        losses = learner.learn(turn)
        entropy = course.entropy(turn)
        rows.append(
            {
                "language": course.names[turn],
                "blocks": blocks(losses),
                "entropy": entropy,
                "steps_to": steps_to_shares(losses, entropy),
                **eye.look(learner, turn),
            }
        )
        if turn == 0 and arm.start == "restart":
            first = copy.deepcopy(model.state_dict())
        if not all(loss == loss for loss in losses):
            break
    return plain({"arm": arm.name, "seed": course.seed, "steps": course.length.steps, "rounds": rows})


def folder_of(
    out: Path, preset: str, rounds: int | None = None, model: Path | None = None, data: Path | None = None,
    kind: str = "lm-rounds",
) -> Path:  # fmt: skip
    """Where the records of a preset lie; other rounds, models and texts have folders of their own."""
    name = preset if rounds is None else f"{preset}-{rounds}-rounds"
    for other in (data, model):
        name += "" if other is None else f"-{other.resolve().name}"
    return out / kind / name


def run_rounds(
    folder: Path,
    preset: str = "small",
    *,
    say: Callable[[str], None] = lambda _: None,
    arms: Sequence[str] | None = None,
    rounds: int | None = None,
    model: Path | None = None,
    data: Path | None = None,
    kind: str = "lm-rounds",
) -> list[dict[str, Any]]:
    """Every arm and seed of a preset that ``folder`` has not; returns all records in it.

    Args:
        arms: names of some; ``fresh`` must be among them, against which the others are held.
        rounds: in place of the preset's.
        model: a local ``transformers`` folder of a causal language model to begin with.
        data: a folder of texts, one file a domain (see `supple.streams.data.texts`), in place of the languages.
        kind: ``"lm-rounds"`` foretells tokens, ``"lm-classification"`` tells texts apart.

    Raises:
        InputError: an unknown preset or arm, no ``fresh``, no texts, a folder that holds no causal
            language model, or records of another model or of other texts.
    """
    if preset not in LENGTHS:
        raise InputError(f"unknown preset {preset!r} of {kind}", do=f"choose one of {', '.join(LENGTHS)}")
    if rounds is not None and rounds < 2:
        raise InputError(f"{kind} needs two rounds or more", found=rounds)
    length = LENGTHS[preset] if rounds is None else replace(LENGTHS[preset], rounds=rounds)
    source = LANGUAGES if data is None else Folder(data)
    base = _base(model)
    chosen = _chosen(arms, base)
    course_type, name = KINDS[kind]
    done = lines(folder / name)
    for key, what, mine in (("model", "another model", base), ("data", "other texts", source)):
        if any(r.get(key, {}).get("fingerprint", "") != mine.fingerprint for r in done):
            raise InputError(
                f"the folder has records of {what}", where=str(folder), do="choose another --out"
            )
    courses = [course_type(seed, length, base, source) for seed in range(length.seeds)]
    folder.mkdir(parents=True, exist_ok=True)
    known = {(r["arm"], r["seed"]) for r in done}
    todo = [(a, c) for c in courses for a in chosen if (a.name, c.seed) not in known]
    for index, (arm, course) in enumerate(todo, 1):
        record = _record(arm, course)
        with (folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
        done.append(record)
        refused = f", refused: {record['refused']}" if "refused" in record else ""
        say(f"{index}/{len(todo)} {arm.name}, seed {course.seed}{refused}")
    return done


def _record(arm: Arm, course: Course) -> dict[str, Any]:
    record: dict[str, Any]
    try:
        record = run_arm(arm, course)
    except SuppleError as error:  # a remedy may not fit a network from elsewhere; the other arms go on
        if not course.base.name:
            raise
        record = {"arm": arm.name, "seed": course.seed, "rounds": [], "refused": str(error)}
    for key, of in (("model", course.base), ("data", course.source)):
        if of.name:
            record[key] = {"name": of.name, "fingerprint": of.fingerprint}
    return record


def _base(model: Path | None) -> Base:
    if model is None:
        return SMALL
    from supple.bench.rounds.pretrained import Pretrained

    return Pretrained(model)


def _chosen(names: Sequence[str] | None, base: Base) -> list[Arm]:
    """Arms by name, or all that the base has the attention of."""
    fitting = [a for a in ARMS if a.attention in base.attentions]
    if names is None:
        return fitting
    known = {a.name: a for a in fitting}
    if unknown := [n for n in names if n not in known]:
        raise InputError(f"unknown arm {unknown[0]!r}", do=f"choose from {', '.join(known)}")
    needed = {"forgetting_fresh" if known[n].attention == "forgetting" else "fresh" for n in names}
    if missing := needed - set(names):
        raise InputError("the arms are held against fresh models", do=f"add {sorted(missing)[0]}")
    return [a for a in fitting if a.name in names]
