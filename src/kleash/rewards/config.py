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

Combination = Literal["mean", "worst", "uncertainty", "weights"]


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


def check_members(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of an ensemble's members, as they are to be.

    Raises:
        ValueError: there are fewer than two, or one of them twice.

    Examples:
        >>> check_members(("runs/proxy-0", "runs/proxy-1"))
        ('runs/proxy-0', 'runs/proxy-1')
    """
    if len(names) < 2 or len({*names}) < len(names):
        raise ValueError("at least two rewards of different names")
    return names


class RewardConfig(BaseModel):
    """What scores the responses.

    Examples:
        >>> RewardConfig(model={"tiny-reviews/gold": 0.7, "mine:toxicity": -2.0}).name
        '0.7 × tiny-reviews/gold + -2 × mine:toxicity'
        >>> RewardConfig(model=("runs/proxy-0", "runs/proxy-1"), combine="worst").name
        'worst of runs/proxy-0, runs/proxy-1'
    """

    model_config = _FROZEN

    model: (
        str
        | Annotated[dict[str, FiniteFloat], AfterValidator(check_reward_weights)]
        | Annotated[tuple[str, ...], AfterValidator(check_members)]
    ) = "tiny-reviews/gold"
    """Trained on: an embedded name, a Hugging Face directory or id, `module:function`, or `http://host:port/path`;
    several by weights, for Σ w r; or an array of them, the members of an ensemble."""
    combine: Combination = "mean"
    """How an ensemble's scores are one: mean, `worst` for min_k r_k, `uncertainty` for mean − λ · variance; `weights`
    averages the members' weights into one model instead."""
    uncertainty_weight: FiniteFloat = Field(default=0.5, ge=0.0)
    """λ of `uncertainty`, in 1 over the unit of the reward."""
    clip: tuple[FiniteFloat, FiniteFloat] | None = None
    """[low, high]: what is learnt from is clipped to it before penalties are taken off; the score is not."""
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
    """Which label's log-odds is the reward, by name or index; needed with more than two labels. Of an ensemble each
    member's."""
    batch_size: int = Field(default=64, ge=1)
    """Texts per forward pass of a scoring model."""
    reads: Reads = "text"
    """What a scoring model reads: `text`, the response behind its prompt; `response` alone; `chat`, both in the chat
    template of the model's own tokenizer. A function or a server is given both, apart."""
    server: ServerConfig = ServerConfig()

    @property
    def weights(self) -> dict[str, float] | None:
        """Of a weighted sum; None of anything else."""
        return self.model if isinstance(self.model, dict) else None

    @property
    def is_ensemble(self) -> bool:
        """Whether several rewards are to say the same."""
        return isinstance(self.model, tuple)

    @property
    def has_parts(self) -> bool:
        """Whether several rewards are asked, and each one's scores are known."""
        return not isinstance(self.model, str) and self.combine != "weights"

    @property
    def names(self) -> tuple[str, ...]:
        """All that it is made of."""
        return (self.model,) if isinstance(self.model, str) else tuple(self.model)

    @property
    def name(self) -> str:
        """The reward's name, the weighted names, or how the members are combined and their names."""
        if isinstance(self.model, str):
            return self.model
        if isinstance(self.model, dict):
            return weighted_name(self.model)
        return ensemble_name(self.model, self.combine, self.uncertainty_weight)

    @model_validator(mode="after")
    def _sends_its_token_to_one(self) -> Self:
        check_token(self.server, [*self.names, *self.monitor])
        return self

    @model_validator(mode="after")
    def _has_a_label_of_one(self) -> Self:
        if self.weights is not None and self.label is not None:
            raise ValueError("no reward.label where reward.model is a table: it is of one model")
        return self

    @model_validator(mode="after")
    def _combines_what_is_several(self) -> Self:
        fields = type(self).model_fields
        if not self.is_ensemble and self.combine != fields["combine"].default:
            raise ValueError(
                "no reward.combine where reward.model is not an array: it says how an ensemble's members are one"
            )
        default = fields["uncertainty_weight"].default
        if self.combine != "uncertainty" and self.uncertainty_weight != default:
            raise ValueError('no reward.uncertainty_weight without reward.combine = "uncertainty"')
        return self

    @model_validator(mode="after")
    def _clips_to_what_there_is(self) -> Self:
        if self.clip is not None and not (
            -LARGEST_WEIGHT <= self.clip[0] < self.clip[1] <= LARGEST_WEIGHT
        ):
            raise ValueError("reward.clip = [low, high] within ±3.4e38, low below high")
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


def ensemble_name(names: Iterable[str], combine: Combination, uncertainty_weight: float) -> str:
    """An ensemble as one name.

    Examples:
        >>> ensemble_name(["a", "b"], "uncertainty", 0.5)
        'mean − 0.5 · variance of a, b'
    """
    said = {
        "uncertainty": f"mean − {uncertainty_weight:g} · variance",
        "weights": "averaged weights",
    }
    return f"{said.get(combine, combine)} of {', '.join(names)}"


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
