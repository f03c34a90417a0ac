"""What a record says of the guard's work: of what was kept, the worst; of what rang, when; of what was undone, why."""

from dataclasses import replace
from typing import Any

from kleash import guard
from kleash.guard import GuardConfig
from kleash.ledger import UpdateEntry
from kleash.records import CanaryFacts, Distance, StepTails, UpdateFacts, Verdict
from kleash.replay import Plan, governed
from tests.test_replay_decisions import MOVED, PER_RESPONSE, SIGNALS

CONFIG = GuardConfig.model_validate(
    {
        "max_kl": 20.0,
        "max_kl_new_old": 0.05,
        "min_entropy": 1.0,
        "max_kl_canary": 9.0,
        "max_path_log_ratio": 4.0,
        "rollback_after": 99,
        "alarms": {
            "kl": {"mean": 2.0, "bound": 8.0, "mean_time": 8.0},
            "concordance": {"mean": 0.0, "mean_time": 3.0, "action": "raise"},
        },
    }
)
STEPS = 8


def facts(new_old: float, entropy: float = 2.0) -> UpdateFacts:
    return UpdateFacts(
        finite=True,
        kl_new_old=replace(MOVED, value=new_old),
        grad_norm=1.0,
        tails=StepTails(kl_p99=0.1, kl_max=0.2, log_ratio_max=0.5),
        entropy=entropy,
        kl_proposed=replace(PER_RESPONSE, value=1.0),
        canary=CanaryFacts(
            kl=replace(PER_RESPONSE, value=2.0),
            moved=Distance(sup_log_ratio=0.25, total_variation=0.01),
            away=Distance(sup_log_ratio=0.125, total_variation=0.005),
        ),
    )


def record(
    kls: list[float], changes: list[UpdateFacts], agreements: list[float | None]
) -> list[UpdateEntry]:
    """Steps as the guard decides them."""
    state, updates = guard.start(CONFIG, STEPS), list[UpdateEntry]()
    for step, (kl, fact, agreed) in enumerate(zip(kls, changes, agreements, strict=True), start=1):
        reading = replace(PER_RESPONSE, value=kl)
        evidence = guard.Evidence(kl=reading, facts=fact)
        seen = guard.observed(evidence, SIGNALS, agreed)
        decision = guard.decide(CONFIG, state, step, evidence, seen, None)
        state = decision.state
        made: dict[str, Any] = {"concordance": agreed, "guard": state.to_json()}
        updates.append(
            UpdateEntry(
                step=step,
                kl=reading,
                signals=SIGNALS,
                kl_coef=0.1,
                facts=fact,
                verdict=decision.verdict,
                control={},
                rollout_sha256="a" * 64,
                metrics_sha256="b" * 64,
                **made,
            )
        )
    return updates


def test_a_limit_came_to_the_worst_of_what_was_kept() -> None:
    """What was refused is not among it, though it was further; what the policy itself drifted to is."""
    changes = [facts(0.02), facts(0.5, entropy=0.25), facts(0.04, entropy=1.5), facts(0.03)]
    found = governed(record([0.0, 7.0, 3.0, 2.0], changes, [None] * 4), Plan(CONFIG), STEPS)
    assert found.verdicts == {"accept": 3, "reject": 1}
    held = {row.limit: (row.worst, row.step) for row in found.limits}
    assert held == {
        "max_kl": (7.0, 2),
        "max_kl_new_old": (0.04, 3),
        "min_entropy": (1.5, 3),
        "max_kl_canary": (2.0, 1),
    }
    [event] = found.events
    assert (event.step, event.action) == (2, "reject")
    assert "max_kl_new_old" in event.reasons[0]
    assert "min_entropy" in event.reasons[1]


def test_a_budget_is_what_its_last_state_says() -> None:
    found = governed(record([0.0] * 4, [facts(0.01)] * 4, [None] * 4), Plan(CONFIG), STEPS)
    [spent] = found.budgets
    assert (spent.limit, spent.total, spent.measured) == ("max_path_log_ratio", 4.0, 0.125)
    assert spent.spent is not None
    assert 1.0 <= spent.spent <= 1.0 + 1e-12


def test_an_alarm_is_told_at_the_steps_at_which_it_rang() -> None:
    """Not again at a step that had nothing to observe."""
    agreements = [-1.0, -1.0, None, None, 1.0, -1.0, -1.0, 1.0]
    found = governed(record([0.5] * 8, [facts(0.01)] * 8, agreements), Plan(CONFIG), STEPS)
    kl, concordance = found.alarms
    assert (kl.alarm, kl.rang) == ("kl", ())
    assert kl.evidence is not None
    assert 0.0 < kl.evidence < kl.mean_time
    # M after one reading of X = 1, m = 1/2: mean of 1 + f = 1.5; after two, 3.85 ≥ 3.
    assert (concordance.rang, concordance.action) == ((2, 7), "raise")
    assert [event.step for event in found.events] == [2, 7]
    assert all(event.alarms for event in found.events)


def test_a_reading_that_is_no_number_is_the_worst_there_was() -> None:
    changes = [facts(0.02), facts(0.02)]
    updates = record([float("nan"), 3.0], changes, [None, None])
    worst = {row.limit: row.worst for row in governed(updates, Plan(CONFIG), STEPS).limits}[
        "max_kl"
    ]
    assert worst is not None
    assert worst != worst


def test_nothing_measured_is_none() -> None:
    """Of no step, and of records of before the guard had a state."""
    none = governed([], Plan(CONFIG), STEPS)
    assert none.verdicts == {}
    assert {row.worst for row in none.limits} == {None}
    assert {row.evidence for row in none.alarms} == {None}
    assert none.budgets == ()
    old = [replace(u, guard=None) for u in record([1.0], [facts(0.01)], [None])]
    assert governed(old, Plan(CONFIG), STEPS).budgets == ()
    assert governed(old, Plan(CONFIG), STEPS).limits[0].worst == 1.0


def test_it_is_plain_data() -> None:
    updates = record([0.0], [facts(0.5)], [None])
    data = governed(updates, Plan(CONFIG), STEPS).to_json()
    assert data["verdicts"] == {"reject": 1}
    assert data["limits"][1]["worst"] is None
    assert data["events"][0]["step"] == 1
    verdict = Verdict(**{k: data["events"][0][k] for k in ("action", "reasons", "alarms")})
    assert verdict == updates[0].verdict
