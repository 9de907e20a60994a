"""A memory bound is kept before a tensor is read: estimated where that fits, left out otherwise, never silently."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from supple.cli.main import main
from supple.errors import InputError
from supple.scan import scan, sources
from supple.scan.memory import MIB, need
from supple.scan.sources import Entry


def entry(*shape: int, dtype: str = "F32", name: str = "w.weight") -> Entry:
    def load() -> torch.Tensor:
        raise AssertionError("it was read")

    return Entry(name, shape, dtype, load)


def test_the_need_is_more_than_the_values_and_grows_with_the_short_side() -> None:
    for estimate in (False, True):
        assert need(entry(1000, 4000), estimate) > 2 * 16e6
    assert need(entry(1000, 4000), False) == need(entry(4000, 1000), False)
    assert need(entry(2000, 2000), False) > need(entry(1000, 4000), False)  # the Gram of the short side
    assert need(entry(2000, 2000), True) < need(entry(2000, 2000), False)
    assert need(entry(100, 4000), True) == need(entry(100, 4000), False)  # small: exact on either path
    assert need(entry(8, 500, 500), False, experts=True) < 8 * need(entry(500, 500), False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    g = torch.Generator().manual_seed(0)
    state = {f"{n}.weight": torch.randn(n, n, generator=g) for n in (40, 400, 900)}
    save_file(state, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def test_what_would_go_over_is_estimated_or_left_out_with_the_reason(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    plain = sources._open_file

    def watched(file: Path, limit: int | None) -> list[Entry]:
        def note(e: Entry) -> Entry:
            return Entry(e.name, e.shape, e.dtype, lambda: (read.append(e.name), e.load())[1])

        return [note(e) for e in plain(file, limit)]

    monkeypatch.setattr(sources, "_open_file", watched)
    exact, short = need(entry(400, 400), False) / MIB, need(entry(400, 400), True) / MIB
    assert short < exact < need(entry(900, 900), True) / MIB
    report = scan(path, memory=(short + exact) / 2)
    assert read == ["40.weight", "400.weight"]  # the largest was never touched
    assert [s.layer for s in report.skipped] == ["900.weight"]
    assert "--memory allows" in report.skipped[0].reason
    rows = {r.layer: r for r in report.records.select(instrument="effective_rank", variant="")}
    assert "estimated: the exact path needs" in rows["400"].note
    assert rows["400"].error == rows["400"].error  # it states its error
    assert rows["40"].error != rows["40"].error  # exact: there is none to state
    assert not scan(path, memory=4000).skipped
    assert scan(path, memory=short * 0.9, estimate=True).skipped[0].layer == "400.weight"
    assert len(scan(path, memory=short / 100).records) == 0


def test_the_command_says_what_was_left_out(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scan", str(path), "--memory", "0.01"]) == 0
    out = capsys.readouterr().out
    assert "not measured: 3 tensors" in out
    assert "--memory allows 0.01 MiB" in out


def test_a_file_that_can_only_be_read_whole_is_refused_by_its_size(tmp_path: Path) -> None:
    old, new = tmp_path / "old.pt", tmp_path / "new.pt"
    state = {"w.weight": torch.randn(300, 300)}
    torch.save(state, old, _use_new_zipfile_serialization=False)
    torch.save(state, new)
    report = scan([old, new], memory=0.2)
    assert "older format" in report.failures[0].message
    assert report.runs == ("new.pt",)
    assert [s.layer for s in report.skipped] == ["w.weight"]
    assert scan([old, new], memory=100).runs == ("old.pt", "new.pt")
    with pytest.raises(InputError, match="memory must be a positive"):
        scan(old, memory=0)
