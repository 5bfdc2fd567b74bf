"""Loggers beside the record: each builds a Lightning logger for one run. The record is written whatever is chosen."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TensorBoard:
    """Event files in the run's folder."""

    def build(self, folder: Path, run_id: str, config: dict[str, Any]):
        from lightning.fabric.loggers import TensorBoardLogger

        return TensorBoardLogger(root_dir=folder, name="tensorboard", version="")


@dataclass(frozen=True)
class Wandb:
    """Weights & Biases; a resumed run goes on under the same id."""

    project: str = "fulcrum"
    """project the runs appear under"""
    offline: bool = False
    """write to the run's folder only, without an account; `wandb sync` sends it later"""

    def build(self, folder: Path, run_id: str, config: dict[str, Any]):
        from lightning.pytorch.loggers import WandbLogger

        return WandbLogger(
            project=self.project,
            name=run_id,
            group=folder.parent.name,
            id=f"{folder.parent.name}-{run_id}",
            save_dir=str(folder),
            offline=self.offline,
            resume="allow",
            config=config,
        )
