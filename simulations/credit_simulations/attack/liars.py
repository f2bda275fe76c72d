"""Holders that lie about their training, wrapped around the live ClientApp.

    sign_flip   the change of its honest training, turned round
    scale       the same change, `SCALE` times as long
    scaled_flip turned round, and as long
    nan         numbers that are none
    label_flip  honest training on users whose outcomes are turned round
    alie        "a little is enough": the mean of the liars' honest changes less `Z` of their
                standard deviations in each coordinate (Baruch et al. 2019); all send the same
    random      a Gaussian direction, as long as the coordinator's public bound lets through
    stale       honest training from the adapter of the first round, in every round
    free_ride   the adapter that it was sent

A liar keeps to the wire and to its size class, answers evaluations honestly, and goes past its own
gate: a ledger binds the honest. All this is here, in the simulation; nothing that a contract or a
message says can make the client's own package lie.
"""

import copy
from collections.abc import Callable, Mapping

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from credit_client.app import Holder, asked
from credit_client.training.examples import Examples
from credit_client.training.loop import train
from credit_client.training.randomness import SecureRandom
from credit_common.contract import Contract
from credit_common.errors import CreditError
from credit_common.model import Arrays
from credit_common.upload import Encoded, encode
from credit_common.wire import adapter_reply, pack, request_round
from credit_server.plausible import bounds

ATTACKS = (
    "sign_flip",
    "scale",
    "scaled_flip",
    "nan",
    "label_flip",
    "alie",
    "random",
    "stale",
    "free_ride",
)
SCALE = 100.0
Z = 1.5
"""Of the paper's own experiments."""
VIEW = 5
"""Honest trainings that the liars of "alie" look at together, at least."""
UNBOUND = 10.0
"""Length of a random change where no bound is known, in lengths of an honest one."""

Adapter = dict[str, NDArray[np.float32]]


class Liars:
    """The liars of one run, who know of one another.

    Args:
        attack: One of `ATTACKS`.
        names: Of the holders that lie.

    Raises:
        CreditError: If there is no such attack.
    """

    def __init__(self, attack: str, names: frozenset[str]) -> None:
        if attack not in ATTACKS:
            raise CreditError(f"attack = {attack!r}: must be one of {', '.join(ATTACKS)}")
        self._attack, self._names = attack, names
        self._holders: list[Holder] = []
        self._first: Adapter = {}
        self._seen: tuple[int, Adapter] = (0, {})  # a round, and what "alie" sends in it

    def wrap(self, holder: Holder, honest: ClientApp) -> ClientApp:
        """The app that answers for a holder: its own one, unless it is a liar."""
        if holder.name not in self._names:
            return honest
        self._holders.append(holder)
        app = ClientApp()

        @app.train()
        def _train(message: Message, context: Context) -> Message:
            base, resolved = asked(holder, message)
            lie = self._lie(holder, base, resolved, request_round(message))
            kind = holder.contract.training.upload
            sent = encode(kind, lie, base, SecureRandom().uniform)
            if self._attack == "nan":
                sent = _without_numbers(sent)
            return adapter_reply(message, pack(sent), holder.plan.expected_batch_size)

        @app.evaluate()
        def _evaluate(message: Message, context: Context) -> Message:
            return honest(message, context)

        @app.query()
        def _query(message: Message, context: Context) -> Message:
            return honest(message, context)

        return app

    def _lie(self, holder: Holder, base: Arrays, resolved: Contract, round_: int) -> Adapter:
        own = holder.train.under(resolved)
        if self._attack == "free_ride" or self._attack == "nan":
            return dict(base)
        if self._attack == "label_flip":
            return _trained(holder, _turned(own), base)
        if self._attack == "stale":
            self._first = self._first or dict(base)
            return _trained(holder, own, self._first)
        if self._attack == "alie":
            return self._just_enough(base, resolved, round_)
        honest = _trained(holder, own, base)
        if self._attack == "random":
            return _random(holder, base, honest)
        times = {"sign_flip": -1.0, "scale": SCALE, "scaled_flip": -SCALE}[self._attack]
        return _each(base, lambda name: times * (honest[name].astype(np.float64) - base[name]))

    def _just_enough(self, base: Arrays, resolved: Contract, round_: int) -> Adapter:
        if self._seen[0] != round_:
            times = -(-VIEW // len(self._holders))
            views = [
                _trained(holder, holder.train.under(resolved), base)
                for holder in self._holders
                for _ in range(times)
            ]

            def change(name: str) -> NDArray[np.float64]:
                rows = np.stack([view[name].astype(np.float64) - base[name] for view in views])
                lie: NDArray[np.float64] = rows.mean(0) - Z * rows.std(0)
                return lie

            self._seen = (round_, _each(base, change))
        return self._seen[1]


def _trained(holder: Holder, examples: Examples, base: Arrays) -> Adapter:
    """What the holder's own training makes of an adapter, without a charge."""
    sampling, noise = (
        SecureRandom() if type(own) is SecureRandom else own
        for own in (holder.sampling, holder.noise)
    )
    return train(holder.model, examples, holder.plan, base, sampling=sampling, noise=noise)


def _turned(examples: Examples) -> Examples:
    other = copy.copy(examples)
    other.labels = 1.0 - examples.labels
    return other


def _random(holder: Holder, base: Arrays, honest: Adapter) -> Adapter:
    """A change in a random direction, each group's as long as may be."""
    shapes = {name: array.shape for name, array in base.items()}
    known = bounds(holder.contract, holder.plan, shapes)
    draw = np.random.default_rng()
    found: dict[str, NDArray[np.float64]] = {}
    for group in holder.contract.model.train:
        names = [name for name in base if name.split(".")[0] == group]
        drawn = {name: draw.standard_normal(shapes[name]) for name in names}
        length = UNBOUND * _norm({name: honest[name] - base[name] for name in names})
        if group in known:
            length = 0.8 * known[group].most  # what is sent is rounded, which may lengthen it
        found |= {name: own * (length / _norm(drawn)) for name, own in drawn.items()}
    return _each(base, lambda name: found[name])


def _norm(arrays: Mapping[str, NDArray[np.floating]]) -> float:
    return float(np.sqrt(sum(float(np.square(own).sum()) for own in arrays.values())))


def _each(base: Arrays, change: Callable[[str], NDArray[np.float64]]) -> Adapter:
    return {name: (start + change(name)).astype(np.float32) for name, start in base.items()}


def _without_numbers(sent: Encoded) -> Encoded:
    """The same arrays; those that can hold what is no number hold nothing else."""
    return {
        name: np.full_like(own, np.nan if own.dtype == np.float32 else 0x7FC0)
        if own.dtype in (np.float32, np.uint16)
        else own
        for name, own in sent.items()
    }
