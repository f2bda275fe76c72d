"""`credit-sim`: simulation runs, audits, data sets, noise for a budget.

Progress goes to stderr, results to stdout. Exit codes: 0 done, 1 refused with one line that says
why or an audit that failed, 2 wrong usage, 130 interrupted.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import credit_simulations
from credit_common.errors import CreditError
from credit_simulations.attack.cli import add_attack
from credit_simulations.bench.cli import add_bench
from credit_simulations.chaos.cli import add_chaos
from credit_simulations.results.cli import add_report
from credit_simulations.sweep.cli import add_sweep


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(argv)
    # Read when torch is loaded. By default its threads spin while they wait for one another, which
    # makes everything ten times slower as soon as another process wants the cores.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        code: int = options.command(options)
    except CreditError as error:
        print(f"credit-sim: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("credit-sim: interrupted", file=sys.stderr)
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="credit-sim", description=credit_simulations.__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="simulate a federation in one process, with its baselines beside it",
        description="Simulate a federation with the live apps in one process: a live table while "
        "it trains, then this model beside the same without DP, the wide part alone, frozen BERT, "
        "and logistic regression over all data and at each holder alone.",
    )
    run.add_argument("contract", help="a federation file, or the name of a packaged one")
    run.add_argument(
        "--shards",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="one file a holder (CSV, gzipped CSV, Parquet), named after its holder; "
        "default: the packaged data set's biggest holders",
    )
    run.add_argument("--mapping", type=Path, metavar="FILE", help="columns and codes of the shards")
    run.add_argument("--holders", type=int, default=5, metavar="N", help="of a packaged data set")
    run.add_argument("--arms", nargs="*", metavar="ARM", help="which baselines to run (all)")
    run.add_argument("--draws", type=int, default=1, metavar="N", help="noise draws of each arm")
    run.add_argument("--seed", type=int, default=0, help="of sampling, without privacy only")
    run.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    run.add_argument("--threads", type=int, metavar="N", help="CPU threads of torch")
    run.add_argument(
        "--state", type=Path, metavar="DIR", help="keep the holders' ledgers and rejects there"
    )
    run.add_argument("--tensorboard", type=Path, metavar="DIR", help="write event files there")
    run.add_argument(
        "--allow-no-privacy",
        action="store_true",
        help="accept a contract without privacy.epsilon",
    )
    run.add_argument("--format", default="table", choices=["table", "json", "markdown"])
    run.set_defaults(command=_run)

    demo = commands.add_parser(
        "demo",
        help="a coordinator and five shops as processes of their own, on public data",
        description="Found a federation of the biggest shops of pakdd2009 in a folder, run "
        "flower-server and credit-client for each of them over mutual TLS on this machine, and "
        "hold the released model against the baselines, and against what shops that took no part "
        "could do alone. Everything stays in the folder.",
    )
    demo.add_argument(
        "--home",
        type=Path,
        metavar="DIR",
        help="new folder for everything (credit-demo, credit-demo-2, ... here)",
    )
    demo.add_argument("--holders", type=int, default=5, metavar="N", help="shops that take part")
    demo.add_argument("--arms", nargs="*", metavar="ARM", help="which baselines to run (all)")
    demo.add_argument(
        "--threads", type=int, metavar="N", help="CPU threads of torch for the baselines"
    )
    demo.add_argument("--format", default="table", choices=["table", "json"])
    demo.set_defaults(command=_demo)

    audit = commands.add_parser(
        "audit",
        help="attack the privacy claim on real data: lower bounds on ε beside what is claimed",
        description="Plant canaries into the real trainer (one-run audit) and attack real users' "
        "membership, at ε = ∞, 8, 2 and 1, and hold lower bounds on ε beside the claims; broken "
        "variants must be caught. Exit code 1 if one is not, or if a bound passes a sound claim.",
    )
    audit.add_argument("--data", default="german", help="german, pakdd2009, taiwan or lendingclub")
    audit.add_argument("--canaries", type=int, default=1000, metavar="N")
    audit.add_argument(
        "--quick", action="store_true", help="300 users instead of 1,000, fewer rounds"
    )
    audit.add_argument("--threads", type=int, metavar="N", help="CPU threads of torch")
    audit.add_argument("--format", default="table", choices=["table", "json", "markdown"])
    audit.set_defaults(command=_audit)

    add_attack(commands)
    add_chaos(commands)
    add_bench(commands)
    add_sweep(commands)
    add_report(commands)

    data = commands.add_parser("data", help="fetch and prepare a data set or the BERT weights")
    data.add_argument(
        "name",
        help="pakdd2009, taiwan, german, gmsc, lendingclub, simulated-shops, completejourney, "
        "reviews, or minilm-l6",
    )
    data.add_argument("--file", type=Path, help="LendingClub's public loan CSV (lendingclub only)")
    data.add_argument("--format", default="table", choices=["table", "json"])
    data.set_defaults(command=_data)

    plan = commands.add_parser(
        "plan",
        help="what a contract's schedule spends, and the noise that a budget needs",
        description="Check a contract and print the ε of its whole schedule for training and "
        "hold-out users, and the smallest noise multiplier for a budget.",
    )
    plan.add_argument("contract", help="a federation file, or the name of a packaged one")
    plan.add_argument("--epsilon", type=float, help="budget to solve for (the contract's)")
    plan.add_argument("--format", default="table", choices=["table", "json"])
    plan.set_defaults(command=_plan)
    return parser


def _run(options: argparse.Namespace) -> int:
    # torch takes seconds to import: what can be wrong in the arguments is looked at before.
    from credit_client.mapping import load_mapping
    from credit_simulations.packaged import packaged_contract

    contract = packaged_contract(options.contract)
    shards = _holders(options.shards)
    mapping = load_mapping(options.mapping, contract) if options.mapping else None

    import torch

    from credit_simulations.arms import ARMS
    from credit_simulations.runs import run_arms
    from credit_simulations.view import RunView, summary, write_json, write_markdown

    if options.threads:
        torch.set_num_threads(options.threads)
    with RunView(contract, options.tensorboard) as view:
        result = run_arms(
            contract,
            shards,
            arms=ARMS if options.arms is None else options.arms,
            holders=options.holders,
            draws=options.draws,
            seed=options.seed,
            device=options.device,
            allow_no_privacy=options.allow_no_privacy,
            state=options.state,
            mapping=mapping,
            watcher=view.watcher,
        )
    {"table": summary, "json": write_json, "markdown": write_markdown}[options.format](result)
    return 0


def _demo(options: argparse.Namespace) -> int:
    from credit_simulations.processes import ended_by_signals

    with ended_by_signals():
        import torch

        from credit_simulations.arms import ARMS
        from credit_simulations.demo import DATA_SET, run_demo
        from credit_simulations.packaged import packaged_contract
        from credit_simulations.view import RunView, demo_summary, write_demo_json

        if options.threads:
            torch.set_num_threads(options.threads)
        with RunView(packaged_contract(DATA_SET), None) as view:
            result = run_demo(
                options.home,
                holders=options.holders,
                arms=ARMS if options.arms is None else options.arms,
                watcher=view.watcher,
            )
        {"table": demo_summary, "json": write_demo_json}[options.format](result)
    return 0


def _audit(options: argparse.Namespace) -> int:
    import torch

    from credit_simulations.audit import run_audit
    from credit_simulations.audit_view import audit_summary, write_audit_json, write_audit_markdown

    if options.threads:
        torch.set_num_threads(options.threads)
    result = run_audit(
        options.data,
        canaries=options.canaries,
        quick=options.quick,
        stage=lambda words: print(f"audit: {words}", file=sys.stderr),
    )
    views = {"table": audit_summary, "json": write_audit_json, "markdown": write_audit_markdown}
    views[options.format](result)
    for failure in result.failures():
        print(f"credit-sim: {failure}", file=sys.stderr)
    return 1 if result.failures() else 0


def _holders(files: list[Path] | None) -> dict[str, Path] | None:
    if files is None:
        return None
    for file in files:
        if not file.is_file():
            raise CreditError(f"--shards: there is no file {file}")
    named = {file.name.split(".")[0]: file for file in files}
    if len(named) < len(files):
        raise CreditError(
            "--shards: two files have the same name; a holder is named after its file"
        )
    return named


def _data(options: argparse.Namespace) -> int:
    from credit_simulations.data import describe, prepare

    path = prepare(options.name, options.file)
    shown: dict[str, object] = {"name": options.name, "path": str(path)}
    if path.is_file():
        found = describe(options.name)
        shown |= {"rows": found.rows, "event": found.event}
        shown |= {"event_rate": round(found.event_rate, 4), "holders": dict(found.holders)}
    if options.format == "json":
        print(json.dumps(shown))
        return 0
    print(f"{options.name}: {path}")
    if path.is_file():
        sizes = [f"{name} ({rows})" for name, rows in list(found.holders.items())[:5]]
        print(f"{found.rows} rows, {found.event_rate:.1%} with {found.event}")
        print(f"{len(found.holders)} holders, the biggest: {', '.join(sizes)}")
    return 0


def _plan(options: argparse.Namespace) -> int:
    from credit_common.accountant import solve_noise_multiplier
    from credit_common.privacy import mechanism_plan
    from credit_simulations.packaged import packaged_contract

    contract = packaged_contract(options.contract)
    plan = mechanism_plan(contract, contract.privacy.size_classes[0][0])
    budget = options.epsilon or plan.epsilon
    steps = plan.rounds * plan.steps
    shown = {
        "contract": contract.federation.name,
        "digest": contract.digest,
        "delta": plan.delta,
        "epsilon_budget": plan.epsilon,
        "epsilon_train": _finite(plan.train_epsilon()),
        "epsilon_holdout": _finite(plan.holdout_epsilon()),
        "sampling_rate": plan.sampling_rate,
        "steps": steps,
        "noise_multiplier": plan.noise_multiplier,
    }
    if plan.statistics_fields:
        shown["statistics_fields"] = plan.statistics_fields
        shown["statistics_noise_multiplier"] = plan.statistics_noise_multiplier
    if budget is not None:
        counted = plan.statistics_event()
        others = () if counted is None else (counted,)
        solved = solve_noise_multiplier(plan.sampling_rate, steps, budget, plan.delta, others)
        shown |= {"epsilon_asked": budget, "noise_multiplier_needed": solved}
    if options.format == "json":
        print(json.dumps(shown))
    else:
        for name, value in shown.items():
            print(f"{name:24} {'none' if value is None else value}")
    return 0


def _finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


if __name__ == "__main__":
    sys.exit(main())
