"""Text -> ids, one int array per consumer; checks on audio and cached features.

Owns tokenising, the clip and caption ids that tell positives from negatives, and the
length limits. It leaves padding to the collate function and masks to the models.
"""

import hashlib
import json
import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, Union

import numpy as np
import torch

from espnet2_slit.common import compat, templates
from espnet2_slit.common.texts import normalize_caption
from espnet2_slit.data.kaldi_dir import read_pairs

compat.prepare_espnet_import()

from espnet2.train.preprocessor import AbsPreprocessor  # noqa: E402

TEXTS_LOOKED_AT = 5000  # of a set, before training: seconds
OTHER_LANGUAGES = (
    "Take a language model and a Q-Former tokenizer of this language, such as"
    " google/mt5-base and bert-base-multilingual-cased (docs/own_data.md)."
)
# Sentences whose ids tell two tokenizers apart that share a vocabulary: case,
# accents, punctuation, digits, blanks, an unknown character.
_PROBE = (
    "A dog barks twice, then a car passes.",
    "Ein Müller läßt ÄÖÜ  fallen -- 12.5 kHz!",
    "[CLS] what's that\tsound?\u3042\U0001f50a",
)


def load_qformer_tokenizer(path: str):
    """Tokenizer of the Q-Former's text side, with [DEC] as its bos token.

    Args:
        path: folder or hub name of a BERT-style Hugging Face tokenizer.

    Returns:
        The tokenizer; its bos token starts generation, as LAVIS' [DEC] does.

    Raises:
        ValueError: no tokenizer there, or one without [CLS], [SEP] or padding.
    """
    # a forked data worker would otherwise warn, and tokenise no faster
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"qformer_tokenizer: expected the folder or hub name of a BERT-style "
            f"tokenizer, found {path!r} ({error}). Give --qformer_tokenizer, for "
            "example bert-base-uncased or a folder holding tokenizer.json."
        ) from error
    missing = [
        name
        for name in ("cls_token", "sep_token", "pad_token")
        if getattr(tokenizer, name) is None
    ]
    if missing:
        raise ValueError(
            f"qformer_tokenizer {path!r}: expected a BERT-style tokenizer with "
            f"cls_token, sep_token and pad_token, found none for {', '.join(missing)}."
            " Use bert-base-uncased or another BERT tokenizer."
        )
    if tokenizer.bos_token_id in (None, tokenizer.cls_token_id):
        tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    # lengths are limited below, with a count; not here, with a warning per line
    tokenizer.model_max_length = int(1e9)
    return tokenizer


def qformer_tokenizer_identity(tokenizer) -> Dict[str, Any]:
    """What must be equal for trained text weights to make sense with a tokenizer."""
    digest = hashlib.sha256()
    digest.update(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    for sentence in _PROBE:
        digest.update(json.dumps(tokenizer(sentence)["input_ids"]).encode())
    return {
        "fingerprint": digest.hexdigest(),
        "vocab_size": len(tokenizer),
        "pad_id": tokenizer.pad_token_id,
        "bos_id": tokenizer.bos_token_id,
    }


def unknown_share(tokenizer, text: str) -> float:
    """How much of a text a tokenizer cannot write.

    Args:
        tokenizer: of transformers.
        text: any.

    Returns:
        Share of its characters, blanks aside, that become the unknown token; of its
        tokens where the tokenizer does not say which characters they are of.
    """
    unknown = tokenizer.unk_token_id
    found = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast
    )
    ids = found["input_ids"]
    if unknown is None or unknown not in ids:
        return 0.0
    if not tokenizer.is_fast:
        return ids.count(unknown) / len(ids)
    lost = {
        place
        for piece, (start, end) in zip(ids, found["offset_mapping"], strict=True)
        if piece == unknown
        for place in range(start, end)
        if not text[place].isspace()
    }
    return len(lost) / max(1, sum(not character.isspace() for character in text))


