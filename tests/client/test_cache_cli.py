"""The cache's options and `credit-client forget`, called as a person would call them."""

import argparse
import json
import subprocess
import sys

import pytest

from credit_client.cache import Cache, CacheFile
from credit_client.cache_cli import LARGEST, LIMIT, foretold, parse_size
from credit_client.cli import main
from credit_client.identity import open_identity
from credit_client.ledger import Ledger
from credit_common.sections import Model

LEFT = "frozen-0123456789abcdef.cache"


@pytest.fixture
def run(capsys):
    def call(*words, code=0):
        assert main([str(word) for word in words]) == code
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return out if code == 0 else err

    return call


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("17", 17), ("2GiB", 2 << 30), ("500MiB", 500 << 20), ("1.5GB", 1_500_000_000),
        ("3 kB", 3000), ("3kib", 3072), (" 12B ", 12), ("1024TiB", LARGEST),
    ],
)  # fmt: skip
def test_sizes_are_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "-1", "2XB", "GiB", "1,5GB", "nan", "inf", "1e9", "1025TiB", "²", "9" * 40, "1 2"]
)
def test_what_is_no_size_is_refused_by_value_and_bound(text):
    with pytest.raises(argparse.ArgumentTypeError) as raised:
        parse_size(text)
    assert repr(text) in str(raised.value)
    assert "between 0 and 1024TiB" in str(raised.value)


def test_a_wrong_option_is_wrong_usage(capsys):
    for words in (["--cache-limit", "many"], ["--cache", "disk"]):
        with pytest.raises(SystemExit) as ended:
            main(["--shard", "shard.csv", *words])
        assert ended.value.code == 2
        assert words[1] in capsys.readouterr().err


def test_forget_removes_what_a_killed_client_left(run, enrolled):
    home = enrolled().home
    before = sorted(home.iterdir())
    for name in (LEFT, LEFT.replace("0", "f")):
        (home / name).write_bytes(bytes(600))
    assert run("forget", "--home", home) == f"removed 2 caches, 1,200 bytes, from {home}\n"
    assert sorted(home.iterdir()) == before
    assert run("forget", "--home", home) == f"nothing to forget in {home}\n"
    (home / LEFT).write_bytes(bytes(7))
    told = json.loads(run("--home", home, "forget", "--format", "json"))
    assert told == {"files": 1, "bytes": 7}
    assert open_identity(home).ledger_path.exists()


def test_forget_refuses_while_a_client_of_the_home_is_running(run, enrolled):
    identity = enrolled()
    left = identity.home / LEFT
    left.write_bytes(b"x")
    with Ledger.open(identity.ledger_path, identity.witness):
        assert "is in use by another client" in run("forget", "--home", identity.home, code=1)
    file = CacheFile(identity.home)  # of a client without privacy, which holds no ledger
    assert "in use by a running client" in run("forget", "--home", identity.home, code=1)
    assert left.exists()
    file.close()
    assert "removed 1 cache," in run("forget", "--home", identity.home)


def test_forget_works_where_identity_and_ledger_are_damaged(run, enrolled):
    identity = enrolled()
    identity.ledger_path.write_bytes(b"no ledger at all")
    identity.certificate_path.unlink()
    (identity.home / LEFT).write_bytes(b"x")
    assert "removed 1 cache, 1 bytes" in run("forget", "--home", identity.home)


def test_forget_needs_a_folder(run, tmp_path):
    assert "is not a folder" in run("forget", "--home", tmp_path / "typo", code=1)


def test_forget_needs_no_torch(tmp_path):
    code = (
        "import sys\nfrom credit_client.cli import main\n"
        f"main(['forget', '--home', {str(tmp_path)!r}])\n"
        "print({'torch', 'flwr', 'numpy'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.fixture
def checked(run, enrolled, tmp_path, federation_file):
    """What `--check` says of the cache: the page's part, and the object."""

    def make(*words, **tables):
        home = enrolled(text=federation_file(**tables)).home
        shard = tmp_path / "shard.csv"
        columns = "user,age,income,tenure,home,job,note,at,orders,sex,phone,secret,defaulted"
        row = "u{},30,20,3,P,clerk,pays late,2024-01-05,[],f,5,s,1"
        shard.write_text("\n".join([columns, *(row.format(i) for i in range(40))]))
        words = ("--home", home, "--shard", shard, "--check", *words)
        page = run(*words)
        part = next(p for p in page.split("\n\n") if p.startswith("WHAT IS KEPT"))
        assert max(map(len, part.splitlines())) <= 100 + len(str(home))
        return part, json.loads(run(*words, "--format", "json"))["cache"], home

    return make


def test_a_check_says_how_large_the_cache_will_be_and_where(checked):
    part, told, _ = checked(model={"tokens": 40})
    most = 40 * 40 * 32 * 2
    assert told == {
        "kind": "memory", "folder": None, "users": 40, "most_bytes": most, "limit": LIMIT,
        "free_bytes": None,
    }  # fmt: skip
    assert f"at most {most:,} bytes" in part
    assert "where: memory" in part
    assert "; enough" in part
    part, told, home = checked("--cache", "file", "--cache-limit", "1kB", model={"tokens": 40})
    assert (told["kind"], told["folder"], told["limit"]) == ("file", str(home), 1000)
    assert told["most_bytes"] == most + 16 * 40
    assert f"an encrypted file in {home}" in part
    assert "what does not fit is computed anew at each use" in part
    assert "are free" not in part
    assert list(home.glob("frozen-*")) == []  # a check makes nothing


def test_a_check_says_so_where_no_text_is_read(checked):
    part, told, _ = checked(model={"train": ["wide"]})
    assert told["most_bytes"] == 0
    assert "none, since no text is read" in part


def test_without_lora_a_row_is_one_vector_and_an_unknown_backbone_has_no_size(tmp_path):
    head = Model(train=("head",))
    assert foretold(Cache(), head, 10)["most_bytes"] == 10 * 384 * 2
    assert foretold(Cache(), Model(), 10)["most_bytes"] == 10 * 384 * 2 * 128
    for config in (None, "{", "[]", '{"hidden_size": "wide"}'):
        if config is not None:
            (tmp_path / "config.json").write_text(config)
        model = Model(backbone=str(tmp_path), backbone_sha256="a" * 64)
        assert foretold(Cache(), model, 10)["most_bytes"] is None
