"""Run folders: identity, records, state, damage, full disks, foreign folders, hostile files."""

from __future__ import annotations

import errno
import json
import math
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from supple.errors import StoreError
from supple.records import Record
from supple.store import Run, load
from supple.store.encode import decode, encode

MANIFEST = {"protocol": "demo", "seed": 0, "rates": (0.1, 0.2)}


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A run with two records, a checkpoint, and one record after it."""
    with Run.open(tmp_path / "run", MANIFEST) as run:
        run.append([Record("loss", 1.0, step=0), Record("loss", 0.5, step=1, lo=0.1)])
        run.arrays("first", {"spectrum/fc1": torch.arange(3.0)})
        run.checkpoint({"step": 2})
        run.append([Record("loss", 0.25, step=2)])
    return tmp_path / "run"


def finish(folder: Path) -> None:
    with Run.open(folder, MANIFEST) as run:
        run.resume()
        run.checkpoint({"weights": torch.eye(2)})
        run.finish({"accuracy": 0.5, "shape": (1, 2)})


def read_everything(folder: Path) -> None:
    stored = load(folder)
    stored.arrays("first")
    stored.state()


def test_resume_cuts_the_records_back_to_the_checkpoint(begun: Path) -> None:
    assert len(load(begun).records) == 3
    with Run.open(begun, MANIFEST) as run:
        assert run.resume() == {"step": 2}
        assert run.records().values() == [1.0, 0.5]
        run.append([Record("loss", 0.125, step=2)])
        assert run.records().values() == [1.0, 0.5, 0.125]
    row = load(begun).records[1]
    assert row.lo == 0.1
    assert math.isnan(row.hi)


def test_appending_without_resume_is_refused(begun: Path) -> None:
    with Run.open(begun, MANIFEST) as run, pytest.raises(StoreError, match="call resume"):
        run.append([Record("loss", 0.0)])


def test_a_run_without_checkpoint_starts_over(tmp_path: Path) -> None:
    with Run.open(tmp_path, MANIFEST) as run:
        run.append([Record("loss", 1.0)])
    with Run.open(tmp_path, MANIFEST) as run:
        assert run.resume() is None
        assert len(run.records()) == 0


def test_finished_runs_are_read_only_and_whole(begun: Path) -> None:
    finish(begun)
    stored = load(begun)
    assert stored.done
    assert stored.summary == {"accuracy": 0.5, "shape": (1, 2)}
    assert stored.manifest["run"] == MANIFEST
    assert stored.manifest["versions"]["torch"] == str(torch.__version__)
    assert torch.equal(stored.arrays("first")["spectrum/fc1"], torch.arange(3.0))
    assert torch.equal(stored.state()["weights"], torch.eye(2))
    with Run.open(begun, MANIFEST) as run, pytest.raises(StoreError, match="finished"):
        run.append([Record("loss", 1.0)])


def test_another_configuration_is_refused_with_what_differs(begun: Path) -> None:
    before = {p: p.read_bytes() for p in begun.rglob("*") if p.is_file()}
    with pytest.raises(StoreError, match=r"another configuration; found: seed: 0 -> 1; where:"):
        Run.open(begun, {**MANIFEST, "seed": 1})
    with pytest.raises(StoreError, match=r"extra: absent -> 3"):
        Run.open(begun, {**MANIFEST, "extra": 3})
    assert {p: p.read_bytes() for p in begun.rglob("*") if p.is_file()} == before


def test_other_versions_are_refused_while_unfinished(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supple.__version__", "9.9")
    with pytest.raises(StoreError, match=r"other versions.*supple: .* -> 9.9"):
        Run.open(begun, MANIFEST)
    monkeypatch.undo()
    finish(begun)
    monkeypatch.setattr("supple.__version__", "9.9")
    with Run.open(begun, MANIFEST) as run:
        assert run.done


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(StoreError, match=r"something else than a run; found: thesis.tex"):
        Run.open(tmp_path, MANIFEST)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_writers_are_refused(begun: Path) -> None:
    first = Run.open(begun, MANIFEST)
    with pytest.raises(StoreError, match="another process is writing"):
        Run.open(begun, MANIFEST)
    first.close()
    Run.open(begun, MANIFEST, wait=1.0).close()


def test_a_damaged_checkpoint_falls_back_to_the_one_before(begun: Path) -> None:
    with Run.open(begun, MANIFEST) as run:
        run.resume()
        run.append([Record("loss", 0.25, step=2)])
        run.checkpoint({"step": 3})
    newest = begun / "checkpoints" / "00000001.json"
    newest.write_bytes(newest.read_bytes().replace(b'"step":3', b'"step":4'))
    with Run.open(begun, MANIFEST) as run:
        assert run.resume() == {"step": 2}
        assert len(run.records()) == 2


@pytest.mark.parametrize(
    "victim", ["records.jsonl", "checkpoints/00000000.json", "checkpoints/00000000.safetensors"]
)
def test_nothing_usable_left_is_an_error(begun: Path, victim: str) -> None:
    data = bytearray((begun / victim).read_bytes())
    data[10] ^= 1
    (begun / victim).write_bytes(data)
    with (
        Run.open(begun, MANIFEST) as run,
        pytest.raises(StoreError, match="no checkpoint of this run can be used"),
    ):
        run.resume()


@pytest.mark.parametrize(
    "victim", ["records.jsonl", "summary.json", "manifest.json", "arrays/first.safetensors"]
)
def test_a_changed_bit_in_a_finished_run_is_noticed(begun: Path, victim: str) -> None:
    finish(begun)
    data = bytearray((begun / victim).read_bytes())
    data[len(data) // 2] ^= 1
    (begun / victim).write_bytes(data)
    with pytest.raises(StoreError, match=r"checksum|damaged"):
        load(begun).arrays("first")


def test_mutated_tensor_files_never_load(begun: Path) -> None:
    path = begun / "checkpoints" / "00000000.safetensors"
    with Run.open(begun, MANIFEST) as run:
        run.resume()
        run.checkpoint({"w": torch.randn(4, 4, generator=torch.Generator().manual_seed(0))})
    path = begun / "checkpoints" / "00000001.safetensors"
    original, draw = path.read_bytes(), random.Random(0)
    for _ in range(300):
        data = bytearray(original)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        if bytes(data) == original:
            continue
        path.write_bytes(data[: draw.randint(0, len(data))] if draw.random() < 0.3 else data)
        with pytest.raises(StoreError):
            load(begun).state()


def test_pickles_are_never_executed(begun: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    finish(begun)
    for name in (
        "summary.json",
        "manifest.json",
        "arrays/first.safetensors",
        "checkpoints/00000001.safetensors",
    ):
        kept = (begun / name).read_bytes()
        (begun / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(StoreError):
            read_everything(begun)
        (begun / name).write_bytes(kept)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/b", "..", "", ".hidden", "a..b"])
def test_array_names_stay_in_the_folder(begun: Path, name: str) -> None:
    with Run.open(begun, MANIFEST) as run:
        run.resume()
        with pytest.raises(StoreError, match="not a name"):
            run.arrays(name, {"x": torch.zeros(1)})
    with pytest.raises(StoreError, match="not a name"):
        load(begun).arrays(name)


def test_objects_are_refused_by_path_before_anything_is_written(begun: Path) -> None:
    with Run.open(begun, MANIFEST) as run:
        run.resume()
        with pytest.raises(StoreError, match=r"found: object; where: state.optimizer\[0\]"):
            run.checkpoint({"optimizer": [object()]})
        with pytest.raises(StoreError, match=r"found: float64; where: state.lr"):
            run.checkpoint({"lr": __import__("numpy").float64(0.1)})
    assert [p.name for p in sorted((begun / "checkpoints").iterdir())] == [
        "00000000.json",
        "00000000.safetensors",
    ]
    with pytest.raises(StoreError, match="a tensor"):
        Run.open(begun, {"weights": torch.zeros(1)})


def test_a_full_disk_says_so_and_loses_nothing(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, calls = os.write, []

    def filling(handle: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, data[:5])

    run = Run.open(begun, MANIFEST)
    run.resume()
    monkeypatch.setattr(os, "write", filling)
    with pytest.raises(StoreError, match=r"append to; found: No space left.*do: free some space"):
        run.append([Record("loss", 9.0)])
    monkeypatch.undo()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        run.checkpoint({"step": 3})
    monkeypatch.undo()
    run.close()
    assert not list(begun.rglob("*.tmp"))
    with Run.open(begun, MANIFEST) as again:
        assert again.resume() == {"step": 2}
        assert len(again.records()) == 2


LIMITED = """
import resource, signal, sys, torch
from supple.errors import StoreError
from supple.records import Record
from supple.store import Run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Run.open(sys.argv[1], {"a": 1}) as run:
    run.append([Record("loss", 1.0)]); run.checkpoint({"step": 1})
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        for _ in range(100): run.append([Record("loss", 1.0)])
    except StoreError as error: print(error)
    try: run.checkpoint({"big": torch.zeros(5000)})
    except StoreError as error: print(error)