def stable_id(text: str) -> int:
    """63-bit hash of a string: the same on every machine, rank and run."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # an int64 holds 63 bits and a sign


class SLITPreprocessor(AbsPreprocessor):
    """One sample's strings -> the int arrays its training stage needs.

    | stage | arrays |
    |---|---|
    | representation | qformer_text, clip_id, text_id |
    | generative | llm_target, clip_id; llm_prompt if `prompt` is set |
    | instruction | llm_prompt, llm_target, clip_id; qformer_instruction unless off |

    Called twice on a sample, or first on a part of it (ESPnet's streaming data set
    does so), it gives the same arrays.

    Args:
        train: True for training data: then wordings of a default instruction vary.
        model: representation, generative or instruction.
        qformer_tokenizer: folder or hub name.
        language_model: folder or hub name; only its tokenizer is loaded.
        language_model_conf: options of the language model, for its tokenizer.
        max_text_length: tokens of `qformer_text`, with [CLS] and [SEP].
        max_prompt_length: tokens of an instruction; its beginning is cut off.
        max_target_length: tokens of `llm_target`. A target that is cut has no EOS:
            the text goes on, and the model should not learn to stop there.
        prompt: fixed prompt before the target; generative only.
        qformer_instruction: give the instruction to the Q-Former too.
        default_task: task whose wording is used for samples without `instruction`.
        default_instruction: one wording for them instead.
        language: of that task's wordings, e.g. en or de.
        feature_width: expected width of cached features, 0 for any.
        augment: keywords of `augment.Augmentation` (roll, mix), for training data whose
            waveforms are read; None for no augmentation.
    """

    def __init__(
        self,
        train: bool,
        model: str,
        qformer_tokenizer: str,
        language_model: str = "",
        language_model_conf: Union[Dict[str, Any], None] = None,
        max_text_length: int = 32,
        max_prompt_length: int = 128,
        max_target_length: int = 128,
        prompt: str = "",
        qformer_instruction: bool = True,
        default_task: str = "caption",
        default_instruction: str = "",
        language: str = "en",
        feature_width: int = 0,
        augment: Union[Dict[str, Any], None] = None,
    ):
        super().__init__(train)
        for name, length in (
            ("max_text_length", max_text_length),
            ("max_prompt_length", max_prompt_length),
            ("max_target_length", max_target_length),
        ):
            if length < 3:  # [CLS] token [SEP]
                raise ValueError(f"{name}: expected at least 3, found {length}.")
        if default_task not in templates.TEMPLATES:
            templates.instruction(default_task)  # raises, naming the choices
        self.language = language
        if prompt and model != "generative":
            raise ValueError(
                f"preprocessor_conf.prompt: expected none for the {model} model, found "
                f"{prompt!r}. A fixed prompt belongs to the generative model; the "
                "instruction model takes its prompts from the instruction file."
            )
        self.model = model
        self.max_text_length = max_text_length
        self.max_prompt_length = max_prompt_length
        self.max_target_length = max_target_length
        self.qformer_instruction = qformer_instruction and model == "instruction"
        self.default_task = default_task
        self.default_instruction = default_instruction
        self.feature_width = feature_width
        self.tokenizer: Any = None  # where the stage has Q-Former text
        if model == "representation" or self.qformer_instruction:
            self.tokenizer = load_qformer_tokenizer(qformer_tokenizer)
        self.prompt_encoder: Any = None  # where it has a language model
        self.prompt_ids: List[int] = []
        if model in ("generative", "instruction"):
            from espnet2_slit.data.prompt_encoder import load_prompt_encoder

            conf = language_model_conf or {}
            text_side = (
                "revision",
                "trust_remote_code",
                "use_chat_template",
                "layout",
            )
            self.prompt_encoder = load_prompt_encoder(
                language_model, **{k: conf[k] for k in text_side if k in conf}
            )
            if prompt:
                self.prompt_ids = self.prompt_encoder.encode_prompt(prompt)
        self.augmentation: Any = None
        if augment and train:
            self.augmentation = _augmentation(augment)
        self.counts: Counter = Counter()  # of this process: what was cut or odd

    def __call__(
        self, uid: str, data: Dict[str, Union[str, np.ndarray]]
    ) -> Dict[str, np.ndarray]:
        """Arrays of one sample; strings are consumed, arrays pass through.

        Args:
            uid: sample id, for messages and as clip id where none is given.
            data: speech (S,) or feats (T, D_a), and the strings text, instruction
                and clip, as far as the data directory has them; text_variants, a JSON
                list of paraphrases, of which training draws one or `text` an epoch.

        Returns:
            Arrays only, int64 for ids.

        Raises:
            ValueError: empty text or audio, a wrong shape, a training text of which the
                tokenizer knows less than half; the message names `uid`.
        """
        strings = {k: v for k, v in data.items() if isinstance(v, str)}
        arrays = {k: v for k, v in data.items() if not isinstance(v, str)}
        known = {"text", "text_variants", "instruction", "clip"}
        unknown = sorted(set(strings) - known)
        if unknown:
            raise ValueError(
                f"utterance {uid}: expected the strings text, instruction and clip, "
                f"found {', '.join(unknown)}. Correct the names in "
                "--train_data_path_and_name_and_type."
            )
        if "text_variants" in strings and "text" in strings and self.train:
            strings["text"] = self._variant(uid, strings)
        if "speech" in arrays:
            arrays["speech"] = self._checked_speech(uid, arrays["speech"])
        if self.augmentation is not None:
            self._augment(uid, strings, arrays)
        if "feats" in arrays:
            self._check_feats(uid, arrays["feats"])
        if "clip" in strings or "clip_id" not in arrays:
            arrays["clip_id"] = _ints([stable_id(strings.get("clip", uid))])
        if "text" in strings:
            arrays.update(self._text_arrays(uid, strings["text"]))
        if self.model == "instruction":
            if "instruction" in strings:
                arrays.update(self._instruction_arrays(uid, strings["instruction"]))
            elif "text" in strings and "llm_prompt" not in arrays:
                arrays.update(self._instruction_arrays(uid, self._default(uid)))
        return arrays

    def _augment(self, uid: str, strings: Dict[str, str], arrays) -> None:
        """Put this epoch's audio, caption and clip in the place of a sample's own."""
        if "feats" in arrays:
            self.counts["augment"] += 1
            if self.counts["augment"] == 1:
                logging.warning(
                    f"preprocessor_conf.augment: nothing is augmented (utterance {uid}"
                    " and all others): features are cached, no waveform is read. Train"
                    " with --cache_features false."
                )
            return
        epoch = _epoch_seed()
        if "speech" in arrays and "clip_id" not in arrays:  # not yet in a call before
            arrays["speech"] = self.augmentation.audio(epoch, uid, arrays["speech"])
        if "text" in strings:
            strings["text"] = self.augmentation.text(epoch, uid, strings["text"])
        if "clip" in strings or "clip_id" not in arrays:
            clip = strings.get("clip", uid)
            strings["clip"] = self.augmentation.clip(epoch, uid, clip)

    def _variant(self, uid: str, strings: Dict[str, str]) -> str:
        """The text or one of its paraphrases, drawn by the epoch's seed and the id."""
        try:
            found = json.loads(strings["text_variants"])
        except json.JSONDecodeError:
            found = None
        if not isinstance(found, list) or not all(isinstance(v, str) for v in found):
            raise ValueError(
                f"utterance {uid}: text_variants is {strings['text_variants']!r:.60}, "
                "expected a JSON list of texts."
            )
        found = [strings["text"], *found]
        return found[stable_id(f"{_epoch_seed()} {uid} text") % len(found)]

    def _text_arrays(self, uid: str, text: str) -> Dict[str, np.ndarray]:
        if not text.strip():
            raise ValueError(
                f"utterance {uid}: expected a text, found an empty line. Remove the "
                "utterance (slit_data fix does so) or write its text."
            )
        if self.model == "representation":
            ids = self.tokenizer(text)["input_ids"]
            self._check_known(uid, text, ids, self.tokenizer)
            ids = self._cut(uid, "text", ids, self.max_text_length)
            return {
                "qformer_text": _ints(ids),
                "text_id": _ints([stable_id(normalize_caption(text))]),
            }
        ids = self.prompt_encoder.encode_target(text)
        self._check_known(uid, text, ids, self.prompt_encoder.tokenizer)
        if len(ids) > self.max_target_length:
            self._count(uid, "target", len(ids), self.max_target_length)
            ids = ids[: self.max_target_length]
        arrays = {"llm_target": _ints(ids)}
        if self.prompt_ids:
            arrays["llm_prompt"] = _ints(self.prompt_ids)
        return arrays

    def _instruction_arrays(self, uid: str, instruction: str) -> Dict[str, np.ndarray]:
        if not instruction.strip():
            raise ValueError(
                f"utterance {uid}: expected an instruction, found an empty line. "
                "Write it, or leave the instruction file out to use the wording of "
                f"default_task ({self.default_task})."
            )
        ids = self.prompt_encoder.encode_prompt(instruction)
        if len(ids) > self.max_prompt_length:
            self._count(uid, "prompt", len(ids), self.max_prompt_length)
            ids = ids[-self.max_prompt_length :]
        arrays = {"llm_prompt": _ints(ids)}
        if self.qformer_instruction:
            ids = self.tokenizer(instruction)["input_ids"]
            arrays["qformer_instruction"] = _ints(
                self._cut(uid, "instruction", ids, self.max_prompt_length, left=True)
            )
        return arrays

    def _default(self, uid: str) -> str:
        """Wording for a sample without `instruction`; varied while training.

        Drawn by the sample's id and the epoch's seed: whichever worker loads it, and
        whether or not the epoch was resumed in its middle.
        """
        if self.default_instruction:
            return self.default_instruction
        variant = stable_id(f"{_epoch_seed()} {uid}") if self.train else 0
        return templates.instruction(
            self.default_task, variant=variant, language=self.language
        )

    def _cut(self, uid, what, ids, limit, left=False) -> List[int]:
        """Cut to `limit` tokens, keeping [CLS] in front and [SEP] at the end."""
        if len(ids) <= limit:
            return ids
        self._count(uid, what, len(ids), limit)
        return ids[:1] + ids[1 - limit :] if left else ids[: limit - 1] + ids[-1:]

    def _count(self, uid: str, what: str, found: int, limit: int) -> None:
        """Count a cut; say so at the 1st, 10th, 100th ... of this process."""
        self.counts[what] += 1
        count = self.counts[what]
        if count == 10 ** (len(str(count)) - 1):
            logging.warning(
                f"utterance {uid}: {what} has {found} tokens and was cut to {limit} "
                f"({count} so far in this process). Raise "
                f"preprocessor_conf.max_{_LIMITS[what]}_length to keep it whole."
            )

    def say_unknown(self, folder: Union[str, Path]) -> None:
        """Say once, before training, how much of a set's texts cannot be written.

        Args:
            folder: data directory with `text`; of a large one every nth text is read.

        Raises:
            ValueError: more than half of what was read is unknown to a tokenizer.
        """
        texts = [text for _, text in read_pairs(Path(folder) / "text")]
        texts = texts[:: max(1, len(texts) // TEXTS_LOOKED_AT)]
        tokenizer = self.tokenizer or self.prompt_encoder.tokenizer
        shares = [unknown_share(tokenizer, text) for text in texts]
        odd = sum(share > 0 for share in shares)
        share = sum(shares) / max(1, len(shares))
        said = (
            f"{folder}: {share:.1%} of the text is unknown to the tokenizer of"
            f" {tokenizer.name_or_path} ({odd} of {len(texts)} texts looked at)"
        )
        if share > 0.5:
            raise ValueError(f"{said}. {OTHER_LANGUAGES}")
        if odd:
            logging.warning(f"{said}. {OTHER_LANGUAGES}")

    def _check_known(self, uid: str, text: str, ids: List[int], tokenizer) -> None:
        """Count texts that the tokenizer cannot write in full; say so now and then.

        Raises:
            ValueError: most of a training text is unknown to it.
        """
        self.counts["texts"] += 1
        if tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids:
            return
        share = unknown_share(tokenizer, text)
        self.counts["unknown texts"] += 1
        count, seen = self.counts["unknown texts"], self.counts["texts"]
        said = (
            f"utterance {uid}: {share:.0%} of {text!r:.80} is unknown to the tokenizer"
            f" of {tokenizer.name_or_path}, which writes {tokenizer.unk_token} instead"
        )
        if self.train and share > 0.5:
            raise ValueError(f"{said}. {OTHER_LANGUAGES}")
        if count == 10 ** (len(str(count)) - 1):
            logging.warning(
                f"{said} ({count} of {seen} texts of this process so far,"
                f" {count / seen:.1%}). {OTHER_LANGUAGES}"
            )

    def _checked_speech(self, uid: str, speech: np.ndarray) -> np.ndarray:
        if speech.ndim == 2:  # (S, channels) of ESPnet's sound reader
            self.counts["channels"] += 1
            if self.counts["channels"] == 1:
                logging.warning(
                    f"utterance {uid}: {speech.shape[1]} channels are averaged to "
                    "one (said once; data preparation writes one channel)."
                )
            speech = speech.mean(axis=1, dtype=np.float32)
        if speech.ndim != 1 or not speech.size:
            raise ValueError(
                f"utterance {uid}: expected audio (S,) with S > 0, found shape "
                f"{speech.shape}. Remove the utterance; slit_data validate lists such."
            )
        self._warn_if_not_finite(uid, "audio", speech)
        return speech

    def _check_feats(self, uid: str, feats: np.ndarray) -> None:
        width = self.feature_width
        if feats.ndim != 2 or not feats.size or width not in (0, feats.shape[-1]):
            raise ValueError(
                f"utterance {uid}: expected cached features (T, {width or 'D_a'}) with "
                f"T > 0, found shape {feats.shape}. Encode the set again (slit_encode)."
            )
        self._warn_if_not_finite(uid, "features", feats)

    def _warn_if_not_finite(self, uid: str, what: str, array: np.ndarray) -> None:
        # one float64 sum is enough to see a NaN or Inf and costs no extra array
        if np.isfinite(array.sum(dtype=np.float64)):
            return
        self.counts["not finite"] += 1
        if self.counts["not finite"] <= 20:
            logging.warning(
                f"utterance {uid}: {what} hold NaN or Inf; the trainer will skip its "
                "batch. Remove the utterance or prepare it again."
            )


_LIMITS = {
    "text": "text",
    "target": "target",
    "prompt": "prompt",
    "instruction": "prompt",
}


def _augmentation(conf: Dict[str, Any]):
    from espnet2_slit.data.augment import Augmentation

    known = ("roll", "mix", "folder")
    unknown = sorted(set(conf) - set(known))
    if unknown:
        raise ValueError(
            f"preprocessor_conf.augment: expected {', '.join(known)}, found"
            f" {', '.join(unknown)}."
        )
    return Augmentation(**conf)


def _epoch_seed() -> int:
    """What ESPnet seeded this epoch with, or what its workers' seeds were drawn to."""
    worker = torch.utils.data.get_worker_info()
    return torch.initial_seed() if worker is None else worker.seed - worker.id


def _ints(ids: List[int]) -> np.ndarray:
    return np.asarray(ids, dtype=np.int64)
