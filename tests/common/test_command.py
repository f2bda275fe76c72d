import argparse
import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest

from credit_common.command import (
    INTERRUPTED,
    REFUSED,
    add_daemon_options,
    confirm_fingerprint,
    run_command,
)
from credit_common.errors import CreditError, LinkError, TrustError

PRINT = "ba78 16bf 8f01 cfea 4141 40de 5dae 2223"
LONG = 30.0  # seconds that nothing here takes unless it hangs

START = """
import argparse, atexit, logging, os, signal, sys, threading, time
from credit_common.command import confirm_fingerprint, log_to_stderr, run_command
from credit_common.errors import CreditError, LinkError

def wait(options):
    print("ready", flush=True)
    threading.Event().wait(60)

def work(options):
    print("ready", flush=True)
    while True:
        sum(range(1000))

def confirm(options):
    confirm_fingerprint("the bundle", PRINT, None, "the coordinator")
    print("confirmed")
    return 0

def refuse(options):
    raise LinkError("it does not answer")

PRINT = "%s"
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
options = argparse.Namespace(command=%s, until_stdin_closes=%s)
sys.exit(run_command("credit-client", options))
"""


@contextlib.contextmanager
def started(command, *, until_stdin_closes=False, stdin=subprocess.DEVNULL, text=True):
    """A command line in a process of its own; stdin None is closed from the start."""
    argv = [sys.executable, "-c", START % (PRINT, command, until_stdin_closes)]
    if stdin is None:
        argv = ["sh", "-c", 'exec "$0" "$@" <&-', *argv]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=stdin, stdout=pipe, stderr=pipe, text=text) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(process):
    """Exit code, stdout and stderr."""
    out, err = process.communicate(timeout=LONG)
    return process.returncode, out, err


def run(command, **options):
    with started(command, **options) as process:
        return ended(process)


# -- exit codes --------------------------------------------------------------------------------


def test_a_command_that_is_done_gives_its_own_code_and_says_nothing():
    assert run("lambda options: 0") == (0, "", "")
    assert run("lambda options: 1") == (1, "", "")


def test_a_refusal_is_exit_code_1_and_one_line_on_stderr():
    assert run("refuse") == (REFUSED, "", "credit-client: it does not answer\n")


@pytest.mark.parametrize("kind", [CreditError, LinkError, TrustError])
def test_each_of_the_projects_errors_is_a_refusal(kind, capsys):
    def command(options):
        raise kind("why")

    assert run_command("flower-server", argparse.Namespace(command=command)) == 1
    assert capsys.readouterr() == ("", "flower-server: why\n")


def test_an_error_of_another_kind_is_a_fault_and_is_not_hidden():
    def command(options):
        raise ValueError("a fault")

    with pytest.raises(ValueError, match="a fault"):
        run_command("flower-server", argparse.Namespace(command=command))


