"""Tests of the feature cache: it holds what the encoder gives, or there is an error."""

import json
import os
import shutil
import threading
import time

import numpy as np
import pytest
import soundfile
import torch

from espnet2_slit.data import clips, feature_cache, kaldi_matrix
from espnet2_slit.data.audio import AudioError, probe, read_audio, to_mono
from espnet2_slit.data.kaldi_dir import DataDirError, read_pairs

RATE = 16000


class PlainEncoder(torch.nn.Module):
    """50 frames a second, each a fixed projection of its 320 samples."""

    sample_rate = RATE
    width = 12
    frames_per_second = 50.0
    max_duration_s = None
    frames_per_window = 0
    max_windows = 1

    def __init__(self, fingerprint="abc"):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(320, self.width, generator=generator)
        self.fingerprint = fingerprint
        self.calls = []

    def identity(self):
        return {"kind": "plain", "path": "x", "fingerprint": self.fingerprint}

    def forward(self, speech, speech_lengths):
        self.calls.append(tuple(speech.shape))
        steps = speech.shape[1] // 320
        frames = speech[:, : steps * 320].reshape(len(speech), steps, 320) @ self.weight
        return frames, speech_lengths // 320


def write_clip(path, seconds=1.0, rate=RATE, channels=1, seed=0, **options):
    shape = (int(seconds * rate), channels)
    audio = np.random.default_rng(seed).uniform(-0.5, 0.5, shape)
    soundfile.write(path, audio, rate, **options)
    return path


def make_data_dir(folder, clips=7, captions=2):
    """`clips` recordings of different length with `captions` samples each."""
    folder.mkdir()
    lines = {name: [] for name in ("wav.scp", "text", "utt2spk", "utt2audio")}
    for i in range(clips):
        path = write_clip(folder / f"clip {i}.wav", 0.5 + 0.1 * i, seed=i)
        for j in range(captions):
            sample = f"c{i}-{j}"
            lines["wav.scp"].append(f"{sample} {path}")
            lines["text"].append(f"{sample} caption {j} of {i}")
            lines["utt2spk"].append(f"{sample} dummy")
            lines["utt2audio"].append(f"{sample} c{i}")
    for name, content in lines.items():
        (folder / name).write_text("\n".join(sorted(content)) + "\n")
    (folder / "references").write_text("c0 one\nc0 two\nc1 three\n")
    (folder / "set.json").write_text('{"schema": 1}\n')
    return folder


def encode_set(data_dir, output_dir, encoder=None, jobs=1, **options):
    encoder = encoder or PlainEncoder()
    plan_options = {"shard_clips": options.pop("shard_clips", 3)}
    if "reuse" in options:
        plan_options["reuse"] = options.pop("reuse")
    work = feature_cache.plan(data_dir, encoder.identity(), **plan_options)
    counts = [
        feature_cache.encode(work, encoder, output_dir, job + 1, jobs, **options)
        for job in range(jobs)
    ]
    content = feature_cache.merge(
        work, data_dir, output_dir, feature_cache.encoder_facts(encoder)
    )
    return content, counts


@pytest.fixture
def data_dir(tmp_path):
    return make_data_dir(tmp_path / "data")


# ---------------------------------------------------------------------- matrices


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_two_byte_matrix_is_within_tolerance(tmp_path, scale):
    frames = np.random.default_rng(0).normal(size=(31, 8)).astype(np.float32) * scale
    with open(tmp_path / "a.ark", "wb") as stream:
        offset = kaldi_matrix.write_matrix(stream, "x", frames)
    assert (tmp_path / "a.ark").stat().st_size < frames.size * 2 + 40
    with open(tmp_path / "a.ark", "rb") as stream:
        found = kaldi_matrix.read_matrix(stream, offset)
    assert found.dtype == np.float32
    assert np.abs(found - frames).max() < 2e-4 * scale


