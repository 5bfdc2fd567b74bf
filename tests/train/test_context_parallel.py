"""Attention over several ranks is that of one device: this file is also the program that four ranks run."""

import queue
import sys
import threading
import weakref
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from data.batches import Batch
from train.context_parallel.apply import held
from train.context_parallel.placement import Context, positions, zigzag

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
        received = torch.empty_like(out)  # a thread of gloo holds a moment longer what it handles: nothing counted
        plain_all_to_all(received, parts.clone(), group=group)
        out.copy_(received)

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
def test_heads_are_exchanged_in_a_transfer_each_of_the_formulas_size(ranks, case):
    hp, cp, _, _, heads, kv_heads, _ = CASES[case]
    query, key = (B * S // (hp * cp) * n * K * (hp - 1) // hp for n in (heads, max(kv_heads, hp)))
    for rank in range(RANKS):
        *there, out, back, q, k, v = ranks[rank][case][3]
        assert there == [query, key, key] and out == back == query and sorted([q, k, v]) == sorted(there)


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


if __name__ == "__main__":
    rank_main(Path(sys.argv[1]))
