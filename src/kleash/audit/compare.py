"""`compare`: two models and some prompts in, how far the models are apart and where out."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

import kleash
from kleash.audit.config import CompareConfig
from kleash.audit.estimate import chosen, measure, tails
from kleash.audit.hidden.scorer import Told as Searched
from kleash.audit.hidden.search import search
from kleash.audit.limits import Limit, check_scopes, judge, parse
from kleash.audit.pair import Pair, encode
from kleash.audit.prompts import Prompt, PromptSet, digest, load_prompts
from kleash.audit.result import Comparison, Drift, Side
from kleash.audit.retain import HeldOut, encode_texts, load_texts, retention
from kleash.audit.rounds import Measured, Sampler, Told
from kleash.audit.sources import SECTIONS, Source, find
from kleash.audit.where import by_position, by_prompt, by_token, side_by_side
from kleash.errors import ConfigError, InputError
from kleash.models.chat import Chat
from kleash.records import KLReading, Unit
from kleash.rollout.seeds import seeded

FEWEST = 2
"""Prompts that an interval needs."""
PACKAGES = ("torch", "transformers", "peft", "tokenizers", "safetensors")


def compare(
    config: CompareConfig, told: Told = lambda *_: None, searched: Searched = lambda *_: None
) -> Comparison:
    """Samples from both models, reads every token by both, and says how far they are apart.

    Args:
        config: what is compared, on what, and how surely.
        told: shown tokens sampled, how many there may be, and the KL so far.
        searched: shown tokens that the search has scored, its budget, and the largest KL yet.

    Raises:
        InputError: a model, the prompts or a setting can't be used.
        ConfigError: the models don't share a vocabulary, or a limit is of nothing that is there.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    check_device(config.device)
    policy, reference = sources(config)
    config = resolved(config, policy)
    limits = [parse(text) for text in config.limits]
    given = load_prompts(
        config.prompts or "",
        column=config.column,
        slice_column=config.slice_column,
        split=config.split,
    )
    check_scopes(limits, slices_of(given.prompts))
    asked = _some(given, config)
    check_scopes(limits, slices_of(asked))
    texts = [] if config.retain is None else load_texts(config.retain)
    null = [read_statistic(path) for path in config.null]
    pair = Pair(
        policy,
        reference,
        device=config.device,
        dtype=config.dtype,
        low_memory=config.low_memory,
    )
    held_out = encode_texts(pair.tokenizer, config.retain, texts) if config.retain else None
    chat = Chat(config.system) if config.chat else None
    rows = encode(pair, asked, config.longest, chat)
    measured = Sampler(pair, [prompt.text for prompt in asked], rows, config, told).run()
    report = _Report(config, given, asked, pair, rows, measured, limits, held_out)
    found = report.whole(policy, reference)
    if not config.search:
        return found
    hidden = search(
        pair.policy(),
        pair.reference(),
        rows,
        budget=config.search_budget,
        seed=config.seed,
        null=null or None,
        told=searched,
    )
    return replace(found, search=hidden.to_json())


def check_device(name: str) -> None:
    """That models can run there.

    Raises:
        ConfigError: there is no such device, or torch can't compute on it.
    """
    try:
        float(torch.ones(1, device=name).sum())
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"models can't run on the device {name!r}",
            expected="cpu, or a device that torch has here, such as cuda",
            got=f"{type(error).__name__}: {str(error).partition(chr(10))[0][:160]}",
            do="leave --device out",
        ) from error


def read_statistic(path: str) -> float:
    """What a search found in a fine-tune that hides nothing, from its comparison.json.

    Raises:
        InputError: it can't be read, or there was no search.
    """
    try:
        found = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))["search"][
            "statistic"
        ]
        return float(found)
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(
            f"no statistic of a search can be read from {path!r}",
            expected="comparison.json, as kleash compare --search --out writes it",
            got=f"{type(error).__name__}: {str(error)[:200]}",
            do="compare a fine-tune that hides nothing with --search, and name its comparison.json",
        ) from error


def sources(config: CompareConfig) -> tuple[Source, Source]:
    """Both sides, the reference as the policy has it where none is named.

    Raises:
        InputError: one leads nowhere, or there is no reference.
    """
    policy = find(config.policy)
    named = config.reference or policy.own_reference
    if named is None:
        raise InputError(
            f"there is nothing to compare {config.policy} with",
            expected="a REFERENCE",
            got="a model that is neither an adapter, whose base it would be, nor a run of kleash",
            do="name the model that it was fine-tuned from",
        )
    return policy, find(named)


def resolved(config: CompareConfig, policy: Source) -> CompareConfig:
    """The settings with every default in its place: those of the run that the policy is, else the usual ones.

    Raises:
        ConfigError: there are no prompts.
    """
    run: Mapping[str, Any] = policy.settings or {name: {} for name in SECTIONS}
    model, rollout = run["model"], run["rollout"]
    prompts = config.prompts or run["data"].get("prompts")
    if prompts is None:
        raise ConfigError(
            "there are no prompts",
            expected="--prompts FILE: a text file, JSON lines, or a dataset",
            got="none",
            do="name some that are like what the model will be asked; tiny-reviews/prompts suits the embedded models",
        )
    chat = model.get("chat", False) if config.chat is None else config.chat
    defaults = {
        "prompts": prompts,
        "chat": chat or config.system is not None,
        "system": config.system or (model.get("system") if chat else None),
        "temperature": config.temperature or rollout.get("temperature", config.divisor),
        "max_new_tokens": config.max_new_tokens or rollout.get("max_new_tokens", config.longest),
    }
    try:
        return CompareConfig.model_validate({**config.model_dump(), **defaults})
    except ValidationError as error:
        raise ConfigError(
            f"the settings of the run {policy.name} can't be taken over",
            expected="a configuration that kleash wrote",
            got="; ".join(f"{x['loc'][0]}: {x['msg']}" for x in error.errors())[:200],
            do="give --prompts, --temperature and --max-new-tokens yourself",
        ) from error


