"""Expert vectors: a bank, mixing by the cross-entropy method, two passes, policy gradients; a GPT that adapts."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest
import torch
from torch import nn

from supple.errors import AttachError, InputError, StoreError
from supple.models import GPT
from supple.nn import ExpertBank, cross_entropy_method, policy_gradient_loss, svf_


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 6))


def bank(form: str = "plain", seed: int = 1) -> tuple[nn.Module, ExpertBank]:
    """Three random experts."""
    model = net()
    found = ExpertBank(svf_(model, form=form))
    g = torch.Generator().manual_seed(seed)
    for name in ("code", "maths", "law"):
        with torch.no_grad():
            for z in found.adapter.z:
                z.uniform_(0.3, 1.7, generator=g)
        found.keep(name)
    return model, found


@pytest.mark.parametrize("form", ["plain", "published"])
def test_one_expert_none_and_a_mix(form: str) -> None:
    model, found = bank(form)
    x = torch.randn(5, 12)
    with found.adapter.disabled():
        base = model(x)
    found.use("law")
    alone = model(x)
    assert not torch.allclose(alone, base)
    with found.adapter.disabled():
        assert torch.equal(model(x), base)
    found.use(None)
    torch.testing.assert_close(model(x), base, rtol=1e-5, atol=1e-6)
    found.mix({"law": 1.0})
    torch.testing.assert_close(model(x), alone, rtol=1e-4, atol=1e-5)
    found.mix({"law": 0.5, "code": 0.25})
    if form == "plain":
        want = 1 + 0.5 * (found.experts["law"][0] - 1) + 0.25 * (found.experts["code"][0] - 1)
        torch.testing.assert_close(found.adapter.z[0].detach(), want)
        found.mix({"law": 0.0})
        torch.testing.assert_close(model(x), base, rtol=1e-5, atol=1e-6)
        return
    s = found.adapter._factors[0][1]
    mask = 0.5 * found.experts["law"][0].sigmoid() + 0.25 * found.experts["code"][0].sigmoid()
    torch.testing.assert_close(
        found.adapter.scale(0).detach(), mask * s.sum() / (s * mask).sum(), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(InputError, match="above 0"):
        found.mix({"law": 0.0})


def test_a_mix_beats_the_best_single_expert_on_a_planted_mixture() -> None:
    model, found = bank()
    x = torch.randn(64, 12, generator=torch.Generator().manual_seed(3))
    found.mix({"code": 0.7, "maths": 0.2, "law": 0.9})
    target = model(x).detach()

    def score() -> float:
        with torch.no_grad():
            return -float((model(x) - target).square().mean())

    singles = {}
    for name in found.experts:
        found.use(name)
        singles[name] = score()
    found.use(None)
    base = score()
    weights = found.few_shot(score, rounds=20)
    assert score() > 0.02 * max(*singles.values(), base)  # the error is a fiftieth of the best single one's
    assert weights == pytest.approx({"code": 0.7, "maths": 0.2, "law": 0.9}, abs=0.1)


def test_the_search_never_falls_behind_a_single_member_and_takes_nan_as_the_lowest() -> None:
    def sharp(w: torch.Tensor) -> float:
        return 1.0 if w.tolist() == [0.0, 1.0, 0.0] else float("nan")

    found = cross_entropy_method(sharp, 3, rounds=3)
    assert found.best.tolist() == [0.0, 1.0, 0.0]
    assert found.course == (1.0, 1.0, 1.0)
    state = torch.get_rng_state()
    again = [cross_entropy_method(lambda w: float(w.sum()), 2, rounds=4, seed=5).best for _ in range(2)]
    assert torch.equal(*again)
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(InputError, match="two elites"):
        cross_entropy_method(sharp, 3, population=4)
    with pytest.raises(InputError, match="no member had a score"):
        cross_entropy_method(lambda w: float("nan"), 3)


def test_a_search_that_fails_leaves_what_was_in_use() -> None:
    bank = ExpertBank(svf_(nn.Linear(3, 3)))
    bank.adapter.z[0].data.fill_(1.5)
    bank.keep("a")

    def broken() -> float:
        raise KeyError("a score of the user's")

    for score in (broken, lambda: float("nan")):
        with pytest.raises((KeyError, InputError)):
            bank.few_shot(score)
        assert bank.adapter.z[0].tolist() == [1.5, 1.5, 1.5]


def test_two_passes_classify_with_the_base_or_an_expert_and_answer_with_the_chosen_one() -> None:
    model, found = bank()
    x = torch.randn(1, 12)
    outputs = {}
    for name in (None, *found.experts):
        found.use(name)
        outputs[name] = model(x).detach()
    seen = []

    def classify(word: str) -> str:
        seen.append(model(x).detach())
        return word

    for word, chosen in (("code", "code"), ("maths", "maths"), ("poetry", None)):
        got = found.two_pass(word, classify, lambda _: model(x).detach())
        assert torch.equal(got, outputs[chosen])
        assert torch.equal(seen[-1], outputs[None])
    found.two_pass("code", classify, lambda _: None, classifier="law")
    assert torch.equal(seen[-1], outputs["law"])
    got = found.two_pass("law", classify, lambda _: model(x).detach(), classifier="law")
    assert torch.equal(got, outputs[None])  # the classifier answers nothing itself


def test_banks_are_saved_and_refuse_another_base(tmp_path: Path) -> None:
    _, found = bank()
    found.use("law")
    before = [z.detach().clone() for z in found.adapter.z]
    found.save(tmp_path / "bank")
    assert all(torch.equal(a, b) for a, b in zip(before, found.adapter.z, strict=True))
    again = ExpertBank(svf_(net()))
    again.load(tmp_path / "bank")
    assert list(again.experts) == ["code", "law", "maths"]
    assert torch.equal(again.experts["maths"][1], found.experts["maths"][1])
    other = ExpertBank(svf_(net(seed=9)))
    with pytest.raises(StoreError, match="another base weight"):
        other.load(tmp_path / "bank")
    assert not other.experts
    with pytest.raises(InputError, match="no experts"):
        other.load(tmp_path)
    with pytest.raises(InputError, match="unknown expert 'x'"):
        found.use("x")
    with pytest.raises(InputError, match="finite weights"):
        found.mix({"law": float("nan")})
    with pytest.raises(InputError, match="a name"):
        found.keep("../x")
    with pytest.raises(InputError, match="no expert"):
        other.few_shot(lambda: 0.0)
    found.adapter.merge()
    with pytest.raises(AttachError, match="merged"):
        found.use("law")
    with pytest.raises(AttachError, match="merged"), found.adapter.disabled():
        pass


def test_policy_gradient_is_the_formula_and_raises_what_is_rewarded() -> None:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 5, generator=g, dtype=torch.float64, requires_grad=True)
    base, tokens = (
        torch.randn(3, 4, 5, generator=g, dtype=torch.float64),
        torch.randint(5, (3, 4), generator=g),
    )
    rewards, counted = torch.tensor([1.0, -1, 0.5]), torch.rand(3, 4, generator=g) < 0.7
    want = 0.0
    p, q = logits.detach().softmax(-1), base.softmax(-1)
    for b in range(3):
        for t in range(4):
            if counted[b, t]:
                kl = sum(float(p[b, t, v] * (p[b, t, v] / q[b, t, v]).log()) for v in range(5))
                want += (-float(rewards[b] * p[b, t, tokens[b, t]].log()) + 0.3 * kl) / 3
    got = policy_gradient_loss(logits, tokens, rewards, base, kl=0.3, counted_BT=counted)
    assert got.item() == pytest.approx(want, rel=1e-9)
    with pytest.raises(InputError, match="do not fit"):
        policy_gradient_loss(logits, tokens[:, :3], rewards, base)

    torch.manual_seed(0)
    model = GPT(8, dim=16, depth=2, heads=2, context=8)
    adapter = svf_(model, targets=["qkv", "out", "up", "down"])
    optimizer = torch.optim.Adam(adapter.parameters(), lr=5e-2)
    x = torch.zeros(32, 4, dtype=torch.long)

    def liked() -> float:
        with torch.no_grad():
            return float(model(x[:1])[0, -1].softmax(-1)[3])

    before = liked()
    for _ in range(40):
        out = model(x)[:, -1:]
        with adapter.disabled(), torch.no_grad():
            plain = model(x)[:, -1:]
        said = torch.multinomial(out[:, 0].detach().softmax(-1), 1, generator=g)
        reward = torch.where(said[:, 0] == 3, 1.0, -1.0)
        loss = policy_gradient_loss(out, said, reward, plain, kl=0.01)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert liked() > 1.1 * before


def test_six_layers_adapt_to_a_new_domain_with_under_half_a_percent_of_their_weights() -> None:
    """From the help texts of Python to its own source; the loss is of a stretch that was not trained on."""
    topics = pytest.importorskip("pydoc_data.topics")
    texts = ("\n".join(topics.topics.values()), inspect.getsource(ast) + inspect.getsource(inspect))
    prose, code = (torch.tensor(list(t.encode())[:60_000]) for t in texts)
    torch.manual_seed(0)
    model = GPT(256, dim=96, depth=6, heads=4, context=32)
    g = torch.Generator().manual_seed(0)

    def batch(text: torch.Tensor, rows: int = 16) -> torch.Tensor:
        at = torch.randint(len(text) - 33, (rows, 1), generator=g)
        return text[at + torch.arange(33)]

    def loss(rows: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())

    def train(parameters: list[nn.Parameter], text: torch.Tensor, rate: float, steps: int) -> None:
        optimizer = torch.optim.Adam(parameters, lr=rate)
        for _ in range(steps):
            found = loss(batch(text))
            optimizer.zero_grad()
            found.backward()
            optimizer.step()

    train(list(model.parameters()), prose, 3e-3, 60)
    held = batch(code[50_000:], 64)
    frozen = float(loss(held).detach())
    adapter = svf_(model, targets=["qkv", "out", "up", "down"])
    share = sum(z.numel() for z in adapter.parameters()) / sum(p.numel() for p in model.parameters())
    train(list(adapter.parameters()), code[:50_000], 2e-2, 40)
    assert share < 0.005
    assert float(loss(held).detach()) < frozen - 0.02
