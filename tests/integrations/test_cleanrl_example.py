"""The example "five lines in your CleanRL file": it runs, acts, and its five lines can be deleted."""

from __future__ import annotations

import re
import types
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("gymnasium", minversion="1.1")
pytestmark = pytest.mark.rl

SOURCE = (Path(__file__).parents[2] / "examples" / "cleanrl_ppo.py").read_text(encoding="utf-8")
SHORT = ["--total-timesteps", "512", "--steps-per-task", "256", "--num-envs", "2", "--num-steps", "64"]
MARKED = re.compile(r"^.*# supple \d.*\n", re.MULTILINE)


def run(source: str, *more: str) -> Any:
    module = types.ModuleType("example")
    exec(compile(source, "cleanrl_ppo.py", "exec"), vars(module))
    return module.main(module.arguments([*SHORT, "--diagnosis-seconds", "0.2", *more]))


def same(one: Any, other: Any) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_five_lines_observe_and_repair_and_can_be_deleted(capsys: pytest.CaptureFixture[str]) -> None:
    lines = MARKED.findall(SOURCE)
    assert [int(re.search(r"# supple (\d)", x)[1]) for x in lines] == [1, 2, 3, 4, 5]  # type: ignore[index]
    without = run(MARKED.sub("", SOURCE))
    assert "Supple" not in capsys.readouterr().out
    observed = run(SOURCE, "--every", "1000000")
    text = capsys.readouterr().out
    assert "task 0: mean return" in text
    assert "Loss of plasticity" in text
    assert same(without, observed)
    repaired = run(SOURCE.replace("ReGraMa(every", "ReGraMa(tau=1.0, every"), "--every", "5")
    assert not same(without, repaired)
