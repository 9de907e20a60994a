"""Small networks with topologies written by hand, so that these tests do not lean on the tracer."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor, nn

from supple.topology.graph import Coverage, Edge, Layer, Norm, Topology


class MLP(nn.Module):
    """fc1 .. fcn with an activation between them; optionally a norm before each activation."""

    def __init__(self, *sizes: int, norm: str | None = None, act: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.depth = len(sizes) - 1
        for i, (a, b) in enumerate(itertools.pairwise(sizes), 1):
            self.add_module(f"fc{i}", nn.Linear(a, b))
            if norm and i < self.depth:
                self.add_module(f"norm{i}", nn.LayerNorm(b) if norm == "layer" else nn.BatchNorm1d(b))
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        for i in range(1, self.depth):
            x = self.get_submodule(f"fc{i}")(x)
            if hasattr(self, f"norm{i}"):
                x = self.get_submodule(f"norm{i}")(x)
            x = self.act(x)
        return self.get_submodule(f"fc{self.depth}")(x)


class ConvNet(nn.Module):
    """conv 3-4, pool, conv 4-6, pool, flatten (6 x 2 x 2), fc 24-8, fc 8-3; images of 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(24, 8), nn.Linear(8, 3)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.conv1(x)))
        x = self.pool(torch.relu(self.conv2(x)))
        x = torch.relu(self.fc1(x.flatten(1)))
        return self.fc2(x)


class GLU(nn.Module):
    """down(relu(gate(x)) * up(x)): two layers whose units are pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.gate(x)) * self.up(x))


def layer(model: nn.Module, name: str, **extra: object) -> Layer:
    module = model.get_submodule(name)
    units = module.weight.shape[0]
    kind = "linear" if isinstance(module, nn.Linear) else "conv"
    bias = f"{name}.bias" if module.bias is not None else None
    fields = {"activation": "relu", "fan_in": module.weight[0].numel(), **extra}
    return Layer(name, name, kind, f"{name}.weight", bias, units, np.arange(units), **fields)


def edge(model: nn.Module, producer: str, consumer: str, k: int = 1) -> Edge:
    units = model.get_submodule(producer).weight.shape[0]
    columns = np.arange(units * k).reshape(units, k)
    return Edge(producer, consumer, f"{consumer}.weight", np.arange(units), columns)


def topology(layers: list[Layer], edges: list[Edge]) -> Topology:
    return Topology({x.name: x for x in layers}, tuple(edges), (), Coverage(()))


def mlp(*sizes: int, norm: str | None = None, act: type[nn.Module] = nn.ReLU) -> tuple[MLP, Topology]:
    model = MLP(*sizes, norm=norm, act=act)
    names = [f"fc{i}" for i in range(1, model.depth + 1)]
    layers = []
    for i, name in enumerate(names, 1):
        norms = ()
        if hasattr(model, f"norm{i}"):
            running = (f"norm{i}.running_mean", f"norm{i}.running_var") if norm == "batch" else ()
            norms = (Norm(f"norm{i}", f"norm{i}.weight", f"norm{i}.bias", np.arange(sizes[i]), running),)
        layers.append(layer(model, name, norms=norms, output=i == model.depth))
    edges = [edge(model, a, b) for a, b in itertools.pairwise(names)]
    return model, topology(layers, edges)


def convnet() -> tuple[ConvNet, Topology]:
    model = ConvNet()
    layers = [layer(model, n, output=n == "fc2") for n in ("conv1", "conv2", "fc1", "fc2")]
    edges = [edge(model, "conv1", "conv2"), edge(model, "conv2", "fc1", 4), edge(model, "fc1", "fc2")]
    return model, topology(layers, edges)


def glu() -> tuple[GLU, Topology]:
    model = GLU()
    layers = [
        layer(model, "gate", gate_partner="up"),
        layer(model, "up", gate_partner="gate"),
        layer(model, "down", output=True),
    ]
    return model, topology(layers, [edge(model, "gate", "down"), edge(model, "up", "down")])
