"""`supple diagnose` on a user's module: a dead network is found, a fresh one is not accused, files are written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from supple.cli import main

MODULE = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))

def frozen():
    return build().requires_grad_(False)

def bare():
    return nn.Sequential(nn.ReLU())

def probe(columns=16):
    g = torch.Generator().manual_seed(0)
    return torch.randn(128, columns, generator=g), torch.randint(5, (128,), generator=g)

def wide():
    return probe(17)

def squared(outputs, targets):
    return (outputs.softmax(-1) - nn.functional.one_hot(targets, 5)).square().sum(-1).mean()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with fresh weights, and the same with nine of ten units dead."""
    (tmp_path / "my_net.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_net", raising=False)
    torch.manual_seed(0)
    model = __import__("my_net").build()
    torch.save(model.state_dict(), "fresh.pt")
    with torch.no_grad():
        for index in (0, 2):
            model[index].bias[:58] = -50.0
    torch.save(model.state_dict(), "dead.pt")
    return tmp_path


def diagnose(
    *more: str, checkpoint: str = "dead.pt", model: str = "my_net:build", probe: str = "my_net:probe"
) -> int:
    return main(
        ["diagnose", "--model", model, "--checkpoint", checkpoint, "--probe", probe, "--budget", "0", *more]
    )


def test_dead_units_are_found_and_fail(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert diagnose("--json", "out.json", "--html", "out.html", "--fail-on", "present") == 1
    out, err = capsys.readouterr()
    assert "dead units" in out
    assert "PRESENT" in out
    table = json.loads((place / "out.json").read_text())
    found = {f["mechanism"]: f for f in table["findings"]}
    assert found["dead_units"]["status"] == "present"
    assert set(found["dead_units"]["layers"]) == {"0", "2"}
    assert found["plasticity_loss"]["status"] == "not_measured"
    page = (place / "out.html").read_text(encoding="utf-8")
    assert "dead units present" in page
    assert "<svg" in page
    assert "wrote out.html" in err


def test_one_file_for_two_outputs_or_over_the_weights_is_refused_before_work(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = (place / "dead.pt").read_bytes()
    for more, says in [
        (["--json", "x", "--html", "./x"], "--html and --json are the same file"),
        (["--html", "dead.pt"], "--html would write over what is read"),
        (["--json", "fresh.pt", "--reference", "fresh.pt"], "--json would write over what is read"),
    ]:
        assert diagnose(*more) == 2
        err = capsys.readouterr().err
        assert says in err
        assert "diagnosing" not in err
    assert (place / "dead.pt").read_bytes() == weights
    assert not (place / "x").exists()


def test_a_fresh_network_is_not_accused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert diagnose("--fail-on", "present", "--json", "-", checkpoint="fresh.pt") == 0
    table = json.loads(capsys.readouterr().out)
    assert [f["mechanism"] for f in table["findings"] if f["status"] == "present"] == []


@pytest.mark.parametrize("reference", ["reset", "fresh.pt", "factory"])
def test_other_references(reference: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert diagnose("--reference", reference, "--fail-on", "present") == 1


def test_own_loss(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert diagnose("--loss", "my_net:squared", "--fail-on", "present") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probe": "my_net:wide"}, "17"),
        ({"model": "my_net:frozen"}, "with a trainable parameter"),
        ({"model": "my_net:bare"}, "does not fit"),
    ],
)
def test_what_cannot_be_diagnosed(
    options: dict[str, str], message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert diagnose("--json", "out.json", "--html", "out.html", **options) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert message in err
    assert not (place / "out.json").exists()
    assert not (place / "out.html").exists()
