"""What is this network made of? Layers (weight matrices), units, where each unit's output goes, which
norm parameters belong to it, and what could not be resolved and why. Everything is read off one
eager probe pass; nothing is guessed from the order in which modules were defined.
"""

from supple.topology.graph import Coverage, Edge, Heads, Layer, LayerCoverage, Norm, Refusal, Topology
from supple.topology.heads import with_heads
from supple.topology.inputs import batch_size, call, leaves, shrink
from supple.topology.probe import trace, undisturbed

__all__ = [
    "Coverage",
    "Edge",
    "Heads",
    "Layer",
    "LayerCoverage",
    "Norm",
    "Refusal",
    "Topology",
    "batch_size",
    "call",
    "leaves",
    "shrink",
    "trace",
    "undisturbed",
    "with_heads",
]
