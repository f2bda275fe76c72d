"""The privacy report as text and as a page of HTML."""

from typing import Any


def as_text(report: dict[str, Any]) -> str:
    """The report for a terminal."""
    return f"epsilon {report['epsilon']} at delta {report['delta']}\n"


def as_html(report: dict[str, Any]) -> str:
    """The report as one page without anything from outside."""
    return f"<!doctype html><title>privacy report</title><p>epsilon {report['epsilon']}"
