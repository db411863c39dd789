"""Small, randomly initialised pretrained parts, saved as the real ones are.

Every function writes a folder or file and returns its path, to be loaded through the
real path (`from_pretrained`, a BEATs checkpoint). Nothing is downloaded. Weights depend
on `seed` alone; the caller's random state is left as it was.
"""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SENTENCES = [
    "a dog barks twice and then a car passes by",
    "a bell rings while water flows in the background",
    "loud rain falls on a roof and thunder rolls",
    "what is making the sound in this clip?",
    "a woman speaks softly and a door closes",
    "how many times does the bird chirp? answer shortly.",
    "describe the audio: birds chirp and the wind blows",
    "an engine starts, runs, and stops; someone laughs",
    "yes, no, one, two, three, a rising tone, a falling tone",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

BEATS = dict(
    input_patch_size=16,
    embed_dim=16,
    encoder_layers=2,
    encoder_embed_dim=24,
    encoder_ffn_embed_dim=32,
    encoder_attention_heads=2,
    conv_pos=16,
    conv_pos_groups=4,
    relative_position_embedding=True,
    num_buckets=20,
    max_distance=40,
    gru_rel_pos=True,
    deep_norm=True,
    layer_norm_first=False,
    dropout=0.1,
    attention_dropout=0.1,
)
WIDTH = 16  # of the language models
LM_CLASSES = {
    "t5": "T5ForConditionalGeneration",
    "bart": "BartForConditionalGeneration",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "opt": "OPTForCausalLM",
}


# ------------------------------------------------------------------- tokenizers


def _wrap(tokenizer: Tokenizer, folder: Path, **special) -> Path:
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **special
    )
    wrapped.save_pretrained(folder)
    return folder


def sentencepiece_tokenizer(
    folder, bos: bool = False, eos: bool = True, vocab_size: int = 120
) -> Path:
    """A tokenizer with SentencePiece's blanks and the marks of T5 (eos) or LLaMA (bos).

    BPE as LLaMA's; T5's own unigram model trains differently from run to run.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "</s>", "<unk>", "<s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    ids = {token: tokenizer.token_to_id(token) for token in ("<s>", "</s>")}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> " * bos + "$A" + " </s>" * eos,
        pair="<s> " * bos + "$A $B" + " </s>" * eos,
        special_tokens=list(ids.items()),
    )
    special = dict(eos_token="</s>", unk_token="<unk>")
    special |= dict(bos_token="<s>") if bos else dict(pad_token="<pad>")
    return _wrap(tokenizer, Path(folder), **special)


def byte_tokenizer(
    folder, bos: str = "", eos: str = "<|endoftext|>", chat_template: str = ""
) -> Path:
    """A byte-level BPE tokenizer: GPT-2's; OPT's and BART's (bos); Qwen's (chat)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    pad = "<|endoftext|>" if chat_template else "<pad>"  # as Qwen; others as OPT
    special = [eos] + [bos] * (bos not in ("", eos)) + [pad] * (pad != eos)
    special += ["<|im_start|>"] * bool(chat_template)
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if bos:
        ids = {token: tokenizer.token_to_id(token) for token in (bos, eos)}
        tail = "" if bos == eos else f" {eos}"  # OPT opens with </s>, BART also closes
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A{tail}",
            pair=f"{bos} $A $B{tail}",
            special_tokens=list(ids.items()),
        )
    marks = dict(eos_token=eos)
    if bos:
        marks |= dict(bos_token=bos, pad_token=pad)
    if chat_template:
        marks |= dict(pad_token=pad, chat_template=chat_template)
    return _wrap(tokenizer, Path(folder), **marks)


