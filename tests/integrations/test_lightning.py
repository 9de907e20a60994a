"""Lightning: a run with the callback is the run without it, resumes with it, and interventions act in its closures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as nnf

import supple
from supple.errors import AttachError, InputError
from supple.interventions import Combination, ContinualBackprop, L2Init, ReGraMa, ShrinkAndPerturb

lightning = pytest.importorskip("lightning.pytorch")
from supple.integrations.lightning import SuppleCallback  # noqa: E402 (needs the package)

DRAW = torch.Generator().manual_seed(0)
X, Y = torch.randn(64, 6, generator=DRAW), torch.randint(3, (64,), generator=DRAW)


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


class Module(lightning.LightningModule):
    def __init__(self, kind: str = "adam", manual: bool = False) -> None:
        super().__init__()
        self.net, self.kind = network(), kind
        self.automatic_optimization = not manual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        x, y = batch
        if self.automatic_optimization:
            return nnf.cross_entropy(self(x), y)
        optimizer: Any = self.optimizers()
        loss = nnf.cross_entropy(self(x), y)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.kind == "lbfgs":
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def fit(
    callbacks: list[Any], root: Path, *, epochs: int = 2, checkpoint: str | None = None, **module: Any
) -> Any:
    made = Module(**module)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=16)
    trainer = lightning.Trainer(
        max_epochs=epochs, callbacks=callbacks, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=root, enable_checkpointing=True,
    )  # fmt: skip
    trainer.fit(made, data, ckpt_path=checkpoint, weights_only=False) if checkpoint else trainer.fit(
        made, data
    )
    return trainer, made


def callback(**options: Any) -> SuppleCallback:
    return SuppleCallback((X, Y), nnf.cross_entropy, every=3, **options)


def weights(module: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(module.parameters()).detach()


def loop(interventions: list[Any], steps: int) -> torch.Tensor:
    """The same training as a plain loop; the module is the same, since draws are keyed by the names of its layers."""
    net = Module()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for rule in interventions:
        rule.attach(net, optimizer, inputs=X)
    batches = list(zip(X.split(16), Y.split(16), strict=True))
    for step in range(steps):
        x, y = batches[step % 4]
        optimizer.zero_grad()
        nnf.cross_entropy(net(x), y).backward()
        optimizer.step()
    return weights(net)


def test_a_run_that_is_watched_is_the_run_that_is_not(tmp_path: Path) -> None:
    seen = callback()
    _, watched = fit([seen], tmp_path)
    _, alone = fit([], tmp_path)
    assert torch.equal(weights(watched), weights(alone))
    assert {r.step for r in seen.records if r.instrument == "loss"} >= {3, 6}
    assert not watched._forward_hooks


RULES = {
    "l2init": lambda: L2Init(coef=0.05), "cbp": lambda: ContinualBackprop(replacement_rate=0.05, maturity=2),
    "regrama": lambda: ReGraMa(tau=0.5, every=3), "shrink_perturb": lambda: ShrinkAndPerturb(every=3),
    "both": lambda: Combination([L2Init(coef=0.05), ReGraMa(tau=0.5, every=3)]),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
def test_interventions_act_as_in_a_plain_loop(name: str, manual: bool, tmp_path: Path) -> None:
    _, found = fit([callback(interventions=[RULES[name]()])], tmp_path, manual=manual)
    expected = loop([RULES[name]()], 8)
    assert torch.equal(weights(found), expected)
    assert not torch.equal(expected, loop([], 8))  # it does something in 8 steps


@pytest.mark.parametrize("name", ["both", "cbp"])
def test_a_resumed_run_goes_on_with_monitor_and_interventions(name: str, tmp_path: Path) -> None:
    whole = callback(interventions=[RULES[name]()])
    _, unbroken = fit([whole], tmp_path, epochs=4)
    first = callback(interventions=[RULES[name]()])
    keep = lightning.callbacks.ModelCheckpoint(
        dirpath=tmp_path, filename="half", save_on_train_epoch_end=True
    )
    fit([first, keep], tmp_path, epochs=2)
    second = callback(interventions=[RULES[name]()])
    _, resumed = fit([second], tmp_path, epochs=4, checkpoint=str(tmp_path / "half.ckpt"))
    assert torch.equal(weights(resumed), weights(unbroken))
    assert [r.to_dict() for r in second.records] == [r.to_dict() for r in whole.records]
    with pytest.raises(InputError, match="other interventions"):
        fit([callback()], tmp_path, epochs=4, checkpoint=str(tmp_path / "half.ckpt"))


def test_what_cannot_work_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(AttachError, match="evaluated its closure more than once"):
        fit([callback(interventions=[L2Init()])], tmp_path, kind="lbfgs")
    with pytest.raises(InputError, match="nothing has been observed"):
        _ = callback().records
    with pytest.raises(InputError, match="nothing has been observed"):
        callback().task("b")


def test_a_closure_that_forgets_to_say_so_is_noticed() -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = L2Init().attach(net, optimizer)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nnf.cross_entropy(net(X), Y)
        loss.backward()
        return loss

    with pytest.raises(AttachError, match=r"cannot act in optimizer\.step"):
        optimizer.step(closure)
    handle.inside_closures()
    with pytest.raises(AttachError, match="did not see the gradients"):
        optimizer.step(closure)
    with pytest.raises(AttachError, match="not attached to this optimizer"):
        handle.gradients_ready(torch.optim.SGD(net.parameters(), lr=0.1))


def test_the_monitor_alone_is_detached_after_an_error(tmp_path: Path) -> None:
    class Breaks(lightning.Callback):
        def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
            raise RuntimeError("stop")

    seen = callback(interventions=[L2Init()])
    with pytest.raises(RuntimeError, match="stop"):
        fit([seen, Breaks()], tmp_path)
    assert not seen.handles[0].attached
    assert isinstance(seen.monitor, supple.Monitor)
