"""The `[algorithm]` section: which update is made of a rollout, and its settings."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

Baseline = Literal["value", "group", "leave_one_out", "batch", "none"]
"""What a return is compared with: a value head; the mean of its prompt's responses; the mean of the *others* of its
prompt, or of the whole rollout; nothing."""
Scale = Literal["none", "group", "batch"]
"""What advantages are divided by: nothing; the standard deviation of their prompt's rewards; their own, of all."""
Ratio = Literal["token", "sequence"]
"""Of which π/π_old the update is clipped: each token's, or the geometric mean over the response."""
Correction = Literal["none", "token", "sequence"]
"""Weights of what another policy μ sampled (stale rollouts, another engine): none; each token's π/μ; the response's."""
Aggregate = Literal["token", "response", "length"]
"""Every token counts alike; every response does, whatever its length; tokens over the longest possible response."""


class AlgorithmConfig(BaseModel):
    """One update; what is not set takes the algorithm's own default, and what it has no use for is refused.

    Examples:
        >>> AlgorithmConfig().name
        'ppo'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "ppo"
    """ppo, ppo_kl, grpo, dr_grpo, dapo, gspo, rloo, reinforce, reinforce++ or trpo."""
    num_epochs: int = Field(default=2, gt=0)
    """Passes over one rollout."""
    num_minibatches: int = Field(default=2, gt=0)
    """Gradient steps a pass; the responses are split evenly."""
    clip_eps: FiniteFloat | None = Field(default=0.2, gt=0, lt=1)
    """ε below 1 of the ratio's clip; None: the ratio is not clipped."""
    clip_eps_high: FiniteFloat | None = Field(default=None, gt=0)
    """ε above 1; None: the same as below (DAPO: 0.28)."""
    correction: Correction = "none"
    correction_cap: FiniteFloat = Field(default=2.0, ge=1)
    """C, the most that a token counts."""
    correction_drop: bool = False
    """What would count more than C counts nothing (MIS), rather than C (TIS)."""
    ratio: Ratio = "token"
    aggregate: Aggregate = "token"
    baseline: Baseline = "value"
    scale: Scale = "batch"
    control_variate: bool = False
    """Charge the log-ratio of the response drawn in place of the exact KL, as far as that takes noise from the
    advantages: c by regression, none of it at the reference and all at the optimum, where it cancels the reward's. No
    effect without a baseline of other responses, or where `[penalty]` is of tokens alone."""
    update: Literal["gradient", "natural"] = "gradient"
    """Steps of the optimiser over minibatches; or one natural-gradient step within a trust region."""
    step_kl: FiniteFloat = Field(default=0.01, gt=0)
    """δ in nats per token: what KL(old‖new) of a natural step may be, and what `step_penalty` is adapted to."""
    step_penalty: FiniteFloat = Field(default=0.0, ge=0)
    """Weight of KL(old‖new) in the loss of the first update; doubled or halved after each to keep that KL at δ."""
    cg_iterations: int = Field(default=10, gt=0)
    """Conjugate-gradient iterations, each a product with the Fisher matrix."""
    cg_probes: int = Field(default=8, ge=0)
    """Products more, from which the size of its rows is estimated, to precondition by; 0: not preconditioned."""
    cg_damping: FiniteFloat = Field(default=1e-4, ge=0)
    """Added to the Fisher matrix's diagonal."""
    gamma: FiniteFloat = Field(default=1.0, gt=0, le=1)
    """Discount γ."""
    gae_lambda: FiniteFloat = Field(default=0.95, ge=0, le=1)
    """λ of generalised advantage estimation."""
    value_clip_eps: FiniteFloat = Field(default=0.2, gt=0)
    """How far a value may move from its value at sampling before the loss stops following."""
    value_coef: FiniteFloat = Field(default=0.1, ge=0)
    """Weight of the value loss."""
    whiten_rewards: bool = False
    """Divide the shaped rewards by their standard deviation (their mean stays)."""
