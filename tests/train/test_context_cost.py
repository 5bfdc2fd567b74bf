"""The cost model of context parallelism: volumes, limits in which its time is known, and the page it prints."""

import dataclasses
import itertools
import math
import runpy
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from train.context_parallel.cost import Machine, cost, describe, layouts, paths, ranked, sent
from train.context_parallel.placement import Context, Place, neighbours
from train.shape import Shape

ROOT = Path(__file__).resolve().parents[2]
MHA = Shape(d_model=4096, n_layers=32, n_heads=32, d_ff=11008)
GQA = dataclasses.replace(MHA, n_kv_heads=8)
SMALL = Shape(d_model=256, n_layers=2, n_heads=8, n_kv_heads=2, d_ff=512)
MACHINE = Machine(ranks_per_node=8, node_bandwidth=200e9, network_bandwidth=25e9, latency=10e-6, flops=400e12)
S = 2**15

shapes = st.sampled_from([MHA, GQA, SMALL])
sizes = st.sampled_from([1, 2, 4, 6, 8, 12, 16, 32])
speeds = st.floats(1e8, 1e12)
nodes = st.sampled_from([1, 2, 4, 6, 8, 16])
machines = st.builds(Machine, nodes, speeds, speeds, st.floats(0, 1e-4), st.floats(1e12, 1e15))


@st.composite
def contexts(draw):
    shape = draw(shapes)
    return shape, draw(st.sampled_from(layouts(shape, draw(sizes))))


def machine(**changed):
    return dataclasses.replace(MACHINE, **changed)


def forward_numbers(shape, context, length):
    one = sent(shape, context, length)
    return (context.head_parallel - 1) * one.peer + (context.ring - 1) * one.hop


# ---------------------------------------------------------------------------------------------------- what is sent


