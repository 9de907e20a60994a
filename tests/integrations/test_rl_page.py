"""The page for RL engineers: its code runs, its table has every suite."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("stable_baselines3")
pytestmark = pytest.mark.rl

from supple.streams.rl import suites  # noqa: E402

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "agents-and-tasks.md").read_text(encoding="utf-8")


def test_its_code_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    # as written, but short
    for long, short in (("100_000", "64"), ("budget=20.0", "budget=0.5"), ("20_000", "40")):
        assert long in code
        code = code.replace(long, short)
    code = re.sub(
        r'PPO\("MlpPolicy", (\w+)\)', r'PPO("MlpPolicy", \1, n_steps=32, batch_size=32, n_epochs=1)', code
    )
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, "agents-and-tasks.md", "exec"), names)
    assert "policy saturation" in capsys.readouterr().out
    assert names["callback"].monitor.step > 0  # type: ignore[attr-defined]


def test_its_table_has_every_suite_and_extra() -> None:
    for name, chosen in suites().items():
        shown = "procgen-coinrun" if name.startswith("procgen-") else name
        row = next((line for line in PAGE.splitlines() if f"`{shown}`" in line and line.startswith("|")), "")
        assert f"`{chosen.extra}`" in row, name
