"""A method from outside: the example, a penalty of five lines, and discovery through an entry point."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from supple import interventions
from supple.errors import InputError
from supple.interventions import registry as room

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "own_intervention.py"


@pytest.fixture
def registry(monkeypatch):
    """A registry that forgets at the end."""
    monkeypatch.setattr(room, "_REGISTRY", dict(room._REGISTRY))
    return room._REGISTRY


@pytest.fixture
def example(registry, monkeypatch):
    spec = importlib.util.spec_from_file_location("own_intervention", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "own_intervention", module)
    spec.loader.exec_module(module)
    return module


def test_the_example_clips_and_keeps_the_contract(example):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=5.0)
    handle = interventions.create("ClipToInit", kappa=1.0).attach(model, optimizer)
    model(torch.randn(4, 16)).sum().backward()
    optimizer.step()
    assert model[0].weight.abs().max().item() == pytest.approx(0.25)
    assert model[2].bias.abs().max() <= 8**-0.5 + 1e-6
    state = handle.state_dict()
    handle.load_state_dict(state)
    assert handle.step == 1
    handle.detach()
    optimizer.step()
    assert model[0].weight.abs().max() > 0.25
    assert not optimizer._optimizer_step_post_hooks
    with pytest.raises(InputError, match="kappa"):
        example.ClipToInit(kappa=0.0)
    with pytest.raises(InputError, match="no Linear"):
        example.ClipToInit().attach(nn.LayerNorm(3), optimizer)
    assert example.ClipToInit().to_dict() == {"name": "ClipToInit", "kappa": 2.0}


def test_the_example_runs_as_a_script():
    done = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, check=True)
    found = re.search(r"first layer: ([0-9.]+)", done.stdout)
    assert float(found[1]) == pytest.approx(0.25)


def test_the_penalty_of_the_page_works_as_printed(registry, monkeypatch):
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    scope = {"__name__": "page"}
    monkeypatch.setitem(sys.modules, "page", type(sys)("page"))
    exec(compile(code, "extending.md", "exec"), scope)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.weight.detach().clone()
    interventions.create("L1", coef=0.5).attach(model, optimizer)
    optimizer.step()
    assert torch.allclose(model.weight, before - 0.05 * before.sign())


def install(folder: Path, name: str, target: str) -> None:
    """What an installer leaves behind for a package with one entry point."""
    info = folder / "outside-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[supple.interventions]\n{name} = {target}\n", encoding="utf-8")


def test_an_installed_package_is_discovered(tmp_path, registry, monkeypatch):
    install(tmp_path, "ClipToInit", "outside_package:ClipToInit")
    (tmp_path / "outside_package.py").write_text(EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "outside_package" not in sys.modules  # importing supple has not loaded it
    try:
        assert interventions.available()["ClipToInit"].__module__ == "outside_package"
        assert interventions.create("ClipToInit", kappa=3.0).kappa == 3.0
    finally:
        sys.modules.pop("outside_package", None)


def test_an_entry_point_to_something_else_is_named(tmp_path, registry, monkeypatch):
    install(tmp_path, "Odd", "outside_odd:thing")
    (tmp_path / "outside_odd.py").write_text("thing = 3\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        with pytest.raises(InputError, match="entry point 'Odd' is not an Intervention"):
            interventions.available()
    finally:
        sys.modules.pop("outside_odd", None)


def test_a_name_is_given_once(registry):
    @dataclass(frozen=True)
    class L2(interventions.Intervention):
        def attach(self, model, optimizer, *, inputs=None):
            return interventions.Handle(self, model, optimizer)

    with pytest.raises(InputError, match="registered already"):
        interventions.register(L2)
    with pytest.raises(InputError, match="unknown intervention 'Nonsense'"):
        interventions.create("Nonsense")
