"""Runs that train an adapter: one base, its reference, and what is left of the run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kleash.errors import ConfigError
from kleash.ledger import read
from kleash.models.hub import load_language_model
from kleash.replay import verify_run
from kleash.train.config import RunConfig
from kleash.train.run import prepare, train
from tests.train.small import small_settings


def settings(directory: Path, **model: Any) -> dict[str, Any]:
    found = small_settings(directory)
    found["model"] |= model
    return found


def run(settings: dict[str, Any], directory: Path) -> list[float]:
    """The KL of each step."""
    config = RunConfig.model_validate(settings)
    return [record.kl.value for record in train(config, directory)]


def test_an_adapter_learns_and_the_base_stays(tmp_path: Path) -> None:
    given = settings(tmp_path, lora={"rank": 2})
    drift = run(given, tmp_path / "run")
    assert drift[0] == 0
    assert drift[-1] > 0.05
    assert verify_run(tmp_path / "run").ok
    started = read(tmp_path / "run/ledger")[0].body["digests"]
    # What adds nothing has the identity of its base: the record shows that both sides began alike.
    assert started["policy"] == started["reference"]
    assert started["policy"] == load_language_model(given["model"]["policy"]).digest()
    assert sorted(path.name for path in (tmp_path / "run/final").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


@pytest.mark.slow
def test_an_adapter_that_was_trained_before_is_its_own_reference(tmp_path: Path) -> None:
    """Pitfall 35: measured from the base, the first step would read what the adapter had learnt before."""
    first = settings(tmp_path, lora={"rank": 2})
    run(first, tmp_path / "first")
    final = str(tmp_path / "first/final")
    drift = run(settings(tmp_path, policy=final), tmp_path / "second")
    assert drift[0] == 0
    assert drift[-1] > 0.05
    base = first["model"]["policy"]
    from_base = run(settings(tmp_path, policy=final, reference=base), tmp_path / "third")
    assert from_base[0] > 0.05
    said = json.loads((tmp_path / "second/final/adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == str(Path(base).resolve())


def test_only_the_adapter_is_copied_for_an_update(tmp_path: Path) -> None:
    learner = prepare(RunConfig.model_validate(settings(tmp_path, lora={"rank": 2}))).learner
    assert learner.reference.model is learner.policy.model
    own = {p.data_ptr() for p in learner.policy.own_weights.values()}
    assert learner.value_head is not None
    heads = {p.data_ptr() for p in learner.value_head.parameters()}
    assert {p.data_ptr() for p in learner.trained} == own | heads
    assert len(learner.snapshot().parameters) == len(learner.trained)


def test_after_a_reset_the_reference_is_the_policy_and_the_origin_stays(tmp_path: Path) -> None:
    given = settings(tmp_path, lora={"rank": 2}, refresh_every=3)
    config = RunConfig.model_validate(given)
    records = list(train(config, tmp_path / "run"))
    kl = [record.kl.value for record in records]
    origin = [record.metrics["kl_policy_origin_per_response"] for record in records]
    assert kl[3] == pytest.approx(0, abs=1e-6)
    assert origin[3] is not None
    assert origin[3] > 0.01
    assert kl[:3] == origin[:3]


@pytest.mark.parametrize(
    ("model", "match"),
    [
        ({"refresh_every": 2, "refresh_share": 0.5}, "not the mean of what they add"),
        ({"refresh_every": 2, "reference": "tiny-reviews/base"}, "vocabulary"),
    ],
)
def test_what_an_adapter_cannot_do_is_refused(
    model: dict[str, Any], match: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=match):
        prepare(RunConfig.model_validate(settings(tmp_path, lora={"rank": 2}, **model)))


def test_another_model_as_reference_cannot_become_the_adapter(tmp_path: Path) -> None:
    given = settings(tmp_path, lora={"rank": 2}, refresh_every=2)
    torch.manual_seed(0)
    load_language_model(given["model"]["policy"]).model.save_pretrained(tmp_path / "other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "other" / name).write_bytes((tmp_path / "model" / name).read_bytes())
    given["model"]["reference"] = str(tmp_path / "other")
    with pytest.raises(ConfigError, match="can't become the policy"):
        prepare(RunConfig.model_validate(given))
