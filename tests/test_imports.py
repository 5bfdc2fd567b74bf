"""A laptop fits laws in a blink and a login node validates in a second: these modules import without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

TORCH_FREE = [
    "data.records",
    "data.order",
    "data.prepare",
    "optim.averaging",
    "optim.plan",
    "optim.schedules",
    "optim.ramps",
    "optim.adamw",
    "optim.sgd",
    "optim.normalized_sgd",
    "optim.lion",
    "optim.muon",
    "optim.swan",
    "optim.shampoo",
    "optim.soap",
    "slurm.dry_run",
    "train.context_parallel.cost",
    "train.shape",
    "train.context_parallel.hybrid",
    "conf.points",
    "scaling.fit",
    "scaling.allocate",
    "scaling.reports.figures",
    "scaling.reports.write",
    "scaling.commands",
    "scaling.theory.show",
    "data.problems",
    "data.generated",
    "data.separable",
    "slurm.launcher",
    "slurm.commands",
    "slurm.submit",
    "slurm.task",
    "fulcrum",
]


@pytest.mark.parametrize("module", TORCH_FREE)
def test_module_imports_without_torch(module):
    code = f"import sys; sys.modules['torch'] = None; import {module}; assert 'datasets' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "data": {"data"},
    "optim": {"optim"},
    "train": {"train", "data", "optim"},
    "scaling": {"scaling", "data", "optim", "train.shape"},
    "conf": {"conf", "data.descents", "data.files", "data.generated", "data.records", "data.tokenizers", "optim"}
    | {"train.shape", "train.memory", "train.strategies", "train.context_parallel"},
    "slurm": {
        "slurm",
        "conf",
        "data",
        "optim.plan",
        "scaling.plans",
        "scaling.theory.show",
        "train.context_parallel.cost",
        "train.context_parallel.placement",
        "train.memory",
        "train.shape",
    },
    "hydra_plugins": {"hydra_plugins", "slurm", "conf"},
}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_the_import_arrows_run_one_way(package):
    seen = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                seen |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                # `from train import checkpoint` is train.checkpoint
                below = [f"{node.module}.{alias.name}" for alias in node.names]
                is_package = (ROOT / node.module.replace(".", "/")).is_dir()
                seen |= set(below) if is_package else {node.module}
    ours = {name for name in seen if name.split(".")[0] in MAY_IMPORT}
    assert ours, "nothing was read"
    allowed = MAY_IMPORT[package]
    assert not [name for name in ours if not any(name == a or name.startswith(f"{a}.") for a in allowed)]
