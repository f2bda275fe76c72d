"""The same trials on a Ray cluster of two machines, each of one core, on this one."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("ray", reason="the extra ray is not installed")

CLUSTER = """
import sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""
SWEEP = """
name = "small"
epsilons = [8]
seeds = 1
arms = ["logistic", "gbm", "wide_only"]
[[data]]
name = "german"
min_rows = 50
"""

pytestmark = [pytest.mark.slow, pytest.mark.long(120)]


@pytest.fixture(scope="module")
def address():
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as cluster:
        found = cluster.stdout.readline().strip()
        assert found, cluster.stderr.read()[-2000:]
        yield found
        cluster.communicate(timeout=60)


def swept(tmp_path, *options):
    file = tmp_path / "sweep.toml"
    file.write_text(SWEEP)
    command = [
        sys.executable,
        "-m",
        "credit_simulations.cli",
        "sweep",
        str(file),
        "--format",
        "json",
    ]
    return subprocess.run(
        [*command, "--out", str(tmp_path), *options],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_cluster_gives_what_processes_give(address, tmp_path):
    folders = [tmp_path / "ray", tmp_path / "processes"]
    for folder in folders:
        folder.mkdir()
    done = swept(folders[0], "--ray", address), swept(folders[1], "--processes", "2")
    assert [d.returncode for d in done] == [0, 0], done[0].stderr + done[1].stderr
    ray, processes = (
        {
            (line["arm"], line["epsilon"], line["seed"]): line
            for line in map(json.loads, (folder / "results.jsonl").read_text().splitlines())
        }
        for folder in folders
    )
    assert set(ray) == set(processes)
    assert len(ray) == 4
    for key, line in ray.items():
        assert line["digest"] == processes[key]["digest"]
        if line["epsilon"] is None:  # with DP the noise is fresh each time
            assert (line["auc"], line["ks"]) == (processes[key]["auc"], processes[key]["ks"])


def test_a_cluster_that_is_not_there_is_named(tmp_path):
    done = swept(tmp_path, "--ray", "127.0.0.1:9")
    assert done.returncode == 1
    assert "no Ray cluster at 127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr
