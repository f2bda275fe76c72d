"""The model report as one page of HTML: no script, and nothing from outside."""

from html import escape
from importlib.resources import files

from credit_client.page.markup import document
from credit_client.validation.parts import parts, title_of
from credit_client.validation.plots import pictures
from credit_client.validation.study import Study
from credit_client.validation.told import four, percent


def as_html(study: Study) -> str:
    """The study as a page that a browser shows from a file, and prints on A4."""
    style = files("credit_client.validation").joinpath("validation.css").read_text("utf-8")
    shown = parts(study, pictures(study))
    return document(title_of(study), _headline(study), shown, style=style, pictures=True)


def _headline(study: Study) -> str:
    figures, judged = study.figures, study.judged
    cut = next(cut for cut in study.cut_offs if cut.mark)
    tiles = [
        ("AUC", four(figures.auc), f"{four(figures.auc_low)} to {four(figures.auc_high)}"),
        ("KS", four(figures.ks), f"at PD {four(figures.ks_pd)}"),
        ("bad rate", percent(figures.bad_rate), f"said: {percent(figures.mean_pd)}"),
        ("approved", percent(cut.approval_rate), f"{cut.mark} {cut.pd:g}"),
    ]
    told = "\n".join(
        f"<div><dt>{escape(name)}</dt><dd><b>{escape(value)}</b> <span>{escape(beside)}</span>"
        "</dd></div>"
        for name, value, beside in tiles
    )
    users = "hold-out users" if judged.users == "holdout" else "users"
    return (
        f"<p>release {escape(judged.release_digest[:16])}, judged on {figures.users:,} {users} of "
        f'{escape(judged.file)}</p>\n<dl class="tiles">\n{told}\n</dl>'
    )
