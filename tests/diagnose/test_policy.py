"""Policy saturation, exploration failure and what is not measured, on policies whose state is known."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from supple.diagnose.policy import policy_report
from supple.diagnose.types import Finding
from supple.errors import InputError
from supple.status import Mechanism, Status


def loss(status: Status) -> Finding:
    return Finding(Mechanism.PLASTICITY_LOSS, status)


def logits(scale: float, n: int = 64, actions: int = 3) -> torch.Tensor:
    return scale * torch.randn(n, actions, generator=torch.Generator().manual_seed(0))


def test_entropy_and_largest_logit_against_numpy() -> None:
    x = logits(2.0)
    found = policy_report(x, "logits").finding("policy_saturation")
    raw = x.numpy().astype(np.float64)
    p = np.exp(raw) / np.exp(raw).sum(1, keepdims=True)
    entropy = -(p * np.log(p)).sum(1) / np.log(3)
    first, largest, certain = found.evidence
    assert first.value == pytest.approx(entropy.mean(), abs=1e-12)
    margin = 1.96 * entropy.std(ddof=1) / np.sqrt(64)
    assert (first.lo, first.hi) == pytest.approx(
        (entropy.mean() - margin, entropy.mean() + margin), abs=1e-12
    )
    assert largest.value == pytest.approx(np.abs(raw).max(), abs=1e-6)
    assert certain.value == pytest.approx((p.max(1) > 0.99).mean())
    assert found.status is Status.ABSENT


@pytest.mark.parametrize(
    ("outputs", "kind", "more", "status"),
    [
        (logits(1e3), "logits", {}, "present"),
        (logits(30.0), "logits", {}, "inconclusive"),
        (torch.zeros(8, 1), "logits", {}, "present"),  # a single action leaves nothing to try
        (logits(1.0), "values", {}, "not_measured"),
        (torch.full((8, 2), 0.999), "bounded", {}, "present"),
        (torch.rand(64, 2), "bounded", {}, "absent"),
        (logits(1.0), "means", {}, "not_measured"),
        (
            logits(1.0),
            "means",
            {"deviation": torch.full((64, 3), 1e-3), "half_range": torch.ones(3)},
            "present",
        ),
        (
            logits(1.0),
            "means",
            {"deviation": torch.ones(64, 3), "half_range": torch.full((3,), 2.0)},
            "absent",
        ),
        (
            logits(1.0),
            "means",
            {"deviation": torch.ones(64, 3), "half_range": torch.full((3,), torch.inf)},
            "not_measured",
        ),
        (torch.full((4, 2), torch.nan), "logits", {}, "invalid"),
    ],
)
def test_the_status_of_saturation(outputs: Any, kind: Any, more: dict[str, Any], status: str) -> None:
    assert policy_report(outputs, kind, **more).finding("policy_saturation").status == status


P, A, N = Status.PRESENT, Status.ABSENT, Status.NOT_MEASURED


@pytest.mark.parametrize(
    ("scale", "learns", "falls_short", "status"),
    [
        (1e3, A, True, Status.PRESENT),  # the network learns, the policy tries nothing, returns are low
        (1e3, A, None, Status.INCONCLUSIVE),  # perhaps the task is solved
        (1e3, A, False, Status.ABSENT),
        (1e3, P, True, Status.INCONCLUSIVE),  # a loss of plasticity explains it
        (1.0, A, True, Status.INCONCLUSIVE),  # another cause
        (1.0, A, None, Status.ABSENT),
        (1e3, N, True, Status.NOT_MEASURED),
        (1e3, Status.INCONCLUSIVE, True, Status.NOT_MEASURED),
        (1e3, None, True, Status.NOT_MEASURED),
    ],
)
def test_exploration_failure_is_told_from_a_loss_of_plasticity(
    scale: float, learns: Any, falls_short: bool | None, status: Status
) -> None:
    given = None if learns is None else loss(learns)
    report = policy_report(logits(scale), "logits", loss=given, falls_short=falls_short)
    assert report.finding("exploration_failure").status is status


def test_over_estimation_is_said_to_be_unmeasured_and_the_report_is_plain() -> None:
    report = policy_report(logits(1e3), "logits", loss=loss(A), falls_short=True)
    assert report.finding("value_over_estimation").status is Status.NOT_MEASURED
    text = str(report)
    for word in (
        "policy saturation",
        "PRESENT",
        "exploration failure",
        "value over estimation",
        "not measured",
    ):
        assert word in text
    assert max(map(len, text.splitlines())) <= 80
    row = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert [f["name"] for f in row["findings"]] == [f.name for f in report.findings]
    assert not {f.name for f in report.findings} & set(Mechanism)  # named apart from the mechanisms


def test_bad_input() -> None:
    with pytest.raises(InputError, match=r"are \(N, A\)"):
        policy_report(torch.zeros(3), "logits")
    with pytest.raises(InputError, match="unknown kind"):
        policy_report(torch.zeros(3, 2), "softmax")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"deviation does not fit the outputs; found: \(3, 3\)"):
        policy_report(torch.zeros(3, 2), "means", deviation=torch.ones(3, 3), half_range=torch.ones(2))
    with pytest.raises(InputError, match=r"half_range does not fit the outputs; found: \(1, 2\)"):
        policy_report(torch.zeros(3, 2), "means", deviation=torch.ones(3, 2), half_range=torch.ones(1, 2))
    with pytest.raises(InputError, match="no finding about 'dead'"):
        policy_report(torch.zeros(3, 2), "logits").finding("dead")


def test_deviations_that_are_nan_are_invalid_and_not_doubtful() -> None:
    deviation = torch.full((5, 2), float("nan"))
    broken = policy_report(torch.zeros(5, 2), "means", deviation=deviation, half_range=torch.ones(2))
    assert broken.finding("policy_saturation").status == "invalid"
