"""Each reader on a small tree in its corpus' exact layout."""

import shutil

import pytest
import trees

from espnet2_slit.data import kaldi_dir, validate
from espnet2_slit.data.corpora import READERS, CorpusError, Limits, build_sets
from espnet2_slit.data.corpora.audiocaps import AudioCaps
from espnet2_slit.data.corpora.audioset import AudioSet
from espnet2_slit.data.corpora.clotho import Clotho
from espnet2_slit.data.corpora.clotho_aqa import ClothoAQA
from espnet2_slit.data.corpora.esc50 import ESC50
from espnet2_slit.data.corpora.fsd50k import FSD50K
from espnet2_slit.data.corpora.macs import MACS
from espnet2_slit.data.corpora.nsynth import NSynth
from espnet2_slit.data.corpora.urbansound8k import UrbanSound8K
from espnet2_slit.data.corpora.vggsound import VGGSound
from espnet2_slit.data.corpora.wavcaps import WavCaps


@pytest.mark.parametrize("name", READERS)
def test_every_reader_makes_valid_sets_of_its_default_splits(name, tree, tmp_path):
    corpus = READERS[name](tree(name))
    reports = build_sets(corpus, tmp_path, limits=Limits(jobs=1))
    assert [r.name for r in reports] == [
        f"{name}_{split}" for split in corpus.default_splits or corpus.splits
    ]
    for report in reports:
        folder = tmp_path / report.name
        assert validate.validate(folder) == report.kept_samples > 0
        facts = kaldi_dir.read_set(folder)
        assert facts["corpus"] == name
        assert facts["split"] in ("train", "valid", "test")
        assert bool(facts["tasks"]) == (facts["split"] == "test")


@pytest.mark.parametrize("name", READERS)
def test_every_reader_says_what_it_expected_in_an_empty_folder(name, tmp_path):
    (tmp_path / "readme.txt").touch()
    with pytest.raises(CorpusError, match=r"(?s)expected.*found"):
        build_sets(READERS[name](tmp_path), tmp_path / "out")


def test_audiocaps_training_finds_five_ways_to_name_a_file(tree, build, column):
    folder, report = build(AudioCaps(tree("audiocaps")), "train")
    assert (report.rows, report.clips, report.found) == (8, 8, 7)
    assert (report.missing, report.unreadable, report.too_short) == (1, 1, 1)
    assert column(folder, "text") == {
        "audiocaps_-0123456789_30-00": 'A man says "stop", and a dog barks',
        "audiocaps_-0123456789_60-00": "Another part of the same video",
        "audiocaps_abcdefghij0_0-00": "Caf\u00e9 music plays",
        "audiocaps_abcdefghij1_100-00": "Rain, then thunder",
        "audiocaps_stereo--000_10-00": "Cars pass",
    }
    sources = column(folder, "utt2source")
    assert sources["audiocaps_-0123456789_60-00"] == "youtube:-0123456789"


def test_audiocaps_captions_broken_over_lines_are_joined_and_counted(
    tree, build, column, tmp_path
):
    root = shutil.copytree(tree("audiocaps"), tmp_path / "audiocaps")
    (root / "dataset").rename(root / "dataset2.0")
    rows = [
        "audiocap_id,youtube_id,start_time,caption",
        "1,-0123456789,30,A man speaks,",
        "",
        'and a "dog" barks, twice',
        '2,abcdefghij0,0,"Music plays, and',
        'nobody ""sings"""',
        "3,abcdefghij1,100,Rain, then thunder",
    ]
    (root / "dataset2.0" / "train.csv").write_text("\n".join(rows) + "\n")
    folder, report = build(AudioCaps(root, "2.0"), "train")
    assert column(folder, "text") == {
        "audiocaps_-0123456789_30-00": 'A man speaks, and a "dog" barks, twice',
        "audiocaps_abcdefghij0_0-00": 'Music plays, and nobody "sings"',
        "audiocaps_abcdefghij1_100-00": "Rain, then thunder",
    }
    assert report.rows == 3
    assert report.left_out == {"captions over several lines (joined)": 2}


