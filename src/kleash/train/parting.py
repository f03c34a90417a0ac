"""What a run leaves behind; of several processes that have a part of the weights each, all make it before they part."""

from collections.abc import Generator
from contextlib import contextmanager

from torch import Tensor

from kleash.errors import LimitError
from kleash.models.hub import own_state
from kleash.models.sharded import collected
from kleash.records import KLReading
from kleash.train.card import model_card
from kleash.train.directory import Conclusion, Ending
from kleash.train.loop import final_drift
from kleash.train.setup import Setup


class Parting:
    """Asked at the end of a run for what is saved.

    Args:
        setup: of the run.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.divided = setup.learner.division is not None
        self.drift: KLReading | None = None
        """Of the last weights, where they are divided."""
        self.weights: dict[str, Tensor] | None = None
        """These, on the first process."""

    @contextmanager
    def together(self) -> Generator[None]:
        """What is inside ends for all processes at the same point: at its end or at a limit. Else nothing is made."""
        try:
            yield
        except LimitError:
            self._make()
            raise
        self._make()

    def _make(self) -> None:
        if self.divided:
            self.drift = final_drift(self.setup)
            self.weights = collected(own_state(self.setup.learner.policy))

    def __call__(self, ending: Ending) -> Conclusion:
        """The policy, its card and its drift."""
        drift = self.drift
        if ending.measured and not self.divided:
            drift = final_drift(self.setup)
        config, origin = self.setup.config, self.setup.learner.origin
        card = model_card(config, ending.last, drift, origin.name, ending.status)
        return Conclusion(self.setup.learner.policy, card, drift, self.weights)
