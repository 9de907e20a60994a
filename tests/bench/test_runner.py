"""The runner: all runs, once, whatever happens to the workers."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Literal

import pytest

from supple.bench import Progress, collect, grid, run, run_list, with_engine
from supple.bench.courses import comparison_page
from supple.bench.protocols import DigitsPermuted
from supple.errors import InputError, StoreError
from supple.store import load

from .tiny import content, die, die_once, fail, interrupt, tiny, tiny_labels, weigh


def test_workers_give_what_one_process_gives_and_later_calls_compute_only_the_new(tmp_path: Path) -> None:
    seeds = [tiny(seed=s, measure_every=2) for s in (0, 1)]
    seen: list[Progress] = []
    outcome = run_list(seeds, tmp_path / "pool", workers=2, measure=weigh, progress=seen.append)
    assert outcome.ok
    assert outcome.skipped == 0
    fractions = [p.fraction for p in seen]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert seen[0].seconds_left is None
    assert seen[-1].seconds_left == 0.0
    assert seen[-1].done == seen[-1].total == 2
    here = run_list(seeds, tmp_path / "here", workers=0, measure=weigh)
    assert [content(f) for f in outcome.folders] == [content(f) for f in here.folders]
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "here").rglob("*") if f.is_file()}
    more = [*seeds, tiny(seed=2, measure_every=2), tiny(method="linear", measure_every=2)]
    again = run_list(more, tmp_path / "here", workers=0, measure=weigh)
    assert again.skipped == 2
    assert {f: f.stat().st_mtime_ns for f in before} == before
    assert all(load(f).done for f in again.folders)


def test_a_failing_run_is_reported_with_its_traceback_and_the_others_go_on(tmp_path: Path) -> None:
    specs = [tiny(seed=s, measure_every=2) for s in (0, 1, 2)]
    seen: list[Progress] = []
    outcome = run_list(specs, tmp_path, workers=1, measure=fail, progress=seen.append)
    assert list(outcome.errors) == ["digits-permuted/plain/seed-1"]
    assert "ZeroDivisionError: the instrument broke" in outcome.errors["digits-permuted/plain/seed-1"]
    assert [load(f).done for f in outcome.folders] == [True, False, True]
    assert seen[-1].failed == ("digits-permuted/plain/seed-1",)
    assert seen[-1].fraction == pytest.approx(1.0)
    assert run_list(specs, tmp_path, workers=0, measure=weigh).skipped == 2


def test_a_killed_worker_is_replaced_and_its_run_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUPPLE_TEST_MARK", str(tmp_path / "mark"))
    spec = tiny(tasks=5, measure_every=1)
    outcome = run_list([spec], tmp_path / "a", workers=1, measure=die_once)
    assert (tmp_path / "mark").exists()
    assert outcome.ok
    assert content(outcome.folders[0]) == content(run(spec, tmp_path / "b", measure=weigh))


def test_a_run_that_kills_every_worker_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supple.bench.runner.RETRIES", 1)
    specs = [tiny(seed=s, tasks=2, measure_every=1) for s in (1, 0)]
    outcome = run_list(specs, tmp_path, workers=1, measure=die)
    assert "died 2 times, last with exit code -9" in outcome.errors["digits-permuted/plain/seed-1"]
    assert load(outcome.folders[1]).done


def test_an_interrupt_leaves_a_state_that_resumes(tmp_path: Path) -> None:
    spec = tiny(tasks=4, measure_every=1)
    with pytest.raises(KeyboardInterrupt):
        run_list([spec], tmp_path, workers=0, measure=interrupt)
    assert run_list([spec], tmp_path, workers=0, measure=weigh).ok


def test_the_list_is_checked_before_anything_is_computed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="same folder"):
        run_list([tiny(), tiny(tasks=3)], tmp_path)
    run(tiny(tasks=2, seed=1), tmp_path)
    with pytest.raises(StoreError, match="another configuration"):
        run_list([tiny(tasks=3), tiny(tasks=3, seed=1)], tmp_path, workers=0)
    assert not tiny().folder(tmp_path).exists()
    with pytest.raises(InputError, match="negative"):
        run_list([tiny()], tmp_path, workers=-1)


@pytest.mark.parametrize("name", ["records.jsonl", "summary.json", "manifest.json"])
def test_a_damaged_run_is_neither_skipped_nor_computed_over(tmp_path: Path, name: str) -> None:
    assert run_list([tiny(tasks=2)], tmp_path, workers=0, measure=weigh).ok
    victim = tiny().folder(tmp_path) / name
    victim.write_bytes(victim.read_bytes()[:-20])
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    with pytest.raises(StoreError, match=r"damaged|checksum") as told:
        run_list([tiny(tasks=2, seed=1), tiny(tasks=2)], tmp_path, workers=0, measure=weigh)
    assert "seed-0" in str(told.value)
    assert "remove it to compute the run again" in str(told.value)
    assert {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()} == before
    shutil.rmtree(victim.parent)
    assert run_list([tiny(tasks=2)], tmp_path, workers=0, measure=weigh).ok


def test_runs_of_other_settings_are_not_mixed_into_a_folder(tmp_path: Path) -> None:
    assert run_list([tiny(tasks=2), tiny(tasks=2, method="fresh")], tmp_path, workers=0, measure=weigh).ok
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    with pytest.raises(StoreError, match=r"other settings in this folder; found: tasks 2 and 3"):
        run_list([tiny(tasks=3, method="linear")], tmp_path, workers=0, measure=weigh)
    assert {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()} == before
    run(
        tiny(tasks=3, method="linear"), tmp_path, measure=weigh
    )  # the engine alone knows nothing of its neighbours
    with pytest.raises(StoreError, match="different settings cannot be compared; found: tasks"):
        collect(tmp_path)


def test_one_run_in_two_places_is_not_counted_twice(tmp_path: Path) -> None:
    for place in "ab":
        run(tiny(tasks=2), tmp_path / place, measure=weigh)
    with pytest.raises(StoreError, match="is there twice"):
        collect(tmp_path)


def test_collect_summarises_and_names_what_it_leaves_out(tmp_path: Path) -> None:
    run_list([tiny(method=m, seed=s) for s in (0, 1) for m in ("plain", "fresh")], tmp_path, workers=0)
    with pytest.raises(KeyboardInterrupt):
        run(tiny(seed=5, measure_every=1), tmp_path, measure=interrupt)
    summary = collect(tmp_path)
    assert summary.left_out == {"digits-permuted/plain/seed-5": "not finished"}
    plain, fresh = summary.row("plain"), summary.row("fresh")
    assert plain.seeds == fresh.seeds == (0, 1)
    assert plain.against_fresh.difference.value == pytest.approx(plain.last.value - fresh.last.value)
    assert fresh.against_fresh is None
    text = str(summary)
    assert "left out" in text
    assert max(map(len, text.splitlines())) <= 80
    assert len(summary.to_csv().splitlines()) == 3
    rows = {r["method"]: r for r in csv.DictReader(summary.to_csv().splitlines())}
    found = plain.against_fresh.difference
    assert [float(rows["plain"][f"minus_fresh{s}"]) for s in ("", "_lo", "_hi")] == [
        found.value,
        found.lo,
        found.hi,
    ]
    assert [rows["fresh"][f"minus_fresh{s}"] for s in ("", "_lo", "_hi")] == ["", "", ""]
    assert summary.to_dicts()[0]["last"]["value"] == plain.last.value
    victim = tiny(seed=1).folder(tmp_path) / "records.jsonl"
    victim.write_bytes(victim.read_bytes()[:-10])
    assert "checksum" in collect(tmp_path).left_out["digits-permuted/plain/seed-1"]
    with pytest.raises(StoreError, match="no runs here"):
        collect(tmp_path / "nothing")


@pytest.mark.parametrize("engine", ["loop", "cohort"])
def test_a_diverged_run_is_told_and_no_plain_zero(tmp_path: Path, engine: Literal["loop", "cohort"]) -> None:
    specs = [tiny_labels(method="l2", seed=s, settings={"coef": c}) for s, c in ((0, 1e30), (1, 1e-3))]
    assert run_list(with_engine([*specs, tiny_labels()], engine), tmp_path, workers=0).ok
    summary = collect(tmp_path)
    assert (summary.row("l2").diverged, summary.row("plain").diverged) == (1, 0)
    assert "diverged: l2 on digits-random-labels: loss not finite in 1 of 2 run(s)" in str(summary)
    assert "diverged: plain" not in str(summary)
    assert [r["diverged"] for r in summary.to_dicts()] == [0, 1]
    assert [r["diverged"] for r in csv.DictReader(summary.to_csv().splitlines())] == ["0", "1"]
    (part,) = comparison_page(tmp_path).protocols
    assert [row[1] for row in part.rows if row[0] == "L2"] == ["2, 1 diverged"]


def test_the_cohort_in_workers_gives_what_it_gives_here_and_keeps_methods_on_one_engine(
    tmp_path: Path,
) -> None:
    names = ("plain", "shrink_perturb", "fresh")
    specs = with_engine([tiny(tasks=2, method=m, seed=s) for m in names for s in (0, 1)], "auto")
    assert [s.engine for s in specs] == ["cohort"] * 2 + ["loop"] * 2 + ["cohort"] * 2
    outcome = run_list(specs, tmp_path / "pool", workers=2, measure=weigh)
    here = run_list(specs, tmp_path / "here", workers=0, measure=weigh)
    for a, b in zip(outcome.folders, here.folders, strict=True):
        assert (a / "records.jsonl").read_bytes() == (b / "records.jsonl").read_bytes()
    more = with_engine([tiny(tasks=2, method="plain", seed=s) for s in (0, 1, 2)], "auto")
    assert run_list(more, tmp_path / "here", workers=0, measure=weigh).skipped == 2
    with pytest.raises(StoreError, match="another configuration"):
        run_list([tiny(tasks=2)], tmp_path / "here", workers=0)


def test_a_killed_cohort_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPPLE_TEST_MARK", str(tmp_path / "mark"))
    specs = with_engine([tiny(tasks=5, seed=s, measure_every=1) for s in (0, 1)], "cohort")
    outcome = run_list(specs, tmp_path / "a", workers=1, measure=die_once)
    assert (tmp_path / "mark").exists()
    assert outcome.ok
    whole = run_list(specs, tmp_path / "b", workers=0, measure=weigh)
    for a, b in zip(outcome.folders, whole.folders, strict=True):
        assert (a / "records.jsonl").read_bytes() == (b / "records.jsonl").read_bytes()


def test_grid_orders_by_seed() -> None:
    labels = [s.label for s in grid(DigitsPermuted(tasks=1), ["plain", "fresh"], [0, 1], measure_every=1)]
    assert labels[1] == "digits-permuted/fresh/seed-0"
    assert labels[2] == "digits-permuted/plain/seed-1"
