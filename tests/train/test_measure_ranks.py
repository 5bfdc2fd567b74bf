"""What two ranks measure together: this file is also the program that they run."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

RANKS, SLEEP = 2, 1.0  # seconds: more than a busy machine takes from one of two
ROWS = [[3, 1, 2], [2, 3, 0]]  # rows of each micro-batch of each rank; 0: a masked one


@pytest.fixture(scope="module")
def measured(tmp_path_factory, run_ranks):
    """What each rank wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    errors = run_ranks(__file__, folder, RANKS)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)], errors


def test_hooks_see_a_ranks_own_gradient_under_ddp(measured):
    (first, second), _ = measured
    assert first["ddp"]["sums"] == second["ddp"]["sums"]
    sum_small, m = first["ddp"]["sums"]
    assert m == sum(n > 0 for rows in ROWS for n in rows)
    assert sum_small == pytest.approx(first["one process"], rel=1e-5)


def test_fsdp_gives_no_noise_scale_and_says_so(measured):
    ranks, errors = measured
    assert [rank["fsdp"]["sums"] for rank in ranks] == [[0, 0]] * RANKS
    assert errors[0].count("no noise_scale: under FSDP") == 1 and "noise_scale" not in errors[1]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_rank_that_sleeps_has_the_larger_own_time_and_the_other_one_waits(measured, strategy):
    (first, second), errors = measured
    waits, sleeps = first[strategy], second[strategy]
    assert sleeps["own"] > waits["own"] + SLEEP / 2
    assert waits["communication"] > SLEEP / 2
    assert sleeps["lagging"] == waits["lagging"] == [1]
    for times in (waits, sleeps):
        assert 0 < times["communication"] < times["seconds"]
    assert "profiler" not in errors[0]  # torch's own lines about it


def program(folder: Path) -> None:
    import torch
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    from train.measure import lagging, profiled_step
    from train.model import Transformer, initialize
    from train.noise_scale import NoiseScale
    from train.shape import Shape

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    shape = Shape(d_model=16, n_layers=2, n_heads=2, d_ff=24, vocab_size=40)
    tokens = torch.randint(0, 40, (sum(map(sum, ROWS)), 9), generator=torch.Generator().manual_seed(1))
    parts = [list(part.split(rows)) for part, rows in zip(tokens.split(list(map(sum, ROWS))), ROWS, strict=True)]
    valid = 8 * len(tokens)

    def build() -> Transformer:
        model = Transformer(shape, 40)
        initialize(model, 0)
        return model

    def loss_sum(model, rows: torch.Tensor) -> torch.Tensor:
        if not len(rows):
            return 0.0 * model(tokens[:1, :-1])[..., :40].sum()
        logits = model(rows[:, :-1])[..., :40]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum")

    def step(model, noise: NoiseScale) -> torch.Tensor:
        with noise.watch(model.parameters(), RANKS / valid):
            for i, rows in enumerate(parts[rank]):
                last = i == len(parts[rank]) - 1
                if isinstance(model, DistributedDataParallel):
                    model.require_backward_grad_sync = last
                else:
                    model.set_requires_gradient_sync(last)
                (loss_sum(model, rows) * (RANKS / valid)).backward()
                noise.micro_batch(8 * len(rows))
        sums = noise.take()
        dist.all_reduce(sums)
        return sums

    whole, expected = build(), 0.0
    for rows in [rows for part in parts for rows in part if len(rows)]:
        gradients = torch.autograd.grad(loss_sum(whole, rows), list(whole.parameters()))
        expected += sum(g.double().square().sum().item() for g in gradients) / (8 * len(rows))
    found: dict = {"one process": expected}

    for strategy in ("ddp", "fsdp"):
        inner = build()
        if strategy == "ddp":
            model = DistributedDataParallel(inner)
        else:
            for block in inner.blocks:
                fully_shard(block)
            model = fully_shard(inner)
        found[strategy] = {"sums": step(model, NoiseScale(1e9)).tolist()}
        if rank == 1:
            inner.blocks[1].register_forward_pre_hook(lambda *_: time.sleep(SLEEP / len(ROWS[1])))
        dist.barrier()
        with profiled_step(torch.device("cpu")) as times:
            step(model, NoiseScale(1e9))
        own = [torch.zeros(1) for _ in range(RANKS)]
        dist.all_gather(own, torch.tensor([times.own]))
        found[strategy] |= {
            "seconds": times.seconds,
            "communication": times.communication,
            "own": times.own,
            "lagging": lagging([float(x) for x in own]),
        }
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()
    sys.stderr.flush()
    os._exit(0)  # as train.__main__ ends: torch's threads can abort the end of an interpreter that has profiled


if __name__ == "__main__":
    program(Path(sys.argv[1]))
