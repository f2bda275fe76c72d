"""The statistics round: one request to all holders before the first round of training."""

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from credit_common.contract import Contract
from credit_common.statistics import Edges, quantile_edges
from credit_common.wire import ARRAYS, CONFIG, ROUND, array_record, reply_statistics
from credit_server.answers import asked_nodes, taken
from credit_server.quarantine import Quarantine


def federated_edges(contract: Contract, grid: Grid, quarantine: Quarantine | None = None) -> Edges:
    """The edges of the contract's federated fields; none, and no request, where it has none.

    Noised counts are summed in the order of node ids. A holder that comes later, or refuses, is
    not in the sums; it gets the same edges with each request. `quarantine` counts it. Answers that
    are set aside count towards the minimum as those of a round do.

    Raises:
        TooFewError: If fewer holders answered than the contract's minimum.
    """
    if not contract.federated_fields:
        return {}
    content = RecordDict({ARRAYS: array_record({}), CONFIG: ConfigRecord({ROUND: 1})})
    messages = [
        Message(content, dst_node_id=node, message_type="query")
        for node in asked_nodes(contract, grid)
    ]
    received = grid.send_and_receive(messages, timeout=contract.federation.answer_seconds)
    answers = sorted(received, key=lambda reply: reply.metadata.src_node_id)
    rows: list[dict[str, NDArray[np.float64]]] = []
    taken(
        contract,
        quarantine or Quarantine(contract),
        ("statistics", "query"),
        answers,
        lambda reply: rows.append(reply_statistics(reply)),
    )
    return quantile_edges(
        contract, {name: np.sum([row[name] for row in rows], axis=0) for name in rows[0]}
    )
