import base64
import hashlib
import os
import random
import ssl
import stat
import subprocess
import sys
import warnings
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from credit_common.certificates import (
    Subject,
    authority_name,
    certificate_sha256,
    common_name,
    expiry,
    fingerprint,
    is_issued_by,
    key_pem,
    load_certificate,
    load_key,
    load_request,
    make_request,
    new_key,
    public_key_of,
    read_private,
    request_fingerprint,
    same_fingerprint,
    subject_of,
    write_private,
)
from credit_common.errors import TrustError

WHO = Subject(federation="shop-credit", name="books", node_id=7, size_class="small")
PEM = serialization.Encoding.PEM


@pytest.fixture(scope="module")
def key():
    return new_key()


def certify(key, names=(), *, cn="books", extensions=()):
    """A self-signed certificate with any names and extensions."""
    now = datetime.now(UTC).replace(microsecond=0)
    builder = x509.CertificateBuilder(
        issuer_name=common_name(cn),
        subject_name=common_name(cn),
        public_key=key.public_key(),
        serial_number=5,
        not_valid_before=now,
        not_valid_after=now + timedelta(days=3),
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(list(names)), critical=False)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(key, hashes.SHA256())


def uri(text):
    return x509.UniformResourceIdentifier(text)


def test_a_subject_survives_the_way_through_a_certificate_and_a_request(key):
    for node_id in (0, 1, 2, 2**63 - 1):
        who = Subject(federation="f-1", name="x" * 63, node_id=node_id, size_class="9")
        signed = certify(key, [uri(who.uri)], cn=who.name)
        assert subject_of(load_certificate(signed.public_bytes(PEM), "it")) == who
        assert subject_of(load_request(make_request(key, who), "it")) == who
    assert WHO.uri == "urn:credit-federation:shop-credit:books:7:small"


@pytest.mark.parametrize("attribute", ["federation", "name", "size_class"])
@pytest.mark.parametrize(
    "text", ["", "A", "../x", "a/b", "a\\b", "a:b", "-a", "a.b", "a\n", "a b", "é", "x" * 64]
)
def test_a_text_that_is_no_name_is_refused_by_attribute(attribute, text):
    known = {"federation": "f", "name": "n", "node_id": 2, "size_class": "c"}
    with pytest.raises(TrustError, match=f"{attribute.replace('_', ' ')} .*lower-case letters"):
        Subject(**(known | {attribute: text}))


def test_no_holder_has_the_name_of_the_authoritys_files(key):
    with pytest.raises(TrustError, match="name 'ca': must be another one"):
        Subject(federation="ca", name="ca", node_id=0, size_class="ca")
    with pytest.raises(TrustError, match="name 'ca'"):
        subject_of(certify(key, [uri(WHO.uri.replace("books", "ca"))], cn="ca"))


@pytest.mark.parametrize("node_id", [-1, 2**63])
def test_a_node_id_outside_its_range_is_refused(node_id):
    with pytest.raises(TrustError, match="node id"):
        Subject(federation="f", name="n", node_id=node_id, size_class="c")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ((), "0 holders"),
        ((x509.DNSName("books"),), "0 holders"),
        ((uri(WHO.uri), uri(WHO.uri.replace(":7:", ":8:"))), "2 holders"),
        ((uri(WHO.uri), uri("https://books.example")), "2 holders"),
        ((uri("https://books.example"),), "does not name"),
        ((uri(WHO.uri + ":more"),), "does not name"),
        ((uri(WHO.uri + "\n"),), "does not name"),
        ((uri("x" + WHO.uri),), "does not name"),
        ((uri(WHO.uri.replace(":7:", ":07:")),), "does not name"),
        ((uri(WHO.uri.replace(":7:", ":-7:")),), "does not name"),
        ((uri(WHO.uri.replace(":7:", "::")),), "does not name"),
        ((uri(WHO.uri.replace("books", "../books")),), "does not name"),
        ((uri(WHO.uri.replace("books", "Books")),), "does not name"),
        ((uri(WHO.uri.replace(":7:", f":{2**63}:")),), "below 2"),
        ((uri(WHO.uri.replace("books", "shoes")),), "another CN"),
    ],
)
def test_a_certificate_names_exactly_one_holder_and_shows_the_same_name_to_people(key, names, says):
    with pytest.raises(TrustError, match=says):
        subject_of(certify(key, names))


def test_a_second_cn_cannot_hide_behind_the_right_one(key):
    builder = x509.CertificateSigningRequestBuilder(
        x509.Name([*common_name("books"), *common_name("shoes")])
    ).add_extension(WHO.alternative_names, critical=False)
    with pytest.raises(TrustError, match="another CN"):
        subject_of(builder.sign(key, hashes.SHA256()))


def test_a_certificate_file_holds_one_certificate_and_its_error_says_where(key):
    pem = certify(key).public_bytes(PEM)
    assert load_certificate(b"a comment\n" + pem, "it").public_bytes(PEM) == pem
    with pytest.raises(TrustError, match=r"ca\.pem holds 2 certificates"):
        load_certificate(pem + pem, "ca.pem")
    for bad in (b"", pem[:-40], pem[40:], b"\0" * 99, key_pem(key), make_request(key, WHO)):
        with pytest.raises(TrustError, match=r"^ca\.pem "):
            load_certificate(bad, "ca.pem")


