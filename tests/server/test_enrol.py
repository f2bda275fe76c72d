import dataclasses
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from credit_common.certificates import (
    Subject,
    certificate_sha256,
    common_name,
    key_pem,
    load_certificate,
    load_request,
    make_request,
    new_key,
    subject_of,
)
from credit_common.errors import ContractError, TrustError
from credit_server.authority import create_authority, issue_holder, issue_server
from credit_server.enrol import Enrolled, Registry, enrol, read_request, revoke

PEM = serialization.Encoding.PEM


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "coordinator"


@pytest.fixture
def authority(folder):
    return create_authority(folder, "shop-credit")


def csr(name="books", size_class="small", key=None, **changes):
    known = {"federation": "shop-credit", "name": name, "node_id": 0, "size_class": size_class}
    return make_request(key or new_key(), Subject(**(known | changes)))


@pytest.fixture
def admit_new(folder, authority, contract):
    """Enrols a holder and returns the entry and its certificate."""

    def make(name="books", size_class="small", **options):
        request = csr(name, size_class)
        return enrol(folder, authority, contract, request, where=f"{name}.csr", **options)

    return make


def test_an_enrolled_holder_is_admitted_as_what_the_coordinator_wrote_down(folder, admit_new):
    enrolled, pem = admit_new()
    assert Registry(folder).admit(pem) == enrolled
    assert Registry(folder).holders() == {"books": enrolled}
    certificate = load_certificate(pem, "it")
    assert enrolled == Enrolled(
        name="books",
        node_id=2,
        size_class="small",
        certificate_sha256=certificate_sha256(pem),
        not_after=certificate.not_valid_after_utc.isoformat(),
        revoked=False,
    )
    assert subject_of(certificate) == Subject(
        federation="shop-credit", name="books", node_id=2, size_class="small"
    )


def test_node_ids_go_up_in_order_of_enrolment_and_are_never_given_again(folder, admit_new):
    names = ["zeta", "alpha", "mid"]
    assert [admit_new(name)[0].node_id for name in names] == [2, 3, 4]
    revoke(folder, "mid")
    assert admit_new("last")[0].node_id == 5
    assert admit_new("alpha", renew=True)[0].node_id == 3
    assert admit_new("next")[0].node_id == 6


def test_a_request_that_claims_a_node_id_is_refused_and_nobody_is_enrolled(
    folder, authority, contract
):
    for node_id in (1, 2, 99):
        with pytest.raises(TrustError, match=rf"b\.csr claims node id {node_id}"):
            enrol(folder, authority, contract, csr(node_id=node_id), where="b.csr")
    assert Registry(folder).holders() == {}


