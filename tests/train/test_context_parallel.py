"""Attention over several ranks is that of one device: this file is also the program that four ranks run."""

import queue
import sys
import threading
import weakref
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from data.batches import Batch
from train.context_parallel.apply import held
from train.context_parallel.kernel import Seen, areas, block, block_backward, has_flash, merge
from train.context_parallel.placement import Context, Place, check_documents, neighbours, positions, source, zigzag
from train.context_parallel.ring import part

RANKS, S, B, K, LAYERS = 4, 96, 2, 32, 2
CASES = {  # hp, cp, window, placement, query heads, key/value heads, documents
    "ring": (1, 4, None, "head_first", 4, 4, False),
    "heads": (4, 1, None, "head_first", 4, 4, False),
    "both": (2, 2, None, "head_first", 4, 2, True),
    "both, context first": (2, 2, None, "context_first", 4, 4, True),
    "two windows": (1, 4, 2, "head_first", 4, 2, True),
    "windows of one": (1, 4, 1, "head_first", 2, 1, False),
    "more ranks than key heads": (4, 1, None, "head_first", 8, 2, True),
    "two groups": (2, 1, None, "head_first", 4, 1, True),
    "two groups of a ring": (1, 2, 1, "head_first", 4, 4, True),
}


def inputs(heads, kv_heads, documents, data=0):
    """q, k, v (B, S, heads, K), the gradient of the output, documents (B, S) or None: the same on every rank."""
    generator = torch.Generator().manual_seed(7 + data)
    q, k, v, grad = (torch.randn(B, S, n, K, generator=generator) for n in (heads, kv_heads, kv_heads, heads))
    starts = torch.rand(B, S, generator=generator) < 0.06  # boundaries in all places, also at chunks' edges
    starts[:, S // 8], starts[0, S // 2] = True, True
    return q, k, v, grad, starts.long().cumsum(1) if documents else None


def one_device(q, k, v, grad, documents, scale):
    q, k, v = (x.clone().requires_grad_() for x in (q, k, v))
    mask = torch.ones(S, S).tril().bool()[None]
    if documents is not None:
        mask = mask & (documents[:, :, None] == documents[:, None, :])
    out = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask[:, None], scale=scale, enable_gqa=True
    ).transpose(1, 2)
    out.backward(grad)
    return [x.detach() for x in (out, q.grad, k.grad, v.grad)]


def small_model(case, checkpointing="none"):
    from train.blocks import prepare_blocks
    from train.model import Transformer, initialize
    from train.shape import Shape

    *_, heads, kv_heads, documents = CASES[case]
    sizes = {"d_model": 32, "d_ff": 48, "head_dim": 32, "n_layers": LAYERS, "vocab_size": 99}
    scaled = {"parametrization": "mup", "base_width": 16, "base_head_dim": 16}  # scores too
    shape = Shape(n_heads=heads, n_kv_heads=kv_heads, document_mask=documents, **sizes, **scaled)
    model = Transformer(shape, 99)
    initialize(model, 0)
    prepare_blocks(model, checkpointing, compile=False)
    return model


def whole_batch(case, data):
    tokens = torch.randint(0, 99, (B, S + 1), generator=torch.Generator().manual_seed(data)).numpy()
    documents = inputs(1, 1, CASES[case][-1], data)[-1]
    return Batch(tokens[:, :-1], tokens[:, 1:], None if documents is None else documents.numpy())


def loss_and_gradients(model, batch):
    tokens, targets, documents, positions = (None if x is None else torch.from_numpy(x) for x in batch)
    documents = batch.documents if batch.positions is not None else documents  # shared: as they are
    loss = model(tokens, documents, targets, 0.0, positions)[0]
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


def of_a_model(case, group, data):
    """Loss and gradients of the whole model, added up over the group; and, by checkpointing, how often attention ran
    and what was kept between forward and backward, in bytes."""
    import torch.distributed as dist

    from train.context_parallel.apply import spread

    batch = held(whole_batch(case, data), group.context, group.place)
    costs = {}
    for mode in ("full", "selective", "none"):
        model = small_model(case, mode)
        spread(model, group)
        with Alive(model.parameters()) as alive:
            found = loss_and_gradients(model, batch)
        costs[mode] = alive.calls, alive.kept
    for x in found:
        dist.all_reduce(x, group=group.every)
    return found, costs


