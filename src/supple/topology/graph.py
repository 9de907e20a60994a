"""The answer of a trace: layers, edges with index maps, streams, refusals, coverage.

Shape letters: U units of a layer, n units on an edge, k columns per unit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Norm:
    """A normalisation whose affine entry ``index[i]`` belongs to unit i of the layer, one to one."""

    module: str  # qualified module path
    scale: str | None  # qualified parameter names, None where the norm has none
    shift: str | None
    index: IntArray  # (U,) position of each unit in the affine vectors
    running: tuple[str, ...] = ()  # qualified buffer names indexed the same way (BatchNorm statistics)
    before_activation: bool = True
    shared: bool = False  # the entry normalises a sum of several layers' units (a residual stream)
    neutral: float = 1.0  # the entry of ``scale`` that leaves a unit as it is: 0 where the model adds 1 to it


@dataclass(frozen=True)
class Edge:
    """Where units of ``producer`` are read: ``columns[i]`` of the consumer's weight read unit ``units[i]``.

    ``dim`` is the weight dimension that ``columns`` index (1 for Linear and Conv, 0 for a transposed
    convolution). ``rows`` restricts the sub-block per unit (grouped convolutions); None means all.
    ``via`` lists the operations in between, in order.
    """

    producer: str
    consumer: str  # layer name
    weight: str  # qualified name of the consumer's weight parameter
    units: IntArray  # (n,)
    columns: IntArray  # (n, k); -1 pads where units have different numbers of columns
    dim: int = 1
    rows: IntArray | None = None  # (n, r)
    via: tuple[str, ...] = ()
    exclusive: bool = True  # False where a column reads a sum of several producers (a residual stream)


@dataclass(frozen=True)
class Layer:
    """A weight matrix and its units, or one block of a packed one (``part``: "q", "k", "v").

    ``name`` is the qualified module path, with ``#part`` appended for a block of a packed weight, or the
    qualified parameter name for a bare parameter.
    """

    name: str
    module: str  # qualified path of the owning module
    kind: str  # "linear" | "conv" | "conv_transpose" | "embedding" | "parameter"
    weight: str  # qualified parameter name
    bias: str | None
    units: int
    rows: IntArray  # (U,) index of each unit along ``unit_dim`` of the weight
    unit_dim: int = 0
    fan_in: int = 0
    part: str = ""
    activation: str | None = None  # name of the first nonlinearity after the layer, e.g. "relu"
    norms: tuple[Norm, ...] = ()
    output: bool = False  # its units leave the network
    stream: int | None = None  # id of the residual stream its units live on
    gate_partner: str | None = None  # the other half of a gated unit pair, unit by unit
    qk_partner: str | None = None  # q for k and k for q
    aliases: tuple[str, ...] = ()  # other names of a tied weight
    trainable: bool = True
    calls: int = 1  # times used in one forward pass
    lock: str | None = None  # why its weight may not be written: recomputed, or in a second role elsewhere
    #: of a layer whose units are attention heads: the layers of queries, keys and values, (H, m) units of each
    members: tuple[tuple[str, IntArray], ...] = ()

    @property
    def transposed(self) -> bool:
        """True where the weight is stored as (inputs, outputs): transposed convolutions, GPT-2's Conv1D, x @ W."""
        return self.kind == "conv_transpose" or (self.kind == "linear" and self.unit_dim == 1)

    @property
    def resettable(self) -> bool:
        """True where a unit can be re-born alone: consumed elsewhere, on no stream, no q/k, no output."""
        return self.refusal_reason is None

    @property
    def refusal_reason(self) -> str | None:
        """Why the units of this layer cannot be reset one by one, or None."""
        return self.reset_refusal()

    def reset_refusal(self, streams: bool = False) -> str | None:
        """The same; with ``streams``, units of a residual stream count as resettable."""
        if self.output:
            return "its units are outputs of the network"
        if self.stream is not None and not streams:
            return "its units live on a residual stream shared with other layers"
        if self.qk_partner is not None and not self.members:
            return "a query or key unit acts only through its partner"
        if self.kind == "embedding":
            return "an embedding has one row per token, not per unit"
        if self.kind == "parameter" and not self.fan_in:
            return "a bare parameter has no incoming weights"
        if not self.trainable:
            return "its weight is frozen"
        return self.lock


