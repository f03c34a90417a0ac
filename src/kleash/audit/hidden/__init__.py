"""Search for contexts in which a policy is far from a reference that it is near to elsewhere."""
