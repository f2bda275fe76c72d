"""Bytes of a round under each encoding of uploads, and the AUC of a federation under each.

The messages are those that go out: a request of the coordinator's, and what a holder's app, gate
and all, answers to it. The federations run at epsilon = infinity with the same batches, so that
they differ by the encoding alone.
"""

import dataclasses
import math
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict

from credit_client.app import holder_app, open_holder
from credit_client.ledger import Ledger
from credit_common.backbone import resolve_backbone
from credit_common.certificates import new_key
from credit_common.contract import Contract
from credit_common.errors import ContractError
from credit_common.evaluation import exact_figures
from credit_common.heads import sign_head
from credit_common.model import CreditModel
from credit_common.protocol import to_head, to_reply, to_request
from credit_common.sections import Upload
from credit_common.statistics import edge_arrays
from credit_common.wire import (
    ARRAYS,
    CONFIG,
    ROUND,
    SERVER_NODE,
    array_record,
    empty_context,
    set_identity,
    set_message_id,
)
from credit_simulations.bench.measured import Measured, Value
from credit_simulations.federation import (
    Party,
    holdout_scores,
    make_parties,
    read_shards,
    simulate,
    under_edges,
)
from credit_simulations.packaged import packaged_contract, packaged_shards

ENCODINGS: tuple[Upload, ...] = get_args(Upload)
MOST_LORA, MOST_MODEL, MOST_AUC = 1 / 3, 1 / 500, 0.003
"""What the leanest encoding is held to."""
_HOLDER = SERVER_NODE + 1


def measure_wire(
    contract: Contract | str | Path,
    *,
    holders: int = 5,
    rounds: int | None = None,
    seeds: int = 1,
    draws: int = 0,
) -> Measured:
    """Bytes and AUC under each encoding.

    Args:
        contract: Of a binary task, named as a packaged data set.
        holders: The biggest ones of the data set.
        rounds: Instead of the contract's, for a quick look.
        seeds: Federations under each encoding at epsilon = infinity; each seed sets the batches.
        draws: Federations under each encoding at the contract's own epsilon.

    Raises:
        ContractError: If the task is not binary, or there is no text: no adapter to compare with.
        CreditError: Whatever contract, data or backbone refuse.
    """
    contract = packaged_contract(contract)
    if contract.task.kind != "binary" or "lora" not in contract.model.train:
        raise ContractError("bench wire needs a binary task and LoRA")
    changed = "" if rounds is None else f" --rounds {rounds}"
    if rounds is not None:
        training = dataclasses.replace(contract.training, rounds=rounds)
        contract = dataclasses.replace(contract, training=training)
    name = contract.federation.name
    model = CreditModel(contract, resolve_backbone(contract.model))
    shards = read_shards(contract, packaged_shards(name, holders))
    parties = make_parties(contract, shards, model)
    adapter_bytes, model_bytes = _adapter_bytes(model), _model_bytes(model)
    rows: list[dict[str, Value]] = []
    plain: dict[bool, list[float]] = {}
    worst: dict[str, float] = {}
    for kind in ENCODINGS:
        own = uploading(contract, kind)
        up, down = message_bytes(own, model, parties[0])
        row: dict[str, Value] = {
            "encoding": kind,
            "bytes_up": up,
            "bytes_down": down,
            "up_over_fp32_lora": up / adapter_bytes,
            "up_over_model": up / model_bytes,
        }
        for private, times in ((False, seeds), (True, draws)):
            if times == 0:
                continue
            run = own if private else own.without_privacy()
            found = [_auc(run, model, parties, seed) for seed in range(times)]
            # Draws are independent, so their means are compared; seeds repeat the batches.
            first = plain.setdefault(private, found)
            apart = [one - other for one, other in zip(found, first, strict=True)]
            at = f"_epsilon_{contract.privacy.epsilon:g}" if private else ""
            row |= {
                f"auc{at}": statistics.mean(found),
                f"auc_difference{at}": statistics.mean(apart),
            }
            if private:
                deviation = statistics.stdev(found) if times > 1 else math.nan
                row[f"auc_deviation{at}"] = deviation
            else:
                worst[kind] = max(map(abs, apart))
        rows.append(row)
    lean = min(rows, key=lambda row: float(row["bytes_up"] or 0))
    return Measured(
        title=f"a round of {name} under each encoding of uploads",
        command=f"credit-sim bench wire {name} --holders {holders}{changed} --seeds {seeds} "
        f"--draws {draws}",
        figures={
            "encoding": lean["encoding"],
            "bytes_over_fp32_lora": lean["up_over_fp32_lora"],
            "bytes_over_model": lean["up_over_model"],
            "auc_difference": worst.get(str(lean["encoding"])),
        },
        rows=rows,
        notes=(
            f"{len(parties)} holders, {contract.training.rounds} rounds. bytes_up: a training "
            "answer, with the signed head of a private holder's ledger; bytes_down: its request; "
            "both as protobuf, before TLS.",
            f"float32 A, B and head: {adapter_bytes:,} bytes; float32 model: {model_bytes:,}.",
            f"AUC: pooled hold-out users, epsilon = infinity, mean of {seeds} seeds; the figure "
            "auc_difference is the largest of one seed, in either direction.",
            f"Held to: {MOST_LORA:.3g} of the adapter, {MOST_MODEL:g} of the model, {MOST_AUC:g}.",
        ),
    )


