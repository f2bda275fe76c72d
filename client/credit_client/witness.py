"""The ledger's witness on this machine: the newest head, remembered outside the holder's folder.

A ledger cannot show by itself that its end was cut off or that an older copy of it was put back, as
happens when a folder is restored from a backup. The witness can. It lies in the user's state folder
($XDG_STATE_HOME, else ~/.local/state), not in the holder's home, so that restoring the one does not
bring back the other. It is written after the ledger: a crash in between leaves it behind by one
entry, which is no contradiction; a witness that is ahead is.

Two copies of a home have a ledger each, and one witness: an open ledger holds a lock beside it, so
that the two cannot spend at the same time, unseen by each other.
"""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from credit_common.errors import CreditError, LedgerBusyError, PrivacyError
from credit_common.fetch import write_atomically
from credit_common.lock import hold

LASTS = "set XDG_STATE_HOME to the absolute path of a folder that lasts"


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A head that was seen.

    Attributes:
        counter: Of the ledger.
        hash: Of the entry that it then had.
        overrides: How often a person had signed for lost entries.
    """

    counter: int
    hash: str
    overrides: int = 0


def state_folder() -> Path:
    """Where witnesses lie: credit-federation/witness in the user's state folder.

    A relative $XDG_STATE_HOME is ignored, as its specification says: there would be a witness for
    each folder that the client is started in.
    """
    base = Path(os.environ.get("XDG_STATE_HOME", ""))
    root = base if base.is_absolute() else Path.home() / ".local" / "state"
    return root / "credit-federation" / "witness"


class Witness:
    """Remembers the newest head of one holder's ledger.

    Args:
        path: Its file, which need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: Mark | None = None

    def hold(self) -> BinaryIO:
        """Keep all other clients of this holder out, until what is returned is closed.

        Raises:
            LedgerBusyError: If one is at work, perhaps on another copy of the home.
            PrivacyError: If the lock's file cannot be written or locked.
        """
        busy = LedgerBusyError(
            f"the ledger's witness {self.path} is in use by another client: a holder runs one at a "
            "time, whatever copies of its folder there are"
        )
        self._make_folder()
        try:
            return hold(self.path.with_name(f"{self.path.name}.lock"), busy)
        except LedgerBusyError:
            raise
        except CreditError as error:
            raise PrivacyError(f"{error}; {LASTS}") from None

    def mark(self) -> Mark | None:
        """What is remembered now; None where nothing is.

        Raises:
            PrivacyError: If the file is there and cannot be read or is damaged.
        """
        self._seen = self._read()
        return self._seen

    def _read(self) -> Mark | None:
        try:
            plain = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            raise PrivacyError(f"the ledger's witness {self.path} cannot be read") from None
        try:
            counter, digest, signed = plain["counter"], plain["hash"], plain["overrides"]
            counts = all(type(count) is int and count >= 0 for count in (counter, signed))
            ok = counts and re.fullmatch("[0-9a-f]{64}", digest)
        except (TypeError, KeyError):
            ok = None
        if not ok:
            raise PrivacyError(f"the ledger's witness {self.path} is damaged")
        return Mark(counter=counter, hash=digest, overrides=signed)

    def check(self, counter: int, hash_at: Callable[[int], str | None], name: str) -> None:
        """Hold a ledger against what is remembered.

        Args:
            counter: The ledger's.
            hash_at: Hash of the entry that it had at a counter; None where it had none.
            name: The ledger's, for the error.

        Raises:
            PrivacyError: If the ledger ends before the mark, or had another entry there.
        """
        seen = self.mark()
        if seen is None:
            return
        if seen.counter > counter:
            raise PrivacyError(
                f"{name} was rolled back: it ends at entry {counter}, and its witness "
                f"{self.path} remembers {seen.counter}. {EXHAUSTED}"
            )
        if hash_at(seen.counter) != seen.hash:
            raise PrivacyError(
                f"{name} is another one than its witness {self.path} remembers: entry "
                f"{seen.counter} differs. {EXHAUSTED}"
            )

    def note(self, counter: int, digest: str, overrides: int = 0) -> None:
        """Remember a newer head in the place of the mark that was last seen.

        It is on the disk when this returns.

        Raises:
            PrivacyError: If another mark is there by now, or it cannot be written.
        """
        mark = Mark(counter=counter, hash=digest, overrides=overrides)
        if mark == self._seen:
            return
        if self._read() != self._seen:  # where a file system or Windows did not keep the lock
            raise PrivacyError(
                f"the ledger's witness {self.path} was changed by another client: a holder runs "
                "one at a time, whatever copies of its folder there are"
            )
        self._make_folder()
        try:
            write_atomically(self.path, json.dumps(vars(mark)).encode())
        except OSError as error:
            raise self._unwritable(error) from None
        self._seen = mark

    def _make_folder(self) -> None:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> PrivacyError:
        said = f"cannot write the ledger's witness {self.path}: {error.strerror}; {LASTS}"
        return PrivacyError(said)


EXHAUSTED = (
    "What is lost counts as spent: restore the newest copy with `credit-client ledger restore`, or "
    "sign for the loss with `credit-client ledger override`"
)
"""What a holder whose ledger is not whole is told."""
