"""What the user's own module may do wrong: one line and exit status 2, since 1 means that something was found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from supple.cli import main

MODULE = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 5))

def probe():
    return torch.randn(64, 16), torch.randint(5, (64,))

def doubtful():
    assert False, "the data is not there"

def leaves():
    raise SystemExit(1)

def unnamed():
    return nowhere
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "their_net.py").write_text(MODULE)
    (tmp_path / "broken_net.py").write_text("import torch\nmodel = {}['gone']\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "their_net", raising=False)
    torch.manual_seed(0)
    state = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 5)).state_dict()
    torch.save(state, "now.pt")
    torch.save({"epoch": 1, "model": state}, "copy.pt")
    torch.save({"state_dict": {f"model.{k}": v for k, v in state.items()}}, "module.ckpt")
    return tmp_path


def diagnose(*more: str, model: str = "build", probe: str = "probe", checkpoint: str = "now.pt") -> int:
    names = [x if ":" in x else f"their_net:{x}" for x in (model, probe)]
    return main(["diagnose", "--model", names[0], "--probe", names[1], "--checkpoint", checkpoint,
                 "--budget", "0", *more])  # fmt: skip


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"probe": "doubtful"}, "the data is not there"),
        ({"model": "doubtful"}, "the data is not there"),
        ({"probe": "leaves"}, "SystemExit"),
        ({"model": "leaves"}, "SystemExit"),
        ({"probe": "unnamed"}, "nowhere"),
        ({"model": "broken_net:model"}, "importing broken_net failed"),
    ],
)
def test_what_user_code_raises_is_no_finding(
    options: dict[str, str], word: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert diagnose(**options) == 2
    err = capsys.readouterr().err
    assert word in err
    assert "Traceback" not in err


@pytest.mark.parametrize("reference", ["now.pt", "./copy.pt"])
def test_a_checkpoint_is_not_compared_with_itself(
    reference: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert diagnose("--reference", reference) == 2
    assert "the same weights as the checkpoint" in capsys.readouterr().err


def test_the_model_inside_a_lightning_module_is_found(place: Path) -> None:
    assert diagnose(checkpoint="module.ckpt") == 0