def test_audiocaps_test_has_one_line_a_clip_and_five_references(tree, build, column):
    folder, report = build(AudioCaps(tree("audiocaps")), "test")
    references = column(folder, "references")
    assert list(references) == ["audiocaps_testclip_00_10", "audiocaps_testclip_02_10"]
    # two people wrote the same caption: both count
    assert len(references["audiocaps_testclip_00_10"]) == 5
    assert list(column(folder, "wav.scp")) == list(references)
    assert not (folder / "utt2audio").exists()
    facts = kaldi_dir.read_set(folder)
    assert facts["tasks"] == ["caption", "retrieval"]
    assert "2 of 3 published clips" in facts["notes"]
    assert facts["variant"] == "version 1.0"


def test_audiocaps_2_0_lies_beside_1_0(tree, build, tmp_path):
    root = tmp_path / "both"
    root.mkdir()
    (root / "dataset2.0").symlink_to(tree("audiocaps") / "dataset")
    (root / "audio").symlink_to(tree("audiocaps") / "audio")
    folder, _ = build(AudioCaps(root, version="2.0"), "test")
    assert kaldi_dir.read_set(folder)["variant"] == "version 2.0"
    with pytest.raises(CorpusError, match="dataset/test.csv"):
        build(AudioCaps(root), "test")


def test_clotho_training_has_a_sample_a_caption(tree, build, column):
    folder, report = build(Clotho(tree("clotho")), "development")
    assert (report.rows, report.clips, report.missing) == (6, 6, 1)
    assert report.kept_samples == 25
    clips = column(folder, "utt2audio")
    assert len(set(clips.values())) == 5
    assert all(not v.endswith(" ") for v in column(folder, "text").values())
    names = column(folder, "clip2name")
    assert set(names.values()) == {
        "Distorted AM Radio noise.wav",
        "FR.CTC.08.CoyuyoS.001.wav",
        "rain, wind and 'thunder'.wav",
        "caf\u00e9 ambience.wav",
        "20:30 bells.wav",  # the file says 20_30
    }


def test_clotho_sources_come_from_latin_1_metadata(tree, build, column):
    folder, _ = build(Clotho(tree("clotho")), "development")
    names, clips = column(folder, "clip2name"), column(folder, "utt2audio")
    found = {names[clips[u]]: s for u, s in column(folder, "utt2source").items()}
    assert found["caf\u00e9 ambience.wav"] == "freesound:1003"


def test_clotho_names_that_look_alike_stay_two_clips(tree, build, column):
    folder, report = build(Clotho(tree("clotho")), "validation")
    assert report.kept_clips == 2
    assert kaldi_dir.read_set(folder)["split"] == "valid"


def test_clotho_evaluation_reads_semicolons_and_keeps_unknown_sources(
    tree, build, column
):
    folder, report = build(Clotho(tree("clotho")), "evaluation")
    (clip,) = column(folder, "wav.scp")
    assert column(folder, "utt2source") == {clip: "freesound:1000"}
    facts = kaldi_dir.read_set(folder)
    assert facts["split"] == "test"
    assert facts["variant"] == "evaluation split, caption file differs from 2.1"


def test_wavcaps_parts_share_ids_but_not_files(tree, build, column):
    corpus = WavCaps(tree("wavcaps"))
    freesound, report = build(corpus, "freesound", Limits(max_duration=5, long="crop"))
    soundbible, _ = build(corpus, "soundbible")
    assert report.left_out == {"blacklisted": 1}
    assert (report.rows, report.missing, report.cropped) == (4, 1, 1)
    assert column(freesound, "text") == {
        "wavcaps_freesound-17-00": 'A "bang". Twice',
        "wavcaps_freesound-19-00": "Very long",
    }
    assert column(freesound, "segments")["wavcaps_freesound-19-00"].endswith(" 0 5")
    (path,) = column(soundbible, "wav.scp").values()
    assert path.endswith("SoundBible_flac/17.flac")


