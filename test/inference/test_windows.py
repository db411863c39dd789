"""Windows and moments: of each part of a clip what that part alone would give."""

import numpy as np
import pytest
import soundfile
import torch
from tiny_system import RATE, TEXTS

from espnet2_slit.data.audio import AudioError
from espnet2_slit.inference.clips import AudioClips
from espnet2_slit.inference.ranking import similarity
from espnet2_slit.inference.requests import InferenceError
from espnet2_slit.inference.windows import (
    best_moments,
    find_moments,
    iterate_windows,
    window_starts,
)


@pytest.fixture(scope="module")
def long_clip(slit, tmp_path_factory):
    """Three times what is read at once: a new tone every second."""
    seconds = int(3 * slit.longest_s)
    time = np.arange(RATE) / RATE
    random = np.random.default_rng(0)
    tones = random.uniform(100, 4000, seconds)
    audio = np.concatenate([0.3 * np.sin(2 * np.pi * tone * time) for tone in tones])
    path = tmp_path_factory.mktemp("long") / "long.wav"
    soundfile.write(path, audio.astype(np.float32), RATE, subtype="FLOAT")
    return str(path)


def all_windows(slit, clips, window_s):
    with slit.lock, torch.inference_mode():
        found = list(iterate_windows(slit, clips, 0, window_s))
    return (
        np.concatenate([w.starts_s for w in found]),
        np.concatenate([w.ends_s for w in found]),
        np.concatenate([w.embeddings for w in found]),
    )


@pytest.mark.parametrize("steps, size", [(1, 4), (4, 4), (5, 4), (9, 4), (10, 1)])
def test_windows_cover_a_clip_and_end_with_it(steps, size):
    starts = window_starts(steps, size)
    assert starts[0] == 0 and len(set(starts)) == len(starts)
    covered = set()
    for start in starts:
        assert start + size <= max(steps, size)
        covered |= set(range(start, min(start + size, steps)))
    assert covered == set(range(steps))


def test_window_is_a_clip_of_its_own(slit, clips):
    """Where the frames are those of the window alone."""
    audio, rate = soundfile.read(clips[6], dtype="float32")
    whole = slit.embed_audio((audio, rate))
    starts, ends, embeddings = all_windows(slit, slit.clips([clips[6]]), [9.0])
    assert starts.tolist() == [0.0] and ends[0] == pytest.approx(len(audio) / rate)
    np.testing.assert_allclose(embeddings[0], whole, atol=1e-5)


def test_long_audio_is_read_in_parts_and_nothing_is_left_out(slit, long_clip):
    clips = slit.clips([long_clip], any_length=True)
    step_s = slit.encoder.grid.step / RATE
    starts, ends, embeddings = all_windows(slit, clips, [0.5, 1.0])
    assert len(starts) == len(embeddings)
    for window_s in (0.5, 1.0):
        size = round(window_s / step_s)
        total = slit.encoder.grid.steps(round(clips.durations_s[0] * RATE))
        expected = window_starts(total, size) * step_s
        mine = np.sort(starts[np.isclose(ends - starts, size * step_s, atol=1e-6)])
        np.testing.assert_allclose(mine, expected[: len(mine)], atol=1e-6)
        assert len(expected) - len(mine) <= 1  # the last may end with the file
    assert ends.max() == pytest.approx(clips.durations_s[0], abs=step_s)


def test_parts_do_not_change_a_window_much(folder, slit, long_clip):
    """Frames know of their neighbours in an encoder's window, and that is all."""
    from espnet2_slit.inference.slit import SLIT

    other = SLIT.from_pretrained(folder, batch_seconds=15.0)
    one, two = (
        all_windows(s, s.clips([long_clip], any_length=True), [1.0])
        for s in (slit, other)
    )
    order = [np.argsort(found[0], kind="stable") for found in (one, two)]
    np.testing.assert_allclose(one[0][order[0]], two[0][order[1]])
    cosines = (one[2][order[0]] * two[2][order[1]]).sum(-1)
    assert np.median(cosines) > 0.9


class Reader:
    """Notes the longest audio that is loaded."""

    def __init__(self, monkeypatch):
        self.longest = 0
        load = AudioClips.load_part

        def noted(clips, *args):
            audio = load(clips, *args)
            self.longest = max(self.longest, len(audio))
            return audio

        monkeypatch.setattr(AudioClips, "load_part", noted)


