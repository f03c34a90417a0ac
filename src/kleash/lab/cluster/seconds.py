"""Seconds of each phase of a step, on every GPU at once. FLOPs over achieved FLOP/s, bytes over achieved bytes/s.

A product of [N, in] and [in, out] is 2·N·in·out FLOPs, so that a token forward is 2 FLOPs a weight, and forward and
backward are 6: one more product gives the gradient of the input, one that of the weight. Work is taken to come out
even between GPUs, and a sharded layer to be gathered while the one before it is computed, so that of the two the longer
counts; all-reduces of tensor parallelism wait, and are added.
"""

from kleash.lab.cluster.memory import cache_tokens, head_rows
from kleash.lab.cluster.setting import Setting
from kleash.lab.cluster.shapes import Shape

KERNELS_LAYER, KERNELS_BESIDE = 30, 20
"""Kernels of a forward pass of transformers' Llama: of each layer, and beside them; counted, without those that only
make views."""
READ = 4
"""Bytes of a logit: float32."""
AGREEMENTS = 2
"""How often in a step every rank waits for all readings, for β and for the verdict."""
OF_RESPONSE, OF_TOKEN = 64, 8
"""Bytes of a response's readings, eight numbers in float64, and of a token's, KL and log-ratio in float32."""


def phases(setting: Setting) -> dict[str, float]:
    """Seconds of every phase of a step.

    Args:
        setting: model, machines, layout and workload.

    Returns:
        prefill, decode: sampling. score: the reward model. policy, reference: their layers over the rollout.
        meter_head: the products and reads of the vocabulary there. update, update_head: the same with gradients, all
        epochs. optimizer. guard: snapshot, and the proposed update's layers and head. sync: weights to the sampler.
        ledger: two entries, and the agreement of all ranks.
    """
    work, reward = setting.work, setting.reward
    layers = _forward(setting, setting.shape)
    return {
        "prefill": _prefill(setting),
        "decode": _decode(setting),
        "score": 0.0 if reward is None else _forward(setting, reward),
        "policy": layers if work.meter else 0.0,
        "reference": layers + _offload(setting),
        "meter_head": _head(setting, 1 + work.meter, both=work.exact),
        "update": work.epochs * _backward(setting),
        "update_head": work.epochs * _update_head(setting),
        "optimizer": work.epochs * work.minibatches * _optimizer(setting),
        "guard": _guard(setting) if work.guard else 0.0,
        "sync": _sync(setting),
        "ledger": _ledger(setting) if work.guard else 0.0,
    }


