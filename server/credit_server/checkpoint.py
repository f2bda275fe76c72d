"""What a coordinator goes on from after a crash: run.checkpoint in its folder, one file.

It is written before anything is asked that depends on it: at the start, after each training, after
each evaluation, and before the end of the run is told. So a request that is made anew after a crash
is the very one from before, and has the id from before (see `credit_server.grid`): a holder that
has answered it repeats the bytes that its ledger keeps, and is not charged again. For that reason
no answer is kept here, and the file is as large as three adapters.

    credit-federation checkpoint 1
    SHA-256 of all that follows, in hex
    JSON in one line
    arrays, in safetensors format
"""

import dataclasses
import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from credit_common.contract import Contract
from credit_common.errors import CreditError, TrustError, WireError
from credit_common.fetch import sync_folder, write_atomically
from credit_common.heads import Head, head_from_json, head_to_json
from credit_common.wire import pack, unpack
from credit_server.aggregate import RoundReport, State
from credit_server.lock import CHECKPOINT as FILE

_MAGIC = b"credit-federation checkpoint 1\n"
_ARRAYS = {"adapter": np.float32, "released": np.float32, "velocity": np.float64}
_APART = {"adapter", "edges", "histogram"}
"""What a report's line of JSON lacks: it is in the state, or among the arrays."""


