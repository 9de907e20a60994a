"""Every row on units, weights and features equals numpy float64 from values recorded apart, over the zoo."""

import math

import numpy as np
import pytest
import torch
from tests.observe.cases import build
from tests.observe.recorder import Label, Recorder
from tests.reference import observed

from supple.observe import observe
from supple.topology.inputs import call

INSTRUMENTS = ("dormant", "dead", "grama", "saturated", "cloned", "weight_norm", "spectrum", "features")


def resnet18():
    """Two blocks in each of four stages; the first of the later stages has a shortcut of its own."""
    posts = {"stem": ("relu", [0])}
    for i in range(8):
        block, first = f"stages.{i // 2}.{i % 2}", 1 + 2 * i
        posts |= {f"{block}.conv1": ("relu", [first]), f"{block}.conv2": ("relu", [first + 1])}
        if i in (2, 4, 6):
            posts[f"{block}.shortcut.0"] = ("relu", [first + 1])
    return Label(posts, frozenset({"head"}))


def unet():
    """silu calls: 0 level, 1-2 down.0, 3-4 down.1, 5-6 middle, 7-8 up.0, 9-10 up.1, 11 before the head."""
    posts = {"embed.0": ("silu", [0]), "stem": ("silu", [1])}
    after = {"down.0": (2, 3), "down.1": (4, 5), "middle": (6, 7), "up.0": (8, 9), "up.1": (10, 11)}
    for block, (inner, outer) in after.items():
        # the output of a block goes on beside a skip where 16 channels are concatenated: the first 8 are its own
        following = ("silu", lambda r, i=outer: r.acts[i][:, :8])
        posts |= {f"{block}.conv1": ("silu", [inner]), f"{block}.level": ("silu", [inner])}
        posts[f"{block}.conv2"] = following
        if block.startswith("up"):
            posts[f"{block}.shortcut"] = following
    return Label(posts, frozenset({"head"}))


MLP = Label({"0": ("relu", [0]), "2": ("relu", [1])}, frozenset({"4"}))
UP = "blocks.0.mlp.up"
LABELS = {
    "mlp": MLP,
    "compiled": MLP,
    "convnet": Label({"0": ("relu", [0]), "4": ("elu", [1])}, frozenset({"7"})),
    "resnet18": resnet18(),
    "gpt": Label(
        {"blocks.0.mlp.gate": ("silu", [0]), UP: ("gate", lambda r: r.acts[0] * r.pre[UP][0])},
        frozenset({"head"}),
        frozenset({"blocks.0.attention.qkv"}),
        frozenset({"embedding"}),
    ),
    "vit": Label({"fc": ("gelu", [0])}, frozenset({"head"}), frozenset({"qkv"}), tables=frozenset({"token"})),
    "unet": unet(),
    "recurrent": Label({}, frozenset({"f"})),
    "attention": Label({"inp": ("relu", [0])}, frozenset({"f"})),
    "grouped": Label({"0": ("silu", [0]), "3": ("gelu", [1])}, frozenset({"7"})),
    "shared": Label({"i": ("relu", [0]), "a": ("relu", [1, 2])}, frozenset({"f"})),
    "actor_critic": Label(
        {"actor.0": ("tanh", [0]), "critic.0": ("tanh", [1])}, frozenset({"actor.2", "critic.2"})
    ),
    "mapping": Label({"a": ("tanh", [0])}, frozenset({"b"})),
    "half": Label({"net.0": ("relu", [0]), "net.3": ("silu", [1])}, frozenset({"net.5"})),
}


def wear(model):
    """Break some units and one weight, so that the shares are not all zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and min(parameter.shape[:2]) > 4:
                parameter[0] *= 1e-4
                parameter[1] = parameter[2]
            elif parameter.ndim == 1 and len(parameter) > 4:
                parameter[3] -= 3.0


def reference(name):
    """The rows a case must have, and the same model looked at."""
    label, (model, batch, loss_fn) = LABELS[name], build(name)
    wear(model)
    plain = getattr(model, "_orig_mod", model)
    recorder = Recorder(plain, lambda: loss_fn(call(plain, batch[0]), batch[1]))
    expected = observed.rows(recorder.layers(label), recorder.scales(label))
    seen = observe(model, batch, loss_fn, instruments=INSTRUMENTS)
    return expected, seen, recorder


@pytest.mark.parametrize("name", LABELS)
def test_rows_equal_the_reference(name):
    expected, seen, recorder = reference(name)
    found = {
        (r.instrument, r.layer, r.part, r.variant): r.value
        for r in seen.records
        if r.status == "measured" and r.variant != "centred,null"
    }
    assert set(found) == set(expected)
    tops = {r.layer: r.value for r in seen.records.select(instrument="sigma_max")}
    for key, value in expected.items():
        scale = tops[key[1]] if key[0] == "sigma_min" else 0.0
        assert math.isclose(found[key], value, rel_tol=1e-5, abs_tol=1e-5 * scale), (key, found[key], value)
    for layer in recorder.layers(LABELS[name]):
        if len(layer.matrices) == 1 and min(layer.matrices[0].shape) > 1:
            s = np.linalg.svd(layer.matrices[0], compute_uv=False)
            np.testing.assert_allclose(seen.arrays[f"spectrum/{layer.name}"], s, rtol=0, atol=1e-5 * s[0])
