"""A comparison as a block of Markdown for a model card: the figures, the limits, and how to measure them again."""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from kleash.audit.config import CompareConfig
from kleash.report.compared import count, figure, objects, part, read, words
from kleash.report.compared_lines import KL, headline, limit_lines, ruling
from kleash.report.comparison_charts import worst_slices
from kleash.report.text import DASH, number, shorten, visible

WIDEST = 120
"""Characters of a name."""
LISTED = 12
"""Slices and limits; comparison.json has more."""

USUAL = {"temperature": 1.0, "max_new_tokens": 64, "chat": False}
"""What a comparison takes where nothing is said, unless the policy is a run, which says otherwise."""
ELSEWHERE = ("policy", "reference", "prompts", "limits", "retain", "show")
"""Fields of the configuration that are no settings of the document."""

_SIGNS = {ord(sign): f"&#{ord(sign)};" for sign in "<>&@$[]"} | {
    ord(sign): f"\\{sign}" for sign in "\\`*|~#"
}
_UNDERSCORE = re.compile(r"(?<!\w)_|_(?!\w)")
"""That could begin or end emphasis: within a word it is itself."""
_LINK = re.compile(r":(?=//)|(?<=[Ww]{3})\.")
"""By which an address becomes a link of itself."""


def drift_card(document: Mapping[str, Any]) -> str:
    """The block: a heading, the figures, limits, slices, what it was measured on, and the command.

    Args:
        document: as `Comparison.to_json()` writes it; what is absent or null is left out or a dash.
    """
    policy, reference = (_name(document, side) for side in ("policy", "reference"))
    version = words(part(document, "versions").get("kleash"))
    by = f"kleash {markdown(version)}" if version else "kleash"
    figures = headline(document)
    blocks = [
        f"## Drift from {reference}",
        f"How far {policy} is from {reference}, measured by {by}. **{markdown(ruling(document).title)}.**",
        _table([("measure", "value", "unit and meaning"), *figures]) if figures else "",
        _limits(document),
        _slices(document),
        _measured_on(document),
        f"To measure it again:\n\n```sh\n{command(document)}\n```",
        "A KL near 0 says that the two models answer alike on prompts like these. It does not say that either is "
        "right or safe, nor how they answer elsewhere.",
    ]
    return "\n\n".join(filter(None, blocks)) + "\n"


def markdown(text: str) -> str:
    r"""Text that Markdown shows as it is, on one line.

    Examples:
        >>> print(markdown("a|b <img> `x`\n# *c* https://d π_ref _e_"))
        a\|b &#60;img&#62; \`x\` \# \*c\* https&#58;//d π_ref \_e\_
    """
    line = " ".join(visible(text).split())
    line = _UNDERSCORE.sub("\x00", line)
    line = _LINK.sub(lambda found: "\x01" if found[0] == ":" else "\x02", line)
    line = line.translate(_SIGNS)
    return line.replace("\x00", "\\_").replace("\x01", "&#58;").replace("\x02", "&#46;")


def command(document: Mapping[str, Any]) -> str:
    """The command line that measures the same again, on one line."""
    sides = [words(part(document, side).get("name"), "?") for side in ("policy", "reference")]
    options = [*_given(document), *_settings(document), *_limit_options(document)]
    is_odd = any(side.startswith("-") for side in sides)  # and would be read as an option
    arguments = [*options, "--", *sides] if is_odd else [*sides, *options]
    return " ".join(["kleash compare", *map(quoted, arguments)])


def quoted(text: str) -> str:
    r"""An argument as a shell reads it, with nothing in it that a reader would not see, on one line.

    Examples:
        >>> print(quoted("tiny-reviews/base"), quoted("a b"), quoted("a\nb\u202e'"))
        tiny-reviews/base 'a b' $'a\x0ab\U0000202e\''
    """
    if visible(text) == text and not {"\n", "\t"} & set(text):
        return shlex.quote(text)
    escaped = re.sub(r"[\\']", r"\\\g<0>", text)
    return "$'" + re.sub(r"[^ -~]", lambda found: _code(ord(found[0])), escaped) + "'"


