"""The arms of a run: the federation, and what it is held against, on the same users and split."""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from credit_client.mapping import ShardMapping
from credit_client.shard import Shard, write_rejects
from credit_common.backbone import Backbone, resolve_backbone
from credit_common.contract import Contract
from credit_common.device import device_of
from credit_common.errors import ContractError, CreditError
from credit_common.evaluation import exact_figures
from credit_common.extras import install
from credit_common.model import Arrays, CreditModel
from credit_common.statistics import Edges
from credit_simulations.baselines import central_logistic, local_logistic
from credit_simulations.federation import (
    Outcome,
    Party,
    Progress,
    holdout_scores,
    make_parties,
    read_shards,
    simulate,
    under_edges,
)
from credit_simulations.newcomers import Newcomers, welcome

ARMS = ("federated", "no_dp", "wide_only", "frozen_bert", "central_logistic", "local_only")
"""federated, wide_only and frozen_bert (head and wide part) train under the contract's ε."""
BASELINES = ("central_logistic", "local_only")
"""Those of `ARMS` that are scikit-learn's."""


def check_arms(arms: Sequence[str]) -> None:
    """Refuse an arm that is none, or that cannot be run here.

    Raises:
        ContractError: Naming it, and those that there are.
        CreditError: If scikit-learn is missing.
    """
    unknown = sorted(set(arms) - set(ARMS))
    if unknown:
        raise ContractError(f"arm {unknown[0]!r} is unknown; arms: {', '.join(ARMS)}")
    fitted = [arm for arm in arms if arm in BASELINES]
    if fitted and find_spec("sklearn") is None:
        raise CreditError(f"arm {fitted[0]!r} needs scikit-learn: {install('bench')}")


