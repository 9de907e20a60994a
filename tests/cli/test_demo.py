"""The whole story, small: every file is there and true; a killed run ends as an undisturbed one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import supple
from supple import store
from supple.cli import main
from supple.cli.demo import Demo

SOURCE = str(Path(supple.__file__).parents[1])
SIZE = ["--tasks", "4", "--seeds", "1", "--budget", "3"]


def command(folder: Path) -> list[str]:
    code = "import sys; from supple.cli import main; sys.exit(main())"
    return [sys.executable, "-c", code, "demo", *SIZE, "--out", str(folder), "--workers", "1"]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An undisturbed demo and what it printed."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    done = subprocess.run(command(folder), capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def records(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("records.jsonl"))}


def test_it_tells_the_story(finished: tuple[Path, str]) -> None:
    folder, text = finished
    for words in (
        "4 tasks, 1 seed", "Plain ReLU network", "Fresh network each task", "Linear model",
        "Over the last task of 4 the plain", "Continual backprop", "C-CHAIN", "loss of plasticity",
    ):  # fmt: skip
        assert words in text, words
    assert max(len(line) for line in text.splitlines() if str(folder) not in line) <= 80
    assert "<svg" in (folder / "report.html").read_text(encoding="utf-8")


def test_the_numbers_are_those_of_the_runs(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    table = json.loads((folder / "report.json").read_text())
    roles = {arm["role"] for arm in table["arms"]}
    assert {"worn", "reference", "linear"} <= roles
    for arm in table["arms"]:
        run = store.load(folder / "digits-permuted" / arm["key"] / "seed-0")
        assert run.done
        online = run.records.select(instrument="online_accuracy").values()
        assert arm["online"] == [online]
        assert arm["late"]["mean"] == pytest.approx(online[-1])
        assert 0.0 <= arm["stability"][0] <= 1.0
    worn = next(a for a in table["arms"] if a["role"] == "worn")
    dead = run_dead(folder / "digits-permuted" / "plain" / "seed-0")
    assert worn["dead"] == [dead]
    assert set(table["spectra"]) == {"fc1", "fc2", "head"}


def run_dead(folder: Path) -> list[float]:
    return store.load(folder).records.select(instrument="dead", layer="*").values()


def test_both_diagnoses_are_kept(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    table = json.loads((folder / "diagnosis.json").read_text())
    assert len(table["worn"]) == len(table["fresh"]) == 1
    for report in (*table["worn"], *table["fresh"]):
        assert {"plasticity_loss", "dead_units", "rank_collapse", "ntk_degeneration"} <= {
            f["mechanism"] for f in report["findings"]
        }
    assert [f["mechanism"] for f in table["fresh"][0]["findings"] if f["status"] == "present"] == []


def test_a_finished_folder_is_reused(finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = finished
    before, page = records(folder), (folder / "report.html").read_bytes()
    started = time.process_time()
    assert main(["demo", *SIZE, "--out", str(folder), "--json", "-"]) == 0
    assert time.process_time() - started < 15
    assert json.loads(capsys.readouterr().out)["tasks"] == 4
    assert records(folder) == before
    assert (folder / "report.html").read_bytes() == page


def test_killed_at_any_moment_it_ends_the_same(finished: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = finished
    expected = records(folder)
    again = tmp_path / "run"
    for moment in ("digits-permuted/plain/seed-0/records.jsonl", "digits-permuted/cbp/seed-0/records.jsonl"):
        process = subprocess.Popen(
            command(again),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(),
            start_new_session=True,
        )
        target, deadline = again / moment, time.monotonic() + 120
        while time.monotonic() < deadline and not (target.exists() and target.stat().st_size > 300):
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert target.exists()
    done = subprocess.run(command(again), capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stderr
    assert records(again) == expected


def test_another_configuration_in_the_folder_is_refused(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = finished
    before = records(folder)
    assert main(["demo", "--tasks", "5", "--seeds", "1", "--out", str(folder)]) == 2
    assert capsys.readouterr().err.count("supple: ") == 1
    assert records(folder) == before


def test_folder_and_command_follow_the_options(tmp_path: Path) -> None:
    assert str(Demo().folder()) == "runs/demo-permuted-150x3"
    assert Demo().command() == "supple demo"
    fast = Demo(fast=True, setting="random-labels", seeds=2)
    assert str(fast.folder()) == "runs/demo-random-labels-30x2"
    assert fast.command() == "supple demo --setting random-labels --fast --seeds 2"
    assert fast.protocol().tasks == 30
    (tmp_path / "file").write_text("")
    assert main(["demo", "--out", str(tmp_path / "file"), "--tasks", "2"]) == 2
