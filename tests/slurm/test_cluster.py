"""The cluster does what the other tests with Slurm rely on."""

import os
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from .cluster import CGROUPS, Cluster, descendants, missing

pytestmark = pytest.mark.slurm

# ends up below init, were it not for the cluster
LEAVES_AN_ORPHAN = "(setsid sleep 300 &); touch started; sleep 300"


@pytest.fixture
def submit(tmp_path: Path) -> Callable[..., str]:
    """A cluster, a script and options of sbatch -> the id of the job, which runs in tmp_path and prints to `out`."""

    def submit(cluster: Cluster, script: str, *options: str) -> str:
        where = [f"--chdir={tmp_path}", f"--output={tmp_path}/out", "--open-mode=append"]
        return cluster.call("sbatch", "--parsable", *where, *options, "--wrap", script).strip()

    return submit


def until(done: Callable[[], object], seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "this never came true"
        time.sleep(0.05)


def states(cluster: Cluster, *jobs: str) -> list[str]:
    """Of jobs, and of each task of an array."""
    ids = f"--jobs={','.join(jobs)}"
    lines = cluster.call("squeue", "--noheader", "--array", "--states=all", "--sort=i", ids, "--format=%i %T")
    return [line.split()[1] for line in lines.splitlines()]


def alive(pids: Iterable[int]) -> list[str]:
    """What ps says of those processes that have not ended."""
    listed = ["ps", "-o", "state=,args=", "-p", ",".join(map(str, pids))]
    lines = subprocess.run(listed, text=True, capture_output=True).stdout.splitlines()
    return [line for line in lines if not line.startswith("Z")]


def test_a_job_runs_and_its_end_is_remembered(cluster, submit, tmp_path):
    good, bad = submit(cluster, "echo $SLURM_CPUS_ON_NODE", "--cpus-per-task=3"), submit(cluster, "exit 3")
    until(lambda: states(cluster, good, bad) == ["COMPLETED", "FAILED"])
    assert (tmp_path / "out").read_text() == "3\n"
    assert "ExitCode=3:0" in cluster.call("scontrol", "show", "job", bad)


def test_an_array_has_a_state_for_every_task(cluster, submit, tmp_path):
    job = submit(cluster, "echo $SLURM_ARRAY_TASK_ID; exit $((SLURM_ARRAY_TASK_ID == 1))", "--array=0-2")
    until(lambda: states(cluster, job) == ["COMPLETED", "FAILED", "COMPLETED"])
    assert sorted((tmp_path / "out").read_text().split()) == ["0", "1", "2"]


def test_accounting_is_there_only_when_asked_for(cluster, accounted, submit):
    job = submit(accounted, "exit 3")
    fields = ["sacct", "-X", "--noheader", "--parsable2", f"--jobs={job}", "--format=state,exitcode"]
    until(lambda: accounted.call(*fields) == "FAILED|3:0\n")
    with pytest.raises(RuntimeError, match="Slurm accounting storage is disabled"):
        cluster.call("sacct")


def test_a_job_above_its_memory_is_ended_by_the_kernel(cluster, submit, tmp_path):
    if not cluster.limits_memory:
        pytest.skip("Slurm limits memory here only with the first version of cgroups")
    eat = """python3 -c 'b"x" * (200 << 20)'"""
    job, step = submit(cluster, eat, "--mem=50"), submit(cluster, f"srun {eat}", "--mem=50")
    until(lambda: states(cluster, job, step) == ["OUT_OF_MEMORY", "FAILED"])
    assert "task 0: Out Of Memory" in (tmp_path / "out").read_text()


def test_a_preempted_job_gets_its_signal_and_is_requeued(cluster, submit, tmp_path):
    whole = ["-N2", "--exclusive"]
    program = "trap 'echo signalled' USR1; echo started; while true; do sleep 0.1; done"
    low = submit(cluster, f'srun -N1 -n1 bash -c "{program}"', "--partition=low", "--signal=USR1@60", *whole)
    until(lambda: (tmp_path / "out").exists() and "started" in (tmp_path / "out").read_text())
    high = submit(cluster, "true", "--partition=high", *whole)
    until(lambda: states(cluster, low, high) == ["PENDING", "COMPLETED"])
    assert "signalled" in (tmp_path / "out").read_text()
    assert "Restarts=1" in cluster.call("scontrol", "show", "job", low)


def test_a_failed_node_loses_its_job_to_another_and_can_come_back(cluster, submit, tmp_path):
    first, second = cluster.nodes
    job = submit(cluster, f"echo $SLURMD_NODENAME $SLURM_RESTART_COUNT; {LEAVES_AN_ORPHAN}")
    until((tmp_path / "started").exists)
    died = descendants(cluster.servers[first].pid)
    cluster.fail_node(first)
    assert not alive(died)
    until(lambda: (tmp_path / "out").read_text() == f"{first}\n{second} 1\n")
    assert states(cluster, job) == ["RUNNING"]
    cluster.heal_node(first)
    assert set(cluster.call("srun", "--nodes=2", "bash", "-c", "echo $SLURMD_NODENAME").split()) == {first, second}


def test_a_stopped_cluster_leaves_nothing_behind(new_cluster, submit):
    before = set(descendants(os.getpid()))
    cluster = new_cluster()

    def started() -> set[int]:
        return set(descendants(os.getpid())) - before

    submit(cluster, LEAVES_AN_ORPHAN)
    submit(cluster, f"srun bash -c '{LEAVES_AN_ORPHAN}'")
    until(lambda: [line.split()[1] for line in alive(started())].count("sleep") == 4)
    all_of_it = started()
    cluster.stop()
    assert not alive(all_of_it) and not cluster.folder.exists()
    assert not [path for hierarchy in CGROUPS for node in cluster.nodes for path in hierarchy.glob(f"*{node}")]


def test_a_cluster_that_cannot_start_says_why_and_leaves_nothing_behind():
    before = set(descendants(os.getpid()))
    cluster = Cluster(nodes=1, prefix=f"t{os.getpid()}-0-", max_array_size=-1)
    with pytest.raises(RuntimeError, match=r"(?s)nodes are not idle: slurmctld .*ended.*error: MaxArraySize"):
        cluster.start()
    assert set(descendants(os.getpid())) <= before and not cluster.folder.exists()


def test_two_clusters_with_gpus_are_up_at_once(new_cluster):
    clusters = [new_cluster(nodes=1, gpus=gpus) for gpus in (1, 2)]
    show = ["bash", "-c", "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES"]
    seen = [cluster.call("srun", f"--gres=gpu:{gpus}", *show) for gpus, cluster in enumerate(clusters, 1)]
    assert seen == [f"{clusters[0].nodes[0]} 0\n", f"{clusters[1].nodes[0]} 0,1\n"]


def test_what_is_missing_is_named(monkeypatch):
    assert missing(accounting=True) == []
    monkeypatch.setenv("PATH", "")
    assert "slurmctld" in missing() and "slurmdbd" not in missing() and "slurmdbd" in missing(accounting=True)
