"""The example "fine-tuning in rounds" runs on its tiny model, with and without its intervention."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

EXAMPLE = Path(__file__).parents[2] / "examples" / "trainer_rounds.py"


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("trainer_rounds", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rounds_are_watched_scanned_and_repaired(
    example: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--rounds", "2", "--steps", "6", "--out"]
    plain, report = example.main(example.arguments([*given, str(tmp_path / "plain")]))
    text = capsys.readouterr().out
    assert "round 1: loss" in text
    assert report.runs == ("round-0", "round-1")
    assert report.failures == ()
    repaired, _ = example.main(example.arguments([*given, str(tmp_path / "repaired"), "--repair"]))
    vectors = [torch.nn.utils.parameters_to_vector(m.parameters()) for m in (plain, repaired)]
    assert bool(vectors[0].isfinite().all())
    assert not torch.equal(*vectors)
