"""Configurations that train in seconds, and a recipe directory's command for them."""

import os
import sys

QFORMER = (
    "qformer_conf: {width: 16, layers: 2, heads: 2, feed_forward: 32, num_queries: 3,"
    " max_text_length: 64, dropout: 0.0}\n"
)
TRAINING = (
    "batch_size: 8\nnum_workers: 0\nseed: 0\noptim: adamw\noptim_conf: {lr: 0.001}\n"
    "use_matplotlib: false\nuse_tensorboard: false\n"
    "best_model_criterion:\n- [valid, loss, min]\n"
)
UNSORTED = "batch_type: unsorted\n"
CATEGORIES = (  # as in conf/full/train_instruction_*.yaml
    "iterator_type: category\nbatch_type: catpow\nupsampling_factor: 0.5\n"
    "batch_bins: 1000000000\nmax_batch_size: 8\n"
    "valid_iterator_type: sequence\nvalid_batch_type: unsorted\n"
    "preprocessor_conf: {max_prompt_length: 48}\n"
)


def write_configs(conf, epochs):
    """conf/{train_*,decode}_tiny.yaml; instruction tuning draws by category."""
    for name in ("representation", "generative", "instruction"):
        batches = CATEGORIES if name == "instruction" else UNSORTED
        text = f"model: {name}\nmax_epoch: {epochs}\n{QFORMER}{TRAINING}{batches}"
        (conf / f"train_{name}_tiny.yaml").write_text(text)
    (conf / "decode_tiny.yaml").write_text(
        "caption: {num_beams: 2, max_new_tokens: 8}\nrerank: 2\n"
    )


def options(parts):
    """Options of slit.sh for tiny frozen parts, on this machine."""
    return [
        *["--config", "tiny", "--ngpu", "0", "--nj", "1"],
        *["--audio_encoder_path", str(parts.beats), "--language_model", str(parts.t5)],
        *["--qformer_tokenizer", str(parts.tokenizer), "--qformer_init", ""],
        *["--score_args", "--report false --resamples 20 --tokenizer python"],
    ]


def environment(**more):
    """This Python for the scripts, and nothing installed."""
    return {**os.environ, "PYTHON": sys.executable, "SLIT_NO_INSTALL": "1", **more}
