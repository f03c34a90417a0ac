"""Scorers: a name from the configuration in, a function from texts to one number each out.

A scorer is an embedded model, a Hugging Face sequence classifier, a Python function
`module:function` that takes the prompts and the responses and returns one number per response, or a
server that gives the same over HTTP. A function is imported and run with the user's rights: name
only functions you trust. Models run no code of theirs and load from safetensors alone.
"""

import importlib
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from kleash.errors import ConfigError, RewardError
from kleash.models.chat import check_template
from kleash.models.reward_model import RewardModel, encode, load_reward_model, predict
from kleash.rewards.checks import checked, shown
from kleash.rewards.config import Reads, ServerConfig
from kleash.rewards.protocol import is_url
from kleash.rewards.server import Server

logger = logging.getLogger(__name__)

ScoreFunction = Callable[[list[str], list[str]], Any]
"""(prompts, responses) -> one number per response."""

_FUNCTION_SPEC = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_][\w.]*)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """How the scores of several rewards are one."""

    combine: Callable[[Sequence[Sequence[float]]], list[float]]
    """[K][B] -> [B]."""
    disagree: Callable[[Sequence[Sequence[float]]], list[float]] | None = None
    """[K][B] -> [B], how far they are apart; None where they are not to say the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scorer:
    """A named reward whose scores have been checked: one finite float per response."""

    name: str
    """As in the configuration; the metric of a monitor is `monitor/NAME`."""
    score: Callable[[Sequence[str], Sequence[str]], list[float]]
    """(prompts, responses) -> scores, or a `RewardError`."""
    parts: tuple["Scorer", ...] = ()
    """What it is made of; none where it is one reward."""
    rule: Rule | None = None
    """How; None where it is one reward."""


def load_scorer(
    spec: str,
    *,
    label: str | int | None = None,
    batch_size: int = 64,
    device: str = "cpu",
    server: ServerConfig | None = None,
    reads: Reads = "text",
) -> Scorer:
    """The scorer that a name stands for.

    Args:
        spec: an embedded name, a Hugging Face directory or id, `module:function`, or a server's address.
        label: whose log-odds is the score, where a classifier has several labels.
        batch_size: texts per forward pass of a model.
        device: where a model runs.
        server: how a server is asked; None: by the defaults.
        reads: what a model reads of prompt and response.

    Raises:
        InputError: there is no such model.
        ConfigError: there is no such function, the label does not fit the model, it has no chat template, or the server
            can't be asked.
    """
    match = _function(spec)
    if is_url(spec):
        _refuse_label(label, "server", spec)
        return Scorer(name=spec, score=Server(spec, server or ServerConfig()).score)
    if match is None:
        reward = load_reward_model(spec, device=device)
        return model_scorer(reward, label=label, batch_size=batch_size, reads=reads)
    _refuse_label(label, "function", spec)
    return function_scorer(spec, _import_function(spec, *match.groups()))


def names_model(spec: str) -> bool:
    """Whether a name is that of a model, and not of a function or a server.

    Examples:
        >>> [names_model(name) for name in ("tiny-reviews/gold", "mine:toxicity", "http://h:1/score")]
        [True, False, False]
    """
    return not is_url(spec) and _function(spec) is None


def function_scorer(name: str, function: ScoreFunction) -> Scorer:
    """A scorer from a Python function; what it raises or returns wrongly becomes a `RewardError`.

    What it prints goes to stderr: stdout belongs to the command's own result.

    Args:
        name: for messages and metrics.
        function: (prompts, responses) -> one number per response.

    Examples:
        >>> words = function_scorer("words", lambda _, texts: [len(text.split()) for text in texts])
        >>> words.score(["p"], ["a b"])
        [2.0]
    """

    def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        try:
            with redirect_stdout(sys.stderr):
                scores = function(list(prompts), list(responses))
                if isinstance(scores, Iterator):  # a generator runs the function only now
                    scores = list(islice(scores, len(responses) + 1))
        except (Exception, SystemExit) as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(frame.filename).name}:{frame.lineno}, in {frame.name}"
            raise RewardError(
                f"the reward {name!r} raised {type(error).__name__}",
                expected=f"scores for {len(responses)} responses",
                got=f"{shown(str(error))} at {where}",
                do="make the function return a number for every response",
            ) from error
        return checked(name, scores, responses)

    return Scorer(name=name, score=score)


def model_scorer(
    reward: RewardModel,
    *,
    label: str | int | None = None,
    batch_size: int = 64,
    reads: Reads = "text",
) -> Scorer:
    """A scorer from a sequence classifier.

    One output is the score itself. Of two labels it is the log-odds of the second, of more the
    log-odds of `label`. A text longer than the model's context loses its beginning; the first time,
    this is logged.

    Args:
        reward: the classifier.
        label: by name or index.
        batch_size: texts per forward pass.
        reads: what it reads of prompt and response.

    Raises:
        ConfigError: the label is missing, unknown, or given where there is one output; or no chat template.
    """
    index = _label_index(reward, label)
    if reads == "chat":
        check_template(reward.name, reward.tokenizer, 'reward.reads = "chat"')
    warned = False

    def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        nonlocal warned
        pairs = zip(prompts, responses, strict=True)
        texts = [_read_text(reward, reads, prompt, response) for prompt, response in pairs]
        encoded = encode(reward, texts)
        if encoded.num_truncated and not warned:
            warned = True
            logger.warning(
                "%d of %d texts are longer than the %d tokens that %r reads: it sees their ends",
                encoded.num_truncated,
                len(texts),
                reward.max_length,
                reward.name,
            )
        logits = predict(reward, encoded.ids, batch_size=batch_size)
        return checked(reward.name, _log_odds(reward, logits, index), responses)

    return Scorer(name=reward.name, score=score)


def _read_text(reward: RewardModel, reads: Reads, prompt: str, response: str) -> str:
    """What a model reads of a response to a prompt."""
    if reads == "chat":
        turns = [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": response},
        ]
        return str(reward.tokenizer.apply_chat_template(turns, tokenize=False))
    return response if reads == "response" else prompt + response


def _function(spec: str) -> re.Match[str] | None:
    """Module and function of a name that is theirs; a directory may look like it."""
    match = _FUNCTION_SPEC.fullmatch(spec)
    return None if match is None or Path(spec).is_dir() else match


def _refuse_label(label: str | int | None, kind: str, spec: str) -> None:
    if label is not None:
        raise ConfigError(
            f"a label means nothing to the {kind} {shown(spec)}",
            expected="no reward.label",
            got=shown(label),
            do="remove reward.label",
        )


def _log_odds(reward: RewardModel, logits: Tensor, index: int) -> Tensor:
    """The score of each text, [N], from the classifier's outputs [N, L]."""
    chosen = logits[:, index]
    # Independent labels have a logit each, and a logit is a log-odds.
    if reward.num_labels == 1 or reward.model.config.problem_type == "multi_label_classification":
        return chosen
    others = torch.cat([logits[:, :index], logits[:, index + 1 :]], dim=1)
    return chosen - others.logsumexp(dim=1)


