"""A token bucket for each client, the same for all workers: a small file that they map together.

A client has the slot that its name's hash falls on. Two names may share a slot, and then its rate;
a slot is a name's own for all practical purposes while clients are few. Clients that have shown who
they are have one half of the slots, addresses the other: a stranger who has many to choose from can
use up no slot of a client's.
"""

import fcntl
import hashlib
import mmap
import struct
import time
from pathlib import Path

SLOTS = 4096
_SLOT = struct.Struct("dd")  # requests that are left, and when that was (monotonic seconds)


class Buckets:
    """Buckets that hold `burst` requests and fill up at `rate` a second."""

    def __init__(self, path: Path, *, rate: float, burst: int) -> None:
        self._rate, self._burst = rate, burst
        self._file = path.open("a+b")
        self._file.truncate(SLOTS * _SLOT.size)
        self._map = mmap.mmap(self._file.fileno(), SLOTS * _SLOT.size)

    def take(self, name: str, known: bool = False) -> float:
        """Take one request's worth.

        Args:
            name: Of a client that has shown it, or an address.
            known: Which of the two.

        Returns:
            0.0 where there was one, or the seconds until there is.
        """
        if self._rate == 0:
            return 0.0
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
        half = SLOTS // 2
        place = (int.from_bytes(digest, "big") % half + half * known) * _SLOT.size
        # A lock of the file, which the system takes back from a worker that dies.
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            left, before = _SLOT.unpack_from(self._map, place)
            now = time.monotonic()  # counts from the machine's start, for all processes alike
            full = float(self._burst)
            left = full if before == 0 else min(full, left + (now - before) * self._rate)
            wait = max(0.0, (1 - left) / self._rate)
            _SLOT.pack_into(self._map, place, left if wait else left - 1, now)
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)
        return wait

    def close(self) -> None:
        """Let the file go."""
        self._map.close()
        self._file.close()
