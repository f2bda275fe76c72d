import sys
import time
from pathlib import Path

import pytest

from credit_common.errors import CreditError
from credit_simulations.bench import child
from credit_simulations.bench.child import run_child
from credit_simulations.bench.memory import peak_mib


def broken(folder: Path) -> str:
    """An interpreter that fails."""
    file = folder / "python"
    file.write_text("#!/bin/sh\necho no such thing >&2\nexit 3\n", "utf-8")
    file.chmod(0o700)
    return str(file)


def test_what_an_arm_prints_comes_back() -> None:
    code = "import os, sys; print(sys.argv[1], os.environ['OMP_NUM_THREADS'], os.environ['X'])"
    assert run_child("an arm", code, ["a b"], {"X": "7"}) == "a b 1 7\n"


def test_an_arm_that_fails_is_named_with_what_it_said() -> None:
    with pytest.raises(CreditError, match=r"^an arm failed: no memory is left$"):
        run_child("an arm", "import sys; sys.exit('no memory is left')")


def test_an_arm_that_is_killed_is_named() -> None:
    with pytest.raises(CreditError, match=r"^an arm failed: $"):
        run_child("an arm", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")


def test_the_memory_of_an_arm_that_fails_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", broken(tmp_path))
    with pytest.raises(CreditError, match=r"peak memory of engine, k = 2 failed: no such thing"):
        peak_mib(("engine", 2), "any")


def test_an_arm_that_takes_too_long_ends_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child of the child writes on and on; it holds the pipe, too."""
    monkeypatch.setattr(child, "WITHIN", 3)
    alive = tmp_path / "alive"
    writes = f"import time\nwhile 1: open({str(alive)!r}, 'a').write('x'); time.sleep(0.02)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {writes!r}])"
    with pytest.raises(CreditError, match=r"^an arm took more than 3 s$"):
        run_child("an arm", code)
    size = alive.stat().st_size
    assert size > 0
    time.sleep(0.5)
    assert alive.stat().st_size <= size + 1  # what it was at as it was killed
