import pytest

from credit_client.cli import _tell_text


@pytest.mark.parametrize(
    ("event", "facts"),
    [
        ("answered", {"round": 3, "kind": "train", "refused": False}),
        ("done", {"release": "releases/001"}),
    ],
)
def test_what_a_running_client_tells_is_not_less_than_it_spent(capsys, event, facts):
    _tell_text(event, epsilon=4.9811, **facts)
    assert "ε 4.99 spent" in capsys.readouterr().err
    _tell_text(event, epsilon=None, **facts)
    assert "ε" not in capsys.readouterr().err
