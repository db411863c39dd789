"""A language model's texts as ids: prompts that follow audio, targets, chat templates.

Owns which special tokens stand around texts. It needs the tokenizer and not the model,
so that data workers can use it; it pickles.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

# Stands for the audio while a chat template is rendered; templates may strip blanks
# and change quotes, but not this.
AUDIO_MARK = "[[audio]]"


@dataclass(frozen=True)
class Layout:
    """What stands around audio and prompt, stated instead of asked of the tokenizer.

    For weights that were trained with it: X-InstructBLIP's begin each text with </s>.

    Args:
        head: ids before the audio.
        before_prompt: ids between the audio and the prompt.
        after_prompt: text that follows every prompt and is tokenised with it.
    """

    head: tuple[int, ...] = ()
    before_prompt: tuple[int, ...] = ()
    after_prompt: str = ""

    def __post_init__(self):
        for name in ("head", "before_prompt"):
            object.__setattr__(self, name, tuple(getattr(self, name)))


class PromptEncoder:
    """Turns prompts and targets into ids as one language model expects them.

    What the tokenizer puts before text (LLaMA's <s>, OPT's </s>, a chat template up to
    the user's words) is the head: it goes before the audio and is the same for all
    texts. What it puts after text (T5's </s>, the end of the user's turn and the start
    of the assistant's) ends the prompt.

    Args:
        tokenizer: of the language model, from `AutoTokenizer.from_pretrained`.
        kind: "seq2seq" or "causal".
        path: where it came from, for messages.
        use_chat_template: "auto" (if the tokenizer has one), True or False.
        layout: fields of `Layout`, which then holds instead of the tokenizer's own
            special tokens and template; None: the tokenizer's.

    Attributes:
        head: ids before the audio.
        eos_id: ends every target.
        uses_chat_template: True if prompts go through the tokenizer's template.

    Raises:
        ValueError: the tokenizer is broken or has no end-of-sequence token, or there
            is no chat template where one is asked for, or one that cannot be used; a
            layout has ids that the tokenizer does not know.
    """

    def __init__(
        self,
        tokenizer,
        kind: str,
        path: str | Path = "",
        use_chat_template: bool | str = "auto",
        layout: dict | None = None,
    ):
        self.tokenizer, self.kind, self.path = tokenizer, kind, str(path)
        self._check_tokenizer()
        self.eos_id = tokenizer.eos_token_id
        self.layout = None if layout is None else self._checked(Layout(**layout))
        if self.layout is not None and use_chat_template == "auto":
            use_chat_template = False
        self.uses_chat_template = self._wants_template(use_chat_template)
        self._space = " " * self._needs_space()
        self.head = self._split("")[0]

    def encode_prompt(self, text: str) -> list[int]:
        """Ids that follow the audio: the text and what the model expects after it.

        Raises:
            ValueError: the chat template puts something else before this text.
        """
        head, tail = self._split(text)
        if head != self.head:
            raise ValueError(
                f"the chat template of {self.path} begins differently for {text!r} "
                "than for an empty text. Set language_model_conf.use_chat_template to "
                "false."
            )
        return tail

    def encode_target(self, text: str) -> list[int]:
        """Ids to predict: the text as the model was trained to write it, then EOS."""
        text = text.strip()
        if self.kind == "seq2seq":  # BART's targets open with <s>, T5's do not
            ids = list(self.tokenizer(text).input_ids)
            return ids if ids[-1:] == [self.eos_id] else [*ids, self.eos_id]
        text = self._space + text
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        return [*ids, self.eos_id]

    def _split(self, text: str) -> tuple[list[int], list[int]]:
        """Ids before the audio and after it."""
        if self.layout is not None:
            text = text.strip() + self.layout.after_prompt
            ids = self.tokenizer(text, add_special_tokens=False).input_ids
            return [*self.layout.head], [*self.layout.before_prompt, *ids]
        if self.uses_chat_template:
            return self._split_chat(text)
        head, ids = [], list(self.tokenizer(text).input_ids)
        if ids and ids[0] == self.tokenizer.bos_token_id:
            head, ids = ids[:1], ids[1:]
        if self.kind == "causal" and ids[-1:] == [self.eos_id]:
            ids = ids[:-1]  # the text goes on with the target
        return head, ids

    def _split_chat(self, text: str) -> tuple[list[int], list[int]]:
        rendered = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": AUDIO_MARK + ("\n" + text if text else "")}],
            add_generation_prompt=True,
            tokenize=False,
            enable_thinking=False,  # Qwen3; other templates ignore it
        )
        before, mark, after = rendered.partition(AUDIO_MARK)
        if not mark:
            raise ValueError(
                f"the chat template of {self.path} leaves the user's words out or "
                "changes them, so there is no place for the audio. Set "
                "language_model_conf.use_chat_template to false."
            )
        encode = self.tokenizer  # the template has written the special tokens itself
        head, tail = (
            list(encode(part, add_special_tokens=False).input_ids)
            for part in (before, after)
        )
        return head, tail

    def _check_tokenizer(self) -> None:
        tokenizer = self.tokenizer
        probe = tokenizer("a dog barks", add_special_tokens=False).input_ids
        if not probe or set(probe) == {tokenizer.unk_token_id}:
            raise ValueError(
                f"{self.path}: the tokenizer ({len(tokenizer)} tokens) turns plain "
                f"English into {probe}, nothing but unknown tokens, so every text "
                "would look the same. Its vocabulary file was not read; load and save "
                "it with AutoTokenizer.from_pretrained."
            )
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"{self.path}: the tokenizer has no end-of-sequence token, so targets "
                "could not end. Set eos_token in its tokenizer_config.json."
            )

    def _checked(self, layout: Layout) -> Layout:
        known = len(self.tokenizer)
        strangers = [i for i in layout.head + layout.before_prompt if i >= known]
        if strangers:
            raise ValueError(
                f"language_model_conf.layout: expected ids below {known}, the tokens "
                f"of {self.path}, found {strangers}. Give the tokenizer that they were "
                "made with."
            )
        return layout

    def _wants_template(self, use_chat_template: bool | str) -> bool:
        if use_chat_template not in ("auto", True, False):
            raise ValueError(
                "use_chat_template: expected auto, true or false, found "
                f"{use_chat_template!r}"
            )
        has_one = bool(self.tokenizer.chat_template)
        if use_chat_template is True and self.layout is not None:
            raise ValueError(
                "language_model_conf: expected layout or use_chat_template, found both."
                " Leave one out."
            )
        if use_chat_template is True and not has_one:
            raise ValueError(
                f"use_chat_template is true, but the tokenizer of {self.path} has no "
                "chat template. Leave it at auto."
            )
        return has_one if use_chat_template == "auto" else bool(use_chat_template)

    def _needs_space(self) -> bool:
        """True if words inside a text are other tokens than words that open one.

        A causal model's target goes on where the prompt stopped. Byte-level BPE (GPT-2,
        OPT, Qwen) then expects " dog", while SentencePiece puts the blank by itself.
        """
        if self.kind == "seq2seq" or self.uses_chat_template:
            return False
        plain, spaced = (
            self.tokenizer(text, add_special_tokens=False).input_ids
            for text in ("a", " a")
        )
        first = self.tokenizer.convert_ids_to_tokens(plain)[0]
        return plain != spaced and not first.startswith("\u2581")


def load_prompt_encoder(
    path: str | Path,
    revision: str | None = None,
    trust_remote_code: bool = False,
    use_chat_template: bool | str = "auto",
    layout: dict | None = None,
) -> PromptEncoder:
    """Load a language model's tokenizer and configuration, without its weights.

    Args:
        path: folder, or a name on the Hugging Face Hub.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: run code that comes with the model.
        use_chat_template: see `PromptEncoder`.
        layout: see `PromptEncoder`.

    Returns:
        The encoder of prompts and targets.

    Raises:
        ValueError: see `PromptEncoder`.
    """
    # A forked data worker would otherwise warn, and tokenise no faster.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers import AutoConfig, AutoTokenizer

    hub = dict(revision=revision, trust_remote_code=trust_remote_code)
    config = AutoConfig.from_pretrained(path, **hub)
    tokenizer = AutoTokenizer.from_pretrained(path, **hub)
    kind = "seq2seq" if config.is_encoder_decoder else "causal"
    return PromptEncoder(tokenizer, kind, path, use_chat_template, layout)
