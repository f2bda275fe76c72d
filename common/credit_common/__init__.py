"""What coordinator, holders and simulations share: contract, record, model, arithmetic, wire."""

import os

# Before flwr is imported anywhere: nothing about a run is reported to a third party.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

# Before grpc is: TLS 1.2 is left without a cipher that the federation's elliptic-curve certificates
# could use, so that TLS 1.3 alone is spoken; gRPC has no other switch for it.
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES256-GCM-SHA384"
