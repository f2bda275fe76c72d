"""Holders that compute next to nothing, so that a round costs what its loop costs."""

from collections.abc import Mapping

import numpy as np
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from credit_common.wire import ARRAYS, HISTOGRAM, METRICS, WEIGHT, array_record, request_arrays

SHAPES: Mapping[str, tuple[int, ...]] = {
    "head.bias": (1,),
    "head.weight": (1, 384),
    "lora.5.query.A": (8, 384),
    "lora.5.query.B": (384, 8),
    "lora.5.value.A": (8, 384),
    "lora.5.value.B": (384, 8),
    "wide.weight": (1, 187),
}
"""The adapter of the packaged contract pakdd2009: 12,860 numbers in 7 arrays."""
STEP: Mapping[str, np.float32] = {
    "lora": np.float32(2e-3),
    "head": np.float32(2e-2),
    "wide": np.float32(0.4),
}
"""What a holder adds to each number of a group: about what the contract's noise does, since the
coordinator sets aside what moves less or much more."""
SHARE = 100
"""Each holder's weight, the same for all: that of the contract's size class small."""


def initial_adapter() -> dict[str, NDArray[np.float32]]:
    """Zeros."""
    return {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}


def stepped(message: Message) -> dict[str, NDArray[np.float32]]:
    """The adapter of a request, a step on."""
    return {
        name: values + STEP[name.split(".")[0]] for name, values in request_arrays(message).items()
    }


def trivial_app(cells: int) -> ClientApp:
    """Answers training with the adapter a step on, evaluation with `cells` zeros."""
    app = ClientApp()

    @app.train()
    def _train(message: Message, context: Context) -> Message:
        metrics = MetricRecord({WEIGHT: SHARE})
        content = RecordDict({ARRAYS: array_record(stepped(message)), METRICS: metrics})
        return Message(content, reply_to=message)

    @app.evaluate()
    def _evaluate(message: Message, context: Context) -> Message:
        metrics = MetricRecord({WEIGHT: SHARE, HISTOGRAM: [0.0] * cells})
        return Message(RecordDict({METRICS: metrics}), reply_to=message)

    return app
