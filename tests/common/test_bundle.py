import dataclasses
import json
import random

import pytest

from credit_common.bundle import Bundle, host_address, parse_address, read_bundle, write_bundle
from credit_common.certificates import Subject, make_request, new_key, read_private
from credit_common.contract import parse_contract
from credit_common.errors import LinkError, TrustError
from credit_server.authority import create_authority, issue_server


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return create_authority(tmp_path_factory.mktemp("coordinator"), "shop-credit")


@pytest.fixture(scope="module")
def bundle(authority, contract_text):
    return Bundle(
        federation="shop-credit",
        address="credit.example:8443",
        ca_pem=authority.ca_pem.decode(),
        contract_text=contract_text,
    )


@pytest.fixture
def path(tmp_path, bundle):
    write_bundle(tmp_path / "bundle.json", bundle)
    return tmp_path / "bundle.json"


def rewrite(path, change):
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


def test_a_bundle_survives_its_file(path, bundle, contract):
    again = read_bundle(path)
    assert again == bundle
    assert again.fingerprint == bundle.fingerprint
    assert again.contract == contract
    assert again.contract_digest == contract.digest
    assert again.server_name == "credit.example"


def test_writing_a_bundle_replaces_the_old_one_and_leaves_nothing_else(path, bundle):
    moved = dataclasses.replace(bundle, address="[2001:db8::7]:443")
    write_bundle(path, moved)
    assert read_bundle(path) == moved
    assert read_bundle(path).server_name == "2001:db8::7"
    assert list(path.parent.iterdir()) == [path]


def test_the_contract_in_a_bundle_is_verbatim(path, contract_text, bundle):
    odd = '# Umlaute äöü, a "quote" and a \\ backslash\n' + contract_text
    write_bundle(path, dataclasses.replace(bundle, contract_text=odd))
    assert read_bundle(path).contract_text == odd


def test_every_part_of_a_bundle_changes_its_fingerprint(bundle, contract_text, tmp_path):
    other_ca = create_authority(tmp_path, "shop-credit").ca_pem.decode()
    renamed = contract_text.replace('name = "shop-credit"', 'name = "shoe-credit"')
    shoes = create_authority(tmp_path / "shoes", "shoe-credit").ca_pem.decode()
    variants = [
        bundle,
        dataclasses.replace(bundle, address="credit.example:8444"),
        dataclasses.replace(bundle, ca_pem=other_ca),
        dataclasses.replace(bundle, contract_text=contract_text + "# a remark\n"),
        dataclasses.replace(bundle, federation="shoe-credit", contract_text=renamed, ca_pem=shoes),
    ]
    assert len({variant.fingerprint for variant in variants}) == len(variants)


def test_the_fingerprint_does_not_depend_on_how_the_json_is_laid_out(path, bundle):
    table = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(table.items())), indent=7, ensure_ascii=True))
    assert read_bundle(path).fingerprint == bundle.fingerprint


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.update(format=2), "format 2 is unknown"),
        (lambda t: t.update(format=True), "format True is unknown"),
        (lambda t: t.pop("format"), "format None is unknown"),
        (lambda t: t.pop("ca_pem"), "key 'ca_pem' is missing"),
        (lambda t: t.pop("contract_digest"), "key 'contract_digest' is missing"),
        (lambda t: t.update(extra="x"), "unknown key 'extra'"),
        (lambda t: t.update(address=8443), "address must be a text"),
        (lambda t: t.update(ca_pem=[t["ca_pem"]]), "ca_pem must be a text"),
        (lambda t: t.update(federation="shoes"), "'shoes', its contract of federation 'shop-c"),
        (lambda t: t.update(address="credit.example"), "address 'credit.example'"),
        (lambda t: t.update(address="credit.example:0"), "between 1 and 65535"),
        (lambda t: t.update(address="unix:/run/x"), "address 'unix:/run/x'"),
        (lambda t: t.update(contract_digest="0" * 64), "contract digest '0000.*its contract's is"),
        (lambda t: t.update(contract_digest=t["contract_digest"].upper()), "contract digest"),
        (lambda t: t.update(contract=t["contract"].replace("4.0", "5.0")), "contract digest"),
        (lambda t: t.update(contract=t["contract"] + "# \ud800"), "not UTF-8"),
        (lambda t: t.update(contract="x = "), "its contract: not valid TOML"),
        (lambda t: t.update(contract=""), r"its contract: \[\[fields\]\] is missing"),
        (lambda t: t.update(contract="x = " + "[" * 9999), "its contract: nested too deeply"),
        (lambda t: t.update(ca_pem=""), "CA certificate"),
        (lambda t: t.update(ca_pem="\u00e9" + t["ca_pem"]), "CA certificate is not PEM"),
        (lambda t: t.update(ca_pem=t["ca_pem"][:-40]), "CA certificate is not a cert"),
        (lambda t: t.update(ca_pem=t["ca_pem"] * 2), "CA certificate holds 2"),
        (lambda t: t.update(ca_pem="hello\n" + t["ca_pem"]), "something else around"),
        (
            # OpenSSL's own kind of PEM, which some TLS libraries would trust as well.
            lambda t: t.update(ca_pem=t["ca_pem"] + t["ca_pem"].replace(" CERT", " TRUSTED CERT")),
            "something else around|CA certificate is not a cert",
        ),
    ],
)  # fmt: skip
def test_a_tampered_bundle_is_refused_by_file_and_reason(path, change, says):
    rewrite(path, change)
    with pytest.raises(TrustError, match=f"(?s){path}.*({says})"):
        read_bundle(path)


