import pytest

from credit_client.service.access import name_of, read_tokens
from credit_client.service.limits import Buckets
from credit_common.errors import TrustError

GOOD = "0123456789abcdef"


def write(tmp_path, text, mode=0o600):
    file = tmp_path / "tokens"
    file.write_bytes(text.encode())
    file.chmod(mode)
    return file


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_that_others_can_read_is_refused(tmp_path, mode):
    with pytest.raises(TrustError, match="chmod 600"):
        read_tokens(write(tmp_path, f"till {GOOD}\n", mode))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "has no token"),
        ("# nobody\n", "has no token"),
        (f"{GOOD}\n", "line 1: must be a name and a token"),
        (f"a {GOOD}\nb SECRETSECRET\n", "line 2: a token must have at least 16"),
        (f"Till {GOOD}\n", "line 1: a name must be"),
        (f"a {GOOD}\na {GOOD}x\n", "line 2: the name a stands"),
        ("tîll SECRETSECRETSECRET\n", "not ASCII"),
    ],
)
def test_a_wrong_line_is_named_and_its_token_is_not(tmp_path, text, why):
    with pytest.raises(TrustError, match=why) as caught:
        read_tokens(write(tmp_path, text))
    assert "SECRET" not in str(caught.value)
    assert GOOD not in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(TrustError, match="No such file"):
        read_tokens(tmp_path / "none")


def test_only_a_known_token_has_a_name(tmp_path):
    tokens = read_tokens(write(tmp_path, f"a {GOOD}1\nb {GOOD}2\n"))
    assert name_of(tokens, f"Bearer {GOOD}1".encode()) == "a"
    assert name_of(tokens, f"bearer  {GOOD}2".encode()) == "b"
    for wrong in (f"Bearer {GOOD}", f"Basic {GOOD}1", f"{GOOD}1", "Bearer", "Bearer \xff"):
        assert name_of(tokens, wrong.encode("latin-1")) is None


def test_a_bucket_fills_up_at_its_rate_for_all_processes(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("credit_client.service.limits.time.monotonic", lambda: now[0])
    file = tmp_path / "buckets"
    one, two = (Buckets(file, rate=2.0, burst=4) for _ in range(2))
    assert [one.take("a"), two.take("a"), one.take("a"), two.take("a")] == [0.0] * 4
    assert one.take("a") == pytest.approx(0.5)
    assert two.take("b") == 0.0
    now[0] += 0.25
    assert two.take("a") == pytest.approx(0.25)
    now[0] += 0.25
    assert two.take("a") == 0.0
    assert one.take("a") > 0
    now[0] += 1000
    assert [one.take("a") for _ in range(5)] == [0.0] * 4 + [pytest.approx(0.5)]
    one.close()
    two.close()


def test_strangers_use_up_no_rate_of_a_client_that_is_known(tmp_path):
    buckets = Buckets(tmp_path / "buckets", rate=1e-6, burst=1)
    for i in range(40_000):  # ten addresses for each slot
        buckets.take(f"2001:db8::{i:x}")
    assert buckets.take("2001:db8::0") > 0
    names = [f"till-{i}" for i in range(20)]
    left = [buckets.take(name, known=True) for name in names]
    assert left.count(0.0) > 15  # two of them may share a slot
    assert min(buckets.take(name, known=True) for name in names) > 0
    buckets.close()


def test_no_rate_is_no_limit(tmp_path):
    buckets = Buckets(tmp_path / "buckets", rate=0.0, burst=1)
    assert [buckets.take("a") for _ in range(100)] == [0.0] * 100
    buckets.close()