def test_a_request_that_asks_to_be_an_authority_gets_a_plain_certificate(
    folder, authority, contract
):
    who = Subject(federation="shop-credit", name="books", node_id=0, size_class="small")
    request = (
        x509.CertificateSigningRequestBuilder(common_name("books"))
        .add_extension(who.alternative_names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(new_key(), hashes.SHA256())
        .public_bytes(PEM)
    )
    _, pem = enrol(folder, authority, contract, request, where="b.csr")
    limits = load_certificate(pem, "it").extensions.get_extension_for_class(x509.BasicConstraints)
    assert limits.critical
    assert not limits.value.ca


def test_requests_that_are_not_a_holders_own_are_refused_by_file(authority):
    good = csr()
    request, who = read_request(good, "b.csr")
    assert request.public_bytes(PEM) == good
    assert who == Subject(federation="shop-credit", name="books", node_id=0, size_class="small")
    unnamed = x509.CertificateSigningRequestBuilder(common_name("books")).sign(
        new_key(), hashes.SHA256()
    )
    p384 = (
        x509.CertificateSigningRequestBuilder(common_name("books"))
        .add_extension(who.alternative_names, critical=False)
        .sign(ec.generate_private_key(ec.SECP384R1()), hashes.SHA256())
    )
    bad = [
        (b"", "not a signing request"),
        (good[:-60], "not a signing request"),
        (authority.ca_pem, "not a signing request"),
        (with_other_key(good), "not signed with the key"),
        (unnamed.public_bytes(PEM), "names 0 holders"),
        (p384.public_bytes(PEM), "P-256"),
    ]
    for pem, says in bad:
        with pytest.raises(TrustError, match=rf"^b\.csr .*{says}"):
            read_request(pem, "b.csr")


def with_other_key(pem):
    """The request of a man in the middle who puts in his own key but cannot sign for it."""
    point = serialization.PublicFormat.UncompressedPoint
    request = x509.load_pem_x509_csr(pem)
    der = request.public_bytes(serialization.Encoding.DER)
    old, new = (
        key.public_bytes(serialization.Encoding.X962, point)
        for key in (request.public_key(), new_key().public_key())
    )
    assert old in der
    armoured = ssl.DER_cert_to_PEM_cert(der.replace(old, new))
    return armoured.replace("CERTIFICATE", "CERTIFICATE REQUEST").encode()


def test_federation_and_size_class_must_be_the_contracts(folder, authority, contract):
    with pytest.raises(TrustError, match=r"b\.csr is for federation 'shoes', not 'shop-credit'"):
        enrol(folder, authority, contract, csr(federation="shoes"), where="b.csr")
    with pytest.raises(ContractError, match="'huge' is not in the contract; it has small, large"):
        enrol(folder, authority, contract, csr(size_class="huge"), where="b.csr")
    other = dataclasses.replace(
        contract, federation=dataclasses.replace(contract.federation, name="shoes")
    )
    with pytest.raises(TrustError, match="the authority is of federation 'shop-credit'"):
        enrol(folder, authority, other, csr(federation="shoes"), where="b.csr")
    assert Registry(folder).holders() == {}


def test_a_name_is_enrolled_once_and_a_second_key_for_it_needs_a_renewal(folder, admit_new):
    enrolled, pem = admit_new()
    with pytest.raises(TrustError, match="'books' is enrolled already"):
        admit_new()
    assert Registry(folder).admit(pem) == enrolled


def test_a_renewal_keeps_node_id_and_class_and_ends_the_old_certificate(folder, admit_new):
    admit_new("first")
    registry = Registry(folder)
    old, old_pem = admit_new(days=10)
    assert registry.admit(old_pem) == old
    new, new_pem = admit_new(renew=True, days=20)
    assert (new.node_id, new.size_class) == (old.node_id, old.size_class)
    assert new.not_after > old.not_after
    assert registry.admit(new_pem) == new
    with pytest.raises(TrustError, match="'books' was replaced by a newer one"):
        registry.admit(old_pem)


def test_a_renewal_with_another_size_class_is_refused_with_both_named(folder, admit_new):
    old, pem = admit_new()
    with pytest.raises(TrustError, match=r"class 'small', fixed at enrolment; .* says 'large'"):
        admit_new(size_class="large", renew=True)
    assert Registry(folder).admit(pem) == old


def test_there_is_nothing_to_renew_for_a_stranger(folder, admit_new):
    with pytest.raises(TrustError, match="'books' is not enrolled: there is nothing to renew"):
        admit_new(renew=True)
    assert Registry(folder).holders() == {}


def test_a_revocation_reaches_a_running_registry_and_is_for_good(folder, admit_new):
    registry = Registry(folder)
    old, pem = admit_new()
    other, other_pem = admit_new("shoes")
    assert registry.admit(pem) == old
    assert revoke(folder, "books") == dataclasses.replace(old, revoked=True)
    with pytest.raises(TrustError, match="certificate of holder 'books' was revoked"):
        registry.admit(pem)
    for renew in (False, True):
        with pytest.raises(TrustError, match="'books' was revoked"):
            admit_new(renew=renew)
    assert revoke(folder, "books").revoked
    assert registry.admit(other_pem) == other
    with pytest.raises(TrustError, match="'nobody' is not enrolled"):
        revoke(folder, "nobody")


def test_a_running_registry_sees_each_change_at_once(folder, authority, admit_new):
    registry = Registry(folder)
    assert registry.holders() == {}
    for n in range(20):
        enrolled, pem = admit_new(f"h{n}")
        assert registry.admit(pem) == enrolled
        renewed, pem = admit_new(f"h{n}", renew=True)  # the file keeps its size
        assert registry.admit(pem) == renewed
    assert list(registry.holders()) == [f"h{n}" for n in range(20)]


def test_what_a_caller_does_to_the_holders_does_not_reach_the_registry(folder, admit_new):
    enrolled, pem = admit_new()
    registry = Registry(folder)
    registry.holders().clear()
    assert registry.admit(pem) == enrolled


def test_an_expired_certificate_is_turned_away_with_its_date(folder, admit_new):
    enrolled, pem = admit_new(days=-1)
    assert datetime.fromisoformat(enrolled.not_after) < datetime.now(UTC)
    with pytest.raises(TrustError) as caught:
        Registry(folder).admit(pem)
    said = f"the certificate of holder 'books' expired on {enrolled.not_after}"
    assert str(caught.value) == said


def test_only_the_registered_certificate_is_admitted(folder, authority, admit_new, tmp_path):
    enrolled, _ = admit_new()
    who = Subject(federation="shop-credit", name="books", node_id=2, size_class="small")
    registry = Registry(folder)

    def signed_by(other, subject):
        request = load_request(csr(), "it")
        return issue_holder(other, request, subject, 30)

    foreign = create_authority(tmp_path / "foreign", "shop-credit")
    shoes = create_authority(tmp_path / "shoes", "shoe-credit")
    elsewhere = dataclasses.replace(who, federation="shoe-credit")
    never = dataclasses.replace(who, name="never")
    _, server = issue_server(authority, "books")
    for pem, says in [
        (signed_by(foreign, who), "was replaced by a newer one"),
        (signed_by(authority, who), "was replaced by a newer one"),
        (signed_by(shoes, elsewhere), "'books' is not enrolled in federation 'shop-credit'"),
        (signed_by(authority, never), "'never' is not enrolled in federation 'shop-credit'"),
        (server, "names 0 holders"),
        (authority.ca_pem, "names 0 holders"),
        (b"", "is not a certificate"),
        (signed_by(authority, who) * 2, "2 certificates"),
    ]:
        with pytest.raises(TrustError, match=says) as caught:
            registry.admit(pem)
        assert "\n" not in str(caught.value)
        assert str(tmp_path) not in str(caught.value)
    assert registry.holders() == {"books": enrolled}


DAMAGES = [
    lambda t: t.update(format=2),
    lambda t: t.update(more=1),
    lambda t: t.pop("format"),
    lambda t: t.update(holders=[]),
    lambda t: t["holders"].update(books=7),
    lambda t: (t["holders"]["books"].pop("revoked") and 0) or t["holders"]["books"].update(x=1),
    lambda t: t["holders"]["books"].update(revoked="no"),
    lambda t: t["holders"]["books"].update(revoked=0),
    lambda t: t["holders"]["books"].update(node_id=1),
    lambda t: t["holders"]["books"].update(node_id=2.0),
    lambda t: t["holders"]["books"].update(node_id=True),
    lambda t: t["holders"]["books"].update(certificate_sha256="00"),
    lambda t: t["holders"]["books"].update(not_after="2030-01-01"),
    lambda t: t["holders"]["books"].update(not_after="soon"),
    lambda t: t["holders"]["books"].update(not_after="2030-01-01T00:00:00+02:00"),
    lambda t: t["holders"]["books"].update(name="shoes"),
    lambda t: t["holders"].update(shoes={**t["holders"]["books"], "name": "shoes"}),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_list_admits_nobody_is_not_written_over_and_tells_peers_no_paths(
    folder, authority, contract, admit_new, damage
):
    _, pem = admit_new()
    registry, path = Registry(folder), folder / "holders.json"
    registry.admit(pem)
    table = json.loads(path.read_text())
    damage(table)
    path.write_text(json.dumps(table))
    before = path.read_bytes()
    with pytest.raises(TrustError, match=r"holders\.json"):
        registry.holders()
    with pytest.raises(TrustError) as caught:
        registry.admit(pem)
    assert str(caught.value) == "the coordinator cannot read its list of holders"
    for change in (lambda: admit_new("shoes"), lambda: revoke(folder, "books")):
        with pytest.raises(TrustError, match=r"holders\.json"):
            change()
    assert path.read_bytes() == before


def test_a_truncated_list_admits_nobody_until_it_is_restored(folder, admit_new):
    enrolled, pem = admit_new()
    path, registry = folder / "holders.json", Registry(folder)
    whole = path.read_bytes()
    for end in (0, 1, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:end])
        with pytest.raises(TrustError, match="cannot read its list"):
            registry.admit(pem)
    path.write_bytes(whole)
    assert registry.admit(pem) == enrolled
    path.unlink()
    with pytest.raises(TrustError, match="not enrolled"):
        registry.admit(pem)


def test_a_revoked_entry_cannot_hide_behind_a_second_one_of_its_name(folder, admit_new):
    _, pem = admit_new()
    path = folder / "holders.json"
    clean = json.loads(path.read_text())["holders"]["books"]
    revoke(folder, "books")
    text = path.read_text().rstrip().removesuffix("}").rstrip().removesuffix("}")
    path.write_text(f'{text}, "books": {json.dumps(clean)}}}}}')
    assert not json.loads(path.read_text())["holders"]["books"]["revoked"]
    with pytest.raises(TrustError):
        Registry(folder).admit(pem)


def test_a_folder_without_an_authority_has_no_registry(tmp_path, contract, authority):
    with pytest.raises(TrustError, match=r"ca\.pem"):
        Registry(tmp_path)
    with pytest.raises(TrustError, match=r"cannot write .*No such file"):
        enrol(tmp_path / "none", authority, contract, csr(), where="b.csr")


def test_enrolments_at_once_lose_nobody(folder, authority, contract):
    many, start, failed = 12, threading.Barrier(12), []

    def one(n):
        request = csr(f"h{n}")
        start.wait()
        try:
            enrol(folder, authority, contract, request, where="it")
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=one, args=(n,)) for n in range(many)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    holders = Registry(folder).holders()
    assert failed == []
    assert {h.name for h in holders.values()} == {f"h{n}" for n in range(many)}
    assert sorted(h.node_id for h in holders.values()) == list(range(2, 2 + many))


