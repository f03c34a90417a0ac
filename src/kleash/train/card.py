"""The model card of a trained policy: above all, how far it has moved."""

from kleash.records import StepRecord
from kleash.train.config import RunConfig


def model_card(config: RunConfig, last: StepRecord | None, reference: str, status: str) -> str:
    """README.md of `final/`, as Markdown with the header that hubs read.

    Args:
        config: of the run.
        last: the last step's record; None when no step was made.
        reference: the reference's name.
        status: how the run ended, in the ledger's words.
    """
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "tags: [kleash, rlhf, ppo]",
            "---",
            "",
            f"# {config.model.policy}, trained with PPO on {config.reward.model}",
            "",
            f"Trained by kleash for {0 if last is None else last.step} of {config.train.steps} steps ({status}).",
            "",
            "## Drift from the reference",
            "",
            f"- reference: {reference}",
            *_drift(config, last),
            f"- measured at temperature {config.rollout.temperature}, on responses of at most "
            f"{config.rollout.max_new_tokens} tokens to prompts from {config.data.prompts}",
            "",
            "A small KL keeps a model near its reference; it doesn't make it right, and it keeps its faults.",
            "",
            "`kleash verify` on the run directory checks the record behind these figures.",
            "",
        ]
    )


def _drift(config: RunConfig, last: StepRecord | None) -> list[str]:
    if last is None:
        return ["- KL(π‖π_ref): not measured, no step was made"]
    held = (
        f"held to {config.rl.kl_target:g} nats per {config.rl.kl_unit} by the adaptive controller"
        if config.rl.controller == "adaptive"
        else "not controlled (fixed β)"
    )
    return [
        f"- KL(π‖π_ref) of the policy that sampled step {last.step}, before that step's update: {last.kl} "
        f"({last.kl.level:.0%} interval, {last.kl.n} responses to {last.kl.clusters} prompts, {last.kl.estimator})",
        f"- β at that step: {last.kl_coef:.6g}; {held}",
    ]
