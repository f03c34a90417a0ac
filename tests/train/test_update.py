"""A proposed update: what reaches the loss, what is measured of it, and the way back."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kleash.functional.chunks import TokenKL
from kleash.functional.penalties import Penalty
from kleash.guard import Decision, GuardState
from kleash.models.config import ModelConfig
from kleash.models.identity import weights_digest
from kleash.records import UpdateFacts, Verdict
from kleash.rewards.config import RewardConfig
from kleash.rewards.scorers import Scorer
from kleash.rollout.config import RolloutConfig
from kleash.rollout.rollout import Rollout
from kleash.rollout.sampler import sample
from kleash.train.algorithms import (
    ALGORITHMS,
    AlgorithmConfig,
    Minibatch,
    Targets,
    TokenTerms,
)
from kleash.train.algorithms.functions import value_loss
from kleash.train.config import OptimizerConfig, RunConfig
from kleash.train.evaluate import collect
from kleash.train.experience import Experience, meter
from kleash.train.learner import Learner, build_learner
from kleash.train.metrics import Settings, step_metrics
from kleash.train.scoring import score
from kleash.train.signals import measure
from kleash.train.update import Loss, Proposal, mean_parts, propose_update

PROMPTS = ["the film is", "a", "despite its best efforts , this movie", "it's"]
PPO = ALGORITHMS["ppo"]
EXACT = Penalty("exact", "exact")
CONFIG = RunConfig(
    rollout=RolloutConfig(num_prompts=4, group_size=2, max_new_tokens=8, temperature=0.7),
    optimizer=OptimizerConfig(learning_rate=1e-3),
)
LENGTH = Scorer(name="length", score=lambda _, responses: [float(len(text)) for text in responses])
ACCEPTED = Decision(Verdict(action="accept"), GuardState())


@pytest.fixture(scope="module")
def _built() -> Learner:
    """A learner whose policy has already left its reference, so that no two of its figures agree by chance."""
    learner = build_learner(ModelConfig(), CONFIG.optimizer, "cpu")
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in learner.trained:
            scale = 0.1 * float(weight.std()) if weight.any() else 0.05
            weight.add_(scale * torch.randn(weight.shape, generator=draw))
    return learner


@pytest.fixture
def learner(_built: Learner) -> Iterator[Learner]:
    """The same learner at its start, whatever the test before did to it."""
    learner = replace(_built, optimizer=torch.optim.AdamW(_built.trained, lr=1e-3))
    before = learner.snapshot()
    yield learner
    learner.restore(before)


@pytest.fixture
def experience(learner: Learner) -> Experience:
    return collect(learner, PROMPTS, CONFIG.rollout, (LENGTH, []), _generator())


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(11)


def _propose(learner: Learner, experience: Experience) -> tuple[Targets, Proposal]:
    targets = PPO.targets(experience, 0.1, CONFIG.algorithm, EXACT)
    return targets, propose_update(learner, PPO, experience, targets, CONFIG, _generator())


class _Reader:
    """An algorithm that keeps what it is given and moves nothing."""

    def __init__(self) -> None:
        self.seen: list[tuple[TokenKL, Minibatch]] = []
        self.values: list[Tensor] = []

    def token_terms(
        self, read: TokenKL, batch: Minibatch, targets: Targets, config: AlgorithmConfig
    ) -> TokenTerms:
        if read.logprobs.requires_grad:  # while the loss is made, and not when it is reported
            self.seen.append((TokenKL(*(x.detach() for x in read)), batch))
        nothing = 0.0 * (read.logprobs + read.kl + read.entropy)
        return TokenTerms(nothing, None, torch.zeros_like(nothing))

    def value_loss(self, values: Tensor, batch: Minibatch, config: AlgorithmConfig) -> Tensor:
        assert values.requires_grad
        self.values.append(values.detach())
        return 0.0 * values.sum()


def test_every_token_reaches_the_loss_with_its_own_figures(
    learner: Learner, experience: Experience
) -> None:
    """Before anything has moved, what is computed anew is what was metered: same states, temperature and meter."""
    metered, mask = experience.metered, experience.rollout.mask
    place = torch.arange(mask.numel()).reshape(mask.shape).float()
    reader = _Reader()
    algorithm = PPO._replace(token_terms=reader.token_terms, value_loss=reader.value_loss)
    targets = Targets(place, -place, EXACT, torch.full((len(place),), 0.1))
    propose_update(learner, algorithm, experience, targets, CONFIG, _generator())

    assert len(reader.seen) == CONFIG.algorithm.num_epochs * CONFIG.algorithm.num_minibatches
    seen: list[int] = []
    for (read, batch), values in zip(reader.seen, reader.values, strict=True):
        at = batch.advantages.long()
        seen += at.tolist()
        assert batch.returns is not None
        assert batch.old_values is not None
        assert metered.values is not None
        assert torch.equal(batch.returns, -batch.advantages)
        for given, whole in (
            (batch.old_logprobs, metered.logprobs),
            (batch.ref_logprobs, metered.ref_logprobs),
            (batch.old_values, metered.values),
        ):
            assert torch.equal(given, whole.flatten()[at])
        for anew, whole in (
            (read.logprobs, metered.logprobs),
            (values, metered.values),
            (read.kl, metered.kl),
        ):
            torch.testing.assert_close(anew, whole.flatten()[at], rtol=1e-3, atol=1e-3)
    real = place[mask].long().tolist()
    assert sorted(seen) == sorted(real * CONFIG.algorithm.num_epochs)
    # Figures that agree by chance would prove nothing.
    assert metered.values is not None
    others = (metered.ref_logprobs, metered.values, metered.kl)
    for other in others:
        assert float((metered.logprobs - other)[mask].abs().mean()) > 0.1
    assert float(metered.values[mask].std()) > 0.01


def _whole_distributions(learner: Learner, rollout: Rollout) -> list[Tensor]:
    """The slow twin: one response at a time, unpadded, transformers' own logits; [T, V] in double."""
    found: list[Tensor] = []
    for i, keep in enumerate(rollout.mask):
        prompt = rollout.prompt_ids[i][rollout.prompt_mask[i]]
        ids = torch.cat([prompt, rollout.response_ids[i][keep]]).unsqueeze(0)
        with torch.no_grad():
            logits = learner.policy.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        found.append(torch.log_softmax(logits.double() / CONFIG.rollout.temperature, -1))
    return found


