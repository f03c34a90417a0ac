"""Bytes on a GPU, while it learns and while it samples."""

from typing import NamedTuple

from kleash.lab.cluster.setting import Setting

CHUNK = 2**30
"""Bytes of a chunk's logits on a GPU, as `functional.chunks` has it."""
EXACT_BUFFERS, SAMPLED_BUFFERS = 5.5, 2.7
"""Logits-sized float32 buffers that the plain formulas hold at their peak, exact KL and sampled, as measured."""


class Memory(NamedTuple):
    """Bytes on one GPU, by what they are for."""

    learning: dict[str, float]
    sampling: dict[str, float]

    @property
    def peak(self) -> float:
        """The larger sum."""
        return max(sum(self.learning.values()), sum(self.sampling.values()))


def memory(setting: Setting) -> Memory:
    """Bytes on a GPU of the trainer while it learns, and on one that samples.

    weights: 4 bytes each, over all pieces; 2 and the adapter's 4 with an adapter. gradients: 4. moments: 8.
    reference, reward: 2. snapshot, the guard's way back: 12, weights and moments. gathered: two layers whole, and head
    or embedding, which is where a reference that is streamed from the host is too. activations, logits, hidden: below.
    """
    work, layout, shape = setting.work, setting.layout, setting.shape
    pieces, trained, kept = layout.pieces, setting.trained, _kept(setting)
    snapshot = 12 * trained if work.guard and not layout.host_snapshot else 0
    learning = {
        **kept,
        "gradients": 4 * trained / pieces,
        "snapshot": snapshot / pieces,
        "gathered": work.width * (2 * shape.layer + shape.head) / layout.tensor,
        "activations": activations(setting),
        "logits": logits(setting),
        "hidden": hidden(setting),
    }
    sampling = {**({} if layout.sampler_gpus else kept), "sampler": _sampler(setting)}
    sampling["cache"] = min(_cache_wanted(setting), _cache_room(setting))
    return Memory(learning, sampling)


def _kept(setting: Setting) -> dict[str, float]:
    """What stays on a trainer's GPU while it samples."""
    work, layout, base = setting.work, setting.layout, setting.shape.parameters
    reference = 0 if work.rank or layout.reference == "offloaded" else work.width * base
    reward = 0 if setting.reward is None else work.width * setting.reward.parameters
    weights = 4 * setting.trained + (work.width * base if work.rank else 0)
    found = {
        "weights": weights,
        "moments": 8 * setting.trained,
        "reference": reference,
        "reward": reward,
    }
    return {name: size / layout.pieces for name, size in found.items()}


def activations(setting: Setting) -> float:
    """Of one micro-batch in every layer, split by tensor and sequence parallelism.

    Of a layer a token leaves two norms' outputs and two residuals, queries and what attention gives, keys and values,
    and four MLP widths: (4·H + 2·q + 2·kv + 4·I) numbers. With checkpointing each layer leaves its input, and one at a
    time the rest. A pipeline of p stages holds p micro-batches in the first, of 1/p of the layers: as many.
    """
    work, shape = setting.work, setting.shape
    values = 2 * shape.kv_heads * shape.head_dim
    whole = 4 * shape.hidden + 2 * shape.queries + values + 4 * shape.intermediate
    token = shape.layers * whole
    if setting.layout.checkpointing:
        token = shape.layers * shape.hidden + whole
    tokens = min(work.micro_tokens, work.tokens / setting.layout.replicas)
    return work.width * tokens * token / setting.layout.tensor


def head_rows(setting: Setting) -> float:
    """Tokens whose logits are in a chunk: at most a GiB of this GPU's share of the vocabulary, and all there are."""
    row = 4 * setting.shape.vocab / setting.layout.tensor
    return max(1.0, min(CHUNK / row, _micro_responses(setting)))


def logits(setting: Setting) -> float:
    """Vocabulary-sized buffers, of this GPU's share, and the float32 gradient of its piece of the head.

    In chunks: both models' logits, and the gradient in half precision. Plainly: as many as the formulas were measured
    to hold, of all response tokens of a micro-batch.
    """
    work, shape = setting.work, setting.shape
    vocab = shape.vocab / setting.layout.tensor
    gradient = 0 if work.rank else 4 * vocab * shape.hidden
    if work.chunked:
        buffers = 2 + (work.width / 4 if work.width < 4 else 0)
        return gradient + buffers * 4 * vocab * head_rows(setting)
    buffers = EXACT_BUFFERS if work.exact else SAMPLED_BUFFERS
    return gradient + buffers * 4 * vocab * _micro_responses(setting)


def hidden(setting: Setting) -> float:
    """Last hidden states of policy and reference at a replica's response tokens: with the heads, both distributions."""
    if not setting.work.exact:
        return 0.0
    tokens = setting.work.response_tokens / setting.layout.replicas
    return 2 * setting.work.width * tokens * setting.shape.hidden / setting.layout.tensor


def cache_tokens(setting: Setting) -> float:
    """Tokens that a sampling replica has room for: what weights leave, over 2·L·kv_heads·head_dim numbers a token."""
    room = _cache_room(setting) * setting.layout.sampler_tensor
    return room / (setting.work.width * setting.shape.cache)


def _cache_room(setting: Setting) -> float:
    """Bytes of a GPU's memory that are left to the cache."""
    kept = 0.0 if setting.layout.sampler_gpus else sum(_kept(setting).values())
    room = setting.device.memory * (1 - setting.device.kept)
    return max(0.0, room - kept - _sampler(setting))


def _sampler(setting: Setting) -> float:
    return setting.work.width * setting.shape.parameters / setting.layout.sampler_tensor


def _cache_wanted(setting: Setting) -> float:
    """Bytes of cache on a GPU if every response had its place."""
    work, layout = setting.work, setting.layout
    held = work.responses * (work.prompt_length + work.response_mean)
    return work.width * setting.shape.cache * held / layout.samplers


def _micro_responses(setting: Setting) -> float:
    """Response tokens of a micro-batch."""
    work = setting.work
    tokens = min(work.micro_tokens, work.tokens / setting.layout.replicas)
    return tokens * work.response_tokens / work.tokens
