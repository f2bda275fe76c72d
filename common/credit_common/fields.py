"""The kinds of field that a contract can declare.

Every bound, edge and vocabulary here is public: it stands in the contract, so that nothing about
the preprocessing of a record depends on other records (privacy specification, row 17). Edges alone
can also be federated: then they come from noised counts, which the ledger is charged for.
"""

from dataclasses import dataclass
from typing import Literal

from credit_common.checked import require
from credit_common.quantiles import Grid, Quantiles, grid_of

EVENT_RANGE = (-1e12, 1e12)  # of an event's amount and of what is summed up from it
AGGREGATIONS = ("sum", "count", "recency", "mean")
MAX_EXAMPLES = 100  # of a text field, each read by BERT when a model is made


def _template(where: str, text: str) -> None:
    require(text == "" or text.count("{}") == 1, where, text, "empty or a text with one {}")


@dataclass(frozen=True, kw_only=True)
class NumberField:
    """A number with a public range and public bin edges.

    Attributes:
        range: Smallest and largest plausible value, in `unit`.
        edges: Increasing inner edges of the bins; bin i holds edges[i-1] <= value < edges[i]. The
            file may say "federated" with `bins`, `cells` and `scale`: they are empty then, until
            `Contract.with_edges` fills them in.
        quantiles: What is asked for where the edges are federated, else None.
        outside: What happens to a value outside `range`: moved to the nearer end, treated as
            missing, or the row rejected.
        missing: "cell" gives missing values a bin of their own; "reject" rejects the row;
            "impute" writes the public constant `impute` instead.
        text: How the value is said to BERT, with {} for it; empty leaves it to the wide part.
    """

    name: str
    range: tuple[float, float]
    edges: tuple[float, ...]
    unit: str = ""
    outside: Literal["clip", "missing", "reject"] = "clip"
    missing: Literal["cell", "reject", "impute"] = "cell"
    impute: float | None = None
    text: str = ""
    quantiles: Quantiles | None = None
    kind: Literal["number"] = "number"

    def __post_init__(self) -> None:
        where = f"fields.{self.name}"
        low, high = self.range
        require(low < high, f"{where}.range", self.range, "increasing")
        if self.quantiles is not None:
            self.grid.check(where)
            ok = len(self.edges) in (0, self.quantiles.bins - 1)
            require(ok, f"{where}.edges", len(self.edges), f"{self.quantiles.bins - 1} edges")
        else:
            require(len(self.edges) >= 1, f"{where}.edges", self.edges, "at least one edge")
        if self.edges:
            rising = all(a < b for a, b in zip(self.edges, self.edges[1:], strict=False))
            require(rising, f"{where}.edges", self.edges, "increasing")
            inside = low < self.edges[0] and self.edges[-1] <= high
            require(inside, f"{where}.edges", self.edges, f"inside the range {self.range}")
        if self.missing == "impute":
            ok = self.impute is not None and low <= self.impute <= high
            require(ok, f"{where}.impute", self.impute, f"a number inside the range {self.range}")
        _template(f"{where}.text", self.text)

    @property
    def bins(self) -> int:
        """Number of bins, known before federated edges are."""
        return self.quantiles.bins if self.quantiles else len(self.edges) + 1

    @property
    def grid(self) -> Grid:
        """The public grid that federated edges are boundaries of."""
        assert self.quantiles is not None
        return grid_of(self.quantiles, self.range)


@dataclass(frozen=True, kw_only=True)
class CategoryField:
    """A category with a public vocabulary.

    Attributes:
        values: The codes that a shard may hold, at least two.
        labels: How each code is said to BERT (same order); an empty label says nothing.
        unknown: A code outside `values` gets the cell "other", or the row is rejected.
        missing: As for numbers; "impute" writes the code in `impute`.
    """

    name: str
    values: tuple[str, ...]
    labels: tuple[str, ...] = ()
    unknown: Literal["other", "reject"] = "other"
    missing: Literal["cell", "reject", "impute"] = "cell"
    impute: str = ""
    text: str = ""
    kind: Literal["category"] = "category"

    def __post_init__(self) -> None:
        where = f"fields.{self.name}"
        require(len(self.values) >= 2, f"{where}.values", self.values, "at least two codes")
        unique = len(set(self.values)) == len(self.values)
        require(unique, f"{where}.values", self.values, "without repeated codes")
        ok = not self.labels or len(self.labels) == len(self.values)
        require(ok, f"{where}.labels", self.labels, "as many as there are values")
        if self.missing == "impute":
            require(self.impute in self.values, f"{where}.impute", self.impute, "one of the values")
        _template(f"{where}.text", self.text)