def _kl(first: list[Tensor], second: list[Tensor]) -> float:
    """KL(first‖second), mean over all tokens."""
    terms = [(p.exp() * (p - q)).sum(-1) for p, q in zip(first, second, strict=True)]
    return float(torch.cat(terms).mean())


def test_how_far_the_policy_moved_is_measured_from_the_new_to_the_old(
    learner: Learner, experience: Experience
) -> None:
    old = _whole_distributions(learner, experience.rollout)
    _, proposal = _propose(learner, experience)
    new = _whole_distributions(learner, experience.rollout)

    reading = proposal.facts.kl_new_old
    assert reading is not None
    assert (reading.direction, reading.unit, reading.estimator) == ("new_old", "token", "exact")
    assert reading.value == pytest.approx(_kl(new, old), rel=1e-3)
    assert _kl(old, new) != pytest.approx(_kl(new, old), rel=2e-2)


def _optimizer_bits(learner: Learner) -> list[Tensor]:
    state = learner.optimizer.state_dict()["state"]
    return [state[i][name].clone() for i in sorted(state) for name in sorted(state[i])]


@pytest.mark.parametrize("when", [1, 2, 4])
def test_an_interruption_on_the_way_undoes_what_was_done(
    learner: Learner, experience: Experience, when: int
) -> None:
    """Ctrl-C in the first, the second and the last of four minibatches, after an update that was kept."""
    targets, _ = _propose(learner, experience)
    assert learner.value_head is not None
    before = weights_digest(learner.policy.model), weights_digest(learner.value_head)
    moments = _optimizer_bits(learner)
    assert moments
    moved: list[bool] = []

    def interrupted(values: Tensor, batch: Minibatch, config: AlgorithmConfig) -> Tensor:
        moved.append(weights_digest(learner.policy.model) != before[0])
        if len(moved) == when:
            raise KeyboardInterrupt
        return value_loss(values, batch, config)

    algorithm = PPO._replace(value_loss=interrupted)
    with pytest.raises(KeyboardInterrupt):
        propose_update(learner, algorithm, experience, targets, CONFIG, _generator())
    assert moved == [step > 0 for step in range(when)]
    assert (weights_digest(learner.policy.model), weights_digest(learner.value_head)) == before
    after = _optimizer_bits(learner)
    assert all(torch.equal(a, b) for a, b in zip(moments, after, strict=True))


