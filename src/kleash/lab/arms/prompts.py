"""The prompts that everything is measured on: the same of the reference's pools and of every arm's examination.

How good a response is depends on its prompt: gold rewards of two parts of one file differ by more than many an arm
gains. So what is held against each other is asked the same.
"""

from kleash.rollout.seeds import seeded
from kleash.train.data import Shuffled, load_prompts


def asked(source: str, most: int) -> list[str]:
    """All the prompts of a file; where it has more than so many, these of one shuffle: of a smaller number the first.

    Args:
        source: as `data.prompts` takes it.
        most: prompts.

    Raises:
        InputError: there is no such file, or it holds no prompt.

    Examples:
        >>> len(asked("tiny-reviews/prompts", 1000))
        96
        >>> asked("tiny-reviews/prompts", 24)[:8] == asked("tiny-reviews/prompts", 8)
        True
    """
    prompts = load_prompts(source)
    if len(prompts) <= most:
        return prompts
    return next(Shuffled(prompts, len(prompts), seeded(0, "asked")))[:most]
