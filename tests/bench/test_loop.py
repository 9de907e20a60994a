"""The loop engine: what it records is what happened, and a resumed run equals an undisturbed one."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from supple.bench import methods, run
from supple.bench.learner import Learner
from supple.errors import InputError, StoreError
from supple.store import load

from .tiny import content, interrupt, tiny, tiny_labels, weigh


def reference(spec) -> tuple[list[float], list[float]]:
    """The same run written out plainly: accuracy before each update, then after the task."""
    protocol = spec.protocol
    model = methods.get(spec.method).build(protocol, spec.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=protocol.lr)
    online, end = [], []
    for task in protocol.stream(spec.seed):
        hits = []
        for x, y in task.batches(protocol.batch, protocol.epochs):
            with torch.no_grad():
                hits.append((model(x).argmax(1) == y).float().mean().item())
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        online.append(float(np.mean(hits)))
        with torch.no_grad():
            end.append((model(task.inputs).argmax(1) == task.targets).float().mean().item())
    return online, end


def test_accuracies_equal_the_plain_loop(tmp_path: Path) -> None:
    spec = tiny(tasks=3)
    records = load(run(spec, tmp_path)).records
    online, end = reference(spec)
    # fused Adam rounds differently, so a few of 1,797 answers may differ
    assert records.select(instrument="online_accuracy").values() == pytest.approx(online, abs=0.01)
    assert records.select(instrument="end_accuracy").values() == pytest.approx(end, abs=0.01)
    assert records.select(instrument="online_accuracy")[0].value == pytest.approx(online[0], abs=0.002)
    assert [r.step for r in records.select(instrument="online_loss")] == [28, 56, 84]
    assert records[0].task == "task-0"
    assert records[0].run == "plain/seed-0"


@pytest.mark.parametrize("method", ["plain", "fresh", "linear", "layernorm"])
@pytest.mark.parametrize("make", [tiny, tiny_labels])
def test_an_interrupted_run_ends_like_an_undisturbed_one(tmp_path: Path, method: str, make) -> None:
    spec = make(tasks=5, method=method, measure_every=1)
    with pytest.raises(KeyboardInterrupt):
        run(spec, tmp_path / "a", measure=interrupt)
    assert not load(spec.folder(tmp_path / "a")).done
    torch.manual_seed(99)  # another history of the process must not matter
    disturbed = run(spec, tmp_path / "a", measure=weigh)
    torch.manual_seed(7)
    assert content(disturbed) == content(run(spec, tmp_path / "b", measure=weigh))


def test_a_run_moves_neither_random_state_nor_threads(tmp_path: Path) -> None:
    torch.manual_seed(3)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    run(tiny(tasks=1), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_measuring_does_not_change_the_training(tmp_path: Path) -> None:
    seen = load(run(tiny(measure_every=1), tmp_path / "a", measure=weigh))
    unseen = load(run(tiny(), tmp_path / "b"))
    a, b = (s.state()["learner"]["model"] for s in (seen, unseen))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_measured_tasks_bundles_and_arrays(tmp_path: Path) -> None:
    spec = tiny(tasks=7, measure_every=3)
    assert spec.measured() == [0, 2, 5, 6]
    stored = load(run(spec, tmp_path, measure=weigh))
    norms = stored.records.select(instrument="weight_norm", layer="fc1")
    assert [r.task for r in norms] == ["task-0", "task-2", "task-5", "task-6"]
    assert [r.variant for r in norms] == ["standard", "economy", "economy", "standard"]
    assert stored.array_names == ["task-0", "task-6"]
    for row in stored.records.select(instrument="sigma_max"):
        if row.array:
            file, key = row.array.split(":")
            assert stored.arrays(file)[key][0].item() == pytest.approx(row.value)
        else:
            assert row.task in ("task-2", "task-5")


def test_methods_of_one_seed_start_from_the_same_network() -> None:
    spec = tiny()
    plain, fresh = (methods.get(n).build(spec.protocol, 0) for n in ("plain", "fresh"))
    later = methods.get("fresh").build(spec.protocol, 0, task=1)
    assert torch.equal(plain.fc1.weight, fresh.fc1.weight)
    assert not torch.equal(fresh.fc1.weight, later.fc1.weight)
    bound = math.sqrt(6 / 64)
    assert float(plain.fc1.weight.detach().abs().max()) == pytest.approx(bound, rel=0.02)
    assert float(plain.fc1.bias.detach().abs().max()) == 0


def test_the_fresh_reference_forgets_everything() -> None:
    learner = Learner(tiny(method="fresh"))
    stream = learner.spec.protocol.stream(0)
    learner.learn(stream.task(0))
    learner.start(1)
    built = methods.get("fresh").build(learner.spec.protocol, 0, task=1)
    assert all(torch.equal(a, b) for a, b in zip(learner.model.parameters(), built.parameters(), strict=True))
    assert not learner.optimizers[0].state


def test_a_diverged_network_is_never_a_good_number(tmp_path: Path) -> None:
    spec = tiny()
    spec = dataclasses.replace(spec, protocol=dataclasses.replace(spec.protocol, optimizer="sgd", lr=1e30))
    records = load(run(spec, tmp_path)).records
    last = records.last(instrument="online_loss")
    assert last.status == "invalid"
    assert "not finite" in last.note
    online = records.last(instrument="online_accuracy")
    assert online.value == 0.0
    assert "count as wrong" in online.note


def test_another_configuration_in_the_folder_is_refused(tmp_path: Path) -> None:
    run(tiny(tasks=2), tmp_path)
    with pytest.raises(StoreError, match=r"protocol.tasks: 2 -> 3"):
        run(tiny(tasks=3), tmp_path)


def test_progress_is_monotone_and_ends_at_one(tmp_path: Path) -> None:
    seen: list[float] = []
    run(tiny(), tmp_path, progress=seen.append)
    assert seen == [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("change", "says"),
    [({"method": "magic"}, "unknown method 'magic'; do: choose from plain"), ({"seed": -1}, "negative"),
     ({"probe": 0}, "at least 1")],
)  # fmt: skip
def test_impossible_specs_are_refused(change: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        tiny(**change)


def test_a_long_task_is_counted_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Learner(tiny())
    result = whole.learn(whole.spec.protocol.stream(0).task(0))
    monkeypatch.setattr("supple.bench.learner.CHUNK", 5)
    pieces = Learner(tiny())
    again = pieces.learn(pieces.spec.protocol.stream(0).task(0))
    assert again.online == result.online
    assert again.samples == result.samples == 28 * 64
    assert again.loss == pytest.approx(result.loss, rel=1e-12)