def bert_tokenizer(folder, vocab_size: int = 200) -> Path:
    """A WordPiece tokenizer as BERT's: lower-case, [CLS] ... [SEP], no [DEC]."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=ids,
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return _wrap(tokenizer, Path(folder), **dict(zip(names, special, strict=True)))


# -------------------------------------------------------------- language models


def _save(
    model_class: str, config, folder: Path, seed: int, scale=1.0, untie=False
) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, model_class)(config)
        if untie:
            head = model.get_output_embeddings()
            head.weight = torch.nn.Parameter(torch.randn_like(head.weight))
    if scale != 1.0:  # tiny models from 0.02-normal weights answer nearly uniformly
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(scale)
    model.save_pretrained(folder)
    return folder


def _causal(name: str, folder: Path, config, seed: int) -> Path:
    return _save(LM_CLASSES[name], config, folder, seed, scale=8.0)


def _ids(folder: Path) -> dict:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return dict(
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def t5(folder, seed: int = 0) -> Path:
    """A T5 of FLAN's kind (gated GELU, untied head), with more rows than tokens."""
    folder = sentencepiece_tokenizer(Path(folder))
    ids = _ids(folder)
    ids.pop("bos_token_id")
    ids["vocab_size"] += 8  # as the real ones: 32,128 rows for 32,100 tokens
    config = transformers.T5Config(
        **ids,
        d_model=WIDTH,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=32,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,  # do not scale the decoder's output
        decoder_start_token_id=ids["pad_token_id"],
    )
    # The class ties all the same; FLAN-T5's files hold a head of their own.
    return _save(LM_CLASSES["t5"], config, folder, seed, untie=True)


def bart(folder, seed: int = 0) -> Path:
    """A BART: decoding starts with </s>, targets are `<s> text </s>`."""
    folder = byte_tokenizer(Path(folder), bos="<s>", eos="</s>")
    ids = _ids(folder)
    config = transformers.BartConfig(
        **ids,
        d_model=WIDTH,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=128,
        decoder_start_token_id=ids["eos_token_id"],
        forced_eos_token_id=None,
        init_std=0.1,
    )
    return _save(LM_CLASSES["bart"], config, folder, seed)


def _decoder_sizes() -> dict:
    return dict(
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
    )


def llama(folder, seed: int = 0) -> Path:
    """A LLaMA: BOS before text, no pad token."""
    folder = sentencepiece_tokenizer(Path(folder), bos=True, eos=False)
    config = transformers.LlamaConfig(**_ids(folder), **_decoder_sizes())
    return _causal("llama", folder, config, seed)


def mistral(folder, seed: int = 0) -> Path:
    """A Mistral with a sliding window shorter than the usual sequence."""
    folder = sentencepiece_tokenizer(Path(folder), bos=True, eos=False)
    config = transformers.MistralConfig(
        **_ids(folder), **_decoder_sizes(), sliding_window=24
    )
    return _causal("mistral", folder, config, seed)


def qwen2(folder, seed: int = 0) -> Path:
    """A Qwen2: no BOS, chat template, <|im_end|> ends a turn."""
    folder = byte_tokenizer(Path(folder), eos="<|im_end|>", chat_template=CHAT_TEMPLATE)
    config = transformers.Qwen2Config(**_ids(folder), **_decoder_sizes())
    return _causal("qwen2", folder, config, seed)


def qwen3(folder, seed: int = 0) -> Path:
    """A Qwen3: Qwen2 with normalised heads of their own width."""
    folder = byte_tokenizer(Path(folder), eos="<|im_end|>", chat_template=CHAT_TEMPLATE)
    config = transformers.Qwen3Config(**_ids(folder), **_decoder_sizes(), head_dim=8)
    return _causal("qwen3", folder, config, seed)


def gpt2(folder, seed: int = 0) -> Path:
    """A GPT-2: learned positions, no BOS before text, no pad token."""
    folder = byte_tokenizer(Path(folder))
    ids = _ids(folder)
    config = transformers.GPT2Config(
        **{**ids, "bos_token_id": ids["eos_token_id"]},
        n_embd=WIDTH,
        n_layer=2,
        n_head=2,
        n_positions=256,
    )
    return _causal("gpt2", folder, config, seed)


