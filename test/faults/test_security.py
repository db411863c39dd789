"""Names from outside are data: never run, never another row's, never another's code.

Fuzzed here: audio paths and ids through prepare, encode, manifests and decoded files.
Pickles in arks are refused here by all that reads arks. Elsewhere: words through run.pl
(recipe/test_shell.py), ids through fix, split and combine (test_data_dir.py), ids made
of file names (test_manifest.py), archives (test_packing.py), pickled weights
(test_task.py), pickled arrays (test_scoring.py), and that nothing in the package
evaluates, unpickles or gives a shell what it reads (test_imports.py).
"""

import inspect
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import espnet2_slit
from espnet2_slit.bin import slit_data
from espnet2_slit.common import templates
from espnet2_slit.data import feature_cache, kaldi_dir, kaldi_matrix, validate
from espnet2_slit.data.audio import AudioError
from espnet2_slit.data.kaldi_dir import DataDirError
from espnet2_slit.data.manifest import from_manifest
from espnet2_slit.inference import decode_tasks

PACKAGE = Path(espnet2_slit.__file__).parent
ODD = " '\"$()`;&|<>*?#~\\!{}[]=:,%-_ab1é日"
few = settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ids = st.text(
    st.characters(exclude_categories=("C", "Z"), exclude_characters="\u00ad"),
    min_size=1,
    max_size=12,
).filter(lambda text: kaldi_dir.check_id(text) is None)
names = st.text(st.sampled_from(ODD), min_size=1, max_size=12).map(
    lambda n: n + "x.wav"
)
BAIT = [
    "$(touch executed)x.wav",
    "`touch executed`x.wav",
    "-rf x.wav",
    "'; touch executed;'x.wav",
]


def corpus(folder, pairs):
    """A data directory of (id, file name); clip n lasts 0.2 + 0.05 n s."""
    (folder / "wav").mkdir(parents=True)
    (folder / "d").mkdir()
    for i, (_, name) in enumerate(pairs):
        generator = np.random.default_rng(i)
        samples = 3200 + 800 * i
        path = folder / "wav" / name
        soundfile.write(path, 0.1 * generator.standard_normal(samples), 16000)
    order = sorted(range(len(pairs)), key=lambda i: pairs[i][0].encode())
    for file, value in (
        ("wav.scp", lambda i: folder / "wav" / pairs[i][1]),
        ("text", lambda i: f"caption {i} $(touch executed) `x` 'q'"),
        ("utt2spk", lambda i: pairs[i][0]),
        ("spk2utt", lambda i: pairs[i][0]),
    ):
        lines = "".join(f"{pairs[i][0]} {value(i)}\n" for i in order)
        (folder / "d" / file).write_text(lines, encoding="utf-8")
    return folder / "d"


@few
@given(
    st.lists(
        st.tuples(ids, names),
        min_size=1,
        max_size=4,
        unique_by=(lambda p: p[0], lambda p: p[1]),
    )
)
@example([(f"-i{n}$(x)", name) for n, name in enumerate(BAIT)])
def test_odd_ids_and_paths_are_prepared_each_as_itself(tmp_path, monkeypatch, pairs):
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    source = corpus(folder, pairs)
    monkeypatch.chdir(folder)
    assert validate.validate(source) == len(pairs)
    assert (
        slit_data.main(["prepare", str(source), str(folder / "out"), "--nj", "1"]) == 0
    )
    lengths = kaldi_dir.read_map(folder / "out" / "utt2num_samples")
    assert lengths == {key: str(3200 + 800 * i) for i, (key, _) in enumerate(pairs)}
    text = kaldi_dir.read_map(folder / "out" / "text")
    assert text == kaldi_dir.read_map(source / "text")
    assert not list(tmp_path.rglob("executed"))


@pytest.fixture(scope="module")
def encoder(tiny_parts):
    from espnet2_slit.model.audio_encoder import build_audio_encoder

    return build_audio_encoder("beats", path=str(tiny_parts.beats))


@few
@given(
    st.lists(
        st.tuples(ids, names),
        min_size=1,
        max_size=3,
        unique_by=(lambda p: p[0], lambda p: p[1]),
    )
)
@example([(f"-i{n}$(x)", name) for n, name in enumerate(BAIT)])
def test_odd_ids_and_paths_are_encoded_each_as_itself(
    tmp_path, monkeypatch, encoder, pairs
):
    from espnet2.train.dataset import ESPnetDataset

    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    source = corpus(folder, pairs)
    monkeypatch.chdir(folder)
    work = feature_cache.plan(source, encoder.identity(), shard_clips=2)
    feature_cache.encode(work, encoder, folder / "out")
    feature_cache.merge(
        work, source, folder / "out", feature_cache.encoder_facts(encoder)
    )
    reader = kaldi_matrix.FeatureReader(folder / "out" / "feats.scp")
    assert sorted(reader) == sorted(key for key, _ in pairs)
    scp = str(folder / "out" / "feats.scp")
    espnet = ESPnetDataset([(scp, "feats", "kaldi_ark")], preprocess=None)
    for i, (key, _) in enumerate(pairs):
        generator = np.random.default_rng(i)
        path = folder / "again.wav"
        soundfile.write(path, 0.1 * generator.standard_normal(3200 + 800 * i), 16000)
        audio, _ = soundfile.read(path, dtype="float32")
        (expected,) = feature_cache.encode_batch(encoder, [audio])
        np.testing.assert_allclose(
            reader[key], expected, atol=0.01 * abs(expected).max()
        )
        np.testing.assert_array_equal(espnet[key][1]["feats"], reader[key])
    reader.close()
    assert not list(tmp_path.rglob("executed"))


