"""The controller that knows what it steers: KL under a reward, as an exponential tilt of the reference.

Where reward pulls and a penalty β holds, a policy moves through the family π ∝ π_ref exp(λ r), and the natural gradient
moves λ by η (1 − β λ) a step. There KL ≈ λ² σ_r²/2, so that its root x = √(2 KL) = λ σ_r is a length that grows evenly:

    x ← x + p (1 − β / β_hold(x)),        β_hold(x) = κ c / x.

p is the stride, how far an update goes without a penalty. β_hold is the penalty that keeps the policy where it is. In
the family u = log π/π_ref is λ r less a constant, whence β_hold = 1/λ = σ_r/σ_u: **a nat costs what it buys**. So the
pull c = x σ_r/σ_u is read off every batch, whatever learning rate and reward scale; at the reference it is σ_r,
which gives the start β = σ_r/√(2 target) before anything was tried. κ is what the family leaves out, such as drift that
no reward asked for.

x, p and κ are tracked by a Kalman filter whose readings weigh by their own interval. The optimiser's momentum is in its
model, and so is the age of a reading. It knows the β that was in force, so nothing winds up while β is at a limit.
docs/control.md has figures; docs/adr/0008 says why it is built so.
"""

from dataclasses import dataclass, replace
from math import inf, isfinite, sqrt

from kleash.control.config import ControlConfig
from kleash.control.kalman import Belief, Matrix, certain_of, correct, diagonal, predict
from kleash.control.law import Answer, Question, clip
from kleash.records import Signals

FIRST_STRIDE = 0.02
"""Of the target's x: the stride assumed before the first move, when any up to the whole way is thought possible."""
BIAS, BIAS_MEMORY, FREAK = 0.5, 0.8, 2.0
"""Mean surprise of readings, in standard deviations, at which κ is thought to move twice as fast; what is left of it a
step later; and the most that one reading adds."""
STRIDE_DOUBT, FIRST_DOUBT = 0.25, 1.0
"""Least relative standard deviation of the stride: in the long run, and after the first move, from which it falls as
1/√moves."""
RATIO_NOISE, MOVE_NOISE, REST_NOISE = 0.05, 0.2, 0.02
"""Standard deviations that a step adds: to κ, relative; to x, of the move and of the target's x."""
RATIO_SPREAD, PULL_SPREAD = 0.2, 0.5
"""Relative standard deviations of κ and of the pull before the first move."""
PULL_REST, PULL_MOVE = 0.01, 0.5
"""Relative standard deviation that a step adds to the pull, at rest and for a move as long as the target's x."""
LEAST_RATIO, MOST_RATIO = 0.5, 8.0
RATIO_DOUBT = 1.0
"""Most relative standard deviation of κ: doubted more, it would take the blame for every reading's noise."""
TRIM, TRIM_NEAR, TRIM_STRIDES, TRIM_ERROR, MOST_TRIM = 0.05, 0.07, 3.0, 0.2, 0.1
"""Share of a reading's error by which the aim is shifted; shares of the target, and strides, within which; the most of
an error that counts, and the most of all."""
DOUBT = 0.25
"""Of the forecast's variance: gaps below its root may be noise, and are closed by a smaller share."""
READING_FLOOR = 1e-3
"""Of the target's x: no reading is taken for surer than this, and no stride for shorter."""
EMERGENCY, BRAKE = 3.0, 4.0
"""Times the target from which KL is an emergency, and times β_hold that β is at least then."""
LONGEST = 3.0
"""Times the target's x: no stride is believed to be longer."""
FAR = 100.0
"""Steps to the target from which that is worth a remark."""
FURTHEST = 1000.0
"""Times the target's x: what is read as further off is as far."""
OLDEST = 64
"""Updates: an older reading, or more of them without one, is not followed step by step."""
BROKEN = "held: the model broke on this reading; it starts anew"
LEAST, MOST = 1e-12, 1e12
"""Spreads outside this range are no measurements."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TiltMemory:
    """What is believed of the policy that was last read, and the β of the updates since."""

    belief: Belief
    """Of x, its last move, the stride p and κ."""
    inertia: float
    """Updates behind the last move, each weighted by the momentum to the power of its age: momentum is not there from
    the start, as an optimiser's averages are corrected for their own."""
    moves: int
    """Updates made since this began."""
    pull: float
    """c: reward per root of a nat."""
    pull_variance: float
    bias: float = 0.0
    """Mean surprise of late, in standard deviations: 0 where the model is right, and of one sign where κ runs away."""
    trim: float = 0.0
    """What is added to the aim: near the target the readings' mean is held there, whatever the model has wrong."""
    pending: tuple[float, ...] = ()


