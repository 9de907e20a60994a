"""The Trainer callback: bit-identical weights, records, resume from a checkpoint, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from supple.errors import InputError
from supple.integrations.transformers import SuppleCallback


def data(n: int) -> list[dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(n)
    rows = [torch.randint(32, (12,), generator=g) for _ in range(n)]
    return [{"input_ids": r, "labels": r.clone()} for r in rows]


def model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2))


def train(folder: Path, callbacks: list[Any], resume: bool = False, steps: int = 8) -> GPT2LMHeadModel:
    args = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=4, gradient_accumulation_steps=2,
        save_steps=4, logging_steps=100, report_to=[], use_cpu=True, disable_tqdm=True, seed=1,
    )  # fmt: skip
    net = model()
    trainer = Trainer(net, args, train_dataset=data(64), eval_dataset=data(6), callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return net


def test_weights_are_bit_identical_and_records_arrive(tmp_path: Path) -> None:
    alone = train(tmp_path / "a", [])
    callback = SuppleCallback(data(6), every=2)
    watched = train(tmp_path / "b", [callback])
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), watched.parameters(), strict=True))
    losses = callback.records.select(instrument="loss")
    assert [r.step for r in losses][-1] == 8
    assert all(r.status == "measured" for r in losses)


def test_resume_takes_up_the_monitor(tmp_path: Path) -> None:
    train(tmp_path, [SuppleCallback(data(6), every=2)], steps=4)
    callback = SuppleCallback(data(6), every=2)
    train(tmp_path, [callback], resume=True, steps=8)
    assert callback.monitor.step == 8
    assert {2, 4, 6, 8} <= {r.step for r in callback.records.select(instrument="loss")}


def test_without_a_probe_the_training_samples_serve_and_a_warning_says_so(tmp_path: Path) -> None:
    callback = SuppleCallback(every=1)
    with pytest.warns(UserWarning, match="in-sample"):
        train(tmp_path, [callback], steps=1)
    assert len(callback.records.select(instrument="loss")) >= 1


def test_a_probe_without_labels_is_refused(tmp_path: Path) -> None:
    rows = [{"input_ids": r["input_ids"]} for r in data(4)]
    with pytest.raises(InputError, match="no labels"):
        train(tmp_path, [SuppleCallback(rows)], steps=1)
