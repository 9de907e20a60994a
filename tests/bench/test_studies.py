"""Studies, and what they brought: class sequences, image domains, networks by name, metrics by protocol."""

import json

import pytest
import torch
from tests.bench.tiny import content

from supple.bench import RunSpec, grid, protocols, run, run_list, with_engine
from supple.bench.cohort import supports
from supple.bench.learner import Learner
from supple.bench.networks import build
from supple.bench.protocols import ClassSequence, ClassSequenceResNet, ImageDomains
from supple.bench.studies import STUDIES, GramaVsDormant, grama_vs_dormant
from supple.cli.main import main
from supple.errors import InputError, StoreError
from supple.records import Record, Records
from supple.store import load
from supple.streams import ChangeDomain, DrawClasses, digits

TINY = {
    "class-sequence": {"tasks": 2, "hidden": (16, 16), "epochs": 1},
    "class-sequence-resnet": {"tasks": 2, "epochs": 1, "batch": 64},
    "image-domains": {"tasks": 2, "epochs": 1, "batch": 64},
}


@pytest.fixture
def small(monkeypatch):
    for name, values in TINY.items():
        presets = dict(protocols.PROTOCOLS[name].presets, demo=values)
        monkeypatch.setattr(protocols.PROTOCOLS[name], "presets", presets)


def test_a_class_sequence_shows_two_classes_a_task():
    x, y = digits()
    change = DrawClasses(2)
    for task in range(5):
        inputs, targets = change(x, y, seed=3, task=task)
        classes = change.drawn(y, seed=3, task=task)
        assert torch.equal(classes[targets], y[(y[:, None] == classes).any(1)])
        assert len(inputs) == len(targets) == int((y[:, None] == classes).any(1).sum())
    drawn = {tuple(change.drawn(y, seed=3, task=t).tolist()) for t in range(30)}
    assert len(drawn) > 10
    assert ClassSequence(tasks=3).stream(0).task(1).inputs.shape[1:] == (64,)
    assert ClassSequenceResNet(tasks=3).stream(0).task(1).inputs.shape[1:] == (1, 8, 8)


def test_domains_are_the_images_turned_and_looked_at_otherwise():
    x = digits()[0][:20].reshape(-1, 1, 8, 8)
    change, looks, symmetries = ChangeDomain(), set(), set()
    for task in range(60):
        symmetry, look = change.drawn(seed=0, task=task)
        y, _ = change(x, torch.zeros(20), seed=0, task=task)
        looks.add(look)
        symmetries.add(symmetry)
        back = y.flip(-1) if symmetry >= 4 else y
        back = back.rot90(-(symmetry % 4), (-2, -1))
        if look < 2:
            assert torch.equal(back if look == 0 else -back, x)
        else:  # neither look moves the image as a whole
            blurred = torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
            assert torch.allclose(back, blurred if look == 2 else 2 * (x - blurred), atol=1e-5)
    assert looks == set(range(4))
    assert symmetries == set(range(8))


def test_noise_is_keyed_by_purpose_and_asked_for():
    protocol = ImageDomains(tasks=2)
    task = protocol.stream(0).task(1)
    images, targets = task.inputs[:200], task.targets[:200]
    (noisy, level), noise = protocol.presenter(task, "learn")(images, targets)
    (again, _), _ = protocol.presenter(task, "learn")(images, targets)
    (other, _), _ = protocol.presenter(task, "end")(images, targets)
    assert torch.equal(noisy, again)
    assert not torch.equal(noisy, other)
    angle = (level * torch.pi / 2)[:, None, None, None]
    assert torch.allclose((noisy - angle.cos() * images) / angle.sin().clamp(min=1e-6), noise, atol=1e-2)
    assert protocol.judge(noise, noise) == (200.0, 0)
    assert protocol.judge(torch.zeros_like(noise), noise)[0] == pytest.approx(0, abs=1e-3)
    bad = noise.clone()
    bad[0, 0, 0, 0] = torch.nan
    assert protocol.judge(bad, noise) == (198.0, 1)  # no answer counts as the worst


def test_networks_by_name_and_what_they_have_no_form_of():
    net = build(ClassSequenceResNet(), depth=0)
    assert net(torch.zeros(3, 1, 8, 8)).shape == (3, 2)
    with pytest.raises(InputError, match="no form with the activation crelu"):
        build(ClassSequenceResNet(), activation="crelu")
    with pytest.raises(InputError, match="no form with a linear form"):
        build(ImageDomains(), depth=0)
    inputs = ImageDomains().example()
    assert build(ImageDomains())(*inputs).shape == inputs[0].shape


