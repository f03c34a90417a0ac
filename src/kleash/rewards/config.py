"""The `[reward]` section: what the policy is trained on, and what only watches."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    model_validator,
)

from kleash.rewards.protocol import is_url, parse_url

_FROZEN = ConfigDict(frozen=True, extra="forbid")


Reads = Literal["text", "response", "chat"]


class ServerConfig(BaseModel):
    """`[reward.server]`: how a reward that is served over HTTP is asked. Nothing here changes a score."""

    model_config = _FROZEN

    timeout_s: FiniteFloat = Field(default=60.0, gt=0, le=86400)
    """Seconds that one request may take, from connecting to the reply's last byte."""
    retries: int = Field(default=4, ge=0, le=100)
    """Further attempts at a request that was not answered, or by 408, 429 or 5xx."""
    backoff_s: FiniteFloat = Field(default=0.5, ge=0, le=3600)
    """Bound of the first wait before another attempt, which doubles with each; the wait is drawn evenly below it."""
    max_wait_s: FiniteFloat = Field(default=30.0, ge=0, le=86400)
    """Bound of every wait. A server that asks for more by Retry-After is not asked again."""
    batch_size: int = Field(default=32, ge=1, le=2**20)
    """Responses per request."""
    concurrency: int = Field(default=4, ge=1, le=64)
    """Requests at a time."""
    max_reply_bytes: int = Field(default=2**20, ge=64, le=2**30)
    """Of a reply no more is read."""
    trip_after: int = Field(default=20, ge=1)
    """Failed attempts in a row after which none is made for `cool_down_s`; then a single one decides."""
    cool_down_s: FiniteFloat = Field(default=30.0, ge=0, le=86400)
    """Seconds."""
    token_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable with a bearer token, which is never written down; over TLS or to this machine alone."""


LARGEST_WEIGHT = 3.4e38
"""As a score's: no sum of such products is beyond a float."""


def check_reward_weights(weights: dict[str, float]) -> dict[str, float]:
    """Weights of rewards by name, as they are to be.

    Raises:
        ValueError: there is none that counts, or one that is too large to reckon with.

    Examples:
        >>> check_reward_weights({"a": 0.7, "mine:toxicity": -2.0})
        {'a': 0.7, 'mine:toxicity': -2.0}
    """
    if not any(weights.values()) or max(map(abs, weights.values())) > LARGEST_WEIGHT:
        raise ValueError(
            "rewards by name with weights within ±3.4e38, of which at least one is not 0"
        )
    return weights


class RewardConfig(BaseModel):
    """What scores the responses.

    Examples:
        >>> RewardConfig(model={"tiny-reviews/gold": 0.7, "mine:toxicity": -2.0}).name
        '0.7 × tiny-reviews/gold + -2 × mine:toxicity'
    """

    model_config = _FROZEN

    model: str | Annotated[dict[str, FiniteFloat], AfterValidator(check_reward_weights)] = (
        "tiny-reviews/gold"
    )
    """Trained on: an embedded name, a Hugging Face directory or id, `module:function`, or `http://host:port/path`;
    several by weights, for Σ w r."""
    monitor: tuple[str, ...] = ()
    """Further scorers, each named like `model`: logged as `monitor/NAME`, never trained on."""
    missing_eos_penalty: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """Taken off the score of a response that was cut before it ended; in units of the reward."""
    length_penalty: FiniteFloat = Field(default=0.0, ge=0.0)
    """Taken off the score for each token beyond `length_free`; in units of the reward."""
    length_free: int = Field(default=0, ge=0)
    """Tokens of a response that cost nothing."""
    length_penalty_max: FiniteFloat | None = Field(default=None, gt=0.0)
    """Most that length takes off; None: there is no such bound."""
    label: str | int | None = None
    """Which label's log-odds is the reward, by name or index; needed with more than two labels."""
    batch_size: int = Field(default=64, ge=1)
    """Texts per forward pass of a scoring model."""
    reads: Reads = "text"
    """What a scoring model reads: `text`, the response behind its prompt; `response` alone; `chat`, both in the chat
    template of the model's own tokenizer. A function or a server is given both, apart."""
    server: ServerConfig = ServerConfig()

    @property
    def weights(self) -> dict[str, float] | None:
        """Of several rewards; None of one."""
        return self.model if isinstance(self.model, dict) else None

    @property
    def name(self) -> str:
        """The reward's name, or the weighted names."""
        return self.model if isinstance(self.model, str) else weighted_name(self.model)

    @model_validator(mode="after")
    def _sends_its_token_to_one(self) -> Self:
        trained = [self.model] if isinstance(self.model, str) else list(self.model)
        check_token(self.server, [*trained, *self.monitor])
        return self

    @model_validator(mode="after")
    def _has_a_label_of_one(self) -> Self:
        if self.weights is not None and self.label is not None:
            raise ValueError("no reward.label where reward.model is several: it is of one model")
        return self

    @model_validator(mode="after")
    def _penalises_length_where_it_says_how(self) -> Self:
        if not self.length_penalty:
            if self.length_free:
                raise ValueError("no reward.length_free without reward.length_penalty")
            if self.length_penalty_max is not None:
                raise ValueError("no reward.length_penalty_max without reward.length_penalty")
        return self


def weighted_name(weights: Mapping[str, float]) -> str:
    """Several rewards as one name.

    Examples:
        >>> weighted_name({"a": 0.7, "b": 0.3})
        '0.7 × a + 0.3 × b'
    """
    return " + ".join(f"{weight:g} × {name}" for name, weight in weights.items())


def check_token(server: ServerConfig, names: Iterable[str]) -> None:
    """That those names which are addresses can be asked, and that a token goes to the server alone that it is of.

    Raises:
        ConfigError: an address is none, said without it where it may hold a credential.
        ValueError: there are several.
    """
    servers = {parse_url(name)._replace(path="") for name in names if is_url(name)}
    if server.token_env is not None and len(servers) > 1:
        raise ValueError(
            "no reward.server.token_env with more than one server: each would be sent the token of another"
        )
