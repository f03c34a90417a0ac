"""Chat templates: a prompt as the message of a user, in the words that a model was taught them in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kleash.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Chat:
    """How prompts are put to a model that was taught a chat template."""

    system: str | None = None
    """The system message; None: what the template says where there is none."""

    def encode(self, tokenizer: Any, prompt: str) -> list[int]:
        """The token ids of a conversation whose next turn is the model's."""
        turns = [] if self.system is None else [{"role": "system", "content": self.system}]
        turns.append({"role": "user", "content": prompt})
        return _encode(tokenizer, turns)

    def encode_turns(self, tokenizer: Any, turns: Sequence[Mapping[str, str]]) -> list[int]:
        """The same of a conversation; the system message stands before it, where it has none of its own."""
        own = turns[0]["role"] == "system"
        before = [] if own or self.system is None else [{"role": "system", "content": self.system}]
        return _encode(tokenizer, [*before, *map(dict, turns)])


def _encode(tokenizer: Any, turns: list[dict[str, str]]) -> list[int]:
    found = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
    return list(found["input_ids"])


def check_template(name: str, tokenizer: Any, setting: str) -> None:
    """That a tokenizer has a chat template, and one that can be filled in.

    Args:
        name: of its model.
        tokenizer: whose.
        setting: what asks for it, for the message.

    Raises:
        ConfigError: it has none, or it raises.
    """
    got = "none"
    if getattr(tokenizer, "chat_template", None):
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            tokenizer.apply_chat_template(turns, tokenize=False)
            return
        except Exception as error:  # a template is a program of the model's author
            got = f"one that raises {type(error).__name__}: {str(error)[:100]}"
    raise ConfigError(
        f"the tokenizer of {name} has no chat template that can be used",
        expected=f"one, where {setting}",
        got=got,
        do="leave that out, or name an instruct model",
    )
