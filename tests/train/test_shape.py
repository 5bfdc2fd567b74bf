import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from train.model import Transformer
from train.shape import Shape, pad_vocab

shapes = st.builds(
    lambda d, layers, kv, groups, ff, mlp, qk, tied, vocab: Shape(
        d_model=8 * d,
        n_layers=layers,
        n_heads=kv * groups,
        n_kv_heads=kv,
        head_dim=4,
        d_ff=ff,
        mlp=mlp,
        qk_norm=qk,
        tied=tied,
        vocab_size=vocab,
    ),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 40),
    st.sampled_from(["swiglu", "gelu"]),
    st.booleans(),
    st.booleans(),
    st.integers(1, 300),
)


@settings(max_examples=15)
@given(shapes)
def test_parameters_are_those_of_the_model_by_name_shape_and_order(shape):
    model = Transformer(shape, shape.vocab_size)
    assert list(shape.parameters().items()) == [(name, tuple(p.shape)) for name, p in model.named_parameters()]


@given(shapes)
def test_parameter_counts_are_those_of_the_model(shape):
    model = Transformer(shape, shape.vocab_size)
    outside = {id(model.embedding.weight), id(model.head.weight)}
    assert shape.N_total == sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in model.parameters() if id(p) not in outside) == shape.N


@settings(max_examples=8)
@given(shapes, st.integers(1, 3), st.integers(2, 24))
def test_flops_are_those_of_torchs_counter_but_for_the_causal_half(shape, batch, length):
    """The counter takes S^2 pairs per head under the MATH backend; causal attention has S(S+1)/2."""
    model = Transformer(shape, shape.vocab_size)
    tokens = torch.randint(0, shape.vocab_size, (batch, length))
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        model(tokens, None, tokens)[0].backward()
    pairs_too_many = length**2 - length * (length + 1) // 2
    excess = 3 * 4 * shape.n_layers * shape.n_heads * shape.d_head * pairs_too_many * batch
    assert counter.get_total_flops() - excess == shape.flops_per_token(length) * batch * length


@pytest.mark.parametrize(
    ("name", "N"), [("85m", 84.9e6), ("150m", 151e6), ("300m", 302e6), ("600m", 571e6), ("1.2b", 1.208e9)]
)
def test_named_sizes_have_about_their_name(hydra_conf, name, N):
    from conf.points import compose_config

    config = compose_config([f"model={name}"])["model"]
    del config["_target_"]
    assert pytest.approx(N, rel=0.01) == Shape(**config).N


def test_vocabulary_is_padded_to_a_multiple_of_128():
    assert [pad_vocab(v) for v in (1, 128, 129, 50257)] == [128, 128, 256, 50304]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_heads": 3}, "model.n_heads=3 does not divide model.d_model=16"),
        ({"n_kv_heads": 3}, "model.n_kv_heads=3 does not divide model.n_heads=4"),
        ({"head_dim": 5}, "model.head_dim=5 is odd"),
        ({"mlp": "relu"}, "model.mlp='relu'"),
        ({"d_ff": 0}, "model.d_ff=0"),
    ],
)
def test_a_shape_that_cannot_be_built_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Shape(**({"d_model": 16, "n_layers": 1, "n_heads": 4, "d_ff": 8} | change))
