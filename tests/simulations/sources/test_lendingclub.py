import csv
import gzip
from pathlib import Path

import pandas as pd
import pytest

from credit_common.contract import load_contract
from credit_common.errors import ShardError
from credit_common.record import make_record, parse_label, parse_value
from credit_simulations.data import contract_path, describe, prepare
from credit_simulations.sources.lendingclub import CSV_COLUMNS, read_loans

LOAN = dict.fromkeys(CSV_COLUMNS, "1") | {
    "loan_amnt": "5000",
    "term": " 36 months",
    "int_rate": " 10.65%",
    "installment": "162.87",
    "grade": "B",
    "sub_grade": "B2",
    "emp_title": "Ryder",
    "emp_length": "10+ years",
    "home_ownership": "RENT",
    "annual_inc": "24000",
    "verification_status": "Verified",
    "desc": "  Borrower added on 12/22/11 > I need to upgrade <br>my business.<br/>",
    "purpose": "credit_card",
    "title": "Computer",
    "zip_code": "860xx",
    "addr_state": "AZ",
    "mths_since_last_delinq": "",
    "revol_util": "83.7%",
    "issue_d": "Dec-2011",
    "earliest_cr_line": "Jan-1985",
    "loan_status": "Fully Paid",
}


def loans(path: Path, *changes: dict[str, str], note: bool = True) -> Path:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        if note:
            file.write("Notes offered by Prospectus (see the site)\n")
        writer = csv.DictWriter(file, ["id", *CSV_COLUMNS, "total_pymnt"], quoting=csv.QUOTE_ALL)
        writer.writeheader()
        for number, change in enumerate(changes):
            writer.writerow({"id": str(number), "total_pymnt": "9"} | LOAN | change)
        file.write("\nTotal amount funded in policy code 1: 460296150,,,,\n")
    return path


def test_a_public_row_gets_its_types_and_units(tmp_path):
    row = read_loans(loans(tmp_path / "loans.csv", {})).iloc[0]
    assert (row["client_id"], row["term"], row["loan_amnt"]) == ("lendingclub-000001", 36, 5000)
    assert row["int_rate"] == pytest.approx(0.1065)
    assert row["revol_util"] == pytest.approx(0.837)
    assert (row["issue_d"], row["issue_year"]) == ("2011-12-01", 2011)
    assert row["credit_age_months"] == 26 * 12 + 11
    assert pd.isna(row["mths_since_last_delinq"])
    assert row["desc"] == "I need to upgrade my business."
    assert (row["default"], row["meets_policy"], row["holder"]) == (0, 1, "AZ")


def test_only_known_outcomes_are_kept_and_ids_still_number_the_raw_rows(tmp_path):
    outside = "Does not meet the credit policy. Status:"
    states = ["Current", "Charged Off", "Late (31-120 days)", "Default", f"{outside}Charged Off"]
    states += ["In Grace Period", f"{outside}Fully Paid", ""]
    frame = read_loans(loans(tmp_path / "loans.csv", *({"loan_status": s} for s in states)))
    assert frame["client_id"].str[-1].tolist() == ["2", "4", "5", "7"]
    assert frame["default"].tolist() == [1, 1, 1, 0]
    assert frame["meets_policy"].tolist() == [1, 1, 0, 0]
    assert "total_pymnt" not in frame
    assert "loan_status" not in frame


def test_two_digit_years_fall_into_the_century_of_a_credit_history(tmp_path):
    dates = [("Dec-11", "Jan-85"), ("Jan-2008", "Dec-68"), ("Feb-09", "Mar-01")]
    rows = [{"issue_d": i, "earliest_cr_line": e} for i, e in dates]
    frame = read_loans(loans(tmp_path / "loans.csv", *rows))
    assert frame["credit_age_months"].tolist() == [26 * 12 + 11, 39 * 12 + 1, 7 * 12 + 11]


def test_a_file_without_the_note_or_packed_reads_the_same(tmp_path):
    one = read_loans(loans(tmp_path / "one.csv", {}, {"loan_status": "Charged Off"}))
    for path, note in ((tmp_path / "two.csv", False), (tmp_path / "three.csv.gz", True)):
        two = read_loans(loans(path, {}, {"loan_status": "Charged Off"}, note=note))
        pd.testing.assert_frame_equal(one, two)


