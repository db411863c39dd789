"""A tiny system, clips and sets that the tests of inference share."""

import json

import numpy as np
import pytest
import soundfile
import tiny_system
from tiny_system import RATE, TEXTS

from espnet2_slit.bin import slit_encode
from espnet2_slit.common.padded import Padded
from espnet2_slit.inference.slit import SLIT


@pytest.fixture(scope="session")
def folder(tmp_path_factory, tiny_parts):
    return tiny_system.system(tmp_path_factory.mktemp("exp"), tiny_parts)


@pytest.fixture(scope="session")
def slit(folder):
    return SLIT.from_pretrained(folder)


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """Seven clips of different length and sound."""
    folder = tmp_path_factory.mktemp("wav")
    paths = []
    for i in range(7):
        random = np.random.default_rng(i)
        time = np.arange(int(RATE * (0.4 + 0.13 * i))) / RATE
        audio = 0.4 * np.sin(2 * np.pi * 200 * (i + 1) * time)
        audio += 0.1 * random.standard_normal(len(time))
        paths.append(folder / f"clip {i}.wav")
        soundfile.write(paths[-1], audio.astype(np.float32), RATE, subtype="FLOAT")
    return [str(path) for path in paths]


@pytest.fixture(scope="session")
def sets(tmp_path_factory, clips, tiny_parts):
    """data/<set> with waveforms and dump/<set> with their cached features."""
    root = tmp_path_factory.mktemp("sets")

    def write(name, tasks, samples, **files):
        target = root / "data" / name
        target.mkdir(parents=True)
        content = {
            "wav.scp": [f"{s} {clips[i]}" for s, i in samples],
            "text": [f"{s} {TEXTS[i % 5]}" for s, i in samples],
            "utt2spk": [f"{s} dummy" for s, _ in samples],
            **files,
        }
        for key, lines in content.items():
            lines = lines if key in ("labels", "answers") else sorted(lines)
            (target / key).write_text("".join(f"{line}\n" for line in lines))
        facts = {"schema": 1, "name": name, "tasks": tasks, "zero_shot": False}
        (target / "set.json").write_text(json.dumps(facts))

    ids = [(f"clip{i}", i) for i in range(7)]
    write(
        "test_caption",
        ["caption", "retrieval"],
        ids,
        references=[f"clip{i} {TEXTS[(i + j) % 5]}" for i in range(7) for j in (0, 1)],
    )
    questions = [(f"clip{i}_q{j}", i) for i in range(7) for j in (0, 1)]
    write(
        "test_qa",
        ["question_answering"],
        questions,
        utt2audio=[f"{s} clip{i}" for s, i in questions],
        instruction=[f"{s} what is it? {s[-1]}" for s, _ in questions],
        answers=["yes", "no", "a dog", "two"],
    )
    write("test_class", ["classification"], ids, labels=["dog_bark", "rain", "bell"])
    for name in ("test_caption", "test_qa", "test_class"):
        status = slit_encode.main(
            ["--data_dir", str(root / "data" / name),
             "--output_dir", str(root / "dump" / name),
             "--audio_encoder", "beats",
             "--audio_encoder_conf", f"path={tiny_parts.beats}",
             "--shard_clips", "3",
             "--dtype", "float32"]
        )  # fmt: skip
        assert status == 0
    return root


@pytest.fixture
def passes(slit, monkeypatch):
    """Counts of clips encoded and of clips whose frames were projected."""
    counts = {"encoded": 0, "projected": 0}

    def count(module, name, key):
        call = getattr(module, name)

        def counted(*args, **options):
            batch = args[0]
            counts[key] += len(batch.values if isinstance(batch, Padded) else batch)
            return call(*args, **options)

        monkeypatch.setattr(module, name, counted)

    count(slit.encoder, "forward", "encoded")
    count(slit.representation.model.qformer, "encode_frames", "projected")
    return counts
