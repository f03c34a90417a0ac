"""The model card of a policy that TRL trained: above all, how far it has moved."""

from kleash.integrations.trl.config import DPORunConfig, SFTRunConfig
from kleash.records import KLReading
from kleash.train.card import reading_text
from kleash.train.directory import Ending


def model_card(
    config: DPORunConfig | SFTRunConfig, ending: Ending, drift: KLReading | None, reference: str
) -> str:
    """README.md of `final/`, as Markdown with the header that hubs read.

    Args:
        config: of the run.
        ending: how it ended.
        drift: KL(π‖π_ref) of the weights that are saved; None when it was not measured.
        reference: the reference's name.
    """
    last = ending.last
    is_dpo = isinstance(config, DPORunConfig)
    how = (
        f"DPO (β = {config.dpo.beta:g}, {config.dpo.loss} loss)"
        if is_dpo
        else "supervised fine-tuning"
    )
    on = config.data.pairs if is_dpo else config.data.texts
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            f"tags: [kleash, trl, {'dpo' if is_dpo else 'sft'}]",
            "---",
            "",
            f"# {config.model.policy}, trained with {'DPO' if is_dpo else 'SFT'} on {on}",
            "",
            f"Trained by TRL's {how}, measured by kleash, for {config.train.steps} steps of {config.train.batch_size} "
            f"{'pairs' if is_dpo else 'texts'} ({ending.status}).",
            "",
            "## Drift from the reference",
            "",
            f"- reference: {reference}",
            f"- KL(π‖π_ref) of these weights: {reading_text(drift)}",
            *(
                []
                if last is None
                else [f"- last measured after step {last.step}: {reading_text(last.kl)}"]
            ),
            f"- measured at temperature {config.rollout.temperature}, on responses of at most "
            f"{config.rollout.max_new_tokens} tokens to prompts from {config.data.prompts}",
            "",
            "Nothing in this training holds the KL; it is what came out.",
            "A small KL keeps a model near its reference; it doesn't make it right, and it keeps its faults.",
            "",
            "`kleash verify` on the run directory checks the record behind these figures.",
            "",
        ]
    )