def test_matrix_with_outliers_keeps_its_ordinary_channels(tmp_path):
    frames = np.random.default_rng(0).normal(size=(31, 8)).astype(np.float32)
    frames[:, 3] *= 5000
    with open(tmp_path / "a.ark", "wb") as stream:
        offset = kaldi_matrix.write_matrix(stream, "x", frames)
    with open(tmp_path / "a.ark", "rb") as stream:
        np.testing.assert_array_equal(kaldi_matrix.read_matrix(stream, offset), frames)


def test_constant_matrix(tmp_path):
    for value in (0.0, 2.5):
        frames = np.full((4, 3), value, np.float32)
        with open(tmp_path / "a.ark", "wb") as stream:
            offset = kaldi_matrix.write_matrix(stream, "x", frames)
        with open(tmp_path / "a.ark", "rb") as stream:
            np.testing.assert_allclose(kaldi_matrix.read_matrix(stream, offset), frames)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_unusable_frames_are_refused(tmp_path, bad):
    with open(tmp_path / "a.ark", "wb") as stream:
        with pytest.raises(
            kaldi_matrix.FeatureCacheError, match="clip x.*NaN or infinite"
        ):
            kaldi_matrix.write_matrix(stream, "x", np.full((4, 3), bad, np.float32))
        with pytest.raises(kaldi_matrix.FeatureCacheError, match="clip x.*expected"):
            kaldi_matrix.write_matrix(stream, "x", np.zeros((0, 3), np.float32))


# ------------------------------------------------------------------------- cache


def test_cached_frames_equal_online_frames(data_dir, tmp_path):
    encoder = PlainEncoder()
    content, _ = encode_set(data_dir, tmp_path / "dump", encoder)
    assert content["num_clips"] == 7 and content["num_samples"] == 14
    assert len(encoder.calls) == 3  # 7 clips in 3 shards: once each, not per sample
    reader = kaldi_matrix.FeatureReader(tmp_path / "dump" / "feats.scp")
    assert len(reader) == 14
    assert reader.places["c3-0"] == reader.places["c3-1"]
    for sample, path in read_pairs(data_dir / "wav.scp"):
        speech = torch.from_numpy(read_audio(path, RATE))[None]
        online, _ = encoder(speech, torch.tensor([speech.shape[1]]))
        cached = reader[sample]
        assert cached.shape == online[0].shape
        np.testing.assert_allclose(cached, online[0], atol=1e-3 * online.std().item())
    reader.close()


def test_espnet_reads_the_cache_as_kaldi_ark(data_dir, tmp_path):
    from espnet2.train.dataset import ESPnetDataset
    from espnet2.train.iterable_dataset import IterableESPnetDataset

    encode_set(data_dir, tmp_path / "dump")
    source = [(str(tmp_path / "dump" / "feats.scp"), "feats", "kaldi_ark")]
    reader = kaldi_matrix.FeatureReader(tmp_path / "dump" / "feats.scp")
    dataset = ESPnetDataset(source, preprocess=None)
    for sample in ("c0-0", "c6-1"):
        _, found = dataset[sample]
        assert found["feats"].dtype == np.float32
        np.testing.assert_allclose(found["feats"], reader[sample], atol=1e-6)
    streamed = dict(IterableESPnetDataset(source, preprocess=None))
    np.testing.assert_allclose(streamed["c6-1"]["feats"], reader["c6-1"], atol=1e-6)
    reader.close()


def test_frames_do_not_depend_on_batch_or_jobs(data_dir, tmp_path):
    encode_set(data_dir, tmp_path / "a", batch_seconds=0.1)
    encode_set(data_dir, tmp_path / "b", batch_seconds=100, jobs=2)
    one, other = (
        kaldi_matrix.FeatureReader(tmp_path / name / "feats.scp") for name in "ab"
    )
    assert list(one) == list(other)
    for sample in one:
        np.testing.assert_allclose(one[sample], other[sample], atol=2e-3)
    one.close()
    other.close()


