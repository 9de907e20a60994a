"""Step 0: the intervals, the probe tasks, and verdicts on networks whose truth is known."""

from __future__ import annotations

import math
import random
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.diagnose import lab
from torch import nn

from supple.diagnose.copies import recipe
from supple.diagnose.intervals import mean_interval, ratio_interval, student_quantile
from supple.diagnose.probe_tasks import ProbeTask, learn, read_kind, take
from supple.diagnose.trainability import LOOKS, judge_ratio, trainability
from supple.errors import InputError
from supple.status import Status


def twin_of(factory: lab.Factory):
    return lambda i: lab.built(factory, 9000 + i)


# -- intervals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("df", [3, 5, 11, 40])
def test_student_quantile_agrees_with_scipy(df: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert student_quantile(0.975, df) == pytest.approx(stats.t.ppf(0.975, df), rel=0.01)


def test_ratio_interval_covers_as_often_as_it_says() -> None:
    g = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(400):
        bottom = 1.0 + 0.1 * torch.randn(6, generator=g, dtype=torch.float64)
        top = 0.8 * bottom + 0.1 * torch.randn(6, generator=g, dtype=torch.float64)
        _, lo, hi = ratio_interval(top.tolist(), bottom.tolist())
        hits += lo < 0.8 < hi
    assert 0.92 <= hits / 400 <= 0.98


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8), st.integers(0, 9))
def test_ratio_lies_inside_its_interval(values: list[float], shift: int) -> None:
    bottom = [1.5 + 0.1 * math.sin(i + shift) for i in range(len(values))]
    ratio, lo, hi = ratio_interval(values, bottom)
    assert lo - 1e-9 <= ratio <= hi + 1e-9


def test_one_pair_knows_nothing() -> None:
    assert ratio_interval([0.5], [1.0])[1:] == (-math.inf, math.inf)
    assert mean_interval([0.5])[1:] == (-math.inf, math.inf)
    assert ratio_interval([0.5, 0.5], [0.0, 0.0])[1:] == (-math.inf, math.inf)


# -- probe tasks ----------------------------------------------------------------------------------


def test_kinds_are_read_off_outputs_and_targets() -> None:
    logits = torch.randn(6, 4)
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    assert read_kind(logits, y).outputs == "logits"
    assert read_kind(logits.log_softmax(1), y).outputs == "log-probabilities"
    assert read_kind(logits.softmax(1), y).outputs == "probabilities"
    assert read_kind(torch.randn(6, 5, 7), torch.zeros(6, 5, dtype=torch.long)).classes == 7
    assert read_kind(torch.randn(6, 3, 5, 5), torch.zeros(6, 5, 5, dtype=torch.long)).class_dim == 1
    assert read_kind(torch.randn(6, 2), torch.randn(6, 2)).kind == "values"
    assert read_kind(torch.randn(6, 1), torch.tensor([0.0, 1, 1, 0, 1, 0])).kind == "binary"
    with pytest.raises(InputError, match="class axis"):
        read_kind(torch.randn(6, 4), torch.zeros(5, dtype=torch.long))
    assert read_kind({"aux": None, "logits": logits}, y).structured
    with pytest.raises(InputError, match="forward="):
        read_kind({"text": "no tensor"}, y)
    with pytest.raises(InputError, match="forward="):
        read_kind(logits, {"labels": y})


def test_a_task_depends_on_its_seed_alone_and_keeps_ignored_targets() -> None:
    y = torch.tensor([0, -100, 2] * 20)
    kind = read_kind(torch.randn(60, 3), y)
    batch = (torch.randn(60, 5), y)
    one, two = (ProbeTask.draw(batch, kind, F.cross_entropy, 3) for _ in range(2))
    torch.rand(7)
    assert torch.equal(one.targets, two.targets)
    assert bool((one.targets[y < 0] == -100).all())
    assert bool((one.targets[y >= 0] >= 0).all())
    assert all(torch.equal(a, b) for a, b in zip(one.batches(9), two.batches(9), strict=True))
    assert sorted(torch.cat(list(one.batches(4))).tolist()) == list(range(60))


def test_take_indexes_every_form_of_inputs() -> None:
    index = torch.tensor([2, 0])
    taken = take((torch.arange(3), {"mask": torch.ones(3), "table": torch.ones(5)}), index)
    assert taken[0].tolist() == [2, 0]
    assert taken[1]["mask"].shape == (2,)
    assert taken[1]["table"].shape == (5,)


