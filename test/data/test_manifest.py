"""Tables of one's own: every row goes to the right directory or is named."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet2_slit.common import templates
from espnet2_slit.data import kaldi_dir, validate
from espnet2_slit.data.kaldi_dir import DataDirError
from espnet2_slit.data.manifest import clip_id, from_manifest, read_rows


def make(folder, rows, name="m.jsonl", **more):
    """Data directories of rows given as dicts."""
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return from_manifest(path, folder / "data", templates.instruction, **more)


def caption(audio, text, split="train", **more):
    return {"audio": audio, "text": text, "split": split, **more}


def read(folder, name, file):
    return kaldi_dir.read_map(folder / "data" / name / file)


def test_captions_become_samples_of_clips_and_references(tmp_path):
    rows = [
        caption("a.wav", f"caption {n}", split)
        for split in ("train",)
        for n in range(3)
    ]
    rows += [caption("b.wav", "one", "valid")]
    rows += [caption("c.wav", f"caption {n}", "test") for n in range(2)]
    report = make(tmp_path, rows)
    assert report.kept == 6 and not report.dropped
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == [
        "test_caption",
        "train_caption",
        "train_instruction",
        "valid_caption",
        "valid_instruction",
    ]
    for folder in (tmp_path / "data").iterdir():
        validate.validate(folder)
    assert len(read(tmp_path, "train_caption", "text")) == 3
    assert len(set(read(tmp_path, "train_caption", "utt2audio").values())) == 1
    assert len(read(tmp_path, "test_caption", "wav.scp")) == 1
    references = (tmp_path / "data" / "test_caption" / "references").read_text()
    assert [line.split(" ", 1)[1] for line in references.splitlines()] == [
        "caption 0",
        "caption 1",
    ]
    facts = kaldi_dir.read_set(tmp_path / "data" / "test_caption")
    assert facts["tasks"] == ["caption", "retrieval"] and facts["split"] == "test"
    instruction = set(read(tmp_path, "train_instruction", "instruction").values())
    assert instruction == {templates.instruction("caption")}


def test_questions_and_labels_get_their_own_test_sets(tmp_path):
    rows = []
    for split in ("train", "valid", "test"):
        for n in range(3):
            audio = f"{split}{n}.wav"
            rows.append(caption(audio, "yes", split, instruction="is it loud?"))
            rows.append(caption(audio, f"label {n}", split, task="classification"))
    make(tmp_path, rows)
    for folder in (tmp_path / "data").iterdir():
        validate.validate(folder)
    labels = (tmp_path / "data" / "test_class" / "labels").read_text().splitlines()
    assert labels == ["label 0", "label 1", "label 2"]
    assert (tmp_path / "data" / "test_qa" / "answers").read_text() == "yes\n"
    assert set(read(tmp_path, "test_qa", "instruction").values()) == {"is it loud?"}
    # Without captions, stage 1 learns from the labels.
    assert set(read(tmp_path, "train_caption", "text").values()) == set(labels)
    assert len(read(tmp_path, "train_instruction", "text")) == 6


def test_stretches_of_a_file_are_clips_of_their_own(tmp_path):
    rows = [
        caption("a.wav", "first", start=0, end=1.5),
        caption("a.wav", "second", start=1.5, end=3),
        caption("b.wav", "whole"),
        caption("v.wav", "valid", "valid"),
    ]
    make(tmp_path, rows)
    folder = tmp_path / "data" / "train_caption"
    validate.validate(folder)
    segments = [
        value.split()[1:] for value in kaldi_dir.read_map(folder / "segments").values()
    ]
    assert sorted(segments) == [["0", "-1"], ["0", "1.5"], ["1.5", "3"]]
    assert not (tmp_path / "data" / "valid_caption" / "segments").exists()


def test_without_a_split_column_clips_are_drawn_and_stay_whole(tmp_path):
    rows = [
        {"audio": f"{n}.wav", "text": f"caption {k}"}
        for n in range(300)
        for k in (1, 2)
    ]
    make(tmp_path, rows, fractions=(0.1, 0.2), seed=3)
    sizes = {}
    for name in ("train_caption", "valid_caption", "test_caption"):
        clips = set(read(tmp_path, name, "utt2audio").values())
        sizes[name] = len(clips)
    assert sum(sizes.values()) == 300
    assert 40 <= sizes["test_caption"] <= 80 and 15 <= sizes["valid_caption"] <= 45
    before = {p: p.read_bytes() for p in (tmp_path / "data").rglob("*") if p.is_file()}
    make(tmp_path, rows, fractions=(0.1, 0.2), seed=3)
    assert {p: p.read_bytes() for p in before} == before


def test_a_clip_in_two_splits_stays_in_the_first_and_is_counted(tmp_path):
    rows = [
        caption("a.wav", "x"),
        caption("a.wav", "y", "test"),
        caption("b.wav", "z", "test"),
    ]
    report = make(tmp_path, rows)
    assert report.dropped == {"clip is in another split": 1}
    assert list(read(tmp_path, "test_caption", "text").values()) == ["z"]


def test_an_earlier_manifest_leaves_nothing_behind(tmp_path):
    make(
        tmp_path,
        [caption("a.wav", "x", start=1, end=2), caption("v.wav", "v", "valid")],
    )
    make(tmp_path, [caption("b.wav", "y"), caption("v.wav", "v", "valid")])
    folder = tmp_path / "data" / "train_caption"
    assert validate.validate(folder) == 1
    assert not (folder / "segments").exists()


CSV = "audio,text,instruction,split\n"
BAD = {
    "no text column": (
        "m.csv",
        "audio,caption\na.wav,x\n",
        "lacks text and does not know",
    ),
    "typo": ("m.csv", "audio,text,instuction\n", "does not know 'instuction'"),
    "short row": ("m.csv", CSV + "a.wav,x,\n", "line 2: expected 4 columns"),
    "comma without quotes": ("m.csv", CSV + "a.wav,a dog, barking,,train\n", "found 5"),
    "open quote": ("m.csv", CSV + 'a.wav,"x,,train\n', "line 2"),
    "latin-1": ("m.csv", CSV.encode() + b"a.wav,\xe4,,train\n", "not UTF-8"),
    "empty": ("m.csv", "", "found none"),
    "no rows": ("m.csv", CSV, "no row is usable"),
    "split": ("m.csv", CSV + "a.wav,x,,tets\n", "line 2: split is 'tets'"),
    "command": ("m.csv", CSV + "sox a.mp3 -t wav - |,x,,train\n", "commands are only"),
    "not JSON": ("m.jsonl", "{'audio': 1}\n", "line 1: is not JSON"),
    "list": (
        "m.jsonl",
        '{"audio": "a", "text": "b"}\n[1]\n',
        "line 2: expected an object",
    ),
    "no audio key": ("m.jsonl", '{"text": "b"}\n', "lacks audio"),
    "task": (
        "m.jsonl",
        '{"audio": "a", "text": "b", "task": "sing"}\n',
        "task is 'sing'",
    ),
    "question": (
        "m.jsonl",
        '{"audio": "a", "text": "b", "task": "question_answering"}\n',
        "without a question",
    ),
    "times": (
        "m.jsonl",
        '{"audio": "a", "text": "b", "start": 3, "end": 2}\n',
        "start is '3'",
    ),
    "time words": (
        "m.jsonl",
        '{"audio": "a", "text": "b", "start": "x"}\n',
        "start is 'x'",
    ),
    "suffix": ("m.txt", "a b\n", "expected .csv, .tsv or .jsonl"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_manifests_are_named_with_their_line(tmp_path, name):
    file, content, message = BAD[name]
    path = tmp_path / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataDirError) as error:
        from_manifest(path, tmp_path / "data", templates.instruction)
    assert message in str(error.value) and file in str(error.value)


def test_a_missing_manifest_says_what_it_should_hold(tmp_path):
    with pytest.raises(DataDirError, match="no such manifest.*audio,text"):
        list(read_rows(tmp_path / "m.csv"))


def test_rows_without_text_are_counted(tmp_path):
    rows = [caption("a.wav", "x"), caption("b.wav", " \n "), caption("", "y")]
    report = make(tmp_path, rows)
    assert report.dropped == {"empty text": 1, "no audio named": 1}


def test_quotes_commas_tabs_and_a_byte_order_mark_are_read(tmp_path):
    path = tmp_path / "m.csv"
    text = 'audio,text,split\n"a, b.wav","a ""loud"" dog,\tand\nmore",train\n'
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    from_manifest(path, tmp_path / "data", templates.instruction)
    assert list(read(tmp_path, "train_caption", "text").values()) == [
        'a "loud" dog, and more'
    ]
    assert list(read(tmp_path, "train_caption", "wav.scp").values()) == [
        str(tmp_path / "a, b.wav")
    ]


@settings(max_examples=80, deadline=None)
@given(st.text(min_size=1).filter(lambda text: "\n" not in text and "\0" not in text))
def test_any_file_name_gives_an_id_safe_for_shells_and_files(name):
    key = clip_id(name, 0.0, -1.0)
    assert key and not key.startswith("-") and len(key) < 90
    assert all(c.isascii() and (c.isalnum() or c in "._-") for c in key)
    assert clip_id(name + "x", 0.0, -1.0) != key != clip_id(name, 0.0, 1.0)
