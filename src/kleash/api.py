"""kleash from Python: train, compare, verify, and read what a run left, as `import kleash` offers it.

    for record in kleash.run({"reward": {"model": "tiny-reviews/gold"}}, run="runs/first"):
        print(record.step, record.kl, record.kl_coef)
    kleash.verify("runs/first").ok
    kleash.read_run("runs/first").frame()
    kleash.compare("runs/first", limits=["4.0"]).drift.reverse.high

Nothing here imports torch, pandas or plotly before it needs it.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kleash.config import build, load
from kleash.errors import InputError
from kleash.extras import needs
from kleash.ledger import (
    MeasurementEntry,
    PublicKey,
    Signer,
    UpdateEntry,
    has_ledger,
    kind_of,
    read,
)
from kleash.records import StepRecord
from kleash.replay import Verification, verify_run
from kleash.report import RunView, load_run
from kleash.report.charts import kl, kl_coef, reward
from kleash.report.stacked import stack
from kleash.report.theme import ALONE

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

    from kleash.audit.result import Comparison
    from kleash.audit.rounds import Told
    from kleash.train.config import RunConfig

__all__ = ["Run", "compare", "read_run", "run", "verify"]


def run(
    config: "RunConfig | Mapping[str, Any] | str | Path",
    run: str | Path,
    *,
    resume: bool = False,
    skip_self_test: bool = False,
    signers: Sequence[Signer] | None = None,
) -> Generator[StepRecord]:
    """Trains as it is iterated, and gives each step's record once it is on disk.

    The configuration is checked at once; models are loaded when the first record is asked for. Leaving the iteration
    early closes the run: it verifies, and can be gone on with.

    Args:
        config: a `RunConfig`, its sections as a dictionary, or a TOML file.
        run: the run directory, new or empty but for `resume`.
        resume: go on with what is in the run directory.
        skip_self_test: train without the checks before step 1, which the ledger then says.
        signers: who signs the ledger; None: the signing key at its usual place, made where there is none.

    Raises:
        InputError: torch is not installed, or the configuration can't be read or run. As it is iterated, all that
            `kleash.train.run.train` raises.
    """
    with needs("train", "training runs a model, which the base install does not"):
        from kleash.train.config import RunConfig
        from kleash.train.run import train
    if isinstance(config, str | Path):
        config = load(RunConfig, Path(config))
    elif not isinstance(config, RunConfig):
        config = build(RunConfig, config, "the configuration")
    return train(config, Path(run), resume=resume, skip_self_test=skip_self_test, signers=signers)


def compare(
    policy: str | Path,
    reference: str | Path | None = None,
    prompts: str | Path | None = None,
    *,
    limits: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    told: "Told | None" = None,
) -> "Comparison":
    """How far two models are apart on some prompts: both KLs with their intervals, and where they come from.

    Args:
        policy: a hub id, a directory, a LoRA adapter, a run of kleash, or a GGUF file.
        reference: the same; None: an adapter's base, or the reference that a run had.
        prompts: a text file, JSON lines, or a dataset; None: those of the run that the policy is.
        limits: what KL(π‖π_ref) may not exceed, as `kleash compare --limit` takes it.
        settings: more of `kleash.audit.config.CompareConfig`, by name, as {"samples": 4}.
        told: shown tokens sampled, how many there may be, and the KL so far.

    Raises:
        InputError: torch is not installed, or a model, the prompts or a setting can't be used.
        ConfigError: the models don't share a vocabulary, or a limit is of nothing that is there.
    """
    with needs("train", "a comparison runs two models, which the base install does not"):
        from kleash.audit.compare import compare as compared
        from kleash.audit.config import CompareConfig
    named = {
        "policy": str(policy),
        "reference": None if reference is None else str(reference),
        "prompts": None if prompts is None else str(prompts),
        "limits": tuple(limits),
    }
    config = build(CompareConfig, {**(settings or {}), **named}, "the settings of the comparison")
    return compared(config) if told is None else compared(config, told)


def verify(
    run: str | Path,
    *,
    head: str | None = None,
    keys: Iterable[PublicKey] | None = None,
    since: bytes | None = None,
    override_keys: Iterable[PublicKey] | None = None,
) -> Verification:
    """Checks a run directory, or a ledger alone: bytes, signatures, and every decision.

    Args:
        run: what to verify.
        head: a head hash noted earlier; it must be in the chain.
        keys: those whose word is taken: one of them must sign the ledger.
        since: a signed checkpoint kept earlier; the ledger must begin with what it was of.
        override_keys: those whose overrides are taken; None: anybody's.

    Raises:
        InputError: there is no ledger, or `head` is no hash.
    """
    return verify_run(Path(run), head, keys=keys, since=since, override_keys=override_keys)


def read_run(path: str | Path) -> "Run":
    """What a run directory holds; of a run on its way, what it holds so far.

    Raises:
        InputError: there is none, or a line of its files can't be read.
    """
    return Run(path=Path(path), view=load_run(path))


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run that was read; made by `read_run`. What is read is not verified: `verify` does that."""

    path: Path
    view: RunView
    """Configuration, metrics by name, samples."""

    def verify(self) -> Verification:
        """Checks it as it now is on the disk.

        Raises:
            InputError: it has no ledger.
        """
        return verify_run(self.path)

    def frame(self) -> "pd.DataFrame":
        """A row a step, by `step`: all of metrics.jsonl, then what the ledger says.

        Of the ledger: `ledger/kl`, `ledger/kl_low`, `ledger/kl_high` (nats per response), `ledger/kl_n` responses,
        `ledger/kl_coef`, `verdict`, and `reasons` and `alarms` as text. What was not measured is NaN. A step that the
        ledger has and metrics.jsonl hasn't, as when a run was killed between the two, has no row.

        Raises:
            InputError: pandas is not installed.
            TamperError: the ledger can't be read.
        """
        with needs("pandas", "a data frame is pandas', which the base install does not have"):
            import pandas as pd
        metrics = pd.DataFrame(
            dict(self.view.metrics), index=list(self.view.steps), dtype=float
        ).rename_axis("step")
        rows = list(_judged(self.path))
        index = [row.pop("step") for row in rows]
        ledger = pd.DataFrame(rows, index=index, columns=[*_NUMBERS, *_WORDS])
        return metrics.join(ledger.astype(dict.fromkeys(_NUMBERS, float)))

    def samples(self) -> "pd.DataFrame":
        """A row a sample of samples.jsonl: prompt, response, scores, KL. What was not measured is NaN.

        Raises:
            InputError: pandas is not installed.
        """
        with needs("pandas", "a data frame is pandas', which the base install does not have"):
            import pandas as pd
        rows = [
            {
                "step": each.step,
                "prompt": each.prompt,
                "response": each.response,
                "tokens": len(each.tokens),
                "reward": each.reward,
                "kl_policy_ref": each.kl_policy_ref,
                **{f"monitor/{name}": value for name, value in each.monitor.items()},
                "reference_response": each.reference_response,
                "reference_reward": each.reference_reward,
            }
            for each in self.view.samples
        ]
        numbers = ["reward", "kl_policy_ref", "reference_reward"]
        numbers += [f"monitor/{name}" for name in self.view.monitors]
        frame = pd.DataFrame(rows, columns=None if rows else list(_SAMPLE))
        return frame.astype({name: float for name in numbers if name in frame})

    def plot(self) -> "Figure":
        """KL with its interval against target and limit, β, and reward, over the steps, as in the report.

        Raises:
            InputError: no step was made.
        """
        from plotly.graph_objects import Figure

        if not self.view.steps:
            raise InputError(
                f"there is nothing to plot of {self.path}",
                expected="a run of at least one step",
                got="none in metrics.jsonl",
            )
        parts = (kl([self.view], [ALONE]), kl_coef([self.view], [ALONE]), reward(self.view, ALONE))
        return Figure(stack(parts))


