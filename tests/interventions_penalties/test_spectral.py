"""What spectral regularisation covers, how well it knows sigma_1, and when it starts anew."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as nnf
from torch.nn.utils import parametrizations, prune

from supple.errors import AttachError, InputError
from supple.interventions import SpectralRegularization
from supple.streams import digits


def attach(model, **settings):
    return SpectralRegularization(**settings).attach(model, torch.optim.SGD(model.parameters(), lr=0.1))


def exact(matrix):
    return torch.linalg.svdvals(matrix.detach().double())[0]


def value(handle):
    return handle.penalty().item()


def test_penalty_pulls_sigma_to_one_and_a_plain_run_does_not():
    ends = []
    for coef in (0.0, 1.0):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 5))
        nn.init.normal_(model[0].weight, std=0.3)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        SpectralRegularization(coef=coef).attach(model, optimizer)
        x, y = torch.randn(64, 20), torch.randint(0, 5, (64,))
        for _ in range(500):
            optimizer.zero_grad()
            nnf.cross_entropy(model(x), y).backward()
            optimizer.step()
        ends.append(exact(model[0].weight).item())
    assert ends[0] > 3
    assert abs(ends[1] - 1) < 0.3


def test_warm_estimate_is_as_good_as_the_specification_says():
    """Digits with random labels, 64-256-256-10, Adam 1e-3: median 2e-4, 95th percentile 1 %."""
    inputs = torch.as_tensor(digits()[0])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    handle = SpectralRegularization(coef=0.0).attach(model, optimizer)
    errors = []
    for step in range(1000):
        if step % 500 == 0:
            targets = torch.randint(0, 10, (len(inputs),))
        rows = torch.randint(0, len(inputs), (32,))
        optimizer.zero_grad()
        nnf.cross_entropy(model(inputs[rows]), targets[rows]).backward()
        true = [exact(model[i].weight) for i in (0, 2, 4)] if step % 10 == 0 else None
        optimizer.step()
        if true:
            seen = [handle._sigmas[f"{i}.weight"] for i in (0, 2, 4)]
            errors.append([(1 - a / b).item() for a, b in zip(seen, true, strict=True)])
    errors = torch.tensor(errors)
    assert errors.min() > -1e-5  # never above the true value
    assert errors.median(0).values.max() < 5e-4
    assert errors.quantile(0.95) < 1e-2


def test_conv_grouped_depthwise_and_transposed_are_the_right_matrices():
    torch.manual_seed(0)
    cases = {
        nn.Conv2d(3, 8, 3): lambda w: exact(w.flatten(1)),
        nn.Conv2d(4, 8, 3, groups=2): lambda w: max(exact(w[:4].flatten(1)), exact(w[4:].flatten(1))),
        nn.Conv2d(4, 4, 3, groups=4): lambda w: w.flatten(1).double().norm(dim=1).max(),
        nn.ConvTranspose2d(3, 8, 2): lambda w: exact(w.transpose(0, 1).flatten(1)),
        nn.ConvTranspose1d(6, 4, 3, groups=2): lambda w: max(
            exact(w[:3].transpose(0, 1).flatten(1)), exact(w[3:].transpose(0, 1).flatten(1))
        ),
    }
    for layer, sigma in cases.items():
        handle = attach(layer, coef=1.0, biases=False)
        wanted = (sigma(layer.weight.detach()) ** 2 - 1) ** 2
        assert value(handle) == pytest.approx(wanted.item(), rel=1e-3), layer
        optimizer = handle.optimizers[0]
        optimizer.step()
        assert layer.weight.grad.abs().sum() > 0


def test_packed_recurrent_tied_and_embedding_weights():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2)
    names = {m.name for m in attach(attention).parts.matrices}
    assert names == {"in_proj_weight#q", "in_proj_weight#k", "in_proj_weight#v", "out_proj.weight"}
    wanted = sum(
        (exact(w) ** 2 - 1) ** 2 for w in (*attention.in_proj_weight.chunk(3), attention.out_proj.weight)
    )
    assert value(attach(attention, coef=1.0, biases=False)) == pytest.approx(wanted.item(), rel=1e-3)
    assert len(attach(nn.LSTM(5, 3)).parts.matrices) == 8
    assert len(attach(nn.GRU(5, 3)).parts.matrices) == 6

    tied = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 7))
    tied[1].weight = tied[0].weight
    handle = attach(tied)
    assert [m.name for m in handle.parts.matrices] == ["0.weight"]  # once, as the head
    plain = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 7))
    handle = attach(plain)
    assert [m.name for m in handle.parts.matrices] == ["1.weight"]
    assert "embeddings=True" in handle.skipped["0.weight"]
    assert len(attach(plain, embeddings=True).parts.matrices) == 2


def test_parametrised_weight_is_read_through_and_recomputed_weight_is_refused():
    torch.manual_seed(0)
    layer = parametrizations.weight_norm(nn.Linear(6, 4))
    handle = attach(layer, coef=1.0, biases=False)
    assert value(handle) == pytest.approx(((exact(layer.weight) ** 2 - 1) ** 2).item(), rel=1e-3)
    handle.optimizers[0].step()
    assert layer.parametrizations.weight.original0.grad.abs().sum() > 0
    pruned = nn.Sequential(nn.Linear(6, 4))
    prune.l1_unstructured(pruned[0], "weight", amount=0.5)
    with pytest.raises(AttachError, match=r"0\.weight"):
        attach(pruned)


def test_norm_scales_and_biases_follow_the_formula():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[0].bias.copy_(torch.tensor([1.0, 1.0]))
        model[1].weight.copy_(torch.tensor([2.0, -1.0]))
        model[1].bias.copy_(torch.tensor([0.0, 2.0]))
    # (1+1)^2 + (4-1)^2 + (1-1)^2 + (0+4)^2
    assert value(attach(model, coef=1.0)) == pytest.approx(4 + 9 + 16, rel=1e-5)
    assert value(attach(model, coef=1.0, biases=False)) == pytest.approx(9, rel=1e-5)
    assert value(attach(model, coef=1.0, norms=False, biases=False)) == pytest.approx(0, abs=1e-5)


def test_replaced_weights_get_a_new_start():
    torch.manual_seed(0)
    model = nn.Linear(64, 64)
    nn.init.normal_(model.weight, std=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = SpectralRegularization(coef=0.0).attach(model, optimizer)
    for _ in range(16):
        optimizer.step()
    nn.init.normal_(model.weight, std=0.05)
    for _ in range(16):
        optimizer.step()
    true = exact(model.weight)
    estimate = (model.weight.detach() @ handle.vectors["weight"]).norm()
    assert abs(1 - estimate / true) < 1e-4  # sixteen warm steps alone leave several percent here

    nn.init.normal_(model.weight, std=0.5)
    handle.refresh()
    assert abs(1 - (model.weight.detach() @ handle.vectors["weight"]).norm() / exact(model.weight)) < 1e-4

    stale = handle.state_dict()
    nn.init.normal_(model.weight, std=0.5)
    handle.load_state_dict(stale)  # vectors of other weights
    optimizer.step()
    assert abs(1 - (model.weight.detach() @ handle.vectors["weight"]).norm() / exact(model.weight)) < 1e-3


def test_a_zeroed_layer_has_gradient_zero_and_recovers():
    model = nn.Linear(8, 8, bias=False)
    model.weight.data.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = SpectralRegularization(coef=1.0).attach(model, optimizer)
    for _ in range(20):
        optimizer.step()
    assert model.weight.grad.abs().max() == 0
    torch.manual_seed(0)
    nn.init.normal_(model.weight)
    for _ in range(20):
        optimizer.step()
    estimate = (model.weight.detach() @ handle.vectors["weight"]).norm()
    assert abs(1 - estimate / exact(model.weight)) < 1e-2


def test_bad_settings_and_foreign_states():
    with pytest.raises(InputError, match="k and block"):
        SpectralRegularization(k=0)
    with pytest.raises(AttachError, match="no weight matrix"):
        attach(nn.LayerNorm(4))
    handle = attach(nn.Linear(4, 4))
    with pytest.raises(InputError, match="other matrices"):
        handle.load_state_dict(attach(nn.Linear(5, 4)).state_dict())


def test_fused_scaled_gradients():
    """The rank-one writes know the scale that a fused optimizer will take out again."""
    ends = []
    for scaled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 9), nn.LayerNorm(9), nn.Linear(9, 4))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=True)
        SpectralRegularization(coef=0.1).attach(model, optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=4096.0, enabled=scaled)
        for _ in range(30):
            optimizer.zero_grad()
            scaler.scale(model(torch.ones(3, 6)).square().sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(*ends, rtol=1e-5, atol=1e-6)