@dataclass(frozen=True, kw_only=True)
class TextField:
    """Free text. Phone, card and identity numbers and e-mail addresses are masked in it.

    Attributes:
        examples: Made-up texts like those that people write, "" for none; public. What the head
            reads of every text is taken less the mean of what it reads of them.
    """

    name: str
    max_chars: int = 400
    text: str = "{}"
    examples: tuple[str, ...] = ()
    kind: Literal["text"] = "text"

    def __post_init__(self) -> None:
        where = f"fields.{self.name}"
        require(1 <= self.max_chars <= 20_000, f"{where}.max_chars", self.max_chars, "1 to 20000")
        found, most = len(self.examples), MAX_EXAMPLES
        require(found <= most, f"{where}.examples", f"{found} texts", f"at most {most}")
        longest = max(map(len, self.examples), default=0)
        bound = f"at most max_chars = {self.max_chars}"
        require(longest <= self.max_chars, f"{where}.examples", f"{longest} characters", bound)
        _template(f"{where}.text", self.text)


@dataclass(frozen=True, kw_only=True)
class EventEdges:
    """Bin edges of each aggregation of an event list; recency is in days."""

    sum: tuple[float, ...] = ()
    count: tuple[float, ...] = ()
    recency: tuple[float, ...] = ()
    mean: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EventsField:
    """A list of events, a JSON array of {"time": ISO date, "value": number} in one column.

    Each window (days before the record's time) and aggregation becomes one number. Recency is the
    days since the last event, whatever the window, and stands once.

    Attributes:
        windows: Lengths in days, increasing.
        edges: Public bin edges of each aggregation in use.
        until: The time field that events are counted back from.
        max_events: Events of one user that are read; later ones come first.
    """

    name: str
    windows: tuple[int, ...]
    aggregations: tuple[Literal["sum", "count", "recency", "mean"], ...]
    edges: EventEdges
    until: str
    max_events: int = 2000
    text: str = ""
    kind: Literal["events"] = "events"

    def __post_init__(self) -> None:
        where = f"fields.{self.name}"
        rising = all(a < b for a, b in zip(self.windows, self.windows[1:], strict=False))
        ok = bool(self.windows) and self.windows[0] > 0 and rising
        require(ok, f"{where}.windows", self.windows, "positive and increasing days")
        unique = 1 <= len(set(self.aggregations)) == len(self.aggregations)
        require(unique, f"{where}.aggregations", self.aggregations, "at least one, each once")
        for name in self.aggregations:
            edges = getattr(self.edges, name)
            require(bool(edges), f"{where}.edges.{name}", edges, "given for each aggregation")
        require(1 <= self.max_events <= 100_000, f"{where}.max_events", self.max_events, "1 to 1e5")
        _template(f"{where}.text", self.text)
        self.numbers()  # each checks its own edges

    def numbers(self) -> tuple[NumberField, ...]:
        """The numbers that this list becomes, in a fixed order."""
        made = []
        for aggregation in self.aggregations:
            spans: tuple[int | None, ...] = (None,) if aggregation == "recency" else self.windows
            for days in spans:
                name = f"{self.name}_{aggregation}" + (f"_{days}d" if days else "")
                said = name.removeprefix(f"{self.name}_").replace("_", " ")
                made.append(
                    NumberField(
                        name=name,
                        range=EVENT_RANGE,
                        edges=getattr(self.edges, aggregation),
                        text=self.text.replace("{}", said + " {}") if self.text else "",
                    )
                )
        return tuple(made)


@dataclass(frozen=True, kw_only=True)
class TimeField:
    """A date or time, ISO 8601 unless `format` says otherwise. Orders rows and ends windows."""

    name: str
    format: str = ""
    kind: Literal["time"] = "time"


@dataclass(frozen=True, kw_only=True)
class IdentifierField:
    """A direct identifier. It never reaches text, features, logs or caches."""

    name: str
    kind: Literal["identifier"] = "identifier"


@dataclass(frozen=True, kw_only=True)
class ProtectedField:
    """A protected attribute: kept for group gaps, never an input of the model."""

    name: str
    values: tuple[str, ...]
    kind: Literal["protected"] = "protected"

    def __post_init__(self) -> None:
        where = f"fields.{self.name}.values"
        unique = len(set(self.values)) == len(self.values) >= 2
        require(unique, where, self.values, "at least two different codes")


@dataclass(frozen=True, kw_only=True)
class DroppedField:
    """A column that a shard may have and that nothing reads."""

    name: str
    kind: Literal["dropped"] = "dropped"


Field = (
    NumberField
    | CategoryField
    | TextField
    | EventsField
    | TimeField
    | IdentifierField
    | ProtectedField
    | DroppedField
)
KINDS: dict[str, type[Field]] = {
    "number": NumberField,
    "category": CategoryField,
    "text": TextField,
    "events": EventsField,
    "time": TimeField,
    "identifier": IdentifierField,
    "protected": ProtectedField,
    "dropped": DroppedField,
}
