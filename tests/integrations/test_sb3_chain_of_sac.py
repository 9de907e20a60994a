"""CHAIN for SAC and TD3 through the callback against the losses of the paper, written out with deep copies.

At update t the critics learn L + λ_Q · mean_k MSE(Q_k(B; θ), Q_k(B; θ_{t-1})) on stored actions, SAC's actor
L + β · mean|min Q − α log π| · KL(π_θ ‖ π_θ_{t-1}) and TD3's L + β · mean|Q_1| · MSE of the actions (Tang & Berseth
2024, arXiv 2409.04792, and its code). The twins take from the handles which batch B was drawn and nothing else; the
training loops are their own. Everything is float64.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as nnf

pytest.importorskip("stable_baselines3")
pytestmark = pytest.mark.rl

from stable_baselines3 import DQN, PPO, SAC, TD3  # noqa: E402
from stable_baselines3.common import policies  # noqa: E402
from stable_baselines3.common.utils import polyak_update  # noqa: E402
from tests.integrations.test_stable_baselines3 import agent, normalised  # noqa: E402

from supple.errors import AttachError, InputError  # noqa: E402
from supple.integrations.stable_baselines3 import SuppleCallback, networks  # noqa: E402
from supple.interventions import CChain  # noqa: E402

STEPS, UPDATES = 130, 80  # one update a step after the first fifty
VALUES, ACTIONS = 0.2, 5e-2
Drawn = dict[str, list[Any]]


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """SB3 casts observations to float32 before the first layer; here back."""
    cast = policies.preprocess_obs
    monkeypatch.setattr(policies, "preprocess_obs", lambda *a, **k: cast(*a, **k).double())
    own = "supple.integrations.sb3_networks.preprocess"
    from supple.integrations.sb3_networks import preprocess

    monkeypatch.setattr(own, lambda *a: preprocess(*a).double())


def make(cls: Any) -> Any:
    made = cls(
        "MlpPolicy", "Pendulum-v1", learning_starts=50, buffer_size=500, batch_size=32, train_freq=1, seed=0,
        gradient_steps=1, device="cpu", policy_kwargs={"net_arch": [16, 16]},
    )  # fmt: skip
    made.policy.double()
    return made


def chains(cls: Any, **more: Any) -> dict[str, list[Any]]:
    kind = "gaussian" if cls.__name__.startswith("SAC") else "mse"
    return {
        "actor": [CChain(kind=kind, coef=ACTIONS, by_loss=True, **more)],
        "critic": [CChain(kind="mse", coef=VALUES, **more)],
    }


def carried(cls: Any, interventions: Any) -> tuple[Any, Drawn, SuppleCallback]:
    """A run of SB3's own loop under the callback, and the reference batches of every step of both optimizers."""
    model, drawn = make(cls), {"actor": [], "critic": []}
    callback = SuppleCallback(every=10**6, probe_size=32, interventions=interventions)

    def note(name: str) -> Any:
        def hook(*_: Any) -> None:
            kept = dict(zip(("actor", "critic"), callback.handles, strict=True))[name].reference
            drawn[name].append(None if kept is None else [t.clone() for t in kept.batch.tensors.values()])

        return hook

    for name in drawn:
        getattr(model.policy, name).optimizer.register_step_pre_hook(note(name))
    model.learn(STEPS, callback=callback)
    callback.detach()
    return model, drawn, callback


class Twin:
    """What both twins share: copies of the networks before their last update, and the critics' term."""

    drawn: Drawn
    policy: Any
    old: dict[str, Any]

    def next_batch(self, name: str) -> Any:
        self.count = getattr(self, "count", {"actor": 0, "critic": 0})
        self.count[name] += 1
        return self.drawn[name][self.count[name] - 1]

    def keep(self, name: str) -> None:
        self.old = {**getattr(self, "old", {}), name: copy.deepcopy(getattr(self.policy, name))}

    def churn_of_values(self) -> Tensor | float:
        batch = self.next_batch("critic")
        if batch is None:
            return 0.0
        pairs = zip(self.critic(*batch), self.old["critic"](*batch), strict=True)  # type: ignore[attr-defined]
        return VALUES * 0.5 * sum(nnf.mse_loss(new, old.detach()) for new, old in pairs)

    def step(self, name: str, loss: Tensor) -> None:
        optimizer = getattr(self.policy, name).optimizer
        optimizer.zero_grad()
        loss.backward()
        self.keep(name)
        optimizer.step()


