"""Trials in parallel: processes of this machine, or a Ray cluster.

Every worker runs on one core and keeps the users of its last data set, so tasks come data set by
data set. What is finished is handed over at once, in any order.
"""

import concurrent.futures
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from credit_common.errors import CreditError
from credit_common.extras import install
from credit_simulations.sweep.plan import Entry, Trial

Task = Trial | Entry
"""A trial; or an entry, whose users are read and encoded, so that its trials find them."""
Done = tuple[Task, dict[str, Any] | None]


def work(task: Task) -> Done:
    """Do a task in this process; a trial gives its line of results.

    Raises:
        CreditError: Naming the task, and what was refused.
    """
    from credit_simulations.sweep.trials import run_trial
    from credit_simulations.sweep.users import read_users

    try:
        if isinstance(task, Entry):
            users = read_users(task)
            if users.contract.model.reads_text:
                _ = users.examples  # on the disk from now on
            return task, None
        return task, run_trial(task)
    except CreditError as error:
        raise CreditError(f"{said(task)}: {error}") from None


def said(task: Task) -> str:
    """A task in a few words."""
    if isinstance(task, Entry):
        return f"{task.name}, encoding"
    epsilon = "no dp" if task.epsilon is None else f"epsilon {task.epsilon:g}"
    repetition = f"fold {task.seed}" if task.folds else f"seed {task.seed}"
    return f"{task.entry.name}, {task.entry.spread}, {task.arm}, {epsilon}, {repetition}"


def by_processes(tasks: Sequence[Task], processes: int) -> Iterator[Done]:
    """Results of tasks as they are finished, by some processes.

    Raises:
        CreditError: Of the first task that fails, or where a process dies.
    """
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    pool = concurrent.futures.ProcessPoolExecutor(processes, context, initializer=_settle)
    try:
        for done in concurrent.futures.as_completed([pool.submit(work, task) for task in tasks]):
            yield done.result()
    except concurrent.futures.process.BrokenProcessPool:
        raise CreditError(
            "a process of the sweep died, perhaps for want of memory; fewer --processes need less; "
            "what is finished is kept"
        ) from None
    finally:
        # A pool that is shut down waits for its running tasks, minutes each; no public call ends
        # them before Python 3.14.
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


def by_ray(tasks: Sequence[Task], address: str) -> Iterator[Done]:
    """Results of tasks as they are finished, by the cores of a Ray cluster.

    Args:
        tasks: What is to be done; every machine reads and encodes data sets for itself.
        address: As of `ray.init`: "auto", HOST:PORT or ray://HOST:PORT.

    Raises:
        CreditError: Of the first task that fails, if Ray is not installed, or the cluster cannot be
            reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before it is imported
    try:
        import ray
    except ImportError:
        raise CreditError(f"--ray needs ray: {install('ray')}") from None
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False)
    except OSError as error:  # ConnectionError is one
        raise CreditError(f"no Ray cluster at {address}: {error}") from None
    try:
        remote = ray.remote(num_cpus=1, max_retries=3)(_settled_work)
        left = [remote.remote(task) for task in tasks]
        while left:
            finished, left = ray.wait(left, num_returns=1)
            try:
                yield ray.get(finished[0])
            except ray.exceptions.RayTaskError as error:
                cause = error.cause
                if isinstance(cause, CreditError):
                    raise CreditError(str(cause)) from None
                raise
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError where nobody listens: Ray would go on trying for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


def _settle() -> None:
    """One thread a process; an interrupt is the parent's to handle, whose end ends this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    import torch

    torch.set_num_threads(1)


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _settled_work(task: Task) -> Done:
    import torch

    torch.set_num_threads(1)
    return work(task)
