"""The shape of a decoder-only transformer, or of a regression: parameters and FLOPs, exact and without torch.

    Shape(d_model=768, n_layers=12, n_heads=12, d_ff=3072, vocab_size=1024)
        .N, .N_total                       parameters without / with embedding and output head
        .flops_per_token(sequence_length)  training FLOPs per token, forward and backward

FLOPs count matrix products only (2 per multiply-add). Causal attention counts the S(S+1)/2 visible pairs, whatever
the mask or the kernel. The backward pass costs twice the forward pass; recomputation is not counted.
"""

from dataclasses import dataclass

from optim.mup import Growth

VOCAB_MULTIPLE = 128  # the model's vocabulary is padded to a multiple of this, for the matrix units


def pad_vocab(vocab_size: int) -> int:
    """The smallest multiple of 128 that holds `vocab_size` token ids."""
    return -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


@dataclass(frozen=True)
class Shape:
    """Sizes and options of `train.model.Transformer`. Raises ValueError on a shape that cannot be built."""

    d_model: int
    """width of the residual stream"""
    n_layers: int
    """transformer blocks"""
    n_heads: int
    """query heads"""
    d_ff: int
    """hidden width of the MLP"""
    n_kv_heads: int | None = None
    """key/value heads (grouped queries); null: as many as query heads"""
    head_dim: int | None = None
    """size of one head; null: d_model / n_heads"""
    mlp: str = "swiglu"
    """swiglu (three matrices) or gelu (two)"""
    qk_norm: bool = False
    """RMSNorm on queries and keys, per head"""
    tied: bool = False
    """one matrix for embedding and output head"""
    document_mask: bool = False
    """attention stays within a document"""
    rope_base: float = 10_000.0
    """base of the rotary frequencies"""
    vocab_size: int | None = None
    """token ids the model has rows for, padded to a multiple of 128; null: the tokenizer's"""
    parametrization: str | None = None
    """how initialisation, rates and scores follow the width: mup (`optim.mup`); null: standard"""
    base_width: int | None = None
    """mup only: the d_model at which it is the standard parametrization"""
    base_head_dim: int | None = None
    """mup only: the size of one head at the base width; null: as here, heads grow in number"""

    def __post_init__(self) -> None:
        for name in ("d_model", "n_layers", "n_heads", "d_ff"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)} must be at least 1.")
        if self.n_kv_heads is None:
            object.__setattr__(self, "n_kv_heads", self.n_heads)
        if self.head_dim is None:
            if self.d_model % self.n_heads:
                raise ValueError(
                    f"model.n_heads={self.n_heads} does not divide model.d_model={self.d_model}: "
                    "change one of them or give model.head_dim."
                )
            object.__setattr__(self, "head_dim", self.d_model // self.n_heads)
        for name in ("n_kv_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)} must be at least 1.")
        if self.n_heads % self.kv_heads:
            raise ValueError(
                f"model.n_kv_heads={self.n_kv_heads} does not divide model.n_heads={self.n_heads}: "
                "each key/value head serves the same number of query heads."
            )
        if self.d_head % 2:
            raise ValueError(f"model.head_dim={self.head_dim} is odd: rotary embedding turns pairs, use an even size.")
        if self.mlp not in ("swiglu", "gelu"):
            raise ValueError(f"model.mlp={self.mlp!r} is unknown: use swiglu or gelu.")
        if self.parametrization not in (None, "mup"):
            raise ValueError(f"model.parametrization={self.parametrization!r} is unknown: use mup, or null (standard).")
        if self.parametrization == "mup" and self.base_width is None:
            raise ValueError("model.parametrization=mup needs model.base_width, the width that rates were tuned at.")
        for name in ("base_width", "base_head_dim"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)} must be at least 1.")

    @property
    def kv_heads(self) -> int:
        assert self.n_kv_heads is not None
        return self.n_kv_heads

    @property
    def d_head(self) -> int:
        assert self.head_dim is not None
        return self.head_dim

    @property
    def growth(self) -> Growth:
        """How much wider than the base model of muP; 1 in the standard parametrization."""
        if self.parametrization is None:
            return Growth()
        assert self.base_width is not None
        return Growth(self.d_model / self.base_width, self.d_head / (self.base_head_dim or self.d_head))

    @property
    def vocab(self) -> int:
        """Rows of embedding and head, padding included."""
        if self.vocab_size is None:
            raise ValueError("model.vocab_size is not set: give it, or let the tokenizer decide.")
        return pad_vocab(self.vocab_size)

    @property
    def _matrices_per_layer(self) -> int:
        attention = self.d_model * self.d_head * (2 * self.n_heads + 2 * self.kv_heads)
        return attention + self.d_model * self.d_ff * (3 if self.mlp == "swiglu" else 2)

    @property
    def N(self) -> int:
        """Parameters without embedding and output head (norm gains included)."""
        norms = 2 * self.d_model + (2 * self.d_head if self.qk_norm else 0)
        return self.n_layers * (self._matrices_per_layer + norms) + self.d_model

    @property
    def N_total(self) -> int:
        """All parameters, padded vocabulary included."""
        return self.N + self.vocab * self.d_model * (1 if self.tied else 2)

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter of `train.model.Transformer`, in its order."""
        width, query, key_value = self.d_model, self.n_heads * self.d_head, self.kv_heads * self.d_head
        attention = {"q": (query, width), "k": (key_value, width), "v": (key_value, width), "out": (width, query)}
        mlp = {"gate": (self.d_ff, width)} if self.mlp == "swiglu" else {}
        mlp |= {"up": (self.d_ff, width), "down": (width, self.d_ff)}
        norms = ("attention.q_norm", "attention.k_norm") if self.qk_norm else ()
        block: dict[str, tuple[int, ...]] = {
            "attention_norm": (width,),
            **{f"attention.{name}": shape for name, shape in attention.items()},
            **{name: (self.d_head,) for name in norms},
            "mlp_norm": (width,),
            **{f"mlp.{name}": shape for name, shape in mlp.items()},
        }
        return {
            "embedding.weight": (self.vocab, width),
            **{f"blocks.{i}.{name}.weight": shape for i in range(self.n_layers) for name, shape in block.items()},
            "norm.weight": (width,),
            **({} if self.tied else {"head.weight": (self.vocab, width)}),
        }

    def forward_flops(self, tokens: int, pairs: int) -> int:
        """FLOPs of a forward pass over `tokens` whose queries see `pairs` keys in all, exact."""
        attention = 4 * pairs * self.n_heads * self.d_head  # scores and weighted values
        matrices = 2 * tokens * (self.n_layers * self._matrices_per_layer + self.vocab * self.d_model)
        return matrices + self.n_layers * attention

    def flops_per_token(self, sequence_length: int) -> float:
        """Training FLOPs per token at `sequence_length` (3 x forward); a float: S(S+1)/2 pairs over S tokens."""
        pairs = sequence_length * (sequence_length + 1) // 2
        return 3 * self.forward_flops(sequence_length, pairs) / sequence_length


GOES_WITH = "model=linear goes with data=power_law, model=logistic with data=separable, and transformers with text"


@dataclass(frozen=True)
class Regression:
    """Linear or logistic regression, many replicas at once: what `Shape` is for transformers."""

    dimension: int
    """coordinates of a row, as the data has them"""
    loss: str
    """square (half-square loss of linear regression) or logistic"""
    replicas: int = 1
    """runs side by side, each on samples of its own"""
    vocab_size: int | None = None
    """nothing to a regression; every model is given the tokenizer's"""

    growth = Growth()
    document_mask = False

    def __post_init__(self) -> None:
        if self.dimension < 1:
            raise ValueError(
                f"model.dimension={self.dimension}: the data has no rows of so many coordinates. {GOES_WITH}."
            )
        if self.loss not in ("square", "logistic"):
            raise ValueError(f"model.loss={self.loss!r} is unknown: use square or logistic.")
        if self.replicas < 1:
            raise ValueError(f"model.replicas={self.replicas} must be at least 1.")

    @property
    def N(self) -> int:
        """Weights of one replica."""
        return self.dimension

    @property
    def N_total(self) -> int:
        return self.dimension * self.replicas

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of the parameter of `train.regression.Replicas`."""
        return {"weight": (self.replicas, self.dimension)}

    def flops_per_token(self, sequence_length: int) -> float:
        """Training FLOPs per row, of all replicas: prediction and gradient, a multiply and an add each."""
        return 4.0 * self.N_total
