"""Models that ask whether anything is masked: what a mask decides is no control flow that depends on the data."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from supple import interventions
from supple.topology import Topology
from supple.topology.probe import trace


class Asking(nn.Module):
    """Masks its hidden units where there is something to mask, as models of language do."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        hidden = torch.relu(self.up(x))
        if attention_mask is not None and not bool((attention_mask > 0).all()):
            hidden = hidden * attention_mask[:, None]
        return self.down(hidden)


def edges(found: Topology) -> list[object]:
    return [
        (name, layer.resettable, [(e.consumer, e.columns.tolist()) for e in found.consumers(name)])
        for name, layer in found.layers.items()
    ]


@pytest.mark.parametrize("mask", [torch.ones(5, dtype=torch.long), torch.tensor([1, 0, 1, 1, 1]),
                                  torch.tensor([True, False, True, True, True])])  # fmt: skip
def test_a_mask_changes_no_edge(mask: Tensor) -> None:
    net, x = Asking(), torch.randn(5, 3)
    assert edges(trace(net, {"x": x, "attention_mask": mask})) == edges(trace(net, x))
    assert trace(net, {"x": x, "attention_mask": mask}).reset_refusal("up") is None


def test_values_that_are_no_mask_are_still_refused() -> None:
    net, x = Asking(), torch.randn(5, 3)
    for inputs in ({"x": x, "attention_mask": torch.rand(5)}, (x, torch.ones(5, dtype=torch.long))):
        assert "data-dependent control flow" in (trace(net, inputs).reset_refusal("up") or "")


SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("config", "model", "sizes"),
    [
        ("LlamaConfig", "LlamaForCausalLM", SIZES),
        ("GPT2Config", "GPT2LMHeadModel", {"n_embd": 16, "n_layer": 1, "n_head": 2}),
        ("BertConfig", "BertForSequenceClassification", SIZES),
    ],
)
def test_resets_attach_to_language_models_with_a_mask(config: str, model: str, sizes: dict[str, int]) -> None:
    transformers = pytest.importorskip("transformers")
    made = getattr(transformers, config)(
        vocab_size=20, bos_token_id=0, eos_token_id=1, pad_token_id=2, **sizes
    )
    net = getattr(transformers, model)(made)
    padded = (torch.arange(6) < torch.tensor([[6], [4], [5], [6]])).long()
    inputs = {"input_ids": torch.randint(20, (4, 6)), "attention_mask": padded}
    optimizer = torch.optim.AdamW(net.parameters())
    handle = interventions.create("ReGraMa", every=2).attach(net, optimizer, inputs=inputs)
    handle.detach()