def test_on_a_cpu_each_thread_encodes_a_batch(data_dir, tmp_path):
    """Two at once, and never three: the first waits for the second."""
    threads = torch.get_num_threads()
    met, inside = threading.Event(), []

    class Meets(PlainEncoder):
        def forward(self, speech, speech_lengths):
            inside.append(torch.get_num_threads())
            assert inside == [1] * len(inside) and len(inside) <= 2
            if len(inside) == 2:
                met.set()
            assert met.wait(timeout=30)
            time.sleep(0.05)  # for a third to come
            inside.pop()
            return super().forward(speech, speech_lengths)

    try:
        torch.set_num_threads(2)
        encode_set(
            data_dir, tmp_path / "two", Meets(), batch_seconds=2.4, shard_clips=7
        )
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        encode_set(data_dir, tmp_path / "one", batch_seconds=2.4, shard_clips=7)
    finally:
        torch.set_num_threads(threads)
    one, two = (
        kaldi_matrix.FeatureReader(tmp_path / name / "feats.scp")
        for name in ("one", "two")
    )
    assert list(one) == list(two)
    for sample in one:
        np.testing.assert_allclose(two[sample], one[sample], atol=2e-3)
    one.close()
    two.close()


def test_other_files_are_copied_with_shapes(data_dir, tmp_path):
    encode_set(data_dir, tmp_path / "dump")
    for name in ("text", "wav.scp", "utt2audio", "references", "set.json"):
        assert (tmp_path / "dump" / name).read_text() == (data_dir / name).read_text()
    assert (tmp_path / "dump" / "spk2utt").read_text().startswith("dummy c0-0 c0-1")
    shapes = dict(read_pairs(tmp_path / "dump" / "feats_shape"))
    assert shapes["c0-0"] == "25,12" and shapes["c6-1"] == "55,12"


def test_a_cache_made_again_keeps_no_list_that_its_set_has_lost(data_dir, tmp_path):
    encode_set(data_dir, tmp_path / "cache")
    assert (tmp_path / "cache" / "references").is_file()
    (data_dir / "references").unlink()
    _, counts = encode_set(data_dir, tmp_path / "cache")
    assert not (tmp_path / "cache" / "references").exists()
    assert counts == [(0, 3)]  # the frames stayed


def test_killed_run_continues(data_dir, tmp_path):
    class Killed(PlainEncoder):
        def forward(self, speech, speech_lengths):
            if len(self.calls) == 1:
                raise KeyboardInterrupt
            return super().forward(speech, speech_lengths)

    with pytest.raises(KeyboardInterrupt):
        encode_set(data_dir, tmp_path / "dump", Killed())
    assert not (tmp_path / "dump" / "feats.json").exists()
    assert not list((tmp_path / "dump").glob(".*.tmp"))
    _, counts = encode_set(data_dir, tmp_path / "dump")
    assert counts == [(2, 1)]  # two shards encoded, the whole one kept
    _, counts = encode_set(data_dir, tmp_path / "dump")
    assert counts == [(0, 3)]


def test_truncated_shard_is_named_and_made_again(data_dir, tmp_path, caplog):
    encode_set(data_dir, tmp_path / "dump")
    ark = tmp_path / "dump" / "feats.00001.ark"
    whole = ark.read_bytes()
    ark.write_bytes(whole[:-100])
    with pytest.raises(
        kaldi_matrix.FeatureCacheError, match="feats.00001.ark: expected"
    ):
        feature_cache.check_features(tmp_path / "dump")
    _, counts = encode_set(data_dir, tmp_path / "dump")
    assert counts == [(1, 2)]
    assert "feats.00001.ark: truncated: expected" in caplog.text
    assert ark.read_bytes() == whole


def test_merge_names_missing_shards(data_dir, tmp_path):
    encoder = PlainEncoder()
    work = feature_cache.plan(data_dir, encoder.identity(), shard_clips=3)
    feature_cache.encode(work, encoder, tmp_path / "dump", job=1, num_jobs=2)
    with pytest.raises(
        kaldi_matrix.FeatureCacheError, match="1 of 3 shards.*feats.00001"
    ):
        feature_cache.merge(
            work, data_dir, tmp_path / "dump", feature_cache.encoder_facts(encoder)
        )


