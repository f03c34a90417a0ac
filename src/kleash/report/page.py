"""The page's shell: templates, scripts and styles, and the policy under which a browser runs them.

Nothing the page shows can act. Every string passes through `visible` and Jinja's autoescape; a figure is escaped JSON
in a script element that is data, not code; a content security policy admits our two scripts by their digests and no
request at all.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from kleash.report.text import DASH, number, visible


def render(
    context: Mapping[str, Any], template: str = "template.html.j2", *, moves: bool = True
) -> str:
    """The page as HTML, with our styles and scripts in it.

    Args:
        context: what it shows.
        template: that shows it.
        moves: whether it has charts that a script draws; one of pictures has no script at all.
    """
    scripts = _scripts() if moves else ()
    shared = {
        "css": Markup(_resource("report.css")),
        "scripts": scripts,
        "policy": _policy(scripts),
        "unmeasured": DASH,
    }
    return _environment().get_template(template).render(shared | dict(context))


def data(value: Any) -> Markup:
    r"""JSON for a script element: no character in it can end the element or start another.

    Examples:
        >>> print(data({"name": "</script>"}))
        {"name":"\u003c/script\u003e"}
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))  # ASCII: no U+2028 either
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("kleash.report", package_path=""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, data=data, pretty=_pretty)
    return environment


def _finalize(value: Any) -> Any:
    """What every expression of the template passes through: only our own markup stays as it is."""
    return value if isinstance(value, Markup) else visible(str(value))


@cache
def _scripts() -> tuple[Markup, ...]:
    """plotly.js and ours, as a browser hashes them: normal line ends, and no tag ends them early."""
    sources = (get_plotlyjs(), _resource("report.js"))
    scripts = [source.replace("\r\n", "\n").replace("\r", "\n") for source in sources]
    assert not any("</script" in script.lower() or "<!--" in script for script in scripts)
    return tuple(Markup(script) for script in scripts)


def _policy(scripts: tuple[Markup, ...]) -> str:
    digests = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts
    ]
    return "; ".join(
        (
            "default-src 'none'",
            "script-src " + (" ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"),
            "style-src 'unsafe-inline'",  # plotly places its labels with style attributes
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def _resource(name: str) -> str:
    return (files("kleash.report") / name).read_text(encoding="utf-8")


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
