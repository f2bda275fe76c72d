"""The real commands, watched: a witness at the coordinator's door, and an end at a chosen call.

    python -m credit_simulations.chaos.door [--record FOLDER] [--calls FILE] COMMAND ARGUMENT...

COMMAND is flower-server or credit-client; its own `main` runs, with its own arguments. Neither
package has a switch for any of this: the methods are wrapped from outside, in this process.

The witness writes to FOLDER what goes out and what comes in, before anything is made of it:
`door.jsonl` has one object a line, `asked/SHA` and `came/SHA` the arrays. FILE has two numbers that
this process shares with its parent: how many functions of the project were called since the
command was connected, and at which call it ends itself by SIGKILL (-1 for never).
"""

import argparse
import functools
import hashlib
import itertools
import json
import mmap
import os
import signal
import struct
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

from credit_common import federation_pb2 as pb

OURS = ("credit_client", "credit_common", "credit_server")
NEVER = -1


def main() -> int:
    """Run a command under watch; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--calls", type=Path)
    parser.add_argument("command", choices=("flower-server", "credit-client"))
    options, rest = parser.parse_known_args()
    if options.record:
        record(options.record)
    if options.calls:
        count_calls(options.calls, options.command)
    if options.command == "flower-server":
        from credit_server.cli import main as command
    else:
        from credit_client.cli import main as command
    return command(rest)


def record(folder: Path) -> None:
    """Have every grid of this process write down what it asks and what it is answered."""
    from credit_common.wire import pack, request_arrays, request_round
    from credit_server.grid import GrpcGrid

    for part in ("asked", "came"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    push, answer = GrpcGrid.push_messages, GrpcGrid.answer
    life = os.getpid()

    def kept(part: str, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        path = folder / part / digest
        if not path.exists():
            written = path.with_suffix(f".{life}-{threading.get_ident()}")
            written.write_bytes(content)
            written.rename(path)
        return digest

    def note(**facts: Any) -> None:
        # One write of a short line: whole after a SIGKILL, which the page cache outlives.
        with (folder / "door.jsonl").open("ab", buffering=0) as file:
            file.write(json.dumps({"life": life, **facts}).encode() + b"\n")

    @functools.wraps(push)
    def push_noted(self: Any, messages: Iterable[Any]) -> Any:
        asked = list(messages)
        ids = push(self, asked)
        for message in asked:
            note(
                what="asked",
                id=message.metadata.message_id,
                node=message.metadata.dst_node_id,
                kind=message.metadata.message_type,
                round=request_round(message),
                arrays=kept("asked", pack(request_arrays(message))),
            )
        return ids

    @functools.wraps(answer)
    def answer_noted(self: Any, node_id: int, reply: pb.Reply) -> bool:
        outcome = reply.WhichOneof("outcome") or "nothing"
        payload = b"" if outcome in ("refused", "nothing") else getattr(reply, outcome)
        facts = {"id": reply.message_id[:200], "node": node_id}
        note(what="came", outcome=outcome, payload=kept("came", payload), **facts)
        counts = answer(self, node_id, reply)
        if counts:
            note(what="counted", outcome=outcome, payload=kept("came", payload), **facts)
        return counts

    GrpcGrid.push_messages = push_noted  # type: ignore[method-assign]
    GrpcGrid.answer = answer_noted  # type: ignore[method-assign]


class Calls:
    """The two numbers of a command that may end itself: the parent's end.

    Args:
        path: Their file, made here.
    """

    def __init__(self, path: Path) -> None:
        path.write_bytes(struct.pack("qq", 0, NEVER))
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), 16)

    @property
    def count(self) -> int:
        """Calls of the process that runs now."""
        return int(struct.unpack_from("q", self._shared, 0)[0])

    def end_at(self, call: int) -> None:
        """Set at which call it ends; `NEVER` for none."""
        struct.pack_into("q", self._shared, 8, call)

    def anew(self, end_at: int = NEVER) -> None:
        """Before another process starts."""
        struct.pack_into("qq", self._shared, 0, 0, end_at)


def count_calls(path: Path, command: str) -> None:
    """Count the project's calls in all threads, from the first that has to do with the network."""
    with path.open("r+b") as file:
        shared = mmap.mmap(file.fileno(), 16)
    calls = itertools.count(1)

    def watch(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and (frame.f_globals.get("__name__") or "").startswith(OURS):
            number = next(calls)
            struct.pack_into("q", shared, 0, number)
            if 0 <= struct.unpack_from("q", shared, 8)[0] <= number:
                where = f"{frame.f_globals['__name__']}.{frame.f_code.co_name}"
                os.write(2, f"ends itself at call {number}: {where}\n".encode())
                os.kill(os.getpid(), signal.SIGKILL)

    def watched(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def begin(*arguments: Any, **named: Any) -> Any:
            threading.setprofile(watch)
            sys.setprofile(watch)
            return method(*arguments, **named)

        return begin

    if command == "flower-server":
        from credit_server.service import Service

        Service.__init__ = watched(Service.__init__)  # type: ignore[method-assign]
    else:
        from credit_client.link import Link

        Link.work = watched(Link.work)  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main())
