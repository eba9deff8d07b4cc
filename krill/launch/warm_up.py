"""Does before the first fork what each forked command would do again: building parsers, validators and tables.

Nothing here may start a thread: a process with threads is not forked.
"""

from __future__ import annotations

import sys


def warm_up() -> None:
    """Builds what the libraries that this process has imported build at their first use."""
    if "hydra" in sys.modules:
        _load_hydra()
    if "krill.config.schema" in sys.modules:
        _build_validators()
    if "transformers.modeling_utils" in sys.modules:
        _build_conversion_tables()


def _load_hydra() -> None:
    """Loads Hydra's plugins, and grows the automata of ANTLR, which learn from what they have parsed."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.plugins import Plugins
    from omegaconf.grammar_parser import parse

    Plugins.instance()
    lines = ["model=a_b", "a.b=1e-3,2", "c=[1,x.y,'a b']", "d={e: null, f: true}", "g='range(0,4)'", "h=10m"]
    OverridesParser.create().parse_overrides(lines)
    for text in ("${a.b}", "${krill.null_if_set:${a},b}", "${oc.select:a,null}", "${hydra:job.name}"):
        parse(text)


def _build_validators() -> None:
    """Builds the validators, as pydantic does at the first use of a model."""
    from krill.config.schema import InferConfig, InspectConfig, TrainConfig

    for schema in (TrainConfig, InspectConfig, InferConfig):
        schema.model_rebuild()


def _build_conversion_tables() -> None:
    """Compiles the nine hundred regular expressions that transformers needs at the first save of a model."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("llama")
