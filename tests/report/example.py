"""A small hand-made story: the numbers are invented, the types are the real ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from supple.diagnose.types import DiagnosisReport, Evidence, Finding, Prescription, PrescriptionLine, Source
from supple.records import Record, Records
from supple.report import Arm, Story
from supple.status import Mechanism, Status
from supple.topology.graph import Coverage, LayerCoverage

TASKS, SEEDS, WINDOW = 40, (0, 1, 2), 4
LAYERS = ("fc1", "fc2", "fc3")


def curve(start: float, end: float) -> Callable[[int, int], float]:
    return lambda seed, task: start + (end - start) * task / (TASKS - 1) + 0.01 * math.sin(7 * seed + task)


def arm(
    key: str, role: str, start: float, end: float, dead: tuple[float, float] | None, memory: float
) -> Arm:
    at = curve(start, end)
    online = tuple(tuple(at(s, t) for t in range(TASKS)) for s in SEEDS)
    gone = curve(*dead) if dead else None
    at_tasks = (1, 10, 20, 30, TASKS)
    lost = tuple(tuple(max(0.0, gone(s, t - 1)) if gone else math.nan for t in at_tasks) for s in SEEDS)
    return Arm(key, key, role, "tau 0.1, once per task" if role == "prescribed" else "", online, lost,
               at_tasks, tuple(memory + 0.01 * s for s in SEEDS))  # fmt: skip


def diagnosis(worn: bool, seed: int = 0) -> DiagnosisReport:
    share = 0.38 if worn else 0.02
    rows = [
        Record(i, min(1.0, f * share * (k + 1) / 2 + 0.01 * seed), layer=layer, variant=v, samples=256)
        for k, layer in enumerate(LAYERS)
        for i, v, f in (("dormant", "tau=0.1", 0.7), ("grama", "preactivation,tau=0.1", 1.1))
    ]
    rows += [
        Record("ntk_rank99", 9.0 if worn else 30.0),
        Record("ntk_effective_rank", 5.0 if worn else 12.0),
        Record("churn", 0.9, variant="relative"),
    ]
    decay = 0.6 if worn else 0.85
    arrays = {"ntk_spectrum": torch.tensor([100.0 * decay**i for i in range(60)], dtype=torch.float64)}
    arrays |= {f"spectrum/{n}": torch.linspace(9.0 if worn else 2.0, 0.1, 64) for n in LAYERS}
    status = Status.PRESENT if worn else Status.ABSENT
    return DiagnosisReport(
        findings=(
            Finding(
                Mechanism.PLASTICITY_LOSS, status, 0.6 if worn else 0.0, reason="learns slower than its twin",
                evidence=(Evidence("trainability", 0.4, 0.35, 0.45, reference=0.7, samples=5),),
            ),
            Finding(Mechanism.DEAD_UNITS, status, 0.4 if worn else 0.0, LAYERS[1:] if worn else (), (
                Evidence("grama", share, share - 0.05, share + 0.05, 0.02, 0.1, 256, "pre-activation"),
                Evidence("grama", share, layer="fc2", reference=0.02, samples=256),
                Evidence("dormant", share / 2, reference=0.01, samples=256, decides=False),
            ), "Reset the units without gradient.", "more units without gradient than the twin"),
            Finding(Mechanism.RANK_COLLAPSE, Status.INCONCLUSIVE, reason="straddles the threshold"),
            Finding(Mechanism.CLONED_UNITS, Status.NOT_MEASURED, reason="fewer samples than units"),
        ),
        coverage=Coverage((
            LayerCoverage("fc1", "Linear", 4160, True),
            LayerCoverage("odd", "Embedding", 100, False, "not called on the probe <b>"),
        )),
        prescription=Prescription((
            PrescriptionLine(
                Mechanism.DEAD_UNITS, "ReGraMa", {"every": "task", "tau": 0.1}, evidence="published",
                trigger="units without gradient", text="Resets them once per task.",
                warning="C-CHAIN does not revive units.", layers=LAYERS[1:],
            ),
        ), "from the table") if worn else Prescription(),
        records=Records(rows),
        arrays=arrays,
        sources=(Source(Mechanism.DEAD_UNITS, "activation", "ReLU: no gradient below zero"),) if worn else (),
        meta={"reference": "factory", "samples": 256},
    )  # fmt: skip


def story() -> Story:
    early = tuple(float(v) for v in torch.linspace(2.0, 0.05, 64))
    late = tuple(float(v) for v in torch.linspace(9.0, 0.02, 64))
    return Story(
        setting="permuted digits",
        stream="digits with a new pixel permutation per task",
        tasks=TASKS,
        seeds=SEEDS,
        window=WINDOW,
        arms=(
            arm("plain ReLU", "worn", 0.80, 0.56, (0.05, 0.35), 0.30),
            arm("fresh network each task", "reference", 0.85, 0.85, (0.05, 0.05), 0.10),
            arm("ReGraMa", "prescribed", 0.82, 0.83, (0.05, 0.02), 0.25),
            arm("ContinualBackprop", "famous", 0.81, 0.78, (0.05, 0.03), 0.26),
            arm("CChain", "mismatched", 0.81, 0.64, (0.05, 0.3), 0.35),
            arm("linear model", "linear", 0.58, 0.49, None, 0.2),
        ),
        worn=tuple(diagnosis(True, s) for s in SEEDS),
        fresh=tuple(diagnosis(False, s) for s in SEEDS),
        spectra=dict.fromkeys(LAYERS, (early, late)),
        facts=(("supple", "0.1.0"), ("seeds", "0, 1, 2")),
        command="supple demo --seeds 3",
    )