def tilt(question: Question, memory: TiltMemory | None) -> Answer:
    """β such that the predicted x comes to the target's in `steps_to_target` steps, within what β may do on the way."""
    signals = question.signals
    root = sqrt(2.0 * max(question.kl, 0.0))
    memory = _begin(question, root) if memory is None else _follow(question, memory, root)
    if memory is None:
        return Answer(question.kl_coef, None, "held: the rewards have no spread to start from")
    memory = _measure_pull(memory, signals)
    if not _is_sound(memory):
        return Answer(question.kl_coef, None, BROKEN)
    now = _forecast(memory, memory.pending, signals.momentum, _target(question.config))
    if not _is_sound(now):
        return Answer(question.kl_coef, None, BROKEN)
    kl_coef, note = _choose(question, now)
    in_force = clip(kl_coef, question.config.kl_coef_min, question.config.kl_coef_max)
    return Answer(kl_coef, replace(memory, pending=(*memory.pending, in_force)), note)


def tilt_hold(kl_coef: float, signals: Signals, memory: TiltMemory | None) -> TiltMemory | None:
    """A step without a usable reading: β stays, the policy moves on, and the next reading finds it."""
    if memory is None or signals.refreshed:  # by how much x changed is only known once it was read
        return None
    pending = (*_applied(memory, signals), kl_coef)
    return replace(memory, pending=pending[-OLDEST:])  # what is older no longer tells where it is


def _begin(question: Question, root: float) -> TiltMemory | None:
    """What is believed at the first reading; None where the rewards say nothing of the pull."""
    signals, goal = question.signals, _target(question.config)
    spread = _usable(signals.reward_std)
    if spread is None:
        return None
    pull = spread
    if question.config.kl_unit == "token" and (length := _usable(signals.response_length)):
        pull /= sqrt(length)
    error = _reading_error(question, root, goal)
    root = min(root, FURTHEST * goal)
    variances = (error * error, 0.0, goal * goal, RATIO_SPREAD * RATIO_SPREAD)
    belief = Belief(mean=(root, 0.0, FIRST_STRIDE * goal, 1.0), cov=certain_of(variances))
    return TiltMemory(
        belief=belief,
        inertia=0.0,
        moves=0,
        pull=pull,
        pull_variance=(PULL_SPREAD * pull) * (PULL_SPREAD * pull),
    )


def _follow(question: Question, memory: TiltMemory, root: float) -> TiltMemory:
    """The memory moved to the policy that was read, and corrected by the reading."""
    signals, goal = question.signals, _target(question.config)
    pending = _applied(memory, signals)
    due = max(len(pending) - signals.age, 0)
    memory = _forecast(memory, pending[:due], signals.momentum, goal)
    if signals.refreshed:
        memory = _brought_nearer(memory, signals.refreshed)
    error = _reading_error(question, root, goal)
    before = memory.belief
    spread = sqrt(max(before.cov[0][0], 0.0) + error * error)
    surprise = clip((root - before.mean[0]) / spread, -FREAK, FREAK)
    bias = BIAS_MEMORY * memory.bias + (1.0 - BIAS_MEMORY) * surprise
    belief = correct(before, min(root, FURTHEST * goal), error * error)
    x, move, stride, ratio = belief.mean
    # No single reading more than halves what is known of the plant.
    mean = (
        max(x, 0.0),
        move,
        clip(max(stride, before.mean[2] / 2.0), READING_FLOOR * goal, LONGEST * goal),
        clip(max(ratio, before.mean[3] / 2.0), LEAST_RATIO, MOST_RATIO),
    )
    belief = Belief(mean=mean, cov=_bounded(belief.cov, RATIO_DOUBT * mean[3]))
    aim, trim = sqrt(2.0 * question.target), memory.trim
    # Not on the way, where it would wind up; but back to nothing from anywhere, or a trim that itself holds the policy
    # off would stay. By the forecast, not by what the reading made of it: to choose readings by their own error is to
    # be wrong in one direction.
    missing = aim - before.mean[0]
    near = abs(missing) < min(TRIM_NEAR * aim, TRIM_STRIDES * before.mean[2])
    if near or trim * missing < 0.0:
        # One freak reading is no more than a large error.
        error = clip(aim - root, -TRIM_ERROR * aim, TRIM_ERROR * aim)
        moved = clip(trim + TRIM * error, -MOST_TRIM * goal, MOST_TRIM * goal)
        trim = moved if near or moved * trim > 0.0 else 0.0
    return replace(memory, belief=belief, bias=bias, trim=trim, pending=pending[due:])


