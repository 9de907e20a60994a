"""What the small commands print and write when all is well."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.report.example import diagnosis, story

from supple.cli import main
from supple.cli.console import Progress, duration, write_text
from supple.cli.scan import Scan


def rounds(folder: Path, count: int, fall: float) -> list[str]:
    base, paths = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)), []
    u, s, v = torch.linalg.svd(base)
    for r in range(count):
        w = u @ torch.diag(s * torch.exp(-fall * r * torch.arange(16.0) / 16)) @ v
        paths.append(str(folder / f"round{r}.safetensors"))
        save_file({"a.weight": w.contiguous(), "b.weight": base.clone()}, paths[-1])
    return paths


def test_scan_prints_a_table_and_fails_on_a_finding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = rounds(tmp_path, 6, fall=0.4)
    assert main(["scan", *paths]) == 0
    text = capsys.readouterr().out
    assert "rank collapse: PRESENT" in text
    assert main(["scan", *paths, "--fail-on", "present"]) == 1
    assert main(["scan", *rounds(tmp_path, 6, fall=0.0), "--fail-on", "inconclusive"]) == 0
    save_file({"a.weight": torch.full((4, 4), torch.nan)}, tmp_path / "nan.safetensors")
    assert main(["scan", str(tmp_path / "nan.safetensors"), "--fail-on", "present"]) == 1


def test_scan_writes_json_and_goes_on_past_a_bad_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = rounds(tmp_path, 2, fall=0.1)
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"junk")
    assert main(["scan", str(bad), *paths, "--json", "-"]) == 2
    out, err = capsys.readouterr()
    table = json.loads(out)
    assert table["checkpoints"] == ["round0.safetensors", "round1.safetensors"]
    assert [Path(f["path"]).name for f in table["failures"]] == ["bad.safetensors"]
    assert "supple: this is not a complete safetensors file" in err


def test_bench_list_names_protocols_and_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "list", "--json", "-"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert {"digits-permuted", "digits-random-labels"} <= set(table["protocols"])
    assert {"plain", "fresh", "regrama", "cbp", "cchain"} <= set(table["methods"])
    assert table["suites"]["dmc-dog"]["extra"] == "rl-dmc"
    assert main(["bench", "list"]) == 0
    shown = capsys.readouterr().out
    assert "digits-permuted" in shown
    assert re.search(r"procgen-coinrun +extra rl-procgen", shown)


def test_report_draws_a_diagnosis_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "d.json"
    diagnosis(True).to_json(path)
    assert main(["report", str(path)]) == 0
    assert "dead units" in capsys.readouterr().out
    assert "<svg" in (tmp_path / "d.html").read_text(encoding="utf-8")


def test_report_draws_a_demo_again_from_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from supple.cli.demo import write_files

    written = write_files(story(), tmp_path)
    first = written["report.html"].read_bytes()
    written["report.html"].unlink()
    assert main(["report", str(tmp_path)]) == 0
    assert "won back" in capsys.readouterr().out
    assert (tmp_path / "report.html").read_bytes() == first
    written["report.json"].write_text("{}")
    assert main(["report", str(tmp_path)]) == 2
    assert "no report.json of a demo" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--html", "x", "--json", "x"], "--html and --json are the same file; where: x"),
        (["--html", "x", "--parquet", "sub/../x"], "--html and --parquet are the same file"),
        (["--html", "x", "--json", "link"], "--html and --json are the same file"),
        (["--json", "round1.safetensors"], "--json would write over what is read"),
        (
            ["--html", "base.safetensors", "--base", "base.safetensors"],
            "--html would write over what is read",
        ),
    ],
)
def test_a_scan_never_writes_one_output_over_another_or_over_a_checkpoint(
    more: list[str],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to("x")
    (tmp_path / "base.safetensors").write_bytes(b"weights")
    rounds(tmp_path, 2, fall=0.1)
    before = {p: p.read_bytes() for p in tmp_path.glob("*.safetensors")}
    monkeypatch.setattr(Scan, "_measure", _worked)
    assert main(["scan", "round0.safetensors", "round1.safetensors", *more]) == 2
    assert says in capsys.readouterr().err
    assert {p: p.read_bytes() for p in tmp_path.glob("*.safetensors")} == before
    assert not (tmp_path / "x").exists()


def _worked(*_: object, **__: object) -> None:
    raise AssertionError("worked before it was refused")


def test_a_report_never_writes_over_what_it_shows_or_over_its_own_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    diagnosis(True).to_json(tmp_path / "d.json")
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "report.json").write_text("{}")
    before = (tmp_path / "d.json").read_bytes()
    for run, more, says in [
        ("d.json", ["--html", "x", "--json", "x"], "--html and --json are the same file"),
        ("d.json", ["--json", "d.html"], "--html and --json are the same file"),
        ("d.json", ["--html", "d.json"], "--html would write over what is read"),
        ("demo", ["--json", "demo/report.html"], "--html and --json are the same file"),
        ("demo", ["--json", "demo/report.json"], "--json would write over what is read"),
    ]:
        assert main(["report", run, *more]) == 2
        assert says in capsys.readouterr().err
    assert (tmp_path / "d.json").read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"d.json", "demo"}


def test_durations_and_whole_files(tmp_path: Path) -> None:
    assert [duration(s) for s in (0.4, 59.6, 3599, 7260)] == ["0 s", "1 min 0 s", "59 min 59 s", "2 h 1 min"]
    target = write_text(tmp_path / "new" / "f.txt", "text")
    assert target.read_text() == "text"
    assert [p.name for p in target.parent.iterdir()] == ["f.txt"]


def test_plain_progress_says_what_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supple.cli.console.PLAIN_EVERY", 0.0)
    with Progress("training") as bar:
        bar.update(0.25, "1 of 4 runs", 90.0)
    out, err = capsys.readouterr()
    assert out == ""
    assert "training: 25%, 1 min 30 s left, 1 of 4 runs" in err
    assert "training: done in" in err