def test_changed_bytes_fail_verification(data_dir, tmp_path):
    encode_set(data_dir, tmp_path / "dump")
    feature_cache.verify_checksums(tmp_path / "dump")
    ark = tmp_path / "dump" / "feats.00000.ark"
    content = bytearray(ark.read_bytes())
    content[-1] ^= 1
    ark.write_bytes(content)
    with pytest.raises(kaldi_matrix.FeatureCacheError, match="the file has changed"):
        feature_cache.verify_checksums(tmp_path / "dump")


def test_other_encoder_is_refused_with_both_names(data_dir, tmp_path):
    encode_set(data_dir, tmp_path / "dump")
    identity = {**PlainEncoder("other").identity(), "path": "elsewhere"}
    with pytest.raises(
        kaldi_matrix.FeatureCacheError,
        match="fingerprint: expected 'other', found 'abc'.*[Ee]ncode the set again",
    ):
        feature_cache.check_features(tmp_path / "dump" / "feats.json", identity)
    moved = {**PlainEncoder().identity(), "path": "elsewhere"}
    assert feature_cache.check_features(tmp_path / "dump", moved)["width"] == 12


def test_new_encoder_encodes_anew(data_dir, tmp_path):
    encode_set(data_dir, tmp_path / "dump")
    _, counts = encode_set(data_dir, tmp_path / "dump", PlainEncoder("other"))
    assert counts == [(3, 0)]


def test_unfinished_cache_is_refused(tmp_path):
    with pytest.raises(kaldi_matrix.FeatureCacheError, match="not whole or not made"):
        feature_cache.check_features(tmp_path)


def test_clips_of_another_set_are_reused(data_dir, tmp_path):
    encode_set(data_dir, tmp_path / "a")
    more = make_data_dir(tmp_path / "more", clips=2, captions=1)
    line = (data_dir / "wav.scp").read_text().splitlines()[0]
    for name in ("wav.scp", "text", "utt2spk", "utt2audio"):
        value = {"wav.scp": line.split(maxsplit=1)[1], "utt2audio": "again"}.get(
            name, "x"
        )
        (more / name).write_text((more / name).read_text() + f"z {value}\n")
    encoder = PlainEncoder()
    content, _ = encode_set(more, tmp_path / "b", encoder, reuse=[tmp_path / "a"])
    assert content["num_clips"] == 3 and content["shards"][0]["clips"] == 2
    assert content["reused"] == {str(tmp_path / "a" / "feats.json"): 1}
    one = kaldi_matrix.FeatureReader(tmp_path / "a" / "feats.scp")
    other = kaldi_matrix.FeatureReader(tmp_path / "b" / "feats.scp")
    assert one.places["c0-0"] == other.places["z"]
    with pytest.raises(kaldi_matrix.FeatureCacheError, match="fingerprint"):
        feature_cache.plan(more, PlainEncoder("other").identity(), [tmp_path / "a"])


# --------------------------------------------------------------------- bad input


def test_unusable_clips_stop_before_anything_is_encoded(data_dir, tmp_path):
    (data_dir / "clip 0.wav").write_bytes(b"")
    (data_dir / "clip 1.wav").unlink()
    encoder = PlainEncoder()
    with pytest.raises(AudioError) as error:
        encode_set(data_dir, tmp_path / "dump", encoder)
    assert "2 of 7 clips cannot be used" in str(error.value)
    assert "c0:" in str(error.value) and "empty (0 bytes)" in str(error.value)
    assert "no such audio file" in str(error.value)
    assert not encoder.calls