@dataclass(frozen=True)
class Heads:
    """The H heads of one attention, each a unit: row h of ``units[i]`` are its units in layer ``members[i]``.

    ``members`` are the layers of queries, keys and values, in this order. ``reason`` says why the heads cannot
    be told apart; then ``units`` is empty.
    """

    name: str
    members: tuple[str, ...]
    units: tuple[IntArray, ...] = ()
    reason: str = ""

    def __len__(self) -> int:
        return len(self.units[0]) if self.units else 0


@dataclass(frozen=True)
class Refusal:
    """A place that could not be resolved, and why."""

    path: str  # qualified module path
    reason: str  # "opaque operation" | "mixed channels" | "origin lost" | "data-dependent control flow" | …
    op: str = ""
    layer: str = ""  # the layer whose units are affected; empty where it may be any


@dataclass(frozen=True)
class LayerCoverage:
    """One parameterised layer: seen by the trace, or not, and why."""

    name: str
    type: str
    parameters: int
    seen: bool
    reason: str = ""


@dataclass(frozen=True)
class Coverage:
    """Every parameterised layer of the model, none left out."""

    layers: tuple[LayerCoverage, ...]

    @property
    def seen(self) -> tuple[LayerCoverage, ...]:
        return tuple(c for c in self.layers if c.seen)

    @property
    def missed(self) -> tuple[LayerCoverage, ...]:
        return tuple(c for c in self.layers if not c.seen)

    @property
    def ratio(self) -> float:
        """Share of parameters in layers that were seen; 0 for a model without parameters."""
        total = sum(c.parameters for c in self.layers)
        return sum(c.parameters for c in self.seen) / total if total else 0.0

    def __str__(self) -> str:
        head = f"coverage: {len(self.seen)} of {len(self.layers)} layers, {self.ratio:.0%} of parameters"
        lines = [f"  not seen: {c.name} ({c.type}): {c.reason}" for c in self.missed]
        return "\n".join([head, *lines])


@dataclass(frozen=True)
class Topology:
    """What the network is made of. Built by `supple.topology.trace`."""

    layers: dict[str, Layer]
    edges: tuple[Edge, ...]
    refusals: tuple[Refusal, ...]
    coverage: Coverage
    streams: dict[int, tuple[str, ...]] = field(default_factory=dict)  # id -> layers that write it
    heads: tuple[Heads, ...] = ()  # of every attention that was seen

    def consumers(self, layer: str) -> tuple[Edge, ...]:
        """Edges that read the units of ``layer``."""
        return tuple(e for e in self.edges if e.producer == layer)

    def producers(self, layer: str) -> tuple[Edge, ...]:
        """Edges whose columns belong to ``layer``."""
        return tuple(e for e in self.edges if e.consumer == layer)

    def reset_refusal(self, layer: str, streams: bool = False) -> str | None:
        """Why units of ``layer`` may not be reset, or None: structure first, then unresolved places.

        With ``streams``, units on a residual stream may be: with all that reads the stream as consumers.
        """
        found = self.layers[layer]
        if reason := found.reset_refusal(streams):
            return reason
        for refusal in self.refusals:
            if refusal.layer in ("", layer):  # without a layer: it concerns all of them
                return f"{refusal.reason} at {refusal.path or 'the model'} ({refusal.op})"
        covered = {int(u) for e in self.consumers(layer) for u in e.units}
        if len(covered) < found.units:
            return f"{found.units - len(covered)} of {found.units} units have no resolved consumer"
        for edge in self.consumers(layer):
            lock = self.layers[edge.consumer].lock
            if not edge.exclusive and found.stream is None:
                return f"a column of {edge.consumer} reads these units together with others"
            if lock:
                return f"its consumer {edge.consumer} cannot be written: {lock}"
        return None

    @property
    def hidden(self) -> tuple[Layer, ...]:
        """Layers with units inside the network (everything but outputs and embeddings)."""
        return tuple(x for x in self.layers.values() if not x.output and x.kind != "embedding")
