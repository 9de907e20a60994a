"""Never healthy by accident: whatever is broken, no row claims a measured value that it does not have."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from supple.errors import InputError
from supple.observe import observe
from supple.observe.batch import as_classes, pick

BROKEN = st.sampled_from([float("nan"), float("inf"), -float("inf")])


def network(width, activation):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), activation(), nn.Linear(width, 3))


@settings(max_examples=30, deadline=None)
@given(
    samples=st.integers(0, 40),
    width=st.integers(1, 9),
    activation=st.sampled_from([nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid, nn.LeakyReLU]),
    wreck=st.sampled_from(["nothing", "input", "weight", "bias", "zero", "constant", "dead"]),
    value=BROKEN,
)
def test_rows_are_finite_or_say_why_not(samples, width, activation, wreck, value):
    model = network(width, activation)
    x = torch.randn(samples, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        if wreck == "input" and samples:
            x[0, 0] = value
        elif wreck in ("weight", "bias"):
            getattr(model[0], wreck).view(-1)[0] = value
        elif wreck == "zero":
            for parameter in model.parameters():
                parameter.zero_()
        elif wreck == "constant":
            x.fill_(1.0)
        elif wreck == "dead":
            model[0].bias.fill_(-100.0)
    if not samples:
        with pytest.raises(InputError, match="empty"):
            observe(model, (x, torch.arange(0)), F.cross_entropy)
        return
    seen = observe(model, (x, torch.arange(samples) % 3), F.cross_entropy)
    for row in seen.records:
        assert (row.status == "measured") == math.isfinite(row.value), row
        assert row.status == "measured" or row.note, row
    if wreck == "weight":
        ranks = seen.records.select(instrument="effective_rank", layer="0")
        assert all(r.status != "measured" for r in ranks)
    # an infinite weight or bias may end in a ReLU: then the unit is dead, and the network well defined
    if wreck == "input" or (wreck in ("weight", "bias") and math.isnan(value)):
        for name in ("loss", "dormant", "dead", "grama", "churn", "ntk_rank99", "cloned"):
            pooled = seen.records.select(instrument=name, layer="*")
            assert all(r.status != "measured" for r in pooled), name
    if wreck == "dead" and activation is nn.ReLU and samples >= 16:
        assert seen.value("dead") == seen.value("dormant", variant="tau=0.025") == 1


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 9), tokens=st.integers(1, 4), data=st.data())
def test_picking_samples_keeps_rows_together(n, tokens, data):
    index = torch.tensor(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n)))
    x = torch.arange(n * tokens).view(n, tokens)
    assert torch.equal(pick(x, index, n), x[index])
    assert torch.equal(pick(x.flatten(), index, n), x[index].flatten())


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 5), t=st.integers(1, 5), c=st.integers(2, 6))
def test_classes_lie_last_or_second(n, t, c):
    logits = torch.randn(n, t, c)
    targets = torch.randint(c, (n, t))
    last, classes = as_classes(logits, targets)
    assert torch.equal(classes, targets.flatten())
    if (n, t, c) != (n, c, t):
        second, _ = as_classes(logits.movedim(-1, 1), targets)
        assert torch.equal(second, last)
