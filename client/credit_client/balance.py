"""What a ledger's entries add up to: events by account, ε, and what is known to be lost.

Users of the train and hold-out accounts are disjoint as long as one salt, one hold-out fraction and
one column of user ids have split them since the first charge; then the holder's ε is the larger of
the two accounts'. Otherwise a user may be in both, and both accounts' events compose.

A ledger's counter is the number of entries that it has ever had. It is larger than the number of
entries that are there only where some were lost and a person signed for that (an override entry);
what those spent is not known.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, get_args

from credit_client.chain import GENESIS, Entry, canonical, digest
from credit_common.accountant import epsilon, epsilon_replace_one
from credit_common.errors import PrivacyError
from credit_common.events import Event, event_from_json

Account = Literal["train", "holdout"]
ACCOUNTS: tuple[Account, ...] = get_args(Account)
History = list[Event | None]
"""What one account spends; None is a release without noise."""


class Balance:
    """Counts entries in their order.

    Args:
        entries: Those that are there already.
        durable: Whether each charge must have noise, as in a ledger's file.

    Raises:
        PrivacyError: If an entry is of an unknown account, or has no noise where it must.
    """

    def __init__(self, entries: Iterable[Entry] = (), *, durable: bool = True) -> None:
        self._durable = durable
        self._spent: dict[str, History] = {account: [] for account in ACCOUNTS}
        self._splits: list[str] = []
        self._charged_unsplit = False
        self._lost = 0
        self._hashes: dict[int, str] = {0: GENESIS}
        self._entries = 0
        self._signed = 0
        self.overrides: list[Entry] = []
        self.open_runs: list[Entry] = []
        for entry in entries:
            self.count(entry)

    def count(self, entry: Entry) -> None:
        """Add the next entry."""
        self._entries = entry.sequence
        if entry.account == "override":
            words = json.loads(entry.event)
            known = words["counter"]
            self._signed = max(self._signed + 1, words.get("overrides", 0))
            self._lost += max(known - (self._lost + entry.sequence - 1), 0)
            self.overrides.append(entry)
        elif entry.account == "open":  # a run without privacy: anybody may have been in it
            self.open_runs.append(entry)
            for spent in self._spent.values():
                spent.append(None)
        elif entry.account == "split":
            self._splits.append(entry.event)
        elif entry.account in ACCOUNTS:
            plain = json.loads(entry.event)
            if plain is None and self._durable:
                raise PrivacyError(f"entry {entry.sequence} has no noise")
            self._spent[entry.account].append(None if plain is None else event_from_json(plain))
            self._charged_unsplit |= not self._splits
        else:
            raise PrivacyError(f"entry {entry.sequence} has an unknown account")
        self._hashes[self.counter] = entry.hash

    @property
    def counter(self) -> int:
        """How many entries there have ever been, lost ones included."""
        return self._lost + self._entries

    @property
    def lost(self) -> int:
        """How many entries are known to be lost, at least."""
        return self._lost

    @property
    def signed(self) -> int:
        """How often a person signed for lost entries, counting words that were lost themselves."""
        return self._signed

    @property
    def accounts_add(self) -> bool:
        """Whether a user may have been in both accounts."""
        return len(self._splits) > 1 or self._charged_unsplit

    def has_split(self, salt: str, fraction: float, user: str) -> bool:
        """Whether users were split by this salt, hold-out fraction and user column before."""
        return split_text(salt, fraction, user) in self._splits

    def would_add(self, salt: str, fraction: float, user: str) -> bool:
        """Whether a user may be in both accounts once this split is used."""
        charged = any(self._spent.values())
        new = bool(self._splits or charged) and not self.has_split(salt, fraction, user)
        return self.accounts_add or new

    def hash_at(self, counter: int) -> str | None:
        """Hash of the entry that made the counter this; None where it was lost or is to come."""
        return self._hashes.get(counter)

    def history(self, account: str) -> History:
        """The account's own events.

        Raises:
            PrivacyError: If there is no such account.
        """
        if account not in ACCOUNTS:
            raise PrivacyError(f"account {account!r}: must be one of {', '.join(ACCOUNTS)}")
        return list(self._spent[account])

    def composed(self, account: str) -> History:
        """All that a user of the account may have taken part in."""
        own = self.history(account)
        return [e for spent in self._spent.values() for e in spent] if self.accounts_add else own

    def epsilon(self, delta: float, holders: int = 1) -> float:
        """ε of any user, under add/remove of that user.

        Args:
            delta: δ of it.
            holders: How many holders the user is shared by, all with these same entries. At each
                of them the user may be on another side of the split.
        """
        train, holdout = self._spent["train"], self._spent["holdout"]
        if self.accounts_add:
            return epsilon_of([*train, *holdout] * holders, delta)
        return max(
            epsilon_of([*train * times, *holdout * (holders - times)], delta)
            for times in range(holders + 1)
        )

    def epsilon_replace_one(self, delta: float) -> float:
        """ε under a change of one user for another, who may be on the other side of the split."""
        train, holdout = self._spent["train"], self._spent["holdout"]
        groups = [[*train, *holdout]] if self.accounts_add else [train, holdout]
        return max(
            epsilon_of([*train, *holdout], delta),
            *(epsilon_of(group, delta, epsilon_replace_one) for group in groups),
        )


def split_text(salt: str, fraction: float, user: str) -> str:
    """The split's entry: a user's side goes by all three. Of the texts their SHA-256 is kept."""
    plain = {"salt_sha256": digest(salt.encode()), "user_sha256": digest(user.encode())}
    return canonical({"holdout": float(fraction), **plain})


def epsilon_of(
    history: Sequence[Event | None],
    delta: float,
    accountant: Callable[[list[Event], float], float] = epsilon,
) -> float:
    """ε of a history; infinite where a release had no noise."""
    given = [event for event in history if event is not None]
    return accountant(given, delta) if len(given) == len(history) else math.inf
