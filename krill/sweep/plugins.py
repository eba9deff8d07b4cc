"""Registration of krill's plugins with Hydra; conf/ names them as hydra_plugins.krill.…"""

from __future__ import annotations

import sys

from hydra.core.plugins import Plugins

from krill.sweep.launchers import PoolLauncher, SlurmLauncher
from krill.sweep.sweeper import Sweeper


def register_plugins() -> None:
    """Registers krill's launchers and its sweeper. Hydra accepts plugins of the package hydra_plugins only."""
    sys.modules["hydra_plugins.krill"] = sys.modules[__name__]
    for plugin in (PoolLauncher, SlurmLauncher, Sweeper):
        plugin.__module__ = "hydra_plugins.krill"
        Plugins.instance().register(plugin)
