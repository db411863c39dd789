"""Miniature corpora in their publishers' exact layout, with the traps of the real ones.

Every function fills a folder and returns it. Among the clips of each tree are a missing
one, an empty file, stereo and odd rates; texts hold commas, quotes and other scripts.
"""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import soundfile


def sound(path, seconds=1.0, rate=16000, channels=1):
    """Writes noise, seeded by the file's name."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(list(path.name.encode("utf-8", "surrogateescape")))
    shape = (round(seconds * rate), channels)
    soundfile.write(path, 0.1 * random.standard_normal(shape), rate)
    return path


def empty(path):
    """A download that broke off: 0 bytes."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).touch()


def table(path, rows, encoding="utf-8", delimiter=","):
    """Writes a CSV file."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding=encoding, newline="") as out:
        csv.writer(out, delimiter=delimiter).writerows(rows)


def audiocaps(root):
    """Ids that begin with "-", five captions a test clip, five ways to name a file."""
    header = ["audiocap_id", "youtube_id", "start_time", "caption"]
    train = [
        [1, "-0123456789", 30, 'A man says "stop", and a dog barks'],
        [2, "abcdefghij0", 0, "Café music plays "],
        [3, "abcdefghij1", 100, "Rain, then thunder"],
        [4, "gonegonegon", 10, "This video is gone"],
        [5, "emptyempty0", 10, "This download broke off"],
        [6, "shortshort0", 10, "Too short to hear"],
        [7, "stereo--000", 10, "Cars pass"],
        [8, "-0123456789", 60, "Another part of the same video"],
    ]
    test = [
        [100 + 10 * clip + n, f"testclip_{clip:02d}", 10, f"Caption {n} of clip {clip}"]
        for n in range(5)  # captions of a clip are not consecutive in the real files
        for clip in range(3)
    ]
    test[3][3] = test[0][3]  # two people wrote the same
    table(root / "dataset/train.csv", [header, *train])
    table(root / "dataset/val.csv", [header, *test[:3]])
    table(root / "dataset/test.csv", [header, *test])
    audio = root / "audio"
    sound(audio / "train/-0123456789_30.wav")
    sound(audio / "train/-0123456789_60.wav")
    sound(audio / "train/Yabcdefghij0.wav", rate=22050)
    sound(audio / "train/3.wav", rate=48000)
    empty(audio / "train/emptyempty0_10.wav")
    sound(audio / "train/shortshort0_10.wav", seconds=0.05)
    sound(audio / "train/stereo--000.flac", rate=44100, channels=2)
    sound(audio / "test/testclip_00.wav")
    sound(audio / "test/123.wav")  # named after the fourth caption of clip 2
    return root


def clotho(root):
    """Names with blanks, commas, quotes and dots; ISO-8859-1 metadata."""
    header = ["file_name", *(f"caption_{n}" for n in range(1, 6))]
    names = {
        "development": [
            "Distorted AM Radio noise.wav",
            "FR.CTC.08.CoyuyoS.001.wav",
            "rain, wind and 'thunder'.wav",
            "caf\u00e9 ambience.wav",
            "20:30 bells.wav",
            "gone.wav",
        ],
        "validation": ["a b.wav", "a_b.wav"],
        "evaluation": ["test clip.wav", "lost clip.wav"],
    }
    for split, files in names.items():
        captions = [[f, *(f"{f[:3]} caption, {n} " for n in range(5))] for f in files]
        table(root / f"clotho_captions_{split}.csv", [header, *captions])
        rows = [["file_name", "keywords", "sound_id", "sound_link"]]
        rows += [
            [f, "bell;na\u00efve", str(1000 + i), "https://freesound.org"]
            for i, f in enumerate(files)
        ]
        rows[-1][2] = "Not found"
        table(
            root / f"clotho_metadata_{split}.csv",
            rows,
            encoding="iso-8859-1",
            delimiter=";" if split == "evaluation" else ",",
        )
        for file in files:
            if file not in ("gone.wav", "lost clip.wav"):
                sound(root / split / file.replace(":", "_"), rate=44100)
    return root


def wavcaps(root):
    """Four JSON files, three blacklists, ids that two parts share, a very long clip."""
    parts = {
        "AudioSet/as_final.json": [
            {"id": "Y-youtube0000.wav", "caption": "Music", "duration": 10.0},
            {
                "id": "Ybanned00000.wav",
                "caption": "In AudioCaps' test",
                "duration": 10.0,
            },
        ],
        "BBC_Sound_Effects/bbc_final.json": [
            {"id": "NHU05000001", "caption": "Birds, many", "duration": 60.0}
        ],
        "FreeSound/fsd_final.json": [
            {"id": "17", "caption": 'A "bang".\nTwice', "duration": 1.5},
            {"id": "18", "caption": "In ESC-50", "duration": 2.0},
            {"id": "19", "caption": "Very long", "duration": 67109.0},
            {"id": "20", "caption": "Gone", "duration": 2.0},
        ],
        "SoundBible/sb_final.json": [
            {"id": "17", "caption": "An airplane is landing.", "duration": 2.0}
        ],
    }
    for file, rows in parts.items():
        path = root / "json_files" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"title": "t", "audio": "wav_path", **row} for row in rows]
        path.write_text(json.dumps({"num_captions_per_audio": 1, "data": rows}))
    lists = {
        "test_ac": {"AudioSet": ["Ybanned00000.wav"], "FreeSound": []},
        "all_ac": {"AudioSet": ["Ybanned00000.wav"], "FreeSound": ["17"]},
        "ub8k_esc50_vggsound": {"AudioSet": [], "FreeSound": ["18"]},
    }
    for name, ids in lists.items():
        path = root / f"json_files/blacklist/blacklist_exclude_{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(ids))
    sound(root / "AudioSet_SL_flac/Y-youtube0000.flac", rate=32000)
    sound(root / "AudioSet_SL_flac/Ybanned00000.flac", rate=32000)
    sound(root / "BBC_Sound_Effects_flac/NHU05000001.flac", rate=32000)
    sound(root / "FreeSound_flac/17.flac", seconds=1.5, rate=32000)
    sound(root / "FreeSound_flac/18.flac", rate=32000)
    sound(root / "FreeSound_flac/19.flac", seconds=9.0, rate=32000)  # "very long" here
    sound(root / "SoundBible_flac/17.flac", seconds=2.0, rate=32000)
    return root


def macs(root):
    """2-5 captions a clip, stereo, several clips of one place."""
    root.mkdir(parents=True, exist_ok=True)
    lines = ["files:"]
    for place in range(30):
        for clip in range(2):
            file = f"park-lyon-{place}-{clip}-a.wav"
            lines += [f"- filename: {file}", "  annotations:"]
            for n in range(2 + clip):
                lines.append(
                    f"  - {{sentence: 'Birds sing, {n} of {place}.', tags: [birds],"
                    f" annotator_id: {n}}}"
                )
            sound(root / "audio" / file, seconds=0.2, rate=48000, channels=2)
    (root / "MACS.yaml").write_text("\n".join(lines) + "\n")
    return root


def clotho_aqa(root):
    """Three rows a question; unanimous, majority, three-way votes; quotes, commas."""
    header = ["file_name", "QuestionText", "answer"]
    train = [
        ("rain, wind.wav", "Is it raining?", ["yes", "Yes ", "no"]),
        ("rain, wind.wav", 'Who says "hello", if anyone?', ["man", "Man.", "man"]),
        ("rain, wind.wav", "What is it?", ["rain", "wind", "thunder"]),
        ("caf\u00e9.wav", "Is there music?", ["no", "no", "no"]),
        ("gone.wav", "Is there music?", ["yes", "yes", "yes"]),
    ]
    test = [("caf\u00e9.wav", "How many bells?", ["two", "two", "3"])]
    for split, questions in (("train", train), ("val", test), ("test", test)):
        rows = [[f, q, a] for f, q, answers in questions for a in answers]
        table(root / f"clotho_aqa_{split}.csv", [header, *rows])
    metadata = [["file_name", "sound_id"], ["caf\u00e9.wav", "77"]]
    table(root / "clotho_aqa_metadata.csv", metadata, encoding="iso-8859-1")
    sound(root / "audio_files/rain, wind.wav", rate=44100)
    sound(root / "audio_files/caf\u00e9.wav", rate=44100)
    return root


def audioset(root):
    """Three comment lines, quoted lists of ids, class names with commas."""
    root.mkdir(parents=True, exist_ok=True)
    head = (
        "# Segments csv created Sun Mar  5 10:54:31 2017\n"
        "# num_ytids=3, num_segs=3, num_unique_labels=3, num_positive_labels=4\n"
        "# YTID, start_seconds, end_seconds, positive_labels\n"
    )
    balanced = (
        '--4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/05zppz"\n'
        'aaaaaaaaaaa, 30.500, 40.500, "/m/04rlf"\n'
        'ggggggggggg, 30.000, 40.000, "/m/04rlf,/t/none"\n'
    )
    (root / "balanced_train_segments.csv").write_text(head + balanced)
    evaluation = 'eeeeeeeeeee, 0.000, 7.000, "/m/04rlf,/m/068hy"\n'
    (root / "eval_segments.csv").write_text(head + evaluation)
    rows = [
        ["index", "mid", "display_name"],
        [0, "/m/05zppz", "Male speech, man speaking"],
        [1, "/m/068hy", "Domestic animals, pets"],
        [2, "/m/04rlf", "Music"],
    ]
    table(root / "class_labels_indices.csv", rows)
    sound(root / "audio/balanced_train/Y--4gqARaEJE.wav")
    sound(root / "audio/balanced_train/aaaaaaaaaaa_30500_40500.flac")
    sound(root / "audio/eval/eeeeeeeeeee_0.000_7.000.wav")
    return root


def esc50(root, folds=5):
    """Five folds of three classes, one of them in ESC-10."""
    rows = [["filename", "fold", "target", "category", "esc10", "src_file", "take"]]
    classes = [("dog", "True"), ("crackling_fire", "True"), ("can_opening", "False")]
    for fold in range(1, folds + 1):
        for target, (category, esc10) in enumerate(classes):
            source = 1000 * fold + target
            for take in "AB":
                file = f"{fold}-{source}-{take}-{target}.wav"
                rows.append([file, fold, target, category, esc10, source, take])
                sound(root / "audio" / file, seconds=0.3, rate=44100)
    table(root / "meta/esc50.csv", rows)
    return root


def urbansound8k(root):
    """Ten folds, mixed rates and channels, a slice that lasts 40 ms."""
    header = "slice_file_name,fsID,start,end,salience,fold,classID,class".split(",")
    rows = []
    for fold in range(1, 11):
        for n, label in enumerate(("dog_bark", "air_conditioner")):
            source = 100 * fold + n
            file = f"{source}-3-0-{n}.wav"
            rows.append([file, source, 0.0, 0.5, 1, fold, n, label])
            rate, channels = (44100, 2) if n else (11025 + 100 * fold, 1)
            seconds = 0.04 if fold == 10 and n else 0.4
            sound(root / f"audio/fold{fold}" / file, seconds, rate, channels)
    table(root / "metadata/UrbanSound8K.csv", [header, *rows])
    return root


def vggsound(root):
    """No header; labels with commas; most of the corpus is video."""
    rows = [
        ["---g-f_I2yQ", 1, "male singing, choir", "train"],
        ["bbbbbbbbbbb", 112, "people marching", "train"],
        ["ccccccccccc", 30, "people marching", "test"],
        ["ddddddddddd", 30, "male singing, choir", "test"],
    ]
    table(root / "vggsound.csv", rows)
    sound(root / "audio/---g-f_I2yQ_000001.wav")
    sound(root / "audio/ccccccccccc_000030.wav")
    empty(root / "video/ddddddddddd_000030.mp4")
    return root


def fsd50k(root):
    """Several labels a clip, joined by commas; a vocabulary without a header."""
    truth = root / "FSD50K.ground_truth"
    dev = [
        ["fname", "labels", "mids", "split"],
        [64760, "Electric_guitar,Guitar", "/m/1,/m/2", "train"],
        [64761, "Bark", "/m/3", "val"],
    ]
    table(truth / "dev.csv", dev)
    evaluation = [["fname", "labels", "mids"], [37199, "Bark,Guitar", "/m/3,/m/2"]]
    table(truth / "eval.csv", evaluation)
    vocabulary = [[0, "Bark", "/m/3"], [1, "Electric_guitar", "/m/1"]]
    table(truth / "vocabulary.csv", [*vocabulary, [2, "Guitar", "/m/2"]])
    sound(root / "FSD50K.dev_audio/64760.wav", rate=44100)
    sound(root / "FSD50K.dev_audio/64761.wav", rate=44100)
    sound(root / "FSD50K.eval_audio/37199.wav", rate=44100)
    return root


def nsynth(root):
    """One JSON object a split, keyed by note."""
    for part, split in enumerate(("train", "valid", "test")):
        notes = {}
        for n, family in enumerate(("bass", "synth_lead", "vocal")):
            name = f"{family}_synthetic_{part}{n:02d}-0{20 + n}-050"
            notes[name] = {
                "pitch": 20 + n,
                "note": 200000 + n,
                "velocity": 50,
                "instrument_family_str": family,
                "instrument_source_str": "synthetic",
                "qualities_str": ["dark"],
            }
            sound(root / f"nsynth-{split}/audio/{name}.wav", seconds=0.4)
        (root / f"nsynth-{split}/examples.json").write_text(json.dumps(notes))
    return root


def audiosetcaps(root):
    """Ids with and without seconds, one that is no video's."""
    rows = [
        ["id", "caption"],
        ["_7Xe9vD3Hpg_4_10", "A solemn piece, with a bell"],
        ["-TL8Mp3xcUM_0_10", "A woman speaks"],
        ["gonegonegon_0_10", "Gone"],
        ["not an id", "Nothing"],
    ]
    table(root / "Dataset/AudioSetCaps_caption.csv", rows)
    sound(root / "audio/Y_7Xe9vD3Hpg.wav", seconds=0.5)
    sound(root / "audio/-TL8Mp3xcUM_0_10.wav", seconds=0.5)
    return root


