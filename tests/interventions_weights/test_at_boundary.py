"""every="boundary": what needs no step acts in the call that announces the task, before the next batch is made."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from supple.agents import PPO, PPOConfig
from supple.errors import AttachError, InputError
from supple.interventions import (
    FIRE,
    Combination,
    HareTortoise,
    L2Init,
    LayerReset,
    ReDo,
    ReGraMa,
    SelfNormalizedReset,
    ShrinkAndPerturb,
)
from supple.streams.rl import ObservationOffset, VectorCartPole

ALL = ("0", "2", "4")
LISTED = {
    "layers": lambda every: LayerReset(layers=ALL, every=every),
    "shrink": lambda every: ShrinkAndPerturb(every=every),
    "fire": lambda every: FIRE(every=every, output=True),
    "combination": lambda every: Combination((L2Init(), ShrinkAndPerturb(every=every))),
}
every_method = pytest.mark.parametrize("name", LISTED)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def batch(i: int) -> Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(i), dtype=torch.float64)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for i in steps:
        optimizer.zero_grad()
        (model(batch(i)) - 1).square().mean().backward()
        optimizer.step()


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@every_method
def test_it_acts_in_the_call_and_not_after_a_step(name: str) -> None:
    for every, at_once in (("boundary", True), ("task", False)):
        model = net()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        handle = LISTED[name](every).attach(model, optimizer, inputs=batch(0))
        train(model, optimizer, range(5))
        old = flat(model)
        handle.task("next")
        assert torch.equal(flat(model), old) is not at_once
        before = flat(model)
        train(model, optimizer, range(5, 6))
        largest = float((flat(model) - before).abs().max())
        assert (largest < 0.05) is at_once  # a step of Adam alone, or the act as well


def test_a_reset_at_a_boundary_is_a_fresh_network_with_a_fresh_optimizer() -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, eps=1e-20)  # ages leave ε as it is
    handle = LayerReset(layers=ALL, every="boundary").attach(model, optimizer, inputs=batch(0))
    train(model, optimizer, range(20))
    handle.task()
    assert [(e.step, e.layer) for e in handle.log] == [(20, name) for name in ALL]
    twin = copy.deepcopy(model)
    fresh = torch.optim.Adam(twin.parameters(), lr=1e-2, eps=1e-20)
    train(model, optimizer, range(20, 60))
    train(twin, fresh, range(20, 60))
    torch.testing.assert_close(flat(model), flat(twin), rtol=0, atol=1e-12)
    assert len(handle.log) == 3


@every_method
@pytest.mark.parametrize("after", [False, True])
def test_a_run_that_stops_at_a_boundary_goes_on_bit_for_bit(name: str, after: bool) -> None:
    def start() -> tuple[nn.Module, torch.optim.Optimizer, object]:
        model = net()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        return model, optimizer, LISTED[name]("boundary").attach(model, optimizer, inputs=batch(0))

    model, optimizer, handle = start()
    train(model, optimizer, range(5))
    if after:
        handle.task()
    other, its, its_handle = start()
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    its.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    its_handle.load_state_dict(copy.deepcopy(handle.state_dict()))
    for network, opt, own in ((model, optimizer, handle), (other, its, its_handle)):
        if not after:
            own.task()
        train(network, opt, range(5, 15))
    assert torch.equal(flat(model), flat(other))


def test_the_first_rollout_of_a_task_is_that_of_the_new_policy() -> None:
    """With "task" it is the old one's, and the ratios of the first updates are between two different policies."""
    for every, new in (("boundary", True), ("task", False)):
        env = ObservationOffset(VectorCartPole(copies=4, limit=40), seed=0)
        agent = PPO(env, PPOConfig(hidden=(16,), steps_per_iteration=80, minibatch=80, epochs=1), seed=0)
        x = torch.zeros(4, env.observation_size)
        handle = LayerReset(
            layers=("policy.fc1", "policy.head"), every=every, initial="zeros", bias="zero"
        ).attach(agent.net, agent.optimizer, inputs=x)
        for _ in range(5):
            agent.iterate()
        env.task(1)
        agent.task()
        handle.task()
        agent.iterate()
        even = torch.full((80,), 0.5).log()
        assert torch.allclose(agent.rollout.log_probs, even) is new


def test_what_has_to_measure_first_refuses_and_a_network_must_be_known() -> None:
    for make in (ReDo, ReGraMa, HareTortoise):
        with pytest.raises(InputError, match=r"acts after a step, not at the boundary.*every='task'"):
            make(every="boundary")
    with pytest.raises(InputError, match="acts after a step"):
        SelfNormalizedReset(update="boundary")
    with pytest.raises(InputError, match="a schedule is a positive number"):
        ShrinkAndPerturb(every="tasks")
    model = net()
    handle = LayerReset(every="boundary").attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(AttachError, match=r"not seen the network.*pass inputs="):
        handle.task()
    model(batch(0))
    handle.task()
    assert [e.layer for e in handle.log] == ["4"]
