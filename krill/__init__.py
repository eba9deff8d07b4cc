"""krill: pretrain language models from scratch."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("krill")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"
