"""Shapes of decoder models: how many weights, how many operations a token, how many bytes of cache."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A decoder with grouped-query attention and a gated MLP, as Llama's and Qwen's are."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    """Whether the head is the embedding."""
    small: int = 0
    """Weights of a layer that are added or scaled by, beside its two norms: biases, norms of queries and keys."""
    source: str
    """Where the numbers were read."""

    @property
    def queries(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """(in, out) of a layer's seven matrices: q, k, v, o, gate, up, down."""
        h, q, kv, i = self.hidden, self.queries, self.kv_heads * self.head_dim, self.intermediate
        return ((h, q), (h, kv), (h, kv), (q, h), (h, i), (h, i), (i, h))

    @property
    def layer(self) -> int:
        """Weights of one layer that are multiplied by: Σ in·out."""
        return sum(inner * outer for inner, outer in self.matrices)

    @property
    def body(self) -> int:
        """The same of all layers."""
        return self.layers * self.layer

    @property
    def head(self) -> int:
        """Weights of the head, V·H."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """Every weight, with embeddings, norms and biases.

        Examples:
            >>> SHAPES["llama-3.1-8b"].parameters, SHAPES["llama-3.1-70b"].parameters
            (8030261248, 70553706496)
        """
        norms = 2 * self.hidden + self.small
        embeddings = self.head if self.tied else 2 * self.head
        return self.body + self.layers * norms + embeddings + self.hidden

    def adapter(self, rank: int) -> int:
        """Weights of a LoRA of this rank beside every matrix of every layer: rank·Σ(in + out).

        Examples:
            >>> SHAPES["llama-3.1-8b"].adapter(16)
            41943040
        """
        return rank * self.layers * sum(inner + outer for inner, outer in self.matrices)

    @property
    def cache(self) -> int:
        """Numbers in the key-value cache for a token: 2·L·kv_heads·head_dim."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    def attention(self, before: float, after: float) -> float:
        """FLOPs of causal attention as a sequence grows from `before` to `after` tokens, forward.

        QKᵀ and PV are 2·q FLOPs each for every pair of tokens, and there are (after² − before²)/2 pairs:
        2·2·L·q·(after² − before²)/2.
        """
        return self.attention_of(after**2 - before**2)

    def attention_of(self, squares: float) -> float:
        """The same where the difference of squares is known: of lengths that vary, their mean."""
        return 2 * self.layers * self.queries * squares


SHAPES = {
    shape.name: shape
    for shape in (
        Shape(
            name="smollm2-135m",
            layers=30,
            hidden=576,
            heads=9,
            kv_heads=3,
            head_dim=64,
            intermediate=1536,
            vocab=49_152,
            tied=True,
            source="config.json of HuggingFaceTB/SmolLM2-135M-Instruct",
        ),
        Shape(
            name="llama-3.1-8b",
            layers=32,
            hidden=4096,
            heads=32,
            kv_heads=8,
            head_dim=128,
            intermediate=14_336,
            vocab=128_256,
            tied=False,
            source="config.json of meta-llama/Llama-3.1-8B",
        ),
        Shape(
            name="llama-3.1-70b",
            layers=80,
            hidden=8192,
            heads=64,
            kv_heads=8,
            head_dim=128,
            intermediate=28_672,
            vocab=128_256,
            tied=False,
            source="model table of Oumi's configs/recipes/llama3_1/README.md",
        ),
        Shape(
            name="qwen2.5-7b",
            layers=28,
            hidden=3584,
            heads=28,
            kv_heads=4,
            head_dim=128,
            intermediate=18_944,
            vocab=152_064,
            tied=False,
            small=4608,
            source="config.json of Qwen/Qwen2.5-7B-Instruct",
        ),
        Shape(
            name="qwen3-32b",
            layers=64,
            hidden=5120,
            heads=64,
            kv_heads=8,
            head_dim=128,
            intermediate=25_600,
            vocab=151_936,
            tied=False,
            small=256,
            source="config.json of Qwen/Qwen3-32B",
        ),
    )
}
"""By name."""