with Run.open(sys.argv[1], {"a": 1}) as run: print(run.resume(), len(run.records()))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_real_limit_of_the_system(tmp_path: Path) -> None:
    out = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "run")], capture_output=True, text=True
    )
    assert out.returncode == 0, out.stderr
    lines = out.stdout.splitlines()
    assert "File too large" in lines[0]
    assert "File too large" in lines[1]
    assert lines[2] == "{'step': 1} 1"


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"could not make the folder.*do: choose another folder"):
        Run.open(tmp_path / "file" / "run", MANIFEST)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX permissions")
def test_a_read_only_folder(tmp_path: Path) -> None:
    if os.geteuid() == 0 and not Path("/proc/sys/kernel").is_dir():
        pytest.skip("the superuser can write everywhere here")
    if os.geteuid() == 0:  # permissions do not bind the superuser, this file system does
        place = Path("/proc/sys/kernel/run")
    else:
        tmp_path.chmod(0o500)
        place = tmp_path / "run"
    with pytest.raises(StoreError, match="could not make the folder"):
        Run.open(place, MANIFEST)


def test_reading_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no run here"):
        load(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"body": {"format": 1}, "sha256": "0"}))
    with pytest.raises(StoreError, match="checksum"):
        load(tmp_path)


def test_times_are_apart_from_records(begun: Path) -> None:
    finish(begun)
    events = [json.loads(line)["event"] for line in (begun / "times.jsonl").read_text().splitlines()]
    assert events == ["checkpoint", "resume", "checkpoint", "finish"]
    assert '"at"' not in (begun / "records.jsonl").read_text()


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.just("$tensor"), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(value=plain)
def test_state_survives_json(value: object) -> None:
    tensors: dict[str, torch.Tensor] = {}
    back = decode(json.loads(json.dumps(encode(value, tensors), allow_nan=False)), tensors)
    assert repr(back) == repr(value)


