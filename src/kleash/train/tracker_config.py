"""The `[train.tracker_options]` section: what trackers call a run, and where those that write files do."""

from pydantic import BaseModel, ConfigDict, Field


class TrackerOptions(BaseModel):
    """What holds for every tracker of a run.

    Examples:
        >>> TrackerOptions(project="summaries").name is None
        True
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    project: str = Field(default="kleash", min_length=1, max_length=128)
    """The project of wandb and trackio, the experiment of mlflow."""
    name: str | None = Field(default=None, min_length=1, max_length=128)
    """Of the run in it; None: that of the run's directory."""
    directory: str | None = Field(default=None, min_length=1)
    """Where tensorboard and wandb write, a directory a run in it; None: the run's own directory. mlflow goes by
    MLFLOW_TRACKING_URI, trackio by TRACKIO_DIR."""
