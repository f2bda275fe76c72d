"""Row 21: a pickled payload is refused unopened, wherever one might come in.

The payload writes a file when it is unpickled. The broken variants are the readers that open it:
torch.load without its guard, as PrivacyEngine.load_checkpoint uses, and numpy.load of objects.
"""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from credit_client.ledger import Ledger
from credit_client.table import read_table
from credit_common import federation_pb2 as pb
from credit_common import wire
from credit_common.bundle import read_bundle
from credit_common.contract import load_contract
from credit_common.errors import CreditError
from credit_common.protocol import from_reply, from_request
from credit_common.release import open_release


class Bomb:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "exploded"


def pickled(mark):
    return pickle.dumps({"w": Bomb(mark)})


def npy(mark):
    """NumPy's own format around a pickle."""
    file = io.BytesIO()
    np.save(file, np.array([Bomb(mark)], object), allow_pickle=True)
    return file.getvalue()


def zipped(mark):
    """torch's format: a zip around a pickle."""
    import torch

    file = io.BytesIO()
    torch.save({"w": Bomb(mark)}, file)
    return file.getvalue()


def request():
    wire.set_identity(7, wire.SERVER_NODE)
    message = Message(RecordDict({}), dst_node_id=2, message_type="train")
    wire.set_message_id(message, "m")
    return message


def request_with(content):
    """A Flower message whose array's bytes are the payload."""
    array = Array(dtype="float32", shape=(1,), stype="numpy.ndarray", data=content)
    records = {wire.ARRAYS: ArrayRecord({"w": array}), wire.CONFIG: ConfigRecord({wire.ROUND: 1})}
    return Message(RecordDict(records), dst_node_id=2, message_type="train")


def in_a_release(content, folder):
    for name in ("release.json", "head.safetensors", "adapter_model.safetensors"):
        (folder / name).write_bytes(content)
    return open_release(folder)


def in_a_file(read):
    def opened(content, folder):
        path = folder / "payload"
        path.write_bytes(content)
        return read(path)

    return opened


def as_weights(content, folder):
    from credit_common.backbone import resolve_backbone
    from credit_common.sections import Model

    (folder / "pytorch_model.bin").write_bytes(content)
    (folder / "config.json").write_text("{}")
    return resolve_backbone(Model(backbone=str(folder), backbone_sha256="0" * 64))


DOORS = {
    "arrays on the wire": lambda content, _: wire.unpack(content),
    "an adapter": lambda content, _: wire.unpack_adapter(content),
    "a histogram": lambda content, _: wire.unpack_histogram(content),
    "a coordinator's request": lambda content, _: from_request(
        pb.Request(message_id="m", kind=pb.TRAIN, round=1, arrays=content), 2
    ),
    "a holder's answer": lambda content, _: from_reply(
        request(), pb.Reply(message_id="m", adapter=content), 1.0, (2, 2)
    ),
    "a Flower message": lambda content, _: wire.request_arrays(request_with(content)),
    "a release": in_a_release,
    "a bundle": in_a_file(read_bundle),
    "a contract": in_a_file(load_contract),
    "a ledger": in_a_file(Ledger.open),
    "BERT's weights": as_weights,
}


def check_refused_unopened(read, content, folder, mark):
    with pytest.raises(CreditError):
        read(content, folder)
    assert not mark.exists()


@pytest.mark.parametrize("form", [pickled, npy, zipped])
@pytest.mark.parametrize("door", DOORS)
def test_row_21_a_pickle_is_refused_unopened(door, form, tmp_path, mark):
    folder = tmp_path / "in"
    folder.mkdir()
    check_refused_unopened(DOORS[door], form(mark), folder, mark)


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet", ".pkl", ".pt"])
def test_row_21_a_shard_that_is_a_pickle_runs_nothing(suffix, tmp_path, mark):
    path = tmp_path / f"shard{suffix}"
    path.write_bytes(pickled(mark))
    with pytest.raises(CreditError):
        read_table(path)
    assert not mark.exists()


def torch_load(content, folder):
    import torch

    return torch.load(io.BytesIO(content), weights_only=False)  # as load_checkpoint does


def numpy_load(content, folder):
    return np.load(io.BytesIO(content), allow_pickle=True)


@pytest.mark.parametrize(
    ("broken", "form"), [(torch_load, zipped), (numpy_load, npy), (numpy_load, pickled)]
)
def test_row_21_catches_a_reader_that_unpickles(broken, form, tmp_path, mark):
    try:
        check_refused_unopened(broken, form(mark), tmp_path, mark)
    except (AssertionError, pytest.fail.Exception):
        assert mark.exists()  # it ran
    else:
        raise AssertionError("the check let an unpickling reader pass")
