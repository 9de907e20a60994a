"""Tuning: searched on seeds of its own, resumable, the defaults first."""

from __future__ import annotations

from pathlib import Path

import pytest

from supple.bench import methods
from supple.bench.protocols import create
from supple.bench.tune import SPACES, TUNING, tune
from supple.cli.main import main
from supple.errors import InputError
from supple.store import load

pytest.importorskip("optuna")


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
    assert about["protocol"]["lr"] == pytest.approx(3e-3)  # trial 0 is the default
    assert about["method_settings"]["coef"] == pytest.approx(5e-3)
    assert sorted(p.name for p in (folder / "tuned/digits-permuted/l2").iterdir()) == ["seed-0", "seed-1"]
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
