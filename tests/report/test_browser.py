"""A real browser opens a report full of hostile text: nothing runs, nothing is asked for, the charts are drawn."""

import http.server
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kleash.report import RunView, load_run, render_comparison, render_run, render_runs
from kleash.report.drift import TOP
from kleash.report.view import Share
from tests.report.comparing import comparison_document, limited, with_text

CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)"),
]

MakeRun = Callable[..., Path]
Payloads = Callable[[str], list[str]]

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--virtual-time-budget=8000", "--window-size=1000,1200", "--enable-logging=stderr"),
)

OPENED = 12
"""Runs whose charts are drawn, of those on the hostile page: enough, and quick."""

HOVER = """<script>
for (const plot of document.querySelectorAll(".js-plotly-plot"))
  plot.data.forEach((_, curveNumber) => Plotly.Fx.hover(plot, [{ curveNumber, pointNumber: 3 }]));
</script>"""


COMPARISON_HOVER = HOVER.replace("pointNumber: 3", "pointNumber: 0")
"""A whisker is one point."""


class Home:
    """A server on this machine that remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/"


@pytest.fixture
def home() -> Iterator[Home]:
    home = Home()
    thread = threading.Thread(target=home.server.serve_forever)
    thread.start()
    yield home
    home.server.shutdown()
    thread.join()
    home.server.server_close()


@pytest.fixture
def run(make_run: MakeRun) -> RunView:
    return load_run(make_run())


def open_page(html: str, folder: Path) -> tuple[str, list[str]]:
    """The page after its scripts ran, without these, and what the browser's console said."""
    file = folder / "page.html"
    file.write_text(html, encoding="utf-8", newline="\n")
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--dump-dom", file.as_uri()],
        capture_output=True,
        timeout=120,
        check=True,
    )
    said = [line for line in done.stderr.decode(errors="replace").splitlines() if "CONSOLE" in line]
    dom = done.stdout.decode(errors="replace")
    return re.sub(r"<script\b.*?</script>", "", dom, flags=re.DOTALL), said


def was_taken_over(dom: str) -> bool:
    return re.search(r"<html[^>]*data-pwned", dom) is not None


def hostile_page(run: RunView, payloads: list[str]) -> str:
    sample = run.samples[0]
    shares = tuple(Share(text=payload, nats=-1.0, count=2) for payload in payloads)
    runs = [
        replace(
            run,
            name=payload,
            config={"rl": {"controller": payload, "kl_target": 4.0}, "model": {"policy": payload}},
            metrics=dict(run.metrics) | {f"monitor/{payload}": (1.0, 2.0, 3.0, 4.0)},
            samples=(
                replace(
                    sample,
                    prompt="\n".join(payloads[index % 12 :: 12]),
                    response=payload,
                    tokens=tuple(payloads) if index % 3 else (),
                    kl_per_token=(1.0,) * len(payloads) if index % 3 else (),
                    monitor={payload: 1.0},
                    reference_response=payload,
                ),
            ),
            drift=(replace(run.drift[-1], by_prompt=shares[at:], by_token=shares[at:]),),
        )
        for index, payload in enumerate(payloads)
        for at in [index // TOP * TOP]
    ]
    return render_runs(
        runs,
        title=payloads[0],
        summary=[{"name": payload, "run": payload} for payload in payloads],
        verifications=[{"ok": False, "problems": [payload]} for payload in payloads],
    ).replace('<details class="run">', '<details class="run" open>', OPENED)


def without_policy(html: str) -> str:
    return re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)


def test_the_trap_works(home: Home, tmp_path: Path, xss: Payloads) -> None:
    """Else the tests below could not fail: unescaped, the payloads do take the page over."""
    html = "<!doctype html><title>x</title>" + xss(home.address)[0] + xss(home.address)[2]
    dom, _ = open_page(html, tmp_path)
    assert was_taken_over(dom)
    assert home.asked


@pytest.mark.parametrize("policy", [True, False], ids=["policy", "escaping-alone"])
def test_no_text_of_a_run_runs(
    run: RunView, home: Home, tmp_path: Path, xss: Payloads, policy: bool
) -> None:
    html = hostile_page(run, xss(home.address))
    if not policy:  # every layer must hold by itself; here plotly's labels are shown as well
        html = without_policy(html).replace("</body>", HOVER + "</body>")
    dom, said = open_page(html, tmp_path)
    assert not was_taken_over(dom)
    assert home.asked == []
    assert said == []
    assert dom.count("js-plotly-plot") == 5 * OPENED + 6  # six charts compare the runs
    body = dom[dom.index("<body") :]
    assert not re.search(r"<(a|img|image|iframe|object|embed|form|base|foreignobject)[\s/>]", body)
    assert ('class="hovertext"' in body) is not policy


def test_every_chart_is_drawn_under_the_policy(run: RunView, tmp_path: Path) -> None:
    dom, said = open_page(render_run(run), tmp_path)
    assert said == []
    drawn = dom.count("js-plotly-plot")
    assert drawn == render_run(run).count('class="plot"') >= 5
    assert "target 4 nats</text>" in dom


@pytest.mark.parametrize("policy", [True, False], ids=["policy", "escaping-alone"])
def test_no_text_of_a_comparison_runs(
    home: Home, tmp_path: Path, xss: Payloads, policy: bool
) -> None:
    document = comparison_document(**limited(("films", 5.0, "response")))
    document["where"]["prompts"] *= 10  # places enough for every payload
    document["where"]["answers"] *= 8
    html = render_comparison(with_text(document, *xss(home.address)))
    if not policy:
        html = without_policy(html).replace("</body>", COMPARISON_HOVER + "</body>")
    dom, said = open_page(html, tmp_path)
    assert not was_taken_over(dom)
    assert home.asked == []
    assert said == []
    assert dom.count("js-plotly-plot") == html.count('class="plot"') == 4
    body = dom[dom.index("<body") :]
    assert not re.search(r"<(a|img|image|iframe|object|embed|form|base|foreignobject)[\s/>]", body)
    assert ('class="hovertext"' in body) is not policy


def test_the_limit_of_a_comparison_is_drawn(tmp_path: Path) -> None:
    html = render_comparison(comparison_document(**limited(("all", 5.0, "response"))))
    dom, said = open_page(html, tmp_path)
    assert said == []
    assert "limit 5</text>" in dom
    assert "4.12 [3.62, 4.62]</text>" in dom
