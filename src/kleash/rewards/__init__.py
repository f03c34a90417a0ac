"""Rewards: from responses to one finite number each, whatever scores them."""
