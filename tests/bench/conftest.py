"""Every protocol finds small data sets of random pixels, written once a session."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.bench import synthetic


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
