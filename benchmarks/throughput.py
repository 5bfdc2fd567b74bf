"""Tokens/s, MFU, peak memory and time split of the trainer, beside a bare torch loop of the same model, in one run.

    python benchmarks/throughput.py                                         on a GPU: the sizes of the goal (below)
    python benchmarks/throughput.py model=150k,1m precision=float32,bf16    any overrides of `fulcrum train`
    python benchmarks/throughput.py strategy=ddp,fsdp launch.devices=2 launch.micro_batch_size=2 --json

Without overrides: 150m, 300m and 600m in bf16 with torch.compile at lengths 1024 and 4096, each at the best micro-batch
(`launch.micro_batch_size=best` doubles it until that gains nothing or does not fit). Goal: 45, 50 and 55 % MFU of the
dense bf16 peak on one H100- or H200-class GPU. On a CPU: a small model, to see that it works.

Each measurement is a process of its own, trainer and bare loop in turn (A B A B), after the same steps of warm-up, on
one thread. The trainer is `fulcrum train` as a user calls it, with its data, logging and noise scale, but without
evaluation and checkpoints. The bare loop is on one device: no Fulcrum code but the model, logits in one piece and
torch's cross-entropy.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch
from hydra import initialize_config_module

from conf.points import Point, expand
from data.records import read_metrics
from slurm.dry_run import in_bytes, micro_batch_size, strategy_name
from train.measure import PHASES, device_name, mfu, peak_flops, peak_memory
from train.model import Transformer, initialize

WARM, STEPS, ROUNDS = 8, 32, 2
LOG = 4  # steps between rows
ON_GPU = ["model=150m,300m,600m", "sequence_length=1024,4096", "precision=bf16", "launch.compile=true"]
ON_GPU += ["launch.micro_batch_size=best", "model.vocab_size=32768"]
ON_CPU = ["model=150k", "precision=float32,bf16", "launch.micro_batch_size=2"]


def configurations(overrides: list[str]) -> list[list[str]]:
    """All combinations of values that commas separate."""
    choices = [
        [f"{key}={value}" for value in values.split(",")] for key, values in (o.split("=", 1) for o in overrides)
    ]
    return [list(chosen) for chosen in itertools.product(*choices)]


def composed(overrides: list[str], runs: str) -> tuple[Point, list[str]]:
    """The point of WARM + STEPS steps and one more, with all its overrides; a batch is two micro-batches a device."""
    with initialize_config_module("conf", version_base="1.3"):
        common = ["experiment=quickstart", "total_tokens=1e9", "launch.threads=1", *overrides]
        (asked,) = expand([common])
        launch, length = asked.config["launch"], asked.plan.sequence_length
        batch = 2 * launch["devices"] * (launch["micro_batch_size"] or 4)
        tokens = (WARM + STEPS + 1) * batch * length
        full = [*common, f"launch.micro_batch_size={batch // 2 // launch['devices']}", f"ramp.batch_size={batch}"]
        full += [f"total_tokens={tokens}", "warmup_tokens=0", f"eval.tokens={length}", f"eval.every_tokens={tokens}"]
        full += [f"launch.checkpoint.every_tokens={tokens}", "launch.checkpoint.every_minutes=null"]
        full += [
            f"launch.log_every_tokens={LOG * batch * length}",
            f"launch.runs={runs}",
            "launch.experiment=throughput",
        ]
        return expand([full])[0], full


def trainer(overrides: list[str]) -> dict[str, Any]:
    """What the trainer's own record says of the steps after the warm-up."""
    with tempfile.TemporaryDirectory() as runs:
        point, full = composed(overrides, runs)
        call([sys.executable, "-m", "fulcrum", "train", *full, "hydra.mode=RUN"])
        rows = read_metrics(point.folder / "metrics.jsonl")
    rows = [row for row in rows if WARM <= row["step"] <= WARM + STEPS]  # the last step's has the evaluation in it
    seconds = rows[-1]["seconds"] - rows[0]["seconds"]
    rows, begin = rows[1:], rows[0]["tokens"]
    profiled = [row["communication"] for row in rows if row["communication"] is not None]
    return {
        "tokens_per_second": (rows[-1]["tokens"] - begin) / seconds,
        "peak_memory": max(row["peak_memory"] for row in rows),
        "split": {phase: sum(row[f"seconds_{phase}"] for row in rows) / seconds for phase in PHASES},
        "communication": statistics.mean(profiled) if profiled else None,
    }


def bare(overrides: list[str]) -> dict[str, Any]:
    """The same of `bare_loop`, in a process of its own."""
    return json.loads(call([sys.executable, __file__, "--bare", *overrides]).splitlines()[-1])


