"""The i.i.d. control has every sample of the stream exactly once, and mixes the tasks."""

from __future__ import annotations

import pytest
import torch

from supple.bench.protocols import create
from supple.streams import Shuffled, Stream, shuffled


class _Marked:
    def __call__(self, inputs, targets, *, seed: int, task: int):
        return inputs[: 5 + task] + 100 * task, targets[: 5 + task]


@pytest.mark.parametrize("block", [1, 40, 1 << 20])
def test_every_sample_once_in_any_order_of_asking(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shuffled, "BLOCK", block)
    source = Stream(torch.arange(9.0)[:, None], torch.arange(9), changes=[_Marked()], tasks=4, seed=0)
    mixed = Shuffled(source)
    tasks = [mixed.task(t) for t in (3, 0, 2, 1)]
    assert [len(t) for t in tasks] == [8, 5, 7, 6]
    seen = torch.cat([t.inputs for t in tasks]).flatten()
    assert sorted(seen.tolist()) == sorted(torch.cat([t.inputs for t in source]).flatten().tolist())
    assert torch.equal(torch.cat([t.targets for t in tasks]), (seen % 100).long())
    assert all(len((t.inputs // 100).unique()) > 1 for t in tasks)
    assert torch.equal(Shuffled(source).task(2).inputs, tasks[2].inputs)


def test_a_protocol_has_its_control_under_another_name() -> None:
    plain, control = (create("digits-random-labels", "demo", tasks=3, iid=iid) for iid in (False, True))
    assert (plain.label, control.label) == ("digits-random-labels", "digits-random-labels-iid")
    assert plain.to_dict() == {**control.to_dict(), "name": plain.name}
    assert isinstance(control.sequence(0), Shuffled)
    assert not isinstance(plain.sequence(0), Shuffled)
