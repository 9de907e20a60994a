"""Streams: the embedded data is the real data, tasks depend on their key alone, counts are the protocol's."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from supple.errors import InputError
from supple.streams import DrawLabels, PermutedPixels, PermutePixels, RandomLabels, Stream, digits, digits_raw


def test_embedded_digits_equal_scikit_learns() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    bunch = datasets.load_digits()
    images, labels = digits_raw()
    assert np.array_equal(images.numpy(), bunch.images)
    assert np.array_equal(labels.numpy(), bunch.target)


def test_digits_are_standardised_by_one_mean_and_one_deviation() -> None:
    raw = digits_raw()[0].flatten(1).double()
    x, y = digits()
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert torch.allclose(x.double(), (raw - raw.mean()) / raw.std(), atol=1e-6)
    assert len(x[:, 0].unique()) == 1  # a constant corner pixel stays constant


def test_the_data_cannot_be_spoilt_by_a_caller() -> None:
    digits_raw()[0].zero_()
    digits()[0].zero_()
    assert int(digits_raw()[0].max()) == 16


def test_permuted_pixels_is_setting_d2() -> None:
    stream = PermutedPixels(tasks=5, seed=3)
    x, y = digits()
    first, second = stream.task(0), stream.task(1)
    assert len(first) == 1797
    assert torch.equal(first.targets, y)
    assert not torch.equal(first.inputs, x)  # the first task is permuted as well
    assert not torch.equal(first.inputs, second.inputs)
    order = PermutePixels().order(64, seed=3, task=1)
    assert sorted(order.tolist()) == list(range(64))
    assert torch.equal(second.inputs, x[:, order])
    batches = list(first.batches(16))
    assert len(batches) == 112 == first.steps(16)
    assert {tuple(b.shape) for b, _ in batches} == {(16, 64)}


def test_random_labels_is_setting_a() -> None:
    stream = RandomLabels(tasks=4, seed=0)
    tasks = list(stream)
    assert all(torch.equal(t.inputs, tasks[0].inputs) for t in tasks)
    assert len(tasks[0]) == 300
    assert len(torch.unique(tasks[0].inputs, dim=0)) == 300
    assert len(list(tasks[0].batches(16, epochs=20))) == 360
    agreement = (tasks[0].targets == tasks[1].targets).float().mean()
    assert agreement < 0.2
    counts = torch.bincount(torch.cat([t.targets for t in tasks]), minlength=10)
    assert counts.min() > 80
    assert not torch.equal(RandomLabels(tasks=1, seed=1).task(0).inputs, tasks[0].inputs)


def test_an_epoch_has_every_sample_at_most_once_and_its_own_order() -> None:
    task = Stream(torch.arange(50.0).view(50, 1), torch.arange(50), changes=[], tasks=1, seed=0).task(0)
    epochs = list(task.batches(8, epochs=2))
    first = torch.cat([y for _, y in epochs[:6]])
    second = torch.cat([y for _, y in epochs[6:]])
    assert len(set(first.tolist())) == len(first) == 48
    assert not torch.equal(first, second)
    assert all(torch.equal(x.view(-1).long(), y) for x, y in epochs)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**40), index=st.integers(0, 30))
def test_random_access_equals_iteration_and_keys_differ(seed: int, index: int) -> None:
    base = (torch.arange(60.0).view(10, 6), torch.zeros(10, dtype=torch.int64))
    changes = [PermutePixels(), DrawLabels(5)]
    walked = list(Stream(*base, changes=changes, tasks=31, seed=seed))[index]
    asked = Stream(*base, changes=changes, tasks=31, seed=seed).task(index)
    other = Stream(*base, changes=changes, tasks=31, seed=seed + 1).task(index)
    assert torch.equal(walked.inputs, asked.inputs)
    assert torch.equal(walked.targets, asked.targets)
    assert not (torch.equal(other.inputs, asked.inputs) and torch.equal(other.targets, asked.targets))


def test_global_random_state_is_neither_used_nor_moved() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    a = [y for _, y in RandomLabels(tasks=1, seed=0).task(0).batches(16)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    b = [y for _, y in RandomLabels(tasks=1, seed=0).task(0).batches(16)]
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def test_another_process_sees_the_same_task() -> None:
    code = (
        "from supple.streams import PermutedPixels as P;"
        "print(P(tasks=9, seed=5).task(7).inputs[:3].sum(0).tolist())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == str(PermutedPixels(tasks=9, seed=5).task(7).inputs[:3].sum(0).tolist())


def test_probe_is_the_same_rows_in_every_task() -> None:
    stream = RandomLabels(tasks=2, seed=0)
    assert torch.equal(stream.task(0).probe(64)[0], stream.task(1).probe(64)[0])
    assert len(stream.task(0).probe(10_000)[0]) == 300


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: PermutedPixels(tasks=0, seed=0), "at least one task"),
        (lambda: RandomLabels(tasks=1, seed=0, samples=2000), "found: 2000 of 1797"),
        (lambda: RandomLabels(tasks=1, seed=0, classes=1), "two classes"),
        (lambda: PermutedPixels(tasks=1, seed=0, data=(torch.zeros(0, 2), torch.zeros(0))), "0 inputs"),
        (lambda: RandomLabels(tasks=1, seed=0).task(0).batches(301), "batch 301, 300 samples"),
    ],
)
def test_impossible_streams_are_refused(make, says: str) -> None:
    with pytest.raises(InputError, match=says):
        make()


def test_a_task_beyond_the_stream_is_an_index_error() -> None:
    stream = PermutedPixels(tasks=2, seed=0)
    assert stream[-1].index == 1
    with pytest.raises(IndexError, match="task 2 of a stream of 2"):
        stream.task(2)
