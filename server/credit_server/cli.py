"""`flower-server`: the coordinator's command.

    flower-server init --address HOST:PORT     make authority and bundle for ./federation.toml
    flower-server enrol NAME.csr               let a holder in
    flower-server                              run the federation of this folder
    flower-server --resume                     go on with a run that broke off
    flower-server status | revoke NAME | bundle

Progress goes to stderr, results to stdout. Exit codes: 0 done, 1 refused with one line that says
why, 2 wrong usage, 130 interrupted.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from credit_common.bundle import Bundle, parse_address, read_bundle, write_bundle
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
from credit_common.contract import load_contract
from credit_common.errors import TrustError
from credit_common.fetch import write_atomically

HOME = "the coordinator's folder (here)"
CONTRACT = "federation.toml"
LONGEST_DAYS = 3652


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run_command("flower-server", _parser().parse_args(argv))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flower-server",
        description="Coordinate a federation: without a command, run the one of this folder.",
    )
    parser.set_defaults(command=_run)
    add_home(parser, HOME)
    parser.add_argument(
        "--listen", metavar="HOST:PORT", help="where to listen (all interfaces, the bundle's port)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run that broke off in this folder"
    )
    parser.add_argument("--format", default="table", choices=FORMATS)
    add_daemon_options(parser)
    commands = parser.add_subparsers(metavar="COMMAND")

    init = commands.add_parser("init", help="make the authority and the bundle for holders")
    init.add_argument(
        "contract", nargs="?", type=Path, help="federation file, copied here (./federation.toml)"
    )
    init.add_argument(
        "--address", required=True, metavar="HOST:PORT", help="where holders will reach this server"
    )
    init.set_defaults(command=_init)

    bundle = commands.add_parser(
        "bundle", help="write the bundle anew, after the contract or the address has changed"
    )
    bundle.add_argument("--address", metavar="HOST:PORT", help="a new address")
    bundle.set_defaults(command=_bundle)

    enrol = commands.add_parser("enrol", help="sign a holder's request")
    enrol.add_argument("request", type=Path, help="the NAME.csr that the holder sent")
    enrol.add_argument("--days", type=int, default=365, help="validity of the certificate (365)")
    enrol.add_argument("--renew", action="store_true", help="replace an enrolled certificate")
    enrol.add_argument("--fingerprint", metavar="HEX", help="as the holder reads it out")
    enrol.set_defaults(command=_enrol)

    revoke = commands.add_parser("revoke", help="turn a holder away from now on")
    revoke.add_argument("name")
    revoke.set_defaults(command=_revoke)

    status = commands.add_parser("status", help="who is enrolled, and what the run does")
    status.add_argument("--format", choices=FORMATS, default=argparse.SUPPRESS)
    status.set_defaults(command=_status)
    for command in (init, bundle, enrol, revoke, status):
        add_home(command, HOME)
    return parser


def _run(options: argparse.Namespace) -> int:
    home = home_of(options)
    bundle = _present_bundle(home)
    listen = options.listen or f"[::]:{parse_address(bundle.address)[1]}"
    log_to_stderr()

    from credit_server.checkpoint import unfinished
    from credit_server.lock import only_server

    with only_server(home):
        begun = unfinished(home, bundle.contract, resume=options.resume)

        # torch takes seconds to import: what can be wrong before is looked at before.
        import torch

        from credit_server.coordinator import run
        from credit_server.report import Reporter

        if options.threads:
            torch.set_num_threads(options.threads)
        run(
            home,
            bundle,
            begun,
            listen=listen,
            device=options.device,
            allow_no_privacy=options.allow_no_privacy,
            tell=Reporter(home, options.format).tell,
        )
    return 0


def _init(options: argparse.Namespace) -> int:
    from credit_server.authority import create_authority

    home = home_of(options)
    parse_address(options.address)
    source = options.contract or home / CONTRACT
    contract = load_contract(source)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept = home / CONTRACT
    if source.resolve() != kept.resolve():
        if kept.exists():
            raise TrustError(f"{kept} is there already; remove it, or leave CONTRACT out")
        shutil.copyfile(source, kept)
    create_authority(home, contract.federation.name)
    _write_bundle(home, options.address)
    return 0


def _bundle(options: argparse.Namespace) -> int:
    home = home_of(options)
    _write_bundle(home, options.address or read_bundle(_bundle_path(home)).address)
    return 0


def _write_bundle(home: Path, address: str) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding

    from credit_server.authority import read_ca

    contract = load_contract(home / CONTRACT)
    bundle = Bundle(
        federation=contract.federation.name,
        address=address,
        ca_pem=read_ca(home).public_bytes(Encoding.PEM).decode(),
        contract_text=(home / CONTRACT).read_text("utf-8"),
    )
    path = home / f"{contract.federation.name}.bundle"
    write_bundle(path, bundle)
    print(f"bundle (give it to every holder): {path}")
    print(f"fingerprint of the bundle (read it out): {bundle.fingerprint}")
    print(f"contract digest: {bundle.contract_digest}")


def _bundle_path(home: Path) -> Path:
    found = sorted(home.glob("*.bundle"))
    if len(found) != 1:
        raise TrustError(
            f"{home.resolve()}: {len(found)} bundles, must be one; "
            "flower-server init makes a federation's folder"
        )
    return found[0]


def _present_bundle(home: Path) -> Bundle:
    """The bundle, if it still says what the contract says."""
    path = _bundle_path(home)
    bundle = read_bundle(path)
    if load_contract(home / CONTRACT).digest != bundle.contract_digest:
        raise TrustError(
            f"{home / CONTRACT} has changed since {path.name} was written: run flower-server "
            "bundle, and give it to the holders, who have to accept it"
        )
    return bundle


def _enrol(options: argparse.Namespace) -> int:
    from credit_server.authority import open_authority
    from credit_server.enrol import enrol, read_request

    home = home_of(options)
    if not 1 <= options.days <= LONGEST_DAYS:
        raise TrustError(f"--days {options.days}: must be between 1 and {LONGEST_DAYS}")
    try:
        pem = options.request.read_bytes()
    except OSError as error:
        raise TrustError(f"cannot read {options.request}: {error.strerror}") from None
    where = str(options.request)
    _, asked = read_request(pem, where)
    print(f"{asked.name} asks to be enrolled as {asked.size_class}", file=sys.stderr)
    confirm_fingerprint("the request", request_fingerprint(pem), options.fingerprint, asked.name)
    enrolled, certificate = enrol(
        home,
        open_authority(home),
        load_contract(home / CONTRACT),
        pem,
        where=where,
        days=options.days,
        renew=options.renew,
    )
    path = options.request.parent / f"{enrolled.name}.pem"  # the sender chose the file's own name
    try:
        write_atomically(path, certificate)
    except OSError as error:
        raise TrustError(f"cannot write {path}: {error.strerror}; enrol --renew again") from None
    print(f"enrolled {enrolled.name} as node {enrolled.node_id}, {enrolled.size_class}")
    print(f"certificate (send it back): {path}")
    return 0


def _revoke(options: argparse.Namespace) -> int:
    from credit_server.enrol import revoke

    print(f"revoked {revoke(home_of(options), options.name).name}")
    return 0


def _status(options: argparse.Namespace) -> int:
    from credit_server.report import read_status, show_status

    home = home_of(options)
    _bundle_path(home)
    status = read_status(home)
    print(json.dumps(status) if options.format == "json" else show_status(status))
    return 0


if __name__ == "__main__":
    sys.exit(main())
