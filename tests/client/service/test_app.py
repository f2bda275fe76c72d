import csv
import json
import logging

import numpy as np
import pandas as pd
import pytest

from credit_client.scoring.batch import score_file
from credit_client.scoring.export import export
from credit_client.scoring.reasons import adverse, attributions
from credit_client.scoring.reference import open_reference
from credit_client.shard import read_shard
from credit_common.release import open_release

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
SENTINEL = "zqxjkvbp"
NUMBER = 987654.25


def logged(caplog):
    """What the service has logged, without what the client of the test does."""
    own = [r for r in caplog.records if not r.name.startswith(("httpx", "httpcore"))]
    return "\n".join(record.getMessage() for record in own)


def file_scores(folder, records, as_row, tmp_path):
    """What the batch command says of the same records."""
    rows = [as_row(record, f"u{i:04}") for i, record in enumerate(records)]
    pd.DataFrame(rows).to_csv(tmp_path / "shard.csv", index=False)
    score_file(folder, tmp_path / "shard.csv", tmp_path / "out.csv", device="cpu")
    with (tmp_path / "out.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_single_and_batch_scores_are_those_of_the_batch_command(
    text_service, release, applicants, as_row, tmp_path
):
    records = applicants(12)
    records[3] |= {"note": "他总是按时还款 und zahlt pünktlich. Звонит 138 0013 8000"}
    records[4] |= {"age": 250, "tenure": -3, "home": "castle"}  # clipped, missing, other
    records[5] |= {"age": None, "tenure": None, "home": None, "job": None, "note": None}
    records[6] |= {"note": "late " * 3000}  # more than a text's characters are read of
    records[7] |= {"orders": [], "at": "2025-01-02T23:30:00+02:00"}
    told = file_scores(release, records, as_row, tmp_path)
    ones = [text_service.post(record) for record in records]
    assert [one.status_code for one in ones] == [200] * 12
    many = text_service.client.post("/v1/scores", json={"records": records}).json()
    assert many["rejects"] == []
    assert [row["index"] for row in many["scores"]] == list(range(12))
    for name, bound in (("logit", 1e-5), ("pd", 1e-5), ("points", 0.051)):
        expected = np.array([float(line[name]) for line in told])
        single = np.array([one.json()[name] for one in ones])
        batch = np.array([row[name] for row in many["scores"]])
        assert np.abs(single - expected).max() < bound
        assert np.abs(batch - expected).max() < bound
    assert expected.std() > 1
    digest = open_release(release).digest
    assert {one.json()["release"] for one in ones} == {digest} == {many["release"]}
    ids = {one.json()["request_id"] for one in ones}
    assert len(ids) == 12
    assert ones[0].headers["x-request-id"] == ones[0].json()["request_id"]


def test_band_and_decision_follow_the_contract(text_service, applicants):
    told = text_service.client.post("/v1/scores", json={"records": applicants(60)}).json()
    seen = set()
    for row in told["scores"]:
        pd = row["pd"]
        band = "A" if pd < 0.16 else "B" if pd < 0.19 else "C"
        decision = "approve" if pd < 0.15 else "refer" if pd < 0.2 else "decline"
        assert (row["band"], row["decision"]) == (band, decision)
        seen |= {band, decision}
    assert len(seen) >= 4


REASONS = {
    "age": {"en": "Your age", "zh": "您的年龄"},
    "orders": {"en": "Recent orders", "zh": "近期订单"},
}


