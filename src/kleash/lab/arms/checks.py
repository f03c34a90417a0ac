"""What a study may be asked, so that it is refused before any work is done: lists of values, and a setting.

A study's `Config` names these types, and `setting_that_runs` as a validator of the whole.
"""

from collections.abc import Hashable, Sequence
from typing import Annotated, Any, Protocol, TypeVar

from pydantic import AfterValidator, Field

from kleash.audit.compare import check_device
from kleash.errors import ConfigError
from kleash.lab.arms.setting import Setting
from kleash.train.algorithms import resolve_algorithm
from kleash.train.data import load_prompts

T = TypeVar("T")
N = TypeVar("N", bound=float)
MOST_SHOWN = 60
"""Characters of a value that a message names."""


def shown(value: Any) -> Hashable:
    """A value as labels and tables show it: what is shown alike can't be told apart there.

    Examples:
        >>> shown(0.1) == shown(0.1000000001), shown(0.1) == shown(0.11)
        (True, False)
    """
    return f"{value:g}" if isinstance(value, float) else value


def repeated(names: Sequence[Hashable]) -> str | None:
    """The first that is there twice, for a message; None where all differ.

    Examples:
        >>> repeated(["a", "b", "a"]), repeated(["a", "b"])
        ('a', None)
    """
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    return str(twice[0])[:MOST_SHOWN] if twice else None


def _distinct(values: tuple[T, ...]) -> tuple[T, ...]:
    twice = repeated([shown(value) for value in values])
    if twice is not None:
        raise ValueError(f"values that differ, each once; {twice} is there twice")
    return values


def _some(values: tuple[T, ...]) -> tuple[T, ...]:
    if not values:
        raise ValueError("at least one value; leave the line out for the study's own")
    return values


def _rising(values: tuple[N, ...]) -> tuple[N, ...]:
    if list(values) != sorted(values):
        raise ValueError("values from small to large")
    return values


Distinct = Annotated[tuple[T, ...], AfterValidator(_distinct)]
"""Values that differ, as they are shown; maybe none."""
Several = Annotated[Distinct[T], AfterValidator(_some)]
"""At least one."""
Rising = Annotated[Distinct[N], AfterValidator(_rising)]
"""From small to large; maybe none."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Beta = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""β; 0 is no penalty."""
Pairs = Annotated[int, Field(gt=9)]
"""An amount of preference data."""


class Asked(Protocol):
    """A study's configuration with a setting."""

    @property
    def setting(self) -> Setting:
        """What its arms have in common."""
        ...


A = TypeVar("A", bound=Asked)


def setting_that_runs(config: A) -> A:
    """That the algorithm is one, that models run on the device, and that a step asks no more prompts than there are.

    A validator of a `Config`.

    Raises:
        ValueError: it isn't, they don't, or there are fewer.
        InputError: the prompts can't be read.
    """
    setting = config.setting
    compares = _baseline(setting) in {"group", "leave_one_out"}
    if compares and setting.group_size == 1:
        raise ValueError(
            f"setting.group_size of at least 2: {setting.algorithm} compares the responses to one prompt"
        )
    _check_device(setting)
    count = len(load_prompts(setting.prompts))
    if setting.num_prompts > count:
        raise ValueError(
            f"setting.num_prompts of at most {count}, the prompts that {setting.prompts} has, and not "
            f"{setting.num_prompts}"
        )
    return config


def _check_device(setting: Setting) -> None:
    try:
        check_device(setting.device)
    except ConfigError as error:
        raise ValueError(
            f"setting.device that models can run on here, such as cpu; {error.got}"
        ) from error


def _baseline(setting: Setting) -> str:
    try:
        return resolve_algorithm({"name": setting.algorithm})["baseline"]
    except ValueError as error:
        raise ValueError(str(error).replace("algorithm.name", "setting.algorithm")) from error
