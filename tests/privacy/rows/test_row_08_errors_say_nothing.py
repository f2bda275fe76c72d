"""Row 8: an exception's text, logs and files carry nothing of a user's data.

A sentinel stands in the data; replies, logs, output and the holder's files are searched for it. The
broken variant answers with the text of what went wrong, as Flower's own runtime does.
"""

import logging

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict

from credit_client.gate import Gate
from credit_client.ledger import Ledger
from credit_client.shard import read_shard, write_rejects
from credit_common import wire
from credit_common.errors import CreditError
from credit_common.privacy import mechanism_plan
from credit_common.protocol import to_reply

SENTINELS = ("Jane Doe", "47-XI")  # digits alone would be in some time stamp
HEADER = "user,phone,age,income,tenure,home,job,note,at,orders,sex,secret,defaulted"


def request():
    wire.set_identity(7, wire.SERVER_NODE)
    arrays = wire.array_record({"w": np.zeros(3, np.float32)})
    content = RecordDict({wire.ARRAYS: arrays, wire.CONFIG: ConfigRecord({wire.ROUND: 1})})
    message = Message(content, dst_node_id=2, message_type="train")
    wire.set_message_id(message, "m1")
    return message


def raises_with_data():
    try:
        float("Jane Doe, 47-XI")
    except ValueError as inner:
        raise RuntimeError("row of Jane Doe, 47-XI") from inner


def check_failure_says_nothing(answer, caplog, capfd):
    """`answer` is how a holder replies where computing raises."""
    caplog.set_level(logging.DEBUG)
    reply = answer(request())
    said = [str(reply), repr(reply.error), caplog.text, "".join(capfd.readouterr())]
    said.append(str(to_reply(reply)))
    for text in said:
        assert not any(sentinel in text for sentinel in SENTINELS)
    assert (reply.error.code, reply.error.reason) == (wire.REFUSED, "refused")


def test_row_08_a_failure_leaves_as_one_constant_code(contract, caplog, capfd):
    with Ledger.in_memory() as ledger:
        gate = Gate(contract, mechanism_plan(contract, "small"), ledger, {"w": (3,)})
        check_failure_says_nothing(
            lambda message: gate.send_adapter(message, raises_with_data), caplog, capfd
        )


def as_flower_does(message):
    try:
        raises_with_data()
    except RuntimeError as error:
        return Message(Error(code=2, reason=f"{type(error)}: {error}"), reply_to=message)


def logging_the_trace(message):
    try:
        raises_with_data()
    except RuntimeError:
        logging.getLogger("credit_client").exception("training failed")
        return wire.refusal(message)


@pytest.mark.parametrize("broken", [as_flower_does, logging_the_trace])
def test_row_08_catches_texts_of_exceptions(broken, caplog, capfd):
    with pytest.raises(AssertionError):
        check_failure_says_nothing(broken, caplog, capfd)


ROWS = (
    "u1,,Jane Doe 47-XI,20,1,P,clerk,hello,2024-01-01,[],f,,0",
    "u2,,30,Jane Doe 47-XI,1,P,clerk,hello,2024-01-01,[],f,,0",
    "u3,,30,20,1,P,Jane Doe 47-XI,hello,2024-01-01,[],f,,1",
    "u4,,30,20,1,P,clerk,hello,Jane Doe 47-XI,[],f,,1",
    "u5,,30,20,1,P,clerk,hello,2024-01-01,Jane Doe 47-XI,f,,1",
    "u6,,30,20,1,P,clerk,hello,2024-01-01,[],f,,Jane Doe 47-XI",
    "Jane Doe 47-XI,,30,x,1,P,clerk,hello,2024-01-01,[],f,,0",
)


def check_bad_rows_say_nothing(read, folder, caplog, capfd):
    """`read` takes a file of rows with sentinels and leaves files beside it."""
    caplog.set_level(logging.DEBUG)
    path = folder / "shop.csv"
    path.write_text("\n".join((HEADER, *ROWS)) + "\n")
    try:
        said = repr(read(path))
    except CreditError as error:
        said = str(error)
    left = [p.read_text() for p in folder.iterdir() if p != path]
    for text in (said, caplog.text, "".join(capfd.readouterr()), *left):
        assert not any(sentinel in text for sentinel in SENTINELS)


def test_row_08_bad_rows_are_told_without_their_values(contract, tmp_path, caplog, capfd):
    def read(path):
        shard = read_shard(path, contract)
        write_rejects(tmp_path / "rejects.csv", shard.rejects)
        logging.getLogger("credit_client").info("%s", shard.summary())
        assert len(shard.rejects) >= 6
        return shard

    check_bad_rows_say_nothing(read, tmp_path, caplog, capfd)


def test_row_08_catches_a_reader_that_quotes_the_value(tmp_path, caplog, capfd):
    def quoting(path):
        lines = path.read_text().splitlines()
        bad = [line for line in lines if "Jane" in line]
        (path.parent / "rejects.csv").write_text("\n".join(bad))
        return len(bad)

    with pytest.raises(AssertionError):
        check_bad_rows_say_nothing(quoting, tmp_path, caplog, capfd)


def check_a_failure_is_no_free_question(gate, ledger):
    """Whether computing fails may depend on one user: asking for it again and again has a price."""
    for number in range(5):
        message = request()
        wire.set_message_id(message, f"m{number}")
        assert gate.send_adapter(message, raises_with_data).has_error()
    assert len([entry for entry in ledger.entries() if entry.message_id]) == 5


class Free(Gate):
    """Refuses where computing failed, and charges nothing."""

    @staticmethod
    def _computed(compute):
        return compute()


def test_row_08_a_failure_once_data_was_read_is_charged(contract):
    with Ledger.in_memory() as ledger:
        gate = Gate(contract, mechanism_plan(contract, "small"), ledger, {"w": (3,)})
        check_a_failure_is_no_free_question(gate, ledger)


def test_row_08_catches_a_failure_that_is_free(contract):
    with Ledger.in_memory() as ledger:
        gate = Free(contract, mechanism_plan(contract, "small"), ledger, {"w": (3,)})
        with pytest.raises(AssertionError):
            check_a_failure_is_no_free_question(gate, ledger)
