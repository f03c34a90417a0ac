"""The charts of a report: which figures there are, what they are called and how to read them."""

from collections.abc import Sequence
from typing import Literal

from kleash.report.drift import drift_charts
from kleash.report.figures import DASHED, Chart, Curve, Limit, by_step, cross_out, spans_a_decade
from kleash.report.guarded import guard_charts
from kleash.report.overoptimisation import overoptimisation
from kleash.report.text import short_name, shorten
from kleash.report.theme import PALETTE
from kleash.report.view import RunView

METRICS = {
    "reward_mean": ("Proxy reward, mean per response", "The scorer that was trained on."),
    "gold": ("Gold reward, mean per response", "The scorer that was only watched."),
    "entropy_per_token": (
        "Entropy, nats per token",
        "How undecided the policy is. Near 0 it has one answer left.",
    ),
    "response_length": (
        "Response length, tokens",
        "A reward that can be had by length shows here first.",
    ),
    "eos_rate": (
        "Responses that end by themselves",
        "Share that reached the end-of-text token before the limit.",
    ),
    "kl_new_old_per_token": ("KL(new‖old), nats per token", "How far one update moved the policy."),
    "clip_fraction": (
        "Clip fraction",
        "Share of tokens whose probability ratio hit the PPO clip.",
    ),
    "grad_norm": ("Gradient norm", "Before clipping. Spikes are the first sign of trouble."),
    "policy_loss": ("Policy loss", "Its level means little; its jumps do."),
    "value_loss": ("Value loss", "How badly the value head predicts the return."),
    "explained_variance": (
        "Explained variance",
        "1: the value head foresees returns. 0: it knows nothing.",
    ),
}
"""Title and reading of the plain charts; "gold" is each run's own monitor."""

BEHAVIOUR = ("entropy_per_token", "response_length", "eos_rate")
OPTIMISER = (
    *("kl_new_old_per_token", "clip_fraction", "grad_norm"),
    *("policy_loss", "value_loss", "explained_variance"),
)


def run_charts(run: RunView, colour: str) -> list[Chart]:
    """The charts of one run, from the leash to the optimiser's own figures."""
    return [
        kl([run], [colour]),
        reward(run, colour),
        kl_coef([run], [colour]),
        *guard_charts(run, colour),
        *drift_charts(run, colour),
        *(_plain(metric, [run], [colour], "small") for metric in (*BEHAVIOUR, *OPTIMISER)),
    ]


def arm_charts(runs: Sequence[RunView], colours: Sequence[str]) -> list[Chart]:
    """Several runs against each other, over-optimisation first."""
    return [
        overoptimisation(runs, colours),
        kl(runs, colours),
        *(_plain(metric, runs, colours, "medium") for metric in ("reward_mean", "gold")),
        kl_coef(runs, colours),
        *(_plain(metric, runs, colours, "medium") for metric in BEHAVIOUR),
    ]


def kl(runs: Sequence[RunView], colours: Sequence[str]) -> Chart:
    """KL(π‖π_ref) by step with its interval, against the target."""
    units = {run.unit for run in runs if run.target is not None}
    unit = units.pop() if len(units) == 1 else "response"
    targets = {run.target for run in runs if run.target is not None and run.unit == unit}
    target = targets.pop() if len(targets) == 1 else None
    curves = [
        _curve(run, f"kl_policy_ref_per_{unit}", colour, interval=True)
        for run, colour in zip(runs, colours, strict=True)
    ]
    reading = "How far the policy has moved from the reference model. The shaded ribbon is the 95 % interval"
    reading += (
        "." if target is None else "; the dashed line is the target, with ±20 % around it in grey."
    )
    limits = {run.limit("max_kl") for run in runs}
    max_kl = limits.pop() if unit == "response" and len(limits) == 1 else None
    limit = None if max_kl is None else Limit(value=max_kl, text=f"limit {max_kl:g} nats")
    figure = by_step(curves, target=target, limit=limit, zero=True, height=260)
    if figure is not None and any(run.rejected for run in runs):
        figure["data"] += [cross_out(curve) for curve in curves]
        reading += " A cross marks a step whose update the guard refused."
    reading += _doubt(runs)
    return Chart(
        title=f"KL(π‖π_ref), nats per {unit}", reading=reading, figure=figure, size="large"
    )


def _doubt(runs: Sequence[RunView]) -> str:
    """At how many steps the interval can't be trusted; nothing when it can at all."""
    unsure = [
        (run, steps)
        for run in runs
        if (steps := run.series("kl_policy_ref_per_response_trusted").count(0))
    ]
    if not unsure:
        return ""
    counts = [
        f"{steps} of {len(run.steps)} steps"
        + (f" of {shorten(run.name, 24)}" if len(runs) > 1 else "")
        for run, steps in unsure
    ]
    return (
        f" Don't rest on the interval at {', '.join(counts)}: "
        "there one response held over a tenth of the KL."
    )


def kl_coef(runs: Sequence[RunView], colours: Sequence[str]) -> Chart:
    """The penalty coefficient β by step; on a log axis when it spans more than a decade."""
    curves = [_curve(run, "kl_coef", colour) for run, colour in zip(runs, colours, strict=True)]
    log = spans_a_decade(value for curve in curves for value in curve.y)
    figure = by_step(curves, log=log)
    reading = "The price of a nat: reward taken away for each nat of KL. A run with a target turns this one knob."
    return Chart(
        title="β, the KL penalty" + (" (log axis)" if log else ""),
        reading=reading,
        figure=figure,
        size="medium",
    )


def reward(run: RunView, colour: str) -> Chart:
    """The trained reward and every monitor by step: the best-known monitor solid, the proxy dashed."""
    others = [name for name in run.monitors if name != run.gold]
    curves = [_curve(run, "reward_mean", colour, label="proxy", dash=DASHED)]
    if run.gold is not None:
        curves.append(_curve(run, f"monitor/{run.gold}", colour, label=short_name(run.gold)))
    spare = [shade for shade in PALETTE if shade != colour]
    curves += [
        _curve(run, f"monitor/{name}", spare[index % len(spare)], label=short_name(name))
        for index, name in enumerate(others)
    ]
    watched = (
        "Dashed: a reward that was only measured. Nothing was trained on it, nor on other scorers."
    )
    trained = "Dashed: the reward that was trained on. " + (
        "Solid: scorers that were only watched. If these fall while the dashed line rises, the reward is being gamed."
        if run.monitors
        else "No other scorer watched this run, so it cannot tell whether the reward is being gamed."
    )
    reading = trained if run.is_judged else watched
    return Chart(
        title="Reward, mean per response", reading=reading, figure=by_step(curves), size="medium"
    )


def _plain(
    metric: str,
    runs: Sequence[RunView],
    colours: Sequence[str],
    size: Literal["medium", "small"],
) -> Chart:
    """One metric of every run, by step."""
    title, reading = METRICS[metric]
    curves = [
        _curve(run, f"monitor/{run.gold}" if metric == "gold" else metric, colour)
        for run, colour in zip(runs, colours, strict=True)
    ]
    return Chart(title=title, reading=reading, figure=by_step(curves), size=size)


def _curve(
    run: RunView,
    metric: str,
    colour: str,
    *,
    label: str = "",
    dash: str = "solid",
    interval: bool = False,
) -> Curve:
    return Curve(
        run=run, metric=metric, label=label or run.name, colour=colour, dash=dash, interval=interval
    )
