"""Old TRL configurations: what becomes of them runs, and nothing of them is dropped without a word."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kleash.config import build
from kleash.errors import ConfigError, InputError
from kleash.integrations.trl.dialects import DIALECTS
from kleash.integrations.trl.migration import migrate, read_settings, render
from kleash.train.config import RunConfig

JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers())
)
SANE: dict[str, st.SearchStrategy[Any]] = {
    "kl_penalty": st.sampled_from(["kl", "abs", "mse", "full"]),
    "kl_estimator": st.sampled_from(["k1", "k3"]),
    "loss_type": st.sampled_from(["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo"]),
    "scale_rewards": st.sampled_from([True, False, "group", "batch", "none"]),
    "importance_sampling_level": st.sampled_from(["token", "sequence"]),
    "lr_scheduler_type": st.sampled_from(["linear", "cosine", "constant"]),
    "learning_rate": st.sampled_from(["1e-5", 1e-6, 3e-4]),
}
BY_TYPE: dict[type, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(1, 4096),
    float: st.floats(1e-4, 0.99),
    str: st.text(min_size=1),
}


@st.composite
def configurations(draw: st.DrawFn, values: str) -> tuple[str, dict[str, Any]]:
    name = draw(st.sampled_from(sorted(DIALECTS)))
    dialect = DIALECTS[name]
    keys = sorted({*dialect.known, *dialect.left, "target_kl", "epsilon_high", "max_steps"})
    said: dict[str, Any] = {}
    for key in draw(st.lists(st.sampled_from(keys), unique=True)):
        of = SANE.get(key, BY_TYPE[type(dialect.defaults.get(key, "text"))])
        said[key] = draw(of if values == "sane" else JUNK)
    said |= draw(st.dictionaries(st.text(), JUNK, max_size=3))
    return name, said


@pytest.mark.parametrize("values", ["sane", "junk"])
def test_whatever_is_said_the_result_runs_and_every_key_is_accounted_for(values: str) -> None:
    @settings(max_examples=60)
    @given(configurations(values))
    def check(configuration: tuple[str, dict[str, Any]]) -> None:
        name, said = configuration
        draft = migrate(said, DIALECTS, name)
        written = tomllib.loads(render(draft, "old\x1b.yaml\n[rl]"))
        assert written == draft.tables
        build(RunConfig, written, "a test")
        told = {each.key for each in (*draft.left, *draft.unknown)}
        assert said.keys() <= told | draft.used
        assert {each.key for each in draft.unknown} == said.keys() - {
            *draft.used,
            *draft.dialect.left,
        }

    check()


def test_the_adaptive_controller_is_zieglers() -> None:
    draft = migrate(
        {"init_kl_coef": 0.15, "target": 6, "horizon": 10000, "batch_size": 64, "ppo_epochs": 4},
        DIALECTS,
    )
    config = build(RunConfig, draft.tables, "a test")
    assert draft.dialect.name == "ppo-0.11"
    assert config.rl.controller == "ziegler"
    assert (config.rl.kl_coef, config.rl.kl_target, config.rl.kl_unit) == (0.15, 6.0, "response")
    assert (config.rl.ziegler.horizon, config.rl.ziegler.error_clip) == (10000, 0.2)
    assert (config.penalty.placement, config.penalty.estimator) == ("reward", "k1")
    assert (config.rollout.num_responses, config.algorithm.num_epochs) == (64, 4)
    assert config.optimizer.learning_rate == 1.41e-5  # TRL's default, not ours
    assert config.train.steps == 313  # 20000 episodes in batches of 64
    assert any("horizon of 10000" in each for each in draft.differs)


def test_full_is_exact_and_abs_has_no_counterpart() -> None:
    full = migrate({"kl_penalty": "full"}, DIALECTS, "ppo-0.11")
    assert full.tables["penalty"] == {"placement": "reward", "estimator": "exact"}
    other = migrate({"kl_penalty": "abs"}, DIALECTS, "ppo-0.11")
    assert other.tables["penalty"] == {"placement": "reward", "estimator": "k1"}
    assert [each.key for each in other.left] == ["kl_penalty"]


def test_ppo_of_the_second_kind() -> None:
    said = {
        "num_ppo_epochs": 2,
        "kl_coef": 0.03,
        "num_mini_batches": 4,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "total_episodes": 6400,
        "response_length": 40,
        "missing_eos_penalty": 1.0,
        "kl_estimator": "k3",
        "lr_scheduler_type": "cosine",
        "learning_rate": "3e-6",
        "bogus": 1,
    }
    draft = migrate(said, DIALECTS)
    config = build(RunConfig, draft.tables, "a test")
    assert draft.dialect.name == "ppo-0.12"
    assert (config.rl.controller, config.rl.kl_coef) == ("fixed", 0.03)
    assert (config.rollout.num_responses, config.algorithm.num_minibatches) == (64, 4)
    assert (config.train.steps, config.rollout.max_new_tokens) == (100, 40)
    assert config.rollout.temperature == 0.7
    assert config.reward.missing_eos_penalty == 1.0
    assert config.optimizer.learning_rate == 3e-6
    assert {each.key for each in draft.left} == {"kl_estimator", "lr_scheduler_type"}
    assert [each.key for each in draft.unknown] == ["bogus"]


def test_grpo_and_rloo() -> None:
    grpo = migrate(
        {"num_generations": 4, "beta": 0.04, "loss_type": "dr_grpo", "scale_rewards": False},
        DIALECTS,
    )
    config = build(RunConfig, grpo.tables, "a test")
    assert (config.algorithm.name, config.algorithm.scale) == ("dr_grpo", "none")
    assert (config.rollout.num_prompts, config.rollout.group_size) == (2, 4)
    assert (config.penalty.placement, config.penalty.estimator) == ("forward", "k3")
    assert any("1 − 1/G" in each for each in grpo.differs)
    rloo = migrate({"num_generations": 4, "beta": 0.05, "normalize_advantages": True}, DIALECTS)
    config = build(RunConfig, rloo.tables, "a test")
    assert (config.algorithm.name, config.algorithm.scale) == ("rloo", "batch")
    assert (config.penalty.placement, config.penalty.estimator) == ("reward", "k1")
    with pytest.raises(ConfigError, match="--from"):  # of PPO as of RLOO
        migrate({"num_ppo_epochs": 1, "kl_coef": 0.05}, DIALECTS)
    old = migrate({"rloo_k": 4, "num_ppo_epochs": 1, "kl_coef": 0.05}, DIALECTS)
    assert old.dialect.name == "rloo-0.12"
    assert build(RunConfig, old.tables, "a test").rollout.group_size == 4


def test_what_does_not_tell_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="--from"):
        migrate({"learning_rate": 1e-5}, DIALECTS)
    with pytest.raises(ConfigError, match=r"ppo-0\.11, ppo-0\.12"):
        migrate({}, DIALECTS, "ppo-9")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.yaml", "!!python/object/apply:os.system ['true']"),
        ("a.yaml", "a: [1"),
        ("a.yaml", "- 1\n- 2"),
        ("a.json", "{"),
        ("a.json", "[" * 100_000),
        ("a.toml", "a ="),
        ("a.ini", "a = 1"),
        ("a.json", " " * (1 << 20) + "{}"),
    ],
)
def test_a_file_that_is_none_is_refused(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError):
        read_settings(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.yml", "kl_coef: 1e-2\nnum_ppo_epochs: 2\n"),
        ("a.json", '{"kl_coef": 0.01, "num_ppo_epochs": 2}'),
        ("a.toml", "kl_coef = 0.01\nnum_ppo_epochs = 2\n"),
    ],
)
def test_three_kinds_of_file_say_the_same(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    draft = migrate(read_settings(tmp_path / name), DIALECTS, "ppo-0.12")
    assert draft.tables["rl"]["kl_coef"] == 0.01
    assert draft.tables["algorithm"]["num_epochs"] == 2
