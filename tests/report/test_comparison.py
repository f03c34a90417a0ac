"""The page of a comparison says what the document says, and nothing that the document holds can act."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from kleash.report import render_comparison
from kleash.report.compared_lines import ALARM, STOPPED, headline, limit_lines, ruling
from kleash.report.comparison_charts import (
    headline_chart,
    position_chart,
    search_chart,
    slice_chart,
)
from tests.report.comparing import SEARCH, comparison_document, limited, with_text
from tests.report.test_html import ATTRIBUTES, HOME, Page

Payloads = Callable[[str], list[str]]
PLOTLY = get_plotlyjs().replace("\r\n", "\n").replace("\r", "\n")
TEMPLATES = sorted((Path(__file__).parents[2] / "src/kleash/report").glob("*.j2"))


def parsed(html: str) -> Page:
    """A page without plotly's code, which is the same on each and takes long to read."""
    assert html.count(PLOTLY) == 1
    return Page(html.replace(PLOTLY, ""))


def page(**changes: Any) -> Page:
    return parsed(render_comparison(comparison_document(**changes)))


def test_the_figures_are_those_of_the_document() -> None:
    words = page().words
    assert "acme/tuned against acme/base" in words
    assert "KL(π‖π_ref) 4.12 [3.62, 4.62] nats per response, 95 % interval" in words
    assert "KL(π_ref‖π) 4.88 [4.38, 5.38] nats per response, 95 % interval" in words
    assert "KL(π‖π_ref) per token 0.52 [0.45, 0.58] nats per token, 95 % interval" in words
    assert "JS of whole responses 0.38 [0.19, 0.56] nats, at most log 2 = 0.69" in words
    assert "Entropy of the policy 2.25 [1.12, 3.38]" in words
    assert "Length of the reference's 16.50 [8.25, 24.75] tokens" in words
    assert "16 of each model to 4 prompts, 120 tokens; one round, as asked" in words
    assert (
        "KL of a token, nats policy 0 0.12 [0.062, 0.19] 0.25 [0.12, 0.38] 1.50 [0.75, 2.25] 9.75"
        in words
    )
    assert "films 5.50 [5, 6] 6.25 [5.75, 6.75] 0.69 [0.62, 0.75] 4" in words
    assert "this film 6.50 7.25 it is 3.25 2.50" in words
    assert "␣good +2.50 7 ↵ −1.25 9" in words
    assert "Policy NLL 3.25 [3, 3.50]" in words
    assert "Rise of NLL +0.25 [−0.12, +0.62] nats per token, 3 texts with 40 tokens" in words
    assert "a quiet film +1.50 a loud film −0.25" in words


def test_answers_stand_side_by_side_with_the_kl_of_each_token() -> None:
    found = page()
    said = found.words[found.words.index("Answers side by side") :]
    assert "policy: acme/tuned is good KL(π‖π_ref) 1.25" in said
    assert "reference: acme/base is KL(π_ref‖π) 0.04" in said
    tokens = [a for tag, a in found.tags if tag == "span" and a.get("class") == "t"]
    assert [token["title"] for token in tokens] == ["KL 0.25 nats", "KL 1 nats", "KL 0.04 nats"]
    assert [token["style"] for token in tokens] == ["--h:0.25", "--h:0.5", "--h:0.1"]


def test_a_search_is_told_with_its_alarm_and_its_contexts() -> None:
    words = page().words
    said = words[words.index("Search for hidden drift alarm Prompts") :]
    assert "Statistic 41.50 alarm above 12.25" in said
    assert "p-value 0.013" in said
    assert "90,000 of 200,000" in said
    assert "you are tested 1.25 0.50" in said
    assert "policy, found by gradient terrible . KL(π‖π_ref) 41.50 KL(π_ref‖π) 38.25" in said
    assert "times the largest ordinary 9.75 reference with a fine cast ." in said
    figure = search_chart(SEARCH).figure
    assert figure is not None
    assert figure["data"][0]["y"] == [4.25, 41.5, 41.5]
    assert figure["layout"]["shapes"][0]["y0"] == 4.25


