"""What is checked before the first step of every run, on real responses: that what will be measured is what is meant.

Most of what goes wrong with a KL (`kleash.functional.penalties` has the rest) shows before anything is learnt: the
policy is still the reference then, so its KL is 0 and its ratios are 1, whatever the model, or something differs
between the two sides that should not.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from kleash.drift import measure_drift
from kleash.functional.kl import largest_share
from kleash.models.blend import Blend
from kleash.models.identity import Fingerprint, are_same, fingerprint
from kleash.models.policy import LanguageModel
from kleash.models.sharded import part
from kleash.records import LARGEST_SHARE
from kleash.rollout.rollout import Rollout
from kleash.rollout.sampler import sample
from kleash.train.algorithms import Algorithm
from kleash.train.algorithms.functions import token_weights
from kleash.train.checks import Check, SelfTest
from kleash.train.config import RunConfig
from kleash.train.experience import Experience, Metered, meter
from kleash.train.gradient_check import (
    STATES,
    head_gradient_error,
    placement_gradient_error,
)
from kleash.train.learner import Learner
from kleash.train.loss import minibatch_loss
from kleash.train.update import propose_update

RESPONSES = 16
"""At most so many are drawn for it."""


class Precision(NamedTuple):
    """What may differ between two forward passes of one model over one text, for a type of weights."""

    kl: float
    """Exact KL, nats per token."""
    logprob: float
    """Log-probability of a token, nats."""


FLOORS = {
    torch.float64: Precision(1e-12, 1e-8),
    torch.float32: Precision(1e-6, 1e-4),
    torch.bfloat16: Precision(2e-3, 0.5),
    torch.float16: Precision(2e-3, 0.1),
}
"""Far over what arithmetic does and far under what a mistake does: a temperature of 0.99 for 1.0 is 1e-4 nats."""
ABOVE_NOISE = 10.0
"""Times the noise floor that a target must be at least."""
TINY = 1e-10
"""Nats per token, where the measured noise is nothing at all."""
FAR = 0.6
"""Nats per token beyond which E_q[p/q] is carried by draws that never come."""
TRIAL_KL_COEF = 0.1
"""β of the update that is tried."""
GRADIENT = 1e-4
"""Relative error of a gradient against differences of what it is the gradient of."""


def self_test(
    learner: Learner,
    prompts: list[str],
    config: RunConfig,
    algorithm: Algorithm,
    generator: torch.Generator,
) -> SelfTest:
    """Draws a few responses and looks at everything that the KL of a run rests on. The learner is left as it was.

    Args:
        learner: as the run will start with.
        prompts: of the run; the first few are asked.
        config: of the run.
        algorithm: whose update is tried, and undone.
        generator: of its own, so that the run draws the same numbers with the test and without.
    """
    group = min(config.rollout.group_size, 2)
    size = max(1, min(config.rollout.num_prompts, RESPONSES // group))
    few = config.rollout.model_copy(update={"num_prompts": size, "group_size": group})
    rollout = sample(learner.policy, prompts[:size], few, generator)
    metered = meter(
        learner,
        rollout,
        temperature=few.temperature,
        micro_batch_size=config.train.micro_batch_size,
    )
    floor = FLOORS[learner.policy.dtype]
    between = _kl_of_padding(learner, rollout, metered, few.temperature)
    noise = _noise(between, rollout, floor)
    scores = torch.randn(len(rollout.mask), generator=generator).to(metered.kl.device)
    trial = Experience(
        rollout=rollout, scores=scores, penalised=scores, monitor={}, metered=metered
    )
    return SelfTest(
        checks=(
            _dropout(learner, rollout),
            noise,
            _sampler(rollout, metered, floor),
            _start(learner, rollout, metered, noise),
            _surprise(rollout, metered),
            _support(learner, rollout, metered),
            _head_gradient(learner, rollout, metered, few.temperature),
            _placement(learner, rollout, metered, config, algorithm),
            _first_ratio(learner, trial, config, algorithm, floor),
            _reference(learner, trial, config, algorithm, generator),
            *_target(between, rollout, config),
        )
    )


def _dropout(learner: Learner, rollout: Rollout) -> Check:
    """That both sides are deterministic: two passes over the same tokens, bit for bit."""
    part = rollout.rows(torch.arange(min(2, len(rollout.mask))))
    active = [
        f"{side.name}: {name}"
        for side in (learner.policy, learner.reference)
        for name, module in side.model.named_modules()
        if module.training and "dropout" in type(module).__name__.lower()
    ]
    gap = max(
        float((_states(side, part) - _states(side, part)).abs().max())
        for side in (learner.policy, learner.reference)
    )
    return Check(
        name="same pass twice",
        value=gap,
        limit=0.0,
        unit="difference of hidden states",
        passed=gap == 0 and not active,
        wrong="the same tokens give other hidden states the second time"
        + (f": dropout is on in {active[0]}" if active else ""),
        do="put policy and reference into eval mode, and use deterministic kernels",
    )


@torch.no_grad()
def _states(side: LanguageModel | Blend, part: Rollout) -> Tensor:
    return side.hidden(part.prompt_ids, part.prompt_mask, part.response_ids, part.mask)


@torch.no_grad()
def _kl_of_padding(
    learner: Learner, rollout: Rollout, metered: Metered, temperature: float
) -> Tensor:
    """Exact KL between a response's distributions in its batch and alone, without padding; [B, T]."""
    kl = torch.zeros_like(metered.kl)
    head = metered.head
    for i in range(len(kl)):
        part = rollout.rows(torch.tensor([i]))
        keep, length = part.mask, part.mask.shape[1]
        alone, together = _states(learner.policy, part)[keep], metered.hidden[i : i + 1, :length]
        read = head.read(together[keep], head, alone, part.response_ids[keep], temperature)
        kl[i : i + 1, :length][keep] = read.kl
    return kl


