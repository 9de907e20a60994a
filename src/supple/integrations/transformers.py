"""Hugging Face Trainer: one callback that observes a fine-tuning run (extra ``llm``).

    from supple.integrations.transformers import SuppleCallback
    trainer = Trainer(model, args, train_dataset=…, eval_dataset=…, callbacks=[SuppleCallback(eval_set)])
    trainer.train()

Give the evaluation set as the probe; without one the first training samples serve, which makes the loss an
in-sample one and is warned about. Measurements act through hooks on
the optimizer that the Trainer made, so accumulation and mixed precision need no extra code; gradients are
seen after the Trainer's clipping. The monitor's state is saved inside each checkpoint folder and taken up
again when training resumes from it. Without interventions the trained weights are bit-identical.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from supple.errors import InputError
from supple.integrations._need import need
from supple.integrations._watch import Watching, attach, state_of

_base: Any = need("transformers", "llm").TrainerCallback
STATE_FILE = "supple.pt"
#: losses, as transformers names them, that compare logits and labels place by place
_ALIGNED = ("ForMaskedLM", "ForTokenClassification")


def logits(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """The logits of a transformers model for a batch without labels."""
    return model(**inputs).logits


def token_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Next-token cross-entropy for (B, T, V) logits, class cross-entropy or squared error otherwise."""
    if outputs.dim() == 3:
        return nn.functional.cross_entropy(
            outputs[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100
        )
    if labels.dtype == torch.long:
        return nn.functional.cross_entropy(outputs.float(), labels)
    return nn.functional.mse_loss(outputs.squeeze(-1).float(), labels)


def aligned_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of (B, T, V) logits at the labels' own places, as of masked words and of classes of tokens."""
    return nn.functional.cross_entropy(outputs.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)


class SuppleCallback(Watching, _base):  # type: ignore[misc]
    """Attach a `supple.Monitor` and interventions to a Trainer run.

    Args:
        probe: ``(inputs mapping, labels)``, a batch as a mapping with labels, or a data set (also a stream) of dicts
            whose first ``probe_size`` rows serve.
        probe_size: rows taken from a data set.
        every: optimizer steps between two measurements (int or callable).
        loss_fn: ``loss_fn(logits, labels)``; by default next-token or class cross-entropy, and cross-entropy at the
            labels' own places for encoder-decoders and for models of masked words or of classes of tokens.
        instruments: the bundle, as in `supple.Monitor`.
        interventions: attached at the start of training, detached at its end.
        sinks: trackers with ``log(values, step)``.

    Attributes ``monitor``, ``handles`` and, after training, ``records`` are readable.
    """

    starts = "trainer.train()"

    def __init__(
        self,
        probe: tuple[Mapping[str, Any], Tensor] | Any = None,
        every: int | Callable[[int], bool] = 100,
        *,
        probe_size: int = 16,
        loss_fn: Callable[[Tensor, Tensor], Tensor] = token_loss,
        instruments: str = "economy",
        interventions: Sequence[Any] = (),
        sinks: Sequence[Any] = (),
    ) -> None:
        self.probe, self.every, self.loss_fn, self.probe_size = probe, every, loss_fn, probe_size
        self.instruments, self.interventions, self.sinks = instruments, tuple(interventions), tuple(sinks)
        self.monitor: Any = None
        self.handles: list[Any] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        import supple

        model, optimizer = kwargs["model"], kwargs["optimizer"]
        optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's shell around the real one
        inputs, labels = self._find(kwargs.get("eval_dataloader") or kwargs.get("train_dataloader"), args)
        aligned = self.loss_fn is token_loss and getattr(model, "loss_type", None) in _ALIGNED
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False) and labels.dim() == 2:
            aligned = self.loss_fn is token_loss
            if (
                "decoder_input_ids" not in inputs
            ):  # the model makes them of its labels, which it is not given here
                inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels)
        monitor = supple.Monitor(
            model,
            optimizer,
            probe=(inputs, labels),
            loss_fn=aligned_loss if aligned else self.loss_fn,
            every=self.every,
            instruments=self.instruments,
            forward=logits,
            sinks=self.sinks,
        )
        file = Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE_FILE
        saved = torch.load(file, weights_only=True) if state.global_step and file.exists() else None
        self.handles = attach(monitor, self.interventions, model, optimizer, inputs, saved)
        self.monitor = monitor

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.monitor is None:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if folder.is_dir():
            torch.save(state_of(self.monitor, self.handles), folder / STATE_FILE)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.detach()

    def _find(self, loader: Any, args: Any) -> tuple[dict[str, Any], Tensor]:
        """The probe on the training device: the given one, or the first rows of a data set."""
        from supple.observe import rng_guard

        if isinstance(self.probe, tuple):
            batch = {**self.probe[0], "labels": self.probe[1]}
        elif isinstance(self.probe, Mapping):
            batch = dict(self.probe)
        else:
            if self.probe is None:
                warnings.warn(
                    "no probe was given to SuppleCallback: the first training samples serve, so its loss is "
                    "in-sample; pass the evaluation set as probe",
                    stacklevel=2,
                )
            # a collator that masks words at random, or a data set that augments, draws from the global generators
            with rng_guard():
                rows = self._rows(loader.dataset if self.probe is None else self.probe)
                collate = (
                    loader.collate_fn
                    if loader is not None
                    else need("transformers", "llm").default_data_collator
                )
                try:
                    batch = dict(collate(rows))
                except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                    raise InputError(
                        "the Trainer's collator makes no batch of the probe's rows",
                        found=f"{type(error).__name__} {error}, in a {type(rows[0]).__name__}",
                        do="give rows as the Trainer prepares them; with trl: trainer.add_callback("
                        "SuppleCallback(trainer.eval_dataset))",
                    ) from error
        if "labels" not in batch:
            raise InputError("the probe has no labels", found=sorted(batch), do="pass probe=(inputs, labels)")
        labels = batch.pop("labels").to(args.device)
        return {k: v.to(args.device) for k, v in batch.items() if isinstance(v, Tensor)}, labels

    def _rows(self, data: Any) -> list[Any]:
        """The first rows: by index, since a sampler would draw and change the run, or off a stream that was given."""
        if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
            rows = [data[i] for i in range(min(len(data), self.probe_size))]
        elif self.probe is None or hasattr(data, "batch_sampler") or not isinstance(data, Iterable):
            raise InputError(
                "the first rows of this cannot be taken without changing the run",
                found=type(data).__name__,
                do="pass probe=(inputs, labels), or a data set of dicts",
            )
        else:
            rows = list(itertools.islice(data, self.probe_size))
        if not rows:
            raise InputError("the probe has no rows", found=type(data).__name__, do="pass some")
        return rows