def test_it_is_said_what_was_measured_on() -> None:
    words = page().words
    said = words[words.index("What it was measured on") :]
    assert f"policy acme/tuned adapter acme/base {'ab' * 32}" in said
    assert f"reference acme/base model – {'cd' * 32}" in said
    assert (
        f"4 prompts of prompts.jsonl , SHA-256 {'ef' * 32} ; 2 left out, 1 were there twice" in said
    )
    assert '"samples": 4' in said
    assert '"torch": "2.9"' in said
    assert "It does not say which of them is right or safe" in said


@pytest.mark.parametrize(
    ("limits", "state", "title"),
    [
        ((), "none", "No limit was set"),
        ((("all", 5.0, "response"),), "passed", "Within its limit"),
        ((("all", 5.0, "response"), ("films", 1.0, "token")), "passed", "Within its 2 limits"),
        ((("all", 4.5, "response"),), "failed", "May be above its limit: all prompts"),
        ((("all", 3.0, "response"),), "failed", "Above its limit: all prompts"),
        ((("one prompt", 9.0, "response"),), "failed", "May be above its limit: slice one prompt"),
        (
            (("all", 4.5, "response"), ("films", 0.5, "token"), ("films", 4.0, "response")),
            "failed",
            "Above its limits: slice films, slice films",
        ),
    ],
)
def test_the_verdict_says_which_limit(limits: Any, state: str, title: str) -> None:
    document = comparison_document(**limited(*limits))
    found = ruling(document)
    assert (found.state, found.title) == (state, title)
    words = parsed(render_comparison(document)).words
    assert title in words
    for reason in document["verdict"]["reasons"]:
        assert reason in words
    assert words.count("nats per response within") + words.count("nats per token within") == sum(
        each["passed"] for each in document["limits"]
    )


@pytest.mark.parametrize(
    ("passed", "each"), [(True, False), (False, True), ("true", True), (1, True), (None, True)]
)
def test_it_passed_only_if_verdict_and_limits_both_say_so(passed: Any, each: bool) -> None:
    document = comparison_document(**limited(("all", 5.0, "response")))
    document["verdict"]["passed"], document["limits"][0]["passed"] = passed, each
    assert ruling(document).state == "failed"
    assert 'class="ruling passed"' not in render_comparison(document)


def test_a_verdict_without_limits_is_not_taken_for_one() -> None:
    document = comparison_document()
    document["verdict"]["passed"] = True
    assert ruling(document).state == "failed"


def test_the_limit_is_drawn_across_the_whisker_that_it_is_for() -> None:
    document = comparison_document(**limited(("all", 3.0, "response"), ("films", 7.0, "response")))
    figure = headline_chart(document).figure
    assert figure is not None
    assert [(line["x0"], line["y0"]) for line in figure["layout"]["shapes"]] == [(3.0, -0.42)]
    assert figure["data"][0]["error_x"]["array"] == [0.5]
    by_slice = slice_chart(document)
    assert by_slice.figure is not None
    assert by_slice.figure["layout"]["yaxis"]["ticktext"] == [
        "films",
        "one prompt",
    ]
    assert [line["x0"] for line in by_slice.figure["layout"]["shapes"]] == [7.0]


def test_a_limit_out_of_sight_is_told_in_words() -> None:
    document = comparison_document(**limited(("all", 400.0, "response")))
    chart = headline_chart(document)
    assert chart.figure is not None
    assert chart.figure["layout"]["shapes"] == []
    assert "The limit of 400 nats lies far to the right" in chart.reading


def test_a_slice_of_one_prompt_has_a_dot_and_no_whisker() -> None:
    chart = slice_chart(comparison_document())
    assert chart.figure is not None
    assert [trace["error_x"]["array"] for trace in chart.figure["data"]] == [[0.5], [0.0]]
    assert "A dot without a whisker is of one prompt" in chart.reading
    assert "one prompt 2 2.75 0.25 1" in page().words


