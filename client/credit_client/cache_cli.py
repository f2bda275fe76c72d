"""The cache on the command line: its options, its size before anything is read, and `forget`.

    credit-client --cache memory|file --cache-limit SIZE    where it is kept, and how much of it
    credit-client forget                                    delete what a killed client left

torch is not loaded.
"""

import argparse
import contextlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

from credit_client.cache import Cache, remove_left_over
from credit_common.command import FORMATS, add_home, home_of
from credit_common.errors import CacheError, LedgerBusyError, PrivacyError
from credit_common.sections import Model

LIMIT, LARGEST = 4 << 30, 1 << 50
_UNITS = {"": 1, "B": 1} | {
    f"{letter}{mark}": base**power
    for power, letter in enumerate("KMGT", start=1)
    for mark, base in (("iB", 1024), ("B", 1000))
}


def add_cache_options(parser: argparse.ArgumentParser) -> None:
    """Add `--cache` and `--cache-limit`; see `cache_of`."""
    parser.add_argument(
        "--cache",
        default="memory",
        choices=("memory", "file"),
        help="keep what BERT's frozen layers make of the texts in memory, or in an encrypted file "
        "in the holder's own folder (memory)",
    )
    parser.add_argument(
        "--cache-limit",
        type=parse_size,
        default=LIMIT,
        metavar="SIZE",
        help="keep at most so much of it, as 500MiB, 2GiB or 0, and compute the rest anew at each "
        "use: slower, the same numbers (4GiB)",
    )


def parse_size(text: str) -> int:
    """Bytes of a size such as 500MiB, 1.5GB or 0.

    Raises:
        ArgumentTypeError: If it is not one, or above 1024 TiB.
    """
    found = re.fullmatch(r"(\d{1,16}(?:\.\d{1,9})?) ?([A-Za-z]{0,3})", text.strip(), re.ASCII)
    unit = found and {name.lower(): n for name, n in _UNITS.items()}.get(found[2].lower())
    size = int(float(found[1]) * unit) if found and unit else None
    if size is None or size > LARGEST:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be a size between 0 and 1024TiB, such as 500MiB or 2GiB"
        )
    return size


def cache_of(options: argparse.Namespace, home: Path) -> Cache:
    """The settings that the options name."""
    return Cache(kind=options.cache, folder=home, limit=options.cache_limit)


def foretold(cache: Cache, model: Model, users: int) -> dict[str, Any]:
    """How large the cache of so many users will be at most, and where it is kept.

    Keys: kind, folder (None in memory), users, most_bytes (None where the backbone's width is not
    known), limit, free_bytes (of the folder's disk; None in memory).
    """
    from credit_common.backbone import width_of

    width = width_of(model) if model.reads_text else 0
    tokens = model.tokens if "lora" in model.train else 1
    folder = cache.folder if cache.kind == "file" else None
    return {
        "kind": cache.kind,
        "folder": None if folder is None else str(folder),
        "users": users,
        "most_bytes": None if width is None else users * cache.row_bytes(width * tokens),
        "limit": cache.limit,
        "free_bytes": None if folder is None else shutil.disk_usage(folder).free,
    }


def show_foretold(found: dict[str, Any]) -> None:
    """Print what `foretold` found, as a part of the page of `--check`."""
    most, limit, free = found["most_bytes"], found["limit"], found["free_bytes"]
    print("\nWHAT IS KEPT OF BERT'S WORK  (it never leaves; gone when the client ends)")
    if most == 0:
        print("  size: none, since no text is read")
        return
    size = "not known without the backbone's configuration"
    if most is not None:
        size = f"at most {most:,} bytes, if each of {found['users']:,} texts were the longest"
    print(f"  size: {size}")
    if limit is not None:
        enough = most is not None and most <= limit
        past = "enough" if enough else "what does not fit is computed anew at each use: slower"
        print(f"  limit: {limit:,} bytes; {past}")
    where = f"an encrypted file in {found['folder']}" if free is not None else "memory"
    print("  where: " + "".join(c if c.isprintable() else "?" for c in where))
    needed = min(n for n in (most, limit, 1 << 62) if n is not None)
    if free is not None and most is not None and free < needed:
        print(f"  disk: {free:,} bytes are free; give a lower --cache-limit")


def add_forget(commands: Any, home: str) -> None:
    """Add `forget` to the parser's commands; `home` says whose folder it is."""
    forget = commands.add_parser(
        "forget", help="delete what a killed client left of the frozen layers' output"
    )
    forget.add_argument("--format", choices=FORMATS, default=argparse.SUPPRESS)
    forget.set_defaults(command=_forget)
    add_home(forget, home)


def _forget(options: argparse.Namespace) -> int:
    from credit_client.chain import open_file

    home = home_of(options)
    if not home.is_dir():
        raise CacheError(f"{home} is not a folder")
    with contextlib.ExitStack() as held:  # so that no client starts in the meantime
        for path in sorted(home.glob("*.ledger")):
            try:
                held.callback(open_file(path).close)
            except LedgerBusyError:
                raise
            except PrivacyError:
                pass  # whatever is wrong with a ledger does not keep data from being deleted
        files, size = remove_left_over(home, refuse_held=True)
    if options.format == "json":
        print(json.dumps({"files": files, "bytes": size}))
    elif files:
        print(f"removed {files} cache{'s' if files > 1 else ''}, {size:,} bytes, from {home}")
    else:
        print(f"nothing to forget in {home}")
    return 0
