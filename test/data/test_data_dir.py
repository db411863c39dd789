"""Data directories: what is refused and why, and that every command keeps the ids."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet2_slit.bin import slit_data
from espnet2_slit.common.files import read_lines
from espnet2_slit.data import edit, kaldi_dir, validate, writer
from espnet2_slit.data.kaldi_dir import DataDirError

# Ids that shells and careless scripts trip over; all are legal here.
ODD_IDS = ("-x", "$HOME", "a'b", 'q"q', "ünïcode", "a;b", "`x`", "#1", "日本")


def make(folder, ids=("a", "b", "c"), **files):
    """A valid directory, then `files` written over it; None removes one."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = sorted(ids, key=str.encode)
    content = {
        "wav.scp": "".join(f"{i} /audio/{n}.wav\n" for n, i in enumerate(ids)),
        "text": "".join(f"{i} text of {n}\n" for n, i in enumerate(ids)),
        "utt2spk": "".join(f"{i} {i}\n" for i in ids),
        "spk2utt": "".join(f"{i} {i}\n" for i in ids),
    }
    files = {name.replace("__", "."): text for name, text in files.items()}
    for name, text in {**content, **files}.items():
        path = folder / name
        if isinstance(text, bytes):
            path.write_bytes(text)
        elif text is not None:
            path.write_text(text, encoding="utf-8")
    return folder


def files_of(folder):
    """{name: bytes} of a directory."""
    return {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.is_file()}


def test_a_good_directory_is_valid(tmp_path):
    assert validate.validate(make(tmp_path / "d", ODD_IDS)) == len(ODD_IDS)


def test_wav_scp_text_and_utt2spk_of_another_recipe_are_enough(tmp_path):
    folder = make(tmp_path / "d", spk2utt=None, utt2spk=None)
    assert validate.validate(folder) == 3


