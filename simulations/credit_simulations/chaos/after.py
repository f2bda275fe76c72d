"""What a run left behind, read and checked: ledgers, the coordinator's heads, the release."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from credit_client.ledger import Ledger
from credit_client.manifest import Manifest, listed
from credit_client.witness import Witness
from credit_common.metrics import auc_exact
from credit_common.privacy import mechanism_plan
from credit_common.release import open_release
from credit_server.enrol import Registry
from credit_simulations.chaos.checks import (
    Findings,
    check_ledger,
    check_means,
    check_replies,
    check_rounds,
)
from credit_simulations.chaos.ground import Ground
from credit_simulations.chaos.run import SERVER, Trace, door_lines


def examine(ground: Ground, trace: Trace, liar: str | None) -> Findings:
    """All checks of one run; those of ledgers where it was private.

    Args:
        ground: Where it was.
        trace: What was seen of it.
        liar: Whose answers and ledger are nobody's concern.

    Raises:
        CreditError: If a ledger is not whole, or a manifest lists what was not charged.
    """
    contract = ground.contract
    rounds, least = contract.training.rounds, contract.federation.min_holders
    record = ground.home / "door"
    door, ended = door_lines(record), trace.release is not None
    enrolled = Registry(ground.coordinator).holders()
    weights = {
        holder.node_id: mechanism_plan(contract, holder.size_class).expected_batch_size
        for holder in enrolled.values()
    }
    arrays = {
        path.name: path.read_bytes()
        for part in ("asked", "came")
        for path in record.glob(f"{part}/*")
    }
    found = check_rounds(
        [int(line["round"]) for line in trace.of(SERVER, "round")],
        [int(line["round"]) for line in trace.of(SERVER, "resumed")] + [rounds] * ended,
        door,
        rounds,
        least,
    )
    average = contract.training.average
    found += check_means(door, arrays, weights, rounds=rounds, least=least, average=average)
    honest = [name for name in ground.shards if name != liar]
    if not contract.privacy.private:
        return found
    found += check_replies(door, [enrolled[name].node_id for name in honest])
    heads = _head_claims(ground.coordinator)
    for name in honest:
        plan = mechanism_plan(contract, enrolled[name].size_class)
        with _ledger(ground, name) as ledger:
            entries, said = ledger.entries(), ledger.epsilon_overall(plan.delta)
            list(listed(Manifest(ground.home / name / f"{name}.manifest.jsonl").lines(), entries))
        told = [e.line["epsilon"] for e in trace.told if e.who == name and "epsilon" in e.line]
        node = enrolled[name].node_id
        claims = [float(value) for value in told if value is not None]
        found += check_ledger(entries, said, claims, door, node, plan)
        if heads.get(node, 0.0) > said:
            found += Findings(epsilon_above_ledger=1)
    return found


def releases_differ(ground: Ground, trace: Trace, liar: str | None) -> int:
    """How many honest holders that came to their end have another release than the coordinator."""
    if trace.release is None:
        return 0
    digest = open_release(trace.release).digest
    return sum(
        open_release(Path(str(line["release"]))).digest != digest
        for name in ground.shards
        if name != liar
        for line in trace.of(name, "done")
    )


class Judge:
    """The AUC of releases on the true scores of some holders' hold-out users.

    The coordinator's own figure would not do: the liar's histogram is in it.

    Args:
        ground: Any with the contract's model and these shards.
        names: Of the honest holders.
    """

    def __init__(self, ground: Ground, names: Sequence[str]) -> None:
        from credit_common.backbone import resolve_backbone
        from credit_common.model import CreditModel
        from credit_simulations.federation import make_parties, read_shards

        contract = ground.contract
        backbone = resolve_backbone(contract.model) if contract.model.reads_text else None
        self._model = CreditModel(contract, backbone)
        shards = read_shards(contract, {name: ground.shards[name] for name in names})
        self._parties = make_parties(contract, shards, self._model)

    def auc(self, release: Path) -> float:
        """AUC over the hold-out users of all holders together."""
        from credit_simulations.federation import holdout_scores

        scores = holdout_scores(self._model, self._parties, open_release(release).adapter)
        labels = [party.holdout.labels for party in self._parties]
        together = np.concatenate([scores[party.name][:, 0] for party in self._parties])
        return float(auc_exact(together, np.concatenate(labels)))


def _ledger(ground: Ground, name: str) -> Ledger:
    (mark,) = (ground.home / "state" / "credit-federation" / "witness").glob(f"*-{name}.json")
    return Ledger.open(ground.home / name / f"{name}.ledger", Witness(mark))


def _head_claims(coordinator: Path) -> dict[int, float]:
    """ε that holders signed for the coordinator, by node id, where they said it."""
    path = coordinator / "heads.json"
    if not path.exists():
        return {}
    heads = json.loads(path.read_text("utf-8"))
    return {int(node): h["epsilon"] for node, h in heads.items() if h["epsilon"] is not None}
