"""What a scan writes: the page and the table hold what the report says."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from supple.cli.main import main
from supple.records import Record
from supple.scan import scan


def rounds(folder: Path, count: int = 6) -> list[Path]:
    """Two matrices over the rounds; one loses its tail."""
    paths = []
    for r in range(count):
        g = torch.Generator().manual_seed(1)
        keep, lose = torch.randn(12, 16, generator=g), torch.randn(12, 16, generator=g)
        u, s, v = torch.linalg.svd(lose, full_matrices=False)
        lose = (u * (s * torch.exp(-0.1 * r * torch.arange(12.0) / 12))) @ v
        paths.append(folder / f"round{r}.safetensors")
        save_file({"<b>keep.weight": keep, "lose.weight": lose.contiguous()}, paths[-1])
    return paths


class Text(HTMLParser):
    """Tags, texts and addresses of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words, self.tags, self.links = [], set(), []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_has_findings_plots_and_every_matrix_and_needs_nothing_else(tmp_path: Path) -> None:
    report = scan([*rounds(tmp_path), tmp_path / "gone.pt"])
    page = report.to_html(tmp_path / "scan.html").read_text(encoding="utf-8")
    found = Text(page)
    text = " ".join(found.words)
    assert "b" not in found.tags  # the name of a matrix is text, never markup
    assert all(link.startswith(("#", "data:")) for link in found.links)
    assert page.count("<svg") == 4  # changes, and three quantities over the rounds
    assert "steady loss in 1 of 2 matrices" in text
    assert "collapse of the weight rank" in text
    assert "gone.pt" in text
    assert "no config.json names the initialiser" not in text
    assert "there is no config.json that names the initialiser" in text
    for name in ("effective_rank", "weight_norm"):  # the norm stands in the table of every matrix alone
        for row in report.records.select(layer="lose", instrument=name, variant=""):
            assert f"{row.value:.3f}" in text
    assert page == report.to_html(tmp_path / "again.html").read_text(encoding="utf-8")


def test_pages_of_one_checkpoint_and_of_none(tmp_path: Path) -> None:
    single = scan(rounds(tmp_path)[:1]).to_html(tmp_path / "one.html").read_text(encoding="utf-8")
    assert single.count("<svg") == 1
    assert "no earlier round" in single
    nothing = scan([tmp_path / "gone.pt"]).to_html(tmp_path / "none.html").read_text(encoding="utf-8")
    assert "<svg" not in nothing
    assert "no such checkpoint" in nothing


def test_the_table_holds_every_record_and_the_rest_as_metadata(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    report = scan(rounds(tmp_path))
    table = pq.read_table(report.to_parquet(tmp_path / "scan.parquet"))
    back = [Record(**row) for row in table.to_pylist()]
    assert len(back) == len(report.records)
    for one, other in zip(back, report.records, strict=True):
        assert repr(one) == repr(other)  # NaN is kept as NaN
    assert any(math.isnan(r.error) for r in back)
    rest = json.loads(table.schema.metadata[b"supple.scan"])
    assert rest == {k: v for k, v in report.to_dict().items() if k != "records"}


def test_the_command_writes_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow")
    paths = list(map(str, rounds(tmp_path)[:2]))
    html, table = tmp_path / "p.html", tmp_path / "p.parquet"
    assert main(["scan", *paths, "--html", str(html), "--parquet", str(table)]) == 0
    assert html.exists()
    assert table.exists()
    assert len(re.findall(r"wrote ", capsys.readouterr().err)) == 2
    assert main(["scan", *paths, "--html", str(tmp_path / "no" / "p.html")]) == 2
    assert "no such folder" in capsys.readouterr().err
