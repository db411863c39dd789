"""What all readers share: ids, tables, JSON, the audio index, limits, the report."""

import json
import re
from collections import Counter

import pytest
import trees

from espnet2_slit.data.corpora import CorpusError, Limits, Sample
from espnet2_slit.data.corpora.audio_index import AudioIndex
from espnet2_slit.data.corpora.base import SetBuilder, SetPlan, role, safe_id
from espnet2_slit.data.corpora.tables import clean, read_json_items, read_table, spell


def plan(samples, **options):
    return SetPlan("set", "corpus", "train", samples, **options)


def samples(*names, text="a sound"):
    return [Sample(name, (name,), text) for name in names]


@pytest.mark.parametrize(
    "name",
    ["a b.wav", "x,y.wav", 'say "hi".wav', "caf\u00e9.wav", "-dash.wav", "(1).wav"],
)
def test_ids_hold_only_safe_characters(name):
    assert re.fullmatch(r"corpus_[A-Za-z0-9._-]+", safe_id("corpus", name))


def test_names_that_look_alike_get_different_ids():
    ids = {safe_id("c", n) for n in ("a b.wav", "a_b.wav", "a,b.wav", "a\u00e9b.wav")}
    assert len(ids) == 4


def test_harmless_names_are_kept_in_ids():
    assert safe_id("esc50", "1-100032-A-0.wav") == "esc50_1-100032-A-0"
    assert safe_id("clotho", "FR.CTC.08.001.wav") == "clotho_FR.CTC.08.001"


def test_clean_gives_one_line_without_control_characters():
    assert clean("\ufeff A\tdog\r\n barks \x00 twice  ") == "A dog barks twice"
    assert clean("caf\u00e9  bar ") == "caf\u00e9 bar"
    assert spell("crackling_fire") == "crackling fire"


@pytest.mark.parametrize(
    ("split", "evaluation", "expected"),
    [
        ("development", False, "train"),
        ("validation", False, "valid"),
        ("val", True, "test"),  # the form that was asked for decides, not the name
        ("evaluation", True, "test"),
        ("all", True, "test"),
    ],
)
def test_splits_say_what_they_are_for(split, evaluation, expected):
    assert role(split, evaluation) == expected


def test_tables_keep_commas_quotes_and_line_breaks_in_fields(tmp_path):
    rows = [["a", "b"], ['x, "y"', "two\nlines"]]
    trees.table(tmp_path / "t.csv", rows)
    tally = Counter()
    read = list(read_table(tmp_path / "t.csv", ("a", "b"), tally=tally))
    assert read == [{"a": 'x, "y"', "b": "two\nlines"}]
    assert tally == {"rows": 1}


def test_tables_in_latin_1_and_with_a_byte_order_mark_are_read(tmp_path):
    trees.table(tmp_path / "old.csv", [["name"], ["caf\u00e9"]], encoding="iso-8859-1")
    trees.table(tmp_path / "bom.csv", [["name"], ["caf\u00e9"]], encoding="utf-8-sig")
    for file in ("old.csv", "bom.csv"):
        assert [r["name"] for r in read_table(tmp_path / file, ("name",))] == [
            "caf\u00e9"
        ]


def test_a_table_without_a_column_is_refused_with_both_lists(tmp_path):
    trees.table(tmp_path / "t.csv", [["file", "label"]])
    with pytest.raises(
        CorpusError, match="expected the columns fname.*found file, label"
    ):
        list(read_table(tmp_path / "t.csv", ("fname",)))


