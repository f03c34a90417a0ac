"""The entries of a run that the guard watches in every way it can, made by the rules and without a model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kleash import control, guard
from kleash.control import ControlConfig, Signals
from kleash.guard import Evidence, GuardConfig
from kleash.ledger import Entry, UpdateEntry
from kleash.ledger.entry import encode_entry, parse_entry
from kleash.records import CanaryFacts, Distance, KLReading, StepTails, UpdateFacts

KL = KLReading(
    value=1.0,
    low=None,
    high=None,
    n=64,
    clusters=16,
    unit="response",
    direction="policy_ref",
    estimator="exact",
    reference="base",
)
MOVED = replace(KL, value=0.01, unit="token", direction="new_old", reference="previous policy")
SAMPLER = replace(KL, value=0.001, unit="token", direction="sampler_policy")
FACTS = UpdateFacts(
    finite=True,
    kl_new_old=MOVED,
    grad_norm=1.0,
    tails=StepTails(kl_p99=0.05, kl_max=0.1, log_ratio_max=0.2),
    entropy=2.0,
    kl_proposed=replace(KL, value=1.5),
    canary=CanaryFacts(
        kl=replace(KL, value=2.0),
        by_slice={"code": 1.0, "chat": 3.0},
        moved=Distance(sup_log_ratio=0.25, total_variation=0.125),
        away=Distance(sup_log_ratio=0.125, total_variation=0.0625),
    ),
)
GUARD: Mapping[str, Any] = {
    "max_kl": 20.0,
    "max_kl_new_old": 0.1,
    "max_kl_new_old_p99": 1.0,
    "max_kl_new_old_token": 5.0,
    "max_log_ratio": 2.0,
    "min_entropy": 0.5,
    "max_raw_grad_norm": 10.0,
    "max_mismatch": 0.1,
    "max_kl_canary": 20.0,
    "max_kl_slice": 30.0,
    "max_path_log_ratio": 8.0,
    "max_path_variation": 4.0,
    "alarms": {"kl": {"mean": 5.0, "mean_time": 50.0}, "concordance": {"mean": 0.0}},
}
CONFIG: Mapping[str, Any] = {
    "model": {},
    "optimizer": {"beta1": 0.5},
    "algorithm": {"num_epochs": 1, "num_minibatches": 2},
    "rollout": {"num_prompts": 16, "group_size": 4},
    "train": {"steps": 8, "checkpoint_every": 2},
    "rl": {"controller": "ziegler", "kl_coef": 0.1, "kl_target": 4.0},
    "guard": GUARD,
}
SIGNALS = Signals(
    num_responses=64, reward_std=1.0, correlation=0.5, response_length=8.0, momentum=0.25
)

Facts = Callable[[int], UpdateFacts]
Edit = Callable[[UpdateEntry], UpdateEntry]


def unmoved(facts: UpdateFacts, **canary: Any) -> UpdateFacts:
    """The same facts with another canary."""
    assert facts.canary is not None
    return replace(facts, canary=replace(facts.canary, **canary))


def bodies(
    config: Mapping[str, Any] = CONFIG,
    facts: Sequence[UpdateFacts] = (FACTS,) * 3,
    *,
    kl: KLReading = KL,
    concordance: float | None = 0.5,
) -> list[tuple[str, dict[str, Any]]]:
    """Start, plan, intents and updates, as the training loop makes them of such facts."""
    rl = ControlConfig.model_validate(config["rl"])
    limits, train = GuardConfig.model_validate(config["guard"]), config["train"]
    state, watch, applied = control.init(rl), guard.start(limits, train["steps"]), True
    made: list[tuple[str, dict[str, Any]]] = [
        ("run.started", {"config": config}),
        ("plan.committed", {"guard": config["guard"], "rl": config["rl"], "canary": None}),
    ]
    for step, each in enumerate(facts, start=1):
        signals = replace(SIGNALS, applied=applied)
        chosen = control.update(state, kl, signals)
        evidence = Evidence(kl=kl, facts=each, sampler=SAMPLER)
        seen = guard.observed(evidence, signals, concordance)
        decision = guard.decide(limits, watch, step, evidence, seen, train["checkpoint_every"])
        body = UpdateEntry(
            step=step,
            kl=kl,
            kl_sampler=SAMPLER,
            concordance=concordance,
            signals=signals,
            kl_coef=chosen.kl_coef,
            facts=each,
            verdict=decision.verdict,
            guard=decision.state.to_json(),
            control=chosen.to_json(),
            rollout_sha256="a" * 64,
            metrics_sha256="b" * 64,
        ).to_json()
        names = ("step", "rollout_sha256", "kl_coef")
        made += [("update.intent", {name: body[name] for name in names}), ("update", body)]
        state, applied = control.raised(chosen, decision.raise_by), decision.verdict.keeps
        watch = decision.state
    return made


def entries_of(made: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Entry]:
    """The entries of a ledger with such bodies: through their bytes, as a reader gets them."""
    entries: list[Entry] = []
    for seq, (type, body) in enumerate(made):
        prev = entries[-1].leaf if entries else "0" * 64
        time = "2030-01-02T03:04:05.678901Z"
        entries.append(
            parse_entry(encode_entry(seq=seq, type=type, time=time, body=body, prev=prev))
        )
    return entries
