"""Tables of one's own: every row goes to the right directory or is named."""

import functools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet2_slit.common import templates
from espnet2_slit.common.files import read_lines
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


def test_a_table_in_german_is_asked_in_german(tmp_path):
    rows = [caption(f"{s}.wav", "ein Hund bellt", s) for s in ("train", "valid")]
    rows += [
        caption(
            "t.wav", "nein", "train", instruction="Regnet es?", choices=["ja", "nein"]
        )
    ]
    rows += [caption("e.wav", "ein Hund bellt", "test")]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    german = functools.partial(templates.instruction, language="de")
    from_manifest(path, tmp_path / "data", german, language="de")
    asked = set(read(tmp_path, "train_instruction", "instruction").values())
    assert asked == {
        "Beschreibe die Aufnahme.",
        "Regnet es? Wähle eines: (A) ja. (B) nein.",
    }
    facts = kaldi_dir.read_set(tmp_path / "data" / "test_caption")
    assert facts["language"] == "de"


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
    "number as text": ("m.jsonl", '{"audio": "a", "text": 5}\n', "text is 5, expected"),
    "truth as text": ("m.jsonl", '{"audio": "a", "text": true}\n', "text is True"),
    "NaN as text": ("m.jsonl", '{"audio": "a", "text": NaN}\n', "text is nan"),
    "list as audio": ("m.jsonl", '{"audio": ["a"], "text": "b"}\n', "audio is ['a']"),
    "number as audio": ("m.jsonl", '{"audio": 7, "text": "b"}\n', "audio is 7"),
    "object as text": ("m.jsonl", '{"audio": "a", "text": {}}\n', "text is {}"),
    "list in a list": ("m.jsonl", '{"audio": "a", "text": [["b"]]}\n', "text is ['b']"),
    "number among captions": (
        "m.jsonl",
        '{"audio": "a", "text": ["b", 2]}\n',
        "text is 2, expected a text",
    ),
    "NaN as time": (
        "m.jsonl",
        '{"audio": "a", "text": "b", "start": NaN}\n',
        "start is 'nan'",
    ),
    "endless": (
        "m.csv",
        "audio,text,start,end\na.wav,b,0,inf\n",
        "line 2: start is '0' and end is 'inf'",
    ),
    "two columns of one name": (
        "m.csv",
        "audio,text,Text\na.wav,b,c\n",
        "line 1: has 'text' twice",
    ),
    "two keys of one name": (
        "m.jsonl",
        '{"audio": "a", "text": "b", "text": "c"}\n',
        "line 1: has 'text' twice",
    ),
    "UTF-16 without a mark": ("m.csv", CSV.encode("utf-16-le"), "zero bytes"),
    "one choice": (
        "m.jsonl",
        '{"audio": "a", "text": "b", "instruction": "?", "choices": ["b"]}\n',
        "choices is ['b'], expected a list of two",
    ),
    "choices without a question": (
        "m.jsonl",
        '{"audio": "a", "text": "b", "choices": ["b", "c"]}\n',
        "expected a question",
    ),
    "answer that is no choice": (
        "m.csv",
        "audio,text,instruction,choices\na.wav,d,what?,b|c\n",
        "one of them as text, found 'd'",
    ),
    "too few to draw from": (
        "m.jsonl",
        "".join(f'{{"audio": "{n}", "text": "b"}}\n' for n in range(3)),
        "of 3 clips none was drawn for test",
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


def texts(folder, name="train_caption"):
    return sorted(read(folder, name, "text").values())


def from_table(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return from_manifest(path, folder / "data", templates.instruction)


def test_one_spelling_of_a_path_is_one_clip(tmp_path):
    spellings = ["a.wav", "./a.wav", " a.wav", "b/../a.wav", f"{tmp_path}/a.wav"]
    make(tmp_path, [caption(s, f"caption {n}") for n, s in enumerate(spellings)])
    clips = set(read(tmp_path, "train_caption", "utt2audio").values())
    assert clips == {clip_id("a.wav", 0.0, -1.0)}
    assert set(read(tmp_path, "train_caption", "wav.scp").values()) == {
        f"{tmp_path}/a.wav"
    }


def test_times_keep_their_digits(tmp_path):
    rows = [
        caption("a.wav", "x", start=12345.60, end=12345.64),
        caption("a.wav", "y", start="1.23457e+06", end="1234571.25"),
    ]
    make(tmp_path, rows)
    segments = read(tmp_path, "train_caption", "segments").values()
    assert {s.split(" ", 1)[1] for s in segments} == {
        "1234570 1234571.25",
        "12345.6 12345.64",
    }


def test_a_list_of_captions_is_as_many_samples(tmp_path):
    report = make(tmp_path, [caption("a.wav", ["one", "two", "three"])])
    assert report.kept == 3 and texts(tmp_path) == ["one", "three", "two"]
    assert len(set(read(tmp_path, "train_caption", "utt2audio").values())) == 1
    make(tmp_path, [caption("a.wav", ["one", "two"], "test")])
    assert len(read(tmp_path, "test_caption", "text")) == 1
    references = (tmp_path / "data" / "test_caption" / "references").read_text()
    assert references.count("\n") == 2


def test_an_empty_list_of_captions_is_a_row_without_text(tmp_path):
    report = make(tmp_path, [caption("a.wav", "x"), caption("b.wav", ["", None])])
    assert report.dropped == {"empty text": 2}
    report = make(tmp_path, [caption("a.wav", "x"), caption("b.wav", [])])
    assert report.dropped == {"empty text": 1}


def test_joiners_stay_and_marks_of_direction_go(tmp_path):
    persian, emoji = (
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0646\u062f",
        "\U0001f469\u200d\U0001f680",
    )
    rows = [caption("a.wav", f"{persian} \u200e{emoji}\u00ad!\ufeff  x\u2028y")]
    make(tmp_path, rows)
    assert texts(tmp_path) == [f"{persian} {emoji}! x y"]


def test_quotes_in_a_tsv_are_signs_or_a_spreadsheets(tmp_path):
    lines = [
        "audio\ttext\tsplit",
        'a.wav\tHe says "stop\ttrain',
        'b.wav\t"Stop" he says\ttrain',
        'c.wav\t"He says ""stop"""\ttrain',
        'd.wav\t5" speaker, hums\ttrain',
    ]
    from_table(tmp_path, "m.tsv", "\n".join(lines).encode())
    assert texts(tmp_path) == [
        '"Stop" he says',
        '5" speaker, hums',
        'He says "stop',
        'He says "stop"',
    ]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
@pytest.mark.parametrize("name", ["m.csv", "m.jsonl"])
def test_a_byte_order_mark_says_how_to_read(tmp_path, caplog, encoding, name):
    content = "audio,text,split\na.wav,h\u00f6rt,train\n"
    if name == "m.jsonl":
        content = '{"audio": "a.wav", "text": "h\u00f6rt", "split": "train"}\n'
    from_table(tmp_path, name, content.encode(encoding))
    assert texts(tmp_path) == ["h\u00f6rt"]
    assert ("read as UTF-16" in caplog.text) == (encoding == "utf-16")


def test_a_byte_order_mark_in_lists_is_no_part_of_the_first_entry(tmp_path):
    path = tmp_path / "labels"
    path.write_bytes(b"\xef\xbb\xbfdog\ncat\n")
    assert read_lines(path) == ["dog", "cat"]
    path.write_bytes(b"\xef\xbb\xbfa one\nb two\n")
    assert kaldi_dir.read_map(path) == {"a": "one", "b": "two"}


@pytest.mark.parametrize("form", ["list", "bars", "JSON in a cell"])
def test_choices_stand_beside_the_questions_of_the_test_set(tmp_path, form):
    asked = {"instruction": "What is it?", "choices": ["dog", "cat"]}
    rows = [caption(f"{s}.wav", "cat", s, **asked) for s in ("train", "valid", "test")]
    rows.append(caption("test.wav", "yes", "test", instruction="Is it loud?"))
    if form == "list":
        make(tmp_path, rows)
    else:
        cell = "dog|cat" if form == "bars" else '"[""dog"", ""cat""]"'
        lines = ["audio,text,instruction,split,choices"]
        for r in rows:
            choices = cell if "choices" in r else ""
            lines.append(
                f"{r['audio']},{r['text']},{r['instruction']},{r['split']},{choices}"
            )
        from_table(tmp_path, "m.csv", "\n".join(lines).encode())
    for folder in (tmp_path / "data").iterdir():
        validate.validate(folder)
    questions, choices = (
        read(tmp_path, "test_qa", name) for name in ("instruction", "choices")
    )
    assert len(questions) == 2 and list(choices.values()) == ['["dog", "cat"]']
    (key,) = choices
    assert questions[key] == "What is it?"
    # In training the model sees them as decoding will show them.
    (asked_in_training,) = read(tmp_path, "train_instruction", "instruction").values()
    assert "(A) dog." in asked_in_training and "(B) cat." in asked_in_training
    assert not (tmp_path / "data" / "train_instruction" / "choices").exists()


def test_paraphrases_stand_beside_the_texts_of_training_sets(tmp_path):
    rows = [caption("a.wav", "a dog barks", text_variants=["a hound barks", "woof"])]
    rows += [caption("b.wav", "rain"), caption("c.wav", "wind", "test")]
    make(tmp_path, rows)
    variants = read(tmp_path, "train_caption", "text_variants")
    assert set(variants.values()) == {"[]", '["a hound barks", "woof"]'}
    for folder in (tmp_path / "data").iterdir():
        validate.validate(folder)
    assert not (tmp_path / "data" / "test_caption" / "text_variants").exists()
