import itertools
import json
import os
import select
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from credit_client.identity import request
from credit_common.bundle import Bundle
from credit_common.contract import parse_contract
from credit_common.errors import CreditError, TrustError
from credit_server.authority import create_authority
from credit_server.enrol import enrol, revoke
from credit_server.lock import CHECKPOINT
from credit_server.report import STATUS, Reporter, plain, read_status, show_status

EVENTS = {
    "listening": {
        "federation": "shop-credit",
        "contract_digest": "ab" * 32,
        "address": "[::]:9440",
        "enrolled": 3,
    },
    "resumed": {"round": 2, "rounds": 30},
    "waiting": {"connected": 1, "enrolled": 3, "minimum": 2, "missing": ["books", "shoes"]},
    "round": {
        "round": 2,
        "rounds": 30,
        "holders": 3,
        "figures": {"auc": 0.71234, "ks": float("nan"), "gini": 0.42468},
        "intervals": {"auc": [0.70456, 0.72], "ks": [float("nan"), 1.0], "gini": [0.409, 0.44]},
        "psi": None,
        "epsilon": 1.2301,
        "seconds": 0.26,
    },
    "done": {
        "release": Path("releases/1"),
        "rounds": 30,
        "holders": 3,
        "figures": {"auc": 0.71234},
        "seconds": 61.7,
        "bytes_up": 1234,
    },
    "failed": {"reason": "1 holders are connected, the contract needs 2"},
}
LINES = {
    "listening": "shop-credit (contract abababababab) listens on [::]:9440; 3 holders enrolled",
    "resumed": "goes on after round 2 of 30",
    "waiting": "waiting for holders: 1 of 3 enrolled are here, at least 2 are needed; "
    "missing: books, shoes",
    "round": "round   2/30  3 holders  ε 1.24  0.3 s  auc 0.7123 [0.7046, 0.7200]  ks nan",
    "done": "done: 30 rounds in 62 s; releases/1",
    "failed": "failed: 1 holders are connected, the contract needs 2",
}


@pytest.fixture
def home(tmp_path):
    create_authority(tmp_path, "shop-credit")
    return tmp_path


