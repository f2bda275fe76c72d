"""LendingClub loans, from the marketplace's public CSV or from its prepared columns.

The CSV (LoanStats3a and its successors) opens with a note, has a second heading in its middle and
totals at its end. Only loans with a known outcome are kept. The lender's own score (`int_rate`,
`grade`, `sub_grade`, `installment`) stays in the file for comparison; the contract drops it.
"""

import re
import zipfile
from pathlib import Path

import pandas as pd

from credit_common.errors import ShardError

TEXTS = (
    "grade",
    "sub_grade",
    "emp_title",
    "emp_length",
    "home_ownership",
    "verification_status",
    "desc",
    "purpose",
    "title",
    "zip_code",
    "addr_state",
)
NUMBERS = (
    "loan_amnt",
    "term",
    "int_rate",
    "installment",
    "annual_inc",
    "dti",
    "delinq_2yrs",
    "inq_last_6mths",
    "mths_since_last_delinq",
    "mths_since_last_record",
    "open_acc",
    "pub_rec",
    "revol_bal",
    "revol_util",
    "total_acc",
    "pub_rec_bankruptcies",
    "tax_liens",
)
PERCENTS = ("int_rate", "revol_util")
MADE = ("issue_d", "issue_year", "credit_age_months", "meets_policy", "default")
CSV_COLUMNS = (*TEXTS, *NUMBERS, "issue_d", "earliest_cr_line", "loan_status")
GOOD, BAD = ("Fully Paid",), ("Charged Off", "Default")
OUTSIDE_POLICY = "Does not meet the credit policy. Status:"
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_ADDED = re.compile(r"Borrower added on \d\d/\d\d/\d\d\s*>|<br\s*/?>", re.IGNORECASE)


def read_loans(file: Path) -> pd.DataFrame:
    """Read loans with a known outcome.

    Args:
        file: The public CSV (also .gz or .zip), or a Parquet file (.parquet) that already has the
            prepared columns.

    Returns:
        Columns `client_id`, the texts, the numbers (percentages as shares, 0.1065), `issue_d` as
        ISO date, `issue_year`, `credit_age_months`, `meets_policy`, `default` (0 or 1), `holder`.

    Raises:
        ShardError: If the file cannot be read, lacks a column, or has cells that are not what
            their column should hold.
    """
    try:
        frame = _prepared(file) if file.suffix == ".parquet" else _public(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ShardError(f"{file}: cannot be read as loans ({type(error).__name__})") from None
    if frame.empty:
        raise ShardError(f"{file}: no loan with a known outcome")
    frame["desc"] = [" ".join(_ADDED.sub(" ", text).split()) for text in frame["desc"]]
    frame["holder"] = frame["addr_state"]
    return frame[["client_id", *TEXTS, *NUMBERS, *MADE, "holder"]].reset_index(drop=True)


def _prepared(file: Path) -> pd.DataFrame:
    frame = pd.read_parquet(file)
    _require(file, frame, (*TEXTS, *NUMBERS, *MADE))
    if not frame["default"].isin([0, 1]).all():
        raise ShardError(f"{file}: column default: holds more than 0 and 1")
    if "client_id" not in frame:
        frame["client_id"] = _client_ids(len(frame))
    for name in TEXTS:
        frame[name] = frame[name].fillna("").astype(str)
    return _typed(frame)


def _public(file: Path) -> pd.DataFrame:
    heading = pd.read_csv(file, nrows=0, dtype=str, encoding_errors="replace")
    noted = "loan_amnt" not in heading.columns  # the first line is a note, not the heading
    frame = pd.read_csv(
        file,
        skiprows=int(noted),
        dtype=str,
        keep_default_na=False,
        usecols=lambda name: name in CSV_COLUMNS,
        encoding_errors="replace",
    ).fillna("")
    _require(file, frame, CSV_COLUMNS)
    frame["client_id"] = _client_ids(len(frame))
    status = frame["loan_status"].str.strip()
    frame["meets_policy"] = (~status.str.startswith(OUTSIDE_POLICY)).astype("int64")
    outcome = status.str.removeprefix(OUTSIDE_POLICY).str.strip()
    frame["default"] = outcome.isin(BAD).astype("int64")
    frame = frame[outcome.isin(GOOD + BAD)].copy()
    if frame.empty:
        return frame  # refused by the caller; empty columns have no types to convert
    for name in TEXTS:
        frame[name] = frame[name].str.strip()
    for name in NUMBERS:
        frame[name] = _number(file, frame[name])
    for name in PERCENTS:
        frame[name] = frame[name] / 100
    issued, first = _month(file, frame["issue_d"]), _month(file, frame["earliest_cr_line"])
    if issued.isna().any():
        raise ShardError(f"{file}: column issue_d: {int(issued.isna().sum())} empty cells")
    issued = issued.astype("int64")
    frame["credit_age_months"] = issued - first
    frame["issue_year"] = issued // 12
    frame["issue_d"] = [f"{month // 12:04d}-{month % 12 + 1:02d}-01" for month in issued]
    return _typed(frame)


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    kinds = dict.fromkeys((*NUMBERS, "credit_age_months"), "float64")
    kinds |= dict.fromkeys(("loan_amnt", "term", "issue_year", "meets_policy", "default"), "int64")
    return frame.astype(kinds)


def _number(file: Path, column: pd.Series) -> pd.Series:
    text = column.str.strip().str.removesuffix("%").str.removesuffix("months").str.replace(",", "")
    text = text.where(~text.str.lower().isin(["n/a", "na", "nan"]), "")
    numbers = pd.to_numeric(text, errors="coerce")
    _refuse(file, column, numbers.isna() & (text.str.strip() != ""), "not numbers")
    return numbers.astype("float64")


def _month(file: Path, column: pd.Series) -> pd.Series:
    """Months since year 0 of "Dec-2011" or "Dec-11"; missing where the cell is empty."""
    text = column.str.strip()
    parts = text.str.extract(r"^([A-Za-z]{3})-(\d{4}|\d{2})$")
    month = parts[0].str.lower().map({name: i for i, name in enumerate(MONTHS)})
    year = parts[1].astype("float64")
    # Two digits: nobody's credit history began before 1930, and no loan here is of 2030 or later.
    year = year.where(year >= 100, year.where(year >= 30, year + 100) + 1900)
    months = year * 12 + month
    _refuse(file, column, months.isna() & (text != ""), "not like Dec-2011")
    return months


def _client_ids(rows: int) -> list[str]:
    return [f"lendingclub-{number:06d}" for number in range(1, rows + 1)]


def _require(file: Path, frame: pd.DataFrame, names: tuple[str, ...]) -> None:
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise ShardError(f"{file}: not LendingClub's loans, columns missing: {', '.join(missing)}")


def _refuse(file: Path, column: pd.Series, wrong: pd.Series, what: str) -> None:
    if wrong.any():
        raise ShardError(f"{file}: column {column.name}: {int(wrong.sum())} cells are {what}")
