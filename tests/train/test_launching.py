"""How the processes of a point find each other: from our runner, from torchrun, from srun's variables."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from conf.points import expand
from data.prepare import prepare
from train.__main__ import slurm_environment

pytestmark = pytest.mark.usefixtures("hydra_conf")

SRUN = {  # of the third process of 2 + 2 + 1 on three nodes
    "SLURM_JOB_ID": "1234567",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7",
}


def test_sruns_variables_say_who_a_process_is():
    assert slurm_environment(SRUN) == {
        "RANK": "2",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "5",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "10.0.0.7",
        "MASTER_PORT": "24567",
    }
    assert slurm_environment(SRUN | {"SLURM_NODEID": "2"})["LOCAL_WORLD_SIZE"] == "1"
    assert slurm_environment(SRUN | {"MASTER_PORT": "5", "MASTER_ADDR": "a"})["MASTER_PORT"] == "5"


def test_what_is_known_already_is_left_alone():
    assert slurm_environment(SRUN | {"RANK": "0"}) == {}
    assert slurm_environment({"PATH": "/bin"}) == {}


def test_torchrun_and_srun_start_the_run_that_the_runner_starts(tiny, cache, tmp_path, logged):
    points = {}
    for name in ("torchrun", "srun"):
        (points[name],) = expand([[*tiny, "strategy=ddp", "launch.devices=2", f"launch.runs={tmp_path}/{name}"]])
        points[name].folder.mkdir(parents=True)
        (points[name].folder / "config.yaml").write_text(yaml.safe_dump(points[name].config))
    config = points["srun"].config
    prepare(config["data"], config["tokenizer"], cache, processes=1)
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    clean |= {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "train"]
    ended = subprocess.run([*torchrun, str(points["torchrun"].folder)], env=clean, text=True, capture_output=True)
    assert ended.returncode == 0, ended.stderr
    step = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}
    step |= {"SLURM_NODEID": "0", "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1"}
    tasks = [
        subprocess.Popen(
            [sys.executable, "-m", "train", str(points["srun"].folder)],
            env=clean | step | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in range(2)
    ]
    assert [task.wait(timeout=120) for task in tasks] == [0, 0]
    assert logged(points["srun"].folder) == logged(points["torchrun"].folder) != []
    (life,) = [json.loads(line) for line in (points["srun"].folder / "lives.jsonl").read_text().splitlines()]
    assert (life["world_size"], life["strategy"], life["job_id"]) == (2, "ddp", str(os.getpid()))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["launch.devices=2"], "strategy=single takes 1 device, there are 2: use launch.devices=1, or strategy=ddp"),
        (["strategy=fsdp", "launch.devices=3", "launch.strategy.replicas=2"], "replicas=2 does not divide 3 devices"),
        (["strategy=fsdp", "launch.strategy.replicas=0"], "replicas=0 must be at least 1"),
        (["strategy=zero1", "launch.strategy.stage=4"], "stage=4 is unknown: use 1, 2 or 3"),
        (["strategy=zero3_offload_cpu", "launch.strategy.offload=tape"], "offload=tape is unknown: use cpu, nvme"),
        (["strategy=zero1", "+launch.strategy.offload=cpu"], "offload=cpu needs stage 3, it is 1"),
        (["strategy=zero3_offload_nvme"], "nvme_path"),
        (["strategy=zero3_offload_cpu", "+launch.strategy.nvme_path=/tmp"], "nvme_path is the folder of offload=nvme"),
        (["launch.activation_checkpointing=some"], "activation_checkpointing=some: use none, full, selective"),
        (["launch.collective_timeout=0"], "launch.collective_timeout=0.0: use a positive number"),
        (["launch.checkpoint.every_minutes=-1"], "launch.checkpoint.every_minutes=-1.0: use a positive number"),
        (["launch.checkpoint.keep_every_tokens=0"], "launch.checkpoint.keep_every_tokens=0.0: use a positive number"),
        (["spike_guard=standard", "spike_guard.sigmas=0"], "spike_guard.sigmas=0 must be positive"),
    ],
)
def test_bad_settings_are_refused_by_name_before_anything_starts(tiny, overrides, message):
    with pytest.raises(ValueError) as error:
        expand([[*tiny, *overrides]])
    assert message in str(error.value)


def test_how_a_run_is_run_is_no_part_of_what_it_is(tiny):
    plain, other = expand([[*tiny]]) + expand(
        [[*tiny, "strategy=zero3", "launch.devices=4", "launch.compile=true", "launch.activation_checkpointing=full"]]
    )
    assert plain.run_id == other.run_id
    (guarded,) = expand([[*tiny, "spike_guard=standard"]])
    assert guarded.run_id != plain.run_id
