"""Studies of what a KL penalty buys, and what it does not."""
