"""The feature-rank penalty: the largest and the smallest singular value of the features are drawn together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch import distributed as dist

from supple.errors import AttachError
from supple.functional import feature_rank_penalty
from supple.interventions.handle import Optimizers
from supple.interventions.past_batches import Capture, PastBatches, quiet_pass
from supple.interventions.penalty import Gradients, Penalty, PenaltyHandle
from supple.interventions.registry import register
from supple.interventions.replicas import bare, eager, filled, several, summed
from supple.status import Mechanism


class FeatureRankHandle(PenaltyHandle["FeatureRank"]):
    """Sees the inputs of the training pass and reads the features of a pass of its own over them."""

    def __init__(self, intervention: FeatureRank, model: nn.Module, optimizer: Optimizers) -> None:
        super().__init__(intervention, model, optimizer)
        self.network = bare(model)
        self.device = next(model.parameters()).device
        self.past = PastBatches(1)
        self.layer = self.rule.layer

    def prepare(self, inputs: Any) -> None:
        if self.layer and self.layer not in dict(self.network.named_modules()):
            raise AttachError("FeatureRank: there is no such module", where=self.layer)
        if not self.layer and inputs is not None:
            self.layer = self._output_layer(inputs)
        capture = Capture(self.model, self._receive)
        self._removers.append(self.model.register_forward_pre_hook(capture, with_kwargs=True))

    def _receive(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.past.add(args, kwargs, self.step)

    def observe_inputs(self, *args: Any, **kwargs: Any) -> None:
        """Tell the inputs of a training batch, where the training does not call the model itself."""
        self._receive(args, kwargs)

    def _output_layer(self, inputs: Any, forward: Any = None) -> str:
        from supple.topology import trace

        layers = trace(self.network, inputs, forward=forward).layers.values()
        found = sorted({x.module for x in layers if x.output})
        if len(found) != 1:
            raise AttachError(
                "FeatureRank needs one output layer, whose input are the features",
                found=", ".join(found) or "none",
                do="name the module whose input is meant: FeatureRank(layer=...)",
            )
        return found[0]

    def _gradients(self, parameters: Mapping[str, Tensor]) -> Gradients | None:
        """Averaged over ranks: the batch is this rank's own, and ``.grad`` has been reduced already."""
        found = super()._gradients(parameters)
        if not several():
            return found
        own = filled(found, parameters.values())
        totals, _ = summed(own)
        return [(t / dist.get_world_size()).to(g.dtype) for t, g in zip(totals, own, strict=True)]

    def term(self, parameters: Mapping[str, Tensor]) -> Tensor | None:
        if not self.past.batches or self.past.layout is None:
            if self.step >= 2:
                raise AttachError(
                    "FeatureRank has seen no training pass of the model",
                    do="attach before torch.compile and call the model itself",
                )
            return None
        args, kwargs = self.past.layout.build(self.past.batches[-1].tensors)
        if not self.layer:
            self.layer = self._output_layer((args, kwargs), lambda m, x: m(*x[0], **x[1]))
        seen: list[Any] = []
        module = self.network.get_submodule(self.layer)

        def read(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            seen.append(next(iter((*inputs, *named.values())), None))

        hook = module.register_forward_pre_hook(read, with_kwargs=True)
        try:
            with quiet_pass(self.network, 0, self.device), eager(self.network):
                self.network(*args, **kwargs)
        finally:
            hook.remove()
        if not seen or not isinstance(seen[-1], Tensor) or seen[-1].dim() < 2:
            raise AttachError("the module has no features (samples, ..., units) for input", where=self.layer)
        features = seen[-1]
        if isinstance(module, nn.modules.conv._ConvNd):  # (N, C, positions) or, unbatched, (C, positions)
            features = features.movedim(-len(module.kernel_size) - 1, -1)
        return feature_rank_penalty(features.flatten(0, -2))


@register
@dataclass(frozen=True, kw_only=True)
class FeatureRank(Penalty):
    """J + coef · (σ_max(Φ)² − σ_min(Φ)²), Φ (N, d) the features of the training batch before the output layer.

    Mechanism: none of the three directly; it works on the rank of the features, not of the weights. Cost: one more
    pass over the batch and the eigenvalues of a Gram matrix of side min(N, d), per step. Source: Kumar, Agarwal,
    Ghosh, Levine, "Implicit under-parameterization", ICLR 2021, arXiv 2010.14498, where it is tried against the
    collapse of feature ranks in value networks. Reported unstable by others: it can shrink all features instead.

    Φ comes from a pass in eval mode (no dropout, running statistics) over the inputs of the last training pass;
    tokens and positions (of a convolution too) count as samples. With several ranks the gradient is averaged over
    them. With fewer samples than features σ_min is the smallest of the samples'.

    Args:
        coef: 5e-4, from a re-implementation; the paper's value is not verified.
        layer: path of the module whose input is Φ; default: the one output layer, which a trace finds (of
            ``inputs``, or of the first training batch).

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    >>> opt = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> handle = FeatureRank(layer="2").attach(model, opt)
    >>> _ = model(torch.randn(8, 3))
    >>> handle.penalty().item() > 0
    True
    """

    handle_class: ClassVar[type[PenaltyHandle[Any]]] = FeatureRankHandle
    mechanism: ClassVar[Mechanism | None] = None
    cost: ClassVar[str] = "medium"
    level: ClassVar[int] = 2
    source: ClassVar[str] = "Kumar et al., ICLR 2021, arXiv 2010.14498"

    coef: float = 5e-4
    layer: str = ""

    def term(self, parameters: Mapping[str, Tensor], handle: PenaltyHandle[Any]) -> Tensor | None:
        return handle.term(parameters)
