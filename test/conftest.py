"""Fixtures shared by the tests: tiny frozen parts, a tiny corpus, its features.

Nothing is downloaded, one thread is used, and everything lies in pytest's own folders.
"""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest  # noqa: E402

try:
    from hypothesis import settings

    # The same examples in every run; HYPOTHESIS_PROFILE=search looks for new ones.
    settings.register_profile("repeatable", derandomize=True, deadline=None)
    settings.register_profile("search", max_examples=500, deadline=None)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
except ImportError:
    pass  # the tests that need it skip

sys.path.insert(0, str(Path(__file__).resolve().parent))

CLIPS = 6
CAPTIONS = (
    "a dog barks twice",
    "a bell rings while water flows",
    "loud rain falls on a roof",
    "a woman speaks softly",
    "birds chirp and the wind blows",
    "an engine starts and stops",
    "a car passes by",
    "thunder rolls in the background",
)
INSTRUCTIONS = ("describe the audio", "what is making the sound in this clip?")


@pytest.fixture(autouse=True)
def exact_products():
    """After each test, float32 products are exact again.

    The mini recipe's programs ask for faster ones, which are bfloat16 on some CPUs, and
    tests run them in this process.
    """
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_float32_matmul_precision("highest")


@pytest.fixture(scope="session")
def tiny_parts(tmp_path_factory):
    """Paths of a BEATs checkpoint, a T5, a LLaMA and a BERT tokenizer, all tiny."""
    import tiny

    folder = tmp_path_factory.mktemp("parts")
    return SimpleNamespace(
        beats=tiny.beats_checkpoint(folder / "beats"),
        t5=tiny.t5(folder / "t5"),
        llama=tiny.llama(folder / "llama"),
        tokenizer=tiny.bert_tokenizer(folder / "bert_tokenizer"),
    )


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory):
    """A folder with data/{train,valid}: two captions a clip, tones of 0.3-0.6 s."""
    import numpy as np
    import soundfile

    root = tmp_path_factory.mktemp("corpus")
    for name, seed in (("train", 0), ("valid", 1)):
        random = np.random.RandomState(seed)
        folder = root / "data" / name
        (root / "wav").mkdir(exist_ok=True)
        folder.mkdir(parents=True)
        files = {
            key: []
            for key in ("wav.scp", "text", "instruction", "utt2audio", "utt2spk")
        }
        for clip in range(CLIPS):
            clip_id = f"{name}-{clip}"
            path = root / "wav" / f"{clip_id}.wav"
            samples = 4800 + 960 * clip
            tone = np.sin(np.arange(samples) * (0.02 + 0.03 * clip))
            audio = 0.3 * tone + 0.05 * random.randn(samples)
            soundfile.write(path, audio.astype(np.float32), 16000)
            for i in range(2):
                sample = f"{clip_id}-{i}"
                caption = CAPTIONS[(clip + 3 * i + seed) % len(CAPTIONS)]
                files["wav.scp"].append(f"{sample} {path}")
                files["text"].append(f"{sample} {caption}")
                files["instruction"].append(f"{sample} {INSTRUCTIONS[i]}")
                files["utt2audio"].append(f"{sample} {clip_id}")
                files["utt2spk"].append(f"{sample} {sample}")
        for key, lines in files.items():
            (folder / key).write_text("".join(f"{line}\n" for line in lines))
    return root


@pytest.fixture(scope="session")
def tiny_features(tiny_corpus, tiny_parts):
    """The corpus encoded once, in full precision: corpus root / dump / <set>."""
    from espnet2_slit.data import feature_cache
    from espnet2_slit.model.audio_encoder import build_audio_encoder

    encoder = build_audio_encoder("beats", path=str(tiny_parts.beats))
    for name in ("train", "valid"):
        output_dir = tiny_corpus / "dump" / name
        output_dir.mkdir(parents=True)
        work = feature_cache.plan(tiny_corpus / "data" / name, encoder.identity())
        feature_cache.encode(work, encoder, output_dir, tolerance=0)
        feature_cache.merge(
            work,
            tiny_corpus / "data" / name,
            output_dir,
            feature_cache.encoder_facts(encoder),
        )
    return tiny_corpus / "dump"


