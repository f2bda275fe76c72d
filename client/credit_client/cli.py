"""`credit-client`: a data holder's command.

    credit-client request BUNDLE --name NAME --size-class CLASS    ask to be enrolled
    credit-client --shard FILE --server HOST:PORT --check          look before anything is sent
    credit-client --shard FILE --server HOST:PORT                  join and train
    credit-client accept BUNDLE                                    agree to an amended contract
    credit-client score | calibrate | export                       see `credit_client.score_cli`
    credit-client serve --release DIR                              see `credit_client.serve_cli`
    credit-client validate --release DIR --shard FILE              see `credit_client.validate_cli`
    credit-client forget                                           delete what a killed one left
    credit-client ledger | manifest | report | verify-report       see `credit_client.records_cli`

Progress goes to stderr, results to stdout. Exit codes: 0 done, 1 refused with one line that says
why, 2 wrong usage, 130 interrupted.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from credit_client.cache_cli import add_cache_options, add_forget, cache_of, foretold, show_foretold
from credit_client.records_cli import add_record_commands
from credit_client.score_cli import add_score_commands
from credit_client.serve_cli import add_serve
from credit_client.terminal import up
from credit_client.validate_cli import add_validate
from credit_common.bundle import parse_address, read_bundle
from credit_common.certificates import request_fingerprint
from credit_common.command import (
    FORMATS,
    add_daemon_options,
    add_home,
    confirm_fingerprint,
    home_of,
    log_to_stderr,
    run_command,
)
from credit_common.errors import CreditError

HOME = "the holder's own folder, with key and ledger (here)"
SKEW_SECONDS = 60.0
"""Clocks that differ by more are remarked on: certificates have dates."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.command is _join and options.shard is None:
        parser.error("--shard is needed (or a command; see --help)")
    return run_command("credit-client", options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="credit-client",
        description="Take part in a federation with the data of one holder: nothing but adapter "
        "weights and noised statistics leaves this machine, and each is charged to its ledger.",
    )
    parser.set_defaults(command=_join)
    add_home(parser, HOME)
    parser.add_argument("--shard", type=Path, metavar="FILE", help="CSV, gzipped CSV or Parquet")
    parser.add_argument("--server", metavar="HOST:PORT", help="the coordinator (the bundle's)")
    parser.add_argument(
        "--mapping", type=Path, metavar="FILE", help="columns and codes of the file"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="say what was read and what would leave, and send nothing; with --server, also "
        "whether the coordinator would let this holder in",
    )
    parser.add_argument("--max-epsilon", type=float, metavar="E", help="refuse contracts above")
    parser.add_argument("--max-delta", type=float, metavar="D", help="refuse contracts above")
    parser.add_argument("--seed", type=int, help="of sampling, without privacy only")
    parser.add_argument("--format", default="table", choices=FORMATS)
    add_cache_options(parser)
    add_daemon_options(parser)
    commands = parser.add_subparsers(metavar="COMMAND")

    request = commands.add_parser("request", help="make a key and ask to be enrolled")
    request.add_argument("bundle", type=Path, help="the file that the coordinator gave")
    request.add_argument("--name", required=True, help="of this holder, in small letters")
    request.add_argument(
        "--size-class",
        required=True,
        metavar="CLASS",
        help="the contract's class nearest to the number of users; declared once, never counted",
    )
    _add_fingerprint(request)
    request.set_defaults(command=_request)

    accept = commands.add_parser("accept", help="agree to an amended contract")
    accept.add_argument("bundle", type=Path, help="the file that the coordinator gave")
    _add_fingerprint(accept)
    accept.set_defaults(command=_accept)

    for command in (request, accept):
        add_home(command, HOME)
    add_forget(commands, HOME)
    add_record_commands(commands, HOME)
    add_score_commands(commands)
    add_serve(commands)
    add_validate(commands)
    return parser


def _add_fingerprint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fingerprint",
        metavar="HEX",
        help="the bundle's, as the coordinator reads it out; asked for where it is left out",
    )


def _join(options: argparse.Namespace) -> int:
    from credit_client.identity import open_identity
    from credit_client.mapping import load_mapping

    identity = open_identity(home_of(options))
    address = options.server or identity.bundle.address
    parse_address(address)
    mapping = load_mapping(options.mapping, identity.bundle.contract) if options.mapping else None
    if options.check:
        return _check(options, identity, mapping)
    log_to_stderr()

    from credit_client.participate import Terms, participate

    terms = Terms(
        mapping=mapping,
        max_epsilon=options.max_epsilon,
        max_delta=options.max_delta,
        allow_no_privacy=options.allow_no_privacy,
        seed=options.seed,
        device=options.device,
        threads=options.threads,
        cache=cache_of(options, identity.home),
    )
    tell = _tell_json if options.format == "json" else _tell_text
    participate(identity, options.shard, address, terms=terms, tell=tell)
    return 0


