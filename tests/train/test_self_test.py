"""The self-test finds what it is for, each fault put in by hand, and leaves a sound run as it was."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kleash.control import ControlConfig
from kleash.errors import ConfigError
from kleash.functional.chi_squared import chi_squared_charge, response_log_ratio
from kleash.functional.chunks import TokenKL
from kleash.functional.penalties import GRADIENTS, Penalty
from kleash.ledger import read
from kleash.models.config import ModelConfig
from kleash.models.hub import freeze
from kleash.models.identity import weights_digest
from kleash.models.policy import Head, LanguageModel
from kleash.records import Unit
from kleash.replay import verify_run
from kleash.rewards.config import RewardConfig
from kleash.rollout.config import RolloutConfig
from kleash.rollout.sampler import draw
from kleash.train.algorithms import (
    ALGORITHMS,
    Algorithm,
    AlgorithmConfig,
    Minibatch,
    Targets,
    TokenTerms,
)
from kleash.train.algorithms.functions import value_loss
from kleash.train.checks import Check, SelfTest
from kleash.train.config import OptimizerConfig, PenaltyConfig, RunConfig, TrainConfig
from kleash.train.experience import Experience
from kleash.train.gradient_check import head_gradient_error, placement_gradient_error
from kleash.train.learner import Learner, build_learner
from kleash.train.run import prepare, train
from kleash.train.self_test import self_test

PPO = ALGORITHMS["ppo"]
PROMPTS = ["the film is", "a", "despite its best efforts , this movie", "it's"]
CONFIG = RunConfig(
    rollout=RolloutConfig(num_prompts=4, group_size=2, max_new_tokens=6, temperature=0.9),
    reward=RewardConfig(model="tiny-reviews/gold"),
    rl=ControlConfig(controller="fixed", kl_coef=0.1),
    train=TrainConfig(steps=2, threads=1, device="cpu", num_samples=1, trackers=()),
)


@pytest.fixture
def learner() -> Learner:
    return build_learner(ModelConfig(), OptimizerConfig(), "cpu")


def run(learner: Learner, algorithm: Algorithm = PPO, config: RunConfig = CONFIG) -> SelfTest:
    return self_test(learner, PROMPTS, config, algorithm, torch.Generator().manual_seed(0))


def failed(found: SelfTest) -> list[str]:
    return [check.name for check in found.checks if not check.passed]


def test_a_sound_learner_passes_and_is_left_as_it_was(learner: Learner) -> None:
    """Pitfalls 14, 16, 18, 20 and 38: nothing differs between the two sides, padded or not, and the KL starts at 0."""
    assert learner.value_head is not None
    before = weights_digest(learner.policy.model), weights_digest(learner.value_head)
    found = run(learner)
    assert failed(found) == []
    value = {check.name: check.value for check in found.checks}
    assert value["KL at step 0"] == 0
    assert 0 <= value["noise floor"] < 1e-9
    assert (weights_digest(learner.policy.model), weights_digest(learner.value_head)) == before
    assert not learner.optimizer.state_dict()["state"]


def test_dropout_on_either_side_is_found(learner: Learner) -> None:
    """Pitfall 18."""
    for side in ("policy", "reference"):
        for layer in getattr(learner, side).model.model.layers:
            layer.self_attn.attention_dropout = 0.2
        getattr(learner, side).model.train()
        assert "same pass twice" in failed(run(learner))
        getattr(learner, side).model.eval()
    assert failed(run(learner)) == []


class _RoundsByWidth(LanguageModel):
    """Kernels of half precision may add up in another order where a batch is wider, and be off by some last bits."""

    def hidden(
        self,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        response_ids: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        states = LanguageModel.hidden(self, prompt_ids, prompt_mask, response_ids, mask)
        return states if bool(prompt_mask.all()) else states.to(torch.bfloat16).float()


def test_the_noise_of_half_precision_is_measured_and_allowed_for(learner: Learner) -> None:
    """Pitfall 19: bf16 forward passes differ with the padding; the floor is read, and bounds the KL at step 0."""
    policy, reference = (
        _RoundsByWidth(side.name, side.model, learner.policy.tokenizer)
        for side in (learner.policy, learner.reference)
    )
    found = {
        check.name: check
        for check in run(replace(learner, policy=policy, reference=reference)).checks
    }
    noise, start = found["noise floor"], found["KL at step 0"]
    assert 1e-9 < noise.value < 2e-3
    assert start.limit is not None
    assert 1e-9 < start.limit <= 100 * noise.value + 1e-10
    assert start.value == 0


def test_a_model_in_half_precision_passes(learner: Learner) -> None:
    assert learner.value_head is not None
    for part in (learner.policy.model, learner.reference.model, learner.value_head):
        part.to(torch.bfloat16)
    found = {check.name: check for check in run(learner).checks}
    assert all(check.passed for check in found.values())
    noise, start = found["noise floor"], found["KL at step 0"]
    # Some processors add up in the same order at any width.
    assert 0 <= noise.value < 2e-3
    assert start.limit == pytest.approx(min(2e-3, 100 * noise.value + 1e-10))
    assert start.value == 0


class _CountsPadding(LanguageModel):
    """A model whose positions count the padding."""

    def hidden(
        self,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        response_ids: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        return LanguageModel.hidden(
            self, prompt_ids, torch.ones_like(prompt_mask), response_ids, mask
        )


def test_padding_that_matters_is_found(learner: Learner) -> None:
    """Pitfall 14: positions, or attention, that take padding for text."""
    policy, reference = (
        _CountsPadding(side.name, side.model, learner.policy.tokenizer)
        for side in (learner.policy, learner.reference)
    )
    broken = replace(learner, policy=policy, reference=reference)
    assert {"noise floor", "sampler against training"} <= set(failed(run(broken)))


class _OtherTemperature(LanguageModel):
    """A model that is trained at a temperature it was not sampled at."""

    def hidden(
        self,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        response_ids: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        return 0.98 * LanguageModel.hidden(self, prompt_ids, prompt_mask, response_ids, mask)


def test_a_temperature_on_one_side_is_found(learner: Learner) -> None:
    """Pitfalls 15 and 16: 2 % on one side only."""
    policy = learner.policy
    hot = _OtherTemperature(policy.name, policy.model, policy.tokenizer)
    found = set(failed(run(replace(learner, policy=hot))))
    assert {"sampler against training", "KL at step 0"} <= found
    both = replace(learner, policy=hot, reference=replace(hot, model=learner.reference.model))
    assert "sampler against training" in failed(run(both))


def _top_k(k: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Draws from the likeliest tokens only, though what is recorded is of the whole distribution."""

    def wrong(logprobs: Tensor, uniform: Tensor) -> Tensor:
        least = logprobs.topk(k, -1).values[..., -1:]
        return draw(logprobs.masked_fill(logprobs < least, -torch.inf), uniform)

    return wrong


