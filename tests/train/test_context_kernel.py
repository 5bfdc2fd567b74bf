"""Blocks of attention and how they merge, in one process."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from train.context_parallel.kernel import Seen, areas, block, block_backward, has_flash, merge

S = 96


def tensors(size=32):
    """q, k, v, gradient of the output (2, heads, S, size), two query heads to a key head; documents (2, S)."""
    generator = torch.Generator().manual_seed(7)
    starts = torch.rand(2, S, generator=generator) < 0.06
    starts[:, S // 2] = True
    return [torch.randn(2, n, S, size, generator=generator) for n in (4, 2, 2, 4)], starts.long().cumsum(1)


def whole(q, k, v, grad, documents, scale):
    """Output and gradients of q, k and v of torch's attention to all that a query sees."""
    q, k, v = (x.clone().requires_grad_() for x in (q, k, v))
    mask = (documents[:, :, None] == documents[:, None, :]).tril()[:, None]
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), grad)]


@pytest.mark.parametrize("kernel", ["flash", "plain", "plain, in tiles of 5"])
@pytest.mark.parametrize("documents", [False, True])
def test_blocks_merge_to_the_whole_and_their_gradients_add_up(monkeypatch, kernel, documents):
    if kernel != "flash":
        monkeypatch.setattr("train.context_parallel.kernel.has_flash", lambda q: False)
    if kernel.endswith("5"):
        monkeypatch.setattr("train.context_parallel.kernel._TILE", 5)
    (q, k, v, grad), docs = tensors()
    expected = whole(q, k, v, grad, docs if documents else torch.zeros_like(docs), 0.2)
    half = S // 2
    blocks = [
        (slice(0, half), slice(0, half), True), (slice(half, S), slice(half, S), True),
        (slice(half, S), slice(0, half), False),
    ]  # fmt: skip
    out, lse = torch.zeros_like(q), torch.full(q.shape[:3], -torch.inf)

    def seen(rows, keys, causal):
        return Seen(causal, docs[:, rows], docs[:, keys]) if documents else Seen(causal)

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
    for found, one in zip([out, *gradients], expected, strict=True):
        assert (found - one).norm() <= 1e-6 * one.norm()


@pytest.mark.parametrize("kernel", ["flash", "plain"])
@pytest.mark.parametrize("size", [32, 80, 256])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_heads_of_all_sizes_in_both_precisions(monkeypatch, kernel, size, dtype, error):
    monkeypatch.setattr("train.context_parallel.kernel.has_flash", lambda q: kernel == "flash")
    q, k, v, grad = (x.to(dtype) for x in tensors(size)[0])
    expected = whole(*(x.double() for x in (q, k, v, grad)), torch.zeros(2, S), 0.1)
    out, lse = block(q, k, v, Seen(True), 0.1)
    gradients = block_backward(grad, q, k, v, out.to(dtype), lse, Seen(True), 0.1)
    for found, one in zip((out, *gradients), expected, strict=True):
        assert found.dtype == torch.float32 and (found - one).norm() <= error * one.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_flash_attention_on_a_gpu_is_plain_attention(documents, size):
    exact, docs = tensors(size)
    seen = Seen(True, docs, docs) if documents else Seen(True)
    found = []
    for device, dtype in (("cuda", torch.bfloat16), ("cpu", torch.float32)):
        q, k, v, grad = (x.bfloat16().to(device, dtype) for x in exact)
        out, lse = block(q, k, v, seen, 0.1)
        gradients = block_backward(grad, q, k, v, out.to(dtype), lse, seen, 0.1)
        found.append([x.float().cpu() for x in (out, lse, *gradients)])
    for low, high in zip(*found, strict=True):
        assert (low - high).norm() <= 0.02 * high.norm()


def test_operators_of_a_gpu_are_called_as_torch_declares_them(monkeypatch):
    """Without one: shapes, types and devices alone."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with FakeTensorMode():
        q, k, v, grad = (torch.empty(x.shape, dtype=torch.bfloat16, device="cuda") for x in tensors(64)[0])
        assert has_flash(q)
        out, lse = block(q, k, v, Seen(True), 0.1)
        gradients = block_backward(grad, q, k, v, out.bfloat16(), lse, Seen(True), 0.1)
    assert [x.shape for x in (out, lse, *gradients)] == [q.shape, q.shape[:3], q.shape, k.shape, v.shape]
    assert {(x.dtype, x.device.type) for x in (out, lse, *gradients)} == {(torch.float32, "cuda")}


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