def _noise(kl: Tensor, rollout: Rollout, floor: Precision) -> Check:
    """The noise floor: what the meter reads where there is nothing to read."""
    reading = measure_drift(
        kl, rollout.mask, rollout.prompt_index, reference="the same, unpadded", unit="token"
    )
    return Check(
        name="noise floor",
        value=reading.value,
        limit=floor.kl,
        unit="nats per token",
        passed=reading.value <= floor.kl,
        wrong="a response has other probabilities in a batch than alone",
        do="check the padding side, the position ids and the attention mask of this architecture",
    )


def _target(kl: Tensor, rollout: Rollout, config: RunConfig) -> tuple[Check, ...]:
    """That a target, where one is given, can be told from noise: the floor in its own unit, on responses as drawn."""
    target, unit = config.rl.kl_target, config.rl.kl_unit
    if target is None:
        return ()
    noise = measure_drift(
        kl, rollout.mask, rollout.prompt_index, reference="the same, unpadded", unit=unit
    ).value
    return (
        Check(
            name=f"{ABOVE_NOISE:g} times the noise floor, against rl.kl_target",
            value=ABOVE_NOISE * noise,
            limit=target,
            unit=f"nats per {unit}",
            passed=ABOVE_NOISE * noise <= target,
            wrong=f"rl.kl_target = {target:.3g} nats per {unit} can't be held where {noise:.3g} are noise",
            do=f"raise rl.kl_target to {ABOVE_NOISE * noise:.3g} or more",
        ),
    )


def _sampler(rollout: Rollout, metered: Metered, floor: Precision) -> Check:
    """That what was sampled from is what is trained: temperature, tokens, masks."""
    gap = float((metered.logprobs - rollout.sampled_logprobs)[rollout.mask].abs().max())
    return Check(
        name="sampler against training",
        value=gap,
        limit=floor.logprob,
        unit="nats, largest difference of a log-probability",
        passed=gap <= floor.logprob,
        wrong="the sampler drew from other probabilities than training computes",
        do="sample and train at one temperature, without top-k or top-p, from the same tokens",
    )