def test_dropped_clips_are_counted_and_left_out_everywhere(data_dir, tmp_path, caplog):
    (data_dir / "clip 0.wav").write_bytes(b"")
    content, _ = encode_set(data_dir, tmp_path / "dump", bad_audio="drop")
    assert list(content["dropped"]) == ["c0"] and content["num_clips"] == 6
    assert "1 of 7 clips" in caplog.text
    for name in ("feats.scp", "text", "utt2spk", "utt2audio", "wav.scp", "references"):
        assert "c0" not in (tmp_path / "dump" / name).read_text()
    assert "c0" not in (tmp_path / "dump" / "spk2utt").read_text()
    _, counts = encode_set(data_dir, tmp_path / "dump", bad_audio="drop")
    assert counts == [(0, 3)]


def test_repeated_ids_are_errors(data_dir):
    line = (data_dir / "wav.scp").read_text().splitlines()[0]
    with open(data_dir / "wav.scp", "a") as stream:
        stream.write(line + "\n")
    with pytest.raises(DataDirError, match="'c0-0' comes twice"):
        clips.read_clips(data_dir)


def test_clip_beyond_the_encoder_is_named(data_dir, tmp_path):
    class Short(PlainEncoder):
        max_duration_s = 0.25
        max_windows = 3

    with pytest.raises(
        AudioError, match="(?s)3 of 7 clips.*c4: .*lasts 0.9 s, longer than"
    ):
        encode_set(data_dir, tmp_path / "dump", Short())


def test_weighted_layers_are_not_cached(data_dir, tmp_path, tiny_parts, capsys):
    from espnet2_slit.bin import slit_encode

    status = slit_encode.main(
        ["--data_dir", str(data_dir), "--output_dir", str(tmp_path / "dump"),
         "--audio_encoder", "beats",
         "--audio_encoder_conf", f"path={tiny_parts.beats}",
         "--audio_encoder_conf", "layer=weighted"]
    )  # fmt: skip
    assert status == 1 and "cannot be cached" in capsys.readouterr().err
    assert not (tmp_path / "dump").exists()


def test_array_jobs_equal_one_job(data_dir, tmp_path, tiny_parts):
    from espnet2_slit.bin import slit_encode

    common = ["--data_dir", str(data_dir), "--audio_encoder", "beats",
              "--audio_encoder_conf", f"path={tiny_parts.beats}",
              "--shard_clips", "2"]  # fmt: skip
    assert slit_encode.main([*common, "--output_dir", str(tmp_path / "one")]) == 0
    common += ["--output_dir", str(tmp_path / "many"), "--num_jobs", "3"]
    for job in ("2", "1", "3"):
        assert not (tmp_path / "many" / "feats.json").exists()
        assert slit_encode.main([*common, "--job", job]) == 0
    assert slit_encode.main([*common, "--merge", "true"]) == 0
    one, many = (
        json.loads((tmp_path / name / "feats.json").read_text())
        for name in ("one", "many")
    )
    assert one["shards"] == many["shards"]
    assert slit_encode.main(
        ["--data_dir", "x", "--output_dir", str(tmp_path / "many"), "--verify", "true"]
    ) == 0  # fmt: skip


def test_jobs_of_sets_with_common_clips_are_merged(data_dir, tmp_path, tiny_parts):
    from espnet2_slit.bin import slit_encode

    common = ["--data_dir", str(data_dir), str(data_dir), "--output_dir",
              str(tmp_path / "a"), str(tmp_path / "b"), "--audio_encoder", "beats",
              "--audio_encoder_conf", f"path={tiny_parts.beats}"]  # fmt: skip
    for more in (["--job", "1"], ["--job", "2"], ["--merge", "true"]):
        assert slit_encode.main([*common, "--num_jobs", "2", *more]) == 0
    assert feature_cache.check_features(tmp_path / "b")["num_clips"] == 7
    (tmp_path / "b" / "feats.json").unlink()
    assert slit_encode.main(common) == 0  # one job: the second set reuses the first
    content = feature_cache.check_features(tmp_path / "b")
    assert content["reused"] == {str(tmp_path / "a" / "feats.json"): 7}
    assert content["shards"] == [] and not list((tmp_path / "b").glob("*.ark"))