def test_reasons_are_those_of_the_engine_in_the_words_of_the_contract(
    serve_here, write_of, applicants, as_row, tmp_path
):
    folder = write_of(tmp_path / "release", 7, model={"train": ["wide"]}, reasons=REASONS)
    here = serve_here(folder)
    records = applicants(6)
    rows = [as_row(record, f"u{i}") for i, record in enumerate(records)]
    pd.DataFrame(rows).to_csv(tmp_path / "shard.csv", index=False)
    contract = open_release(folder).contract
    read = read_shard(tmp_path / "shard.csv", contract, require_label=False)
    users = sorted((*read.train, *read.holdout), key=lambda user: user.row)
    every = attributions(open_reference(open_release(folder)), [user.record for user in users])
    many = here.client.post(
        "/v1/scores", json={"records": records}, params={"reasons": 8, "language": "zh"}
    ).json()["scores"]
    for record, own, row in zip(records, every, many, strict=True):
        expected = adverse(own, 8)
        told = here.post(record, reasons=2).json()["reasons"]
        assert [one["field"] for one in told] == [one.field for one in expected[:2]]
        assert [one["field"] for one in row["reasons"]] == [one.field for one in expected]
        shares = [one["share"] for one in row["reasons"]]
        assert np.abs(np.array(shares) - [one.share for one in expected]).max() < 1e-5
        for one in told:
            known = {"age": "Your age", "orders": "Recent orders"}
            assert one["text"] == known.get(one["field"], f"Information on: {one['field']}")
        chinese = {one["field"]: one["text"] for one in row["reasons"]}
        assert chinese.get("age", "您的年龄") == "您的年龄"
    assert {one["field"] for row in many for one in row["reasons"]} >= {"age", "orders"}
    assert here.post(records[0]).json()["reasons"] == []
    assert here.post(records[0], reasons=9).status_code == 422


@pytest.mark.slow
def test_an_export_serves_as_the_reference_does(
    serve_here, text_service, release, applicants, tmp_path
):
    export(open_release(release), tmp_path / "exports" / "release", "float32", [])
    here = serve_here(release, export=tmp_path / "exports" / "{}")
    assert here.client.get("/v1/model").json()["engine"] == "onnx"
    records = {"records": applicants(20)}
    own = here.client.post("/v1/scores", json=records).json()["scores"]
    reference = text_service.client.post("/v1/scores", json=records).json()["scores"]
    for one, other in zip(own, reference, strict=True):
        assert abs(one["pd"] - other["pd"]) < 1e-5


