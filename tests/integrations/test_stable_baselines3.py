"""The SB3 callback: a bit-identical run, measurements that arrive, interventions on every algorithm, tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")
pytestmark = pytest.mark.rl

import gymnasium  # noqa: E402
from gymnasium import spaces  # noqa: E402
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3  # noqa: E402
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize  # noqa: E402

import supple  # noqa: E402
from supple.errors import InputError  # noqa: E402
from supple.integrations import sb3_probe  # noqa: E402
from supple.integrations.stable_baselines3 import SuppleCallback, networks, switch_env  # noqa: E402
from supple.streams.rl.gym import ObservationOffset, TaskSequence  # noqa: E402

SMALL = {
    PPO: {"env": "CartPole-v1", "n_steps": 64, "batch_size": 32, "n_epochs": 2},
    A2C: {"env": "CartPole-v1", "n_steps": 16},
    DQN: {"env": "CartPole-v1", "learning_starts": 50, "buffer_size": 500, "train_freq": 4},
    SAC: {"env": "Pendulum-v1", "learning_starts": 50, "buffer_size": 500, "train_freq": 8},
    TD3: {"env": "Pendulum-v1", "learning_starts": 50, "buffer_size": 500, "train_freq": 8},
}
METHODS = supple.interventions


class Pixels(gymnasium.Env):
    """Random pictures; the reward is the brightness of a corner."""

    observation_space = spaces.Box(0, 255, (36, 36, 1), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.clock = 0
        return self.picture(), {}

    def picture(self) -> Any:
        return self.np_random.integers(0, 256, (36, 36, 1), dtype=np.uint8)

    def step(self, action: int) -> Any:
        self.clock += 1
        seen = self.picture()
        return seen, float(seen[0, 0, 0]) / 255, False, self.clock >= 20, {}


def agent(cls: Any, policy: str = "MlpPolicy", **more: Any) -> Any:
    settings = {**SMALL[cls], **more}
    if policy == "MlpPolicy":
        settings.setdefault("policy_kwargs", {"net_arch": [16, 16]})
    return cls(policy, seed=0, device="cpu", **settings)


def weights(model: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.policy.parameters()]


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def normalised(env: str) -> Any:
    return VecNormalize(DummyVecEnv([lambda: gymnasium.make(env)]))


@pytest.mark.parametrize("cls", list(SMALL))
def test_observing_leaves_the_run_bit_identical(cls: Any) -> None:
    alone = agent(cls).learn(200)
    callback = SuppleCallback(every=5, probe_size=48)
    watched = agent(cls).learn(200, callback=callback)
    assert same(alone, watched)
    callback.monitor.measure()
    rows = callback.monitor.records
    assert {"loss", "grama"} <= {r.instrument for r in rows}
    assert not [r for r in rows.select(instrument="loss") if r.status != "measured"]
    callback.detach()


@pytest.mark.parametrize("cls", [PPO, DQN])
def test_pictures_are_seen_as_the_network_sees_them(cls: Any) -> None:
    extractor = {"features_extractor_kwargs": {"features_dim": 8}, "net_arch": []}
    make = lambda: agent(cls, "CnnPolicy", env=Pixels(), policy_kwargs=extractor)
    callback = SuppleCallback(every=10, probe_size=32)
    alone = make().learn(72)
    assert same(alone, make().learn(72, callback=callback))
    x, _ = callback.monitor.probe
    assert 0.0 <= float(x.min()) < 0.1
    assert 0.9 < float(x.max()) <= 1.0
    callback.detach()


@pytest.mark.parametrize("cls", [PPO, SAC])
def test_normalised_observations_are_the_probe(cls: Any) -> None:
    name = SMALL[cls]["env"]
    callback = SuppleCallback(every=10, probe_size=48)
    alone = agent(cls, env=normalised(name)).learn(120)
    watched = agent(cls, env=normalised(name)).learn(120, callback=callback)
    assert same(alone, watched)
    raw, _ = sb3_probe.newest(
        agent(cls, env=name).learn(120), 48
    )  # a replay buffer holds what the environment showed
    column = -1  # a speed: its spread is far from 1
    spreads = [float(x[:, column].std()) for x in (raw, callback.monitor.probe[0])]
    assert abs(spreads[1] - 1.0) < 0.6 < abs(spreads[0] - 1.0) or cls is PPO
    callback.detach()


LISTED = [
    METHODS.ReDo(every=5, tau=0.5),
    METHODS.ReGraMa(every=5, tau=0.5),
    METHODS.ContinualBackprop(replacement_rate=0.05, maturity=3),
    METHODS.L2Init(coef=0.1),
    METHODS.SpectralRegularization(coef=0.1),
    METHODS.ShrinkAndPerturb(every=5),
    METHODS.Combination((METHODS.L2Init(coef=0.1), METHODS.ReDo(every=5, tau=0.5))),
]


@pytest.mark.parametrize("cls", list(SMALL))
def test_every_intervention_acts_on_every_network(cls: Any) -> None:
    alone = agent(cls).learn(128)
    chain = METHODS.CChain(coef=1.0, kind="kl" if cls in (PPO, A2C) else "mse")
    for intervention in [*LISTED, chain]:
        callback = SuppleCallback(every=10**6, probe_size=48, interventions=[intervention])
        changed = agent(cls).learn(128, callback=callback)
        names = list(networks(changed))
        assert len(callback.handles) == len(names) == (2 if cls in (SAC, TD3) else 1)
        for name, handle in zip(names, callback.handles, strict=True):
            own, other = (networks(x)[name].module for x in (changed, alone))
            pairs = zip(own.parameters(), other.parameters(), strict=True)
            assert handle.step > 0
            assert any(not torch.equal(a, b) for a, b in pairs), (name, intervention.name)
        callback.detach()


def test_a_mapping_chooses_the_network() -> None:
    callback = SuppleCallback(probe_size=48, interventions={"critic": [METHODS.ReDo(every=5, tau=0.5)]})
    agent(TD3).learn(80, callback=callback)
    assert [type(h.model).__name__ for h in callback.handles] == ["Critic"]
    callback.detach()
    wrong = SuppleCallback(interventions={"value": [METHODS.L2Init()]})
    with pytest.raises(InputError, match=r"no such network; found: \['value'\]"):
        agent(TD3).learn(16, callback=wrong)
    with pytest.raises(InputError, match="C-CHAIN on values needs another distance"):
        agent(DQN).learn(16, callback=SuppleCallback(interventions=[METHODS.CChain()]))


@pytest.mark.parametrize("cls", [DQN, TD3, SAC])
def test_target_networks_have_the_same_new_units_and_keep_their_age(cls: Any) -> None:
    """Just after a reset the target holds the fresh rows of the network, and else what SB3 alone gave it."""
    network = "q_net" if cls is DQN else "critic"
    # the reset is the last thing that happens: no copy and no average comes after it
    kept = {"target_update_interval": 10**6} if cls is DQN else {"tau": 0.0}
    reset = METHODS.ReDo(every=lambda step: step == 3, tau=10.0)  # all units
    callback = SuppleCallback(every=10**6, probe_size=40, interventions={network: [reset]})
    model = agent(cls, gradient_steps=1, learning_starts=48, **kept)
    old = [p.detach().clone() for p in networks(model)[network].target.parameters()]
    model.learn(72 if cls is not DQN else 60, callback=callback)
    part = networks(model)[network]
    events = [e for e in callback.handles[0].log if hasattr(e, "units")]
    assert events
    assert callback.handles[0].step == 3
    own, target = dict(part.module.named_parameters()), dict(part.target.named_parameters())
    for event in events:
        rows = list(event.units)
        assert torch.equal(target[f"{event.layer}.weight"][rows], own[f"{event.layer}.weight"][rows])
    last = next(n for n in reversed(list(target)) if n.endswith("bias"))
    assert torch.equal(target[last], old[list(target).index(last)])  # an output bias is no unit's
    assert not torch.equal(target[last], own[last])
    callback.detach()


def test_c_chain_is_told_the_minibatches_of_the_policy() -> None:
    callback = SuppleCallback(every=10**6, probe_size=32, interventions=[METHODS.CChain(coef=1.0)])
    model = agent(PPO).learn(64, callback=callback)
    handle = callback.handles[0]
    shapes = [tuple(next(iter(b.tensors.values())).shape) for b in handle.past.batches]
    assert shapes == [(32, 4)] * 4  # 64 samples, 2 epochs
    rollout = model.rollout_buffer.observations.reshape(-1, 4)
    seen = next(iter(handle.past.batches[-1].tensors.values())).numpy()
    assert all((abs(rollout - row).sum(1) < 1e-6).any() for row in seen)
    callback.detach()


def chain(every: int = 64, told: bool = True) -> Any:
    return TaskSequence(ObservationOffset(gymnasium.make("CartPole-v1"), seed=1), every=every, told=told)


@pytest.mark.parametrize("cls", [PPO, DQN])
def test_told_tasks_are_followed_and_each_has_its_probe(cls: Any) -> None:
    callback = SuppleCallback(
        every=4, probe_size=32, interventions=[METHODS.L2Init()], diagnose_at_switch=0.2
    )
    alone = agent(cls, env=chain()).learn(192)
    pulled = SuppleCallback(every=4, probe_size=32, diagnose_at_switch=0.2)
    assert same(alone, agent(cls, env=chain()).learn(192, callback=pulled))  # a diagnosis draws nothing
    pulled.detach()
    agent(cls, env=chain()).learn(192, callback=callback)
    assert callback.handles[0].task_index == 2
    assert [task for task, _ in callback.reports] == ["0", "1"]
    assert {r.task for r in callback.monitor.records} >= {"0", "1"}
    means, distances = callback.monitor.probe[0].mean(0).numpy(), []
    for index in range(3):
        env = ObservationOffset(gymnasium.make("CartPole-v1"), seed=1)
        env.task(index)
        distances.append(float(np.linalg.norm(means - env.offset)))
    assert np.argmin(distances) == 2
    assert len(callback.monitor.earlier) >= 1
    callback.detach()


def test_untold_tasks_stay_unknown() -> None:
    callback = SuppleCallback(every=4, probe_size=32, interventions=[METHODS.L2Init()])
    agent(PPO, env=chain(told=False)).learn(192, callback=callback)
    assert callback.handles[0].task_index == 0
    callback.detach()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"interventions": "ReDo"}, r"a list of them.*found: 'ReDo'.*create"),
        ({"interventions": ["ReDo"]}, r"a list of them.*found: 'ReDo'"),
        ({"interventions": METHODS.L2Init()}, r"a list of them.*found: L2Init"),
        ({"interventions": [METHODS.L2Init]}, r"a list of them.*found: <class"),
        ({"interventions": None}, r"a list of them.*found: None"),
        ({"interventions": {"policy": METHODS.L2Init()}}, r"a list of them.*found: L2Init"),
        ({"interventions": [{"name": "L2Init"}]}, r"a list of them.*found: \{'name'"),
        ({"probe_size": "a"}, r"at least 2 samples; found: 'a'"),
        ({"sinks": 3}, "trackers with log"),
        ({"sinks": [3]}, "trackers with log"),
        ({"diagnose_at_switch": "10"}, "number of seconds; found: '10'"),
        ({"every": 0}, "a number of steps >= 1"),
        ({"every": "task"}, "a number of steps >= 1"),
        ({"instruments": "bogus"}, "unknown instrument 'bogus'"),
    ],
)
def test_a_wrong_setting_is_refused_by_the_constructor(settings: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        SuppleCallback(**settings)


def test_what_is_refused() -> None:
    for wrong in (None, "abc"):
        with pytest.raises(InputError, match="not a state of a SuppleCallback"):
            SuppleCallback().load_state_dict(wrong)  # type: ignore[arg-type]
    for call in (networks, switch_env):
        with pytest.raises(InputError, match="not an agent of Stable-Baselines3; found: NoneType"):
            call(*(None,) * (1 if call is networks else 2))
    with pytest.raises(InputError, match="nothing has been observed"):
        SuppleCallback().diagnose()
    with pytest.raises(InputError, match="at least 2 samples"):
        SuppleCallback(probe_size=1)
    with pytest.raises(InputError, match="unknown choice for the statistics"):
        SuppleCallback(statistics="drop")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="number of seconds"):
        SuppleCallback(diagnose_at_switch=0)
    used = SuppleCallback(probe_size=32)
    agent(PPO).learn(64, callback=used)
    with pytest.raises(InputError, match="announced by its name; found: 3"):
        used.task(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"what callback.diagnose\(\) returned; found: str"):
        used.policy_report("report")
    with pytest.raises(InputError, match="attached to another agent"):
        agent(PPO).learn(64, callback=used)
    used.detach()
    with pytest.raises(InputError, match="use_sde"):
        agent(SAC, use_sde=True).learn(16, callback=SuppleCallback())
    with pytest.raises(InputError, match="not a state of a SuppleCallback"):
        SuppleCallback().load_state_dict({"monitor": {}})


@pytest.mark.parametrize("cls", list(SMALL))
def test_the_policy_report_of_every_algorithm(cls: Any) -> None:
    callback = SuppleCallback(every=10**6, probe_size=48)
    model = agent(cls).learn(100, callback=callback)
    before = [m.training for m in model.policy.modules()]
    report = callback.policy_report()
    assert [m.training for m in model.policy.modules()] == before
    expected = "not_measured" if cls is DQN else "absent"
    assert report.finding("policy_saturation").status == expected
    assert report.finding("exploration_failure").status == "not_measured"
    assert "over estimation" in str(report)
    if cls in (PPO, A2C):
        with torch.no_grad():
            model.policy.action_net.weight.mul_(1e4)
        saturated = callback.policy_report(callback.diagnose(budget=1.0), falls_short=True)
        assert saturated.finding("policy_saturation").status == "present"
        entropy, largest = saturated.finding("policy_saturation").evidence[:2]
        states, _ = sb3_probe.newest(model, 48)
        with torch.no_grad():
            distribution = model.policy.get_distribution(states).distribution
        expected = float(distribution.entropy().mean()) / np.log(2)
        assert entropy.value == pytest.approx(expected, abs=1e-5)
        assert largest.value > 10
    callback.detach()


def test_the_policy_report_of_actions_with_several_axes() -> None:
    class Grid(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)
        action_space = gymnasium.spaces.Box(-1.0, 1.0, (2, 3), np.float32)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            return np.ones(3, np.float32), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            return np.ones(3, np.float32), 0.0, False, False, {}

    callback = SuppleCallback(every=10**6, probe_size=32)
    PPO("MlpPolicy", Grid(), n_steps=64, batch_size=32, n_epochs=1, seed=0).learn(64, callback=callback)
    found = callback.policy_report().finding("policy_saturation")
    assert found.status == "absent"
    assert found.evidence[0].value == pytest.approx(1.0, abs=0.05)  # deviations begin at 1, half the range
    callback.detach()


def test_in_the_middle_of_a_rollout_only_what_was_seen_is_read() -> None:
    from stable_baselines3.common.callbacks import BaseCallback

    seen: list[int] = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps in (72, 104):  # two copies, the second rollout of 64 steps: 4 and 20 are in
                x, _ = sb3_probe.newest(self.model, 256)
                seen.append(len(x))
                assert bool((x.abs().sum(1) > 0).all())
            return True

    vec = DummyVecEnv([lambda: gymnasium.make("CartPole-v1")] * 2)
    agent(PPO, env=vec, n_steps=32).learn(128, callback=Look())
    assert seen == [6, 38]  # the running step is added after the callback
    with pytest.raises(InputError, match="nothing has been observed yet"):
        sb3_probe.newest(agent(PPO), 8)


def test_a_full_replay_buffer_gives_the_newest_steps_of_all_copies() -> None:
    vec = DummyVecEnv([lambda: gymnasium.make("CartPole-v1")] * 2)
    model = agent(DQN, env=vec, buffer_size=80, learning_starts=10**6).learn(104)
    buffer = model.replay_buffer
    assert buffer.full
    assert buffer.pos == 12  # 40 rows of 2 copies, written over from the start
    x, y = sb3_probe.newest(model, 40)
    rows = [*range(32, 40), *range(12)]
    np.testing.assert_array_equal(x.numpy(), buffer.observations[rows].reshape(-1, 4))
    assert y.dtype == torch.long
    assert len(y) == 40
