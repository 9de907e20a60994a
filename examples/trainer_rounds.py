"""Fine-tuning in rounds with a Hugging Face Trainer: watched by one callback, repaired by one intervention.

A GPT-2 of two layers over bytes, made here, learns one small text after another; nothing is downloaded. After each
round the model is saved, and in the end `supple.scan` compares the rounds.

    python examples/trainer_rounds.py --rounds 3 --steps 40
    python examples/trainer_rounds.py --rounds 3 --steps 40 --repair
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import supple
from supple.integrations.transformers import SuppleCallback
from supple.interventions import SpectralRegularization

TEXTS = (
    "The river runs to the sea, and the sea gives it back to the clouds. ",
    "3 + 4 = 7; 12 - 5 = 7; 2 * 9 = 18; 81 / 9 = 9; 6 + 6 = 12; ",
    "def add(a, b): return a + b\ndef twice(f, x): return f(f(x))\n",
)
LENGTH = 24


def windows(text: str, count: int = 64) -> list[dict[str, torch.Tensor]]:
    """``count`` windows of bytes of a text; the labels are the inputs, the model shifts them."""
    data = torch.tensor(list((text * 60).encode()))
    starts = torch.arange(count) * 7
    rows = [data[s : s + LENGTH] for s in starts]
    return [{"input_ids": row, "labels": row.clone()} for row in rows]


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps of a round")
    parser.add_argument("--repair", action="store_true", help="keep the spectra of the weights spread")
    parser.add_argument("--out", type=Path, help="folder for the rounds (default: one that is removed)")
    return parser.parse_args(given)


def main(options: argparse.Namespace) -> tuple[GPT2LMHeadModel, supple.scan.ScanReport]:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=256, n_positions=LENGTH, n_embd=32, n_layer=2, n_head=2))
    interventions = [SpectralRegularization()] if options.repair else []
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary)
        folders = []
        for number in range(options.rounds):
            rows = windows(TEXTS[number % len(TEXTS)])
            callback = SuppleCallback(rows, every=max(1, options.steps // 4), interventions=interventions)
            settings = TrainingArguments(
                output_dir=str(out / "trainer"), max_steps=options.steps, learning_rate=3e-3, report_to=[],
                per_device_train_batch_size=8, save_strategy="no", use_cpu=True, disable_tqdm=True, seed=number,
            )  # fmt: skip
            Trainer(model, settings, train_dataset=rows, callbacks=[callback]).train()
            loss = callback.records.last(instrument="loss")
            print(f"round {number}: loss {loss.value:.3f} on its own text")
            folders.append(out / f"round-{number}")
            model.save_pretrained(folders[-1])
        report = supple.scan(folders)
        print(report)
    return model, report


if __name__ == "__main__":
    main(arguments())