class Bench:
    """Runs arms one after the other and collects their rows.

    The frozen layers run once, for the federation; the arms that need less take it from there. Arms
    that train find federated edges by themselves; the logistic regressions take the federation's.
    Use it as a context manager: temporary ledgers go when it is left.
    """

    def __init__(
        self,
        contract: Contract,
        *,
        device: str,
        seed: int,
        state: Path | None,
        allow_no_privacy: bool,
        stage: Callable[[str], None],
        note: Callable[[str], None],
        on_round: Callable[[str, int, Progress], None],
    ) -> None:
        self.contract = contract
        self.rows: list[dict[str, Any]] = []
        self.seconds: dict[str, float] = {}
        self.parties: list[Party] = []
        self._device = device_of(device)
        self._seed, self._state, self._allow = seed, state, allow_no_privacy
        self._stage, self._note, self._on_round = stage, note, on_round
        self._backbone: Backbone | None = None
        self._model: CreditModel | None = None
        self._edges: Edges = {}
        self._temporary = tempfile.TemporaryDirectory(prefix="credit-sim-")
        self._count = 0

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *_: object) -> None:
        self._temporary.cleanup()

    def read(self, shards: Mapping[str, Path], mapping: ShardMapping | None) -> None:
        """Read the shards, load the model and encode every user."""
        with self._timed("reading"):
            read = read_shards(self.contract, shards, mapping)
            for name, shard in read.items():
                self._note(f"{name}: {shard.summary()}")
                if shard.rejects and self._state is not None:
                    self._state.mkdir(parents=True, exist_ok=True)
                    write_rejects(self._state / f"{name}.rejects.csv", shard.rejects)
        with self._timed("loading the model"):
            if self.contract.model.reads_text:
                self._backbone = resolve_backbone(self.contract.model)
            self._model = CreditModel(self.contract, self._backbone, self._device)
        with self._timed("encoding"):
            self.parties = make_parties(
                self.contract, read, self._model, lambda name: self._stage(f"encoded {name}")
            )

    def federated(self, draws: int) -> Outcome:
        """The federation itself; returns its first draw."""
        assert self._model is not None  # read() comes first
        done = [
            self._train("federated", self.contract, self._model, self.parties, draw, self._state)
            for draw in self._draws(draws)
        ]
        self._edges = done[0].edges
        return done[0]

    def given(self, outcome: Outcome) -> None:
        """Take the federation's outcome from outside: it was trained by other processes."""
        assert self._model is not None
        self._edges = outcome.edges
        self._outcome("federated", self.contract, self._model, self.parties, 1, outcome)

    def newcomers(self, shards: Mapping[str, Shard], adapter: Arrays) -> Newcomers:
        """What the adapter brings to shops that took no part."""
        assert self._model is not None
        with self._timed("newcomers"):
            resolved = self.contract.with_edges(self._edges)
            return welcome(resolved, shards, self._model, adapter)

    def arm(self, name: str, draws: int) -> None:
        """Run an arm, unless the contract has no use for it or it is the federation itself."""
        model, groups = self.contract.model, self.contract.model.train
        if name == "no_dp" and self.contract.privacy.private:
            assert self._model is not None
            open_contract = self.contract.without_privacy()
            self._train(name, open_contract, self._model, self.parties, 1, None)
        elif name == "wide_only" and "wide" in groups and model.reads_text:
            parties = [_each(p, lambda examples: examples.without_text()) for p in self.parties]
            self._retrained(name, ("wide",), parties, draws)
        elif name == "frozen_bert" and "lora" in groups:
            assert self._model is not None
            resident = self._model
            parties = [_each(p, lambda examples: examples.at_cls(resident)) for p in self.parties]
            self._retrained(name, tuple(g for g in groups if g != "lora"), parties, draws)
        elif name in _LOGISTIC and "wide" in groups and self.contract.task.kind == "binary":
            with self._timed(name):
                start = time.perf_counter()
                scores = _LOGISTIC[name](under_edges(self.contract, self.parties, self._edges))
                self._row(name, None, 1, scores, None, 0, time.perf_counter() - start)

    def _retrained(
        self, name: str, groups: tuple[Any, ...], parties: Sequence[Party], draws: int
    ) -> None:
        contract = self.contract.training_only(*groups)
        backbone = self._backbone if contract.model.reads_text else None
        model = CreditModel(contract, backbone, self._device)
        for draw in self._draws(draws):
            self._train(name, contract, model, parties, draw, None)

    def _train(
        self,
        name: str,
        contract: Contract,
        model: CreditModel,
        parties: Sequence[Party],
        draw: int,
        ledgers: Path | None,
    ) -> Outcome:
        folder = ledgers if ledgers is not None and draw == 1 else self._fresh_folder()
        folder.mkdir(parents=True, exist_ok=True)
        with self._timed(name):
            outcome = simulate(
                contract,
                parties,
                model,
                ledgers=folder,
                # A baseline without privacy is part of the run; the contract itself is not.
                allow_no_privacy=self._allow or name == "no_dp",
                seed=self._seed,
                on_round=lambda progress: self._on_round(name, draw, progress),
            )
        self._outcome(name, contract, model, parties, draw, outcome)
        return outcome

    def _outcome(
        self,
        name: str,
        contract: Contract,
        model: CreditModel,
        parties: Sequence[Party],
        draw: int,
        outcome: Outcome,
    ) -> None:
        parties = under_edges(contract, parties, outcome.edges)
        scores = holdout_scores(model, parties, outcome.adapter)
        released = outcome.history[-1]
        epsilon = outcome.epsilon if contract.privacy.private else None
        self._row(name, epsilon, draw, scores, released, outcome.bytes_up, outcome.seconds)

    def _row(
        self,
        arm: str,
        epsilon: float | None,
        draw: int,
        scores: Mapping[str, NDArray[Any]],
        released: Progress | None,
        bytes_up: int,
        seconds: float,
    ) -> None:
        labels = {p.name: p.holdout.labels for p in self.parties}
        names = sorted(labels)
        pooled = exact_figures(
            self.contract,
            np.concatenate([scores[n].reshape(len(labels[n]), -1) for n in names]),
            np.concatenate([labels[n] for n in names]),
        )
        main = next(iter(pooled))
        ends = released.intervals[main] if released else (None, None)
        inside = [
            exact_figures(self.contract, scores[n].reshape(len(labels[n]), -1), labels[n])[main]
            for n in names
        ]
        self.rows.append(
            {
                "arm": arm,
                "epsilon": epsilon,
                "draw": draw,
                **pooled,
                f"{main}_in_holder": float(np.nanmean(inside)),
                f"{main}_released": released.figures[main] if released else None,
                **{f"{main}_released_{e}": x for e, x in zip(("low", "high"), ends, strict=True)},
                "bytes_up": bytes_up,
                "seconds": seconds,
            }
        )

    def _draws(self, draws: int) -> range:
        return range(1, (draws if self.contract.privacy.private else 1) + 1)

    def _fresh_folder(self) -> Path:
        self._count += 1
        return Path(self._temporary.name) / str(self._count)

    @contextlib.contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        self._stage(part)
        start = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


_LOGISTIC = {"central_logistic": central_logistic, "local_only": local_logistic}


def _each(party: Party, change: Callable[[Any], Any]) -> Party:
    return Party(
        name=party.name,
        size_class=party.size_class,
        train=change(party.train),
        holdout=change(party.holdout),
    )
