"""The commands of `credit-client` that use a release, at the holder; nothing leaves this machine.

    credit-client score --release DIR --shard FILE --out FILE      score a file
    credit-client calibrate --release DIR --shard FILE --out FILE  what a score means for its users
    credit-client export --release DIR --out DIR                   the release for ONNX Runtime

torch is loaded by the commands themselves, not by --help.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from credit_common.command import DEVICES, FORMATS
from credit_common.decision import LANGUAGES, Decision
from credit_common.errors import CreditError, ShardError
from credit_common.extras import install

EXTRA = ("captum", "onnx", "onnxruntime", "onnxscript", "sklearn")
"""Modules of the extra `score`."""

Command = Callable[[argparse.Namespace], int]


def add_score_commands(commands: Any) -> None:
    """Add the commands to the parser's."""
    score = commands.add_parser("score", help="score a file with a release")
    _add_release(score)
    score.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help="CSV to write, or .parquet"
    )
    score.add_argument("--calibration", type=Path, metavar="FILE", help="as calibrate wrote it")
    score.add_argument(
        "--approve-below", type=float, metavar="PD", help="cut-off (the contract's decision)"
    )
    score.add_argument("--decline-from", type=float, metavar="PD", help="cut-off")
    score.add_argument(
        "--reasons", default="adverse", choices=("adverse", "all", "none"), help="who gets reasons"
    )
    score.add_argument("--most-reasons", type=int, default=4, metavar="N", help="of a record (4)")
    score.add_argument("--language", default="en", choices=LANGUAGES, help="of the reasons (en)")
    score.add_argument(
        "--export", type=Path, metavar="DIR", help="score with this export, not with PyTorch"
    )
    score.add_argument("--overwrite", action="store_true", help="replace an existing --out")
    score.add_argument("--limit", type=int, metavar="N", help="only the first N users")
    score.set_defaults(command=_with_extra(_score))

    calibrate = commands.add_parser(
        "calibrate", help="fit what a score means among this holder's users"
    )
    _add_release(calibrate)
    calibrate.add_argument("--out", required=True, type=Path, metavar="FILE", help="JSON to write")
    calibrate.add_argument("--method", default="platt", choices=("platt", "isotonic"))
    _add_users(calibrate)
    calibrate.set_defaults(command=_with_extra(_calibrate))

    export = commands.add_parser("export", help="make the release ready for ONNX Runtime")
    _add_release(export, shard="users whose outcomes are known, to check the export on")
    export.add_argument("--out", required=True, type=Path, metavar="DIR", help="a new folder")
    export.add_argument("--precision", default="float32", choices=("float32", "int8"))
    _add_users(export)
    export.set_defaults(command=_with_extra(_export))


def _with_extra(command: Command) -> Command:
    """The command; where a library of the extra is missing, one line says how it is had."""

    def run(options: argparse.Namespace) -> int:
        try:
            return command(options)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] not in EXTRA:
                raise
            raise ShardError(f"{error.name} is not installed: {install('score')}") from None

    return run


def _add_release(parser: Any, shard: str = "") -> None:
    parser.add_argument("--release", required=True, type=Path, metavar="DIR")
    parser.add_argument(
        "--shard", required=not shard, type=Path, metavar="FILE", help=shard or "CSV or Parquet"
    )
    # Suppressed defaults: the parser of the whole command has them already.
    parser.add_argument("--mapping", type=Path, metavar="FILE", default=argparse.SUPPRESS)
    parser.add_argument("--device", choices=DEVICES, default=argparse.SUPPRESS)
    parser.add_argument("--format", choices=FORMATS, default=argparse.SUPPRESS)


def _add_users(parser: Any) -> None:
    parser.add_argument(
        "--users",
        default="holdout",
        choices=("holdout", "all"),
        help="of the file: the hold-out users of the contract's split, or all, where none of them "
        "took part in the training",
    )


