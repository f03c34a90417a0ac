"""The page says what the run says, sends nothing, and lets no text of the run become markup."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kleash.errors import InputError, ResourceError
from kleash.report import RunView, load_run, render_run, render_runs, write_report
from kleash.report.drift import TOP
from kleash.report.page import data
from kleash.report.view import Share
from tests.report.conftest import write_run

MakeRun = Callable[..., Path]
Payloads = Callable[[str], list[str]]

HEAD = "9f" * 32
HOME = "http://127.0.0.1:9/"
"""Where nobody listens."""
VERIFIED = {"ok": True, "head": HEAD, "problems": []}

ATTRIBUTES = {
    *("aria-hidden", "aria-label", "charset", "class", "content", "cx", "cy", "d", "dir", "href"),
    *("http-equiv", "id", "lang", "name", "r", "rel", "role", "scope", "style", "title", "type"),
    *("value", "viewbox"),
}


@dataclass
class Page(HTMLParser):
    """What a browser would make of a page."""

    html: str
    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    scripts: list[tuple[dict[str, str], str]] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.text += " "
        self.tags.append((tag, values))
        if tag == "script":
            self.scripts.append((values, ""))

    def handle_endtag(self, tag: str) -> None:
        self.text += " "

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            values, text = self.scripts[-1]
            self.scripts[-1] = (values, text + data)
        elif self.cdata_elem is None:
            self.text += data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())

    @property
    def policy(self) -> str:
        return next(a["content"] for _, a in self.tags if a.get("http-equiv"))

    @property
    def shape(self) -> list[tuple[str, tuple[str, ...]]]:
        """The elements and their attributes' names, without any text."""
        return [(tag, tuple(attributes)) for tag, attributes in self.tags]


@pytest.fixture
def run(make_run: MakeRun) -> RunView:
    return load_run(make_run())


def test_the_head_says_what_the_run_says(run: RunView) -> None:
    words = Page(render_run(run)).words
    assert "leashed" in words
    assert "KL(π‖π_ref), last step 4 [3.75, 4.25] nats per response, 95 % interval" in words
    assert "Target 4 nats per response" in words
    assert "3 accepted · 1 rejected 4 of 4 steps" in words
    assert "Algorithm PPO tilt β" in words
    assert "Model tiny-reviews/base against its own frozen copy" in words


@pytest.mark.parametrize(
    ("verification", "badge"),
    [
        (None, "not verified here"),
        ({}, "verification failed"),
        ({"ok": 1, "head": HEAD}, "verification failed"),
        ({"ok": "true", "head": HEAD}, "verification failed"),
        ({"ok": False, "head": HEAD, "problems": []}, "verification failed"),
    ],
)
def test_only_a_verification_that_passed_says_verified(
    run: RunView, verification: dict[str, Any] | None, badge: str
) -> None:
    html = render_run(run, verification)
    assert badge in Page(html).words
    assert HEAD not in html
    assert 'class="badge good"' not in html


def test_a_verified_run_shows_its_head(run: RunView) -> None:
    html = render_run(run, VERIFIED)
    assert 'class="badge good"' in html
    assert HEAD in Page(html).words


def test_a_failed_verification_shows_its_problems(run: RunView) -> None:
    problem = {"where": "ledger.jsonl, line 3", "what": "the hash does not fit"}
    words = Page(render_run(run, {"ok": False, "problems": [problem]})).words
    assert "ledger.jsonl, line 3: the hash does not fit" in words


def test_what_was_not_measured_is_a_dash_and_says_so(run: RunView) -> None:
    bare = replace(
        run, steps=(1,), metrics={"reward_mean": (1.0,)}, config={}, samples=(), drift=()
    )
    page = Page(render_run(bare))
    assert "KL(π‖π_ref), last step –" in page.words
    assert "not measured" in {attributes.get("title") for _, attributes in page.tags}
    assert page.words.count("not measured in this run") == 11


def test_a_run_without_steps_can_be_shown(make_run: MakeRun) -> None:
    words = Page(render_run(load_run(make_run(metrics=None, samples=None)))).words
    assert "no step has been finished yet" in words
    assert "0 of 4 steps" in words
    assert "The same prompts, answered" not in words