def test_what_is_not_finite_ends_the_update_before_it_is_made(
    learner: Learner, experience: Experience
) -> None:
    before = weights_digest(learner.policy.model)
    calls: list[Tensor] = []

    def endless(values: Tensor, batch: Minibatch, config: AlgorithmConfig) -> Tensor:
        calls.append(value_loss(values, batch, config) * torch.inf)
        return calls[-1]

    targets = PPO.targets(experience, 0.1, CONFIG.algorithm, EXACT)
    algorithm = PPO._replace(value_loss=endless)
    proposal = propose_update(learner, algorithm, experience, targets, CONFIG, _generator())
    assert len(calls) == 1
    assert not proposal.facts.finite
    assert proposal.facts.kl_new_old is None
    assert weights_digest(learner.policy.model) == before


def test_the_line_of_a_step_says_what_is_maximised(
    learner: Learner, experience: Experience
) -> None:
    """objective = E[R] − β KL(π‖π_ref), of the raw scores; pitfalls 29 and 49: the β that was applied, and its sign."""
    targets, proposal = _propose(learner, experience)
    measured = measure(learner, experience, CONFIG, applied=True)
    settings = Settings(kl_coef=0.3, kl_target=None, learning_rate=1e-3)
    line = step_metrics(1, measured, targets, proposal, ACCEPTED, settings)
    mask = experience.rollout.mask
    kl = float(experience.metered.kl.double()[mask].sum()) / len(mask)
    reward = float(experience.scores.mean())
    assert kl > 0.1
    assert line["reward_mean"] == pytest.approx(reward)
    assert line["kl_policy_ref_per_response"] == pytest.approx(kl, rel=1e-6)
    assert line["objective"] == pytest.approx(reward - 0.3 * kl, rel=1e-6)
    assert proposal.facts.kl_new_old is not None
    assert line["kl_new_old_per_token"] == proposal.facts.kl_new_old.value
    assert line["kl_coef"] == 0.3


def test_with_chi_squared_the_line_says_what_it_is_and_what_is_maximised(
    learner: Learner, experience: Experience
) -> None:
    """objective = E[R] − β (KL + (c/2) χ²); where no float holds χ² neither is measured."""
    _, proposal = _propose(learner, experience)
    penalty = EXACT._replace(chi_squared=0.5)
    settings = Settings(kl_coef=0.3, kl_target=None, learning_rate=1e-3)

    def line(of: Experience) -> dict[str, float | int | None]:
        measured = replace(measure(learner, experience, CONFIG, applied=True), experience=of)
        targets = PPO.targets(of, settings.kl_coef, CONFIG.algorithm, penalty)
        return step_metrics(1, measured, targets, proposal, ACCEPTED, settings)

    said, metered, count = line(experience), experience.metered, len(experience.scores)
    log_ratios = metered.log_ratio.double().sum(-1)
    kl = float(metered.kl.double().sum()) / count
    chi_squared = float((log_ratios.exp() - 1 - log_ratios).mean()) + kl
    reward = float(experience.scores.mean())
    assert said["chi_squared_policy_ref_per_response"] == pytest.approx(chi_squared, rel=1e-6)
    assert said["objective"] == pytest.approx(reward - 0.3 * (kl + 0.25 * chi_squared), rel=1e-6)
    assert said["chi_squared_bound_share"] is not None
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in said if name.startswith("chi_"))

    ref_logprobs = metered.ref_logprobs.clone()
    ref_logprobs[0, 0] = -800.0
    far = line(replace(experience, metered=replace(metered, ref_logprobs=ref_logprobs)))
    assert far["chi_squared_policy_ref_per_response"] is None
    assert far["objective"] is None
    assert far["chi_squared_bound_share"] is not None
    assert far["chi_squared_bound_share"] >= 1 / count


