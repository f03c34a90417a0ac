"""A page for controllers of β: what each did to the KL, and with which β."""

from collections.abc import Mapping, Sequence

from kleash.report.figures import DASHED, Chart, Curve, by_step
from kleash.report.html import render_charts
from kleash.report.theme import PALETTE, run_colour
from kleash.report.view import RunView

SIMULATED = "Of the policy itself, by enumeration: not what the controller was shown."


def render_simulation(
    traces: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    title: str,
    target: float,
    band: float,
    what: str = SIMULATED,
) -> str:
    """A page with the KL of every controller over its β, both by step.

    Args:
        traces: name to `kl`, nats per response, and `kl_coef`, one value a step; their order gives the colours.
        title: the page's heading.
        target: nats per response.
        band: how far from the target, relatively, a KL still counts as settled.
        what: a sentence that says whose KL it is.
    """
    runs = [_run(name, trace) for name, trace in traces.items()]
    kl = Chart(
        title="KL(π‖π_ref), nats per response",
        reading=f"{what} The dashed line is the target, with ±{100 * band:g} % around it in grey.",
        figure=by_step(_curves(runs, "kl"), target=target, band=band, zero=True, height=330),
        size="hero",
    )
    kl_coef = Chart(
        title="β, the KL penalty (log axis)",
        reading="The controller's answer at each step, before the update. Where β is 0 the line has a gap.",
        figure=by_step(_curves(runs, "kl_coef", above=0.0), log=True, height=260),
        size="large",
    )
    return render_charts((kl, kl_coef), title=title)


def _run(name: str, trace: Mapping[str, Sequence[float]]) -> RunView:
    metrics = {metric: tuple(values) for metric, values in trace.items()}
    steps = tuple(range(len(metrics["kl"])))
    return RunView(
        name=name, config={}, versions={}, digests={}, steps=steps, metrics=metrics, samples=()
    )


def _curves(runs: Sequence[RunView], metric: str, above: float = float("-inf")) -> list[Curve]:
    return [
        Curve(
            run=run,
            metric=metric,
            label=run.name,
            colour=run_colour(index),
            # Colours begin again, so lines change.
            dash="solid" if index < len(PALETTE) else DASHED,
            above=above,
        )
        for index, run in enumerate(runs)
    ]
