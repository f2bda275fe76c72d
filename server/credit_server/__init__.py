"""The coordinator: Flower ServerApp, aggregation and evaluation."""
