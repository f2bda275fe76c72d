"""The evidence in a privacy report: mechanism, accounting, messages, ledger, audit, and checks."""

import hashlib
import json
from typing import Any

from credit_client.page.blocks import Block, Facts, Loud, Table
from credit_client.report.numbers import Report, bound, exact, minute, percent

_LISTED_AS = {
    "greeting": "greeting",
    "statistics answer": "statistics",
    "training answer": "adapter",
    "evaluation answer": "histogram",
    "refusal": "refusal",
}
"""What the contract has a holder send -> its name in the manifest."""


def mechanism(report: Report) -> list[Block]:
    """The mechanism of the contract that is agreed to now."""
    plan = report["mechanism"]
    sigma, clip = exact(plan["noise_multiplier"]), exact(plan["clip_norm"])
    rows = [
        ("training", plan["training"]),
        ("sampler", f"{plan['sampler']}: each user takes part in a step by a toss of its own"),
        ("sampling rate q", exact(plan["sampling_rate"])),
        ("clip norm C", f"{clip}: a user's share in a step is cut to this length"),
        ("noise sigma", f"{sigma}: a standard deviation of sigma x C on every number of the sum"),
        (
            "steps T",
            f"{plan['steps']}: {plan['rounds']} rounds of {plan['steps_per_round']} steps",
        ),
        ("denominator", f"{plan['denominator']:g}: q times the users of the size class"),
        ("evaluation", plan["evaluation"]),
        (
            "evaluation sigma",
            f"{exact(plan['evaluation_noise_multiplier'])} users on every count, "
            f"{plan['evaluations']} times",
        ),
        ("noise", plan["noise_source"]),
    ]
    return [
        "By the contract that is agreed to now; what was sent under earlier ones is in the ledger "
        "with the noise that it had.",
        Facts(rows=rows),
    ]


def accounting(report: Report) -> list[Block]:
    """The accountant and its cross-check."""
    accountant = report["accountant"]
    cross = accountant["cross_check"]
    rows = [
        ("accountant", accountant["name"]),
        ("package", f"{accountant['package']} {accountant['version']}"),
        ("losses", f"rounded up to multiples of {exact(accountant['loss_grid'])}"),
        (
            "cross-check",
            f"{cross['name']}, another and looser bound on the same entries: "
            f"epsilon {bound(cross['epsilon'])}",
        ),
    ]
    return [
        Facts(rows=rows),
        "All epsilons here are at delta " + exact(report["delta"]) + ", are computed from the "
        "ledger's entries alone, and are shown rounded up. `credit-client verify-report` computes "
        "them once more by other code, and asks Opacus' PRV accountant.",
    ]


def left(report: Report) -> list[Block]:
    """Every kind of message, with how many left."""
    counts = dict(report["messages"])
    rows = []
    for sends in report["sends"]:
        count = counts.pop(_LISTED_AS.get(sends["message"], ""), None)
        listed = sends["message"] in _LISTED_AS
        times, size = ("0", "0") if listed else ("not listed", "")
        if count:
            times, size = f"{count['times']:,}", f"{count['bytes']:,}"
        contains = "\n".join(sends["contains"])
        rows.append((sends["message"], sends["when"], times, size, contains))
    for name, count in counts.items():
        rows.append((name, "", f"{count['times']:,}", f"{count['bytes']:,}", "see the ledger"))
    total = sum(count["bytes"] for count in report["messages"].values())
    number = sum(count["times"] for count in report["messages"].values())
    charged = "the ledger has the charge for each that was computed from data"
    if report["messages_of_lost_entries"]:
        charged += (
            f", but for {report['messages_of_lost_entries']:,} WHOSE CHARGES ARE AMONG THE ENTRIES "
            "THAT WERE LOST"
        )
    return [
        f"{number:,} messages with {total:,} bytes left, all to the coordinator over mutual TLS. "
        f"The manifest lists each before it goes, and {charged}. Certificates and heartbeats are "
        "the connection's and say nothing of users.",
        Table(
            heads=("<message", "<when", ">times", ">bytes", "<all that is in it"),
            widths=(17, 15, 10, 11, 39),
            rows=rows,
        ),
    ]


