"""Alarms that say how rarely they are false, whatever the noise: e-detectors of the Shiryaev–Roberts form.

    plan = DetectorPlan(bound=0.2, mean=0.0125, mean_time=1e4)
    state = start_detector(plan)
    state = observe(state, plan, value)   # once an update
    state.rings

A control chart's run length is a promise about independent readings of one distribution; updates of a policy are
neither. An e-detector needs less: that the mean of what comes next, given all that came, is no worse than planned.

    X = min(x, B)/B                               the statistic x, clipped at B: 0 ≤ X ≤ 1
    M_λ ← (M_λ + 1)(1 + λ(X − m))                 from 0; m is the planned mean of X, 0 < λ < 1/m
    M = mean of M_λ over a grid of λ              alarm where M ≥ A

Where E[X | past] ≤ m, E[M | past] is at most the M before, plus 1: M − t is a supermartingale, so that until an alarm
E[t] ≥ E[M] ≥ A. **The mean number of updates to a false alarm is at least A**, however these depend on each other and
however their distribution drifts; and again after every alarm, since the detector then starts from 0.
Source: Shin, Ramdas and Rinaldo, arXiv 2203.03532.

What has to be no worse than planned is the mean *given the past*, at every update. A mean that is so over a whole run
only is less: where noise carries over from update to update, plan for what it carries the next mean to.

λ = f/m puts the share f of the wealth on the next reading: 1 + λ(X − m) = 1 − f + f·X/m. `FRACTIONS` are the f.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from math import isfinite, log, nan, sqrt
from typing import Any, Literal

from kleash.errors import ConfigError, InputError

Side = Literal["upper", "lower"]

FRACTIONS = (0.9375, 0.75, 0.5, 0.25, 0.0625)
"""f = λm. The f that grows M fastest where the mean is a share Δ above m, with a standard deviation of s·m, is about
Δ/(s² + Δ²): all of it for KL that doubled where a quarter was spared (Δ = 0.6, s = 0.5), a sixteenth for the same under
a heavy tail (s = 3). That there are five costs at most log 5 nats of evidence: four updates after that doubling. They
are sums of powers of 2, so that 1 − f is exact."""

LEAST_SHARE = 1e-6
"""That m may be at least: one clipped reading multiplies M by up to 1/m."""
BELOW_ZERO = 1e-3
"""Of the bound, that float arithmetic may take a statistic below zero."""
LONGEST = 1e12
"""Updates to a false alarm that can be planned."""
CAP = 1e6
"""Times A, that each M_λ is held to. It can only lower M, so that the guarantee stays; and one M_λ at its cap is alarm
enough (A·1e6/5 > A), so that none is missed. It keeps a state's numbers finite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorPlan:
    """What is planned of a statistic, and how often it may be called broken when it isn't.

    Plan `mean` before the run, from runs that were sound: a mean learnt from a run's own start would pass whatever
    it started with.

    Examples:
        >>> DetectorPlan(bound=0.2, mean=0.0125, mean_time=1e4).share
        0.0625
        >>> DetectorPlan(bound=4.0, mean=1.0, mean_time=1e4, side="lower").share  # entropy, not under 1 nat
        0.75
    """

    bound: float
    """B, where the statistic is clipped, in its own unit. It lies in [0, B]; 20 times its mean cuts little off."""
    mean: float
    """Of the clipped statistic, in its own unit: at most this on the upper side, at least this on the lower."""
    mean_time: float
    """A: updates to a false alarm, on average, at least."""
    side: Side = "upper"
    """`lower`: too little is what alarms, as of entropy and length; then X = 1 − min(x, B)/B."""

    def __post_init__(self) -> None:
        if self.side not in ("upper", "lower"):
            raise ConfigError(
                "a detector watches one side", expected="upper or lower", got=f"{self.side}"
            )
        if not (isfinite(self.bound) and 0.0 < self.mean < self.bound):
            raise ConfigError(
                "a detector's mean must lie between 0 and its bound",
                expected="0 < mean < bound",
                got=f"mean = {self.mean:g}, bound = {self.bound:g}",
            )
        if not LEAST_SHARE <= self.share < 1.0:
            raise ConfigError(
                "a detector's bound is too far from its mean, or no further than rounding",
                expected=f"a mean of X from {LEAST_SHARE:g} to 1",
                got=f"{self.share:g}",
                do="bring the bound nearer: 20 times the mean is enough",
            )
        if not 1.0 <= self.mean_time <= LONGEST:
            raise ConfigError(
                "a detector's mean time to a false alarm cannot be planned",
                expected=f"1 to {LONGEST:g} updates",
                got=f"{self.mean_time:g}",
            )

    @property
    def share(self) -> float:
        """m, the planned mean of X."""
        share = self.mean / self.bound
        return share if self.side == "upper" else 1.0 - share

    def score(self, value: float) -> float:
        """X of an observation, 0 to 1, the larger the worse; 1 of what can't be one.

        NaN, ±∞ and what is below zero by more than rounding (a thousandth of the bound) are no values of the statistic:
        each counts as the worst there is, so that what wasn't measured is never passed over. The guarantee is then
        about these too: a sound run whose readings fail often enough to lift E[X] over m is not called sound.

        Examples:
            >>> plan = DetectorPlan(bound=0.2, mean=0.0125, mean_time=1e4)
            >>> plan.score(0.05), plan.score(3.0), plan.score(float("nan"))
            (0.25, 1.0, 1.0)
        """
        if not isfinite(value) or value < -BELOW_ZERO * self.bound:
            return 1.0
        part = min(max(value, 0.0), self.bound) / self.bound
        return part if self.side == "upper" else 1.0 - part