def test_wavcaps_never_takes_the_audio_of_another_part(tree, tmp_path, build):
    root = tmp_path / "wavcaps"
    root.mkdir()
    for name in ("json_files", "SoundBible_flac"):
        (root / name).symlink_to(tree("wavcaps") / name)
    with pytest.raises(CorpusError, match="0 audio files|paths with freesound"):
        build(WavCaps(root), "freesound")
    here = tree("wavcaps") / "FreeSound_flac"
    _, report = build(WavCaps(root), "freesound", audio_dirs=[here])
    assert report.kept_samples == 2


def test_clotho_audio_may_lie_in_one_folder_for_all_splits(tree, tmp_path, build):
    root = tmp_path / "clotho"
    root.mkdir()
    for path in tree("clotho").glob("*.csv"):
        (root / path.name).symlink_to(path)
    (root / "wav").symlink_to(tree("clotho") / "development")
    _, report = build(Clotho(root), "development", audio_dirs=[root / "wav"])
    assert report.kept_clips == 5


def test_wavcaps_applies_blacklists_unless_told_not_to(tree, build):
    root = tree("wavcaps")
    kept = {
        lists: build(WavCaps(root, blacklist=lists), "audioset_sl")[1].kept_samples
        for lists in ("test_ac,ub8k_esc50_vggsound", "ub8k_esc50_vggsound", "none")
    }
    assert list(kept.values()) == [1, 2, 2]
    folder, _ = build(WavCaps(root), "audioset_sl")
    assert "test_ac, ub8k_esc50_vggsound" in kaldi_dir.read_set(folder)["notes"]


def test_wavcaps_without_its_blacklists_asks_for_them(tree, tmp_path):
    with pytest.raises(CorpusError, match="blacklist_exclude_test_ac.json.*none"):
        WavCaps(tmp_path)
    with pytest.raises(ValueError, match="found esc50"):
        WavCaps(tmp_path, blacklist="esc50")


def test_wavcaps_audioset_sources_are_youtube_ids(tree, build, column):
    folder, _ = build(WavCaps(tree("wavcaps")), "audioset_sl")
    assert list(column(folder, "utt2source").values()) == ["youtube:-youtube0000"]


def test_macs_is_split_by_place(tree, build, column):
    corpus = MACS(tree("macs"), test_percent=30)
    places = {}
    for split in ("train", "test"):
        folder, report = build(corpus, split)
        places[split] = set(column(folder, "utt2source").values())
        assert report.channels == {"2": report.kept_clips}
    assert not places["train"] & places["test"]
    assert len(places["train"] | places["test"]) == 30
    _, report = build(corpus, "all")
    assert (report.kept_clips, report.kept_samples) == (60, 150)


@pytest.mark.parametrize(
    ("options", "answers"),
    [
        ({}, ["yes", "man", "no"]),
        ({"votes": "unanimous"}, ["man", "no"]),
        ({"answers": "yes_no"}, ["yes", "no"]),
        ({"answers": "single_word"}, ["man"]),
        ({"votes": "unanimous", "answers": "yes_no"}, ["no"]),
        ({"disagreement": "first"}, ["yes", "man", "rain", "no"]),
        ({"disagreement": "all"}, ["yes", "man", "rain", "wind", "thunder", "no"]),
        ({"votes": "all", "answers": "yes_no"}, ["yes", "no", "no"]),
    ],
)
def test_clotho_aqa_merges_three_votes(tree, build, column, options, answers):
    folder, report = build(ClothoAQA(tree("clotho_aqa"), **options), "train")
    assert report.rows == 15
    assert sorted(column(folder, "text").values()) == sorted(answers)