def _brought_nearer(memory: TiltMemory, share: float) -> TiltMemory:
    """The memory where the reference came to the policy by a share of the way: of x what is left, of the rest all."""
    left = 1.0 - share
    x, *others = memory.belief.mean
    cov, bent = memory.belief.cov, MOVE_NOISE * share * left * x
    rows = tuple(
        tuple(
            value * (left if i == 0 else 1.0) * (left if j == 0 else 1.0)
            for j, value in enumerate(row)
        )
        for i, row in enumerate(cov)
    )
    first = (rows[0][0] + bent * bent, *rows[0][1:])
    belief = Belief(mean=(left * x, *others), cov=(first, *rows[1:]))
    return replace(memory, belief=belief)


def _bounded(cov: Matrix, most: float) -> Matrix:
    """The covariance with κ's standard deviation at most so large, its correlations as they were."""
    spread = sqrt(max(cov[3][3], 0.0))
    if spread <= most:
        return cov
    weights = (1.0, 1.0, 1.0, most / spread)
    return tuple(
        tuple(value * own * other for value, other in zip(row, weights, strict=True))
        for row, own in zip(cov, weights, strict=True)
    )


def _applied(memory: TiltMemory, signals: Signals) -> tuple[float, ...]:
    """The β of the updates that are in the policy: one that was undone moved nothing."""
    return memory.pending if signals.applied else memory.pending[:-1]


def _forecast(
    memory: TiltMemory, coefs: tuple[float, ...], momentum: float, goal: float
) -> TiltMemory:
    """The memory after updates with these β."""
    for kl_coef in coefs:
        memory = advance(memory, kl_coef, momentum, goal)
    return memory


def advance(memory: TiltMemory, kl_coef: float, momentum: float, goal: float) -> TiltMemory:
    """One update: x ← x + m, m ← f m + (1 − f) p (1 − β x/(κ c)), f the share that momentum has in it."""
    x, move, stride, ratio = memory.belief.mean
    inertia = momentum * memory.inertia + 1.0
    fresh = 1.0 / inertia
    slope = kl_coef / (ratio * memory.pull)
    free = 1.0 - slope * x
    moved = (1.0 - fresh) * move + fresh * stride * free
    row = (-fresh * stride * slope, 1.0 - fresh, fresh * free, fresh * stride * slope * x / ratio)
    jacobian: Matrix = (
        (1.0 + row[0], row[1], row[2], row[3]),
        row,
        (0.0, 0.0, 1.0, 0.0),
        (0.0, 0.0, 0.0, 1.0),
    )
    *_, stride_variance, ratio_variance = diagonal(memory.belief.cov)
    made, rest = MOVE_NOISE * moved, REST_NOISE * goal
    doubted = max(STRIDE_DOUBT, FIRST_DOUBT / sqrt(max(memory.moves, 1))) * stride
    running = memory.bias / BIAS
    bent = RATIO_NOISE * ratio * (1.0 + running * running * running * running)
    noise = (
        made * made + rest * rest,
        0.0,
        # Never surer than this, and least so at first: an optimiser's first step may be many times its others. Doubt
        # does not grow at rest, where nothing shows the stride: a walk at random would lead it anywhere.
        max(doubted * doubted - stride_variance, 0.0),
        bent * bent if ratio_variance < RATIO_DOUBT * RATIO_DOUBT * ratio * ratio else 0.0,
    )
    belief = predict(memory.belief, (max(x + moved, 0.0), moved, stride, ratio), jacobian, noise)
    drift = memory.pull * PULL_MOVE * moved / goal
    rested = memory.pull * PULL_REST
    variance = memory.pull_variance + drift * drift + rested * rested
    moves = memory.moves + 1
    return replace(memory, belief=belief, inertia=inertia, moves=moves, pull_variance=variance)


