"""The threshold of policy saturation against what the committed agents did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from supple.bench.studies.rl_gym import COLLAPSED, saturation_told
from supple.diagnose.policy import ENTROPY, policy_report

ROOT = Path(__file__).parents[2]


def test_counts_by_hand() -> None:
    ends = [
        {"return": [[9.0, 12.0, 200.0]], "policy entropy": [[0.0, 0.6, 0.5]]},  # one of two collapses is seen
        {
            "return": [[300.0, 400.0, 9.4]],
            "policy entropy": [[0.01, 0.4, 0.02]],
        },  # a solved task is saturated too
    ]
    told = saturation_told("cartpole-offsets", ends)
    assert tuple(told) == (3, 2, 3, 2)
    assert tuple(saturation_told("cartpole-offsets", ends, threshold=1.0)) == (3, 3, 3, 0)
    assert tuple(saturation_told("acrobot-offsets", ends)) == (0, 0, 6, 3)
    with pytest.raises(KeyError):
        saturation_told("minatar-chain", ends)


def test_the_share_is_that_of_the_policy_report() -> None:
    """The same entropy on either side of the threshold, in nats here and as logits there."""
    for p, saturated in ((1e-3, True), (0.02, False)):
        logits = torch.tensor([[p, 1 - p]], dtype=torch.float64).log().expand(50, 2)
        entropy = float(-(logits.exp() * logits).sum(1).mean())
        told = saturation_told("cartpole-offsets", [{"return": [[9.0]], "policy entropy": [[entropy]]}])
        found = policy_report(logits, "logits").finding("policy_saturation")
        assert bool(told.saturated) is saturated is (found.status == "present")


def test_it_tells_the_committed_collapses_and_the_page_says_so() -> None:
    answer = json.loads((ROOT / "results" / "rl-gym" / "study.json").read_text(encoding="utf-8"))["answer"]
    suite = "cartpole-offsets"
    ends = [a["ends"] for a in answer["agents"] if a["protocol"] == suite and a.get("ends")]
    assert len(ends) >= 3
    told = saturation_told(suite, ends)
    assert told.collapsed >= 10
    assert told.saturated / told.collapsed >= 0.9
    assert told.open / told.others >= 0.9
    page = (ROOT / "docs" / "how-to" / "agents-and-tasks.md").read_text(encoding="utf-8")
    assert f"{told.saturated} of {told.collapsed} collapsed" in page
    assert f"{told.open} of {told.others} others" in page
    assert f"below {ENTROPY:g} of the largest" in page
    assert COLLAPSED[suite] == (12.0, 2)
