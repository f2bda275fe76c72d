"""`credit-client validate`: how a release does on this merchant's own users. Nothing is sent."""

import argparse
import json
import sys
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from credit_common.command import DEVICES
from credit_common.errors import CreditError
from credit_common.extras import install

_NEEDED = ("sklearn", "fairlearn", "matplotlib")


def add_validate(commands: Any) -> None:
    """Add the command to the parser's."""
    validate = commands.add_parser(
        "validate",
        help="judge a release on a file: order, cut-offs, calibration, groups, fields",
    )
    validate.add_argument("--release", required=True, type=Path, metavar="DIR")
    # Suppressed defaults: the parser of the whole command has them already.
    validate.add_argument("--shard", required=True, type=Path, metavar="FILE")
    validate.add_argument("--mapping", type=Path, metavar="FILE", default=argparse.SUPPRESS)
    validate.add_argument(
        "--users",
        choices=("holdout", "all"),
        default="holdout",
        help="the hold-out users of the contract's split (holdout), or all, where this holder has "
        "trained on none of them",
    )
    validate.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="as calibrate wrote it; decisions are by it",
    )
    validate.add_argument(
        "--challenger", type=Path, metavar="DIR", help="another release, on the same users"
    )
    validate.add_argument(
        "--from",
        dest="since",
        type=_day,
        metavar="DATE",
        help="judge users from this day on apart from those before (YYYY-MM-DD)",
    )
    validate.add_argument(
        "--approve-below", type=float, metavar="PD", help="a cut-off of the holder's own"
    )
    validate.add_argument(
        "--decline-from", type=float, metavar="PD", help="the other one; both or neither"
    )
    validate.add_argument(
        "--lgd", type=float, default=0.45, metavar="SHARE", help="loss given default (0.45)"
    )
    validate.add_argument(
        "--exposure", type=float, default=1.0, metavar="AMOUNT", help="at default, of a user (1)"
    )
    validate.add_argument("--out", type=Path, metavar="FILE", help="write a report in HTML there")
    validate.add_argument("--overwrite", action="store_true", help="replace an existing --out")
    validate.add_argument("--device", choices=DEVICES, default=argparse.SUPPRESS)
    validate.add_argument(
        "--format",
        choices=("table", "json", "markdown"),
        default=argparse.SUPPRESS,
        help="of what goes to stdout (table)",
    )
    validate.set_defaults(command=_validate)


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError("must be a day, YYYY-MM-DD") from None


def require_score_extra(names: tuple[str, ...]) -> None:
    """Refuse where a library of the extra is missing.

    Raises:
        CreditError: Naming it, and what to type.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise CreditError(f"{missing[0]} is not installed: {install('score')}")


def _validate(options: argparse.Namespace) -> int:
    require_score_extra(_NEEDED)
    from credit_client.complete import draft_of
    from credit_client.page.text import as_markdown, as_text
    from credit_client.scoring.batch import check_place
    from credit_client.validation.cutoffs import Stakes
    from credit_client.validation.judge import Asked, judge
    from credit_client.validation.parts import parts, title_of
    from credit_client.validation.study import as_json
    from credit_common.decision import Decision

    if options.out is not None:
        for folder in (options.release, options.challenger or options.release):
            check_place(options.out, options.shard, folder, options.overwrite)
    own = None
    if options.approve_below is not None or options.decline_from is not None:
        own = Decision(approve_below=options.approve_below, decline_from=options.decline_from)
    asked = Asked(
        mapping=options.mapping,
        users=options.users,
        calibration=options.calibration,
        challenger=options.challenger,
        since=options.since,
        decision=own,
        stakes=Stakes(lgd=options.lgd, exposure=options.exposure),
        device=options.device,
    )
    if options.threads:
        from credit_client.scoring.reference import use_threads

        use_threads(options.threads)
    told = judge(options.release, options.shard, asked)
    if options.out is not None:
        from credit_client.validation.page import as_html

        with draft_of(options.out, "the report") as draft:
            draft.write_text(as_html(told), encoding="utf-8")
        print(f"wrote {options.out}", file=sys.stderr)
    if options.format == "json":
        print(json.dumps(as_json(told), allow_nan=False))
    elif options.format == "markdown":
        print(as_markdown(title_of(told), parts(told)), end="")
    else:
        elsewhere = "a page (`--out`) and `--format json` show it"
        print(as_text(title_of(told).upper(), parts(told), elsewhere), end="")
    return 0
