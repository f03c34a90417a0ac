"""Algorithms as records of small functions. A new one is a function or two and a line in `ALGORITHMS`."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from kleash.train.algorithms.config import AlgorithmConfig
from kleash.train.algorithms.functions import targets, token_terms, value_loss
from kleash.train.algorithms.record import Algorithm

_EVERY = {"correction": "none", "correction_cap": 2.0, "correction_drop": False}
_STEPS = {**_EVERY, "num_epochs": 1, "num_minibatches": 1}
_CLIP = {**_STEPS, "num_epochs": 2, "num_minibatches": 2, "clip_eps": 0.2, "clip_eps_high": None}
_GROUP = {
    **_CLIP,
    "baseline": "group",
    "scale": "none",
    "control_variate": True,
    "ratio": "token",
    "aggregate": "response",
}
_PLAIN = {
    **_STEPS,
    "clip_eps": None,
    "baseline": "batch",
    "scale": "none",
    "control_variate": True,
    # Over a constant: a mean over the tokens that happened to be drawn is no estimate without bias.
    "aggregate": "length",
}

_CRITIC = {
    **_CLIP,
    "baseline": "value",
    "scale": "batch",
    "aggregate": "token",
    "gamma": 1.0,
    "gae_lambda": 0.95,
    "value_clip_eps": 0.2,
    "value_coef": 0.1,
    "whiten_rewards": False,
}

ALGORITHMS: dict[str, Algorithm] = {
    "ppo": Algorithm(_CRITIC, targets, token_terms, value_loss),
    "ppo_kl": Algorithm(
        {**_CRITIC, "clip_eps": None, "step_penalty": 1.0, "step_kl": 0.01},
        targets,
        token_terms,
        value_loss,
    ),
    "grpo": Algorithm({**_GROUP, "scale": "group"}, targets, token_terms),
    "dr_grpo": Algorithm({**_GROUP, "aggregate": "length"}, targets, token_terms),
    "dapo": Algorithm(
        {**_GROUP, "scale": "group", "aggregate": "token", "clip_eps_high": 0.28},
        targets,
        token_terms,
    ),
    "gspo": Algorithm(
        {**_GROUP, "scale": "group", "ratio": "sequence", "clip_eps": 3e-4, "clip_eps_high": 4e-4},
        targets,
        token_terms,
    ),
    "rloo": Algorithm({**_PLAIN, "baseline": "leave_one_out"}, targets, token_terms),
    "reinforce": Algorithm(_PLAIN, targets, token_terms),
    "trpo": Algorithm(
        {
            **_EVERY,
            "update": "natural",
            "baseline": "leave_one_out",
            "scale": "none",
            "control_variate": True,
            "aggregate": "token",
            "clip_eps": None,
            "step_kl": 0.01,
            "cg_iterations": 10,
            "cg_probes": 8,
            "cg_damping": 1e-4,
        },
        targets,
        token_terms,
    ),
    "reinforce++": Algorithm(
        {**_PLAIN, "scale": "batch", "aggregate": "token"}, targets, token_terms
    ),
}


def resolve_algorithm(given: Any) -> Any:
    """The settings of an algorithm, its own defaults where nothing is said; a validator of `RunConfig.algorithm`.

    Raises:
        ValueError: there is no such algorithm, or it has no use for a setting.

    Examples:
        >>> resolve_algorithm({"name": "dapo"})["clip_eps_high"]
        0.28
    """
    said = given.model_dump(exclude_unset=True) if isinstance(given, AlgorithmConfig) else given
    name = said.get("name", "ppo") if isinstance(said, Mapping) else None
    if not isinstance(name, str):
        return given  # of a wrong type, which pydantic refuses in its own words
    if name not in ALGORITHMS:
        near = get_close_matches(name, ALGORITHMS, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"algorithm.name among {', '.join(ALGORITHMS)}{meant}")
    settings = ALGORITHMS[name].settings
    fields = AlgorithmConfig.model_fields
    # A resolved configuration names every setting; what stands there as it is anyway asks for nothing.
    idle = [
        key
        for key in said
        if key in fields and key not in {"name", *settings} and said[key] != fields[key].default
    ]
    if idle:
        raise ValueError(
            f"no algorithm.{idle[0]}, of which {name} has no use; it has {', '.join(settings)}"
        )
    update = settings.get("update", fields["update"].default)
    if said.get("update", update) != update:
        raise ValueError(f'algorithm.update = "{update}" for {name}: it is what makes it one')
    if "step_penalty" in settings and said.get("step_penalty") == 0:
        raise ValueError(f"algorithm.step_penalty over 0 for {name}: 0 can't be doubled")
    return {"name": name, **settings, **said}
