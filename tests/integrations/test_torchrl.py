"""The TorchRL hook, on a stand-in with the Trainer's registration and, where TorchRL is installed, on its Trainer."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import supple
from supple.errors import InputError
from supple.integrations.torchrl import SuppleHook


class Batch(dict[str, Tensor]):
    """As much of a TensorDict as the hook reads: two batch axes that reshape flattens."""

    def reshape(self, *shape: int) -> Batch:
        assert shape == (-1,)
        return Batch({k: v.flatten(0, 1) for k, v in self.items()})


class Trainer:
    """The stages of TorchRL's Trainer that matter here, in its order."""

    def __init__(self) -> None:
        self.ops: list[Any] = []
        self.modules: dict[str, Any] = {}

    def register_op(self, stage: str, op: Any) -> None:
        assert stage == "batch_process"
        self.ops.append(op)

    def register_module(self, name: str, module: Any) -> None:
        self.modules[name] = module


def parts() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    return net, torch.optim.Adam(net.parameters(), lr=1e-2)


def batch(index: int) -> Batch:
    g = torch.Generator().manual_seed(index)
    x = torch.randn(4, 16, 4, generator=g)
    one_hot = nn.functional.one_hot(torch.randint(3, (4, 16), generator=g), 3)
    return Batch(observation=x, action=one_hot)


def train(trainer: Trainer, net: nn.Module, optimizer: torch.optim.Optimizer, rounds: range) -> None:
    for index in rounds:
        collected = batch(index)
        for op in trainer.ops:
            assert op(collected) is None
        for x, y in zip(collected["observation"], collected["action"], strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y.float()).backward()
            optimizer.step()


METHODS = [supple.interventions.L2Init(coef=0.01), supple.interventions.ReDo(every=5, tau=0.9)]


def hook(net: nn.Module, optimizer: torch.optim.Optimizer, methods: Any = ()) -> SuppleHook:
    return SuppleHook(
        net, optimizer, nn.functional.cross_entropy, every=4, probe_size=32, interventions=methods
    )


def test_observing_changes_nothing_and_rows_arrive() -> None:
    alone, watched = parts(), parts()
    train(Trainer(), *alone, range(4))
    trainer, observer = Trainer(), hook(*watched)
    observer.register(trainer)
    train(trainer, *watched, range(4))
    assert all(torch.equal(a, b) for a, b in zip(alone[0].parameters(), watched[0].parameters(), strict=True))
    assert [r.step for r in observer.monitor.records.select(instrument="loss")] == [0, 4, 8, 12, 16]
    assert len(observer.monitor.probe[0]) == 32
    observer.task("b", batch(9))
    assert torch.equal(observer.monitor.probe[0][0], batch(9)["observation"][0, 0])
    observer.detach()


def test_saved_and_resumed_is_the_run_in_one_go() -> None:
    whole, trainer = parts(), Trainer()
    first = hook(*whole, METHODS)
    first.register(trainer, "supple")
    train(trainer, *whole, range(3))
    saved = {k: v.clone() for k, v in whole[0].state_dict().items()}, whole[1].state_dict()
    state = trainer.modules["supple"].state_dict()
    optimizer_state = copy.deepcopy(saved[1])
    resumed, again = parts(), Trainer()
    train(trainer, *whole, range(3, 6))
    resumed[0].load_state_dict(saved[0])
    resumed[1].load_state_dict(optimizer_state)
    second = hook(*resumed, METHODS)
    second.register(again)
    second.load_state_dict(state)
    train(again, *resumed, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole[0].parameters(), resumed[0].parameters(), strict=True))
    assert second.monitor.step == first.monitor.step == 24
    first.detach()
    second.detach()


def test_what_is_refused() -> None:
    net, optimizer = parts()
    with pytest.raises(InputError, match="at least 2 samples"):
        SuppleHook(net, optimizer, nn.functional.cross_entropy, probe_size=1)
    with pytest.raises(InputError, match="nothing has been observed"):
        hook(net, optimizer).task("a")
    wrong = SuppleHook(net, optimizer, nn.functional.cross_entropy, inputs="pixels")
    with pytest.raises(
        InputError, match=r"no such key; found: pixels; do: one of \['observation', 'action'\]"
    ):
        wrong(batch(0))
    with pytest.raises(InputError, match="not a state of this hook"):
        hook(net, optimizer).load_state_dict({"version": 1, "handles": [{}]})


@pytest.mark.rl
@pytest.mark.skipif(find_spec("torchrl") is None, reason="needs torchrl")
def test_the_trainer_of_torchrl_calls_it() -> None:
    from tensordict import TensorDict
    from torchrl.trainers import Trainer as Real

    net, optimizer = parts()

    class Collector:
        init_random_frames = 0

        def __iter__(self) -> Any:
            for index in range(4):
                yield TensorDict(dict(batch(index)), batch_size=[4, 16])

        def shutdown(self) -> None: ...

        def state_dict(self) -> dict[str, Any]:
            return {}

    class Loss(nn.Module):
        def forward(self, data: Any) -> Any:
            out = net(data["observation"].flatten(0, 1))
            value = nn.functional.cross_entropy(out, data["action"].flatten(0, 1).float())
            return TensorDict({"loss": value}, batch_size=[])

    trainer = Real(
        collector=Collector(), total_frames=256, frame_skip=1, optim_steps_per_batch=2, loss_module=Loss(),
        optimizer=optimizer, progress_bar=False,
    )  # fmt: skip
    observer = hook(net, optimizer, METHODS)
    observer.register(trainer)
    trainer.train()
    assert observer.monitor.step == observer.handles[0].step == 8
    assert {r.step for r in observer.monitor.records.select(instrument="loss")} == {0, 4, 8}
    assert trainer.state_dict()["supple"]["monitor"]["step"] == 8
    observer.detach()
