"""What the trace writes down while it runs: sites, consumptions, norms, roles, refusals."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from supple.topology.graph import IntArray, Refusal
from supple.topology.ids import Sources, Table
from supple.topology.parameters import Parameter
from supple.topology.shadow import Path, Paths


@dataclass
class Site:
    """A weight in one role, and the units it emits along one of its dimensions."""

    index: int
    name: str
    module: str
    kind: str
    parameter: int
    unit_dim: int
    units: int
    start: int  # id of unit 0
    in_dim: int = 1
    fan_in: int = 0
    bias: str | None = None
    calls: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    lock: str | None = None  # why its weight may not be written
    #: in order: name, mask of units, whether the units were also reached before without one
    acts: list[tuple[str, np.ndarray, bool]] = field(default_factory=list)
    carried: set[str] = field(default_factory=set)  # names that arrive at a weight, a norm or the output
    output: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))

    def activations(self) -> dict[str, np.ndarray]:
        """Name -> mask of the units whose first nonlinearity it is."""
        out: dict[str, np.ndarray] = {}
        busy = np.zeros(self.units, bool)
        for name, mask, late in self.acts:
            if name not in self.carried:
                continue
            mask = mask & ~busy if late else mask
            busy |= mask
            out[name] = out.get(name, np.zeros(self.units, bool)) | mask
        return out

    def __post_init__(self) -> None:
        self.calls = np.zeros(self.units, np.int64)
        self.output = np.zeros(self.units, bool)


@dataclass(frozen=True)
class Consumption:
    """A weight read these ids: column ``columns[i]`` met ``ids[i]``, in rows ``rows``.

    In a grouped convolution ``blocks[i]`` is the block of ``block_size`` rows that holds the column.
    """

    site: int
    columns: IntArray
    ids: IntArray
    rows: IntArray
    blocks: IntArray
    block_size: int
    paths: Paths
    place: str  # module path


@dataclass(frozen=True)
class Affine:
    """Affine entry ``places[i]`` of a norm (or of a bare scale, shift) met ``ids[i]``."""

    module: str
    scale: str | None
    shift: str | None
    running: tuple[str, ...]
    places: IntArray
    ids: IntArray
    paths: Paths
    neutral: float = 1.0  # see `Parameters.neutral`


@dataclass
class Attention:
    """Scores of L heads: the ids of the channels that met, (L, K) each; and the ids (L, D) that they weighed."""

    query: IntArray
    key: IntArray
    score: int  # the id that all of these scores carry
    value: IntArray | None = None


class Recorder:
    """All events of one trace."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.sites: list[Site] = []
        self._by_role: dict[tuple[int, int, str], int] = {}
        self.consumed: list[Consumption] = []
        self.affine: list[Affine] = []
        self.pairs: list[tuple[IntArray, IntArray]] = []  # (query ids, key ids)
        self.values: list[IntArray] = []  # ids that attention weighed
        self.attentions: list[Attention] = []
        self.refusals: dict[tuple[str, str, str, str], None] = {}
        self.suspects: list[tuple[str, str, str, Sources]] = []  # refusals whose layers are sites

    # -- sites ----------------------------------------------------------------------------------
    def site(
        self, parameter: Parameter, index: int, unit_dim: int, role: str, stack: tuple[str, ...]
    ) -> Site:
        """The site of a parameter in a role, made at its first use."""
        key = (index, unit_dim, role)
        if key not in self._by_role:
            module, attribute = parameter.owner(stack)
            whole = attribute in ("weight", "in_proj_weight") and role != "parameter"
            name = module if whole and module else parameter.name
            if any(s.name == name for s in self.sites):
                name = f"{parameter.name}#{role}-dim{unit_dim}"
            count = parameter.tensor.shape[unit_dim]
            start = self.table.units(len(self.sites), count)
            kind = role if whole else "parameter"
            self._by_role[key] = len(self.sites)
            self.sites.append(Site(len(self.sites), name, module, kind, index, unit_dim, count, start))
        return self.sites[self._by_role[key]]

    # -- events ---------------------------------------------------------------------------------
    def refuse(self, path: str, reason: str, op: str, layer: str = "") -> None:
        self.refusals[(path, reason, op, layer)] = None

    def suspect(self, path: str, reason: str, op: str, sources: Sources) -> None:
        """Refuse every layer that these ids depend on (named when all names are known)."""
        if sources:
            self.suspects.append((path, reason, op, sources))

    def all_refusals(self) -> tuple[Refusal, ...]:
        for path, reason, op, sources in self.suspects:
            for index in sorted(sources):
                self.refuse(path, reason, op, self.sites[index].name)
        return tuple(Refusal(*key) for key in self.refusals)

    def activate(self, ids: IntArray, paths: Paths, name: str) -> None:
        """Units that reach a nonlinearity for the first time get its name."""
        found = self.table.expand(np.zeros_like(ids), ids)
        for index in np.unique(found.site).tolist():
            path = paths.get(index, Path())
            if None not in path.acts:
                continue
            site = self.sites[index]
            mask = np.zeros(site.units, bool)
            mask[found.unit[found.site == index]] = True
            site.acts.append((name, mask, len(path.acts) > 1))

    def rename_activation(self, ids: IntArray, old: set[str], new: str) -> None:
        """A nonlinearity turned out to be a part of another one (x * sigmoid(x) is SiLU)."""
        found = self.table.expand(np.zeros_like(ids), ids)
        for index in np.unique(found.site).tolist():
            site, units = self.sites[index], found.unit[found.site == index]
            for name, mask, _ in site.acts:
                if name in old:
                    mask[units] = False
            renamed = np.zeros(site.units, bool)
            renamed[units] = True
            site.acts.append((new, renamed, False))

    def carry(self, paths: Paths) -> None:
        """Note the nonlinearities that arrive where they count (not only in a statistic)."""
        for index, path in paths.items():
            self.sites[index].carried |= {name for name in path.acts if name}


def flat_unique(ids: Tensor) -> IntArray:
    """The different ids, sorted."""
    return np.unique(ids.numpy())
