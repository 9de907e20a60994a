"""What is kept of earlier tasks: rows against a network asked by hand, and who is asked."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from supple.bench import RunSpec, collect, methods, run, run_list
from supple.bench.kept import LOOK_BACK, forgotten, looked_back, stability
from supple.bench.protocols import create
from supple.store import load

from .tiny import tiny, tiny_labels, twice, weigh


def test_rows_are_what_the_worn_network_answers(tmp_path: Path) -> None:
    spec = tiny(tasks=4)
    stored = load(run(spec, tmp_path))
    model = methods.get("plain").build(spec.protocol, 0)
    model.load_state_dict(stored.state()["learner"]["model"])
    ends = stored.records.select(instrument="end_accuracy").values()
    falls = []
    for i in range(3):
        x, y = spec.protocol.stream(0).task(i).judged
        share = float((model(x).argmax(-1) == y).double().mean())
        (row,) = stored.records.select(instrument="task_accuracy", variant=f"task-{i}")
        assert (row.value, row.task) == (pytest.approx(share), "task-3")
        falls.append(ends[i] - share)
        assert stored.records.select(instrument="forgetting", variant=f"task-{i}").values() == [
            pytest.approx(falls[-1])
        ]
    assert forgotten(stored.records) == pytest.approx(sum(falls) / 3)
    kept = stored.records.select(instrument="task_accuracy").values()
    assert stability(stored.records) == pytest.approx(sum(kept) / 3)
    assert forgotten(stored.records) > 0  # a new permutation is learned over the old one


def test_looks_are_after_measured_tasks_too_and_stability_is_the_last(tmp_path: Path) -> None:
    records = load(run(tiny(tasks=5, measure_every=2), tmp_path, measure=weigh)).records
    pooled = [r for r in records if r.instrument == "forgetting" and not r.variant]
    assert [(r.task, r.samples) for r in pooled] == [("task-1", 1), ("task-3", 3), ("task-4", 4)]
    last = [r.value for r in records if r.instrument == "task_accuracy" and r.task == "task-4"]
    assert stability(records) == pytest.approx(sum(last) / 4)
    assert forgotten(records) == pytest.approx(sum(r.value for r in pooled) / 3)


def test_a_broken_off_run_looks_back_as_an_undisturbed_one(tmp_path: Path) -> None:
    a, _ = twice(tiny_labels(tasks=5, measure_every=1), tmp_path)
    assert not math.isnan(stability(a.records))


def test_a_long_run_asks_a_few_tasks_and_the_control_and_agents_none() -> None:
    spec = tiny(tasks=2000)
    found = looked_back(spec, 1999)
    assert len(found) == len(set(found)) == LOOK_BACK
    assert (found[0], found[-1]) == (0, 1998)
    assert looked_back(spec, 1000) == []
    assert looked_back(tiny(tasks=1), 0) == []
    control = dataclasses.replace(spec.protocol, iid=True)
    assert looked_back(RunSpec(protocol=control, method="plain", seed=0), 1999) == []
    agents = RunSpec(protocol=create("cartpole-offsets"), method="plain", seed=0)
    assert looked_back(agents, agents.protocol.tasks - 1) == []


def test_the_summary_has_both_and_says_what_older_runs_lack(tmp_path: Path) -> None:
    specs = [tiny(tasks=3, method=m, seed=s) for m in ("plain", "fresh") for s in (0, 1)]
    run_list(specs, tmp_path, workers=0)
    row = collect(tmp_path).row("plain")
    records = [load(s.folder(tmp_path)).records for s in specs[:2]]
    assert row.kept.value == pytest.approx(sum(map(stability, records)) / 2)
    assert row.forgetting.value == pytest.approx(sum(map(forgotten, records)) / 2)
    assert row.to_dict()["kept"]["value"] == row.kept.value
    head, line, _ = collect(tmp_path).to_csv().splitlines()
    assert dict(zip(head.split(","), line.split(","), strict=True))["kept"] == str(row.kept.value)
    single = run(tiny(tasks=1), tmp_path / "one").parents[2]
    assert collect(single).row("plain").kept is None
    assert collect(single).to_dicts()[0]["kept"] is None