def _start(learner: Learner, rollout: Rollout, metered: Metered, noise: Check) -> Check:
    """That the KL starts at 0, but for noise, where the reference is what the policy is."""
    reading = measure_drift(
        metered.kl,
        rollout.mask,
        rollout.prompt_index,
        reference=learner.reference.name,
        unit="token",
    )
    same = are_same(learner.policy.state(), learner.reference.state())
    assert noise.limit is not None
    # The measured floor, with room for other words than the test's; never more than the type of weights allows.
    limit = min(noise.limit, 100 * noise.value + TINY) if same else None
    return Check(
        name="KL at step 0",
        value=reading.value,
        limit=limit,
        unit="nats per token",
        passed=reading.is_possible and (limit is None or reading.value <= limit),
        wrong="policy and reference have the same weights and yet a KL between them",
        do="give both sides the same temperature, tokens, masks and mode",
    )


def _surprise(rollout: Rollout, metered: Metered) -> Check:
    """That tokens are drawn from the whole of π: on average log π of the token drawn is −H, at every state.

    −log π − H is a martingale difference: uncorrelated from token to token, so that the root of its squares' sum is the
    standard error of its sum. Greedy, top-k, top-p or cooler draws are less surprising than the entropy says.
    """
    excess = (-metered.logprobs - metered.entropy)[rollout.mask].double()
    return _martingale(
        excess,
        name="surprise of the tokens drawn, less entropy",
        unit="nats per token",
        wrong="tokens are not drawn from the policy's whole distribution at this temperature",
    )


def _support(learner: Learner, rollout: Rollout, metered: Metered) -> Check:
    """E_q[p/q] = 1 at every state, unless what was drawn from leaves out what the reference can say.

    Far from the reference the mean is carried by draws that never come, as k3's is: then it proves nothing, and passes.
    So it does of several references, which are no distribution together.
    """
    weights = (metered.ref_logprobs - rollout.sampled_logprobs)[rollout.mask].double()
    trusted = (
        not isinstance(learner.reference, Blend)
        and largest_share(weights.exp()) <= LARGEST_SHARE
        and float(metered.kl[rollout.mask].mean()) <= FAR
    )
    check = _martingale(
        weights.expm1(),
        name="mean of p/q less 1",
        unit="per token",
        wrong="what is drawn from leaves out what the reference can say",
    )
    return check if trusted else replace(check, limit=None, passed=True)


def _martingale(excess: Tensor, *, name: str, unit: str, wrong: str) -> Check:
    """That a mean is 0 within four standard errors, and a thousandth for rounding."""
    mean = abs(float(excess.mean()))
    limit = 4 * float(excess.norm()) / len(excess) + 1e-3
    return Check(
        name=name,
        value=mean,
        limit=limit,
        unit=unit,
        passed=mean <= limit,
        wrong=wrong,
        do="sample at rollout.temperature, without top-k, top-p or suppressed tokens",
    )


def _head_gradient(
    learner: Learner, rollout: Rollout, metered: Metered, temperature: float
) -> Check:
    """That the exact KL of this model's own heads is differentiated rightly."""
    rows = rollout.mask.nonzero()[:2]
    own, theirs = (x[rows[:, 0], rows[:, 1]] for x in (metered.hidden, metered.ref_hidden))
    error = head_gradient_error(metered.head, own, learner.reference.head, theirs, temperature)
    return Check(
        name="gradient of the exact KL",
        value=error,
        limit=GRADIENT,
        unit="relative error against differences",
        passed=error <= GRADIENT,
        wrong="the gradient of the KL is not that of its value on this model's heads",
        do="report it: it is a bug of kleash, or an architecture it does not know",
    )


