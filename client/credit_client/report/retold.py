"""What a privacy report says of its entries in other words, held against the entries.

Everything here follows from the entries, or from a figure that does. `credit_client.report.verify`
says what of a report does not.
"""

import json
import math
from collections import Counter
from typing import Any

from credit_client.report.recount import Recount, Spent

_ANSWERS = {
    "adapter": {("train", "sampled_gaussian")},
    "histogram": {("holdout", "histogram"), ("holdout", "field_histograms")},
    "statistics": {("train", "field_histograms")},
}
"""Kind of message -> account and kind of event that it may be charged by."""
_BELIEFS = (0.01, 0.5)
_CLOSE = 1e-6


def retold_problems(report: dict[str, Any], counted: Recount) -> list[str]:
    """What a report says of its entries elsewhere, where it is not what they are.

    Args:
        report: All of it.
        counted: What its entries add up to.
    """
    return [
        *_ledger(report, counted),
        *_overrides(report, counted),
        *_mechanism(report),
        *_counts(report, counted),
    ]


def _ledger(report: dict[str, Any], counted: Recount) -> list[str]:
    found = {"accounts_add": counted.add, "lost_entries": counted.lost}
    problems = [
        f"{name}: the report says {report[name]}, by its entries it is {value}"
        for name, value in found.items()
        if type(report[name]) is not type(value) or report[name] != value
    ]
    if report["ledger_head"]["counter"] != len(report["releases"]) + counted.lost:
        problems.append("ledger_head: its counter is not that of its entries")
    return problems


def _overrides(report: dict[str, Any], counted: Recount) -> list[str]:
    problems = [
        f"entry {number} is an override that nobody signed"
        for number, _, signed in counted.overrides
        if not signed
    ]
    told = [(each["sequence"], each["reason"]) for each in report["overrides"]]
    if told != [(number, reason) for number, reason, _ in counted.overrides]:
        problems.append("overrides: the report does not tell those of its entries")
    return problems


def _mechanism(report: dict[str, Any]) -> list[str]:
    """The first entry under the report's own contract that was charged for another mechanism."""
    plan = report["mechanism"]
    noise = plan["evaluation_noise_multiplier"]
    groups = plan.get("evaluation_groups", 0)  # reports from before there were groups have none
    if type(groups) is not int or groups < 0:
        return ["mechanism: evaluation_groups must be a number of fields"]
    expected = {
        ("train", "sampled_gaussian"): {
            "sampling_rate": plan["sampling_rate"],
            "noise_multiplier": plan["noise_multiplier"],
            "steps": plan["steps_per_round"],
        },
        ("train", "field_histograms"): {
            "noise_multiplier": plan["statistics_noise_multiplier"],
            "fields": plan["statistics_fields"],
            "releases": 1,
        },
        ("holdout", "histogram"): {"noise_multiplier": noise, "releases": 1},
    }
    if groups:
        expected["holdout", "field_histograms"] = {
            "noise_multiplier": noise,
            "fields": 1 + groups,
            "releases": 1,
        }
    problems = []
    if plan["steps"] != plan["steps_per_round"] * plan["rounds"]:
        problems.append("mechanism: its steps are not those of its rounds")
    for entry in _charges(report["releases"]):
        event = json.loads(entry["event"])
        own = expected.get((entry["account"], event.pop("kind")))
        if entry["contract_digest"] == report["contract_digest"] and event != own:
            number = entry["sequence"]
            problems.append(f"mechanism: entry {number} was charged for another than the report's")
            break
    return problems


def _counts(report: dict[str, Any], counted: Recount) -> list[str]:
    """Answers by contract and account, and whether each kind of answer was ever charged.

    How often an answer left is not known from entries: a repeated one is charged once.
    """
    found: dict[str, Counter[str]] = {}
    for entry in report["releases"]:
        if entry["message_id"] is not None:
            found.setdefault(entry["contract_digest"], Counter())[entry["account"]] += 1
    problems = []
    if report["contracts"] != found:
        problems.append("contracts: the answers that it counts are not those of its entries")
    if counted.overrides:
        return problems  # what left may have been charged by an entry that was lost
    charged = {
        (entry["account"], json.loads(entry["event"])["kind"])
        for entry in _charges(report["releases"])
    }
    problems += [
        f"messages: the report lists {kind} answers, and none of its entries is for one"
        for kind, events in _ANSWERS.items()
        if report["messages"].get(kind, {}).get("times", 0) and not events & charged
    ]
    if report["messages_of_lost_entries"]:
        problems.append("messages_of_lost_entries: the report counts some, though nothing was lost")
    return problems


def meaning_problems(report: dict[str, Any], counted: Recount) -> list[str]:
    """Whether the report's own ε means what it says, and leaves of the budget what it says."""
    epsilon = report["epsilon"]
    meaning = left = None
    spent = math.inf if epsilon is None else epsilon
    if not counted.overrides:
        left = max((report["budget"] or 0) - spent, 0)
        if spent < 700:
            factor = math.exp(spent)
            after = {str(p): p * factor / (1 - p + p * factor) for p in _BELIEFS}
            meaning = {"odds_factor": factor, **after}
    told = report["meaning"]
    flat = told and {"odds_factor": told["odds_factor"], **told["belief_after"]}
    problems = []
    if not _alike(flat, meaning):
        problems.append("meaning: it is not that of the report's epsilon")
    if not _alike({"": report["budget_left"]}, {"": left}):
        problems.append(f"budget_left: the report says {report['budget_left']}, it must be {left}")
    return problems


def _charges(entries: Spent) -> Spent:
    return [entry for entry in entries if entry["account"] in ("train", "holdout")]


def _alike(told: dict[str, Any] | None, found: dict[str, Any] | None) -> bool:
    """Whether both say the same, numbers but for their last digits."""
    if told is None or found is None:
        return told is found
    return set(told) == set(found) and all(
        told[name] is value
        if value is None or told[name] is None
        else math.isclose(told[name], value, rel_tol=_CLOSE, abs_tol=_CLOSE)
        for name, value in found.items()
    )
