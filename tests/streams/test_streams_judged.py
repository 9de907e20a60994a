"""A task with only what it is judged on is judged on the same data as the whole task."""

from __future__ import annotations

import pytest
import torch

from supple.streams import PermutedPixels, PermuteLabels, PermutePixels, Shuffled, Stream
from supple.streams.bits import BitFlip
from supple.streams.changes import AsFloat


def with_held_out() -> Stream:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (30, 1, 4, 4), dtype=torch.uint8, generator=draw)
    labels = torch.arange(30) % 3
    changes = [PermutePixels(), PermuteLabels(3), AsFloat((0.4,), (0.3,), flat=True)]
    held = (images[20:], labels[20:])
    return Stream(images[:20], labels[:20], changes=changes, tasks=4, seed=5, held_out=held)


STREAMS = {
    "held out": with_held_out(), "none": PermutedPixels(tasks=4, seed=0), "bits": BitFlip(tasks=4, seed=0, samples=9),
    "shuffled": Shuffled(PermutedPixels(tasks=4, seed=0)),
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
def test_it_is_judged_on_the_same(name: str) -> None:
    stream = STREAMS[name]
    for index in range(4):
        whole, part = stream.task(index), stream.judged(index)
        assert (part.index, part.name, part.seed) == (whole.index, whole.name, whole.seed)
        for a, b in zip(part.judged, whole.judged, strict=True):
            assert torch.equal(a, b)
    for outside in (-1, 4):
        with pytest.raises(IndexError):
            stream.judged(outside)


def test_floats_are_a_copy_with_the_value_of_the_formula() -> None:
    mean, deviation = (0.1, 0.2), (0.3, 0.7)
    for kind in (torch.uint8, torch.float32, torch.float64):
        x = torch.randint(0, 256, (5, 2, 3, 3)).to(kind)
        before = x.clone()
        found, _ = AsFloat(mean, deviation)(x, torch.zeros(5), seed=0, task=0)
        assert torch.equal(x, before)
        scale = [torch.tensor(v).view(2, 1, 1) for v in (mean, deviation)]
        assert torch.equal(found, (x.float() / 255 - scale[0]) / scale[1])
