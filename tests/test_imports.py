"""A laptop fits laws in a blink and a login node validates in a second: these modules import without torch."""

import subprocess
import sys

import pytest

TORCH_FREE = [
    "data.records",
    "data.order",
    "data.prepare",
    "optim.plan",
    "optim.schedules",
    "optim.ramps",
    "optim.adamw",
    "train.shape",
    "conf.points",
    "scaling.fit",
    "scaling.allocate",
    "scaling.figures",
    "scaling.report",
    "scaling.commands",
    "slurm.launcher",
    "fulcrum",
]


@pytest.mark.parametrize("module", TORCH_FREE)
def test_module_imports_without_torch(module):
    code = f"import sys; sys.modules['torch'] = None; import {module}; assert 'datasets' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