def test_what_is_encoded_is_left_alone_until_the_set_changes(
    data_dir, tmp_path, tiny_parts
):
    from espnet2_slit.bin import slit_encode

    more = shutil.copytree(data_dir, tmp_path / "more")  # the same clips
    folders = [tmp_path / "a", tmp_path / "b"]
    command = ["--data_dir", str(data_dir), str(more), "--output_dir"]
    command += [*map(str, folders), "--audio_encoder", "beats"]
    command += ["--audio_encoder_conf", f"path={tiny_parts.beats}"]

    def times():
        assert slit_encode.main(command) == 0
        return [
            {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
            for folder in folders
        ]

    first = times()
    assert times() == first
    lines = (data_dir / "text").read_text().replace("caption", "text")
    (data_dir / "text").write_text(lines)
    one, two = times()
    assert one["feats.json"] != first[0]["feats.json"]
    (ark,) = (name for name in one if name.endswith(".ark"))
    assert one[ark] == first[0][ark]  # no clip has changed
    assert "text 0 of 0" in (folders[0] / "text").read_text()
    assert two["feats.json"] != first[1]["feats.json"]  # it points at the first one


def test_one_clip_id_for_two_recordings_is_an_error(data_dir):
    (data_dir / "utt2audio").write_text(
        (data_dir / "utt2audio").read_text().replace("c1-0 c1", "c1-0 c0")
    )
    with pytest.raises(DataDirError, match="'c0' to two recordings"):
        clips.read_clips(data_dir)


def test_empty_set_and_unmatched_ids_are_errors(data_dir, tmp_path):
    with pytest.raises(DataDirError, match="no wav.scp"):
        clips.read_clips(tmp_path)
    (data_dir / "utt2audio").write_text("c0-0 c0\n")
    with pytest.raises(DataDirError, match="differ in 13 ids.*'c0-1'"):
        clips.read_clips(data_dir)
    (data_dir / "wav.scp").write_text("")
    with pytest.raises(DataDirError, match="the set is empty"):
        clips.read_clips(data_dir)


def test_segments_cut_a_recording(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    path = write_clip(folder / "long.wav", 3.0)
    (folder / "wav.scp").write_text(f"rec {path}\n")
    (folder / "segments").write_text("a rec 0.5 1.5\nb rec 2.0 -1\n")
    (folder / "text").write_text("a x\nb y\n")
    encode_set(folder, tmp_path / "dump")
    reader = kaldi_matrix.FeatureReader(tmp_path / "dump" / "feats.scp")
    assert reader["a"].shape == reader["b"].shape == (50, 12)
    reader.close()
    whole = read_audio(path, RATE)
    np.testing.assert_allclose(read_audio(path, RATE, 0.5, 1.5), whole[8000:24000])


# ------------------------------------------------------------------------- audio


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_rate_and_channel_count(tmp_path, rate, channels):
    path = write_clip(tmp_path / "x.wav", 0.5, rate, channels, subtype="FLOAT")
    assert probe(path).channels == channels
    audio = read_audio(path, RATE)
    assert audio.dtype == np.float32 and abs(len(audio) - RATE // 2) <= 1


@pytest.mark.parametrize(
    "name, options",
    [
        ("x.flac", {}),
        ("x.ogg", {}),
        ("x.mp3", {}),
        ("x.wav", {"subtype": "PCM_U8"}),
        ("x.wav", {"subtype": "PCM_24"}),
        ("x.aiff", {}),
        ("x.w64", {}),
    ],
)
def test_any_format(tmp_path, name, options):
    path = tmp_path / name
    tone = 0.5 * np.sin(np.arange(RATE) * 440 * 2 * np.pi / RATE)
    soundfile.write(path, tone, RATE, **options)
    audio = read_audio(path, RATE)
    assert abs(len(audio) - RATE) < 3000  # mp3 pads
    assert abs(np.abs(np.fft.rfft(audio[:RATE])).argmax() - 440) <= 1


def test_resampling_keeps_a_tone(tmp_path):
    tone = 0.5 * np.sin(np.arange(44100) * 1000 * 2 * np.pi / 44100)
    expected = 0.5 * np.sin(np.arange(RATE) * 1000 * 2 * np.pi / RATE)
    audio = to_mono(tone, 44100, RATE)
    assert np.abs(audio - expected)[500:-500].max() < 1e-3


def test_array_layouts_and_types_agree():
    stereo = np.random.default_rng(0).uniform(-0.9, 0.9, (RATE, 2))
    expected = stereo.mean(axis=1).astype(np.float32)
    for audio in (stereo, stereo.T, torch.from_numpy(stereo), expected[:, None]):
        np.testing.assert_allclose(to_mono(audio, RATE, RATE), expected, atol=1e-6)
    for dtype, scale, shift in ((np.int16, 32768, 0), (np.uint8, 128, 128)):
        audio = (stereo * scale + shift).astype(dtype)
        np.testing.assert_allclose(to_mono(audio, RATE, RATE), expected, atol=1 / scale)


@pytest.mark.parametrize(
    "audio, message",
    [
        (np.zeros(0), "0.0000 s of audio"),
        (np.zeros((0, 2)), "0.0000 s of audio"),
        (np.full(RATE, np.nan), "16000 of 16000 samples are NaN"),
        (np.zeros((500, 500)), "shape"),
        (np.zeros((2, 2, 2)), "shape"),
        (np.array(["a"] * RATE), "expected numbers"),
    ],
)
def test_unusable_arrays_are_named(audio, message):
    with pytest.raises(AudioError, match=message):
        to_mono(audio, RATE, RATE, name="clip x")


def test_truncated_files_are_refused(tmp_path):
    for name in ("x.wav", "x.flac"):
        path = write_clip(tmp_path / name, 2.0)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(AudioError, match="truncated"):
            read_audio(path, RATE)


def test_files_that_are_no_audio_are_refused(tmp_path):
    with pytest.raises(AudioError, match="no such audio file"):
        read_audio(tmp_path / "none.wav", RATE)
    with pytest.raises(AudioError, match="is a folder"):
        read_audio(tmp_path, RATE)
    (tmp_path / "text.wav").write_text("hello")
    with pytest.raises(AudioError, match="cannot be read as audio"):
        read_audio(tmp_path / "text.wav", RATE)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE)
    with pytest.raises(AudioError, match="0.0000 s"):
        read_audio(tmp_path / "empty.wav", RATE)
    with pytest.raises(AudioError, match="shell command"):
        read_audio("sox x.wav -t wav - |", RATE)
    nan = np.full(RATE, np.nan, np.float32)
    soundfile.write(tmp_path / "nan.wav", nan, RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match="NaN"):
        read_audio(tmp_path / "nan.wav", RATE)


def test_placeholder_length_of_a_piped_wav_is_accepted(tmp_path):
    path = write_clip(tmp_path / "x.wav", 1.0)
    content = bytearray(path.read_bytes())
    place = content.index(b"data") + 4
    content[place : place + 4] = (0xFFFFFFFF).to_bytes(4, "little")
    path.write_bytes(content)
    assert len(read_audio(path, RATE)) == RATE


def test_feats_json_is_plain(data_dir, tmp_path):
    encode_set(data_dir, tmp_path / "dump")
    content = json.loads((tmp_path / "dump" / "feats.json").read_text())
    assert content["schema"] == 1 and content["dropped"] == {}
    total = sum(os.path.getsize(p) for p in (tmp_path / "dump").glob("*.ark"))
    assert content["bytes"] == total


def test_gpu_that_is_not_there_is_named_before_any_work(tmp_path, capsys, monkeypatch):
    import torch

    from espnet2_slit.bin import slit_encode

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = ["--data_dir", tmp_path, "--output_dir", tmp_path / "out", "--ngpu", "1"]
    assert slit_encode.main([str(word) for word in words]) == 1
    assert "finds none. Give --ngpu 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