def uploading(contract: Contract, kind: Upload) -> Contract:
    """The same federation with another encoding."""
    training = dataclasses.replace(contract.training, upload=kind)
    return dataclasses.replace(contract, training=training)


def message_bytes(contract: Contract, model: CreditModel, party: Party) -> tuple[int, int]:
    """Bytes up and down of a holder's training round, as serialised protobuf.

    The answer is trained without privacy, which changes no size; the ledger's head is the
    contract's own.
    """
    set_identity(1, SERVER_NODE)
    edges = {f.name: f.grid.inner[: f.bins - 1] for f in contract.federated_fields}
    arrays = array_record({**model.initial_adapter(), **edge_arrays(edges)})
    round_ = contract.training.rounds
    content = RecordDict({ARRAYS: arrays, CONFIG: ConfigRecord({ROUND: round_})})
    asked = Message(content, dst_node_id=_HOLDER, message_type="train")
    set_message_id(asked, f"{0:032x}-{round_}")
    with Ledger.in_memory() as ledger:
        holder = open_holder(
            party.name,
            contract.without_privacy(),
            size_class=party.size_class,
            ledger=ledger,
            model=model,
            train_records=party.train,
            holdout_records=party.holdout,
            allow_no_privacy=True,
        )
        reply = to_reply(holder_app(holder)(asked, empty_context(1, _HOLDER)))
    if contract.privacy.private:
        head = sign_head(
            new_key(),
            node_id=_HOLDER,
            contract_digest=contract.digest,
            counter=round_,
            blinded_hash=64 * "0",
            overrides=0,
            delta=contract.privacy.delta,
            epsilon=contract.privacy.epsilon,
            epsilon_replace_one=contract.privacy.epsilon,
        )
        reply.head.CopyFrom(to_head(head))
    return len(reply.SerializeToString()), len(to_request(asked).SerializeToString())


def _auc(contract: Contract, model: CreditModel, parties: Sequence[Party], seed: int) -> float:
    with tempfile.TemporaryDirectory(prefix="credit-sim-") as folder:
        outcome = simulate(
            contract, parties, model, ledgers=Path(folder), allow_no_privacy=True, seed=seed
        )
    parties = under_edges(contract, parties, outcome.edges)
    scores = holdout_scores(model, parties, outcome.adapter)
    labels = [party.holdout.labels for party in parties]
    pooled = np.concatenate([scores[party.name] for party in parties])
    return exact_figures(contract, pooled, np.concatenate(labels))["auc"]


def _adapter_bytes(model: CreditModel) -> int:
    """Numbers of A, B and head in float32, whichever of them train, without any framing."""
    shapes = {name: array.shape for name, array in model.fixed().items()} | model.schema()
    return sum(
        4 * math.prod(shape) for name, shape in shapes.items() if not name.startswith("wide")
    )


def _model_bytes(model: CreditModel) -> int:
    return sum(4 * p.numel() for name, p in model.named_parameters() if "lora_" not in name)
