"""What every reset handle does around its formula: measuring, clocks, accumulation, refusals, state."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.interventions import nets
from torch import Tensor, nn

from supple.errors import AttachError, InputError, OptimizerRuleError
from supple.interventions import ContinualBackprop, LayerSkipped, ReDo, ReGraMa, ResetEvent
from supple.topology.graph import Norm

SGD = torch.optim.SGD


def _step(model: nn.Module, opt: torch.optim.Optimizer, x: Tensor, scale: float = 1.0) -> None:
    opt.zero_grad()
    (model(x).square().mean() * scale).backward()
    opt.step()


def _data(n: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def _events(handle: object, kind: type = ResetEvent) -> list:
    return [e for e in handle.log if isinstance(e, kind)]


# -- measuring -------------------------------------------------------------------------------------


def test_utility_of_channels_before_a_flatten_sums_over_their_columns() -> None:
    model, topo = nets.convnet()
    opt = SGD(model.parameters(), lr=0.0)
    handle = ContinualBackprop(decay=0.0, replacement_rate=0.0).attach(model, opt, topology=topo)
    x = _data(5, 3, 8, 8)
    _step(model, opt, x)
    with torch.no_grad():
        h1 = model.pool(model.conv1(x).relu())
        h2 = model.pool(model.conv2(h1).relu())
        h3 = model.fc1(h2.flatten(1)).relu()
        want1 = h1.abs().mean((0, 2, 3)) * model.conv2.weight.abs().sum((0, 2, 3))
        columns = h2.flatten(1).abs().mean(0) * model.fc1.weight.abs().sum(0)
        want3 = h3.abs().mean(0) * model.fc2.weight.abs().sum(0)
    got = handle.utilities
    assert torch.allclose(got["conv1"], want1)
    assert torch.allclose(got["conv2"], columns.view(6, 4).sum(1))
    assert torch.allclose(got["fc1"], want3)


def test_gradient_accumulation_is_one_measurement_and_ages_once() -> None:
    x = _data(12, 6)
    got = []
    for parts in ([x], [x[:3], x[3:]]):
        torch.manual_seed(0)
        model, topo = nets.mlp(6, 5, 4, 2)
        opt = SGD(model.parameters(), lr=0.1)
        handle = ContinualBackprop(decay=0.5).attach(model, opt, topology=topo)
        for part in parts:
            (model(part).square().sum() / 24).backward()
        opt.step()
        got.append(handle.utilities["fc1"])
        assert handle.ages["fc1"].tolist() == [1] * 5
    assert torch.allclose(got[0], got[1], rtol=1e-5)


def test_evaluation_and_gradient_free_passes_are_ignored() -> None:
    def run(noise: bool) -> Tensor:
        torch.manual_seed(0)
        model, topo = nets.mlp(6, 5, 2)
        opt = SGD(model.parameters(), lr=0.1)
        handle = ContinualBackprop().attach(model, opt, topology=topo)
        for i in range(3):
            if noise:
                model.eval()
                model(_data(50, 6, seed=9) * 100)
                model.train()
                with torch.no_grad():
                    model(_data(50, 6, seed=8) * 100)
            _step(model, opt, _data(4, 6, seed=i))
        return handle.utilities["fc1"]

    assert torch.equal(run(False), run(True))


def test_batch_size_may_change_and_nothing_keeps_the_graph() -> None:
    model, topo = nets.mlp(6, 5, 2)
    opt = SGD(model.parameters(), lr=0.1)
    handle = ContinualBackprop(utility="zero_contribution", bias_transfer=True).attach(
        model, opt, topology=topo
    )
    for n in (1, 7, 3):
        _step(model, opt, _data(n, 6))
    state = handle.state_dict()["state"]["own"]
    assert not any(t.requires_grad for t in (*state["means"].values(), state["layers"]["fc1"]["utility"]))


def test_units_behind_a_norm_that_follows_the_activation_are_seen_as_they_fired() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.norm, self.fc2 = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(self.norm(torch.relu(self.fc1(x))))

    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        model.fc1.bias[[1, 4]] = -50.0  # dead; the norm gives them a value that is not zero
    norm = Norm("norm", "norm.weight", "norm.bias", np.arange(6), before_activation=False)
    layers = [nets.layer(model, "fc1", norms=(norm,)), nets.layer(model, "fc2", output=True)]
    topo = nets.topology(layers, [nets.edge(model, "fc1", "fc2")])
    opt = SGD(model.parameters(), lr=0.0)
    handle = ReDo(tau=0.01, every=1).attach(model, opt, topology=topo)
    _step(model, opt, _data(32, 4))
    assert [e.units for e in _events(handle)] == [(1, 4)]


@pytest.mark.parametrize("norm", [None, "layer", "batch"])
@pytest.mark.parametrize("inplace", [False, True])
def test_preactivation_score_finds_dead_units(norm: str | None, inplace: bool) -> None:
    torch.manual_seed(0)
    model, topo = nets.mlp(4, 6, 5, 2, norm=norm)
    model.act = nn.ReLU(inplace=inplace)
    target = model.fc1 if norm is None else model.norm1
    with torch.no_grad():
        target.bias[[0, 3]] = -50.0
    opt = SGD(model.parameters(), lr=0.0)
    handle = ReGraMa(tau=0.0, every=1, score="preactivation").attach(model, opt, topology=topo)
    _step(model, opt, _data(64, 4))
    assert _events(handle)[0].layer == "fc1"
    assert {0, 3} <= set(_events(handle)[0].units)
    assert handle.scores["fc1"][[0, 3]].tolist() == [0.0, 0.0]


def test_weight_and_preactivation_scores_agree_on_single_samples() -> None:
    torch.manual_seed(0)
    model, topo = nets.mlp(4, 8, 6, 2)
    scores = []
    for score in ("weight", "preactivation"):
        opt = SGD(model.parameters(), lr=0.0)
        with ReGraMa(tau=-0.0, every=1, score=score).attach(model, opt, topology=topo) as handle:
            _step(model, opt, _data(1, 4))
            scores.append(handle.scores["fc2"])
        model, topo = copy.deepcopy(model), topo
    assert torch.allclose(scores[0], scores[1], rtol=1e-4)


def test_layer_without_gradient_signal_is_skipped_and_logged_not_reset() -> None:
    torch.manual_seed(0)
    model, topo = nets.mlp(4, 6, 5, 2)
    with torch.no_grad():
        model.fc2.bias.fill_(-100.0)  # all of fc2 is dead, nothing reaches fc1
    opt = SGD(model.parameters(), lr=0.1)
    handle = ReGraMa(tau=0.1, every=1).attach(model, opt, topology=topo)
    before = copy.deepcopy(model.fc1.state_dict())
    _step(model, opt, _data(8, 4))
    assert {e.layer for e in _events(handle, LayerSkipped)} == {"fc1", "fc2"}
    assert "no gradient signal" in handle.log[0].reason
    assert torch.equal(before["weight"], model.fc1.weight)


def test_tiny_gradients_do_not_reset_a_whole_layer() -> None:
    """The published code adds 1e-9 to the mean: a loss of scale 1e-14 would reset everything."""
    chosen = []
    for scale in (1.0, 1e-14):
        torch.manual_seed(0)
        model, topo = nets.mlp(4, 16, 2)
        opt = SGD(model.parameters(), lr=0.0)
        handle = ReGraMa(tau=0.3, every=1).attach(model, opt, topology=topo)
        _step(model, opt, _data(16, 4), scale)
        chosen.append([e.units for e in _events(handle)])
    assert chosen[0] == chosen[1]
    assert 0 < len(chosen[0][0]) < 16


def test_gated_pairs_are_one_unit() -> None:
    torch.manual_seed(0)
    for method in (ContinualBackprop(replacement_rate=0.5, maturity=0), ReGraMa(tau=0.0, every=1)):
        model, topo = nets.glu()
        with torch.no_grad():
            model.gate.bias[2] = -50.0
        opt = torch.optim.Adam(model.parameters(), lr=0.0)
        handle = method.attach(model, opt, topology=topo)
        _step(model, opt, _data(16, 4))
        assert [(e.layer, e.units) for e in _events(handle)] == [("gate", (2,)), ("up", (2,))], method


# -- clocks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [ReDo, ReGraMa])
def test_schedules(method: type) -> None:
    for every, want in ((3, [3, 6, 9]), (lambda s: s in (2, 7), [2, 7]), ("task", [5])):
        torch.manual_seed(0)
        model, topo = nets.mlp(4, 6, 2)
        opt = SGD(model.parameters(), lr=0.0)
        handle = method(tau=0.8, every=every).attach(model, opt, topology=topo)
        for i in range(1, 11):
            if i == 5:
                handle.task("next")
            _step(model, opt, _data(8, 4, seed=i))
        assert sorted({e.step for e in _events(handle)}) == want


def test_cap_backlog_and_random_fractions() -> None:
    def resets(**kw: object) -> list[int]:
        torch.manual_seed(0)
        model, topo = nets.mlp(4, 20, 2)
        opt = SGD(model.parameters(), lr=0.0)
        handle = ContinualBackprop(maturity=2, **kw).attach(model, opt, topology=topo)
        for i in range(40):
            _step(model, opt, _data(8, 4, seed=i))
        return [len(e.units) for e in _events(handle)]

    assert set(resets(replacement_rate=0.2)) == {1}
    assert max(resets(replacement_rate=0.2, cap=None)) > 1
    assert resets(replacement_rate=1.0, cap=None)[0] == 20
    drawn = resets(replacement_rate=0.02, accumulate=False)
    assert 5 <= sum(drawn) <= 28  # 0.02 * 20 * 38 = 15 expected
    assert resets(replacement_rate=0.02, accumulate=False) == drawn


def test_two_optimizers_act_on_their_own_layers() -> None:
    torch.manual_seed(0)
    actor, topo_a = nets.mlp(4, 6, 2)
    critic, topo_c = nets.mlp(4, 5, 1)
    both = nn.ModuleDict({"actor": actor, "critic": critic})

    def renamed(topo, prefix):
        text = {f"fc{i}" for i in (1, 2)}
        layers = [nets.layer(both, f"{prefix}.{x}", output=x == "fc2") for x in sorted(text)]
        return layers, nets.edge(both, f"{prefix}.fc1", f"{prefix}.fc2")

    (la, ea), (lc, ec) = renamed(topo_a, "actor"), renamed(topo_c, "critic")
    topo = nets.topology([*la, *lc], [ea, ec])
    for method in (ReDo(tau=0.9, every=2), ReGraMa(tau=0.9, every=2)):
        opts = [SGD(actor.parameters(), lr=0.0), SGD(critic.parameters(), lr=0.0)]
        handle = method.attach(both, opts, topology=topo)
        for i in range(4):
            _step(critic, opts[1], _data(8, 4, seed=i))
            _step(actor, opts[0], _data(8, 4, seed=i))
        assert {e.layer for e in _events(handle)} == {"actor.fc1", "critic.fc1"}
        handle.detach()
    opts = [SGD(actor.parameters(), lr=0.0), SGD(critic.parameters(), lr=0.0)]
    handle = ContinualBackprop().attach(both, opts, topology=topo)
    for i in range(4):
        _step(actor, opts[0], _data(8, 4, seed=i))
        for _ in range(2):
            _step(critic, opts[1], _data(8, 4, seed=i))
    assert handle.ages["actor.fc1"][0] == 4
    assert handle.ages["critic.fc1"][0] == 8


@pytest.mark.parametrize("fused", [False, True])
def test_steps_skipped_by_a_grad_scaler_do_not_count(fused: bool) -> None:
    model, topo = nets.mlp(4, 6, 2)
    opt = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)
    handle = ContinualBackprop().attach(model, opt, topology=topo)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for i in range(4):
        opt.zero_grad()
        loss = model(_data(8, 4, seed=i)).square().mean() * (float("inf") if i in (1, 2) else 1.0)
        scaler.scale(loss).backward()
        scaler.step(opt)
        scaler.update()
    assert handle.step == 2
    assert handle.ages["fc1"].tolist() == [2] * 6


# -- bias transfer ---------------------------------------------------------------------------------


@pytest.mark.parametrize("transfer", [True, False])
def test_bias_transfer_keeps_the_output_where_units_are_constant(transfer: bool) -> None:
    torch.manual_seed(1)
    model, topo = nets.mlp(4, 8, 3)
    opt = SGD(model.parameters(), lr=0.0)
    # every unit is replaced at once: ranking would pick the dead ones, for which nothing is to be moved
    method = ContinualBackprop(replacement_rate=1.0, maturity=4, cap=None, bias_transfer=transfer)
    handle = method.attach(model, opt, topology=topo)
    x = _data(1, 4).expand(16, 4)
    before = model(x)
    for _ in range(12):
        _step(model, opt, x)
    assert [len(e.units) for e in _events(handle)] == [8, 8]
    change = (model(x) - before).abs().max().item()
    assert change < 1e-5 if transfer else change > 1e-2


def test_bias_transfer_into_a_layer_without_bias_is_refused() -> None:
    model, _ = nets.mlp(4, 6, 2)
    model.fc2 = nn.Linear(6, 2, bias=False)
    layers = [nets.layer(model, "fc1"), nets.layer(model, "fc2", output=True)]
    topo = nets.topology(layers, [nets.edge(model, "fc1", "fc2")])
    with pytest.raises(AttachError, match="'fc2' has no bias"):
        ContinualBackprop(bias_transfer=True).attach(model, SGD(model.parameters()), topology=topo)


# -- refusals and cleanliness ----------------------------------------------------------------------

METHODS = [ContinualBackprop(), ReDo(every=3), ReGraMa(every=3), ReGraMa(every=3, score="preactivation")]


def _hooks(model: nn.Module, *opts: torch.optim.Optimizer) -> int:
    inside = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    return inside + sum(len(o._optimizer_step_pre_hooks) + len(o._optimizer_step_post_hooks) for o in opts)


@pytest.mark.parametrize("method", METHODS)
def test_detach_leaves_no_hook_and_the_model_as_plain_as_before(method: object) -> None:
    model, topo = nets.mlp(4, 6, 2)
    opt = torch.optim.Adam(model.parameters())
    keys = list(model.state_dict()), [n for n, _ in model.named_parameters()]
    with method.attach(model, opt, topology=topo):
        assert _hooks(model, opt) > 0
        for i in range(4):
            _step(model, opt, _data(8, 4, seed=i))
        assert keys == (list(model.state_dict()), [n for n, _ in model.named_parameters()])
    assert _hooks(model, opt) == 0


@pytest.mark.parametrize("method", METHODS)
def test_refused_attachments_leave_no_hook(method: object) -> None:
    model, topo = nets.mlp(4, 6, 2)
    lonely = nets.topology([nets.layer(model, "fc2", output=True)], [])
    opt = SGD(model.parameters(), lr=0.1)
    with pytest.raises(AttachError, match="no layer whose units it could reset"):
        method.attach(model, opt, topology=lonely)
    part = SGD(model.fc1.parameters(), lr=0.1)
    with pytest.raises(AttachError, match="none of the optimizers"):
        method.attach(model, part, topology=topo)
    other = torch.optim.LBFGS(model.parameters())
    with pytest.raises(OptimizerRuleError, match="LBFGS"):
        method.attach(model, other, topology=topo)
    with pytest.raises(AttachError, match="compile"):
        method.attach(torch.compile(model), opt, topology=topo)
    assert _hooks(model, opt, part, other) == 0


def test_asking_for_layers() -> None:
    model, topo = nets.mlp(4, 6, 5, 2)
    opt = SGD(model.parameters(), lr=0.1)
    handle = ReDo(layers=("fc2",)).attach(model, opt, topology=topo)
    assert [x.name for x in handle.layers[0]] == ["fc2"]
    for names, words in ((("fc9",), "no layer 'fc9'"), (("fc3",), "outputs of the network")):
        with pytest.raises(AttachError, match=words):
            ReDo(layers=names).attach(model, opt, topology=topo)


def test_training_without_a_measured_pass_is_an_error_not_silence() -> None:
    model, topo = nets.mlp(4, 6, 2)
    opt = SGD(model.parameters(), lr=0.1)
    ContinualBackprop().attach(model, opt, topology=topo)
    model.eval()
    with pytest.raises(AttachError, match="no activation was seen"):
        _step(model, opt, _data(8, 4))
    model, topo = nets.mlp(4, 6, 2)
    opt = SGD(model.parameters(), lr=0.1)
    handle = ReDo(every=1, tau=0.9).attach(model, opt, topology=topo)
    model.eval()
    _step(model, opt, _data(8, 4))
    assert isinstance(handle.log[0], LayerSkipped)
    model.train()
    _step(model, opt, _data(8, 4))
    assert _events(handle)


def test_activations_that_are_not_finite_reset_nothing() -> None:
    for method in (ReDo(every=1, tau=0.9), ContinualBackprop(replacement_rate=1.0, maturity=0)):
        model, topo = nets.mlp(4, 6, 2)
        opt = SGD(model.parameters(), lr=0.0)
        handle = method.attach(model, opt, topology=topo)
        with torch.no_grad():
            model(torch.ones(2, 4))
        x = torch.full((4, 4), float("nan"))
        _step(model, opt, x)
        assert not _events(handle)
        assert "not finite" in handle.log[0].reason


@pytest.mark.parametrize(
    "make",
    [
        lambda: ContinualBackprop(replacement_rate=2.0),
        lambda: ContinualBackprop(decay=1.0),
        lambda: ContinualBackprop(utility="weight"),
        lambda: ContinualBackprop(cap=0),
        lambda: ReDo(tau=-1.0),
        lambda: ReGraMa(score="activation"),
        lambda: ReGraMa(mode="hybrid"),
        lambda: ReGraMa(max_fraction=0.1),
        lambda: ReGraMa(outgoing="random"),
    ],
)
def test_settings_are_checked(make: object) -> None:
    with pytest.raises(InputError):
        make()


@pytest.mark.parametrize("every", [0, -1, "epoch", True, 1.5])
def test_bad_schedules_are_refused(every: object) -> None:
    model, topo = nets.mlp(4, 6, 2)
    with pytest.raises(InputError, match="schedule"):
        ReDo(every=every).attach(model, SGD(model.parameters()), topology=topo)


# -- compile ---------------------------------------------------------------------------------------


def test_attached_before_compile_measures_without_breaks_or_recompilations() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    runs = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model, topo = nets.mlp(4, 6, 5, 2)
        opt = SGD(model.parameters(), lr=0.1)
        method = ContinualBackprop(replacement_rate=0.05, maturity=3)
        handle = method.attach(model, opt, topology=topo)
        counter = torch._dynamo.testing.CompileCounter()
        run = torch.compile(model, backend=counter, fullgraph=True) if compiled else model
        for i in range(30):
            _step(run, opt, _data(8, 4, seed=i))
        assert counter.frame_count == int(compiled)
        runs.append((handle.utilities["fc1"], _events(handle)))
    assert torch.allclose(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert len(runs[0][1]) > 3


# -- state -----------------------------------------------------------------------------------------

SCRIPT = """
import sys, torch
sys.path.insert(0, {root!r})
from tests.interventions.test_reset_handles import resume
resume({folder!r})
"""


def _setting(name: str) -> tuple[nn.Module, torch.optim.Optimizer, object]:
    torch.manual_seed(0)
    model, topo = nets.mlp(4, 10, 8, 2)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
    method = {
        "cbp": ContinualBackprop(replacement_rate=0.02, maturity=5, utility="adaptable", bias_transfer=True),
        "redo": ReDo(tau=0.5, every=7),
        "regrama": ReGraMa(tau=0.5, every=7, score="preactivation"),
    }[name]
    return model, opt, method.attach(model, opt, topology=topo)


def _run(model: nn.Module, opt: torch.optim.Optimizer, start: int, stop: int) -> None:
    for i in range(start, stop):
        _step(model, opt, _data(16, 4, seed=i))


def resume(folder: str) -> None:
    """What the new process does: load, go on, write the end."""
    for name in ("cbp", "redo", "regrama"):
        saved = torch.load(Path(folder) / f"{name}.pt", weights_only=True)
        model, opt, handle = _setting(name)
        model.load_state_dict(saved["model"])
        opt.load_state_dict(saved["optimizer"])
        handle.load_state_dict(saved["handle"])
        _run(model, opt, 45, 90)
        end = {"model": model.state_dict(), "handle": handle.state_dict()}
        torch.save(end, Path(folder) / f"{name}.end.pt")


def _equal(a: object, b: object) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a == b


def test_a_saved_run_goes_on_bit_for_bit_in_a_new_process(tmp_path: Path) -> None:
    ends = {}
    for name in ("cbp", "redo", "regrama"):
        model, opt, handle = _setting(name)
        _run(model, opt, 0, 45)
        kept = {"model": model.state_dict(), "optimizer": opt.state_dict(), "handle": handle.state_dict()}
        torch.save(kept, tmp_path / f"{name}.pt")
        assert _events(handle)
        count = len(handle.log)
        _run(model, opt, 45, 90)
        assert len(handle.log) > count
        ends[name] = {"model": model.state_dict(), "handle": handle.state_dict()}
    root = str(Path(__file__).parents[2])
    code = SCRIPT.format(root=root, folder=str(tmp_path))
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
    for name, end in ends.items():
        assert _equal(end, torch.load(tmp_path / f"{name}.end.pt", weights_only=True)), name


def test_states_of_others_are_refused() -> None:
    _, _, cbp = _setting("cbp")
    _, _, redo = _setting("redo")
    with pytest.raises(InputError, match="does not belong"):
        redo.load_state_dict(cbp.state_dict())
    state = redo.state_dict()
    state["state"]["more"] = 1
    with pytest.raises(InputError, match="more"):
        redo.load_state_dict(state)


class _Outer(torch.optim.SGD):
    """As SAM and Lookahead do it: its step is another optimizer's."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        super().__init__(inner.param_groups[0]["params"], lr=0.0)
        self.inner = inner

    def step(self, closure=None):  # type: ignore[override]
        self.inner.step()


