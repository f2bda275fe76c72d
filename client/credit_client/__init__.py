"""A data holder: shard, training under differential privacy, ledger and gate."""
