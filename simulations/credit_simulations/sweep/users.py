"""The users of one data set, read and encoded once; splits and holders are drawn from them."""

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from credit_client.shard import read_shard, user_key
from credit_client.training.examples import Examples
from credit_common.backbone import resolve_backbone
from credit_common.contract import Contract
from credit_common.device import device_of
from credit_common.errors import ContractError
from credit_common.model import CreditModel
from credit_common.record import Record
from credit_simulations.data import DATA_SETS, prepare, write_parquet
from credit_simulations.federation import Party, nearest_size_class
from credit_simulations.packaged import packaged_contract
from credit_simulations.partition import Parts, biggest, by_column, dirichlet, iid, quantity
from credit_simulations.sweep.encoded import encoded
from credit_simulations.sweep.plan import Entry, Trial

_ROW = "sweep_row"
_TRUE_PD = "true_pd"
"""Column of simulated data sets: the probability that the label was drawn with."""


@dataclass(frozen=True, kw_only=True)
class Users:
    """All usable users of an entry, in the data set's order; encoded when that is first asked for.

    Attributes:
        frame: Per user: the user id, `holder`, label and time as in the file, and `true_pd`.
        records: Their checked values.
        rows: Of the file, that they are.
        left_out: Rows that the contract rejects.
        data_sha256: Of the prepared file.
    """

    entry: Entry
    contract: Contract
    frame: pd.DataFrame
    records: tuple[Record, ...]
    rows: NDArray[np.intp]
    left_out: int
    data_sha256: str

    @cached_property
    def labels(self) -> NDArray[np.float32]:
        """1 for the event, (users,)."""
        return np.asarray([record.label for record in self.records], np.float32)

    @cached_property
    def model(self) -> CreditModel:
        """The resident model of the contract."""
        spec = self.contract.model
        backbone = resolve_backbone(spec) if spec.reads_text else None
        return CreditModel(self.contract, backbone, device_of("cpu"))

    @cached_property
    def wide(self) -> Examples:
        """Wide features alone."""
        contract = self.contract.training_only("wide")
        return Examples(CreditModel(contract, None, device_of("cpu")), contract, self.records)

    @property
    def examples(self) -> Examples:
        """Encoded, wide features and text."""
        return self._encoded[0]

    @property
    def at_cls(self) -> Examples:
        """The same at [CLS] of the frozen BERT."""
        return self._encoded[1]

    def one_row_each(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """The first row of each user id: ε is of a user only where a user is one example."""
        ids = self.frame[self.contract.record.user].iloc[rows]
        return rows[~ids.duplicated().to_numpy()]

    @cached_property
    def _encoded(self) -> tuple[Examples, Examples]:
        return encoded(self.model, self.contract, self.records, self.rows, self.data_sha256)


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One trial's holders.

    Attributes:
        train, holdout: Rows of `Users` by holder.
    """

    train: Mapping[str, NDArray[np.intp]]
    holdout: Mapping[str, NDArray[np.intp]]

    def only(self, names: list[str]) -> "Draw":
        """Some of the holders."""
        return Draw(
            train={n: self.train[n] for n in names}, holdout={n: self.holdout[n] for n in names}
        )


def entry_contract(entry: Entry) -> Contract:
    """The contract of an entry.

    Raises:
        ContractError: If there is no such data set, or a sweep cannot judge its task.
    """
    if entry.name not in DATA_SETS:
        raise ContractError(f"data.name = {entry.name!r}: must be one of {', '.join(DATA_SETS)}")
    contract = packaged_contract(Path(entry.contract) if entry.contract else entry.name)
    if entry.held_out == "later" and not contract.record.time:
        raise ContractError(f"data.held_out = 'later': the contract of {entry.name} has no time")
    if contract.task.kind != "binary":
        raise ContractError(f"data.name = {entry.name!r}: a sweep judges binary tasks alone")
    return contract


def data_sha256(entry: Entry) -> str:
    """Digest of the entry's prepared data file, which is made if it is not there."""
    with prepare(entry.name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_users(entry: Entry) -> Users:
    """Read and check an entry's users."""
    contract, sha256 = entry_contract(entry), data_sha256(entry)
    frame = _sampled(pd.read_parquet(prepare(entry.name)), entry.rows)
    records, rows = _records(contract, frame)
    columns = [contract.record.user, "holder", contract.task.label]
    columns += [_TRUE_PD] if _TRUE_PD in frame.columns else []
    columns += [contract.record.time] if contract.record.time else []
    return Users(
        entry=entry,
        contract=contract,
        frame=frame.iloc[rows][columns].reset_index(drop=True),
        records=records,
        rows=rows,
        left_out=len(frame) - len(rows),
        data_sha256=sha256,
    )


def draw(users: Users, trial: Trial) -> Draw:
    """Holders of a trial and their split, by its seed or fold.

    A user is on one side of the split at all holders, and one row at each. Holders without a user
    on either side are left out; one whose users are all of one label takes part, and has no AUC.
    """
    out = _held_out(users, trial)
    numbered = users.frame.assign(**{_ROW: np.arange(len(users.frame))})
    seed = 0 if trial.folds else trial.seed
    train, holdout = {}, {}
    for name, part in sorted(_parts(users, numbered, seed).items()):
        rows = users.one_row_each(part[_ROW].to_numpy(np.intp))
        sides = rows[~out[rows]], rows[out[rows]]
        if all(map(len, sides)):
            train[name], holdout[name] = sides
    return Draw(train=train, holdout=holdout)


def parties(contract: Contract, drawn: Draw, examples: Examples) -> list[Party]:
    """The holders of a draw with some form of all users' examples."""
    return [
        Party(
            name=name,
            size_class=nearest_size_class(contract, len(rows)),
            train=examples.subset(rows),
            holdout=examples.subset(drawn.holdout[name]),
        )
        for name, rows in drawn.train.items()
    ]


def _held_out(users: Users, trial: Trial) -> NDArray[np.bool_]:
    split = users.contract.split
    if trial.entry.held_out == "later":
        time = pd.to_datetime(users.frame[users.contract.record.time])
        last = time.groupby(users.frame[users.contract.record.user]).transform("max")
        later: NDArray[np.bool_] = (last.rank(pct=True) > 1 - split.holdout).to_numpy()
        return later
    salt = f"{split.salt}-folds" if trial.folds else f"{split.salt}-seed-{trial.seed}"
    ids = users.frame[users.contract.record.user].astype(str)
    position = np.asarray([int(user_key(salt, own)[:16], 16) / 2**64 for own in ids])
    low, high = 0.0, split.holdout
    if trial.folds:
        low, high = trial.seed / trial.folds, (trial.seed + 1) / trial.folds
    held: NDArray[np.bool_] = (position >= low) & (position < high)
    return held


def _sampled(frame: pd.DataFrame, rows: int) -> pd.DataFrame:
    if not rows or rows >= len(frame):
        return frame
    kept = np.random.default_rng(0).choice(len(frame), rows, replace=False)  # the same for all
    return frame.iloc[np.sort(kept)].reset_index(drop=True)


def _parts(users: Users, frame: pd.DataFrame, seed: int) -> Parts:
    entry = users.entry
    if entry.partition == "natural":
        found = by_column(frame, "holder", entry.min_rows)
        if entry.holders:
            largest = biggest(frame, "holder", entry.holders)
            found = {name: part for name, part in found.items() if name in largest}
        return found
    if entry.partition == "iid":
        return iid(frame, entry.holders, seed)
    if entry.partition == "quantity":
        return quantity(frame, entry.holders, entry.alpha, seed, entry.min_rows)
    label = users.contract.task.label
    return dirichlet(frame, label, entry.holders, entry.alpha, seed, entry.min_rows)


def _records(
    contract: Contract, frame: pd.DataFrame
) -> tuple[tuple[Record, ...], NDArray[np.intp]]:
    """Records and the frame's rows that they are of, in the frame's order.

    A person who is a user of two holders has a row at each: rows are read under their numbers, so
    that both become records.
    """
    numbered = frame.assign(**{contract.record.user: [f"row-{i}" for i in range(len(frame))]})
    with tempfile.TemporaryDirectory(prefix="credit-sim-") as folder:
        path = Path(folder) / "all.parquet"
        write_parquet(numbered, path)
        shard = read_shard(path, contract)
    found = sorted((*shard.train, *shard.holdout), key=lambda example: example.row)
    rows = np.asarray([example.row - 1 for example in found], np.intp)
    return tuple(example.record for example in found), rows
