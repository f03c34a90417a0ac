"""The page of a simulation: every controller in both charts, told apart, with the target and its band."""

import json
import re

from kleash.report.simulation import render_simulation


def test_both_charts_hold_every_controller() -> None:
    names = [f"law-{index}" for index in range(7)]
    traces = {name: {"kl": [0.0, 1.0, 2.0], "kl_coef": [0.2, 0.0, 20.0]} for name in names}
    page = render_simulation(traces, title="a title", target=2.0, band=0.1)
    assert "a title" in page
    found = re.findall(r'<script type="application/json">(.*?)</script>', page)
    kl, kl_coef = (json.loads(text) for text in found)
    for figure in (kl, kl_coef):
        lines = figure["data"]
        assert [line["name"] for line in lines] == names
        looks = {(line["line"]["color"], line["line"]["dash"]) for line in lines}
        assert len(looks) == 7
    assert kl["data"][0]["y"] == [0, 1, 2]
    band, target = kl["layout"]["shapes"]
    assert (band["y0"], band["y1"], target["y0"]) == (1.8, 2.2, 2)
    # A β of 0 has no place on a log axis.
    assert kl_coef["layout"]["yaxis"]["type"] == "log"
    assert kl_coef["data"][0]["y"] == [0.2, None, 20]
