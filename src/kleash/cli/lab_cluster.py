"""`kleash lab cluster`: what a step costs on many GPUs, by arithmetic."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Annotated, Any, cast

import typer
from rich.console import JustifyMethod

from kleash.cli.console import Screen
from kleash.cli.options import AsJson
from kleash.errors import InputError
from kleash.lab.cluster import (
    DEVICES,
    SHAPES,
    Device,
    Layout,
    Plan,
    Setting,
    Workload,
    simulate,
)
from kleash.lab.cluster.setting import Reference

GB = 1e9
MOST_GPUS = 65_536
COLUMNS: dict[str, JustifyMethod] = {
    "GPUs": "right",
    "step": "right",
    "rollout": "right",
    "meter": "right",
    "update": "right",
    "guard": "right",
    "GB": "right",
    "GPU h": "right",
    "+KL": "right",
    "+guard": "right",
    "fits": "left",
}
GROUPS = {
    "rollout": ("prefill", "decode", "score"),
    "meter": ("policy", "reference", "meter_head"),
    "update": ("update", "update_head", "optimizer"),
    "guard": ("guard",),
}
PHASES: dict[str, JustifyMethod] = {"phase": "left", "seconds": "right", "of all": "right"}
PARTS: dict[str, JustifyMethod] = {"on each GPU": "left", "GB": "right"}
Model = Annotated[str, typer.Option(metavar="NAME", help="Shape of the policy.")]
Counts = Annotated[str, typer.Option(metavar="N,N", help="How many; a row for each number.")]
Gpu = Annotated[str, typer.Option(metavar="NAME", help="Which.")]
Tensor = Annotated[int, typer.Option(help="GPUs that share each matrix.")]
Pipeline = Annotated[int, typer.Option(help="Groups of layers.")]
Shard = Annotated[int, typer.Option(help="Replicas that share one copy; 0: all of them.")]
SamplerGpus = Annotated[int, typer.Option(help="The sampler's own; 0: all sample, in turn.")]
SamplerTensor = Annotated[int, typer.Option(help="GPUs that share each matrix there.")]
Prompts = Annotated[int, typer.Option(help="P, of a step.")]
Group = Annotated[int, typer.Option(help="G, responses to each.")]
Lengths = Annotated[
    tuple[float, float, int],
    typer.Option(
        metavar="PROMPT MEAN LONGEST", help="Tokens: a prompt's, a response's, the longest's."
    ),
]
Lora = Annotated[int, typer.Option(help="Rank of an adapter; 0: every weight is trained.")]
Epochs = Annotated[int, typer.Option(help="Over each rollout.")]
Minibatches = Annotated[int, typer.Option(help="Gradient steps of an epoch.")]
MicroTokens = Annotated[int, typer.Option(help="That go through a replica at a time.")]
Reward = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Shape of the reward model.", show_default="costs nothing"),
]
ReferenceAt = Annotated[str, typer.Option(help="sharded, or offloaded to the host's memory.")]
Checkpointing = Annotated[bool, typer.Option(help="Make activations again on the way back.")]
HostSnapshot = Annotated[bool, typer.Option(help="Keep the guard's way back in host memory.")]
SharePrompts = Annotated[bool, typer.Option(help="Train on a prompt once for its group.")]
DriftLimit = Annotated[bool, typer.Option(help="As with guard.max_kl: two readings of it.")]
Chunked = Annotated[bool, typer.Option(help="Make logits a chunk at a time.")]
Shares = Annotated[
    tuple[float, float, float] | None,
    typer.Option(
        metavar="PRODUCTS READS SENDS",
        help="Shares of the peaks that are reached.",
        show_default="of each GPU its own",
    ),
]
Launch = Annotated[float, typer.Option(help="Microseconds to start a kernel, if unhidden.", min=0)]


def cluster(  # noqa: PLR0913, PLR0917 - the options of a command line
    model: Model,
    gpus: Counts,
    gpu: Gpu = "h100",
    tensor: Tensor = 1,
    pipeline: Pipeline = 1,
    shard: Shard = 0,
    sampler_gpus: SamplerGpus = 0,
    sampler_tensor: SamplerTensor = 1,
    prompts: Prompts = 64,
    group: Group = 16,
    lengths: Lengths = (256, 1024, 4096),
    lora: Lora = 0,
    epochs: Epochs = 1,
    minibatches: Minibatches = 4,
    micro_tokens: MicroTokens = 16_384,
    reward: Reward = None,
    reference: ReferenceAt = "sharded",
    checkpointing: Checkpointing = True,
    host_snapshot: HostSnapshot = False,
    share_prompts: SharePrompts = False,
    drift_limit: DriftLimit = False,
    chunked: Chunked = True,
    shares: Shares = None,
    launch_us: Launch = 0.0,
    as_json: AsJson = False,
) -> None:
    """Seconds of each phase, bytes on each GPU, what does not fit, and what exact KL and the guard add.

    By arithmetic from published peaks: floors, not measurements. No GPU and no torch is needed.
    """
    screen = Screen(as_json=as_json)
    layout = Layout(gpus=1, tensor=tensor, pipeline=pipeline, shard=shard)
    layout = replace(layout, sampler_gpus=sampler_gpus, sampler_tensor=sampler_tensor)
    layout = replace(layout, checkpointing=checkpointing, host_snapshot=host_snapshot)
    layout = replace(layout, reference=_reference(reference))
    work = _work(prompts, group, lengths)
    work = replace(work, rank=lora, epochs=epochs, minibatches=minibatches)
    work = replace(work, micro_tokens=micro_tokens, share_prompts=share_prompts)
    work = replace(work, drift_limit=drift_limit, chunked=chunked)
    shape, device = SHAPES[_known("--model", model, SHAPES)], _machine(gpu, shares, launch_us)
    judge = None if reward is None else SHAPES[_known("--reward", reward, SHAPES)]
    layouts = [replace(layout, gpus=count) for count in _counts(gpus)]
    settings = [
        Setting(shape=shape, device=device, layout=one, work=work, reward=judge) for one in layouts
    ]
    plans = [simulate(setting) for setting in settings]
    screen.say(f"{shape.name}, {shape.parameters / GB:.3g} billion weights; {device.source}")
    _show(screen, plans)
    size = {"responses": work.responses, "tokens": work.tokens}
    made = [_document(plan) for plan in plans]
    screen.document({"model": shape.name, "gpu": device.name, **size, "plans": made})


def _reference(where: str) -> Reference:
    if where not in {"sharded", "offloaded"}:
        raise InputError("--reference is wrong", expected="sharded or offloaded", got=where[:80])
    return cast(Reference, where)


def _work(prompts: int, group: int, lengths: tuple[float, float, int]) -> Workload:
    prompt, mean, longest = lengths
    return Workload(
        prompts=prompts,
        group=group,
        prompt_length=prompt,
        response_mean=mean,
        response_max=longest,
    )


def _machine(name: str, shares: tuple[float, float, float] | None, launch_us: float) -> Device:
    """The machine of a name, with the shares that were given."""
    found = DEVICES[_known("--gpu", name, DEVICES)]
    products, reads, sends = shares or (found.products, found.reads, found.sends)
    if not all(0 < share <= 1 for share in (products, reads, sends)):
        got = f"{products} {reads} {sends}"
        raise InputError("--shares are wrong", expected="over 0, at most 1", got=got)
    if not launch_us < float("inf"):
        raise InputError("--launch-us is wrong", expected="a number", got=f"{launch_us}")
    launch = launch_us * 1e-6
    return replace(found, products=products, reads=reads, sends=sends, launch=launch)


def _known(option: str, name: str, known: Iterable[str]) -> str:
    known = list(known)
    if name in known:
        return name
    near = get_close_matches(name, known, n=1)
    raise InputError(
        f"{option} is unknown",
        expected=", ".join(known),
        got=name[:80],
        do=f"did you mean {near[0]}?" if near else "",
    )


def _counts(words: str) -> list[int]:
    try:
        counts = [int(word) for word in words.split(",")]
    except ValueError as error:
        raise InputError("--gpus is wrong", expected="numbers: 8,16", got=words[:80]) from error
    if not all(1 <= count <= MOST_GPUS for count in counts) or len(counts) > 64:
        raise InputError(
            "--gpus is wrong", expected=f"numbers from 1 to {MOST_GPUS:,}", got=words[:80]
        )
    return counts


def _show(screen: Screen, plans: Sequence[Plan]) -> None:
    screen.say()
    screen.table(COLUMNS, [_row(plan) for plan in plans])
    if len(plans) == 1:
        _detail(screen, plans[0])
    for plan in plans:
        for reason in plan.reasons:
            screen.say(f"{plan.gpus} GPUs: {reason}")
    screen.say()
    screen.say("Seconds; GB: the most on one GPU; GPU h: of 1,000 steps. +KL: what exact KL")
    screen.say("adds to the sampled token's; +guard: snapshot, measurement, ledger to that.")


def _row(plan: Plan) -> list[str]:
    phases = [sum(plan.seconds[name] for name in names) for names in GROUPS.values()]
    return [
        f"{plan.gpus}",
        *(_digits(value) for value in (plan.step, *phases)),
        _digits(plan.memory.peak / GB),
        f"{plan.gpu_hours:.0f}",
        f"{plan.added.exact:.1%}",
        f"{plan.added.guard:.1%}",
        "yes" if plan.fits else "no",
    ]


def _digits(value: float) -> str:
    """Three digits: nothing here is known to more."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _detail(screen: Screen, plan: Plan) -> None:
    whole = sum(plan.seconds.values())
    screen.say()
    screen.table(
        PHASES,
        [[name, _digits(value), f"{value / whole:.1%}"] for name, value in plan.seconds.items()],
    )
    for moment, parts in plan.memory._asdict().items():
        screen.say()
        rows = [[f"{moment}: {name}", _digits(size / GB)] for name, size in parts.items() if size]
        screen.table(PARTS, rows)


def _document(plan: Plan) -> dict[str, Any]:
    return {
        "gpus": plan.gpus,
        "step_seconds": plan.step,
        "seconds": plan.seconds,
        "bytes": plan.memory,
        "bytes_peak": plan.memory.peak,
        "fits": plan.fits,
        "reasons": plan.reasons,
        "added": plan.added,
        "gpu_hours_per_1000_steps": plan.gpu_hours,
    }
