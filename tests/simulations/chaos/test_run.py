"""Who is started again after a death: whoever had more to do."""

import pytest

from credit_simulations.chaos.ground import Ground, Terms, lay_ground
from credit_simulations.chaos.run import SERVER, Run
from credit_simulations.processes import Event


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    terms = Terms(private=False, reads_text=False)
    return lay_ground(tmp_path_factory.mktemp("chaos") / "home", terms, 2, 100)


@pytest.mark.parametrize("who", [SERVER, "a holder"])
@pytest.mark.parametrize("last", ["done", "connected"])
def test_who_was_killed_after_its_last_word_is_not_started_again(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, who: str, last: str
) -> None:
    """A holder that was would wait for a coordinator that has gone, until the time is up."""
    name = SERVER if who == SERVER else min(ground.shards)
    run, started = Run(ground), []
    monkeypatch.setattr(run, "_start", lambda name, *more: started.append(name))
    monkeypatch.setattr(run, "later", lambda seconds, what: None)
    for what in (last, "killed"):
        run._hear(Event(who=name, what=what, line={"release": "releases/001"}))
    assert started == ([] if last == "done" else [name])