def bare_loop(overrides: list[str]) -> dict[str, Any]:
    """The plainest loop on fixed random tokens: the same model, micro-batches, precision and compilation."""
    torch.set_num_threads(1)
    point, _ = composed(overrides, "runs")
    launch, length, rows = point.config["launch"], point.plan.sequence_length, micro_batch_size(point)
    device = torch.device("cuda" if launch["accelerator"] != "cpu" and torch.cuda.is_available() else "cpu")
    vocab_size = point.shape.vocab
    model = Transformer(point.shape, vocab_size)
    initialize(model, 0)
    model.to(device)
    forward = torch.compile(model) if launch["compile"] else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens = torch.randint(0, vocab_size, (rows, length + 1), device=device)
    started = 0.0
    for step in range(WARM + STEPS):
        if step == WARM:
            torch.cuda.synchronize() if device.type == "cuda" else None
            started = time.perf_counter()
        for _ in range(2):
            with torch.autocast(device.type, torch.bfloat16, enabled=point.config["precision"] == "bf16"):
                logits = forward(tokens[:, :-1])
                loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten()) / 2
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    torch.cuda.synchronize() if device.type == "cuda" else None
    speed = STEPS * 2 * rows * length / (time.perf_counter() - started)
    return {"tokens_per_second": speed, "peak_memory": peak_memory(device)}


def call(command: list[Any]) -> str:
    """stdout of a program; RuntimeError with the end of what it said where it failed."""
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    done = subprocess.run([str(word) for word in command], text=True, capture_output=True, env=environment)
    if done.returncode:
        raise RuntimeError("\n".join((done.stdout + done.stderr).splitlines()[-4:]))
    return done.stdout


def measured(overrides: list[str]) -> dict[str, Any]:
    """One configuration: trainer and bare loop in turn, medians; `bare` is None where that one does not fit."""
    pairs = []
    for _ in range(ROUNDS):
        ours = trainer(overrides)
        try:
            theirs = bare(overrides)
        except RuntimeError as error:
            print(f"bare loop failed: {error}", file=sys.stderr)
            theirs = None
        pairs.append((ours, theirs))
    point, _ = composed(overrides, "runs")
    launch, speed = point.config["launch"], statistics.median(ours["tokens_per_second"] for ours, _ in pairs)
    on_cuda = launch["accelerator"] != "cpu" and torch.cuda.is_available()
    device = device_name(torch.device("cuda" if on_cuda else "cpu"))
    peak = peak_flops(device, point.config["precision"])
    flops = point.shape.flops_per_token(point.plan.sequence_length)
    compared = [(ours, theirs) for ours, theirs in pairs if theirs]
    result = pairs[-1][0] | {
        "configuration": " ".join(overrides),
        "device": device,
        "strategy": strategy_name(point),
        "devices": launch["devices"],
        "micro_batch_size": micro_batch_size(point),
        "N": point.shape.N,
        "tokens_per_second": speed,
        "mfu": mfu(flops * speed, 1.0, launch["devices"], peak),
        "bare": None,
    }
    if compared:
        other = statistics.median(theirs["tokens_per_second"] for _, theirs in compared)
        result["bare"] = {
            "tokens_per_second": other,
            "mfu": mfu(flops * other, 1.0, 1, peak),
            "peak_memory": compared[-1][1]["peak_memory"],
        }
        ratios = [ours["tokens_per_second"] / theirs["tokens_per_second"] for ours, theirs in compared]
        result["ratio"] = statistics.median(ratios) / launch["devices"]  # per device
    return result


def best(overrides: list[str]) -> list[str]:
    """The overrides with the fastest micro-batch in place of `best`: doubled until it gains nothing or does not fit."""
    if "launch.micro_batch_size=best" not in overrides:
        return overrides
    fastest, found, rows = 0.0, overrides, 1
    while True:
        tried = [o.replace("=best", f"={rows}") if o.startswith("launch.micro") else o for o in overrides]
        try:
            speed = trainer(tried)["tokens_per_second"]
        except RuntimeError as error:
            if not fastest:
                raise
            print(f"micro-batch {rows}: {str(error).splitlines()[-1][:100]}", file=sys.stderr)
            return found
        if speed < 1.02 * fastest:
            return found
        fastest, found, rows = speed, tried, 2 * rows


def line(result: dict[str, Any]) -> str:
    """One line for one configuration."""
    share = " ".join(f"{phase} {part:.0%}" for phase, part in result["split"].items())
    share += "" if result["communication"] is None else f" communication {result['communication']:.0%} of a step"
    text = f"{result['configuration']}: {result['tokens_per_second']:,.0f} tokens/s"
    text += "" if result["mfu"] is None else f", MFU {result['mfu']:.1%}"
    text += f", {in_bytes(result['peak_memory'])} peak ({share})"
    if result["bare"]:
        other = result["bare"]
        text += f"; bare {other['tokens_per_second']:,.0f}"
        text += "" if other["mfu"] is None else f", MFU {other['mfu']:.1%}"
        text += f", {in_bytes(other['peak_memory'])}; ratio per device {result['ratio']:.3f}"
    return text


def main() -> None:
    arguments = [word for word in sys.argv[1:] if word != "--json"]
    if arguments[:1] == ["--bare"]:
        print(json.dumps(bare_loop(arguments[1:])))
        return
    on_cuda = torch.cuda.is_available()
    results = []
    for overrides in configurations(arguments or (ON_GPU if on_cuda else ON_CPU)):
        results.append(measured(best(overrides)))
        if "--json" not in sys.argv:
            print(line(results[-1]), flush=True)
    if "--json" in sys.argv:
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
