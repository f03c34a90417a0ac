"""Prompts in a chat template, and what a reward reads of them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from kleash.errors import ConfigError
from kleash.models.chat import Chat, check_template
from kleash.models.config import ModelConfig
from kleash.models.embedded import resolve
from kleash.models.hub import load_language_model, save_language_model
from kleash.models.reward_model import load_reward_model
from kleash.rewards.scorers import load_scorer, model_scorer
from kleash.rollout.config import RolloutConfig
from kleash.rollout.sampler import sample
from kleash.train.learner import build_learner
from kleash.train.optimizer_config import OptimizerConfig

BASE, GOLD = "tiny-reviews/base", "tiny-reviews/gold"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }} : {{ m.content }} \n{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


@pytest.fixture
def taught(tmp_path: Path) -> str:
    """The embedded model with a chat template."""
    model = load_language_model(BASE)
    model.tokenizer.chat_template = TEMPLATE
    save_language_model(model, tmp_path / "taught", "card")
    return str(tmp_path / "taught")


def learner(**settings: Any) -> Any:
    return build_learner(ModelConfig(**settings), OptimizerConfig(), "cpu")


@pytest.mark.parametrize("system", [None, "be brief"])
def test_a_prompt_is_a_message_and_its_text_stays_what_it_was(
    taught: str, system: str | None
) -> None:
    found = learner(policy=taught, chat=True, system=system)
    before = "" if system is None else f"system : {system} \n"
    text = f"{before}user : the film \nassistant : "
    bos, *ids = found.policy.encode("the film")
    # Of special tokens there is the one that the template writes, and no second.
    assert bos == found.policy.tokenizer.bos_token_id
    assert bos not in ids
    assert found.policy.tokenizer.decode(ids) == text
    config = RolloutConfig(num_prompts=1, group_size=2, max_new_tokens=4)
    for side in (found.policy, found.reference):
        rollout = sample(side, ["the film"], config, torch.Generator().manual_seed(0))
        assert rollout.prompts == ("the film", "the film")
        assert rollout.prompt_ids[0].tolist() == [bos, *ids]


def test_a_reference_by_name_is_asked_as_the_policy_is(taught: str) -> None:
    found = learner(policy=taught, chat=True, reference=BASE)
    assert found.reference.chat == Chat()


def test_a_model_without_a_template_cannot_chat() -> None:
    with pytest.raises(ConfigError, match="no chat template"):
        learner(policy=BASE, chat=True)


def test_a_template_that_raises_is_told_of() -> None:
    tokenizer = load_language_model(BASE).tokenizer
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ConfigError, match="no chat template") as caught:
        check_template("it", tokenizer, "model.chat = true")
    assert "roles must alternate" in caught.value.got


def test_a_system_message_without_a_chat_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.system"):
        ModelConfig(system="be brief")


def test_what_a_reward_reads() -> None:
    """The same classifier, given by hand what each setting says that it reads."""
    prompts, responses = ["say something of "], ["a dull film ."]
    plain = load_scorer(GOLD)
    reward = load_reward_model(GOLD)
    reward.tokenizer.chat_template = TEMPLATE
    turns = f"user : {prompts[0]} \nassistant : {responses[0]} \n"
    expected = {
        "text": plain.score([""], [prompts[0] + responses[0]]),
        "response": plain.score([""], responses),
        "chat": plain.score([""], [turns]),
    }
    assert len({score for (score,) in expected.values()}) == 3
    for reads, scores in expected.items():
        found = model_scorer(reward, reads=reads)  # pyright: ignore[reportArgumentType]
        assert found.score(prompts, responses) == pytest.approx(scores, abs=1e-5)


def test_a_reward_without_a_template_cannot_read_chats() -> None:
    assert Path(resolve(GOLD)).is_dir()
    with pytest.raises(ConfigError, match=r"reward\.reads"):
        load_scorer(GOLD, reads="chat")
