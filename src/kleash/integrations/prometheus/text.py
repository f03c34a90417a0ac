"""Prometheus' text format, version 0.0.4: families of samples as the bytes of a page.

Written here rather than by prometheus_client: a page is a few lines of text, while its registry is process-wide state
and its server starts a thread for every connection.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_LABEL = 200
"""Characters of a label's value that are shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One value and the labels that tell it from the others of its family."""

    value: float
    labels: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """All samples of one name. Without any, nothing of it was measured, and it is not on the page."""

    name: str
    kind: Literal["gauge", "counter"]
    help: str
    samples: tuple[Sample, ...]


def page(families: Iterable[Family]) -> bytes:
    r"""The families as a scrape gets them.

    Examples:
        >>> samples = (Sample(value=0.25, labels={"reference": 'my "base"\n'}),)
        >>> print(page([Family(name="kl", kind="gauge", help="Nats.", samples=samples)]).decode(), end="")
        # HELP kl Nats.
        # TYPE kl gauge
        kl{reference="my \"base\"\\n"} 0.25
    """
    return "".join(f"{line}\n" for family in families for line in _lines(family)).encode()


def _lines(family: Family) -> Iterator[str]:
    if not family.samples:
        return
    yield f"# HELP {family.name} {family.help}"
    yield f"# TYPE {family.name} {family.kind}"
    for sample in family.samples:
        labels = ",".join(f'{name}="{label(text)}"' for name, text in sample.labels.items())
        named = f"{family.name}{{{labels}}}" if labels else family.name
        yield f"{named} {number(sample.value)}"


def label(text: str) -> str:
    r"""A label's value between its quotes: control characters written out, backslash and quote escaped.

    What is too long ends in a digest of the whole, as two samples with the same labels would cost the page.

    Line ends and lone surrogates are control characters too, so that a value is one line of valid UTF-8.

    Examples:
        >>> print(label('a"b'), label("red\x1b"))
        a\"b red\\x1b
    """
    shown = "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode()
        for each in (text if len(text) <= MAX_LABEL else f"{text[:MAX_LABEL]}…{_digest(text)}")
    )
    return shown.replace("\\", "\\\\").replace('"', '\\"')


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def number(value: float) -> str:
    """A value as the format writes it.

    Examples:
        >>> number(0.5), number(3), number(math.nan), number(-math.inf)
        ('0.5', '3', 'NaN', '-Inf')
    """
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(value)
