"""A plan: how long a step takes, what fits, and what meter and guard add."""

from dataclasses import replace
from typing import NamedTuple

from kleash.lab.cluster.memory import Memory, cache_tokens, memory
from kleash.lab.cluster.seconds import phases
from kleash.lab.cluster.setting import Setting

SAMPLING = ("prefill", "decode")
GB = 1e9


class Added(NamedTuple):
    """What is paid for knowing, as shares of a step without."""

    exact: float
    """Exact KL instead of the sampled token's, where the policy is run over its rollout anyhow."""
    meter: float
    """The same with that run, which a trainer that trusts its sampler's probabilities saves."""
    guard: float
    """Snapshot, measurement of the proposed update, ledger; over a step with the meter."""


class Plan(NamedTuple):
    """What came out."""

    gpus: int
    seconds: dict[str, float]
    """By phase."""
    step: float
    """Seconds. With a sampler of its own the longer side's, and the hand-over of weights."""
    memory: Memory
    fits: bool
    reasons: tuple[str, ...]
    """What does not fit, and why."""
    added: Added

    @property
    def gpu_hours(self) -> float:
        """Of 1,000 steps."""
        return self.gpus * self.step * 1000 / 3600


def simulate(setting: Setting) -> Plan:
    """The plan of a step.

    Examples:
        >>> from kleash.lab.cluster import DEVICES, SHAPES, Layout, Workload
        >>> work = Workload(prompts=64, group=8, prompt_length=256, response_mean=512, response_max=2048)
        >>> given = Setting(
        ...     shape=SHAPES["llama-3.1-8b"], device=DEVICES["h100"], layout=Layout(gpus=8), work=work
        ... )
        >>> simulate(given).fits
        True
    """
    seconds, found = phases(setting), memory(setting)
    reasons = _reasons(setting, found)
    return Plan(
        gpus=setting.layout.gpus,
        seconds=seconds,
        step=step_seconds(setting, seconds),
        memory=found,
        fits=not reasons,
        reasons=reasons,
        added=_added(setting),
    )


def step_seconds(setting: Setting, seconds: dict[str, float]) -> float:
    """One after the other on the same GPUs; side by side on two sets of them."""
    whole = sum(seconds.values())
    if not setting.layout.sampler_gpus:
        return whole
    sampling = sum(seconds[name] for name in SAMPLING)
    learning = whole - sampling - seconds["sync"]
    return max(sampling, learning) + seconds["sync"]


def _added(setting: Setting) -> Added:
    whole = _step(setting)
    metered = _step(setting, guard=False)
    sampled = _step(setting, guard=False, exact=False)
    trusting = _step(setting, guard=False, exact=False, meter=False)
    return Added(metered / sampled - 1, metered / trusting - 1, whole / metered - 1)


def _step(setting: Setting, **without: bool) -> float:
    """A step without some of it, on the same machines."""
    other = replace(setting, work=replace(setting.work, **without))
    return step_seconds(other, phases(other))


def _reasons(setting: Setting, found: Memory) -> tuple[str, ...]:
    room = setting.device.memory * (1 - setting.device.kept)
    reasons: list[str] = []
    for moment, parts in (("learning", found.learning), ("sampling", found.sampling)):
        needed = sum(parts.values())
        if needed > room:
            largest = sorted(parts, key=parts.__getitem__, reverse=True)[:3]
            named = ", ".join(f"{name} {parts[name] / GB:.1f}" for name in largest)
            reasons.append(
                f"{moment} takes {needed / GB:.1f} GB of {room / GB:.1f} on each GPU: {named} GB"
            )
    held = setting.work.prompt_length + setting.work.response_max
    if not reasons and cache_tokens(setting) < held:
        reasons.append(
            f"the sampler's cache has room for {cache_tokens(setting):,.0f} tokens, and one response takes {held:,.0f}"
        )
    return tuple(reasons)
