"""A data directory that is made again holds what was made now, and nothing else."""

import json

import pytest
from test_data_dir import files_of, make
from test_manifest import caption
from test_manifest import make as from_rows

from espnet2_slit.bin import slit_data
from espnet2_slit.data import edit, kaldi_dir, writer
from espnet2_slit.data.prepare import prepare

OLD = {
    "instruction": "a Say it.\nb Say it.\nc Say it.\n",
    "references": "a x\nb y\nc z\n",
}


def without_old(folder):
    for name in OLD:
        (folder / name).unlink()


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_subset_and_combine_leave_no_file_of_an_earlier_source(tmp_path):
    source = make(tmp_path / "source", **OLD)
    other = make(tmp_path / "other", ("d", "e"))
    for name, content in (
        ("instruction", "d Do.\ne Do.\n"),
        ("references", "d x\ne y\n"),
    ):
        (other / name).write_text(content)
    edit.subset(source, tmp_path / "part", count=2)
    edit.combine(tmp_path / "both", [source, other])
    edit.split(source, tmp_path / "parts", 3)
    assert all({*OLD} <= names(tmp_path / f) for f in ("part", "both", "parts/1"))
    without_old(source)
    edit.subset(source, tmp_path / "part", count=2)
    report = edit.combine(tmp_path / "both", [source, other])
    edit.split(source, tmp_path / "parts", 3)
    assert not any({*OLD} & names(tmp_path / f) for f in ("part", "both", "parts/1"))
    assert "instruction left out" in report.notes


def test_prepare_leaves_no_file_of_an_earlier_source(tmp_path, tone):
    source = make(tmp_path / "source", **OLD)
    tone(source)
    prepare(source, tmp_path / "dump" / "set")
    assert {*OLD} <= names(tmp_path / "dump" / "set")
    without_old(source)
    prepare(source, tmp_path / "dump" / "set")
    assert not {*OLD} & names(tmp_path / "dump" / "set")


@pytest.fixture
def tone(tmp_path):
    """Gives the three clips of a directory a sound each."""
    import numpy as np
    import soundfile

    def write(folder):
        lines = []
        for key in "abc":
            soundfile.write(tmp_path / f"{key}.wav", np.full(8000, 0.1), 16000)
            lines.append(f"{key} {tmp_path / key}.wav\n")
        (folder / "wav.scp").write_text("".join(lines))

    return write


def test_a_manifest_without_questions_leaves_no_earlier_question_set(tmp_path):
    rows = [caption("a.wav", "x"), caption("b.wav", "y", "test")]
    questions = [
        caption("b.wav", "yes", "test", instruction="Is it?"),
        caption("c.wav", "no", "valid", instruction="Is it?"),
    ]
    from_rows(tmp_path, rows + questions)
    assert {"test_qa", "valid_instruction"} <= names(tmp_path / "data")
    mine = make(tmp_path / "data" / "test_mine")  # not of a manifest: stays
    report = from_rows(tmp_path, rows)
    assert names(tmp_path / "data") == {
        "test_caption",
        "test_mine",
        "train_caption",
        "train_instruction",
    }
    assert (
        report.notes["sets of an earlier manifest removed"]
        == "test_qa, valid_instruction"
    )
    assert len(kaldi_dir.sample_ids(mine)) == 3


def test_a_manifest_that_fails_changes_nothing(tmp_path):
    from_rows(tmp_path, [caption("a.wav", "x"), caption("b.wav", "y", "test")])
    before = {
        name: files_of(tmp_path / "data" / name) for name in names(tmp_path / "data")
    }
    with pytest.raises(kaldi_dir.DataDirError, match="line 2"):
        from_rows(tmp_path, [caption("a.wav", "z"), caption("a.wav", "x", "nowhere")])
    assert names(tmp_path / "data") == {*before}
    for name, files in before.items():
        assert files_of(tmp_path / "data" / name) == files


def test_what_is_no_file_of_a_data_directory_stays(tmp_path):
    target = make(tmp_path / "target", **OLD)
    (target / "audio").mkdir()
    (target / "audio" / "mine.wav").write_bytes(b"RIFF")
    (target / "notes.txt").write_text("mine")
    edit.subset(make(tmp_path / "source"), target, count=1)
    assert (target / "audio" / "mine.wav").read_bytes() == b"RIFF"
    assert (target / "notes.txt").read_text() == "mine"
    assert not {*OLD} & names(target)


def test_a_directory_that_is_not_finished_is_not_seen(tmp_path):
    folder = make(tmp_path / "data" / "set", **OLD)
    before = files_of(folder)
    with pytest.raises(KeyError), writer.new_directory(folder) as fresh:
        (fresh / "text").write_text("half")
        assert files_of(folder) == before
        assert slit_data.main(["list", str(tmp_path / "data")]) == 0
        raise KeyError
    assert files_of(folder) == before and names(tmp_path / "data") == {"set"}


def test_a_link_to_a_directory_stays_a_link(tmp_path):
    elsewhere = make(tmp_path / "elsewhere", **OLD)
    (tmp_path / "set").symlink_to(elsewhere)
    edit.subset(make(tmp_path / "source"), tmp_path / "set", count=1)
    assert (tmp_path / "set").is_symlink()
    assert kaldi_dir.sample_ids(elsewhere) == ["a"]
    assert not {*OLD} & names(elsewhere)


def test_a_set_writer_leaves_out_what_only_some_samples_have(tmp_path):
    with writer.SetWriter(tmp_path / "set") as out:
        out.add("a", "a", "/a.wav", "x", "caption", "c", instruction="Say it.")
        out.add("b", "b", "/b.wav", "y", "caption", "c")
    assert "instruction" not in names(tmp_path / "set")
    assert out.left_out == {"instruction": 1}


def test_two_samples_of_one_id_are_refused(tmp_path):
    with pytest.raises(kaldi_dir.DataDirError, match="two sources have the sample 'a'"):
        with writer.SetWriter(tmp_path / "set") as out:
            out.add("a", "a", "/a.wav", "x", "caption", "c")
            out.add("a", "a", "/a.wav", "y", "caption", "c")
    assert not (tmp_path / "set").exists()


def test_times_keep_their_digits(tmp_path):
    with writer.SetWriter(tmp_path / "set") as out:
        out.add(
            "a", "a", "/x.wav", "x", "caption", "c", segment=("x", 12345.6, 12345.64)
        )
        out.add("b", "b", "/x.wav", "y", "caption", "c", segment=("x", 1234570.0, -1))
    lines = (tmp_path / "set" / "segments").read_text().splitlines()
    assert lines == ["a x 12345.6 12345.64", "b x 1234570 -1"]


def test_set_json_comes_with_the_directory(tmp_path):
    with writer.SetWriter(tmp_path / "set") as out:
        out.add("a", "a", "/a.wav", "dog", "classification", "c")
        out.describe(labels=["dog"], split="test", tasks=["classification"])
    facts = json.loads((tmp_path / "set" / "set.json").read_text())
    assert facts["name"] == "set" and facts["split"] == "test"
    assert (tmp_path / "set" / "labels").read_text() == "dog\n"
