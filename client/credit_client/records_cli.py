"""The commands of `credit-client` that read and keep its records, and send nothing.

    credit-client ledger                          what was spent, entry by entry
    credit-client ledger backup FILE              copy it
    credit-client ledger restore FILE             put the newest copy back
    credit-client ledger override --reason TEXT   sign for entries that are lost
    credit-client manifest                        what left this machine
    credit-client report                          the privacy report
    credit-client verify-report FILE              recompute a report's ε

torch is not loaded, but for `verify-report`, which asks Opacus too.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from credit_client.terminal import up
from credit_common.command import FORMATS, add_home, home_of
from credit_common.errors import CreditError


def add_record_commands(commands: Any, home: str) -> None:
    """Add the commands to the parser's; `home` says whose folder it is."""
    ledger = commands.add_parser("ledger", help="what the users of this holder have spent")
    ledger.add_argument("--format", choices=FORMATS, default=argparse.SUPPRESS)
    ledger.set_defaults(command=_ledger)
    parts = ledger.add_subparsers(metavar="PART")
    backup = parts.add_parser("backup", help="copy the ledger")
    backup.add_argument("file", type=Path)
    backup.set_defaults(command=_backup)
    restore = parts.add_parser("restore", help="put a copy back for a ledger that is lost")
    restore.add_argument("file", type=Path)
    restore.set_defaults(command=_restore)
    override = parts.add_parser("override", help="sign for entries that are lost")
    override.add_argument("--reason", required=True, help="in words; every report shows them")
    override.add_argument(
        "--counter", type=int, default=0, metavar="N", help="entries, as the coordinator's head has"
    )
    override.set_defaults(command=_override)
    manifest = commands.add_parser("manifest", help="what left this machine, and what it spent")
    manifest.add_argument("--format", choices=FORMATS, default=argparse.SUPPRESS)
    manifest.set_defaults(command=_manifest)
    report = commands.add_parser("report", help="the privacy report of this holder")
    report.add_argument(
        "--format", choices=("table", "json", "html"), default=argparse.SUPPRESS, help="(table)"
    )
    report.add_argument("--out", type=Path, metavar="FILE", help="write there, not to stdout")
    report.add_argument(
        "--audit", type=Path, metavar="FILE", help="what `credit-sim audit --format json` printed"
    )
    report.set_defaults(command=_report)
    verify = commands.add_parser("verify-report", help="recompute a report's epsilon")
    verify.add_argument("file", type=Path, help="a report in JSON")
    verify.add_argument("--format", choices=FORMATS, default=argparse.SUPPRESS)
    verify.set_defaults(command=_verify)
    for command in (ledger, backup, restore, override, manifest, report):
        add_home(command, home)


def _ledger(options: argparse.Namespace) -> int:
    from credit_client.chain import Entry
    from credit_client.identity import open_identity
    from credit_client.ledger import Ledger

    identity = open_identity(home_of(options))
    delta = identity.bundle.contract.privacy.delta
    with Ledger.open(identity.ledger_path, identity.witness) as ledger:
        entries, balance = ledger.entries(), ledger.balance
        head = ledger.head[1]
        facts: dict[str, Any] = {
            "holder": identity.subject.name,
            "delta": delta,
            "epsilon": None if balance.overrides else balance.epsilon(delta),
            "epsilon_of_entries": balance.epsilon(delta),
            "epsilon_train": ledger.epsilon("train", delta),
            "epsilon_holdout": ledger.epsilon("holdout", delta),
            "budget": identity.bundle.contract.privacy.epsilon,
            "accounts_add": balance.accounts_add,
            "counter": balance.counter,
            "lost": balance.lost,
            "overrides": len(balance.overrides),
            "head": head,
        }
    if options.format == "json":
        print(json.dumps({**facts, "entries": [vars(entry) for entry in entries]}))
        return 0

    def line(entry: Entry) -> str:
        what = json.loads(entry.event) or {"without": "privacy"}
        said = ", ".join(f"{k} {v}" for k, v in what.items() if k not in _UNSHOWN)
        return f"{entry.sequence:>6}  {entry.time[:19]}  {entry.account:8}  {said}"

    for entry in entries:  # a reason is a person's words: nothing in them may steer a terminal
        print("".join(c if c.isprintable() else "?" for c in line(entry)))
    print(f"\n{len(entries)} entries, head {head[:16]}; {balance.lost} lost")
    if balance.overrides:
        print("EPSILON IS UNKNOWN: entries were lost, and a person signed for that. Those left:")
    print(
        f"epsilon of any user {up(facts['epsilon_of_entries'])}, of a budget of "
        f"{facts['budget']}, at delta {delta:g}: "
        f"training users {up(facts['epsilon_train'])}, hold-out users "
        f"{up(facts['epsilon_holdout'])}{', which add up' if balance.accounts_add else ''}"
    )
    return 0


_UNSHOWN = ("kind", "salt_sha256", "previous", "public_key", "signature")


def _backup(options: argparse.Namespace) -> int:
    from credit_client.identity import open_identity
    from credit_client.safekeeping import backup

    counter = backup(open_identity(home_of(options)), options.file)
    print(f"{options.file}: a copy of all {counter} entries; it is good until the next charge")
    return 0


