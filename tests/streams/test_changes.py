"""The non-stationarities: what changes, what stays, and that they compose."""

from __future__ import annotations

import itertools

import torch

from supple.streams import (
    AsFloat,
    BitFlip,
    Drift,
    Gradual,
    GrowClasses,
    Held,
    LabelNoise,
    ManyThenOne,
    PermuteLabels,
    PermutePixels,
    Stream,
)

X = torch.randint(256, (60, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
Y = torch.arange(60) % 6


def test_label_permutation_keeps_the_classes_together() -> None:
    tasks = list(Stream(X, Y, changes=[PermuteLabels(6)], tasks=6, seed=0))
    for task in tasks:
        assert len({(a, b) for a, b in zip(Y.tolist(), task.targets.tolist(), strict=True)}) == 6
    assert len({tuple(t.targets.tolist()) for t in tasks}) > 3


def test_label_noise_changes_its_share() -> None:
    y = torch.arange(6000) % 10
    noisy = [LabelNoise(10, 0.5)(y, y, seed=0, task=t)[1] for t in (0, 1)]
    assert abs(float((noisy[0] != y).float().mean()) - 0.45) < 0.02  # a tenth of the draws is the old label
    assert not torch.equal(*noisy)


def test_growing_classes_keep_the_old_data_and_its_numbers() -> None:
    first, second = (GrowClasses(2)(X, Y, seed=1, task=t) for t in (0, 1))
    assert sorted(first[1].unique().tolist()) == [0, 1]
    assert sorted(second[1].unique().tolist()) == [0, 1, 2, 3]
    old = second[1] < 2
    assert torch.equal(second[0][old], first[0])
    assert torch.equal(second[1][old], first[1])


def test_five_and_one_never_see_a_class_twice_and_are_even() -> None:
    y = torch.arange(360) % 12
    seen = [ManyThenOne(5)(y, y, seed=3, task=t)[1] for t in range(4)]
    assert [len(s.unique()) for s in seen] == [5, 1, 5, 1]
    assert len(torch.cat([s.unique() for s in seen]).unique()) == 12
    assert {len(s) for s in seen} == {150}


def test_gradual_reaches_each_concept_and_passes_through_the_middle() -> None:
    x, change = X.float(), PermutePixels()
    gradual, held = Gradual(change, 4), Held(change, 4)
    ends = [change(x, Y, seed=0, task=k)[0] for k in (0, 1)]
    assert torch.equal(gradual(x, Y, seed=0, task=0)[0], ends[0])
    assert torch.allclose(gradual(x, Y, seed=0, task=2)[0], (ends[0] + ends[1]) / 2)
    assert torch.equal(gradual(x, Y, seed=0, task=4)[0], ends[1])
    assert torch.equal(held(x, Y, seed=0, task=3)[0], ends[0])
    assert torch.equal(held(x, Y, seed=0, task=4)[0], ends[1])


def test_gradual_labels_turn_one_after_another_and_stay_turned() -> None:
    y = torch.arange(4000) % 10
    old, new = (PermuteLabels(10)(y, y, seed=0, task=k)[1] for k in (0, 1))
    differ = old != new
    shares, before = [], torch.zeros_like(differ)
    for t in range(4):
        turned = (Gradual(PermuteLabels(10), 4)(y, y, seed=0, task=t)[1] == new) & differ
        assert bool((turned | ~before).all())
        shares.append(float(turned.sum() / differ.sum()))
        before = turned
    assert all(abs(s - t / 4) < 0.03 for t, s in enumerate(shares))


def test_changes_compose_and_held_out_data_gets_the_same_ones() -> None:
    changes = [PermutePixels(), PermuteLabels(6), AsFloat(flat=True), Drift(0.1)]
    stream = Stream(X, Y, changes=changes, tasks=3, seed=0, held_out=(X[:10], Y[:10]))
    task = stream.task(2)
    assert task.inputs.shape == (60, 16)
    assert torch.equal(task.judged[0], task.inputs[:10])
    assert torch.equal(task.judged[1], task.targets[:10])
    order = PermutePixels().order(16, seed=0, task=2)
    undrifted = X.flatten(1)[:, order].float() / 255
    assert torch.allclose((task.inputs - undrifted).abs(), torch.full((60, 16), 0.2), atol=1e-6)


def test_one_slow_bit_flips_at_each_boundary_and_the_target_is_fixed() -> None:
    stream = BitFlip(tasks=6, seed=0, samples=400)
    tasks = list(stream)
    for a, b in itertools.pairwise(tasks):
        assert int((a.inputs[0, :15] != b.inputs[0, :15]).sum()) == 1
    for task in tasks:
        assert len(task.inputs[:, :15].unique(dim=0)) == 1
        assert bool((task.inputs[:, 20] == 1).all())
        assert len(task.inputs[:, 15:20].unique(dim=0)) == 32
    x, w = tasks[3].inputs.double(), stream.weights.double()
    thresholds = torch.tensor([0.7 * 21 - sum(1 for v in row if v < 0) for row in w.tolist()])
    target = ((x @ w.T) >= thresholds).double() @ stream.readout.double()
    assert torch.equal(tasks[3].targets.double(), target)
    assert len(target.unique()) > 3
