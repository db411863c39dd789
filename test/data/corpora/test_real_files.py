"""The readers on publishers' real files, where they are beside the project."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet2_slit.data import kaldi_dir
from espnet2_slit.data.corpora import Limits
from espnet2_slit.data.corpora.audiocaps import AudioCaps
from espnet2_slit.data.corpora.clotho import MIRROR, Clotho, md5_as_published
from espnet2_slit.data.corpora.esc50 import ESC50
from espnet2_slit.data.corpora.wavcaps import WavCaps

DATA = Path(__file__).resolve().parents[4] / "shared/data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")
SIZES_ONLY = Limits(probe=False)


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    path = tmp_path_factory.mktemp("noise") / "noise.wav"
    soundfile.write(path, np.zeros(1600), 16000)
    return path


def stand_in(names, folder, noise):
    """Links one sound under every name: the real audio is not distributed."""
    folder.mkdir()
    for name in names:
        (folder / name).hardlink_to(noise)
    return folder


def first_column(path, column):
    with open(path, encoding="utf-8", newline="") as source:
        return [row[column] for row in csv.DictReader(source)]


def test_audiocaps_train_has_49838_rows(tmp_path, build, noise):
    folder = DATA / "audiocaps"
    ids = first_column(folder / "train.csv", "youtube_id")[::10]
    audio = stand_in({f"Y{i}.wav" for i in ids}, tmp_path / "wav", noise)
    _, report = build(AudioCaps(folder), "train", SIZES_ONLY, audio_dirs=[audio])
    assert (report.rows, report.clips) == (49838, 49838)
    assert report.found == report.kept_samples == 4984
    assert report.missing == 49838 - 4984
    assert (report.duplicates, report.empty_text) == (0, 0)


def test_audiocaps_val_has_2475_rows_of_495_clips(tmp_path, build, noise, column):
    folder = DATA / "audiocaps"
    ids = set(first_column(folder / "val.csv", "youtube_id"))
    audio = stand_in({f"{i}.wav" for i in ids}, tmp_path / "wav", noise)
    corpus = AudioCaps(folder)
    options = {"audio_dirs": [audio], "evaluation": True}
    made, report = build(corpus, "val", SIZES_ONLY, **options)
    assert (report.rows, report.clips, report.kept_samples) == (2475, 495, 495)
    assert report.duplicates == 85
    references = column(made, "references")
    assert {len(captions) for captions in references.values()} == {5}


@pytest.mark.parametrize(
    ("split", "clips"), [("development", 3839), ("validation", 1045)]
)
def test_clotho_has_five_captions_a_clip(tmp_path, build, noise, column, split, clips):
    folder = DATA / "clotho"
    captions = folder / f"clotho_captions_{split}.csv"
    assert md5_as_published(captions) == MIRROR.md5[captions.name]
    names = first_column(captions, "file_name")
    audio = stand_in(names, tmp_path / "wav", noise)
    made, report = build(Clotho(folder), split, SIZES_ONLY, audio_dirs=[audio])
    assert (report.rows, report.clips, report.missing) == (clips, clips, 0)
    assert report.kept_samples + report.duplicates == 5 * clips
    assert set(column(made, "clip2name").values()) == {n.strip() for n in names}
    assert kaldi_dir.read_set(made)["variant"].endswith("2.1")


def test_soundbible_has_1232_rows(tmp_path, build, noise):
    folder = DATA / "wavcaps"
    audio = stand_in([f"{i}.flac" for i in range(1, 3000)], tmp_path / "sb", noise)
    corpus = WavCaps(folder, blacklist="ub8k_esc50_vggsound")
    (tmp_path / "SoundBible_flac").symlink_to(audio)
    _, report = build(corpus, "soundbible", SIZES_ONLY, audio_dirs=[tmp_path])
    assert (report.rows, report.clips, report.missing) == (1232, 1232, 0)
    assert report.kept_samples == 1232


def test_blacklist_has_the_published_sizes():
    corpus = WavCaps(DATA / "wavcaps", blacklist="ub8k_esc50_vggsound")
    sizes = {part: len(ids) for part, ids in corpus._banned.items()}
    assert sizes == {"AudioSet": 15510, "FreeSound": 2219}


def test_esc10_has_320_real_clips(build, column):
    folder, report = build(ESC50(DATA / "esc10"), "all")
    assert (report.rows, report.found, report.kept_samples) == (320, 320, 320)
    assert report.sample_rates == {"44100": 320} and report.channels == {"1": 320}
    assert len((folder / "labels").read_text().splitlines()) == 10
    assert set(Counter(column(folder, "text").values()).values()) == {32}
    assert 0.4 < report.hours < 0.5


def test_esc10_folds_share_no_recording(build, column):
    corpus = ESC50(DATA / "esc10", test_fold=4)
    sources = {}
    for split, kept in (("train", 160), ("valid", 80), ("test", 80)):
        folder, report = build(corpus, split)
        assert report.kept_samples == kept
        sources[split] = set(column(folder, "utt2source").values())
    assert not sources["test"] & (sources["train"] | sources["valid"])
