"""Readers of the published layouts, on files written here: exact pixels, one decode, refusals, no code run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.bench.synthetic import write_cifar, write_idx, write_imagenet, write_mnist, write_tiny

from supple.errors import InputError
from supple.streams.data import SETS, load, mean_and_deviation, sets


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPPLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SUPPLE_DATA", raising=False)
    sets._load.cache_clear()


@pytest.mark.parametrize("end", ["", ".gz"])
def test_mnist_idx_raw_and_gzipped(tmp_path: Path, end: str) -> None:
    images, labels = write_mnist(tmp_path / "root", end=end)
    x, y = load("mnist", root=tmp_path / "root")
    assert x.shape == (200, 1, 28, 28)
    assert np.array_equal(x[:, 0].numpy(), images)
    assert np.array_equal(y.numpy(), labels)
    assert len(load("mnist", "test", tmp_path / "root")[1]) == 50


def test_cifar_pickles_have_channels_first_and_batches_in_order(tmp_path: Path) -> None:
    seen = write_cifar(tmp_path / "root", 2, classes=10)
    x, y = load("cifar10", root=tmp_path / "root")
    assert x.shape == (100, 3, 32, 32)
    assert np.array_equal(x[20:40].numpy().reshape(20, -1), seen["data_batch_2"])
    assert y[:10].tolist() == list(range(10))


def test_imagenet_labels_begin_at_zero(tmp_path: Path) -> None:
    data = write_imagenet(tmp_path / "root")
    x, y = load("imagenet32", root=tmp_path / "root")
    assert x.shape == (len(data), 3, 32, 32)
    assert (int(y.min()), int(y.max())) == (0, 7)


def test_parquet_of_the_hub(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    pytest.importorskip("PIL")
    write_tiny(tmp_path / "root", classes=5)
    x, _ = load("tiny-imagenet-32", root=tmp_path / "root")
    assert x.shape == (10, 3, 32, 32)
    first = np.random.default_rng(3).integers(0, 256, (32, 32, 3), np.uint8)
    assert np.array_equal(x[0].permute(1, 2, 0).numpy(), first)
    folder = tmp_path / "root/tiny-imagenet-32/data"
    (folder / "train-00000-of-00001.parquet").rename(folder / "train-00000-of-00002.parquet")
    sets._load.cache_clear()
    with pytest.raises(InputError, match="is one of 2 files"):
        load("tiny-imagenet-32", root=tmp_path / "root")


def test_a_set_is_decoded_once_and_a_damaged_cache_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path / "root")
    x = load("mnist", root=tmp_path / "root")[0].clone()
    before = sorted(p.name for p in (tmp_path / "root").rglob("*"))
    (entry,) = (tmp_path / "cache/data").iterdir()
    calls = []
    monkeypatch.setattr(sets.formats, "read_idx", lambda path: calls.append(path))
    sets._load.cache_clear()
    assert torch.equal(load("mnist", root=tmp_path / "root")[0], x)
    assert not calls
    monkeypatch.undo()
    monkeypatch.setenv("SUPPLE_CACHE", str(tmp_path / "cache"))
    raw = bytearray((entry / "images.npy").read_bytes())
    raw[-1] ^= 255
    (entry / "images.npy").write_bytes(raw)
    sets._load.cache_clear()
    assert torch.equal(load("mnist", root=tmp_path / "root")[0], x)
    assert sorted(p.name for p in (tmp_path / "root").rglob("*")) == before


class _Evil:
    def __reduce__(self):
        return (os.mkdir, ("evil",))


def test_a_pickle_that_asks_for_code_is_refused_before_it_runs(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_cifar(tmp_path / "root", 1)
    (tmp_path / "root/cifar-100-python/train").write_bytes(pickle.dumps({"data": _Evil()}))
    with pytest.raises(InputError, match=r"more than arrays .*found: (posix|nt)\.mkdir; where: .*train"):
        load("cifar100", root=tmp_path / "root")
    assert not Path("evil").exists()


@pytest.mark.parametrize("content", [b"", b"nonsense", pickle.dumps([1]), pickle.dumps({b"data": 3})])
def test_damaged_pickles_are_refused(tmp_path: Path, content: bytes) -> None:
    write_cifar(tmp_path / "root", 1)
    (tmp_path / "root/cifar-100-python/train").write_bytes(content)
    with pytest.raises(InputError, match=r"where: .*train"):
        load("cifar100", root=tmp_path / "root")


def test_damaged_idx_files_are_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path / "root", end="")
    path = tmp_path / "root/MNIST/raw/train-images-idx3-ubyte"
    whole = path.read_bytes()
    for content, says in ((whole[:-1], "cut short"), (b"\x89PNG", "not an idx"), (b"", "not an idx")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=says):
            load("mnist", root=tmp_path / "root")
    write_idx(path, np.zeros((3, 28, 28), np.uint8))
    with pytest.raises(InputError, match="do not belong together"):
        load("mnist", root=tmp_path / "root")


@pytest.mark.parametrize("name", SETS)
def test_an_absent_set_says_what_to_put_where(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"needs a data folder; do: put .* --data or SUPPLE_DATA"):
        load(name)
    with pytest.raises(InputError) as caught:
        load(name, root=tmp_path)
    assert SETS[name].put in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown data set 'mnits'; do: choose one of mnist"):
        load("mnits", root=tmp_path)
    with pytest.raises(InputError, match="unknown split"):
        load("mnist", "valid", tmp_path)


def test_mean_and_deviation_equal_numpys() -> None:
    x = torch.randint(256, (30, 3, 4, 4), dtype=torch.uint8)
    mean, deviation = mean_and_deviation(x)
    values = x.numpy().astype(np.float64) / 255
    assert np.allclose(mean, values.mean((0, 2, 3)), atol=1e-6)
    assert np.allclose(deviation, values.std((0, 2, 3)), atol=1e-6)
