"""Who is asked, which answers count, and whether they are enough to go on."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Set

from flwr.app import Message
from flwr.serverapp import Grid

from credit_common.contract import Contract
from credit_common.errors import CreditError, WireError
from credit_server.own_grid import OwnGrid
from credit_server.quarantine import Quarantine, reason_of

log = logging.getLogger(__name__)


class TooFewError(CreditError):
    """A request has fewer answers than the contract's minimum.

    Attributes:
        heard: Nodes that answered at all, whatever their answers were worth.
    """

    def __init__(self, message: str, heard: Set[int]) -> None:
        super().__init__(message)
        self.heard = frozenset(heard)


def asked_nodes(contract: Contract, grid: Grid) -> list[int]:
    """Who is asked, by node id: whoever is there, and on Flower's own grids once they are enough.

    Ours are handed over with their holders; Flower's simulation registers its nodes beside the
    ServerApp. They are given `grace_seconds`.
    """
    until = time.monotonic() + contract.federation.grace_seconds
    there = sorted(grid.get_node_ids())
    if not isinstance(grid, OwnGrid):
        while len(there) < contract.federation.min_holders and time.monotonic() < until:
            time.sleep(0.1)
            there = sorted(grid.get_node_ids())
    return there


def taken(
    contract: Contract,
    quarantine: Quarantine,
    asked: tuple[str, str],
    replies: Iterable[Message],
    take: Callable[[Message], None],
) -> tuple[int, int]:
    """Take replies one by one; returns how many count and how many holders were set aside.

    A holder that refuses is not set aside: it did not lie.

    Args:
        contract: Says how many must answer, and how many of them may be liars.
        quarantine: Counts the replies that do not count.
        asked: The round, and what its holders were asked for, in an error's words.
        replies: As they arrive.
        take: Called with each reply that has no error; may raise WireError.

    Raises:
        TooFewError: If too few count.
    """
    received = valid = 0
    seen: set[int] = set()
    why: dict[int, str] = {}
    for reply in replies:
        received += 1
        node = reply.metadata.src_node_id
        if node in seen:
            received -= 1  # of holders
            quarantine.note(node, "duplicate")
            continue
        seen.add(node)
        if reply.has_error():
            why[node] = reason_of(reply)
            continue
        try:
            take(reply)
            valid += 1
        except WireError as error:
            why[node] = error.reason
            log.warning("the answer of %s is not used: %s", quarantine.name(node), error)
    for node, reason in why.items():
        quarantine.note(node, reason)
    aside = sum(reason != "refused" for reason in why.values())
    minimum = contract.federation.min_holders
    if valid < minimum - min(aside, contract.training.byzantine):
        named = {quarantine.name(node): reason for node, reason in why.items()}
        raise TooFewError(
            f"{asked[0]}: {valid} of {received} holders answered the {asked[1]} request, the "
            f"contract needs {minimum}{_told(named)}",
            seen,
        )
    return valid, aside


def _told(why: Mapping[str, str]) -> str:
    """Who did not count and why, behind an error."""
    refused = sum(reason == "refused" for reason in why.values())
    aside = [f"{name} ({reason})" for name, reason in why.items() if reason != "refused"]
    told = f"; {refused} refused (their own logs say why, for example a budget that is used up)"
    return (told if refused else "") + (f"; set aside: {', '.join(sorted(aside))}" if aside else "")
