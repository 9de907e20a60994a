"""Rounds of fine-tuning: languages from an archive, arms that start as they say, figures of hand-made records."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from supple.bench.networks import keyed
from supple.bench.rounds import RECORDS, figures, folder_of, records_of, run_rounds
from supple.bench.rounds.bases import RATE, Sizes, Small
from supple.bench.rounds.course import Identification, fixed_probe, loss_fn
from supple.bench.rounds.learner import Learner
from supple.bench.rounds.measure import Eye, churn, kernel, steps_to_shares
from supple.bench.rounds.read import end_losses, steps_to, steps_to_share, table
from supple.bench.rounds.run import ARMS, Arm, Course, Length, run_arm
from supple.bench.rounds.words import render, verdict
from supple.cli.main import main
from supple.errors import InputError
from supple.models import GPT
from supple.observe import observe
from supple.streams import generator
from supple.streams.data.languages import languages

SHORT = Length(1, 3, 20)


class Tiny(Small):
    """A smaller GPT on shorter windows."""

    def make(self, seed: int, turn: int, attention: str) -> torch.nn.Module:
        return keyed(lambda: GPT(256, dim=32, depth=2, heads=2, context=16, attention=attention), seed, turn)

    sizes = Sizes(batch=4, context=16, held=4, probe=32, probe_context=8, kernel=8, kernel_context=4)


TINY = Tiny()


def test_languages_are_those_with_enough_text(language_data: Path) -> None:
    found = languages()
    assert sorted(found) == ["000", "001", "002", "003"]
    assert found["001"][:6].tolist() == [102, 103, 104, 105, 106, 102]
    assert found["001"].dtype == torch.int64


def test_every_arm_sees_the_same_batches_and_targets_follow_inputs(language_data: Path) -> None:
    a, b = Course(0, SHORT), Course(0, SHORT)
    assert a.names == b.names
    x, y = a.batch(1, "step-3")
    assert torch.equal(x, b.batch(1, "step-3")[0])
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert not torch.equal(x, a.batch(1, "step-4")[0])
    assert Course(1, SHORT).names != a.names or Course(2, SHORT).names != a.names
    with pytest.raises(InputError, match="more rounds than languages"):
        Course(0, Length(1, 9, 1))


def test_arms_start_where_they_say(language_data: Path) -> None:
    course = Course(0, Length(1, 3, 10), TINY)
    names = ("full", "fresh", "restart", "svf", "lora")
    rows = {a.name: run_arm(a, course)["rounds"] for a in ARMS if a.name in names}
    assert len({r[0]["blocks"][0] for r in rows.values()}) == 1  # one first model
    # all but the fresh ones go on from round 0, with a new optimizer but for "full"
    for name in ("restart", "svf", "lora"):
        assert rows[name][0] == rows["full"][0]
        assert rows[name][1]["blocks"][0] == pytest.approx(rows["full"][1]["blocks"][0], rel=0.3)
        assert rows[name][1]["blocks"] != rows["full"][1]["blocks"]
    assert rows["full"][2]["blocks"] != rows["restart"][2]["blocks"]
    assert rows["fresh"][1]["blocks"] != rows["full"][1]["blocks"]
    assert set(rows["full"][0]["ranks"]) == {"q", "k", "v", "o", "up", "down"}
    assert 0 <= rows["full"][2]["dead"] <= 1
    # an adapter that is not merged moves the ranks of the weights as they compute; a merged one those below
    assert rows["svf"][2]["ranks"] == rows["svf"][0]["ranks"] != rows["svf"][2]["ranks_adapted"]
    assert "ranks_adapted" not in rows["lora"][2]
    assert rows["lora"][2]["ranks"] != rows["lora"][1]["ranks"] != rows["lora"][0]["ranks"]
    for row in (r for rounds in rows.values() for r in rounds):
        assert all(math.isfinite(v) for v in row["probe"].values())
        assert 1 <= row["probe"]["ntk_effective_rank"] <= 8


def test_an_arm_runs_with_its_intervention(language_data: Path) -> None:
    course = Course(0, Length(1, 2, 20), TINY)
    plain = run_arm(Arm("full"), course)["rounds"]
    pulled = run_arm(Arm("l2init", intervention="L2Init", settings={"coef": 1.0}), course)["rounds"]
    assert plain[0]["blocks"][0] == pytest.approx(pulled[0]["blocks"][0], rel=0.2)
    assert plain[1]["blocks"] != pulled[1]["blocks"]


@pytest.mark.parametrize("name", ["regrama", "svf", "lora"])
def test_what_is_measured_does_not_move_what_is_learned(
    language_data: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    arm = next(a for a in ARMS if a.name == name)
    course = Course(0, Length(1, 3, 10), TINY)
    seen = [r["blocks"] for r in run_arm(arm, course)["rounds"]]
    monkeypatch.setattr(Eye, "look", lambda self, learner, turn: learner.settle() or {})
    assert [r["blocks"] for r in run_arm(arm, course)["rounds"]] == seen


def test_the_adapters_of_all_rounds_add_up_in_the_weights(language_data: Path) -> None:
    course = Course(0, Length(1, 3, 10), TINY)
    arm = next(a for a in ARMS if a.name == "lora")
    model = TINY.make(0, 0, "softmax")
    weight = model.blocks[0].mlp.up.weight
    base, inner = weight.detach().clone(), []
    for turn in (1, 2):
        learner = Learner(arm, model, course, turn)
        learner.learn(turn)
        inner.append(learner.adapter.delta("blocks.0.mlp.up").detach())
        learner.settle()
    assert min(d.norm() for d in inner) > 0
    torch.testing.assert_close(weight.detach() - base, inner[0] + inner[1], rtol=1e-4, atol=1e-6)
    assert all(p.requires_grad for p in model.parameters())
    assert not learner.model.blocks[0].mlp.up._forward_hooks


def test_churn_beside_the_model_is_the_instrument_where_both_can_be_had(language_data: Path) -> None:
    course = Course(0, SHORT, TINY)
    learner = Learner(Arm("full"), TINY.make(0, 0, "softmax"), course, 0)
    probe = fixed_probe(TINY)
    parameters = list(learner.model.parameters())
    before = [p.detach().clone() for p in parameters]
    found = churn(learner.model, parameters, RATE, probe, course.forward)
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    seen = observe(learner.model, probe, loss_fn, optimizer=learner.optimizer, instruments=["churn"])
    assert found["churn"] == pytest.approx(seen.value("churn", "*", "kl"), rel=1e-4)
    assert found["churn_relative"] == pytest.approx(seen.value("churn", "*", "relative"), rel=1e-4)
    assert found["churn"] > 0


def test_kernel_is_the_gram_of_the_gradients_of_a_centred_combination(language_data: Path) -> None:
    model = GPT(256, dim=8, depth=1, heads=2, context=8).double()
    tokens = fixed_probe(TINY)[0]
    signs = torch.randint(2, (256,), generator=generator(0, "signs")).double() * 2 - 1
    rows = []
    for window in tokens[[0, 10, 21, 31], -4:]:
        value = model(window[None])[0, -1] @ (signs - signs.mean()) / 16
        gradients = torch.autograd.grad(value, model.parameters(), materialize_grads=True)
        rows.append(torch.cat([g.flatten() for g in gradients]))
    jacobian = torch.stack(rows)
    values = torch.linalg.eigvalsh(jacobian @ jacobian.T).flip(0)
    found = kernel(model, tokens, windows=4, span=4)
    assert found["ntk_trace"] == pytest.approx(float(values.sum()), rel=1e-6)
    share = values / values.sum()
    assert found["ntk_effective_rank"] == pytest.approx(
        float(torch.exp(-(share * share.log()).sum())), rel=1e-5
    )
    assert found["ntk_rank99"] == int((share.cumsum(0) < 0.99).sum()) + 1


def test_units_are_those_of_the_mlps(language_data: Path) -> None:
    course = Course(0, SHORT, TINY)
    learner = Learner(Arm("full"), TINY.make(0, 0, "softmax"), course, 0)
    eye = Eye(course)
    sound = eye.look(learner, 1)["probe"]
    with torch.no_grad():
        up = learner.model.blocks[1].mlp.up
        up.weight[:32].zero_()
        up.bias[:32] = -10.0  # a quarter of one of two MLPs never fires
        other = learner.model.blocks[0].mlp.up
        other.weight[64:96] = other.weight[:32]
        other.bias[64:96] = other.bias[:32]  # half of the other has a twin
    ill = eye.look(learner, 1)["probe"]
    assert sound["dead"] == 0
    assert ill["dead"] == pytest.approx(0.25 / 2)
    assert ill["cloned"] >= sound["cloned"] + 0.2


def test_the_probe_is_one_for_all_and_spread_over_the_archive(language_data: Path) -> None:
    x, y = fixed_probe(TINY)
    assert torch.equal(x, fixed_probe(TINY)[0])
    assert x.shape == (32, 8)
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert [int((row[0] - 97) // 5) for row in x] == sorted([0, 1, 2, 3] * 8)


class Few(Identification):
    classes = 3


def test_windows_of_a_round_are_of_its_languages_under_its_numbers(language_data: Path) -> None:
    course, again = Few(0, Length(1, 4, 5), TINY), Few(0, Length(1, 4, 5), TINY)
    assert course.names == again.names
    assert len(set(course.names)) > 1
    for turn, names in enumerate(course.names):
        x, y = course.batch(turn, "step-0", 40)
        assert x.shape == (40, 16)
        assert torch.equal(x, again.batch(turn, "step-0", 40)[0])
        letters = torch.tensor(
            [int(n) for n in names.split(",")]
        )  # language i is of five letters from 97 + 5 i
        assert torch.equal((x[:, 0] - 97) // 5, letters[y])
        assert set(y.tolist()) == {0, 1, 2}
    assert course.entropy(0) == pytest.approx(math.log(3))
    with pytest.raises(InputError, match="too few languages"):
        Identification(0, SHORT, TINY)


def test_classes_are_read_off_the_last_token_and_learned(language_data: Path) -> None:
    course = Few(0, Length(1, 2, 40), TINY)
    model = TINY.make(0, 0, "softmax")
    x, y = course.batch(0, "a", 6)
    logits = model(x)[:, -1, :3]
    torch.testing.assert_close(course.forward(model, x), logits)
    want = -torch.log_softmax(logits, -1)[torch.arange(6), y].mean()
    torch.testing.assert_close(loss_fn(course.forward(model, x), y), want)
    rows = run_arm(ARMS[0], course)["rounds"]
    assert rows[0]["accuracy"] > 0.7 > rows[0]["blocks"][-1]
    assert rows[0]["blocks"][0] < 1.5  # of three classes, not of 256 tokens
    assert all(math.isfinite(v) for r in rows for v in r["probe"].values())
    lora = run_arm(next(a for a in ARMS if a.adapter == "lora"), course)["rounds"]
    assert all(math.isfinite(v) for r in lora for v in r["probe"].values())


def test_classification_is_an_experiment_of_its_own(
    language_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import supple.bench.rounds.run as room

    monkeypatch.setattr(room, "SMALL", TINY)
    monkeypatch.setattr(room, "LENGTHS", {"tiny": Length(1, 2, 10)})
    monkeypatch.setattr(Identification, "classes", 3)
    command = ["bench", "run", "lm-classification", "--preset", "tiny", "--out", str(tmp_path)]
    assert main([*command, "--methods", "full,fresh"]) == 0
    assert "accuracy, first → last third" in capsys.readouterr().out
    folder = tmp_path / "lm-classification" / "tiny"
    assert [f.name for f in folder.iterdir()] == ["classification.jsonl"]
    assert main(["bench", "report", str(folder), "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["table"]["full"]["accuracy"]) == 2
    assert len(found["records"]) == 2


def test_entropy_and_steps_to_a_share_of_it(language_data: Path) -> None:
    assert Course(0, SHORT, TINY).entropy(1) == pytest.approx(math.log(5))  # five letters, equally often
    losses = [2.0] * 10 + [1.0] * 10
    assert steps_to_shares(losses, 2.0) == {"0.8": 14, "0.65": 17}
    assert steps_to_shares(losses, 1.0) == {"0.8": None, "0.65": None}
    assert steps_to_shares([0.1] * 5, 9.0) == {"0.8": None, "0.65": None}


def _record(arm: str, seed: int, ends: list[float]) -> dict[str, Any]:
    rounds = [
        {"language": str(i), "blocks": [e + 1, e + 0.5, e, e], "first_language": e, "ranks": {"q": 0.5}}
        for i, e in enumerate(ends)
    ]
    return {"arm": arm, "seed": seed, "rounds": rounds}


def test_figures_of_hand_made_records() -> None:
    rows = []
    for seed in (0, 1):
        shift = 0.01 * seed
        rows.append(_record("fresh", seed, [2.0 + shift] * 7))
        rows.append(_record("full", seed, [2.0, 1.8, 1.8, 1.9, 2.0, 2.2, 2.2 + shift]))
    found = table(rows)["full"]
    assert found["minus fresh, first third"].value == pytest.approx(-0.205)
    assert found["minus fresh, last third"].value == pytest.approx(0.1975)
    assert found["change"].difference.value == pytest.approx(0.4025)
    said = verdict(table(rows))
    assert said.startswith("There is a loss of plasticity at this scale: difference to fresh models +0.19")
    assert "worse than fresh models, and its head start shrinks" in said
    assert found["steps to fresh's loss"]["first third"].value == 30.0
    assert found["steps to fresh's loss"]["last third"].value == 40.0  # not reached: a whole round
    assert end_losses(rows[0]) == [2.0] * 7
    assert steps_to(rows[1], [2.0] * 7)[:2] == [30.0, 30.0]
    assert math.isnan(steps_to(rows[1], [2.0] * 7)[5])
    assert found["rounds at fresh's loss"] == pytest.approx((4 / 6 + 4 / 6) / 2)


def test_the_verdict_says_when_there_is_no_loss_or_no_telling() -> None:
    def said(*gaps: float) -> str:
        rows = [_record("fresh", s, [2.0] * 7) for s in range(len(gaps))]
        rows += [_record("full", s, [2.0] * 5 + [2.0 + g] * 2) for s, g in enumerate(gaps)]
        return verdict(table(rows), rows)

    assert said(-0.2, -0.21).startswith(
        "No loss of plasticity appears at this scale: difference to fresh models -0.205"
    )
    assert "moves in its favour over the rounds" in said(-0.2, -0.21)
    assert "no clear change" in said(-0.2, 0.3)
    assert said(-0.2, 0.3).startswith("Whether there is a loss of plasticity cannot be told from 2 seeds")
    assert said(0.3).endswith("one seed gives no interval, and no verdict on a loss of plasticity.")


def test_records_of_before_and_of_arms_that_broke_or_were_refused_are_read() -> None:
    broken = _record("regrama", 0, [2.0] * 7)
    broken["rounds"][4]["blocks"][-1] = None
    blown = _record("l2init", 0, [2.0] * 7)
    blown["rounds"][6]["blocks"][-1] = "inf"
    none = {"arm": "spectral", "seed": 0, "rounds": [], "refused": "it does not fit"}
    rows = [_record("fresh", 0, [2.0] * 7), _record("full", 0, [1.9] * 7), broken, blown, none]
    text = render(rows)
    assert "| l2init | not finite |" in text
    assert "spectral was not run: it does not fit" in text
    assert "fixed probe" not in text
    assert "probe" not in table(rows)["full"]
    assert math.isnan(steps_to_share(rows[0], 0.8)[0])


def test_new_measures_are_told_by_thirds_and_ends() -> None:
    rows = [_record("fresh", 0, [2.0] * 7), _record("full", 0, [1.9] * 7)]
    for record in rows:
        record["steps"] = 25
        for i, row in enumerate(record["rounds"]):
            row["steps_to"] = {"0.8": 10 + i, "0.65": 20 if i < 3 else None}
            row["probe"] = {"dead": 0.1 * i, "churn": None}
    found = table(rows)["full"]
    assert found["steps to a share"]["0.8"]["first third"].value == 11.5
    assert found["steps to a share"]["0.65"]["last third"].value == 25
    assert found["steps to a share"]["0.65"]["rounds that reach it"] == pytest.approx(2 / 6)
    assert found["probe"]["dead"] == pytest.approx([0.0, 0.6])
    text = render(rows)
    assert "| full | 30 → 30 | +0 | 12 → 16 (100% reach it) | 20 → 25 (33% reach it) |" in text
    assert "| full | 0.000 → 0.600 | – → – |" in text


def test_it_resumes_and_reports_from_the_command_line(
    language_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import supple.bench.rounds.run as room

    monkeypatch.setattr(room, "SMALL", TINY)
    monkeypatch.setattr(room, "ARMS", ARMS[:3])
    monkeypatch.setattr(room, "LENGTHS", {"tiny": Length(1, 3, 10)})
    command = ["bench", "run", "lm-rounds", "--preset", "tiny", "--out", str(tmp_path), "--tasks", "2"]
    assert main([*command, "--methods", "full,fresh"]) == 0
    folder = folder_of(tmp_path, "tiny", 2)
    assert folder.name == "tiny-2-rounds"
    first = (folder / RECORDS).read_text()
    assert len(first.splitlines()) == 2
    assert main(command) == 0
    assert (folder / RECORDS).read_text().startswith(first)
    assert [r["arm"] for r in run_rounds(folder, "tiny", rounds=2)] == ["full", "fresh", "restart"]
    capsys.readouterr()
    assert main(["bench", "report", str(folder), "--json", str(tmp_path / "page.json")]) == 0
    assert "full fine-tuning ends" in capsys.readouterr().out
    found = json.loads((tmp_path / "page.json").read_text())
    assert found["verdict"] == figures(records_of(folder))["verdict"]
    assert set(found["table"]) == {"full", "fresh", "restart"}
    assert len(found["records"]) == 3


def test_what_does_not_fit_is_refused_before_anything_runs(
    language_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for settings, said in (
        ({"preset": "huge"}, "unknown preset"),
        ({"preset": "tiny", "arms": ["full", "nonsense"]}, "unknown arm 'nonsense'"),
        ({"preset": "tiny", "arms": ["full"]}, "add fresh"),
        ({"preset": "tiny", "arms": ["forgetting", "fresh"]}, "add forgetting_fresh"),
        ({"preset": "tiny", "rounds": 1}, "two rounds or more"),
        ({"preset": "tiny", "rounds": 9}, "more rounds than languages"),
    ):
        with pytest.raises(InputError, match=said):
            run_rounds(tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()
    for command in (["digits-permuted"], ["grama-vs-dormant"], ["lab"]):
        assert main(["bench", "run", *command, "--model", str(tmp_path)]) == 2
        assert "--model" in capsys.readouterr().err


def test_no_data_is_told_with_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    languages.cache_clear()
    monkeypatch.delenv("SUPPLE_DATA", raising=False)
    with pytest.raises(InputError, match="SUPPLE_DATA"):
        languages()
    with pytest.raises(InputError, match="no archive"):
        languages(str(tmp_path))
    (tmp_path / "udhr2.zip").write_bytes(b"not a zip")
    with pytest.raises(InputError, match="damaged"):
        languages(str(tmp_path))