@dataclass(frozen=True, kw_only=True, slots=True)
class Detector:
    """A detector between two updates. Its plan is kept elsewhere, as a controller's configuration is."""

    values: tuple[float, ...]
    """M_λ, one for each of `FRACTIONS`."""
    count: int = 0
    """Updates observed."""
    last_alarm: int | None = None
    """Of which of these, 1-based, the last alarm was; None where there was none."""

    @property
    def statistic(self) -> float:
        """M: the evidence against the plan, to be held against `mean_time`."""
        # Not by sum(): some versions of Python compensate its rounding and others don't, and a replay must not differ.
        total = 0.0
        for value in self.values:
            total += value
        return total / len(self.values)

    @property
    def rings(self) -> bool:
        """Whether the last observation raised an alarm."""
        return self.count == self.last_alarm

    def to_json(self) -> dict[str, Any]:
        """A plain dict, as the ledger and the checkpoint store it."""
        return {**asdict(self), "values": list(self.values)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], plan: DetectorPlan) -> "Detector":
        """The state that `to_json` wrote, under the plan that it was made with.

        Raises:
            InputError: `observe` can't have left such a state: a field is missing, unknown or of another type, a number
                is not finite, negative or past its cap, or the alarm and the numbers contradict each other.
        """
        why = _fault(data) or _contradiction(_read(data), plan)
        if why:
            raise InputError(
                "the stored detector state cannot be used",
                expected=f"a state of a detector with {len(FRACTIONS)} values",
                got=why,
            )
        return _read(data)


def start_detector(plan: DetectorPlan) -> Detector:
    """The state before the first observation.

    Examples:
        >>> start_detector(DetectorPlan(bound=1.0, mean=0.5, mean_time=10.0)).statistic
        0.0
    """
    return Detector(values=tuple(0.0 for _ in FRACTIONS))


def observe(state: Detector, plan: DetectorPlan, value: float) -> Detector:
    """The state after one more observation; after an alarm, from 0 again.

    A plan whose mean time is 1e4 finds, with 30 % noise and a quarter to spare, KL that doubled in some 20 updates and
    half as much again in some 55 (`benchmarks/detectors.py`). A single spike is not its business: a cap finds that.

    Args:
        state: from `start_detector` or the previous `observe`.
        plan: what is planned; the same at each call.
        value: the statistic, in the unit of `plan.bound`; NaN where it could not be measured.

    Examples:
        >>> plan = DetectorPlan(bound=1.0, mean=0.5, mean_time=10.0)
        >>> state = start_detector(plan)
        >>> for value in (1.0, 1.0, 1.0):  # M_λ: 1 + f, (2 + f)(1 + f), …
        ...     state = observe(state, plan, value)
        ...     state.statistic, state.rings
        (1.5, False)
        (3.8515625, False)
        (7.68359375, False)
        >>> state = observe(state, plan, float("nan"))  # as bad as 1.0
        >>> state.rings, observe(state, plan, 0.5).statistic  # then from 0
        (True, 1.0)
    """
    excess = plan.score(value) / plan.share - 1.0
    before = tuple(0.0 for _ in state.values) if state.rings else state.values
    cap = CAP * plan.mean_time
    values = tuple(
        min((m + 1.0) * (1.0 + f * excess), cap) for m, f in zip(before, FRACTIONS, strict=True)
    )
    after = Detector(values=values, count=state.count + 1, last_alarm=state.last_alarm)
    if after.statistic < plan.mean_time:
        return after
    return Detector(values=values, count=after.count, last_alarm=after.count)


