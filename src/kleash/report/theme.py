"""Colours and chart templates for light and dark pages.

The figures carry no ink of their own: the page hands them the template of the reader's colour scheme. Only the
run colours are in the figures; each keeps a contrast of at least 3:1 on both cards and stays apart from the
others under the common colour-vision deficiencies.
"""

from typing import Any

PALETTE = ("#d9591c", "#c07a9c", "#2878cf", "#3b7d4f", "#7a45f0", "#77787c")
"""One colour a run, in order; runs beyond the sixth begin again (their labels still tell them apart)."""

ALONE = PALETTE[2]
"""The colour of a run that has the page to itself."""

LIMIT = "#d0342c"
"""The colour of a line that no curve should cross."""

CARDS = {"light": "#ffffff", "dark": "#191c21"}
"""Background of a chart in each scheme."""

FONT = '-apple-system, "Segoe UI", Inter, Roboto, "Helvetica Neue", Arial, sans-serif'


def run_colour(index: int) -> str:
    """The colour of the run at this place on the page.

    Examples:
        >>> run_colour(0) == run_colour(6) == PALETTE[0]
        True
    """
    return PALETTE[index % len(PALETTE)]


def rgba(colour: str, opacity: float) -> str:
    """A hex colour with an opacity.

    Examples:
        >>> rgba("#2878cf", 0.2)
        'rgba(40,120,207,0.2)'
    """
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"


def _template(*, ink: str, muted: str, grid: str, axis: str, card: str) -> dict[str, Any]:
    """A plotly layout template: what every chart shares."""
    common: dict[str, Any] = {
        "gridcolor": grid,
        "gridwidth": 1,
        "linecolor": axis,
        "zeroline": False,
        "ticks": "",
        "tickfont": {"size": 12, "color": muted},
        "title": {"font": {"size": 12, "color": muted}, "standoff": 10},
        "automargin": True,
    }
    return {
        "layout": {
            "font": {"family": FONT, "size": 13, "color": ink},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "xaxis": {**common, "showgrid": False, "showline": True, "nticks": 8},
            "yaxis": {**common, "nticks": 6},
            "hoverlabel": {
                "bgcolor": card,
                "bordercolor": axis,
                "font": {"family": FONT, "size": 12, "color": ink},
                "align": "left",
            },
            "shapedefaults": {"line": {"color": ink, "width": 1.25, "dash": "6px,4px"}},
            "annotationdefaults": {
                "showarrow": False,
                "bgcolor": rgba(card, 0.7),
                "borderpad": 1,
                "font": {"size": 12, "color": ink},
            },
            "margin": {"l": 28, "r": 12, "t": 12, "b": 42},
            "showlegend": False,
            "hovermode": "x unified",
            "dragmode": False,
        }
    }


TEMPLATES = {
    "light": _template(
        ink="#1d2025", muted="#666c76", grid="#eceae6", axis="#c9c6bf", card=CARDS["light"]
    ),
    "dark": _template(
        ink="#e6e8ec", muted="#979ea9", grid="#292d34", axis="#474d57", card=CARDS["dark"]
    ),
}
"""The layout template of each colour scheme."""
