"""The contract that every registered intervention fulfils, built in or from outside."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import pickle
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from supple.errors import AttachError, InputError, SuppleError
from supple.interventions import Handle, Intervention, available, create, registry
from supple.status import Mechanism

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_intervention.py"


def _outside() -> type[Intervention]:
    """The documented example, loaded as an installed package would be."""
    if "my_intervention" not in sys.modules:
        spec = importlib.util.spec_from_file_location("my_intervention", EXAMPLE)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules["my_intervention"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["my_intervention"].WeakestUnit


#: settings under which a method acts within a few steps; the rest is tested with its defaults
SETTINGS: dict[str, dict[str, Any]] = {
    "ContinualBackprop": {"replacement_rate": 0.05, "maturity": 3},
    "ReDo": {"tau": 0.7, "every": 4},
    "ReGraMa": {"tau": 0.7, "every": 4},
    "SelfNormalizedReset": {"threshold": 8, "update": 5},
    "CCBP": {"rate": 0.5, "every": 4},
    "ShrinkAndPerturb": {},
    "HareTortoise": {"every": 4},
    "FIRE": {},
    "WeakestUnit": {"every": 3},
    "WeightClipping": {"kappa": 0.9},
    "NormalizeAndProject": {"norms": "ignore"},
    "Combination": {"parts": ({"name": "L2Init"}, {"name": "ReDo", "tau": 0.7, "every": 4})},
}
#: methods that define the whole update themselves
PLAIN_SGD = {"UPGD"}
METHODS = {**available(), "WeakestUnit": _outside()}
every_method = pytest.mark.parametrize("name", METHODS)


def _make(name: str) -> Intervention:
    return METHODS[name](**SETTINGS.get(name, {}))


def _model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3)
    ).to(dtype)


def _batch(i: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(i)).to(dtype)


def _train(model: nn.Module, opt: torch.optim.Optimizer, handle: Handle | None, steps: range) -> None:
    dtype = next(model.parameters()).dtype
    for i in steps:
        if handle is not None and i % 6 == 5:
            handle.task()
        opt.zero_grad()
        model(_batch(i, dtype)).square().mean().backward()
        opt.step()


def _optimizer(model: nn.Module, name: str, kind: str = "adamw") -> torch.optim.Optimizer:
    if kind == "sgd" or name in PLAIN_SGD:
        momentum = 0.0 if name in PLAIN_SGD else 0.9
        return torch.optim.SGD(model.parameters(), lr=0.01, momentum=momentum)
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def _attached(name: str, kind: str = "adamw") -> tuple[nn.Module, torch.optim.Optimizer, Handle]:
    model = _model()
    opt = _optimizer(model, name, kind)
    torch.manual_seed(1)
    return model, opt, _make(name).attach(model, opt, inputs=_batch(99))


def _hooks(model: nn.Module, opt: torch.optim.Optimizer) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    inside = sum(len(getattr(m, k)) for m in model.modules() for k in kinds)
    return inside + len(opt._optimizer_step_pre_hooks) + len(opt._optimizer_step_post_hooks)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        if not isinstance(b, Tensor) or a.dtype != b.dtype or a.shape != b.shape:
            return False
        return torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a == b


def _leaves(item: Any) -> Iterator[Any]:
    if isinstance(item, dict):
        for key, value in item.items():
            yield key
            yield from _leaves(value)
    elif isinstance(item, list | tuple):
        for value in item:
            yield from _leaves(value)
    else:
        yield item


@every_method
def test_it_says_what_it_is(name: str) -> None:
    cls = METHODS[name]
    method = _make(name)
    assert method.name == name
    assert cls.__doc__
    assert cls.mechanism is None or isinstance(cls.mechanism, Mechanism)
    assert cls.cost in ("low", "medium", "high")
    assert cls.level in (1, 2, 3)
    assert cls.evidence in ("published", "unverified")
    assert cls.source
    if cls.__module__.startswith("supple."):  # docs/interventions.md is made from these
        arguments = cls.__doc__.partition("Args:")[2]
        undocumented = [f.name for f in dataclasses.fields(cls) if not re.search(rf"\b{f.name}\b", arguments)]
        assert set(undocumented) <= {"hook", "filter_fn"}, undocumented  # of every penalty: see `Penalty`
    assert json.loads(json.dumps(method.to_dict()))["name"] == name
    assert pickle.loads(pickle.dumps(method)) == method == copy.deepcopy(method)
    with pytest.raises((AttributeError, TypeError)):
        method.anything = 1


@every_method
def test_attaching_changes_nothing(name: str) -> None:
    model = _model()
    opt = _optimizer(model, name)
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(1)
    random = torch.get_rng_state()
    handle = _make(name).attach(model, opt, inputs=_batch(99))
    assert torch.equal(random, torch.get_rng_state())
    assert _equal(before, model.state_dict())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(m.training for m in model.modules())
    assert len(opt.state) == 0
    handle.detach()


@every_method
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_training_with_it_stays_finite_and_detach_leaves_no_trace(name: str, kind: str) -> None:
    model, opt, handle = _attached(name, kind)
    keys = list(model.state_dict()), [n for n, _ in model.named_parameters()]
    _train(model, opt, handle, range(14))
    assert handle.step == 14
    assert handle.task_index == 2
    assert keys == (list(model.state_dict()), [n for n, _ in model.named_parameters()])
    assert all(torch.isfinite(p).all() for p in model.parameters())
    handle.detach()
    handle.detach()
    assert not handle.attached
    assert _hooks(model, opt) == 0


@every_method
def test_it_does_something(name: str) -> None:
    """Within a few steps and a task boundary the weights differ from those of plain training."""
    plain = _model()
    opt = _optimizer(plain, name)
    _train(plain, opt, None, range(14))
    model, opt, handle = _attached(name)
    _train(model, opt, handle, range(14))
    same = _equal(plain.state_dict(), model.state_dict())
    kept = [leaf for leaf in _leaves(handle.state_dict()["state"]) if isinstance(leaf, Tensor)]
    assert not same or kept, "neither the weights nor a state changed"


@every_method
def test_same_seed_same_run(name: str) -> None:
    runs = []
    for _ in range(2):
        model, opt, handle = _attached(name)
        _train(model, opt, handle, range(10))
        runs.append(model.state_dict())
    assert _equal(*runs)


@every_method
def test_state_goes_through_a_file_and_the_run_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    model, opt, handle = _attached(name)
    _train(model, opt, handle, range(8))
    saved = {
        "model": model.state_dict(),
        "optimizer": opt.state_dict(),
        "handle": handle.state_dict(),
        "rng": torch.get_rng_state(),
    }
    plain = (Tensor, str, int, float, bool, type(None))
    assert all(isinstance(leaf, plain) for leaf in _leaves(saved["handle"]))
    torch.save(saved, tmp_path / "run.pt")
    _train(model, opt, handle, range(8, 16))
    loaded = torch.load(tmp_path / "run.pt", weights_only=True)
    twin, twin_opt, twin_handle = _attached(name)
    twin.load_state_dict(loaded["model"])
    twin_opt.load_state_dict(loaded["optimizer"])
    twin_handle.load_state_dict(loaded["handle"])
    torch.set_rng_state(loaded["rng"])
    _train(twin, twin_opt, twin_handle, range(8, 16))
    assert _equal(model.state_dict(), twin.state_dict())
    assert _equal(handle.state_dict(), twin_handle.state_dict())


@every_method
def test_foreign_and_old_states_are_refused(name: str) -> None:
    _, _, handle = _attached(name)
    state = handle.state_dict()
    for wrong in ({**state, "name": "Another"}, {**state, "version": 999}):
        with pytest.raises(InputError, match="does not belong"):
            handle.load_state_dict(wrong)


@every_method
def test_a_closure_is_refused_with_the_way_out_or_is_harmless(name: str) -> None:
    model, opt, handle = _attached(name)

    def closure() -> Tensor:
        opt.zero_grad()
        loss = model(_batch(0)).square().mean()
        loss.backward()
        return loss

    if handle.refuses_closure:
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(AttachError, match="closure"):
            opt.step(closure)
        assert _equal(before, model.state_dict())
    else:
        opt.step(closure)


@every_method
def test_a_changed_network_or_optimizer_is_noticed(name: str) -> None:
    model, opt, handle = _attached(name)
    _train(model, opt, handle, range(2))
    opt.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    with pytest.raises(AttachError, match="changed"):
        _train(model, opt, handle, range(2, 3))
    model, opt, handle = _attached(name)
    model[3] = nn.Linear(12, 10)
    with pytest.raises(AttachError, match="changed"):
        _train(model, opt, handle, range(1))


@every_method
def test_a_swapped_optimizer_is_noticed(name: str) -> None:
    model, opt, handle = _attached(name)
    _train(model, opt, handle, range(2))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(AttachError, match="attached to another optimizer"):
        _train(model, _optimizer(model, name), handle, range(2, 3))
    assert _equal(before, model.state_dict())
    _train(model, opt, handle, range(2, 3))
    other = _model()  # another network's optimizer is nobody's business
    theirs = _optimizer(other, name)
    _train(other, theirs, None, range(2))
    theirs.add_param_group({"params": list(model.parameters())})  # ... until it takes our parameters
    with pytest.raises(AttachError, match="attached to another optimizer"):
        _train(other, theirs, None, range(1))
    handle.detach()
    _train(model, _optimizer(model, name), None, range(2))


@every_method
def test_an_optimizer_swapped_after_a_step_that_raised_is_noticed(name: str) -> None:
    model, opt, handle = _attached(name)

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    remover = opt.register_step_pre_hook(fail)
    with pytest.raises(ZeroDivisionError):
        _train(model, opt, handle, range(1))
    remover.remove()
    with pytest.raises(AttachError, match="attached to another optimizer"):
        _train(model, _optimizer(model, name), handle, range(1))


@every_method
def test_copies_of_the_model_do_not_write_into_the_handle(name: str) -> None:
    """EMA copies and evaluation must leave the state alone."""
    runs = []
    for disturb in (False, True):
        model, opt, handle = _attached(name)
        for i in range(8):
            _train(model, opt, handle, range(i, i + 1))
            if disturb:
                model.eval()
                with torch.no_grad():
                    model(_batch(50) * 100)
                model.train()
        runs.append((model.state_dict(), handle.state_dict()))
    assert _equal(*runs)


@every_method
def test_a_refused_attach_leaves_no_hook(name: str) -> None:
    model = _model()
    foreign = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(SuppleError):
        _make(name).attach(model, foreign, inputs=_batch(99))
    assert _hooks(model, foreign) == 0
    opt = _optimizer(model, name)
    for wrong in ("adam", [], [opt, "adam"]):
        with pytest.raises(InputError):
            _make(name).attach(model, wrong, inputs=_batch(99))
    assert _hooks(model, opt) == 0


@every_method
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(name: str, dtype: torch.dtype) -> None:
    model = _model(dtype)
    opt = _optimizer(model, name, "sgd")
    handle = _make(name).attach(model, opt, inputs=_batch(99, dtype))
    _train(model, opt, handle, range(8))
    assert all(p.dtype == dtype and torch.isfinite(p).all() for p in model.parameters())


@every_method
def test_the_penalty_is_a_scalar(name: str) -> None:
    model, opt, handle = _attached(name)
    _train(model, opt, handle, range(2))
    model(_batch(3))
    assert handle.penalty().dim() == 0


# -- the registry ----------------------------------------------------------------------------------


def test_names_of_the_promised_methods() -> None:
    promised = {
        "ContinualBackprop", "ReDo", "ReGraMa", "L2", "L2Init", "SpectralRegularization", "CChain",
        "ShrinkAndPerturb",
    }  # fmt: skip
    assert promised <= set(available())
    assert create("ReDo", tau=0.2).to_dict()["tau"] == 0.2
    with pytest.raises(InputError, match=r"unknown intervention 'Redo'.*ReDo"):
        create("Redo")


def test_an_entry_point_of_another_package_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    _outside()
    entry = metadata.EntryPoint("WeakestUnit", "my_intervention:WeakestUnit", "supple.interventions")
    wrong = metadata.EntryPoint("Nothing", "json:dumps", "supple.interventions")
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.setattr(registry.metadata, "entry_points", lambda group: [entry])
    assert create("WeakestUnit", every=7).to_dict() == {"name": "WeakestUnit", "every": 7}
    monkeypatch.setattr(registry.metadata, "entry_points", lambda group: [wrong])
    with pytest.raises(InputError, match="not an Intervention"):
        available()
    with pytest.raises(InputError, match="registered already"):

        @registry.register
        class ReDo(_outside()):  # type: ignore[misc]
            """Takes a name that is taken."""
