"""The body of an update: exact round trips, and nothing else is taken for one."""

import json
import math
from dataclasses import replace

import pytest

from kleash.errors import TamperError
from kleash.ledger import UpdateEntry, encode
from kleash.records import KLReading, UpdateFacts, Verdict

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
UPDATE = UpdateEntry(
    step=1,
    kl=KL,
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


def test_an_unmeasurable_reading_survives() -> None:
    update = replace(UPDATE, kl=replace(KL, value=math.nan))
    back = UpdateEntry.from_json(json.loads(encode(update.to_json())))

    assert math.isnan(back.kl.value)


def test_the_fields_of_the_format() -> None:
    assert sorted(BODY) == [
        "control",
        "facts",
        "kl",
        "kl_coef",
        "metrics_sha256",
        "rollout_sha256",
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


@pytest.mark.parametrize("field", sorted(BODY))
def test_a_missing_field_is_refused(field: str) -> None:
    with pytest.raises(TamperError, match=field):
        UpdateEntry.from_json({key: value for key, value in BODY.items() if key != field})
