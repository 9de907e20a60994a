"""Supervised fine-tuning with trl: the Trainer's callback beside it, with a chat of few words and a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("datasets")
pytest.importorskip("trl")

from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

import supple
from supple.errors import InputError
from supple.integrations.transformers import SuppleCallback
from supple.interventions import ResetEvent

WORDS = ["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(29))]


def texts(n: int) -> Dataset:
    g = torch.Generator().manual_seed(n)
    rows = [torch.randint(3, 32, (4 + i % 6,), generator=g).tolist() for i in range(n)]  # padded in the batch
    return Dataset.from_list([{"text": " ".join(WORDS[i] for i in row)} for row in rows])


def trainer(folder: Path, callbacks: list[Any]) -> Any:
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    torch.manual_seed(0)
    net = LlamaForCausalLM(
        LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                    num_key_value_heads=1, max_position_embeddings=16, pad_token_id=0, eos_token_id=1)
    )  # fmt: skip
    args = SFTConfig(
        str(folder), max_steps=4, per_device_train_batch_size=4, gradient_accumulation_steps=2, report_to=[],
        use_cpu=True, disable_tqdm=True, bf16=False, save_strategy="no", max_length=12, learning_rate=1e-2, seed=1,
    )  # fmt: skip
    return SFTTrainer(
        net, args, train_dataset=texts(32), eval_dataset=texts(8), callbacks=callbacks,
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
        ),
    )  # fmt: skip


def test_fine_tuning_is_bit_identical_beside_the_callback_and_its_loss_is_that_of_trl(tmp_path: Path) -> None:
    alone = trainer(tmp_path / "a", [])
    alone.train()
    watched = trainer(tmp_path / "b", [])
    callback = SuppleCallback(watched.eval_dataset, every=2)  # the rows as trl prepared them
    watched.add_callback(callback)
    expected = watched.evaluate()["eval_loss"]
    watched.train()
    for a, b in zip(alone.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(a, b)
    losses = callback.records.select(instrument="loss")
    assert [r.step for r in losses] == [0, 2, 4]
    assert all(r.status == "measured" for r in losses)
    assert losses.rows[0].value == pytest.approx(expected, rel=1e-5)
    assert losses.rows[-1].value < losses.rows[0].value


def test_interventions_act_and_raw_texts_are_refused_with_what_to_do(tmp_path: Path) -> None:
    rule = supple.interventions.ReGraMa(every=2, mode="percentage", max_fraction=0.1)
    ids = torch.randint(3, 32, (6, 8), generator=torch.Generator().manual_seed(0))
    # without a mask: transformers branches on its values, which no trace of the network follows
    callback = SuppleCallback(({"input_ids": ids}, ids), every=2, interventions=[rule])
    trainer(tmp_path / "a", [callback]).train()
    assert {e.step for e in callback.handles[0].log if isinstance(e, ResetEvent)} == {2, 4}
    with pytest.raises(InputError, match=r"no batch of the probe's rows.*trl: trainer\.add_callback"):
        trainer(tmp_path / "b", [SuppleCallback(texts(8))]).train()
