"""Text to ids and back for one model, and conversations to prompts.

    Tokenizer ── Vocabulary        id → bytes; cheap, all that detokenising needs
              ├─ Encoder           words → ids; built at the first `encode`
              └─ ChatTemplate      conversation → text; compiled at the first chat

Control tokens come from templates and callers that ask for them, never from a user's text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

from qwenstack.core.errors import RequestError
from qwenstack.core.infill import Gap, InfillPrompt
from qwenstack.core.messages import Message
from qwenstack.tokenizer.chat_markers import ChatMarkers, read_chat_markers
from qwenstack.tokenizer.chat_messages import chat_variables
from qwenstack.tokenizer.chat_template import ChatTemplate
from qwenstack.tokenizer.encoder import Encoder, check_is_unicode
from qwenstack.tokenizer.infill import GAP_MARKS, InfillWriter
from qwenstack.tokenizer.literal_guard import LiteralGuard, unmark
from qwenstack.tokenizer.tokenizer_parts import TokenizerParts, parts_from_gguf, parts_from_hf


class Tokenizer:
    """One model's tokenizer; safe to share between threads once built."""

    def __init__(self, parts: TokenizerParts) -> None:
        """Take what a file said; encoder and template are built when first used."""
        self._parts = parts
        self._vocabulary = parts.vocabulary
        self.vocab_size = parts.vocabulary.size
        """Ids lie in `range(vocab_size)`; rows of the model beyond are padding and must not be sampled."""
        self.eos_token_ids = parts.eos_token_ids
        """Ids that end an answer."""
        self.bos_token_id = parts.bos_token_id
        """Set where the model wants this token before each text; `encode` puts it there."""
        self.text_end_ids = parts.text_end_ids
        """What a model that embeds wants behind each text; `encode` does not put it there."""

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, object]) -> Tokenizer:
        """Build from a GGUF file's metadata.

        Raises:
            ModelFormatError: a key is missing or damaged, or the tokenizer is of a kind not known here.
        """
        return cls(parts_from_gguf(metadata))

    @classmethod
    def from_hf(
        cls,
        tokenizer_json: str,
        tokenizer_config: Mapping[str, object] | None = None,
        chat_template: str | None = None,
    ) -> Tokenizer:
        """Build from the text of `tokenizer.json`, and if there are, `tokenizer_config.json` and `chat_template.jinja`.

        Raises:
            ModelFormatError: `tokenizer.json` is damaged or not byte-level BPE.
        """
        return cls(parts_from_hf(tokenizer_json, tokenizer_config or {}, chat_template))

    @cached_property
    def chat_markers(self) -> ChatMarkers:
        """How this model marks thinking and tool calls."""
        return read_chat_markers(self._parts.chat_template)

    @property
    def shows_tools(self) -> bool:
        """Whether the model's template writes tools into a prompt.

        Raises:
            RequestError: the model has no template.
        """
        return "tools" in self._chat_template.names

    @property
    def chat_template_source(self) -> str | None:
        """The model's template as it was written; None where it has none."""
        return self._parts.chat_template

    @property
    def fills_gaps(self) -> bool:
        """Whether the model has marks for gaps."""
        return all(self.id_of_added(mark) is not None for mark in GAP_MARKS)

    def encode(self, text: str, *, parse_special: bool = False, param: str = "prompt") -> list[int]:
        """Turn text into ids.

        Args:
            text: any Unicode text.
            parse_special: turn literal `<|im_start|>` and the like into control tokens, as transformers does by
                default; for text that the caller wrote, never for a user's.
            param: the field to blame in errors.

        Raises:
            RequestError: the text has a lone surrogate.
        """
        check_is_unicode(text, param=param)
        ids = [] if self.bos_token_id is None else [self.bos_token_id]
        if parse_special:
            ids.extend(self._encode_with_added_tokens(text))
        else:
            ids.extend(self._encoder.encode(text))
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Turn ids into text, with U+FFFD for bytes that are not UTF-8."""
        vocabulary = self._vocabulary
        return b"".join(
            vocabulary.token_bytes(token_id)
            for token_id in token_ids
            if not (skip_special_tokens and vocabulary.is_special(token_id))
        ).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Return the exact bytes of a token; nothing for padding rows."""
        return self._vocabulary.token_bytes(token_id)

    def is_special(self, token_id: int) -> bool:
        """Whether the token steers and is left out of text (`<|im_end|>` is, `<think>` is not)."""
        return self._vocabulary.is_special(token_id)

    @cached_property
    def added_token_ids(self) -> frozenset[int]:
        """Ids of the tokens that are matched as a whole, such as `<|im_start|>` and `<think>`."""
        return frozenset(token.id for token in self._vocabulary.added_tokens.values())

    def id_of_added(self, text: str) -> int | None:
        """Return the id of an added token such as `<think>`; None if this model has no such token."""
        return self._vocabulary.id_of_added(text)

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        enable_thinking: bool | None = None,
        **template_variables: object,
    ) -> str:
        """Write a conversation as the model's template does; the text is for people, `encode_chat` for models.

        Args:
            messages: the conversation.
            tools: OpenAI's function schemas.
            add_generation_prompt: end with the start of the assistant's turn.
            enable_thinking: Qwen3's switch; None leaves the choice to the template.
            template_variables: further variables of the template.

        Raises:
            RequestError: the template refuses the conversation, or the model has no template.
            ModelFormatError: the template is broken, or runs away.
        """
        options = _template_options(add_generation_prompt, enable_thinking, template_variables)
        return self._chat_template.render(chat_variables(messages, tools, options))

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        enable_thinking: bool | None = None,
        **template_variables: object,
    ) -> list[int]:
        """Turn a conversation into the ids the model was trained on; control tokens are the template's own only.

        Literal `<|im_end|>` in a message, a tool's schema or a tool call is encoded as plain text.

        Raises:
            RequestError: the template refuses the conversation, the model has no template, or a lone surrogate.
            ModelFormatError: the template is broken, or runs away.
        """
        options = _template_options(add_generation_prompt, enable_thinking, template_variables)
        template = self._chat_template
        variables, mark = self._guard.mark(chat_variables(messages, tools, options), template=template.source)
        return list(self._encode_with_added_tokens(template.render(variables), mark=mark))

    def encode_infill(self, gap: Gap, *, max_tokens: int) -> InfillPrompt:
        """Turn a gap in a file into a prompt of at most `max_tokens`; what is far from it is left out where need be.

        Raises:
            RequestError: the model has no marks for gaps, or a text has a lone surrogate.
        """
        for text in (gap.prefix, gap.suffix, *(text for file in gap.context for text in (file.path, file.text))):
            check_is_unicode(text, param="prompt")
        writer = InfillWriter(encode=self._encoder.encode, id_of_mark=self.id_of_added)
        return writer.write(gap, max_tokens=max_tokens)

    def _encode_with_added_tokens(self, text: str, *, mark: str | None = None) -> Iterator[int]:
        """Yield the ids of the words between added tokens, and of each whole added token its own."""
        added = self._vocabulary.added_tokens
        for piece in self._added_token_pattern.split(text):
            if piece in added:
                yield added[piece].id
            elif piece:
                yield from self._encoder.encode(piece if mark is None else unmark(piece, mark))

    @cached_property
    def _encoder(self) -> Encoder:
        return self._parts.build_encoder()

    @cached_property
    def _chat_template(self) -> ChatTemplate:
        source = self._parts.chat_template
        if source is None:
            raise RequestError(
                "This model has no chat template, so it cannot take messages. Send the text to `/v1/completions`.",
                param="messages",
                code="no_chat_template",
            )
        return ChatTemplate(source)

    @cached_property
    def _guard(self) -> LiteralGuard:
        return LiteralGuard(self._vocabulary.added_tokens.values())

    @cached_property
    def _added_token_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._vocabulary.added_tokens, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")" if longest_first else "(?!)")


def _template_options(
    add_generation_prompt: bool, enable_thinking: bool | None, template_variables: Mapping[str, object]
) -> dict[str, object]:
    """Leave `enable_thinking` undefined where the caller has no wish: that is a third case for templates."""
    thinking = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
    return {**template_variables, "add_generation_prompt": add_generation_prompt, **thinking}