@given(contexts())
def test_a_rank_sends_what_the_formulas_say(both):
    shape, context = both
    hp, cp, P = context.head_parallel, context.ring, context.size
    H, Hkv = shape.n_heads * shape.d_head, max(shape.kv_heads, hp) * shape.d_head
    expected = S / P * (2 * H + 2 * Hkv) * (hp - 1) / hp + 2 * S * Hkv * (cp - 1) / P
    assert forward_numbers(shape, context, S) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("shape", "millions"), [(MHA, (1040, 537, 285, 159, 96, 65)), (GQA, (260, 147, 90, 62, 64, 65))]
)
def test_a_known_example_of_volumes(shape, millions):
    """S = 131072 and 32 ranks that share 1, 2, 4, ... 32 heads: computed by hand from LoongTrain's formulas."""
    found = [forward_numbers(shape, Context(hp, 32 // hp), 131072) / 1e6 for hp in (1, 2, 4, 8, 16, 32)]
    assert tuple(round(number) for number in found) == millions


# ---------------------------------------------------------------------------------------------------- over which links


@given(contexts(), st.sampled_from([1, 2, 3, 4, 8, 16]))
def test_links_are_those_of_the_ranks_of_a_world(both, ranks_per_node):
    """Every message of every rank, in a world where each way for a group to lie over nodes comes twice."""
    _, context = both
    world, found = 2 * math.lcm(context.size, ranks_per_node), [False] * 3
    inside = outside = 0
    for own in range(world):
        first, place = own // context.size * context.size, context.place(own % context.size)

        def leaves(ring, head, own=own, first=first):
            return (first + context.rank(Place(ring, head))) // ranks_per_node != own // ranks_per_node

        near = neighbours(context.ring, context.inner, place.ring)
        found = [was or leaves(to, place.head) for was, (to, _) in zip(found, near, strict=True)]
        away = [leaves(place.ring, head) for head in range(context.head_parallel) if head != place.head]
        inside, outside = max(inside, len(away) - sum(away)), max(outside, sum(away))
    assert paths(context, ranks_per_node) == (*found, inside, outside)


@given(contexts(), st.sampled_from([1, 2, 3]))
def test_within_one_node_the_network_does_not_matter(both, groups):
    shape, context = both
    node = machine(ranks_per_node=groups * context.size)
    slow = dataclasses.replace(node, network_bandwidth=1.0)
    assert cost(shape, context, node, S) == cost(shape, context, slow, S)


@pytest.mark.parametrize(("cp", "w"), [(16, 8), (32, 8), (64, 4), (24, 8), (64, 2)])
def test_windows_within_a_node_use_the_network_once_per_window_but_one(cp, w):
    """All else takes no time, so a ring's forward pass is what it waits for the network."""
    one = machine(ranks_per_node=w, node_bandwidth=math.inf, latency=0.0, flops=math.inf)
    context = Context(ring=cp, window=w)
    hop = 2 * sent(MHA, context, S).hop / one.network_bandwidth
    assert cost(MHA, context, one, S).forward.total == pytest.approx((cp / w - 1) * hop)
    assert cost(MHA, Context(ring=cp), one, S).forward.total == pytest.approx((cp - 1) * hop)


# ---------------------------------------------------------------------------------------------------- time


@given(shapes, sizes)
def test_where_sending_takes_no_time_all_layouts_cost_their_products(shape, size):
    free = machine(node_bandwidth=math.inf, network_bandwidth=math.inf, latency=0.0)
    forward = 4 * S * (S + 1) / 2 * shape.n_heads * shape.d_head / size / free.flops
    for one in ranked(shape, size, free, 3 * S):
        assert one.forward.ring == one.forward.all_to_all == one.backward.ring == one.backward.all_to_all == 0
    for context in layouts(shape, size):
        one = cost(shape, context, free, S)
        assert one.forward.total == pytest.approx(forward) and one.backward.total == pytest.approx(2.5 * forward)


@given(contexts(), st.sampled_from([2, 4]))
def test_where_products_take_no_time_a_layout_costs_its_bytes(both, number):
    """On one kind of link nothing overlaps; backward keys and values travel again, and their gradients in float32."""
    shape, context = both
    one = machine(ranks_per_node=context.size, latency=0.0, flops=math.inf)
    bytes_forward = number * forward_numbers(shape, context, S)
    gradients = 4 * context.ring * sent(shape, context, S).hop if context.ring > 1 else 0
    found = cost(shape, context, one, S, 3, number)
    assert found.forward.total == pytest.approx(3 * bytes_forward / one.node_bandwidth)
    assert found.backward.total == pytest.approx(3 * (bytes_forward + gradients) / one.node_bandwidth)


@given(contexts())
def test_long_products_hide_the_ring_but_for_the_last_hop_of_the_gradients(both):
    shape, context = both
    slow = machine(flops=1e3, latency=0.0)
    found, hop = cost(shape, context, slow, S), 4 * sent(shape, context, S).hop * (context.ring > 1)
    assert found.forward.ring == 0
    assert any(
        found.backward.ring == pytest.approx(hop / speed) for speed in (slow.node_bandwidth, slow.network_bandwidth)
    )


@given(st.floats(1e12, 1e17))
def test_a_window_takes_the_longer_of_its_hops_and_of_the_way_to_the_next(flops):
    """LoongTrain's formula for the forward pass of a Double-Ring whose windows are nodes."""
    one, context, windows, w = machine(flops=flops, latency=0.0), Context(ring=32, window=8), 4, 8
    numbers = 2 * sent(MHA, context, S).hop
    compute = cost(MHA, context, one, S).forward.compute / 32
    inner = (w - 1) * max(compute, numbers / one.node_bandwidth) + compute
    expected = (windows - 1) * max(inner, numbers / one.network_bandwidth) + inner
    assert cost(MHA, context, one, S).forward.total == pytest.approx(expected)


@pytest.mark.parametrize("context", [Context(ring=32, window=8), Context(2, 16, 4)])
def test_links_inside_and_between_nodes_work_side_by_side(context):
    """A network twice as fast as a node hides float32 gradients behind bfloat16 keys: all but the last hop's."""
    one = machine(network_bandwidth=2 * MACHINE.node_bandwidth, latency=0.0, flops=math.inf)
    free = dataclasses.replace(one, network_bandwidth=math.inf)
    last = 4 * sent(MHA, context, S).hop / one.network_bandwidth
    waits, waits_free = (cost(MHA, context, each, S).backward.ring for each in (one, free))
    assert waits - waits_free == pytest.approx(last)


@pytest.mark.parametrize("network", [1e9, 1e12])
def test_an_all_to_all_takes_as_long_as_its_slower_share(network):
    """16 ranks on two nodes of 8: 7 peers on one's own, 8 on the other."""
    one, numbers = machine(network_bandwidth=network, latency=1e-3), sent(MHA, Context(16), S).peer
    shares = (peers * (4e-3 + 2 * numbers / speed) for peers, speed in ((7, one.node_bandwidth), (8, network)))
    assert cost(MHA, Context(16), one, S).forward.all_to_all == pytest.approx(max(shares))


@given(contexts(), machines, st.sampled_from(["node_bandwidth", "network_bandwidth", "flops", "latency"]))
def test_a_better_machine_is_never_slower(both, given_machine, what):
    shape, context = both
    better = {what: getattr(given_machine, what) * (0.5 if what == "latency" else 2)}
    before = cost(shape, context, given_machine, S)
    after = cost(shape, context, dataclasses.replace(given_machine, **better), S)
    assert after.forward.total <= before.forward.total * (1 + 1e-12)
    assert after.backward.total <= before.backward.total * (1 + 1e-12)


@given(shapes, st.integers(2, 32), machines)
def test_windows_of_one_and_of_all_are_the_plain_ring(shape, cp, one):
    plain, single, whole = (cost(shape, Context(ring=cp, window=w), one, 64 * cp) for w in (None, 1, cp))
    for way in ("forward", "backward"):
        assert getattr(single, way).total == pytest.approx(getattr(plain, way).total)
        assert getattr(whole, way) == getattr(plain, way)


# ---------------------------------------------------------------------------------------------------- the choice


@given(shapes, sizes)
def test_layouts_are_valid_and_all_different(shape, size):
    found = layouts(shape, size)
    for context in found:
        context.check_model(2 * size * 7, shape.n_heads, shape.kv_heads)
        assert context.size == size
    assert len({context.name for context in found}) == len(found)
    where = {(context.inner, *(context.place(rank) for rank in range(size))) for context in found}
    assert len(where) == len(found)


def test_the_layouts_of_four_ranks_are_these():
    assert {context.name for context in layouts(MHA, 4)} == {
        "1 x 4", "1 x 4, windows of 2", "2 x 2, head_first", "2 x 2, context_first", "4 x 1"
    }  # fmt: skip


@given(shapes, sizes, machines)
def test_the_fastest_layout_comes_first(shape, size, one):
    found = ranked(shape, size, one, 2 * size * 1024)
    seconds = [each.both.total for each in found]
    assert len(found) == len(layouts(shape, size))
    assert all(before <= after * (1 + 1e-8) for before, after in itertools.pairwise(seconds))


@pytest.mark.parametrize("shape", [MHA, GQA])
def test_on_a_slow_network_hops_stay_within_nodes(shape):
    best = ranked(shape, 32, machine(network_bandwidth=1e9), S)[0].context
    assert not paths(best, 8).inner


def test_long_sequences_take_a_ring_and_short_ones_heads():
    """A ring hides behind products, which grow with the square of the sequence; heads send less, but hide nothing."""
    flat = machine(ranks_per_node=32, latency=0.0)
    assert ranked(MHA, 32, flat, 2**22)[0].context.head_parallel == 1
    assert ranked(MHA, 32, flat, 2**12)[0].context.head_parallel == 32


def test_a_sequence_that_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match="sequence_length=100 cannot be cut"):
        ranked(MHA, 8, MACHINE, 100)


@pytest.mark.parametrize("field", ["ranks_per_node", "node_bandwidth", "network_bandwidth", "flops"])
def test_a_machine_that_does_nothing_is_refused(field):
    with pytest.raises(ValueError, match=f"context.machine.{field}=0 must be positive"):
        machine(**{field: 0})


# ---------------------------------------------------------------------------------------------------- what is shown


@given(contexts())
def test_a_description_starts_with_the_fastest_and_marks_the_chosen(both):
    shape, chosen = both
    assume(chosen.size > 1)
    costs = ranked(shape, chosen.size, MACHINE, S * 3)
    header, *lines = describe(costs, chosen)
    assert lines[0][2:].startswith(f"{costs[0].context.name} ")
    (marked,) = [line for line in lines if line.startswith("*")]
    own = next(one for one in costs if one.context == chosen)
    assert marked[2:42].strip() == chosen.name
    assert [float(cell) for cell in marked[42:].split()] == pytest.approx(
        [1e3 * own.both.total, *(1e3 * seconds for seconds in own.both)], rel=1e-3
    )
    assert header.split()[-3:] == ["compute", "ring", "all-to-all"] and len(lines) <= 6


def test_the_table_of_the_page_is_what_the_benchmark_prints():
    page = (ROOT / "docs" / "context_parallel.md").read_text()
    printed = runpy.run_path(str(ROOT / "benchmarks" / "context_layouts.py"))
    assert printed["table"]() in page
    assert printed["sensitivity"]() in page.replace("\n", " ")