def test_clotho_aqa_counts_why_questions_are_left_out(tree, build):
    corpus = ClothoAQA(tree("clotho_aqa"), answers="yes_no")
    _, report = build(corpus, "train")
    assert report.left_out == {"three-way disagreement": 1, "not yes_no": 1}
    assert (report.missing, report.clips) == (1, 3)


def test_clotho_aqa_test_has_a_line_a_question_and_candidates(tree, build, column):
    folder, _ = build(ClothoAQA(tree("clotho_aqa")), "test")
    ((question, asked),) = column(folder, "instruction").items()
    assert asked == "How many bells?"
    assert column(folder, "text") == {question: "two"}
    clip = column(folder, "utt2audio")[question]
    assert clip.startswith("clotho_caf")  # Clotho's own clip id
    # candidates come from the training answers: "two" is not among them
    assert (folder / "answers").read_text().split() == ["man", "no", "yes"]
    facts = kaldi_dir.read_set(folder)
    assert facts["tasks"] == ["question_answering"]
    assert facts["variant"].startswith("majority votes, all answers")


def test_clotho_aqa_keeps_quotes_and_commas_in_questions(tree, build, column):
    folder, _ = build(ClothoAQA(tree("clotho_aqa")), "train")
    assert 'Who says "hello", if anyone?' in column(folder, "instruction").values()


def test_audioset_names_its_labels(tree, build, column):
    folder, report = build(AudioSet(tree("audioset")), "balanced_train")
    assert column(folder, "text") == {
        "audioset_--4gqARaEJE_0": "Domestic animals, pets; Male speech, man speaking",
        "audioset_aaaaaaaaaaa_30.5": "Music",
    }
    assert report.left_out == {"labels without a name (label left out)": 1}
    folder, _ = build(AudioSet(tree("audioset")), "eval")
    assert column(folder, "references") == {
        "audioset_eeeeeeeeeee_0": ["Domestic animals, pets", "Music"]
    }
    assert "Music" in (folder / "labels").read_text().splitlines()


def test_audioset_names_can_come_from_the_ontology(tree, build, column, tmp_path):
    root = tmp_path / "audioset"
    root.mkdir()
    for name in ("balanced_train_segments.csv", "audio"):
        (root / name).symlink_to(tree("audioset") / name)
    (root / "ontology.json").write_text(
        '[{"id": "/m/04rlf", "name": "Music", "restrictions": []},'
        ' {"id": "/m/068hy", "name": "Animals", "restrictions": ["abstract"]},'
        ' {"id": "/m/05zppz", "name": "Man", "restrictions": []}]'
    )
    folder, _ = build(AudioSet(root), "balanced_train")
    assert sorted(column(folder, "text").values()) == ["Man", "Music"]


def test_esc50_folds_share_no_recording(tree, build, column):
    corpus = ESC50(tree("esc50"), test_fold=5)
    sources = {}
    for split, kept in (("train", 18), ("valid", 6), ("test", 6), ("all", 30)):
        folder, report = build(corpus, split)
        assert report.kept_samples == kept
        sources[split] = set(column(folder, "utt2source").values())
    assert not sources["train"] & sources["test"]
    assert not sources["train"] & sources["valid"]
    assert (folder / "labels").read_text().splitlines() == [
        "can opening",
        "crackling fire",
        "dog",
    ]


def test_esc50_has_esc10_inside(tree, build):
    folder, report = build(ESC50(tree("esc50"), esc10=True), "all")
    assert report.kept_samples == 20
    assert "can opening" not in (folder / "labels").read_text()
    facts = kaldi_dir.read_set(folder)
    assert facts["zero_shot"] and "ESC-10" in facts["variant"]


def test_folds_that_are_not_there_are_refused(tree):
    with pytest.raises(CorpusError, match="found 6"):
        ESC50(tree("esc50"), test_fold=6)
    with pytest.raises(CorpusError, match="are both 2"):
        ESC50(tree("esc50"), test_fold=2, valid_fold=2)
    with pytest.raises(CorpusError, match="found 11"):
        UrbanSound8K(tree("urbansound8k"), test_fold=11)


