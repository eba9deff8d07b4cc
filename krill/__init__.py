"""krill: pretrain language models from scratch."""


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module 'krill' has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    from krill.extras import DISTRIBUTION

    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:  # a checkout that was never installed
        return "0+unknown"