def test_prepared_columns_come_back_as_they_were(tmp_path):
    frame = read_loans(loans(tmp_path / "loans.csv", {}, {"loan_status": "Default"}))
    frame.to_parquet(tmp_path / "own.parquet")
    pd.testing.assert_frame_equal(read_loans(tmp_path / "own.parquet"), frame)
    bare = frame.drop(columns=["client_id", "holder"])
    bare.to_parquet(tmp_path / "bare.parquet")
    pd.testing.assert_frame_equal(read_loans(tmp_path / "bare.parquet"), frame)


@pytest.mark.parametrize("column", ["annual_inc", "int_rate", "earliest_cr_line", "issue_d"])
def test_a_bad_cell_is_counted_by_column_and_never_quoted(tmp_path, column):
    path = loans(tmp_path / "loans.csv", {}, {column: "SENTINEL"}, {column: "SENTINEL"})
    with pytest.raises(ShardError, match=f"column {column}: 2 cells") as caught:
        read_loans(path)
    assert "SENTINEL" not in str(caught.value)


def test_a_loan_without_an_issue_month_is_refused(tmp_path):
    with pytest.raises(ShardError, match="column issue_d: 1 empty"):
        read_loans(loans(tmp_path / "loans.csv", {}, {"issue_d": ""}))


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "note\nalso,no\n"])
def test_another_csv_is_refused_by_name(tmp_path, text):
    path = tmp_path / "other.csv"
    path.write_text(text)
    with pytest.raises(ShardError, match=r"other\.csv"):
        read_loans(path)


def test_a_missing_or_broken_file_is_refused_by_name(tmp_path):
    with pytest.raises(ShardError, match=r"absent\.csv"):
        read_loans(tmp_path / "absent.csv")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    whole = loans(tmp_path / "whole.csv.gz", {}).read_bytes()
    (tmp_path / "broken.csv.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "broken.zip").write_bytes(b"PK no")
    for name in ("broken.parquet", "broken.csv.gz", "broken.zip"):
        with pytest.raises(ShardError, match=name):
            read_loans(tmp_path / name)


def test_a_column_that_is_empty_in_every_row_is_missing(tmp_path):
    empty = {"earliest_cr_line": "", "tax_liens": "", "dti": "n/a"}
    frame = read_loans(loans(tmp_path / "loans.csv", empty))
    assert frame[["credit_age_months", "tax_liens", "dti"]].isna().all(axis=None)


def test_loans_of_open_outcome_alone_are_refused(tmp_path):
    with pytest.raises(ShardError, match="no loan with a known outcome"):
        read_loans(loans(tmp_path / "loans.csv", {"loan_status": "Current"}))


def test_the_contract_reads_every_column_of_a_prepared_loan(tmp_path, monkeypatch):
    monkeypatch.setenv("CREDIT_CACHE", str(tmp_path / "cache"))
    source = loans(tmp_path / "loans.csv", {}, {"addr_state": "CA", "loan_status": "Charged Off"})
    path = prepare("lendingclub", source)
    assert prepare("lendingclub") == path
    found = describe("lendingclub")
    assert found.event == "default: 1"
    assert (found.rows, found.event_rate, dict(found.holders)) == (2, 0.5, {"AZ": 1, "CA": 1})
    contract = load_contract(contract_path("lendingclub"))
    frame = pd.read_parquet(path)
    declared = {f.name: f for f in contract.fields}
    assert set(frame.columns) == {*declared, contract.task.label}
    row = frame.iloc[0].to_dict()
    read = [f for f in contract.fields if f.kind not in ("identifier", "dropped")]
    label = parse_label(contract, row["default"])
    record = make_record(contract, {f.name: parse_value(f, row[f.name]) for f in read}, label)
    assert record.values["emp_title"] == "Ryder"
    assert record.values["term"] == "36"
    assert record.values["mths_since_last_delinq"] is None
    assert record.label == 0.0
