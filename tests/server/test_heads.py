import dataclasses
import json

import pytest

from credit_common.certificates import new_key, public_hex
from credit_common.errors import CreditError, TrustError
from credit_common.heads import sign_head
from credit_server.heads import Heads

KEY = new_key()
OWN = public_hex(KEY.public_key())


def head(counter=7, blinded="b", key=KEY, node_id=2, epsilon=None, digest="c", overrides=0):
    return sign_head(
        key,
        node_id=node_id,
        contract_digest=digest * 64,
        counter=counter,
        blinded_hash=blinded * 64,
        overrides=overrides,
        delta=1e-5,
        epsilon=epsilon,
        epsilon_replace_one=None,
    )


def test_the_newest_head_is_kept_across_restarts(tmp_path):
    heads = Heads(tmp_path)
    assert heads.newest(2) is None
    for counter in (3, 4, 9):
        heads.take(head(counter), 2, OWN)
    assert Heads(tmp_path).newest(2) == heads.newest(2)
    assert heads.newest(2).counter == 9
    assert heads.newest(3) is None


def test_a_ledger_that_went_back_is_refused_and_the_newest_head_stays(tmp_path):
    heads = Heads(tmp_path)
    newest = head(9)
    heads.take(newest, 2, OWN)
    with pytest.raises(TrustError, match="signed 9 entries before, and 8 now"):
        heads.take(head(8), 2, OWN)
    with pytest.raises(TrustError, match="entry 9 changed"):
        heads.take(head(9, "e"), 2, OWN)
    assert heads.newest(2) == newest
    heads.take(head(10, "e"), 2, OWN)


def test_a_renewed_key_goes_on_and_cannot_go_back(tmp_path):
    heads = Heads(tmp_path)
    heads.take(head(9), 2, OWN)
    other = new_key()
    public = public_hex(other.public_key())
    with pytest.raises(TrustError, match="went back"):
        heads.take(head(8, "e", other), 2, public)
    heads.take(head(9, "e", other, epsilon=1.0), 2, public)  # blinded by another key
    assert heads.newest(2).public_key == public


def test_nobody_puts_down_anothers_head(tmp_path):
    heads = Heads(tmp_path)
    with pytest.raises(TrustError, match="not this holder's"):
        heads.take(head(), 3, OWN)
    with pytest.raises(TrustError, match="not this holder's"):
        heads.take(head(), 2, public_hex(new_key().public_key()))
    assert heads.newest(2) is heads.newest(3) is None


def test_spend_is_kept_and_a_bare_head_of_the_same_entry_does_not_take_it_away(tmp_path):
    heads = Heads(tmp_path)
    heads.take(head(9), 2, OWN)
    assert heads.under("c" * 64) == ()
    told = head(9, epsilon=4.0)
    heads.take(told, 2, OWN)
    heads.take(head(9), 2, OWN)
    heads.take(head(5, node_id=3, epsilon=2.0, digest="d"), 3, OWN)
    assert heads.under("c" * 64) == (told,)


def test_a_ledger_that_lost_entries_is_among_the_heads_of_a_release(tmp_path):
    heads = Heads(tmp_path)
    heads.take(head(9, overrides=1), 2, OWN)
    assert [kept.overrides for kept in heads.under("c" * 64)] == [1]


def test_a_file_that_was_changed_is_refused(tmp_path):
    heads = Heads(tmp_path)
    heads.take(head(9), 2, OWN)
    path = tmp_path / "heads.json"
    plain = json.loads(path.read_text())
    for changed in ({"2": {**plain["2"], "counter": 3}}, {"3": plain["2"]}, {"2": 1}):
        path.write_text(json.dumps(changed))
        with pytest.raises(CreditError):
            Heads(tmp_path)
    assert dataclasses.is_dataclass(heads.newest(2))
