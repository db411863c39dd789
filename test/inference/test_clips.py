"""Clips in every form people have them, and those that cannot be read."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_system import RATE, SHORT

from espnet2_slit.data.audio import AudioError
from espnet2_slit.inference.clips import CachedClips


def test_arrays_tensors_and_files_agree(slit, clips):
    expected = slit.embed_audio(clips[3])
    audio, rate = soundfile.read(clips[3], dtype="float32")
    stereo = np.stack([audio, audio], axis=1)
    for item in (audio, torch.from_numpy(audio), stereo, stereo.T, Path(clips[3])):
        np.testing.assert_allclose(
            slit.embed_audio(item, sample_rate=rate), expected, atol=1e-5
        )
    np.testing.assert_allclose(slit.embed_audio((audio, rate)), expected, atol=1e-5)
    mixed = slit.embed_audio([(audio, rate), clips[3], audio], sample_rate=rate)
    np.testing.assert_allclose(mixed, np.stack([expected] * 3), atol=1e-5)


@pytest.mark.parametrize("name", ["x.flac", "x.ogg", "x.wav"])
@pytest.mark.parametrize("rate, channels", [(8000, 1), (44100, 2)])
def test_any_format_is_captioned(slit, tmp_path, name, rate, channels):
    audio = np.random.default_rng(0).uniform(-0.3, 0.3, (rate // 2, channels))
    soundfile.write(tmp_path / name, audio, rate)
    assert isinstance(slit.caption(tmp_path / name, options=SHORT), str)


def test_long_audio_is_read_to_its_end(slit):
    """Longer than the encoder's window: later sound changes the result."""
    seconds = slit.encoder.max_duration_s * 2.5
    random = np.random.default_rng(0)
    audio = random.uniform(-0.1, 0.1, int(RATE * seconds)).astype(np.float32)
    other = audio.copy()
    other[-2 * RATE :] *= 5
    one, two = slit.embed_audio([audio, other], sample_rate=RATE)
    assert np.abs(one - two).max() > 1e-3


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda p: p.write_bytes(b""), "empty"),
        (lambda p: p.write_text("no audio"), "cannot be read as audio"),
        (lambda p: soundfile.write(p, np.zeros(0), RATE), "0.0000 s"),
        (
            lambda p: soundfile.write(p, np.full(RATE, np.nan), RATE, subtype="FLOAT"),
            "NaN",
        ),
        (lambda p: None, "no such audio file"),
    ],
)
def test_bad_audio_is_named(slit, clips, tmp_path, make, message):
    path = tmp_path / "bad.wav"
    make(path)
    with pytest.raises(AudioError, match=f"bad.wav.*{message}"):
        slit.caption([clips[0], path], options=SHORT)


def test_array_without_rate_is_an_error(slit):
    with pytest.raises(AudioError, match="sample_rate="):
        slit.caption(np.zeros(RATE, np.float32))


def test_one_clip_in_any_form(slit, clips):
    """A clip with its rate, as NumPy, gradio and datasets hand it over."""
    audio, rate = soundfile.read(clips[3], dtype="float32")
    expected = slit.embed_audio(clips[3])
    forms = [
        (audio, np.int64(rate)),
        (audio, np.float64(rate)),
        (rate, audio),
        (np.int32(rate), torch.from_numpy(audio)),
        {"array": audio, "sampling_rate": rate},
        {"path": None, "array": torch.from_numpy(audio), "sampling_rate": rate},
        {"path": clips[3]},
        Decoded(audio, rate),
    ]
    for form in forms:
        found = slit.embed_audio(form)
        assert found.shape == expected.shape, type(form)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    many = slit.embed_audio(forms)
    np.testing.assert_allclose(many, np.stack([expected] * len(forms)), atol=1e-5)
    again = slit.embed_audio(path for path in clips)
    np.testing.assert_allclose(again, slit.embed_audio(clips), atol=1e-5)
    again = slit.embed_audio((clips[0], clips[1]))
    np.testing.assert_allclose(again, slit.embed_audio(clips[:2]), atol=1e-5)
    coarse = torch.from_numpy(audio).bfloat16()
    found = slit.embed_audio((coarse, rate))
    np.testing.assert_allclose(
        found, slit.embed_audio((coarse.float().numpy(), rate)), atol=1e-6
    )


class Decoded:
    """As torchcodec's AudioDecoder, which datasets gives out."""

    def __init__(self, audio, rate):
        self.data, self.sample_rate = torch.from_numpy(audio)[None], rate

    def get_all_samples(self):
        return self


@pytest.mark.parametrize(
    "form",
    [7, None, [0.1, 0.2], {"bytes": b"RIFF"}, {"array": np.zeros(9000)}, [3.5]],
    ids=repr,
)
def test_forms_that_are_no_clip_are_told_the_forms(slit, form):
    with pytest.raises(AudioError, match="sampl.*rate"):
        slit.caption(form)


def test_cached_features_know_their_length(sets):
    folder = sets / "dump" / "test_caption"
    clips = CachedClips(folder / "feats.scp", ["clip0", "clip6"], 50.0)
    assert clips.durations_s[0] == len(clips.load(0)) / 50
    assert clips.durations_s[0] < clips.durations_s[1]
