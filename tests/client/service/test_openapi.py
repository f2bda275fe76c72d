import subprocess
import sys

import pytest

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
EXAMPLES, TOKEN = 15, "a-token-of-the-probe"


@pytest.mark.slow
def test_schemathesis_finds_no_failure(serve_here, write_of, tmp_path):
    """Requests that the document allows and that it forbids, over HTTP, under every check."""
    tokens = tmp_path / "tokens"
    tokens.write_text(f"probe {TOKEN}\n")
    tokens.chmod(0o600)
    release = write_of(tmp_path / "release", model={"train": ["wide"]})
    here = serve_here(release, token_file=tokens)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{here.url}/openapi.json"),
            *("--checks=all", "--mode=all", f"--max-examples={EXAMPLES}", "--seed=1"),
            *("-H", f"Authorization: Bearer {TOKEN}"),
            *("--phases=examples,coverage,fuzzing", "--no-color", "--workers=1"),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert here.figure("credit_requests_total", route="/v1/score", status="200") > 10
    assert here.figure("credit_requests_total", route="/v1/scores", status="200") > 10
    assert here.figure("credit_requests_total", route="/v1/score", status="422") > 10
    assert here.figure("credit_requests_total", status="401") > 0
    assert here.figure("credit_requests_total", status="500") == 0
