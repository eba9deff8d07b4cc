"""Secrets in a configuration: their values are masked in every file that describes a run."""

from __future__ import annotations

import re
from typing import Any

MASK = "***"
"""What is written instead of a secret."""

_SECRET_NAME = re.compile(
    r"(^|[_-])(token|secret|password|passwd|passphrase|credentials?|(api|access|private|secret)[_-]?key)$",
    re.IGNORECASE,
)
_TOKENIZER_NAME = re.compile(r"^(bos|eos|pad|unk|cls|sep|mask|image|boundary)_token$")
_VALUE = r"""(?:'[^']*'|"[^"]*"|[^\s,{}\[\]][^\s,}\]]*)"""
_SETTINGS = (
    re.compile(rf"((?:^|[\s,{{\[])[+~]*(?P<key>[\w./-]+)=){_VALUE}"),
    re.compile(rf"([{{,]\s*['\"]?(?P<key>[\w./-]+)['\"]?:\s*){_VALUE}"),
)
"""A setting in text: KEY=value, as in an override or a shell command, and {key: value}."""
_KNOWN_TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36,}|sk-(?:[a-z]+-)?[A-Za-z0-9]{32,}|glpat-[\w-]{20,}"
    r"|xox[bp]-\d{8,}-[\w-]+)\b"
)
"""Tokens of known services, in their full length: the name of a run may begin with hf_."""


def is_secret_key(key: str) -> bool:
    """Returns whether a key names a secret: HF_TOKEN, WANDB_API_KEY, options.password; not bos_token."""
    name = key.rpartition(".")[2]
    return bool(_SECRET_NAME.search(name)) and not _TOKENIZER_NAME.match(name)


def mask_secrets(value: Any, key: str = "") -> Any:
    """Returns a plain container in which the values of secret keys, and settings of them in text, are `MASK`."""
    if value is not None and is_secret_key(key):
        return MASK
    if isinstance(value, dict):
        return {name: mask_secrets(item, str(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [mask_secrets(item, key) for item in value]
    return mask_text(value) if isinstance(value, str) else value


def mask_text(text: str) -> str:
    """Returns `text`, such as an override or a shell command, in which secret values are `MASK`.

    Counts `_SETTINGS` of secret keys, and strings that have the form of a token of a known service.
    """
    for pattern in _SETTINGS:
        text = pattern.sub(lambda match: match[1] + MASK if is_secret_key(match["key"]) else match[0], text)
    return _KNOWN_TOKEN.sub(MASK, text)


def mask_config(config: Any) -> Any:
    """Returns an OmegaConf container with `mask_secrets` applied; `config` itself if it has no secret."""
    from omegaconf import OmegaConf  # krill-runs does without it

    values = OmegaConf.to_container(config, resolve=False)
    masked = mask_secrets(values)
    return config if masked == values else OmegaConf.create(masked)
