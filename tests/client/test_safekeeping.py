import json
import os
import shutil

import pytest

from credit_client import identity as own
from credit_client.chain import canonical
from credit_client.heads import OwnHeads
from credit_client.ledger import Ledger
from credit_client.safekeeping import backup, is_signed_override, override, restore
from credit_common.bundle import Bundle
from credit_common.certificates import public_hex
from credit_common.errors import LedgerBusyError, PrivacyError, TrustError
from credit_common.events import Histogram
from credit_server.authority import create_authority
from credit_server.enrol import enrol
from credit_server.heads import Heads

EVENT = Histogram(noise_multiplier=20.0)


@pytest.fixture(scope="module")
def federation(tmp_path_factory, contract_text):
    folder = tmp_path_factory.mktemp("coordinator")
    authority = create_authority(folder, "shop-credit")
    bundle = Bundle(
        federation="shop-credit",
        address="credit.example:8443",
        ca_pem=authority.ca_pem.decode(),
        contract_text=contract_text,
    )
    return folder, authority, bundle


@pytest.fixture
def holder(tmp_path, federation, contract, request):
    folder, authority, bundle = federation
    name = f"h{abs(hash(request.node.nodeid)) % 10**12}"  # nobody enrols one name twice
    csr = own.request(tmp_path / "home", bundle, name, "small")
    _, pem = enrol(folder, authority, contract, csr.read_bytes(), where=name)
    csr.with_suffix(".pem").write_bytes(pem)
    return own.open_identity(tmp_path / "home")


def opened(holder):
    return Ledger.open(holder.ledger_path, holder.witness)


def spend(holder, *numbers):
    with opened(holder) as ledger:
        for number in numbers:
            ledger.charge(
                "holdout",
                EVENT,
                contract_digest="c",
                message_id=f"m{number}",
                request_digest="r",
                reply=f"reply {number}".encode(),
                budget_epsilon=8.0,
                delta=1e-5,
            )
        return ledger.epsilon_overall(1e-5)


def test_a_backup_brings_the_ledger_back_whole(holder, tmp_path):
    spent = spend(holder, 0, 1, 2)
    assert backup(holder, tmp_path / "saved") == 3
    if os.name == "posix":
        assert (tmp_path / "saved").stat().st_mode & 0o077 == 0
    holder.ledger_path.unlink()
    assert restore(holder, tmp_path / "saved") == 3
    with opened(holder) as ledger:
        assert ledger.epsilon_overall(1e-5) == spent
        assert ledger.lookup("m1", "r") == b"reply 1"
        assert ledger.balance.overrides == []


