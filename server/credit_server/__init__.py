"""The coordinator: Flower ServerApp, aggregation and evaluation."""

import credit_common as _telemetry_off  # noqa: F401  # before anything here imports flwr
