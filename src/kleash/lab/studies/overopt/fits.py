"""Gao et al.'s forms of the gold gain (arXiv 2210.10760, section 3.1), fitted to a path's mean curve over its seeds."""

from collections.abc import Mapping, Sequence

from kleash.lab.study.curves import FITTED, FORMS, Curve, fit_mean, mean_curve, predicted
from kleash.lab.study.findings import Series, Table, Value, percent
from kleash.lab.study.statistics import Estimate


def fits_table(paths: Mapping[str, Sequence[Curve]], floor: float) -> Table:
    """Both forms on every path.

    Args:
        paths: gold reward over √KL, one curve a seed, by name.
        floor: gold reward of the reference.
    """
    return Table(
        title="Gao et al.'s forms of the gold gain",
        columns=(
            *("path", "form", "seeds", "α", "α low", "α high", "β", "β low", "β high"),
            *("predicted peak, nats", "peak low", "peak high"),
            *("R² fitted", "R² held out", "error held out"),
        ),
        rows=tuple(
            (path, form, *_cells(curves, form, floor))
            for path, curves in paths.items()
            for form in FORMS
        ),
        note=f"Fitted to the mean over seeds as far as all come, to the first {percent(FITTED)} of its KL; low and "
        "high are 95 % intervals by leaving out each seed in turn (that of the peak on its logarithm; none where a fit "
        "has no peak ahead). R² and the error, over the largest gain, are of the mean curve on the rest of the KL: "
        "below 0 a level line would have told more. Which form fits better is read off what was held out; points "
        "along a run are not independent, so that no criterion that counts them is given.",
    )


def form_series(curves: Sequence[Curve], floor: float) -> Series:
    """The second form, of reinforcement learning, over the whole of the mean curve."""
    fit = fit_mean(curves, FORMS[1], floor)
    places = mean_curve(curves).d if fit is not None else ()
    places = tuple(d for d in places if d > 0)
    return Series(
        name="d(α − β log d), extrapolated",
        x=places,
        y=tuple(predicted(FORMS[1], fit.form, d) + floor for d in places) if fit else (),
        mark="dashed",
        colour=0,
    )


def _cells(curves: Sequence[Curve], form: str, floor: float) -> list[Value]:
    fit = fit_mean(curves, form, floor)
    if fit is None:
        return [len(curves), *[None] * 12]
    parts = [*_ends(fit.alpha), *_ends(fit.beta), *_ends(fit.peak)]
    return [fit.seeds, *parts, fit.form.r_squared, fit.form.held_out, fit.form.error]


def _ends(found: Estimate | None) -> list[Value]:
    return [None, None, None] if found is None else [found.value, found.low, found.high]
