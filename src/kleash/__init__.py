"""kleash: reinforcement learning from human feedback on a measured leash."""

__version__ = "0.1.0"
