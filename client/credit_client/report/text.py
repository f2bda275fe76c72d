"""The privacy report for a terminal, at most 100 columns wide."""

from credit_client.page import text
from credit_client.report.numbers import Report, minute
from credit_client.report.parts import parts


def as_text(report: Report) -> str:
    """The report as text. Long tables, such as that of all entries, are left out."""
    title = (
        f"PRIVACY REPORT OF {report['holder']} IN THE FEDERATION {report['federation']}, "
        f"{minute(report['created'])} UTC"
    )
    return text.as_text(title, parts(report), "`credit-client ledger` shows them")
