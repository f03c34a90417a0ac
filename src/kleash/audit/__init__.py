"""Two checkpoints in, how far they are apart out: comparison, where it moved, limits, attestation, search for hidden drift. No torch in this file."""
