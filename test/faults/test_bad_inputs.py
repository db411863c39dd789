"""Bad input to every command: exit code, a message one can act on, and nothing lost.

One table. A case makes something bad in an empty room, runs a command there, and says
the exit code (2: wrong use, 1: what was given cannot be used) and words of the message:
what was expected or found, and what to do. Whatever the case, the files that were there
before, inputs and earlier results, are the same afterwards, and no new result appears.
"""

import contextlib
import io
import json
import logging
import os
import pickle
import shlex
import shutil
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import decoded_case
import numpy as np
import pytest
import soundfile
import tiny_system
import torch

RECIPE = Path(__file__).resolve().parents[2] / "egs2" / "slit" / "slit1"
PYTHON_TAG = "caption: !!python/object/apply:os.system ['touch executed']\n"


class Evil:
    """A pickle that makes a file when it is loaded carelessly."""

    def __reduce__(self):
        return (os.system, ("touch executed",))


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        command: name of the command, or of a shell script.
        words: its arguments; {names} are places of the world and of the room.
        code: exit code.
        says: words of the message.
        make: (world, room) -> None, makes the bad input.
        allowed: hidden or partial files that may appear, by the start of their path.
    """

    command: str
    words: str
    code: int
    says: tuple
    make: object = None
    allowed: tuple = ()


# ---------------------------------------------------------------- what is made


def files(**named):
    """Write files of the room: "__" is a dot, "___" a slash."""

    def make(world, room):
        for name, text in named.items():
            path = room / name.replace("___", "/").replace("__", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())

    return make


def data(**changed):
    """A data directory d of three samples, with files changed; None: not there."""

    def make(world, room):
        (room / "d").mkdir()
        content = {
            "wav.scp": "".join(f"{k} {world.wavs[i]}\n" for i, k in enumerate("abc")),
            "text": "a one\nb two\nc three\n",
            "utt2spk": "a a\nb b\nc c\n",
            "spk2utt": "a a\nb b\nc c\n",
        }
        content |= {k.replace("__", "."): v for k, v in changed.items()}
        for name, text in content.items():
            if text is not None:
                text = text if isinstance(text, bytes) else text.encode()
                (room / "d" / name).write_bytes(text)

    return make


def audio(write):
    """A data directory d with one sample, of the file x.wav that `write` makes."""

    def make(world, room):
        write(room / "x.wav")
        for name in ("utt2spk", "spk2utt"):
            (room / "d").mkdir(exist_ok=True)
            (room / "d" / name).write_text("a a\n")
        (room / "d" / "wav.scp").write_text(f"a {room}/x.wav\n")
        (room / "d" / "text").write_text("a one\n")

    return make


def cut(path):
    soundfile.write(path, np.zeros(16000), 16000)
    path.write_bytes(path.read_bytes()[:9000])


def copied(place, change):
    """A copy of a place of the world as `copy`, changed."""

    def make(world, room):
        shutil.copytree(getattr(world, place), room / "copy", symlinks=True)
        change(room / "copy")

    return make


def first(pattern, change):
    """Change the first file that matches."""

    def on(folder):
        path = sorted(folder.rglob(pattern))[0]
        found = change(path.read_bytes())
        if found is None:
            path.unlink()
        else:
            path.write_bytes(found)

    return on


def half(content):
    return content[: len(content) // 2]


def weights(content):
    """A file w.pth of torch.save."""

    def make(world, room):
        torch.save(content, room / "w.pth")

    return make


def evil_pickle(world, room):
    (room / "w.pth").write_bytes(pickle.dumps(Evil()))


def evil_zip(world, room):
    with zipfile.ZipFile(room / "bad.zip", "w") as archive:
        archive.writestr("../evil", "x")


def evil_npz(folder):
    path = sorted(folder.rglob("scores.npz"))[0]
    np.savez(path, audio_ids=np.array([Evil()], dtype=object))


def manifest(text, name="m.csv"):
    """A manifest, and the directories of an earlier, good one in `out`."""

    def make(world, room):
        shutil.copytree(world.manifest_out, room / "out")
        content = text if isinstance(text, bytes) else text.encode()
        (room / name).write_bytes(content)

    return make


def other_encoder(content):
    facts = json.loads(content)
    facts["identity"]["fingerprint"] = "0" * 64
    return json.dumps(facts).encode()


HEAD = "audio,text,split\na.wav,x,train\n"
MANIFEST = "from_manifest m.csv out"
ENCODE = "--data_dir {data} --output_dir out --audio_encoder beats --audio_encoder_conf"
BEATS = ENCODE + " path={beats}"
DECODE = "--model {system} --data_dir {data} --output_dir out"
SCORE = "--data_dir {case_data} --output_dir out --resamples 10 --report false "
SCORE += "--skip_meteor true --skip_spice true --tokenizer python "

# ruff: noqa: E501  (a row of the table is a line)
# fmt: off
CASES = {
    # slit_data
    "no command": Case("data", "", 2, ("required", "command")),
    "unknown command": Case("data", "valdate d", 2, ("invalid choice", "valdate", "validate")),
    "validate: no folder": Case("data", "validate none", 1, ("none: no such data directory",)),
    "validate: empty folder": Case(
        "data", "validate d", 1, ("expected wav.scp", "found", "nothing in it"),
        data(wav__scp=None, text=None, utt2spk=None, spk2utt=None)),
    "validate: a file for a folder": Case("data", "validate x", 1, ("no such data directory",), files(x="1")),
    "validate: latin-1": Case("data", "validate d", 1, ("text", "line 2", "not UTF-8"), data(text=b"a 1\nb \xe4\nc 3\n")),
    "validate: order": Case("data", "validate d", 1, ("out of order", "slit_data fix"), data(text="b 1\na 2\nc 3\n")),
    "validate: id twice": Case("data", "validate d", 1, ("repeats the id", "slit_data fix"), data(text="a 1\na 2\nb 1\nc 3\n")),
    "validate: half a line": Case("data", "validate d", 1, ("lacks a line end", "cut off"), data(text="a 1\nb 2\nc 3")),
    "validate: NUL": Case("data", "validate d", 1, ("cannot be printed",), data(text="a 1\nb\0 2\nc 3\n")),
    "validate: other ids": Case("data", "validate d", 1, ("lacks 1 ids of wav.scp", "'c'"), data(text="a 1\nb 2\n")),
    "validate: set.json": Case("data", "validate d", 1, ("set.json", "expected JSON"), data(set__json="{")),
    "fix: nothing in common": Case("data", "fix d", 1, ("no sample is left", "Do the ids"), data(text="x 1\n")),
    "combine: one": Case("data", "combine out d", 1, ("expected two or more", "found 1"), data()),
    "combine: one id in two": Case("data", "combine out d e", 1, ("'a'", "different ids", "prefix"),
                                   lambda w, r: (data()(w, r), shutil.copytree(r / "d", r / "e"), None)[-1]),
    "combine: no such": Case("data", "combine out d none", 1, ("none", "expected wav.scp"), data()),
    "subset: more than there are": Case("data", "subset d out --count 9", 1, ("asked for 9 of 3 clips",), data()),
    "subset: unknown id": Case("data", "subset d out --ids ids", 1, ("no sample or clip 'z'",),
                               lambda w, r: (data()(w, r), (r / "ids").write_text("z\n"))),
    "subset: no list": Case("data", "subset d out --ids none", 1, ("none: no such file",), data()),
    "subset: count is a word": Case("data", "subset d out --count few", 2, ("--count", "'few'"), data()),
    "split: too many": Case("data", "split d out --parts 4", 1, ("cannot cut 3 clips into 4", "1 to 3"), data()),
    "split: none": Case("data", "split d out --parts 0", 1, ("into 0 parts", "1 to 3"), data()),
    "split: how many": Case("data", "split d out", 2, ("--parts",), data()),
    "leakage: no such": Case("data", "leakage --train none --test d", 1, ("none", "expected wav.scp"), data()),
    "leakage: no test": Case("data", "leakage --train d", 2, ("--test",), data()),
    "list: no such": Case("data", "list none", 1, ("none: no such folder",)),
    # prepare
    "prepare: no source": Case("data", "prepare none out", 1, ("none: no such folder", "expected a data directory")),
    "prepare: no wav.scp": Case("data", "prepare d out", 1, ("d: no wav.scp", "expected a data directory", "Make it first"), data(wav__scp=None)),
    "prepare: id twice": Case("data", "prepare d out", 1, ("'a' comes twice", "slit_data fix"), data(wav__scp="a x\na y\n")),
    "prepare: no audio": Case("data", "prepare d out", 1, ("none of 1 clips is usable", "missing audio", "a:"),
                              audio(lambda p: None), ("audio",)),
    "prepare: empty audio": Case("data", "prepare d out", 1, ("none of 1 clips", "empty file"),
                                 audio(lambda p: p.write_bytes(b"")), ("audio",)),
    "prepare: cut audio": Case("data", "prepare d out", 1, ("none of 1 clips", "truncated"), audio(cut), ("audio",)),
    "prepare: text as audio": Case("data", "prepare d out", 1, ("none of 1 clips", "unreadable audio"),
                                   audio(lambda p: p.write_text("la la")), ("audio",)),
    "prepare: NaN": Case("data", "prepare d out", 1, ("NaN or infinite samples",),
                         audio(lambda p: soundfile.write(p, np.full(8000, np.nan), 16000, subtype="FLOAT")), ("audio",)),
    "prepare: no text for any": Case("data", "prepare d out", 1, ("no line in text",), data(text="x 1\n"), ("audio",)),
    "prepare: rate 0": Case("data", "prepare d out --sample-rate 0", 1, ("sample_rate", "expected", "found 0"), data()),
    "prepare: times crossed": Case("data", "prepare d out --min-duration-s 5 --max-duration-s 2", 1,
                                   ("max_duration_s", "expected", "found 2"), data()),
    "prepare: mp3": Case("data", "prepare d out --audio-format mp3", 2, ("mp3", "flac")),
    # from_manifest: an earlier manifest's directories stay
    "manifest: none": Case("data", "from_manifest no.csv out", 1, ("no such manifest", "audio,text"), manifest("")),
    "manifest: empty": Case("data", MANIFEST, 1, ("Expected columns", "found none"), manifest("")),
    "manifest: columns": Case("data", MANIFEST, 1, ("does not know 'txt'", "Expected"), manifest("audio,txt\n")),
    "manifest: later bad row": Case("data", MANIFEST, 1, ("line 3", "split is 'tran'", "expected train"), manifest(HEAD + "b.wav,y,tran\n")),
    "manifest: later latin-1": Case("data", MANIFEST, 1, ("not UTF-8", "iconv"), manifest(HEAD.encode() + b"b.wav,\xe4,train\n")),
    "manifest: command": Case("data", MANIFEST, 1, ("touch executed |", "expected the path"), manifest(HEAD + "touch executed |,y,train\n")),
    "manifest: nothing usable": Case("data", MANIFEST, 1, ("no row is usable", "empty text"), manifest("audio,text\na.wav,\n")),
    "manifest: fraction": Case("data", MANIFEST + " --valid-fraction 1.5", 1, ("fraction", "expected", "found"), manifest(HEAD)),
    "manifest: not JSON": Case("data", "from_manifest m.jsonl out", 1, ("line 2", "not JSON", "Expected"),
                               manifest('{"audio": "a.wav", "text": "x", "split": "train"}\n{oops\n', "m.jsonl")),
    # slit_corpus
    "corpus: unknown": Case("corpus", "esc51 --root .", 2, ("invalid choice", "esc51")),
    "corpus: no root": Case("corpus", "clotho", 2, ("--root",)),
    "corpus: not there": Case("corpus", "clotho --root none --out out", 1, ("none",)),
    "corpus: pair": Case("corpus", "esc50 --root . --name train", 2, ("expected NAME=VALUE", "found train")),
    "corpus: boolean": Case("corpus", "esc50 --root . --zero_shot maybe", 2, ("expected true or false", "found maybe")),
    "corpus: where": Case("corpus", "prepare --corpora clotho --out out", 1, ("where is it", "--root clotho=DIR")),
    "corpus: which": Case("corpus", "prepare --corpora clotoh --out out", 1, ("expected corpora of", "found clotoh")),
    "corpus: mix of nothing": Case("corpus", "instruction none --out out", 1, ("none",)),
    # slit_encode
    "encode: no data": Case("encode", "--data_dir none --output_dir out --audio_encoder beats --audio_encoder_conf path={beats}", 1, ("no wav.scp", "Make it first")),
    "encode: no encoder": Case("encode", "--data_dir {data} --output_dir out", 1, ("No audio encoder is named", "--audio_encoder")),
    "encode: unknown encoder": Case("encode", "--data_dir {data} --output_dir out --audio_encoder bats", 1, ("bats", "beats")),
    "encode: unknown setting": Case("encode", BEATS + " --audio_encoder_conf lyer=2", 1, ("lyer",)),
    "encode: no weights": Case("encode", ENCODE + " path=none.pt", 1, ("none.pt",)),
    "encode: cut weights": Case("encode", ENCODE + " path=w.pth", 1, ("w.pth",), lambda w, r: (r / "w.pth").write_bytes(half(w.beats.read_bytes()))),
    "encode: foreign weights": Case("encode", ENCODE + " path=w.pth", 1, ("w.pth", "expected"), weights({"a": torch.ones(2)})),
    "encode: pickled code": Case("encode", ENCODE + " path=w.pth", 1, ("w.pth",), evil_pickle),
    "encode: YAML": Case("encode", "--data_dir {data} --output_dir out --config c.yaml", 1, ("c.yaml", "expected YAML"), files(c__yaml="a: [")),
    "encode: code in YAML": Case("encode", "--data_dir {data} --output_dir out --config c.yaml", 1, ("c.yaml", "expected YAML"), files(c__yaml=PYTHON_TAG)),
    "encode: no YAML": Case("encode", "--data_dir {data} --output_dir out --config none.yaml", 1, ("none.yaml",)),
    "encode: job 3 of 2": Case("encode", BEATS + " --job 3 --num_jobs 2", 1, ("--job 3", "from 1 to 2")),
    "encode: outputs": Case("encode", "--data_dir {data} {data} --output_dir out --audio_encoder beats", 1, ("--output_dir", "expected one for each of 2", "found 1")),
    "encode: missing audio": Case("encode", "--data_dir d --output_dir out --audio_encoder beats --audio_encoder_conf path={beats}", 1,
                                  ("1 of 3 clips cannot be used", "none.wav", "--bad_audio drop"),
                                  lambda w, r: data(wav__scp=f"a {w.wavs[0]}\nb {w.wavs[1]}\nc none.wav\n")(w, r)),
    "encode: verify nothing": Case("encode", "--verify true --data_dir {data} --output_dir out", 1, ("feats.json", "`slit encode`")),
    "encode: verify a changed ark": Case("encode", "--verify true --data_dir {data} --output_dir copy", 1, ("expected sha256", "Encode the set again"),
                                         copied("dump_train", first("*.ark", lambda b: b[:-1] + bytes([b[-1] ^ 1])))),
    "encode: verify broken JSON": Case("encode", "--verify true --data_dir {data} --output_dir copy", 1, ("feats.json", "expected JSON", "`slit encode`"),
                                       copied("dump_train", first("feats.json", half))),
    "encode: reuse another encoder's": Case("encode", BEATS + " --reuse copy", 1, ("not of the configured audio encoder", "Encode the set again"),
                                            copied("dump_train", first("feats.json", other_encoder))),
    "encode: dtype": Case("encode", BEATS + " --dtype int3", 2, ("int3", "uint16")),
    # slit_train (its errors are raised; more in test_task.py)
    "train: unknown option": Case("train", "--modle representation", 2, ("--modle",)),
    "train: no config": Case("train", "--config none.yaml --output_dir out", 2, ("none.yaml",)),
    "train: config typo": Case("train", "--config c.yaml --output_dir out", 2, ("max_epochs",), files(c__yaml="max_epochs: 3\n")),
    "train: no features": Case("train", "{train} --features none.json", 1, ("none.json", "`slit encode`"), None, ("out",)),
    "train: cut features": Case("train", "{train} --features copy/feats.json", 1, (".ark", "expected", "bytes, found", "`slit encode` again"),
                                copied("dump_train", first("*.ark", half)), ("out",)),
    "train: no initial weights": Case("train", "{train} --init_param none.pth", 1, ("none.pth", "expected a weights file", "found nothing"), None, ("out",)),
    "train: pickled initial weights": Case("train", "{train} --init_param w.pth", 1, ("w.pth", "cannot be read", "give another file"), evil_pickle, ("out",)),
    "train: foreign initial weights": Case("train", "{train} --init_param w.pth", 1, ("do not fit", "unexpected"), weights({"a": torch.ones(2)}), ("out",)),
    "train: foreign checkpoint": Case("train", "{train} --resume true", 1, ("checkpoint.pth", "found no model", "another --output_dir"),
                                      lambda w, r: ((r / "out").mkdir(), torch.save({"a": 1}, r / "out" / "checkpoint.pth")), ("out",)),
    # slit_inference
    "inference: no sets": Case("inference", "--model {system}", 2, ("--data_dir", "--output_dir")),
    "inference: one folder for two sets": Case("inference", DECODE + " --data_dir {data} {data}", 2, ("as many --output_dir",)),
    "inference: job": Case("inference", "--model {system} --data_dir {data} --output_dir out --job 0", 2, ("--job 0", "from 1 to 1")),
    "inference: no model": Case("inference", "--model none --data_dir {data} --output_dir out", 1, ("no such folder or archive", "Check the path")),
    "inference: text as archive": Case("inference", "--model x.zip --data_dir {data} --output_dir out", 1, ("neither a zip nor a tar", "Copy it again"), files(x__zip="hello")),
    "inference: archive leads outside": Case("inference", "--model bad.zip --data_dir {data} --output_dir out", 1, ("leads outside", "Do not use"), evil_zip),
    "inference: slit.json": Case("inference", "--model copy/tiny_instruction --data_dir {data} --output_dir out", 1, ("slit.json", "expected JSON", "slit_pack --link"),
                                 copied("exp", first("tiny_instruction/slit.json", half))),
    "inference: weights gone": Case("inference", "--model copy/tiny_instruction --data_dir {data} --output_dir out", 1, ("which is not there", "Link again"),
                                    copied("exp", first("tiny_instruction/*.pth", lambda b: None))),
    "inference: cut weights": Case("inference", "--model copy/tiny_instruction --data_dir {data} --output_dir out", 1, ("cannot be read", "truncated"),
                                   copied("exp", first("tiny_instruction/*.pth", half))),
    "inference: code in config.yaml": Case("inference", "--model copy/tiny_instruction --data_dir {data} --output_dir out", 1, ("config.yaml", "expected YAML of plain values"),
                                           copied("exp", first("tiny_instruction/config.yaml", lambda b: PYTHON_TAG.encode()))),
    "slit: no audio": Case("slit", "caption --model {system} none.wav", 1, ("none.wav: no such audio file",)),
    "slit: empty audio": Case("slit", "caption --model {system} x.wav", 1, ("x.wav", "0 bytes"), files(x__wav="")),
    "inference: decoding typo": Case("inference", DECODE + " --config c.yaml", 1, ("c.yaml: unknown captoin", "Known: caption"), files(c__yaml="captoin: {}\n")),
    "inference: decoding YAML": Case("inference", DECODE + " --config c.yaml", 1, ("c.yaml", "expected YAML"), files(c__yaml="caption: {")),
    "inference: code in decoding YAML": Case("inference", DECODE + " --config c.yaml", 1, ("c.yaml", "expected YAML"), files(c__yaml=PYTHON_TAG)),
    "inference: option of generation": Case("inference", DECODE + " --caption num_baems=2", 1, ("num_baems", "num_beams")),
    "inference: batch of 0": Case("inference", DECODE + " --batch_size 0", 1, ("batch_size", "expected", "found 0")),
    "inference: no set": Case("inference", "--model {system} --data_dir none --output_dir out", 1, ("none", "no wav.scp")),
    "inference: empty set": Case("inference", "--model {system} --data_dir d --output_dir out", 1, ("the set is empty",), data(wav__scp="")),
    "inference: ids": Case("inference", "--model {system} --data_dir d --output_dir out", 1, ("utt2audio and wav.scp differ", "slit_data fix"), data(utt2audio="a x\n")),
    # slit_score
    "score: nothing": Case("score", SCORE, 1, ("expected one of --decode_dir, --predictions and --folds", "found 0")),
    "score: where to": Case("score", "--folds a b", 2, ("--output_dir is needed",)),
    "score: no decoding": Case("score", SCORE + "--decode_dir none", 1, ("none", "expected")),
    "score: incomplete": Case("score", SCORE + "--decode_dir copy", 1, ("expected decode.json", "run it again, it continues"),
                              copied("case_decode", first("decode.json", lambda b: None))),
    "score: cut decode.json": Case("score", SCORE + "--decode_dir copy", 1, ("decode.json", "expected JSON", "decode again"),
                                   copied("case_decode", first("decode.json", half))),
    "score: missing caption": Case("score", SCORE + "--decode_dir copy", 1, ("1 missing", "Decode the set again"),
                                   copied("case_decode", first("caption/text", lambda b: b.split(b"\n", 1)[1]))),
    "score: cut scores": Case("score", SCORE + "--decode_dir copy", 1, ("scores.npz", "expected an .npz file"), copied("case_decode", first("scores.npz", half))),
    "score: pickled scores": Case("score", SCORE + "--decode_dir copy", 1, ("scores.npz", "without pickled objects"), copied("case_decode", evil_npz)),
    "score: no data": Case("score", "--decode_dir {case_decode} --data_dir none --output_dir out", 1, ("expected the data of this set", "--data_dir")),
    "score: predictions": Case("score", SCORE + "--predictions a=b", 1, ("expected SET:TASK=FILE", "found 'a=b'")),
    "score: peers": Case("score", SCORE + "--decode_dir {case_decode} --peers x=none", 1, ("--peers", "expected a scores.json", "found none")),
    "score: resamples": Case("score", SCORE + "--resamples many", 2, ("--resamples", "'many'")),
    # slit_compare
    "compare: one": Case("compare", "a", 2, ("required", "b")),
    "compare: nothing": Case("compare", "none none", 1, ("none/scores.json: no such file", "slit_score")),
    "compare: cut": Case("compare", "x x", 1, ("scores.json", "expected JSON", "slit_score"), files(x___scores__json="{")),
    "compare: another schema": Case("compare", "x x", 1, ("expected scores of schema", "found schema 7"), files(x___scores__json='{"schema": 7}')),
    # slit_pack
    "pack: nothing": Case("pack", "", 2, ("--link FOLDER", "--exp FOLDER")),
    "pack: link nothing": Case("pack", "--link out", 1, ("no experiment given",)),
    "pack: link no experiment": Case("pack", "--link out --generator none", 1, ("config.yaml: no such file", "training writes it")),
    "pack: link a stranger": Case("pack", "--link out --generator x", 1, ("expected the key model", "found None"), files(x___config__yaml="a: 1\n")),
    "pack: link without weights": Case("pack", "--link out --generator x", 1, ("no weights", "Train this stage first"), files(x___config__yaml="model: instruction\n")),
    "pack: no system": Case("pack", "--exp none --outpath out.zip", 1, ("neither slit.json nor config.yaml",)),
    "pack: suffix": Case("pack", "--exp {system} --outpath out.rar", 1, ("out.rar", ".zip")),
    "pack: no licence": Case("pack", "--exp {system} --outpath out.zip --licence_file none", 1, ("none",)),
    # shell (more in recipe/test_shell.py)
    "run.sh: typo": Case("run.sh", "--stge 1", 2, ("unknown option --stge", "--help")),
    "run.sh: value": Case("run.sh", "--nj", 2, ("--nj needs a value",)),
    "run.sh: a word": Case("run.sh", "go", 2, ("unexpected argument 'go'", "--name value")),
    "run.sh: number": Case("run.sh", "--stage many", 2, ("stages are 1 to 8", "found 'many'")),
    "run.pl: log": Case("utils/run.pl", "JOB=1:3 x.log true", 2, ("the log file must contain JOB",)),
}
# fmt: on


# ------------------------------------------------------------------- the world


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_corpus, tiny_features, tiny_parts, train_command):
    """Good inputs and earlier results, which no bad input may change."""
    from espnet2_slit.bin import slit_data

    root = tmp_path_factory.mktemp("world")
    exp = root / "exp"
    system = tiny_system.system(exp, tiny_parts)
    case_data, case_decode = decoded_case.build(root / "case")
    wavs = sorted((tiny_corpus / "wav").glob("*.wav"))
    (root / "good.csv").write_text(f"audio,text,split\n{wavs[0]},earlier,train\n")
    out = root / "manifest_out"
    with contextlib.redirect_stdout(io.StringIO()):
        assert slit_data.main(["from_manifest", str(root / "good.csv"), str(out)]) == 0
    return SimpleNamespace(
        folders=[root, tiny_corpus, tiny_parts.beats.parent, tiny_parts.tokenizer],
        data=tiny_corpus / "data" / "train",
        dump_train=tiny_features / "train",
        beats=tiny_parts.beats,
        exp=exp,
        system=system,
        wavs=wavs,
        wav=wavs[0],
        case_data=case_data,
        case_decode=case_decode,
        manifest_out=out,
        train=shlex.join(train_command("representation", "out")),
    )


def state(folders):
    """{path: size and time, or where a link leads} of everything below."""
    found = {}
    for folder in folders:
        for path in folder.rglob("*"):
            status = path.lstat()
            if path.is_symlink():
                found[str(path)] = os.readlink(path)
            elif path.is_file():
                found[str(path)] = (status.st_size, status.st_mtime_ns)
            else:
                found[str(path)] = None
    return found


def call(command, words, caplog, capsys):
    """(exit code, everything that was said)."""
    if command.endswith((".sh", ".pl")):
        done = subprocess.run(
            [RECIPE / command, *words], capture_output=True, text=True
        )
        return done.returncode, done.stdout + done.stderr
    from importlib import import_module

    module = "slit" if command == "slit" else f"slit_{command}"
    main = import_module(f"espnet2_slit.bin.{module}").main
    caplog.clear()
    said = ""
    try:
        with caplog.at_level(logging.INFO):
            code = main(words)
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            said, code = code, 1
    except Exception as error:  # a training raises; Python makes it exit code 1
        assert command == "train", f"{command} must not end in a traceback"
        said, code = str(error), 1
    shown = capsys.readouterr()
    return code, said + shown.out + shown.err + caplog.text


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_named_and_nothing_is_lost(
    name, world, tmp_path, monkeypatch, caplog, capsys
):
    case = CASES[name]
    monkeypatch.chdir(tmp_path)
    if case.make:
        case.make(world, tmp_path)
    words = shlex.split(case.words.format(**vars(world)))
    before = state([*world.folders, tmp_path])
    code, said = call(case.command, words, caplog, capsys)
    assert code == case.code, said
    for wanted in case.says:
        assert wanted in said, f"expected {wanted!r} in: {said}"
    after = state([*world.folders, tmp_path])
    lost = [path for path in before if after.get(path, 0) != before[path]]
    assert not lost, f"changed or lost: {lost}"
    new = [
        path
        for path in after.keys() - before.keys()
        if os.path.isfile(path)
        and not any(path.startswith(f"{tmp_path}/{start}") for start in case.allowed)
    ]
    assert not new, f"left behind: {new}"
    assert not (tmp_path / "executed").exists()


def test_there_are_at_least_60_cases_over_all_commands():
    commands = {case.command for case in CASES.values()}
    assert len(CASES) >= 60
    assert {
        *("data", "corpus", "encode", "train", "inference", "score", "compare", "pack"),
        *("slit", "run.sh", "utils/run.pl"),
    } <= commands
