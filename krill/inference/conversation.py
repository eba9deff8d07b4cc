"""Renders conversations with a model's chat template, and fits them into its context."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerFast

from krill.errors import UsageError, get_first_line
from krill.inference.defaults import read_eos_ids
from krill.terminal import encode_input
from krill.tokenizer.artifact import TokenizerFolder

CHAT_ROLES = ("system", "developer", "user", "assistant", "tool")
_ANSWER = "krill-answer"
"""An answer that no template writes."""
_REPAIR = "correct the template, or remove it from the folder (krill-infer also has chat=false)"


class ChatTemplate:
    """The chat template of a tokenizer, rendered in transformers' sandbox."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, folder: Path) -> ChatTemplate | None:
        """Returns the chat template in the folder of a tokenizer, or None.

        Raises UsageError if it is damaged, or cannot render a question.
        """
        if not _has_template(folder):
            return None
        try:
            # This class uses tokenizer.json unchanged; others rebuild it, and a custom one would run its code.
            template = cls(PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True))
            template._tokenizer.get_chat_template()
        except Exception as error:
            raise UsageError(
                f"{folder}: its chat template cannot be read ({get_first_line(error)}); {_REPAIR}"
            ) from error
        try:
            template.encode([{"role": "user", "content": "a"}])
        except UsageError as error:
            raise UsageError(f"{error}; {_REPAIR}") from error
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
        text. Raises UsageError for a role that does not exist, for content that is not Unicode, and for a
        conversation that the template refuses.
        """
        for message in messages:
            # A template may write the role as part of a special token.
            if message.get("role") not in CHAT_ROLES:
                raise UsageError(f"role {message.get('role')!r}: use one of {', '.join(CHAT_ROLES)}")
            encode_input(str(message.get("content", "")), f"the message of role {message['role']}")
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


def select_template(
    chat: bool | Literal["auto"], folder: Path, tokenizer: TokenizerFolder, system: str | None = None
) -> ChatTemplate | None:
    """Returns the chat template with which a model answers, for a value of the key chat; None: it continues texts.

    `folder`: of the model. auto: the template, if the model ends its answers as the template does. A tokenizer may
    have a template before any model was trained with it. Raises UsageError for true without a template, and for the
    message `system` without a chat.
    """
    template = ChatTemplate.load(tokenizer.folder) if chat else None
    if chat is True and template is None:
        raise UsageError(
            f"chat=true: the tokenizer in {tokenizer.folder} has no chat template; use chat=false"
        )
    if chat == "auto" and template is not None:
        is_trained = template.end_ids & {tokenizer.eos_id, *read_eos_ids(folder)}
        template = template if is_trained else None
    if template is None and system is not None:
        raise UsageError(
            f"system= is for chats, and with chat={str(chat).lower()} this model continues texts; use chat=true, or "
            "leave out system="
        )
    return template


class Conversation:
    """The turns of a chat, of which the oldest are dropped when the context is full."""

    def __init__(self, template: ChatTemplate, context_length: int, system: str | None = None):
        self.system = system
        self.turns: list[dict[str, str]] = []
        """Messages of the user and the assistant in turn."""
        self._template, self._context_length = template, context_length

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        return self._template.end_ids

    def encode_question(self, question: str, max_new_tokens: int) -> tuple[list[int], int]:
        """Returns the tokens of the turns and a new question, and the number of oldest turns that were dropped.

        Room is left for an answer of `max_new_tokens`, but at most a quarter of the context. Raises UsageError if
        the template refuses the conversation, or if the question alone fills the context; the turns are kept then.
        """
        room = min(max_new_tokens, self._context_length // 4)
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        for dropped in range(0, len(self.turns) + 1, 2):
            turns = self.turns[dropped:]
            ids = self._template.encode([*system, *turns, {"role": "user", "content": question}])
            if len(ids) + room <= self._context_length:
                break
        if len(ids) >= self._context_length:
            raise UsageError(
                f"the message has {len(ids)} tokens in the chat template, but the context of the model has "
                f"{self._context_length}; shorten it"
            )
        self.turns = turns
        return ids, dropped // 2

    def add_turn(self, question: str, answer: str) -> None:
        """Adds a question and its answer."""
        self.turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "additional_chat_templates").is_dir():
        return True
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # load_tokenizer reports a damaged one
        return False
    return isinstance(settings, dict) and bool(settings.get("chat_template"))
