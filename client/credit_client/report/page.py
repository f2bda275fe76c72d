"""The privacy report as one page of HTML: no script, and nothing from outside."""

from html import escape
from importlib.resources import files

from credit_client.page.markup import document
from credit_client.report.numbers import Report, bound, exact
from credit_client.report.numbers import minute as minute_of
from credit_client.report.parts import parts


def as_html(report: Report) -> str:
    """The report as a page that a browser shows from a file, and prints on A4."""
    style = files("credit_client.report").joinpath("report.css").read_text(encoding="utf-8")
    federation, minute = escape(report["federation"]), escape(minute_of(report["created"]))
    header = f"<p>federation {federation}, {minute} UTC</p>\n{_headline(report)}"
    return document(f"Privacy report of {report['holder']}", header, parts(report), style=style)


def _headline(report: Report) -> str:
    delta = f"&delta; = {escape(exact(report['delta']))}"
    if report["overrides"]:
        return f'<p class="epsilon unknown"><b>&epsilon; is unknown</b> <span>{delta}</span></p>'
    epsilon = f"&epsilon; &le; {escape(bound(report['epsilon']))}"
    return f'<p class="epsilon"><b>{epsilon}</b> <span>{delta}</span></p>'
