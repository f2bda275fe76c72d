"""The newest ledger head of each holder: heads.json in the coordinator's folder.

A holder is shown its own head when it connects, so that one whose ledger was rolled back notices;
a holder that shows an older head than it did before is turned away here. The coordinator cannot
make a head, and what it could hide is a roll-back that the holder's own witness sees too.
"""

import json
import threading
from pathlib import Path

from credit_common.bundle import read_object
from credit_common.errors import CreditError, TrustError
from credit_common.fetch import write_atomically
from credit_common.heads import Head, head_from_json, head_to_json

FILE = "heads.json"


class Heads:
    """What holders signed, by node id; safe to use from several threads.

    Args:
        folder: The coordinator's folder.

    Raises:
        CreditError: If heads.json is there and is not one of ours.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._newest: dict[int, Head] = {}
        self._lock = threading.Lock()
        if self._path.exists():
            for node, plain in read_object(self._path).items():
                head = head_from_json(plain)
                if node != str(head.node_id):
                    raise TrustError(f"{self._path}: the head under {node} is another node's")
                self._newest[head.node_id] = head

    def newest(self, node_id: int) -> Head | None:
        """The newest head of a holder, or None."""
        return self._newest.get(node_id)

    def under(self, contract_digest: str) -> tuple[Head, ...]:
        """The newest heads that say what was spent under a contract, or that it is unknown."""
        heads = (self._newest[node] for node in sorted(self._newest))
        return tuple(
            h
            for h in heads
            if h.contract_digest == contract_digest and (h.epsilon is not None or h.overrides)
        )

    def take(self, head: Head, node_id: int, public_key: str) -> None:
        """Keep a head that a holder sent; it is on the disk when this returns.

        Args:
            head: As it came, its signature checked.
            node_id: Whose connection it came over.
            public_key: Of the certificate of that connection.

        Raises:
            TrustError: If it is another holder's, or the ledger went back or changed.
        """
        if head.node_id != node_id or head.public_key != public_key:
            raise TrustError("the head of the ledger is not this holder's")
        with self._lock:  # of a caller that was cancelled the write goes on
            self._take(head)

    def _take(self, head: Head) -> None:
        before = self._newest.get(head.node_id)
        if before is not None:
            if head.counter < before.counter:
                raise TrustError(
                    f"the ledger went back: this holder signed {before.counter} entries before, "
                    f"and {head.counter} now"
                )
            same_key = head.public_key == before.public_key
            other = head.blinded_hash != before.blinded_hash
            if same_key and head.counter == before.counter and other:
                raise TrustError(f"the ledger is another one: its entry {head.counter} changed")
            if head == before or (head.counter == before.counter and head.epsilon is None):
                return
        self._newest[head.node_id] = head
        plain = {str(node): head_to_json(h) for node, h in sorted(self._newest.items())}
        try:
            write_atomically(self._path, json.dumps(plain, indent=1).encode())
        except OSError as error:
            raise CreditError(f"cannot write {self._path}: {error.strerror}") from None
