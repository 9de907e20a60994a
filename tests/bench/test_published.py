"""Generators against the published descriptions: counts, order, heads; and each protocol learns a task."""

from __future__ import annotations

import pytest
import torch
from tests.bench.conftest import shrunk

from supple.bench import RunSpec
from supple.bench.cohort import supports
from supple.bench.learner import Learner
from supple.bench.protocols import PROTOCOLS, create
from supple.errors import InputError

OLD = ("digits", "class-sequence", "image")
NEW = [n for n, p in PROTOCOLS.items() if p.supervised and not n.startswith(OLD)]


def test_published_counts() -> None:
    mnist = create("permuted-mnist", "paper")
    assert (mnist.tasks, mnist.batch, mnist.hidden, mnist.samples) == (800, 1, (2000,) * 3, 0)
    image = create("continual-imagenet", "paper")
    assert (image.tasks, image.batch, image.epochs, image.per_class, image.judged_per_class) == (
        2000, 100, 250, 600, 100,
    )  # fmt: skip
    assert create("continual-imagenet", "paper", tasks=5000).tasks == 5000
    regression = create("slow-regression", "paper")
    assert (regression.inputs, regression.hidden, regression.slow, regression.samples) == (
        21,
        (5,),
        15,
        10_000,
    )
    grow = create("class-incremental-cifar100", "paper")
    assert (grow.tasks, grow.step, grow.epochs, grow.batch, grow.network) == (20, 5, 200, 90, "resnet18")


@pytest.mark.usefixtures("small_data")
def test_permuted_mnist_permutes_all_tasks_alike_for_train_and_test() -> None:
    stream = create("permuted-mnist", "paper").stream(0)
    task = stream.task(7)
    assert task.inputs.shape == (200, 784)
    assert task.judged[0].shape == (50, 784)
    assert float(task.inputs.max()) <= 1.0
    assert torch.equal(task.inputs.sort(1).values, stream.task(0).inputs.sort(1).values)
    assert torch.equal(task.targets, stream.task(0).targets)


@pytest.mark.usefixtures("small_data")
def test_continual_imagenet_has_pairs_and_judges_on_other_images() -> None:
    protocol = create("continual-imagenet", "paper", **shrunk("continual-imagenet"))
    stream = protocol.stream(0)
    pairs = set()
    for task in (stream.task(t) for t in range(12)):
        assert task.inputs.shape == (18, 3, 32, 32)
        assert task.targets.bincount().tolist() == [9, 9]
        assert task.judged[1].bincount().tolist() == [3, 3]
        seen = {x.numpy().tobytes() for x in task.inputs}
        assert not seen & {x.numpy().tobytes() for x in task.judged[0]}
        pairs.add(frozenset(seen))
    assert len(pairs) > 6
    with pytest.raises(InputError, match="needs 600 images of each class; found: 12"):
        create("continual-imagenet", "paper").stream(0)


@pytest.mark.usefixtures("small_data")
@pytest.mark.parametrize("method", ["plain", "fresh", "linear"])
def test_the_head_is_zero_at_the_start_of_every_task_of_continual_imagenet(method: str) -> None:
    protocol = create("continual-imagenet", "demo", tasks=2, **shrunk("continual-imagenet"))
    learner, stream = Learner(RunSpec(protocol=protocol, method=method, seed=0)), protocol.stream(0)
    body = list(learner.model.parameters())[:-2]
    for t in (0, 1):
        learner.start(t)
        head = list(learner.model.parameters())[-2:]
        assert all(not p.any() for p in head)
        assert head[0].shape[0] == 2
        learner.learn(stream.task(t))
        assert all(p.any() for p in head)
    if method == "plain":
        assert all(a is b for a, b in zip(body, learner.model.parameters(), strict=False))


@pytest.mark.usefixtures("small_data")
def test_class_incremental_masks_the_classes_to_come() -> None:
    protocol = create("class-incremental-cifar100", "small")
    stream = protocol.stream(0)
    for t in (0, 2):
        task = stream.task(t)
        assert sorted(task.targets.unique().tolist()) == list(range(5 * (t + 1)))
        assert protocol.answers(task, torch.zeros(4, 100)).shape == (4, 5 * (t + 1))
    assert len(stream.task(19).targets) == 600


@pytest.mark.usefixtures("small_data")
@pytest.mark.parametrize("name", NEW)
def test_each_protocol_learns_a_task_and_is_judged(name: str) -> None:
    protocol = create(name, "demo", tasks=2, **shrunk(name))
    protocol.check()
    spec = RunSpec(protocol=protocol, method="plain", seed=0)
    learner, task = Learner(spec), protocol.stream(0).task(1)
    learner.start(0)
    result = learner.learn(task)
    assert result.nonfinite == 0
    assert 0 <= result.online <= 1
    assert 0 <= learner.score(task) <= 1
    if protocol.zero_head or protocol.metric != "accuracy":
        assert supports(spec)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw", "rmsprop", "adagrad"])
def test_each_optimizer_takes_a_step(optimizer: str) -> None:
    weight = torch.ones(3, 2, requires_grad=True)
    protocol = create("digits-permuted", "demo", optimizer=optimizer)
    (built,) = protocol.build_optimizers([weight])
    weight.square().sum().backward()
    built.step()
    assert bool((weight < 1).all())
    assert (built.defaults.get("momentum") == 0.9) == (optimizer == "momentum")
