"""Fresh draws: the laws of the classes, keys that agree between processes, rules of optimizers."""

from __future__ import annotations

import functools
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from supple import fresh
from supple.errors import InputError, OptimizerRuleError

LAYERS = {
    "linear": lambda: nn.Linear(300, 200),
    "conv1": lambda: nn.Conv1d(30, 60, 5),
    "conv2": lambda: nn.Conv2d(16, 64, 3),
    "grouped": lambda: nn.Conv2d(16, 64, 3, groups=4),
    "conv3": lambda: nn.Conv3d(4, 40, 3),
    "transposed": lambda: nn.ConvTranspose2d(32, 24, 3),
    "embedding": lambda: nn.Embedding(100, 64),
    "attention": lambda: nn.MultiheadAttention(64, 4),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("part", ["weight", "bias"])
def test_default_draw_has_the_law_of_the_class(kind: str, part: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[kind]()
    name = {"attention": f"in_proj_{part}"}.get(kind, part)
    if kind == "embedding" and part == "bias":
        pytest.skip("an embedding has no bias")
    own = getattr(layer, name).detach()
    drawn = fresh.draw(layer, name, fresh.generator(0, 1, kind))
    assert drawn.shape == own.shape
    assert drawn.dtype == own.dtype
    if not own.any():
        assert not drawn.any()
        return
    many = torch.stack([fresh.draw(layer, name, fresh.generator(0, i, kind)) for i in range(20)])
    layers = torch.stack([getattr(LAYERS[kind](), name).detach() for _ in range(20)])
    assert many.std().item() == pytest.approx(layers.std().item(), rel=0.05)
    assert many.abs().max().item() == pytest.approx(layers.abs().max().item(), rel=0.15)


def test_padding_row_of_an_embedding_stays_zero() -> None:
    layer = nn.Embedding(10, 8, padding_idx=3)
    drawn = fresh.draw(layer, "weight", fresh.generator(0, 0, "e"))
    assert not drawn[3].any()
    assert drawn[2].any()


def test_draws_never_touch_the_global_random_state() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for kind, make in LAYERS.items():
        with torch.random.fork_rng():
            layer = make()
        name = "in_proj_weight" if kind == "attention" else "weight"
        for law in ("auto", *fresh.NAMED):
            if law == "orthogonal" and kind == "embedding":
                continue
            fresh.draw(layer, name, fresh.generator(1, 2, kind), law)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("law", "bound"),
    [("kaiming_uniform", 6 / 300), ("he_uniform", 6 / 300), ("lecun", 3 / 300), ("xavier", 6 / 500)],
)
def test_published_uniform_bounds(law: str, bound: float) -> None:
    drawn = fresh.draw(nn.Linear(300, 200), "weight", fresh.generator(0, 0, "x"), law)
    assert drawn.abs().max().item() == pytest.approx(math.sqrt(bound), rel=1e-3)


def test_redo_draw_is_as_much_wider_than_the_default_as_published() -> None:
    ratio = math.sqrt(6 / 300) / (1 / math.sqrt(300))
    assert ratio == pytest.approx(2.45, abs=0.01)


def test_orthogonal_rows() -> None:
    drawn = fresh.draw(nn.Linear(40, 20), "weight", fresh.generator(0, 0, "x"), "orthogonal")
    assert torch.allclose(drawn @ drawn.T, torch.eye(20), atol=1e-5)


def test_user_callable_fills_in_place() -> None:
    law = functools.partial(nn.init.trunc_normal_, std=0.02)
    layer = nn.Linear(300, 200)
    drawn = fresh.draw(layer, "weight", fresh.generator(0, 0, "x"), law)
    assert drawn.std().item() == pytest.approx(0.02, rel=0.05)
    assert fresh.draw(layer, "bias", fresh.generator(0, 0, "x"), law).abs().max() <= 1 / math.sqrt(300)


def test_callable_that_leaves_values_unset_is_refused() -> None:
    with pytest.raises(InputError, match="not finite"):
        fresh.draw(
            nn.Linear(3, 2), "weight", fresh.generator(0, 0, "x"), lambda t, generator: t.fill_(math.nan)
        )


def test_stored_initial_value_gives_its_law() -> None:
    layer, g = nn.Linear(300, 200), lambda: fresh.generator(0, 0, "x")
    normal = torch.randn(200, 300, generator=torch.Generator().manual_seed(1)) * 0.7
    uniform = torch.rand(200, 300, generator=torch.Generator().manual_seed(1)) - 0.5
    drawn = fresh.draw(layer, "weight", g(), normal)
    assert drawn.std().item() == pytest.approx(0.7, rel=0.02)
    assert drawn.abs().max() > 2.0
    drawn = fresh.draw(layer, "weight", g(), uniform)
    assert drawn.abs().max().item() == pytest.approx(0.5, rel=0.02)
    assert torch.equal(fresh.draw(layer, "bias", g(), torch.zeros(200)), torch.zeros(200))
    with pytest.raises(InputError, match="does not fit"):
        fresh.draw(layer, "weight", g(), torch.full((200, 300), math.nan))


class Odd(nn.Linear):
    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


class OwnLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 3))