def test_tensors_survive_with_type_shape_and_bits(tmp_path: Path) -> None:
    base = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    state = {
        "shared": [base, base[:2], base.t()],
        "types": [torch.ones(2, dtype=d) for d in (torch.bfloat16, torch.uint8, torch.bool)],
        "scalar": torch.tensor(3.0),
        "nan": torch.tensor([math.nan, math.inf]),
        "floats": [math.nan, -math.inf, 0.1],
        0: torch.zeros(0),
        "rng": torch.get_rng_state(),
    }
    with Run.open(tmp_path, MANIFEST) as run:
        run.checkpoint(state)
    with Run.open(tmp_path, MANIFEST) as run:
        back = run.resume()
    assert all(torch.equal(a, b) for a, b in zip(state["shared"], back["shared"], strict=True))
    assert all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(state["types"], back["types"], strict=True)
    )
    assert back["scalar"].shape == ()
    assert torch.equal(back["nan"].view(torch.int32), state["nan"].view(torch.int32))
    assert repr(back["floats"]) == repr(state["floats"])
    assert back[0].shape == (0,)
    assert torch.equal(back["rng"], state["rng"])


def test_memory_of_old_checkpoints_is_bounded(tmp_path: Path) -> None:
    with Run.open(tmp_path, MANIFEST) as run:
        for step in range(6):
            run.checkpoint({"step": step})
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["00000004.json", "00000004.safetensors", "00000005.json", "00000005.safetensors"]
