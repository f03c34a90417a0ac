"""A natural-gradient step within a trust region: TRPO, for models that are small enough.

Schulman et al. 2015, arXiv 1502.05477. The step is x = −F⁻¹ g scaled to ½ xᵀF x = δ, where F is the Hessian of
KL(old‖new) over the rollout's states, by conjugate gradients on products F v that never make F. They are
preconditioned by the size of F's rows, or what is rarely visited would be come to last. A line search shortens the
step until the loss has fallen and the exact KL(old‖new) is within δ.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from kleash.errors import ConfigError
from kleash.functional.conjugate_gradient import conjugate_gradient, row_norms
from kleash.rollout.rollout import Rollout
from kleash.train.algorithms import Algorithm, AlgorithmConfig, Targets
from kleash.train.config import RunConfig
from kleash.train.experience import Experience, measure_step
from kleash.train.learner import Learner
from kleash.train.loss import Loss, minibatch_loss

MOST_PARAMETERS = 100_000_000
"""Of a policy that is trained so: nine vectors of that length are held, and each step takes dozens of passes."""
SHORTER, TRIES = 0.8, 15
"""What a step that is refused is shortened by, and how often before it is given up."""


def natural_step(
    learner: Learner,
    algorithm: Algorithm,
    experience: Experience,
    targets: Targets,
    config: RunConfig,
    generator: torch.Generator,
) -> tuple[list[Loss], list[float]]:
    """TRPO over a whole rollout: its loss before the step, which may be none at all, and the norm of its gradient."""
    every = torch.arange(len(experience.scores))
    loss = minibatch_loss(learner, algorithm, experience, targets, every, config)
    gradient = _flat(torch.autograd.grad(loss.total, learner.trained, materialize_grads=True))
    norm = float(gradient.norm())
    fisher = Fisher(learner, experience, config)
    direction = _solve(fisher, gradient, config.algorithm, generator)
    curvature = float(direction @ fisher.product(direction))
    if not curvature > 0:
        return [loss], [norm]
    schedule = _schedule(learner, config)
    radius = config.algorithm.step_kl * schedule**2
    length = (2 * radius / curvature) ** 0.5
    if targets.kl_coef_effective > 0:
        length = min(length, schedule / targets.kl_coef_effective)
    step = -length * direction
    start = _flat(learner.trained).detach()
    for _ in range(TRIES):
        _assign(learner.trained, start + step)
        if _is_better(learner, algorithm, experience, targets, config, loss, radius):
            return [loss], [norm]
        step = SHORTER * step
    _assign(learner.trained, start)
    return [loss], [norm]


def check_size(policy: str, parameters: int | None) -> None:
    """That a natural step of so many parameters can be made; what is not known is not refused.

    Raises:
        ConfigError: it is too large.
    """
    if parameters is not None and parameters > MOST_PARAMETERS:
        raise ConfigError(
            f"{policy} is too large for a natural-gradient step",
            expected=f"at most {MOST_PARAMETERS:,} parameters",
            got=f"{parameters:,}",
            do='set algorithm.name = "ppo", which clips each token\'s step in place of a trust region',
        )


def _solve(
    fisher: "Fisher", gradient: Tensor, config: AlgorithmConfig, generator: torch.Generator
) -> Tensor:
    """About (F + damping)⁻¹ g."""
    scale = None
    if config.cg_probes:
        scale = row_norms(fisher.product, gradient, probes=config.cg_probes, generator=generator)
    return conjugate_gradient(
        fisher.product, gradient, scale=scale, iterations=config.cg_iterations
    )


def _is_better(
    learner: Learner,
    algorithm: Algorithm,
    experience: Experience,
    targets: Targets,
    config: RunConfig,
    before: Loss,
    radius: float,
) -> bool:
    """Whether the loss has fallen within the trust region; a NaN is neither."""
    every = torch.arange(len(experience.scores))
    kl = measure_step(
        learner,
        experience,
        temperature=config.rollout.temperature,
        micro_batch_size=config.train.micro_batch_size,
        direction="old_new",
    )
    if not kl.value <= radius:
        return False
    after = minibatch_loss(learner, algorithm, experience, targets, every, config)
    return bool(after.total < before.total)


def _schedule(learner: Learner, config: RunConfig) -> float:
    """How much of the step the schedule of the learning rate leaves."""
    return learner.optimizer.param_groups[0]["lr"] / config.optimizer.learning_rate


class Fisher:
    """The Hessian of the mean KL(old‖new) per token at new = old, by its products.

    Args:
        learner: whose policy.
        experience: at the states of which.
        config: temperature, micro-batches, and the damping that keeps it definite.
    """

    def __init__(self, learner: Learner, experience: Experience, config: RunConfig) -> None:
        self.learner, self.rollout, self.config = learner, experience.rollout, config
        self.tokens = int(experience.rollout.mask.sum())

    def product(self, vector: Tensor) -> Tensor:
        """(F + damping) v, [P], a few responses at a time."""
        total = self.config.algorithm.cg_damping * vector
        rows = torch.arange(len(self.rollout.mask)).split(self.config.train.micro_batch_size)
        for index in rows:
            total = total + self._part(self.rollout.rows(index), vector)
        return total

    def _part(self, part: Rollout, vector: Tensor) -> Tensor:
        policy, trained = self.learner.policy, self.learner.trained
        # Of attention's kernels only the plain one can be differentiated twice.
        with sdpa_kernel(SDPBackend.MATH):
            hidden = policy.hidden(part.prompt_ids, part.prompt_mask, part.response_ids, part.mask)
            logits = policy.head(hidden[part.mask]) / self.config.rollout.temperature
            logprobs = torch.log_softmax(logits, -1)
            cross = -(logprobs.detach().exp() * logprobs).sum() / self.tokens
            slope = torch.autograd.grad(cross, trained, create_graph=True, materialize_grads=True)
            along = _flat(slope) @ vector
            return _flat(torch.autograd.grad(along, trained, materialize_grads=True))


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


@torch.no_grad()
def _assign(parameters: list[Tensor], flat: Tensor) -> None:
    for parameter, values in zip(
        parameters, flat.split([p.numel() for p in parameters]), strict=True
    ):
        parameter.copy_(values.view_as(parameter))
