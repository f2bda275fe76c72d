"""The commands that read and keep a holder's records, called as a person would call them."""

import json

import pytest

from credit_client.cli import main
from credit_client.identity import open_identity
from credit_client.ledger import Ledger
from credit_client.report import verify


@pytest.fixture
def home(enrolled, answer):
    identity = enrolled()
    answer(identity, "adapter", "histogram")
    return identity.home


@pytest.fixture(scope="module")
def kept(enrolled, answer):
    """A home that no test changes."""
    identity = enrolled()
    answer(identity, "adapter", "histogram", "adapter")
    return identity.home


@pytest.fixture
def run(capsys):
    """Runs a command; returns its exit code, what it printed, and its words of refusal."""

    def call(*words):
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return call


@pytest.fixture
def refused(run):
    """The one line with which a command refuses."""

    def call(*words):
        code, out, err = run(*words)
        assert code == 1
        assert out == ""
        assert err.startswith("credit-client: ")
        assert err.count("\n") == 1
        return err

    return call


def test_the_ledger_is_shown_entry_by_entry(run, kept):
    code, out, _ = run("ledger", "--home", kept)
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[2] for line in lines[:4]] == ["split", "train", "holdout", "train"]
    assert "4 entries" in out
    assert "of a budget of 4.0, at delta 1e-05" in out
    code, out, _ = run("ledger", "--home", kept, "--format", "json")
    plain = json.loads(out)
    assert (code, len(plain["entries"]), plain["counter"], plain["lost"]) == (0, 4, 4, 0)
    assert plain["epsilon"] == plain["epsilon_of_entries"] > 0


def test_a_home_may_stand_before_or_after_the_command(run, kept):
    found = [run("--home", kept, "ledger"), run("ledger", "--home", kept)]
    assert found[0] == found[1]


def test_the_manifest_tells_what_left_and_what_it_spent(run, kept):
    code, out, _ = run("manifest", "--home", kept)
    assert code == 0
    assert [line.split()[1] for line in out.splitlines()[:4]] == [
        "greeting",
        "adapter",
        "histogram",
        "adapter",
    ]
    assert "4 messages" in out
    code, out, _ = run("manifest", "--home", kept, "--format", "json")
    plain = json.loads(out)
    assert [line["spent"] and line["spent"]["kind"] for line in plain] == [
        None,
        "sampled_gaussian",
        "histogram",
        "sampled_gaussian",
    ]


def test_a_lost_ledger_is_restored_from_its_backup(run, home, tmp_path):
    identity = open_identity(home)
    code, out, _ = run("ledger", "backup", tmp_path / "copy", "--home", home)
    assert (code, "a copy of all 3 entries" in out) == (0, True)
    before = run("ledger", "--home", home)
    identity.ledger_path.unlink()
    code, _, err = run("ledger", "--home", home)
    assert (code, "counts as spent" in err) == (1, True)
    code, out, _ = run("ledger", "restore", tmp_path / "copy", "--home", home)
    assert (code, "restored with 3 entries" in out) == (0, True)
    assert run("ledger", "--home", home) == before


def test_a_backup_that_is_too_old_is_put_back_and_refused(run, home, answer, tmp_path):
    identity = open_identity(home)
    run("ledger", "backup", tmp_path / "copy", "--home", home)
    answer(identity, "adapter")
    identity.ledger_path.unlink()
    code, _, err = run("ledger", "restore", tmp_path / "copy", "--home", home)
    assert code == 1
    assert "rolled back: it ends at entry 3" in err
    assert "ledger override" in err


def test_an_override_is_signed_and_shown_for_ever(run, refused, home):
    identity = open_identity(home)
    assert "nothing to sign for" in refused("ledger", "override", "--reason", "so", "--home", home)
    identity.ledger_path.unlink()
    code, out, _ = run("ledger", "override", "--reason", "the disk broke", "--home", home)
    assert (code, "entry 1" in out) == (0, True)
    code, out, _ = run("ledger", "--home", home)
    assert "EPSILON IS UNKNOWN" in out
    assert "the disk broke" in out
    code, out, _ = run("ledger", "--home", home, "--format", "json")
    assert json.loads(out)["epsilon"] is None
    code, out, _ = run("manifest", "--home", home)
    assert (code, out.count("NOT KNOWN: its entry was lost")) == (0, 2)
    code, out, _ = run("report", "--home", home)
    assert (code, "EPSILON IS UNKNOWN" in out, "the disk broke" in out) == (0, True, True)
    assert "but for 2 WHOSE CHARGES" in " ".join(out.split())


def test_a_reason_cannot_steer_the_terminal(run, home):
    open_identity(home).ledger_path.unlink()
    code, _, _ = run("ledger", "override", "--reason", "gone\x1b[2J\nε 0", "--home", home)
    assert code == 0
    for command in ("ledger", "report"):
        code, out, _ = run(command, "--home", home)
        assert code == 0
        assert "\x1b" not in out
        assert "gone?[2J" in out


@pytest.mark.parametrize("reason", ["", "   ", "x" * 501, "\udc80"])
def test_an_override_needs_a_reason(refused, home, reason):
    assert "reason" in refused("ledger", "override", "--reason", reason, "--home", home)


