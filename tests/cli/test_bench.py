"""`supple bench`: what is refused before anything is computed or written, and tables whose columns stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.bench.tiny import tiny

from supple.bench import run_list
from supple.bench.summary import collect
from supple.bench.tables import aligned
from supple.cli import bench_report
from supple.cli.bench_choice import names
from supple.cli.main import main

RUN = ["bench", "run", "digits-permuted", "--tasks", "1", "--seeds", "1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    assert run_list([tiny(2, m) for m in ("plain", "fresh", "shrink_perturb_boundary")], root, workers=0).ok
    return root


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--methods", "plain,plain"], "a method is named twice; found: plain"),
        (["--methods", " , "], "--methods takes names"),
        (["--methods", "plain, nothing"], "unknown method 'nothing'"),
        (["--measure-every", "-1"], "--measure-every must be at least 0; found: -1"),
        (["--seeds", "0"], "--seeds must be at least 1; found: 0"),
        (["--tasks", "0"], "--tasks must be at least 1; found: 0"),
        (["--data", "/no/such/folder"], "--data: there is no such folder"),
        (["--preset", "study"], "choose one of demo, paper, small"),
    ],
)
def test_a_wrong_option_is_named_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], says: str
) -> None:
    assert main([*RUN, "--out", str(tmp_path / "out"), *more]) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_spaces_around_the_commas_are_no_part_of_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert names("plain, cbp ,l2,") == ["plain", "cbp", "l2"]
    monkeypatch.setattr("supple.cli.train.cores", lambda: 1)
    assert main([*RUN, "--methods", "linear, plain", "--out", str(tmp_path)]) == 0
    assert {p.name for p in (tmp_path / "digits-permuted").iterdir()} == {"linear", "plain"}


@pytest.mark.parametrize("command", [RUN, ["bench", "tune", "digits-permuted", "l2"]])
def test_a_file_in_the_place_of_the_runs_is_told_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    (tmp_path / "file").touch()
    assert main([*command, "--out", str(tmp_path / "file" / "runs")]) == 2
    assert "this is a file; where: " + str(tmp_path / "file") in capsys.readouterr().err


def _refused(
    runs: Path, more: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """What a report says that is refused before it computes anything."""

    def computed(*_: object) -> None:
        raise AssertionError("computed before it was refused")

    with monkeypatch.context() as patch:
        patch.setattr(bench_report.BenchReport, "_write", computed)
        assert main(["bench", "report", str(runs), *more]) == 2
    return capsys.readouterr().err


def test_a_report_checks_every_output_before_it_works(
    tmp_path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for more, says in [
        (["--figures", str(tmp_path / "file")], "cannot be made: this is a file"),
        (["--figures", str(tmp_path / "file" / "a" / "b")], "cannot be made: this is a file"),
        (["--html", "-"], "goes to a file, not to stdout"),
        (["--latex", "-"], "goes to a file, not to stdout"),
        (["--csv", str(tmp_path)], "the output path is a folder"),
        (["--csv", str(tmp_path / "x"), "--json", str(tmp_path / "x")], "are the same file"),
        (["--csv", "-", "--json", "-"], "cannot both go to stdout"),
    ]:
        assert says in _refused(runs, more, monkeypatch, capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(
    not Path("/proc/self").exists(), reason="no folder here that even the superuser cannot write into"
)
@pytest.mark.parametrize("option", ["--html", "--json", "--figures"])
def test_a_place_that_cannot_be_written_is_told_at_once(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    said = _refused(runs, [option, "/proc/supple-output"], monkeypatch, capsys)
    assert "this folder cannot be written into" in said
    assert "where: /proc" in said


def test_a_new_folder_of_figures_is_made_and_nothing_else_left(tmp_path: Path, runs: Path) -> None:
    pytest.importorskip("matplotlib")
    assert main(["bench", "report", str(runs), "--figures", str(tmp_path / "a" / "b")]) == 0
    assert {p.suffix for p in (tmp_path / "a" / "b").iterdir()} == {".svg", ".png"}


def test_an_engine_without_a_form_of_the_method_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*RUN, "--methods", "plain,redo", "--engine", "cohort", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "take the engine auto or loop; found: redo" in said
    assert "start the command again" not in said
    assert list(tmp_path.iterdir()) == []


def test_what_a_csv_on_stdout_leaves_out_is_said_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_list([tiny(2)], tmp_path, workers=0).ok
    (tiny(2).folder(tmp_path) / "summary.json").unlink()
    assert main(["bench", "report", str(tmp_path), "--csv", "-"]) == 0
    said = capsys.readouterr()
    assert "left out: digits-permuted/plain/seed-0: not finished" in said.err
    assert len(said.out.splitlines()) == 1


def test_tune_takes_a_folder_of_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SUPPLE_DATA", "")
    line = ["bench", "tune", "permuted-mnist", "l2", "--out", str(tmp_path / "out")]
    assert main(line) == 2
    assert "name it with --data or SUPPLE_DATA" in capsys.readouterr().err
    assert main([*line, "--data", str(tmp_path / "none")]) == 2
    assert "--data: there is no such folder" in capsys.readouterr().err
    assert main([*line, "--data", str(tmp_path)]) == 2
    assert f"where: {tmp_path}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# -- columns ---------------------------------------------------------------------------------------
def _starts(lines: list[str], word: str) -> set[int]:
    return {line.index(word) for line in lines}


def test_the_list_has_one_column_of_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "list"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    found = [re.match(r"  (\S+) +", line) for line in lines]
    assert all(found)
    assert len({m.end() for m in found if m is not None}) == 1


def test_a_long_name_moves_no_column_of_a_table(runs: Path) -> None:
    lines = [line for line in str(collect(runs)).splitlines() if re.match(r"method|plain|fresh|shrink", line)]
    assert len(lines) == 4
    assert len({re.match(r"\S+ +\S", line).end() for line in lines}) == 1  # type: ignore[union-attr]


def test_aligned_columns_end_in_one_place() -> None:
    rows = [
        ("method", "return", "x"),
        ("shrink_perturb_boundary", "-119.25 [-130.11, -110.58]", "1"),
        ("l2", "–", "22"),
    ]
    lines = aligned(rows)
    assert len(set(map(len, lines))) == 1
    assert all(line.endswith(row[2]) for line, row in zip(lines, rows, strict=True))
    assert lines[2].index("–") == lines[1].index("]")
