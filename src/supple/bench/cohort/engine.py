"""Methods × seeds of one protocol in one program, resumable, in the run folders that the loop writes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from supple.bench import methods
from supple.bench.cohort.chain import refusal
from supple.bench.cohort.group import Group, intervention_of, rhythm
from supple.bench.cohort.stack import check_chain
from supple.bench.kept import kept_rows, looked_back
from supple.bench.learner import TaskResult
from supple.bench.loop import Progress, one_thread
from supple.bench.optimizers import SEVERAL
from supple.bench.rows import Measure, measured_rows, observe_scene, run_name, summarise, task_rows
from supple.bench.spec import RunSpec
from supple.errors import InputError
from supple.interventions import L2, CChain, L2Init
from supple.records import Records
from supple.store import Run, load
from supple.streams import Stream, Task

#: the folder below the root in which cohorts work
COHORTS = "cohorts"
REFUSED = "the cohort engine has no stacked form of this method; take the engine auto or loop"


def supports(spec: RunSpec) -> str | None:
    """None, or why the cohort cannot take this run."""
    if not spec.protocol.even_tasks:
        return f"{REFUSED} (tasks of {spec.protocol.name} have different numbers of samples under different seeds)"
    if spec.protocol.hidden_boundaries:
        return f"{REFUSED} (its stacked methods are told the boundaries)"
    if spec.protocol.optimizer in SEVERAL:
        return f"{REFUSED} ({spec.protocol.optimizer} is several optimizers)"
    if spec.protocol.metric != "accuracy" or spec.protocol.zero_head:
        return f"{REFUSED} ({spec.protocol.name} has a loss or a head of its own)"
    rule = intervention_of(spec)
    if isinstance(rule, CChain):
        if reason := refusal(rule):
            return f"{REFUSED} ({reason})"
    elif rule is not None and (type(rule) not in (L2, L2Init) or rule.filter_fn is not None):
        return REFUSED
    try:
        check_chain(methods.get(spec.method).build(spec.protocol, spec.seed))
    except InputError as error:
        return f"{REFUSED} ({error})"
    return None


def run_cohort(
    specs: Sequence[RunSpec],
    root: str | Path,
    *,
    measure: Measure = observe_scene,
    progress: Progress | None = None,
    wait: float = 0.0,
) -> list[Path]:
    """Compute all runs together and write each into its own folder, as `supple.bench.run` does.

    While it works, everything lies in one folder below ``root/cohorts``, so a kill loses nothing and
    the same call continues. A run that is finished already is not computed again.

    Raises:
        InputError: several protocols, or a method without a stacked form (all are checked first).
    """
    specs = [dataclasses.replace(s, engine="cohort") for s in specs]
    folders = [s.folder(root) for s in specs]
    _check(_unfinished(specs, root))
    _export_finished(specs, root)
    todo = _unfinished(specs, root)
    if todo:
        manifests = [s.manifest() for s in todo]
        key = hashlib.sha256(json.dumps(manifests, sort_keys=True).encode()).hexdigest()
        with Run.open(Path(root) / COHORTS / key[:16], {"runs": manifests}, wait=wait) as store:
            if not store.done:
                with one_thread(), torch.random.fork_rng(devices=[]):
                    _Cohort(todo, store, measure).work(progress)
            for slot, spec in enumerate(todo):
                _export(spec, slot, store.folder, root)
    return folders


def _unfinished(specs: Sequence[RunSpec], root: str | Path) -> list[RunSpec]:
    return [s for s in specs if not Run.check(s.folder(root), s.manifest())]


def _export_finished(specs: Sequence[RunSpec], root: str | Path) -> None:
    """Take from cohorts that were finished when a kill came before all their runs were written out."""
    missing = _unfinished(specs, root)
    for folder in sorted((Path(root) / COHORTS).glob("*")) if missing else []:
        if not (folder / "summary.json").exists():
            continue
        slots = load(folder).manifest["run"]["runs"]
        for spec in missing:
            if spec.manifest() in slots:
                _export(spec, slots.index(spec.manifest()), folder, root)


def _check(specs: Sequence[RunSpec]) -> None:
    if len({json.dumps(s.protocol.to_dict(), sort_keys=True) for s in specs}) > 1:
        raise InputError("a cohort has one protocol", found=sorted({s.protocol.name for s in specs}))
    if len({(tuple(s.measured()), s.checkpoint_every) for s in specs}) > 1:
        raise InputError("the runs of a cohort are measured and stored at the same tasks")
    for spec in specs:
        if reason := supports(spec):
            raise InputError(reason, found=spec.method)


class _Cohort:
    """The runs under way: groups of slots, and where their records go."""

    def __init__(self, specs: Sequence[RunSpec], store: Run, measure: Measure) -> None:
        self.specs, self.store, self.measure = list(specs), store, measure
        self.protocol = specs[0].protocol
        kinds: dict[tuple[Any, ...], list[int]] = {}
        for i, spec in enumerate(specs):
            kinds.setdefault(rhythm(spec), []).append(i)
        self.members = list(kinds.values())
        self.groups = [Group([self.specs[i] for i in slots]) for slots in self.members]
        self.steps = 0
        self.memory: dict[str, Any] = {}

    def work(self, progress: Progress | None) -> None:
        state, first = self.store.resume(), 0
        if state is not None:
            first, self.steps = state["task"], state["steps"]
            for group, kept in zip(self.groups, state["groups"], strict=True):
                group.load_state_dict(kept)
        streams = {s.seed: s.protocol.sequence(s.seed) for s in self.specs}
        total = self.protocol.tasks
        for index in range(first, total):
            if progress is not None:
                progress(index / total)
            self._task(index, streams)
            if (index + 1) % self.specs[0].checkpoint_every == 0 or index + 1 == total:
                groups = [g.state_dict() for g in self.groups]
                self.store.checkpoint({"task": index + 1, "steps": self.steps, "groups": groups})
        self._worn()
        self.store.finish({"runs": len(self.specs)})
        if progress is not None:
            progress(1.0)

    def _task(self, index: int, streams: Mapping[int, Stream]) -> None:
        tasks = {seed: stream.task(index) for seed, stream in streams.items()}
        some = next(iter(tasks.values()))
        steps = some.steps(self.protocol.batch, self.protocol.epochs)
        self.steps += steps
        for group, slots in zip(self.groups, self.members, strict=True):
            group.start(index)
            counts = group.learn(tasks)
            ends = group.accuracies(tasks)
            back = {
                i: group.accuracies({seed: stream.judged(i) for seed, stream in streams.items()})
                for i in looked_back(self.specs[0], index)
            }
            samples = steps * self.protocol.batch
            for place, (i, (hits, nonfinite, loss), end) in enumerate(zip(slots, counts, ends, strict=True)):
                spec, task = self.specs[i], tasks[self.specs[i].seed]
                result = TaskResult(hits / samples, loss / steps, samples, nonfinite)
                self.store.append(task_rows(spec, self.steps, task, result, end))
                if index in spec.measured():
                    self._look(group, place, i, task)
                if back:
                    now = {j: values[place] for j, values in back.items()}
                    self.store.append(kept_rows(spec, self.steps, task, self._records(spec), now))

    def _records(self, spec: RunSpec) -> Records:
        return Records(r for r in self.store.records() if r.run == run_name(spec))

    def _look(self, group: Group, place: int, slot: int, task: Task) -> None:
        spec = self.specs[slot]
        model, optimizer = group.network(place)
        rows, arrays = measured_rows(spec, self.steps, task, model, [optimizer], self.measure, self.memory)
        self.store.append(rows)
        if arrays:
            self.store.arrays(f"slot-{slot}.{task.name}", arrays)

    def _worn(self) -> None:
        """Keep every network as it ended, in the form that the loop's last checkpoint has."""
        for group, slots in zip(self.groups, self.members, strict=True):
            for place, slot in enumerate(slots):
                model, _ = group.network(place)
                self.store.arrays(f"slot-{slot}.worn", dict(model.state_dict()))


def _export(spec: RunSpec, slot: int, source: Path, root: str | Path) -> None:
    """Write one run's own folder from the finished cohort."""
    cohort = load(source)
    with Run.open(spec.folder(root), spec.manifest()) as own:
        if own.done:
            return
        own.resume()
        rows = Records(r for r in cohort.records if r.run == run_name(spec))
        own.append(rows)
        prefix = f"slot-{slot}."
        for name in cohort.array_names:
            if name.startswith(prefix) and not name.endswith(".worn"):
                own.arrays(name.removeprefix(prefix), cohort.arrays(name))
        worn = cohort.arrays(f"{prefix}worn")
        own.checkpoint({"task": spec.protocol.tasks, "learner": {"model": worn}})
        own.finish(summarise(rows))
