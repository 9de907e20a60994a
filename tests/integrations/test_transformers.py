"""The Trainer callback: bit-identical weights, records, resume from a checkpoint, refusals."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

import supple
from supple.errors import InputError
from supple.integrations.transformers import SuppleCallback
from supple.interventions import ResetEvent


def data(n: int) -> list[dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(n)
    rows = [torch.randint(32, (12,), generator=g) for _ in range(n)]
    return [{"input_ids": r, "labels": r.clone()} for r in rows]


def model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2))


def train(
    folder: Path,
    callbacks: list[Any],
    resume: bool = False,
    steps: int = 8,
    net: Any = None,
    collate: Any = None,
    **more: Any,
) -> Any:
    args = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=4, gradient_accumulation_steps=2,
        save_steps=4, logging_steps=100, report_to=[], use_cpu=True, disable_tqdm=True, seed=1, **more,
    )  # fmt: skip
    net = net or model()
    trainer = Trainer(net, args, train_dataset=data(64), eval_dataset=data(6), callbacks=callbacks,
                      data_collator=collate)  # fmt: skip
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


def test_probes_of_other_kinds(tmp_path: Path) -> None:
    rows = data(6)
    batch = {k: torch.stack([r[k] for r in rows]) for k in rows[0]}
    found = []
    for probe in (rows, (r for r in rows), batch):
        callback = SuppleCallback(probe, every=1)
        train(tmp_path, [callback], steps=1)
        found.append([r.value for r in callback.records.select(instrument="loss")])
    assert found[0] == found[1] == found[2]
    with pytest.raises(InputError, match=r"no batch of the probe's rows; found: KeyError 'input_ids'.*trl"):
        train(tmp_path, [SuppleCallback([{"text": "raw"}])], steps=1, collate=Masked())
    with pytest.raises(InputError, match="no rows"):
        train(tmp_path, [SuppleCallback([])], steps=1)
    for probe in (torch.utils.data.DataLoader(rows), 3):
        with pytest.raises(InputError, match="cannot be taken"):
            train(tmp_path, [SuppleCallback(probe)], steps=1)


class Masked(torch.nn.Module):
    """Masks at random, as the collator of masked words does; a module only to be picklable."""

    def forward(self, rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        ids = torch.stack([r["input_ids"] for r in rows])
        hidden = torch.rand(ids.shape) < 0.5
        return {"input_ids": ids.masked_fill(hidden, 0), "labels": ids.masked_fill(~hidden, -100)}


def test_a_collator_that_draws_changes_no_bit_and_masked_words_are_not_shifted(tmp_path: Path) -> None:
    def net() -> Any:
        torch.manual_seed(0)
        config = BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                            intermediate_size=16, max_position_embeddings=16)  # fmt: skip
        return BertForMaskedLM(config)

    callback = SuppleCallback(data(6), every=2)
    alone = train(tmp_path / "a", [], net=net(), collate=Masked())
    watched = train(tmp_path / "b", [callback], net=net(), collate=Masked())
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), watched.parameters(), strict=True))
    batch = Masked()(data(6))
    start = net().eval()
    expected = start(**batch).loss.item()  # the model's own loss
    with_batch = SuppleCallback(batch, every=100)
    train(tmp_path / "c", [with_batch], net=start, steps=1)
    (first, *_) = with_batch.records.select(instrument="loss")
    assert first.step == 0
    assert first.value == pytest.approx(expected, rel=1e-5)


def test_an_encoder_decoder_is_given_what_its_decoder_reads(tmp_path: Path) -> None:
    def net() -> Any:
        torch.manual_seed(0)
        return T5ForConditionalGeneration(
            T5Config(
                vocab_size=32,
                d_model=16,
                d_kv=8,
                d_ff=16,
                num_layers=1,
                num_heads=2,
                decoder_start_token_id=0,
            )
        )

    callback = SuppleCallback(data(6), every=2)
    alone = train(tmp_path / "a", [], net=net())
    watched = train(tmp_path / "b", [callback], net=net())
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), watched.parameters(), strict=True))
    rows = data(6)
    with torch.no_grad():
        expected = net().eval()(**{k: torch.stack([r[k] for r in rows]) for k in rows[0]}).loss.item()
    (first, *_) = callback.records.select(instrument="loss")
    assert first.value == pytest.approx(expected, rel=1e-5)


def llama(change: str = "") -> Any:
    torch.manual_seed(0)
    net: Any = LlamaForCausalLM(
        LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                    num_key_value_heads=1, max_position_embeddings=16)
    )  # fmt: skip
    if change == "frozen":
        for parameter in (*net.model.embed_tokens.parameters(), *net.model.layers[0].parameters()):
            parameter.requires_grad_(False)
    if change == "lora":
        peft = pytest.importorskip("peft")
        net = peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    return net


@pytest.mark.parametrize("case", ["plain", "mixed precision", "checkpointing", "frozen", "lora"])
def test_settings_of_a_fine_tuning_change_no_bit_and_hide_no_row(case: str, tmp_path: Path) -> None:
    more = {"mixed precision": {"bf16": True}, "checkpointing": {"gradient_checkpointing": True}}.get(
        case, {}
    )
    alone = train(tmp_path / "a", [], net=llama(case), **more)
    callback = SuppleCallback(data(6), every=2, instruments="standard")
    watched = train(tmp_path / "b", [callback], net=llama(case), **more)
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), watched.parameters(), strict=True))
    assert any(
        not torch.equal(a, b) for a, b in zip(llama(case).parameters(), watched.parameters(), strict=True)
    )
    found = {r.instrument for r in callback.records if r.status == "measured"}
    assert {"loss", "dead", "grama", "effective_rank", "sigma_ratio"} <= found
    assert all(r.note for r in callback.records if r.status != "measured")


def test_an_intervention_acts_through_the_trainers_optimizer(tmp_path: Path) -> None:
    alone = train(tmp_path / "a", [], net=llama())
    callback = SuppleCallback(data(6), every=2, interventions=[supple.interventions.L2Init(coef=1.0)])
    pulled = train(tmp_path / "b", [callback], net=llama())
    start = [p.detach() for p in llama().parameters()]

    def moved(net: Any) -> float:
        return sum(
            float((p.detach() - s).square().sum()) for p, s in zip(net.parameters(), start, strict=True)
        )

    assert moved(pulled) < moved(alone)


def test_units_are_reset_under_the_trainers_adafactor(tmp_path: Path) -> None:
    rule = supple.interventions.ReGraMa(every=2, mode="percentage", max_fraction=0.1)
    callback = SuppleCallback(data(6), every=4, interventions=[rule])
    net = train(tmp_path, [callback], net=llama(), optim="adafactor")
    events = [e for e in callback.handles[0].log if isinstance(e, ResetEvent)]
    assert {e.step for e in events} == {2, 4, 6, 8}
    assert any("mlp" in e.layer for e in events)
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_the_three_lines_of_the_readme_run_as_they_stand(tmp_path: Path) -> None:
    text = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    block = next(b for b in re.findall(r"```python\n(.*?)```", text, re.S) if "SuppleCallback" in b)
    lines = [line for line in block.splitlines() if line and not line.startswith("#")]
    assert len(lines) == 3
    args = TrainingArguments(
        str(tmp_path), max_steps=3, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no"
    )
    names = {"Trainer": Trainer, "model": llama(), "args": args, "train_set": data(16), "eval_set": data(6)}
    exec(compile(block, "README.md", "exec"), names)
    mine = [c for c in names["trainer"].callback_handler.callbacks if isinstance(c, SuppleCallback)]
    assert [c.monitor.step for c in mine] == [3]