class SACTwin(SAC, Twin):
    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        self.policy.set_training_mode(True)
        for _ in range(gradient_steps):
            data = self.replay_buffer.sample(batch_size)
            x, rows = data.observations, torch.arange(batch_size)
            actions, log_pi = self.actor.action_log_prob(x)
            alpha = self.log_ent_coef.detach().exp()
            self.ent_coef_optimizer.zero_grad()
            (-self.log_ent_coef * (log_pi.detach() + self.target_entropy)).mean().backward()
            self.ent_coef_optimizer.step()
            with torch.no_grad():
                following, log_next = self.actor.action_log_prob(data.next_observations)
                ahead = torch.stack(self.critic_target(data.next_observations, following)).amin(0)[rows, 0]
                ahead = ahead - alpha * log_next
                wanted = data.rewards[:, 0] + (1 - data.dones[:, 0]) * self.gamma * ahead
            found = self.critic(x, data.actions)
            errors = sum(((q[:, 0] - wanted) ** 2).mean() for q in found)
            self.step("critic", 0.5 * errors + self.churn_of_values())
            gain = torch.cat(self.critic(x, actions), 1).amin(1) - alpha * log_pi
            self.step("actor", -gain.mean() + gain.detach().abs().mean() * self.churn_of_policy())
            polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)

    def churn_of_policy(self) -> Tensor | float:
        batch = self.next_batch("actor")
        if batch is None:
            return 0.0
        new, old = (
            torch.distributions.Normal(mean, log.exp())
            for mean, log, _ in (a.get_action_dist_params(batch[0]) for a in (self.actor, self.old["actor"]))
        )
        frozen = torch.distributions.Normal(old.loc.detach(), old.scale.detach())
        return ACTIONS * torch.distributions.kl_divergence(new, frozen).sum(1).mean()


class TD3Twin(TD3, Twin):
    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        self.policy.set_training_mode(True)
        for _ in range(gradient_steps):
            self._n_updates += 1
            data = self.replay_buffer.sample(batch_size)
            x = data.observations
            with torch.no_grad():
                noise = data.actions.clone().data.normal_(0, self.target_policy_noise)
                noise = noise.clamp(-self.target_noise_clip, self.target_noise_clip)
                following = (self.actor_target(data.next_observations) + noise).clamp(-1, 1)
                ahead = torch.cat(self.critic_target(data.next_observations, following), 1).amin(1)
                wanted = data.rewards[:, 0] + (1 - data.dones[:, 0]) * self.gamma * ahead
            errors = sum(((q[:, 0] - wanted) ** 2).mean() for q in self.critic(x, data.actions))
            self.step("critic", errors + self.churn_of_values())
            if self._n_updates % self.policy_delay == 0:
                value = self.critic.q1_forward(x, self.actor(x))[:, 0]
                self.step("actor", -value.mean() + value.detach().abs().mean() * self.churn_of_policy())
                polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
                polyak_update(self.actor.parameters(), self.actor_target.parameters(), self.tau)

    def churn_of_policy(self) -> Tensor | float:
        batch = self.next_batch("actor")
        if batch is None:
            return 0.0
        return ACTIONS * ((self.actor(batch[0]) - self.old["actor"](batch[0]).detach()) ** 2).mean()


