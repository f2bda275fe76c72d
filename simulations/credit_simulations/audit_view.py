"""How an audit looks: a table, one JSON object, or Markdown, on stdout."""

import json
import sys

from rich.console import Console
from rich.table import Table

from credit_simulations.audit import AuditResult, Line

COLUMNS = ("arm", "kind", "claimed ε", "lower bound", "right guesses", "AUC", "TPR at 1% FPR")


def audit_summary(result: AuditResult) -> None:
    """Print every arm and what its bound means."""
    table = Table(title=f"{result.data}: {result.users} users, δ = {result.delta:g}")
    for column in (*COLUMNS, "verdict"):
        left = column in ("arm", "kind", "verdict")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for line in result.lines:
        table.add_row(*_cells(line), _verdict(line))
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    print(_meaning(result))


def write_audit_markdown(result: AuditResult) -> None:
    """Print every arm as a Markdown table, for documents."""
    print(f"| {' | '.join((*COLUMNS, 'verdict'))} |")
    print("|---|---" + "|---:" * (len(COLUMNS) - 2) + "|---|")
    for line in result.lines:
        print(f"| {' | '.join((*_cells(line), _verdict(line)))} |")
    print(f"\n{_meaning(result)}")


def write_audit_json(result: AuditResult) -> None:
    """Print one JSON object."""
    print(
        json.dumps(
            {
                "data": result.data,
                "users": result.users,
                "delta": result.delta,
                "schedule": vars(result.schedule),
                "arms": [_plain(line) for line in result.lines],
                "passed": not result.failures(),
                "seconds": round(result.seconds, 2),
                "command": result.command,
            }
        )
    )


def _plain(line: Line) -> dict[str, object]:
    measured = line.measured
    return {
        "name": line.name,
        "kind": line.kind,
        "claimed_epsilon": line.claimed_epsilon,
        "lower_bound": measured.lower_bound,
        "confidence": measured.confidence,
        "canaries": measured.canaries,
        "caught": line.caught,
        **measured.figures,
        "seconds": round(line.seconds, 2),
    }


def _cells(line: Line) -> list[str]:
    figures = line.measured.figures
    claim = line.claimed_epsilon
    right = f"{figures['right']:.0f} of {figures['guesses']:.0f}" if "right" in figures else ""
    rates = [
        f"{figures[name]:.3f}" if name in figures else ""
        for name in ("auc", "tpr_at_1_percent_fpr")
    ]
    return [
        line.name,
        line.kind,
        "∞" if claim is None else f"{claim:.4g}",
        f"{line.measured.lower_bound:.2f}",
        right,
        *rates,
    ]


def _verdict(line: Line) -> str:
    if line.claimed_epsilon is None:
        return "nothing claimed"
    verdict = "caught" if line.caught else "under the claim"
    return verdict if line.as_it_should else f"{verdict}: WRONG"


def _meaning(result: AuditResult) -> str:
    schedule = result.schedule
    confidences = sorted({f"{100 * line.measured.confidence:.6g}%" for line in result.lines})
    return (
        f"Each run: {schedule.rounds} rounds of {schedule.steps} steps at sampling rate "
        f"{schedule.sampling_rate:g}. lower bound: the ε that the attack refutes at "
        f"{' or '.join(confidences)} confidence for one arm, δ = {result.delta:g}; it says what "
        f"the attack found, not what is safe. By mu: the refuted μ of Gaussian DP, told as the ε "
        f"of a Gaussian mechanism of that μ.\n{result.seconds:.0f} s: {result.command}"
    )
