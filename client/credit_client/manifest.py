"""The manifest: one line for each message that left a holder, kept in the holder's own folder.

The gate writes a line before the bytes are handed to the network. Together with the ledger it tells
the holder's people for each message what left, its size, and what it spent.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from credit_client.chain import Entry
from credit_common.errors import PrivacyError

GREETING, REFUSAL = "greeting", "refusal"
CHARGED = ("adapter", "histogram", "statistics")
"""Kinds of message that carry what was computed from data."""


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A message that left.

    Attributes:
        time: UTC, ISO 8601, seconds.
        message: greeting, adapter, histogram, statistics or refusal.
        bytes: Of the whole message, before encryption.
        message_id: The request that it answers; None for a greeting.
        round: Of that request.
        payload_sha256: Of the arrays in it, in hex; None where it has none.
    """

    time: str
    message: str
    bytes: int
    message_id: str | None = None
    round: int | None = None
    payload_sha256: str | None = None


class Manifest:
    """The file of lines; readable by its owner alone.

    Args:
        path: Made with the first line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, message: str, size: int, **facts: Any) -> None:
        """Write a line; it is on the disk when this returns.

        Raises:
            PrivacyError: If it cannot be written: nothing leaves unlisted.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = Sent(time=now, message=message, bytes=size, **facts)
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(handle, "a+b") as file:
                _cut_half_line(file)
                file.write(json.dumps(vars(line)).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise PrivacyError(f"cannot write {self.path}: {error.strerror}") from None

    def lines(self) -> list[Sent]:
        """All lines, in order; none where there is no file.

        Raises:
            PrivacyError: If the file cannot be read, or a line is not one of this version.
        """
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError):
            raise PrivacyError(f"{self.path} cannot be read") from None
        whole = text[: text.rfind("\n") + 1]  # a crash may leave half a line, whose message stayed
        return [self._line(number, line) for number, line in enumerate(whole.splitlines(), 1)]

    def _line(self, number: int, line: str) -> Sent:
        try:
            plain = json.loads(line)
            if set(plain) == set(Sent.__dataclass_fields__):
                return Sent(**plain)
        except (ValueError, TypeError):
            pass
        raise PrivacyError(f"{self.path} line {number} is damaged")


def _cut_half_line(file: BinaryIO) -> None:
    """Take away what a full disk or a crash left behind the last line; its message stayed here.

    The next line would else be written onto it, and neither could be read.
    """
    if file.seek(0, os.SEEK_END) == 0:
        return
    file.seek(-1, os.SEEK_END)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)
    os.fsync(file.fileno())


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A message that left, and the ledger's entry for it.

    Attributes:
        entry: None where it needs none, or where it was lost.
        lost: Whether the entry is among those that a person signed for as lost.
    """

    sent: Sent
    entry: Entry | None
    lost: bool = False


def listed(lines: list[Sent], entries: list[Entry]) -> Iterator[Listed]:
    """The manifest with what the ledger has for each message.

    Raises:
        PrivacyError: If something computed from data left without its charge, after the last
            override if there is one: the ledger is not the one of these messages.
    """
    charged = {entry.message_id: entry for entry in entries if entry.message_id is not None}
    signed = max((entry.time for entry in entries if entry.account == "override"), default="")
    for sent in lines:
        entry = charged.get(sent.message_id or "") if sent.message in CHARGED else None
        bare = sent.message in CHARGED and (
            entry is None or entry.reply_digest != sent.payload_sha256
        )
        if bare and sent.time > signed:  # both in UTC, ISO 8601
            raise PrivacyError(
                f"the manifest lists an answer to {sent.message_id!r} of {sent.time} that the "
                f"ledger has no charge for"
            )
        yield Listed(sent=sent, entry=None if bare else entry, lost=bare)
