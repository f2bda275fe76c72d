"""Backup and restoring of a ledger, and what a person signs for when entries are lost.

A ledger that is missing, or behind its witness or the head that the coordinator keeps, counts as
exhausted: nothing is released any more. A restored backup mends that if it is the newest copy. Else
a person can sign, with the holder's key, that the loss is known and training may go on; the ledger
keeps that word for ever, and every report shows it.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from credit_client.chain import Entry, canonical
from credit_client.identity import Identity
from credit_client.ledger import Ledger
from credit_common.certificates import is_signed, load_key, public_hex, sign
from credit_common.errors import LedgerBusyError, PrivacyError

LONGEST_REASON = 500


def backup(identity: Identity, path: Path) -> int:
    """Copy the ledger, replies included; an older copy of it may be replaced.

    Args:
        identity: Whose ledger.
        path: Where to, readable by its owner alone.

    Returns:
        The ledger's counter.

    Raises:
        PrivacyError: If the ledger is not whole or is in use, or `path` is another file.
    """
    with Ledger.open(identity.ledger_path, identity.witness) as ledger:
        if path.exists():
            with Ledger.open(path) as before:
                _check_continues(ledger, before, str(path))
        _put(ledger, path)
        return ledger.balance.counter


def restore(identity: Identity, path: Path) -> int:
    """Put a backup in the place of a ledger that is missing, damaged or older.

    A damaged ledger is kept beside it. Whether the backup is new enough is for the witness and the
    coordinator to say when the ledger is next opened.

    Args:
        identity: Whose ledger.
        path: The backup.

    Returns:
        The backup's counter.

    Raises:
        LedgerBusyError: If a client of this holder runs, perhaps on another copy of the home.
        PrivacyError: If the backup is not a whole ledger, or the one that is there is newer, or is
            another one.
    """
    own = identity.ledger_path
    if not path.is_file():
        raise PrivacyError(f"there is no file {path}")
    with identity.witness.hold(), Ledger.open(path) as saved:
        counter = saved.balance.counter
        if own.exists():
            try:
                with Ledger.open(own) as present:
                    _check_continues(saved, present, str(own))
            except LedgerBusyError:
                raise
            except PrivacyError as error:
                if isinstance(error, _AheadError):
                    raise
                own.replace(_free(own.with_name(own.name + ".damaged")))
        _put(saved, own)
    return counter


def override(identity: Identity, reason: str, counter: int = 0) -> Entry:
    """Sign for entries that are lost, so that the holder may release again.

    A ledger that is missing is made anew, without the entries that it had.

    Args:
        identity: Whose ledger.
        reason: Why they are lost, in the person's words; reports show it.
        counter: What the coordinator's head says, where that is the highest that is known.

    Raises:
        LedgerBusyError: If a client of this holder runs, perhaps on another copy of the home.
        PrivacyError: If nothing is lost, if the ledger is damaged, or if there is no reason.
    """
    if not 1 <= len(reason.strip()) <= LONGEST_REASON:
        raise PrivacyError(f"a reason must have 1 to {LONGEST_REASON} characters")
    with identity.witness.hold():
        return _sign_for_loss(identity, reason.strip(), counter)


def is_signed_override(event: str, previous: str) -> bool:
    """Whether an override entry's words are signed, and for this place in the chain."""
    words = json.loads(event)
    signature = words.pop("signature", "")
    signed = is_signed(canonical(words).encode(), signature, words.get("public_key", ""))
    return signed and words.get("previous") == previous


def _sign_for_loss(identity: Identity, reason: str, counter: int) -> Entry:
    path, witness = identity.ledger_path, identity.witness
    missing, seen = not path.exists(), witness.mark()
    with Ledger.create(path) if missing else Ledger.open(path) as ledger:
        balance = ledger.balance
        known = max(counter, balance.counter, seen.counter if seen else 0)
        whole = seen is None or balance.hash_at(seen.counter) in (None, seen.hash)
        if not missing and whole and known == balance.counter:
            raise PrivacyError(f"{path} is whole as far as is known: nothing to sign for")
        words: dict[str, Any] = {
            "counter": known,
            "holder": identity.subject.name,
            "overrides": max(balance.signed, seen.overrides if seen else 0) + 1,
            "previous": ledger.head[1],
            "reason": reason,
        }
        key = load_key(identity.key_pem, str(identity.key_path))
        words["public_key"] = public_hex(key.public_key())
        words["signature"] = sign(key, canonical(words).encode())
        entry = ledger.override(canonical(words), known)
        witness.note(ledger.balance.counter, ledger.head[1], ledger.balance.signed)
    return entry


class _AheadError(PrivacyError):
    """The ledger that would be replaced has entries of its own."""


def _put(ledger: Ledger, path: Path) -> None:
    """A copy of a ledger in the place of whatever is there, whole or not at all."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        fresh.unlink(missing_ok=True)
        ledger.copy_to(fresh)
        fresh.replace(path)
    except OSError as error:
        raise PrivacyError(f"cannot write {path}: {error.strerror}") from None
    finally:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)


def _check_continues(newer: Ledger, older: Ledger, where: str) -> None:
    counter, digest = older.balance.counter, older.head[1]
    if newer.balance.hash_at(counter) != digest:
        raise _AheadError(
            f"{where} has {counter} entries that the other ledger, with "
            f"{newer.balance.counter}, does not continue: it is left as it is"
        )


def _free(path: Path) -> Path:
    number = 1
    while os.path.lexists(path):
        path = path.with_name(f"{path.name.split('~')[0]}~{number}")
        number += 1
    return path