def auto_acd(root):
    """No line of names; commas in quotes."""
    table(root / "train.csv", [["-0SdAVK79lg_30", "A guitar, then a drum"]])
    table(root / "test.csv", [["abcdefghijk_0", "Rain"], ["lostlostlos_0", "Gone"]])
    sound(root / "wav/-0SdAVK79lg_30.wav", seconds=0.5)
    sound(root / "wav/abcdefghijk.wav", seconds=0.5)
    return root


def _instructions(path, names):
    rows = [
        {
            "instruction": f"What happens in {name}?",
            "input": "",
            "audio_id": f"/data/of/others/{name}",
            "dataset": "as_20k",
            "task": "open-ended question",
            "output": f"Something, \u00fc, in {name}.",
        }
        for name in names
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))


def open_aqa(root):
    """A list over audio of another machine, one file missing."""
    _instructions(root / "openaqa_5.6M.json", ["a.flac", "a.flac", "b.flac", "no.flac"])
    sound(root / "audio/a.wav", seconds=0.5)
    sound(root / "audio/b.flac", seconds=0.5)
    return root


def compa_r(root):
    """Training and test questions."""
    _instructions(root / "compa_r_train.json", ["a.wav", "no.wav"])
    _instructions(root / "compa_r_test.json", ["b.wav"])
    sound(root / "audio/a.wav", seconds=0.5)
    sound(root / "audio/b.wav", seconds=0.5)
    return root