@pytest.mark.parametrize(("layer", "word"), [(Odd(3, 3), "overrides"), (OwnLayer(), "OwnLayer")])
def test_unknown_initialiser_is_refused_not_guessed(layer: nn.Module, word: str) -> None:
    with pytest.raises(InputError, match=word):
        fresh.draw(layer, "weight", fresh.generator(0, 0, "x"))
    assert fresh.draw(layer, "weight", fresh.generator(0, 0, "x"), "lecun").any()
    with pytest.raises(InputError, match="unknown initialiser"):
        fresh.draw(layer, "weight", fresh.generator(0, 0, "x"), "lecunn")


@given(st.integers(-5, 5), st.integers(0, 1000), st.text(max_size=8))
@settings(max_examples=50, deadline=None)
def test_keys_differ_when_any_part_differs(seed: int, step: int, name: str) -> None:
    here = fresh.key(seed, step, name)
    assert 0 <= here < 2**63
    assert len({here, fresh.key(seed + 1, step, name), fresh.key(seed, step + 1, name)}) == 3
    assert here != fresh.key(seed, step, name + "a")


def test_key_is_the_same_in_another_process() -> None:
    code = "from supple.fresh.keys import key; print(key(3, 7, 'fc1'))"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(there.stdout) == fresh.key(3, 7, "fc1")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_draw_follows_the_dtype(dtype: torch.dtype) -> None:
    layer = nn.Linear(20, 10).to(dtype)
    assert fresh.draw(layer, "weight", fresh.generator(0, 0, "x")).dtype == dtype


# -- optimizer rules -------------------------------------------------------------------------------


def _stepped(cls: type, **kw: object) -> tuple[torch.optim.Optimizer, torch.Tensor]:
    p = torch.ones(4, 3, requires_grad=True)
    opt = cls([p], lr=0.1, **kw)
    for i in range(3):
        p.grad = torch.full_like(p, 1.0 + i)
        opt.step()
    return opt, p


@pytest.mark.parametrize(
    ("cls", "kw"),
    [
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "fused": True}),
        (torch.optim.SGD, {}),
        (torch.optim.Adam, {}),
        (torch.optim.Adam, {"amsgrad": True, "foreach": True}),
        (torch.optim.AdamW, {"fused": True}),
    ],
)
def test_cleared_slice_is_fresh_and_the_rest_untouched(cls: type, kw: dict) -> None:
    opt, p = _stepped(cls, **kw)
    rule = fresh.rule_for(opt)
    assert rule.refusal(opt, p) is None
    before = {k: v.clone() for k, v in opt.state[p].items() if isinstance(v, torch.Tensor)}
    rule.clear_(opt, p, (torch.tensor([1, 3]),))
    for name, value in before.items():
        now = opt.state[p][name]
        if value.dim() == 0:
            assert torch.equal(now, value)
        else:
            assert not now[[1, 3]].any()
            assert torch.equal(now[[0, 2]], value[[0, 2]])


def test_rules_before_the_first_step_do_nothing() -> None:
    p = torch.ones(4, 3, requires_grad=True)
    opt = torch.optim.Adam([p])
    rule = fresh.rule_for(opt)
    rule.clear_(opt, p, (torch.tensor([1]),))
    assert rule.slices(opt, p, (torch.tensor([1]),)) == []
    assert len(opt.state) == 0


def test_an_optimizer_without_slices_is_refused_by_name() -> None:
    opt = torch.optim.LBFGS([torch.ones(2, 2, requires_grad=True)])
    with pytest.raises(OptimizerRuleError, match=r"LBFGS: .*history.*another optimizer"):
        fresh.rule_for(opt)


class _Sneaky(torch.optim.Adam):
    """Looks like Adam by inheritance; its state could be anything."""


def test_subclass_is_refused_until_registered() -> None:
    opt, p = _stepped(_Sneaky)
    with pytest.raises(OptimizerRuleError, match="_Sneaky"):
        fresh.rule_for(opt)
    rule = fresh.OptimizerRule(slots={"exp_avg": 0.0, "exp_avg_sq": 0.0}, shared=("step",))
    fresh.register_rule(_Sneaky, rule)
    assert fresh.rule_for(opt) is rule
    with pytest.raises(InputError, match="rule already"):
        fresh.register_rule(_Sneaky, fresh.OptimizerRule())
    opt.state[p]["memory"] = torch.zeros(7)
    assert "memory" in str(rule.refusal(opt, p))


def test_refused_state() -> None:
    opt, p = _stepped(torch.optim.SGD, momentum=0.9)
    opt.state[p]["momentum_buffer"] = torch.zeros(2)
    assert "shape" in str(fresh.rule_for(opt).refusal(opt, p))
    with pytest.raises(InputError):
        fresh.register_rule(nn.Linear, fresh.OptimizerRule())  # pyrefly: ignore