def test_a_backup_replaces_its_own_older_copy_and_nothing_else(holder, tmp_path):
    spend(holder, 0)
    backup(holder, tmp_path / "saved")
    spend(holder, 1)
    assert backup(holder, tmp_path / "saved") == 2
    other = tmp_path / "other"
    with Ledger.create(other) as ledger:
        ledger.bind_split("salt", 0.2)
    with pytest.raises(PrivacyError, match="does not continue"):
        backup(holder, other)
    (tmp_path / "letter").write_text("Dear")
    with pytest.raises(PrivacyError):
        backup(holder, tmp_path / "letter")
    assert (tmp_path / "letter").read_text() == "Dear"
    with pytest.raises(PrivacyError, match="cannot"):
        backup(holder, tmp_path / "no" / "folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "letter", "other", "saved"]


def test_an_older_backup_counts_as_exhausted_until_a_person_signs(holder, tmp_path):
    spend(holder, 0)
    backup(holder, tmp_path / "saved")
    spend(holder, 1, 2)
    holder.ledger_path.unlink()
    with pytest.raises(PrivacyError, match="counts as spent"):
        own.open_identity(holder.home)
    lost = own.open_identity(holder.home, ledger_lost=True)
    assert restore(lost, tmp_path / "saved") == 1
    with pytest.raises(PrivacyError, match="rolled back: it ends at entry 1"):
        opened(holder)
    entry = override(holder, "the disk broke on Tuesday")
    words = json.loads(entry.event)
    assert words["reason"] == "the disk broke on Tuesday"
    assert words["counter"] == 3
    assert is_signed_override(entry.event, entry.previous)
    with opened(holder) as ledger:
        assert (ledger.balance.counter, ledger.balance.lost) == (4, 2)
        assert len(ledger.balance.overrides) == 1
    assert spend(holder, 3) > 0
    assert holder.witness.mark().counter == 5


def test_a_ledger_lost_for_good_is_made_anew_by_a_signed_word_alone(holder):
    spend(holder, 0, 1)
    holder.ledger_path.unlink()
    entry = override(holder, "no backup was made")
    assert entry.sequence == 1
    with opened(holder) as ledger:
        assert (ledger.balance.counter, ledger.balance.lost) == (3, 2)
    spend(holder, 2)
    with opened(holder) as ledger:  # the word stays for ever
        assert [e.account for e in ledger.entries()] == ["override", "holdout"]


def test_without_its_witness_a_lost_ledger_still_needs_the_word(holder):
    spend(holder, 0)
    holder.ledger_path.unlink()
    holder.witness.path.unlink()
    with pytest.raises(PrivacyError, match="counts as spent"):
        own.open_identity(holder.home)
    override(holder, "the whole machine is gone", counter=1)
    with opened(holder) as ledger:
        assert (ledger.balance.counter, ledger.balance.lost) == (2, 1)


def test_there_is_nothing_to_sign_for_in_a_whole_ledger(holder):
    spend(holder, 0)
    with pytest.raises(PrivacyError, match="nothing to sign for"):
        override(holder, "just so")
    for reason in ("", "  ", "x" * 501):
        with pytest.raises(PrivacyError, match="reason"):
            override(holder, reason)


def test_a_signed_word_cannot_be_changed_or_moved(holder):
    spend(holder, 0)
    holder.ledger_path.unlink()
    entry = override(holder, "gone")
    words = json.loads(entry.event)
    assert not is_signed_override(entry.event, "0" * 64)
    for changed in ({"reason": "stolen"}, {"counter": 0}, {"holder": "other"}, {"signature": ""}):
        assert not is_signed_override(canonical({**words, **changed}), entry.previous)
    del words["signature"]
    assert not is_signed_override(canonical(words), entry.previous)


def test_a_damaged_ledger_is_kept_beside_the_restored_one(holder, tmp_path):
    spend(holder, 0)
    backup(holder, tmp_path / "saved")
    for _ in range(2):
        holder.ledger_path.write_bytes(b"no ledger at all")
        restore(holder, tmp_path / "saved")
    with opened(holder) as ledger:
        assert ledger.balance.counter == 1
    names = {p.name.partition(".ledger")[2] for p in holder.home.glob("*.ledger*")}
    assert names == {"", ".damaged", ".damaged~1"}


def test_a_newer_ledger_is_never_replaced_and_one_in_use_neither(holder, tmp_path):
    spend(holder, 0)
    backup(holder, tmp_path / "saved")
    with opened(holder), pytest.raises(LedgerBusyError):
        restore(holder, tmp_path / "saved")
    with opened(holder), pytest.raises(LedgerBusyError):
        backup(holder, tmp_path / "saved")
    spend(holder, 1)
    with pytest.raises(PrivacyError, match="2 entries that the other ledger, with 1, does not"):
        restore(holder, tmp_path / "saved")
    with opened(holder) as ledger:
        assert ledger.balance.counter == 2
    with pytest.raises(PrivacyError):
        restore(holder, tmp_path / "missing")  # one that is not there


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such lock")
def test_while_a_client_runs_on_a_copy_nothing_is_restored_or_signed_for(holder, tmp_path):
    spend(holder, 0)
    backup(holder, tmp_path / "saved")
    copy = tmp_path / "copy.ledger"
    shutil.copy(holder.ledger_path, copy)
    holder.ledger_path.unlink()
    with Ledger.open(copy, holder.witness):
        with pytest.raises(LedgerBusyError, match="in use by another client"):
            restore(holder, tmp_path / "saved")
        with pytest.raises(LedgerBusyError, match="in use by another client"):
            override(holder, "gone")
        assert not holder.ledger_path.exists()
    restore(holder, tmp_path / "saved")
    with opened(holder) as ledger:
        assert ledger.balance.counter == 1


def test_the_coordinators_head_shows_a_roll_back_that_the_witness_cannot(holder, tmp_path):
    """Ledger and witness both went back, as when a whole machine is restored."""
    heads = Heads(tmp_path)
    node = holder.subject.node_id
    spend(holder, 0)
    backup(holder, tmp_path / "saved")
    mark = holder.witness.path.read_bytes()
    spend(holder, 1)
    with opened(holder) as ledger:
        mine = OwnHeads(holder, ledger)
        shown = mine.head()
        heads.take(shown, node, shown.public_key)
        mine.check(heads.newest(node))
    holder.ledger_path.unlink()
    restore(own.open_identity(holder.home, ledger_lost=True), tmp_path / "saved")
    holder.witness.path.write_bytes(mark)
    with opened(holder) as ledger:
        back = OwnHeads(holder, ledger)
        with pytest.raises(PrivacyError, match=r"ends at entry 1.*head with 2 entries"):
            back.check(heads.newest(node))
        with pytest.raises(TrustError, match="went back"):
            heads.take(back.head(), node, shown.public_key)
    override(holder, "restored the machine", counter=2)
    with opened(holder) as ledger:
        mine = OwnHeads(holder, ledger)
        mine.check(heads.newest(node))
        heads.take(mine.head(), node, shown.public_key)
    assert (heads.newest(node).counter, heads.newest(node).overrides) == (3, 1)


def test_another_chain_of_the_same_length_is_seen_by_the_blinded_hash(holder, tmp_path):
    spend(holder, 0)
    with opened(holder) as ledger:
        shown = OwnHeads(holder, ledger).head()
    holder.ledger_path.unlink()
    holder.witness.path.unlink()
    Ledger.create(holder.ledger_path).close()
    spend(holder, 7)
    with (
        opened(holder) as ledger,
        pytest.raises(PrivacyError, match="another one than the coordinator's head"),
    ):
        OwnHeads(holder, ledger).check(shown)


def test_a_head_tells_nothing_that_is_not_in_its_fields(holder):
    """The blinded hash of one chain differs between holders, and says nothing of the hash."""
    spend(holder, 0)
    with opened(holder) as ledger:
        head = OwnHeads(holder, ledger).head(spend=True)
        assert ledger.head[1] not in repr(head)
        assert head.epsilon == ledger.epsilon_overall(1e-5)
        assert head.epsilon_replace_one == ledger.epsilon_replace_one(1e-5)
        assert OwnHeads(holder, ledger).head().epsilon is None
    assert head.public_key == public_hex(own.load_key(holder.key_pem, "").public_key())


def test_after_a_loss_no_head_tells_what_was_spent(holder):
    spend(holder, 0)
    holder.ledger_path.unlink()
    override(holder, "gone")
    spend(holder, 1)
    with opened(holder) as ledger:
        head = OwnHeads(holder, ledger).head(spend=True)
    assert (head.epsilon, head.epsilon_replace_one, head.overrides) == (None, None, 1)


def test_words_that_were_lost_themselves_are_still_counted(holder):
    for number in range(3):
        spend(holder, number)
        holder.ledger_path.unlink()
        override(holder, "gone again")
    with opened(holder) as ledger:
        assert len(ledger.balance.overrides) == 1
        assert ledger.balance.signed == 3
        assert OwnHeads(holder, ledger).head().overrides == 3


def test_a_holder_that_took_part_gets_no_new_ledger_though_all_else_is_lost(holder, federation):
    """Key, certificate and ledger are gone; the witness remembers."""
    spend(holder, 0)
    name = holder.subject.name
    for path in holder.home.iterdir():
        path.unlink()
    with pytest.raises(PrivacyError, match=f"'{name}' took part before"):
        own.request(holder.home, federation[2], name, "small")
    holder.witness.path.unlink()
    holder.manifest.add("adapter", 1, message_id="m", round=1, payload_sha256="0" * 64)
    with pytest.raises(PrivacyError, match=r"manifest\.jsonl shows"):
        own.request(holder.home, federation[2], name, "small")
    assert not holder.ledger_path.exists()


def test_a_new_key_does_not_shake_off_the_witness(holder, federation):
    spend(holder, 0)
    older = holder.ledger_path.read_bytes()
    spend(holder, 1)
    holder.key_path.unlink()
    own.request(holder.home, federation[2], holder.subject.name, "small")
    holder.ledger_path.write_bytes(older)
    with pytest.raises(PrivacyError, match="rolled back"):
        opened(holder)
