import dataclasses
import os
import shutil
import stat
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from credit_client import identity
from credit_client.chain import GENESIS
from credit_client.identity import accept, open_identity
from credit_client.ledger import Ledger
from credit_common.bundle import Bundle, read_bundle, write_bundle
from credit_common.certificates import (
    Subject,
    certificate_sha256,
    common_name,
    expiry,
    key_pem,
    load_certificate,
    load_key,
    load_request,
    new_key,
    request_fingerprint,
    subject_of,
)
from credit_common.errors import ContractError, PrivacyError, TrustError
from credit_common.events import Histogram
from credit_server.authority import create_authority, issue_holder, issue_server
from credit_server.enrol import Registry, enrol

posix = pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return create_authority(tmp_path_factory.mktemp("authority"), "shop-credit")


@pytest.fixture(scope="module")
def bundle(authority, contract_text):
    return Bundle(
        federation="shop-credit",
        address="credit.example:8443",
        ca_pem=authority.ca_pem.decode(),
        contract_text=contract_text,
    )


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def coordinator(tmp_path, authority):
    folder = tmp_path / "coordinator"
    folder.mkdir()
    (folder / "ca.pem").write_bytes(authority.ca_pem)
    return folder


@pytest.fixture
def answer(home, authority, contract, coordinator):
    """What the coordinator does with a signing request, and the holder with its answer."""

    def make(name="books", **options):
        csr = (home / f"{name}.csr").read_bytes()
        enrolled, pem = enrol(coordinator, authority, contract, csr, where="it", **options)
        (home / f"{name}.pem").write_bytes(pem)
        return enrolled, pem

    return make


@pytest.fixture
def joined(home, bundle, answer):
    """A home whose holder is enrolled."""
    identity.request(home, bundle, "books", "small")
    answer()
    return home


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def spend(home):
    with Ledger.open(home / "books.ledger") as ledger:
        ledger.charge(
            "train",
            Histogram(noise_multiplier=20.0),
            contract_digest="c",
            message_id="m",
            request_digest="r",
            reply=b"reply",
            budget_epsilon=4.0,
            delta=1e-5,
        )
        return ledger.head


def test_a_request_makes_key_request_bundle_and_an_empty_ledger(home, bundle):
    path = identity.request(home, bundle, "books", "small")
    assert path == home / "books.csr"
    assert names(home) == ["books.csr", "books.key", "books.ledger", "bundle.json"]
    asked = load_request(path.read_bytes(), "it")
    assert subject_of(asked) == Subject(
        federation="shop-credit", name="books", node_id=0, size_class="small"
    )
    key = load_key((home / "books.key").read_bytes(), "it")
    assert asked.public_key() == key.public_key()
    assert read_bundle(home / "bundle.json") == bundle
    with Ledger.open(home / "books.ledger") as ledger:  # nobody else holds it
        assert ledger.head == (0, GENESIS)


