"""What follows from several settings of TRL's together: what is sampled, how often it is learnt from, at what β."""

import math

from kleash.integrations.trl.migration import Draft, flag, number, text, whole

POSITIVE = number(0.0)
NO_PROMPTS = (
    "data.prompts is kleash's own embedded set: name a file with your prompts, one a line or JSONL with "
    "`prompt`"
)
_EXACT = (
    "the KL that steers is exact over the whole vocabulary, not an estimate from the tokens drawn; it is never "
    "clamped"
)


def _per_rollout(draft: Draft, responses: int, group_size: int) -> None:
    """How much is sampled a step."""
    if responses % group_size:
        draft.differs.append(
            f"{responses} responses are no whole number of groups of {group_size}: rounded up"
        )
    draft.put("rollout.num_prompts", max(1, math.ceil(responses / group_size)))
    draft.put("rollout.group_size", group_size)


def _minibatches(draft: Draft, wanted: int, responses: int) -> None:
    count = max(1, min(wanted, responses))
    draft.put("algorithm.num_minibatches", count)


def _steps(draft: Draft, key: str, per_step: int, why: str) -> None:
    """How long it runs: rollouts and their updates."""
    found = draft.take(key, whole(1, 10**12))
    if found is None:
        draft.differs.append(f"train.steps is kleash's default: {why}")
    else:
        draft.put("train.steps", max(1, math.ceil(found / per_step)))


def _schedule(draft: Draft) -> None:
    kind = draft.given.get("lr_scheduler_type") or "linear"
    draft.used.add("lr_scheduler_type")
    if kind in ("linear", "constant", "constant_with_warmup"):
        draft.put("optimizer.schedule", "linear" if kind == "linear" else "constant")
    else:
        draft.leave("lr_scheduler_type", "kleash has linear and constant; it is constant here")


def _fixed(draft: Draft, key: str) -> None:
    coef = draft.take(key, number(0.0, 1e9, closed="low high"))
    draft.put("rl.controller", "fixed")
    draft.put("rl.kl_coef", 0.0 if coef is None else coef)
    draft.differs.append(
        'β stays fixed, as it was; rl.controller = "tilt" with rl.kl_target in nats would hold a KL instead'
    )


