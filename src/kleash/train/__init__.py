"""The loop: rollout, reward, reading, update, verdict, record."""