def test_centred_learning_does_not_charge_for_old_answers() -> None:
    """A network whose last bias says "class 0" loudly learns no slower once its answer is subtracted."""
    x, y = lab.probe(32)
    quiet = lab.built(lab.he_factory(), 0)
    loud = lab.copy_of(quiet)
    with torch.no_grad():
        loud[-1].bias[0] += 50.0
    task = ProbeTask.draw((x, y), read_kind(quiet(x), y), F.cross_entropy, 0)
    scores = {}
    for name, centred in (("cold", False), ("centred", True)):
        for which, net in (("quiet", quiet), ("loud", loud)):
            twin = lab.copy_of(net)
            course = learn(twin, task, 60, [torch.optim.SGD(twin.parameters(), lr=0.1)], centred=centred)
            scores[name, which] = sum(course) / len(course)
    assert scores["cold", "loud"] < 0.6 * scores["cold", "quiet"]
    assert scores["centred", "loud"] == pytest.approx(scores["centred", "quiet"], abs=1e-3)


# -- optimizers of copies -------------------------------------------------------------------------


def test_the_optimizer_is_made_anew_with_its_groups_and_settings() -> None:
    net = lab.mlp((4, 6, 3))
    opt = torch.optim.AdamW(
        [{"params": [net[0].weight], "lr": 0.5}, {"params": [net[2].weight]}], lr=0.1, weight_decay=0.3
    )
    schedule = torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)
    net(torch.ones(2, 4)).sum().backward()
    opt.step()
    schedule.step()
    twin = lab.copy_of(net)
    (made,) = recipe(net, opt).build(twin)
    assert type(made) is torch.optim.AdamW
    assert not made.state
    assert [g["lr"] for g in made.param_groups] == [0.5, 0.1]  # the initial ones
    assert all(g["weight_decay"] == 0.3 for g in made.param_groups)
    assert made.param_groups[0]["params"][0] is twin[0].weight


def test_what_cannot_be_made_anew_falls_back_and_says_so() -> None:
    net = lab.mlp((4, 6, 3))

    class Odd(torch.optim.SGD):
        def __init__(self, params, secret):
            super().__init__(params, lr=0.1)

    assert "no optimizer was given" in recipe(net, None).text
    assert "cannot be re-created" in recipe(net, Odd(net.parameters(), 3)).text
    assert "LBFGS" in recipe(net, torch.optim.LBFGS(net.parameters())).text
    assert "no parameter of this model" in recipe(net, torch.optim.SGD(nn.Linear(2, 2).parameters())).text


# -- verdicts -------------------------------------------------------------------------------------


