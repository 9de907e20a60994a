"""Hand-listed layers, edges, norms, partners and refusals against the trace."""

from __future__ import annotations

import pytest
import torch
from tests.zoo import CASES, Case

from supple.topology import Topology, trace

labelled = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


def edges_of(topology: Topology) -> dict[tuple[str, str], set[tuple[int, int]]]:
    """(unit, column) pairs of each pair of layers."""
    out: dict[tuple[str, str], set[tuple[int, int]]] = {}
    for edge in topology.edges:
        pairs = out.setdefault((edge.producer, edge.consumer), set())
        for unit, columns in zip(edge.units.tolist(), edge.columns.tolist(), strict=True):
            pairs |= {(unit, c) for c in columns if c >= 0}
    return out


@labelled
def test_edges_are_the_listed_ones(case: Case) -> None:
    assert edges_of(trace(case.make(), case.batch())) == dict(case.edges)


@labelled
def test_the_listed_columns_are_shared_and_no_others(case: Case) -> None:
    found = trace(case.make(), case.batch())
    assert {(e.producer, e.consumer) for e in found.edges if not e.exclusive} == case.shared


@labelled
def test_layers_carry_the_listed_facts(case: Case) -> None:
    found = trace(case.make(), case.batch())
    assert {n for n, layer in found.layers.items() if layer.output} == case.outputs
    for name, activation in case.activation.items():
        assert found.layers[name].activation == activation, name
    for name, expected in case.norms.items():
        norms = found.layers[name].norms
        assert tuple((n.module, n.before_activation, int(n.index[0])) for n in norms) == expected, name
        for norm in norms:
            start = int(norm.index[0])
            assert norm.index.tolist() == list(range(start, start + found.layers[name].units)), name
    for name, partner in case.partners.items():
        layer = found.layers[name]
        assert partner in (layer.gate_partner, layer.qk_partner), name
    assert {frozenset(s) for s in found.streams.values()} == set(case.streams)


@labelled
def test_what_can_be_reset_and_what_is_refused(case: Case) -> None:
    found = trace(case.make(), case.batch())
    if case.resettable is not None:
        assert {n for n in found.layers if found.reset_refusal(n) is None} == case.resettable
    for words in case.refused:
        assert any(words in r.reason for r in found.refusals), (words, found.refusals)
    if not case.refused:
        assert found.refusals == ()


@labelled
def test_every_parameter_is_covered_or_named(case: Case) -> None:
    model = case.make()
    coverage = trace(model, case.batch()).coverage
    assert sum(c.parameters for c in coverage.layers) == sum(p.numel() for p in model.parameters())
    for missed in coverage.missed:
        assert missed.reason
    if not case.refused:
        assert coverage.ratio == 1.0


@labelled
def test_rows_of_parts_and_groups_tile_the_weight(case: Case) -> None:
    """Each edge stays inside its consumer's weight and inside the consumer's own rows."""
    model = case.make()
    found = trace(model, case.batch())
    shapes = {n: p.shape for n, p in model.named_parameters(remove_duplicate=False)}
    for edge in found.edges:
        shape = shapes[edge.weight]
        assert int(edge.columns.max()) < shape[edge.dim]
        if edge.rows is not None:
            assert set(edge.rows.reshape(-1).tolist()) <= set(found.layers[edge.consumer].rows.tolist())


def test_groups_are_told_by_rows() -> None:
    case = next(c for c in CASES if c.name == "grouped_depthwise_shuffle")
    found = trace(case.make(), case.batch())
    grouped = next(e for e in found.edges if e.consumer == "g")
    assert grouped.rows is not None
    assert grouped.rows.tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5], [3, 4, 5]]
    depthwise = next(e for e in found.edges if e.consumer == "d")
    assert depthwise.rows is not None
    # channel 2i + g of the depthwise layer is unit 3g + i of the grouped one
    assert depthwise.rows[:, 0].tolist() == [0, 2, 4, 1, 3, 5]


def test_transposed_convolutions_swap_the_dimensions() -> None:
    case = next(c for c in CASES if c.name == "unet")
    found = trace(case.make(), case.batch())
    assert (found.layers["up"].unit_dim, found.consumers("mid")[0].dim) == (1, 0)
    assert found.layers["up"].kind == "conv_transpose"


def test_a_tied_weight_is_one_parameter_in_two_roles() -> None:
    case = next(c for c in CASES if c.name == "gpt")
    found = trace(case.make(), case.batch())
    assert found.layers["head"].weight == found.layers["wte"].weight == "wte.weight"
    assert found.layers["wte"].aliases == ("head.weight",)
    assert "also serves as" in str(found.layers["head"].lock)


def test_calls_are_counted() -> None:
    case = next(c for c in CASES if c.name == "shared_layer")
    layers = trace(case.make(), case.batch()).layers
    assert {n: x.calls for n, x in layers.items()} == {"inp": 1, "mid": 2, "out": 1}


def test_biases_are_found_however_they_are_added() -> None:
    case = next(c for c in CASES if c.name == "transposed_gate")
    assert trace(case.make(), case.batch()).layers["weight#gate"].bias == "shift"
    case = next(c for c in CASES if c.name == "multihead_attention_unfused")
    torch.manual_seed(0)
    assert trace(case.make(), case.batch()).layers["mha#k"].bias == "mha.in_proj_bias"
