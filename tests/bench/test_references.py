"""References and sweeps of every protocol: shallow, dropout, batch norm, Muon, hidden boundaries, widths, onset."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from supple.bench import grid, protocols, run_list, statistics, with_engine
from supple.bench.learner import Learner
from supple.bench.methods import METHODS
from supple.bench.protocols import create
from supple.bench.protocols.class_incremental import ClassIncremental
from supple.bench.spec import RunSpec
from supple.bench.statistics import Estimate, mean, onset, paired
from supple.bench.summary import Row, Summary
from supple.cli.main import main
from supple.errors import InputError
from supple.streams import Task


def summary_row(**values: object) -> Row:
    some, pair = mean([0.5, 0.6]), paired([0.5, 0.6], [0.7, 0.9])
    fields = dict.fromkeys(("first", "last", "end", "area", "from_peak"), some)
    about = {"protocol": "digits-permuted", "method": "plain", "seeds": (0, 1), "tasks": 100}
    return Row(**{**about, **fields, "against_fresh": pair, **values})


def _spec(method: str, **values: object) -> RunSpec:
    (spec,) = grid(create("digits-permuted", tasks=2, hidden=(12, 10), batch=32, **values), [method], [0])
    return spec


def test_a_default_run_has_the_manifest_it_always_had() -> None:
    """Runs that were computed before there were these options are still found."""
    found = _spec("plain").manifest()
    assert found["protocol"]["name"] == "digits-permuted"
    assert not {"iid", "hidden_boundaries", "variant"} & set(found["protocol"])


def test_the_shallow_network_has_one_hidden_layer() -> None:
    model = METHODS["shallow"].build(_spec("shallow").protocol, 0)
    assert [tuple(p.shape) for p in model.parameters() if p.dim() == 2] == [(12, 64), (10, 12)]
    image = METHODS["shallow"].build(create("class-sequence-resnet"), 0)
    widths = [p.shape[0] for p in image.parameters() if p.dim() == 2]
    assert len(widths) == 2


def test_batch_norm_and_dropout_are_in_the_network_and_off_when_it_is_judged() -> None:
    kinds = {
        "batchnorm": torch.nn.BatchNorm1d,
        "dropout": torch.nn.Dropout,
    }
    for name, kind in kinds.items():
        learner = Learner(_spec(name))
        assert sum(isinstance(m, kind) for m in learner.model.modules()) == 2
        task = learner.spec.protocol.sequence(0).task(0)
        learner.learn(task)
        assert learner.score(task) == learner.score(task)  # nothing random, nothing that moves
        assert learner.model.training
    assert next(m for m in learner.model.modules() if isinstance(m, torch.nn.Dropout)).p == 0.1
    with pytest.raises(InputError, match="batches of two or more"):
        METHODS["batchnorm"].build(create("digits-permuted", batch=1), 0)


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest() -> None:
    learner = Learner(_spec("cbp", optimizer="muon"))
    muon, adamw = learner.optimizers
    named = {p: n for n, p in learner.model.named_parameters()}
    assert [named[p] for p in muon.param_groups[0]["params"]] == ["fc1.weight", "fc2.weight"]
    rest = {named[p] for p in adamw.param_groups[0]["params"]}
    assert rest == set(named.values()) - {"fc1.weight", "fc2.weight"}
    before = {n: p.detach().clone() for n, p in learner.model.named_parameters()}
    learner.learn(learner.spec.protocol.sequence(0).task(0))
    assert all(not torch.equal(p, before[n]) for n, p in learner.model.named_parameters())
    assert len(Learner(_spec("linear", optimizer="muon")).optimizers) == 1  # no hidden matrix
    (spec,) = with_engine([_spec("plain", optimizer="muon")], "auto")
    assert spec.engine == "loop"


def test_muon_refuses_a_network_that_has_no_hidden_matrix() -> None:
    protocol = create("class-sequence-resnet", optimizer="muon")
    with pytest.raises(InputError, match="hidden matrices, and this network has none"):
        protocol.build_optimizers(METHODS["plain"].build(protocol, 0).parameters())
    assert len(protocol.build_optimizers(METHODS["shallow"].build(protocol, 0).parameters())) == 2


def test_a_muon_run_continues_bit_for_bit() -> None:
    ends = []
    for stop in (False, True):
        learner = Learner(_spec("regrama", optimizer="muon"))
        stream = learner.spec.protocol.sequence(0)
        learner.learn(stream.task(0))
        if stop:
            state = learner.state_dict()
            learner = Learner(_spec("regrama", optimizer="muon"))
            learner.load_state_dict(state)
        learner.start(1)
        learner.learn(stream.task(1))
        ends.append(torch.cat([p.detach().flatten() for p in learner.model.parameters()]))
    assert torch.equal(*ends)


def test_hidden_boundaries_tell_no_method_and_zero_no_head(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    spec = _spec("regrama", hidden_boundaries=True)
    assert spec.manifest()["method_settings"]["every"] == 1000
    assert _spec("regrama").manifest()["method_settings"]["every"] == "task"
    combined = _spec("spectral_regrama", hidden_boundaries=True).manifest()["method_settings"]["parts"]
    assert [p.get("every") for p in combined] == [None, 1000]
    assert (
        _spec("cbp", hidden_boundaries=True).manifest()["method_settings"]
        == _spec("cbp").manifest()["method_settings"]
    )
    learner = Learner(spec)
    monkeypatch.setattr(learner.handle, "task", told.append)
    learner.start(0)
    learner.start(1)
    assert told == []
    assert spec.label == "digits-permuted-hidden-boundaries/regrama/seed-0"
    (cohort,) = with_engine([_spec("plain", hidden_boundaries=True)], "auto")
    assert cohort.engine == "loop"
    monkeypatch.setattr(protocols.base.Protocol, "zero_head", True)
    heads = []
    for hidden in (False, True):
        learner = Learner(_spec("plain", hidden_boundaries=hidden))
        learner.learn(learner.spec.protocol.sequence(0).task(0))
        learner.start(1)
        heads.append(bool(list(learner.model.parameters())[-2].any()))
    assert heads == [False, True]


def test_hidden_boundaries_do_not_show_in_the_outputs() -> None:
    """Which classes there are so far is a boundary told."""
    outputs, task = torch.zeros(4, 100), Task(2, "task-2", torch.zeros(4), torch.zeros(4), seed=0)
    shown = [
        ClassIncremental(hidden_boundaries=hidden).answers(task, outputs).shape[1] for hidden in (False, True)
    ]
    assert shown == [15, 100]


def test_another_optimizer_is_another_run_and_a_table_goes_to_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["bench", "run", "digits-permuted", "--methods", "linear", "--seeds", "1", "--tasks", "2"]
    for more in ([], ["--optimizer", "sgd"], ["--optimizer", "sgd", "--layers", "8"]):
        assert main([*run, *more, "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    report = ["bench", "report", str(tmp_path), "--csv", "-"]
    assert main([*report, "--json", str(tmp_path / "t.json")]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    names = {line.split(",")[0] for line in lines[1:]}
    assert names == {"digits-permuted", "digits-permuted-sgd", "digits-permuted-sgd-layers-8"}
    assert {r["protocol"] for r in json.loads((tmp_path / "t.json").read_text())["rows"]} == names
    assert main([*report, "--json", "-"]) == 2
    assert "cannot both go to stdout" in capsys.readouterr().err
    assert not Path("-").exists()


def test_other_widths_are_other_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["bench", "run", "digits-permuted", "--methods", "plain,fresh", "--seeds", "2", "--tasks", "3"]
    for layers in ("16", "16,16"):
        assert (
            main([*run, "--layers", layers, "--out", str(tmp_path), "--json", str(tmp_path / "t.json")]) == 0
        )
    rows = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert {r["protocol"] for r in rows} == {"digits-permuted-layers-16", "digits-permuted-layers-16-16"}
    assert "onset" in capsys.readouterr().out
    assert main([*run, "--layers", "16,x", "--out", str(tmp_path)]) == 2
    assert "whole numbers" in capsys.readouterr().err
    assert main(["bench", "run", "class-sequence-resnet", "--layers", "16", "--out", str(tmp_path)]) == 2
    assert "with an MLP" in capsys.readouterr().err


def test_onset_of_constructed_courses() -> None:
    tasks = np.arange(100)
    fresh = np.full((4, 100), 0.9)
    noise = 0.01 * np.random.default_rng(0).standard_normal((4, 100))
    falling = 0.9 - 0.2 * (tasks >= 60) + noise
    found = onset(falling, fresh)
    assert found is not None
    assert found.lo <= found.value <= found.hi
    assert abs(found.value - 60) <= 4  # within the running mean over five tasks
    assert onset(fresh + noise, fresh) is None
    dip = fresh - 0.3 * ((tasks > 20) & (tasks < 40))
    assert onset(dip, fresh) is None  # it came back
    half = np.where(np.arange(4)[:, None] < 2, falling, fresh)
    spread = onset(half, fresh)
    assert spread is not None
    assert spread.hi == 100  # some resamples hold no run that falls
    with pytest.raises(InputError, match="as many runs"):
        onset(falling, fresh[:3])


def test_an_onset_says_whether_it_may_never_come() -> None:
    row = summary_row(onset=Estimate(60.0, 55.0, 100.0, 4))
    assert row.lost_from == "60 [55, never]"
    assert summary_row(onset=Estimate(60.0, 55.0, 63.0, 4)).lost_from == "60 [55, 63]"
    assert summary_row(onset=None).lost_from == "never"
    table = Summary([row, summary_row(onset=None, method="redo")])
    assert "onset of plain: task 60 [55, never]" in str(table)
    rows = csv.DictReader(table.to_csv().splitlines())
    assert [[r["onset"], r["onset_lo"], r["onset_hi"]] for r in rows] == [
        ["60.0", "55.0", "100.0"],
        ["never", "", ""],
    ]


def test_all_new_methods_run_to_the_end(tmp_path: Path) -> None:
    specs = grid(create("digits-permuted", tasks=2, hidden=(12,)), ["shallow", "batchnorm", "dropout"], [0])
    outcome = run_list(with_engine(specs, "auto"), tmp_path, workers=0)
    assert outcome.ok, outcome.errors


@pytest.mark.parametrize("tasks", [1, 7, 40, 99])
def test_onset_equals_its_definition(tasks: int) -> None:
    """Every task in turn: is each mean of the coming twentieth, from here to the end, below the margin?"""
    draw = np.random.default_rng(tasks)
    fallen = 0
    for _ in range(60):
        d = draw.normal(-0.08, 0.06, (3, tasks)) * (np.arange(tasks) >= draw.integers(tasks))
        course, width = d.mean(0), min(max(2, tasks // 20), tasks)
        means = [course[t : t + width].mean() for t in range(tasks - width + 1)]
        wanted = next((t for t in range(len(means)) if all(m < -0.05 for m in means[t:])), None)
        found = onset(0.9 + d, np.full((3, tasks), 0.9))
        assert (None if found is None else found.value) == wanted
        if found is not None:
            fallen += 1
            assert found.lo <= found.value <= found.hi <= tasks
            assert {found.lo, found.hi} <= set(range(tasks + 1))
    assert fallen > 5


@pytest.mark.parametrize("tasks", [10, 40, 100, 800])
def test_one_bad_task_at_the_end_is_no_onset(tasks: int) -> None:
    fresh = np.full((3, tasks), 0.9)
    bad = fresh.copy()
    bad[:, -1] -= 0.09
    assert onset(bad, fresh) is None
    bad[:, -max(2, tasks // 20) :] = 0.8
    found = onset(bad, fresh)
    assert found is not None
    assert tasks - tasks // 10 - 2 <= found.value <= tasks - 2


def test_equal_noisy_courses_seldom_have_an_onset() -> None:
    draw = np.random.default_rng(0)
    d = draw.normal(
        0, 0.085, (300, 1, 100)
    )  # a task's difference of two means over three seeds with deviation 0.1
    assert sum(onset(0.9 + row, np.full((1, 100), 0.9)) is not None for row in d) < 0.12 * len(d)


def test_the_ends_of_an_onset_are_tasks_that_occurred(monkeypatch: pytest.MonkeyPatch) -> None:
    """With few resamples a quantile lies between two of them, and half of "never" is no task."""
    monkeypatch.setattr(statistics, "RESAMPLES", 4)
    d = -0.2 * (np.arange(100) >= np.array([[20], [50], [80], [200]]))
    ends = [onset(0.9 + d, np.full((4, 100), 0.9), seed=seed) for seed in range(10)]
    assert all(e is not None and {e.lo, e.hi} <= set(range(101)) for e in ends)