def opt(folder, seed: int = 0) -> Path:
    """An OPT as 350m: embeddings narrower than the model, </s> before text."""
    folder = byte_tokenizer(Path(folder), bos="</s>", eos="</s>")
    config = transformers.OPTConfig(
        **_ids(folder),
        word_embed_proj_dim=WIDTH,
        hidden_size=2 * WIDTH,
        ffn_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        do_layer_norm_before=False,
    )
    return _causal("opt", folder, config, seed)


LANGUAGE_MODELS = {
    "t5": t5,
    "bart": bart,
    "llama": llama,
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "gpt2": gpt2,
    "opt": opt,
}


# --------------------------------------------------------------- audio encoders


def beats_checkpoint(folder, seed: int = 0, **config) -> Path:
    """A BEATs checkpoint `{"cfg", "model"}` as the published files are."""
    from espnet2_slit.common.compat import BeatsEncoder

    config = {**BEATS, **config}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = BeatsEncoder(input_size=1, beats_config=config)
        for parameter in encoder.parameters():
            if parameter.requires_grad and parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    # 202611 adds two constant all-ones convolutions that no published file has.
    weights = {
        key: value
        for key, value in encoder.state_dict().items()
        if not key.startswith(("patch_embedding_pad", "raw2fbank_pad"))
    }
    path = Path(folder) / "beats.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"cfg": config, "model": weights}, path)
    return path


def _write_extractor(folder: Path, extractor_class: str, **options) -> None:
    getattr(transformers, extractor_class)(**options).save_pretrained(folder)


def ast(folder, seed: int = 0) -> Path:
    """An Audio Spectrogram Transformer with its published time geometry."""
    folder = Path(folder)
    config = transformers.ASTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    _write_extractor(folder, "ASTFeatureExtractor")
    return _save("ASTModel", config, folder, seed)


def clap(folder, seed: int = 0) -> Path:
    """A CLAP with an HTS-AT audio tower of published geometry, narrow."""
    folder = Path(folder)
    audio = dict(
        patch_embeds_hidden_size=8,
        hidden_size=64,
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 1, 1],
        projection_dim=WIDTH,
    )
    text = dict(
        vocab_size=32,
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=16,
        projection_dim=WIDTH,
    )
    config = transformers.ClapConfig(
        audio_config=audio, text_config=text, projection_dim=WIDTH
    )
    _write_extractor(
        folder, "ClapFeatureExtractor", truncation="rand_trunc", padding="repeatpad"
    )
    return _save("ClapModel", config, folder, seed)


def whisper(folder, seed: int = 0) -> Path:
    """A Whisper with a 30 s encoder."""
    folder = Path(folder)
    config = transformers.WhisperConfig(
        vocab_size=64,
        d_model=WIDTH,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    _write_extractor(folder, "WhisperFeatureExtractor", feature_size=80)
    return _save("WhisperModel", config, folder, seed)


def _wave_config(config_class: str, **more):
    return getattr(transformers, config_class)(
        vocab_size=32,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8, 8, 8, 8, 8, 8, 8),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        **more,
    )


def wav2vec2(folder, seed: int = 0) -> Path:
    """A wav2vec 2.0 base: group norm in the first convolution."""
    folder = Path(folder)
    _write_extractor(folder, "Wav2Vec2FeatureExtractor", do_normalize=True)
    return _save("Wav2Vec2Model", _wave_config("Wav2Vec2Config"), folder, seed)


def hubert(folder, seed: int = 0) -> Path:
    """A HuBERT large: layer norm in every convolution, pre-norm layers."""
    folder = Path(folder)
    config = _wave_config(
        "HubertConfig",
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        conv_bias=True,
    )
    _write_extractor(folder, "Wav2Vec2FeatureExtractor", return_attention_mask=True)
    return _save("HubertModel", config, folder, seed)


