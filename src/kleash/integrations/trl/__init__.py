"""Supervised fine-tuning and DPO by TRL, on the same meter, run directory and ledger as `kleash train`.

TRL makes every update. Ours are the models it is given, the exact KL measured at fixed steps, the guard's limit, and
the record.
"""
