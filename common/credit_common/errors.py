"""The error tree of the project.

    CreditError               anything this project refuses, in one clear sentence
    |-- ContractError         the federation file is wrong: names table, key, value and bound
    |-- ShardError            a holder's file cannot be used at all (single bad rows are rejects)
    |-- FetchError            a pinned package file could not be had, or its digest differs
    |-- CacheError            a cache of personal data is damaged, in use, or has no room
    |-- BackboneError         BERT weights missing, of another digest, or not in safetensors
    |-- PrivacyError          a mechanism without noise where noise is required, or an invalid plan
    |   |-- BudgetError       the ledger refuses: the next release would pass the budget
    |   `-- LedgerBusyError   the ledger is held by another process
    |-- WireError             a message that does not follow the schema
    |-- TrustError            a certificate, bundle, digest or name that is not the agreed one
    `-- LinkError             the other side cannot be reached or will not talk to this one

Messages never contain a user's data: they name files, columns, fields, counts and bounds. A value
is quoted only where it comes from a public file (the contract, a mapping, the command line).
"""


class CreditError(Exception):
    """Root of all errors raised on purpose by this project."""


class ContractError(CreditError):
    """A federation file that cannot be accepted."""


class ShardError(CreditError):
    """A holder's file that cannot be read as the contract says."""


class FetchError(CreditError):
    """A pinned file that could not be fetched or verified."""


class CacheError(CreditError):
    """A cache of the frozen layers' output that cannot be made, read or removed."""


class BackboneError(CreditError):
    """BERT weights that cannot be used."""


class PrivacyError(CreditError):
    """A request that would break the privacy claim."""


class BudgetError(PrivacyError):
    """A release that the ledger refuses because the budget would be passed."""


class LedgerBusyError(PrivacyError):
    """A ledger that another process holds."""


class WireError(CreditError):
    """A message that does not follow the schema.

    Attributes:
        reason: Code under which the coordinator counts it (see `credit_server.quarantine`).
    """

    def __init__(self, message: str, *, reason: str = "schema") -> None:
        super().__init__(message)
        self.reason = reason


class TrustError(CreditError):
    """An identity or agreement that cannot be relied on.

    Attributes:
        outdated: Whether a newer certificate of the same holder would mend it.
    """

    def __init__(self, message: str, *, outdated: bool = False) -> None:
        super().__init__(message)
        self.outdated = outdated


class LinkError(CreditError):
    """A connection that cannot be made or was refused.

    Attributes:
        final: Whether another attempt cannot mend it.
    """

    def __init__(self, message: str, *, final: bool = True) -> None:
        super().__init__(message)
        self.final = final