def wavlm(folder, seed: int = 0) -> Path:
    """A WavLM base."""
    folder = Path(folder)
    _write_extractor(folder, "Wav2Vec2FeatureExtractor", do_normalize=False)
    return _save("WavLMModel", _wave_config("WavLMConfig"), folder, seed)


def data2vec_audio(folder, seed: int = 0) -> Path:
    """A data2vec-audio base."""
    folder = Path(folder)
    config = transformers.Data2VecAudioConfig(
        vocab_size=32,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8, 8, 8, 8, 8, 8, 8),
        num_conv_pos_embeddings=2,
        conv_pos_kernel_size=5,
        num_conv_pos_embedding_groups=4,
    )
    _write_extractor(folder, "Wav2Vec2FeatureExtractor", do_normalize=True)
    return _save("Data2VecAudioModel", config, folder, seed)


AUDIO_ENCODERS = {
    "ast": ast,
    "clap": clap,
    "whisper": whisper,
    "wav2vec2": wav2vec2,
    "hubert": hubert,
    "wavlm": wavlm,
    "data2vec_audio": data2vec_audio,
}


def espnet_model(folder, seed: int = 0) -> Path:
    """A trained ESPnet recognizer's config.yaml and weights, decoder weights included.

    The statistics file that its config names does not exist, as on another machine.
    """
    import numpy as np
    import yaml

    from espnet2_slit.common import compat

    compat.prepare_espnet_import()
    from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
    from espnet2.asr.frontend.default import DefaultFrontend
    from espnet2.layers.global_mvn import GlobalMVN

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    frontend = dict(fs="8k", n_fft=256, win_length=200, hop_length=80, n_mels=20)
    encoder = dict(
        output_size=WIDTH,
        attention_heads=2,
        linear_units=32,
        num_blocks=2,
        rel_pos_type="latest",
        pos_enc_layer_type="rel_pos",
        selfattention_layer_type="rel_selfattn",
    )
    random = np.random.default_rng(seed)
    stats = folder / "stats_for_tiny.npz"
    mean, spread = random.normal(size=20), random.uniform(1, 2, size=20)
    np.savez(stats, count=1.0, sum=mean, sum_square=spread**2 + mean**2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = dict(
            frontend=DefaultFrontend(**frontend),
            normalize=GlobalMVN(str(stats)).float(),
            encoder=ConformerEncoder(input_size=20, **encoder),
            decoder=torch.nn.Linear(2, 2),
        )
    stats.unlink()
    weights = torch.nn.ModuleDict(parts).state_dict()
    torch.save(weights, folder / "valid.acc.best.pth")
    config = dict(
        input_size=None,
        frontend="default",
        frontend_conf=frontend,
        specaug=None,
        normalize="global_mvn",
        normalize_conf=dict(stats_file="exp/stats/train/feats_stats.npz"),
        preencoder=None,
        encoder="conformer",
        encoder_conf=encoder,
        postencoder=None,
        decoder="transformer",
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "valid.acc.best.pth"


def python_encoder(width=8, claimed_width=None, pads_to_s=0.0, seed=0):
    """An encoder by contract: 40 frames a second, each of its own 25 ms."""
    import torch

    class Encoder(torch.nn.Module):
        sampling_rate, output_dim = 16000, claimed_width or width

        def __init__(self):
            super().__init__()
            torch.manual_seed(seed)
            self.layer = torch.nn.Linear(400, width)

        def forward(self, audio, mask):
            count = -(-audio.shape[1] // 400)
            frames = max(count, int(pads_to_s * 40))
            audio = torch.nn.functional.pad(audio, (0, frames * 400 - audio.shape[1]))
            features = self.layer(audio.unflatten(1, (frames, 400))).tanh()
            heard = torch.arange(frames) < count
            return features, heard.expand(len(audio), -1)

    return Encoder()


def python_encoder_without_facts():
    """Breaks the contract."""
    import torch

    return torch.nn.Identity()