def micro_batches(setting: Setting, least: int = 1) -> int:
    """How many times a replica goes through its layers for its share of the rollout."""
    local = setting.work.tokens / setting.layout.replicas
    return max(least, -int(-local // setting.work.micro_tokens))


def _forward(setting: Setting, shape: Shape) -> float:
    """Layers over the whole rollout: (2·weights·tokens + attention) FLOPs."""
    return _pass(setting, shape, products=1, gathers=1, crossings=1, micro=micro_batches(setting))


def _backward(setting: Setting) -> float:
    """Layers forward and back over the whole rollout: 3 products a weight, 2 with an adapter, 1 more made again.

    A sharded layer is gathered for each direction, and its gradient scattered where it is trained.
    """
    lora = setting.work.rank > 0
    products = (2 if lora else 3) + setting.layout.checkpointing
    gathers = 2 if lora else 3
    crossings = 2 + setting.layout.checkpointing
    micro = micro_batches(setting, setting.work.minibatches)
    numbers = {"products": products, "gathers": gathers, "crossings": crossings, "micro": micro}
    return _pass(setting, setting.shape, **numbers)


def _pass(
    setting: Setting, shape: Shape, *, products: int, gathers: int, crossings: int, micro: int
) -> float:
    """A pass over the rollout, with what tensor, pipeline and shards have to send.

    A pipeline of p stages is idle (p − 1)/(m + p − 1) of the time where m micro-batches go through it.

    Args:
        setting: all of it.
        shape: whose layers.
        products: with each weight, for a token.
        gathers: of each sharded layer, for a micro-batch; a scatter of its gradient is one.
        crossings: of a layer's activations: forward, back, and forward again where it is made again. Each is two
            all-reduces in the tensor group, after attention and after the MLP.
        micro: micro-batches.
    """
    device, layout, work = setting.device, setting.layout, setting.work
    flops = 2 * shape.body * work.tokens + shape.attention_of(work.squares)
    bubble = (micro + layout.pipeline - 1) / micro
    busy = products * flops / (layout.trainers * device.flops) * bubble
    kernels = micro * (KERNELS_LAYER * shape.layers / layout.pipeline + KERNELS_BESIDE)
    busy = max(busy, products * kernels * device.launch)
    stride = layout.tensor * layout.pipeline
    weights = work.width * shape.body / stride
    gathered = micro * gathers * device.gather(weights, layout.sharded, stride)
    local = work.tokens / layout.replicas * shape.hidden * work.width
    layers = shape.layers / layout.pipeline
    reduced = micro * 2 * crossings * layers * device.reduce(local / micro, layout.tensor)
    handed = (layout.pipeline > 1) * local / device.wire(layout.pipeline, layout.tensor)
    return max(busy, gathered) + reduced + handed


def _head(setting: Setting, products: int, *, both: bool = True, written: int = 0) -> float:
    """Vocabulary-sized products over the response tokens, and the passes over logits beside them.

    Each product is 2·N·V·H FLOPs, split by tensor parallelism over the last stage of the pipeline. Beside them go, for
    each logit, a write and a read of it in float32 for each model, and where there is a gradient another read of each
    and the write of it (`functional.fused`): 16 bytes of exact KL without a gradient, 24 and the gradient's with one.
    A sharded head is gathered meanwhile for each micro-batch, that of each model, and its gradient scattered. Of a
    vocabulary that is split, nine numbers a token and shard are gathered, and the gradient of the hidden states summed.

    Args:
        setting: all of it.
        products: how many.
        both: whether logits of both models are there.
        written: bytes of a logit's gradient; 0: there is none.
    """
    device, layout, work, shape = setting.device, setting.layout, setting.work, setting.shape
    tokens = work.response_tokens / layout.replicas
    logits = tokens * shape.vocab / layout.tensor
    models = 2 if both else products if not written else 1
    passes = models * 2 * READ + (models * READ + written if written else 0)
    busy = products * 2 * logits * shape.hidden / device.flops + logits * passes / device.stream
    full = work.rank == 0
    gathers = (models if full else 1) + (written > 0 and full)
    piece = work.width * shape.head / layout.tensor
    gather = device.gather(piece, layout.sharded, layout.tensor * layout.pipeline)
    busy = max(busy, micro_batches(setting) * gathers * gather)
    sent = device.gather(9 * READ * tokens * layout.tensor, layout.tensor)
    if written:
        sent += device.reduce(tokens * shape.hidden * work.width, layout.tensor)
    return busy + sent


def _update_head(setting: Setting) -> float:
    """The head with its gradients, once: 4 products of exact KL, 3 of the sampled token's; 1 less with an adapter.

    The policy's logits, the reference's, the gradient of the hidden states, that of the head, which an adapter leaves
    as it is. That of the head is summed in float32, read and written for each chunk of tokens (twice where a product
    of halves has to be widened first).
    """
    work, shape, device = setting.work, setting.shape, setting.device
    products = 2 + work.exact + (work.rank == 0)
    seconds = _head(setting, products, both=work.exact, written=work.width)
    if work.rank == 0:
        tokens = work.response_tokens / setting.layout.replicas
        chunks = tokens / head_rows(setting)
        passes = 8 if work.width == READ else 16
        seconds += chunks * passes * shape.head / setting.layout.tensor / device.stream
    return seconds


def _optimizer(setting: Setting) -> float:
    """AdamW over a GPU's piece: reads weight, gradient and two moments, writes three of them, 28 bytes a weight."""
    return 28 * setting.trained / setting.layout.pieces / setting.device.stream


def _guard(setting: Setting) -> float:
    """The way back, 12 bytes a weight copied, and one pass of the new policy with its exact KL from the old.

    With `drift_limit` that from the reference too, which multiplies out both heads once more.
    """
    device, layout = setting.device, setting.layout
    piece = 12 * setting.trained / layout.pieces
    copied = piece / device.host if layout.host_snapshot else 2 * piece / device.stream
    readings = 2 if setting.work.drift_limit else 1
    return copied + _forward(setting, setting.shape) + readings * _head(setting, 2)


def _offload(setting: Setting) -> float:
    """What streaming the reference from the host takes beyond its pass, once for each micro-batch."""
    device, layout, work = setting.device, setting.layout, setting.work
    if layout.reference == "sharded" or work.rank:
        return 0.0
    piece = work.width * setting.shape.parameters / layout.pieces
    streamed = micro_batches(setting) * piece / device.host
    return max(0.0, streamed - _forward(setting, setting.shape))


def _prefill(setting: Setting) -> float:
    """Prompts through the layers, once for each group: bound by products."""
    work, shape, layout, device = setting.work, setting.shape, setting.layout, setting.device
    flops = 2 * shape.body * work.prompts * work.prompt_length
    flops += work.prompts * shape.attention(0, work.prompt_length)
    local = work.prompts * work.prompt_length * layout.sampler_tensor / layout.samplers
    kernels = KERNELS_LAYER * shape.layers + KERNELS_BESIDE
    starts = -(-local // work.micro_tokens) * kernels * device.launch
    return max(flops / (layout.samplers * device.flops), starts)


def _decode(setting: Setting) -> float:
    """Responses token by token, until the longest is there.

    A replica holds as many as its cache has room for. While more are waiting a place that is left is filled; then the
    number still going falls with P(length > i), and the last tokens are drawn for hardly any: the stragglers.
    """
    work, layout = setting.work, setting.layout
    waiting = work.responses / (layout.samplers / layout.sampler_tensor)
    places = min(waiting, max(1.0, cache_tokens(setting) / _held(setting)))
    # In the middle of things a place is E[t²]/2E[t] tokens into its response.
    age = work.mean_square / (2 * work.response_mean)
    full = (waiting - places) * work.response_mean / places
    seconds = full * _token(setting, places, work.prompt_length + age)
    for i, share in enumerate(work.going):
        some = 1 - (1 - share) ** places if share < 1 else 1.0
        if some < 1e-6:
            break
        running = max(1.0, places * share / some)
        seconds += some * _token(setting, running, work.prompt_length + i)
    return seconds


def _held(setting: Setting) -> float:
    """Tokens of cache that a response takes on average: its prompt's and, at its end, its own mean length."""
    return setting.work.prompt_length + setting.work.response_mean


def _token(setting: Setting, running: float, context: float) -> float:
    """One more token for each response that is going: the longest of products, bytes and kernels.

    Products are 2·weights + 4·L·q·context FLOPs a response; bytes are every weight once and every response's cache.
    Kernels are started while others run. Two all-reduces a layer are added, which at these sizes are latency.
    """
    work, shape, device = setting.work, setting.shape, setting.device
    tensor = setting.layout.sampler_tensor
    weights = shape.body + shape.head
    flops = running * (2 * weights + 4 * shape.layers * shape.queries * context)
    read = work.width * (weights + running * shape.cache * context)
    kernels = KERNELS_LAYER * shape.layers + KERNELS_BESIDE
    busy = max(flops / device.flops, read / device.stream) / tensor
    sent = 2 * shape.layers * device.reduce(running * shape.hidden * work.width, tensor)
    return max(busy, kernels * device.launch) + sent


def _sync(setting: Setting) -> float:
    """The trained weights, gathered from their shards to each sampler's piece, in the sampler's type.

    With a sampler of its own they go over the network; an adapter alone is sent where it is what was trained.
    """
    device, layout, work = setting.device, setting.layout, setting.work
    size = work.width * setting.trained / layout.sampler_tensor
    if layout.sampler_gpus:
        return size / (device.network * device.sends) + device.latency
    return device.gather(size, layout.gpus // layout.sampler_tensor, layout.sampler_tensor)


def _ledger(setting: Setting) -> float:
    """Two durable entries by the first rank, while the others wait, and the readings that every rank gathers."""
    work = setting.work
    size = OF_RESPONSE * work.responses + OF_TOKEN * work.response_tokens
    agreed = AGREEMENTS * setting.device.gather(size, setting.layout.trainers)
    return 2 * work.append + agreed
