"""docs/instruments.md says what the rows are: every name and variant that is written, and none that is not."""

import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from tests.observe.cases import build, mlp

import supple.functional
from supple.interventions import ContinualBackprop
from supple.observe import Monitor, observe
from supple.status import Status

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def entries():
    sys.path.insert(0, str(DOCS))
    try:
        import instrument_entries
    finally:
        sys.path.remove(str(DOCS))
    return instrument_entries


def rows_of_a_run():
    """A monitored run with two optimizers, a reset method, a twin and two tasks."""
    model, (x, y), loss_fn = build("mlp")
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model[0], model[2:])]
    ContinualBackprop(layers=("0",)).attach(model, optimizers, inputs=x)
    monitor = Monitor(
        model, optimizers, probe=(x, y), loss_fn=loss_fn, every=1, instruments="full", reference=mlp
    )
    monitor.task("first")
    loss_fn(model(x), y).backward()
    for optimizer in optimizers:
        optimizer.step()
    monitor.task("second", probe=(x + 1, y))
    monitor.measure()
    return list(monitor.history)


def rows_of_learning(monkeypatch):
    """The rows of a measurement that is tested elsewhere: it trains for seconds."""
    from supple import api
    from supple.diagnose import Trainability

    seen = Trainability(Status.ABSENT, "", 0.9, 0.8, 1.0, 0.7, (0.5, 0.6), (0.6, 0.6))
    monkeypatch.setattr(api, "trainability", lambda *_, **__: seen)
    model, batch, loss_fn = build("mlp")
    return list(observe(model, batch, loss_fn, instruments="trainability", reference=mlp).records)


def rows_of_looks():
    found = []
    for name in ("actor_critic", "half", "gpt"):
        model, batch, loss_fn = build(name)
        found += observe(model, batch, loss_fn, instruments="full").records
    torch.manual_seed(0)
    wide = torch.nn.Sequential(torch.nn.Linear(5, 20), torch.nn.ReLU(), torch.nn.Linear(20, 3))
    batch = (torch.randn(32, 5), torch.arange(32) % 3)
    found += observe(wide, batch, torch.nn.functional.cross_entropy, instruments="features").records
    return found


def test_every_row_is_documented_and_every_entry_is_written(entries, monkeypatch):
    table = {**entries.MONITOR, **entries.ENTRIES}
    rows = [
        r
        for r in (*rows_of_a_run(), *rows_of_looks(), *rows_of_learning(monkeypatch))
        if r.status == "measured"
    ]
    written = {(r.instrument, r.variant) for r in rows}
    undocumented = {
        (n, v) for n, v in written if n not in table or not any(fnmatchcase(v, p) for p in table[n].variants)
    }
    assert not undocumented
    missing = {
        (n, p)
        for n, entry in table.items()
        for p in entry.variants
        if not any(m == n and fnmatchcase(v, p) for m, v in written)
    }
    # a tiny kernel has eigenvalues below float64 noise; its condition number has a test of its own
    assert missing <= {("ntk_condition", ""), ("ntk_full_condition", ""), ("ntk_scalar_condition", "")}


def test_formulas_exist(entries):
    for name, entry in {**entries.MONITOR, **entries.ENTRIES}.items():
        assert not entry.function or hasattr(supple.functional, entry.function), name
