"""The spread of every KL estimator against the KL itself, on the enumerable problem: the plot of docs/concepts.md.

    python benchmarks/estimators.py OUT.html

Exact, by enumeration, along the optima of E[R] − β·KL from β = 20 down to 0.05.
"""

import sys
from pathlib import Path

import plotly.graph_objects as go

from kleash.lab.estimators import measure
from kleash.lab.mdp import golden, optimum

BETAS = [20 * 400 ** (-i / 24) for i in range(25)]
LINES = {
    "k1": ("k1: log-ratio of the token drawn", "#bd7a9d"),
    "k3": ("k3", "#d4581c"),
    "exact": ("exact per step", "#2a76c7"),
}


def figure() -> go.Figure:
    """std/KL of one response against KL, both logarithmic."""
    problem = golden()
    points = [measure(problem, optimum(problem, beta)) for beta in BETAS]
    fig = go.Figure()
    for name, (label, color) in LINES.items():
        fig.add_scatter(
            x=[point.kl for point in points],
            y=[point.estimators[name].std / point.kl for point in points],
            mode="lines",
            line={"color": color, "width": 3},
            name=label,
        )
    fig.update_xaxes(type="log", title="KL(π‖π_ref), nats per response", dtick=1)
    fig.update_yaxes(
        type="log", title="standard deviation of one response / KL", dtick=1, range=[-1, 3]
    )
    fig.update_layout(
        template="plotly_white",
        width=900,
        height=440,
        font={"size": 14},
        legend={"x": 0.32, "y": 0.98},
        margin={"l": 70, "r": 30, "t": 20, "b": 60},
    )
    return fig


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(
        figure().to_html(config={"displayModeBar": False}), encoding="utf-8"
    )
