"""Several references: Σ_k w_k KL(π‖π_k), read and descended."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kleash.errors import ConfigError
from kleash.functional.kl import exact_kl
from kleash.lab.closed_form import Budget, configure, set_up, standing
from kleash.lab.mdp import MDP, optimum
from kleash.lab.tabular import Table, tabular
from kleash.ledger import Ledger, SigningKey
from kleash.models.blend import Blend
from kleash.models.config import ModelConfig
from kleash.models.hub import freeze, load_language_model
from kleash.train.config import RunConfig
from kleash.train.evaluate import collect
from kleash.train.learner import build_learner
from kleash.train.loop import run_loop
from kleash.train.optimizer_config import OptimizerConfig
from kleash.train.setup import Setup

DRAW = torch.Generator().manual_seed(9)
FIRST, SECOND = (
    MDP(
        4,
        2,
        1.5 * torch.randn(5, 4, generator=DRAW, dtype=torch.double),
        torch.randn(16, generator=DRAW, dtype=torch.double),
    )
    for _ in range(2)
)
WEIGHTS = (0.7, 0.3)
BETA = 0.5


def _setup(steps: int = 1, responses: int = 64) -> Setup:
    """A table that starts as FIRST, with FIRST and SECOND for references."""
    setup = set_up(FIRST, configure(FIRST, "rloo", BETA, 0, Budget(responses, steps, 0.05), {}))
    blend = Blend.of(
        [(freeze(tabular(x)), w) for x, w in zip((FIRST, SECOND), WEIGHTS, strict=True)]
    )
    return replace(setup, learner=replace(setup.learner, reference=blend, origin=blend))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_meter_reads_the_weighted_sum_at_every_token(temperature: float) -> None:
    setup = _setup()
    table = setup.learner.policy.model
    assert isinstance(table, Table)
    with torch.no_grad():
        table.rows[:, :4] += torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    rollout = setup.config.rollout.model_copy(update={"temperature": temperature})
    draw = torch.Generator().manual_seed(2)
    experience = collect(setup.learner, setup.prompts, rollout, (setup.reward, []), draw)
    tokens = experience.rollout.response_ids
    states = torch.stack([torch.zeros_like(tokens[:, 0]), 1 + tokens[:, 0]], -1)
    own = table.logits.double() / temperature
    refs = [mdp.ref_logits / temperature for mdp in (FIRST, SECOND)]
    kl = sum(w * exact_kl(own, ref) for w, ref in zip(WEIGHTS, refs, strict=True))
    logprobs = sum(w * ref.log_softmax(-1) for w, ref in zip(WEIGHTS, refs, strict=True))
    assert isinstance(kl, torch.Tensor)
    assert isinstance(logprobs, torch.Tensor)

    found = experience.metered
    torch.testing.assert_close(found.kl.double(), kl[states], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        found.ref_logprobs.double(), logprobs[states, tokens], rtol=1e-5, atol=1e-5
    )
    assert setup.learner.reference.name == "0.7 × table + 0.3 × table"


@pytest.mark.slow
def test_what_is_reached_is_their_product_tilted(tmp_path: Path) -> None:
    """π* ∝ Π π_k^{w_k} exp(R/β) over whole responses, which no step-by-step blend of the references is."""
    setup = _setup(300, 512)
    with Ledger.create(tmp_path / "run", [SigningKey.generate()]) as ledger:
        for _ in run_loop(setup, ledger):
            pass
    table = setup.learner.policy.model
    assert isinstance(table, Table)
    # Σ w log π_k of whole responses, in the rewards of a problem whose reference is uniform.
    logs = [mdp.logprobs(mdp.ref_logits).sum(-1) for mdp in (FIRST, SECOND)]
    product = WEIGHTS[0] * logs[0] + WEIGHTS[1] * logs[1]
    even = MDP(4, 2, torch.zeros(5, 4, dtype=torch.double), FIRST.rewards + BETA * product)

    reached = standing(even, table.logits.detach(), BETA)
    assert reached.kl_to_optimum < 0.01
    stepwise = WEIGHTS[0] * FIRST.ref_logits.log_softmax(-1) + WEIGHTS[1] * (
        SECOND.ref_logits.log_softmax(-1)
    )
    other = optimum(MDP(4, 2, stepwise, FIRST.rewards), BETA)
    assert standing(even, other, BETA).kl_to_optimum > 2 * reached.kl_to_optimum


def test_two_halves_of_a_language_model_are_the_whole() -> None:
    """The same logits from hidden states side by side; and as a run would load it, KL 0 to itself."""
    whole = freeze(load_language_model("tiny-reviews/base"))
    halves = Blend.of([(whole, 0.5), (whole, 0.5)])
    ids = torch.tensor([[5, 6, 7]])
    given = ids[:, :1], torch.ones(1, 1, dtype=torch.bool), ids[:, 1:]
    torch.testing.assert_close(
        halves.head(halves.hidden(*given)[0]), whole.head(whole.hidden(*given)[0])
    )

    settings = {"reference": {"tiny-reviews/base": 0.25, "tiny-reviews/gold": 0.75}}
    learner = build_learner(ModelConfig.model_validate(settings), OptimizerConfig(), "cpu")
    assert isinstance(learner.reference, Blend)
    assert learner.reference.heaviest.name == "tiny-reviews/gold"


@pytest.mark.parametrize("weights", [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}])
def test_weights_that_are_no_mean_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        ModelConfig(reference=weights)


def test_what_takes_a_reference_for_a_distribution_is_refused() -> None:
    settings = {
        "model": {"reference": {"a": 0.5, "b": 0.5}},
        "penalty": {"placement": "loss", "estimator": "k3", "weight": "ratio"},
    }
    with pytest.raises(ValueError, match="with several references"):
        RunConfig.model_validate(settings)


def test_several_do_not_follow_the_policy() -> None:
    model = ModelConfig(reference={"tiny-reviews/base": 1.0}, refresh_every=3)
    with pytest.raises(ConfigError, match="several references"):
        build_learner(model, OptimizerConfig(), "cpu")