def _label_index(reward: RewardModel, label: str | int | None) -> int:
    """Which output is scored.

    Raises:
        ConfigError: the label is missing, unknown, or given where there is only one output.
    """
    if reward.num_labels == 1 and label is None:
        return 0
    if reward.num_labels == 2 and label is None:
        return 1
    if reward.num_labels == 1:
        raise ConfigError(
            f"{reward.name!r} has no labels to choose from",
            expected="no reward.label: it has one output",
            got=shown(label),
            do="remove reward.label",
        )
    names = {int(i): str(name) for i, name in (reward.model.config.id2label or {}).items()}
    for index, name in names.items():
        if label in (index, name) and not isinstance(label, bool):
            return index
    raise ConfigError(
        f"reward.label names no label of {reward.name!r}",
        expected="one of " + ", ".join(shown(name) for name in names.values()),
        got="no label" if label is None else shown(label),
        do="set reward.label to a label's name or index",
    )


def _import_function(spec: str, module_name: str, function_name: str) -> ScoreFunction:
    """The function of that name, from the current directory or `sys.path`.

    Raises:
        ConfigError: the module cannot be imported or holds no such function.
    """
    try:
        with _current_directory_first(), redirect_stdout(sys.stderr):
            module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"cannot import the reward {spec!r}",
            expected=f"a module {module_name!r} in the current directory or on the Python path",
            got=f"{type(error).__name__}: {shown(str(error))}",
            do="run from the directory that holds the file, or mend what it imports",
        ) from error
    function = _member(module, function_name)
    if not callable(function):
        near = get_close_matches(function_name, [n for n in vars(module) if not n.startswith("_")])
        raise ConfigError(
            f"the module {module_name!r} has no function {function_name!r}",
            expected="a function of (prompts, responses)",
            got="nothing of that name" if function is None else f"a {type(function).__name__}",
            do=f"did you mean {near[0]!r}?" if near else "check the name after the colon",
        )
    return function


def _member(module: ModuleType, path: str) -> Any:
    """What a dotted path names inside a module; None where it leads nowhere."""
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


@contextmanager
def _current_directory_first() -> Generator[None]:
    """Lets an import find modules in the current directory, as `python -m` would."""
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path.pop(0)
