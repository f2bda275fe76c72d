"""The results as one page of HTML: no script, nothing from outside, pictures in the page itself."""

from collections.abc import Mapping, Sequence
from importlib.resources import files

from credit_simulations.results.arms import level
from credit_simulations.results.claims import Answer, Spread, answers, headline
from credit_simulations.results.drawing import Plot
from credit_simulations.results.explained import arms_told, epsilon_told, file_told, intervals_told
from credit_simulations.results.grid import Grid
from credit_simulations.results.losses import loss_grid
from credit_simulations.results.markup import figures, paragraph, section, table, words
from credit_simulations.results.rows import groups, rows, settings
from credit_simulations.results.sentences import (
    at,
    cost_sentence,
    counted,
    gain_sentence,
    interval,
    lose,
    place,
    signed,
    verdict,
)
from credit_simulations.results.spoilt import spoilt_grid
from credit_simulations.results.tables import pivot_grid, published_grid, rows_grid
from credit_simulations.results.trials import Trial, Trials

Answers = Mapping[str, Sequence[Sequence[Answer]]]
"""Data set -> the answers of each of its settings."""


def as_html(read: Trials, plots: Mapping[str, Sequence[Plot]], command: str) -> str:
    """The page.

    Args:
        read: The trials.
        plots: Data set -> its figures.
        command: What made the page.
    """
    grouped, lines = groups(read.trials), rows(read.trials)
    found = {
        data: [answers(grouped, setting) for setting in where]
        for data, where in settings(read.trials).items()
    }
    style = files("credit_simulations.results").joinpath("page.css").read_text(encoding="utf-8")
    parts = [
        *(
            _data_set(number, data, found[data], read.trials, plots[data])
            for number, data in enumerate(found, start=1)
        ),
        *_spoilt(read),
        section("arms", "What each arm is", _described(arms_told(read.trials))),
        section("intervals", "How intervals are meant", *map(paragraph, intervals_told())),
        section("epsilon", "How ε is meant", *map(paragraph, epsilon_told(read.trials))),
        section(
            "rows",
            "All rows",
            paragraph(
                "Means over seeds, sd of the sample, seconds of all seeds together. An ε of none "
                "is without DP.",
                "note",
            ),
            f"<details><summary>{len(lines)} rows</summary>\n{table(rows_grid(lines))}\n</details>",
        ),
        section("made", "How this page was made", f"<p><code>{words(command)}</code></p>"),
    ]
    body = "\n".join(parts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="robots" content="noindex">
<title>Federated credit scoring: results</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>What a merchant gains by federated training, and what ε costs</h1>
<p>{words(" ".join(file_told(read)))}</p>
{_headlines(found)}
</header>
<main>
{body}
</main>
</body>
</html>
"""


def _headlines(found: Answers) -> str:
    blocks = []
    for number, (data, every) in enumerate(found.items(), start=1):
        answer = headline(every[0])
        if answer is None:
            title, told, lost = data, ["The federated arm was not run."], False
        else:
            title, lost = place(answer.setting), answer.gain is not None and answer.gain.sign < 0
            told = [gain_sentence(answer), cost_sentence(every[0])]
        blocks.append(
            f'<div class="answer{" loss" if lost else ""}">\n'
            f'<h3><a href="#data{number}">{words(title)}</a></h3>\n'
            + "\n".join(map(paragraph, told))
            + "\n</div>"
        )
    return "\n".join(blocks)


def _data_set(
    number: int,
    data: str,
    every: Sequence[Sequence[Answer]],
    trials: Sequence[Trial],
    plots: Sequence[Plot],
) -> str:
    flat = [answer for found in every for answer in found]
    here = [trial for trial in trials if trial.setting.data == data]
    lines = rows(here)
    cited, lost = published_grid(lines), loss_grid(here)
    return section(
        f"data{number}",
        data,
        "<h3>Both answers at each ε</h3>" if flat else "",
        _answers_table(flat) if flat else "",
        _losers(every),
        figures(plots),
        "<h3>AUC against ε, mean ± sd over seeds</h3>",
        table(_without_data(pivot_grid(here))),
        f"<h3>{words(lost.title)}</h3>\n{table(_without_data(lost))}" if lost.cells else "",
        f"<h3>{words(cited.title)}</h3>\n{table(_without_data(cited))}" if cited.cells else "",
    )


def _spoilt(read: Trials) -> list[str]:
    grid = spoilt_grid(read.trials)
    if not grid.cells:
        return []
    told = (
        "The same users with their records as they are and spoilt, each model with the same errors."
    )
    return [section("spoilt", grid.title, paragraph(told), table(grid))]


def _answers_table(flat: Sequence[Answer]) -> str:
    cells, loud = [], []
    for i, answer in enumerate(flat):
        gain, cost, setting = answer.gain, answer.cost, answer.setting
        losers = len(answer.losers)
        cells.append(
            (
                f"{setting.partition}, {setting.holders}",
                level(answer.epsilon),
                _told(gain, "gain", "loss"),
                f"{losers} of {len(answer.merchants)}" if answer.merchants else "",
                _told(cost, "cost", "better"),
            )
        )
        loud += [(i, 2)] if gain is not None and gain.sign < 0 else []
        loud += [(i, 3)] if losers else []
    heads = (
        "holders",
        "ε",
        "gain over training alone (AUC within a merchant)",
        "merchants who lose",
        "cost of ε (AUC over all users)",
    )
    return table(Grid(title="", heads=heads, cells=cells, left=1), loud)


def _told(spread: Spread | None, more: str, less: str) -> str:
    if spread is None:
        return ""
    size = signed(spread.mean)
    if spread.low is not None and spread.high is not None:
        size += f" ({signed(spread.low)} to {signed(spread.high)})"
    return f"{size}, {verdict(spread, more, less)}"


def _losers(every: Sequence[Sequence[Answer]]) -> str:
    """Merchants who lose anywhere: where, by how much, and whether that is beyond noise."""
    cells = [
        (
            merchant.name,
            f"{answer.setting.partition}, {answer.setting.holders}",
            f"{merchant.users:,.0f}",
            at(answer.epsilon),
            signed(merchant.gain.mean),
            interval(merchant.gain),
            verdict(merchant.gain, "", "beyond noise"),
        )
        for found in every
        for answer in found
        for merchant in reversed(answer.losers)
    ]
    if not any(answer.merchants for found in every for answer in found):
        return ""
    title = "<h3>Merchants who lose</h3>\n"
    if not cells:
        return title + paragraph("None, at any ε, in the mean over seeds.")
    heads = ("merchant", "holders", "hold-out users", "when", "gain in AUC", "", "")
    shown = table(
        Grid(title="", heads=heads, cells=cells, left=2), [(i, 4) for i in range(len(cells))]
    )
    names = {cell[:2] for cell in cells}
    summary = f"{counted(len(names), 'merchant')} {lose(len(names))} at some ε"
    told = paragraph(
        "A merchant loses where the federated model ranks its own hold-out users worse than a "
        "model that it trained alone, in the mean over seeds. A small hold-out moves AUC much: "
        "what is within noise may be no loss."
    )
    return f"{title}{told}\n<details><summary>{summary}</summary>\n{shown}\n</details>"


def _described(pairs: Sequence[tuple[str, str]]) -> str:
    items = "\n".join(f"<dt>{words(n)}</dt><dd>{words(m)}</dd>" for n, m in pairs)
    return f"<dl>\n{items}\n</dl>"


def _without_data(grid: Grid) -> Grid:
    """The grid of one data set, whose name stands above it."""
    return Grid(
        title=grid.title,
        heads=grid.heads[1:],
        cells=[line[1:] for line in grid.cells],
        left=grid.left - 1,
    )
