"""Forgetting, sources and prescriptions on rows and findings that are written by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.diagnose import lab

from supple.diagnose.architecture import Architecture
from supple.diagnose.compare import all_of, compare
from supple.diagnose.forgetting import Recall, forgetting, from_probes, from_records
from supple.diagnose.locate import drift, kernel_sources
from supple.diagnose.panel import GRAMA_VARIANT, Panel
from supple.diagnose.prescribe import THREE, prescribe, table
from supple.diagnose.rules import ntk_degeneration
from supple.diagnose.thresholds import TABLE, Threshold
from supple.diagnose.types import Finding
from supple.observe.probe import Observation
from supple.records import Record, Records
from supple.status import Mechanism, Status
from supple.topology.graph import Coverage, Topology

PLAIN = Architecture(activations=("relu",))
PRESENT, ABSENT = Status.PRESENT, Status.ABSENT


def ill(*mechanisms: Mechanism) -> list[Finding]:
    return [Finding(m, PRESENT, 0.5, ("0",)) for m in mechanisms]


# -- comparison with twins ------------------------------------------------------------------------

EXCESS = Threshold(0.2, "excess", True, 0.02, "")
RATIO = Threshold(0.7, "ratio", False, 0.02, "")


@pytest.mark.parametrize(
    ("value", "twins", "threshold", "status"),
    [
        (0.50, [0.05, 0.06, 0.04], EXCESS, PRESENT),
        (0.50, [0.45, 0.46, 0.44], EXCESS, ABSENT),  # the twin has it by design
        (0.25, [0.05, 0.06, 0.04], EXCESS, Status.INCONCLUSIVE),
        (0.20, [0.80, 0.81, 0.79], RATIO, PRESENT),
        (0.20, [0.20, 0.21, 0.19], RATIO, ABSENT),  # low rank by design
        (math.nan, [0.8], RATIO, Status.NOT_MEASURED),
        (0.2, [math.nan], RATIO, Status.NOT_MEASURED),
        (0.2, [], RATIO, Status.NOT_MEASURED),
        (0.2, [0.0], RATIO, Status.INVALID),
    ],
)
def test_a_verdict_is_relative_to_the_twin(
    value: float, twins: list[float], threshold: Threshold, status: Status
) -> None:
    assert compare("x", value, twins, threshold).status is status


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1), st.lists(st.floats(0, 1), max_size=5), st.floats(0, 0.2))
def test_no_value_is_called_without_an_interval(value: float, twins: list[float], error: float) -> None:
    found = compare("x", value, twins, EXCESS, error=error)
    if found.usable:
        assert found.lo < found.statistic < found.hi
    else:
        assert found.status in (Status.NOT_MEASURED, Status.INVALID)


def test_evidence_must_agree() -> None:
    assert all_of(PRESENT, PRESENT) is PRESENT
    assert all_of(PRESENT, ABSENT, Status.NOT_MEASURED) is ABSENT
    assert all_of(PRESENT, Status.INCONCLUSIVE) is Status.INCONCLUSIVE
    assert all_of(PRESENT, Status.NOT_MEASURED) is Status.NOT_MEASURED


def test_every_threshold_says_where_it_comes_from() -> None:
    assert all(t.provenance and t.form in ("excess", "ratio") for t in TABLE.values())


# -- forgetting -----------------------------------------------------------------------------------


def test_without_earlier_tasks_it_is_not_measured_and_says_how_to_get_it() -> None:
    found = forgetting([])
    assert found.status is Status.NOT_MEASURED
    assert "monitor.task" in found.reason


@pytest.mark.parametrize(("now", "status"), [(0.95, ABSENT), (0.30, PRESENT), (math.nan, Status.INVALID)])
def test_forgetting_is_a_share_of_what_was_learned(now: float, status: Status) -> None:
    assert forgetting([Recall("a", now, 0.96, 0.1, True, 500, "")]).status is status


def test_nothing_learned_is_nothing_forgotten() -> None:
    assert forgetting([Recall("a", 0.1, 0.1, 0.1, True, 100, "")]).status is Status.NOT_MEASURED


def history(values: dict[str, list[float]], task: str, instrument: str = "task_accuracy") -> Records:
    rows = Records()
    for name, series in values.items():
        rows.extend(
            Record(instrument, v, variant=name, task=task, step=i, samples=200) for i, v in enumerate(series)
        )
    return rows


def test_history_gives_the_best_value_and_leaves_the_current_task_out() -> None:
    rows = history({"one": [0.2, 0.9, 0.4], "two": [0.1, 0.95]}, "two")
    (recall,) = from_records(rows)
    assert (recall.name, recall.best, recall.now) == ("one", 0.9, 0.4)
    assert forgetting(from_records(rows)).status is PRESENT
    losses = history({"one": [2.3, 0.1, 1.9], "two": [2.0, 0.1]}, "two", "task_loss")
    assert forgetting(from_records(losses)).status is PRESENT
    broken = history({"one": [0.2, 0.9, math.nan], "two": [0.1, 0.95]}, "two")
    assert forgetting(from_records(broken)).status is Status.INVALID


def test_earlier_probes_are_measured_now() -> None:
    net = lab.built(lab.he_factory(), 0)
    x, y = lab.probe(200)
    recalls, _ = from_probes(net, [("a", (x, y)), ("b", (x, y), 0.9)], F.cross_entropy, None)
    assert [r.best for r in recalls] == [1.0, 0.9]
    assert recalls[0].now == recalls[1].now
    assert "100 %" in recalls[0].note
    none, why = from_probes(net, [("a", (x, torch.randn(200, 10)))], F.mse_loss, None)
    assert not none
    assert "best value" in why


# -- sources --------------------------------------------------------------------------------------


def course(values: list[float], tasks: list[str], rates: list[float] | None = None) -> Records:
    rows = Records(
        Record("effective_rank", v, layer="2", variant="relative", step=i, task=t)
        for i, (v, t) in enumerate(zip(values, tasks, strict=True))
    )
    rows.extend(Record("learning_rate", v, step=i) for i, v in enumerate(rates or []))
    return rows


RANK = Finding(Mechanism.RANK_COLLAPSE, PRESENT, 0.5, ("2",))
GRADUAL = [0.8, 0.73, 0.66, 0.6, 0.5, 0.43, 0.36, 0.3, 0.2]
SUDDEN = [0.8, 0.8, 0.79, 0.8, 0.3, 0.29, 0.28, 0.28, 0.29]


@pytest.mark.parametrize(
    ("values", "tasks", "rates", "kind", "word"),
    [
        (GRADUAL, ["a"] * 9, None, "drift", "gradual"),
        (SUDDEN, ["a"] * 9, None, "drift", "sudden"),
        (SUDDEN, ["a"] * 4 + ["b"] * 5, None, "task switch", "at the switch to task b"),
        (SUDDEN, ["a"] * 9, [0.1] * 4 + [1.0] * 5, "learning rate", "learning rate"),
    ],
)
def test_drift_is_told_from_the_history(values, tasks, rates, kind, word) -> None:
    source = drift(RANK, course(values, tasks, rates), "effective_rank", "relative")
    assert source.certain
    assert source.kind == kind
    assert word in source.text


def test_one_checkpoint_does_not_tell_the_drift() -> None:
    source = drift(RANK, Records(), "effective_rank", "relative")
    assert not source.certain
    assert "history" in source.text


def empty_panel() -> Panel:
    topology = Topology({}, (), (), Coverage(()))
    return Panel(Observation(Records(), {}, topology, 0.0, None), [], 256)


def test_condition_number_spikes_at_task_switches_are_found() -> None:
    kernel = Finding(Mechanism.NTK_DEGENERATION, PRESENT, 0.5)
    values = [10, 11, 90, 12, 10, 80, 11, 10]
    tasks = ["a", "a", "b", "b", "b", "c", "c", "c"]
    rows = Records(
        Record("ntk_condition", float(v), task=t, step=i)
        for i, (v, t) in enumerate(zip(values, tasks, strict=True))
    )
    (source,) = kernel_sources(kernel, empty_panel(), rows)
    assert "times its usual value (2 switches)" in source.text
    assert not kernel_sources(kernel, empty_panel(), Records())[-1].certain


# -- prescriptions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mechanism", "first"),
    [
        (Mechanism.DEAD_UNITS, "ReGraMa"),
        (Mechanism.RANK_COLLAPSE, "SpectralRegularization"),
        (Mechanism.NTK_DEGENERATION, "CChain"),
        (Mechanism.WEIGHT_GROWTH, "L2Init"),
        (Mechanism.CLONED_UNITS, "ShrinkAndPerturb"),
    ],
)
def test_each_mechanism_gets_its_matched_intervention(mechanism: Mechanism, first: str) -> None:
    line = prescribe(ill(mechanism), PLAIN).lines[0]
    assert line.intervention == first
    assert all((line.cost, line.evidence, line.trigger, line.text))


def test_the_defaults_on_a_live_relu_network() -> None:
    line = prescribe(ill(Mechanism.DEAD_UNITS), PLAIN).primary[0]
    assert line.settings == {"tau": 0.1, "every": "task"}


def test_the_famous_fix_is_warned_against_where_it_does_not_fit() -> None:
    for mechanism in (Mechanism.RANK_COLLAPSE, Mechanism.NTK_DEGENERATION):
        assert "continual backprop" in prescribe(ill(mechanism), PLAIN).lines[0].warning


def test_crelu_never_goes_into_a_network_with_bypass_or_attention() -> None:
    names = lambda arch: [x.intervention for x in prescribe(ill(Mechanism.DEAD_UNITS), arch).lines]
    assert "CReLU" in names(PLAIN)
    for arch in (
        Architecture(("relu",), residual=True),
        Architecture(("relu",), attention=True),
        Architecture(("relu",), untraced=True),
        Architecture(("leaky_relu",)),
    ):
        assert "CReLU" not in names(arch)
        assert names(arch)[0] == "ReGraMa"


def test_all_three_at_once_ask_for_fourier_features_first() -> None:
    lines = prescribe(ill(*THREE), PLAIN).lines
    assert lines[0].intervention == "DeepFourier"
    assert {"ReGraMa", "SpectralRegularization", "CChain"} < {x.intervention for x in lines}
    assert "DeepFourier" not in {x.intervention for x in prescribe(ill(*THREE[:2]), PLAIN).lines}


def test_the_last_rows_appear_where_they_can_apply() -> None:
    language = Architecture(("gelu",), residual=True, attention=True, language=True)
    lines = {x.intervention: x for x in prescribe(ill(Mechanism.RANK_COLLAPSE), language).lines}
    assert "rounds" in lines["SVF"].trigger
    assert "coming back" in lines["ForgettingAttention"].trigger
    assert not lines["SVF"].primary
    assert {"SVF", "ForgettingAttention"}.isdisjoint(
        x.intervention for x in prescribe(ill(Mechanism.RANK_COLLAPSE), PLAIN).lines
    )


def test_the_table_has_all_its_rows() -> None:
    rows = [x.intervention for x in table()]
    assert rows == [
        "ReGraMa", "CReLU", "ReGraMa", "SpectralRegularization", "CChain", "DeepFourier", "SVF",
        "ForgettingAttention",
    ]  # fmt: skip


def test_nothing_present_prescribes_nothing() -> None:
    healthy = [Finding(Mechanism.PLASTICITY_LOSS, ABSENT, 0.0), Finding(Mechanism.DEAD_UNITS, ABSENT, 0.0)]
    assert not prescribe(healthy, PLAIN).lines
    assert "nothing needs repair" in prescribe(healthy, PLAIN).note
    forgot = [*healthy, Finding(Mechanism.FORGETTING, PRESENT, 0.5)]
    assert "replay" in prescribe(forgot, PLAIN).note
    unexplained = [Finding(Mechanism.PLASTICITY_LOSS, PRESENT, 0.5)]
    assert "no mechanism" in prescribe(unexplained, PLAIN).note


@pytest.mark.parametrize(
    ("statuses", "words"),
    [
        ((Status.INVALID, Status.ABSENT), "the measurement is invalid: because"),
        ((Status.INCONCLUSIVE, Status.NOT_MEASURED), "nothing could be decided"),
        ((Status.ABSENT, Status.INCONCLUSIVE), "Nothing that was measured calls for a repair"),
    ],
)
def test_only_what_was_found_absent_is_a_clean_bill(statuses: tuple[Status, ...], words: str) -> None:
    findings = [Finding(m, s, reason="because") for m, s in zip(THREE, statuses, strict=False)]
    assert words in prescribe(findings, PLAIN).note


# -- the kernel and the common mode -----------------------------------------------------------------


def kernel_panel(spread: float, rank: float, always: float, dead: float) -> Panel:
    """A network beside four fresh convnets whose kernels differ by a factor of four, as in the lab."""

    def look(spread: float, rank: float, always: float, dead: float) -> Observation:
        rows = [
            Record("ntk_mean_cosine", 1 - spread, samples=64),
            Record("ntk_rank99", rank, samples=64),
            Record("always_on", always, samples=256),
            Record("dead", 0.0, samples=256),
            Record("grama", dead, variant=GRAMA_VARIANT, samples=256),
        ]
        return Observation(Records(rows), {}, Topology({}, (), (), Coverage(())), 0.0, None)

    twins = [look(s, 36.0, 0.05, 0.0) for s in (0.12, 0.05, 0.22, 0.16)]
    return Panel(look(spread, rank, always, dead), twins, 256)


@pytest.mark.parametrize(
    ("spread", "rank", "always", "dead", "status"),
    [
        (0.055, 27.0, 0.27, 0.08, PRESENT),  # a common mode decides what the spread of the twins leaves open
        (0.055, 27.0, 0.05, 0.00, Status.INCONCLUSIVE),  # the same kernel without one
        (0.055, 27.0, 0.15, 0.10, PRESENT),  # a mild one
        (0.070, 20.0, 0.27, 0.08, PRESENT),  # a common mode asks for less of the kernel
        (0.100, 27.0, 0.27, 0.08, Status.INCONCLUSIVE),  # but for something
        (0.025, 4.0, 0.30, 0.68, Status.ABSENT),  # so many dead units do this alone
        (0.140, 36.0, 0.27, 0.00, Status.ABSENT),  # a common mode without harm to the kernel
    ],
)
def test_a_common_mode_bears_on_the_kernel(
    spread: float, rank: float, always: float, dead: float, status: Status
) -> None:
    found = ntk_degeneration(kernel_panel(spread, rank, always, dead))
    assert found.status is status or (status is Status.ABSENT and found.status is not PRESENT)