def ppo_old(draft: Draft) -> None:
    """PPO up to 0.11: a controller, passes over a batch, and an early stop."""
    responses = draft.take("batch_size", whole(1))
    small = draft.take("mini_batch_size", whole(1))
    accumulated = draft.take("gradient_accumulation_steps", whole(1))
    draft.put("algorithm.name", "ppo")
    _per_rollout(draft, responses, 1)
    _minibatches(draft, responses // max(1, small * accumulated), responses)
    _steps(draft, "steps", responses, "`steps` was not said")
    draft.put("optimizer.schedule", "constant")
    if draft.given.get("max_grad_norm") is None:
        draft.differs.append(
            "optimizer.max_grad_norm is 1: TRL clipped no gradient unless told, kleash always does"
        )
    draft.differs.append(NO_PROMPTS)
    _old_controller(draft)
    kind = draft.take("kl_penalty", text)
    draft.put("penalty.placement", "reward")
    draft.put("penalty.estimator", "exact" if kind == "full" else "k1")
    if kind in ("abs", "mse"):
        draft.leave(
            "kl_penalty",
            "|u| and ½u² in the reward have the gradient of no KL; k1 is there instead, the log-ratio itself",
        )
    elif kind not in ("kl", "full"):
        draft.leave("kl_penalty", "TRL had kl, abs, mse and full; k1 is there instead")
    draft.differs.append(_EXACT)
    draft.differs.append(
        "TRL's target was of the k1 estimate, a mean of log-ratios of the drawn tokens that may be negative; the "
        "number is nats per response in both"
    )
    stops = draft.take("early_stopping", flag)
    limit = draft.take("target_kl", POSITIVE)
    if stops and limit is not None:
        draft.put("guard.stop_kl", 1.5 * limit)
        draft.differs.append(
            "early_stopping became guard.stop_kl: 1.5 · target_kl, where TRL stopped a pass too, in nats per token"
        )
    elif limit is not None:
        draft.leave("target_kl", "it is early_stopping's, which is off")


def _old_controller(draft: Draft) -> None:
    """Ziegler's controller, or none."""
    if draft.take("adap_kl_ctrl", flag) is False:
        _fixed(draft, "init_kl_coef")
        for key in ("target", "horizon"):
            draft.leave(key, "it is the adaptive controller's, which is off")
        return
    target = draft.take("target", number(1e-15, 1e6, closed="low high"))
    horizon = draft.take("horizon", whole(1, 10**12))
    coef = draft.take("init_kl_coef", number(1e-9, 1e9, closed="low high"))
    draft.put("rl.controller", "ziegler")
    draft.put("rl.kl_coef", coef)
    draft.put("rl.kl_target", target)
    draft.put("rl.ziegler.horizon", horizon)
    draft.differs.append(
        f"a horizon of {horizon} episodes moves β slowly (10000 was TRL's default, as is 10000 of rl.ziegler); "
        'rl.controller = "tilt" without rl.kl_coef and rl.ziegler comes to the same target in tens of steps'
    )


def ppo_new(draft: Draft) -> None:
    """PPO of 0.12 and after: a fixed β."""
    _on_policy(draft, 1)
    draft.put("algorithm.name", "ppo")
    draft.put("algorithm.num_epochs", draft.take("num_ppo_epochs", whole(1)))


def rloo_old(draft: Draft) -> None:
    """RLOO up to 0.22."""
    _on_policy(draft, draft.take("rloo_k", whole(2)))
    draft.put("algorithm.name", "rloo")
    draft.put("algorithm.num_epochs", draft.take("num_ppo_epochs", whole(1)))
    draft.put("algorithm.clip_eps", draft.take("cliprange", number(0.0, 1.0)))
    scales = draft.take("normalize_advantage", flag)
    draft.put("algorithm.scale", "batch" if scales else "none")
    draft.leave(
        "token_level_kl", "the penalty in the reward is charged by token, and adds up to the same"
    )
    draft.leave("normalize_reward", "kleash takes the reward's own units")


def _on_policy(draft: Draft, group_size: int) -> None:
    """What the trainers of 0.12 on had in common."""
    each = draft.take("per_device_train_batch_size", whole(1))
    accumulated = draft.take("gradient_accumulation_steps", whole(1))
    batches = draft.take("num_mini_batches", whole(1))
    responses = each * accumulated * batches
    _per_rollout(draft, responses, group_size)
    _minibatches(draft, batches, responses)
    _steps(draft, "total_episodes", responses, "`total_episodes` was not said; TRL counted epochs")
    _schedule(draft)
    _fixed(draft, "kl_coef")
    estimator = draft.take("kl_estimator", text)
    draft.put("penalty.placement", "reward")
    draft.put("penalty.estimator", "k1")
    if estimator not in (None, "k1"):
        draft.leave(
            "kl_estimator",
            "k3 in the reward descends a difference of KLs that has no minimum; k1 does",
        )
    draft.differs += [_EXACT, NO_PROMPTS]
    if "learning_rate" not in draft.given:
        draft.differs.append(
            "optimizer.learning_rate is kleash's: TRL's default depended on its release"
        )
    draft.differs.append("several devices are not counted: the batch is that of one process")


def _grouped(draft: Draft) -> tuple[int, int]:
    """What GRPO and RLOO of TRL 1 have in common; responses a rollout, and those to each prompt."""
    each = draft.take("per_device_train_batch_size", whole(1))
    accumulated = draft.take("gradient_accumulation_steps", whole(1))
    slices = draft.take("steps_per_generation", whole(1)) or accumulated
    responses = draft.take("generation_batch_size", whole(1)) or each * slices
    size, passes = draft.take("num_generations", whole(2)), draft.take("num_iterations", whole(1))
    _per_rollout(draft, responses, size)
    minibatches = max(1, slices // accumulated)
    _minibatches(draft, minibatches, responses)
    draft.put("algorithm.num_epochs", passes)
    made = minibatches * passes
    _steps(draft, "max_steps", made, "`max_steps` was not said; TRL counted epochs")
    _schedule(draft)
    _fixed(draft, "beta")
    draft.differs += [_EXACT, NO_PROMPTS]
    return responses, size


def grpo(draft: Draft) -> None:
    """GRPO: β stands in the loss, beside advantages that were divided."""
    _grouped(draft)
    loss = draft.take("loss_type", text)
    sequence = draft.take("importance_sampling_level", text) == "sequence"
    named = {"grpo": "grpo", "dr_grpo": "dr_grpo", "dapo": "dapo", "bnpo": "dapo"}
    if loss not in named:
        draft.leave("loss_type", "kleash has no such loss; grpo is there instead")
    name = "gspo" if sequence else named.get(loss, "grpo")
    draft.put("algorithm.name", name)
    _clips(draft)
    scale = draft.take("scale_rewards", _scale)
    draft.put("algorithm.scale", scale)
    weighted = draft.take("use_bias_correction_kl", flag)
    draft.put("penalty.placement", "loss" if weighted else "forward")
    draft.put("penalty.estimator", "k3")
    if weighted:
        draft.put("penalty.weight", "ratio")
    draft.differs.append(
        "TRL's beta stands beside advantages divided by σ and shortened by 1 − 1/G; rl.kl_coef is reward per nat: the "
        f"same penalty is beta · {'σ' if scale != 'none' else '1'}/(1 − 1/G), σ that of the rewards, not known here"
    )
    draft.differs.append(
        'k3 in the loss descends KL(π_ref‖π) of each token; penalty.placement = "exact" descends KL(π‖π_ref)'
    )


def _scale(value: object) -> str:
    """What GRPO divides advantages by."""
    if isinstance(value, bool):
        return "group" if value else "none"
    if value not in ("group", "batch", "none"):
        raise ValueError("TRL had group, batch and none; group is there instead")
    return str(value)


def _clips(draft: Draft) -> None:
    draft.put("algorithm.clip_eps", draft.take("epsilon", number(0.0, 1.0)))
    high = draft.take("epsilon_high", POSITIVE)
    if high is not None:
        draft.put("algorithm.clip_eps_high", high)


def rloo(draft: Draft) -> None:
    """RLOO of 0.23 and after: β stands in the reward."""
    _grouped(draft)
    draft.put("algorithm.name", "rloo")
    draft.put("algorithm.clip_eps", draft.take("epsilon", number(0.0, 1.0)))
    draft.leave("epsilon_high", "kleash's rloo clips on both sides alike")
    scales = draft.take("normalize_advantages", flag)
    draft.put("algorithm.scale", "batch" if scales else "none")
    draft.leave(
        "reward_clip_range", "kleash takes the reward as it is: clip it in the reward function"
    )
    draft.put("penalty.placement", "reward")
    draft.put("penalty.estimator", "k1")
