import dataclasses
import ipaddress
import os
import stat
import threading
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from credit_common.certificates import (
    Subject,
    common_name,
    expiry,
    is_issued_by,
    key_pem,
    load_certificate,
    load_key,
    load_request,
    make_request,
    new_key,
    subject_of,
)
from credit_common.errors import LinkError, TrustError
from credit_server.authority import (
    Authority,
    create_authority,
    issue_holder,
    issue_server,
    open_authority,
    read_ca,
)

WHO = Subject(federation="shop-credit", name="books", node_id=2, size_class="small")
PEM = serialization.Encoding.PEM


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("parent") / "coordinator"
    create_authority(made, "shop-credit")
    return made


@pytest.fixture(scope="module")
def authority(folder):
    return open_authority(folder)


def request_of(key, who=WHO):
    return load_request(make_request(key, dataclasses.replace(who, node_id=0)), "it")


def extension(certificate, kind):
    found = certificate.extensions.get_extension_for_class(kind)
    return found.value, found.critical


def may(certificate):
    """What a certificate's key usage allows."""
    usage, critical = extension(certificate, x509.KeyUsage)
    assert critical
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment")
    names += ("key_agreement", "key_cert_sign", "crl_sign")
    return [name for name in names if getattr(usage, name)]


def test_the_authority_signs_certificates_of_one_level_for_ten_years_and_nothing_else(authority):
    ca = authority.certificate
    assert extension(ca, x509.BasicConstraints) == (
        x509.BasicConstraints(ca=True, path_length=0),
        True,
    )
    assert may(ca) == ["key_cert_sign"]
    assert is_issued_by(ca, ca)
    assert authority.federation == "shop-credit"
    assert 3650 <= (expiry(ca) - datetime.now(UTC)).days <= 3653


def test_an_authority_is_the_same_when_it_is_opened_again(folder, authority):
    again = open_authority(folder)
    assert again.ca_pem == authority.ca_pem == (folder / "ca.pem").read_bytes()
    assert again.key.private_numbers() == authority.key.private_numbers()
    assert read_ca(folder) == authority.certificate


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
def test_the_key_of_the_authority_is_its_owners_alone(folder, tmp_path):
    assert stat.S_IMODE((folder / "ca.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    create_authority(tmp_path, "shop-credit")
    (tmp_path / "ca.key").chmod(0o640)
    with pytest.raises(TrustError, match=r"chmod 600 .*ca\.key"):
        open_authority(tmp_path)


def test_the_key_of_the_authority_is_not_shown(authority):
    assert "key=" not in repr(authority)
    assert "PRIVATE" not in repr(authority)


@pytest.mark.parametrize("left", ["ca.key", "ca.pem"])
def test_an_authority_is_never_replaced_not_even_half_of_one(tmp_path, left):
    create_authority(tmp_path, "shop-credit")
    for name in ("ca.key", "ca.pem"):
        if name != left:
            (tmp_path / name).unlink()
    before = (tmp_path / left).read_bytes()
    with pytest.raises(TrustError, match=f"{left} exists already: an authority is never replaced"):
        create_authority(tmp_path, "shop-credit")
    assert (tmp_path / left).read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [left]


def test_of_many_at_once_one_makes_the_authority_and_its_files_match(tmp_path):
    made, refused, start = [], [], threading.Barrier(6)

    def create():
        start.wait()
        try:
            made.append(create_authority(tmp_path, "shop-credit"))
        except TrustError as error:
            refused.append(error)

    threads = [threading.Thread(target=create) for _ in range(6)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert (len(made), len(refused)) == (1, 5)
    assert open_authority(tmp_path).ca_pem == made[0].ca_pem


@pytest.mark.parametrize("fails_at", [1, 2])
def test_an_authority_that_could_not_be_finished_can_be_made_again(tmp_path, monkeypatch, fails_at):
    written = []

    def full_disk(handle):
        written.append(handle)
        if len(written) == fails_at:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(TrustError, match="No space left"):
        create_authority(tmp_path, "shop-credit")
    assert list(tmp_path.iterdir()) == []
    assert create_authority(tmp_path, "shop-credit").ca_pem == open_authority(tmp_path).ca_pem


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TrustError, match=r"cannot write the authority to .*file/below"):
        create_authority(tmp_path / "file" / "below", "shop-credit")


@pytest.mark.parametrize("name", ["", "Shop", "../x", "a/b", "x" * 64])
def test_a_federation_needs_a_name(tmp_path, name):
    with pytest.raises(TrustError, match="federation"):
        create_authority(tmp_path / "home", name)
    assert not (tmp_path / "home").exists()


def test_files_that_are_missing_damaged_or_of_another_authority_are_refused(tmp_path):
    with pytest.raises(TrustError, match=r"cannot read .*ca\.key: No such file"):
        open_authority(tmp_path)
    create_authority(tmp_path, "shop-credit")
    pem = (tmp_path / "ca.pem").read_bytes()
    (tmp_path / "ca.pem").unlink()
    with pytest.raises(TrustError, match=r"cannot read .*ca\.pem: No such file"):
        open_authority(tmp_path)
    (tmp_path / "ca.pem").write_bytes(pem[:-50])
    with pytest.raises(TrustError, match=r"ca\.pem is not a certificate"):
        open_authority(tmp_path)
    create_authority(tmp_path / "other", "shop-credit")
    (tmp_path / "ca.pem").write_bytes((tmp_path / "other" / "ca.pem").read_bytes())
    with pytest.raises(TrustError, match=r"ca\.pem is not for the key in .*ca\.key"):
        open_authority(tmp_path)
    private, server = issue_server(open_authority(tmp_path / "other"), "a.example")
    (tmp_path / "ca.key").write_bytes(private)
    (tmp_path / "ca.pem").write_bytes(server)
    for read in (open_authority, read_ca):
        with pytest.raises(TrustError, match=r"ca\.pem is not an authority's certificate"):
            read(tmp_path)
    (tmp_path / "ca.pem").write_bytes(pem)
    (tmp_path / "ca.key").write_bytes(b"")
    with pytest.raises(TrustError, match=r"ca\.key is not an unencrypted private key"):
        open_authority(tmp_path)


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("credit.example", x509.DNSName("credit.example")),
        ("localhost", x509.DNSName("localhost")),
        ("127.0.0.1", x509.IPAddress(ipaddress.ip_address("127.0.0.1"))),
        ("2001:db8::7", x509.IPAddress(ipaddress.ip_address("2001:db8::7"))),
        (".".join(["x" * 60] * 4), x509.DNSName(".".join(["x" * 60] * 4))),
    ],
)
def test_the_server_is_certified_for_its_host_and_as_a_server_alone(authority, host, name):
    private, pem = issue_server(authority, host)
    certificate = load_certificate(pem, "it")
    names, _ = extension(certificate, x509.SubjectAlternativeName)
    assert list(names) == [name]
    purposes, _ = extension(certificate, x509.ExtendedKeyUsage)
    assert list(purposes) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert load_key(private, "it").public_key() == certificate.public_key()
    assert (expiry(certificate) - datetime.now(UTC)).days in (396, 397)
    with pytest.raises(TrustError, match="0 holders"):
        subject_of(certificate)
    store = PolicyBuilder().store(Store([authority.certificate]))
    store.build_server_verifier(name).verify(certificate, [])
    with pytest.raises(VerificationError):
        store.build_server_verifier(x509.DNSName("other.example")).verify(certificate, [])


