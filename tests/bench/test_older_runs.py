"""Runs that were computed before an option existed are still the same runs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from supple.bench.learner import Learner
from supple.bench.loop import run
from supple.bench.protocols import create
from supple.bench.spec import RunSpec

METHODS = [
    *(
        "plain",
        "fresh",
        "linear",
        "regrama",
        "redo",
        "cbp",
        "cchain",
        "l2",
        "l2init",
        "spectral",
        "wasserstein",
    ),
    *(
        "parseval",
        "feature_rank",
        "clipping",
        "trac",
        "nap",
        "spectral_regrama",
        "l2init_regrama",
        "layernorm_l2",
    ),
    *("shrink_perturb", "crelu", "fourier", "layernorm"),
]
#: protocol, preset -> digest of labels and manifests, computed with the last version before `--hidden-boundaries`,
#: `--layers` and several optimizers. A changed digest says that runs on disk would no longer be found: change one
#: only with the protocol itself.
DIGESTS = {
    ("digits-permuted", "demo"): "d8a684fd2a9257f5",
    ("digits-random-labels", "demo"): "437ea6d2b58cb6e1",
    ("class-sequence-resnet", "small"): "8e4ff296a9b2fbfa",
    ("image-domains", "small"): "7c6cd8adff11e214",
    ("permuted-mnist", "small"): "6c151ce6f4d794be",
    ("random-label-mnist", "small"): "8b1b5104d06e4f89",
    ("five-plus-one-cifar", "small"): "11fe7833dbc38703",
    ("continual-tiny-imagenet", "long"): "9517f2674a4de5d1",
    ("slow-regression", "paper"): "3d6374e05e414330",
}


@pytest.mark.parametrize(("name", "preset"), DIGESTS)
def test_manifests_are_what_they_were_byte_for_byte(name: str, preset: str) -> None:
    found = hashlib.sha256()
    for iid in (False, True):
        for method in METHODS:
            spec = RunSpec(protocol=create(name, preset, iid=iid), method=method, seed=3, measure_every=5)
            found.update((spec.label + json.dumps(spec.manifest())).encode())
    assert found.hexdigest()[:16] == DIGESTS[name, preset]


def test_a_new_option_makes_another_run_in_another_folder() -> None:
    values = ({}, {"hidden_boundaries": True}, {"variant": "layers-64", "hidden": (64,)}, {"iid": True})
    specs = [RunSpec(protocol=create("digits-permuted", **v), method="redo", seed=0) for v in values]
    assert len({str(s.folder("runs")) for s in specs}) == len(specs)
    assert len({json.dumps(s.manifest()) for s in specs}) == len(specs)


def test_a_run_begun_when_it_had_one_optimizer_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = create("digits-permuted", tasks=3, hidden=(12,))
    spec = RunSpec(protocol=protocol, method="regrama", seed=0, checkpoint_every=1)
    whole = run(spec, tmp_path / "whole")
    now = Learner.state_dict

    def as_it_was(learner: Learner) -> dict[str, Any]:
        state = now(learner)
        (state["optimizer"],) = state.pop("optimizers")
        return state

    def stop(share: float) -> None:
        if share > 0.5:
            raise InterruptedError

    with monkeypatch.context() as before:
        before.setattr(Learner, "state_dict", as_it_was)
        with pytest.raises(InterruptedError):
            run(spec, tmp_path / "begun", progress=stop)
    begun = run(spec, tmp_path / "begun")
    for name in ("manifest.json", "records.jsonl"):
        assert (begun / name).read_bytes() == (whole / name).read_bytes()
