"""The body of an update: exact round trips, and nothing else is taken for one."""

import json
import math
from dataclasses import replace

import pytest

from kleash.errors import TamperError
from kleash.ledger import UpdateEntry, encode
from kleash.records import KLReading, Signals, UpdateFacts, Verdict

KL = KLReading(
    value=4.0,
    low=3.0,
    high=5.0,
    n=64,
    clusters=16,
    unit="response",
    direction="policy_ref",
    estimator="exact",
    reference="base",
)
SIGNALS = Signals(
    num_responses=64,
    reward_std=1.5,
    log_ratio_std=None,
    correlation=-0.25,
    response_length=12.5,
    momentum=0.6561,
    applied=False,
)
UPDATE = UpdateEntry(
    step=1,
    kl=KL,
    signals=SIGNALS,
    kl_coef=0.1,
    facts=UpdateFacts(finite=True, kl_new_old=None, grad_norm=1.5),
    verdict=Verdict(action="reject", reasons=("too far",)),
    control={"controller": "fixed", "kl_coef": 0.1},
    rollout_sha256="a" * 64,
    metrics_sha256="b" * 64,
)
BODY = json.loads(encode(UPDATE.to_json()))


@pytest.mark.parametrize(
    "update",
    [
        UPDATE,
        replace(UPDATE, kl_control=replace(KL, unit="token")),
        replace(UPDATE, kl=replace(KL, value=math.inf, low=None, high=None)),
        replace(UPDATE, signals=Signals(num_responses=64)),
        replace(UPDATE, signals=replace(SIGNALS, reward_std=math.inf, log_ratio_std=-math.inf)),
        replace(
            UPDATE,
            facts=UpdateFacts(
                finite=False, kl_new_old=replace(KL, direction="new_old"), grad_norm=-math.inf
            ),
        ),
    ],
)
def test_round_trip(update: UpdateEntry) -> None:
    assert UpdateEntry.from_json(json.loads(encode(update.to_json()))) == update


def test_what_could_not_be_measured_survives() -> None:
    update = replace(
        UPDATE, kl=replace(KL, value=math.nan), signals=replace(SIGNALS, reward_std=math.nan)
    )
    back = UpdateEntry.from_json(json.loads(encode(update.to_json())))

    assert math.isnan(back.kl.value)
    assert back.signals.reward_std is not None
    assert math.isnan(back.signals.reward_std)


def test_the_fields_of_the_format() -> None:
    assert sorted(BODY) == [
        "control",
        "facts",
        "kl",
        "kl_coef",
        "metrics_sha256",
        "rollout_sha256",
        "signals",
        "step",
        "verdict",
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"step": "one"},
        {"kl_coef": None},
        {"kl_coef": "0.1"},
        {"kl": {}},
        {"kl": {**BODY["kl"], "unit": "batch"}},
        {"kl": {**BODY["kl"], "extra": 1}},
        {"signals": None},
        {"signals": {}},
        {"signals": {**BODY["signals"], "extra": 1}},
        {"signals": {**BODY["signals"], "reward_std": "1.5"}},
        {"signals": {**BODY["signals"], "num_responses": 64.5}},
        {"signals": {**BODY["signals"], "momentum": None}},
        {"signals": {**BODY["signals"], "applied": "yes"}},
        {"verdict": {"action": "shrug", "reasons": []}},
        {"control": []},
        {"facts": None},
        {"extra": 1},
        {"\x1b[2J": 1},
    ],
)
def test_another_body_is_refused(change: dict) -> None:
    with pytest.raises(TamperError, match="not the body of an update") as caught:
        UpdateEntry.from_json({**BODY, **change})
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("field", sorted(BODY["signals"]))
def test_a_missing_signal_is_refused(field: str) -> None:
    """Though the record has defaults: what was not measured is recorded as null, not left out."""
    signals = {key: value for key, value in BODY["signals"].items() if key != field}
    with pytest.raises(TamperError, match="not the body of an update"):
        UpdateEntry.from_json({**BODY, "signals": signals})


@pytest.mark.parametrize("field", sorted(BODY))
def test_a_missing_field_is_refused(field: str) -> None:
    with pytest.raises(TamperError, match=field):
        UpdateEntry.from_json({key: value for key, value in BODY.items() if key != field})
