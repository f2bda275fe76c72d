import asyncio
import concurrent.futures
import logging
import shutil
import threading
import time

import httpx
import numpy as np
import pytest

from credit_client.scoring.calibration import Calibration, write_calibration
from credit_client.scoring.engine import Engine
from credit_client.service import watch
from credit_client.service.places import complete, open_newest, places
from credit_client.service.settings import Settings
from credit_client.service.worker import assemble
from credit_common.errors import CreditError, WireError
from credit_common.release import open_release

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
WIDE = {"model": {"train": ["wide"]}}


@pytest.fixture(autouse=True)
def looks_often(monkeypatch):
    monkeypatch.setattr(watch, "EVERY_SECONDS", 0.05)


@pytest.fixture(scope="session")
def made(write_of, tmp_path_factory):
    """Releases of one contract, and one of another."""
    folder = tmp_path_factory.mktemp("made")
    for seed in (1, 2, 3):
        write_of(folder / f"{seed:03}", seed, **WIDE)
    write_of(folder / "other", 4, **WIDE, task={"base_rate": 0.3})
    write_of(folder / "stranger", 5, **WIDE, federation={"name": "somebody-else"})
    return folder


@pytest.fixture
def releases(made, tmp_path):
    """A folder of releases with the first one."""
    folder = tmp_path / "releases"
    shutil.copytree(made / "001", folder / "001")
    return folder


def digest(folder):
    return open_release(folder).digest


