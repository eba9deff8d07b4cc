"""Imported last by a fork server: its children then have nothing to collect, and libraries are warmed up.

A collection in a child would visit, and copy, everything that the server has imported.
"""

import gc

from krill.launch.warm_up import warm_up

warm_up()
gc.collect()
gc.freeze()