@pytest.mark.parametrize("kind", ["certificate", "request"])
def test_damaged_bytes_raise_nothing_but_a_trust_error(key, kind):
    draw = random.Random(3)
    if kind == "certificate":
        extension = x509.BasicConstraints(ca=True, path_length=0)
        der = certify(key, [uri(WHO.uri)], extensions=[extension]).public_bytes(
            serialization.Encoding.DER
        )
        label = b"CERTIFICATE"
    else:
        der = x509.load_pem_x509_csr(make_request(key, WHO)).public_bytes(
            serialization.Encoding.DER
        )
        label = b"CERTIFICATE REQUEST"
    refused = 0
    for _ in range(3000):
        damaged = bytearray(der)
        for _ in range(draw.choice([1, 1, 2, 5])):
            damaged[draw.randrange(len(der))] = draw.randrange(256)
        pem = armour(
            bytes(damaged[: draw.choice([len(der)] * 9 + [draw.randrange(len(der))])]), label
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # cryptography's, about odd fields
            try:
                if kind == "certificate":
                    found = load_certificate(pem, "it")
                    certificate_sha256(found), expiry(found), subject_of(found)
                    public_key_of(found, "it")
                    authority_name(found, "it")
                else:
                    subject_of(load_request(pem, "it"))
                    request_fingerprint(pem)
            except TrustError:
                refused += 1
    assert refused > 2000  # the rest is damage in random bytes that nothing here relies on


def armour(der, label):
    return b"-----BEGIN %b-----\n%b-----END %b-----\n" % (label, base64.encodebytes(der), label)


def test_no_damage_to_a_request_changes_whom_or_which_key_it_is_for(key):
    pem = make_request(key, WHO)
    der = x509.load_pem_x509_csr(pem).public_bytes(serialization.Encoding.DER)
    passed = 0
    for at in range(len(der)):
        damaged = der[:at] + bytes([der[at] ^ 1]) + der[at + 1 :]
        try:
            request = load_request(armour(damaged, b"CERTIFICATE REQUEST"), "it")
        except TrustError:
            continue
        passed += 1
        assert subject_of(request) == WHO
        assert request.public_key() == key.public_key()
    assert passed <= 2  # the count of unused bits, outside what is signed


def test_a_request_for_a_key_that_did_not_sign_it_is_refused(key):
    der = x509.load_pem_x509_csr(make_request(key, WHO)).public_bytes(serialization.Encoding.DER)
    point = serialization.PublicFormat.UncompressedPoint
    old, new = (
        k.public_key().public_bytes(serialization.Encoding.X962, point) for k in (key, new_key())
    )
    assert old in der
    with pytest.raises(TrustError, match="not signed with the key"):
        load_request(armour(der.replace(old, new), b"CERTIFICATE REQUEST"), "it")


@pytest.mark.parametrize(
    "other",
    [
        lambda: ec.generate_private_key(ec.SECP384R1()),
        lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
        ed25519.Ed25519PrivateKey.generate,
    ],
    ids=["p384", "rsa", "ed25519"],
)
def test_other_kinds_of_keys_are_refused(other):
    private = other()
    pem = private.private_bytes(
        PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(TrustError, match=r"x\.key is not an ECDSA key on P-256"):
        load_key(pem, "x.key")
    algorithm = None if isinstance(private, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    builder = x509.CertificateSigningRequestBuilder(common_name("books"))
    request = builder.add_extension(WHO.alternative_names, critical=False).sign(private, algorithm)
    with pytest.raises(TrustError, match=r"x\.csr is not for an ECDSA key on P-256"):
        load_request(request.public_bytes(PEM), "x.csr")


def test_a_key_survives_its_file_and_an_encrypted_or_damaged_one_is_refused(key):
    again = load_key(key_pem(key), "it")
    assert again.private_numbers() == key.private_numbers()
    locked = key.private_bytes(
        PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"word")
    )
    for bad in (locked, b"", key_pem(key)[:-60], make_request(key, WHO)):
        with pytest.raises(TrustError, match=r"x\.key is not an unencrypted private key"):
            load_key(bad, "x.key")


def test_only_a_self_signed_certificate_that_may_sign_others_is_an_authority(key):
    def usage(sign):
        names = "digital_signature content_commitment key_encipherment data_encipherment"
        names += " key_agreement crl_sign encipher_only decipher_only"
        return x509.KeyUsage(key_cert_sign=sign, **dict.fromkeys(names.split(), False))

    may, limits = usage(True), x509.BasicConstraints(ca=True, path_length=0)
    good = certify(key, cn="shop-credit", extensions=[limits, may])
    assert authority_name(good, "it") == "shop-credit"
    leaf = x509.BasicConstraints(ca=False, path_length=None)
    for extensions in ([], [limits], [may], [leaf, may], [limits, usage(False)]):
        with pytest.raises(TrustError, match=r"ca\.pem is not an authority"):
            authority_name(certify(key, extensions=extensions), "ca.pem")
    der = good.public_bytes(serialization.Encoding.DER)
    forged = load_certificate(armour(der[:-1] + bytes([der[-1] ^ 1]), b"CERTIFICATE"), "it")
    with pytest.raises(TrustError, match="not signed by its own key"):
        authority_name(forged, "it")


def test_the_same_names_do_not_make_the_same_authority(key):
    mine, foreign = certify(key), certify(new_key())
    assert mine.issuer == foreign.issuer
    assert is_issued_by(mine, mine)
    assert not is_issued_by(mine, foreign)
    assert not is_issued_by(foreign, mine)


def test_the_digest_of_a_certificate_is_that_of_its_der_form_and_its_expiry_is_utc(key):
    pem = certify(key).public_bytes(PEM)
    certificate = load_certificate(pem, "it")
    der = ssl.PEM_cert_to_DER_cert(pem.decode())
    assert certificate_sha256(pem) == certificate_sha256(certificate)
    assert certificate_sha256(pem) == hashlib.sha256(der).hexdigest()
    assert expiry(certificate).utcoffset() == timedelta(0)
    assert timedelta(days=2) < expiry(certificate) - datetime.now(UTC) <= timedelta(days=3)


def test_a_fingerprint_is_the_first_half_of_sha256_in_groups_of_four():
    assert fingerprint(b"abc") == "ba78 16bf 8f01 cfea 4141 40de 5dae 2223"
    assert fingerprint(b"abd") != fingerprint(b"abc")


def test_a_typed_fingerprint_may_differ_in_case_and_separators_alone():
    right = fingerprint(b"abc")
    for typed in (right.upper(), right.replace(" ", ""), right.replace(" ", ":"), f"  {right}\n"):
        assert same_fingerprint(typed, right)
    for dash in "-\u2010\u2011\u2013\u2014":
        assert same_fingerprint(right.replace(" ", dash), right)
    short = right.replace(" ", "")
    wrong = [right[:-1], right[:4], "", " ", right + "0", short[1:] + short[0], fingerprint(b"abd")]
    wrong += [short.replace("b", "8"), right.replace(" ", "."), "\uff10" + short[1:]]
    for typed in wrong:
        assert not same_fingerprint(typed, right)
    assert not same_fingerprint("", "")


def test_the_fingerprint_of_a_request_stands_for_its_key_alone(key):
    other = Subject(federation="shop-credit", name="shoes", node_id=0, size_class="large")
    assert request_fingerprint(make_request(key, WHO)) == request_fingerprint(
        make_request(key, other)
    )
    assert request_fingerprint(make_request(new_key(), WHO)) != request_fingerprint(
        make_request(key, WHO)
    )
    spki = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert request_fingerprint(make_request(key, WHO)) == fingerprint(spki)


posix = pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")


@posix
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_private_file_is_its_owners_alone_whatever_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_private(tmp_path / "x.key", b"secret")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.key").stat().st_mode) == 0o600
    assert read_private(tmp_path / "x.key") == b"secret"
    assert [file.name for file in tmp_path.iterdir()] == ["x.key"]


@posix
def test_no_file_is_ever_opened_for_others_on_the_way_to_a_private_one(tmp_path):
    script = """
import os, sys
from pathlib import Path
from credit_common.certificates import write_private
folder, modes, looking = Path(sys.argv[1]), [], False
def look(event, args):
    global looking
    if not looking:
        looking = True
        modes.extend(file.lstat().st_mode & 0o777 for file in folder.iterdir())
        looking = False
os.umask(0)
sys.addaudithook(look)  # called at every step of the way: open, rename and so on
write_private(folder / "x.key", b"secret")
print(len(modes), *{oct(mode) for mode in modes})
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    looks, *modes = done.stdout.split()
    assert int(looks) >= 2
    assert modes == ["0o600"]


def test_a_private_file_is_not_overwritten_and_not_written_through_a_link(tmp_path):
    path = tmp_path / "x.key"
    write_private(path, b"first")
    with pytest.raises(TrustError, match=r"x\.key exists already"):
        write_private(path, b"second")
    assert path.read_bytes() == b"first"
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "y.key").symlink_to(elsewhere)
    with pytest.raises(TrustError, match=r"y\.key exists already"):
        write_private(tmp_path / "y.key", b"secret")
    assert not elsewhere.exists()
    with pytest.raises(TrustError, match=r"cannot write .*No such file"):
        write_private(tmp_path / "missing" / "x.key", b"secret")


def test_a_private_file_that_cannot_be_finished_leaves_nothing_behind(tmp_path, monkeypatch):
    def no_space(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(TrustError, match="No space left"):
        write_private(tmp_path / "x.key", b"secret")
    assert list(tmp_path.iterdir()) == []


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_private_file_that_others_can_touch_is_refused_with_what_to_do(tmp_path, mode):
    write_private(tmp_path / "x.key", b"secret")
    (tmp_path / "x.key").chmod(mode)
    with pytest.raises(TrustError, match=r"chmod 600 .*x\.key"):
        read_private(tmp_path / "x.key")