def test_each_run_of_the_server_has_a_fresh_key_and_serial(authority):
    keys, pems = zip(*(issue_server(authority, "a.example") for _ in range(5)), strict=True)
    assert len(set(keys)) == 5
    assert len({load_certificate(pem, "it").serial_number for pem in pems}) == 5


@pytest.mark.parametrize("host", ["", "*.example", "a b", "host:443", "http://a.example", "1.2.3"])
def test_a_server_name_that_is_no_host_is_refused(authority, host):
    with pytest.raises(LinkError, match="host "):
        issue_server(authority, host)


def test_a_holder_is_certified_as_a_client_alone_with_the_key_of_its_request(authority):
    key = new_key()
    certificate = load_certificate(issue_holder(authority, request_of(key), WHO, 30), "it")
    assert subject_of(certificate) == WHO
    assert certificate.public_key() == key.public_key()
    assert is_issued_by(certificate, authority.certificate)
    purposes, _ = extension(certificate, x509.ExtendedKeyUsage)
    assert list(purposes) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert extension(certificate, x509.BasicConstraints) == (
        x509.BasicConstraints(ca=False, path_length=None),
        True,
    )
    assert may(certificate) == ["digital_signature"]


def test_nothing_but_the_key_is_taken_from_a_request(authority):
    key = new_key()
    greedy = (
        x509.CertificateSigningRequestBuilder(common_name("books"))
        .add_extension(
            x509.SubjectAlternativeName(
                [
                    x509.UniformResourceIdentifier("urn:credit-federation:other:shoes:99:large"),
                    x509.DNSName("credit.example"),
                ]
            ),
            critical=True,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=5), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]), critical=False
        )
        .add_extension(x509.OCSPNoCheck(), critical=False)
        .sign(key, hashes.SHA256())
    )

    def shape(request):
        certificate = load_certificate(issue_holder(authority, request, WHO, 30), "it")
        plain = {
            e.oid: (e.critical, e.value)
            for e in certificate.extensions
            if not isinstance(e.value, x509.SubjectKeyIdentifier)
        }
        return certificate.subject, certificate.issuer, plain

    assert shape(greedy) == shape(request_of(new_key()))