_NUMBERS = ("ledger/kl", "ledger/kl_low", "ledger/kl_high", "ledger/kl_n", "ledger/kl_coef")
_WORDS = ("verdict", "reasons", "alarms")
_SAMPLE = ("step", "prompt", "response", "tokens", "reward", "kl_policy_ref")


def _judged(run: Path) -> Iterator[dict[str, Any]]:
    """What a ledger says of each step; nothing where there is none."""
    if not has_ledger(run / "ledger"):
        return
    entries = read(run / "ledger")
    parse: Callable[[Mapping[str, Any]], UpdateEntry | MeasurementEntry] = (
        UpdateEntry.from_json if kind_of(entries) == "update" else MeasurementEntry.from_json
    )
    for entry in entries:
        if entry.type not in ("update", "measurement"):
            continue
        step = parse(entry.body)
        said = step.verdict
        yield {
            "step": step.step,
            "ledger/kl": step.kl.value,
            "ledger/kl_low": step.kl.low,
            "ledger/kl_high": step.kl.high,
            "ledger/kl_n": step.kl.n,
            "ledger/kl_coef": step.kl_coef if isinstance(step, UpdateEntry) else None,
            "verdict": said.action,
            "reasons": "; ".join(said.reasons),
            "alarms": "; ".join(said.alarms),
        }