def test_an_optimizer_inside_another_is_no_stranger_and_a_lost_handle_is_not_asked() -> None:
    import gc

    from supple.interventions import L2
    from supple.interventions.handle import _ATTACHED

    gc.collect()
    before = len(_ATTACHED)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    outer = _Outer(torch.optim.SGD(model.parameters(), lr=0.1))
    handle = L2().attach(model, outer)
    for _ in range(3):
        outer.zero_grad()
        model(torch.randn(4, 3)).sum().backward()
        outer.step()
    assert handle.step == 3
    assert len(_ATTACHED) == before + 1
    del handle, outer, model
    gc.collect()
    assert len(_ATTACHED) == before


def test_an_outer_optimizer_may_step_where_its_inner_one_was_attached_to() -> None:
    from supple.interventions import L2

    model = nn.Linear(3, 1)
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = L2().attach(model, inner)
    model(torch.ones(2, 3)).sum().backward()
    _Outer(inner).step()
    assert handle.step == 1


def test_a_handle_that_was_left_behind_does_not_stop_its_successor() -> None:
    from supple.interventions import L2

    model = nn.Linear(3, 1)
    kept = []
    for _ in range(2):  # a new optimizer and a new handle in every task
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        kept.append(L2().attach(model, optimizer))
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
    assert [handle.step for handle in kept] == [1, 1]
    with pytest.raises(AttachError, match="attached to another optimizer"):
        torch.optim.SGD(model.parameters(), lr=0.1).step()


def test_values_that_attention_reads_itself_are_left_out_and_named() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(4, 5, 8)
    handle = ContinualBackprop(replacement_rate=0.1, maturity=2).attach(model, optimizer, inputs=x)
    assert "reads the weight itself" in handle.skipped["self_attn#v"]
    for _ in range(8):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    assert set(handle.units) == {"linear1"}