def test_every_kl_in_the_line_is_what_its_name_says(
    learner: Learner, experience: Experience
) -> None:
    """Pitfalls 31 and 47: no square root, no other quantity under a known name, and each name on the page once."""
    targets, proposal = _propose(learner, experience)
    learner.restore(proposal.snapshot)
    line = step_metrics(
        1,
        measure(learner, experience, CONFIG, applied=True),
        targets,
        proposal,
        ACCEPTED,
        Settings(kl_coef=0.1, kl_target=None, learning_rate=1e-3),
    )
    policy = _whole_distributions(learner, experience.rollout)
    reference = _whole_distributions(replace(learner, policy=learner.reference), experience.rollout)
    tokens = [(q.exp() * (q - p)).sum(-1) for q, p in zip(policy, reference, strict=True)]
    each, every = torch.stack([x.sum() for x in tokens]), torch.cat(tokens)
    formulas = {
        "kl_policy_ref_per_response": each.mean(),
        "kl_policy_ref_per_response_max": each.max(),
        "kl_policy_ref_per_response_largest_share": each.max() / each.sum(),
        "kl_policy_origin_per_response": each.mean(),
        "kl_policy_ref_per_token": every.mean(),
        "kl_policy_ref_per_token_max": every.max(),
        "kl_policy_ref_per_token_p99": every.sort().values[-(len(every) // 100) - 1],
    }
    for name, value in formulas.items():
        assert line[name] == pytest.approx(float(value), rel=1e-3), name
    assert line["kl_sampler_policy_per_token"] == pytest.approx(0, abs=1e-9)
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = [row.split("|")[1] for row in page.splitlines() if row.startswith("| `")]
    known = re.findall(r"`(\w+)`", " ".join(rows))
    assert len(known) == len(set(known))
    assert {name for name in line if not name.startswith("monitor/")} <= set(known)
    others = {"kl_coef_in_reward"}  # of a run whose updates TRL made
    assert {name for name in known if name.startswith("kl_")} - others <= set(line)


def test_the_reported_losses_are_means_over_minibatches() -> None:
    names = ("policy_loss", "value_loss", "clip_fraction")
    nothing = torch.zeros(())
    losses = [Loss(nothing, dict(zip(names, x, strict=True)), 0.0) for x in ((0, 1, 2), (4, 5, 6))]
    assert mean_parts(losses) == {
        "policy_loss": 2.0,
        "value_loss": 3.0,
        "kl_loss": None,
        "ptx_loss": None,
        "clip_fraction": 4.0,
    }
    assert set(mean_parts([]).values()) == {None}


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_at_beta_0_a_broken_reference_leaves_the_update_as_it_is(
    learner: Learner, experience: Experience, broken: float
) -> None:
    """Pitfall 4: same loss, same weights after, bit for bit, with a reference whose every number is NaN or inf."""
    found: list[tuple[str, dict[str, float | None]]] = []
    spoilt = replace(
        experience,
        metered=replace(
            experience.metered,
            **{
                name: torch.full_like(getattr(experience.metered, name), broken)
                for name in ("kl", "ref_logprobs", "ref_hidden")
            },
        ),
    )
    for seen in (experience, spoilt):
        start = learner.snapshot()
        targets = PPO.targets(seen, 0.0, CONFIG.algorithm, EXACT)
        proposal = propose_update(learner, PPO, seen, targets, CONFIG, _generator())
        found.append((weights_digest(learner.policy.model), proposal.metrics))
        learner.restore(start)
    assert found[0] == found[1]
    assert found[0][1]["kl_loss"] is None


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_the_pass_that_metered_is_the_first_that_learns(name: str, learner: Learner) -> None:
    """Two epochs of one minibatch: the same update, with one pass of the policy less."""
    algorithm = ALGORITHMS[name]
    config = RunConfig.model_validate(
        {
            "rollout": CONFIG.rollout.model_dump(),
            "algorithm": {"name": name, "num_epochs": 2, "num_minibatches": 1},
        }
    )
    passes = [0]

    def count(_module: object, _given: object) -> None:
        passes[0] += 1

    trunk = learner.policy.model.base_model
    before, counts = learner.snapshot(), list[int]()
    found: list[tuple[list[Tensor], UpdateFacts]] = []
    rollout = sample(learner.policy, PROMPTS, config.rollout, _generator())
    for keep in (False, True):
        hook = trunk.register_forward_pre_hook(count)
        passes[0] = 0
        temperature = config.rollout.temperature
        metered = meter(
            learner, rollout, temperature=temperature, micro_batch_size=32, keep_graph=keep
        )
        scored = score(rollout, LENGTH, [], RewardConfig())
        experience = Experience(rollout=rollout, metered=metered, **scored._asdict())
        assert (experience.metered.live is not None) == keep
        targets = algorithm.targets(experience, 0.1, config.algorithm, EXACT)
        proposal = propose_update(learner, algorithm, experience, targets, config, _generator())
        hook.remove()
        counts.append(passes[0])
        found.append(([p.detach().clone() for p in learner.trained], proposal.facts))
        learner.restore(before)
    (plain, facts), (kept, same) = found
    assert counts[0] - counts[1] == 1
    for one, other in zip(plain, kept, strict=True):
        # AdamW's first steps are 1e-3 long, be a gradient ever so near to 0.
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert facts.kl_new_old is not None
    assert same.kl_new_old is not None
    assert facts.kl_new_old.value > 1e-5
    assert same.kl_new_old.value == pytest.approx(facts.kl_new_old.value, rel=1e-3)


def test_a_rollout_in_pieces_keeps_no_graph(learner: Learner) -> None:
    """All of it would have to be in memory at once."""
    rollout = sample(learner.policy, PROMPTS, CONFIG.rollout, _generator())
    found = meter(learner, rollout, temperature=1.0, micro_batch_size=3, keep_graph=True)
    assert len(rollout.mask) > 3
    assert found.live is None


def test_a_snapshot_takes_the_memory_of_one_that_nobody_goes_back_to(
    learner: Learner, experience: Experience
) -> None:
    """It is the same copy, and can be gone back to bit for bit."""
    _propose(learner, experience)  # the optimiser remembers something
    first = learner.snapshot()
    places = [p.data_ptr() for p in first.parameters]
    expected = [p.detach().clone() for p in learner.trained]
    moments = [x["exp_avg"].clone() for x in learner.optimizer.state_dict()["state"].values()]
    learner.spare = first
    second = learner.snapshot()
    assert [p.data_ptr() for p in second.parameters] == places
    assert learner.spare is None
    third = learner.snapshot()
    assert {p.data_ptr() for p in third.parameters}.isdisjoint(places)
    _propose(learner, experience)
    assert not torch.equal(learner.trained[0], expected[0])
    learner.restore(second)
    assert all(torch.equal(p, x) for p, x in zip(learner.trained, expected, strict=True))
    state = learner.optimizer.state_dict()["state"]
    assert all(torch.equal(state[i]["exp_avg"], x) for i, x in enumerate(moments))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["weight", "moment"])
def test_what_is_not_finite_is_found_wherever_it_is(
    value: float, where: str, learner: Learner, experience: Experience
) -> None:
    _propose(learner, experience)
    assert learner.is_finite()
    last = learner.optimizer.state_dict()["state"][len(learner.trained) - 1]["exp_avg_sq"]
    with torch.no_grad():
        (learner.trained[3] if where == "weight" else last).view(-1)[-1] = value
    assert not learner.is_finite()


def test_a_sum_that_overflows_is_of_finite_numbers(learner: Learner) -> None:
    with torch.no_grad():
        learner.trained[0].fill_(1e38)
    assert not learner.trained[0].sum().isfinite()
    assert learner.is_finite()
