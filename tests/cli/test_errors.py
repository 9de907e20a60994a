"""Bad input: one clear message on stderr, exit status 2, no traceback, nothing written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import supple
from supple.cli import main

MODULE = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

def bare():
    return nn.Sequential(nn.ReLU())

def broken():
    raise ValueError("no such data set")

def probe():
    g = torch.Generator().manual_seed(0)
    return torch.randn(32, 4, generator=g), torch.randint(3, (32,), generator=g)

def nan_probe():
    x, y = probe()
    x[3, 1] = float("nan")
    return x, y

empty = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
alone = torch.zeros(3)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a user's module, good weights and several bad ones."""
    (tmp_path / "user_net.py").write_text(MODULE)
    (tmp_path / "syntax_error.py").write_text("def build(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "user_net", raising=False)
    state = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).state_dict()
    torch.save(state, "good.pt")
    torch.save({k: v for k, v in state.items() if k != "2.bias"} | {"extra": torch.zeros(2)}, "names.pt")
    torch.save(state | {"0.weight": torch.zeros(9, 4)}, "shapes.pt")
    torch.save(state | {"0.bias": torch.full((8,), float("nan"))}, "nan.pt")
    Path("torn.pt").write_bytes(Path("good.pt").read_bytes()[:300])
    save_file({k: v.clone() for k, v in state.items()}, "good.safetensors")
    return tmp_path


GOOD = {"--model": "user_net:build", "--checkpoint": "good.pt", "--probe": "user_net:probe"}


def diagnose(**options: str) -> list[str]:
    table = GOOD | {f"--{k}": v for k, v in options.items()} | {"--json": "out.json", "--html": "out.html"}
    return ["diagnose", *(word for pair in table.items() for word in pair)]


CASES = [
    (diagnose(checkpoint="none.pt"), "no such checkpoint"),
    (diagnose(checkpoint="user_net.py"), "not a checkpoint"),
    (diagnose(checkpoint="torn.pt"), "cannot be read"),
    (diagnose(checkpoint="names.pt"), r"1 missing: 2\.bias; 1 unexpected: extra"),
    (diagnose(checkpoint="shapes.pt"), r"0\.weight: file \(9, 4\), model \(8, 4\)"),
    (diagnose(checkpoint="nan.pt"), r"NaN or Inf.*0\.bias"),
    (diagnose(model="user_net"), "must look like pkg.module:name"),
    (diagnose(model="no_such_module:build"), "cannot import no_such_module"),
    (diagnose(model="syntax_error:build"), "importing syntax_error failed.*SyntaxError"),
    (diagnose(model="user_net:nothing"), "has no 'nothing'"),
    (diagnose(model="user_net:alone"), "must name a function"),
    (diagnose(model="user_net:probe"), "must build a torch.nn.Module"),
    (diagnose(model="user_net:broken"), "ValueError: no such data set"),
    (diagnose(probe="user_net:nan_probe"), "NaN or Inf.*1 of 128 values.*inputs"),
    (diagnose(probe="user_net:empty"), "probe is empty"),
    (diagnose(probe="user_net:alone"), "pair"),
    (diagnose(loss="hinge"), "unknown loss"),
    (diagnose(reference="none.pt"), "no such checkpoint"),
    (diagnose(reference="shapes.pt"), "does not fit"),
    (diagnose(budget="-1"), "--budget"),
    (["diagnose", *diagnose()[1:], "--nonsense", "1"], "nrecognized options"),
    (["diagnose", "--model", "user_net:build"], "equired"),
    (["scan"], "no checkpoint was named"),
    (["scan", "none.pt"], "no such checkpoint"),
    (["scan", "good.pt", "--memory", "0"], "memory must be a positive number"),
    (["scan", "good.pt", "--workers", "-1"], "workers cannot be negative"),
    (["scan", "good.pt", "--base", "none"], "no such checkpoint"),
    (["scan", "good.pt", "--parquet", "no/such/folder/x"], "no such folder"),
    (["scan", "good.pt", "--instruments", "alpha"], "unknown instrument"),
    (["scan", "good.pt", "--json", "no/such/folder/x.json"], "no such folder"),
    (["report", "none"], "no such run"),
    (["report", "."], "holds no run"),
    (["report", "good.pt"], "cannot be read as JSON"),
    (["bench", "report", "none"], "no such folder"),
    (["bench", "report", "."], "no runs here"),
    (["bench", "run", "nonsense"], "unknown protocol"),
    (["bench", "run", "digits-permuted", "--methods", "nonsense"], "unknown method"),
    (["bench", "run", "digits-permuted", "--seeds", "0"], "--seeds"),
    (["bench"], "issing subcommand"),
    (["demo", "--seeds", "0"], "--seeds"),
    (["demo", "--fast", "--tasks", "4"], "--fast and --tasks"),
    (["demo", "--setting", "other"], "invalid choice|must be one of|expected one of|Invalid"),
    (["demo", "--bogus"], "nrecognized options"),
    (["nonsense"], "nonsense|nvalid"),
]


@pytest.mark.parametrize(("argv", "message"), CASES, ids=[" ".join(a)[:60] for a, _ in CASES])
def test_one_message_status_2_nothing_written(
    argv: list[str], message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(p for p in place.rglob("*") if "__pycache__" not in p.parts)
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" or argv[0] == "scan"
    assert "Traceback" not in err
    flat = " ".join(err.replace("│", " ").split())
    assert re.search(message, flat), err
    lines = [line for line in err.splitlines() if line.startswith("supple: ")]
    assert len(lines) <= 1
    assert sorted(p for p in place.rglob("*") if "__pycache__" not in p.parts) == before


@pytest.mark.parametrize(
    "argv",
    [
        [], ["demo"], ["diagnose"], ["scan"], ["report"],
        ["bench"], ["bench", "list"], ["bench", "run"], ["bench", "report"],
    ],
)  # fmt: skip
def test_help_everywhere(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*argv, "--help"]) == 0
    assert "usage: supple" in capsys.readouterr().out


def test_code_in_a_checkpoint_is_not_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(place / "pwned"),)

    torch.save({"0.weight": Trap()}, "evil.pt")
    assert main(diagnose(checkpoint="evil.pt")) == 2
    assert "wants to run code" in capsys.readouterr().err
    assert not (place / "pwned").exists()


def test_prefixes_of_wrappers_are_understood(place: Path) -> None:
    from supple.cli.loading import build_model, load_weights

    state = torch.load("good.pt")
    torch.save({f"module.{k}": v for k, v in state.items()}, "ddp.pt")
    torch.save({f"_orig_mod.{k}": v for k, v in state.items()}, "compiled.pt")
    for name in ("ddp.pt", "compiled.pt", "good.safetensors"):
        model, _ = build_model("user_net:build")
        load_weights(model, name)
        assert torch.equal(model.state_dict()["0.weight"], state["0.weight"])


def test_a_refused_checkpoint_leaves_the_model_alone(place: Path) -> None:
    from supple.cli.loading import build_model, load_weights
    from supple.errors import InputError

    model, _ = build_model("user_net:build")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InputError):
        load_weights(model, "shapes.pt")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_process_status_and_streams(place: Path) -> None:
    """The real entry, in a process: the status arrives, the message is on stderr alone."""
    code = "import sys; from supple.cli import main; sys.exit(main())"
    source = str(Path(supple.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code, "report", "none"], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": source},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("supple: there is no such run")
