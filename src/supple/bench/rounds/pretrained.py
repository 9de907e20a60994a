"""A causal language model of a local `transformers` folder as the beginning of the rounds (extra ``llm``)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from supple.bench.rounds.bases import CONTEXT, Base, Sizes
from supple.checksum import checksum
from supple.errors import InputError
from supple.nn import insert_forget_gates_

SAVE = "save one there with model.save_pretrained(folder) and tokenizer.save_pretrained(folder)"


class Causal(nn.Module):
    """Tokens (B, T) -> logits (B, T, V) of a transformers model."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, tokens: Tensor) -> Tensor:
        return self.net(input_ids=tokens, use_cache=False).logits


class Pretrained(Base):
    """The model of the folder is loaded anew for every arm, and for every round of a fresh one.

    Fresh arms therefore begin each round with the folder's weights. Trained in float32, without dropout;
    the packed projections of GPT-2 become ``nn.Linear`` with the same numbers. Forgetting attention starts as the
    folder's model and is refused by name where the attention is not Llama's. Nothing is downloaded and no
    code of the folder is executed.

    Raises:
        InputError: no folder, no configuration, weights or tokenizer in it, another kind of model, quantised
            weights, a model that sees later tokens, or one whose context is too short.
    """

    sizes = Sizes(batch=4, held=16, probe_context=16, kernel=8, kernel_context=16)
    rates: Mapping[str, float] = {"": 5e-5, "svf": 2e-2, "lora": 1e-3}
    adapt_from = 0
    attentions = ("softmax", "forgetting")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / "config.json").is_file():
            found = "no config.json" if folder.is_dir() else "no such folder"
            raise InputError("there is no transformers model here", found=found, where=str(folder), do=SAVE)
        self.name = folder.resolve().name
        self.tokenizer = self._read("AutoTokenizer", "tokenizer")
        if len(set(self.tokenizer("plain words", add_special_tokens=False)["input_ids"])) < 2:
            # transformers makes an empty one where there are no files of it
            raise InputError("the folder has no tokenizer that knows words", where=str(folder), do=SAVE)
        model = self.make(0, 0, "softmax")
        _check_causal(model, str(folder))
        self.vocabulary = model.net.get_input_embeddings().num_embeddings
        sums = "".join(checksum(p) for _, p in sorted(model.named_parameters()))
        self.fingerprint = hashlib.sha256(sums.encode()).hexdigest()[:16]

    def make(self, seed: int, turn: int, attention: str) -> Causal:
        config = self._read("AutoConfig", "configuration")
        if getattr(config, "quantization_config", None) is not None:
            raise InputError("quantised weights cannot be fine-tuned", where=str(self.folder))
        for key, value in config.to_dict().items():
            if isinstance(value, float) and ("dropout" in key or "pdrop" in key):
                setattr(config, key, 0.0)
        net = self._read("AutoModelForCausalLM", "causal language model", config=config, dtype=torch.float32)
        _plain_linears_(net)
        if attention == "forgetting":
            insert_forget_gates_(net)
        return Causal(net.train())

    def tokens(self, text: Tensor) -> Tensor:
        words = bytes(text.tolist()).decode("utf-8", errors="replace")
        ids = torch.tensor(self.tokenizer(words, add_special_tokens=False)["input_ids"], dtype=torch.long)
        if len(ids) and int(ids.max()) >= self.vocabulary:
            raise InputError(
                "the tokenizer has tokens that the model has no row for",
                found=f"token {int(ids.max())} of {self.vocabulary}",
                where=str(self.folder),
            )
        return ids

    def adapts(self, module: nn.Module, name: str) -> bool:
        """Every linear layer but the head."""
        return type(module) is nn.Linear and name.rpartition(".")[2] not in ("lm_head", "embed_out", "output")

    def _read(self, loader: str, what: str, **kwargs: Any) -> Any:
        try:
            import transformers
        except ImportError as error:
            raise InputError("--model needs transformers", do="pip install 'supple[llm]'") from error
        verbosity = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()  # its warnings on long texts do not concern windows
        transformers.logging.disable_progress_bar()
        try:
            return getattr(transformers, loader).from_pretrained(
                str(self.folder), local_files_only=True, trust_remote_code=False, **kwargs
            )
        except Exception as error:  # damaged files raise anything, from KeyError to SafetensorError
            raise InputError(
                f"the folder has no {what} that transformers can read",
                found=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
                where=str(self.folder),
                do=SAVE,
            ) from error
        finally:
            transformers.logging.set_verbosity(verbosity)


@torch.no_grad()
def _check_causal(model: Causal, where: str) -> None:
    """Refuse a model that cannot read a whole window, or in which a later token moves an earlier prediction."""
    tokens = torch.arange(CONTEXT)[None] % 7
    other = tokens.clone()
    half = CONTEXT // 2
    other[0, half:] = 7
    try:
        a, b = (model.eval()(t)[0, :half] for t in (tokens, other))
    except (RuntimeError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"the model cannot read a window of {CONTEXT} tokens", found=error, where=where
        ) from error
    if not float((a - b).abs().max()) <= 1e-4 * float(a.abs().max()):  # rounding moves it by 1e-6
        raise InputError("the model is not causal: it sees the tokens that it is to foretell", where=where)


def _plain_linears_(net: nn.Module) -> None:
    """GPT-2 keeps its linear layers transposed in a class of transformers; here each becomes an nn.Linear."""
    from transformers.pytorch_utils import Conv1D

    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv1D):
                rows, columns = child.weight.shape
                plain = nn.Linear(rows, columns, device="meta")
                plain.weight = nn.Parameter(child.weight.detach().T.contiguous())
                plain.bias = child.bias
                setattr(parent, name, plain)
