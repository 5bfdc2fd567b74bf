"""What Hydra looks for in its plugin namespace: our schema, sweeper and launcher, and a user's own ./conf."""

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

import conf
import conf.schema


class FulcrumLauncher(Launcher):
    """Receives all points of a grid at once and hands them to `slurm.launcher`."""

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Notes which command runs; the points are composed anew, each by itself."""
        self.command = config.hydra.job.config_name

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
        from slurm.launcher import launch, plan, prepare, theory
        from slurm.submit import submit

        points = [list(overrides) for overrides in job_overrides]
        commands = {"config": launch, "plan": plan, "theory": theory, "prepare": prepare, "submit": submit}
        commands[self.command](points)
        return []


class FulcrumSweeper(BasicSweeper):
    """Hydra's own, which would compose every point before the launcher does, one after another, to see if it can."""

    def validate_batch_is_legal(self, batch: Any) -> None:
        """Left to conf.points, which composes each point once and lists all that are bad."""


class WorkingDirectoryConf(SearchPathPlugin):
    """A user's own ./conf/experiment/mine.yaml is `experiment=mine`; it adds to ours and never shadows it."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        folder = Path.cwd() / "conf"
        if folder.is_dir() and folder != Path(conf.__file__).parent:
            search_path.append("fulcrum-working-directory", f"file://{folder}")


def scratch() -> str:
    """A folder for what Hydra writes of a sweep (its multirun.yaml), removed at exit: our records say it all."""
    folder = tempfile.mkdtemp(prefix="fulcrum-hydra-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


OmegaConf.register_new_resolver("scratch", scratch, use_cache=True, replace=True)
ConfigStore.instance().store(
    group="hydra/sweeper", name="fulcrum", node=BasicSweeperConf(_target_="hydra_plugins.fulcrum.FulcrumSweeper")
)
ConfigStore.instance().store(
    group="hydra/launcher", name="fulcrum", node={"_target_": "hydra_plugins.fulcrum.FulcrumLauncher"}
)
