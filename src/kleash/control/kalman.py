"""A Kalman filter of a few numbers: what is believed of a state, moved by a model and corrected by readings."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, sqrt

Vector = tuple[float, ...]
Matrix = tuple[Vector, ...]

SURPRISE = 2.0
"""Standard deviations of a reading from its forecast beyond which the forecast was too sure of itself."""
DISBELIEF = 4.0
"""Standard deviations by which one reading counts at most: a freak is not followed all the way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Belief:
    """A mean and its covariance."""

    mean: Vector
    cov: Matrix

    @property
    def is_sound(self) -> bool:
        """Whether all numbers are finite, and no variance is negative."""
        finite = all(isfinite(x) for row in (self.mean, *self.cov) for x in row)
        return finite and min(diagonal(self.cov)) >= 0.0


def diagonal(matrix: Matrix) -> Vector:
    """The entries on the diagonal."""
    return tuple(row[i] for i, row in enumerate(matrix))


def certain_of(variances: Sequence[float]) -> Matrix:
    """The diagonal matrix of these variances."""
    size = range(len(variances))
    return tuple(tuple(variances[i] if i == j else 0.0 for j in size) for i in size)


def predict(belief: Belief, mean: Vector, jacobian: Matrix, noise: Sequence[float]) -> Belief:
    """The belief after one move of the model.

    Args:
        belief: before.
        mean: where the model moves the mean to.
        jacobian: of that move, [to][from].
        noise: variances added by the move.
    """
    moved = _product(_product(jacobian, belief.cov), tuple(zip(*jacobian, strict=True)))
    cov = tuple(
        tuple(x + (noise[i] if i == j else 0.0) for j, x in enumerate(row))
        for i, row in enumerate(moved)
    )
    return Belief(mean=mean, cov=cov)


def correct(belief: Belief, reading: float, variance: float, *, most: float = DISBELIEF) -> Belief:
    """The belief after a reading of the state's first number.

    A reading further out than SURPRISE standard deviations widens the belief first, so that it is followed: the model
    had moved less certainly than it knew.

    Args:
        belief: before.
        reading: of the first number.
        variance: of the reading, positive.
        most: standard deviations of forecast and reading that the mean is moved by at most.

    Examples:
        >>> correct(Belief(mean=(1.0,), cov=((1.0,),)), 2.0, 1.0)
        Belief(mean=(1.5,), cov=((0.5,),))
    """
    cov, gap = belief.cov, reading - belief.mean[0]
    spread = max(cov[0][0], 0.0) + variance
    gap = min(max(gap, -most * sqrt(spread)), most * sqrt(spread))
    widening = gap * gap / (spread * SURPRISE * SURPRISE)
    if widening > 1.0:
        cov = tuple(tuple(x * widening for x in row) for row in cov)
        spread = cov[0][0] + variance
    gain = tuple(row[0] / spread for row in cov)
    mean = tuple(x + g * gap for x, g in zip(belief.mean, gain, strict=True))
    size = range(len(cov))
    left = tuple(tuple(cov[i][j] - gain[i] * cov[0][j] for j in size) for i in size)
    return Belief(mean=mean, cov=_tidy(left))


def _tidy(cov: Matrix) -> Matrix:
    """Even, no variance negative, no correlation beyond 1: what rounding does to them would grow over the steps."""
    size = range(len(cov))
    even = tuple(tuple((cov[i][j] + cov[j][i]) / 2.0 for j in size) for i in size)
    spreads = tuple(sqrt(max(row[i], 0.0)) for i, row in enumerate(even))
    return tuple(
        tuple(
            max(x, 0.0)
            if i == j
            else min(max(x, -spreads[i] * spreads[j]), spreads[i] * spreads[j])
            for j, x in enumerate(row)
        )
        for i, row in enumerate(even)
    )


def _product(left: Matrix, right: Matrix) -> Matrix:
    columns = tuple(zip(*right, strict=True))
    return tuple(tuple(_dot(row, column) for column in columns) for row in left)


def _dot(left: Vector, right: Vector) -> float:
    # Not by sum(): some versions of Python compensate its rounding and others don't, and a replay must not differ.
    total = 0.0
    for a, b in zip(left, right, strict=True):
        total += a * b
    return total