@dataclass(frozen=True, kw_only=True)
class Closing:
    """What of a release is fixed by the time at which it was made.

    Attributes:
        release: Name of its folder.
        created: UTC, ISO 8601.
        heads: Of the holders' ledgers.
    """

    release: str
    created: str
    heads: tuple[Head, ...]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A run that is not over.

    Attributes:
        contract_digest: What it runs under.
        run: What the ids of its messages begin with.
        state: How far it has come.
        reports: Of all rounds that are done, without adapters; histograms are kept of the first
            evaluation and of the last round, the only ones that are looked at again.
        closing: Once all rounds are done.
    """

    contract_digest: str
    run: str
    state: State
    reports: tuple[RoundReport, ...] = ()
    closing: Closing | None = None


def new_run(contract: Contract) -> Checkpoint:
    """A run that nothing was asked in yet; no other one has its message ids."""
    fresh = State(adapter={})
    return Checkpoint(contract_digest=contract.digest, run=uuid.uuid4().hex, state=fresh)


class Keeper:
    """Keeps a run in the coordinator's folder.

    Args:
        home: The folder, of which no other process writes the checkpoint (see `lock`).
        kept: Where the run stands; it is written with the first step.
    """

    def __init__(self, home: Path, kept: Checkpoint) -> None:
        self._home, self.kept = home, kept

    def settle(self, state: State, done: RoundReport | None) -> None:
        """Keep a step of the rounds, and the report of a round that is done by it."""
        reports = self.kept.reports if done is None else (*self.kept.reports, done)
        self._keep(dataclasses.replace(self.kept, state=state, reports=reports))

    def close(self, closing: Closing) -> None:
        """Keep what the release is made of."""
        self._keep(dataclasses.replace(self.kept, closing=closing))

    def over(self) -> None:
        """The run is done: the next start begins another one."""
        (self._home / FILE).unlink(missing_ok=True)
        sync_folder(self._home)

    def _keep(self, kept: Checkpoint) -> None:
        self.kept = dataclasses.replace(kept, reports=_lightened(kept.reports))
        path = self._home / FILE
        try:
            write_atomically(path, to_bytes(self.kept))
        except OSError as error:
            raise CreditError(f"cannot write {path}: {error.strerror}") from None


def unfinished(home: Path, contract: Contract, *, resume: bool) -> Checkpoint | None:
    """The run that a start goes on with; None where a new one begins. Nothing is written over.

    Args:
        home: The coordinator's folder, locked.
        contract: The one in force.
        resume: Whether a run that is not over is to go on.

    Raises:
        CreditError: If there is a run that is not over and `resume` is not said, or the other way
            round, or it cannot go on: damaged, or of another contract. Says what to do.
    """
    path = home / FILE
    for part in home.glob(f".{FILE}.*"):  # of a process that was killed while it wrote
        part.unlink(missing_ok=True)
    if not path.exists():
        if resume:
            raise CreditError(
                f"{home.resolve()} has no run to go on with; without --resume a new one begins"
            )
        return None
    anew = f"to give it up and begin another, which holders are charged for anew, remove {path}"
    try:
        kept = from_bytes(path.read_bytes())
    except OSError as error:
        raise CreditError(f"cannot read {path}: {error.strerror}") from None
    except WireError as error:
        raise CreditError(
            f"{path} is damaged: {error}; the run cannot go on from it; {anew}"
        ) from None
    rounds = contract.training.rounds
    what = f"a run that is not over, {kept.state.round} of {rounds} rounds trained"
    if kept.contract_digest != contract.digest:
        raise CreditError(
            f"{path} is of contract {kept.contract_digest[:12]}, and {contract.digest[:12]} is in "
            f"force: the run goes on under its own contract alone; {anew}"
        )
    if not resume:
        raise CreditError(f"{path} is {what}: flower-server --resume goes on; {anew}")
    return kept


def to_bytes(checkpoint: Checkpoint) -> bytes:
    """The file of a checkpoint."""
    state = checkpoint.state
    arrays: dict[str, NDArray[Any]] = {
        f"{part}/{name}": array for part in _ARRAYS for name, array in getattr(state, part).items()
    }
    for report in checkpoint.reports:
        if report.histogram is not None:
            arrays[f"histogram/{report.round}"] = report.histogram
    closing = checkpoint.closing
    plain = {
        "contract_digest": checkpoint.contract_digest,
        "run": checkpoint.run,
        "state": {f.name: getattr(state, f.name) for f in _plain(State, set(_ARRAYS))},
        "reports": [
            {f.name: getattr(report, f.name) for f in _plain(RoundReport, _APART)}
            for report in checkpoint.reports
        ],
        "closing": closing
        and {**vars(closing), "heads": [head_to_json(head) for head in closing.heads]},
    }
    body = json.dumps(plain, separators=(",", ":")).encode() + b"\n" + pack(arrays)
    return _MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def from_bytes(content: bytes) -> Checkpoint:
    """The checkpoint in a file.

    Raises:
        WireError: If it is cut, changed, or of another format.
    """
    if not content.startswith(_MAGIC):
        raise WireError("it is no checkpoint of this version")
    digest, _, body = content[len(_MAGIC) :].partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise WireError("its SHA-256 is not the one that was written with it")
    try:  # what follows is as it was written, if by this version
        text, _, packed = body.partition(b"\n")
        plain, arrays = json.loads(text), unpack(packed)
        parts = {part: _under(part, arrays, kind) for part, kind in _ARRAYS.items()}
        state = State(**{**plain["state"], **parts, "edges": _edges(plain["state"]["edges"])})
        reports = tuple(
            RoundReport(
                **row,
                adapter={},
                histogram=arrays.get(f"histogram/{row['round']}"),
                edges=state.edges or {},
            )
            for row in plain["reports"]
        )
        if reports:  # it alone may still be released
            last = dataclasses.replace(reports[-1], adapter=dict(state.released))
            reports = (*reports[:-1], last)
        closing = plain["closing"] and Closing(
            release=plain["closing"]["release"],
            created=plain["closing"]["created"],
            heads=tuple(head_from_json(head) for head in plain["closing"]["heads"]),
        )
        return Checkpoint(
            contract_digest=plain["contract_digest"],
            run=plain["run"],
            state=state,
            reports=reports,
            closing=closing,
        )
    except (KeyError, TypeError, ValueError, TrustError) as error:
        raise WireError(f"it is of another version ({type(error).__name__})") from None


def _lightened(reports: tuple[RoundReport, ...]) -> tuple[RoundReport, ...]:
    """The reports without adapters, and without the histograms that nothing looks at again."""
    first = next((each for each in reports if each.histogram is not None), None)
    light = []
    for each in reports:
        keeps = each is first or each is reports[-1]
        histogram = each.histogram if keeps else None
        evaluated = each.evaluated if keeps else 0
        light.append(
            dataclasses.replace(each, adapter={}, histogram=histogram, evaluated=evaluated)
        )
    return tuple(light)


def _plain(kind: type, without: set[str]) -> list["dataclasses.Field[Any]"]:
    return [f for f in dataclasses.fields(kind) if f.name not in without]


def _under(part: str, arrays: Mapping[str, NDArray[Any]], kind: type) -> dict[str, NDArray[Any]]:
    start = f"{part}/"
    found = {name.removeprefix(start): a for name, a in arrays.items() if name.startswith(start)}
    if any(array.dtype != kind for array in found.values()):
        raise ValueError(part)
    return found


def _edges(plain: Mapping[str, list[float]] | None) -> dict[str, tuple[float, ...]] | None:
    return None if plain is None else {name: tuple(own) for name, own in plain.items()}
