"""Rounds of trivial holders over LoopGrid and over what a user would otherwise take.

Each system runs in a process of its own, started by `bench.rounds`.
"""

import contextlib
import dataclasses
import importlib.util
import itertools
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from credit_client.gate import Gate
from credit_client.ledger import Ledger
from credit_common.contract import Contract
from credit_common.privacy import mechanism_plan
from credit_server.app import coordinator_app
from credit_simulations.bench.trivial import (
    SHAPES,
    SHARE,
    STEP,
    initial_adapter,
    stepped,
    trivial_app,
)
from credit_simulations.loop import run_in_process
from credit_simulations.packaged import packaged_contract

CONTRACT = "pakdd2009"

OnRound = Callable[[], None]


def run_loop(holders: int, rounds: int, on_round: OnRound) -> None:
    """Our ServerApp and FedAvg over LoopGrid."""
    contract = _contract(rounds).without_privacy()
    app = trivial_app(2 * contract.evaluation.bins)
    run_in_process(_server(contract, on_round), dict.fromkeys(_names(holders), app))


def run_gates(holders: int, rounds: int, on_round: OnRound, durable: bool) -> None:
    """The same; each holder answers through its gate, which charges a ledger of its own."""
    contract = _contract(rounds)
    plan = mechanism_plan(contract, contract.privacy.size_classes[0][0])
    with tempfile.TemporaryDirectory(prefix="credit-bench-") as folder:
        ledgers = {
            name: Ledger.create(Path(folder) / f"{name}.ledger") if durable else Ledger.in_memory()
            for name in _names(holders)
        }
        gates = {
            name: Gate(contract, plan, ledger, dict(SHAPES)) for name, ledger in ledgers.items()
        }
        apps = {name: _charging(gate, contract.evaluation.bins) for name, gate in gates.items()}
        run_in_process(_server(contract, on_round), apps)
        for ledger in ledgers.values():
            ledger.close()


def run_ray(holders: int, rounds: int, on_round: OnRound) -> None:
    """The same ServerApp and ClientApp over Flower's simulation, one CPU an actor, on all CPUs."""
    from flwr.simulation import run_simulation

    contract = _contract(rounds).without_privacy()
    run_simulation(
        server_app=_server(contract, on_round),
        client_app=trivial_app(2 * contract.evaluation.bins),
        num_supernodes=holders,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            # "local", or it would join whatever cluster this machine runs.
            "init_args": {"address": "local", "include_dashboard": False, "log_to_driver": False},
        },
    )


def run_pfl(holders: int, rounds: int, on_round: OnRound) -> None:
    """Federated averaging of pfl over its simulation, its model being a PyTorch module."""
    import torch
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.hyperparam import NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    class Adapter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, shape in SHAPES.items():
                parameter = torch.nn.Parameter(torch.zeros(shape))
                self.register_parameter(name.replace(".", "_"), parameter)

        def loss(self, rows: torch.Tensor) -> torch.Tensor:
            return rows.sum()

        def metrics(self, rows: torch.Tensor) -> Mapping[str, float]:
            return {}

    class Adding(FederatedAveraging):  # type: ignore[misc]  # pfl ships no types
        def train_one_user(self, initial, model, user_dataset, central_context):  # type: ignore[no-untyped-def]
            with torch.no_grad():
                for name, parameter in model.pytorch_model.named_parameters():
                    parameter += float(STEP[name.split("_")[0]])
            return model.get_model_difference(initial), Metrics()

    class Told(TrainingProcessCallback):  # type: ignore[misc]
        def after_central_iteration(self, *_, **__):  # type: ignore[no-untyped-def]
            on_round()
            return False, Metrics()

    users = itertools.cycle(range(holders))
    rows = [np.zeros((SHARE, 1), np.float32)]
    data = FederatedDataset(
        make_dataset_fn=lambda user: Dataset(raw_data=rows, user_id=str(user)),
        user_sampler=lambda: next(users),
    )
    module = Adapter()
    Adding().run(
        NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=10**9,
            train_cohort_size=holders,
            val_cohort_size=0,
        ),
        SimulatedBackend(training_data=data, val_data=data, postprocessors=[WeightByDatapoints()]),
        PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), 1.0)),
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=0.1, local_batch_size=None),
        callbacks=[Told()],
        send_metrics_to_platform=False,
    )


SYSTEMS: Mapping[str, Callable[[int, int, OnRound], None]] = {
    "loop": run_loop,
    "loop, gates, ledgers in memory": lambda h, r, told: run_gates(h, r, told, durable=False),
    "loop, gates, ledgers on disk": lambda h, r, told: run_gates(h, r, told, durable=True),
    "ray": run_ray,
    "pfl": run_pfl,
}


def installed(system: str) -> bool:
    """Whether what the system needs beyond this project is here."""
    return system not in ("ray", "pfl") or importlib.util.find_spec(system) is not None


def tree_peak_mib() -> float:
    """Sum over this process and those below it of the most memory that each had resident."""
    proc = Path("/proc")
    if not proc.is_dir():  # then this process alone is seen
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / (2**20 if sys.platform == "darwin" else 2**10)
    parents, kib = {}, {}
    for folder in proc.iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):  # a process that has ended since
                lines = (folder / "status").read_text("utf-8").splitlines()
                fields = dict(line.split(":", 1) for line in lines if ":" in line)
                parents[int(folder.name)] = int(fields["PPid"])
                kib[int(folder.name)] = int(fields.get("VmHWM", "0 kB").split()[0])
    tree = {os.getpid()}
    while below := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= below
    return sum(kib.get(pid, 0) for pid in tree) / 2**10


def main(system: str, holders: int, rounds: int) -> None:
    """Run a system and say on stdout, as JSON, what happened.

    "rounds": when each ended, and when the next one could begin, in seconds since 1970; between
    them memory was looked at. "peak_mib": see `tree_peak_mib`.
    """
    seen: list[tuple[float, float]] = []
    peaks: list[float] = []

    def on_round() -> None:
        ended = time.time()
        peaks.append(tree_peak_mib())
        seen.append((ended, time.time()))

    SYSTEMS[system](holders, rounds, on_round)
    sys.stdout.write(json.dumps({"rounds": seen, "peak_mib": max(peaks)}) + "\n")


def _names(holders: int) -> list[str]:
    return [f"holder{i:05d}" for i in range(holders)]


def _contract(rounds: int) -> Contract:
    """The packaged contract, evaluated after the last round alone, with plain uploads."""
    contract = packaged_contract(CONTRACT)
    return dataclasses.replace(
        contract,
        federation=dataclasses.replace(contract.federation, min_holders=1),
        training=dataclasses.replace(contract.training, rounds=rounds, upload="float32"),
        evaluation=dataclasses.replace(contract.evaluation, every=rounds),
    )


def _server(contract: Contract, on_round: OnRound) -> ServerApp:
    return coordinator_app(
        contract, initial_adapter(), lambda report: on_round(), allow_no_privacy=True
    )


def _charging(gate: Gate, bins: int) -> ClientApp:
    app = ClientApp()

    @app.train()
    def _train(message: Message, context: Context) -> Message:
        return gate.send_adapter(message, lambda: stepped(message))

    @app.evaluate()
    def _evaluate(message: Message, context: Context) -> Message:
        return gate.send_histogram(message, lambda: np.zeros((2, bins)))

    return app
