"""What kind of network it is, as far as the choice of a remedy depends on it; read off the topology."""

from __future__ import annotations

from dataclasses import dataclass

from supple.topology.graph import Topology

DEAD_ZONE = ("relu", "threshold", "hardtanh", "hardswish", "hardsigmoid", "clamp")
BOUNDED = ("tanh", "sigmoid", "hardtanh", "hardsigmoid", "softsign")
SOFT_DEAD_ZONE = ("gelu", "silu", "elu", "mish", "softplus", "celu", "selu")
RECURRENT = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")


@dataclass(frozen=True)
class Architecture:
    """Facts for the prescription; unknown activations stay in ``activations`` by name."""

    activations: tuple[str, ...] = ()
    residual: bool = False
    attention: bool = False
    convolution: bool = False
    language: bool = False
    normalised: bool = False
    resettable: tuple[str, ...] = ()
    untraced: bool = False  # nothing is known about edges: no resets, no conversions

    recurrent: bool = False  # `convert_` cannot follow what a recurrent layer returns

    @property
    def plain(self) -> bool:
        """An MLP or a ConvNet without bypass: its activations can be exchanged."""
        return not (self.residual or self.attention or self.language or self.untraced)

    @property
    def dead_zone(self) -> bool:
        return any(is_a(a, DEAD_ZONE) for a in self.activations)

    @classmethod
    def of(cls, topology: Topology) -> Architecture:
        layers = list(topology.layers.values())
        return cls(
            activations=tuple(sorted({x.activation for x in layers if x.activation})),
            residual=any(x.stream is not None for x in layers) or bool(topology.streams),
            attention=any(x.qk_partner is not None for x in layers),
            convolution=any(x.kind.startswith("conv") for x in layers),
            language=any(x.kind == "embedding" for x in layers),
            normalised=any(x.norms for x in layers),
            resettable=tuple(x.name for x in layers if topology.reset_refusal(x.name) is None),
            recurrent=any(x.type in RECURRENT for x in topology.coverage.layers),
            untraced=not topology.edges and len(layers) > 1,
        )


def is_a(activation: str, family: tuple[str, ...]) -> bool:
    """Whether a name such as ``"relu_"`` or ``"ReLU"`` belongs to a family; ``leaky_relu`` is not ``relu``.

    >>> is_a("relu_", DEAD_ZONE), is_a("leaky_relu", DEAD_ZONE)
    (True, False)
    """
    return activation.lower().strip("_").replace("relu6", "relu") in family
