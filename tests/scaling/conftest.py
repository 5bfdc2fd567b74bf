"""Run folders in the format of data.records, made from a known law instead of training."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from data.files import write_json
from data.records import RunWriter

TRUTH = {"E": 1.9, "A": 60.0, "alpha": 0.38, "B": 180.0, "beta": 0.35}
SEQUENCE_LENGTH, BATCH, VOCABULARY = 128, 32, 1024


def write_runs(folder: Path, noise: float = 0.01, seeds: int = 1, bad: bool = False) -> Path:
    """Four sizes times three budgets with `noise` on the loss; with `bad` also a diverged and an unfinished run."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps({"report": ["chinchilla"]}))
    points = [(d, k, s) for d in (32, 64, 128, 192) for k in (8, 24, 72) for s in range(seeds)]
    for number, (width, ratio, seed) in enumerate(points):
        layers = width // 32 + 1
        size = 12 * layers * width * width
        cost = 6 * (size + VOCABULARY * width) + 6 * layers * width * (SEQUENCE_LENGTH + 1)
        budget = BATCH * SEQUENCE_LENGTH * max(8, round(ratio * (size * 60_000) ** 0.5 / BATCH / SEQUENCE_LENGTH))
        status = {3: "diverged", 7: None}.get(number, "completed") if bad else "completed"
        write_run(folder / "sweep", f"r{number:011x}", size, cost, budget, width, seed, rng, noise, status)
    return folder


def write_run(folder, run_id, size, cost, budget, width, seed, rng, noise, status):
    path = folder / run_id
    path.mkdir(parents=True)
    tokens = np.arange(1, budget // (BATCH * SEQUENCE_LENGTH) + 1) * BATCH * SEQUENCE_LENGTH
    p, x = TRUTH, tokens / budget
    law = p["E"] + p["A"] * size ** -p["alpha"] + p["B"] * tokens ** -p["beta"]
    loss = law + 0.12 * np.sqrt(np.clip(1 - x, 0, 1)) + 2.0 * np.exp(-tokens / 2e5)
    final = float(law[-1] * np.exp(noise * rng.standard_normal()))
    loss = np.minimum(loss, np.log(VOCABULARY)) + final - law[-1]
    due = set(np.linspace(0, len(tokens) - 1, 11).round().astype(int))
    rows = []
    for i, at in enumerate(tokens):
        row = {"step": i + 1, "tokens": int(at), "samples": int(at) // SEQUENCE_LENGTH, "flops": float(at * cost)}
        row |= {"lr": 3e-3 * (1 - x[i]), "batch_size": BATCH, "loss": float(loss[i] + 0.08 * rng.standard_normal())}
        row |= {"grad_norm": 1.0, "tokens_per_second": 1e5, "seconds": i * 0.1}
        if i in due:
            row["eval_loss"] = float(loss[i])
        rows.append(row)
    run = {"run_id": run_id, "experiment": "synthetic", "overrides": [], "N": size, "flops_per_token": cost}
    run |= {"N_total": size + 2 * VOCABULARY * width, "total_tokens": int(budget), "unique_tokens": None, "seed": seed}
    run |= {"sequence_length": SEQUENCE_LENGTH, "vocab_size": VOCABULARY, "unigram_loss": 5.61, "train_tokens": 10**9}
    run |= {"data_fingerprint": "d", "heldout_fingerprint": "h", "tokenizer_fingerprint": "t", "precision": "float32"}
    summary = {"status": status, "stop_reason": "budget", "loss": rows[-1]["loss"], "eval_loss": final, "seconds": 12.5}
    summary |= {"tokens": int(tokens[-1]), "steps": len(tokens), "flops": float(tokens[-1] * cost)}
    summary |= {"eval_bits_per_byte": final / 2}
    (path / "run.json").write_text(json.dumps(run))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "config.yaml").write_text(f"model:\n  d_model: {width}\npeak_lr: {1 / width}\n")
    if status:
        (path / "summary.json").write_text(json.dumps(summary))


def write_point(folder: Path, config: dict, rows: list[dict], status: str = "completed", size: int = 100_000) -> None:
    """The record of one run with this configuration and these logged rows, as training would have left it."""
    path = folder / "sweep" / f"r{len(list(folder.glob('sweep/*'))):011x}"
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    run = {"run_id": path.name, "experiment": "synthetic", "N": size, "N_total": size, "flops_per_token": 6 * size}
    run |= {"total_tokens": config["total_tokens"], "sequence_length": SEQUENCE_LENGTH, "seed": config["seed"]}
    write_json(path / "run.json", run)
    writer = RunWriter(path, 0, {"device": "cpu"})
    for row in rows:
        writer.log({"samples": row["tokens"] // SEQUENCE_LENGTH, "flops": 6.0 * size * row["tokens"]} | row)
    writer.close(status, "budget" if status == "completed" else status, writer.final())


@pytest.fixture(scope="session")
def make_point():
    return write_point


@pytest.fixture(scope="session")
def make_runs():
    return write_runs


@pytest.fixture(scope="session")
def runs_folder(tmp_path_factory):
    return write_runs(tmp_path_factory.mktemp("runs") / "synthetic")