def ledger(report: Report) -> list[Block]:
    """The ledger's head, contracts and entries."""
    head, entries = report["ledger_head"], report["releases"]
    lost = report["lost_entries"]
    known = f"{lost:,} more are known to be lost" if lost else "none is known to be lost"
    if report["overrides"] and not lost:
        known = "how many were lost is not known"
    rows = [
        ("entries", f"{head['sequence']:,}; {known}"),
        ("head", head["hash"]),
        ("contract now", report["contract_digest"]),
    ]
    contracts = [
        (digest, f"{counts.get('train', 0):,}", f"{counts.get('holdout', 0):,}")
        for digest, counts in report["contracts"].items()
    ]
    return [
        "Each message that carries what was computed from data was charged here before it left. "
        "Entries are never changed or deleted, and each has the hash of the one before it.",
        Facts(rows=rows),
        Table(heads=("<contract", ">training", ">evaluation"), widths=(64, 10, 12), rows=contracts),
        Table(
            heads=(">entry", "<time, UTC", "<account", "<spent", "<contract", "<reply", "<hash"),
            widths=(6, 20, 9, 40, 12, 16, 16),
            rows=[_entry(entry) for entry in entries],
            folded=f"All {len(entries):,} entries",
        ),
    ]


def _entry(entry: dict[str, Any]) -> tuple[str, ...]:
    event = json.loads(entry["event"])
    kept = ("kind", "public_key", "signature", "previous")
    words = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in event.items() if k not in kept)
    kind = str(event.get("kind", "")).replace("_", " ")
    return (
        str(entry["sequence"]),
        minute(entry["time"]),
        entry["account"],
        f"{kind}: {words}" if kind else words,
        entry["contract_digest"][:12],
        entry["reply_digest"][:12] if entry["message_id"] is not None else "",
        entry["hash"][:12],
    )


def audit(report: Report) -> list[Block]:
    """Lower bounds of attacks in simulations, beside what was claimed."""
    if report["audit"] is None:
        return ["No audit came with this report."]
    arms = report["audit"]["arms"]
    rows = []
    false = []
    for arm in arms:
        claim, low = arm["claimed_epsilon"], arm["lower_bound"]
        if arm["kind"] == "sound" and claim is not None and (low is None or low > claim):
            false.append(arm["name"])
        caught = "yes" if arm["caught"] else "no"
        sure = percent(arm["confidence"])
        rows.append(
            (arm["name"], arm["kind"], bound(claim), bound(low), sure, str(arm["canaries"]), caught)
        )
    blocks: list[Block] = [
        "In simulations, canaries were put among the users and searched for in what was sent. "
        "What was found is a lower bound on epsilon: a sound run must stay at or under its claim. "
        "Broken runs are there to show that the search finds what is wrong. None of it touched "
        "this holder's data.",
        Table(
            heads=("<run", "<kind", ">claim", ">found", ">confidence", ">canaries", "<caught"),
            widths=(36, 8, 9, 9, 11, 9, 7),
            rows=rows,
        ),
    ]
    if false:
        words = f"THE CLAIM IS FALSE: more than was claimed was found in {', '.join(false)}."
        blocks.insert(0, Loud(words=words))
    return blocks


def check(report: Report) -> list[Block]:
    """How somebody else can check the report."""
    key = hashlib.sha256(bytes.fromhex(report["public_key"])).hexdigest()
    return [
        "The report in JSON (`credit-client report --format json --out report.json`) is signed "
        "with the holder's key and has every entry of the ledger. `credit-client verify-report "
        "report.json` checks the signature and the chain, and computes epsilon anew from the "
        "entries; it needs neither the holder's folder nor the network. That the ledger is the "
        "whole one shows in the heads that the coordinator keeps, which this holder signed.",
        Facts(rows=[("SHA-256 of the key", key), ("made at, UTC", minute(report["created"]))]),
    ]
