"""The signed head of a holder's ledger: what a coordinator keeps so that a roll-back shows.

A head says how many entries the ledger has had and, blinded, which one is the last. Blinding is an
HMAC under a key that the holder alone has, so that the coordinator learns nothing of the entries
and the holder can still tell its own chain from another one. The holder is shown its newest head
when it connects; one that is shown a head past its own ledger refuses to go on.

In the last round the head also says what the ledger has spent in all: the holder's own claim, which
the release carries. None of it is computed from data: a ledger is charged by the contract's public
figures.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from credit_common.certificates import SERVER_NODE, is_signed, public_hex, sign
from credit_common.errors import TrustError
from credit_common.events import finite


@dataclass(frozen=True, kw_only=True)
class Head:
    """A holder's signed word about its ledger.

    Attributes:
        node_id: Whose ledger.
        contract_digest: The contract under which the holder takes part.
        counter: Entries that the ledger has had, lost ones included.
        blinded_hash: HMAC-SHA256 of the last entry's hash, in hex.
        overrides: How often a person signed that a lost ledger may go on.
        delta: δ of the two below.
        epsilon: ε of any user, add/remove, by all entries; None before the last round.
        epsilon_replace_one: The same under a change of one user; None where it is beyond 100, too.
        public_key: The holder's (see `certificates.public_hex`).
        signature: Over all fields above (see `certificates.sign`).

    Raises:
        TrustError: If a field is out of its bounds.
    """

    node_id: int
    contract_digest: str
    counter: int
    blinded_hash: str
    overrides: int
    delta: float
    epsilon: float | None
    epsilon_replace_one: float | None
    public_key: str
    signature: str = ""

    def __post_init__(self) -> None:
        _require(_count(self.node_id, SERVER_NODE + 1), "node_id", "a holder's")
        _require(_count(self.counter, 0), "counter", "an integer of at least 0")
        _require(_count(self.overrides, 0), "overrides", "an integer of at least 0")
        _require(finite(self.delta) and 0 < self.delta < 1, "delta", "inside (0, 1)")
        for name in ("epsilon", "epsilon_replace_one"):
            value = getattr(self, name)
            _require(value is None or (finite(value) and value >= 0), name, "at least 0")
        for name, length in (("contract_digest", 64), ("blinded_hash", 64), ("public_key", 182)):
            ok = re.fullmatch(f"[0-9a-f]{{{length}}}", getattr(self, name))
            _require(ok is not None, name, f"{length} hex digits")
        _require(re.fullmatch("[0-9a-f]{0,144}", self.signature) is not None, "signature", "hex")

    @property
    def statement(self) -> bytes:
        """What is signed: all fields but the signature, as canonical JSON."""
        plain = {name: value for name, value in vars(self).items() if name != "signature"}
        return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()


def sign_head(key: ec.EllipticCurvePrivateKey, **fields: Any) -> Head:
    """The head with these fields, signed with the holder's key."""
    head = Head(public_key=public_hex(key.public_key()), **fields)
    return dataclasses.replace(head, signature=sign(key, head.statement))


def check_head(head: Head) -> None:
    """Hold a head against its own signature.

    Raises:
        TrustError: If somebody else signed it, or it was changed.
    """
    if not is_signed(head.statement, head.signature, head.public_key):
        raise TrustError(f"the head of node {head.node_id}'s ledger is not signed by its key")


def head_to_json(head: Head) -> dict[str, Any]:
    """Plain JSON form of a head."""
    return dict(vars(head))


def head_from_json(plain: object) -> Head:
    """The head of a JSON form, its signature checked.

    Raises:
        TrustError: If a key is missing, unknown or out of its bounds, or the signature is wrong.
    """
    names = set(Head.__dataclass_fields__)
    if not isinstance(plain, Mapping) or set(plain) != names:
        raise TrustError(f"a ledger's head must be a table of {', '.join(sorted(names))}")
    try:
        head = Head(**plain)
    except TypeError:
        raise TrustError("a ledger's head has a field of another type") from None
    check_head(head)
    return head


def _count(value: object, least: int) -> bool:
    return type(value) is int and least <= value < 2**63


def _require(ok: bool, name: str, bound: str) -> None:
    if not ok:
        raise TrustError(f"head.{name}: must be {bound}")