def test_a_holder_can_neither_act_as_the_server_nor_as_an_authority(authority):
    key = new_key()
    holder = load_certificate(issue_holder(authority, request_of(key), WHO, 30), "it")
    store = PolicyBuilder().store(Store([authority.certificate]))
    store.build_client_verifier().verify(holder, [])
    with pytest.raises(VerificationError):
        store.build_server_verifier(x509.DNSName("books")).verify(holder, [])
    other = new_key()
    forged = dataclasses.replace(WHO, name="shoes", node_id=3)
    by_holder = (
        x509.CertificateBuilder(
            issuer_name=holder.subject,
            subject_name=common_name("shoes"),
            public_key=other.public_key(),
            serial_number=9,
            not_valid_before=holder.not_valid_before_utc,
            not_valid_after=holder.not_valid_after_utc,
        )
        .add_extension(forged.alternative_names, critical=False)
        .sign(key, hashes.SHA256())
    )
    assert not is_issued_by(by_holder, authority.certificate)
    with pytest.raises(VerificationError):
        store.build_client_verifier().verify(by_holder, [holder])


def test_validity_begins_an_hour_back_and_lasts_the_days_asked_for(authority):
    for days in (1, 365, 3650, -1):
        pem = issue_holder(authority, request_of(new_key()), WHO, days)
        certificate = load_certificate(pem, "it")
        start, end = certificate.not_valid_before_utc, expiry(certificate)
        now = datetime.now(UTC)
        assert abs(end - now - timedelta(days=days)) < timedelta(minutes=1)
        assert start <= min(now, end) - timedelta(minutes=59)


def aged(authority, end):
    """The same authority with another end of its validity."""
    ca = authority.certificate
    start = min(ca.not_valid_before_utc, end - timedelta(days=1))
    builder = x509.CertificateBuilder(ca.issuer, ca.subject, ca.public_key(), 7, start, end)
    for e in ca.extensions:
        builder = builder.add_extension(e.value, e.critical)
    signed = builder.sign(authority.key, hashes.SHA256())
    return Authority(ca_pem=signed.public_bytes(PEM), key=authority.key)


def test_no_certificate_outlives_its_authority(authority):
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(days=5)
    old = aged(authority, end)
    holder = issue_holder(old, request_of(new_key()), WHO, 365)
    _, server = issue_server(old, "a.example")
    assert expiry(load_certificate(holder, "it")) == end
    assert expiry(load_certificate(server, "it")) == end


def test_days_are_bounded(authority):
    for days in (3653, 10**9, -(10**9)):
        with pytest.raises(TrustError, match="at most 3652"):
            issue_holder(authority, request_of(new_key()), WHO, days)


def test_an_expired_authority_signs_nothing_more(authority):
    old = aged(authority, datetime.now(UTC).replace(microsecond=0) - timedelta(days=1))
    with pytest.raises(TrustError, match="has expired on"):
        issue_server(old, "a.example")
    with pytest.raises(TrustError, match="has expired on"):
        issue_holder(old, request_of(new_key()), WHO, 1)


def test_a_holder_of_another_federation_or_without_a_node_id_of_its_own_is_refused(authority):
    request = request_of(new_key())
    with pytest.raises(TrustError, match="'shop-credit', not 'shoe-credit'"):
        issue_holder(authority, request, dataclasses.replace(WHO, federation="shoe-credit"), 1)
    for node_id in (0, 1):
        with pytest.raises(TrustError, match=f"node id {node_id}: a holder's must be above 1"):
            issue_holder(authority, request, dataclasses.replace(WHO, node_id=node_id), 1)


def test_a_request_for_another_kind_of_key_is_not_signed(authority):
    key = ec.generate_private_key(ec.SECP384R1())
    request = x509.CertificateSigningRequestBuilder(common_name("books")).sign(key, hashes.SHA256())
    with pytest.raises(TrustError, match="P-256"):
        issue_holder(authority, request, WHO, 1)


def test_two_authorities_of_one_name_do_not_vouch_for_each_others_holders(authority, tmp_path):
    foreign = create_authority(tmp_path, "shop-credit")
    pem = issue_holder(foreign, request_of(new_key()), WHO, 30)
    certificate = load_certificate(pem, "it")
    assert subject_of(certificate) == WHO
    assert certificate.issuer == authority.certificate.subject
    assert not is_issued_by(certificate, authority.certificate)
    store = PolicyBuilder().store(Store([authority.certificate]))
    with pytest.raises(VerificationError):
        store.build_client_verifier().verify(certificate, [])
    assert key_pem(foreign.key) != key_pem(authority.key)
