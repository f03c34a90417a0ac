"""`kleash demo`: what the leash does, shown on the embedded models."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import JustifyMethod
from rich.text import Text

from kleash.cli.console import Screen, Steps, fixed, kl_text, line
from kleash.cli.guarded import guard_line
from kleash.cli.options import (
    AsJson,
    Overrides,
    PassphraseFd,
    passphrase,
    train_extra,
    vacant_directory,
)
from kleash.config import build, override
from kleash.ledger import open_signing_key
from kleash.replay import Verification, verify_run
from kleash.report import load_run, render_runs, write_report
from kleash.report.text import interval, number

if TYPE_CHECKING:
    from kleash.lab.demo import Arm, DemoEvent, DemoResult

COLUMNS: dict[str, JustifyMethod] = {
    "arm": "left",
    "proxy reward": "right",
    "gold reward": "right",
    "KL, nats/response": "right",
    "distinct-2": "right",
    "length": "right",
}
PROMPTS_SHOWN = 3
TITLE = "One reward, three leashes"


def demo(
    out: Annotated[
        Path | None, typer.Option(help="Directory, new or empty.", show_default="runs/demo")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    overrides: Overrides = None,
    passphrase_fd: PassphraseFd = None,
    as_json: AsJson = False,
) -> None:
    """Fit a proxy reward, then train against it free, with a fixed β, and on a leash.

    Everything is embedded: no hub, no account, no GPU; some minutes on two cores.
    """
    screen = Screen(as_json=as_json)
    with train_extra():
        from kleash.lab.demo import DemoConfig, run_demo

    config = build(DemoConfig, override({"seed": seed}, overrides or ()), "--set")
    directory = vacant_directory(out, "demo")
    secret = passphrase(screen, passphrase_fd)
    open_signing_key(
        passphrase=secret
    )  # that it can be had is better known before the work than after
    with screen.progress() as steps:
        result = run_demo(
            directory, config, lambda event: show_event(event, config.kl_target, steps), secret
        )
    verifications = [verify_run(Path(arm.run)) for arm in result.arms]
    report = directory / "report.html"
    rows = [arm.to_json() for arm in result.arms]
    _write_demo_report(rows, verifications, report)
    _show_result(screen, result)
    for arm, verification in zip(result.arms, verifications, strict=True):
        text = f"kleash verify {arm.run}: {verification.steps} steps, head {verification.head}"
        screen.check(passed=verification.ok, text=text)
        if verification.governed is not None:
            screen.say(f"  guard  {guard_line(verification.governed)}")
    for key in sorted({key.vkey for verification in verifications for key in verification.keys}):
        screen.say(f"signed by {key}")
    screen.say(f"report   {report}")
    screen.document(
        {
            "arms": rows,
            "reference": result.reference.to_json(),
            "kl_target": result.kl_target,
            "proxy_accuracy": result.proxy_accuracy,
            "guard": [
                None if each.governed is None else each.governed.to_json() for each in verifications
            ],
            "verified": all(verification.ok for verification in verifications),
            "report": str(report),
        }
    )
    if not all(verification.ok for verification in verifications):
        raise typer.Exit(4)


def show_event(event: "DemoEvent", kl_target: float, steps: Steps) -> None:
    """Draws one event of the demo."""
    figures = event.figures
    if event.phase == "pairs":
        steps.show("preference pairs", event.step, event.steps)
    elif event.phase == "proxy":
        text = f"loss {fixed(figures['loss'])}  accuracy {fixed(figures['accuracy'])}"
        steps.show("proxy reward", event.step, event.steps, text)
    elif event.phase == "arm":
        target = kl_target if event.arm == "leashed" else None
        text = Text.assemble(
            f"proxy {fixed(figures['reward'])}  gold {fixed(figures['gold'])}  KL ",
            kl_text(figures["kl"], figures["kl_low"], figures["kl_high"], target),
            f"  β {figures['kl_coef']:.3g}",
        )
        steps.show(str(event.arm), event.step, event.steps, text)
    else:
        steps.show(f"{event.arm}: measuring", event.step, event.steps)


def _write_demo_report(
    rows: list[dict[str, Any]], verifications: list[Verification], report: Path
) -> None:
    page = render_runs(
        [load_run(Path(row["run"])) for row in rows],
        title=TITLE,
        summary=rows,
        verifications=[verification.to_json() for verification in verifications],
    )
    write_report(page, report)


def _show_result(screen: Screen, result: "DemoResult") -> None:
    every = (result.reference, *result.arms)
    screen.table(COLUMNS, [_row(arm) for arm in every])
    screen.say(
        f"The leash: {number(result.kl_target)} nats/response. Gold drew the noisy labels; no policy was trained on it."
    )
    screen.say(f"The proxy ranks {_share(result.proxy_accuracy)} of held-out pairs as they do.")
    width = max(len(arm.name) for arm in every)
    for index, prompt in enumerate(result.prompts[:PROMPTS_SHOWN]):
        screen.say("")
        screen.say(Text(line(prompt), style="bold"))
        for arm in every:
            name = Text(f"  {arm.name:<{width}} ", style="dim")
            screen.say(name, line(arm.answers[index]))


def _share(accuracy: float | None) -> str:
    return "an unmeasured share" if accuracy is None else f"{accuracy:.0%}"


def _row(arm: "Arm") -> list[str]:
    return [
        arm.name,
        number(arm.proxy_reward),
        number(arm.gold_reward),
        interval(arm.kl_policy_ref_per_response, arm.kl_low, arm.kl_high),
        number(arm.distinct_2),
        number(arm.mean_length),
    ]
