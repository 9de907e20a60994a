"""Edges: which column of which weight reads which unit, and whether it reads that unit alone."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from supple.topology.graph import Edge, IntArray
from supple.topology.record import Consumption, Site
from supple.topology.shadow import Path
from supple.topology.tracer import Tracer

if TYPE_CHECKING:
    from supple.topology.assemble import Parts


@dataclass(frozen=True)
class Reading:
    """One consumption with every id expanded to units."""

    event: Consumption
    site: IntArray  # producing site, unit, column, block (-1: all rows), read alone?
    unit: IntArray
    column: IntArray
    block: IntArray
    alone: np.ndarray


def readings(tracer: Tracer) -> list[Reading]:
    """Expand all consumptions; a weight that reads a mixture of channels refuses their layers."""
    record, table = tracer.record, tracer.table
    shared = _shared_columns(record.consumed, record.sites)
    out = []
    for event in record.consumed:
        block = event.blocks if event.block_size else np.full(len(event.ids), -1, np.int64)
        place = _place(event.columns, block)
        found = table.expand(place, event.ids)
        if found.weak:
            record.suspect(event.place, "mixed channels", "statistic read by a weight", found.weak)
        alone = found.alone & ~np.isin(found.place, shared[event.site])
        column, which = found.place >> 32, (found.place & 0xFFFFFFFF) - 1
        out.append(Reading(event, found.site, found.unit, column, which, alone))
    return out


def _place(columns: IntArray, blocks: IntArray) -> IntArray:
    return (columns << 32) | (blocks + 1)


def _shared_columns(events: list[Consumption], sites: list[Site]) -> dict[int, IntArray]:
    """Places (column, block) of each site where more than one id was read, over all calls."""
    grouped: dict[int, list[Consumption]] = defaultdict(list)
    for event in events:
        grouped[event.site].append(event)
    out: dict[int, IntArray] = {}
    for index, group in grouped.items():
        counted: dict[bytes, list[IntArray]] = defaultdict(list)
        for event in group:
            block = event.blocks if event.block_size else np.full(len(event.ids), -1, np.int64)
            counted[event.rows.tobytes()].append(np.stack([_place(event.columns, block), event.ids]))
        found = [np.unique(np.concatenate(c, axis=1), axis=1)[0] for c in counted.values()]
        if len(found) > 1 and _overlap([e.rows for e in group]):
            out[index] = np.unique(np.concatenate(found))
            continue
        repeated = [np.unique(f, return_counts=True) for f in found]
        out[index] = np.unique(np.concatenate([places[counts > 1] for places, counts in repeated]))
    return out


def _overlap(rows: list[IntArray]) -> bool:
    """Whether two different row sets of one weight share rows."""
    sets = {r.tobytes(): set(r.tolist()) for r in rows}
    total = sum(len(s) for s in sets.values())
    return len(set().union(*sets.values())) < total


def build_edges(tracer: Tracer, parts: Parts, read: list[Reading]) -> tuple[Edge, ...]:
    """Group unit-column pairs by producing and consuming layer; exclusive columns in edges of their own."""
    grouped: dict[tuple[str, str, bool], list[tuple[Reading, np.ndarray, int, str, int, str]]] = defaultdict(
        list
    )
    for reading in read:
        consumer = reading.event.site
        for producer in np.unique(reading.site).tolist():
            mine = reading.site == producer
            labels = np.full(len(reading.unit), "", dtype="<U8")
            labels[mine] = parts.labels[producer][reading.unit[mine]]
            for part in sorted(set(labels[mine].tolist())):
                for into in parts.of(consumer):
                    if not np.isin(parts.units(consumer, into), reading.event.rows).any():
                        continue
                    for alone in (True, False):
                        chosen = mine & (labels == part) & (reading.alone == alone)
                        if chosen.any():
                            key = (parts.name(producer, part), parts.name(consumer, into), alone)
                            grouped[key].append((reading, chosen, producer, part, consumer, into))
    return tuple(_edge(tracer, parts, key, items) for key, items in grouped.items())


def _edge(
    tracer: Tracer,
    parts: Parts,
    key: tuple[str, str, bool],
    items: list[tuple[Reading, np.ndarray, int, str, int, str]],
) -> Edge:
    _, _, producer, part, consumer, into = items[0]
    site = tracer.record.sites[consumer]
    rank = np.zeros(parts.sites[producer].units, np.int64)
    units = parts.units(producer, part)
    rank[units] = np.arange(len(units))
    triples = np.concatenate(
        [np.stack([rank[r.unit[c]], r.column[c], r.block[c]]) for r, c, *_ in items], axis=1
    )
    triples = np.unique(triples, axis=1)
    unit_list, columns = _by_unit(triples[0], triples[1])
    rows = _rows(parts, items[0][0].event, triples, site, into, len(unit_list))
    paths = [r.event.paths.get(producer, Path()) for r, *_ in items]
    via = max((p.ops for p in paths), key=len)
    return Edge(
        producer=key[0],
        consumer=key[1],
        weight=tracer.parameters.items[site.parameter].name,
        units=unit_list,
        columns=columns,
        dim=site.in_dim,
        rows=rows,
        via=via,
        exclusive=key[2],
    )


def _by_unit(units: IntArray, columns: IntArray) -> tuple[IntArray, IntArray]:
    """(n,) units and (n, k) columns, padded with -1."""
    pairs = np.unique(np.stack([units, columns]), axis=1)
    first, counts = np.unique(pairs[0], return_counts=True)
    starts = np.r_[0, np.cumsum(counts)[:-1]]
    table = np.full((len(first), int(counts.max())), -1, np.int64)
    row = np.repeat(np.arange(len(first)), counts)
    table[row, np.arange(pairs.shape[1]) - np.repeat(starts, counts)] = pairs[1]
    return first, table


def _rows(
    parts: Parts, event: Consumption, triples: IntArray, site: Site, into: str, count: int
) -> IntArray | None:
    """The rows that each unit's columns reach: a group's block, a packed part, or None for all."""
    if event.block_size:
        first = np.r_[True, np.diff(triples[0]) != 0]
        block = triples[2][first]
        return block[:, None] * event.block_size + np.arange(event.block_size)
    if len(parts.of(site.index)) == 1 and len(event.rows) == site.units:
        return None
    rows = np.intersect1d(parts.units(site.index, into), event.rows)
    return np.broadcast_to(rows, (count, len(rows)))
