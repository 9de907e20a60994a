"""What one worker does at a time: a run by itself, or a cohort of runs as one program."""

from __future__ import annotations

import dataclasses
import json
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from supple.bench.cohort import rhythm, run_cohort, supports
from supple.bench.loop import run
from supple.bench.rows import Measure
from supple.bench.spec import RunSpec, different
from supple.errors import InputError, StoreError
from supple.store import Run, load

#: seconds a new worker waits for one that is still letting go of the folder; an NFS server frees what a dead node
#: held when its lease ends, after 90 s as a rule
LOCK_WAIT = 120.0
#: a run whose worker died (out of memory, kill) is tried again this often; it resumes where it was
RETRIES = 2


@dataclass(frozen=True)
class Job:
    """Places in the run list, and the runs at these places: several belong to one cohort."""

    places: tuple[int, ...]
    specs: tuple[RunSpec, ...]

    def perform(self, root: str | Path, measure: Measure, progress: Callable[[float], None]) -> str | None:
        """Compute; the traceback as text if it fails.

        Whatever a run raises ends here, since one failing run must not take the list with it.
        """
        try:
            if self.specs[0].engine == "cohort":
                run_cohort(self.specs, root, measure=measure, progress=progress, wait=LOCK_WAIT)
            else:
                run(self.specs[0], root, measure=measure, progress=progress, wait=LOCK_WAIT)
        except (KeyboardInterrupt, BrokenPipeError):
            raise
        except Exception:  # any: the caller's measure may raise what it likes
            return traceback.format_exc()
        return None


def plan(specs: Sequence[RunSpec], root: str | Path) -> tuple[list[Path], set[int]]:
    """The folders of a run list, and the places of the runs that are finished.

    Raises:
        InputError: two runs with one folder. StoreError: a folder with another run, a damaged one, or beside
            runs of the same protocol with other settings.
    """
    folders = [spec.folder(root) for spec in specs]
    finished = {i for i, spec in enumerate(specs) if Run.check(folders[i], spec.manifest())}
    if len(set(folders)) != len(folders):
        raise InputError(
            "two runs of the list have the same folder", do="give each protocol, method and seed once"
        )
    _one_setting(specs, root)
    return folders, finished


def _one_setting(specs: Sequence[RunSpec], root: str | Path) -> None:
    """Runs of one protocol below one folder are compared with one another, so they must have one setting."""
    for label, protocol in {s.protocol.label: s.protocol for s in specs}.items():
        own = protocol.to_dict()
        for path in sorted((Path(root) / label).glob("*/seed-*/manifest.json")):
            try:
                other = load(path.parent).manifest["run"]["protocol"]
            except StoreError:
                continue  # a damaged run is named by the report
            if found := different(other, own):
                raise StoreError(
                    f"there are runs of {label} with other settings in this folder",
                    found=f"{found} (there and here)",
                    where=str(path.parent),
                    do="give these runs a folder of their own (--out)",
                )


def jobs(specs: Sequence[RunSpec], todo: Iterable[int]) -> list[Job]:
    """The runs at these places as jobs, in order of their first place.

    A cohort takes the runs of one protocol whose networks have one shape and one rhythm, so that several
    cores have something to do; how many cores there are changes nothing.
    """
    found: dict[str, list[int]] = {}
    for place in todo:
        spec = specs[place]
        if spec.engine == "cohort":
            same = [spec.protocol.to_dict(), rhythm(spec), spec.measured(), spec.checkpoint_every]
            key = json.dumps(same, sort_keys=True)
        else:
            key = str(place)
        found.setdefault(key, []).append(place)
    return [Job(tuple(places), tuple(specs[p] for p in places)) for places in found.values()]


def with_engine(specs: Iterable[RunSpec], engine: Literal["auto", "loop", "cohort"]) -> list[RunSpec]:
    """The runs with their engine set; "auto" takes the cohort where it has a form of the method.

    Runs of one method keep one engine, so that a seed added later is computed as the others were.

    Raises:
        InputError: "cohort", and a run that it has no form of.
    """

    def chosen(spec: RunSpec) -> Literal["loop", "cohort"]:
        if engine == "loop":
            return engine
        reason = supports(spec)
        if reason and engine == "cohort":
            raise InputError(reason, found=spec.method)
        return "loop" if reason else "cohort"

    return [dataclasses.replace(s, engine=chosen(s)) for s in specs]