def slices_of(prompts: tuple[Prompt, ...]) -> list[str]:
    """The names of slices, in the order in which they come."""
    return list(dict.fromkeys(name for prompt in prompts for name in prompt.slices))


def _some(given: PromptSet, config: CompareConfig) -> tuple[Prompt, ...]:
    """The prompts that are asked: all, or as many as there may be, drawn at random.

    Raises:
        InputError: there are too few for an interval, or for the budget.
    """
    prompts, longest = given.prompts, config.longest
    most = len(prompts) if config.max_prompts is None else min(len(prompts), config.max_prompts)
    if config.max_tokens is not None:
        most = min(most, config.max_tokens // (2 * config.samples * longest))
    if (config.limits or config.precision) and len(prompts) < FEWEST:
        raise InputError(
            "one prompt has no interval, and without one no limit and no precision can be kept",
            expected=f"at least {FEWEST} different prompts",
            got=str(len(prompts)),
            do="add prompts",
        )
    if most < min(FEWEST, len(prompts)):
        raise ConfigError(
            "--max-tokens has no room for one round of two prompts",
            expected=f"at least {2 * FEWEST * config.samples * longest}: --samples × --max-new-tokens × 2 × 2",
            got=str(config.max_tokens),
            do="raise it, or lower --max-new-tokens or --samples",
        )
    if most == len(prompts):
        return prompts
    drawn = torch.randperm(len(prompts), generator=seeded(config.seed, "prompts"))[:most]
    return tuple(prompts[i] for i in sorted(drawn.tolist()))


@dataclass(frozen=True, slots=True)
class _Report:
    """All that a comparison is told from."""

    config: CompareConfig
    given: PromptSet
    asked: tuple[Prompt, ...]
    pair: Pair
    rows: list[list[int]]
    measured: Measured
    limits: list[Limit]
    held_out: list[HeldOut] | None

    def whole(self, policy: Source, reference: Source) -> Comparison:
        drift = measure(self.measured.policy, self.measured.reference, reference.name)
        slices = {name: self._slice(name, reference.name) for name in slices_of(self.asked)}
        readings: dict[str, dict[Unit, KLReading]] = {
            name: {"response": each.reverse, "token": each.reverse_token}
            for name, each in slices.items()
        }
        return Comparison(
            policy=self._side(policy, self.pair.policy().digest()),
            reference=self._side(reference, self.pair.reference().digest()),
            settings=self._settings(),
            prompts=self._prompts(),
            drift=drift,
            slices=slices,
            tails={
                "policy": tails(self.measured.policy),
                "reference": tails(self.measured.reference),
            },
            where=self._where(),
            retention=self._retention(),
            judged=judge(
                self.limits, {"response": drift.reverse, "token": drift.reverse_token}, readings
            ),
            stopped=self.measured.stopped,
            rounds=self.measured.rounds,
            tokens=self.measured.num_tokens,
            versions=versions(),
        )

    def _retention(self) -> dict[str, Any] | None:
        if self.held_out is None:
            return None
        return retention(self.pair, self.config.retain or "", self.held_out)

    def _side(self, source: Source, digest: str) -> Side:
        return Side(name=source.name, kind=source.kind, weights=digest, base=source.base)

    def _slice(self, name: str, reference: str) -> Drift:
        of = torch.tensor([name in prompt.slices for prompt in self.asked])
        parts = [
            chosen(side, of[side.prompt])
            for side in (self.measured.policy, self.measured.reference)
        ]
        return measure(parts[0], parts[1], reference)

    def _settings(self) -> dict[str, Any]:
        kept = self.config.model_dump()
        for name in ("policy", "reference", "prompts", "limits", "retain", "show", "null"):
            del kept[name]
        return kept

    def _prompts(self) -> dict[str, Any]:
        return {
            "source": self.given.source,
            "sha256": digest(self.asked),
            "count": len(self.asked),
            "left_out": len(self.given.prompts) - len(self.asked),
            "duplicates": self.given.duplicates,
        }

    def _where(self) -> dict[str, Any]:
        prompts = by_prompt(self.measured, self.asked)
        worst = [prompt.pop("index") for prompt in prompts]
        shown = worst[: self.config.show]
        return {
            "prompts": prompts,
            "positions": by_position(self.measured),
            "tokens": by_token(self.measured, self.pair.tokenizer),
            "answers": side_by_side(self.pair, self.asked, self.rows, shown, self.config.longest),
        }


def versions() -> dict[str, str]:
    """Of kleash and what it computes with."""
    found = {"kleash": kleash.__version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
