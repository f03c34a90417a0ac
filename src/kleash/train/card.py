"""The model card of a trained policy: above all, how far it has moved."""

from kleash.functional.penalties import check_penalty
from kleash.records import KLReading, StepRecord
from kleash.train.config import RunConfig


def model_card(
    config: RunConfig,
    last: StepRecord | None,
    drift: KLReading | None,
    reference: str,
    status: str,
) -> str:
    """README.md of `final/`, as Markdown with the header that hubs read.

    Args:
        config: of the run.
        last: the last step's record; None when no step was made.
        drift: KL(π‖π_ref) of the weights that are saved; None when it was not measured.
        reference: the reference's name.
        status: how the run ended, in the ledger's words.
    """
    return "\n".join(
        [
            "---",
            f"library_name: {'transformers' if config.model.lora is None else 'peft'}",
            f"tags: [kleash, rlhf, {config.algorithm.name}]",
            "---",
            "",
            f"# {config.model.policy}, trained with {config.algorithm.name} on {config.reward.name}",
            "",
            f"Trained by kleash for {0 if last is None else last.step} of {config.train.steps} steps ({status}).",
            "",
            *_adapter(config),
            "## Drift from the reference",
            "",
            f"- reference: {reference}",
            *_drift(config, last, drift),
            f"- measured at temperature {config.rollout.temperature}, on responses of at most "
            f"{config.rollout.max_new_tokens} tokens to prompts from {config.data.prompts}",
            "",
            "A small KL keeps a model near its reference; it doesn't make it right, and it keeps its faults.",
            "",
            "`kleash verify` on the run directory checks the record behind these figures.",
            "",
        ]
    )


def _adapter(config: RunConfig) -> list[str]:
    lora = config.model.lora
    if lora is None:
        return []
    said = f"A LoRA adapter of rank {lora.rank} and α = {lora.scale:g}: peft loads it on {config.model.policy}."
    return [said, ""]


def _drift(config: RunConfig, last: StepRecord | None, drift: KLReading | None) -> list[str]:
    return [
        f"- KL(π‖π_ref) of these weights: {reading_text(drift)}",
        *(
            []
            if last is None or last.kl_coef is None
            else [
                f"- of the policy that sampled step {last.step}, before that step's update: {reading_text(last.kl)}",
                f"- β at that step: {last.kl_coef:.6g}, {_held(config)}; {_penalty(config)}",
            ]
        ),
    ]


def _penalty(config: RunConfig) -> str:
    penalty = config.penalty.resolved
    gradient = check_penalty(penalty)
    divergence = "KL(π‖π_ref)" if gradient.divergence == "reverse" else "KL(π_ref‖π)"
    scope = "of the whole response" if gradient.scope == "sequence" else "of each token alone"
    beside = f" and {penalty.chi_squared:g}/2 χ²(π‖π_ref)" if penalty.chi_squared else ""
    return f"the penalty ({penalty.placement}, {penalty.estimator}) descends {divergence}{beside} {scope}"


def _held(config: RunConfig) -> str:
    if config.rl.controller == "fixed":
        return "fixed"
    return f"set by the {config.rl.controller} controller for {config.rl.kl_target:g} nats per {config.rl.kl_unit}"


def reading_text(reading: KLReading | None) -> str:
    """A reading with all that it rests on."""
    if reading is None:
        return "not measured"
    return (
        f"{reading} ({reading.level:.0%} interval, {reading.n} responses to {reading.clusters} prompts, "
        f"{reading.estimator})"
    )
