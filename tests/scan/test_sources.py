"""Reading checkpoints: every format, every kind of damage, nothing executed."""

from __future__ import annotations

import json
import os
import pickle
import random
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from supple.errors import InputError
from supple.scan import scan
from supple.scan.sources import open_checkpoint, read_state


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {"a.weight": torch.randn(6, 4, generator=g), "a.bias": torch.randn(6, generator=g)}


def sharded(folder: Path) -> Path:
    folder.mkdir()
    first, second = {"a.weight": weights()["a.weight"]}, {"a.bias": weights()["a.bias"]}
    save_file(first, folder / "model-00001-of-00002.safetensors")
    save_file(second, folder / "model-00002-of-00002.safetensors")
    table = {"a.weight": "model-00001-of-00002.safetensors", "a.bias": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    return folder


def make(kind: str, tmp_path: Path) -> Path:
    state = weights()
    if kind == "safetensors":
        save_file(state, tmp_path / "m.safetensors")
        return tmp_path / "m.safetensors"
    if kind == "sharded":
        return sharded(tmp_path / "shards")
    path = tmp_path / ("m.bin" if kind == "bin" else "m.pt")
    saved = {"nested": {"epoch": 3, "model": state, "optimizer": {"state": {}}}}.get(kind, state)
    torch.save(
        OrderedDict(saved) if kind == "pt" else saved, path, _use_new_zipfile_serialization=kind != "bin"
    )
    return path


@pytest.mark.parametrize("kind", ["safetensors", "sharded", "pt", "bin", "nested"])
def test_every_format_gives_the_same_tensors(kind: str, tmp_path: Path) -> None:
    state = read_state(make(kind, tmp_path))
    assert set(state) == set(weights())
    for name, value in weights().items():
        assert torch.equal(state[name], value)


def test_folder_without_index(tmp_path: Path) -> None:
    make("safetensors", tmp_path)
    (tmp_path / "config.json").write_text('{"num_attention_heads": 4}')
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.entries) == set(weights())
    assert checkpoint.config == {"num_attention_heads": 4}


class Trap:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_never_run(zipped: bool, tmp_path: Path) -> None:
    path, target = tmp_path / "evil.pt", tmp_path / "pwned"
    torch.save({"w": Trap(target)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match="wants to run code"):
        open_checkpoint(path)
    path.write_bytes(pickle.dumps(Trap(target)))
    with pytest.raises(InputError):
        open_checkpoint(path)
    assert not target.exists()


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"", "e.safetensors", "empty"),
        (b"\x01\x02", "e.safetensors", "not a complete safetensors"),
        (b"\xff" * 64, "e.safetensors", "not a complete safetensors"),
        ((5).to_bytes(8, "little") + b"hello", "e.safetensors", "header .* damaged"),
        ((2).to_bytes(8, "little") + b"[]", "e.safetensors", "header .* damaged"),
        ((2).to_bytes(8, "little") + b"{}", "e.safetensors", "holds no tensor"),
        (b"not a pickle", "e.pt", "cannot be read|wants to run code"),
        (b"text", "e.txt", "not a checkpoint"),
    ],
)
def test_damaged_files_get_one_clear_message(content: bytes, name: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)


def test_truncated_files_are_refused_at_every_length(tmp_path: Path) -> None:
    for kind in ("safetensors", "pt"):
        whole = make(kind, tmp_path).read_bytes()
        for length in sorted(random.Random(0).sample(range(len(whole)), 40)):
            path = tmp_path / f"cut{make(kind, tmp_path).suffix}"
            path.write_bytes(whole[:length])
            with pytest.raises(InputError):
                read_state(path)


