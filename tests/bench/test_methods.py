"""Every method of the table: it builds, learns, and an interrupted run ends like an undisturbed one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from supple.bench import methods, run
from supple.bench.learner import Learner
from supple.bench.methods import METHODS
from supple.interventions import available
from supple.store import load

from .tiny import content, interrupt, tiny, tiny_labels, weigh

INTERVENING = [m.name for m in METHODS.values() if m.intervention]


OTHERS = [m for m in METHODS if m not in ("plain", "fresh", "linear", "layernorm")]


@pytest.mark.parametrize(
    ("method", "make"), [*((m, tiny) for m in OTHERS), *((m, tiny_labels) for m in ("redo", "cbp", "cchain"))]
)
def test_an_interrupted_run_ends_like_an_undisturbed_one(tmp_path: Path, method: str, make) -> None:
    spec = make(tasks=5, method=method, measure_every=1)
    with pytest.raises(KeyboardInterrupt):
        run(spec, tmp_path / "a", measure=interrupt)
    torch.manual_seed(99)
    disturbed = run(spec, tmp_path / "a", measure=weigh)
    torch.manual_seed(7)
    undisturbed = run(spec, tmp_path / "b", measure=weigh)
    assert content(disturbed) == content(undisturbed)
    left, right = (load(f).state()["learner"]["handle"] for f in (disturbed, undisturbed))
    assert repr(left) == repr(right)


def revived(method: str, **settings: float) -> int:
    """How many of eight units that were killed beforehand fire again after two tasks."""
    learner = Learner(tiny_labels(method=method, settings=settings))
    stream = learner.spec.protocol.stream(0)
    with torch.no_grad():
        learner.model.fc1.bias[:8] = -100.0
    for index in (0, 1):
        learner.start(index)
        learner.learn(stream.task(index))
    return int((learner.model.fc1(stream.task(1).inputs).relu().sum(0)[:8] > 0).sum())


def test_resets_revive_dead_units() -> None:
    assert revived("plain") == 0
    assert revived("redo") == 8
    assert revived("regrama") == 8
    assert revived("cbp", replacement_rate=0.5, maturity=2) >= 4


@pytest.mark.parametrize("method", [m for m in INTERVENING if m not in ("redo", "regrama", "cbp")])
def test_an_intervention_intervenes(method: str) -> None:
    """After two tasks the network differs from the one left alone: nobody's arm is the plain arm in disguise."""
    base = "layernorm" if METHODS[method].norm else "plain"  # the same network without the intervention
    sharper = {"kappa": 1.0} if method == "clipping" else {}  # two short tasks do not reach its bound
    learners = [Learner(tiny_labels(method=base)), Learner(tiny_labels(method=method, settings=sharper))]
    stream = learners[0].spec.protocol.stream(0)
    starts = [[p.detach().clone() for p in x.model.parameters()] for x in learners]
    for learner in learners:
        for index in (0, 1):
            learner.start(index)
            learner.learn(stream.task(index))
    ends = [list(x.model.parameters()) for x in learners]
    assert all(torch.equal(a, b) for a, b in zip(*starts, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_settings_come_from_the_method_then_the_protocol_then_the_caller() -> None:
    protocol = tiny().protocol
    method = methods.get("l2")
    assert method.settings == {"coef": 1e-3}
    assert method.settings_in(protocol) == {"coef": 5e-3}
    assert method.settings_in(protocol, {"coef": 0.1}) == {"coef": 0.1}
    assert tiny(method="l2", settings={"coef": 0.1}).manifest()["method_settings"] == {"coef": 0.1}


@pytest.mark.parametrize("method", INTERVENING)
def test_the_intervention_gets_the_seed_and_the_initialiser(method: str) -> None:
    entry = methods.get(method)
    assert entry.intervention in available()
    made = entry.create(entry.settings_in(tiny().protocol), seed=7, initial=tiny().protocol.initial)
    for part in getattr(made, "parts", (made,)):
        if hasattr(part, "seed"):
            assert part.seed == 7
        if hasattr(part, "initial"):
            assert part.initial == "he_uniform"


def test_half_width_methods_show_the_next_layer_as_many_features() -> None:
    protocol = tiny().protocol
    for name in ("crelu", "fourier"):
        model = methods.get(name).build(protocol, 0)
        assert model.fc1.out_features == protocol.hidden[0] // 2
        assert model.fc2.in_features == protocol.hidden[0]
