"""The pieces that studies share: that a result depends on settings alone, and that what is measured is what it says."""

import json
from pathlib import Path

import pytest
import torch

from kleash.lab.arms.arm import train_arm
from kleash.lab.arms.pool import draw_pool
from kleash.lab.arms.proxy import MODEL, fit_proxy, label_pairs
from kleash.lab.arms.retention import lost
from kleash.lab.arms.settings import (
    ArmSettings,
    EvaluationSettings,
    PoolSettings,
    ProxySettings,
    RetentionSettings,
    StudentSettings,
)
from kleash.lab.arms.student import make_student
from kleash.lab.study.work import Event, Piece, Work
from kleash.models.hub import load_language_model
from kleash.rewards.scorers import Scorer, load_scorer
from kleash.rollout.config import RolloutConfig
from kleash.rollout.sampler import sample
from kleash.rollout.seeds import seeded

PROXY = ProxySettings(pairs=24, max_new_tokens=8)
ARM = ArmSettings(
    rewards=(PROXY,),
    steps=3,
    num_prompts=4,
    max_new_tokens=8,
    evaluation=EvaluationSettings(num_prompts=4, group_size=2),
)


def work(directory: Path) -> Work:
    def see(event: Event) -> None:
        assert event.step <= event.steps

    return Work(directory, see, 1)