def _code(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x80 else f"\\U{code:08x}"


def _name(document: Mapping[str, Any], side: str) -> str:
    return markdown(shorten(words(part(document, side).get("name"), f"an unnamed {side}"), WIDEST))


def _table(rows: Sequence[Sequence[str]]) -> str:
    """A table of a head and rows of Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def _limits(document: Mapping[str, Any]) -> str:
    lines = limit_lines(document)
    if not lines:
        return ""
    shown = [
        (markdown(shorten(x.scope, WIDEST)), x.value, x.limit, x.words) for x in lines[:LISTED]
    ]
    return _table([("limit on", KL, "limit", ""), *shown]) + _more(len(lines))


def _slices(document: Mapping[str, Any]) -> str:
    found = worst_slices(document)
    if not found:
        return ""
    rows: list[tuple[str, ...]] = []
    for name, worst in found[:LISTED]:
        token = read(document, "slices", name, "per_token", "kl_policy_ref")
        values = [DASH if each is None else each.text for each in (worst, token)]
        prompts = number(None if worst is None else worst.clusters)
        rows.append((markdown(shorten(name, WIDEST)), *values, prompts))
    head = ("slice", f"{KL}, nats per response", "per token", "prompts")
    return _table([head, *rows]) + _more(len(found))


def _more(total: int) -> str:
    return f"\n\nand {total - LISTED} more" if total > LISTED else ""


def _measured_on(document: Mapping[str, Any]) -> str:
    prompts = part(document, "prompts")
    left_out = count(prompts.get("left_out"))
    dtype = markdown(words(part(document, "settings").get("dtype"), DASH))
    source = markdown(shorten(words(prompts.get("source"), DASH), WIDEST))
    lines = [
        *(_side(document, side) for side in ("policy", "reference")),
        f"- prompts: {number(count(prompts.get('count')))} of {source}, SHA-256 {_digest(prompts.get('sha256'))}"
        + (f", {number(left_out)} left out" if left_out else ""),
        f"- responses: of at most {_setting(document, 'max_new_tokens')} tokens at temperature "
        f"{_setting(document, 'temperature')}, computed in {dtype}",
    ]
    return "\n".join(lines)


def _side(document: Mapping[str, Any], side: str) -> str:
    found = part(document, side)
    kind, base = words(found.get("kind")), words(found.get("base"))
    more = [markdown(kind)] if kind else []
    more += [f"of {markdown(shorten(base, WIDEST))}"] if base else []
    said = f" ({' '.join(more)})" if more else ""
    return f"- {side}: {_name(document, side)}{said}, weights {_digest(found.get('weights'))}"


def _digest(value: Any) -> str:
    return markdown(shorten(words(value, DASH), WIDEST))


def _setting(document: Mapping[str, Any], name: str) -> str:
    return number(figure(part(document, "settings").get(name)))


def _given(document: Mapping[str, Any]) -> list[str]:
    """The files that it read."""
    options = {
        "--prompts": part(document, "prompts").get("source"),
        "--retain": part(document, "retention").get("source"),
    }
    return [
        each for name, value in options.items() if isinstance(value, str) for each in (name, value)
    ]


def _settings(document: Mapping[str, Any]) -> list[str]:
    """Those that are not as they would be anyway."""
    settings = part(document, "settings")
    usual = {name: field.default for name, field in CompareConfig.model_fields.items()}
    if part(document, "policy").get("kind") != "run":
        usual |= USUAL
    found: list[str] = []
    for name in usual:
        value = settings.get(name)
        if name not in ELSEWHERE and value is not None and value != usual[name]:
            found += _option(name.replace("_", "-"), value)
    return found


def _option(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, int | float):
        return [f"--{name}", _exact(value)]
    return [f"--{name}", value] if isinstance(value, str) else []


def _limit_options(document: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    for each in objects(document, "limits"):
        nats, scope = figure(each.get("limit")), words(each.get("scope"), "all")
        if nats is not None:
            per = "/token" if each.get("unit") == "token" else ""
            found += ["--limit", f"{'' if scope == 'all' else scope + '='}{_exact(nats)}{per}"]
    return found


def _exact(value: float) -> str:
    """A number with every digit.

    Examples:
        >>> _exact(4.0), _exact(0.1), _exact(7)
        ('4', '0.1', '7')
    """
    return repr(value).removesuffix(".0")
