"""Small things that several tests of the bench share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from supple.bench import RunSpec, Scene, run
from supple.bench.protocols import DigitsPermuted, DigitsRandomLabels
from supple.records import Record
from supple.store import StoredRun, load


def tiny(tasks: int = 4, method: str = "plain", seed: int = 0, **options) -> RunSpec:
    """Permuted digits, small and short."""
    protocol = DigitsPermuted(tasks=tasks, hidden=(16, 16), batch=64)
    return RunSpec(protocol=protocol, method=method, seed=seed, checkpoint_every=2, **options)


def tiny_labels(tasks: int = 3, method: str = "plain", seed: int = 0, **options) -> RunSpec:
    protocol = DigitsRandomLabels(tasks=tasks, hidden=(16, 16), samples=64, epochs=2)
    return RunSpec(protocol=protocol, method=method, seed=seed, checkpoint_every=2, **options)


def weigh(scene: Scene) -> tuple[Iterable[Record], Mapping[str, Tensor]]:
    """A stand-in for the instruments: norms of the weights and their singular values."""
    rows, arrays = [], {}
    for name, weight in scene.model.named_parameters():
        if weight.dim() == 2:
            layer = name.removesuffix(".weight")
            rows.append(
                Record("weight_norm", float(weight.detach().norm()), layer=layer, variant=scene.instruments)
            )
            arrays[f"spectrum/{layer}"] = torch.linalg.svdvals(weight.detach())
            rows.append(Record("sigma_max", float(arrays[f"spectrum/{layer}"][0]), layer=layer,
                               array=f"spectrum/{layer}"))  # fmt: skip
    return rows, arrays


def fail(scene: Scene) -> tuple[Iterable[Record], Mapping[str, Tensor]]:
    if scene.seed == 1:
        raise ZeroDivisionError("the instrument broke")
    return weigh(scene)


def die(scene: Scene) -> tuple[Iterable[Record], Mapping[str, Tensor]]:
    """Kills its own process whenever it looks at seed 1."""
    if scene.seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return weigh(scene)


def die_once(scene: Scene) -> tuple[Iterable[Record], Mapping[str, Tensor]]:
    """Kills its own process the first time it looks at task 2 of seed 0."""
    mark = Path(os.environ["SUPPLE_TEST_MARK"])
    if scene.task == 2 and scene.seed == 0 and not mark.exists():
        mark.write_text("died")
        os.kill(os.getpid(), signal.SIGKILL)
    return weigh(scene)


def interrupt(scene: Scene) -> tuple[Iterable[Record], Mapping[str, Tensor]]:
    if scene.task == 2:
        raise KeyboardInterrupt
    return weigh(scene)


def content(folder: Path) -> tuple[bytes, bytes, list[bytes], dict[str, bytes]]:
    """All that must be equal between a disturbed and an undisturbed run."""
    stored = load(folder)
    assert stored.done
    state = stored.state()["learner"]
    tensors = [t.numpy().tobytes() for t in state["model"].values()]
    kept = [o["state"].values() for o in state["optimizers"]]
    tensors += [t.numpy().tobytes() for states in kept for s in states for t in s.values()]
    tensors.append(state["rng"].numpy().tobytes())
    arrays = {
        f"{n}/{k}": t.numpy().tobytes() for n in stored.array_names for k, t in stored.arrays(n).items()
    }
    return (folder / "records.jsonl").read_bytes(), (folder / "summary.json").read_bytes(), tensors, arrays


def twice(spec: RunSpec, root: Path) -> tuple[StoredRun, StoredRun]:
    """The same run, broken off at task 2 and gone on with, and undisturbed; their records are equal."""
    with pytest.raises(KeyboardInterrupt):
        run(spec, root / "a", measure=interrupt)
    a, b = (load(run(spec, root / side, measure=weigh)) for side in "ab")
    assert [r.to_dict() for r in a.records] == [r.to_dict() for r in b.records]
    return a, b