def test_urbansound8k_keeps_its_folds(tree, build, column):
    corpus = UrbanSound8K(tree("urbansound8k"), test_fold=10)
    folder, report = build(corpus, "test")
    assert (report.too_short, report.kept_samples) == (1, 1)
    (path,) = column(folder, "wav.scp").values()
    assert "/fold10/" in path
    assert column(folder, "utt2source") == {"urbansound8k_1000-3-0-0": "freesound:1000"}
    folder, report = build(corpus, "valid")
    assert all("/fold1/" in p for p in column(folder, "wav.scp").values())
    _, report = build(corpus, "train")
    assert report.kept_samples == 16 and report.channels == {"1": 8, "2": 8}


def test_vggsound_has_no_header_and_commas_in_labels(tree, build, column):
    folder, report = build(VGGSound(tree("vggsound")), "train")
    assert (report.rows, report.missing) == (2, 1)
    assert column(folder, "text") == {
        "vggsound_---g-f_I2yQ_000001": "male singing, choir"
    }
    assert (folder / "labels").read_text().splitlines() == [
        "male singing, choir",
        "people marching",
    ]


def test_fsd50k_has_several_labels_a_clip(tree, build, column):
    corpus = FSD50K(tree("fsd50k"))
    folder, _ = build(corpus, "train")
    assert column(folder, "text") == {"fsd50k_64760": "Electric guitar; Guitar"}
    folder, _ = build(corpus, "eval")
    assert column(folder, "references") == {"fsd50k_37199": ["Bark", "Guitar"]}
    assert column(folder, "utt2source") == {"fsd50k_37199": "freesound:37199"}


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("instrument_family", ["bass", "synth lead", "vocal"]),
        ("pitch", ["20", "21", "22"]),
        ("instrument_source", ["synthetic"] * 3),
    ],
)
def test_nsynth_names_what_is_asked_for(tree, build, column, target, expected):
    folder, _ = build(NSynth(tree("nsynth"), target=target), "test")
    assert sorted(column(folder, "text").values()) == expected
    assert all("nsynth-test" in p for p in column(folder, "wav.scp").values())


def test_other_places_names_and_forms_can_be_asked_for(tree, tmp_path, build, column):
    root = tree("clotho")
    bare = tmp_path / "captions"
    bare.mkdir()
    for path in root.glob("*.csv"):
        (bare / path.name).symlink_to(path)
    options = {"audio_dirs": [root], "names": {"validation": "val"}}
    folder, report = build(Clotho(bare), "validation", evaluation=True, **options)
    assert folder.name == "val" and report.kept_samples == 2
    assert len(column(folder, "references")) == 2
    with pytest.raises(CorpusError, match="looked below"):
        build(Clotho(bare), "validation")
    with pytest.raises(CorpusError, match="expected splits from development"):
        build_sets(Clotho(root), tmp_path, ["dev"])
    with pytest.raises(CorpusError, match="no audio folder"):
        build_sets(Clotho(root), tmp_path, audio_dirs=[tmp_path / "nowhere"])