@pytest.mark.skipif(os.name != "posix", reason="there is no lock elsewhere")
def test_a_command_waits_for_another_process_that_is_enrolling(folder, authority, contract):
    script = """
import sys
from pathlib import Path
from credit_server.enrol import _alone
with _alone(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
    holding = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holding:
        assert holding.stdout.readline() == "held\n"
        done = threading.Event()

        def wait():
            enrol(folder, authority, contract, csr(), where="it")
            done.set()

        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not done.wait(0.3)
        assert Registry(folder).holders() == {}
        holding.stdin.close()
        waiting.join(20)
    assert done.is_set()
    assert list(Registry(folder).holders()) == ["books"]


def context(side, ca_pem, chain, tmp_path):
    """A TLS 1.3 end that wants the other side's certificate, in OpenSSL's strict reading."""
    protocol = ssl.PROTOCOL_TLS_SERVER if side == "server" else ssl.PROTOCOL_TLS_CLIENT
    made = ssl.SSLContext(protocol)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.verify_mode = ssl.CERT_REQUIRED
    made.verify_flags |= ssl.VERIFY_X509_STRICT
    made.load_verify_locations(cadata=ca_pem.decode())
    if chain:
        file = tmp_path / f"{side}.pem"
        file.write_bytes(b"".join(chain))
        made.load_cert_chain(file)
    return made


def meet(server, client, admit, host="credit.example"):
    """What the server tells the client after the handshake, or which side refused it and why."""
    ours, theirs = socket.socketpair()
    ours.settimeout(20)
    theirs.settimeout(20)
    outcome = []

    def refusals(side, work):
        try:
            work()
        except ssl.SSLCertVerificationError as error:
            outcome.append(f"{side}: {error.verify_message}")
        except (ssl.SSLEOFError, ConnectionError):
            pass  # the other side has hung up
        except ssl.SSLError as error:
            if "ALERT" not in str(error.reason):  # an alert only repeats the other side's refusal
                outcome.append(f"{side}: {error.reason}")

    def serve():
        with ours, server.wrap_socket(ours, server_side=True) as tls:
            pem = ssl.DER_cert_to_PEM_cert(tls.getpeercert(binary_form=True)).encode()
            try:
                told = f"node {admit(pem).node_id} by {tls.version()}"
            except TrustError as error:
                told = f"told: {error}"
            tls.sendall(told.encode())

    def come():
        with theirs, client.wrap_socket(theirs, server_hostname=host) as tls:
            if told := tls.recv(999):
                outcome.append(told.decode())

    thread = threading.Thread(target=refusals, args=("server", serve))
    thread.start()
    refusals("client", come)
    thread.join(30)
    (only,) = outcome
    return only


def test_a_real_handshake_takes_the_enrolled_holder_and_refuses_everybody_else(
    folder, authority, contract, tmp_path
):
    registry, ca = Registry(folder), authority.ca_pem
    server = context("server", ca, issue_server(authority, "credit.example"), tmp_path)

    def come(chain, trust=ca, host="credit.example"):
        client = context("client", trust, chain, tmp_path)
        return meet(server, client, registry.admit, host)

    key = new_key()
    enrolled, pem = enrol(folder, authority, contract, csr(key=key), where="it")
    own = [key_pem(key), pem]
    assert come(own) == "node 2 by TLSv1.3"

    foreign = create_authority(tmp_path / "foreign", "shop-credit")
    who = Subject(federation="shop-credit", name="books", node_id=2, size_class="small")
    request = load_request(csr(key=key), "it")
    twin = issue_holder(foreign, request, who, 30)
    assert come([key_pem(key), twin]).startswith("server: ")
    assert come([key_pem(key), twin, foreign.ca_pem]).startswith("server: self-signed")
    assert come(None) == "server: PEER_DID_NOT_RETURN_A_CERTIFICATE"

    assert come(own, trust=foreign.ca_pem).startswith("client: ")
    assert come(own, host="evil.example").startswith("client: Hostname mismatch")
    holder_as_server = context("server", ca, own, tmp_path)
    client = context("client", ca, own, tmp_path)
    said = meet(holder_as_server, client, registry.admit, "books")
    assert said == "client: unsuitable certificate purpose"

    server_as_holder = issue_server(authority, "books")
    assert come(server_as_holder) == "server: unsuitable certificate purpose"

    child_key, holder = new_key(), load_certificate(pem, "it")
    child = (
        x509.CertificateBuilder(
            issuer_name=holder.subject,
            subject_name=common_name("shoes"),
            public_key=child_key.public_key(),
            serial_number=9,
            not_valid_before=holder.not_valid_before_utc,
            not_valid_after=holder.not_valid_after_utc,
        )
        .add_extension(dataclasses.replace(who, name="shoes").alternative_names, critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(PEM)
    )
    assert come([key_pem(child_key), child, pem]).startswith("server: ")

    expired = issue_holder(authority, request, who, -1)
    assert come([key_pem(key), expired]) == "server: certificate has expired"

    revoke(folder, enrolled.name)
    assert come(own) == "told: the certificate of holder 'books' was revoked"


def test_the_handshake_holds_for_addresses_too(folder, authority, contract, tmp_path):
    key = new_key()
    _, pem = enrol(folder, authority, contract, csr(key=key), where="it")
    client = context("client", authority.ca_pem, [key_pem(key), pem], tmp_path)
    for host in ("127.0.0.1", "::1"):
        server = context("server", authority.ca_pem, issue_server(authority, host), tmp_path)
        assert meet(server, client, Registry(folder).admit, host) == "node 2 by TLSv1.3"
        said = meet(server, client, Registry(folder).admit, "127.0.0.2")
        assert said.startswith("client: IP address mismatch")