BAD = {
    "missing": ({"income": ...}, "income", "missing"),
    "null": ({"income": None}, "income", "not a number"),
    "text for a number": ({"age": SENTINEL}, "age", "not a number"),
    "digits for a number": ({"age": "34"}, "age", "not a number"),
    "boolean": ({"age": True}, "age", "not a number"),
    "out of range": ({"income": NUMBER}, "income", "outside its range"),
    "unknown code": ({"job": SENTINEL}, "job", "category outside the contract's values"),
    "number for a code": ({"job": NUMBER}, "job", "not a text"),
    "no time": ({"at": SENTINEL}, "at", "not a time"),
    "events as text": ({"orders": SENTINEL}, "orders", "not a list"),
    "event's time": ({"orders": [{"time": SENTINEL, "value": 1}]}, "orders", "not a time"),
    "event's value": (
        {"orders": [{"time": "2025-01-01", "value": SENTINEL}]},
        "orders",
        "not a number",
    ),
    "no event": ({"orders": [SENTINEL]}, "orders", "not an object"),
    "huge text": ({"note": SENTINEL * 5000}, "note", "a text that is too long"),
    "unknown field": ({"colour": SENTINEL}, "colour", "not a field that is scored"),
    "identifier": ({"phone": SENTINEL}, "phone", "not a field that is scored"),
    "user": ({"user": SENTINEL}, "user", "not a field that is scored"),
    "protected": ({"sex": "f", "note": SENTINEL}, "sex", "not a field that is scored"),
    "label": ({"defaulted": "1", "note": SENTINEL}, "defaulted", "not a field that is scored"),
    "dropped": ({"secret": SENTINEL}, "secret", "not a field that is scored"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_field_and_reason_and_its_value_told_nowhere(
    text_service, applicants, caplog, case
):
    caplog.set_level(logging.DEBUG)
    changes, field, reason = BAD[case]
    record = {**applicants(1)[0], **changes}
    record = {name: value for name, value in record.items() if value is not ...}
    answer = text_service.post(record)
    assert answer.status_code == 422
    (problem,) = answer.json()["detail"]
    assert (problem["field"], problem["reason"]) == (field, reason)
    good = applicants(2)
    many = text_service.client.post("/v1/scores", json={"records": [good[0], record, good[1]]})
    assert many.status_code == 200
    assert [row["index"] for row in many.json()["scores"]] == [0, 2]
    (reject,) = many.json()["rejects"]
    assert (reject["index"], reject["field"], reject["reason"]) == (1, field, reason)
    for text in (answer.text, many.text, logged(caplog), str(answer.headers)):
        assert SENTINEL not in text
        assert str(NUMBER) not in text


def test_every_bad_field_is_named(text_service, applicants):
    record = applicants(1)[0] | {"income": 1e9, "job": "x", "at": "y"}
    named = [problem["field"] for problem in text_service.post(record).json()["detail"]]
    assert named == ["income", "job", "at"]


def test_an_answer_does_not_grow_with_what_is_wrong(text_service, applicants):
    record = applicants(1)[0]
    many = {**record, **{f"x{i}": 1 for i in range(20_000)}}
    answer = text_service.post(many)
    assert answer.status_code == 422
    assert len(answer.json()["detail"]) == 50
    answer = text_service.post({**record, "orders": [1] * 200_000})
    assert [problem["loc"] for problem in answer.json()["detail"]] == [["orders", 0]]


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 422),
        (b"", "application/json", 422),
        (SENTINEL.encode(), "application/json", 422),
        (b'{"income": NaN}', "application/json", 422),
        (b'{"income": 1e999}', "application/json", 422),
        (b'{"income": ' + b"9" * 5000 + b"}", "application/json", 400),
        (b'{"note": "\\ud800", "income": 1}', "application/json", 422),
        (b'{"\\ud800": 1, "income": 1}', "application/json", 422),
        (b'"' + SENTINEL.encode() + b'"', "application/json", 422),
        (b"[" * 100_000, "application/json", 400),
        (b'"\xff' + SENTINEL.encode() + b'"', "application/json", 400),
        (b'{"income": 1}', "text/plain", 415),
        (b"income=" + SENTINEL.encode(), "application/x-www-form-urlencoded", 415),
    ],
)
def test_a_body_that_is_no_record_is_refused(text_service, caplog, body, kind, status):
    caplog.set_level(logging.DEBUG)
    for path in ("/v1/score", "/v1/scores"):
        answer = text_service.client.post(path, content=body, headers={"content-type": kind})
        assert answer.status_code == status
        assert set(answer.json()) == {"detail", "request_id"}
        assert SENTINEL not in answer.text + logged(caplog)


def test_parameters_and_paths_are_checked_too(text_service, applicants, caplog):
    caplog.set_level(logging.DEBUG)
    record = applicants(1)[0]
    answer = text_service.post(record, language=SENTINEL, reasons=SENTINEL, x=SENTINEL)
    assert answer.status_code == 422
    assert {p["field"] for p in answer.json()["detail"]} == {"language", "reasons", "x"}
    assert text_service.client.get(f"/v1/{SENTINEL}").status_code == 404
    gone = text_service.client.get("/v1/score")
    assert gone.status_code == 405
    assert gone.headers["allow"] == "POST"
    assert SENTINEL not in answer.text + logged(caplog)


def test_a_batch_has_a_limit(serve_here, wide_release, applicants):
    here = serve_here(wide_release, max_batch=3)
    for n, status in ((3, 200), (4, 422), (0, 422)):
        answer = here.client.post("/v1/scores", json={"records": applicants(n)})
        assert answer.status_code == status
    all_bad = here.client.post("/v1/scores", json={"records": [1, {}]}).json()
    assert all_bad["scores"] == []
    assert [reject["index"] for reject in all_bad["rejects"]] == [0, 1]