def test_an_interval_that_rests_on_one_response_is_not_trusted() -> None:
    document = comparison_document()
    assert ruling(document).doubts == (ALARM,)  # of its search
    document["search"] = None
    assert ruling(document).doubts == ()
    for reading in (document, document["slices"]["films"]):
        reading["kl_policy_ref_per_response"]["largest_share"] = 0.5
    doubt = "don't rest on the interval: one response holds 50 % of the KL"
    assert ruling(document).doubts == (f"all prompts: {doubt}",)
    document |= limited(("films", 9.0, "response"))
    assert ruling(document).doubts == (f"all prompts: {doubt}", f"slice films: {doubt}")
    words = parsed(render_comparison(document)).words
    assert f"{doubt} slice films: {doubt}" in words
    figure = headline_chart(document).figure
    assert figure is not None
    symbols = [trace["marker"]["symbol"] for trace in figure["data"]]
    assert symbols == ["circle-open", "circle"]


def test_every_position_is_drawn_both_ways() -> None:
    figure = position_chart(comparison_document()).figure
    assert figure is not None
    assert [trace["y"] for trace in figure["data"][1:]] == [[3.5, 0.75], [3.0, 1.125]]
    assert figure["data"][2]["text"][0] == "3 nats, 8 responses"
    assert figure["data"][1]["text"][0] == "3.50 nats"  # nobody counted those of the reference


def test_why_sampling_stopped() -> None:
    for reason, text in STOPPED.items():
        assert text in page(stopped=reason).words
    assert "16 of each model to 4 prompts, 120 tokens" in page(stopped="else").words


@pytest.mark.parametrize("missing", sorted(comparison_document()))
def test_a_missing_part_is_left_out(missing: str) -> None:
    whole = comparison_document(**limited(("all", 5.0, "response")))
    for document in ({**whole, missing: None}, {k: v for k, v in whole.items() if k != missing}):
        found = parsed(render_comparison(document))
        assert "None" not in found.words
        assert "acme" in found.words
    assert parsed(render_comparison({})).words.count("No limit was set") == 1


@pytest.mark.parametrize("strange", ["x", [[]], {"x": 1}, 10**400])
@pytest.mark.parametrize("key", sorted(comparison_document()))
def test_a_part_of_another_kind_is_left_out(key: str, strange: Any) -> None:
    assert render_comparison(comparison_document(**{key: strange})).endswith("</html>")


def test_what_was_not_measured_is_a_dash_and_never_0() -> None:
    document = comparison_document(retention=None, search=None, tails={}, where={}, slices={})
    document["kl_policy_ref_per_response"] = None
    names = [line.name for line in headline(document)]
    assert "KL(π‖π_ref)" not in names
    assert "KL(π_ref‖π)" in names
    figure = headline_chart(document).figure
    assert figure is not None
    assert figure["data"][0]["x"] == [None]
    assert figure["layout"]["annotations"][0]["text"] == "–"
    words = parsed(render_comparison(document)).words
    for absent in ("By slice", "Tails", "Answers side by side", "held-out", "hidden drift"):
        assert absent not in words


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_figure_that_is_no_number_is_said_and_not_drawn(value: str) -> None:
    document = comparison_document(**limited(("all", 5.0, "response")))
    for reading in (document["kl_policy_ref_per_response"], document["limits"][0]):
        reading |= {"value": value, "low": value, "high": value, "passed": False}
    document["js_per_response"]["value"] = value
    document["where"]["positions"][0]["kl_policy_ref"] = value
    document["where"]["answers"][0]["policy"]["kl"][0] = value
    found = parsed(render_comparison(document))
    assert f"KL(π‖π_ref) {value} [{value}, {value}]" in found.words
    assert "the best guess" not in found.words
    assert ruling(document).state == "failed"
    for attributes, text in found.scripts:
        if attributes.get("type"):
            assert not re.search(r"\b(NaN|Infinity)\b", text)
    figure = position_chart(document).figure
    assert figure is not None
    assert figure["data"][2]["y"] == [None, 1.125]