@pytest.mark.slow
def test_an_arm_depends_on_its_settings_alone(tmp_path: Path) -> None:
    """The same bytes in another directory and after other work; other figures with another seed or β."""
    arm = Piece("arm", train_arm, ARM)
    with work(tmp_path / "one").open() as first:
        first.do([Piece("proxy", fit_proxy, PROXY)])
        (one,) = first.do([arm])
    with work(tmp_path / "two").open() as second:
        second.do([Piece("pool", draw_pool, PoolSettings(num_prompts=1, samples=4))])
        second.do([Piece("proxy", fit_proxy, PROXY)])
        held = Piece("held", train_arm, ARM.model_copy(update={"kl_coef": 0.5}))
        other, two = second.do([held, arm])
    assert one == two
    assert other["steps"][0]["gold"] == one["steps"][0]["gold"]  # before the first update
    assert other["end"]["kl"] != one["end"]["kl"]
    assert [row["step"] for row in one["steps"]] == [1, 2, 3]
    assert one["steps"][0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert one["end"]["kl"] > 0.0


@pytest.mark.slow
def test_an_arm_that_is_stopped_while_it_is_examined_goes_on_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its training is not made again, and the result is that of an arm which was never stopped."""
    gold = ARM.model_copy(update={"rewards": ("tiny-reviews/gold",)})
    with work(tmp_path / "whole").open() as desk:
        whole = desk.do([Piece("arm", train_arm, gold)])

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("kleash.lab.arms.arm.examine", stopped)
        with pytest.raises(KeyboardInterrupt), work(tmp_path / "two").open() as desk:
            desk.do([Piece("arm", train_arm, gold)])
    before = [
        path.read_bytes() for path in tmp_path.glob("two/pieces/*.part/run/ledger/segments/*")
    ]
    with work(tmp_path / "two").open() as desk:
        assert desk.do([Piece("arm", train_arm, gold)]) == whole
    after = [path.read_bytes() for path in tmp_path.glob("two/pieces/*/run/ledger/segments/*")]
    assert after == before != []


@pytest.mark.slow
def test_what_a_policy_keeps_is_measured_on_both_halves(tmp_path: Path) -> None:
    kept = ARM.model_copy(
        update={
            "retention": RetentionSettings(texts=16, coef=1.0),
            "rewards": ("tiny-reviews/gold",),
        }
    )
    with work(tmp_path).open() as desk:
        (found,) = desk.do([Piece("kept", train_arm, kept)])
    assert found["end"]["lost_task"] > 0.0
    assert found["end"]["lost_other_low"] < found["end"]["lost_other"]
    config = json.loads(next(tmp_path.glob("pieces/train-arm-*/run/config.json")).read_text())
    trained = Path(config["config"]["data"]["prompts"].replace(".part", ""))
    assert len(trained.read_text().splitlines()) == 48  # every other one of 96


def test_nothing_is_lost_by_a_model_that_is_its_reference() -> None:
    base = load_language_model("tiny-reviews/base")
    config = RolloutConfig(num_prompts=4, group_size=1, max_new_tokens=8)
    texts = sample(base, ["the film is"] * 4, config, seeded(0, "t"))
    assert lost(base, base, texts) == (0.0, 0.0, 0.0)


@torch.no_grad()
def test_what_is_lost_against_a_slow_twin() -> None:
    """KL(π_ref‖π) at every token, from whole passes of the model over each text alone."""
    base, other = load_language_model("tiny-reviews/base"), load_language_model("tiny-reviews/base")
    other.model.model.norm.weight.mul_(0.7)
    config = RolloutConfig(num_prompts=3, group_size=1, max_new_tokens=8)
    texts = sample(base, ["the film is", "this movie has", "a"], config, seeded(0, "t"))
    total, count = 0.0, 0
    for i in range(3):
        prompt = texts.prompt_ids[i][texts.prompt_mask[i]]
        whole = torch.cat([prompt, texts.response_ids[i][texts.mask[i]]]).unsqueeze(0)
        rows = slice(len(prompt) - 1, whole.shape[1] - 1)
        theirs, own = (
            m.model(whole).logits[0, rows].log_softmax(-1).double() for m in (base, other)
        )
        total += float((theirs.exp() * (theirs - own)).sum())
        count += whole.shape[1] - len(prompt)
    assert lost(other, base, texts)[0] == pytest.approx(total / count, rel=1e-4)


def test_labels_follow_bradley_and_terry() -> None:
    """A gold model that scores by length: with noise the longer is chosen with σ(Δ/noise); all turned by flips."""
    base = load_language_model("tiny-reviews/base")
    words = Scorer(name="words", score=lambda _, texts: [0.3 * len(t.split()) for t in texts])
    settings = ProxySettings(pairs=192, max_new_tokens=8, noise=1.0)
    pairs = label_pairs(base, words, settings)
    gaps = [0.3 * (len(p.chosen_text.split()) - len(p.rejected_text.split())) for p in pairs]
    expected = [1 / (1 + 2.718281828 ** -abs(gap)) for gap in gaps if gap]
    right = sum(gap > 0 for gap in gaps if gap)
    spread = sum(p * (1 - p) for p in expected) ** 0.5
    assert abs(right - sum(expected)) < 4 * spread
    sharp = label_pairs(base, words, settings.model_copy(update={"noise": 1e-6}))
    assert all(len(p.chosen_text.split()) >= len(p.rejected_text.split()) for p in sharp)


def test_a_pool_is_what_the_scorers_say_of_the_references_own_responses(tmp_path: Path) -> None:
    settings = PoolSettings(
        rewards=("tiny-reviews/gold",), num_prompts=2, samples=3, max_new_tokens=8
    )
    with work(tmp_path).open() as desk:
        (found,) = desk.do([Piece("pool", draw_pool, settings)])
    assert found["rewards"] == [found["gold"]]
    assert torch.tensor(found["gold"]).shape == (2, 3)
    assert all(value < 0 for row in found["logprobs"] for value in row)


@pytest.mark.slow
def test_a_student_learns_and_scores_as_a_reward_models_trunk(tmp_path: Path) -> None:
    """More lessons bring it nearer to its teacher; a proxy with its trunk is as small as it is."""
    few, more = (StudentSettings(width=32, layers=1, steps=n, texts=96) for n in (2, 40))
    proxy = PROXY.model_copy(update={"base": few})
    with work(tmp_path).open() as desk:
        least, less = desk.do([Piece("s", make_student, each) for each in (few, more)])
        (small,) = desk.do([Piece("p", fit_proxy, proxy)])
    assert less["kl_teacher_student_per_token"] < least["kl_teacher_student_per_token"] - 0.3
    assert least["parameters"] < small["parameters"] < least["parameters"] + 100
    where = tmp_path / "pieces" / Piece("p", fit_proxy, proxy).key / MODEL
    assert len(load_scorer(str(where)).score(["the film is"], [" good ."])) == 1
