"""Conversations with a model that has a chat template: rendering them, and fitting them into the context."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from krill.errors import UsageError, get_first_line

ROLES = ("system", "developer", "user", "assistant", "tool")
_ANSWER = "krill-answer"
"""An answer that no template writes."""


class ChatTemplate:
    """The chat template of a tokenizer, rendered in transformers' sandbox."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, folder: Path) -> ChatTemplate | None:
        """Returns the chat template in the folder of a tokenizer, or None. Raises UsageError if it is damaged."""
        if not _has_template(folder):
            return None
        try:
            # This class uses tokenizer.json unchanged; others rebuild it, and a custom one would run its code.
            template = cls(PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True))
            template._tokenizer.get_chat_template()
        except Exception as error:
            raise UsageError(
                f"{folder}: its chat template cannot be read ({get_first_line(error)})"
            ) from error
        template.encode([{"role": "user", "content": "a"}])
        return template

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """The special token that the template writes after an answer: it ends the answer, as eos does.

        Empty if the template writes none.
        """
        question, answer = ({"role": role, "content": _ANSWER} for role in ("user", "assistant"))
        try:
            text = self._tokenizer.apply_chat_template([question, answer], tokenize=False)
        except Exception:  # the template accepts no answer, so it ends none
            return frozenset()
        ids = self._tokenizer.encode(text.rpartition(_ANSWER)[2].lstrip(), add_special_tokens=False)
        return frozenset(ids[:1]) & self._tokenizer.added_tokens_decoder.keys()

    def encode(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Returns the tokens of a conversation up to where the assistant answers.

        `messages`: as in OpenAI's API, each with a role and content. Special tokens written in them are ordinary
        text. Raises UsageError for a role that does not exist and for a conversation that the template refuses.
        """
        for message in messages:
            if message.get("role") not in ROLES:  # a template may write the role as part of a special token
                raise UsageError(f"role {message.get('role')!r}: use one of {', '.join(ROLES)}")
        try:
            ids: list[int] = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages], add_generation_prompt=True, return_dict=False,
                sanitize_control_tokens=True,
            )  # fmt: skip
        except Exception as error:  # a template can raise anything
            folder = self._tokenizer.name_or_path
            raise UsageError(
                f"{folder}: the chat template cannot render this conversation ({get_first_line(error)})"
            ) from error
        if not ids:
            raise UsageError(
                f"{self._tokenizer.name_or_path}: the chat template renders this conversation as nothing"
            )
        return ids


def _has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "additional_chat_templates").is_dir():
        return True
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # load_tokenizer reports a damaged one
        return False
    return isinstance(settings, dict) and bool(settings.get("chat_template"))