@pytest.fixture(scope="session")
def train_command(tiny_corpus, tiny_parts):
    """Make the options of a training on the tiny corpus.

    Called with a stage, an output folder and `cached`; further options are appended.
    """

    def command(stage, output_dir, *more, cached=True, epochs=1):
        sets = tiny_corpus / ("dump" if cached else "data")
        options = [
            "--model", stage,
            "--output_dir", str(output_dir),
            "--max_epoch", str(epochs),
            "--batch_type", "unsorted",
            "--batch_size", "4",
            "--num_workers", "0",
            "--log_interval", "1",
            "--use_tensorboard", "false",
            "--use_matplotlib", "false",
            "--optim_conf", "lr=0.001",
            "--optim_conf", "weight_decay=0.05",
            "--qformer_tokenizer", str(tiny_parts.tokenizer),
            "--qformer_conf",
            "{width: 16, layers: 2, heads: 2, feed_forward: 32, num_queries: 3, "
            "max_text_length: 64, dropout: 0.0}",
        ]  # fmt: skip
        for name in ("train", "valid"):
            folder = sets / name
            option = f"--{name}_data_path_and_name_and_type"
            audio = "feats.scp,feats,kaldi_ark" if cached else "wav.scp,speech,sound"
            options += [option, f"{folder}/{audio}"]
            options += [option, f"{folder}/text,text,text"]
            options += [option, f"{folder}/utt2audio,clip,text"]
            if stage == "instruction":
                options += [option, f"{folder}/instruction,instruction,text"]
            options += [f"--{name}_shape_file", f"{folder}/text"]
        if cached:
            options += ["--features", f"{sets}/train/feats.json"]
        else:
            options += ["--audio_encoder", "beats"]
            options += ["--audio_encoder_conf", f"path={tiny_parts.beats}"]
        if stage == "instruction":
            options += ["--preprocessor_conf", "max_prompt_length=48"]
        if stage == "representation":
            options += ["--model_conf", "joint_width=8"]
        else:
            options += ["--language_model", str(tiny_parts.t5)]
        return [*options, *map(str, more)]

    return command


@pytest.fixture(scope="session")
def bad_corpus(tmp_path_factory, tiny_corpus):
    """A corpus with one clip (train-2, two samples) of NaN.

    A function that turns an online training on the tiny corpus into one on this.
    """
    import re
    import shutil

    import numpy as np
    import soundfile

    root = tmp_path_factory.mktemp("bad")
    shutil.copytree(tiny_corpus / "data", root / "data")
    wav = root / "nan.wav"
    soundfile.write(wav, np.full(6000, np.nan, np.float32), 16000, subtype="FLOAT")
    scp = root / "data" / "train" / "wav.scp"
    scp.write_text(re.sub(r"(train-2-\d) \S+", rf"\1 {wav}", scp.read_text()))

    def change(command):
        return [re.sub(f"^{tiny_corpus}/data", f"{root}/data", o) for o in command]

    return change


@pytest.fixture(scope="session")
def two_rank_commands(tmp_path_factory, tiny_features, train_command):
    """Trainings of the three stages, by plain SGD, that one and two ranks run.

    Adam turns rounding noise in a gradient that is zero into steps of full size; SGD
    does not. 12 samples in batches of 5, so that the last batch is uneven.
    """
    folder = tmp_path_factory.mktemp("two_ranks")

    def commands(where):
        return [
            train_command(
                stage,
                folder / where / stage,
                *["--optim", "sgd", "--optim_conf", "{lr: 0.05, weight_decay: 0.01}"],
                *["--batch_size", "5"],
                epochs=2,
            )
            for stage in ("representation", "generative", "instruction")
        ]

    commands.folder = folder
    return commands


@pytest.fixture(scope="session")
def two_ranks(two_rank_commands, tiny_parts, train_command, bad_corpus):
    """Folder with what two processes computed; see ranks.py."""
    import torch.multiprocessing as mp
    from ranks import rank_main

    folder = two_rank_commands.folder
    bad = bad_corpus(train_command("representation", folder / "bad", cached=False))
    bad += ["--max_non_finite_batches", "0"]
    more = ["--qformer_conf", "dropout=0.1", "--batch_size", "4", "--resume", "true"]
    more += ["--checkpoint_minutes", "1e-9", "--shuffle_within_batch", "true"]
    steps = [
        train_command("representation", folder / "steps" / name, *more, epochs=2)
        for name in ("whole", "killed")
    ]
    commands = two_rank_commands("two")
    arguments = (str(folder), str(tiny_parts.t5), commands, bad, *steps)
    mp.spawn(rank_main, args=arguments, nprocs=2)
    return folder