def test_a_short_row_is_refused_with_its_line(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3\n")
    with pytest.raises(CorpusError, match="line 3: expected 2 columns, found 1"):
        list(read_table(tmp_path / "t.csv", ("a", "b")))


@pytest.mark.parametrize("indent", [None, 2])
def test_json_is_read_member_by_member_across_block_ends(tmp_path, indent):
    rows = [{"id": str(n), "caption": 'x "y" ]} ' + "z" * 1000} for n in range(3300)]
    path = tmp_path / "big.json"
    path.write_text(json.dumps({"n": 1, "data": rows}, indent=indent))
    assert path.stat().st_size > 3 << 20  # several blocks
    assert [row for _, row in read_json_items(path, (), "data")] == rows
    path.write_text(json.dumps({row["id"]: row for row in rows}, indent=indent))
    assert dict(read_json_items(path, ())) == {row["id"]: row for row in rows}


def test_cut_off_json_and_git_lfs_pointers_are_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"data": [{"id": 1}, {"id": ')
    with pytest.raises(CorpusError, match="download complete"):
        list(read_json_items(path, (), "data"))
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(CorpusError, match="Git LFS pointer"):
        list(read_json_items(path, (), "data"))


def test_audio_is_found_under_any_suffix_and_the_named_one_first(tmp_path):
    for name in ("x.flac", "x.wav", "y.mp3", "z.OGG", "cover.jpg"):
        trees.empty(tmp_path / "deep" / name)
    index = AudioIndex([tmp_path])
    assert index.size == 4
    assert index.find(["x.flac"]).endswith("x.flac")
    assert index.find(["x"]).endswith("x.wav")
    assert index.find(["y.wav"]).endswith("y.mp3")
    assert index.find(["none", "z.wav"]).endswith("z.OGG")
    assert index.find(["cover"]) is None


def test_a_folder_in_the_name_chooses_between_files_of_one_name(tmp_path):
    for fold in ("fold1", "fold2"):
        trees.empty(tmp_path / fold / "a.wav")
    assert "fold2" in AudioIndex([tmp_path]).find(["fold2/a.wav"])
    assert AudioIndex([tmp_path]).find(["fold3/a.wav"]) is None


def test_composed_and_decomposed_accents_are_one_name(tmp_path):
    trees.empty(tmp_path / "cafe\u0301.wav")  # as macOS unpacks it
    assert AudioIndex([tmp_path]).find(["caf\u00e9.wav"])


def test_loose_names_ignore_punctuation_but_never_guess(tmp_path):
    for name in ("20_30 bells.wav", "a-b.wav", "a_b.wav"):
        trees.empty(tmp_path / name)
    loose = AudioIndex([tmp_path], loose=True)
    assert loose.find(["20:30 Bells.wav"])
    assert loose.find(["a b.wav"]) is None  # two files would fit
    assert loose.find(["a-b.wav"]).endswith("a-b.wav")
    assert AudioIndex([tmp_path]).find(["20:30 bells.wav"]) is None


def test_youtube_ids_that_differ_in_case_are_different_clips(tmp_path):
    trees.empty(tmp_path / "-AbC.wav")
    assert AudioIndex([tmp_path]).find(["-abc"]) is None


def test_links_back_up_the_tree_do_not_trap_the_walk(tmp_path):
    trees.empty(tmp_path / "a/x.wav")
    (tmp_path / "a/loop").symlink_to(tmp_path)
    assert AudioIndex([tmp_path]).size == 1


def test_each_loss_is_counted_and_nothing_is_fatal(tmp_path):
    trees.sound(tmp_path / "wav/good.wav", rate=22050, channels=2)
    trees.sound(tmp_path / "wav/short.wav", seconds=0.05)
    trees.empty(tmp_path / "wav/zero.wav")
    (tmp_path / "wav/noise.wav").write_bytes(b"not audio at all")
    rows = samples("good", "short", "zero", "noise", "gone", "good") + samples(
        "good", text=" \t "
    )
    index = AudioIndex([tmp_path / "wav"])
    report = SetBuilder(plan(rows), index, Limits()).build(tmp_path)
    assert (report.rows, report.clips, report.found, report.missing) == (7, 5, 4, 1)
    assert (report.unreadable, report.too_short, report.duplicates) == (2, 1, 1)
    assert (report.empty_text, report.kept_clips, report.kept_samples) == (1, 1, 1)
    assert report.sample_rates == {"22050": 1} and report.channels == {"2": 1}
    assert report.hours == pytest.approx(1 / 3600)
    assert "0 bytes" in report.examples["unreadable"][0]
    written = (tmp_path / "set/corpus_report.txt").read_text()
    assert written == report.text()
    assert json.loads((tmp_path / "set/corpus_report.json").read_text())["missing"] == 1


def test_no_clip_at_all_is_an_error_that_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.setattr("espnet2_slit.data.other_decoders.available", lambda: None)
    trees.empty(tmp_path / "wav/other.wav")
    trees.empty(tmp_path / "wav/film.mp4")
    builder = SetBuilder(plan(samples("x")), AudioIndex([tmp_path / "wav"]), Limits())
    with pytest.raises(CorpusError) as caught:
        builder.build(tmp_path)
    message = str(caught.value)
    for part in (
        "'x'",
        str(tmp_path / "wav"),
        "other.wav",
        "1 video files",
        "--audio_dir",
    ):
        assert part in message
    assert not (tmp_path / "set/wav.scp").exists()


def test_long_clips_are_kept_cropped_or_dropped(tmp_path, column):
    trees.sound(tmp_path / "wav/long.wav", seconds=3)
    trees.sound(tmp_path / "wav/fits.wav", seconds=1)
    index = AudioIndex([tmp_path / "wav"])
    for long, kept in (("keep", 2), ("crop", 2), ("drop", 1)):
        limits = Limits(max_duration=2, long=long)
        report = SetBuilder(plan(samples("long", "fits")), index, limits).build(
            tmp_path
        )
        assert report.kept_clips == kept
        assert (tmp_path / "set/segments").exists() == (long == "crop")
        if long == "crop":
            assert column(tmp_path / "set", "segments") == {
                "corpus_fits-00": "corpus_fits 0 -1",
                "corpus_long-00": "corpus_long 0 2",
            }
            assert set(column(tmp_path / "set", "wav.scp")) == {
                "corpus_fits",
                "corpus_long",
            }


def test_a_crop_of_a_crop_keeps_its_start(tmp_path, column):
    trees.sound(tmp_path / "wav/a.wav", seconds=3)
    rows = [Sample("a", ("a",), "x", seconds=(0.5, 9.0))]
    index = AudioIndex([tmp_path / "wav"])
    SetBuilder(plan(rows), index, Limits(max_duration=1, long="crop")).build(tmp_path)
    assert column(tmp_path / "set", "segments") == {"corpus_a-00": "corpus_a 0.5 1.5"}


def test_without_probing_only_empty_files_are_met(tmp_path):
    trees.empty(tmp_path / "wav/zero.wav")
    (tmp_path / "wav/noise.wav").write_bytes(b"not audio at all")
    index = AudioIndex([tmp_path / "wav"])
    limits = Limits(probe=False, max_duration=1, long="drop")
    rows = [*samples("zero", "noise"), Sample("long", ("noise",), "x", duration=9.0)]
    report = SetBuilder(plan(rows), index, limits).build(tmp_path)
    assert (report.unreadable, report.too_long, report.kept_clips) == (1, 1, 1)


def test_probing_in_a_pool_finds_what_one_process_finds(tmp_path, monkeypatch):
    monkeypatch.setattr("espnet2_slit.data.corpora.audio_index.Prober.FEW", 2)
    for n in range(8):
        trees.sound(tmp_path / f"wav/{n}.wav", seconds=0.05 * n)
    index = AudioIndex([tmp_path / "wav"])
    found = [
        SetBuilder(plan(samples(*map(str, range(8)))), index, Limits(jobs=jobs))
        .build(tmp_path)
        .text()
        for jobs in (1, 2)
    ]
    assert found[0] == found[1]


def test_what_an_earlier_run_left_is_not_mixed_in(tmp_path):
    trees.sound(tmp_path / "wav/a.wav")
    index = AudioIndex([tmp_path / "wav"])
    asked = [Sample("a", ("a",), "yes", "question_answering", "Is it?", "freesound:1")]
    SetBuilder(plan(asked), index, Limits()).build(tmp_path)
    assert (tmp_path / "set/instruction").exists()
    SetBuilder(plan(samples("a")), index, Limits()).build(tmp_path)
    assert not (tmp_path / "set/instruction").exists()
    assert not (tmp_path / "set/utt2source").exists()


def test_sample_ids_do_not_depend_on_what_is_missing(tmp_path, column):
    trees.sound(tmp_path / "wav/a.wav")
    index = AudioIndex([tmp_path / "wav"])
    rows = (
        samples("a", text="") + samples("a") + samples("b") + samples("a", text="two")
    )
    SetBuilder(plan(rows), index, Limits()).build(tmp_path)
    assert column(tmp_path / "set", "text") == {
        "corpus_a-01": "a sound",
        "corpus_a-02": "two",
    }


def test_a_long_value_for_long_is_refused():
    with pytest.raises(ValueError, match="keep, crop or drop, found 'cut'"):
        Limits(long="cut")
