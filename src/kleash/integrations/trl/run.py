"""A run of `kleash sft` or `kleash dpo`, from its configuration to a directory like that of `kleash train`."""

from collections.abc import Generator, Sequence
from pathlib import Path

import torch

from kleash.integrations.trl.card import model_card
from kleash.integrations.trl.config import DPORunConfig, SFTRunConfig, WatchConfig
from kleash.integrations.trl.data import Rows, preference_rows, text_rows
from kleash.integrations.trl.loop import Setup, final_drift, run_loop
from kleash.integrations.trl.trainers import build_trainer
from kleash.ledger import Signer, open_signing_key
from kleash.models.policy import LanguageModel
from kleash.records import StepRecord
from kleash.rewards.scorers import Scorer, load_scorer
from kleash.rollout.sampler import encode_prompts
from kleash.rollout.seeds import seeded
from kleash.train.data import check_enough, load_prompts
from kleash.train.directory import Conclude, Conclusion, Ending, RunDirectory, begin
from kleash.train.evaluate import Samples
from kleash.train.learner import build_learner, resolve_device
from kleash.train.run import LIBRARIES, check_vacant, digests, sha256_of, versions
from kleash.train.trackers import Trackers


def train_baseline(
    config: DPORunConfig | SFTRunConfig, run: Path, *, signers: Sequence[Signer] | None = None
) -> Generator[StepRecord]:
    """Trains, and yields the record of each measurement once it is on disk.

    Nothing is written before configuration, models, data and scorers are loaded and checked. After that every way out
    leaves a run that verifies: the end of the steps, a halt by the guard, an error, Ctrl-C, closing the iterator. The
    policy as it then is stands in `final/`.

    Args:
        config: the whole run.
        run: the run directory; it must not exist, or be empty.
        signers: who signs the ledger; None: the signing key at its usual place, made where there is none.

    Raises:
        InputError, ConfigError: something that was asked for can't be had.
        RewardError: a scorer failed; LimitError: the guard halted the run; ResourceError: the disk failed.
    """
    check_vacant(run)
    signers = [open_signing_key()] if signers is None else signers
    setup = prepare(config)
    started = {
        "config": config.model_dump(mode="json"),
        "versions": versions((*LIBRARIES, "datasets", "trl")),
        "digests": setup.digests,
    }
    no_trackers = Trackers((), str(setup.learner.policy.device))
    ledger = begin(run, started, signers)
    with RunDirectory(run, ledger, _conclusion(setup), no_trackers) as directory:
        for record in run_loop(setup, directory.ledger):
            directory.write(record)
            yield record


def prepare(config: DPORunConfig | SFTRunConfig) -> Setup:
    """Loads and checks all that the run needs.

    Raises:
        InputError, ConfigError: something that was asked for can't be had.
    """
    train = config.train
    if train.threads is not None:
        torch.set_num_threads(train.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    device = resolve_device(train.device)
    prompts = load_prompts(config.data.prompts)
    check_enough(prompts, config.rollout.num_prompts)
    learner = build_learner(config.model, config.optimizer, device, with_values=False)
    encode_prompts(learner.policy, prompts, config.rollout.max_new_tokens)
    rows = _rows(config, learner.policy)
    scorers = _scorers(config.reward, device)
    # Before TRL has its hands on the models.
    asked = {**digests(learner, prompts), "data": sha256_of(rows)}
    samples = Samples(
        learner,
        prompts[: train.num_samples],
        config.rollout,
        scorers,
        lambda: seeded(train.seed, "samples"),
    )
    trainer = build_trainer(config, learner, rows)
    return Setup(
        config=config,
        method="dpo" if isinstance(config, DPORunConfig) else "sft",
        learner=learner,
        trainer=trainer,
        prompts=prompts,
        scorers=scorers,
        samples=samples,
        digests=asked,
        note=_left_out(len(rows) - len(trainer.train_dataset)),
    )


def _rows(config: DPORunConfig | SFTRunConfig, policy: LanguageModel) -> Rows:
    if isinstance(config, DPORunConfig):
        return preference_rows(config.data.pairs, config.data.split, policy.tokenizer)
    return text_rows(config.data.texts)


def _scorers(config: WatchConfig, device: str) -> tuple[Scorer | None, list[Scorer]]:
    def load(spec: str) -> Scorer:
        label = config.label if spec == config.model else None
        return load_scorer(
            spec,
            label=label,
            batch_size=config.batch_size,
            device=device,
            server=config.server,
        )

    reward = None if config.model is None else load(config.model)
    return reward, [load(spec) for spec in config.monitor]


def _left_out(rows: int) -> str:
    return f"{rows} rows are left out: their prompts fill data.max_length" if rows else ""


def _conclusion(setup: Setup) -> Conclude:
    def conclude(ending: Ending) -> Conclusion:
        drift = final_drift(setup) if ending.measured else None
        card = model_card(setup.config, ending, drift, setup.learner.reference.name)
        return Conclusion(setup.learner.policy, card, drift)

    return conclude
