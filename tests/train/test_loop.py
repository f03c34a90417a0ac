"""The loop: what a run is, whatever ends it."""

import importlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from kleash import control
from kleash.control import ControlConfig
from kleash.errors import ConfigError, InputError, LimitError, RewardError
from kleash.guard import GuardConfig
from kleash.ledger import Ledger, UpdateEntry, read
from kleash.models.hub import load_language_model
from kleash.models.identity import weights_digest
from kleash.records import KLReading
from kleash.replay import verify_run
from kleash.rewards.config import RewardConfig
from kleash.rollout.config import RolloutConfig
from kleash.rollout.seeds import seeded
from kleash.train import update
from kleash.train.algorithms import ALGORITHMS, AlgorithmConfig
from kleash.train.config import OptimizerConfig, RunConfig, TrainConfig
from kleash.train.evaluate import collect
from kleash.train.learner import trainable
from kleash.train.loop import final_drift
from kleash.train.run import prepare
from kleash.train.run import train as train_tested
from kleash.train.update import propose_update

train = partial(train_tested, skip_self_test=True)
"""What the self-test finds has tests of its own (`test_self_test`); one run below makes it."""

_calls = {"left": 10**9}


def count_e(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [float(text.count("e")) for text in responses]


def turns_nan(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    _calls["left"] -= 1
    return [1.0 if _calls["left"] > 0 else float("nan")] * len(responses)


def turns_interrupt(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    _calls["left"] -= 1
    if _calls["left"] <= 0:
        raise KeyboardInterrupt
    return [1.0] * len(responses)


@pytest.fixture(autouse=True)
def _reward_module(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "loop_rewards", sys.modules[__name__])


def _config(reward: str = "loop_rewards:count_e", **sections: object) -> RunConfig:
    fields: dict[str, object] = {
        "rollout": RolloutConfig(num_prompts=4, group_size=2, max_new_tokens=8),
        "reward": RewardConfig(model=reward),
        "rl": ControlConfig(kl_target=0.5),
        "optimizer": OptimizerConfig(learning_rate=1e-3),
        "train": TrainConfig(
            steps=3, threads=1, device="cpu", num_samples=2, sample_every=2, trackers=()
        ),
    }
    return RunConfig.model_validate({**fields, **sections})


def test_a_run_verifies_repeats_bit_for_bit_and_loads_in_transformers(tmp_path: Path) -> None:
    config = _config()
    records = list(train_tested(config, tmp_path / "a"))
    list(train_tested(config, tmp_path / "b"))
    for name in ("metrics.jsonl", "samples.jsonl", "drift.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    found = verify_run(tmp_path / "a")
    assert found.ok, found.problems
    assert (found.status, found.steps) == ("finished", 3)
    assert records[-1].kl.value > 1e-3
    AutoModelForCausalLM.from_pretrained(tmp_path / "a" / "final")
    card = (tmp_path / "a" / "final" / "README.md").read_text()
    assert str(records[-1].kl) in card


def test_beta_of_a_step_is_what_the_controller_says_of_its_own_reading(tmp_path: Path) -> None:
    """Pitfalls 40 and 49: chosen once a rollout, however many minibatches, from the policy about to be updated."""
    config = _config(
        rl=ControlConfig(controller="ppo", kl_target=0.05, kl_unit="token", kl_ramp=2),
        algorithm=AlgorithmConfig(num_epochs=1, num_minibatches=4),
        # The first update is refused, the later ones are smaller.
        optimizer=OptimizerConfig(learning_rate=1e-4, schedule="linear"),
        guard=GuardConfig(max_kl_new_old=0.12, on_breach="reject"),
    )
    records = list(train(config, tmp_path / "run"))
    assert [record.verdict.action for record in records] == ["reject", "accept", "accept"]
    entries = [
        UpdateEntry.from_json(entry.body)
        for entry in read(tmp_path / "run" / "ledger")
        if entry.type == "update"
    ]
    assert [entry.signals.applied for entry in entries] == [True, False, True]
    state = control.init(config.rl)
    for record, entry in zip(records, entries, strict=True):
        assert (entry.signals.num_responses, entry.signals.age) == (8, 0)
        assert entry.signals.momentum == pytest.approx(config.optimizer.beta1**4)
        assert entry.kl_control is not None
        state = control.update(state, entry.kl_control, entry.signals)
        assert record.kl_coef == record.metrics["kl_coef"] == entry.kl_coef == state.kl_coef
        assert entry.control == state.to_json()
        assert record.note == entry.control["note"]
    assert [record.metrics["kl_target"] for record in records] == [0.025, 0.05, 0.05]
    assert len({record.kl_coef for record in records}) == 3
    assert verify_run(tmp_path / "run").ok


def test_a_policy_without_a_weight_to_train_is_refused() -> None:
    """Pitfall 46: it would measure, decide and record for hours, and learn nothing."""
    policy = load_language_model("tiny-reviews/base")
    policy.model.requires_grad_(False)
    with pytest.raises(ConfigError, match="can be trained"):
        trainable(policy)


@pytest.mark.slow
def test_another_seed_gives_another_run(tmp_path: Path) -> None:
    one = TrainConfig(steps=1, threads=1, device="cpu", num_samples=2, trackers=())
    first = list(train(_config(train=one), tmp_path / "a"))
    other = one.model_copy(update={"seed": 1})
    second = list(train(_config(train=other), tmp_path / "b"))
    assert first[0].metrics["reward_mean"] != second[0].metrics["reward_mean"]


def test_step_0_kl_is_nothing_and_is_measured_at_beta_0_too(tmp_path: Path) -> None:
    """Pitfalls 7, 16, 18, 32: the drift is read whether it is penalised or not, and starts at the noise floor."""
    config = _config(rl=ControlConfig(controller="fixed", kl_coef=0.0))
    records = list(train(config, tmp_path / "run"))
    per_token = records[0].metrics["kl_policy_ref_per_token"]
    assert per_token is not None
    assert 0 <= per_token <= 1e-6
    assert records[-1].kl.value > 1e-3
    gap = records[0].metrics["sampler_logprob_gap_max"]
    assert gap is not None
    assert gap < 1e-5


def test_the_first_minibatch_sees_a_ratio_of_exactly_one() -> None:
    """T10: temperature, masks and numerics are the same at metering and in training."""
    setup = prepare(_config())
    config, learner = setup.config, setup.learner
    experience = collect(
        learner, setup.prompts[:4], config.rollout, (setup.reward, []), seeded(0, "test")
    )
    rollout = experience.rollout
    with torch.no_grad():
        hidden = learner.policy.hidden(
            rollout.prompt_ids, rollout.prompt_mask, rollout.response_ids
        )
        logprobs = torch.log_softmax(learner.policy.head(hidden), -1)
    now = logprobs.gather(-1, rollout.response_ids.unsqueeze(-1)).squeeze(-1)
    assert float((now - experience.metered.logprobs)[rollout.mask].abs().max()) < 1e-5


def test_a_refused_update_leaves_no_trace() -> None:
    setup = prepare(_config())
    config, learner = setup.config, setup.learner
    generator = seeded(0, "test")
    experience = collect(learner, setup.prompts[:4], config.rollout, (setup.reward, []), generator)
    algorithm = ALGORITHMS["ppo"]
    assert learner.value_head is not None
    before = weights_digest(learner.policy.model), weights_digest(learner.value_head)
    targets = algorithm.targets(experience, 0.1, config.algorithm, config.penalty.resolved)
    proposal = propose_update(learner, algorithm, experience, targets, config, generator)
    assert proposal.facts.finite
    assert proposal.facts.kl_new_old is not None
    assert proposal.facts.kl_new_old.value > 0
    assert weights_digest(learner.policy.model) != before[0]
    learner.restore(proposal.snapshot)
    after = weights_digest(learner.policy.model), weights_digest(learner.value_head)
    assert after == before
    assert not learner.optimizer.state_dict()["state"]


def test_the_reference_never_moves() -> None:
    """Pitfall 38."""
    setup = prepare(_config())
    before = weights_digest(setup.learner.reference.model)
    generator = seeded(0, "test")
    experience = collect(
        setup.learner, setup.prompts[:4], setup.config.rollout, (setup.reward, []), generator
    )
    algorithm = ALGORITHMS["ppo"]
    targets = algorithm.targets(
        experience, 0.1, setup.config.algorithm, setup.config.penalty.resolved
    )
    propose_update(setup.learner, algorithm, experience, targets, setup.config, generator)
    assert weights_digest(setup.learner.reference.model) == before


@pytest.mark.slow
def test_micro_batches_change_memory_and_not_results(tmp_path: Path) -> None:
    """Pitfalls 20 and 42."""
    entropies: list[float | None] = []
    for size in (3, 8):
        settings = TrainConfig(
            steps=1, threads=1, device="cpu", num_samples=2, trackers=(), micro_batch_size=size
        )
        record = next(iter(train(_config(train=settings), tmp_path / str(size))))
        entropies.append(record.metrics["entropy_per_token"])
    assert entropies[0] == pytest.approx(entropies[1], rel=1e-5)


def test_whitening_scales_both_parts_of_the_penalty_alike() -> None:
    """Pitfall 41: β in the loss is divided by what the advantages were divided by."""
    setup = prepare(_config())
    experience = collect(
        setup.learner, setup.prompts[:4], setup.config.rollout, (setup.reward, []), seeded(0, "t")
    )
    penalty = setup.config.penalty.resolved
    plain = setup.config.algorithm.model_copy(update={"scale": "none"})
    raw = ALGORITHMS["ppo"].targets(experience, 0.1, plain, penalty)
    white = ALGORITHMS["ppo"].targets(experience, 0.1, setup.config.algorithm, penalty)
    sigma = float(raw.advantages[experience.rollout.mask].std())
    assert raw.kl_coef_effective == 0.1
    assert white.kl_coef_effective == pytest.approx(0.1 / sigma, rel=1e-5)


def test_a_reward_that_turns_nan_ends_the_run_with_its_record_whole(tmp_path: Path) -> None:
    _calls["left"] = 4
    with pytest.raises(RewardError):
        list(train(_config("loop_rewards:turns_nan"), tmp_path / "run"))
    found = verify_run(tmp_path / "run")
    assert found.ok, found.problems
    assert found.status == "failed"
    assert found.steps >= 1
    AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final")


def test_ctrl_c_ends_cleanly_with_what_was_done_saved(tmp_path: Path) -> None:
    _calls["left"] = 4
    with pytest.raises(KeyboardInterrupt):
        list(train(_config("loop_rewards:turns_interrupt"), tmp_path / "run"))
    found = verify_run(tmp_path / "run")
    assert found.ok, found.problems
    assert found.status == "interrupted"
    AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final")


def test_closing_the_iterator_is_an_interruption_too(tmp_path: Path) -> None:
    steps = train(_config(), tmp_path / "run")
    next(iter(steps))
    steps.close()
    assert verify_run(tmp_path / "run").status == "interrupted"


def saved_digest(run: Path) -> str:
    return weights_digest(AutoModelForCausalLM.from_pretrained(run / "final", dtype=torch.float32))


def over_the_limit(monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A run whose updates are measured as if they left the reference where it is: only its own rollouts tell."""
    real = update.measure_update

    def measure(*args: object, **options: object) -> object:
        found = real(*args, **options)  # pyright: ignore[reportArgumentType]
        assert found.from_reference is not None
        return found._replace(from_reference=replace(found.from_reference, value=0.0))

    monkeypatch.setattr(update, "measure_update", measure)
    return _config(guard=GuardConfig(max_kl=1e-3))


def test_a_hard_limit_halts_and_saves_the_last_policy_under_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = weights_digest(prepare(_config()).learner.policy.model)
    with pytest.raises(LimitError, match="step 2") as caught:
        list(train(over_the_limit(monkeypatch), tmp_path / "run"))
    assert "the policy before it is saved" in caught.value.got
    found = verify_run(tmp_path / "run")
    assert found.ok, found.problems
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["accepted"] for line in lines] == [1, 0]
    assert saved_digest(tmp_path / "run") == start
    assert "weights: 0.00 [0.00, 0.00]" in (tmp_path / "run" / "final" / "README.md").read_text()


def test_the_last_update_is_metered_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step: its rollout is the reference's own, at 0 nats, and only what the update made can be over the limit."""
    config = over_the_limit(monkeypatch)
    one = config.model_copy(update={"train": config.train.model_copy(update={"steps": 1})})
    start = weights_digest(prepare(_config()).learner.policy.model)
    with pytest.raises(LimitError, match="the end"):
        list(train(one, tmp_path / "run"))
    assert saved_digest(tmp_path / "run") == start
    found = verify_run(tmp_path / "run")
    assert found.ok, found.problems
    assert (found.status, found.steps) == ("failed", 1)


def test_the_card_and_the_ledger_state_the_drift_of_what_is_saved(tmp_path: Path) -> None:
    list(train(_config(), tmp_path / "run"))
    kl = KLReading.from_json(list(read(tmp_path / "run" / "ledger"))[-1].body["kl"])
    card = (tmp_path / "run" / "final" / "README.md").read_text()
    assert f"of these weights: {kl}" in card
    setup = prepare(_config())
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final", dtype=torch.float32)
    setup.learner.policy.model.load_state_dict(policy.state_dict())
    assert final_drift(setup).value == pytest.approx(kl.value, rel=1e-6)
    assert kl.value > 1e-3


@pytest.mark.parametrize(
    "where",
    [
        pytest.param("kleash.train.loop._decide", marks=pytest.mark.slow),
        "kleash.ledger.Ledger.append",
    ],
)
def test_an_update_that_nobody_judged_is_undone(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between an update and its verdict, or its entry: what is saved is the policy before."""
    two = list(
        train(_config(train=_config().train.model_copy(update={"steps": 1})), tmp_path / "a")
    )
    assert len(two) == 1
    module, _, name = where.rpartition(".")
    owner = Ledger if module.endswith("Ledger") else importlib.import_module(module)
    real, calls = getattr(owner, name), {"left": 2 if owner is Ledger else 1}

    def interrupted(*args: object) -> object:
        is_update = owner is not Ledger or args[1] == "update"
        if is_update and calls["left"] == (1 if owner is Ledger else 0):
            raise KeyboardInterrupt
        calls["left"] -= is_update
        return real(*args)

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(train(_config(), tmp_path / "b"))
    assert saved_digest(tmp_path / "b") == saved_digest(tmp_path / "a")
    found = verify_run(tmp_path / "b")
    assert found.ok, found.problems
    assert (found.status, found.steps) == ("interrupted", 1)


@pytest.mark.slow
def test_a_run_without_one_accepted_update_says_so(tmp_path: Path) -> None:
    limits = GuardConfig(max_kl_new_old=1e-12)
    start = weights_digest(prepare(_config()).learner.policy.model)
    with pytest.raises(LimitError, match="refused every update"):
        list(train(_config(guard=limits), tmp_path / "run"))
    assert saved_digest(tmp_path / "run") == start
    assert verify_run(tmp_path / "run").ok


@pytest.mark.slow
def test_a_sharp_policy_is_metered_and_trained(tmp_path: Path) -> None:
    """Pitfalls 1 and 7: at T = 0.05 log-ratios of hundreds of nats are ordinary; nothing overflows."""
    sharp = RolloutConfig(num_prompts=4, group_size=2, max_new_tokens=8, temperature=0.05)
    records = list(train(_config(rollout=sharp), tmp_path / "run"))
    assert [r.verdict.action for r in records] == ["accept"] * 3
    assert all(r.kl.is_possible for r in records)


def test_an_update_that_breaks_the_model_is_refused(tmp_path: Path) -> None:
    """Finite weights can still give logits that are not: the update's own KL is no number then."""
    config = _config(
        optimizer=OptimizerConfig(learning_rate=1e15),
        algorithm=AlgorithmConfig(num_epochs=1, num_minibatches=1),
        train=_config().train.model_copy(update={"steps": 1}),
    )
    with pytest.raises(LimitError, match="refused every update"):
        list(train(config, tmp_path / "run"))
    assert saved_digest(tmp_path / "run") == weights_digest(prepare(config).learner.policy.model)


@pytest.mark.parametrize("name", ["nonsense", "wandb"])
def test_a_tracker_that_is_not_there_is_refused_before_anything_is_written(
    name: str, tmp_path: Path
) -> None:
    config = _config(train=_config().train.model_copy(update={"trackers": (name,)}))
    with pytest.raises(ConfigError, match=name):
        list(train(config, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_run_directory_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("keep")
    with pytest.raises(InputError):
        next(iter(train(_config(), tmp_path)))
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]