def test_runs_without_steps_can_be_compared(make_run: MakeRun) -> None:
    run = load_run(make_run(metrics=None, samples=None))
    assert "not measured in this run" in Page(render_runs([run, run], title="arms")).words


def test_the_summary_shows_its_rows_in_the_colours_of_their_runs(run: RunView) -> None:
    arms = [replace(run, name="free"), replace(run, name="held")]
    row = {
        "name": "held",
        "proxy_reward": 1.5,
        "gold_reward": None,
        "kl_policy_ref_per_response": 4.1034,
        "kl_low": 3.9,
        "kl_high": 4.3,
        "distinct_2": 0.75,
        "mean_length": 21.5,
        "run": "runs/demo/held",
    }
    html = render_runs(arms, title="arms", summary=[row], verifications=[None, VERIFIED])
    table = html[html.index("<table") : html.index("</table")]
    assert Page(table).words.endswith("held 1.50 – 4.10 [3.90, 4.30] 0.75 21.50 – verified")
    assert "#c07a9c" in table  # the second run's colour


def test_overoptimisation_comes_first(run: RunView) -> None:
    page = Page(render_runs([run, run], title="arms"))
    cards = [attributes["class"] for tag, attributes in page.tags if tag == "figure"]
    assert cards[0] == "card hero"
    assert "Gold and proxy reward against KL(π‖π_ref)" in page.words


def test_arms_answer_the_same_prompt_side_by_side(run: RunView) -> None:
    page = Page(render_runs([replace(run, name="free"), replace(run, name="held")], title="arms"))
    answers = page.words[page.words.index("The same prompts, answered") :]
    said = "reward 2 gold 0.75 KL 1.04"
    assert f"free good . {said} held good . {said} reference a film . reward −0.50" in answers
    assert page.words.count("This film is") == 1  # the last evaluation only
    titles = [a["title"] for tag, a in page.tags if tag == "span" and a.get("class") == "t"]
    assert titles == ["KL 1 nats", "KL 0.04 nats"] * 2
    heats = [a["style"] for tag, a in page.tags if tag == "span" and a.get("class") == "t"]
    assert heats == ["--h:0.5", "--h:0.1"] * 2


def test_an_answer_without_tokens_or_reference_is_plain_text(run: RunView) -> None:
    sample = replace(run.samples[-1], tokens=(), kl_per_token=(), reference_response=None)
    page = Page(render_run(replace(run, samples=(sample,))))
    assert "leashed good . reward 2" in page.words
    assert not any(attributes.get("class") == "t" for _, attributes in page.tags)
    assert not re.search(r"\breference a film", page.words)


def test_the_kl_of_a_token_may_be_unmeasured(run: RunView) -> None:
    sample = replace(run.samples[-1], kl_per_token=(None, 0.0))
    page = Page(render_run(replace(run, samples=(sample,))))
    tokens = [attributes for _, attributes in page.tags if attributes.get("class") == "t"]
    assert [token["title"] for token in tokens] == ["KL not measured", "KL 0 nats"]
    assert {token["style"] for token in tokens} == {"--h:0.0"}


def test_each_run_needs_its_verification(run: RunView) -> None:
    with pytest.raises(InputError):
        render_runs([run], title="arms", verifications=[None, None])
    with pytest.raises(InputError):
        render_runs([], title="arms")


def test_the_page_is_complete_and_asks_for_nothing(run: RunView) -> None:
    page = Page(render_runs([run, run], title="arms"))
    policy = page.policy.split("; ")
    assert policy[0] == "default-src 'none'"
    assert "base-uri 'none'" in policy
    assert not re.search(r"unsafe-eval|script-src[^;]*unsafe-inline|https?:|blob:|\*", page.policy)
    links = [(tag, a["href"]) for tag, a in page.tags if "href" in a]
    assert links == [("link", "data:,")]
    assert not any("src" in attributes for _, attributes in page.tags)
    css = re.search(r"<style>(.*?)</style>", page.html, re.DOTALL)
    assert css is not None
    assert not re.search(r"url\(|@import", css[1])
    assert len(page.html) < 6_000_000


def test_the_policy_admits_exactly_the_scripts_on_the_page(run: RunView) -> None:
    page = Page(render_run(run))
    code = [text for attributes, text in page.scripts if "type" not in attributes]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in code]
    admitted = re.findall(r"'sha256-([^']+)'", page.policy)
    assert admitted == digests
    assert "Plotly" in code[0]