def gap(one: Any, other: Any) -> float:
    pairs = zip(one.policy.parameters(), other.policy.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def twin(cls: Any, drawn: Drawn) -> Any:
    made = make({SAC: SACTwin, TD3: TD3Twin}[cls])
    made.drawn = drawn
    return made.learn(STEPS)


@pytest.mark.parametrize("cls", [SAC, TD3])
def test_chain_equals_the_losses_of_the_paper(cls: Any, in_float64: None) -> None:
    model, drawn, callback = carried(cls, chains(cls))
    actor_updates = UPDATES if cls is SAC else UPDATES // 2
    assert [len(v) for v in drawn.values()] == [actor_updates, UPDATES]
    assert all([b is None for b in v] == [True] * 2 + [False] * (len(v) - 2) for v in drawn.values())
    assert gap(model, twin(cls, drawn)) < 1e-8
    nothing = {name: [None] * len(v) for name, v in drawn.items()}
    for name in drawn:  # each of the two terms makes a difference
        assert gap(model, twin(cls, {**drawn, name: nothing[name]})) > 1e-5, name
    assert all(h.readings()["penalty"] > 0 for h in callback.handles)


@pytest.mark.parametrize("cls", [SAC, TD3])
def test_the_critics_are_damped_on_stored_actions_alone(cls: Any) -> None:
    model = agent(cls, train_freq=1, gradient_steps=1, batch_size=32)
    callback = SuppleCallback(every=10**6, probe_size=32, interventions=chains(cls, memory=100))
    model.learn(90, callback=callback)
    batches = callback.handles[1].past.batches
    assert len(batches) == callback.handles[1].step == 40  # one a step: not the actor's look at the critic
    stored = torch.as_tensor(model.replay_buffer.actions[: model.replay_buffer.pos]).flatten()
    assert all(torch.isin(batch.tensors[1].flatten(), stored).all() for batch in batches)
    callback.detach()


def test_a_normalised_agent_and_a_fixed_temperature() -> None:
    model = agent(SAC, env=normalised("Pendulum-v1"), ent_coef=0.1, train_freq=1)
    callback = SuppleCallback(every=20, probe_size=32, interventions=chains(SAC))
    model.learn(90, callback=callback)
    assert all(h.readings()["penalty"] > 0 for h in callback.handles)
    assert callback.handles[0].readings()["coefficient"] > 0
    callback.detach()
    hooks = [m for m in model.policy.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks


def test_a_target_follows_the_loss_of_an_actor() -> None:
    rule = CChain(kind="mse", target=1e-3, start=5, window=10, cap=1e6)
    callback = SuppleCallback(every=10**6, probe_size=32, interventions={"actor": [rule]})
    agent(TD3, train_freq=1).learn(110, callback=callback)
    handle = callback.handles[0]
    assert handle.losses_seen == handle.step > 15
    assert float(handle.coefficient()) not in (rule.coef, rule.cap)
    callback.detach()


@pytest.mark.parametrize(
    ("cls", "where", "rule", "says"),
    [
        (PPO, None, CChain(kind="gaussian"), r'C-CHAIN on logits needs another distance.*kind="kl"'),
        (TD3, "actor", CChain(kind="gaussian"), r'C-CHAIN on means needs another distance.*do: kind="mse"'),
        (SAC, "actor", CChain(kind="kl"), r'do: kind="gaussian" or kind="mse"'),
        (SAC, None, CChain(kind="gaussian"), r"C-CHAIN on values needs another distance.*leaves this network out"),
        (SAC, "critic", CChain(kind="mse", by_loss=True), r"cannot follow the loss here.*found: by_loss=True"),
        (DQN, None, CChain(kind="mse", target=0.01), r"cannot follow the loss here.*found: target=0.01"),
        (PPO, None, CChain(target=1e4, kind="ce"), r"cannot follow the loss here"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_a_step(cls: Any, where: Any, rule: Any, says: str) -> None:
    model = agent(cls)
    given = [rule] if where is None else {where: [rule]}
    with pytest.raises(InputError, match=says):
        model.learn(200, callback=SuppleCallback(interventions=given))
    assert model.num_timesteps == 0


def test_a_loss_that_was_not_told_is_one_message() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = CChain(kind="mse", coef=0.5, by_loss=True).attach(model, optimizer)
    used = []
    for t in range(5):
        optimizer.zero_grad()
        loss = model(torch.randn(4, 3)).square().mean()
        if t < 4:
            handle.observe_loss(-loss)
        loss.backward()
        if t == 4:
            with pytest.raises(AttachError, match=r"has not seen that of this one.*observe_loss"):
                optimizer.step()
            break
        optimizer.step()
        used.append((float(handle.coefficient()), 0.5 * loss.item()))
    assert all(a == pytest.approx(b) for a, b in used)
    with pytest.raises(InputError, match="two rules for one coefficient"):
        CChain(by_loss=True, target=1.0)
    with pytest.raises(InputError, match="which output to compare"):
        CChain(kind="gaussian").select((torch.zeros(3, 2), torch.zeros(3, 1)))


def test_views_of_sac_say_what_sb3_says() -> None:
    model = agent(SAC).learn(80)
    x = torch.as_tensor(model.replay_buffer.observations[:60, 0])
    a = torch.as_tensor(model.replay_buffer.actions[:60, 0])
    with torch.no_grad():
        model.actor.log_std.bias.fill_(30.0)  # beyond SB3's bound
        mean, log_std, _ = model.actor.get_action_dist_params(x)
        parts = networks(model)
        mine = parts["actor"].module(parts["actor"].inputs(x, a))
        assert torch.equal(mine[0], mean)
        assert torch.equal(mine[1], log_std)
        assert float(mine[1].max()) == 2.0
        values = parts["critic"].module(*parts["critic"].inputs(x, a))
        assert torch.equal(values, torch.cat(model.critic(x, a), 1))
    assert set(dict(parts["critic"].module.named_parameters())) == set(dict(model.critic.named_parameters()))
