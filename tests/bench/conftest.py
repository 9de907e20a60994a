"""Every protocol finds small data sets of random pixels, written once a session."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.bench import synthetic

from supple.streams.data.languages import languages


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("pyarrow")
    pytest.importorskip("PIL")
    root = tmp_path_factory.mktemp("data")
    synthetic.write_mnist(root)
    synthetic.write_cifar(root, 3, classes=10)
    synthetic.write_cifar(root, 6)
    synthetic.write_imagenet(root)
    synthetic.write_tiny(root)
    return root


@pytest.fixture
def small_data(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUPPLE_DATA", str(data_root))
    monkeypatch.setenv("SUPPLE_CACHE", str(data_root / "cache"))
    return data_root


#: what makes a protocol fit the small data sets
SHRUNK = {
    "continual-imagenet": {"per_class": 9, "judged_per_class": 3, "batch": 6},
    "continual-tiny-imagenet": {"per_class": 2, "judged_per_class": 2, "batch": 2},
    "continual-cifar100": {"per_class": 6, "judged_per_class": 6, "batch": 4},
    "slow-regression": {"samples": 40},
    "class-incremental-cifar100": {"batch": 8},
}
SAMPLED = ("permuted", "random-label", "label-flipping", "label-noise", "concept-shift")


def shrunk(name: str) -> dict[str, int]:
    return {"samples": 64} if name.startswith(SAMPLED) else SHRUNK.get(name, {})


@pytest.fixture
def language_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Four languages, each with letters of its own, and a file that is too short."""
    folder = tmp_path / "data"
    (folder / "text" / "udhr2").mkdir(parents=True)
    with zipfile.ZipFile(folder / "text" / "udhr2" / "udhr2.zip", "w") as archive:
        for i in range(4):
            letters = bytes(range(97 + 5 * i, 102 + 5 * i))
            archive.writestr(f"udhr2/00{i}.txt", letters * 2000)
        archive.writestr("udhr2/009.txt", b"short")
    languages.cache_clear()
    monkeypatch.setenv("SUPPLE_DATA", str(folder))
    yield folder
    languages.cache_clear()


@pytest.fixture
def domain_folder(tmp_path: Path) -> Path:
    """Three domains, each with letters of its own; one is a folder, one has rows of JSON; a file of another kind."""
    folder = tmp_path / "domains"
    (folder / "code").mkdir(parents=True)
    (folder / "maths").mkdir()
    (folder / "plays.txt").write_text("abcde" * 4000)
    (folder / "code" / "train.txt").write_text("fghij" * 4000)
    (folder / "code" / "val.txt").write_text("no one reads this")
    row = json.dumps({"question": "k" * 30, "answer": "l" * 30, "level": 3})
    (folder / "maths" / "train.jsonl").write_text((row + "\n") * 330)
    (folder / "notes.md").write_text("not a domain")
    return folder