def test_a_line_end_does_not_change_a_script(run: RunView) -> None:
    assert "\r" not in render_run(run)


def hostile(run: RunView, payloads: list[str]) -> list[RunView]:
    """A run for each payload, with the payload everywhere a run has text."""
    sample = run.samples[0]
    shares = tuple(Share(text=payload, nats=-1.0, count=2) for payload in payloads)
    return [
        replace(
            run,
            name=payload,
            config={
                "rl": {"controller": payload},
                "model": {"policy": payload, "reference": payload},
            },
            versions={payload: payload},
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


def hostile_guard(payload: str) -> dict[str, Any]:
    """What the guard did, in words of one's own."""
    limit = {"limit": payload, "bound": 1.0, "unit": payload, "is_floor": False}
    alarm = {"alarm": payload, "mean": 1.0, "mean_time": 9.0, "action": payload, "evidence": None}
    return {
        "verdicts": {payload: 1},
        "limits": [limit | {"worst": None, "step": None}],
        "budgets": [{"limit": payload, "total": 1.0, "spent": 0.5, "measured": None}],
        "alarms": [alarm | {"rang": [1]}],
        "events": [{"step": 1, "action": payload, "reasons": [payload], "alarms": [payload]}],
        "overrides": [payload],
    }


def hostile_page(run: RunView, payloads: list[str]) -> str:
    runs = hostile(run, payloads)
    rows = [{"name": payload, "run": payload} for payload in payloads]
    checks: list[dict[str, Any]] = [
        {"ok": True, "head": payload, "keys": [payload], "guard": hostile_guard(payload)}
        for payload in payloads[:40]
    ]
    checks += [{"ok": False, "problems": [payload]} for payload in payloads[40:]]
    return render_runs(runs, title=payloads[0], summary=rows, verifications=checks)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, xss: Payloads) -> Page:
    """A page of runs whose every text is hostile."""
    run = load_run(write_run(tmp_path_factory.mktemp("hostile") / "leashed"))
    return Page(hostile_page(run, xss(HOME)))


def test_no_text_of_a_run_becomes_markup(run: RunView, page: Page, xss: Payloads) -> None:
    payloads = xss(HOME)
    assert len(set(payloads)) >= 60
    plain = Page(hostile_page(run, [f"plain {index}" for index in range(len(payloads))]))
    assert page.shape == plain.shape
    assert {name for _, attributes in page.tags for name in attributes} <= ATTRIBUTES
    assert page.policy == plain.policy
    code = [text for attributes, text in page.scripts if "type" not in attributes]
    assert code == [text for attributes, text in plain.scripts if "type" not in attributes]


def test_hostile_text_is_there_to_be_read(page: Page, xss: Payloads) -> None:
    for payload in xss(HOME):
        if payload.isascii() and payload.isprintable():
            assert payload in page.text


def test_figures_carry_no_markup_in_their_texts(page: Page, xss: Payloads) -> None:
    payloads = xss(HOME)
    figures = [text for attributes, text in page.scripts if attributes.get("type")]
    assert len(figures) > 4 * len(payloads)
    for text in figures:
        assert not set(text) & set("<>&\u2028\u2029")
        for trace in json.loads(text).get("data", []):
            assert not set(trace.get("name", "")) & set("<>")
        for note in json.loads(text).get("layout", {}).get("annotations", []):
            assert not set(note["text"]) & set("<>")


@given(
    st.recursive(
        st.none() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_data_cannot_leave_its_element(value: Any) -> None:
    text = data({"value": value})
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == {"value": value}


def test_the_template_trusts_nothing() -> None:
    template = (Path(__file__).parents[2] / "src/kleash/report/template.html.j2").read_text()
    assert not re.search(r"\|\s*safe|autoescape|Markup", template)


def test_a_report_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    write_report("<p>π</p>", target)
    write_report("<p>β</p>", target)
    assert target.read_text(encoding="utf-8") == "<p>β</p>"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    folder = tmp_path / "folder"
    folder.mkdir()
    for place in (folder, tmp_path / "missing" / "report.html"):
        with pytest.raises(ResourceError, match="cannot be written"):
            write_report("", place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "report.html"]