def _measure_pull(memory: TiltMemory, signals: Signals) -> TiltMemory:
    """c corrected by x σ_r/σ_u of this rollout.

    Reward and log-ratio of the same responses: the more they are correlated, the less their spreads' quotient varies,
    by √((1 − ρ²)/n), and in the tilt family not at all.
    """
    reward, log_ratio = _usable(signals.reward_std), _usable(signals.log_ratio_std)
    x = memory.belief.mean[0]
    if reward is None or log_ratio is None or x <= 0.0 or signals.num_responses < 1:
        return memory
    correlation = signals.correlation
    # Rounding takes a correlation of 1 a little above it.
    if correlation is None or not isfinite(correlation):
        correlation = 0.0
    correlation = clip(correlation, -1.0, 1.0)
    relative = (1.0 - correlation * correlation) / signals.num_responses + 1e-4
    prior = Belief(mean=(memory.pull,), cov=((memory.pull_variance,),))
    seen = x * reward / log_ratio
    # Followed however far it is: a reward that was rescaled is to be answered at once, up as down.
    after = correct(prior, seen, seen * memory.pull * relative, most=inf)
    pull = clip(after.mean[0], memory.pull / 4.0, memory.pull * 4.0)
    return replace(memory, pull=pull, pull_variance=after.cov[0][0])


def _choose(question: Question, now: TiltMemory) -> tuple[float, str]:
    """β for the policy as it is forecast to be now, and what there is to say of it."""
    config, goal = question.config.tilt, _target(question.config)
    aim = sqrt(2.0 * question.config.target_at(question.step + 1))
    x, move, stride, ratio = now.belief.mean
    # What momentum will yet add, whatever β is now.
    coasting = x + move * (now.inertia * question.signals.momentum)
    gap = aim + now.trim - coasting
    doubt = DOUBT * now.belief.cov[0][0]
    wanted = gap * (gap * gap / (gap * gap + doubt)) if gap else 0.0
    hold = ratio * now.pull / aim
    kl_coef = hold * aim / max(x, 0.1 * aim) * (1.0 - wanted / (config.steps_to_target * stride))
    # Not by a κ above 1: one that is wrong would hold the policy where nothing tells it so.
    loosest = config.loosest * min(ratio, 1.0) * now.pull / aim
    kl_coef = clip(kl_coef, loosest, config.tightest * hold)
    notes = _remarks(stride, now.belief.cov[2][2], gap, goal)
    is_emergency = question.kl > EMERGENCY * goal * goal / 2.0
    if is_emergency:
        kl_coef = max(kl_coef, BRAKE * hold)
    if question.step > 1 or question.config.kl_coef is not None:
        kl_coef = clip(kl_coef, question.kl_coef / config.slew, question.kl_coef * config.slew)
    if x > 0.0:
        # No update is asked to throw the policy past the reference: where one is long, β for a short aim would.
        kl_coef = min(kl_coef, ratio * now.pull * (1.0 / x + 1.0 / stride))
    if is_emergency:
        notes.append(
            f"emergency: KL is over {EMERGENCY:g} times the target; β is {kl_coef / hold:.2g} times what holds it; "
            "where one update did this, lower the learning rate or raise the target"
        )
    return kl_coef, "; ".join(notes)


def _remarks(stride: float, variance: float, gap: float, goal: float) -> list[str]:
    """What of the target can't be had, with the number."""
    spread = 2.0 * sqrt(variance)  # said only where the stride is known well enough
    if stride - spread > goal:
        return [
            f"one update moves KL by up to {stride * stride / 2.0:.2g} nats, and the target is "
            f"{goal * goal / 2.0:.4g}: lower the learning rate or raise the target"
        ]
    if gap > FAR * (stride + spread) and gap > 0.1 * goal:
        return [
            f"at its present pace the policy is over {FAR:.0f} steps from the target: "
            "the learning rate is small for it, or this reward leads no further"
        ]
    return []


def _reading_error(question: Question, root: float, goal: float) -> float:
    """Standard error of √(2 KL): that of KL over the root, or, near 0, the root of twice it."""
    error = question.standard_error
    if error is None or not isfinite(error):
        error = 0.2 * question.kl
    error = max(error, 0.0)
    return max(error / max(root, sqrt(2.0 * error), READING_FLOOR * goal), READING_FLOOR * goal)


def _is_sound(memory: TiltMemory) -> bool:
    pull, variance = memory.pull, memory.pull_variance
    return memory.belief.is_sound and LEAST < pull < MOST and isfinite(variance) and variance >= 0.0


def _target(config: ControlConfig) -> float:
    """x of the target that the run ends with: the scale of all lengths here."""
    return sqrt(2.0 * config.target_at(config.kl_ramp))


def _usable(spread: float | None) -> float | None:
    """A standard deviation that something can be divided by; NaN and infinities are none."""
    return spread if spread is not None and LEAST < spread < MOST else None
