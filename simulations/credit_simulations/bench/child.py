"""One arm of a benchmark in a process of its own, and its end together with all that it started."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

from credit_common.errors import CreditError

WITHIN = 900
"""Seconds that one run of one arm may take."""


def run_child(
    arm: str,
    code: str,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run code in this interpreter, with one thread, and return what it prints.

    Args:
        arm: What runs, for errors.
        code: Of this project.
        arguments: Its command line.
        environment: Variables beside this process's own.

    Raises:
        CreditError: Naming the arm, if it fails, with the end of what it said, or if it takes more
            than `WITHIN` seconds.
    """
    with subprocess.Popen(  # noqa: S603  this interpreter, and code of this project
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # what it starts is in its group
    ) as process:
        try:
            said, complained = process.communicate(timeout=WITHIN)
        except BaseException as error:  # an interrupt too: it does not reach another session
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise CreditError(f"{arm} took more than {WITHIN} s") from None
            raise
    if process.returncode != 0:
        raise CreditError(f"{arm} failed: {complained[-500:]}")
    return said