def strict(text):
    """JSON as other programs read it: no NaN, no Infinity."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def on_disk(home):
    return strict((home / STATUS).read_text("utf-8"))


@pytest.mark.parametrize("event", EVENTS)
def test_people_read_one_line_for_each_event(home, capsys, event):
    Reporter(home, "table").tell(event, **EVENTS[event])
    out = capsys.readouterr()
    assert (out.out, out.err) == ("", LINES[event] + "\n")


def test_lines_without_figures_budget_or_missing_holders(home, capsys):
    reporter = Reporter(home, "table")
    reporter.tell("round", **(EVENTS["round"] | {"figures": {}, "intervals": {}, "epsilon": None}))
    reporter.tell("waiting", **(EVENTS["waiting"] | {"missing": []}))
    first, second = capsys.readouterr().err.splitlines()
    assert first == "round   2/30  3 holders  ε none  0.3 s"
    assert second.endswith("missing: nobody")


def test_programs_read_one_object_for_each_event_at_once(home, capsys):
    reporter = Reporter(home, "json")
    for event, facts in EVENTS.items():
        reporter.tell(event, **facts)
        out = capsys.readouterr()
        assert out.err == ""
        (line,) = out.out.splitlines()
        assert strict(line) == {"event": event, **plain(facts)}


def test_programs_read_events_while_the_run_goes_on(home):
    # A pipe is buffered: without flushing nothing would come before the end.
    code = (
        "import sys; from pathlib import Path; from credit_server.report import Reporter;"
        "Reporter(Path(sys.argv[1]), 'json').tell('failed', reason='x'); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(home)]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=buffered) as process:
        came = select.select([process.stdout], [], [], 30)[0]
        process.stdin.close()
        assert came
        assert strict(process.stdout.readline()) == {"event": "failed", "reason": "x"}


def test_a_round_ends_with_whose_answers_were_not_used_and_why(home, capsys):
    aside = {"books": {"norm": 1}, "shoes": {"late": 3, "refused": 1}}
    Reporter(home, "table").tell("round", **EVENTS["round"], set_aside=aside)
    told = "  not used: books (norm), shoes (late 3 times, refused)\n"
    assert capsys.readouterr().err == LINES["round"] + told
    assert on_disk(home)["set_aside"] == aside
    Reporter(home, "table").tell("round", **EVENTS["round"], set_aside={})
    assert capsys.readouterr().err == LINES["round"] + "\n"


@pytest.mark.parametrize("form", ["table", "json"])
def test_the_status_has_the_last_event_and_what_was_told_before(home, capsys, form):
    reporter = Reporter(home, form)
    known = {}
    for event, facts in EVENTS.items():
        reporter.tell(event, **facts)
        known |= plain(facts)
        found = on_disk(home)
        assert found.pop("pid") == os.getpid()
        assert found.pop("started") <= found.pop("at")
        assert found == {"state": event, **known}
    assert [path.name for path in home.glob("*status*")] == [STATUS]  # no temporary file is left


def test_what_is_no_number_becomes_null_however_deep(home, capsys):
    nan, inf = float("nan"), float("inf")
    deep = {"a": nan, "b": [1.5, inf, {"c": (-inf, True, None, "nan")}], "d": Path("x/y")}
    Reporter(home, "json").tell("failed", reason="", figures=deep)
    expected = {"a": None, "b": [1.5, None, {"c": [None, True, None, "nan"]}], "d": "x/y"}
    assert on_disk(home)["figures"] == expected
    assert strict(capsys.readouterr().out)["figures"] == expected


def test_a_reader_finds_a_whole_status_at_any_moment(home, capsys):
    reporter = Reporter(home, "json")
    reporter.tell("failed", number=0, reason="x" * 20_000)
    stop, seen, broken = threading.Event(), [], []

    def read():
        while not stop.is_set():
            try:
                seen.append(read_status(home)["run"]["number"])
            except (CreditError, KeyError) as error:
                broken.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    numbers = itertools.count(1)
    while (number := next(numbers)) < 150 or (len(set(seen)) <= 3 and reader.is_alive()):
        reporter.tell("failed", number=number, reason="x" * (number % 150 * 200))
    stop.set()
    reader.join()
    assert broken == []
    assert seen == sorted(seen)
    assert len(set(seen)) > 3


def test_a_status_that_cannot_be_written_is_one_clear_error(tmp_path):
    with pytest.raises(CreditError, match=r"cannot write .*status\.json: No such file"):
        Reporter(tmp_path / "gone", "json").tell("failed", reason="")


# -- reading -----------------------------------------------------------------------------------


def test_a_folder_without_a_run_says_so(home):
    found = read_status(home)
    assert found == {"holders": {}, "run": None}
    assert show_status(found) == "0 holders enrolled\nno run yet: flower-server starts one"


def test_a_folder_without_an_authority_is_no_coordinators(tmp_path):
    with pytest.raises(TrustError):
        read_status(tmp_path)


def test_holders_are_told_with_class_expiry_and_revocation(tmp_path, contract_text):
    home = tmp_path / "server"
    authority = create_authority(home, "shop-credit")
    contract = parse_contract(contract_text)
    bundle = Bundle(
        federation="shop-credit",
        address="localhost:9440",
        ca_pem=authority.ca_pem.decode(),
        contract_text=contract_text,
    )
    for name, size_class in (("shoes", "large"), ("books", "small")):
        csr = request(tmp_path / name, bundle, name, size_class)
        enrol(home, authority, contract, csr.read_bytes(), where=name)
    revoke(home, "shoes")
    found = strict(json.dumps(read_status(home)))
    assert set(found["holders"]) == {"shoes", "books"}
    assert found["holders"]["books"]["size_class"] == "small"
    until = found["holders"]["books"]["not_after"][:10]
    assert show_status(found).splitlines()[:3] == [
        "2 holders enrolled",
        f"  books: node 3, small, certificate until {until}",
        "  shoes: node 2, large, revoked",
    ]


def dead_pid():
    return int(subprocess.check_output([sys.executable, "-c", "import os; print(os.getpid())"]))


@pytest.mark.parametrize("event", EVENTS)
def test_a_run_is_alive_while_its_process_is_and_it_has_not_ended(home, capsys, event):
    Reporter(home, "json").tell(event, **EVENTS[event])
    found = read_status(home)
    lives = event not in ("done", "failed")
    assert found["run"]["alive"] is lives
    last = show_status(found).splitlines()[-1]
    state = "running" if lives else "not running"
    assert last == f"{state}; last at {found['run']['at']}: {LINES[event]}"


def test_a_run_whose_process_died_without_a_word_is_not_running(home, capsys):
    Reporter(home, "json").tell("round", **EVENTS["round"])
    status = on_disk(home)
    (home / STATUS).write_text(json.dumps(status | {"pid": dead_pid()}))
    found = read_status(home)
    assert found["run"]["alive"] is False
    assert show_status(found).splitlines()[-1].startswith("not running; last at ")
    (home / CHECKPOINT).touch()
    found = read_status(home)
    assert found["run"]["unfinished"] is True
    assert show_status(found).splitlines()[-1] == (
        "the run is not over: flower-server --resume goes on with it"
    )
    (home / STATUS).write_text(json.dumps(status))  # one that lives has a checkpoint too
    assert read_status(home)["run"]["unfinished"] is False


@pytest.mark.skipif(os.name != "posix" or os.getuid() == 0, reason="root may signal anybody")
def test_another_users_process_is_alive(home, capsys):
    Reporter(home, "json").tell("waiting", **EVENTS["waiting"])
    (home / STATUS).write_text(json.dumps(on_disk(home) | {"pid": 1}))
    assert read_status(home)["run"]["alive"] is True


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"5",
        b"[1]",
        b'["ab"]',
        b'{"state": NaN',
        b"{}",
        b'{"state": "round"}',
        b'{"state": "failed", "at": "x"',
        b'{"state": "round", "pid": 1, "at": "x"}',
        b'{"state": "failed", "state": "failed", "pid": 1, "at": "x"}',
        b'{"state": "other", "at": "x", "pid": "many"}',
        b'{"state": "other", "at": "x", "pid": null}',
        b'{"state": "other", "at": "x", "pid": 1e999}',
        b'{"state": "other", "at": "x", "pid": %d}' % 10**40,
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_a_damaged_status_is_refused_by_its_files_name(home, content):
    (home / STATUS).write_bytes(content)
    with pytest.raises(CreditError, match=r"status\.json"):
        read_status(home)


def test_half_a_status_is_refused(home, capsys):
    Reporter(home, "json").tell("round", **EVENTS["round"])
    content = (home / STATUS).read_bytes()
    for length in range(0, len(content), 7):
        (home / STATUS).write_bytes(content[:length])
        with pytest.raises(CreditError, match=r"status\.json"):
            read_status(home)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    event=st.sampled_from(list(EVENTS)),
    place=st.integers(0, 20),
    value=st.none() | anything,
    leave_out=st.booleans(),
)
def test_what_can_be_read_can_be_shown(home, event, place, value, leave_out):
    status = {"pid": 1, "started": "x", "state": event, "at": "x", **plain(EVENTS[event])}
    key = sorted(status)[place % len(status)]
    status[key] = value
    if leave_out:
        del status[key]
    (home / STATUS).write_text(json.dumps(status))
    try:
        found = read_status(home)
    except CreditError:
        return
    assert isinstance(show_status(found), str)
