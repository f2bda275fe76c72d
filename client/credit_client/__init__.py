"""A data holder: shard, training under differential privacy, ledger and gate."""

import credit_common as _telemetry_off  # noqa: F401  # before anything here imports flwr
