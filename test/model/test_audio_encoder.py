"""Audio encoders: windows, invariances, weights, parity with the original classes."""

import copy
from pathlib import Path

import pytest
import tiny
import torch

from espnet2_slit.model.audio_encoder import build_audio_encoder
from espnet2_slit.model.audio_encoder.base import Grid

NAMES = ("beats", *tiny.AUDIO_ENCODERS, "espnet", "python", "short_whisper")
KINDS = {"beats": "beats", "espnet": "espnet", "python": "python"}
RATE = 16000


@pytest.fixture(scope="session")
def paths(tmp_path_factory):
    """Path of each tiny encoder, made when first asked for."""
    made = {}

    def path(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            make = {
                "beats": tiny.beats_checkpoint,
                "espnet": tiny.espnet_model,
                "python": lambda _: "tiny:python_encoder",
                "short_whisper": tiny.whisper,
            }
            made[name] = (make | tiny.AUDIO_ENCODERS)[name](folder)
        return made[name]

    return path


@pytest.fixture(scope="session")
def build(paths):
    """Builds an encoder of that name; with the same options always the same one."""
    built = {}

    def get(name, **conf):
        kind = KINDS.get(name, "hugging_face")
        if name == "short_whisper":
            conf = {"window_s": 8.0, **conf}
        key = (name, *sorted(conf.items()))
        if key not in built:
            built[key] = build_audio_encoder(kind, path=paths(name), **conf)
        return built[key]

    return get


def noise(seconds, rate, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(int(seconds * rate), generator=generator) * 0.1


def batch(clips):
    lengths = torch.tensor([len(clip) for clip in clips])
    return torch.nn.utils.rnn.pad_sequence(clips, batch_first=True), lengths


# -------------------------------------------------------------------- invariances


@pytest.mark.parametrize("name", NAMES)
def test_padding_and_batch_neighbours_do_not_change_frames(name, build):
    encoder = build(name)
    rate = encoder.sample_rate
    clips = [noise(s, rate, i) for i, s in enumerate((1.5, 0.61, 11.3, 1.5, 2.0))]
    speech, lengths = batch(clips)
    speech = torch.nn.functional.pad(speech, (0, 3 * rate), value=0.7)  # loud padding
    frames, frame_lengths = encoder(speech, lengths)
    assert frames.dtype == torch.float32 and not frames.requires_grad
    assert frames.shape == (5, frame_lengths.max(), encoder.width)
    for i, clip in enumerate(clips):
        alone, count = encoder(clip.unsqueeze(0), lengths[i : i + 1])
        assert count[0] == frame_lengths[i]
        torch.testing.assert_close(alone[0], frames[i, :count], atol=1e-5, rtol=1e-5)
        assert not frames[i, count:].any()
        assert alone.std() > 0 or count[0] * encoder.width == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_minute_is_cut_into_windows_and_nothing_is_left_out(name, build):
    encoder = build(name)
    rate = encoder.sample_rate
    speech = noise(60, rate).unsqueeze(0)
    windows = encoder.windows(speech.shape[1])
    assert len(windows) > 1 and windows[0].start == 0
    for earlier, later in zip(windows, windows[1:], strict=False):
        assert earlier.start < later.start <= earlier.stop  # no gap
    assert speech.shape[1] - windows[-1].stop < encoder.grid.step
    frames, lengths = encoder(speech, torch.tensor([speech.shape[1]]))
    expected = 60 * encoder.frames_per_second
    assert abs(lengths[0] - expected) <= 2 * encoder.grid.frames_per_step
    # The end of the clip is heard at the end of the frames, and nowhere before.
    other = speech.clone()
    other[:, -rate // 2 :] = noise(0.5, rate, seed=9)
    changed = (encoder(other, torch.tensor([other.shape[1]]))[0] - frames).abs()
    changed = changed.amax(dim=(0, 2)) > 1e-6
    assert changed[-encoder.grid.frames_per_step :].any() and not changed[0]


@pytest.mark.parametrize("name", NAMES)
def test_very_short_audio_gives_frames_and_none_is_an_error(name, build):
    encoder = build(name)
    frames, lengths = encoder(torch.full((1, 20), 0.1), torch.tensor([20]))
    assert lengths[0] >= 1 and torch.isfinite(frames).all()
    with pytest.raises(ValueError, match="clip 1 .* found 0"):
        encoder(torch.zeros(2, 20), torch.tensor([20, 0]))


@pytest.mark.parametrize("name", NAMES)
def test_stays_frozen_inside_a_trained_model(name, build):
    encoder = copy.deepcopy(build(name))
    speech, lengths = batch([noise(1, encoder.sample_rate)])
    expected = encoder(speech, lengths)[0]
    encoder.train().to(dtype=torch.bfloat16)
    assert not list(encoder.parameters()) and not encoder.state_dict()
    assert torch.equal(encoder(speech, lengths)[0], expected)


def test_windows_of_one_clip_keep_their_order_among_others(build):
    encoder = build("beats", window_s=1.0, max_windows=9, windows_per_pass=2)
    clips = [noise(s, RATE, i) for i, s in enumerate((2.7, 0.9, 5.2))]
    frames, lengths = encoder(*batch(clips))
    for i, clip in enumerate(clips):
        alone = encoder(*batch([clip]))[0]
        torch.testing.assert_close(alone[0], frames[i, : lengths[i]])
    # A full window of a long clip is what that stretch gives as a clip of its own.
    window = encoder.windows(len(clips[2]))[1]
    part = clips[2][window.start : window.stop]
    one, count = encoder(*batch([part]))
    start = encoder.frames_per_window
    assert count[0] == encoder.frames_per_window
    torch.testing.assert_close(one[0], frames[2, start : 2 * start])


def test_too_many_windows_is_an_error_with_the_remedy(build):
    encoder = build("beats", window_s=1.0, max_windows=2)
    with pytest.raises(ValueError, match=r"3\.0 s.*3 windows.*at most 2.*max_windows"):
        encoder(*batch([noise(3, RATE)]))


def test_filled_windows_are_of_one_length_and_padding_is_silence_of_the_filterbank(
    build,
):
    """What a clip lacks of its windows are zeros where the filterbank is normalised."""
    encoder = build("beats", window_s=1.015, fill_windows=2, max_windows=4)
    full = encoder.frames_per_window
    clips = [noise(s, RATE, i) for i, s in enumerate((0.4, 1.7, 2.9, 0.02))]
    frames, lengths = encoder(*batch(clips))
    assert lengths.tolist() == [2 * full, 2 * full, 3 * full, 2 * full]
    for i, clip in enumerate(clips):
        alone = encoder(*batch([clip]))[0][0]
        torch.testing.assert_close(alone, frames[i, : lengths[i]])
    module = encoder.frozen.module
    fbank = torch.zeros(1, 2, 96, 128)  # of the first clip: 0.4 s in two windows
    known = module.preprocess(clips[0][None])
    fbank[:, 0, : known.shape[1]] = known
    patches = module.patch_embedding(fbank[0][:, None]).flatten(2).transpose(1, 2)
    expected = module.post_extract_proj(module.layer_norm(patches))
    expected = module.encoder(expected, padding_mask=None)[0].flatten(0, 1)
    torch.testing.assert_close(frames[0, : 2 * full], expected, atol=1e-5, rtol=1e-5)
    # No audio reaches the second window of the first clip, or all of the last.
    assert torch.equal(frames[0, full : 2 * full], frames[3, full : 2 * full])


def test_full_windows_are_those_of_an_encoder_that_does_not_fill(build):
    filled = build("beats", window_s=1.015, fill_windows=1, max_windows=4)
    plain = build("beats", window_s=1.015, max_windows=4)
    clip = noise(2.9, RATE)
    ours, theirs = (encoder(*batch([clip]))[0][0] for encoder in (filled, plain))
    kept = 2 * plain.frames_per_window
    torch.testing.assert_close(ours[:kept], theirs[:kept], atol=1e-5, rtol=1e-5)
    assert filled.identity()["fill_windows"] == 1
    assert plain.identity()["fill_windows"] is None  # as in caches without the name
    with pytest.raises(ValueError, match=r"fill_windows: .* max_windows \(4\).* 5"):
        build("beats", window_s=1.015, fill_windows=5, max_windows=4)


def test_speech_must_be_mono_and_lengths_must_fit(build):
    encoder = build("beats")
    with pytest.raises(ValueError, match=r"one channel; found \(1, 4000, 2\)"):
        encoder(torch.zeros(1, 4000, 2), torch.tensor([4000]))
    with pytest.raises(ValueError, match="1 to 4000 samples, found 4001"):
        encoder(torch.zeros(1, 4000), torch.tensor([4001]))
    with pytest.raises(ValueError, match="expected 2 lengths, found 1"):
        encoder(torch.zeros(2, 4000), torch.tensor([4000]))


@pytest.mark.parametrize("drops_tail", [True, False])
@pytest.mark.parametrize("samples", [1, 9, 10, 14, 15, 100, 104, 105])
def test_steps_count_whole_or_started_steps(samples, drops_tail):
    grid = Grid(10, 4, 3, 5, 1, drops_tail)
    whole = sum(1 for k in range(1, 20) if k * 10 + 4 <= samples)
    if not drops_tail and samples > 4 + 10 * whole:
        whole += 1
    assert grid.steps(samples) == max(whole, 1)


# -------------------------------------------------------------------------- facts


@pytest.mark.parametrize(
    "name, rate, per_second, ten_seconds",
    [
        ("beats", 16000, 50, 496),
        ("ast", 16000, 120, 1200),
        ("clap", 48000, 6.4, 64),
        ("whisper", 16000, 50, 500),
        ("wav2vec2", 16000, 50, 499),
        ("hubert", 16000, 50, 499),
        ("wavlm", 16000, 50, 499),
        ("data2vec_audio", 16000, 50, 499),
        ("espnet", 8000, 24.9, None),
        ("python", 16000, 40, 400),
        ("short_whisper", 16000, 50, 500),
    ],
)
def test_rate_and_frames_of_ten_seconds(name, rate, per_second, ten_seconds, build):
    encoder = build(name)
    assert encoder.sample_rate == rate
    if name != "espnet":
        assert encoder.frames_per_second == pytest.approx(per_second)
        lengths = encoder(*batch([noise(10, rate)]))[1]
        assert lengths.tolist() == [ten_seconds]


@pytest.mark.parametrize("name", NAMES)
def test_identity_is_plain_and_names_what_frames_depend_on(name, build, paths):
    import json

    identity = build(name).identity()
    assert json.loads(json.dumps(identity)) == identity
    assert identity["path"] == str(paths(name)) and len(identity["fingerprint"]) == 64
    keys = "kind layer sample_rate width frames_per_second window_s code_version"
    assert set(keys.split()) < set(identity)


def test_unknown_names_and_options_are_errors(paths):
    with pytest.raises(ValueError, match="beats, hugging_face, espnet, python.*'beat'"):
        build_audio_encoder("beat", path="x")
    with pytest.raises(TypeError, match="fbank_meen"):
        build_audio_encoder("beats", path=paths("beats"), fbank_meen=1.0)
    with pytest.raises(ValueError, match="precision.*'int8'"):
        build_audio_encoder("beats", path=paths("beats"), precision="int8")
    with pytest.raises(ValueError, match="window_s: expected 0.175"):
        build_audio_encoder("beats", path=paths("beats"), window_s=0.1)


# -------------------------------------------------------------------------- layers


@pytest.mark.parametrize("name", ["beats", "ast", "whisper", "wav2vec2", "hubert"])
def test_layers_are_the_states_between_layers(name, build):
    speech = batch([noise(1, RATE)])
    final = build(name)
    states = [build(name, layer=k)(*speech)[0] for k in range(final.num_layers + 1)]
    for earlier, later in zip(states, states[1:], strict=False):
        assert earlier.shape == later.shape and not torch.allclose(earlier, later)
    if name in ("beats", "wav2vec2"):  # post-norm: the last state is the output
        torch.testing.assert_close(states[-1], final(*speech)[0])


@pytest.mark.parametrize("name", ["beats", "ast", "whisper", "hubert"])
def test_learned_layer_weights_are_trained_and_saved(name, build):
    encoder = build(name, layer="weighted")
    assert encoder.trainable and set(encoder.state_dict()) == {"layer_weights"}
    speech = batch([noise(1, RATE), noise(0.6, RATE)])
    frames = encoder(*speech)[0]
    states = [build(name, layer=k)(*speech)[0] for k in range(encoder.num_layers + 1)]
    torch.testing.assert_close(frames, torch.stack(states).mean(0))  # to start with
    frames.square().sum().backward()
    assert encoder.layer_weights.grad.abs().sum() > 0
    assert not build(name).trainable


def test_layer_choice_is_checked(build):
    with pytest.raises(ValueError, match="'concatenated' or 0 to 2, found 3"):
        build("beats", layer=3)
    with pytest.raises(ValueError, match="no layers of equal width"):
        build("clap", layer=1)


def test_fixed_windows_cannot_be_changed(build):
    with pytest.raises(ValueError, match="CLAP has a window of its own"):
        build("clap", window_s=10.0)
    with pytest.raises(ValueError, match="at most 30 s.*found 31"):
        build("whisper", window_s=31.0)


@pytest.mark.parametrize("name", ["beats", "ast", "whisper"])
def test_layers_can_be_concatenated(name, build):
    encoder = build(name, layer="concatenated")
    speech = batch([noise(1, RATE), noise(0.6, RATE)])
    states = [build(name, layer=k)(*speech)[0] for k in range(encoder.num_layers + 1)]
    frames = encoder(*speech)[0]
    torch.testing.assert_close(frames, torch.cat(states, dim=-1))
    assert not encoder.trainable and frames.shape[-1] == encoder.width
    assert (
        encoder.identity()["width"] == encoder.width == sum(s.shape[-1] for s in states)
    )


@pytest.mark.parametrize("window_s", [None, 0.96])
def test_pooled_frames_are_means_of_neighbours(build, window_s):
    options = {"window_s": window_s, "max_windows": 9}
    fine, coarse = build("whisper", **options), build("whisper", pool=4, **options)
    assert coarse.frames_per_second == fine.frames_per_second / 4 == 12.5
    speech = batch([noise(1.6, RATE), noise(0.8, RATE)])  # whole pooled steps
    frames, lengths = fine(*speech)
    pooled, pooled_lengths = coarse(*speech)
    assert lengths.tolist() == [80, 40] and pooled_lengths.tolist() == [20, 10]
    means = frames.unflatten(1, (-1, 4)).mean(2)
    torch.testing.assert_close(pooled[0], means[0])
    torch.testing.assert_close(pooled[1, :10], means[1, :10])
    assert coarse(*batch([noise(0.81, RATE)]))[1].tolist() == [11]
    assert coarse.identity() != fine.identity() and "pool" not in fine.identity()


def test_frames_that_are_not_one_a_step_are_not_pooled(build):
    for name in ("beats", "wav2vec2"):
        with pytest.raises((ValueError, TypeError), match="pool"):
            build(name, pool=2)
    with pytest.raises(ValueError, match="found 8, 32 and 0"):
        build("whisper", pool=0)


def test_lower_precision_is_close_and_ignores_outer_autocast(tmp_path):
    # Of fewer than 16 channels a group, as other tests' BEATs has, oneDNN's bfloat16
    # convolution is wrong on CPUs with AMX (torch 2.13); published ones have 48.
    path = tiny.beats_checkpoint(tmp_path, conv_pos_groups=1)
    exact = build_audio_encoder("beats", path=path)
    half = build_audio_encoder("beats", path=path, precision="bfloat16")
    speech = batch([noise(1, RATE)])
    a, b = exact(*speech)[0], half(*speech)[0]
    assert b.dtype == torch.float32 and 0 < (a - b).abs().max() < 0.2
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(exact(*speech)[0], a)
        assert torch.equal(half(*speech)[0], b)
    assert exact.identity() != half.identity()


# -------------------------------------------------------------------------- parity


def test_beats_frames_are_those_of_espnets_class(paths, build):
    from espnet2_slit.common.compat import BeatsEncoder

    checkpoint = torch.load(paths("beats"), weights_only=True)
    original = BeatsEncoder(
        input_size=1,
        beats_config=checkpoint["cfg"],
        fbank_mean=15.41663,
        fbank_std=6.55582,
    ).eval()
    original.load_state_dict(checkpoint["model"], strict=False)
    speech, lengths = batch([noise(3.21, RATE)])
    expected, expected_lengths, _ = original(speech, lengths)
    frames, frame_lengths = build("beats")(speech, lengths)
    assert frame_lengths.tolist() == expected_lengths.tolist() == [152]
    torch.testing.assert_close(frames, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["wav2vec2", "hubert", "wavlm", "data2vec_audio"])
def test_wave_frames_are_those_of_transformers(name, paths, build):
    import transformers

    model = transformers.AutoModel.from_pretrained(paths(name)).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(paths(name))
    clip = noise(1.2345, RATE)
    values = extractor(clip.numpy(), sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        expected = model(values.input_values).last_hidden_state
    frames = build(name)(*batch([clip]))[0]
    torch.testing.assert_close(frames, expected, atol=1e-5, rtol=1e-5)


def test_whisper_frames_are_those_of_transformers(paths, build):
    import transformers

    model = transformers.WhisperModel.from_pretrained(paths("whisper")).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(paths("whisper"))
    clip = noise(1.23, RATE)
    features = extractor(clip.numpy(), sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        expected = model.encoder(features.input_features).last_hidden_state
    frames = build("whisper")(*batch([clip]))[0]
    torch.testing.assert_close(frames, expected[:, :62], atol=1e-5, rtol=1e-5)


def test_whisper_in_its_longest_short_window_is_whisper(build, monkeypatch):
    """A full window of 30 s pads nothing either way, so both ways must agree."""
    speech = batch([noise(30, RATE)])
    whole = build("whisper")
    expected = whole(*speech)[0]
    monkeypatch.setattr(whole, "pads", False)
    torch.testing.assert_close(whole(*speech)[0], expected, atol=1e-5, rtol=1e-5)


def test_whisper_short_windows_cost_as_much_as_their_audio(build, monkeypatch):
    encoder, seen = build("short_whisper"), []
    extract = encoder._extract
    monkeypatch.setattr(
        encoder, "_extract", lambda *a, **k: seen.append(extract(*a, **k)) or seen[-1]
    )
    lengths = encoder(*batch([noise(s, RATE) for s in (1.0, 1.0, 8.01)]))[1]
    assert lengths.tolist() == [50, 50, 401]
    assert sorted(x.shape[-1] for x in seen) == [100, 800, 800]


def test_python_encoder_breaks_no_contract_unnoticed(build):
    encoder = build("python")
    assert encoder.identity()["factory_conf"] == {}
    wide = build_audio_encoder(
        "python", path="tiny:python_encoder", factory_conf={"width": 12}
    )
    assert wide.width == 12 and wide.identity() != encoder.identity()
    for path, message in (
        ("tiny", "package.module:factory"),
        ("no_such_module:f", "cannot be imported"),
        ("tiny:no_such_name", "cannot be imported"),
        ("tiny:python_encoder_without_facts", "without output_dim and sampling_rate"),
    ):
        with pytest.raises(ValueError, match=message):
            build_audio_encoder("python", path=path)
    with pytest.raises(ValueError, match="8 wide, its output_dim says 9"):
        build_audio_encoder(
            "python", path="tiny:python_encoder", factory_conf={"claimed_width": 9}
        )


def test_example_of_an_own_encoder_works_as_documented(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    page = Path(__file__).parents[2] / "docs" / "encoders_and_language_models.md"
    code = page.read_text("utf-8").split("```python\n")[1].split("```")[0]
    (tmp_path / "aisfx_encoder.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    import aisfx_encoder

    torch.manual_seed(0)
    weights = tmp_path / "model.safetensors"
    save_file(aisfx_encoder.Encoder().state_dict(), weights)
    encoder = build_audio_encoder(
        "python",
        path="aisfx_encoder:encoder",
        factory_conf={"weights": str(weights)},
        window_s=2.0,
    )
    speech = batch([noise(3.0, 44100), noise(1.0, 44100)])
    frames, lengths = encoder(*speech)
    assert frames.shape[-1] == 512 and torch.isfinite(frames).all()
    assert lengths.tolist() == [15, 5]  # a window of ten frames, then a shorter one


def test_python_encoder_may_pad_by_itself(build):
    """Frames that its mask calls padding are left out."""
    padding = build_audio_encoder(
        "python", path="tiny:python_encoder", factory_conf={"pads_to_s": 10.0}
    )
    speech = batch([noise(1.5, RATE)])
    frames, lengths = padding(*speech)
    assert lengths.tolist() == [60]
    torch.testing.assert_close(frames, build("python")(*speech)[0])


def test_ast_and_clap_frames_are_in_order_of_time(build):
    """A click at one time changes most the frames of that time."""
    for name in ("ast", "clap"):
        encoder = build(name, **({"layer": 0} if name == "ast" else {}))
        rate = encoder.sample_rate
        quiet = noise(10, rate) * 0.01
        places = []
        for second in (1.0, 5.0, 9.0):
            loud = quiet.clone()
            start = int(second * rate)
            loud[start : start + rate // 10] += noise(0.1, rate, seed=5) * 9
            frames = encoder(*batch([quiet, loud]))[0]
            change = (frames[1] - frames[0]).abs().sum(-1)
            places.append(int(change.argmax()) / len(change) * 10)
        tolerance = 0.3 if name == "ast" else 1.3  # attention windows spread it in CLAP
        assert places == pytest.approx([1.0, 5.0, 9.0], abs=tolerance), name


def test_espnet_frames_are_those_of_its_own_parts(paths, build):
    import yaml
    from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
    from espnet2.asr.frontend.default import DefaultFrontend

    path = paths("espnet")
    settings = yaml.safe_load((path.parent / "config.yaml").read_text())
    weights = torch.load(path, weights_only=True)
    frontend = DefaultFrontend(**settings["frontend_conf"])
    encoder = ConformerEncoder(input_size=20, **settings["encoder_conf"]).eval()
    for name, part in (("frontend", frontend), ("encoder", encoder)):
        size = len(name) + 1
        part.load_state_dict(
            {k[size:]: v for k, v in weights.items() if k.startswith(f"{name}.")}
        )
    speech, lengths = batch([noise(2, 8000)])
    with torch.no_grad():
        feats, feat_lengths = frontend(speech, lengths)
        feats = (feats - weights["normalize.mean"]) / weights["normalize.std"]
        expected = encoder(feats, feat_lengths)[0]
    frames = build("espnet")(speech, lengths)[0]
    torch.testing.assert_close(frames, expected, atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------ weights, verified


def changed_checkpoint(path, folder, change):
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, folder / "beats.pt")
    return folder / "beats.pt"


def test_beats_weights_are_really_loaded(paths, build):
    weights = torch.load(paths("beats"), weights_only=True)["model"]
    loaded = build("beats").frozen.module.state_dict()
    folded = {"encoder.pos_conv.0.weight_g", "encoder.pos_conv.0.weight_v"}
    assert folded < set(weights)
    assert all(torch.equal(loaded[n], weights[n]) for n in set(weights) - folded)
    v, g = (weights[f"encoder.pos_conv.0.weight_{n}"] for n in "vg")
    folded = v * g / v.norm(dim=(0, 1), keepdim=True)
    torch.testing.assert_close(loaded["encoder.pos_conv.0.weight"], folded)


def test_beats_missing_unexpected_and_misshapen_weights_are_listed(paths, tmp_path):
    def change(checkpoint):
        weights = checkpoint["model"]
        weights["stray"] = torch.zeros(1)
        weights["layer_norm.weight"] = torch.zeros(3)
        del weights["post_extract_proj.bias"]

    path = changed_checkpoint(paths("beats"), tmp_path, change)
    with pytest.raises(ValueError) as error:
        build_audio_encoder("beats", path=path)
    message = str(error.value)
    assert "1 missing (post_extract_proj.bias); 1 unexpected (stray); " in message
    assert "layer_norm.weight expected (16,), found (3,)" in message


def test_fine_tuned_and_openbeats_checkpoints_give_the_same_frames(
    paths, build, tmp_path
):
    def with_predictor(checkpoint):  # BEATs fine-tuned on AudioSet
        checkpoint["cfg"]["finetuned_model"] = True
        checkpoint["model"]["predictor.weight"] = torch.zeros(527, 24)
        checkpoint["label_dict"] = {0: "/m/09x0r"}

    def from_espnet(checkpoint):  # a classifier trained in ESPnet, saved whole
        weights = checkpoint["model"]
        weights["patch_embedding_pad.weight"] = torch.ones(1, 1, 16, 16)
        weights["raw2fbank_pad.weight"] = torch.ones(1, 1, 400)
        checkpoint["model"] = {f"encoder.{n}": w for n, w in weights.items()}
        checkpoint["model"]["decoder.output.weight"] = torch.zeros(3, 24)
        checkpoint["cfg"]["use_flash_attn"] = True

    speech = batch([noise(1, RATE)])
    expected = build("beats")(*speech)[0]
    for change in (with_predictor, from_espnet):
        path = changed_checkpoint(paths("beats"), tmp_path, change)
        encoder = build_audio_encoder("beats", path=path)
        assert torch.equal(encoder(*speech)[0], expected)


def test_fbank_statistics_change_frames_and_identity(build):
    openbeats = build("beats", fbank_mean=15.29130, fbank_std=5.90532)
    speech = batch([noise(1, RATE)])
    assert not torch.allclose(openbeats(*speech)[0], build("beats")(*speech)[0])
    assert openbeats.identity()["fbank_mean"] == 15.29130
    assert openbeats.identity() != build("beats").identity()


def test_not_a_beats_checkpoint_is_explained(tmp_path):
    with pytest.raises(ValueError, match="nowhere.pt: expected a weights file"):
        build_audio_encoder("beats", path=tmp_path / "nowhere.pt")
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r'"cfg" and "model", found .*state_dict'):
        build_audio_encoder("beats", path=tmp_path / "other.pt")


class Payload:
    """Runs code when unpickled by a loader that trusts files."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('ran')",))


def test_checkpoints_do_not_run_code(tmp_path):
    torch.save({"cfg": Payload(), "model": {}}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="Pickled objects are not opened"):
        build_audio_encoder("beats", path=tmp_path / "evil.pt")


def test_hugging_face_missing_weights_and_other_types_are_errors(paths, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "wav2vec2"
    shutil.copytree(paths("wav2vec2"), folder)
    weights = load_file(folder / "model.safetensors")
    weights.pop("encoder.layer_norm.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="encoder.layer_norm.weight"):
        build_audio_encoder("hugging_face", path=folder)
    llama = tiny.llama(tmp_path / "llama")
    with pytest.raises(ValueError, match="audio-spectrogram.*found 'llama'"):
        build_audio_encoder("hugging_face", path=llama)


def test_espnet_errors_name_what_is_missing(paths, tmp_path):
    with pytest.raises(FileNotFoundError, match="weights.*nowhere"):
        build_audio_encoder("espnet", path=tmp_path / "nowhere.pth")
    weights = torch.load(paths("espnet"), weights_only=True)
    weights.pop("encoder.after_norm.weight")
    torch.save(weights, tmp_path / "broken.pth")
    config = paths("espnet").parent / "config.yaml"
    with pytest.raises(ValueError, match=r"1 missing \(encoder.after_norm.weight\)"):
        build_audio_encoder("espnet", path=tmp_path / "broken.pth", config=config)
