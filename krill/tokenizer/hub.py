"""Uploads a tokenizer to the Hugging Face Hub, if tokenizer.push_to is set."""

from __future__ import annotations

import logging

from krill.errors import KrillError, get_first_line
from krill.tokenizer.artifact import TOKENIZER_FILES, TokenizerFolder

log = logging.getLogger("krill")


def push_tokenizer_to_hub(tokenizer: TokenizerFolder, repository: str, private: bool) -> None:
    """Uploads the tokenizer's files to `repository`, which is created, `private` or public, if it does not exist.

    An existing repository keeps its visibility. Raises KrillError if the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=repository,
            folder_path=tokenizer.folder,
            allow_patterns=list(TOKENIZER_FILES),
            commit_message=f"Tokenizer with {tokenizer.vocab_size} entries, signature {tokenizer.signature[:8]}",
        )
    except Exception as error:
        reason = get_first_line(error)
        raise KrillError(
            f"tokenizer.push_to={repository}: not uploaded ({type(error).__name__}: {reason}). The tokenizer is in "
            f"{tokenizer.folder}; log in (hf auth login or HF_TOKEN) and run the same command again"
        ) from error
    log.info("tokenizer   uploaded to %s", repository)