@few
@given(
    st.lists(
        st.tuples(st.text(max_size=15), st.text(max_size=15)), min_size=1, max_size=4
    )
)
@example(
    [("$(touch executed).wav", "a\nb c"), ("touch executed |", "x"), ("a\nb.wav", "y")]
)
@example([("a\rb.wav", "x")])
@example([("-x.wav", "\u2028a\x85b\x1c"), ("'.wav", '"'), ("日本.wav", "é")])
def test_any_manifest_is_refused_or_gives_valid_directories(
    tmp_path, monkeypatch, rows
):
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    monkeypatch.chdir(folder)
    with open(folder / "m.jsonl", "w", encoding="utf-8") as stream:
        for name, text in rows:
            row = {"audio": name, "text": text, "split": "train"}
            stream.write(json.dumps(row) + "\n")
    try:
        report = from_manifest(
            folder / "m.jsonl", folder / "data", templates.instruction
        )
    except (DataDirError, UnicodeEncodeError):
        assert not (folder / "data").exists()
        return
    finally:
        assert not list(tmp_path.rglob("executed"))
    assert report.kept + sum(report.dropped.values()) == len(rows)
    assert validate.validate(folder / "data" / "train_caption") == report.kept


@few
@given(st.dictionaries(ids, st.text(max_size=30), min_size=1, max_size=6))
@example({"-x": "two\nlines $(touch executed)", "é": "\u2028\x85 a\tb", "#1": ""})
def test_decoded_texts_are_read_back_row_by_row(tmp_path, rows):
    path = tmp_path / "text"
    rows = {k: v.encode("utf-8", "ignore").decode() for k, v in rows.items()}
    decode_tasks.write_texts(path, list(rows), list(rows.values()))
    assert kaldi_dir.read_map(path) == {k: " ".join(v.split()) for k, v in rows.items()}


def test_code_of_a_model_repository_runs_only_when_asked_for():
    from espnet2_slit.data import prompt_encoder
    from espnet2_slit.model import language_model

    for module in (language_model, prompt_encoder):
        for _, function in inspect.getmembers(module, inspect.isfunction):
            parameter = inspect.signature(function).parameters.get("trust_remote_code")
            assert parameter is None or parameter.default is False
    for path in [*PACKAGE.rglob("*.py"), *PACKAGE.parent.rglob("egs2/slit/**/*.yaml")]:
        text = path.read_text(encoding="utf-8")
        assert "trust_remote_code=True" not in text, path
        assert "trust_remote_code: true" not in text, path


# ----------------------------------------------------------------- pickles in arks


@pytest.fixture
def pickled_ark(tmp_path):
    """(place of an ark entry that makes a file when it is unpickled, that file)."""

    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    ark = tmp_path / "evil.ark"
    ark.write_bytes(b"x PKL" + pickle.dumps(Evil()))
    return f"{ark}:2", tmp_path / "executed"


def test_the_bait_works_in_an_unguarded_reader(pickled_ark):
    place, executed = pickled_ark
    pytest.importorskip("kaldiio", reason="omniio reads no pickles")
    reader = f"import kaldiio; kaldiio.load_mat({place!r})"
    subprocess.run([sys.executable, "-c", reader], check=False)
    assert executed.exists()


@pytest.mark.parametrize("form", ["{}", "tail -c +3 {} |"])
def test_a_pickle_in_an_ark_is_no_audio(tmp_path, pickled_ark, capfd, form):
    place, executed = pickled_ark
    source = corpus(tmp_path, [("a", "a.wav"), ("b", "b.wav")])
    value = form.format(place if form == "{}" else place.removesuffix(":2"))
    (source / "wav.scp").write_text(f"a {source.parent}/wav/a.wav\nb {value}\n")
    assert slit_data.main(["prepare", str(source), str(tmp_path / "out")]) == 0
    assert kaldi_dir.sample_ids(tmp_path / "out") == ["a"]
    assert value in "".join(capfd.readouterr())
    assert not executed.exists()


def test_a_pickle_in_an_ark_is_not_encoded(tmp_path, pickled_ark, encoder):
    place, executed = pickled_ark
    source = corpus(tmp_path, [("a", "a.wav"), ("b", "b.wav")])
    (source / "wav.scp").write_text(f"a {source.parent}/wav/a.wav\nb {place}\n")
    work = feature_cache.plan(source, encoder.identity())
    with pytest.raises(AudioError, match="evil.ark:2: no such audio file"):
        feature_cache.encode(work, encoder, tmp_path / "encoded")
    assert not executed.exists()


def test_a_pickle_among_the_features_is_not_trained_on(
    tmp_path, pickled_ark, train_command, tiny_features
):
    from espnet2_slit.task import SLITTask

    place, executed = pickled_ark
    shutil.copytree(tiny_features, tmp_path / "dump")
    scp = tmp_path / "dump" / "train" / "feats.scp"
    rows = [line.split()[0] for line in scp.read_text().splitlines()]
    scp.write_text("".join(f"{key} {place}\n" for key in rows))
    command = train_command("representation", tmp_path / "exp")
    command = [
        word.replace(str(tiny_features), str(tmp_path / "dump")) for word in command
    ]
    refusal = "found a pickled object|Not a Kaldi object"  # ours, and omniio's own
    with pytest.raises(Exception, match=refusal):
        SLITTask.main(cmd=command)
    reader = kaldi_matrix.FeatureReader(scp)  # decoding reads through this
    with pytest.raises(kaldi_matrix.FeatureCacheError, match="no feature matrix"):
        reader[rows[0]]
    assert not executed.exists()
