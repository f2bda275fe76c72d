"""A holder that lies: it is enrolled, comes over mutual TLS as any other, and answers falsely.

    python -m credit_simulations.chaos.liar --home DIR --server HOST:PORT --lies KIND... --seed N

It reads no data. What it sends goes past gate and ledger, which is why it is here and not in the
holders' package: nothing that package can be told makes it do so. After each lie that does not
answer the request it refuses it, so that no round waits for it.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message
from flwr.clientapp import ClientApp

from credit_client.identity import open_identity
from credit_client.link import Link
from credit_common import federation_pb2 as pb
from credit_common.command import log_to_stderr, run_command
from credit_common.contract import Contract
from credit_common.groups import count_columns
from credit_common.heads import sign_head
from credit_common.protocol import from_request, to_head
from credit_common.wire import HISTOGRAM, pack, refusal, unpack

PASSED_OVER = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.RESOURCE_EXHAUSTED)
"""How the coordinator turns down one call; the connection lives on."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the liar; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--server", required=True)
    parser.add_argument("--lies", nargs="+", choices=sorted(LIES), required=True)
    parser.add_argument("--seed", type=int, default=0, help="of which lie is told when")
    parser.add_argument("--until-stdin-closes", action="store_true")
    parser.set_defaults(command=_lie)
    return run_command("liar", parser.parse_args(argv))


def _lie(options: argparse.Namespace) -> int:
    log_to_stderr()
    identity = open_identity(options.home)
    contract = identity.bundle.contract
    draw = random.Random(options.seed)  # noqa: S311  # which lie, no secret

    def lies(request: pb.Request) -> list[pb.Reply]:
        kind = draw.choice(options.lies)
        _tell("lie", round=request.round, kind=kind)
        return LIES[kind](contract, request, identity.subject.node_id)

    with LyingLink(identity, options.server, 1 << 24) as link:
        link.lies = lies
        link.work(ClientApp(), on_connected=lambda: _tell("connected"))
    _tell("done")
    return 0


class LyingLink(Link):
    """A link that sends what `lies` makes of each request, instead of what a gate let out."""

    lies: Callable[[pb.Request], list[pb.Reply]]
    _asked: pb.Request

    def _run(self, app: ClientApp, request: pb.Request, context: Any) -> Message:
        self._asked = request
        return refusal(from_request(request, self._identity.subject.node_id))

    def _send(self, reply: pb.Reply, round_: int) -> None:
        for false in [*self.lies(self._asked), reply]:
            try:
                self._answer(false.SerializeToString(), timeout=self._answer_seconds)
            except grpc.RpcError as error:
                call: Any = error
                if call.code() not in PASSED_OVER:
                    raise


Lie = Callable[[Contract, pb.Request, int], list[pb.Reply]]
"""Contract, request and the liar's node id -> what is sent before the refusal."""


def _refusal(contract: Contract, request: pb.Request, node: int) -> list[pb.Reply]:
    return []


def _nothing(contract: Contract, request: pb.Request, node: int) -> list[pb.Reply]:
    """A reply without an outcome."""
    return [pb.Reply(message_id=request.message_id)]


def _garbage(contract: Contract, request: pb.Request, node: int) -> list[pb.Reply]:
    return [_reply(request, b"\xff" * 999)]


def _other_kind(contract: Contract, request: pb.Request, node: int) -> list[pb.Reply]:
    """A histogram where an adapter is asked for, and the other way round."""
    counts = np.ones((2, count_columns(contract, request.round)))
    if request.kind == pb.TRAIN:
        return [pb.Reply(message_id=request.message_id, histogram=pack({HISTOGRAM: counts}))]
    return [pb.Reply(message_id=request.message_id, adapter=request.arrays)]


def _other_shape(contract: Contract, request: pb.Request, node: int) -> list[pb.Reply]:
    return [_reply(request, pack({"head.weight": np.zeros((3, 3), np.float32)}))]


def _not_finite(contract: Contract, request: pb.Request, node: int) -> list[pb.Reply]:
    return [_filled(contract, request, float("nan"))]


def _beyond(contract: Contract, request: pb.Request, node: int) -> list[pb.Reply]:
    """Numbers that are finite and cannot be summed."""
    return [_filled(contract, request, 1e38)]


def _enlarged(contract: Contract, request: pb.Request, node: int) -> list[pb.Reply]:
    """Numbers that can be summed and drown everyone else's."""
    return [_filled(contract, request, 1e3)]


def _echo(contract: Contract, request: pb.Request, node: int) -> list[pb.Reply]:
    """The adapter of the request, as if training had changed nothing."""
    return [_filled(contract, request, 0.0)]


def _foreign(contract: Contract, request: pb.Request, node: int) -> list[pb.Reply]:
    """A refusal in the name of each other holder: ids differ in the node, which can be guessed."""
    run, round_, kind, _, arrays = request.message_id.split("-")
    return [
        pb.Reply(message_id=f"{run}-{round_}-{kind}-{other}-{arrays}", refused=pb.Refused())
        for other in range(1, 20)
        if other != node
    ]


def _twice(contract: Contract, request: pb.Request, node: int) -> list[pb.Reply]:
    """A refusal, and then an answer to the same request."""
    first = pb.Reply(message_id=request.message_id, refused=pb.Refused())
    return [first, _filled(contract, request, 1.0)]


def _stale(contract: Contract, request: pb.Request, node: int) -> list[pb.Reply]:
    """An answer to a request that was never made."""
    reply = _filled(contract, request, 1.0)
    reply.message_id = "0" * 32 + f"-{request.round - 1}-train-{node}-" + "0" * 16
    return [reply]


def _forged_head(contract: Contract, request: pb.Request, node: int) -> list[pb.Reply]:
    """An answer with the head of a ledger that another key signed."""
    reply = _filled(contract, request, 1.0)
    head = sign_head(
        ec.generate_private_key(ec.SECP256R1()),
        node_id=node,
        contract_digest=contract.digest,
        counter=1,
        blinded_hash="0" * 64,
        overrides=0,
        delta=contract.privacy.delta,
        epsilon=0.0,
        epsilon_replace_one=0.0,
    )
    reply.head.CopyFrom(to_head(head))
    return [reply]


LIES: dict[str, Lie] = {
    "refusal": _refusal,
    "nothing": _nothing,
    "garbage": _garbage,
    "other-kind": _other_kind,
    "other-shape": _other_shape,
    "not-finite": _not_finite,
    "beyond": _beyond,
    "enlarged": _enlarged,
    "echo": _echo,
    "foreign": _foreign,
    "twice": _twice,
    "stale": _stale,
    "forged-head": _forged_head,
}


def _filled(contract: Contract, request: pb.Request, value: float) -> pb.Reply:
    """An answer of the right form: the asked adapter with `value` added, or such a histogram."""
    if request.kind != pb.TRAIN:
        counts = np.full((2, count_columns(contract, request.round)), value)
        return _reply(request, pack({HISTOGRAM: counts}))
    with np.errstate(over="ignore", invalid="ignore"):
        moved = {n: array + np.float32(value) for n, array in unpack(request.arrays).items()}
    return _reply(request, pack(moved))


def _reply(request: pb.Request, payload: bytes) -> pb.Reply:
    if request.kind == pb.TRAIN:
        return pb.Reply(message_id=request.message_id, adapter=payload)
    return pb.Reply(message_id=request.message_id, histogram=payload)


def _tell(event: str, **facts: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
