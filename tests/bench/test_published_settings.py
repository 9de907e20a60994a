"""Settings of methods as they were published: each in its protocol, at its own learning rate, in its own form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.bench.conftest import shrunk as small_enough
from tests.bench.tiny import tiny
from torch import nn

from supple.bench import RunSpec, methods, run_list, with_engine
from supple.bench.jobs import jobs
from supple.bench.learner import Learner
from supple.bench.protocols import create
from supple.bench.protocols.images import decayed, shrunk
from supple.bench.search import Search
from supple.bench.spec import different
from supple.errors import InputError, StoreError
from supple.store import load
from supple.streams import DrawClasses

#: protocol -> method -> (learning rate, weight decay, noise) of the configurations of shibhansh/loss-of-plasticity
DECAYED = {
    "continual-imagenet": {"l2": (0.03, 3e-6, None), "shrink_perturb": (0.01, 1e-5, 1e-5)},
    "permuted-mnist": {"l2": (0.003, 1e-4, None), "shrink_perturb": (0.003, 1e-4, 1e-5)},
    "class-incremental-cifar100": {"l2": (0.02, 5e-4, None), "shrink_perturb": (0.02, 5e-4, 1e-5)},
}
REBORN = {
    "continual-imagenet": (3e-4, 100, "adaptable"),
    "permuted-mnist": (1e-6, 100, "adaptable"),
    "class-incremental-cifar100": (1e-5, 1000, "contribution"),
}


def _rule(name: str, method: str) -> tuple[RunSpec, Any]:
    spec = RunSpec(protocol=create(name, "paper"), method=method, seed=0)
    return spec, methods.get(method).create(spec.method_settings, 0, spec.protocol.initial)


@pytest.mark.parametrize("name", DECAYED)
def test_the_paper_preset_has_the_published_settings(name: str) -> None:
    for method, (lr, weight_decay, noise) in DECAYED[name].items():
        spec, rule = _rule(name, method)
        assert spec.taught.lr == lr
        pull, perturb = (rule, None) if noise is None else rule.parts
        assert 2 * pull.coef == pytest.approx(weight_decay)
        if perturb is not None:
            assert (perturb.shrink, perturb.perturb, perturb.every, perturb.scaling) == (
                1.0,
                noise,
                1,
                "nature",
            )
    _, cbp = _rule(name, "cbp")
    assert (cbp.replacement_rate, cbp.maturity, cbp.utility) == REBORN[name]
    assert cbp.decay == 0.99


@pytest.mark.parametrize("method", ["l2", "shrink_perturb"])
def test_a_published_weight_decay_is_that_of_the_optimizer(method: str) -> None:
    """The loop with the settings of a paper against torch's own SGD with momentum and weight decay."""
    own = decayed(0.05) if method == "l2" else shrunk(0.05, 0.0)
    protocol = create(
        "digits-permuted",
        tasks=1,
        hidden=(8,),
        optimizer="momentum",
        lr=0.5,
        settings={method: {"lr": 0.02, **own}},
    )
    learner, task = Learner(RunSpec(protocol=protocol, method=method, seed=0)), protocol.stream(0).task(0)
    twin = methods.get("plain").build(protocol, 0)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.02, momentum=0.9, weight_decay=0.05)
    learner.start(0)
    learner.learn(task)
    for inputs, targets in task.batches(protocol.batch, protocol.epochs):
        optimizer.zero_grad()
        nn.functional.cross_entropy(twin(inputs), targets).backward()
        optimizer.step()
    for a, b in zip(learner.model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_the_published_noise_is_normal_in_every_step() -> None:
    spec = RunSpec(protocol=create("continual-imagenet", "paper"), method="shrink_perturb", seed=0)
    made = methods.get("shrink_perturb").create(spec.method_settings, 0)
    model = nn.Linear(100, 100)
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = made.attach(model, optimizer)
    for step in (1, 2):
        model(torch.zeros(1, 100)).sum().backward()
        optimizer.step()
        moved = (model.weight.detach() - before).std().item()
        assert moved == pytest.approx(1e-5 * step**0.5, rel=0.05)
    handle.detach()


def test_the_manifest_says_rate_and_form() -> None:
    about = RunSpec(protocol=create("continual-imagenet", "paper"), method="l2", seed=0).manifest()
    assert about["method_settings"] == {"coef": 1.5e-6, "lr": 0.03}
    assert about["protocol"]["lr"] == 0.01
    about = RunSpec(
        protocol=create("continual-imagenet", "paper"), method="shrink_perturb", seed=0
    ).manifest()
    assert about["intervention"] == "Combination"
    assert set(about["method_settings"]) == {"parts"}


def test_a_rate_of_its_own_is_used_by_both_engines_and_shares_no_optimizer(tmp_path: Path) -> None:
    specs = [
        tiny(method="l2", settings={"lr": 3e-3}), tiny(method="l2", seed=1, settings={"lr": 3e-4}),
        tiny(method="plain"),
    ]  # fmt: skip
    cohort = with_engine(specs, "cohort")
    assert len(jobs(cohort, range(3))) == 2  # plain and the first have one rate
    assert run_list(cohort, tmp_path / "cohort", workers=0).ok
    assert run_list(with_engine(specs, "loop"), tmp_path / "loop", workers=0).ok
    for spec in specs:
        a, b = (
            load(spec.folder(tmp_path / n)).records.select(instrument="online_loss").values()
            for n in ("cohort", "loop")
        )
        assert a == pytest.approx(b, rel=1e-3)


def test_a_combination_is_searched_by_its_rate_alone(tmp_path: Path) -> None:
    protocol = create("continual-imagenet", "paper")
    assert set(Search(protocol, "shrink_perturb", tmp_path, [0], 0).dials) == {"lr"}
    search = Search(protocol, "l2", tmp_path, [0], 0)
    assert search.defaults() == {"lr": 0.03, "coef": pytest.approx(1.5e-6)}


@pytest.mark.usefixtures("small_data")
@pytest.mark.parametrize("method", ["cbp", "l2", "shrink_perturb"])
@pytest.mark.parametrize("name", ["continual-imagenet", "permuted-mnist"])
def test_the_published_form_runs(name: str, method: str) -> None:
    sizes = {"tasks": 1, "epochs": 2, "hidden": (16, 16), **small_enough(name)}
    protocol = create(name, "paper", **sizes)
    learner = Learner(RunSpec(protocol=protocol, method=method, seed=0))
    learner.start(0)
    assert learner.learn(protocol.stream(0).task(0)).nonfinite == 0
    assert learner.optimizers[0].param_groups[0]["lr"] == DECAYED[name].get(method, (protocol.lr,))[0]


def test_the_recipe_on_other_data_is_the_published_one() -> None:
    paper, recipe = create("continual-imagenet", "paper"), create("continual-tiny-imagenet", "paper")
    changed = {"name", "data", "per_class", "judged_per_class"}
    a, b = paper.to_dict(), recipe.to_dict()
    assert {k for k in a | b if a.get(k) != b.get(k)} == changed


def test_the_agents_c_chain_is_published_by_iterations() -> None:
    for name in ("cartpole-offsets", "mountaincar-offsets"):
        protocol = create(name, "paper")
        own = methods.get("cchain").settings_in(protocol)
        each = protocol.updates // protocol.iterations
        assert (own["target"], own["start"], own["window"]) == (1e4, 10 * each, 50 * each)


def test_five_plus_one_has_the_published_batch() -> None:
    protocol = create("five-plus-one-cifar", "paper")
    assert (protocol.tasks, protocol.batch, protocol.steps_per_task(2500)) == (30, 32, 780)


# -- labels ----------------------------------------------------------------------------------------
def test_the_class_drawn_first_is_0() -> None:
    y = torch.arange(20).repeat_interleave(2)
    change, first = DrawClasses(2), []
    for task in range(40):
        order = change.drawn(y, seed=0, task=task)
        x, labels = change(y, y, seed=0, task=task)
        assert torch.equal(order[labels], x)
        assert torch.equal(order.sort().values, DrawClasses(2, sort=True).drawn(y, seed=0, task=task))
        first.append(bool(order[0] < order[1]))
    assert 10 < sum(first) < 30  # sorted, the lower number would always be 0


@pytest.mark.usefixtures("small_data")
def test_continual_imagenet_numbers_its_pairs_by_the_draw() -> None:
    def lower_first(protocol: Any) -> set[bool]:
        (change,) = protocol.changes()
        _, y = protocol.subset(*_bytes(protocol), 0)
        return {bool((d := change.drawn(y, seed=0, task=t))[0] < d[1]) for t in range(20)}

    drawn = create("continual-tiny-imagenet", "small", **small_enough("continual-tiny-imagenet"))
    long = create("continual-tiny-imagenet", "long", **small_enough("continual-tiny-imagenet"))
    assert lower_first(drawn) == {True, False}
    assert lower_first(long) == {True}  # as its results
    with pytest.raises(InputError, match="unknown labels"):
        create("continual-imagenet", labels="other")


def _bytes(protocol: Any) -> tuple[torch.Tensor, torch.Tensor]:
    from supple.streams.data import load as images

    return images(protocol.data)


@pytest.mark.usefixtures("small_data")
def test_a_run_of_sorted_pairs_is_neither_continued_nor_mixed_with_drawn_ones(tmp_path: Path) -> None:
    values = {"tasks": 1, "epochs": 1, **small_enough("continual-tiny-imagenet")}
    old = create("continual-tiny-imagenet", "small", labels="sorted", **values)
    new = create("continual-tiny-imagenet", "small", **values)
    assert "labels" not in old.to_dict()  # as in runs from before there was a choice
    assert different(old.to_dict(), new.to_dict()) == "labels sorted and drawn"
    assert run_list([RunSpec(protocol=old, method="plain", seed=0)], tmp_path, workers=0).ok
    with pytest.raises(StoreError, match="labels"):
        run_list([RunSpec(protocol=new, method="plain", seed=0)], tmp_path, workers=0)
    with pytest.raises(StoreError, match="labels sorted and drawn"):
        run_list([RunSpec(protocol=new, method="linear", seed=0)], tmp_path, workers=0)