CAPS, SEGMENTS = "dataset/train.csv", "balanced_train_segments.csv"
SOUNDBIBLE = "json_files/SoundBible/sb_final.json"
BLACKLIST = "json_files/blacklist/blacklist_exclude_test_ac.json"
HEAD = "audiocap_id,youtube_id,start_time,caption\n"
FOLDS = "filename,fold,target,category,esc10,src_file,take\n"
SLICES = "slice_file_name,fsID,start,end,salience,fold,classID,class\n"
MALFORMED = [
    (
        "wavcaps",
        SOUNDBIBLE,
        '{"data": [{"caption": "x"}]}',
        "record 1: expected text as id",
    ),
    ("wavcaps", SOUNDBIBLE, '{"data": [["17"]]}', "record 1: expected id; found"),
    ("wavcaps", SOUNDBIBLE, '{"data": {"a": 1}}', "expected {"),
    ("wavcaps", SOUNDBIBLE, '{"data": [{"id": "17", "caption": null}]}', "empty text"),
    ("wavcaps", SOUNDBIBLE, "<html>", "found '<html>'"),
    (
        "wavcaps",
        SOUNDBIBLE,
        '{"data": [{"id": 17, "duration": "long"}]}',
        "found 'long'",
    ),
    ("wavcaps", BLACKLIST, "x", "expected JSON"),
    ("wavcaps", BLACKLIST, "[1]", "expected a JSON dict, found a list"),
    ("wavcaps", BLACKLIST, '{"AudioSet": 1}', "expected a list of ids as AudioSet"),
    ("macs", "MACS.yaml", "", "expected `files:`"),
    ("macs", "MACS.yaml", "a: [", "expected YAML"),
    ("macs", "MACS.yaml", "files: [1]", "expected filename; found 1"),
    (
        "macs",
        "MACS.yaml",
        "files:\n- {filename: a.wav, annotations: [{tags: []}]}",
        "a.wav: expected text as sentence",
    ),
    (
        "audiocaps",
        CAPS,
        f"{HEAD}1,abc,ten,hello\n",
        "start_time of abc: expected a number",
    ),
    (
        "audiocaps",
        CAPS,
        f"{HEAD}1,abc,nan,hello\n",
        "start_time of abc: expected a number",
    ),
    ("audiocaps", CAPS, f"{HEAD}1,../../etc/passwd,0,x\n", "no usable clip"),
    ("audioset", SEGMENTS, 'a, x, 1, "/m/1"\n', "start of a: expected a number"),
    ("audioset", SEGMENTS, "a, 1\n", "expected YTID, start, end, labels"),
    ("esc50", "meta/esc50.csv", f"{FOLDS}x.wav,one,0,dog,True,1,A\n", "fold of x.wav"),
    (
        "urbansound8k",
        "metadata/UrbanSound8K.csv",
        f"{SLICES}x.wav,1,0,1,1,z,0,d\n",
        "fold of x",
    ),
    ("vggsound", "vggsound.csv", "abc,one,x,train\n", "start of abc"),
    (
        "nsynth",
        "nsynth-train/examples.json",
        '{"a": {}}',
        "record 1 a: expected text as",
    ),
    (
        "nsynth",
        "nsynth-train/examples.json",
        '{"a": 3}',
        "record 1 a: expected instrument",
    ),
    ("nsynth", "nsynth-train/examples.json", "[]", "expected an object"),
]


@pytest.mark.parametrize(("name", "file", "content", "message"), MALFORMED)
def test_a_malformed_file_ends_with_its_place(tmp_path, name, file, content, message):
    root = getattr(trees, name)(tmp_path / name)
    (root / file).write_text(content, encoding="utf-8")
    reader = READERS[name]
    part = "soundbible" if name == "wavcaps" else "all" if name == "macs" else ""
    with pytest.raises(CorpusError) as caught:
        corpus = reader(root)
        split = part or corpus.train_splits[0]
        build_sets(corpus, tmp_path / "out", [split], limits=Limits(jobs=1))
    assert message in str(caught.value)


def test_audioset_labels_without_restrictions_are_named_by_the_ontology(
    build, tmp_path
):
    root = trees.audioset(tmp_path / "audioset")
    (root / "class_labels_indices.csv").unlink()
    (root / "ontology.json").write_text('[{"id": "/m/068hy", "name": "Pets"}]')
    folder, report = build(READERS["audioset"](root), "balanced_train")
    assert (folder / "text").read_text().split(" ", 1)[1] == "Pets\n"
    (root / "ontology.json").write_text("[{}]")
    with pytest.raises(CorpusError, match="expected text as id"):
        READERS["audioset"](root).plan("balanced_train", False)