@posix
def test_the_key_never_leaves_and_is_its_owners_alone(home, bundle):
    before = os.umask(0)
    try:
        identity.request(home, bundle, "books", "small")
    finally:
        os.umask(before)
    assert stat.S_IMODE((home / "books.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    secret = b"".join((home / "books.key").read_bytes().split()[3:5])
    for name in ("books.csr", "bundle.json", "books.ledger"):
        assert secret[:40] not in (home / name).read_bytes()
        assert b"PRIVATE" not in (home / name).read_bytes()


def test_from_request_to_enrolment_to_an_identity_that_the_coordinator_admits(
    home, bundle, answer, coordinator
):
    csr = identity.request(home, bundle, "books", "small").read_bytes()
    enrolled, pem = answer()
    mine = open_identity(home)
    assert mine.subject == Subject(
        federation="shop-credit", name="books", node_id=2, size_class="small"
    )
    assert (mine.home, mine.bundle, mine.certificate_pem) == (home, bundle, pem)
    assert mine.key_pem == mine.key_path.read_bytes()
    assert mine.certificate_path.read_bytes() == pem
    assert mine.ledger_path == home / "books.ledger"
    assert mine.not_after == expiry(load_certificate(pem, "it"))
    assert Registry(coordinator).admit(mine.certificate_pem) == enrolled
    assert request_fingerprint(csr) == request_fingerprint((home / "books.csr").read_bytes())
    assert "PRIVATE" not in repr(mine)


@pytest.mark.parametrize("name", ["", "../books", "a/b", "/etc/x", "Books", "a.b", "books\n", "."])
def test_a_name_that_could_be_a_path_is_refused_before_anything_is_written(
    home, bundle, name, tmp_path
):
    with pytest.raises(TrustError, match=r"name .*lower-case"):
        identity.request(home, bundle, name, "small")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("size_class", "error"), [("huge", ContractError), ("../x", TrustError)])
def test_a_size_class_that_is_not_the_contracts_is_refused_before_anything_is_written(
    home, bundle, size_class, error
):
    with pytest.raises(error, match="size class"):
        identity.request(home, bundle, "books", size_class)
    assert not home.exists()


def test_a_second_request_keeps_key_and_ledger(joined, bundle, answer, coordinator):
    before = {name: (joined / name).read_bytes() for name in ("books.key", "books.csr")}
    old = open_identity(joined)
    spent = spend(joined)
    identity.request(joined, bundle, "books", "small")
    assert (joined / "books.key").read_bytes() == before["books.key"]
    assert request_fingerprint((joined / "books.csr").read_bytes()) == request_fingerprint(
        before["books.csr"]
    )
    with Ledger.open(joined / "books.ledger") as ledger:
        assert ledger.head == spent
    assert open_identity(joined) == old  # the certificate goes on until the new one comes
    enrolled, _ = answer(renew=True)
    assert open_identity(joined).subject == old.subject
    assert certificate_sha256(open_identity(joined).certificate_pem) != certificate_sha256(
        old.certificate_pem
    )
    assert Registry(coordinator).admit(open_identity(joined).certificate_pem) == enrolled


def test_a_renewal_takes_an_amended_bundle_of_the_same_federation(joined, bundle):
    amended = dataclasses.replace(bundle, contract_text=bundle.contract_text + "# amended\n")
    identity.request(joined, amended, "books", "small")
    assert read_bundle(joined / "bundle.json") == amended


def foreign_bundles(bundle, tmp_path):
    twin = create_authority(tmp_path / "twin", "shop-credit")
    shoes = create_authority(tmp_path / "shoes", "shoe-credit")
    renamed = bundle.contract_text.replace('name = "shop-credit"', 'name = "shoe-credit"')
    return [
        (dataclasses.replace(bundle, ca_pem=twin.ca_pem.decode()), "another authority"),
        (
            dataclasses.replace(
                bundle,
                federation="shoe-credit",
                ca_pem=shoes.ca_pem.decode(),
                contract_text=renamed,
            ),
            "belongs to federation 'shop-credit', the bundle is of 'shoe-credit'",
        ),
    ]


def test_neither_a_renewal_nor_an_amendment_changes_whom_the_holder_trusts(
    joined, bundle, tmp_path
):
    before = {name: (joined / name).read_bytes() for name in names(joined)}
    for foreign, says in foreign_bundles(bundle, tmp_path):
        with pytest.raises(TrustError, match=says):
            identity.request(joined, foreign, "books", "small")
        with pytest.raises(TrustError, match=says):
            accept(joined, foreign)
    assert {name: (joined / name).read_bytes() for name in names(joined)} == before


def test_an_amendment_of_the_same_federation_is_taken(joined, bundle):
    text = bundle.contract_text.replace("epsilon = 4.0", "epsilon = 3.0")
    amended = dataclasses.replace(bundle, contract_text=text, address="[::1]:9000")
    before = open_identity(joined)
    accept(joined, amended)
    assert open_identity(joined) == dataclasses.replace(before, bundle=amended)
    assert open_identity(joined).bundle.contract.privacy.epsilon == 3.0


def test_there_is_nothing_to_amend_where_nothing_was_accepted(tmp_path, bundle):
    with pytest.raises(TrustError, match=r"bundle\.json is missing"):
        accept(tmp_path, bundle)
    assert list(tmp_path.iterdir()) == []


def test_an_amendment_that_drops_the_holders_size_class_stops_it(joined, bundle):
    text = bundle.contract_text.replace("{ small = 300, large = 3000 }", "{ large = 3000 }")
    accept(joined, dataclasses.replace(bundle, contract_text=text))
    with pytest.raises(ContractError, match="'small' is not in the contract; it has large"):
        open_identity(joined)


@pytest.mark.parametrize("left", ["books.key", "books.ledger"])
def test_a_home_is_for_one_identity(home, bundle, left):
    identity.request(home, bundle, "books", "small")
    for name in names(home):
        if name != left:
            (home / name).unlink()
    with pytest.raises(TrustError, match=f"{left}, of another identity than 'shoes'"):
        identity.request(home, bundle, "shoes", "small")
    assert names(home) == [left]


def test_a_home_with_two_keys_or_none_is_refused(joined, tmp_path):
    with pytest.raises(TrustError, match="holds no identity: make one with `credit-client request"):
        open_identity(tmp_path)
    with pytest.raises(TrustError, match="holds no identity"):
        open_identity(tmp_path / "missing")
    shutil.copy(joined / "books.key", joined / "shoes.key")
    with pytest.raises(TrustError, match=r"holds books\.key, shoes\.key: one identity per folder"):
        open_identity(joined)
    (joined / "books.key").unlink()
    (joined / "shoes.key").rename(joined / "Shoes!.key")
    with pytest.raises(TrustError, match="is not named after a holder"):
        open_identity(joined)


def test_before_enrolment_the_holder_is_told_what_to_do(home, bundle):
    identity.request(home, bundle, "books", "small")
    says = r"books\.pem is missing: .*books\.csr has to be enrolled .* books\.pem that comes back"
    with pytest.raises(TrustError, match=says):
        open_identity(home)


def test_a_lost_ledger_counts_as_exhausted_and_is_not_made_anew(joined, bundle):
    spend(joined)
    (joined / "books.ledger").unlink()
    with pytest.raises(PrivacyError, match="What is lost counts as spent: restore the newest copy"):
        open_identity(joined)
    with pytest.raises(PrivacyError, match="counts as spent"):
        identity.request(joined, bundle, "books", "small")
    (joined / "books.key").unlink()
    with pytest.raises(PrivacyError, match="counts as spent"):
        identity.request(joined, bundle, "books", "small")
    assert not (joined / "books.ledger").exists()


def test_after_a_lost_key_a_new_one_is_made_and_what_was_spent_stays_spent(joined, bundle, answer):
    spent = spend(joined)
    (joined / "books.key").unlink()
    identity.request(joined, bundle, "books", "small")
    with pytest.raises(TrustError, match=r"books\.pem is not for the key in .*books\.key"):
        open_identity(joined)
    answer(renew=True)
    with Ledger.open(open_identity(joined).ledger_path) as ledger:
        assert ledger.head == spent


@pytest.mark.parametrize("done", range(1, 6))
def test_a_request_that_was_interrupted_anywhere_can_be_made_again(
    home, bundle, answer, monkeypatch, done
):
    steps = []

    def until(name):
        real = getattr(identity, name)

        def step(*args):
            steps.append(name)
            if len(steps) == done:
                raise KeyboardInterrupt
            return real(*args)

        monkeypatch.setattr(identity, name, step)

    for name in ("new_key", "write_bundle", "write_private", "make_request", "write_atomically"):
        until(name)
    with pytest.raises(KeyboardInterrupt):
        identity.request(home, bundle, "books", "small")
    assert len(steps) == done
    identity.request(home, bundle, "books", "small")
    assert names(home) == ["books.csr", "books.key", "books.ledger", "bundle.json"]
    answer()
    assert open_identity(home).subject.name == "books"


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_refused_with_what_to_do(joined, bundle, mode):
    (joined / "books.key").chmod(mode)
    with pytest.raises(TrustError, match=r"chmod 600 .*books\.key"):
        open_identity(joined)
    with pytest.raises(TrustError, match=r"chmod 600 .*books\.key"):
        identity.request(joined, bundle, "books", "small")


@pytest.mark.parametrize("name", ["books.key", "books.pem", "bundle.json"])
def test_a_truncated_file_is_refused_by_name(joined, name):
    whole = (joined / name).read_bytes()
    for end in (0, 1, 40, len(whole) // 2, len(whole) - 30):
        (joined / name).write_bytes(whole[:end])
        with pytest.raises(TrustError, match=name):
            open_identity(joined)
    (joined / name).write_bytes(whole)
    open_identity(joined)


def test_a_missing_bundle_is_refused_with_what_to_do(joined, bundle):
    (joined / "bundle.json").unlink()
    with pytest.raises(TrustError, match=r"cannot read .*bundle\.json"):
        open_identity(joined)
    with pytest.raises(TrustError, match=r"bundle\.json is missing: put the coordinator's"):
        identity.request(joined, bundle, "books", "small")
    write_bundle(joined / "bundle.json", bundle)
    assert open_identity(joined).bundle == bundle


def test_a_tampered_contract_is_refused(joined):
    path = joined / "bundle.json"
    path.write_text(path.read_text().replace("epsilon = 4.0", "epsilon = 40.0"))
    with pytest.raises(TrustError, match=r"bundle\.json: contract digest"):
        open_identity(joined)


@pytest.fixture
def put(joined, authority):
    """Puts a certificate for the holder's own key into its home."""

    def make(by=authority, days=30, **changes):
        known = {
            "federation": "shop-credit", "name": "books", "node_id": 2, "size_class": "small"
        }  # fmt: skip
        request = load_request((joined / "books.csr").read_bytes(), "it")
        pem = issue_holder(by, request, Subject(**(known | changes)), days)
        (joined / "books.pem").write_bytes(pem)
        return load_certificate(pem, "it")

    return make


def test_a_certificate_of_another_authority_with_the_same_names_is_refused(joined, put, tmp_path):
    put()
    open_identity(joined)
    put(by=create_authority(tmp_path / "twin", "shop-credit"))
    with pytest.raises(TrustError, match=r"books\.pem is not signed by the authority"):
        open_identity(joined)
    put(by=create_authority(tmp_path / "shoes", "shoe-credit"), federation="shoe-credit")
    with pytest.raises(TrustError, match="not signed by the authority"):
        open_identity(joined)


def test_a_certificate_for_another_name_or_key_is_refused(joined, put, authority):
    put(name="shoes")
    with pytest.raises(TrustError, match=r"is for holder 'shoes' .* not for 'books'"):
        open_identity(joined)
    _, server = issue_server(authority, "credit.example")
    (joined / "books.pem").write_bytes(server)
    with pytest.raises(TrustError, match=r"is not for the key in .* has to be enrolled"):
        open_identity(joined)


def test_a_certificate_that_a_holder_signed_itself_is_refused(joined):
    key = load_key((joined / "books.key").read_bytes(), "it")
    who = Subject(federation="shop-credit", name="books", node_id=77, size_class="large")
    issued = load_certificate((joined / "books.pem").read_bytes(), "it")
    for issuer in (issued.issuer, issued.subject):
        certificate = (
            x509.CertificateBuilder(
                issuer_name=issuer,
                subject_name=common_name("books"),
                public_key=key.public_key(),
                serial_number=5,
                not_valid_before=issued.not_valid_before_utc,
                not_valid_after=issued.not_valid_after_utc,
            )
            .add_extension(who.alternative_names, critical=False)
            .sign(key, hashes.SHA256())
        )
        (joined / "books.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        with pytest.raises(TrustError, match="not signed by the authority"):
            open_identity(joined)


def test_an_expired_certificate_names_its_date_and_how_to_renew(joined, put):
    end = expiry(put(days=-2)).isoformat()
    with pytest.raises(TrustError) as caught:
        open_identity(joined)
    said = str(caught.value)
    assert f"expired on {end}" in said
    assert "`credit-client request` again" in said
    assert "`flower-server enrol --renew`" in said


def reissue(authority, certificate, start, end, names):
    """The authority's signature under other dates and names."""
    builder = x509.CertificateBuilder(
        certificate.issuer, certificate.subject, certificate.public_key(), 5, start, end
    )
    signed = builder.add_extension(names, critical=False).sign(authority.key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


def test_a_certificate_that_is_not_valid_yet_blames_the_clock(joined, authority, put):
    good = put()
    start, end = datetime(2900, 1, 1, tzinfo=UTC), datetime(2901, 1, 1, tzinfo=UTC)
    names = subject_of(good).alternative_names
    (joined / "books.pem").write_bytes(reissue(authority, good, start, end, names))
    with pytest.raises(TrustError) as caught:
        open_identity(joined)
    assert f"not valid before {start.isoformat()}" in str(caught.value)
    assert f"{datetime.now(UTC):%Y-%m-%d}" in str(caught.value)
    assert "clock" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"node_id": 0}, "node id 0, which is no holder's"),
        ({"node_id": 1}, "node id 1, which is no holder's"),
        ({"federation": "shoes"}, "of federation 'shoes', not for 'books' of 'shop-credit'"),
    ],
)
def test_what_the_authority_should_never_have_signed_is_refused(
    joined, authority, put, change, says
):
    good = put()
    names = dataclasses.replace(subject_of(good), **change).alternative_names
    dates = good.not_valid_before_utc, good.not_valid_after_utc
    (joined / "books.pem").write_bytes(reissue(authority, good, *dates, names))
    with pytest.raises(TrustError, match=says):
        open_identity(joined)


def test_another_key_under_the_holders_name_does_not_pass_for_it(joined):
    (joined / "books.key").write_bytes(key_pem(new_key()))
    with pytest.raises(TrustError, match="is not for the key"):
        open_identity(joined)
