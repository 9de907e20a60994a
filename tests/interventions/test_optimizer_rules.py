"""Every optimizer of torch.optim: a reset slice moves as a fresh one, all others as if nothing had happened."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, optim
from torch.optim import Optimizer

from supple.errors import InputError, OptimizerRuleError
from supple.fresh import ADAM, OptimizerRule, register_rule, rule_for
from supple.fresh.optimizers import _RULES
from supple.interventions import young
from supple.interventions.compensation import compensation_of
from supple.interventions.slices import Slice

TINY = {"eps": 1e-30}  # Adam's eps acts on a young row as if it were larger, see the module's docstring
BEFORE, AFTER = 60, 100
BASE: list[tuple[type[Optimizer], dict[str, Any]]] = [
    (optim.SGD, {"lr": 0.1}),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    (optim.Adam, {"lr": 0.01, **TINY}),
    (optim.Adam, {"lr": 0.01, "amsgrad": True, "weight_decay": 0.01, **TINY}),
    (optim.AdamW, {"lr": 0.01, **TINY}),
    (optim.AdamW, {"lr": 0.01, "amsgrad": True, **TINY}),
    (optim.NAdam, {"lr": 0.01}),
    (optim.NAdam, {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    (optim.NAdam, {"lr": 0.01, "weight_decay": 0.1, "momentum_decay": 0.1}),
    (optim.RAdam, {"lr": 0.01}),
    (optim.RAdam, {"lr": 0.01, "weight_decay": 0.1}),
    (optim.RAdam, {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    (optim.Adamax, {"lr": 0.01, "weight_decay": 0.1}),
    (optim.Adagrad, {"lr": 0.1, "initial_accumulator_value": 0.3, "weight_decay": 0.1}),
    (optim.Adadelta, {"lr": 1.0, "weight_decay": 0.1}),
    (optim.RMSprop, {"lr": 0.01}),
    (optim.RMSprop, {"lr": 0.01, "centered": True, "momentum": 0.9, "weight_decay": 0.1}),
    (optim.Rprop, {"lr": 0.01}),
    # the step size and the averaging weight of ASGD are schedules that go on, so here they stand still
    (optim.ASGD, {"lr": 0.1, "lambd": 0.0, "weight_decay": 0.1}),
]
EXACT = {*(c for c, _ in BASE), optim.SparseAdam}


def _forms() -> list[tuple[type[Optimizer], dict[str, Any]]]:
    """Each case in the forms its class has: for-loop, foreach, fused; maximising; learning rate as a tensor."""
    found = []
    for cls, kw in BASE:
        has = inspect.signature(cls).parameters
        found += [(cls, {**kw, "foreach": False}), (cls, {**kw, "foreach": True})]
        if "fused" in has:
            found.append((cls, {**kw, "fused": True}))
        found.append((cls, {**kw, "maximize": True}))
    for cls in (optim.SGD, optim.Adam, optim.NAdam, optim.RAdam, optim.Adamax):
        found.append((cls, {"lr": torch.tensor(0.01, dtype=torch.float64), "foreach": False}))
        if cls in (optim.Adam,):
            found[-1][1].update(TINY)
    return found


def _name(value: Any) -> str | None:
    if isinstance(value, type):
        return value.__name__
    return "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else None


def _gradient(step: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64) + 0.2


def _start(shape: tuple[int, ...] = (8, 5)) -> Tensor:
    return torch.linspace(-1, 1, 40, dtype=torch.float64).reshape(shape).clone().requires_grad_()


ROWS, COLUMNS = Slice(0, torch.tensor([1, 4])), Slice(1, torch.tensor([0, 3]))


def _reset(opt: Optimizer, p: Tensor, where: Slice) -> None:
    """What the engine does with one slice."""
    rule = rule_for(opt)
    assert rule.refusal(opt, p) is None
    with torch.no_grad():
        p[where.at] = 0.25
    rule.clear_(opt, p, where.at)
    if rule.ageing is not None:
        compensation_of(opt).mark(opt, p, where)


def _run(cls: type, kw: dict[str, Any], where: Slice | None, steps: int = BEFORE + AFTER) -> Tensor:
    p, other = _start(), _start()
    opt = cls([{"params": [other], "lr": 0.5}, {"params": [p]}], **kw)
    for step in range(steps):
        if step == BEFORE and where is not None:
            _reset(opt, p, where)
        p.grad, other.grad = _gradient(step, (8, 5)), _gradient(-step, (8, 5))
        opt.step()
    return p.detach()


def _fresh(cls: type, kw: dict[str, Any], where: Slice, steps: int = AFTER) -> Tensor:
    """The slice alone, under an optimizer of its own that starts at the reset."""
    q = torch.full_like(_start()[where.at], 0.25).requires_grad_()
    opt = cls([q], **kw)
    for step in range(BEFORE, BEFORE + steps):
        q.grad = _gradient(step, (8, 5))[where.at]
        opt.step()
    return q.detach()


@pytest.mark.parametrize(("cls", "kw"), _forms(), ids=_name)
def test_a_reset_slice_moves_as_under_a_fresh_optimizer_and_all_others_as_without_the_reset(
    cls: type, kw: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = _run(cls, kw, None)
    for where, limit in ((ROWS, 1 << 15), (COLUMNS, 0)):
        monkeypatch.setattr(young, "_WHOLE", {"cpu": limit})
        got = _run(cls, kw, where)
        bound = 1e-9 if cls is optim.NAdam else 1e-12  # its mu_product is a float32 number in PyTorch
        assert (got[where.at] - _fresh(cls, kw, where)).abs().max() < bound
        others = torch.ones(8, 5, dtype=torch.bool)
        others[where.at] = False
        assert torch.equal(got[others], plain[others])


def test_sparse_adam_in_a_table_of_which_each_step_touches_some_rows() -> None:
    def run(reset: bool, fresh: bool = False) -> Tensor:
        p = (torch.full((8, 5), 0.25, dtype=torch.float64) if fresh else _start().detach()).requires_grad_()
        opt = optim.SparseAdam([p], lr=0.01, eps=1e-30)
        for step in range(BEFORE if fresh else 0, BEFORE + AFTER):
            if step == BEFORE and reset:
                _reset(opt, p, ROWS)
            touched = torch.arange(8)[torch.arange(8) % 3 != step % 3]
            rows = _gradient(step, (8, 5))[touched]
            p.grad = torch.sparse_coo_tensor(touched[None], rows, (8, 5), check_invariants=True)
            opt.step()
        return p.detach()

    plain, got, fresh = run(False), run(True), run(False, fresh=True)
    rest = [0, 2, 3, 5, 6, 7]
    assert torch.equal(got[rest], plain[rest])
    assert (got[[1, 4]] - fresh[[1, 4]]).abs().max() < 1e-12


@pytest.mark.parametrize(
    "cls",
    [
        optim.Adam,
        optim.AdamW,
        optim.Adamax,
        optim.RAdam,
        optim.Rprop,
        optim.Adagrad,
        optim.Adadelta,
        optim.SGD,
    ],
)
def test_the_first_update_of_a_fresh_row_is_at_most_the_learning_rate(cls: type) -> None:
    """In units of the learning rate and, for those that do not normalise, of the gradient."""
    kw = {"lr": 0.01, "weight_decay": 0.0} if cls is not optim.Rprop else {"lr": 0.01}
    got = _run(cls, kw, ROWS, BEFORE + 1)
    first = (got[ROWS.at] - 0.25).abs()
    unit = _gradient(BEFORE, (8, 5))[ROWS.at].abs() if cls in (optim.SGD, optim.RAdam) else 1.0
    assert (first <= 0.01 * unit * (1 + 1e-9)).all()


def test_optimizers_whose_fresh_first_update_is_larger_keep_their_own() -> None:
    """NAdam looks ahead, RMSprop has no bias correction: a fresh network takes these steps as well."""
    for cls, kw, size in ((optim.NAdam, {}, 1.057), (optim.RMSprop, {"alpha": 0.99}, 10.0)):
        first = (_run(cls, {"lr": 0.01, **kw}, ROWS, BEFORE + 1)[ROWS.at] - 0.25).abs() / 0.01
        assert first.mean().item() == pytest.approx(size, rel=1e-3)


def test_the_average_of_asgd_starts_at_the_fresh_row() -> None:
    p = _start()
    opt = optim.ASGD([p], lr=0.1, t0=0.0)
    for step in range(BEFORE):
        p.grad = _gradient(step, (8, 5))
        opt.step()
    others = opt.state[p]["ax"].clone()
    _reset(opt, p, ROWS)
    average = opt.state[p]["ax"]
    assert torch.equal(average[ROWS.at], p.detach()[ROWS.at])
    assert torch.equal(average[[0, 2, 3, 5, 6, 7]], others[[0, 2, 3, 5, 6, 7]])


# -- optimizers whose update of one element reads the whole matrix -----------------------------------


def _pair(cls: type, kw: dict[str, Any], where: Slice) -> tuple[Tensor, Tensor, Optimizer, Tensor]:
    """The displacement of one step with and without the reset just before it."""
    moved = []
    for reset in (False, True):
        p = _start()
        opt = cls([p], **kw)
        for step in range(BEFORE):
            p.grad = _gradient(step, (8, 5))
            opt.step()
        if reset:
            _reset(opt, p, where)
        before = p.detach().clone()
        p.grad = _gradient(BEFORE, (8, 5))
        opt.step()
        moved.append(p.detach() - before)
    return moved[0], moved[1], opt, p


@pytest.mark.parametrize("where", [ROWS, COLUMNS])
def test_adafactor_gives_fresh_rows_a_typical_step_and_leaves_the_direction_of_the_others(
    where: Slice,
) -> None:
    plain, got, _, _ = _pair(optim.Adafactor, {"lr": 0.01, "weight_decay": 0.0}, where)
    mask = torch.zeros(8, 5, dtype=torch.bool)
    mask[where.at] = True
    ratio = (got / plain)[~mask]
    assert torch.allclose(ratio, ratio.mean().expand_as(ratio), rtol=1e-12)
    assert 0.5 < ratio.mean() < 2
    size = got[mask].square().mean() / got[~mask].square().mean()
    assert 0.2 < size < 5


def test_adafactor_state_of_vectors_and_of_convolutions() -> None:
    for shape in ((6,), (6, 4, 3, 3)):
        p = torch.ones(shape, requires_grad=True)
        opt = optim.Adafactor([p])
        for step in range(3):
            p.grad = _gradient(step, shape).float()
            opt.step()
        old = {k: v.clone() for k, v in opt.state[p].items()}
        for where in (Slice(0, torch.tensor([2])), Slice(0, torch.tensor([1]), torch.tensor([3])))[: p.dim()]:
            _reset(opt, p, where)
        for name in ("row_var", "col_var", "variance"):
            slot = opt.state[p].get(name)
            if slot is not None:
                assert torch.equal(slot[[0, 3, 4, 5]], old[name][[0, 3, 4, 5]])
                assert torch.allclose(slot[2], old[name][[0, 1, 3, 4, 5]].mean(0))


def _hf(params: Any, **more: Any) -> Optimizer:
    """As Trainer makes it with optim="adafactor"."""
    module = pytest.importorskip("transformers.optimization")
    return module.Adafactor(params, **{"lr": 0.01, "scale_parameter": False, "relative_step": False, **more})


@pytest.mark.parametrize("where", [ROWS, COLUMNS])
def test_the_adafactor_of_transformers_gives_fresh_slices_a_typical_step_too(where: Slice) -> None:
    plain, got, opt, p = _pair(_hf, {}, where)
    mask = torch.zeros(8, 5, dtype=torch.bool)
    mask[where.at] = True
    ratio = (got / plain)[~mask]
    assert torch.allclose(ratio, ratio.mean().expand_as(ratio), rtol=1e-12)
    size = got[mask].square().mean() / got[~mask].square().mean()
    assert 0.2 < size < 5
    assert set(opt.state[p]) == {"step", "RMS", "exp_avg_sq_row", "exp_avg_sq_col"}


def test_a_fresh_row_gets_its_row_factor_and_first_moment_and_the_shared_column_factor_stays() -> None:
    """Against the means by hand, in the layout of transformers: factors without the axis that they average."""
    for shape, where in (((8, 5), ROWS), ((8, 5), COLUMNS), ((8,), ROWS), ((8, 5, 3, 3), ROWS)):
        p = torch.ones(shape, dtype=torch.float64, requires_grad=True)
        opt = _hf([p], beta1=0.9)
        for step in range(5):
            p.grad = _gradient(step, shape)
            opt.step()
        old = {k: v.clone() for k, v in opt.state[p].items() if isinstance(v, Tensor)}
        _reset(opt, p, where)
        state, fresh = opt.state[p], where.index.tolist()
        others = [i for i in range(shape[where.dim]) if i not in fresh]
        first = state["exp_avg"].movedim(where.dim, 0)
        assert not first[fresh].any()
        assert torch.equal(first[others], old["exp_avg"].movedim(where.dim, 0)[others])
        lost = {"exp_avg_sq_row": len(shape) - 1, "exp_avg_sq_col": len(shape) - 2, "exp_avg_sq": -1}
        for name in set(lost) & set(state):
            if lost[name] == where.dim:
                assert torch.equal(state[name], old[name]), "the factor of the other side"
                continue
            axis = 0 if state[name].dim() == 1 else where.dim
            mean = old[name].index_select(axis, torch.tensor(others)).mean(axis)
            assert torch.equal(state[name].select(axis, others[0]), old[name].select(axis, others[0]))
            for unit in fresh:
                assert torch.allclose(state[name].select(axis, unit), mean, rtol=1e-12)
        assert torch.equal(state["RMS"], old["RMS"])


def test_the_rule_of_transformers_goes_by_the_name_of_its_class_alone() -> None:
    p = torch.zeros(2, 2, requires_grad=True)
    opt = _hf([p])
    rule = rule_for(opt)
    with pytest.raises(InputError, match="Adafactor has a rule already"):
        register_rule(type(opt), OptimizerRule())
    opt.state[p]["trace"] = torch.zeros(2)
    assert "'trace' is not part of the rule" in str(rule.refusal(opt, p))

    class Adafactor(type(opt)):  # type: ignore[misc]
        """The name of a known class."""

    with pytest.raises(OptimizerRuleError, match=r"transformers\.optimization\.Adafactor"):
        rule_for(Adafactor([p], lr=None))


def test_muon_starts_the_momentum_of_a_fresh_row_anew_and_stays_bounded() -> None:
    _, got, opt, p = _pair(optim.Muon, {"lr": 0.01, "weight_decay": 0.0}, ROWS)
    buffer = opt.state[p]["momentum_buffer"]
    assert torch.allclose(buffer[ROWS.at], 0.05 * _gradient(BEFORE, (8, 5))[ROWS.at])
    # lr max(1, rows / columns)^0.5 times an orthogonal matrix, up to the 20 % of the Newton-Schulz iteration
    assert got.abs().max() <= 0.01 * (8 / 5) ** 0.5 * 1.2


# -- refusals --------------------------------------------------------------------------------------


def test_every_class_of_torch_optim_has_a_rule_or_is_refused_by_name() -> None:
    p = [torch.zeros(2, 2, requires_grad=True)]
    classes = [c for c in vars(optim).values() if isinstance(c, type) and issubclass(c, Optimizer)]
    assert len(classes) >= 15
    for cls in classes:
        if cls is Optimizer:
            continue
        if cls is optim.LBFGS:
            with pytest.raises(OptimizerRuleError, match=r"LBFGS: .*history"):
                rule_for(cls(p))
        else:
            assert rule_for(cls(p)) is _RULES[cls]
    assert EXACT | {optim.Adafactor, optim.Muon} == {c for c in classes if c not in (Optimizer, optim.LBFGS)}


def test_a_subclass_or_an_unknown_state_is_never_guessed() -> None:
    class Adam(optim.Adam):
        """The name of a known class."""

    p = torch.zeros(2, 2, requires_grad=True)
    with pytest.raises(OptimizerRuleError, match=r"Adam.*register_rule"):
        rule_for(Adam([p]))
    rule = OptimizerRule({"exp_avg": 0.0, "exp_avg_sq": 0.0}, ("step",), ADAM)
    register_rule(Adam, rule)
    try:
        register_rule(Adam, rule)
        with pytest.raises(InputError, match="has a rule already"):
            register_rule(Adam, OptimizerRule())
        opt = Adam([p], lr=0.01)
        p.grad = torch.ones(2, 2)
        opt.step()
        assert rule_for(opt).refusal(opt, p) is None
        opt.state[p]["trace"] = torch.zeros(2)
        assert "'trace' is not part of the rule" in str(rule_for(opt).refusal(opt, p))
    finally:
        del _RULES[Adam]


def test_settings_under_which_a_slice_cannot_be_fresh_are_refused() -> None:
    p = torch.zeros(2, 2, requires_grad=True)
    opt = optim.SGD([p], lr=0.1, momentum=0.9, dampening=0.5)
    assert "dampening" in str(rule_for(opt).refusal(opt, p))
    opt = optim.SGD([p], lr=0.1, dampening=0.5)
    assert rule_for(opt).refusal(opt, p) is None
    other = optim.Adam([p], lr=0.1, differentiable=True)
    assert "differentiable" in str(rule_for(other).refusal(other, p))