def test_the_report_comes_as_text_json_and_page(run, kept, tmp_path):
    code, text, _ = run("report", "--home", kept)
    assert (code, text.startswith("PRIVACY REPORT OF shop")) == (0, True)
    code, out, _ = run("report", "--home", kept, "--format", "json")
    assert json.loads(out)["holder"] == "shop"
    path = tmp_path / "report.html"
    code, out, _ = run("report", "--home", kept, "--format", "html", "--out", path)
    assert (code, out) == (0, "")
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_report_is_verified_and_a_changed_one_is_not(run, kept, tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "_prv", lambda groups, delta: None)
    path = tmp_path / "report.json"
    run("report", "--home", kept, "--format", "json", "--out", path)
    code, out, err = run("verify-report", path)
    assert (code, err) == (0, "")
    assert out.endswith("\nverified\n")
    report = json.loads(path.read_text())
    report["epsilon"] -= 0.5
    path.write_text(json.dumps(report))
    code, out, err = run("verify-report", path, "--format", "json")
    plain = json.loads(out)
    assert code == 1
    assert plain["verified"] is False
    assert plain["difference"] == pytest.approx(0.5, abs=0.001)
    assert len(plain["problems"]) == err.count("\n") == 2


def test_an_audit_is_told_beside_the_claim(run, refused, kept, tmp_path):
    arm = {
        "name": "as shipped",
        "kind": "sound",
        "claimed_epsilon": 2,
        "lower_bound": 0.45,
        "confidence": 0.95,
        "canaries": 1000,
        "caught": False,
    }
    path = tmp_path / "audit.json"
    path.write_text(json.dumps({"arms": [arm]}))
    _, text, _ = run("report", "--home", kept, "--audit", path)
    assert "as shipped  sound" in text
    path.write_text(json.dumps({"arms": [{"name": "as shipped"}]}))
    assert "a proper kind" in refused("report", "--home", kept, "--audit", path)
    assert "cannot read" in refused("report", "--home", kept, "--audit", tmp_path / "none.json")


def test_a_report_that_cannot_be_written_is_refused_in_one_line(refused, kept, tmp_path):
    assert "Is a directory" in refused("report", "--home", kept, "--out", tmp_path)
    missing = tmp_path / "no" / "report.json"
    assert "No such file" in refused("report", "--home", kept, "--out", missing)


@pytest.mark.parametrize(
    "name", ["shop.ledger", "shop.key", "shop.pem", "shop.manifest.jsonl", "bundle.json"]
)
def test_a_report_is_never_written_over_the_identity(refused, kept, name):
    before = (kept / name).read_bytes()
    assert "identity" in refused("report", "--home", kept, "--out", kept / name)
    assert (kept / name).read_bytes() == before


@pytest.mark.parametrize(
    "command",
    [
        ("ledger",),
        ("ledger", "backup", "copy"),
        ("ledger", "restore", "copy"),
        ("ledger", "override", "--reason", "so"),
        ("manifest",),
        ("report",),
    ],
)
def test_a_folder_without_an_identity_is_named(refused, tmp_path, command):
    assert f"{tmp_path} holds no identity" in refused(*command, "--home", tmp_path)


@pytest.mark.parametrize(
    "command", [("ledger",), ("ledger", "backup", "copy"), ("manifest",), ("report",)]
)
def test_a_lost_ledger_is_named_with_the_way_on(refused, home, command):
    open_identity(home).ledger_path.unlink()
    line = refused(*command, "--home", home)
    assert "shop.ledger is missing" in line
    assert "ledger restore" in line


@pytest.mark.parametrize(
    "command", [("ledger",), ("ledger", "restore", "{copy}"), ("manifest",), ("report",)]
)
def test_a_ledger_in_use_is_said_to_be(run, refused, home, tmp_path, command):
    run("ledger", "backup", tmp_path / "copy", "--home", home)
    words = [word.format(copy=tmp_path / "copy") for word in command]
    with Ledger.open(open_identity(home).ledger_path):
        assert "in use by another client" in refused(*words, "--home", home)


def test_no_backup_to_restore_is_said_to_be(refused, home, tmp_path):
    assert "there is no file" in refused("ledger", "restore", tmp_path / "none", "--home", home)
    (tmp_path / "letter").write_text("Dear")
    assert "letter" in refused("ledger", "restore", tmp_path / "letter", "--home", home)


@pytest.mark.parametrize("content", [None, "Dear", "{}", "[1]", "<!doctype html>"])
def test_what_is_no_report_is_refused_by_name(refused, tmp_path, content):
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    assert str(path) in refused("verify-report", path)
    assert str(tmp_path) in refused("verify-report", tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        ("ledger", "backup"),
        ("ledger", "override"),
        ("ledger", "override", "--reason", "so", "--counter", "many"),
        ("ledger", "spend"),
        ("report", "--format", "pdf"),
        ("manifest", "--format", "html"),
        ("verify-report",),
    ],
)
def test_wrong_usage_ends_with_two(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err