def until(true, seconds=20.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


class Load:
    """Clients that ask all the time, each on a connection that it keeps."""

    def __init__(self, url, records, clients=4):
        self.stop = threading.Event()
        self.answers = []
        self._pool = concurrent.futures.ThreadPoolExecutor(clients)
        self._running = [
            self._pool.submit(self._ask, url, records[i::clients]) for i in range(clients)
        ]

    def _ask(self, url, records):
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
            while not self.stop.is_set():
                for record in records:
                    answer = client.post("/v1/score", json=record)
                    told = answer.json()
                    scored = (told.get("release"), record["age"], told.get("logit"))
                    self.answers.append((answer.status_code, *scored))

    def end(self):
        self.stop.set()
        for own in self._running:
            own.result(30)  # an error of a connection is one of the test
        self._pool.shutdown()


def test_a_newer_release_is_taken_up_under_load_without_a_failed_request(
    serve_here, releases, made, applicants, caplog
):
    caplog.set_level(logging.INFO)
    records = applicants(8)
    here = serve_here(releases)
    load = Load(here.url, records)
    until(lambda: len(load.answers) > 20)
    for number in ("002", "003"):
        shutil.copytree(made / number, releases / f".{number}").rename(releases / number)
        awaited = digest(made / number)
        until(lambda awaited=awaited: here.post(records[0]).json()["release"] == awaited)
    so_far = len(load.answers)
    until(lambda: len(load.answers) > so_far + 20)
    load.end()
    assert {status for status, *_ in load.answers} == {200}
    seen = {}
    for _, release, age, logit in load.answers:
        seen.setdefault((release, age), set()).add(logit)
    assert {release for release, _ in seen} == {digest(made / f"00{i}") for i in (1, 2, 3)}
    # Each release gives each record one score, another than the others give it.
    assert all(np.ptp(list(logits)) < 1e-6 for logits in seen.values())
    assert len({round(min(logits), 4) for logits in seen.values()}) == len(seen)
    assert here.figure("credit_swaps_total", outcome="swapped") == 2
    assert here.figure("credit_release", digest=digest(made / "003")) == 1
    assert here.figure("credit_release", digest=digest(made / "001")) == 0


def test_a_broken_release_is_told_once_and_the_old_one_stays(
    serve_here, releases, made, applicants, caplog
):
    here = serve_here(releases)
    shutil.copytree(made / "003", releases / "003")
    head = releases / "003" / "head.safetensors"
    whole = head.read_bytes()
    head.write_bytes(whole[:-1] + b"x")
    until(lambda: here.figure("credit_swaps_total", outcome="broken") >= 1)
    time.sleep(0.3)
    told = [r.getMessage() for r in caplog.records if "NOT swapped" in r.getMessage()]
    assert len(told) == 1
    assert "head.safetensors" in told[0]
    assert here.figure("credit_swaps_total", outcome="broken") == 1
    record = applicants(1)[0]
    assert here.post(record).json()["release"] == digest(made / "001")
    # An older one that is whole is better than none, and a mended one is taken up.
    shutil.copytree(made / "002", releases / "002")
    until(lambda: here.post(record).json()["release"] == digest(made / "002"))
    head.write_bytes(whole)
    until(lambda: here.post(record).json()["release"] == digest(made / "003"))


@pytest.mark.parametrize(
    ("name", "why"), [("other", "its contract is"), ("stranger", "another federation")]
)
def test_another_contract_is_refused_loudly(
    serve_here, releases, made, applicants, caplog, name, why
):
    here = serve_here(releases)
    shutil.copytree(made / name, releases / "002")
    until(lambda: here.figure("credit_swaps_total", outcome="refused") == 1)
    (told,) = [r for r in caplog.records if "NOT swapped" in r.getMessage()]
    assert told.levelno == logging.ERROR
    assert why in told.getMessage()
    assert here.post(applicants(1)[0]).json()["release"] == digest(made / "001")


def test_a_link_that_is_set_anew_is_a_newer_release(serve_here, made, tmp_path, applicants):
    link = tmp_path / "current"
    link.symlink_to(made / "002")
    here = serve_here(link)
    record = applicants(1)[0]
    assert here.post(record).json()["release"] == digest(made / "002")
    (tmp_path / "next").symlink_to(made / "001")
    (tmp_path / "next").rename(link)
    until(lambda: here.post(record).json()["release"] == digest(made / "001"))


def test_a_newer_release_waits_for_its_calibration(
    serve_here, releases, made, applicants, tmp_path
):
    files = tmp_path / "calibrations"
    files.mkdir()

    def calibrate(number, slope):
        own = Calibration(
            method="platt", release=digest(made / number), users=900, slope=slope, intercept=0.4
        )
        write_calibration(files / f"{number}.json", own)

    calibrate("001", 1.5)
    rules = {"approve_below": 0.2, "decline_from": 0.5}
    here = serve_here(releases, calibration=files / "{}.json", **rules)
    record = applicants(1)[0]
    told = here.post(record).json()
    expected = 1 / (1 + np.exp(-(1.5 * told["logit"] + 0.4)))
    assert told["calibrated_pd"] == pytest.approx(expected)
    assert told["pd"] == pytest.approx(1 / (1 + np.exp(-told["logit"])))
    assert told["decision"] == ("approve" if expected < 0.2 else "refer")
    assert here.client.get("/v1/model").json()["calibrated"] is True

    shutil.copytree(made / "002", releases / ".2").rename(releases / "002")
    until(lambda: here.figure("credit_swaps_total", outcome="broken") == 1)
    assert here.post(record).json()["release"] == digest(made / "001")
    calibrate("002", 2.5)
    here.parts.watch.look_again()
    until(lambda: here.post(record).json()["release"] == digest(made / "002"))
    told = here.post(record).json()
    assert told["calibrated_pd"] == pytest.approx(1 / (1 + np.exp(-(2.5 * told["logit"] + 0.4))))


def test_places_are_complete_releases_the_newest_first(made, tmp_path):
    for name in ("002", "010", "0009"):
        shutil.copytree(made / "001", tmp_path / name)
    for name in (".011.ab", "draft", "12"):
        shutil.copytree(made / "001", tmp_path / name)
    (tmp_path / "020").mkdir()  # not there yet
    assert [place.number for place in places(tmp_path)] == [10, 9, 2]
    assert [place.folder for place in places(tmp_path / "002")] == [tmp_path / "002"]
    before = complete(tmp_path / "002")
    (tmp_path / "002" / "README.md").write_text("x")
    assert complete(tmp_path / "002") != before


def test_the_newest_that_is_whole_is_opened_first(made, tmp_path, caplog):
    for name in ("001", "002"):
        shutil.copytree(made / name, tmp_path / name)
    (tmp_path / "002" / "head.safetensors").write_bytes(b"x")
    place, opened = open_newest(tmp_path, lambda release: release)
    assert (place.number, opened.digest) == (1, digest(made / "001"))
    assert "002" in caplog.text
    (tmp_path / "001" / "release.json").write_text("{}")
    with pytest.raises(WireError):
        open_newest(tmp_path, lambda release: release)


def test_a_worker_that_comes_later_opens_none_of_another_contract(made, releases, caplog, tmp_path):
    shutil.copytree(made / "other", releases / "002")
    settings = Settings(release=releases)
    served = open_release(made / "001").contract.digest
    parts = assemble(settings, tmp_path, served)
    parts.door.close()
    assert parts.serving.opened.release.digest == digest(made / "001")
    assert "002: its contract is " in caplog.text
    shutil.rmtree(releases / "001")
    with pytest.raises(WireError, match=r"002: its contract is .*; start the service anew for it"):
        assemble(settings, tmp_path, served)


@pytest.mark.parametrize("name", ["nowhere", "empty", "file"])
def test_a_path_without_a_release_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(CreditError, match=f"--release .*{name}: is n"):
        complete(tmp_path / name)


class Held:
    """A service's model, which scores when it may."""

    def __init__(self, monkeypatch):
        self.inside, self.go = threading.Event(), threading.Event()
        true = Engine.score

        def score(engine, records, *arguments, **options):
            self.inside.set()
            assert self.go.wait(20)
            return true(engine, records, *arguments, **options)

        monkeypatch.setattr(Engine, "score", score)


def test_a_running_request_is_finished_and_new_ones_are_refused_at_the_end(
    serve_here, made, applicants, monkeypatch
):
    here = serve_here(made / "001")
    held = Held(monkeypatch)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(here.post, applicants(1)[0])
        assert held.inside.wait(20)
        here.parts.server.should_exit = True
        until(lambda: not _accepts(here.port))
        held.go.set()
        answer = running.result(20)
    assert answer.status_code == 200
    assert answer.json()["release"] == digest(made / "001")
    assert answer.headers["connection"] == "close"
    here.thread.join(20)
    assert not here.thread.is_alive()


def test_what_cannot_be_scored_in_time_is_told_to_come_again(
    serve_here, made, applicants, monkeypatch
):
    here = serve_here(made / "001", deadline=0.5, max_waiting=2, max_batch=2)
    held = Held(monkeypatch)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(here.post, applicants(1)[0])]
        assert held.inside.wait(20)
        jobs += [pool.submit(here.post, record) for record in applicants(3)]
        answers = [job.result(20) for job in jobs]
    assert {answer.status_code for answer in answers} == {503}
    assert {answer.headers["retry-after"] for answer in answers} == {"1"}
    reasons = [answer.json()["detail"][0]["reason"] for answer in answers]
    assert sorted(reasons) == ["the deadline has passed"] * 3 + ["too many requests are waiting"]
    held.go.set()
    until(lambda: here.post(applicants(1)[0]).status_code == 200)


def _accepts(port):
    try:
        httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=1, trust_env=False)
    except httpx.TransportError:
        return False
    return True


def test_requests_that_come_together_share_passes_and_keep_their_scores(text_service, applicants):
    records = applicants(24, seed=3)
    alone = [text_service.post(record).json()["logit"] for record in records]

    async def together():
        limits = httpx.Limits(max_connections=24)
        async with httpx.AsyncClient(
            base_url=text_service.url, timeout=60, limits=limits, trust_env=False
        ) as client:
            return await asyncio.gather(*(client.post("/v1/score", json=r) for r in records))

    before = text_service.figure("credit_forward_passes_total")
    answers = asyncio.run(together())
    passes = text_service.figure("credit_forward_passes_total") - before
    assert [answer.status_code for answer in answers] == [200] * 24
    logits = [answer.json()["logit"] for answer in answers]
    assert np.abs(np.array(logits) - alone).max() < 1e-5
    assert np.std(alone) > 0.01
    assert passes <= 16