def _restore(options: argparse.Namespace) -> int:
    from credit_client.identity import open_identity
    from credit_client.ledger import Ledger
    from credit_client.safekeeping import restore

    identity = open_identity(home_of(options), ledger_lost=True)
    counter = restore(identity, options.file)
    print(f"{identity.ledger_path}: restored with {counter} entries")
    Ledger.open(identity.ledger_path, identity.witness).close()  # says so if it is too old
    return 0


def _override(options: argparse.Namespace) -> int:
    from credit_client.identity import open_identity
    from credit_client.safekeeping import override

    try:
        options.reason.encode()
    except UnicodeEncodeError:
        raise CreditError("--reason is not UTF-8 text") from None
    identity = open_identity(home_of(options), ledger_lost=True)
    entry = override(identity, options.reason, options.counter)
    print(
        f"signed, and entered for ever as entry {entry.sequence}: from now on every report says "
        "that epsilon is unknown, since entries were lost"
    )
    return 0


def _manifest(options: argparse.Namespace) -> int:
    from credit_client.identity import open_identity
    from credit_client.ledger import Ledger
    from credit_client.manifest import CHARGED, Listed, listed

    identity = open_identity(home_of(options))
    if identity.bundle.contract.privacy.private:
        with Ledger.open(identity.ledger_path, identity.witness) as ledger:
            items = list(listed(identity.manifest.lines(), ledger.entries()))
    else:  # nothing is charged where there is no budget
        items = [Listed(sent=sent, entry=None) for sent in identity.manifest.lines()]
    shown = [(i.sent, i.entry and json.loads(i.entry.event), i.lost) for i in items]
    if options.format == "json":
        lines = [{**vars(sent), "spent": spent, "lost": lost} for sent, spent, lost in shown]
        print(json.dumps(lines))
        return 0
    for sent, spent, lost in shown:
        said = "NOT KNOWN: its entry was lost" if lost else "nothing"
        if spent:
            said = ", ".join(f"{k} {v}" for k, v in spent.items())
        elif sent.message in CHARGED and not lost:
            said = "NO PRIVACY"
        round_ = "" if sent.round is None else f"round {sent.round}"
        print(f"{sent.time[:19]}  {sent.message:10} {round_:10} {sent.bytes:>10,} B  {said}")
    total = sum(sent.bytes for sent, _, _ in shown)
    print(f"{len(shown)} messages, {total:,} bytes, to the coordinator alone")
    return 0


def _report(options: argparse.Namespace) -> int:
    from credit_client.identity import open_identity
    from credit_client.ledger import Ledger
    from credit_client.report.page import as_html
    from credit_client.report.statement import privacy_report
    from credit_client.report.text import as_text
    from credit_common.bundle import read_object

    identity = open_identity(home_of(options))
    audit = read_object(options.audit) if options.audit else None
    with Ledger.open(identity.ledger_path, identity.witness) as ledger:
        report = privacy_report(identity, ledger, audit)
    if options.format == "json":
        content = json.dumps(report) + "\n"
    else:
        content = as_html(report) if options.format == "html" else as_text(report)
    if options.out is None:
        sys.stdout.write(content)
        return 0
    _check_not_own(options.out, identity.home)
    try:
        options.out.write_text(content, encoding="utf-8")
    except OSError as error:
        raise CreditError(f"cannot write {options.out}: {error.strerror}") from None
    return 0


def _check_not_own(out: Path, home: Path) -> None:
    """A report must not be written over the ledger, the key or another file of the identity."""
    inside = out.is_file() and out.resolve().parent == home.resolve()
    report = out.suffix in (".json", ".html", ".txt") and out.name != "bundle.json"
    if inside and not report:
        raise CreditError(f"{out} is a file of this holder's identity: write elsewhere")


def _verify(options: argparse.Namespace) -> int:
    from credit_client.report.verify import verify_report

    verdict = verify_report(options.file)
    if options.format == "json":
        plain = {
            "holder": verdict.holder,
            "signer": verdict.signer,
            "delta": verdict.delta,
            "verified": not verdict.problems,
            "claimed": verdict.claimed,
            "found": verdict.found,
            "prv": verdict.prv,
            "difference": verdict.difference,
            "problems": verdict.problems,
        }
        text = json.dumps(plain, default=str)
        print(json.dumps(json.loads(text, parse_constant=lambda _: None)))
    else:
        print(f"report of {verdict.holder}, signed with the key {verdict.signer}")
        print(f"{f'at delta {verdict.delta:g}':26} {'report':>10}  {'recomputed':>10}")
        for name, value in verdict.found.items():
            print(f"{name:26} {_four(verdict.claimed[name]):>10}  {_four(value):>10}")
        print(f"{'epsilon by Opacus PRV':26} {'':10}  {_four(verdict.prv):>10}")
        print(f"{'largest difference':26} {'':10}  {_four(verdict.difference):>10}")
        print("verified" if not verdict.problems else "NOT VERIFIED")
    for problem in verdict.problems:
        print(f"credit-client: {problem}", file=sys.stderr)
    return 1 if verdict.problems else 0


def _four(epsilon: float | None) -> str:
    return "not told" if epsilon is None else f"{epsilon:.4f}"