def _placement(
    learner: Learner, rollout: Rollout, metered: Metered, config: RunConfig, algorithm: Algorithm
) -> Check:
    """That the chosen penalty, as this algorithm places it, has the gradient that it is named for."""
    penalty, rows = config.penalty.resolved, rollout.mask.nonzero()[:STATES]
    states = (x[rows[:, 0], rows[:, 1]] for x in (metered.hidden, metered.ref_hidden))
    logits, ref_logits = (
        head(x) for head, x in zip((metered.head, learner.reference.head), states, strict=True)
    )
    error = placement_gradient_error(
        logits, ref_logits, penalty, algorithm, config.rollout.temperature
    )
    return Check(
        name=f"gradient of the penalty, {penalty.placement} with {penalty.estimator}",
        value=error,
        limit=GRADIENT,
        unit="relative error against differences",
        passed=error <= GRADIENT,
        wrong="the penalty does not have the gradient of the divergence it is named for",
        do='set penalty.placement = "exact"',
    )


def _first_ratio(
    learner: Learner, trial: Experience, config: RunConfig, algorithm: Algorithm, floor: Precision
) -> Check:
    """That the update starts where sampling ended: before anything moves every ratio is 1, and the loss is −mean A."""
    # Without χ², whose charge of a policy that begins far off would be more than a ratio's rounding may be times it.
    penalty = config.penalty.resolved.of_kl
    targets = algorithm.targets(trial, TRIAL_KL_COEF, config.algorithm, penalty)
    every = torch.arange(len(trial.scores))
    parts = minibatch_loss(learner, algorithm, trial, targets, every, config).parts
    mask = trial.rollout.mask
    weights = token_weights(mask, config.rollout.max_new_tokens, config.algorithm)
    expected = -float((weights * targets.advantages[mask]).mean())
    error = max(abs(parts["policy_loss"] - expected), parts["clip_fraction"])
    return Check(
        name="first ratios",
        value=error,
        limit=floor.logprob,
        unit="error of the first loss, or share clipped",
        passed=error <= floor.logprob,
        wrong="the update does not start from the policy that was sampled from",
        do="give sampling, metering and update the same temperature, tokens and masks",
    )


def _reference(
    learner: Learner,
    trial: Experience,
    config: RunConfig,
    algorithm: Algorithm,
    generator: torch.Generator,
) -> Check:
    """That an update is finite, leaves the reference alone and can be undone: one is made, on random scores."""
    trained = {p.data_ptr() for p in learner.trained if p.numel()}
    held = {name: part(p) for name, p in learner.reference.own_weights.items()}
    tied = [name for name, p in held.items() if p.data_ptr() in trained]
    awake = [n for n, p in learner.reference.own_weights.items() if p.requires_grad]

    def prints() -> tuple[Fingerprint, Fingerprint]:
        return fingerprint(learner.reference.state()), fingerprint(learner.policy.state())

    before = prints()
    targets = algorithm.targets(trial, TRIAL_KL_COEF, config.algorithm, config.penalty.resolved)
    # Of several processes with a part of the weights each makes all of it, so that the gradient is as many times as
    # large, and is clipped: it is only to be gone along and back.
    proposal = propose_update(learner, algorithm, trial, targets, config, generator)
    moved = prints()[0] != before[0]
    learner.restore(proposal.snapshot)
    faults = {
        "the reference shares weights with the policy": bool(tied),
        "the reference asks for gradients": bool(awake),
        "the reference was moved by an update": moved,
        "an update was not finite": not proposal.facts.finite,
        "an update could not be undone": prints() != before and not moved,
    }
    found = [what for what, is_so in faults.items() if is_so]
    return Check(
        name="a trial update",
        value=float(len(found)),
        limit=0.0,
        unit="faults",
        passed=not found,
        wrong="; ".join(found),
        do="load the reference as a model of its own, frozen; train every weight that is not",
    )
