"""Run directories as training writes them, small, and text that tries to become code."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

CONFIG = {
    "model": {"policy": "tiny-reviews/base", "reference": None},
    "rl": {"controller": "tilt", "kl_coef": 0.1, "kl_target": 4.0, "kl_unit": "response"},
    "train": {"steps": 4, "seed": 0},
}

METRICS = [
    {
        "step": step,
        "reward_mean": 0.5 * step,
        "monitor/tiny-reviews/gold": gold,
        "kl_policy_ref_per_response": kl,
        "kl_policy_ref_per_response_low": None if kl is None else kl - 0.25,
        "kl_policy_ref_per_response_high": None if kl is None else kl + 0.25,
        "kl_target": 4.0,
        "kl_coef": 0.1 * 4.0 ** (step - 1),
        "entropy_per_token": 3.0,
        "value_loss": None,
        "accepted": 0 if step == 3 else 1,
    }
    for step, kl, gold in ((1, 0.25, 0.0), (2, None, 1.0), (3, 9.0, None), (4, 4.0, 0.5))
]

SAMPLES = [
    {
        "step": step,
        "prompt": "This film is",
        "response": " good .",
        "tokens": [" good", " ."],
        "kl_per_token": [1.0, 0.04],
        "kl_policy_ref": 1.04,
        "reward": 2.0,
        "monitor": {"tiny-reviews/gold": 0.75},
        "reference_response": " a film .",
        "reference_reward": -0.5,
    }
    for step in (2, 4)
]

DRIFT = [
    {
        "step": step,
        "by_position": [
            {"position": 0, "nats": 0.75 * scale, "count": 8},
            {"position": 1, "nats": 0.25 * scale, "count": 6},
            {"position": 2, "nats": 0.125 * scale, "count": 2},
        ],
        "by_prompt": [
            {"prompt": "It begins", "nats": 1.5 * scale, "count": 4},
            {"prompt": "At first", "nats": 0.75 * scale, "count": 3},
        ],
        "by_token": [
            {"token": " good", "nats": 0.5 * scale, "count": 5},
            {"token": "\n\n", "nats": -0.25 * scale, "count": 1},
        ],
    }
    for step, scale in ((1, 0.0), (2, 1.0), (4, 4.0))
]

MakeRun = Callable[..., Path]


def write_run(
    run: Path,
    *,
    config: Mapping[str, Any] | None = CONFIG,
    metrics: Sequence[Mapping[str, Any]] | None = METRICS,
    samples: Sequence[Mapping[str, Any]] | None = SAMPLES,
    drift: Sequence[Mapping[str, Any]] | None = DRIFT,
) -> Path:
    """A run directory; what is not given is as above, what is None is not written."""
    run.mkdir()
    if config is not None:
        document = {"config": config, "versions": {"kleash": "0.1.0"}, "digests": {}}
        (run / "config.json").write_text(json.dumps(document))
    lines = {"metrics": metrics, "samples": samples, "drift": drift}
    for file, rows in lines.items():
        if rows is not None:
            (run / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Writes run directories by name."""
    return lambda name="leashed", **parts: write_run(tmp_path / name, **parts)


def payloads(home: str) -> list[str]:
    """Text that, taken as markup, marks the page or calls `home`."""
    act = "document.documentElement.dataset.pwned=1"
    call = f"{act};new Image().src='{home}'"
    return [
        f"<script>{call}</script>",
        f"<SCRIPT>{act}</SCRIPT>",
        f"<script src='{home}'></script>",
        f"</script><script>{call}</script>",
        f"</style><script>{act}</script>",
        f"</title><script>{act}</script>",
        f"</textarea><script>{act}</script>",
        f"</noscript><script>{act}</script>",
        f"</pre></details><script>{act}</script>",
        f"--><script>{act}</script>",
        f"<!--<script>{act}//",
        f"<!--><script>{act}</script>",
        f"]]><script>{act}</script>",
        f"<scr<script>ipt>{act}</script>",
        f"<script\n>{act}</script\n>",
        f"<script/x>{act}</script>",
        f"<script type=module>{act}</script>",
        f'<script type="application/json" id="templates">{act}</script>',
        f'"><script>{act}</script>',
        f"'><script>{act}</script>",
        f"<img src=x onerror={act}>",
        f'<img src=x onerror="{call}">',
        f"<img src={home}>",
        f"<img/src=x/onerror={act}>",
        f"<image src=x onerror={act}>",
        f"<img src=x oNeRrOr={act}>",
        f"<img srcset='{home} 1x'>",
        f'" onerror="{act}" src="x',
        f'" onmouseover="{act}" x="',
        f'" autofocus onfocus="{act}" tabindex=1 x="',
        f"' onload='{act}",
        f"` onload=`{act}",
        f"x onload={act} ",
        f"<svg onload={act}>",
        f"<svg/onload={act}>",
        f"<svg><script>{act}</script></svg>",
        f"<svg><animate onbegin={act} attributeName=x dur=1s>",
        f"<svg><set attributeName=onmouseover to={act}>",
        f"<svg><style><img src=x onerror={act}></style></svg>",
        f"<svg><use href='{home}#x'/></svg>",
        f"<math><mtext><script>{act}</script></mtext></math>",
        f"<math><mglyph><style><img src=x onerror={act}>",
        f"<body onload={act}>",
        f'<iframe src="javascript:parent.{act}"></iframe>',
        f'<iframe srcdoc="<script>parent.{act}</script>"></iframe>',
        f"<iframe src={home}></iframe>",
        f"<object data='{home}'></object>",
        f"<embed src='{home}'>",
        f"<video src='{home}' autoplay><source onerror={act}></video>",
        f"<audio src=x onerror={act}>",
        f"<details open ontoggle={act}>",
        f"<input autofocus onfocus={act}>",
        f"<marquee onstart={act}>x</marquee>",
        f"<link rel=stylesheet href='{home}'>",
        f"<link rel=prefetch href='{home}'>",
        f"<meta http-equiv=refresh content='0;url={home}'>",
        f"<base href='{home}'>",
        f"<form action='{home}'><button autofocus>go</button></form>",
        f"<style>@import url({home});*{{background:url({home})}}</style>",
        f"<p style='background:url({home})'>x</p>",
        f"<a href='javascript:{act}'>free</a>",
        f"<a href='{home}'>free</a>",
        f"<template><script>{act}</script></template>",
        f"<custom-x onclick={act}>",
        f"\\u003cscript\\u003e{act}\\u003c/script\\u003e",
        f"&lt;script&gt;{act}&lt;/script&gt;",
        f"&#60;script&#62;{act}&#60;/script&#62;",
        f"\x00<script>{act}</script>",
        f"<scr\x00ipt>{act}</script>",
        f"\u2028<script>{act}</script>\u2029",
        f"\ud83d<script>{act}</script>",
        f"\u202e<script>{act}</script>",
        f"\x1b]8;;{home}\x07link\x1b]8;;\x07<b>",
        "{{ 7 * 7 }}{% raw %}{{ config }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "%{fullData.name}%{meta.x}<br><b>%{y}</b>",
        "$\\href{javascript:" + act + "}{x}$",
        "`${" + act + "}`",
        "__proto__",
        "constructor",
    ]


@pytest.fixture(scope="session")
def xss() -> Callable[[str], list[str]]:
    """The payloads for a given address to call."""
    return payloads