def _check(options: argparse.Namespace, identity: Any, mapping: Any) -> int:
    from credit_client.ledger import Ledger
    from credit_client.preflight import inspect
    from credit_client.preflight_text import as_json, show

    ledger = Ledger.open(identity.ledger_path, identity.witness)
    try:
        found = inspect(
            identity.bundle.contract,
            options.shard,
            size_class=identity.subject.size_class,
            ledger=ledger,
            mapping=mapping,
            max_epsilon=options.max_epsilon,
            max_delta=options.max_delta,
            allow_no_privacy=options.allow_no_privacy,
        )
    finally:
        ledger.close()
    network = _network(options.server, identity) if options.server else None
    cache = foretold(
        cache_of(options, identity.home),
        identity.bundle.contract.model,
        found.local_only.train_users + found.local_only.holdout_users,
    )
    if options.format == "json":
        certificate = identity.not_after.isoformat(timespec="seconds")
        facts = {"cache": cache, "certificate": certificate, "network": network}
        print(json.dumps({**as_json(found), **facts}))
    else:
        show(found)
        show_foretold(cache)
        print("\nCONNECTION")
        print(f"  certificate of {identity.subject.name}: until {identity.not_after:%Y-%m-%d}")
        lines = network or {"coordinator": "not asked: give --server HOST:PORT"}
        for name, value in lines.items():
            print(f"  {name}: {value}")
    return 0 if not found.refusals and not (network and network["refused"]) else 1


def _network(address: str, identity: Any) -> dict[str, Any]:
    """Ask the coordinator; certificate and digest are looked at by both sides in doing so."""
    from credit_client.link import Link

    asked = time.time()
    try:
        with Link(identity, address, 0) as link:
            welcome = link.join()
    except CreditError as error:
        return {"coordinator": address, "refused": str(error)}
    skew = welcome.server_time - (asked + time.time()) / 2
    remark = "" if abs(skew) <= SKEW_SECONDS else "; set one of the clocks"
    return {
        "coordinator": f"{address} lets this holder in",
        "refused": None,
        "wire_version": welcome.wire_version,
        "contract": "the same digest at both sides",
        "clock": f"the coordinator's is {skew:+.1f} s from this one's{remark}",
    }


def _request(options: argparse.Namespace) -> int:
    from credit_client.identity import request

    bundle = read_bundle(options.bundle)
    _confirm_bundle(bundle, options.fingerprint)
    path = request(home_of(options), bundle, options.name, options.size_class)
    own = path.with_suffix(".key")
    print(f"key (stays here): {own}")
    print(f"request (send it to the coordinator): {path}")
    print(f"fingerprint of the request (read it out): {request_fingerprint(path.read_bytes())}")
    print(f"put the certificate that comes back at: {path.with_suffix('.pem')}")
    return 0


def _accept(options: argparse.Namespace) -> int:
    from credit_client.identity import accept

    bundle = read_bundle(options.bundle)
    _confirm_bundle(bundle, options.fingerprint)
    accept(home_of(options), bundle)
    print(f"accepted: contract {bundle.contract_digest} of {bundle.federation}")
    return 0


def _confirm_bundle(bundle: Any, typed: str | None) -> None:
    confirm_fingerprint("the bundle", bundle.fingerprint, typed, "the coordinator")


def _tell_json(event: str, **facts: Any) -> None:
    shown = {name: str(v) if isinstance(v, Path) else v for name, v in facts.items()}
    print(json.dumps({"event": event, **shown}), flush=True)


def _tell_text(event: str, **facts: Any) -> None:
    if event == "ready":
        line = f"ready: {facts['train']} training and {facts['holdout']} hold-out users"
    elif event == "connected":
        line = f"connected to {facts['address']}; waiting for the next round"
    elif event == "waiting":
        line = f"{facts['reason']}; trying again in {facts['seconds']:.0f} s (Ctrl-C ends)"
    elif event == "answered":
        spent = "" if facts["epsilon"] is None else f", ε {up(facts['epsilon'])} spent"
        what = "refused" if facts["refused"] else "answered"
        line = f"round {facts['round']}: {facts['kind']} {what}{spent}"
    else:
        spent = "" if facts["epsilon"] is None else f"ε {up(facts['epsilon'])} spent in all; "
        line = f"done: {spent}release in {facts['release']}"
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