def test_the_ca_of_a_bundle_must_be_this_federations_authority(bundle, authority, tmp_path):
    def with_ca(pem):
        return dataclasses.replace(bundle, ca_pem=pem.decode())

    _, server_pem = issue_server(authority, "credit.example")
    with pytest.raises(TrustError, match="CA certificate is not an authority"):
        with_ca(server_pem)
    foreign = create_authority(tmp_path, "shoe-credit").ca_pem
    with pytest.raises(TrustError, match="its CA of federation 'shoe-credit'"):
        with_ca(foreign)
    for not_one in (read_private(tmp_path / "ca.key"), request_pem()):
        with pytest.raises(TrustError, match="CA certificate"):
            with_ca(not_one)


def request_pem():
    who = Subject(federation="shop-credit", name="books", node_id=0, size_class="small")
    return make_request(new_key(), who)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"format": 1, "format": 1}',
        b'{"format": 1, "address": "\\ud800"}',
        b"\0",
    ],
)
def test_a_file_that_is_no_json_object_is_refused_by_name(tmp_path, content):
    path = tmp_path / "bundle.json"
    path.write_bytes(content)
    with pytest.raises(TrustError, match=r"bundle\.json"):
        read_bundle(path)


def test_a_key_that_comes_twice_is_refused_as_readers_differ_in_which_one_counts(path):
    text = path.read_text().rstrip("}\n") + ', "address": "evil.example:1"}'
    assert json.loads(text)["address"] == "evil.example:1"
    path.write_text(text)
    with pytest.raises(TrustError, match="comes twice"):
        read_bundle(path)


def test_a_missing_file_or_folder_is_refused_by_name(tmp_path, bundle):
    with pytest.raises(TrustError, match=r"cannot read .*none\.json: No such file"):
        read_bundle(tmp_path / "none.json")
    with pytest.raises(TrustError, match=r"cannot read .*directory"):
        read_bundle(tmp_path)
    with pytest.raises(TrustError, match=r"cannot write .*No such file"):
        write_bundle(tmp_path / "none" / "bundle.json", bundle)


def test_a_truncated_or_damaged_file_is_refused_or_shows_another_fingerprint(path, bundle):
    content, draw = path.read_bytes(), random.Random(5)
    for end in range(0, len(content) - 2, 97):
        path.write_bytes(content[:end])
        with pytest.raises(TrustError):
            read_bundle(path)
    for _ in range(300):
        damaged = bytearray(content)
        damaged[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            found = read_bundle(path)
        except TrustError:
            continue
        assert (found == bundle) == (found.fingerprint == bundle.fingerprint)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("credit.example:8443", "credit.example", 8443),
        ("localhost:1", "localhost", 1),
        ("a-b.c-d.example:65535", "a-b.c-d.example", 65535),
        ("192.0.2.7:443", "192.0.2.7", 443),
        ("[2001:db8::7]:443", "2001:db8::7", 443),
        ("[::1]:50051", "::1", 50051),
        ("3com.example:80", "3com.example", 80),
        ("x" * 63 + ".example:80", "x" * 63 + ".example", 80),
    ],
)
def test_addresses_of_all_kinds_are_read(text, host, port):
    assert parse_address(text) == (host, port)


@pytest.mark.parametrize(
    "text",
    [
        "", ":", ":443", "host", "host:", "host:x", "host:-1", "host:+1", "host: 1", "host:1 ",
        "host:1\n", "host:0", "host:65536", "host:000000443", "host:99999999999999999999",
        "host:\u0661", "::1:443", "2001:db8::7", "[::1]", "[::1]443", "[::1]:0", "[host]:443",
        "[192.0.2.7]:443", "[]:443", "[::1%eth0]:443", "[fe80::g]:443", "192.0.2.256:443",
        "192.0.2:443", "1:443", "-a.example:443", "a-.example:443", "a..example:443", ".a:443",
        "a.:443", "a_b:443", "a b:443", "*.example:443", "dns:///host:443", "http://host:443",
        "user@host:443", "host/path:443", "b\u00fccher.example:443", "x" * 64 + ".example:443",
        "x." * 130 + "example:443",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_by_value(text):
    with pytest.raises(LinkError) as caught:
        parse_address(text)
    assert repr(text) in str(caught.value) or str(caught.value).startswith("host ")


def test_a_port_out_of_range_is_told_with_its_bound():
    with pytest.raises(LinkError, match="'host:65536': the port must be between 1 and 65535"):
        parse_address("host:65536")


def test_a_host_is_an_ip_address_or_a_name():
    assert str(host_address("2001:DB8:0::7")) == "2001:db8::7"
    assert str(host_address("192.0.2.7")) == "192.0.2.7"
    assert host_address("credit.example") is None
    with pytest.raises(LinkError, match=r"host '0192\.0\.2\.7'"):
        host_address("0192.0.2.7")


def test_what_a_bundle_knows_is_checked_when_it_is_made(bundle, contract_text):
    with pytest.raises(TrustError, match="address 'nowhere'"):
        dataclasses.replace(bundle, address="nowhere")
    renamed = contract_text.replace('name = "shop-credit"', 'name = "shoe-credit"')
    assert parse_contract(renamed).federation.name == "shoe-credit"
    with pytest.raises(TrustError, match="contract of federation 'shoe-credit'"):
        dataclasses.replace(bundle, contract_text=renamed)