class Alive(TorchDispatchMode):
    """How often the ring ran, and the bytes of storages that are alive when backward begins."""

    def __init__(self, known):
        super().__init__()
        self.storages, self.calls, self.kept = {}, 0, 0
        self.known = {x.untyped_storage()._cdata for x in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.ones_like.default and not self.kept:  # the gradient of the loss itself
            self.kept = sum(self.storages.values())
        self.calls += func is torch.ops.fulcrum.ring_attention.default
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor) and x.untyped_storage()._cdata not in self.known | set(self.storages):
                storage = x.untyped_storage()
                self.storages[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.storages.pop, storage._cdata)
        return out


def rank_main(folder: Path) -> None:
    import torch.distributed as dist

    from train.context_parallel import ring
    from train.context_parallel.attention import attention
    from train.context_parallel.groups import build_groups

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    sent: list[tuple[int, int, int]] = []
    plain = ring.exchange

    def counted(tensors, to, from_, group):
        sent.append((to, sum(x.numel() for x in tensors), tensors[0].element_size()))
        return plain(tensors, to, from_, group)

    def counted_all_to_all(out, parts, group):
        exchanged.append(parts.numel() * (group.size() - 1) // group.size())  # the own part stays
        return plain_all_to_all(out, parts, group=group)

    ring.exchange = counted
    exchanged: list[int] = []
    plain_all_to_all, dist.all_to_all_single = dist.all_to_all_single, counted_all_to_all
    found = {}
    for name, (hp, cp, window, placement, heads, kv_heads, documents) in CASES.items():
        context = Context(hp, cp, window, placement)
        group = build_groups(context)
        data, own = divmod(dist.get_rank(), context.size)
        q, k, v, grad, docs = inputs(heads, kv_heads, documents, data)
        held = torch.from_numpy(positions(context, S, context.place(own)))
        q, k, v, grad = (x[:, held] for x in (q, k, v, grad))
        q, k, v = (x.clone().requires_grad_() for x in (q, k, v))
        of_ring = None if docs is None else docs[:, torch.from_numpy(zigzag(S, cp))].transpose(0, 1)
        sent.clear()
        exchanged.clear()
        out = attention(q, k, v, of_ring, group, K**-0.5)
        forward = list(sent)
        out.backward(grad)
        found[name] = (
            [x.detach() for x in (out, q.grad, k.grad, v.grad)], forward, sent[len(forward) :], list(exchanged),
            of_a_model(name, group, data),
        )  # fmt: skip
    torch.save(found, folder / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, run_ranks):
    """What each rank found, by case."""
    folder = tmp_path_factory.mktemp("context")
    run_ranks(__file__, folder, RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients_are_those_of_one_device(ranks, case):
    hp, cp, window, placement, heads, kv_heads, documents = CASES[case]
    context = Context(hp, cp, window, placement)
    for data in range(RANKS // context.size):
        expected = one_device(*inputs(heads, kv_heads, documents, data), K**-0.5)
        for name, whole, of_rank in zip(("out", "dq", "dk", "dv"), expected, range(4), strict=True):
            joined = torch.full_like(whole, torch.nan)
            for own in range(context.size):
                held = torch.from_numpy(positions(context, S, context.place(own)))
                joined[:, held] = ranks[data * context.size + own][case][0][of_rank]
            assert (joined - whole).norm() <= 1e-6 * whole.norm(), name


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_of_the_whole_model_are_those_of_one_device(ranks, case):
    hp, cp, *_ = CASES[case]
    for rank in range(RANKS):
        found, _ = ranks[rank][case][4]
        expected = loss_and_gradients(small_model(case), whole_batch(case, rank // (hp * cp)))
        for one, whole in zip(found, expected, strict=True):
            assert (one - whole).norm() <= 1e-5 * whole.norm()


@pytest.mark.parametrize("case", CASES)
def test_selective_checkpointing_runs_attention_once_and_keeps_its_output_and_log_sum_exp(ranks, case):
    hp, cp, _, _, heads, _, _ = CASES[case]
    for rank in range(RANKS):
        _, costs = ranks[rank][case][4]
        assert [costs[mode][0] for mode in ("none", "selective", "full")] == [LAYERS, LAYERS, 2 * LAYERS]
        kept = {mode: costs[mode][1] for mode in costs}
        assert kept["selective"] - kept["full"] == LAYERS * B * S // (hp * cp) * heads * (K + 1) * 4
        assert kept["none"] > 2 * kept["selective"]


@pytest.mark.parametrize("case", [name for name, values in CASES.items() if values[1] > 1])
def test_the_ring_sends_what_the_formulas_say_and_windows_are_crossed_as_rarely(ranks, case):
    hp, cp, window, placement, _, kv_heads, _ = CASES[case]
    context = Context(hp, cp, window, placement)
    share = 2 * B * S // cp * max(1, kv_heads // hp) * K  # keys and values of a rank, in elements
    for rank in range(RANKS):
        _, forward, backward, *_ = ranks[rank][case]
        again = [one for one in backward if one[1] == share]
        assert sum(n for _, n, _ in forward) == (cp - 1) * share
        assert sum(n for _, n, _ in again) == (cp - 1) * share + cp * share  # keys and values, and their gradients
        own = context.place(rank % context.size).ring
        crossing = [
            to for to, _, _ in forward
            if context.place(to % context.size).ring // context.inner != own // context.inner
        ]  # fmt: skip
        assert len(crossing) == cp // context.inner - 1


@pytest.mark.parametrize("case", [name for name, values in CASES.items() if values[0] > 1])
def test_heads_are_exchanged_in_two_transfers_of_the_formulas_size(ranks, case):
    hp, cp, _, _, heads, kv_heads, _ = CASES[case]
    query, key = heads * K, max(kv_heads, hp) * K
    slice_of_all = B * S // (hp * cp)
    there, back = slice_of_all * (query + 2 * key) * (hp - 1) // hp, slice_of_all * query * (hp - 1) // hp
    for rank in range(RANKS):
        assert ranks[rank][case][3] == [there, back, back, there]  # forward, and the same in backward


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.sampled_from(["head_first", "context_first"]))
def test_every_position_has_one_place_and_every_rank_the_same_work(cp, hp, each, placement):
    context = Context(hp, cp, None, placement)
    length = 2 * cp * hp * each
    held = [positions(context, length, context.place(rank)) for rank in range(context.size)]
    assert sorted(np.concatenate(held)) == list(range(length))
    assert all((np.diff(own) > 0).all() for own in held)
    work = zigzag(length, cp).sum(1)
    assert (work == work[0]).all()
    assert [context.rank(context.place(rank)) for rank in range(context.size)] == list(range(context.size))


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.sampled_from(["head_first", "context_first"]))
def test_tokens_targets_positions_and_documents_of_a_rank_go_together(cp, hp, each, placement):
    context, length = Context(hp, cp, None, placement), 2 * cp * hp * each
    tokens = np.arange(2 * length).reshape(2, length)
    for rank in range(context.size):
        own = held(Batch(tokens, -tokens, tokens // 3), context, context.place(rank))
        assert (own.tokens == tokens[:, own.positions]).all() and (own.targets == -own.tokens).all()
        of_the_ring = own.documents[context.place(rank).ring].reshape(2, hp, -1)
        assert (of_the_ring[:, context.place(rank).head] == own.tokens // 3).all()
        assert sorted(own.documents.flat) == sorted((tokens // 3).flat)


@given(st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2), (6, 3), (8, 2), (8, 4), (6, 1)]))
def test_keys_arrive_where_they_are_worked_on_and_gradients_come_home(shape):
    """The hops of all ranks, played through: who sends what is who is said to have it next."""
    cp, w = shape
    near = [neighbours(cp, w, rank) for rank in range(cp)]
    for pairs in ([n.inner for n in near], [n.outer for n in near], [n.diagonal for n in near]):
        for rank, (to, _) in enumerate(pairs):
            assert pairs[to][1] == rank
    seen = [{source(cp, w, rank, o, t) for o in range(cp // w) for t in range(w)} for rank in range(cp)]
    assert all(sources == set(range(cp)) for sources in seen)
    gradients = list(range(cp))  # whose gradients each rank has
    for outer in range(cp // w):
        for turn in range(w):
            assert gradients == [source(cp, w, rank, outer, turn) for rank in range(cp)]
            moved = list(gradients)
            for rank in range(cp):
                moved[(near[rank].inner if turn + 1 < w else near[rank].diagonal)[0]] = gradients[rank]
            gradients = moved
    assert gradients == list(range(cp))


@pytest.mark.parametrize("cp", [1, 2, 4])
def test_parts_of_the_ring_see_what_a_causal_mask_shows(cp):
    held = torch.from_numpy(zigzag(48, cp))
    for own in range(cp):
        for of in range(cp):
            T = held.shape[1]
            shown = torch.zeros(T, T, dtype=torch.bool)
            rows, keys, seen = part(own, of, T, None)
            shown[rows, keys] = torch.ones(T, T).tril().bool() if seen.causal else True
            assert torch.equal(shown, held[own][:, None] >= held[of])


def in_threads(monkeypatch, cp, window, q, k, v, grad, scale):
    """out, dq, dk, dv of a ring whose ranks are threads, and whose sends are queues."""
    from train.context_parallel import ring as module

    queues: dict[tuple[str, int, int], queue.Queue] = defaultdict(queue.Queue)
    own = threading.local()

    class Coming(module.Sending):
        def wait(self):
            return self.requests[0].get(timeout=60)

    def exchange(tensors, to, from_, group):
        assert group != "gradients" or {tensor.dtype for tensor in tensors} == {torch.float32}
        queues[group, own.rank, to].put([tensor.clone() for tensor in tensors])
        return Coming([], [queues[group, from_, own.rank]])

    monkeypatch.setattr(module, "exchange", exchange)
    held = torch.from_numpy(zigzag(q.shape[2], cp))
    found = [torch.empty_like(x) for x in (q, q, k, v)]

    def run(rank):
        own.rank = rank
        part = [x[:, :, held[rank]].clone().requires_grad_() for x in (q, k, v)]
        ring = module.Ring(tuple(range(cp)), rank, window, "keys", "windows", "gradients")
        out = module.ring_attention(*part, None, ring, scale)
        out.backward(grad[:, :, held[rank]])
        for whole, one in zip(found, [out.detach(), *(x.grad for x in part)], strict=True):
            whole[:, :, held[rank]] = one

    with ThreadPoolExecutor(cp) as pool:
        list(pool.map(run, range(cp)))
    return found


def test_the_error_of_bfloat16_does_not_grow_with_the_ring(monkeypatch):
    """Relative errors against float64, of out, dq, dk and dv, for rings of 1, 2, 4 and 8 ranks, and windows."""
    generator = torch.Generator().manual_seed(3)
    exact = [torch.randn(1, 2, 256, 64, generator=generator).bfloat16().double() for _ in range(4)]
    q, k, v, grad = (x.clone().requires_grad_() for x in exact)
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.125)
    out.backward(grad.detach())
    expected = [out.detach(), q.grad, k.grad, v.grad]
    errors = {}
    one, *rings = [(1, 1), (2, 2), (4, 4), (8, 8), (8, 2), (8, 1)]
    for cp, window in (one, *rings):
        with monkeypatch.context() as patch:
            found = in_threads(patch, cp, window, *(x.bfloat16() for x in exact), 0.125)
        errors[cp, window] = [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]
    assert max(errors[one]) < 0.01
    for ring in rings:
        assert all(found < 1.25 * alone for found, alone in zip(errors[ring], errors[one], strict=True)), errors


@pytest.mark.parametrize("kernel", ["flash", "plain", "plain, in tiles of 5"])
@pytest.mark.parametrize("documents", [False, True])
def test_blocks_merge_to_the_whole_and_their_gradients_add_up(monkeypatch, kernel, documents):
    if kernel != "flash":
        monkeypatch.setattr("train.context_parallel.kernel.has_flash", lambda q: False)
    if kernel.endswith("5"):
        monkeypatch.setattr("train.context_parallel.kernel._TILE", 5)
    q, k, v, grad, docs = inputs(4, 2, documents)
    expected = one_device(q, k, v, grad, docs, 0.2)
    q, k, v, grad = (x.transpose(1, 2) for x in (q, k, v, grad))
    half = S // 2
    blocks = [
        (slice(0, half), slice(0, half), True), (slice(half, S), slice(half, S), True),
        (slice(half, S), slice(0, half), False),
    ]  # fmt: skip
    out, lse = torch.zeros_like(q), torch.full(q.shape[:3], -torch.inf)

    def seen(rows, keys, causal):
        return Seen(causal) if docs is None else Seen(causal, docs[:, rows], docs[:, keys])

    for rows, keys, causal in blocks:
        found = block(q[:, :, rows], k[:, :, keys], v[:, :, keys], seen(rows, keys, causal), 0.2)
        out[:, :, rows], lse[:, :, rows] = merge(out[:, :, rows], lse[:, :, rows], *found)
    gradients = [torch.zeros_like(x) for x in (q, k, v)]
    for rows, keys, causal in blocks:
        places = (rows, keys, keys)
        found = block_backward(
            grad[:, :, rows], q[:, :, rows], k[:, :, keys], v[:, :, keys], out[:, :, rows], lse[:, :, rows],
            seen(rows, keys, causal), 0.2,
        )  # fmt: skip
        for total, place, one in zip(gradients, places, found, strict=True):
            total[:, :, place] += one
    for found, whole in zip([out, *gradients], expected, strict=True):
        assert (found.transpose(1, 2) - whole).norm() <= 1e-6 * whole.norm()


@pytest.mark.parametrize("kernel", ["flash", "plain"])
@pytest.mark.parametrize("size", [32, 80, 256])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_heads_of_all_sizes_in_both_precisions(monkeypatch, kernel, size, dtype, error):
    monkeypatch.setattr("train.context_parallel.kernel.has_flash", lambda q: kernel == "flash")
    generator = torch.Generator().manual_seed(5)
    low = [torch.randn(2, n, 40, size, generator=generator).to(dtype) for n in (4, 2, 2, 4)]
    q, k, v, grad = (x.double().requires_grad_() for x in low)
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.1, enable_gqa=True)
    expected = [out, *torch.autograd.grad(out, (q, k, v), grad)]
    found, lse = block(*low[:3], Seen(True), 0.1)
    gradients = block_backward(low[3], *low[:3], found.to(dtype), lse, Seen(True), 0.1)
    for one, whole in zip((found, *gradients), expected, strict=True):
        assert one.dtype == torch.float32 and (one - whole).norm() <= error * whole.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_flash_attention_on_a_gpu_is_plain_attention(documents, size):
    generator = torch.Generator().manual_seed(1)
    exact = [torch.randn(2, n, 96, size, generator=generator).bfloat16() for n in (4, 2, 2, 4)]
    docs = inputs(4, 2, documents)[4]
    seen = Seen(True, docs, docs)
    found = []
    for device, dtype in (("cuda", torch.bfloat16), ("cpu", torch.float32)):
        q, k, v, grad = (x.to(device, dtype) for x in exact)
        out, lse = block(q, k, v, seen, 0.1)
        gradients = block_backward(grad, q, k, v, out.to(dtype), lse, seen, 0.1)
        found.append([x.float().cpu() for x in (out, lse, *gradients)])
    for low, high in zip(*found, strict=True):
        assert (low - high).norm() <= 0.02 * high.norm()


def test_a_row_that_sees_nothing_adds_nothing():
    q, k = torch.randn(1, 1, 3, 32), torch.randn(1, 1, 4, 32)
    seen = Seen(False, torch.tensor([[0, 1, 5]]), torch.tensor([[1, 1, 2, 2]]))
    out, lse = block(q, k, k, seen, 0.2)
    assert (out[0, 0, [0, 2]] == 0).all() and (lse[0, 0, [0, 2]] == -torch.inf).all() and lse[0, 0, 1].isfinite()
    both = merge(*block(q, k, k, seen, 0.2), out, lse)
    assert not any(x.isnan().any() for x in both)
    dq, dk, dv = block_backward(torch.ones_like(q), q, k, k, out, lse, seen, 0.2)
    assert (dq[0, 0, [0, 2]] == 0).all() and not any(x.isnan().any() for x in (dq, dk, dv))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=9), st.lists(st.integers(0, 4), min_size=1, max_size=9))
def test_areas_are_where_documents_are_the_same(of_q, of_k):
    documents = [torch.tensor(sorted(of)) for of in (of_q, of_k)]
    seen = torch.zeros(len(of_q), len(of_k), dtype=torch.bool)
    for _, rows, keys in areas(Seen(False, *(of[None] for of in documents))):
        assert not seen[rows].any() and not seen[:, keys].any()
        seen[rows, keys] = True
    assert torch.equal(seen, documents[0][:, None] == documents[1])


def test_a_kernel_that_is_not_there_is_named_with_what_is_done_in_its_place(capsys):
    assert has_flash(torch.empty(1, 1, 2, 64)) and has_flash(torch.empty(1, 1, 2, 512))
    assert not has_flash(torch.empty(1, 1, 2, 64, device="meta"))
    assert "not torch.float32 and 64 on any: plain matrix products in its place" in capsys.readouterr().err


@pytest.mark.parametrize(("context", "message"), [
    ({"ring": 0}, "context.ring=0 must be at least 1"),
    ({"ring": 6, "window": 4}, r"context.window=4 does not divide context.ring=6: use one of \[1, 2, 3, 6\]"),
    ({"placement": "ring_first"}, "context.placement=ring_first"),
])  # fmt: skip
def test_contexts_that_cannot_be_are_refused(context, message):
    with pytest.raises(ValueError, match=message):
        Context(**context)


@pytest.mark.parametrize(("arguments", "message"), [
    ((100, 4, 4), "sequence_length=100 cannot be cut into .* = 8 equal parts: use 96 or 104"),
    ((96, 3, 3), r"head_parallel=2 does not divide model.n_heads=3: use one of \[1, 3\]"),
    ((96, 6, 3), "head_parallel=2 and model.n_kv_heads=3: one must divide"),
])  # fmt: skip
def test_what_does_not_fit_a_context_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Context(2, 2).check_model(*arguments)


def test_a_world_is_whole_groups():
    Context(2, 2).check_world(8)
    with pytest.raises(ValueError, match=r"launch.devices=6 is no multiple of context.ring=2 .*: use 4 or 8"):
        Context(2, 2).check_world(6)


def test_documents_that_fall_are_refused():
    check_documents(np.array([[0, 0, 1], [3, 3, 3]]))
    with pytest.raises(ValueError, match="row 1 falls from 4 to 2 at position 2"):
        check_documents(np.array([[0, 0, 1], [3, 4, 2]]))


def test_ranks_that_share_sequences_have_to_do_with_all_of_them():
    """Of a world of four ranks; a rank whose loss is not finite is named with its samples."""
    from train.run import Run

    run = Run.__new__(Run)
    run.fabric, run.pool = SimpleNamespace(world_size=4), None
    for sharing, shares in ((None, [(10, 11), (11, 13), (13, 14), (14, 16)]), (Context(ring=2), [(10, 13), (13, 16)])):
        run.group = SimpleNamespace(context=sharing) if sharing else None
        found = [run.share(10, 6, rank) for rank in range(4)]
        assert [(share.start, share.stop) for share in found] == [
            share for share in shares for _ in range(4 // len(shares))
        ]
    run.pool = True
    assert {run.share(10, 6, rank) for rank in range(4)} == {range(10, 16)}


def test_ranks_of_one_place_in_the_ring_are_neighbours_when_heads_come_first():
    assert Context(2, 3).place(3) == Place(1, 1) and Context(2, 3, None, "context_first").place(3) == Place(0, 1)


if __name__ == "__main__":
    rank_main(Path(sys.argv[1]))
