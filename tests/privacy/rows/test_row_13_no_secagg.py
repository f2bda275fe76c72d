"""Row 13: Flower's SecAgg+ is not relied on: its mask seeds have 32 bits (flower #7522).

No claim of this project rests on the coordinator seeing sums alone: each holder's own messages are
differentially private, and the adversary of every statement sees them all.
"""

import re
from pathlib import Path

import pytest

import credit_client
import credit_common
import credit_server
import credit_simulations
from credit_common.claim import ADVERSARY

PACKAGES = (credit_common, credit_client, credit_server, credit_simulations)


def check_no_secagg(source):
    assert re.search(r"secagg|secaggplus", source, re.IGNORECASE) is None


def test_row_13_nothing_uses_it():
    for package in PACKAGES:
        for path in Path(package.__file__).parent.rglob("*.py"):
            check_no_secagg(path.read_text(encoding="utf-8"))


def test_row_13_catches_its_use():
    with pytest.raises(AssertionError):
        check_no_secagg("from flwr.clientapp.mod import secaggplus_mod")


def test_row_13_the_claim_is_against_whoever_sees_each_message():
    assert "sees every message that a holder sends" in ADVERSARY