def _score(options: argparse.Namespace) -> int:
    from credit_client.scoring.batch import Wanted, score_file
    from credit_client.scoring.calibration import read_calibration

    release = _open(options)
    wanted = Wanted(
        calibration=options.calibration and read_calibration(options.calibration, release.digest),
        decision=_decision(options, release.contract.decision),
        reasoned=options.reasons,
        most=options.most_reasons,
        language=options.language,
    )
    engine = None
    if options.export:
        from credit_client.scoring.runtime import open_export

        engine = open_export(release, options.export, options.threads)
    with _progress() as on_progress:
        summary = score_file(
            options.release,
            options.shard,
            options.out,
            mapping=_mapping(options, release),
            engine=engine,
            device=options.device,
            wanted=wanted,
            limit=options.limit,
            overwrite=options.overwrite,
            on_progress=on_progress,
        )
    if options.format == "json":
        facts = {name: value for name, value in vars(summary).items() if name != "out"}
        print(json.dumps({**facts, "out": str(summary.out)}))
        return 0
    print(
        f"{summary.scored} of {summary.rows} rows scored in {summary.seconds:.1f} s, "
        f"{summary.rejected} rejected: {summary.out}"
    )
    if summary.decisions:
        print(", ".join(f"{name} {n}" for name, n in sorted(summary.decisions.items())))
    return 0


def _calibrate(options: argparse.Namespace) -> int:
    from credit_client.scoring.calibration import fit, write_calibration
    from credit_client.scoring.reference import open_reference

    release = _open(options)
    records = _known(options, release)
    engine = open_reference(release, options.device)
    if engine.contract.task.kind != "binary":
        raise ShardError(f"task.kind = {engine.contract.task.kind!r}: only binary is calibrated")
    logits = engine.score(records)[:, 0]
    labels = [record.label for record in records]
    found = fit(options.method, logits, labels, release.digest)
    write_calibration(options.out, found)
    if options.format == "json":
        print(json.dumps({**dataclasses.asdict(found), "out": str(options.out)}))
    else:
        rate = sum(label == 1 for label in labels) / len(labels)
        print(
            f"{options.out}: {found.method} on {found.users} users, {rate:.1%} of whom defaulted; "
            f"the release says {_mean_pd(logits):.1%} of them. Made of outcomes: keep it here."
        )
    return 0


def _export(options: argparse.Namespace) -> int:
    from credit_client.scoring.export import export

    release = _open(options)
    records = _known(options, release) if options.shard else []
    parity = export(release, options.out, options.precision, records)
    if options.format == "json":
        facts = {**vars(parity), "auc_difference": parity.auc_difference, "out": str(options.out)}
        print(json.dumps({n: None if v != v else v for n, v in facts.items()}))
    else:
        on = f"{parity.users} users" if parity.users else "made-up records"
        print(f"{options.out}: on {on}, PDs within {parity.pd_difference:.2g} of PyTorch's", end="")
        print(
            f"; AUC {parity.auc:.4f} and {parity.auc_reference:.4f}"
            if parity.auc == parity.auc
            else ""
        )
    return 0


def _open(options: argparse.Namespace) -> Any:
    """The release; and threads, as they were asked for."""
    from credit_client.scoring.reference import use_threads
    from credit_common.release import open_release

    release = open_release(options.release)
    if options.threads:
        use_threads(options.threads)
    return release


def _mapping(options: argparse.Namespace, release: Any) -> Any:
    from credit_client.mapping import load_mapping

    return load_mapping(options.mapping, release.contract) if options.mapping else None


def _known(options: argparse.Namespace, release: Any) -> list[Any]:
    """Records of the file's users whose outcomes are known."""
    from credit_client.shard import read_shard

    read = read_shard(options.shard, release.contract, mapping=_mapping(options, release))
    users = read.holdout if options.users == "holdout" else (*read.train, *read.holdout)
    return [example.record for example in users]


def _decision(options: argparse.Namespace, contracts: Decision) -> Decision | None:
    """The holder's own cut-offs with the contract's bands; None where it names none."""
    if options.approve_below is None and options.decline_from is None:
        return None
    try:
        return dataclasses.replace(
            contracts, approve_below=options.approve_below, decline_from=options.decline_from
        )
    except CreditError as error:
        raise ShardError(f"--approve-below, --decline-from: {error}") from None


def _mean_pd(logits: Any) -> float:
    import numpy as np

    return float(np.mean(1 / (1 + np.exp(-logits.astype(np.float64)))))


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr where a person looks at it."""
    if not sys.stderr.isatty():
        yield lambda done, all_: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("scoring", total=None)
        yield lambda done, all_: bar.update(task, completed=done, total=all_)
