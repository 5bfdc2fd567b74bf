from dataclasses import replace

import pytest
import torch

from data.batches import IGNORED
from train.model import RMSNorm, Transformer, initialize, rotary_table, rotate
from train.shape import Shape

SHAPE = Shape(d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=24, qk_norm=True, vocab_size=50)


def build(shape=SHAPE, seed=0):
    model = Transformer(shape, shape.vocab_size)
    initialize(model, seed)
    return model


def tokens(*shape, seed=0):
    return torch.randint(0, SHAPE.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def test_a_token_changes_no_earlier_logits():
    model, x = build(), tokens(2, 12)
    changed = x.clone()
    changed[:, 7] = (x[:, 7] + 1) % SHAPE.vocab_size
    before, after = model(x), model(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert (before[:, 7:] - after[:, 7:]).abs()[..., : SHAPE.vocab_size].amax(-1).min() > 1e-3


def test_document_masking_equals_running_each_document_alone():
    model, x = build(), tokens(1, 12)
    documents = torch.tensor([[0] * 5 + [1] * 7])
    packed = model(x, documents)[..., : SHAPE.vocab_size]
    # rotary positions are relative, so a document that starts at 5 is the same as one that starts at 0
    torch.testing.assert_close(packed[:, :5], model(x[:, :5])[..., : SHAPE.vocab_size])
    torch.testing.assert_close(packed[:, 5:], model(x[:, 5:])[..., : SHAPE.vocab_size], rtol=1e-4, atol=1e-5)


def test_grouped_queries_equal_full_attention_with_repeated_heads():
    grouped = build()
    full = Transformer(replace(SHAPE, n_kv_heads=4), SHAPE.vocab_size)
    state = grouped.state_dict()
    for name, weight in state.items():
        if ".k." in name or ".v." in name:
            state[name] = weight.view(2, 4, 16).repeat_interleave(2, dim=0).reshape(16, 16)
    full.load_state_dict(state)
    torch.testing.assert_close(full(tokens(2, 9)), grouped(tokens(2, 9)))


def test_padding_of_the_vocabulary_is_never_predicted_and_never_trained():
    model = build()
    logits = model(tokens(2, 9))
    assert logits.shape == (2, 9, 128)
    assert (logits[..., 50:] == -torch.inf).all()
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens(2, 9).flatten()).backward()
    assert (model.head.weight.grad[50:] == 0).all()
    assert model.head.weight.grad[:50].abs().min() > 0


@pytest.mark.parametrize("tied", [False, True])
def test_the_loss_is_the_cross_entropy_of_the_logits(tied):
    model, x, documents = build(replace(SHAPE, tied=tied)), tokens(2, 12), torch.tensor([[0] * 5 + [1] * 7] * 2)
    targets = tokens(2, 12, seed=1)
    targets[0, 3:6] = IGNORED
    logits = model(x, documents)[..., : SHAPE.vocab_size].flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum")
    z = (logits.logsumexp(-1).square() * (targets.flatten() != IGNORED)).sum()
    (loss + 0.1 * z).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    objective, *sums = model(x, documents, targets, 0.1)
    objective.backward()
    torch.testing.assert_close((objective, *sums), (loss + 0.1 * z, loss, z), rtol=1e-6, atol=0)
    for name, p in model.named_parameters():
        assert (p.grad - expected[name]).norm() <= 2e-6 * expected[name].norm(), name
    assert model(x, documents, targets)[2] == 0


def test_weights_in_bf16_and_autocast_of_float32_weights_are_one_function():
    """Bit for bit forward; a gradient summed over positions is rounded to bf16 once more where the weight is bf16."""
    x, targets, documents = tokens(2, 12), tokens(2, 12, seed=1), torch.tensor([[0] * 5 + [1] * 7] * 2)
    master = build()
    with torch.no_grad():
        for p in master.parameters():
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))  # gains, too
    low = build()
    low.load_state_dict(master.state_dict())
    low.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        logits, sums = master(x, documents), master(x, documents, targets, 0.1)
    low_logits, low_sums = low(x, documents), low(x, documents, targets, 0.1)
    assert logits.dtype == torch.bfloat16 and torch.equal(logits, low_logits)
    assert sums[0].dtype == torch.float32 and all(torch.equal(a, b) for a, b in zip(sums, low_sums, strict=True))
    sums[0].backward()
    low_sums[0].backward()
    for (name, p), q in zip(master.named_parameters(), low.parameters(), strict=True):
        assert (p.grad - q.grad.float()).norm() < 2**-8 * p.grad.norm(), name


def test_in_bf16_norms_and_rotation_are_float32_within():
    """Their result is the exact one rounded once, not that of bf16 arithmetic."""
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    norm = RMSNorm(16)
    torch.nn.init.uniform_(norm.weight, 0.5, 2, generator=torch.Generator().manual_seed(0))
    gain = norm.weight.detach().bfloat16().double()
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain
    assert torch.equal(norm(x), exact.bfloat16()) and torch.equal(norm.bfloat16()(x), exact.bfloat16())
    table = rotary_table(SHAPE, torch.arange(1000, 1004))
    q = x.view(4, 4, 4)
    assert torch.equal(rotate(q, *table), rotate(q.double(), *table).bfloat16())


def test_rotary_scores_depend_on_the_distance_alone():
    q, k = torch.randn(2, 1, 1, 1, SHAPE.d_head, generator=torch.Generator().manual_seed(0))

    def score(i, j):
        at = [rotary_table(SHAPE, torch.tensor([p])) for p in (i, j)]
        return (rotate(q, *at[0]) * rotate(k, *at[1])).sum()

    torch.testing.assert_close(score(3, 1), score(103, 101), rtol=1e-4, atol=1e-5)
    assert abs(score(3, 1) - score(3, 2)) > 1e-3


def test_each_parameter_is_drawn_from_its_own_generator():
    """A deeper model has the same first block but for the depth's own factor."""
    shallow, deep = build(), build(replace(SHAPE, n_layers=3))
    names = dict(shallow.named_parameters())
    for name, weight in deep.named_parameters():
        if name in names and not name.endswith(("attention.out.weight", "mlp.down.weight")):
            torch.testing.assert_close(weight, names[name], rtol=0, atol=0)
    first = shallow.blocks[0].attention
    assert not torch.equal(first.k.weight, first.v.weight)
    assert not torch.equal(first.k.weight, build(seed=1).blocks[0].attention.k.weight)


def test_activations_start_at_unit_scale():
    model = Transformer(replace(SHAPE, d_model=64, head_dim=16), SHAPE.vocab_size)
    initialize(model, 0)
    assert model.embedding(tokens(4, 32)).std().item() == pytest.approx(1, rel=0.1)
    assert model(tokens(4, 32))[..., :50].std().item() == pytest.approx(1, rel=0.2)


def test_a_tied_head_shares_its_matrix():
    model = Transformer(replace(SHAPE, tied=True), SHAPE.vocab_size)
    assert model.head.weight is model.embedding.weight