def concordance(
    proxy: Sequence[float], held_out: Sequence[float], groups: Sequence[int]
) -> float | None:
    """How far a held-out reward prefers what the proxy prefers: 1 always, 0 as often as not, −1 never.

    C = mean of sign(p_i − p_j)·sign(h_i − h_j) over pairs of responses to one prompt with p_i ≠ p_j. Responses to
    different prompts are not compared: a harder prompt moves both rewards alike. Where the proxy ties, it prefers
    neither and pushes the policy nowhere: no pair. Where only the held-out reward ties, the proxy's push wins nothing
    it can see: a pair of 0. So it is Somers' D of the held-out reward on the proxy (Somers 1962).

    The null is E[C | past] ≥ c₀; 0 says that the held-out reward agrees at least as often as it disagrees. A detector
    watches 1 + C, which lies in [0, 2]: its X is then (1 − C)/2.

    Args:
        proxy: the reward that is trained on, one a response.
        held_out: another reward of the same responses, that nothing is trained on.
        groups: which prompt each is a response to.

    Returns:
        C; None where the proxy prefers nothing, and there is nothing to observe; NaN, which a detector counts as the
        worst there is, where a reward is not finite.

    Raises:
        InputError: the three are not of one length.

    Examples:
        >>> concordance([1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [0, 0, 0])  # 2 pairs of 3 agree
        0.3333333333333333
        >>> plan = DetectorPlan(bound=2.0, mean=1.0 + 0.0, mean_time=1e4, side="lower")  # c₀ = 0
        >>> plan.score(1.0 + 0.5), plan.share
        (0.25, 0.5)
    """
    if not len(proxy) == len(held_out) == len(groups):
        raise InputError(
            "two rewards of the same responses are needed",
            expected="as many of the one as of the other, and as groups",
            got=f"{len(proxy)}, {len(held_out)} and {len(groups)}",
        )
    if not all(isfinite(reward) for reward in (*proxy, *held_out)):
        return nan
    of_prompt: dict[int, list[tuple[float, float]]] = {}
    for p, h, group in zip(proxy, held_out, groups, strict=True):
        of_prompt.setdefault(group, []).append((p, h))
    signs = [
        _sign(p, q) * _sign(h, k)
        for responses in of_prompt.values()
        for (p, h), (q, k) in combinations(responses, 2)
        if p != q
    ]
    return sum(signs) / len(signs) if signs else None


FAR = 10.0
"""Standard deviations that one reading counts for at most in a hint; what is not a number counts for as much."""
WEIGHT = 0.2
"""Of the newest reading in the EWMA."""
SLACK = 0.5
"""Standard deviations over the mean that the CUSUM forgives."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hint:
    """Two classic charts of log values. **A hint, no guarantee**: no verdict may rest on it.

    How often a chart is wrong can be said of independent readings of one known distribution only.
    """

    cusum: float = 0.0
    """Standard deviations summed above the mean and `SLACK`; 12 is much."""
    ewma: float = 0.0
    """The moving average, in its own standard deviations from the mean; 3 is much."""


def hint(state: Hint, value: float, *, log_mean: float, log_sd: float) -> Hint:
    """Both charts after one more value. A hint, no guarantee.

        z = (log x − μ)/σ, within ±10;   S ← max(0, S + z − ½);   E ← 0.8 E + 0.2 z, shown over √(0.2/1.8)

    μ and σ are planned, not learnt from the run. NaN, ±∞ and what is below zero count as z = 10; zero as −10. This has
    a logarithm, unlike what decides: its last bit is the machine's own. Sources: Page 1954, Roberts 1959.

    Args:
        state: `Hint()` or what this gave before.
        value: positive, in any unit.
        log_mean: μ, of the values' logarithms.
        log_sd: σ, of the same, above zero.

    Examples:
        >>> hint(Hint(), 2.0, log_mean=0.0, log_sd=0.5)  # z = 1.386
        Hint(cusum=0.886294361119890..., ewma=0.831776616671934...)
    """
    if not isfinite(value) or value < 0.0:
        z = FAR
    elif value == 0.0:
        z = -FAR
    else:
        z = min(max((log(value) - log_mean) / log_sd, -FAR), FAR)
    spread = sqrt(WEIGHT / (2.0 - WEIGHT))
    return Hint(
        cusum=max(0.0, state.cusum + z - SLACK),
        ewma=(1.0 - WEIGHT) * state.ewma + WEIGHT * z / spread,
    )


def _sign(a: float, b: float) -> int:
    return (a > b) - (a < b)


def _fault(data: Mapping[str, Any]) -> str:
    """What is wrong with the fields themselves; empty where nothing is."""
    fields = {"values", "count", "last_alarm"}
    if odd := data.keys() ^ fields:
        return f"fields missing or unknown: {', '.join(sorted(map(ascii, odd)))}"
    values, count, last = data["values"], data["count"], data["last_alarm"]
    # type() is, as in Python True is an int.
    if type(values) is not list or len(values) != len(FRACTIONS):
        return f"values is not a list of {len(FRACTIONS)} numbers"
    if any(type(value) is not float for value in values):
        return "one of values is not a float"
    if type(count) is not int or type(last) not in (int, type(None)):
        return "count or last_alarm is not a whole number"
    if count < 0 or not 1 <= (1 if last is None else last) <= max(count, 1):
        return f"count = {count} and last_alarm = {last} cannot be"
    return ""


def _read(data: Mapping[str, Any]) -> Detector:
    return Detector(
        values=tuple(data["values"]), count=data["count"], last_alarm=data["last_alarm"]
    )


def _contradiction(state: Detector, plan: DetectorPlan) -> str:
    """What `observe` would not have left; empty where there is nothing."""
    if not all(0.0 <= value <= CAP * plan.mean_time for value in state.values):
        return "one of values is negative, not a number or past its cap"
    if state.count == 0 and (any(state.values) or state.last_alarm is not None):
        return "a state of no observations that has evidence"
    if state.rings != (state.statistic >= plan.mean_time):
        return f"a statistic of {state.statistic:g} and last_alarm = {state.last_alarm}"
    return ""
