"""The statistics round: one request to all holders before the first round of training."""

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from credit_common.contract import Contract
from credit_common.errors import CreditError
from credit_common.statistics import Edges, quantile_edges
from credit_common.wire import ARRAYS, CONFIG, ROUND, array_record, reply_statistics
from credit_server.quarantine import Quarantine, reason_of


def federated_edges(contract: Contract, grid: Grid, quarantine: Quarantine | None = None) -> Edges:
    """The edges of the contract's federated fields; none, and no request, where it has none.

    Noised counts are summed in the order of node ids. A holder that comes later, or refuses, is
    not in the sums; it gets the same edges with each request. `quarantine` counts it.

    Raises:
        CreditError: If fewer holders answered than the contract's minimum.
    """
    if not contract.federated_fields:
        return {}
    content = RecordDict({ARRAYS: array_record({}), CONFIG: ConfigRecord({ROUND: 1})})
    messages = [
        Message(content, dst_node_id=node, message_type="query")
        for node in sorted(grid.get_node_ids())
    ]
    received = grid.send_and_receive(messages, timeout=contract.federation.answer_seconds)
    answers = sorted(received, key=lambda reply: reply.metadata.src_node_id)
    for reply in answers:
        if quarantine is not None and reply.has_error():
            quarantine.note(reply.metadata.src_node_id, reason_of(reply))
    rows = [reply_statistics(reply) for reply in answers if not reply.has_error()]
    minimum = contract.federation.min_holders
    if len(rows) < minimum:
        raise CreditError(
            f"statistics: {len(rows)} of {len(messages)} holders answered, the contract needs "
            f"{minimum}; the others refused or were too late (their own logs say which)"
        )
    return quantile_edges(
        contract, {name: np.sum([row[name] for row in rows], axis=0) for name in rows[0]}
    )
