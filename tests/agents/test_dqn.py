"""The compact DQN: its loss against the definition, schedules, learning, resume, and what sees its passes."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from supple.agents import DQN, DQNConfig, Transitions, q_network
from supple.errors import InputError
from supple.interventions import CChain, ReDo, ResetEvent
from supple.streams.rl import ObservationOffset, VectorCartPole
from supple.streams.rl.minatar import IDLE
from supple.streams.rl.published import DDQN_MINATAR

TINY = DQNConfig(
    hidden=(16,), batch=8, capacity=300, target_every=7, random_steps=20, epsilon_steps=100,
    steps_per_iteration=40, learning_rate=1e-3,
)  # fmt: skip


def agent(seed: int = 0, copies: int = 4, **settings: object) -> DQN:
    env = ObservationOffset(VectorCartPole(copies=copies, limit=30, seed=seed), seed=7)
    return DQN(env, replace(TINY, **settings), seed=seed)


def weights(*networks: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for n in networks for p in n.parameters()])


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("kind", ["mse", "huber"])
def test_loss_equals_the_definition(double: bool, kind: str) -> None:
    it = agent(double=double, loss=kind)
    it.net.double(), it.target.double()
    with torch.no_grad():
        for p in it.target.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=it.generator))
    rng = np.random.default_rng(1)
    n = 20
    batch = Transitions(
        torch.from_numpy(rng.normal(size=(n, 4))), torch.from_numpy(rng.integers(2, size=n)),
        torch.from_numpy(rng.normal(size=n)), torch.from_numpy(rng.normal(size=(n, 4))),
        torch.from_numpy((rng.random(n) < 0.4).astype(float)),
    )  # fmt: skip

    def q(net: nn.Module, x: np.ndarray) -> np.ndarray:  # one hidden layer, by hand
        w1, b1, w2, b2 = (p.detach().numpy() for p in net.parameters())
        return np.maximum(w1 @ x + b1, 0) @ w2.T + b2

    want = 0.0
    for x, a, r, y, end in zip(*(t.numpy() for t in vars(batch).values()), strict=True):
        choice = int(np.argmax(q(it.net if double else it.target, y)))
        error = q(it.net, x)[a] - (r + 0.99 * (0.0 if end else q(it.target, y)[choice]))
        want += error**2 if kind == "mse" else (0.5 * error**2 if abs(error) < 1 else abs(error) - 0.5)
    np.testing.assert_allclose(it.loss(batch).item(), want / n, rtol=1e-12)


def test_schedules() -> None:
    it = agent(copies=2)
    assert it.epsilon == 1.0
    for _ in range(10):
        it.interact()
    assert (it.steps, it.decided, it.random_left, it.epsilon) == (20, 0, 0, 1.0)
    for _ in range(25):
        it.interact()
    assert it.epsilon == pytest.approx(1.0 + 0.5 * (0.1 - 1.0))
    for _ in range(100):
        it.interact()
    assert it.epsilon == pytest.approx(0.1)
    it.task()
    assert (it.random_left, len(it.replay)) == (20, 270)
    assert it.iterate().updates == 20  # 40 steps, of which 20 are random: none of those learns
    assert it.epsilon == pytest.approx(0.1)


def test_update_every_and_the_hard_copy() -> None:
    it = agent(update_every=4, random_steps=0, target_every=3)
    assert it.iterate().updates == 10  # after 9 of them the last copy
    assert not torch.equal(weights(it.net), weights(it.target))
    for _ in range(2):
        it.learn(it.replay.sample(8, it.generator))
    assert torch.equal(weights(it.net), weights(it.target))
    assert not any(p.requires_grad for p in it.target.parameters())


def test_time_limit_is_no_end_of_the_task() -> None:
    it = DQN(VectorCartPole(copies=1, limit=3, seed=0), replace(TINY, steps_per_iteration=6))
    it.iterate()
    assert not it.replay.columns["terminated"][:6].any()
    kept = it.replay.columns
    assert not np.allclose(kept["following"][2], kept["observations"][3])  # the final one, not the restart
    np.testing.assert_allclose(kept["following"][1], kept["observations"][2])


def test_it_learns_cartpole() -> None:
    it = DQN(VectorCartPole(copies=8, seed=1), DQNConfig.small(), seed=1)
    first = np.mean(it.iterate().returns)
    last = [r for _ in range(11) for r in it.iterate().returns][-20:]
    assert np.mean(last) > 3 * first


def test_same_seed_same_agent() -> None:
    state = torch.random.get_rng_state()
    one, two = agent(3), agent(3)
    one.iterate(), two.iterate()
    assert torch.equal(weights(one.net, one.target), weights(two.net, two.target))
    assert not torch.equal(weights(one.net), weights(agent(4).net))
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("when", [0, 1, 3])
def test_resume_goes_on_bit_for_bit(when: int) -> None:
    one = agent(1)
    for _ in range(when):
        one.iterate()
    one.env.task(2)
    state = one.state_dict()
    kept = copy.deepcopy(state)
    two = agent(99)
    two.load_state_dict(state)
    for _ in range(4):
        assert str(one.iterate()) == str(two.iterate())  # NaN is equal to itself in text
        assert torch.equal(weights(one.net, one.target), weights(two.net, two.target))
    three = agent(5)
    three.load_state_dict(kept)
    four = agent(6)
    four.load_state_dict(state)  # neither agent's course has written into the state
    three.iterate(), four.iterate()
    assert torch.equal(weights(three.net, three.target), weights(four.net, four.target))


def test_a_state_can_be_stored(tmp_path) -> None:
    from supple.store.encode import decode, encode

    one, two = agent(1), agent(2)
    one.iterate()
    table: dict[str, torch.Tensor] = {}
    two.load_state_dict(decode(encode(one.state_dict(), table), table))
    assert str(one.iterate()) == str(two.iterate())


def test_a_foreign_state_changes_nothing() -> None:
    one = agent()
    before = weights(one.net)
    cases = [agent(gamma=0.5), agent(capacity=200)]
    for other in cases:
        with pytest.raises(InputError, match="other settings"):
            one.load_state_dict(other.state_dict())
    state = agent(8).state_dict()
    state["target"] = {n: t[:1] for n, t in state["target"].items()}
    with pytest.raises(InputError, match="another network; where: target"):
        one.load_state_dict(state)
    with pytest.raises(InputError, match="another environment"):
        one.load_state_dict(agent(8, copies=2).state_dict())
    other = DQN(one.env, TINY, net=one.net, optimizer=torch.optim.SGD(one.net.parameters(), lr=0.1))
    with pytest.raises(InputError, match="another optimizer"):
        one.load_state_dict(other.state_dict())
    one.iterate()
    state = one.state_dict()
    state["replay"]["capacity"] = 7
    for broken in (state, {**one.state_dict(), "env": {"index": 0, "env": {"state": torch.zeros(3, 4)}}}):
        one.iterate()
        seen, size = weights(one.net, one.target), len(one.replay)
        with pytest.raises(InputError):
            one.load_state_dict(broken)
        assert torch.equal(seen, weights(one.net, one.target))
        assert len(one.replay) == size
    assert not torch.equal(before, weights(one.net))


def test_listeners_are_told_and_heard() -> None:
    plain, told = agent(), agent()
    seen: list[float] = []
    told.on_loss.append(lambda loss: seen.append(loss.item()))
    assert plain.iterate() == told.iterate()
    assert len(seen) == 20
    told.on_loss.append(lambda loss: loss)  # twice the loss: Adam moves elsewhere only through its epsilon
    batch = told.replay.sample(8, torch.Generator().manual_seed(0))
    plain.learn(batch), told.learn(batch)
    for p, t in zip(plain.net.parameters(), told.net.parameters(), strict=True):
        torch.testing.assert_close(2 * p.grad, t.grad)


def test_only_the_trained_pass_is_taken_for_training() -> None:
    it = agent(double=True)
    trained: list[torch.Tensor] = []
    whole = it.loss
    it.loss = lambda batch: (trained.append(batch.observations), whole(batch))[1]  # type: ignore[method-assign]
    handle = CChain(kind="mse", memory=64).attach(it.net, it.optimizer)
    redo = ReDo(every=5).attach(it.net, it.optimizer)
    passes: list[int] = []
    it.net.register_forward_pre_hook(lambda m, args: passes.append(1))
    it.iterate()
    assert len(handle.past.batches) == len(trained) == 20
    assert len(passes) > 2 * len(trained)
    for kept, batch in zip(handle.past.batches, trained, strict=True):
        assert torch.equal(kept.tensors[0], batch)
    assert redo.step == 20


def test_resets_reach_the_target() -> None:
    it = agent(target_every=10_000)
    with torch.no_grad():
        it.net.fc1.bias[:4] = -50.0
    it.sync_target()
    handle = ReDo(tau=0.0, every=5).attach(it.net, it.optimizer)
    handle.follow(it.target)
    it.iterate()
    born = next(e for e in handle.log if isinstance(e, ResetEvent))
    assert set(born.units) >= {0, 1, 2, 3}
    assert (it.target.fc1.bias[:4] == 0).all()
    assert (it.target.head.weight[:, list(born.units)] == 0).all()
    old = agent()
    others = [u for u in range(16) if all(u not in e.units for e in handle.log if isinstance(e, ResetEvent))]
    assert torch.equal(it.target.fc1.weight[others], old.net.fc1.weight[others])  # no copy has been made


def test_a_network_from_elsewhere() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = weights(net)
    it = DQN(VectorCartPole(copies=4), TINY, net=net, optimizer=optimizer)
    assert (it.net, it.optimizer) == (net, optimizer)
    assert it.iterate().updates == 20
    assert not torch.equal(before, weights(net))
    assert len(it.target) == 4


def test_the_defaults_are_the_published_settings() -> None:
    facts, c = DDQN_MINATAR, DQNConfig()
    assert facts["network"] == f"conv {c.channels[0]} (3 x 3), dense {c.hidden[0]}"
    names = {
        "learning_rate": "learning_rate", "batch": "batch", "target_update": "target_every", "buffer": "capacity",
        "gamma": "gamma", "loss": "loss", "epsilon_steps": "epsilon_steps", "random_steps_per_task": "random_steps",
    }  # fmt: skip
    assert {k: facts[k] for k in names} == {k: getattr(c, n) for k, n in names.items()}
    assert facts["epsilon"] == (c.epsilon_start, c.epsilon_end)
    assert facts["idle_cut"] == IDLE
    assert c.double


def test_networks() -> None:
    net = q_network((10, 10, 10), 6, DQNConfig())
    shapes = [tuple(p.shape) for p in net.parameters()]
    assert shapes == [(16, 10, 3, 3), (16,), (128, 1024), (128,), (6, 128), (6,)]
    assert net(torch.zeros(2, 10, 10, 10)).shape == (2, 6)
    assert q_network((10, 10, 10), 6, DQNConfig(activation="crelu"))(torch.zeros(2, 10, 10, 10)).shape == (
        2,
        6,
    )
    with pytest.raises(InputError, match="vectors"):
        q_network((3, 3), 2, DQNConfig())


@pytest.mark.parametrize(
    ("settings", "match"),
    [({"batch": 0}, "positive"), ({"epsilon_end": 2.0}, "epsilon_end"), ({"loss": "l1"}, "unknown loss"),
     ({"random_steps": -1}, "positive"), ({"steps_per_iteration": 41}, "multiple"), ({"capacity": 3}, "capacity")],
)  # fmt: skip
def test_refusals(settings: dict, match: str) -> None:
    with pytest.raises(InputError, match=match):
        agent(**settings)
