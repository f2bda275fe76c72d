"""Who may ask: bearer tokens from a file, or certificates of clients.

    # NAME TOKEN, one a line; the name stands in metrics and logs, the token nowhere
    till-3   8f0c...
    website  b41d...

The file must be readable by its owner alone.
"""

import hashlib
import hmac
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from credit_common.errors import TrustError
from credit_common.sections import NAME, NAME_BOUND

SHORTEST_TOKEN = 16
"""Characters of a token."""


@dataclass(frozen=True, kw_only=True)
class Token:
    """A client's name and the SHA-256 of its token, which itself is not kept."""

    name: str
    sha256: bytes = field(repr=False)


def read_tokens(path: Path) -> tuple[Token, ...]:
    """Read a file of tokens.

    Raises:
        TrustError: If it cannot be read, others can read it, or a line is wrong; names the line,
            never a token.
    """
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise TrustError(f"{path}: others can read it; chmod 600 it")
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError as error:
        raise TrustError(f"cannot read the tokens {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TrustError(f"{path}: is not ASCII text") from None
    tokens: list[Token] = []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        where = f"{path}: line {number}"
        if len(words) != 2:
            raise TrustError(f"{where}: must be a name and a token")
        name, token = words
        if not re.fullmatch(NAME, name):
            raise TrustError(f"{where}: a name must be {NAME_BOUND}")
        if len(token) < SHORTEST_TOKEN:
            raise TrustError(f"{where}: a token must have at least {SHORTEST_TOKEN} characters")
        if name in (known.name for known in tokens):
            raise TrustError(f"{where}: the name {name} stands in an earlier line too")
        tokens.append(Token(name=name, sha256=hashlib.sha256(token.encode()).digest()))
    if not tokens:
        raise TrustError(f"{path}: has no token")
    return tuple(tokens)


def name_of(tokens: Sequence[Token], authorization: bytes) -> str | None:
    """The name of who sends this header, or None; takes the same time whichever token it is."""
    scheme, _, given = authorization.partition(b" ")
    digest = hashlib.sha256(given.strip()).digest()
    found = None
    for token in tokens:
        if hmac.compare_digest(token.sha256, digest):
            found = token.name
    return found if scheme.lower() == b"bearer" else None