def test_it_says_what_scores_and_that_it_is_up(text_service, release):
    opened = open_release(release)
    told = text_service.client.get("/v1/model").json()
    assert told["release"] == opened.digest
    assert told["contract"] == opened.contract.digest
    assert told["federation"] == "shop-credit"
    assert told["epsilon"] == opened.facts.epsilon
    assert told["created"] == "2025-01-02T03:04:00Z"
    assert told["fields"] == ["age", "income", "tenure", "home", "job", "note", "at", "orders"]
    for path in ("/healthz", "/readyz"):
        assert text_service.client.get(path).json() == {"status": "ok"}


def test_the_docs_page_is_served_only_where_asked_for(serve_here, wide_release, text_service):
    for path in ("/docs", "/redoc", "/docs/oauth2-redirect"):
        assert text_service.client.get(path).status_code == 404
    assert serve_here(wide_release, docs=True).client.get("/docs").status_code == 200


def test_openapi_has_the_contracts_fields_and_no_other(text_service):
    told = text_service.client.get("/openapi.json").json()
    record = told["components"]["schemas"]["Record"]
    assert record["required"] == ["income"]
    assert record["additionalProperties"] is False
    assert set(record["properties"]) == {
        "age", "income", "tenure", "home", "job", "note", "at", "orders",
    }  # fmt: skip
    assert (
        record["properties"]["income"]["minimum"],
        record["properties"]["income"]["maximum"],
    ) == (0, 500)
    assert "thousand" in record["properties"]["income"]["description"]
    assert "moved to its nearer end" in record["properties"]["age"]["description"]
    assert {"type": "null"} in record["properties"]["age"]["anyOf"]
    assert "HTTPValidationError" not in json.dumps(told)


def test_metrics_count_and_hold_no_value(serve_here, wide_release, applicants):
    here = serve_here(wide_release)
    record = applicants(1)[0] | {"note": SENTINEL}
    here.post(record)
    here.post({**record, "age": SENTINEL})
    here.client.post("/v1/scores", json={"records": [record, record, {}]})
    here.client.get(f"/{SENTINEL}")
    text = here.client.get("/metrics").text
    assert SENTINEL not in text
    assert 'credit_requests_total{client="-",route="/v1/score",status="200"} 1.0' in text
    assert 'credit_requests_total{client="-",route="/v1/score",status="422"} 1.0' in text
    assert 'credit_requests_total{client="-",route="other",status="404"} 1.0' in text
    assert 'credit_rows_total{outcome="scored"} 3.0' in text
    assert 'credit_rows_total{outcome="refused"} 1.0' in text
    assert "credit_forward_passes_total 2.0" in text
    digest = open_release(wide_release).digest
    assert f'credit_release{{digest="{digest}",folder="release"}} 1.0' in text


CLASSES = {"kind": "multiclass", "positive": None, "negative": None, "classes": ["a", "b", "c"]}
VALUE = {"kind": "regression", "positive": None, "negative": None, "range": [-50.0, 150.0]}


@pytest.mark.parametrize("task", [CLASSES, VALUE], ids=["classes", "value"])
def test_other_tasks_are_told_as_the_batch_command_tells_them(
    write_of, serve_here, applicants, as_row, tmp_path, task
):
    changes = {"task": task, "decision": dict.fromkeys(("approve_below", "decline_from", "bands"))}
    folder = write_of(tmp_path / "release", model={"train": ["wide"]}, **changes)
    here = serve_here(folder)
    records = applicants(3)
    told = file_scores(folder, records, as_row, tmp_path)
    for record, line in zip(records, told, strict=True):
        own = here.post(record).json()
        if task is CLASSES:
            for name, share in own["probabilities"].items():
                assert abs(share - float(line[f"p_{name}"])) < 1e-5
        else:
            assert abs(own["value"] - float(line["value"])) < 1e-3