def _choice(key, audio, name, **more):
    return {
        "id": name,
        key: audio,
        "question": "Which sound is it?",
        "choices": ["Man", "A dog", "Rain, heavy"],
        "answer": "A dog",
        **more,
    }


def mmau(root):
    """Test-mini has answers, the test split has none."""
    where = "./test-mini-audios/{}.wav".format
    rows = [
        _choice("audio_id", where(n), n, task=task, category="Reasoning")
        for n, task in (("x1", "sound"), ("x2", "music"), ("gone", "speech"))
    ]
    rows[1]["answer"] = "rain, heavy"
    root.mkdir(parents=True)
    (root / "mmau-test-mini.json").write_text(json.dumps(rows))
    for row in rows:
        del row["answer"]
    (root / "mmau-test.json").write_text(json.dumps(rows))
    for name in ("x1", "x2"):
        sound(root / f"test-mini-audios/{name}.wav", seconds=0.5)
    return root


def mmau_pro(root):
    """Several recordings, and open questions, among the choices."""
    rows = [
        _choice("audio_path", ["data/x1.wav"], "a", category="sound"),
        _choice("audio_path", ["data/x1.wav", "data/x2.wav"], "b", category="multi"),
        _choice("audio_path", ["data/x2.wav"], "c", category="open", choices=None),
    ]
    root.mkdir(parents=True)
    (root / "mmau-pro.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for name in ("x1", "x2"):
        sound(root / f"data/{name}.wav", seconds=0.5)
    return root


def mmar(root):
    """As published, with the fields that nothing here needs."""
    more = {"modality": "mix", "language": "en", "source": "youtube", "url": "..."}
    rows = [_choice("audio_path", f"./audio/{n}.wav", n, **more) for n in ("p", "q")]
    root.mkdir(parents=True)
    (root / "MMAR-meta.json").write_text(json.dumps(rows))
    sound(root / "audio/p.wav", seconds=0.5)
    sound(root / "audio/q.wav", seconds=0.5, rate=44100, channels=2)
    return root


def dcase_aqa(root):
    """Lines for dev; a file a question, options by letter, for training."""
    lettered = {"A": "Man", "B": "A dog"}
    dev = _choice("audio_path", "audios/d.wav", "d", choices=["A. Man", "B. A dog"])
    train = _choice("audio_url", "https://x.org/t.wav", "t", choices=lettered)
    (root / "train").mkdir(parents=True)
    (root / "dev.jsonl").write_text(json.dumps({**dev, "answer": "B"}) + "\n")
    train["answer"] = "B. A dog"
    (root / "train" / "t.json").write_text(json.dumps(train))
    sound(root / "audio/d.wav", seconds=0.5)
    sound(root / "audio/t.wav", seconds=0.5)
    return root


def clotho_recipe(root):
    """data/ of ESPnet's clotho_v2/asr1: `text` in training, text_spk1..5 in testing.

    Training audio is files, validation audio is cut from one, test audio is commands
    and entries of an ark.
    """
    train, valid, test = (
        root / name for name in ("development_clotho", "validation", "evaluation")
    )
    for folder in (train, valid, test):
        folder.mkdir(parents=True)
        ids = [f"{folder.name}_{n}" for n in range(12)]  # _10 sorts before _2
        lines(folder / "utt2spk", [f"{i} dummy" for i in ids])
        paths = [sound(root / f"wav/{i} a.wav", seconds=0.4, rate=44100) for i in ids]
        if folder is train:
            audio = [f"{i} {p}" for i, p in zip(ids, paths, strict=True)]
            lines(folder / "text", [f"{i} A bell, {n}" for n, i in enumerate(ids)])
        elif folder is valid:
            audio = [f"rec {sound(root / 'wav/long.wav', seconds=6.0, rate=8000)}"]
            cuts = [f"{i} rec {0.5 * n:.2f} {0.5 * n + 0.5}" for n, i in enumerate(ids)]
            lines(folder / "segments", cuts)
        else:
            audio = [f"{i} cat '{p}' |" for i, p in zip(ids, paths, strict=True)]
            audio[::2] = ark(root / "wav/audio.ark", ids[::2], paths[::2])
        lines(folder / "wav.scp", audio)
        for spk in range(1, 6) if folder is not train else ():
            rows = [f"{i} Reference {spk} of {n}" for n, i in enumerate(ids)]
            lines(folder / f"text_spk{spk}", rows)
    return root


def ark(path, ids, paths):
    """Puts audio files into a Kaldi archive; returns the lines of wav.scp."""
    rows = []
    with open(path, "wb") as out:
        for name, file in zip(ids, paths, strict=True):
            out.write(f"{name} ".encode())
            rows.append(f"{name} {path}:{out.tell()}")
            out.write(file.read_bytes())
    return rows


def esc50_recipe(root):
    """data/ of ESPnet's esc50/cls1: labels are words of a vocabulary."""
    for name, fold, count in (("train1", 2, 6), ("val1", 1, 2)):
        folder = root / name
        folder.mkdir(parents=True)
        ids = [f"{fold}-{100032 + n}-A-{14 * (n % 2)}" for n in range(count)]
        paths = [sound(root / f"wav/{i}.wav", seconds=0.4) for i in ids]
        audio = [f"{i} {p}" for i, p in zip(ids, paths, strict=True)]
        lines(folder / "wav.scp", audio)
        lines(folder / "text", [f"{i} audio_class:{i.split('-')[-1]}" for i in ids])
        lines(folder / "utt2spk", [f"{i} {i}" for i in ids])
    lines(root / "names", ["0 dog", "14 chirping_birds"])
    return root


def lines(path, rows):
    """Writes lines, as they are."""
    path.write_text("".join(f"{row}{os.linesep}" for row in rows), encoding="utf-8")
