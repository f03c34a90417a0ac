"""Two checkpoints in, how far they are apart out: comparison, where it moved, limits, attestation, hidden drift.

No torch in this file, nor in `result`, `limits` and `attestation`.
"""
