"""Two points at once with one thread each, against one after the other with two threads: why `launch.parallel` is what
it is on CPU.

    python benchmarks/parallel_points.py             every quickstart size

For each size: tokens per second of all processes together, both ways, in turn, and their ratio (over 1: in parallel).
"""

import statistics
import subprocess
import sys

STEPS, ROUNDS, BATCH, LENGTH = 40, 3, 4, 128
SIZES = ("50k", "150k", "370k", "1m")

WORKER = """
import sys, time, torch
from hydra import initialize_config_module
from conf.points import compose_config
from train.model import Transformer, initialize
from train.shape import Shape

torch.set_num_threads(int(sys.argv[2]))
with initialize_config_module("conf", version_base="1.3"):
    config = compose_config(["experiment=quickstart", "model=" + sys.argv[1]])["model"]
del config["_target_"]
shape = Shape(**{**config, "vocab_size": 1024})
model = Transformer(shape, 1024)
initialize(model, 0)
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
tokens = torch.randint(0, 1024, (BATCH, LENGTH + 1))


def step():
    logits = model(tokens[:, :-1])
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    optimizer.step()
    optimizer.zero_grad()


for _ in range(5):
    step()
print("ready", flush=True)
sys.stdin.readline()
started = time.perf_counter()
for _ in range(STEPS):
    step()
print(time.perf_counter() - started, flush=True)
"""


def tokens_per_second(size: str, processes: int, threads: int) -> float:
    """Of `processes` workers together, all measured over the same moments."""
    code = WORKER.replace("BATCH", str(BATCH)).replace("LENGTH", str(LENGTH)).replace("STEPS", str(STEPS))
    command = [sys.executable, "-c", code, size, str(threads)]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    for worker in workers:
        assert worker.stdout and worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin
        worker.stdin.write("\n")
        worker.stdin.flush()
    seconds = [float(worker.communicate()[0]) for worker in workers]
    return processes * STEPS * BATCH * LENGTH / max(seconds)


def main() -> None:
    print("size   2 x 1 thread   1 x 2 threads   ratio (tokens/s, medians)")
    for size in SIZES:
        rounds = [(tokens_per_second(size, 2, 1), tokens_per_second(size, 1, 2)) for _ in range(ROUNDS)]
        ratio = statistics.median(two / one for two, one in rounds)
        two, one = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(f"{size:<6} {two:>12.0f} {one:>15.0f} {ratio:>7.2f}", flush=True)


if __name__ == "__main__":
    main()