@pytest.mark.parametrize("command", ["wait", "work"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_ends_a_command_as_ctrl_c_does(command, number):
    with started(command) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert ended(process) == (INTERRUPTED, "", "credit-client: interrupted\n")


def test_a_program_that_calls_a_command_gets_its_own_handler_back(capsys):
    def own(number, frame):
        raise AssertionError

    def raising(error):
        raise error

    before = signal.signal(signal.SIGTERM, own)
    try:
        for command in (
            lambda options: 0,
            lambda options: raising(CreditError("why")),
            lambda options: raising(KeyboardInterrupt()),
        ):
            run_command("flower-server", argparse.Namespace(command=command))
            assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


# -- a parent that goes away -------------------------------------------------------------------


def test_a_command_ends_when_its_standard_input_is_closed():
    with started("wait", until_stdin_closes=True, stdin=subprocess.PIPE) as process:
        assert process.stdout.readline() == "ready\n"
        process.stdin.write("what is written means nothing\n" * 1000)
        process.stdin.flush()
        time.sleep(0.1)
        assert process.poll() is None
        assert ended(process) == (INTERRUPTED, "", "credit-client: interrupted\n")  # closes it


def test_a_command_ends_with_the_parent_that_was_killed():
    code = (
        "import subprocess, sys, time;"
        "child = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdin=subprocess.PIPE);"
        "time.sleep(60)"
    )
    child = START % (PRINT, "wait", True)
    command = [sys.executable, "-c", code, child]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as parent:
        assert parent.stdout.readline() == b"ready\n"
        parent.kill()
        # The pipes are the child's too, so that they end when it has ended.
        assert parent.communicate(timeout=LONG) == (b"", b"credit-client: interrupted\n")


@pytest.mark.parametrize("command", ["lambda options: 0", "refuse"])
def test_a_command_that_is_done_before_ends_as_ever(command):
    with started(command, until_stdin_closes=True, stdin=subprocess.PIPE) as process:
        code = process.wait(LONG)  # standard input is still open
        err = process.stderr.read()
    assert (code, err) == {"refuse": (1, "credit-client: it does not answer\n")}.get(
        command, (0, "")
    )


def test_a_parent_may_close_standard_input_while_a_command_that_is_done_ends():
    ending = "print('done', flush=True) or time.sleep(0.5)"
    command = f"lambda options: atexit.register(lambda: {ending}) and 0"
    with started(command, until_stdin_closes=True, stdin=subprocess.PIPE) as process:
        assert process.stdout.readline() == "done\n"
        assert ended(process) == (0, "", "")  # closes it


def test_standard_input_that_was_never_open_is_closed():
    done = run("wait", until_stdin_closes=True, stdin=None)
    assert done[0] == INTERRUPTED
    assert done[2] == "credit-client: interrupted\n"


def test_without_the_option_standard_input_means_nothing():
    with started("wait", stdin=subprocess.PIPE) as process:
        assert process.stdout.readline() == "ready\n"
        process.stdin.close()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.stdin = None  # communicate would flush it
        process.terminate()
        assert ended(process)[0] == INTERRUPTED


def test_the_daemons_share_these_options():
    parser = argparse.ArgumentParser()
    add_daemon_options(parser)
    assert vars(parser.parse_args([])) == {
        "device": "auto",
        "threads": None,
        "allow_no_privacy": False,
        "until_stdin_closes": False,
    }
    for wrong in (["--device", "tpu"], ["--threads", "many"], ["--allow-no-privacy=yes"]):
        with pytest.raises(SystemExit) as found, contextlib.redirect_stderr(None):
            parser.parse_args(wrong)
        assert found.value.code == 2


# -- the log -----------------------------------------------------------------------------------


def test_the_log_shows_the_projects_own_lines_in_utc_on_stderr():
    code = """lambda options: (
    os.environ.update(TZ="Asia/Tokyo"), time.tzset(), log_to_stderr(),
    logging.getLogger("credit_client.gate").info("released"),
    logging.getLogger("credit_client.gate").debug("a detail"),
    logging.getLogger("credit_server.grid").warning("no answer"),
    logging.getLogger("another").info("another's"), 0)[-1]"""
    before = time.strftime("%Y-%m-%dT%H:%M", time.gmtime())
    code, out, err = run(code)
    after = time.strftime("%Y-%m-%dT%H:%M", time.gmtime())
    assert (code, out) == (0, "")
    lines = err.splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["released", "no answer"]
    for line in lines:
        stamp = line.split(" ", 1)[0]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", stamp)
        assert before <= stamp[:16] <= after


# -- fingerprints ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "typed",
    [PRINT, PRINT.upper(), PRINT.replace(" ", ""), PRINT.replace(" ", ":"), f"  {PRINT}\n"],
)
def test_a_fingerprint_that_was_typed_right_is_taken_without_a_word(typed, capfd):
    confirm_fingerprint("the bundle", PRINT, typed, "the coordinator")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "typed", ["", "y", PRINT[:-1], PRINT[:4], PRINT[:-1] + "4", PRINT + "0", "0" * 32]
)
def test_a_fingerprint_that_was_typed_wrong_is_refused_without_the_right_one(typed, capfd):
    # What was shown could be typed back without asking anybody.
    with pytest.raises(TrustError, match="--fingerprint is not that of the bundle") as found:
        confirm_fingerprint("the bundle", PRINT, typed, "the coordinator")
    said = "".join([str(found.value), *capfd.readouterr()])
    assert PRINT[:4] not in said.replace(" ", "")


@pytest.mark.parametrize("stdin", [subprocess.DEVNULL, subprocess.PIPE, None])
def test_without_a_terminal_nobody_is_asked(stdin):
    with started("confirm", stdin=stdin) as process:
        if stdin is subprocess.PIPE:
            process.stdin.write("y\n")
        code, out, err = ended(process)
    assert (code, out) == (REFUSED, "")
    assert err == (
        "credit-client: give --fingerprint: that of the bundle, as the coordinator reads it out\n"
    )


@contextlib.contextmanager
def at_a_terminal(command):
    """A command line whose standard input is a terminal; gives it and the terminal's other end."""
    other, own = pty.openpty()
    try:
        with started(command, stdin=own, text=False) as process:
            yield process, other
    finally:
        os.close(own)
        os.close(other)


def read_until(pipe, text):
    """What is written to a pipe up to and with a text."""
    seen, end = b"", time.monotonic() + LONG
    while not seen.endswith(text):
        assert select.select([pipe], [], [], max(end - time.monotonic(), 0))[0], seen
        seen += (part := os.read(pipe.fileno(), 1))
        assert part, seen
    return seen


def typed_at_a_terminal(keys):
    with at_a_terminal("confirm") as (process, terminal):
        asked = read_until(process.stderr, b"[y/N] ").decode()
        os.write(terminal, keys)
        code, out, err = ended(process)
    return asked, code, out.decode(), err.decode()


@pytest.mark.parametrize("answer", ["y", "yes", "Y", " YES "])
def test_a_person_at_a_terminal_confirms(answer):
    asked, code, out, err = typed_at_a_terminal(f"{answer}\n".encode())
    assert asked == (
        f"fingerprint of the bundle:\n\n    {PRINT}\n\n"
        "Does the coordinator read out the same? [y/N] "
    )
    assert (code, out, err) == (0, "confirmed\n", "")  # stdout has results alone


@pytest.mark.parametrize(
    "keys", [b"n\n", b"\n", b"no\n", b"yess\n", b"\x04", PRINT.encode() + b"\n"]
)
def test_whatever_else_a_person_types_is_no(keys):  # \x04 is the end of input, Ctrl-D
    _, code, out, err = typed_at_a_terminal(keys)
    assert (code, out) == (REFUSED, "")
    assert err == (
        "credit-client: the fingerprint of the bundle was not confirmed; nothing was changed\n"
    )


def test_a_person_who_interrupts_confirms_nothing():
    with at_a_terminal("confirm") as (process, _):
        read_until(process.stderr, b"[y/N] ")
        process.send_signal(signal.SIGINT)
        code, out, err = ended(process)
    assert (code, out, err) == (INTERRUPTED, b"", b"credit-client: interrupted\n")