def adam(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(net.parameters(), lr=3e-3)


@pytest.mark.parametrize(
    ("seen", "status"),
    [
        ((0.90, 0.84, 0.96), Status.PRESENT),  # a loss is certain, and a tenth of it the best estimate
        ((0.92, 0.84, 0.98), Status.INCONCLUSIVE),
        ((0.95, 0.91, 0.96), Status.ABSENT),  # certainly no loss of a tenth
        ((0.95, 0.89, 1.01), Status.INCONCLUSIVE),
        ((1.10, 0.99, 1.21), Status.ABSENT),
        ((0.95, -math.inf, math.inf), Status.INCONCLUSIVE),
        ((math.nan, math.nan, math.nan), Status.INCONCLUSIVE),
    ],
)
def test_a_verdict_needs_its_interval(seen: tuple[float, float, float], status: Status) -> None:
    assert judge_ratio(*seen) is status


@pytest.mark.parametrize(("true", "wrong"), [(0.98, Status.PRESENT), (0.89, Status.ABSENT)])
def test_a_course_of_looks_is_seldom_wrong(true: float, wrong: Status) -> None:
    draw = np.random.default_rng(0).normal

    def verdict() -> Status:
        twins = draw(0.6, 0.04, LOOKS[-1])
        mine = true * draw(0.6, 0.04, LOOKS[-1])
        seen = [judge_ratio(*ratio_interval(mine[:n].tolist(), twins[:n].tolist())) for n in LOOKS]
        return next((s for s in seen if s is not Status.INCONCLUSIVE), Status.INCONCLUSIVE)

    assert sum(verdict() is wrong for _ in range(500)) / 500 < 0.06


@pytest.mark.parametrize("seed", [0, 1])
def test_the_worn_network_has_lost_plasticity(seed: int) -> None:
    net, batch = lab.worn_d2(seed)
    seen = trainability(net, batch, F.cross_entropy, twin=twin_of(lab.he_factory()), optimizer=adam(net))
    assert seen.status is Status.PRESENT
    assert 0.4 < seen.ratio < 0.8
    assert seen.lo < seen.ratio < seen.hi < 0.9
    assert seen.severity == pytest.approx(1 - seen.ratio)


def test_a_fresh_network_has_not() -> None:
    net = lab.built(lab.he_factory(), 5)
    seen = trainability(
        net, lab.probe(), F.cross_entropy, twin=twin_of(lab.he_factory()), optimizer=adam(net)
    )
    assert seen.status is Status.ABSENT


def test_half_dead_layers_are_a_loss() -> None:
    net = lab.kill_(lab.built(lab.he_factory(), 5), 0.6)
    opt = torch.optim.SGD(net.parameters(), lr=0.05)
    seen = trainability(net, lab.probe(), F.cross_entropy, twin=twin_of(lab.he_factory()), optimizer=opt)
    assert seen.status is Status.PRESENT


def test_regression_is_scored_by_the_loss_it_removes() -> None:
    factory = lab.he_factory((6, 32, 32, 2))
    g = torch.Generator().manual_seed(0)
    batch = (torch.randn(128, 6, generator=g), 5 * torch.randn(128, 2, generator=g))
    fresh = lab.built(factory, 1)
    dead = lab.kill_(lab.built(factory, 1), 0.9)
    for net, status in ((fresh, Status.ABSENT), (dead, Status.PRESENT)):
        seen = trainability(net, batch, F.mse_loss, twin=twin_of(factory), optimizer=adam(net), budget=5)
        assert seen.status is status, seen.reason
        assert "loss" in seen.score


def test_without_reference_or_budget_it_is_not_measured() -> None:
    net = lab.mlp()
    assert "reference" in trainability(net, lab.probe(64), F.cross_entropy, twin=None).reason
    seen = trainability(net, lab.probe(64), F.cross_entropy, twin=twin_of(lab.mlp), budget=0)
    assert seen.status is Status.NOT_MEASURED
    few = trainability(net, lab.probe(4), F.cross_entropy, twin=twin_of(lab.mlp))
    assert few.status is Status.NOT_MEASURED
    assert "4" in few.reason
    assert few.finding().severity is None


def test_nan_is_invalid_and_a_twin_that_cannot_learn_is_inconclusive() -> None:
    net = lab.mlp()
    with torch.no_grad():
        net[0].weight[0, 0] = math.nan
    seen = trainability(net, lab.probe(64), F.cross_entropy, twin=twin_of(lab.mlp))
    assert seen.status is Status.INVALID
    still = lab.mlp()
    frozen_rate = torch.optim.SGD(still.parameters(), lr=1e-9)
    seen = trainability(
        still, lab.probe(64), F.cross_entropy, twin=twin_of(lab.mlp), optimizer=frozen_rate, budget=3
    )
    assert seen.status is Status.INCONCLUSIVE
    assert "twin itself" in seen.reason


@pytest.mark.parametrize("price", [0.004, 0.02, 0.1, 0.5])
def test_the_budget_is_kept(price: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = lab.Clock.in_place_of_time(monkeypatch, sys.modules[trainability.__module__], price)
    net = lab.built(lambda: lab.mlp((64, 16, 10)), 0)
    seen = trainability(net, lab.probe(64), F.cross_entropy, twin=twin_of(lab.mlp), budget=10.0)
    assert seen.seconds == clock.now
    assert clock.now <= 10.0


def test_nothing_of_the_caller_moves() -> None:
    net = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10))
    fired = []
    net[0].register_forward_hook(lambda *_: fired.append(1))
    opt = adam(net)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    rng, python = torch.get_rng_state(), random.getstate()
    factory = lambda: nn.Sequential(
        nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10)
    )
    trainability(net, lab.probe(64), F.cross_entropy, twin=twin_of(factory), optimizer=opt, budget=2)
    assert torch.equal(rng, torch.get_rng_state())
    assert python == random.getstate()
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert not opt.state
    assert not fired
    assert net.training
    assert all(p.grad is None for p in net.parameters())


class _Structured(nn.Module):
    def __init__(self, out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, out))

    def forward(self, x: torch.Tensor) -> dict[str, object]:
        return {"aux": None, "logits": self.body(x)}


@pytest.mark.parametrize("kind", ["classes", "values"])
def test_a_network_that_returns_a_structure_learns_on_its_main_output(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.Clock.in_place_of_time(monkeypatch, sys.modules[trainability.__module__], 2e-3)
    x, y = lab.probe(64)
    targets = y if kind == "classes" else torch.randn(64, 10)
    factory = lambda: _Structured(10)
    plain = F.cross_entropy if kind == "classes" else F.mse_loss

    def loss(outputs: dict[str, torch.Tensor], wanted: torch.Tensor) -> torch.Tensor:
        return plain(outputs["logits"], wanted)

    net = lab.built(factory, 0)
    seen = trainability(net, (x, targets), loss, twin=twin_of(factory), optimizer=adam(net), budget=2)
    assert seen.status is not Status.NOT_MEASURED
    assert "of the main output" in seen.score
    # the same network, its tensor picked out by the caller: the same task, the same learning
    bare = trainability(
        net, (x, targets), plain, twin=twin_of(factory), optimizer=adam(net), budget=2,
        forward=lambda m, i: m(i)["logits"],
    )  # fmt: skip
    both = min(len(seen.scores), len(bare.scores))
    assert both >= 3
    assert seen.scores[:both] == bare.scores[:both]
    assert seen.twin_scores[:both] == bare.twin_scores[:both]
