"""A holder's own heads: signed for the coordinator to keep, and looked at when it shows them."""

import hmac
import math

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from credit_client.identity import Identity
from credit_client.ledger import Ledger
from credit_client.witness import EXHAUSTED
from credit_common.certificates import load_key, public_hex
from credit_common.errors import PrivacyError
from credit_common.heads import Head, sign_head


class OwnHeads:
    """Signs the heads of one holder's open ledger.

    Args:
        identity: Whose key signs and, derived from it, blinds (HKDF, RFC 5869).
        ledger: The holder's, open.
    """

    def __init__(self, identity: Identity, ledger: Ledger) -> None:
        self._identity, self._ledger = identity, ledger
        self._key = load_key(identity.key_pem, str(identity.key_path))
        self._public = public_hex(self._key.public_key())
        scalar = self._key.private_numbers().private_value.to_bytes(32, "big")
        info = b"credit-federation: blinding of ledger heads"
        self._blind = HKDF(hashes.SHA256(), 32, salt=None, info=info).derive(scalar)

    def head(self, *, spend: bool = False) -> Head:
        """The ledger's head now.

        Args:
            spend: Whether it says what the ledger has spent, which takes about a second. Where
                entries were lost nobody knows, and it says nothing.
        """
        contract, ledger = self._identity.bundle.contract, self._ledger
        delta = contract.privacy.delta
        spend = spend and not ledger.balance.overrides
        spent = _told(ledger.epsilon_overall(delta)) if spend else None
        replaced = _told(ledger.epsilon_replace_one(delta)) if spend else None
        return sign_head(
            self._key,
            node_id=self._identity.subject.node_id,
            contract_digest=contract.digest,
            counter=ledger.balance.counter,
            blinded_hash=self._blinded(ledger.head[1]),
            overrides=ledger.balance.signed,
            delta=delta,
            epsilon=spent,
            epsilon_replace_one=replaced,
        )

    def check(self, shown: Head | None) -> None:
        """Hold the ledger against the newest head that the coordinator has of this holder.

        Args:
            shown: None where it has none yet. One that another key signed is from before the key
                was renewed: it says nothing here that could be checked.

        Raises:
            PrivacyError: If the head is past the ledger, or of another chain.
        """
        node_id = self._identity.subject.node_id
        if shown is None or shown.public_key != self._public or shown.node_id != node_id:
            return
        balance = self._ledger.balance
        if shown.counter > balance.counter:
            raise PrivacyError(
                f"the ledger was rolled back: it ends at entry {balance.counter}, and the "
                f"coordinator has a head with {shown.counter} entries that this holder signed. "
                f"{EXHAUSTED} --counter {shown.counter}"
            )
        own = balance.hash_at(shown.counter)
        if own is not None and self._blinded(own) != shown.blinded_hash:
            raise PrivacyError(
                f"the ledger is another one than the coordinator's head with {shown.counter} "
                f"entries, which this holder signed. {EXHAUSTED} --counter {shown.counter}"
            )

    def _blinded(self, entry_hash: str) -> str:
        return hmac.digest(self._blind, entry_hash.encode(), "sha256").hex()


def _told(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None