@pytest.mark.parametrize("method", ["plain", "regrama"])
def test_a_denoiser_is_resumed_bit_for_bit(method, tmp_path):
    protocol = ImageDomains(tasks=3, epochs=1, batch=128)
    spec = RunSpec(protocol=protocol, method=method, seed=0, checkpoint_every=1)
    whole = content(run(spec, tmp_path / "whole"))

    class Stop(Exception):
        pass

    def stop(share):
        if share > 0.5:
            raise Stop

    with pytest.raises(Stop):
        run(spec, tmp_path / "cut", progress=stop)
    assert content(run(spec, tmp_path / "cut")) == whole
    records = load(tmp_path / "cut/image-domains" / method / "seed-0").records
    assert len(records.select(instrument="online_score").values()) == 3
    assert all(-1 <= x <= 1 for x in records.select(instrument="end_score").values())


def test_a_network_learns_its_tasks():
    spec = RunSpec(protocol=ImageDomains(tasks=1, epochs=3), method="plain", seed=0)
    learner = Learner(spec)
    task = spec.protocol.stream(0).task(0)
    before = learner.score(task)
    learner.learn(task)
    assert learner.score(task) > before + 0.2


def test_the_study_from_the_command_line(small, tmp_path, capsys):
    out, table = tmp_path / "runs", tmp_path / "answer.json"
    command = ["bench", "run", "grama-vs-dormant", "--preset", "demo", "--seeds", "1", "--engine", "loop"]
    specs = GramaVsDormant.specs("demo", [0])
    assert run_list(specs, out / "grama-vs-dormant/demo", workers=0).ok  # the presets of this process
    assert main([*command, "--out", str(out), "--json", str(table)]) == 0
    shown = capsys.readouterr().out
    assert "regrama - redo" in shown
    answer = json.loads(table.read_text())
    assert [c["network"] for c in answer["comparisons"]] == [
        "MLP",
        "MLP",
        "ResNet-8",
        "ResNet-8",
        "U-Net",
        "U-Net",
    ]
    root = out / "grama-vs-dormant/demo"
    plain = load(root / "class-sequence/plain/seed-0").records
    expected = plain.select(instrument="grama", variant="preactivation,tau=0.1", layer="*").values()[-1]
    assert answer["comparisons"][1]["grama"]["value"] == pytest.approx(expected)
    assert {x["network"] for x in answer["layers"]} == {"MLP", "ResNet-8", "U-Net"}
    (root / "image-domains/redo/seed-0/summary.json").unlink()
    with pytest.raises(StoreError):
        GramaVsDormant.read(root)


def test_wrong_words_for_a_study(tmp_path, capsys):
    assert main(["bench", "run", "grama-vs-dormant", "--methods", "plain", "--out", str(tmp_path)]) == 2
    assert "takes no --methods" in capsys.readouterr().err
    assert main(["bench", "run", "grama-vs-dormant", "--preset", "huge", "--out", str(tmp_path)]) == 2
    assert "choose one of small" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert set(STUDIES) == {"grama-vs-dormant", "predicts", "rl-gym", "rl-minatar"}


def test_shares_ratios_and_sets_by_hand(monkeypatch):
    class Stored:
        def __init__(self, dormant, grama):
            d, g = (torch.tensor(x) for x in (dormant, grama))
            self.kept = {"dormant_scores/a": d, "grama_scores/a": g, "dormant_scores/b": torch.zeros(7)}
            share = lambda s: float((s <= 0.1).double().mean())
            self.records = Records([
                Record("dormant", 0.9, variant="tau=0.1", task="task-0"),
                Record("dormant", share(d), variant="tau=0.1", task="task-4"),
                Record("grama", share(g), variant="preactivation,tau=0.1", task="task-4"),
            ])  # fmt: skip
            self.manifest = {"run": {"protocol": {"tasks": 5}}}

        def arrays(self, name):
            assert name == "task-4"
            return self.kept

    runs = [
        Stored([0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 0.0]),
        Stored([0.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]),
    ]
    found = grama_vs_dormant._compare("x", runs, 0.1)
    assert (found.dormant.value, found.grama.value) == (0.375, 0.625)
    assert found.ratio.value == pytest.approx((1.5 + 2) / 2)
    assert found.missed.value == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found.extra.value == pytest.approx((1 / 2 + 0) / 2)
    none = grama_vs_dormant._compare("x", [Stored([1.0, 1.0], [1.0, 0.0])], 0.1)
    assert none.ratio is None
    assert none.extra is None
    assert none.missed.value == 1.0


def test_tasks_of_different_size_are_not_stacked():
    specs = with_engine(GramaVsDormant.specs("small", [0, 1]), "auto")
    assert {s.engine for s in specs} == {"loop"}
    (spec,) = grid("class-sequence", ["plain"], [0], preset="small")
    assert "different numbers of samples" in supports(spec)


def test_presets_of_a_study_are_those_of_its_protocols():
    for name in grama_vs_dormant.WEAR.values():
        assert set(GramaVsDormant.presets) == set(protocols.PROTOCOLS[name].presets)
    specs = GramaVsDormant.specs("small", [0])
    assert len({(s.method, s.seed, s.protocol.name) for s in specs}) == 12
    assert [s.label for s in grid("image-domains", ["plain"], [0], preset="small")] == [
        "image-domains/plain/seed-0"
    ]
