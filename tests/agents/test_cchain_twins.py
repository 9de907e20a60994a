"""C-CHAIN in PPO and in double DQN against the loss of the paper, written out with deep copies of the network.

At update t the paper's loss is L_RL(θ; B_train) + λ D(f(B_reg; θ_{t-1}), f(B_reg; θ)): D the cross entropy of the
policies in PPO, the mean squared difference of all Q values in DDQN, θ_{t-1} the parameters before the last update
(Tang et al. 2025, arXiv 2506.00592, and its code). The twins take from the handle which batch B_reg was drawn and
nothing else; their losses and their copies of the network are their own. Everything is float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from supple.agents import DQN, PPO, DQNConfig, PPOConfig, Transitions
from supple.agents.rollout import collect
from supple.interventions import CChain, LayerReset, ResetEvent
from supple.streams.rl import ObservationOffset, VectorCartPole, VectorMinAtar

PPO_SETTINGS = PPOConfig(
    hidden=(16, 16), steps_per_iteration=80, minibatch=16, learning_rate=1e-3
)  # 25 updates
DQN_SETTINGS = DQNConfig(
    channels=(4,), hidden=(16,), batch=16, capacity=400, target_every=30, random_steps=40, epsilon_steps=200,
    steps_per_iteration=140,
)  # fmt: skip
UPDATES = 100
PROBE = torch.randn(16, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def ppo() -> PPO:
    env = ObservationOffset(VectorCartPole(copies=4, limit=40, seed=0), seed=0)
    env.task(1)
    agent = PPO(env, PPO_SETTINGS, seed=0)
    agent.net.double()
    return agent


def dqn(make: Callable[[], Any] = lambda: VectorCartPole(copies=1, limit=40, seed=0), **more: Any) -> DQN:
    agent = DQN(make(), replace(DQN_SETTINGS, **more), seed=0)
    agent.net.double(), agent.target.double()
    return agent


def end(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def watch(agent: Any, handle: Any) -> list[Tensor | None]:
    """The reference batch of every step, noted just before it."""
    batches: list[Tensor | None] = []
    agent.optimizer.register_step_pre_hook(
        lambda *_: batches.append(None if handle.reference is None else handle.reference.batch.tensors[0])
    )
    return batches


# -- the twins ----------------------------------------------------------------------------------------------------


def ppo_twin(batches: list[Tensor | None], coef: float) -> Tensor:
    agent, c = ppo(), PPO_SETTINGS
    net, before = agent.net, None
    queue = iter(batches)
    for _ in range(UPDATES // 25):
        rollout, agent.observation = collect(
            agent.env, net, agent.observation, 20, agent.generator, scale=1 / 20, gamma=0.99, trace=0.95
        )
        for _ in range(5):
            for rows in torch.randperm(80, generator=agent.generator).split(16):
                log_pi = net.policy(rollout.observations[rows]).log_softmax(1)
                value = net.value(rollout.observations[rows])[:, 0]
                chosen = log_pi[torch.arange(16), rollout.actions[rows]]
                a = rollout.advantages[rows]
                a = (a - a.mean()) / (a.std() + 1e-8)
                ratio = torch.exp(chosen - rollout.log_probs[rows])
                gain = torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a).mean()
                entropy = -(log_pi.exp() * log_pi).sum(1).mean()
                error = ((value - rollout.targets[rows]) ** 2).mean()
                loss = -gain - c.entropy * entropy + c.value * error
                reference = next(queue)
                if reference is not None:
                    with torch.no_grad():
                        old = before.policy(reference).softmax(1)
                    loss = loss + coef * -(old * net.policy(reference).log_softmax(1)).sum(1).mean()
                before = copy.deepcopy(net)
                agent.optimizer.zero_grad()
                loss.backward()
                agent.optimizer.step()
    return end(net)


def td_error(net: nn.Module, target: nn.Module, batch: Transitions) -> Tensor:
    rows = torch.arange(len(batch.actions))
    with torch.no_grad():
        best = net(batch.following).argmax(1)
        wanted = batch.rewards + 0.99 * (1 - batch.terminated) * target(batch.following)[rows, best]
    return ((net(batch.observations)[rows, batch.actions] - wanted) ** 2).mean()


def dqn_twin(
    agent: DQN, batches: list[Tensor | None], coef: float | list[float]
) -> tuple[Tensor, list, list]:
    net, target, before = agent.net, agent.target, None
    losses, churns = [], []
    for t, reference in enumerate(batches):
        while True:
            agent.interact()
            if agent.decided > t:
                break
        loss = td_error(net, target, agent.replay.sample(16, agent.generator, torch.float64))
        losses.append(loss.item())
        if reference is not None:
            with torch.no_grad():
                old = before(reference)
            churn = ((net(reference) - old) ** 2).mean()
            churns.append(churn.item())
            loss = loss + (coef[t] if isinstance(coef, list) else coef) * churn
        before = copy.deepcopy(net)
        agent.optimizer.zero_grad()
        loss.backward()
        agent.optimizer.step()
        if (t + 1) % 30 == 0:
            target.load_state_dict(net.state_dict())
    return end(net), losses, churns


# -- against the handles ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("owner", ["net", "policy"])
@pytest.mark.parametrize("source", ["recent", "inputs"])
def test_ppo_equals_the_loss_of_the_paper(owner: str, source: str) -> None:
    agent = ppo()
    module = agent.net if owner == "net" else agent.net.policy
    rule = CChain(kind="ce", coef=30.0, batch_from=source)  # type: ignore[arg-type]
    batches = watch(agent, rule.attach(module, agent.optimizer, inputs=PROBE))
    assert sum(agent.iterate().updates for _ in range(4)) == len(batches) == UPDATES
    without = 2 if source == "recent" else 1
    assert all(b is None for b in batches[:without])
    assert all(b is not None for b in batches[without:])
    assert (end(agent.net) - ppo_twin(batches, 30.0)).abs().max() < 1e-8


def test_the_term_makes_a_difference_in_ppo() -> None:
    agent = ppo()
    CChain(kind="ce", coef=30.0).attach(agent.net, agent.optimizer)
    for _ in range(4):
        agent.iterate()
    assert (end(agent.net) - ppo_twin([None] * UPDATES, 0.0)).abs().max() > 1e-3


@pytest.mark.parametrize("source", ["recent", "reservoir", "inputs"])
def test_ddqn_equals_the_loss_of_the_paper(source: str) -> None:
    agent = dqn()
    rule = CChain(kind="mse", coef=50.0, batch_from=source)  # type: ignore[arg-type]
    batches = watch(agent, rule.attach(agent.net, agent.optimizer, inputs=PROBE))
    assert agent.iterate().updates == len(batches) == UPDATES
    without = 1 if source == "inputs" else 2
    assert [b is None for b in batches] == [True] * without + [False] * (UPDATES - without)
    assert (end(agent.net) - dqn_twin(dqn(), batches, 50.0)[0]).abs().max() < 1e-8
    assert (end(agent.net) - dqn_twin(dqn(), [None] * UPDATES, 0.0)[0]).abs().max() > 1e-3


@pytest.mark.rl
def test_ddqn_on_images_equals_the_loss_of_the_paper() -> None:
    pytest.importorskip("minatar")
    agent, twin = (dqn(lambda: VectorMinAtar("asterix", seed=0), steps_per_iteration=80) for _ in range(2))
    batches = watch(agent, CChain(kind="mse", coef=50.0).attach(agent.net, agent.optimizer))
    agent.iterate()
    assert (end(agent.net) - dqn_twin(twin, batches, 50.0)[0]).abs().max() < 1e-8


def test_the_automatic_coefficient_of_ddqn_is_the_published_rule() -> None:
    agent = dqn()
    rule = CChain(kind="mse", coef=50.0, target=0.01, start=10, window=20, cap=1e9)
    handle = rule.attach(agent.net, agent.optimizer)
    agent.on_loss.append(handle.observe_loss)
    used: list[float] = []
    agent.optimizer.register_step_pre_hook(lambda *_: used.append(float(handle.coefficient())))
    batches = watch(agent, handle)
    # this hook was added after the handle's, which has counted the present step: it sees the coefficient to come
    agent.iterate()
    coefs = [50.0, *used[:-1]]
    final, losses, churns = dqn_twin(dqn(), batches, coefs)
    assert (end(agent.net) - final).abs().max() < 1e-8
    for t in range(2, UPDATES):
        seen = t - 2  # pairs of (loss, churn) before update t; the first two updates have no churn
        want = 50.0
        if seen >= 10:
            recent = slice(max(0, seen - 20), seen)
            want = 0.01 * np.mean(losses[2:][recent]) / (np.mean(churns[recent]) + 1e-8)
        assert coefs[t] == pytest.approx(want, rel=1e-5), t  # the running means are kept in float32


# -- the two forms ------------------------------------------------------------------------------------------------


AUTOMATIC: dict[str, Any] = {"start": 10, "window": 20, "cap": 1e4}


@pytest.mark.parametrize(
    ("make", "kind", "more"),
    [
        (ppo, "ce", {}),
        (dqn, "mse", {}),
        (ppo, "ce", {**AUTOMATIC, "target": 1e3, "floor": 1.0}),
        (dqn, "mse", {**AUTOMATIC, "target": 0.01}),
    ],
)
def test_hook_form_equals_loss_form_without_clipping(
    make: Callable[[], Any], kind: str, more: dict[str, Any]
) -> None:
    ends, coefficients = [], []
    for hook in (True, False):
        agent = make()
        handle = CChain(kind=kind, coef=30.0, hook=hook, **more).attach(agent.net, agent.optimizer)  # type: ignore[arg-type]
        agent.on_loss.append(handle.observe_loss)
        if not hook:
            agent.on_loss.append(lambda loss, handle=handle: handle.penalty())
        while handle.step < UPDATES:
            agent.iterate()
        ends.append(end(agent.net))
        coefficients.append(handle.readings()["coefficient"])
    assert (ends[0] - ends[1]).abs().max() < 1e-12
    assert coefficients[0] == coefficients[1]
    assert (coefficients[0] == 30.0) == (not more)  # an automatic one has moved in both forms


def clipped(form: str, limit: float) -> tuple[Tensor, list[tuple[float, float]]]:
    """100 updates of a loop that clips; the end, and (|RL gradient|, |gradient that the optimizer used|) per step."""
    agent = dqn()
    handle = CChain(kind="mse", coef=50.0, hook=form == "hook").attach(agent.net, agent.optimizer)
    while agent.random_left:
        agent.interact()
    norms = []
    for _ in range(UPDATES):
        agent.interact()
        loss = agent.loss(agent.replay.sample(16, agent.generator, torch.float64))
        if form == "loss":
            loss = loss + handle.penalty()
        agent.optimizer.zero_grad()
        loss.backward()
        before = nn.utils.clip_grad_norm_(agent.net.parameters(), limit)
        agent.optimizer.step()
        norms.append(
            (float(before), float(nn.utils.get_total_norm([p.grad for p in agent.net.parameters()])))
        )
    return end(agent.net), norms


def test_clipping_acts_on_the_sum_in_loss_form_and_on_the_task_alone_in_hook_form() -> None:
    open_ends = [clipped(form, float("inf"))[0] for form in ("hook", "loss")]
    assert (open_ends[0] - open_ends[1]).abs().max() < 1e-12
    limit = 0.05
    (hook, hook_norms), (loss, loss_norms) = (clipped(form, limit) for form in ("hook", "loss"))
    assert (hook - loss).abs().max() > 1e-4
    assert all(used <= limit * (1 + 1e-9) for _, used in loss_norms)  # the sum is clipped
    assert max(used for _, used in hook_norms) > 1.02 * limit  # clip(g) + λ∇D may be longer
    assert all(before > limit for before, _ in hook_norms[:20])  # clipping is at work


def test_the_hook_adds_the_whole_term_after_clipping() -> None:
    agent = dqn()
    handle = CChain(kind="mse", coef=50.0, batch_from="inputs").attach(
        agent.net, agent.optimizer, inputs=PROBE
    )
    agent.iterate()
    parameters = list(agent.net.parameters())
    loss = agent.loss(agent.replay.sample(16, agent.generator, torch.float64))
    task = torch.autograd.grad(loss, parameters, retain_graph=True)
    norm = nn.utils.get_total_norm(task)
    term = torch.autograd.grad(50.0 * ((agent.net(PROBE) - handle.reference.outputs) ** 2).mean(), parameters)
    agent.optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 0.05)
    agent.optimizer.step()
    for p, g, d in zip(parameters, task, term, strict=True):
        torch.testing.assert_close(p.grad, g * 0.05 / (norm + 1e-6) + d, rtol=1e-9, atol=1e-14)


def test_a_reset_is_churn_for_one_step() -> None:
    agent = dqn(steps_per_iteration=1)
    churn = CChain(kind="mse", coef=0.0).attach(agent.net, agent.optimizer)
    resets = LayerReset(every=20).attach(agent.net, agent.optimizer)
    seen = []
    while churn.step < 30:
        if agent.iterate().updates:
            seen.append(churn.readings()["penalty"])
    reset = next(e for e in resets.log if isinstance(e, ResetEvent)).step
    assert reset == 20
    others = [*seen[2:reset], *seen[reset + 1 :]]
    assert seen[reset] > 20 * max(others)


# -- what is taken for a training batch ---------------------------------------------------------------------------


def test_only_minibatches_are_kept_in_ppo() -> None:
    agent = ppo()
    handle = CChain(kind="ce", memory=200).attach(agent.net, agent.optimizer)
    rollouts = []
    update = agent.update
    agent.update = lambda r: (rollouts.append(r), update(r))[1]  # type: ignore[method-assign]
    agent.iterate(), agent.iterate()
    kept = [b.tensors[0] for b in handle.past.batches]
    assert [len(x) for x in kept] == [
        16
    ] * 50  # no pass over 4 copies of the environment, none over the rollout
    for k, rollout in enumerate(rollouts):
        for epoch in range(5):
            first = 25 * k + 5 * epoch
            seen = torch.cat(kept[first : first + 5])
            assert torch.equal(seen.sort(0).values, rollout.observations.sort(0).values)
