"""What the command lines share: one line for an error, exit codes, logging, interruption.

Exit codes: 0 done, 1 refused with one line that says why, 2 wrong usage, 130 interrupted.
"""

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from credit_common.certificates import same_fingerprint
from credit_common.errors import CreditError, TrustError

REFUSED, INTERRUPTED = 1, 130
DEVICES, FORMATS = ("auto", "cpu", "cuda", "mps"), ("table", "json")


def run_command(prog: str, options: argparse.Namespace) -> int:
    """Call `options.command(options)`; returns the exit code.

    An error of the project's own becomes one line on stderr. SIGTERM ends a command as Ctrl-C does.
    """
    before, done = signal.getsignal(signal.SIGTERM), threading.Event()
    try:
        signal.signal(signal.SIGTERM, _interrupt)
        if getattr(options, "until_stdin_closes", False):
            threading.Thread(target=_watch_stdin, args=(done,), daemon=True).start()
        code: int = options.command(options)
    except CreditError as error:
        print(f"{prog}: {error}", file=sys.stderr)  # noqa: T201  # a command's own words
        return REFUSED
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    finally:
        done.set()
        signal.signal(signal.SIGTERM, before)
    return code


def add_daemon_options(parser: argparse.ArgumentParser) -> None:
    """Options of a command that runs until its federation is done."""
    parser.add_argument("--device", default="auto", choices=DEVICES)
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of torch")
    parser.add_argument(
        "--allow-no-privacy",
        action="store_true",
        help="accept a contract without privacy.epsilon",
    )
    parser.add_argument(
        "--until-stdin-closes",
        action="store_true",
        help="end when standard input is closed, so that a parent's death ends this too",
    )


def add_home(parser: argparse.ArgumentParser, whose: str) -> None:
    """`--home DIR`, before or after the name of a command; see `home_of`."""
    parser.add_argument("--home", type=Path, default=argparse.SUPPRESS, metavar="DIR", help=whose)


def home_of(options: argparse.Namespace) -> Path:
    """The folder of `--home`, or the one where the command stands."""
    home: Path = getattr(options, "home", Path())
    return home


def log_to_stderr() -> None:
    """Show what the project's own modules log, with the time in UTC."""
    handler = logging.StreamHandler()
    form = logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    form.converter = time.gmtime
    handler.setFormatter(form)
    for package in ("credit_common", "credit_client", "credit_server"):
        logger = logging.getLogger(package)
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        logger.propagate = False  # a library that configures the root would say it twice


def confirm_fingerprint(what: str, expected: str, typed: str | None, other: str) -> None:
    """Have a person compare a fingerprint with the one that the other side reads out.

    Args:
        what: What it is the fingerprint of.
        expected: The one computed here.
        typed: What was given on the command line; None asks at the terminal.
        other: Who reads it out.

    Raises:
        TrustError: If it differs, or is not confirmed, or nobody is there to ask.
    """
    # A fingerprint that was shown could be typed back without asking anybody.
    if typed is not None:
        if not same_fingerprint(typed, expected):
            raise TrustError(f"--fingerprint is not that of {what}; nothing was changed")
        return
    if sys.stdin is None or not sys.stdin.isatty():  # None where it was closed from the start
        raise TrustError(f"give --fingerprint: that of {what}, as {other} reads it out")
    print(f"fingerprint of {what}:\n\n    {expected}\n", file=sys.stderr)  # noqa: T201
    # Asked on stderr, as `input` would ask on stdout, where results go.
    print(f"Does {other} read out the same? [y/N] ", end="", file=sys.stderr, flush=True)  # noqa: T201
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise TrustError(f"the fingerprint of {what} was not confirmed; nothing was changed")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _watch_stdin(done: threading.Event) -> None:
    # A thread inside sys.stdin.read() would hold a lock without which the interpreter aborts at
    # its end; standard input is None where it was closed from the start.
    with contextlib.suppress(OSError):
        while sys.stdin is not None and os.read(sys.stdin.fileno(), 4096):
            pass
    if not done.is_set():
        os.kill(os.getpid(), signal.SIGTERM)
