"""GRPO and RLOO on the leash: what is measured is so, what is refused never was, and the record can be made again."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from transformers import AutoModelForCausalLM, TrainerCallback
from typer.testing import CliRunner

from kleash.cli.main import app
from kleash.control import ControlConfig
from kleash.errors import ConfigError, InputError
from kleash.functional.masking import masked_sum
from kleash.guard import GuardConfig
from kleash.integrations.trl import KLLeash
from kleash.integrations.trl.followed import follow, grpo_advantages
from kleash.ledger import UpdateEntry, read
from kleash.models.embedded import resolve
from kleash.replay import verify_run
from kleash.report import load_run, render_run
from tests.integrations.leashed import build, even, lines, weights

# TRL 1.16 asks transformers 5.23 for a name that it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

KINDS = ("GRPO", "RLOO")


class Spy:
    """What a trainer drew, and what it was told, at each rollout and each loss."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.drawn: list[dict[str, Any]] = []
        self.rewards: list[torch.Tensor] = []
        self.betas: list[float] = []
        generate, loss = trainer._generate_and_score_completions, trainer._compute_loss
        rewards = trainer._calculate_rewards

        def generating(inputs: Any) -> Any:
            output = generate(inputs)
            exact, log_ratio = self.read(output)
            self.drawn.append({"exact": exact, "log_ratio": log_ratio, **output})
            return output

        def rewarding(*given: Any) -> Any:
            scores = rewards(*given)
            self.rewards.append(scores.clone())
            return scores

        def losing(*given: Any) -> Any:
            if trainer.model.training:
                self.betas.append(float(trainer.beta))
            return loss(*given)

        trainer._generate_and_score_completions = generating
        trainer._calculate_rewards = rewarding
        trainer._compute_loss = losing

    @torch.no_grad()
    def read(self, output: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """KL(π‖π_ref) and log π/π_ref of each response, nats, by plain forward passes over the whole vocabulary."""
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
        mask = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        start = output["prompt_ids"].shape[1] - 1
        logprobs = [
            model(input_ids=ids, attention_mask=mask, position_ids=positions)
            .logits[:, start:-1]
            .double()
            .log_softmax(-1)
            for model in (self.trainer.model, self.trainer.ref_model)
        ]
        own, held = logprobs
        kept, tokens = output["completion_mask"].bool(), output["completion_ids"].unsqueeze(-1)
        log_ratio = (own - held).gather(-1, tokens).squeeze(-1)
        return masked_sum((own.exp() * (own - held)).sum(-1), kept), masked_sum(log_ratio, kept)


class At(TrainerCallback):
    """Does something to the weights' gradients or the optimiser before the step of some number, counted from 1."""

    def __init__(self, step: int, act: Callable[[Any], None]) -> None:
        self.step, self.act = step, act

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step + 1 == self.step:
            self.act(given["optimizer"])


def updates(run: Path) -> list[UpdateEntry]:
    return [UpdateEntry.from_json(e.body) for e in read(run / "ledger") if e.type == "update"]


def leap(optimizer: Any) -> None:
    for group in optimizer.param_groups:
        group["lr"] = 0.3


def poison(optimizer: Any) -> None:
    for group in optimizer.param_groups:
        group["params"][0].grad.fill_(math.nan)


@pytest.fixture(scope="module", params=[KINDS[0], pytest.param(KINDS[1], marks=pytest.mark.slow)])
def held(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run to a target, spied upon: its spy, its leash, its directory."""
    run = tmp_path_factory.mktemp("held") / "run"
    trainer = build(request.param, beta=0.3, max_steps=4, eval_strategy="steps", eval_steps=2)
    spy = Spy(trainer)
    leash = KLLeash(trainer, target=2.0, limits={"max_kl": 50.0}, ledger=run)
    trainer.train()
    return spy, leash, run


def test_the_kl_is_that_of_the_very_tokens_trl_trains_on(held: Any) -> None:
    spy, _, run = held
    training = [drawn for drawn in spy.drawn if len(drawn["exact"]) == 16]
    entries = updates(run)
    assert len(entries) == 4
    for entry, drawn in zip(entries, training, strict=True):
        assert entry.kl.value == pytest.approx(float(drawn["exact"].mean()), abs=2e-5)
        assert entry.kl.n == 16
        assert entry.kl.estimator == "exact"
    assert abs(entries[0].kl.value) < 1e-5
    assert entries[-1].kl.value > 0.05


def test_trl_trains_with_the_beta_that_the_ledger_has(held: Any) -> None:
    spy, leash, run = held
    chosen = [entry.kl_coef for entry in updates(run)]
    assert spy.betas == chosen
    assert leash.trainer.beta == chosen[-1]
    assert 0.3 not in chosen  # what it was built with


def test_rloo_charges_each_rollout_the_beta_chosen_from_it(held: Any) -> None:
    spy, leash, run = held
    if leash.method != "rloo":
        pytest.skip("GRPO's β is in its loss")
    entries, found = updates(run), zip(spy.drawn, spy.rewards, strict=True)
    training = [(drawn, rewards) for drawn, rewards in found if len(rewards) == 16]
    for entry, (drawn, rewards) in zip(entries[1:], training[1:], strict=True):
        groups = (rewards.squeeze(1) - entry.kl_coef * drawn["log_ratio"]).view(-1, 4)
        others = (groups.sum(1, keepdim=True) - groups) / 3
        advantages = (groups - others).view(-1)
        if leash.trainer.normalize_advantages:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-4)
        torch.testing.assert_close(drawn["advantages"].double(), advantages, rtol=1e-4, atol=1e-4)


def test_the_run_verifies_and_reports(held: Any) -> None:
    _, leash, run = held
    found = verify_run(run)
    assert found.problems == ()
    assert found.status == "finished"
    assert found.steps == 4
    assert {"replay", "metrics", "files"} <= set(found.checks)
    assert "kleash" in render_run(load_run(run), found.to_json())
    assert CliRunner().invoke(app, ["verify", str(run)]).exit_code == 0
    ending = read(run / "ledger")[-1]
    assert ending.type == "run.finished"
    assert ending.body["kl"]["value"] > 0.05
    assert (run / "final" / "model.safetensors").is_file()
    assert leash.halted is None


def test_trls_log_has_the_figures(held: Any) -> None:
    _, leash, run = held
    logged = [logs for logs in leash.trainer.state.log_history if "kleash/kl" in logs]
    written = lines(run)
    assert len(logged) == len(written) == 4
    for logs, line in zip(logged, written, strict=True):
        assert logs["kleash/kl"] == line["kl_policy_ref_per_response"]
        assert logs["kleash/kl_coef"] == line["kl_coef"]
        assert logs["kleash/kl_target"] == 2.0
        assert logs["kleash/verdict"] == 0.0
        assert "reward" in logs  # TRL's own are where they were
    assert "kl_sampler_policy_per_token" in written[0]
    assert written[0]["kl_sampler_policy_per_token"] is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_leash_without_a_target_changes_nothing(kind: str, tmp_path: Path) -> None:
    free = build(kind, beta=0.1)
    free.train()
    trainer = build(kind, beta=0.1)
    KLLeash(trainer, limits={"max_kl": 50.0}, ledger=tmp_path / "run")
    trainer.train()
    for one, other in zip(weights(free), weights(trainer), strict=True):
        assert torch.equal(one, other)
    assert [entry.kl_coef for entry in updates(tmp_path / "run")] == [0.1] * 3
    assert verify_run(tmp_path / "run").ok


@pytest.mark.slow
def test_at_beta_0_the_kl_is_measured_from_a_copy(tmp_path: Path) -> None:
    trainer = build("GRPO", beta=0.0)
    assert trainer.ref_model is None
    KLLeash(trainer, ledger=tmp_path / "run")
    trainer.train()
    entries = updates(tmp_path / "run")
    assert [entry.kl_coef for entry in entries] == [0.0] * 3
    assert entries[-1].kl.value > 0.05
    assert verify_run(tmp_path / "run").ok


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [(torch.float32, True), (torch.bfloat16, False), (torch.bfloat16, True)],
    ids=str,
)
def test_half_precision_is_metered_as_it_is(
    dtype: torch.dtype, autocast: bool, tmp_path: Path
) -> None:
    """Against plain forward passes, which accelerate runs in bf16: to its eight bits."""
    model = AutoModelForCausalLM.from_pretrained(
        resolve("tiny-reviews/base"), dtype=dtype, use_safetensors=True
    )
    trainer = build("GRPO", model=model, beta=0.1, max_steps=3, bf16=autocast)
    spy = Spy(trainer)
    KLLeash(trainer, target=2.0, ledger=tmp_path / "run")
    trainer.train()
    entries = updates(tmp_path / "run")
    assert abs(entries[0].kl.value) < 1e-3
    assert entries[-1].kl.value == pytest.approx(float(spy.drawn[-1]["exact"].mean()), rel=0.05)
    assert verify_run(tmp_path / "run").ok


@pytest.mark.parametrize("kind", ["GRPO", pytest.param("RLOO", marks=pytest.mark.slow)])
def test_a_refused_update_was_never_made(kind: str, tmp_path: Path) -> None:
    """Weights and moments bit for bit; the schedule of the learning rate goes on."""
    trainer = build(kind, beta=0.1, max_steps=3)
    seen: list[tuple[list[torch.Tensor], list[Any]]] = []

    class Look(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.take()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.take()

        def take(self) -> None:
            state = trainer.optimizer.optimizer.state
            moments = [{k: v.clone() for k, v in each.items()} for each in state.values()]
            seen.append((weights(trainer), moments))

    limits = {"max_kl_new_old": 1.0}
    KLLeash(trainer, target=2.0, limits=limits, ledger=tmp_path / "run")
    trainer.add_callback(At(2, leap))
    trainer.add_callback(Look())
    trainer.train()
    verdicts = [entry.verdict.action for entry in updates(tmp_path / "run")]
    assert verdicts == ["accept", "reject", "accept"]
    (before, moments_before), (after, moments_after) = seen[2:4]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert len(moments_before) == len(moments_after) > 0
    for one, other in zip(moments_before, moments_after, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert not all(torch.equal(one, o) for one, o in zip(seen[0][0], seen[1][0], strict=True))
    third = lines(tmp_path / "run")[2]
    assert third["learning_rate"] == pytest.approx(1e-3 / 3)  # linear, of three steps the last
    assert verify_run(tmp_path / "run").ok


@pytest.mark.slow
def test_a_gradient_that_is_no_number_is_undone(tmp_path: Path) -> None:
    trainer = build("GRPO", beta=0.1, max_steps=3)
    KLLeash(trainer, target=2.0, ledger=tmp_path / "run")
    trainer.add_callback(At(2, poison))
    trainer.train()
    entries = updates(tmp_path / "run")
    assert [entry.verdict.action for entry in entries] == ["accept", "reject", "accept"]
    assert not entries[1].facts.finite
    assert entries[1].facts.kl_new_old is None
    assert all(bool(weight.isfinite().all()) for weight in weights(trainer))
    assert verify_run(tmp_path / "run").ok


@pytest.mark.slow
def test_a_rollback_goes_to_the_last_good_policy(tmp_path: Path) -> None:
    trainer = build("GRPO", beta=0.1, max_steps=5)
    seen: list[list[torch.Tensor]] = []

    class Look(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            seen.append(weights(trainer))

    guard = GuardConfig(max_kl_new_old=1.0, rollback_after=1, on_breach="reject")
    KLLeash(trainer, target=2.0, limits=guard, ledger=tmp_path / "run", rollback_every=2)
    trainer.add_callback(At(4, leap))
    trainer.add_callback(Look())
    trainer.train()
    entries = updates(tmp_path / "run")
    assert [e.verdict.action for e in entries] == ["accept"] * 3 + ["rollback", "accept"]
    assert all(torch.equal(one, other) for one, other in zip(seen[1], seen[3], strict=True))
    assert entries[4].kl.value < entries[3].kl.value
    assert entries[3].guard is not None
    assert entries[3].guard["good"] == 2
    assert verify_run(tmp_path / "run").ok


@pytest.mark.slow
def test_over_max_kl_the_training_stops(tmp_path: Path) -> None:
    trainer = build("GRPO", beta=0.1, max_steps=6)
    guard = {"max_kl": 1e-3, "max_rollbacks": 0}
    seen: list[list[torch.Tensor]] = []

    class Push(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 2:
                with torch.no_grad():  # from outside, where no update of a rollout shows it
                    for weight in trainer.model.parameters():
                        weight.mul_(1.3)
                seen.append(weights(trainer))

    leash = KLLeash(trainer, target=2.0, limits=guard, ledger=tmp_path / "run")
    trainer.add_callback(Push())
    trainer.train()
    verdicts = [entry.verdict.action for entry in updates(tmp_path / "run")]
    assert verdicts == ["reject", "reject", "halt"]
    assert trainer.state.global_step == 3
    assert leash.halted is not None
    assert "max_kl" in str(leash.halted)
    assert all(torch.equal(a, b) for a, b in zip(seen[0], weights(trainer), strict=True))
    found = verify_run(tmp_path / "run")
    assert (found.ok, found.status) == (True, "failed")


@pytest.mark.slow
def test_several_optimiser_steps_of_a_rollout_are_one_update(tmp_path: Path) -> None:
    """2 passes over 2 slices: 4 steps an update, undone as one; what breaks off in the middle is judged."""
    trainer = build(
        "GRPO",
        beta=0.1,
        max_steps=10,
        per_device_train_batch_size=8,
        steps_per_generation=2,
        gradient_accumulation_steps=1,
        num_iterations=2,
    )
    begun: list[list[torch.Tensor]] = []
    ended: list[list[torch.Tensor]] = []

    class Look(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            begun.append(weights(trainer))

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            ended.append(weights(trainer))

    KLLeash(trainer, target=2.0, limits={"max_kl_new_old": 3.0}, ledger=tmp_path / "run")
    trainer.add_callback(At(6, leap))
    trainer.add_callback(Look())
    trainer.train()
    entries = updates(tmp_path / "run")
    assert [entry.verdict.action for entry in entries] == ["accept", "reject", "accept"]
    assert all(torch.equal(one, other) for one, other in zip(begun[4], ended[7], strict=True))
    assert not torch.equal(begun[4][0], ended[5][0])
    assert entries[0].signals.momentum == pytest.approx(0.9**4)
    assert verify_run(tmp_path / "run").ok


@pytest.mark.slow
def test_gradient_accumulation_is_one_update(tmp_path: Path) -> None:
    trainer = build(
        "RLOO", beta=0.1, per_device_train_batch_size=8, gradient_accumulation_steps=2, max_steps=2
    )
    KLLeash(trainer, target=2.0, ledger=tmp_path / "run")
    trainer.train()
    assert [entry.kl.n for entry in updates(tmp_path / "run")] == [16, 16]
    assert verify_run(tmp_path / "run").ok


@pytest.mark.slow
def test_whatever_ends_a_training_the_record_has_an_ending(tmp_path: Path) -> None:
    calls: list[int] = []

    def failing(completion_ids: Any, **_: Any) -> list[float]:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("the reward server is gone")
        return even(completion_ids)

    trainer = build("GRPO", failing, beta=0.1, max_steps=4)
    KLLeash(trainer, target=2.0, ledger=tmp_path / "run")
    with pytest.raises(RuntimeError, match="server is gone"):
        trainer.train()
    found = verify_run(tmp_path / "run")
    assert (found.ok, found.status, found.steps) == (True, "failed", 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scale", "aggregation"),
    [
        ("group", "sum_then_normalize"),
        ("batch", "sum_then_normalize"),
        ("none", "sum_then_normalize"),
        ("group", "normalize_then_sum"),
    ],
)
def test_what_is_followed_is_trls_own_advantage(
    scale: str, aggregation: str, tmp_path: Path
) -> None:
    def sparse(completion_ids: Any, **_: Any) -> list[float | None]:
        return [None if sum(ids) % 3 == 0 else float(len(set(ids))) for ids in completion_ids]

    trainer = build(
        "GRPO",
        [even, sparse],
        beta=0.1,
        max_steps=1,
        scale_rewards=scale,
        multi_objective_aggregation=aggregation,
        reward_weights=[1.0, 0.5],
    )
    spy = Spy(trainer)
    KLLeash(trainer, target=2.0, ledger=tmp_path / "run")
    trainer.train()
    scores = spy.rewards[0]
    assert bool(scores.isnan().any())
    found, _ = grpo_advantages(scores, torch.tensor([1.0, 0.5]), 4, scale, aggregation)
    torch.testing.assert_close(found, spy.drawn[0]["advantages"], rtol=1e-5, atol=1e-6)


def test_beta_in_reward_per_nat_is_the_conversion() -> None:
    """GRPO's r − r̄ is 3/4 of r − mean of the other three, and both are divided by σ; RLOO's β needs none."""
    scores = torch.tensor([[0.0], [2.0], [4.0], [6.0]])
    trainer = build("GRPO", beta=0.1)
    sigma = math.sqrt(20 / 3) + 1e-4
    followed = follow(scores, trainer, "grpo")
    assert followed.unit == pytest.approx(sigma / 0.75, rel=1e-6)
    expected = 0.75 * torch.tensor([-3.0, -1.0, 1.0, 3.0]) / sigma
    torch.testing.assert_close(followed.pursued, expected)
    rloo = build("RLOO", beta=0.1)
    assert follow(scores, rloo, "rloo").unit == 1.0


@pytest.mark.parametrize(
    ("told", "leashed", "says"),
    [
        ({"beta": 0.0}, {"target": 2.0}, "beta=0.04"),
        ({"beta": 0.1, "top_p": 0.9}, {"target": 2.0}, "top_p"),
        ({"beta": 0.1, "top_k": 5}, {}, "top_k"),
        ({"beta": 0.1, "generation_kwargs": {"typical_p": 0.5}}, {}, "generation_kwargs"),
        ({"beta": 0.1, "sync_ref_model": True}, {}, "sync_ref_model"),
        (
            {"beta": 0.1, "gradient_accumulation_steps": 2, "steps_per_generation": 1},
            {},
            "steps_per_generation = 1",
        ),
        ({"beta": 0.1}, {"limits": {"max_kk": 1.0}}, "max_kk"),
        ({"beta": 0.1}, {"limits": {"max_kl_canary": 1.0}}, "max_kl_canary"),
        ({"beta": 0.1}, {"limits": {"on_breach": "shrink"}}, "shrink"),
        ({"beta": 0.1}, {"controller": "tilt"}, "kl_target"),
        ({"beta": 0.1}, {"target": 2.0, "controller": "guess"}, "controller"),
        (
            {"beta": 0.1},
            {"target": 2.0, "controller": ControlConfig(kl_target=3.0)},
            "kl_target = 3.0",
        ),
    ],
)
def test_what_cannot_be_held_is_refused_with_the_reason(
    told: dict[str, Any], leashed: dict[str, Any], says: str, tmp_path: Path
) -> None:
    trainer = build("GRPO", **told)
    with pytest.raises(ConfigError, match=says):
        KLLeash(trainer, ledger=tmp_path / "run", **leashed)
    assert not (tmp_path / "run").exists()


def test_another_release_of_trl_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = build("GRPO", beta=0.1)
    monkeypatch.setattr(trl, "__version__", "1.17.0")
    with pytest.raises(InputError, match=r"trl 1\.16\.\*.*trl 1\.17\.0"):
        KLLeash(trainer, ledger=tmp_path / "run")


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = build("GRPO", beta=0.1)
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", property(lambda _: 2))
    with pytest.raises(ConfigError, match="2 processes"):
        KLLeash(trainer, ledger=tmp_path / "run")


def test_what_is_no_trainer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="GRPOTrainer"):
        KLLeash(object(), ledger=tmp_path / "run")


def test_a_run_is_begun_once_and_not_resumed(tmp_path: Path) -> None:
    trainer = build("GRPO", beta=0.1, max_steps=1)
    leash = KLLeash(trainer, ledger=tmp_path / "run")
    with pytest.raises(ConfigError, match="resumed"):
        trainer.train(resume_from_checkpoint=True)
    trainer.train()
    with pytest.raises(InputError, match="not empty"):
        trainer.train()
    with pytest.raises(InputError, match="not empty"):
        KLLeash(build("GRPO", beta=0.1), ledger=tmp_path / "run")
    assert leash.halted is None
    assert verify_run(tmp_path / "run").ok


def test_without_trl_the_import_says_what_to_install() -> None:
    script = (
        "import sys\n"
        "sys.modules['trl'] = None\n"
        "from kleash.errors import InputError\n"
        "import kleash.integrations.trl\n"
        "assert 'torch' not in sys.modules\n"
        "try:\n"
        "    from kleash.integrations.trl import KLLeash\n"
        "except InputError as error:\n"
        "    assert \"pip install 'kleash[trl]'\" in str(error), error\n"
        "else:\n"
        "    sys.exit('it was imported')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapters_reference_is_the_model_without_it(kind: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = AutoModelForCausalLM.from_pretrained(
        resolve("tiny-reviews/base"), dtype=torch.float32, use_safetensors=True
    )
    modules = ["q_proj", "v_proj"]
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=modules))
    trainer = build(kind, model=model, beta=0.1, max_steps=3, learning_rate=1e-2)
    assert trainer.ref_model is None
    leash = KLLeash(trainer, target=2.0, limits={"max_kl": 50.0}, ledger=tmp_path / "run")
    trainer.train()
    entries = updates(tmp_path / "run")
    assert abs(entries[0].kl.value) < 1e-5
    assert entries[-1].kl.value > 1e-3
    assert leash.session.models.reference.name.endswith("its adapter off")
    assert (tmp_path / "run" / "final" / "adapter_model.safetensors").is_file()
    assert verify_run(tmp_path / "run").ok


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["GRPO", pytest.param("RLOO", marks=pytest.mark.long)])
def test_the_kl_comes_to_its_target(kind: str, tmp_path: Path) -> None:
    """45 steps of 64 responses: the last third is within 30 % of the target, and β has moved against the error."""
    trainer = build(
        kind,
        beta=0.05,
        max_steps=45,
        per_device_train_batch_size=64,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
    )
    KLLeash(trainer, target=1.0, limits={"max_kl": 20.0}, ledger=tmp_path / "run")
    trainer.train()
    entries = updates(tmp_path / "run")
    late = [entry.kl.value for entry in entries[-15:]]
    assert sum(late) / len(late) == pytest.approx(1.0, rel=0.3)
    above = [entry.kl_coef for entry in entries if entry.kl.value > 1.0]
    below = [entry.kl_coef for entry in entries[1:20] if entry.kl.value < 0.5]
    assert sum(above) / len(above) > sum(below) / len(below)
    written = lines(tmp_path / "run")
    assert written[-1]["reward_mean"] > written[0]["reward_mean"] + 0.3
    assert verify_run(tmp_path / "run").ok
