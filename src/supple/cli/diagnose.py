"""`supple diagnose`: a network, its weights, a probe; a table, a file, an exit status."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from supple.errors import InputError

#: NaN or Inf is no clean bill: it fails wherever a finding would
MECHANISMS_THAT_FAIL = {
    "present": ("present", "invalid"),
    "inconclusive": ("present", "invalid", "inconclusive"),
}


@dataclass(frozen=True)
class Diagnose:
    """Say what is wrong with a trained network: which mechanism, in which layers, and what fits.

    Exit status: 0 nothing at or above --fail-on, 1 a finding, 2 it could not run.
    """

    model: str
    """pkg.module:function that builds the model (the current folder is searched first)."""
    checkpoint: Path
    """Weights: .safetensors, .pt, .pth, .ckpt or .bin (tensors only), or a model folder."""
    probe: str
    """pkg.module:name of (inputs, targets), or of a function that returns them. Held out."""
    loss: str = "cross_entropy"
    """cross_entropy, mse, or pkg.module:function of (outputs, targets)."""
    reference: str | None = None
    """What a healthy network is: factory (the function of --model), reset (weaker), or a checkpoint of the
    initial or round-0 weights. Default: factory."""
    budget: float | None = None
    """Seconds for learning fresh probe tasks (step 0); 0 leaves it out. Default: 30."""
    json: Path | None = None
    """Write the whole report as JSON to this file, or to stdout with -."""
    html: Path | None = None
    """Write one offline HTML page to this file."""
    fail_on: Literal["present", "inconclusive", "never"] = "never"
    """Exit with 1 when a finding has this status (inconclusive counts present too; NaN or Inf counts with both)."""

    def run(self) -> int:
        from supple import api
        from supple.cli import loading
        from supple.cli.console import emit_json, note, say

        if self.budget is not None and not self.budget >= 0:
            raise InputError("--budget must be zero or a positive number of seconds", found=self.budget)
        check_targets({"json": self.json, "html": self.html}, inputs=(self.checkpoint, self.reference))
        model, factory = loading.build_model(self.model)
        loading.load_weights(model, self.checkpoint)
        healthy = loading.reference(self.reference, factory, model)
        batch, loss = loading.probe(self.probe), loading.loss(self.loss)
        note(f"diagnosing {self.checkpoint} …")
        report = api.diagnose(model, batch, loss, reference=healthy, budget=self.budget)
        if str(self.json) != "-":
            say(str(report))
        emit_json(report.to_dict(), self.json)
        if self.html is not None:
            note(f"wrote {report.to_html(self.html)}")
        bad = MECHANISMS_THAT_FAIL.get(self.fail_on, ())
        return int(any(f.status in bad for f in report.findings))


def check_target(target: Path | None, *, stdout: bool = True) -> None:
    """Refuse an output path that cannot be written, before any work is done; ``stdout``: whether - stands for it."""
    if target is None or (stdout and str(target) == "-"):
        return
    if str(target) == "-":
        raise InputError("this output goes to a file, not to stdout", do="name a file")
    if target.is_dir():
        raise InputError("the output path is a folder", where=str(target), do="name a file")
    if not target.parent.is_dir():
        raise InputError("there is no such folder to write into", where=str(target.parent))
    _try_to_write(target.parent)


def check_targets(
    targets: Mapping[str, Path | None],
    *,
    stdout: Sequence[str] = ("json",),
    inputs: Sequence[str | Path | None] = (),
) -> None:
    """Refuse, before any work is done, outputs of which one cannot be written or would write over something.

    Args:
        targets: option name -> path; None where it was not asked for.
        stdout: the options for which - stands for stdout.
        inputs: what the command reads.
    """
    asked = {n: t for n, t in sorted(targets.items()) if t is not None}
    read = {Path(i).resolve() for i in inputs if i is not None}
    taken: dict[Path | str, str] = {}
    for name, target in asked.items():
        check_target(target, stdout=name in stdout)
        place = "-" if str(target) == "-" else target.resolve()
        first = taken.setdefault(place, name)
        if first != name and place == "-":
            raise InputError(f"--{first} and --{name} cannot both go to stdout", do="give one of them a file")
        if first != name:
            raise InputError(
                f"--{first} and --{name} are the same file",
                where=str(target),
                do="give one of them another file",
            )
        if place in read:
            raise InputError(
                f"--{name} would write over what is read", where=str(target), do="name another file"
            )


def check_folder(folder: Path | None) -> None:
    """Refuse a folder for outputs that cannot be made or written; it is made when there is something to write."""
    if folder is None:
        return
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not there.is_dir():
        raise InputError("the output folder cannot be made: this is a file", where=str(there))
    _try_to_write(there)


def _try_to_write(folder: Path) -> None:
    """By a file that is gone at once: permission bits tell neither of read-only disks nor of the superuser."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(
            "this folder cannot be written into",
            found=error.strerror,
            where=str(folder),
            do="name a place that can be written to",
        ) from error
