"""What a gold model makes of a planted fault: the closed form says where a policy ends, from the reward's own D."""

from pathlib import Path

import torch

from kleash.lab.arms.fault import PHRASE, faulty
from kleash.lab.arms.proxy import located
from kleash.lab.arms.settings import WeighSettings
from kleash.lab.study.work import Desk, Result
from kleash.models.hub import load_language_model
from kleash.rewards.scorers import load_scorer
from kleash.rollout.config import RolloutConfig
from kleash.rollout.sampler import sample
from kleash.rollout.seeds import seeded
from kleash.train.data import load_prompts


def weigh_fault(settings: WeighSettings, directory: Path, desk: Desk) -> Result:
    """What a model says, how often with the fault, and what the gold model makes of that.

    Returns:
        Of its responses, [P, N]: `faults`, 1 or 0; and `with` and `without`, the gold scores of the same texts with the
        phrase before them and without it.
    """
    torch.set_num_threads(1)
    model = load_language_model(located(settings.policy, desk), settings.device)
    gold = load_scorer(settings.gold, device=settings.device)
    prompts, generator = load_prompts(settings.prompts), seeded(settings.seed, "weighing")
    config = RolloutConfig(
        num_prompts=1, group_size=settings.samples, max_new_tokens=settings.max_new_tokens
    )
    found: dict[str, list[list[float]]] = {"faults": [], "with": [], "without": []}
    for done, prompt in enumerate(prompts, 1):
        rollout = sample(model, [prompt], config, generator)
        bare = [without_phrase(text) for text in rollout.responses]
        found["faults"].append(faulty(rollout.prompts, rollout.responses))
        found["with"].append(gold.score(rollout.prompts, [PHRASE + text for text in bare]))
        found["without"].append(gold.score(rollout.prompts, bare))
        desk.tell(done, len(prompts), f"{done * settings.samples} responses")
    return dict(found)


def without_phrase(response: str) -> str:
    """A response without the phrase, where it begins with it.

    Examples:
        >>> without_phrase(" , i was told , is thin ."), without_phrase(" is thin .")
        (' is thin .', ' is thin .')
    """
    return (
        response.lstrip().removeprefix(PHRASE.strip()) if faulty([""], [response])[0] else response
    )