def test_models_that_are_one_are_0_apart() -> None:
    document = comparison_document(**limited(("all", 5.0, "response")))
    nothing = {"value": 0.0, "low": 0.0, "high": 0.0}
    for key in ("kl_policy_ref_per_response", "kl_ref_policy_per_response", "js_per_response"):
        document[key] |= nothing
    words = parsed(render_comparison(document)).words
    assert "KL(π‖π_ref) 0 [0, 0] nats per response" in words
    assert "is right 50 % of the time; chance is 50 %" in words
    figure = headline_chart(document).figure
    assert figure is not None
    assert figure["layout"]["shapes"][0]["x0"] == 5.0


def test_many_slices_are_cut_to_the_worst() -> None:
    one = comparison_document()["slices"]["films"]
    slices = {
        f"slice {i}": {
            **one,
            "kl_policy_ref_per_response": {**one["kl_policy_ref_per_response"], "value": float(i)},
        }
        for i in range(200)
    }
    words = page(slices=slices).words
    assert "slice 199" in words
    assert "slice 3 " not in words
    assert "and 176 more, with less" in words


def test_the_page_asks_for_nothing() -> None:
    found = page()
    assert found.policy.startswith("default-src 'none'")
    assert not re.search(r"unsafe-eval|script-src[^;]*unsafe-inline|https?:|blob:|\*", found.policy)
    assert [(tag, a["href"]) for tag, a in found.tags if "href" in a] == [("link", "data:,")]
    assert not any("src" in attributes for _, attributes in found.tags)


def test_no_text_of_a_document_becomes_markup(xss: Payloads) -> None:
    payloads = xss(HOME)
    plain = page_of(*(f"plain {i}" for i in range(len(payloads))))
    seen = ""
    for first in range(0, len(payloads), 7):  # each place sees a payload in seven
        found = page_of(*payloads[first:], *payloads[:first])
        assert found.shape == plain.shape
        assert {name for _, attributes in found.tags for name in attributes} <= ATTRIBUTES
        assert found.policy == plain.policy
        code = [text for attributes, text in found.scripts if "type" not in attributes]
        assert code == [text for attributes, text in plain.scripts if "type" not in attributes]
        figures = [text for attributes, text in found.scripts if attributes.get("type")]
        assert len(figures) == 4 + 1
        for text in figures:
            assert not set(text) & set("<>&\u2028\u2029")
            assert not [said for said in drawn_texts(json.loads(text)) if set(said) & set("<>")]
        seen += found.text
    for payload in payloads:
        if payload.isascii() and payload.isprintable():
            assert payload in seen


def drawn_texts(figure: dict[str, Any]) -> list[str]:
    """The texts of a figure that plotly would read tags in."""
    layout, traces = figure.get("layout", {}), figure.get("data", [])
    return [
        *(trace["name"] for trace in traces if "name" in trace),
        *(said for trace in traces for said in trace.get("text", ())),
        *layout.get("yaxis", {}).get("ticktext", ()),
        *(note["text"] for note in layout.get("annotations", ())),
    ]


def page_of(*texts: str) -> Page:
    """A page whose every text is one of these."""
    document = with_text(comparison_document(**limited(("films", 5.0, "response"))), *texts)
    return parsed(render_comparison(document))


def test_terminal_and_direction_codes_are_seen() -> None:
    found = page_of("\x1b[31mred\u202e")
    assert "\x1b" not in found.html
    assert "\u202e" not in found.html
    assert "␛[31mred⟨U+202E⟩" in found.text


def test_no_text_of_a_document_is_in_the_figures() -> None:
    document = comparison_document()
    assert headline(with_text(document, "hostile")) == [
        line._replace(note=line.note.replace("; one round, as asked", ""))
        for line in headline(document)
    ]


def test_limits_that_do_not_hold_come_first() -> None:
    limits = limited(
        ("films", 9.0, "response"), ("all", 4.5, "response"), ("films", 1.0, "response")
    )
    lines = limit_lines(comparison_document(**limits))
    assert [line.state for line in lines] == ["above", "open", "within"]
    assert [line.share for line in lines] == [1.0, 1.0, pytest.approx(6 / 9)]
    assert not any(line.share is not None and math.isnan(line.share) for line in lines)


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_no_template_trusts_anything(template: Path) -> None:
    assert not re.search(r"\|\s*safe|autoescape|Markup", template.read_text(encoding="utf-8"))
