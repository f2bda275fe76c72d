"""`credit-sim bench`: what training, the wire, the rounds and the commands' start cost."""

import argparse
import sys
from typing import Any

from credit_common.command import FORMATS
from credit_common.errors import ContractError

STYLES = (*FORMATS, "markdown")


def add_bench(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the benchmarks to the command line."""
    bench = commands.add_parser(
        "bench",
        help="measure training, wire, rounds and start, beside their peers",
        description="Measure the system beside what a user would otherwise take. Ratios come from "
        "repetitions that are interleaved in one run.",
    )
    which = bench.add_subparsers(required=True, metavar="WHAT")
    _add_rounds(which)
    _add_scoring(which)
    _add_start(which)
    _add_training(which)
    _add_wire(which)


def _add_rounds(which: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    rounds = which.add_parser(
        "rounds", help="seconds and memory a round of trivial holders, beside Ray and pfl"
    )
    rounds.add_argument("--holders", type=_counted, nargs="+", default=[20, 100, 1000], metavar="N")
    rounds.add_argument("--repeats", type=_counted, default=3, metavar="N")
    rounds.add_argument("--format", default="table", choices=STYLES)
    rounds.set_defaults(command=_rounds)


def _add_scoring(which: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    scoring = which.add_parser(
        "scoring",
        help="rows a second of scoring a file, beside a plain loop of transformers and peft",
    )
    scoring.add_argument(
        "--data",
        default="pakdd2009,lendingclub",
        help="comma-separated packaged data sets whose contracts read text (pakdd2009,lendingclub)",
    )
    scoring.add_argument("--rows", type=_counted, default=2000, metavar="N", help="scored (2000)")
    scoring.add_argument("--repeats", type=_counted, default=3, metavar="N")
    scoring.add_argument("--format", default="table", choices=STYLES)
    scoring.set_defaults(command=_scoring)


def _scoring(options: argparse.Namespace) -> int:
    from credit_simulations.bench.measured import show
    from credit_simulations.bench.scoring import measure_scoring

    names = options.data.split(",")
    show(measure_scoring(names, options.rows, options.repeats, _stage), options.format)
    return 0


def _add_start(which: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    start = which.add_parser("start", help="seconds until each command answers --help")
    start.add_argument("--repeats", type=_counted, default=9, metavar="N")
    start.add_argument("--format", default="table", choices=STYLES)
    start.set_defaults(command=_start)


def _start(options: argparse.Namespace) -> int:
    from credit_simulations.bench.measured import show
    from credit_simulations.bench.start import measure_start

    show(measure_start(options.repeats), options.format)
    return 0


def _add_wire(which: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    wire = which.add_parser(
        "wire",
        help="bytes of a round under each encoding of uploads, with the AUC beside them",
        description="Bytes that a holder sends and gets in a round under each encoding of uploads, "
        "against the adapter (A, B and head) and the whole model in float32. A federation in one "
        "process is run under each at epsilon = infinity, with the same batches, for its AUC.",
    )
    wire.add_argument(
        "contract",
        nargs="?",
        default="pakdd2009",
        metavar="CONTRACT",
        help="a packaged contract, or the path of one with the name of a packaged data set "
        "(default: pakdd2009)",
    )
    wire.add_argument("--holders", type=_counted, default=5, metavar="N", help="the biggest N")
    wire.add_argument("--rounds", type=_counted, metavar="N", help="instead of the contract's")
    wire.add_argument(
        "--seeds", type=_counted, default=1, metavar="N", help="federations an encoding"
    )
    wire.add_argument(
        "--draws",
        type=_counted_or_none,
        default=0,
        metavar="N",
        help="as many under the contract's epsilon too",
    )
    wire.add_argument("--format", default="table", choices=STYLES)
    wire.set_defaults(command=_wire)


def _wire(options: argparse.Namespace) -> int:
    from credit_simulations.bench.measured import show
    from credit_simulations.bench.wire import measure_wire

    measured = measure_wire(
        options.contract,
        holders=options.holders,
        rounds=options.rounds,
        seeds=options.seeds,
        draws=options.draws,
    )
    show(measured, options.format)
    return 0


def _rounds(options: argparse.Namespace) -> int:
    from credit_simulations.bench.measured import show
    from credit_simulations.bench.rounds import measure_rounds

    show(measure_rounds(options.holders, options.repeats), options.format)
    return 0


def _add_training(which: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    training = which.add_parser(
        "training",
        help="our training engine beside peft with Opacus, on the same users",
        description="Time our training engine beside the recipe that a user would write (peft, "
        "with and without Opacus), compare their peak memory, and the AUC at the same epsilon.",
    )
    count: dict[str, Any] = {"type": _counted, "metavar": "N"}
    or_none: dict[str, Any] = {"type": _counted_or_none, "metavar": "N"}
    training.add_argument(
        "--texts",
        help="comma-separated: pakdd2009 (the whole record), lendingclub, pakdd2009-short (its "
        "contract's text), german; the first three unless told",
    )
    training.add_argument("--users", help="users of the biggest holder, for the times", **count)
    training.add_argument("--epochs", help="epochs that share the cache build", **count)
    training.add_argument("--repeats", help="repetitions of the times", **count)
    training.add_argument(
        "--auc-users", help="pooled training users of the AUCs; 0 for none", **or_none
    )
    training.add_argument("--auc-epochs", help="epochs of the AUCs", **count)
    training.add_argument(
        "--pooled-users", help="training users of auc_difference; 0 for none", **or_none
    )
    training.add_argument("--draws", help="trainings averaged in auc_difference", **count)
    only = training.add_mutually_exclusive_group()
    only.add_argument("--no-auc", action="store_true", help="only times and memory")
    only.add_argument("--only-auc", action="store_true", help="no times and no memory")
    training.add_argument(
        "--quick", action="store_true", help="tiny sizes on german: whether it runs, no figures"
    )
    training.add_argument("--format", default="table", choices=STYLES)
    training.set_defaults(command=_training)


def _training(options: argparse.Namespace) -> int:
    from dataclasses import replace

    from credit_simulations.bench.compared import QUICK, Sizes
    from credit_simulations.bench.measured import show
    from credit_simulations.bench.texts import TEXTS
    from credit_simulations.bench.training import measure_quality, measure_training

    names = options.texts.split(",") if options.texts else list(TEXTS[:3])
    if options.quick and not options.texts:
        names = ["german"]
    unknown = sorted(set(names) - set(TEXTS))
    if unknown:
        raise ContractError(f"texts {unknown[0]!r} are unknown; texts: {', '.join(TEXTS)}")
    told = {name: getattr(options, name) for name in _SIZES if getattr(options, name) is not None}
    if options.no_auc:
        told |= {"auc_users": 0, "pooled_users": 0}
    sizes = replace(QUICK if options.quick else Sizes(), **told)
    given = [f"--{name.replace('_', '-')} {value}" for name, value in told.items()]
    quick = ["--quick"] if options.quick else []
    only = ["--only-auc"] if options.only_auc else []
    said = ["credit-sim bench training", *quick, *only, f"--texts {','.join(names)}", *given]
    measure = measure_quality if options.only_auc else measure_training
    show(measure(names, sizes, " ".join(said), _stage), options.format)
    return 0


_SIZES = ("users", "epochs", "repeats", "auc_users", "auc_epochs", "pooled_users", "draws")


def _stage(what: str) -> None:
    sys.stderr.write(f"bench: {what}\n")


def _counted(text: str) -> int:
    return _at_least(1, text)


def _counted_or_none(text: str) -> int:
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least {least}")
    return int(text)