BAD = {
    "out of order": ({"wav__scp": "b 1\na 2\nc 3\n"}, "line 2 ('a') is out of order"),
    "repeated id": ({"text": "a x\na y\nb z\nc w\n"}, "repeats the id"),
    "windows line ends": ({"text": b"a x\r\nb y\r\nc z\r\n"}, "Windows line end"),
    "latin-1": ({"text": b"a x\nb \xe4\nc z\n"}, "line 2 is not UTF-8"),
    "no value": (
        {"wav__scp": "a /x\nb\nc /z\n"},
        "line 2 ('b') has an id and no value",
    ),
    "cut off": ({"text": "a x\nb y\nc z"}, "lacks a line end"),
    "empty file": ({"text": ""}, "is empty (0 bytes)"),
    "missing text": ({"text": None}, "text: no such file"),
    "lacking ids": ({"text": "a x\nb y\n"}, "lacks 1 ids of wav.scp ('c')"),
    "extra ids": ({"text": "a x\nb y\nc z\nd w\n"}, "has 1 ids that wav.scp lacks"),
    "zero-width id": ({"wav__scp": "a 1\nb 2\nc\u200b 3\n"}, "cannot be printed"),
    "wrong spk2utt": ({"spk2utt": "a a b\nc c\n"}, "is not the inverse of utt2spk"),
    "no spk2utt": ({"spk2utt": None}, "spk2utt: no such file beside utt2spk"),
    "unknown task": ({"utt2task": "a x\nb x\nc x\n"}, "expected caption, question"),
    "clip id of two words": (
        {"utt2audio": "a x y\nb x\nc x\n"},
        "clip ids must be one word",
    ),
    "segment backwards": (
        {"segments": "a a 2 1\nb b 0 1\nc c 0 1\n"},
        "0 <= start < end",
    ),
    "segment without times": (
        {"segments": "a a\nb b 0 1\nc c 0 1\n"},
        "'a' has 'a', expected `recording start end`",
    ),
    "segment of no recording": (
        {"segments": "a q 0 1\nb b 0 1\nc c 0 1\n"},
        "names recordings wav.scp lacks ('q')",
    ),
    "reference of no clip": (
        {"references": "a x\nb y\nc z\nd w\n"},
        "references: has 1 ids that the clip ids lacks ('d')",
    ),
    "labels twice": ({"labels": "dog\ncat\ndog\n"}, "labels: has lines twice ('dog')"),
    "labels empty": ({"labels": ""}, "labels: is empty"),
    "set.json broken": ({"set__json": "{"}, "set.json: expected JSON"),
    "set.json of the future": (
        {"set__json": '{"schema": 2}'},
        "expected schema 1, found 2",
    ),
    "set.json unknown task": (
        {"set__json": '{"schema": 1, "tasks": ["dance"]}'},
        "found dance",
    ),
    "task without its file": (
        {"set__json": '{"schema": 1, "tasks": ["retrieval"]}'},
        "names the task retrieval, which needs references",
    ),
    "label outside labels": (
        {
            "set__json": '{"schema": 1, "tasks": ["classification"]}',
            "labels": "text of 0\ntext of 1\n",
        },
        "text: has labels that `labels` lacks ('text of 2')",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_validate_names_what_is_wrong(tmp_path, name):
    files, message = BAD[name]
    folder = make(tmp_path / "d", **files)
    with pytest.raises(DataDirError) as error:
        validate.validate(folder)
    assert message in str(error.value)
    assert "slit_data fix" in str(error.value)


def test_missing_and_empty_directories_say_what_was_expected(tmp_path):
    with pytest.raises(DataDirError, match="no such data directory"):
        validate.validate(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataDirError, match="expected wav.scp .*nothing in it"):
        validate.validate(tmp_path / "empty")


def test_validate_lists_every_fault_at_once(tmp_path):
    folder = make(tmp_path / "d", text="a x\n", labels="", utt2task="a x\nb x\nc x\n")
    with pytest.raises(DataDirError) as error:
        validate.validate(folder)
    assert all(name in str(error.value) for name in ("text:", "labels:", "utt2task:"))


def test_fix_sorts_drops_and_counts(tmp_path):
    folder = make(
        tmp_path / "d",
        wav__scp="c 3\nb 2\na 1\nb 2\ne 5\n",
        text=b"b text\r\na \na x\nc one\nc two\nd q\ne \xff\n",
        utt2spk=None,
        spk2utt=None,
        references="a r\nb r\nc r\nd r\n",
    )
    report = edit.fix(folder)
    assert validate.validate(folder) == 3
    assert (folder / "wav.scp").read_text() == "a 1\nb 2\nc 3\n"
    assert (folder / "text").read_text() == "a x\nb text\nc one\n"
    assert report.rows == 4 and report.kept == 3
    assert report.dropped["no line in text"] == 1  # e
    assert report.dropped["text: no value"] == 1
    assert report.dropped["text: not UTF-8"] == 1
    assert report.dropped["text: other value for an id seen before"] == 1
    assert report.notes["repeated lines in wav.scp"] == 1
    assert report.notes["lines of text without audio, left out"] == 1  # d
    assert (folder / ".backup" / "wav.scp").read_text().startswith("c 3")
    assert json.loads((folder / "report.json").read_text())["kept"] == 3


def test_fix_twice_changes_nothing(tmp_path):
    folder = make(tmp_path / "d", wav__scp="c 3\na 1\n", text="a x\nc y\nz q\n")
    edit.fix(folder)
    before = files_of(folder)
    edit.fix(folder)
    del before["report.json"]
    after = files_of(folder)
    assert {name: after[name] for name in before} == before


def test_fix_refuses_to_leave_nothing_and_changes_nothing(tmp_path):
    folder = make(tmp_path / "d", text="x 1\n")
    before = files_of(folder)
    with pytest.raises(DataDirError, match="no sample is left"):
        edit.fix(folder)
    assert files_of(folder) == before


def test_fix_keeps_only_recordings_that_segments_use(tmp_path):
    folder = make(
        tmp_path / "d",
        wav__scp="r1 1\nr2 2\n",
        segments="a r1 0 1\nb r1 1 -1\nc r9 0 1\n",
    )
    edit.fix(folder)
    assert validate.validate(folder) == 2
    assert (folder / "wav.scp").read_text() == "r1 1\n"


def test_combine_joins_and_fills_in_known_defaults(tmp_path):
    one = make(
        tmp_path / "1", ("a", "b"), utt2audio="a k\nb k\n", instruction="a i\nb j\n"
    )
    two = make(tmp_path / "2", ("c",))
    report = edit.combine(tmp_path / "all", [two, one])
    assert validate.validate(tmp_path / "all") == 3
    assert (tmp_path / "all" / "utt2audio").read_text() == "a k\nb k\nc c\n"
    assert not (tmp_path / "all" / "instruction").exists()
    assert "instruction left out" in report.notes


def test_combine_gives_segments_to_the_one_without(tmp_path):
    one = make(tmp_path / "1", ("a",), wav__scp="r 1\n", segments="a r 0 1\n")
    two = make(tmp_path / "2", ("c",))
    edit.combine(tmp_path / "all", [one, two])
    assert validate.validate(tmp_path / "all") == 2
    assert (tmp_path / "all" / "segments").read_text() == "a r 0 1\nc c 0 -1\n"


def test_combine_refuses_one_id_in_two_directories(tmp_path):
    one, two = make(tmp_path / "1", ("a", "b")), make(tmp_path / "2", ("b",))
    with pytest.raises(DataDirError, match="the id 'b' is in .*1 and in .*2"):
        edit.combine(tmp_path / "all", [one, two])
    assert not (tmp_path / "all").exists()


def captions(folder, clips=6, each=3):
    """A directory with several samples a clip."""
    ids = [f"c{c}-{i}" for c in range(clips) for i in range(each)]
    return make(folder, ids, utt2audio="".join(f"{i} {i[:2]}\n" for i in ids))


@pytest.mark.parametrize("parts", [1, 2, 4, 6])
def test_split_keeps_all_samples_and_never_cuts_a_clip(tmp_path, parts):
    folder = captions(tmp_path / "d")
    made = edit.split(folder, tmp_path / "s", parts)
    ids = [kaldi_dir.sample_ids(part) for part in made]
    assert sorted(sum(ids, [])) == kaldi_dir.sample_ids(folder)
    clips = [{i[:2] for i in part} for part in ids]
    assert sum(map(len, clips)) == 6
    assert max(map(len, clips)) - min(map(len, clips)) <= 1
    for part in made:
        validate.validate(part)


def test_split_into_more_parts_than_clips_is_an_error(tmp_path):
    with pytest.raises(DataDirError, match="cannot cut 6 clips into 7"):
        edit.split(captions(tmp_path / "d"), tmp_path / "s", 7)


def test_subset_by_count_seed_ids_and_exclusion(tmp_path):
    folder = captions(tmp_path / "d")
    edit.subset(folder, tmp_path / "first", count=2)
    assert {i[:2] for i in kaldi_dir.sample_ids(tmp_path / "first")} == {"c0", "c1"}
    for name in ("x", "y"):
        edit.subset(folder, tmp_path / name, count=3, seed=5)
    assert files_of(tmp_path / "x") == files_of(tmp_path / "y")
    edit.subset(folder, tmp_path / "ids", ids=["c3", "c0-1"])
    assert kaldi_dir.sample_ids(tmp_path / "ids") == ["c0-1", "c3-0", "c3-1", "c3-2"]
    report = edit.subset(folder, tmp_path / "ex", exclude=["c3", "c0-1"])
    assert report.kept == 18 - 4
    with pytest.raises(DataDirError, match="no sample or clip 'zz'"):
        edit.subset(folder, tmp_path / "no", ids=["zz"])


def test_leaking_samples_are_reported_and_dropped(tmp_path, capsys):
    train = make(tmp_path / "train", ("a", "b", "c"), utt2source="a s1\nb s2\nc s3\n")
    test = make(
        tmp_path / "test",
        ("x", "y"),
        wav__scp=f"x {os.path.sep}audio/2.wav\ny /other.wav\n",
        utt2source="x q\ny s1\n",
    )
    writer.write_set(test, split="test")
    words = ["leakage", "--train", str(train), "--test", str(test)]
    assert slit_data.main([*words, "--report", str(tmp_path / "r.json")]) == 1
    shown = capsys.readouterr().out
    assert "same source 1 (e.g. s1), same file 1 (e.g. /audio/2.wav)" in shown
    assert "1 of 1 pairs of training and test directories overlap" in shown
    (row,) = json.loads((tmp_path / "r.json").read_text())
    assert row["samples"] == ["a", "c"] and row["clips"] == 2
    assert slit_data.main([*words, "--fail", "never"]) == 0
    assert slit_data.main([*words, "--fail", "zero_shot"]) == 0
    writer.write_set(test, split="test", zero_shot=True)
    assert slit_data.main([*words, "--fail", "zero_shot"]) == 1
    assert slit_data.main([*words, "--drop", str(tmp_path / "o")]) == 0
    assert kaldi_dir.sample_ids(tmp_path / "o" / "train") == ["b"]
    dropped = ["leakage", "--train", str(tmp_path / "o/train"), "--test", str(test)]
    assert slit_data.main(dropped) == 0


def test_a_label_may_hold_a_line_separator(tmp_path):
    labels = "dog\u2028barks\ncat\x85\nbell\n"
    text = "a dog\u2028barks\nb cat\x85\nc bell\n"
    tasks = "a classification\nb classification\nc classification\n"
    folder = make(tmp_path / "d", labels=labels, text=text, utt2task=tasks)
    assert read_lines(folder / "labels") == [
        "dog\u2028barks",
        "cat\x85",
        "bell",
    ]
    assert validate.validate(folder) == 3
    edit.subset(folder, tmp_path / "part", ids=["a"])
    assert (tmp_path / "part" / "labels").read_text() == labels
    other = make(tmp_path / "e", ("x",), labels="bell\nbird\n")
    edit.combine(tmp_path / "both", [folder, other])
    assert (tmp_path / "both" / "labels").read_text() == labels + "bird\n"


def test_categories_are_kept_in_step_for_espnets_samplers(tmp_path):
    categories = "a large\nb small\nc large\n"
    folder = make(tmp_path / "d", utt2category=categories)
    assert writer.write_categories(folder) == 2
    assert (folder / "category2utt").read_text() == "large a c\nsmall b\n"
    edit.subset(folder, tmp_path / "part", exclude=["a"])
    assert (tmp_path / "part" / "category2utt").read_text() == "large c\nsmall b\n"
    edit.combine(tmp_path / "both", [tmp_path / "part", make(tmp_path / "e", ("x",))])
    assert (tmp_path / "both" / "category2utt").read_text() == "all b c x\n"


ids = st.text(
    st.characters(exclude_categories=("C", "Z"), exclude_characters="\u00ad"),
    min_size=1,
    max_size=12,
).filter(lambda text: kaldi_dir.check_id(text) is None)


@settings(max_examples=60, deadline=None)
@given(st.lists(ids, min_size=2, max_size=12, unique=True), st.randoms())
def test_any_printable_ids_survive_fix_split_and_combine(tmp_path_factory, keys, rng):
    folder = tmp_path_factory.mktemp("ids")
    make(folder / "d", keys)
    for name in ("wav.scp", "text", "utt2spk"):
        lines = (folder / "d" / name).read_text(encoding="utf-8").split("\n")[:-1]
        rng.shuffle(lines)
        (folder / "d" / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    edit.fix(folder / "d")
    assert validate.validate(folder / "d") == len(keys)
    parts = edit.split(folder / "d", folder / "parts", 2)
    edit.combine(folder / "again", parts)
    for name in ("wav.scp", "text", "utt2spk", "spk2utt"):
        assert files_of(folder / "again")[name] == files_of(folder / "d")[name]


def test_sorted_writer_spills_and_merges_bytewise(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "LINES_IN_MEMORY", 7)
    lines = [f"{chr(0x40 + i * 37 % 90)}{i % 11} v" for i in range(100)]
    with writer.SortedWriter(tmp_path / "f", unique=True) as out:
        for line in lines:
            out.add(line)
    expected = sorted({line.encode() for line in lines})
    assert (tmp_path / "f").read_bytes().splitlines() == expected


def test_a_writer_that_fails_leaves_the_old_file(tmp_path):
    (tmp_path / "f").write_text("old\n")
    with pytest.raises(RuntimeError):
        with writer.SortedWriter(tmp_path / "f") as out:
            out.add("new")
            raise RuntimeError
    assert files_of(tmp_path) == {"f": b"old\n"}


def test_the_command_line_ends_with_one_line_and_code_1(tmp_path, capsys):
    assert slit_data.main(["validate", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err.startswith("Error: ")
    folder = make(tmp_path / "d")
    assert slit_data.main(["validate", str(folder)]) == 0
    assert "3 samples" in capsys.readouterr().out
    with pytest.raises(SystemExit) as error:
        slit_data.main(["valdate", str(folder)])
    assert error.value.code == 2


def test_list_names_the_sets_of_a_split(tmp_path, capsys):
    for name, split in (("train_x", "train"), ("odd", "test"), ("test_y", "")):
        folder = make(tmp_path / name)
        if split:
            writer.write_set(folder, split=split)
    assert slit_data.main(["list", str(tmp_path), "--split", "test"]) == 0
    assert capsys.readouterr().out.split() == ["odd", "test_y"]


def test_a_broken_off_category_list_leaves_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "utt2category").write_text("a x\nb y\n")
    writer.write_categories(tmp_path)
    before = (tmp_path / "category2utt").read_text()
    assert before == "x a\ny b\n"

    def stop(pairs, key):
        pairs = list(pairs)
        yield pairs[0][0], pairs[:1]
        raise KeyboardInterrupt

    monkeypatch.setattr(writer.itertools, "groupby", stop)
    with pytest.raises(KeyboardInterrupt):
        writer.write_categories(tmp_path)
    assert (tmp_path / "category2utt").read_text() == before
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["category2utt", "utt2category"]


def test_a_subset_keeps_every_moment_choice_and_right_clip_of_its_samples(tmp_path):
    folder = make(
        tmp_path / "d",
        moments="a 0 1\na 5 6\nb 2 3\n",
        choices='a ["x", "y"]\nb ["x", "z"]\n',
        utt2kind="a count\nc order\n",
        relevant="a text of 1\nc text of 0\n",
    )
    edit.subset(folder, tmp_path / "s", ids=["a", "c"])
    text = {p.name: p.read_text() for p in (tmp_path / "s").iterdir()}
    assert text["moments"] == "a 0 1\na 5 6\n"
    assert text["choices"] == 'a ["x", "y"]\n'
    assert text["utt2kind"] == "a count\nc order\n"
    assert text["relevant"] == "a text of 1\nc text of 0\n"
