"""A run's configuration, its folders and the terminal. Frozen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.report.terminal import Terminal
from pipeline.store.cache import Cache
from pipeline.store.lease import Lease
from pipeline.store.memo import Memo

if TYPE_CHECKING:
    from pipeline.config import Config  # which a process of the cluster does without


@dataclass(frozen=True)
class Place:
    """A run's surroundings, handed to every stage."""

    config: Config
    run_dir: Path
    workspace: Path
    terminal: Terminal
    lease: Lease | None = None  # of the run's folder; None: this program only looks at the run
    until: str = "export"  # the last stage that will run; what only later ones need is not asked for
    keeps_ray: bool = False  # whether other runs of this program go on with the same Ray

    @classmethod
    def of(cls, config: Config, until: str = "export", keeps_ray: bool = False) -> Place:
        """The place of a configuration; no folder is made yet. One that was not settled is settled without GPUs."""
        from pipeline.config.machine import Machine  # not at the top: a process of the cluster does without

        config, run = config.settled(Machine(0), Machine(0)), config.run
        run_dir, workspace = Path(run.dir).resolve() / run.name, Path(run.workspace).resolve()
        return cls(config, run_dir, workspace, Terminal(), until=until, keeps_ray=keeps_ray)

    @property
    def memo(self) -> Memo:
        """Digests of files that have not changed since they were computed."""
        return Memo(self.workspace / "digests.json")

    @property
    def cache_root(self) -> str:
        """The folder or URI that holds the log-probs of all references."""
        return self.config.reference.cache or str(self.workspace / "cache")

    def cache(self, identity: str) -> Cache:
        """The log-probs of one reference."""
        return Cache(f"{self.cache_root}/{identity}")
