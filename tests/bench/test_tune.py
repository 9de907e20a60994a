"""Tuning: searched on seeds of its own, resumable, the defaults first."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from supple.bench import methods
from supple.bench.protocols import Protocol, create
from supple.bench.search import SPACES, Search
from supple.bench.tune import TUNING, Tuned, tune
from supple.cli.main import main
from supple.errors import InputError, MissingExtraError, StoreError
from supple.store import load

pytest.importorskip("optuna")


def _protocol(tasks: int = 1) -> Protocol:
    return create("digits-permuted", tasks=tasks, hidden=(8,), batch=64)


def _short(root: Path, trials: int, **options: Any) -> Tuned:
    return tune(
        _protocol(), "l2", root, **{"trials": trials, "tuning_seeds": 1, "seeds": 1, "workers": 0, **options}
    )


def _areas_without_runs(monkeypatch: pytest.MonkeyPatch, value: Any = None) -> list[dict[str, float]]:
    """Replaces the runs of a search by a formula, and gives the settings that were asked for."""
    asked: list[dict[str, float]] = []

    def areas(self: Search, settings: Mapping[str, float], seeds: Sequence[int], root: Path) -> list[float]:
        asked.append(dict(settings))
        return [value(settings) if value else settings.get("lr", 0.0)] * len(seeds)

    monkeypatch.setattr(Search, "areas", areas)
    return asked


def test_every_dial_is_a_setting_of_its_method() -> None:
    from supple.interventions import available

    for name, dials in SPACES.items():
        fields = available()[methods.get(name).intervention].__dataclass_fields__
        assert set(dials) <= set(fields), name
        assert all(0 < d.low < d.high for d in dials.values())


def test_a_search_goes_on_where_it_stopped_and_reports_on_other_seeds(tmp_path: Path) -> None:
    protocol = create("digits-permuted", tasks=2, hidden=(8,), batch=64)
    said: list[str] = []
    found = tune(protocol, "l2", tmp_path, trials=2, tuning_seeds=1, seeds=2, workers=0, say=said.append)
    assert [line.split(":")[0] for line in said] == ["trial 1/2", "trial 2/2"]
    assert set(found.settings) == {"lr", "coef"}
    folder = tmp_path / "digits-permuted" / "l2"
    about = load(folder / "trial-0/digits-permuted/l2" / f"seed-{TUNING}").manifest["run"]
    assert about["method_settings"]["lr"] == pytest.approx(3e-3)  # trial 0 is the default
    assert about["method_settings"]["coef"] == pytest.approx(5e-3)
    (best,) = (folder / "tuned").iterdir()
    assert sorted(p.name for p in (best / "digits-permuted/l2").iterdir()) == ["seed-0", "seed-1"]
    more = tune(protocol, "l2", tmp_path, trials=3, tuning_seeds=1, seeds=2, workers=0, say=said.append)
    assert more.trials == 3
    assert len(said) == 3  # one new trial
    assert more.searched >= found.searched
    assert more.gain.difference.value == pytest.approx(sum(more.tuned) / 2 - sum(more.default) / 2, abs=1e-12)


def test_wrong_numbers_and_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    protocol = create("digits-permuted", tasks=2, hidden=(8,), batch=64)
    with pytest.raises(InputError, match="trials must be at least 1"):
        tune(protocol, "l2", tmp_path, trials=0)
    assert main(["bench", "tune", "digits-permuted", "nothing", "--tasks", "1", "--out", str(tmp_path)]) == 2
    assert "unknown method" in capsys.readouterr().err


def test_a_search_that_finds_better_settings_later_runs_them_beside_the_earlier_ones(tmp_path: Path) -> None:
    first = _short(tmp_path, 1)
    later = _short(tmp_path, 6)
    assert later.settings != first.settings  # a larger rate learns more of one task
    assert len(list((tmp_path / "digits-permuted/l2/tuned").iterdir())) == 2
    assert later.default == first.default
    assert _short(tmp_path, 6) == later


@pytest.mark.parametrize("other", [{"tuning_seeds": 2}, {"protocol": _protocol(tasks=2)}])
def test_a_search_of_other_settings_shares_no_trials(tmp_path: Path, other: dict[str, Any]) -> None:
    _short(tmp_path, 1)
    options = {"trials": 1, "tuning_seeds": 1, "seeds": 1, "workers": 0, **other}
    with pytest.raises(StoreError, match=r"search with other settings; found: (seeds|protocol\.tasks)"):
        tune(options.pop("protocol", _protocol()), "l2", tmp_path, **options)
    assert _short(tmp_path, 1).trials == 1  # and nothing was spoilt


def test_nothing_is_made_before_the_method_and_optuna_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="unknown method"):
        tune(_protocol(), "nothing", tmp_path)
    with pytest.raises(InputError):
        tune(create("class-sequence-resnet"), "crelu", tmp_path)  # no form of it
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"supple\[tune\]"):
        tune(_protocol(), "l2", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_a_stopped_search_gives_the_trials_of_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    asked = _areas_without_runs(monkeypatch)
    whole = _short(tmp_path / "whole", 12)
    wanted, asked[:] = list(asked), []
    real = Search.areas

    def stopped(self: Search, settings: Mapping[str, float], *rest: Any) -> list[float]:
        if len(asked) == stop:
            raise KeyboardInterrupt
        return real(self, settings, *rest)

    monkeypatch.setattr(Search, "areas", stopped)
    with pytest.raises(KeyboardInterrupt):
        _short(tmp_path / "stopped", 12)
    monkeypatch.setattr(Search, "areas", real)
    assert _short(tmp_path / "stopped", 12) == whole
    assert asked == wanted
    assert len({tuple(s.values()) for s in asked[:12]}) == 12  # no settings twice


def test_one_searcher_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def beside(_: Mapping[str, float]) -> float:
        with pytest.raises(StoreError, match="another process"):
            _short(tmp_path, 1)
        return 0.5

    _areas_without_runs(monkeypatch, beside)
    assert _short(tmp_path, 1).searched == 0.5


def test_one_seed_has_no_interval_in_the_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _areas_without_runs(monkeypatch)
    target, out = tmp_path / "tuned.json", str(tmp_path / "runs")
    line = ["bench", "tune", "digits-permuted", "l2", "--trials", "1", "--seeds", "1", "--out", out]
    assert main([*line, "--json", str(target)]) == 0
    assert json.loads(target.read_text())["gain"]["difference"]["lo"] is None
    assert main([*line, "--workers", "0"]) == 2
