"""`credit-sim attack`: its command line and its progress."""

import argparse
import sys
from typing import TYPE_CHECKING

from credit_common.errors import CreditError

if TYPE_CHECKING:
    from credit_simulations.attack.run import Row, Setting


def add_attack(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line."""
    attack = commands.add_parser(
        "attack",
        help="AUC with lying holders, under each aggregation and under Flower's FedAvg as it comes",
        description="Simulate federations of a packaged data set in which some holders lie, in "
        "each way under each aggregation, and the same splits without liars beside. Liars exist in "
        "the simulation alone. By default the wide part is trained: about ten minutes on one core.",
    )
    attack.add_argument("--data", default="pakdd2009", help="a packaged data set (pakdd2009)")
    attack.add_argument("--holders", nargs="+", type=int, metavar="N", help="3 10 27")
    attack.add_argument(
        "--attackers",
        nargs="+",
        type=int,
        metavar="F",
        help="how many lie, one number for each of --holders (one in ten, rounded up)",
    )
    attack.add_argument("--attacks", nargs="+", metavar="ATTACK", help="only these (all)")
    attack.add_argument("--aggregators", nargs="+", metavar="NAME", help="only these (all)")
    attack.add_argument("--epsilon", default="8", help="budget of each user, or none for no DP (8)")
    attack.add_argument("--seeds", type=int, default=1, metavar="N", help="splits and liars (1)")
    attack.add_argument("--text", action="store_true", help="train LoRA and head too: hours")
    attack.add_argument(
        "--quick",
        action="store_true",
        help="10 holders; sign_flip, scale and nan; mean, trimmed_mean and stock: two minutes",
    )
    attack.add_argument("--threads", type=int, metavar="N", help="CPU threads of torch")
    attack.add_argument("--format", default="table", choices=["table", "json", "markdown"])
    attack.set_defaults(command=_attack)


def _attack(options: argparse.Namespace) -> int:
    epsilon = _epsilon(options.epsilon)

    import torch

    from credit_simulations.attack.run import run_attacks
    from credit_simulations.attack.view import attack_summary, write_json, write_markdown

    setting = _setting(options, epsilon)
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = run_attacks(setting, _tell)
    views = {"table": attack_summary, "json": write_json, "markdown": write_markdown}
    views[options.format](rows)
    return 0


def _setting(options: argparse.Namespace, epsilon: float | None) -> "Setting":
    from credit_simulations.attack.run import Setting

    named = {
        name: tuple(getattr(options, name))
        for name in ("holders", "attackers", "attacks", "aggregators")
        if getattr(options, name)
    }
    quick = {
        "holders": (10,),
        "attacks": ("sign_flip", "scale", "nan"),
        "aggregators": ("mean", "trimmed_mean", "stock"),
    }
    chosen = {**quick, **named} if options.quick else named
    return Setting(
        data=options.data, epsilon=epsilon, seeds=options.seeds, text=options.text, **chosen
    )


def _epsilon(told: str) -> float | None:
    if told == "none":
        return None
    try:
        return float(told)
    except ValueError:
        raise CreditError(f"--epsilon {told}: must be a number, or none") from None


def _tell(row: "Row") -> None:
    from credit_simulations.attack.view import shown

    aside = ", ".join(f"{why} {n}" for why, n in row.set_aside.items())
    sys.stderr.write(
        f"attack: {row.holders} holders, {row.aggregator}, {row.attack}"
        f"{f' by {row.attackers}' if row.attackers else ''}: auc {shown(row.auc)}, "
        f"{row.seconds:.0f} s{f'; set aside: {aside}' if aside else ''}\n"
    )