def test_overlap_hole_and_tail_are_refused(tmp_path: Path) -> None:
    def write(table: dict[str, object], data: int) -> Path:
        raw = json.dumps(table).encode()
        path = tmp_path / "odd.safetensors"
        path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(data))
        return path

    def entry(begin: int, end: int, shape: list[int]) -> dict[str, object]:
        return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}

    for table, data, message in (
        ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, 12, "an overlap"),
        ({"a": entry(0, 8, [2]), "b": entry(12, 20, [2])}, 20, "a hole"),
        ({"a": entry(0, 8, [2])}, 12, "a tail"),
        ({"a": entry(0, 8, [3])}, 8, "needs 12 bytes"),
        ({"a": entry(0, 8, [-2])}, 8, "shape"),
        ({"a": {**entry(0, 8, [2]), "dtype": "F99"}}, 8, "F99"),
    ):
        with pytest.raises(InputError, match=message):
            open_checkpoint(write(table, data))


def test_index_may_not_leave_its_folder_or_promise_more_than_there_is(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "shards")
    index = folder / "model.safetensors.index.json"
    for table, message in (
        ({"a.weight": "../other.safetensors"}, "outside its folder"),
        ({"a.weight": "/etc/passwd"}, "outside its folder"),
        ({"a.weight": "model-00009-of-00009.safetensors"}, "shard named by the index is missing"),
        (
            {"a.weight": "model-00001-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"},
            "promises",
        ),
    ):
        index.write_text(json.dumps({"weight_map": table}))
        with pytest.raises(InputError, match=message):
            open_checkpoint(folder)
    index.write_text("{")
    with pytest.raises(InputError, match="JSON file cannot be read"):
        open_checkpoint(folder)


def test_missing_and_stateless_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such checkpoint"):
        open_checkpoint(tmp_path / "none.pt")
    with pytest.raises(InputError, match="holds no checkpoint"):
        open_checkpoint(tmp_path)
    torch.save(torch.zeros(3), tmp_path / "t.pt")
    with pytest.raises(InputError, match="holds no state dict"):
        open_checkpoint(tmp_path / "t.pt")
    torch.save({"epoch": 3}, tmp_path / "t.pt")
    with pytest.raises(InputError, match="no tensors by name"):
        open_checkpoint(tmp_path / "t.pt")


def test_kinds_of_tensors_without_a_plain_matrix_are_listed(tmp_path: Path) -> None:
    odd = {
        "sparse": torch.eye(4).to_sparse(),
        "meta": torch.empty(4, 4, device="meta"),
        "giant": torch.zeros(1).expand(200_000, 200_000),  # 4 bytes on disk, 160 GB once it is worked on
        "nested": torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(3, 3)]),
    }
    torch.save({"a.weight": torch.eye(4), **odd}, tmp_path / "odd.pt")
    report = scan(tmp_path / "odd.pt")
    assert not report.failures
    assert {s.layer for s in report.skipped} == set(odd)
    assert {r.layer for r in report.records} == {"a"}
    low = {"m.lora_A.weight": torch.ones(2, 4).to_sparse(), "m.lora_B.weight": torch.ones(4, 2)}
    torch.save(low, tmp_path / "adapter.pt")
    (skipped,) = scan(tmp_path / "adapter.pt").skipped
    assert "sparse_coo" in skipped.reason


def test_an_archive_of_several_disks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "split.pt"
    torch.save({"w": torch.eye(4)}, path)
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\x06\x07") + 16] = 2  # number of disks, in the locator of the zip64 end
    path.write_bytes(data)
    with pytest.raises(InputError, match="cannot be read"):
        open_checkpoint(path)


def test_names_cannot_steer_a_terminal(tmp_path: Path) -> None:
    name = "layer\x1b[2J\n.weight"
    torch.save({name: torch.eye(4)}, tmp_path / "a.pt")
    save_file({name: torch.eye(4)}, tmp_path / "b.safetensors")
    for file in ("a.pt", "b.safetensors"):
        text = str(scan(tmp_path / file))
        assert "\x1b" not in text
        assert "layer\\x1b[2J\\n" in text


def test_checkpoints_of_lightning_are_read(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.eye(4)}, "epoch": 1, "callbacks": {}}, tmp_path / "last.ckpt")
    assert set(open_checkpoint(tmp_path / "last.ckpt").entries) == {"w"}
