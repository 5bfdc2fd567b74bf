from dataclasses import replace

import pytest
import torch

from train.model import Transformer, initialize, rotary_table, rotate
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