def test_no_more_audio_is_held_than_is_read_at_once(slit, long_clip, monkeypatch):
    reader = Reader(monkeypatch)
    slit.moments("a dog barks", long_clip)
    assert 0 < reader.longest <= slit.longest_s * RATE


def test_moments_say_where_the_sound_is(slit, clips, tmp_path):
    """A sound in the middle of another: its own embedding is found there."""
    low = 0.3 * np.sin(2 * np.pi * 150 * np.arange(8 * RATE) / RATE)
    high = 0.3 * np.sign(np.sin(2 * np.pi * 2500 * np.arange(2 * RATE) / RATE))
    audio = low.copy()
    audio[3 * RATE : 5 * RATE] = high
    path = tmp_path / "both.wav"
    soundfile.write(path, audio.astype(np.float32), RATE)
    opened = slit.clips([path])
    starts, ends, embeddings = all_windows(slit, opened, [2.0])
    alone = slit.embed_audio((high.astype(np.float32), RATE))  # (Q,E)
    scores = similarity(embeddings, alone)[0]
    first = best_moments(starts, ends, scores, 1)[0]
    assert min(ends[first], 5) - max(starts[first], 3) >= 1.0
    hits = slit.moments(TEXTS[0], [clips[0], path], top_k=3)
    assert [hit.score for hit in hits] == sorted((h.score for h in hits), reverse=True)
    assert {hit.index for hit in hits} <= {0, 1} and len(hits) == 3
    for hit in hits:
        assert hit.item in (clips[0], str(path)) and 0 <= hit.start_s < hit.end_s
    alone = slit.moments(TEXTS[:2], path, top_k=2)
    assert len(alone) == 2 and all(len(row) == 2 for row in alone)
    expected = find_moments(slit, opened, 0, TEXTS[:1], 2)[0]
    assert [h.start_s for h in alone[0]] == [m.start_s for m in expected]
    both = find_moments(slit, opened, 0, TEXTS[:2], 2)[0]
    scores = [h.score for h in alone[0]]
    assert scores == pytest.approx([m.score for m in both])
    # a text alone and in a batch: unit vectors that float32 rounds in another order
    assert scores == pytest.approx([m.score for m in expected], abs=1e-6)


def test_moments_do_not_repeat_each_other():
    starts = np.array([0.0, 1.0, 2.0, 0.0])
    ends = np.array([2.0, 3.0, 4.0, 4.0])
    scores = np.array([0.5, 0.9, 0.8, 0.7])
    assert best_moments(starts, ends, scores, 9) == [1]
    scores = np.array([0.9, 0.5, 0.8, 0.7])
    assert best_moments(starts, ends, scores, 9) == [0, 2]
    assert best_moments(starts, ends, scores, 1) == [0]


def test_audio_that_is_too_long_is_named_before_anything_is_computed(
    slit, clips, long_clip, passes
):
    for call in (
        lambda: slit.caption([clips[0], long_clip]),
        lambda: slit.embed_audio([clips[0], long_clip]),
        lambda: slit.search("a dog", [clips[0], long_clip]),
        lambda: slit.answer([clips[0], long_clip], "what?"),
    ):
        with pytest.raises(AudioError, match=r"long.wav: lasts .* at most .*window_s"):
            call()
    assert passes["encoded"] == 0


def test_long_audio_is_captioned_window_by_window(slit, long_clip, clips):
    options = {"max_new_tokens": 5, "num_beams": 1}
    found = slit.caption(clips[6], window_s=0.5, options=options)
    audio, rate = soundfile.read(clips[6], dtype="float32")
    assert [caption.start_s for caption in found] == pytest.approx([0.0, 0.5, 1.0])
    assert found[-1].end_s == pytest.approx(len(audio) / rate)
    for caption in found:
        part = audio[round(caption.start_s * rate) : round(caption.end_s * rate)]
        assert caption.text == slit.caption((part, rate), options=options)
    some = slit.caption([clips[6], long_clip], window_s=60.0, options=options)
    assert [len(captions) for captions in some] == [
        1,
        -(-int(3 * slit.longest_s) // 60),
    ]
    with pytest.raises(InferenceError, match="window_s: expected"):
        slit.caption(clips[0], window_s=0)
