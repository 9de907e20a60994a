"""The monitor: its clock, its rows, its memory, its state."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from tests.observe.cases import mlp
from torch import nn

from supple.errors import AttachError, InputError
from supple.observe import Monitor


def setup(seed=0):
    torch.manual_seed(seed)
    model = mlp()
    batch = (torch.randn(32, 5), torch.arange(32) % 3)
    return model, torch.optim.Adam(model.parameters(), lr=1e-2), batch


def train(model, optimizer, batch, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()


def steps_of(monitor):
    return [r.step for r in monitor.records.select(instrument="loss")]


@pytest.mark.parametrize(
    ("every", "expected"), [(3, [0, 3, 6, 9]), (lambda step: step in (2, 7), [0, 2, 7]), (1, list(range(11)))]
)
def test_schedules(every, expected):
    model, optimizer, batch = setup()
    with Monitor(model, optimizer, probe=batch, loss_fn=F.cross_entropy, every=every) as monitor:
        train(model, optimizer, batch, 10)
    assert steps_of(monitor) == expected
    train(model, optimizer, batch, 10)
    monitor.detach()
    assert steps_of(monitor) == expected
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    with pytest.raises(AttachError):
        monitor.measure()


def test_rows_of_the_step_itself():
    model, optimizer, batch = setup()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Monitor(model, optimizer, probe=batch, loss_fn=F.cross_entropy, every=1) as monitor:
        old = {n: p.detach().clone() for n, p in model.named_parameters()}
        train(model, optimizer, batch, 1)
        grads = [p.grad for p in model.parameters()]
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in grads))
    row = monitor.records.last(instrument="gradient_norm", variant="training")
    assert row.value == pytest.approx(norm, rel=1e-5)
    assert row.step == 1
    w = old["2.weight"]
    ratio = float(0.1 * model[2].weight.grad.norm() / w.norm())
    assert monitor.records.last(instrument="update_ratio", layer="2").value == pytest.approx(ratio, rel=1e-3)
    total = math.sqrt(sum(float(p.double().square().sum()) for p in old.values()))
    assert monitor.records.last(instrument="update_ratio", layer="*").value == pytest.approx(
        0.1 * norm / total, rel=1e-3
    )


def test_closures_are_told():
    model, _, batch = setup()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        return loss

    with Monitor(model, optimizer, probe=batch, loss_fn=F.cross_entropy, every=1) as monitor:
        optimizer.step(closure)
    row = monitor.records.last(instrument="gradient_norm", variant="training")
    assert row.status == "not_measured"
    assert "closure" in row.note
    assert monitor.records.last(instrument="update_ratio", layer="*").value > 0


def test_actor_and_critic_with_two_optimizers():
    torch.manual_seed(0)
    model = nn.ModuleDict({"actor": mlp(), "critic": mlp()})
    a, c = (torch.optim.SGD(model[k].parameters(), lr=0.1) for k in ("actor", "critic"))
    batch = (torch.randn(32, 5), torch.arange(32) % 3)

    def forward(m, x):
        return m["actor"](x) + m["critic"](x)

    with Monitor(model, [a, c], probe=batch, loss_fn=F.cross_entropy, every=2, forward=forward) as monitor:
        for _ in range(4):
            model.zero_grad()
            F.cross_entropy(forward(model, batch[0]), batch[1]).backward()
            a.step()
            c.step()
    assert steps_of(monitor) == [0, 2, 4]
    for i in range(2):
        rows = monitor.records.select(instrument="update_ratio", layer="*", variant=f"optimizer{i}")
        assert [r.step for r in rows] == [2, 4]
        assert all(r.value > 0 for r in rows)
    assert monitor.records.last(instrument="update_ratio", layer="critic.2").value > 0


def test_a_step_skipped_by_the_gradient_scaler_does_not_count():
    model, optimizer, batch = setup()
    with Monitor(model, optimizer, probe=batch, loss_fn=F.cross_entropy, every=1) as monitor:
        optimizer.found_inf = torch.tensor(1.0)  # what a GradScaler leaves on fused optimizers
        optimizer._step_supports_amp_scaling = True
        for hook in optimizer._optimizer_step_pre_hooks.values():
            hook(optimizer, (), {})
        for hook in optimizer._optimizer_step_post_hooks.values():
            hook(optimizer, (), {})
        assert monitor.step == 0
        del optimizer.found_inf
        train(model, optimizer, batch, 1)
    assert steps_of(monitor) == [0, 1]


def test_forgetting_is_measured_on_the_probes_of_earlier_tasks():
    model, optimizer, first = setup()
    torch.manual_seed(5)
    second = (torch.randn(32, 5) + 2, (torch.arange(32) + 1) % 3)
    monitor = Monitor(model, optimizer, probe=first, loss_fn=F.cross_entropy, every=10)
    monitor.task("first")
    train(model, optimizer, first, 100)
    monitor.task("second", probe=second)
    ended = monitor.records.last(instrument="task_accuracy", variant="first")
    assert ended.task == "first"
    train(model, optimizer, second, 200)
    now = monitor.records.last(instrument="task_accuracy", variant="first")
    assert (now.task, now.step) == ("second", 300)
    assert now.value < ended.value
    inputs, targets = first
    assert now.value == pytest.approx(float((model(inputs).argmax(1) == targets).double().mean()))
    assert monitor.records.last(instrument="task_loss", variant="second").value > 0
    assert [name for name, _ in monitor.earlier] == ["first"]
    assert monitor.probe is second


def test_kept_probes_are_bounded():
    model, optimizer, batch = setup()
    monitor = Monitor(model, optimizer, probe=batch, loss_fn=F.cross_entropy, keep_tasks=4)
    for i in range(12):
        monitor.task(f"t{i}", probe=batch)
    assert [name for name, _ in monitor.earlier] == ["t0", "t1", "t9", "t10"]


def test_memory_is_constant_and_the_rest_is_on_disk(tmp_path):
    model, optimizer, batch = setup()
    path = tmp_path / "run" / "rows.jsonl"
    with Monitor(
        model, optimizer, probe=batch, loss_fn=F.cross_entropy, every=1, keep=100, path=path
    ) as monitor:
        train(model, optimizer, batch, 20)
    assert len(monitor.records) == 100
    history = monitor.history
    assert [r.step for r in history.select(instrument="loss")] == list(range(21))
    assert len(history) == len(path.read_text().splitlines())
    assert json.loads(path.read_text().splitlines()[0])["instrument"]
    short = Monitor(model, optimizer, probe=batch, loss_fn=F.cross_entropy, every=1, keep=100)
    train(model, optimizer, batch, 5)
    assert len(short.history) == 100


def test_a_disk_that_fails_costs_rows_not_the_run(tmp_path):
    model, optimizer, batch = setup()
    path = tmp_path / "rows.jsonl"
    with Monitor(model, optimizer, probe=batch, loss_fn=F.cross_entropy, every=1, path=path) as monitor:
        path.unlink()
        path.mkdir()
        with pytest.warns(UserWarning, match="cannot write measurements"):
            train(model, optimizer, batch, 3)
    assert steps_of(monitor) == [0, 1, 2, 3]


def test_state_continues_as_if_nothing_had_happened(tmp_path):
    def run(path, interrupted):
        model, optimizer, batch = setup()
        other = (batch[0] + 1, batch[1])
        monitor = Monitor(model, optimizer, probe=batch, loss_fn=F.cross_entropy, every=3, path=path)
        monitor.task("a")
        train(model, optimizer, batch, 7)
        monitor.task("b", probe=other)
        if interrupted:
            torch.save(monitor.state_dict(), tmp_path / "monitor.pt")
            weights, adam = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
            train(model, optimizer, batch, 5)  # lost: comes again after the resume
            monitor.detach()
            model, optimizer, batch = setup()
            model.load_state_dict(weights)
            optimizer.load_state_dict(adam)
            monitor = Monitor(model, optimizer, probe=batch, loss_fn=F.cross_entropy, every=3, path=path)
            monitor.load_state_dict(torch.load(tmp_path / "monitor.pt", weights_only=True))
        train(model, optimizer, batch, 5)
        return monitor

    whole, halves = run(tmp_path / "whole.jsonl", False), run(tmp_path / "halves.jsonl", True)
    assert (tmp_path / "whole.jsonl").read_bytes() == (tmp_path / "halves.jsonl").read_bytes()
    assert [r.to_dict() for r in halves.records] == [r.to_dict() for r in whole.records]
    assert [n for n, _ in halves.earlier] == ["a"]
    assert halves.reference.kind == "initial"
    for a, b in zip(halves.initial_state.values(), whole.initial_state.values(), strict=True):
        assert torch.equal(a, b)


def test_the_reference_is_the_state_at_attachment():
    model, optimizer, batch = setup()
    start = {k: v.clone() for k, v in model.state_dict().items()}
    monitor = Monitor(model, optimizer, probe=batch, loss_fn=F.cross_entropy)
    train(model, optimizer, batch, 5)
    twin = monitor.reference.twin()
    assert monitor.reference.kind == "initial"
    assert monitor.reference.strength == "strong"
    assert all(torch.equal(v, start[k]) for k, v in twin.state_dict().items())
    other = Monitor(model, optimizer, probe=batch, loss_fn=F.cross_entropy, reference=mlp)
    assert other.reference.kind == "factory"


def test_sinks_get_measured_values_only():
    class Sink(list):
        def log(self, values, step):
            self.append((step, values))

    model, optimizer, batch = setup()
    sink = Sink()
    with Monitor(model, optimizer, probe=batch, loss_fn=F.cross_entropy, every=2, sinks=[sink]):
        train(model, optimizer, batch, 2)
    assert [s for s, _ in sink] == [0, 2, 2]
    assert all(math.isfinite(v) for _, values in sink for v in values.values())
    assert {"loss", "dormant/2/tau=0.1"} <= set(sink[0][1])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"every": 0}, "every"),
        ({"every": "often"}, "every"),
        ({"instruments": "all"}, "unknown instrument"),
        ({"probe": (torch.full((4, 5), torch.nan), torch.zeros(4))}, "NaN"),
        ({"loss_fn": lambda o, t: o}, "scalar"),
        ({"reference": {"a": torch.zeros(1)}}, "does not fit"),
    ],
)
def test_refusals_leave_nothing_attached(settings, words):
    model, optimizer, batch = setup()
    with pytest.raises(InputError, match=words):
        Monitor(model, optimizer, **{"probe": batch, "loss_fn": F.cross_entropy, **settings})
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_states_of_others_are_refused():
    model, optimizer, batch = setup()
    monitor = Monitor(model, optimizer, probe=batch, loss_fn=F.cross_entropy)
    state = monitor.state_dict()
    for bad, words in (
        ({**state, "version": 99}, "version"),
        ({**state, "more": 1}, "more"),
        ({**state, "initial_state": {"w": torch.zeros(1)}}, "another model"),
    ):
        with pytest.raises(InputError, match=words):
            monitor.load_state_dict(bad)


def test_gradient_norms_at_every_step_without_a_probe_pass():
    model, _, batch = setup()
    halves = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model[0], model[2:])]
    monitor = Monitor(
        model, halves, probe=batch, loss_fn=F.cross_entropy, every=3, instruments="loss", gradients_every=1
    )  # fmt: skip
    expected = []
    for _ in range(4):
        model.zero_grad()
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        expected.append(
            [
                math.sqrt(sum(float(p.grad.double().square().sum()) for p in half.parameters()))
                for half in (model[0], model[2:])
            ]
        )
        weight = float(model[2].weight.grad.norm())
        for optimizer in halves:
            optimizer.step()
    rows = monitor.records.select(instrument="gradient_norm", layer="*")
    for number in (0, 1):
        told = [r for r in rows if r.variant == f"training,optimizer{number}"]
        assert [r.step for r in told] == [1, 2, 3, 4]  # one row a step, also where a look was due
        assert [r.value for r in told] == pytest.approx([e[number] for e in expected], rel=1e-5)
    last = monitor.records.last(instrument="gradient_norm", layer="2", variant="training,optimizer1")
    assert last.value == pytest.approx(weight, rel=1e-5)
    assert steps_of(monitor) == [0, 3]
    with pytest.raises(InputError, match="gradients_every"):
        Monitor(model, halves, probe=batch, loss_fn=F.cross_entropy, gradients_every=0)
    monitor.detach()
