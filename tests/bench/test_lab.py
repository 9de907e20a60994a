"""The lab: illness by construction, surgical repair, truth by learning, verdicts against it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from supple.bench.lab import PRESETS, cases, render, run_lab, summary
from supple.bench.lab.cases import DESIGNS, DIAL, EVALUATION, FAMILIES, TRAIN, suits
from supple.bench.lab.ills import bias, gates, hurt_, repair_, signals, weight
from supple.bench.lab.run import RECORDS, bench
from supple.bench.lab.score import present
from supple.bench.lab.wear import train_
from supple.bench.networks import keyed
from supple.bench.statistics import wilson
from supple.cli.main import main
from supple.errors import InputError
from supple.functional import effective_rank, singular_values


def test_the_halves_share_no_shape_no_sample_and_no_name() -> None:
    for factories in FAMILIES.values():
        shapes = [tuple(tuple(p.shape) for p in factories[h]().parameters()) for h in (TRAIN, EVALUATION)]
        assert shapes[0] != shapes[1]
    both = {h: {c.seed for c in cases("small", h)} for h in (TRAIN, EVALUATION)}
    assert not both[TRAIN] & both[EVALUATION]
    x, z = (bench(PRESETS["tiny"], h).x for h in (TRAIN, EVALUATION))
    assert float(torch.cdist(x, z).amin()) > 0


def test_every_repair_works_in_bfloat16() -> None:
    build, x = DESIGNS["bf16"][TRAIN], bench(PRESETS["tiny"], TRAIN).x
    for ill in DIAL:
        net = keyed(build, 0)
        repair_(net, ill, keyed(build, 1), x)
        assert all(p.dtype == torch.bfloat16 and bool(p.isfinite().all()) for p in net.parameters()), ill


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_repair_undoes_what_was_built(family: str) -> None:
    """In every family: dead units fire again, the spectrum is flat, the common mode is gone."""
    build = FAMILIES[family][TRAIN]
    x = bench(PRESETS["tiny"], TRAIN).x
    fresh = keyed(build, 1)
    net = keyed(build, 0)
    if suits("dead", family):
        hurt_(net, "dead", 0.5)
        silent = [float((signals(net, g, x).amax(1) <= 0).float().mean()) for _, g in gates(net)]
        assert min(silent) >= 0.5
        repair_(net, "dead", fresh, x)
        _, first = gates(net)[0]
        assert float((signals(net, first, x).amax(1) <= 0).float().mean()) < 0.1
    net = keyed(build, 0)
    hurt_(net, "rank", 0.5)
    layer = gates(net)[1][0]
    assert float(effective_rank(singular_values(weight(layer).detach().flatten(1)))) < 5
    norm = weight(layer).norm()
    repair_(net, "rank", fresh, x)
    s = singular_values(weight(layer).detach().flatten(1))
    assert float(effective_rank(s)) == pytest.approx(len(s), rel=1e-3)
    assert float(weight(layer).detach().norm()) == pytest.approx(float(norm), rel=1e-4)
    net = keyed(build, 0)
    hurt_(net, "common", 10.0)
    gate = gates(net)[0][1]
    assert float(signals(net, gate, x).mean(1).abs().mean()) > 5
    repair_(net, "common", fresh, x)
    assert float(signals(net, gate, x).mean(1).abs().max()) < 1e-3
    assert bias(gate).requires_grad


def _row(
    family: str, loss: float, present: list[str], claimed: list[str], built: bool = True
) -> dict[str, Any]:
    names = ("plasticity_loss", "dead_units", "rank_collapse", "ntk_degeneration")
    verdicts = {n: {"status": "present" if n in claimed else "absent"} for n in names}
    return {
        "case": family, "half": EVALUATION, "family": family, "loss": loss, "present": present,
        "own": 1 - loss, "healthy": 1.0, "repairs": {},
        "built": [["dead", 0.5]] if built else [], "healthy_by_design": not built, "verdicts": verdicts,
    }  # fmt: skip


def test_counts_of_a_hand_made_half() -> None:
    rows = [
        _row("a", 0.5, ["dead_units"], ["dead_units", "plasticity_loss"]),
        _row("a", 0.5, ["dead_units"], ["rank_collapse"]),
        _row("a", 0.15, ["dead_units"], ["plasticity_loss"]),  # too mild for sensitivity
        _row("b", 0.01, [], ["ntk_degeneration"], built=False),
        _row("b", 0.05, [], [], built=False),  # between the limits of step 0
    ]
    found = summary(rows)["all"]
    assert (found["dead_units"]["sensitivity"]["hits"], found["dead_units"]["sensitivity"]["n"]) == (1, 2)
    assert (found["rank_collapse"]["specificity"]["hits"], found["rank_collapse"]["specificity"]["n"]) == (
        4,
        5,
    )
    assert (found["false alarms on healthy"]["hits"], found["false alarms on healthy"]["n"]) == (1, 2)
    assert (found["step 0"]["hits"], found["step 0"]["n"]) == (3, 4)
    assert summary(rows)["confusion"]["dead_units -> rank_collapse"] == 1


def test_severity_follows_the_loss_or_not() -> None:
    rows = [_row("a", loss / 20, [], ["dead_units"] if loss > 9 else []) for loss in range(20)]
    for loss, row in enumerate(rows):
        row["verdicts"]["dead_units"]["severity"] = loss**2 / 400
        row["verdicts"]["rank_collapse"]["severity"] = -loss / 20
    found = summary(rows)["severity"]
    assert found["dead_units"] == {"n": 20, "all": 1.0, "n_found": 10, "found": 1.0}
    assert found["rank_collapse"]["all"] == -1.0
    assert found["ntk_degeneration"]["n"] == 0
    assert math.isnan(found["ntk_degeneration"]["all"])
    assert "| dead_units | 20 | 1.00 | 10 | 1.00 |" in render(summary(rows))


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (9, 10), (10, 10), (37, 120)])
def test_wilson_bounds_solve_the_score_equation(hits: int, n: int) -> None:
    p = hits / n
    for bound in wilson(hits, n):
        assert (p - bound) ** 2 * n == pytest.approx(1.959964**2 * bound * (1 - bound), abs=1e-9)
    assert math.isnan(wilson(0, 0)[0])


def test_run_resumes_after_a_cut_line_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = [c for c in cases("tiny", TRAIN) if c.name in ("train/mlp/fresh/0", "train/mlp/dead=0.85/0")]
    monkeypatch.setattr("supple.bench.lab.run.cases", lambda preset, half: wanted)
    run_lab(tmp_path, "tiny", (TRAIN,), limit=1)
    whole = (tmp_path / RECORDS).read_text()
    (tmp_path / RECORDS).write_text(whole + '{"case": "tr')
    rows = run_lab(tmp_path, "tiny", (TRAIN,))
    lines = (tmp_path / RECORDS).read_text()
    assert lines.startswith(whole)
    assert [json.loads(line)["case"] for line in lines.splitlines()] == [c.name for c in wanted]
    ill = next(r for r in rows if r["built"])
    assert ill["loss"] > 0.25
    assert ill["present"] == ["dead_units"]
    assert ill["verdicts"]["dead_units"]["status"] == "present"
    assert main(["bench", "report", str(tmp_path)]) == 0
    assert "dead_units, sensitivity | 1/1" in capsys.readouterr().out


def test_an_unknown_preset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown preset"):
        run_lab(tmp_path, "huge")
    assert main(["bench", "run", "lab", "--methods", "plain", "--out", str(tmp_path)]) == 2


@pytest.mark.parametrize("family", ["mlp", "mlp-tanh"])
def test_a_worn_policy_is_certain_of_one_action(family: str) -> None:
    lab = bench(PRESETS["tiny"], TRAIN)
    net = keyed(FAMILIES[family][TRAIN], 0)
    train_(net, "policy", 1, lab.x, lab.y, torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = net(lab.x)
    chances = outputs.softmax(1)
    assert float(torch.special.entr(chances).sum(1).mean()) < 0.05
    assert len(chances.argmax(1).unique()) == 1
    assert float(outputs.abs().amax()) > 5


def test_of_three_at_once_each_counts_by_what_its_repair_adds() -> None:
    row = _row("a", 0.6, [], [])
    row["repairs"] = {
        "dead": 0.42, "rank": 0.40, "common": 0.41, "rank+common": 0.45, "dead+common": 0.95, "dead+rank": 0.45,
        "dead+rank+common": 0.98,
    }  # fmt: skip
    assert present(row) == [
        "dead_units",
        "ntk_degeneration",
    ]  # without the repair of the rank 0.95 of 0.98 is there
    row["repairs"]["dead+rank+common"] = 0.5  # together they give less than half of what is lost
    assert present(row) == []
    row["repairs"]["rank"] = 0.8  # one that does it alone counts anyway
    assert present(row) == ["rank_collapse"]