def _cooler(logprobs: Tensor, uniform: Tensor) -> Tensor:
    return draw(torch.log_softmax(logprobs / 0.5, -1), uniform)


@pytest.mark.parametrize("wrong", [_top_k(1), _top_k(5), _top_k(20), _cooler])
def test_a_sampler_that_leaves_tokens_out_is_found(
    learner: Learner,
    wrong: Callable[[Tensor, Tensor], Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pitfalls 7 and 17: what was drawn is less surprising than the entropy says, whatever was recorded of it."""
    monkeypatch.setattr("kleash.rollout.sampler.draw", wrong)
    longer = CONFIG.rollout.model_copy(update={"max_new_tokens": 24})
    found = run(learner, config=CONFIG.model_copy(update={"rollout": longer}))
    assert "surprise of the tokens drawn, less entropy" in failed(found)


class _Suppressed:
    """A hook that suppresses all but the likeliest tokens where the policy samples, and so in what is recorded."""

    def __init__(self, model: torch.nn.Module, k: int) -> None:
        self.k, self.hook = k, model.register_forward_hook(self)

    def __call__(self, _: object, args: object, output: object) -> object:
        logits: Tensor = output.logits  # pyright: ignore[reportAttributeAccessIssue]
        least = logits.topk(self.k, -1).values[..., -1:]
        output.logits = logits.masked_fill(logits < least, -torch.inf)  # pyright: ignore[reportAttributeAccessIssue]
        return output


def test_tokens_that_are_suppressed_are_found(learner: Learner) -> None:
    """T12: E_q[p/q] is what p holds of the tokens that q can draw, not 1."""
    suppressed = _Suppressed(learner.policy.model, 5)
    found = failed(run(learner))
    suppressed.hook.remove()
    assert {"mean of p/q less 1", "sampler against training"} <= set(found)
    assert failed(run(learner)) == []


def test_a_reference_that_is_the_policy_is_found(learner: Learner) -> None:
    """Pitfall 38: shared weights drift with the policy, and the KL stays at 0 for ever."""
    tied = replace(learner, reference=learner.policy)
    check = run(tied).checks[-1]
    assert not check.passed
    assert "shares weights" in check.wrong
    assert "was moved" in check.wrong
    awake = freeze(learner.policy)
    awake.model.requires_grad_(True)
    assert "asks for gradients" in run(replace(learner, reference=awake)).checks[-1].wrong


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1.1, 3.0, 12.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_another_reference_may_be_any_distance_away(
    learner: Learner, factor: float, seed: int
) -> None:
    """A policy that was fine-tuned before: E_q[p/q] is carried by draws that never come, and refuses nothing."""
    other = freeze(learner.policy)
    with torch.no_grad():
        learner.policy.model.lm_head.weight.mul_(factor)
    found = self_test(
        replace(learner, reference=other), PROMPTS, CONFIG, PPO, torch.Generator().manual_seed(seed)
    )
    assert failed(found) == []
    start = next(check for check in found.checks if check.name == "KL at step 0")
    assert start.limit is None
    assert start.value > 1e-3


def test_the_measured_noise_bounds_the_kl_at_step_0(learner: Learner) -> None:
    found = {check.name: check for check in run(learner).checks}
    noise = found["noise floor"].value
    assert found["noise floor"].limit == 1e-6
    assert found["KL at step 0"].limit == pytest.approx(100 * noise + 1e-10)
    assert found["sampler against training"].limit == 1e-4


def test_an_update_that_cannot_be_undone_is_found(learner: Learner) -> None:
    """A weight that the optimiser moves and no snapshot holds."""
    assert (
        "could not be undone" in run(replace(learner, trained=learner.trained[1:])).checks[-1].wrong
    )


def test_an_update_at_another_temperature_is_found(learner: Learner) -> None:
    """T10: the ratios of the first minibatch are 1. The learner's update believes in another temperature."""

    def terms(
        read: TokenKL, batch: Minibatch, targets: Targets, config: AlgorithmConfig
    ) -> TokenTerms:
        late = batch._replace(anchor_logprobs=batch.anchor_logprobs.roll(1))
        return PPO.token_terms(read, late, targets, config)

    assert "first ratios" in failed(run(learner, PPO._replace(token_terms=terms)))


def test_an_update_that_is_not_finite_is_found(learner: Learner) -> None:
    def endless(values: Tensor, batch: Minibatch, config: AlgorithmConfig) -> Tensor:
        return value_loss(values, batch, config) * torch.nan

    found = run(learner, PPO._replace(value_loss=endless))
    assert "was not finite" in found.checks[-1].wrong


class _Doubled(Head):
    """A head whose KL is right and whose gradient is twice that."""

    def read(
        self,
        hidden: Tensor,
        ref: Head,
        ref_hidden: Tensor,
        tokens: Tensor,
        temperature: float,
        *,
        hold: bool = False,
    ) -> TokenKL:
        found = Head.read(self, hidden, ref, ref_hidden, tokens, temperature, hold=hold)
        return found._replace(kl=2 * found.kl - found.kl.detach())


def test_a_head_whose_gradient_is_not_that_of_its_value_is_found() -> None:
    weight, ref, hidden = torch.randn(9, 4), Head(torch.randn(9, 4)), torch.randn(2, 4)
    assert head_gradient_error(Head(weight), hidden, ref, hidden, 0.7) < 1e-7
    assert head_gradient_error(_Doubled(weight), hidden, ref, hidden, 0.7) > 0.5


def _rows() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(5)
    return torch.randn(6, 50, generator=draw), torch.randn(6, 50, generator=draw)


@pytest.mark.parametrize("penalty", GRADIENTS, ids=lambda p: "-".join(p[:3]))
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_every_penalty_that_is_offered_passes(penalty: Penalty, temperature: float) -> None:
    """Pitfalls 21 to 24: through the algorithm's own targets and terms, against differences of the divergence."""
    assert placement_gradient_error(*_rows(), penalty, PPO, temperature) < 1e-7
    if penalty.is_of_sequence:
        beside = penalty._replace(chi_squared=0.3)
        assert placement_gradient_error(*_rows(), beside, PPO, temperature) < 1e-7
        without = PPO._replace(targets=lambda e, b, c, p: PPO.targets(e, b, c, p.of_kl))
        assert placement_gradient_error(*_rows(), beside, without, temperature) > 0.05
        of_its_own = PPO._replace(targets=_charged_from_its_own)
        assert placement_gradient_error(*_rows(), beside, of_its_own, temperature) > 0.05


def _charged_from_its_own(
    experience: Experience, kl_coef: float, config: AlgorithmConfig, penalty: Penalty
) -> Targets:
    """PPO as it once was: charged for χ² from the least of the prompt on, which may be the response's own."""
    log_ratios = response_log_ratio(experience.log_ratio, experience.rollout.mask)
    index, coef = experience.rollout.prompt_index, kl_coef * penalty.chi_squared
    charge = chi_squared_charge(log_ratios, experience.penalised, index, coef).amounts
    plain = PPO.targets(experience, kl_coef, config, penalty.of_kl)
    return plain._replace(advantages=plain.advantages - charge[:, None])


def _replaced(penalty: Penalty) -> Algorithm:
    """PPO that says one thing and does another: the loss of the given penalty, whatever was asked for."""

    def terms(
        read: TokenKL, batch: Minibatch, targets: Targets, config: AlgorithmConfig
    ) -> TokenTerms:
        return PPO.token_terms(read, batch, targets._replace(penalty=penalty), config)

    return PPO._replace(token_terms=terms)


@pytest.mark.parametrize(
    ("asked", "done"),
    [
        (Penalty("exact", "exact"), Penalty("reward", "k1")),  # the local term is lost
        (Penalty("loss", "exact"), Penalty("loss", "k1")),
        (Penalty("loss", "exact"), Penalty("loss", "k3")),
        (Penalty("loss", "k2"), Penalty("loss", "k2", "score")),
        (Penalty("forward", "k3"), Penalty("loss", "k2")),
        (Penalty("loss", "k3", "ratio"), Penalty("loss", "k3", "detached")),
    ],
)
def test_a_penalty_that_descends_something_else_is_found(asked: Penalty, done: Penalty) -> None:
    assert placement_gradient_error(*_rows(), asked, _replaced(done)) > 0.05


def test_a_wrong_sign_or_scale_is_found() -> None:
    """Pitfall 29."""
    for factor in (-1.0, 2.0):

        def terms(
            read: TokenKL,
            batch: Minibatch,
            targets: Targets,
            config: AlgorithmConfig,
            factor: float = factor,
        ) -> TokenTerms:
            found = PPO.token_terms(read, batch, targets, config)
            assert found.penalty is not None
            return found._replace(penalty=factor * found.penalty)

        broken = PPO._replace(token_terms=terms)
        assert placement_gradient_error(*_rows(), Penalty("exact", "exact"), broken) > 0.1


def test_a_failure_names_what_is_wrong_and_what_to_do() -> None:
    good = Check(name="fine", value=0.0, limit=1.0, unit="nats", passed=True)
    bad = Check(
        name="KL at step 0",
        value=0.5,
        limit=1e-6,
        unit="nats per token",
        passed=False,
        wrong="policy and reference differ",
        do="make them equal",
    )
    SelfTest(checks=(good,)).raise_if_failed()
    with pytest.raises(ConfigError, match="policy and reference differ") as caught:
        SelfTest(checks=(good, bad, replace(bad, name="noise floor"))).raise_if_failed()
    assert caught.value.expected == "KL at step 0: at most 1e-06 nats per token"
    assert caught.value.got == "0.5 nats per token; noise floor failed too"
    assert "make them equal" in caught.value.do
    assert "--skip-self-test" in caught.value.do


@pytest.fixture
def broken_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALGORITHMS, "ppo", _replaced(Penalty("loss", "k1")))


@pytest.mark.usefixtures("broken_penalty")
def test_a_failed_self_test_stops_the_run_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gradient of the divergence it is named for"):
        next(iter(train(CONFIG, tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_the_test_changes_no_number_and_the_ledger_says_whether_it_was_made(tmp_path: Path) -> None:
    list(train(CONFIG, tmp_path / "tested"))
    list(train(CONFIG, tmp_path / "skipped", skip_self_test=True))
    for name in ("metrics.jsonl", "samples.jsonl", "drift.jsonl"):
        assert (tmp_path / "tested" / name).read_bytes() == (
            tmp_path / "skipped" / name
        ).read_bytes()
    said = {
        name: next(iter(read(tmp_path / name / "ledger"))).body["self_test"]
        for name in ("tested", "skipped")
    }
    assert said["skipped"] == "skipped"
    assert all(check["passed"] for check in said["tested"]["checks"])
    assert "gradient of the penalty, exact with exact" in {
        check["name"] for check in said["tested"]["checks"]
    }
    config = json.loads((tmp_path / "tested" / "config.json").read_text())
    assert config["self_test"] == said["tested"]
    for name in said:
        found = verify_run(tmp_path / name)
        assert found.ok, found.problems
        assert ("self-test was skipped" in str(found.notes)) == (name == "skipped")
    config["self_test"] = "skipped"
    (tmp_path / "tested" / "config.json").write_text(json.dumps(config))
    assert "self_test" in str(verify_run(tmp_path / "tested").problems)


@pytest.mark.parametrize(
    "placement", ["reward", *(pytest.param(x, marks=pytest.mark.slow) for x in ("loss", "forward"))]
)
def test_every_placement_trains_and_holds_its_record(placement: str, tmp_path: Path) -> None:
    config = CONFIG.model_copy(
        update={"penalty": PenaltyConfig.model_validate({"placement": placement})}
    )
    records = list(train(config, tmp_path / "run"))
    assert [record.verdict.action for record in records] == ["accept", "accept"]
    in_loss = records[0].metrics["kl_loss"]
    assert (in_loss is None) == (placement == "reward")
    assert verify_run(tmp_path / "run").ok


def test_chi_squared_trains_and_holds_its_record(tmp_path: Path) -> None:
    penalty = PenaltyConfig(chi_squared=0.5)
    records = list(train(CONFIG.model_copy(update={"penalty": penalty}), tmp_path / "run"))
    assert [record.verdict.action for record in records] == ["accept", "accept"]
    readings = [record.metrics["chi_squared_policy_ref_per_response"] for record in records]
    assert readings[0] == pytest.approx(0, abs=1e-9)
    assert readings[1] is not None
    assert readings[1] > 0
    card = (tmp_path / "run" / "final" / "README.md").read_text(encoding="utf-8")
    assert "descends KL(π‖π_ref) and 0.5/2 χ²(π‖π_ref) of the whole response" in card
    assert verify_run(tmp_path / "run").ok


def test_the_drift_from_the_first_reference_is_measured_when_there_is_another(
    tmp_path: Path,
) -> None:
    """Pitfall 39: a reference that follows the policy hides the drift, and `kl_policy_origin` does not."""
    setup = prepare(CONFIG)
    records = list(train(CONFIG, tmp_path / "run", skip_self_test=True))
    assert records[-1].metrics["kl_policy_origin_per_response"] == records[-1].kl.value
    learner = setup.learner
    with torch.no_grad():
        learner.policy.model.lm_head.weight.mul_(1.2)
    followed = replace(learner, reference=freeze(learner.policy))
    from kleash.rollout.seeds import seeded
    from kleash.train.evaluate import collect

    experience = collect(followed, PROMPTS, CONFIG.rollout, (setup.reward, []), seeded(0, "origin"))
    readings = experience.readings(followed)
    assert readings.response.value < 1e-9
    assert readings.origin.value > 1e-2
    assert readings.origin.name == "kl_policy_origin_per_response"


def test_a_target_within_the_noise_is_refused(tmp_path: Path) -> None:
    """The embedded model's floor is some 1e-13 nats a token: no controller can tell such a target from rounding."""
    config = CONFIG.model_copy(update={"rl": ControlConfig(kl_target=1e-14)})
    with pytest.raises(ConfigError, match="are noise") as caught:
        next(train(config, tmp_path / "run"))
    assert "rl.kl_target = 1e-14 nats per response" in caught.value.what
    assert "raise rl.kl_target" in caught.value.do
    assert not (tmp_path / "run").exists()


def test_a_target_is_held_against_ten_times_the_noise_in_its_own_unit(learner: Learner) -> None:
    def found(unit: Unit, target: float) -> tuple[Check, float]:
        rl = ControlConfig(kl_target=target, kl_unit=unit)
        checks = run(learner, config=CONFIG.model_copy(update={"rl": rl})).checks
        return checks[-1], next(check.value for check in checks if check.name == "noise floor")

    check, floor = found("token", 1.0)
    assert check.value == pytest.approx(10 * floor)
    assert check.passed
    per_response, _ = found("response", check.value)
    assert check.value < per_response.value <= CONFIG.rollout.max_new_tokens * check.value
    assert not per_response.passed
