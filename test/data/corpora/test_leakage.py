"""Test clips that were trained on are found by clip, source and file."""

from pathlib import Path

import pytest
import trees
from hypothesis import given
from hypothesis import strategies as st

from espnet2_slit.data.corpora import Limits, Sample, leakage
from espnet2_slit.data.corpora.audio_index import AudioIndex
from espnet2_slit.data.corpora.base import SetBuilder, SetPlan
from espnet2_slit.data.corpora.leakage import find_overlaps, leaking_samples


@pytest.fixture
def make(tmp_path):
    """make("set", corpus, (clip, source), ...) -> data directory."""

    def build(name, corpus, *clips, zero_shot=False):
        for clip, _ in clips:
            trees.sound(tmp_path / corpus / f"{clip}.wav", seconds=0.2)
        rows = [
            Sample(clip, (clip,), f"caption {n}", source=source)
            for clip, source in clips
            for n in range(2)
        ]
        plan = SetPlan(name, corpus, "train", rows, zero_shot=zero_shot)
        SetBuilder(plan, AudioIndex([tmp_path / corpus]), Limits()).build(tmp_path)
        return tmp_path / name

    return build


def found(rows):
    return rows[0].shared


NOTHING = {"clip": 0, "source": 0, "file": 0}


def test_sets_without_anything_in_common_do_not_overlap(make):
    a = make("a", "x", ("1", "freesound:1"))
    b = make("b", "y", ("1", "freesound:2"))
    assert found(find_overlaps([a], [b])) == NOTHING
    assert leaking_samples(a, [b]) == set()
    assert find_overlaps([a], [b])[0].line().endswith("(1 clips): nothing in common")


def test_one_recording_in_two_corpora_is_found_by_its_source(make):
    a = make("a", "clotho", ("rain", "freesound:7"), ("wind", "freesound:8"))
    b = make("b", "esc50", ("1-7-A", "freesound:7"), zero_shot=True)
    (row,) = find_overlaps([a], [b])
    assert row.shared == {**NOTHING, "source": 1}
    assert leaking_samples(a, [b]) == {"clotho_rain-00", "clotho_rain-01"}
    assert row.line().startswith("NOT ZERO-SHOT: ")
    assert "same source 1 (e.g. freesound:7)" in row.line()


def test_one_clip_and_one_file_are_found_without_sources(make):
    a = make("a", "x", ("1", ""), ("2", ""))
    b = make("b", "x", ("2", ""))
    (row,) = find_overlaps([a], [b])
    assert row.shared == {"clip": 1, "source": 0, "file": 1}
    assert row.samples == ("x_2-00", "x_2-01")
    assert "no source known of 4 training and 2 test samples" in row.line()


def test_unknown_sources_are_not_each_others(make):
    a = make("a", "x", ("1", ""), ("2", "freesound:1"))
    b = make("b", "y", ("3", ""), ("4", "freesound:2"))
    (row,) = find_overlaps([a], [b])
    assert row.shared == NOTHING
    assert row.unknown == (2, 2)


def test_every_pair_of_sets_is_compared(make):
    a = make("a", "x", ("1", "s:1"))
    b = make("b", "y", ("1", "s:1"))
    c = make("c", "z", ("1", "s:3"))
    rows = find_overlaps([a, b], [b, c])
    assert [(Path(r.train).name, Path(r.test).name) for r in rows] == [
        ("a", "b"),
        ("a", "c"),
        ("b", "b"),
        ("b", "c"),
    ]
    assert [bool(row.samples) for row in rows] == [True, False, True, False]


def plain(folder, **files):
    """A data directory of the given files, `name: lines`."""
    folder.mkdir()
    for name, rows in files.items():
        trees.lines(folder / name.replace("__", "."), rows)
    return folder


def test_a_link_to_a_file_is_that_file_and_a_command_itself(tmp_path):
    (tmp_path / "link.wav").symlink_to(tmp_path / "real.wav")
    pipe = "sox a.wav -t wav - |"
    wav = [f"a {tmp_path}/link.wav", f"b {pipe}", "c /other.wav"]
    a = plain(tmp_path / "a", wav__scp=wav)
    wav = [f"x {pipe}", f"y {tmp_path}/real.wav"]
    b = plain(tmp_path / "b", wav__scp=wav)
    (row,) = find_overlaps([a], [b])
    assert row.shared == {**NOTHING, "file": 2}
    assert row.samples == ("a", "b")


def test_stretches_of_one_file_leak_where_they_overlap(tmp_path):
    segments = ["p rec 0 5", "q rec 4.5 8", "r rec 10 -1", "s other 0 5"]
    wav = ["rec /long.wav", "other /other.wav"]
    a = plain(tmp_path / "a", wav__scp=wav, segments=segments)
    segments = ["x tape 5 7", "y tape 7 10"]
    b = plain(tmp_path / "b", wav__scp=["tape /long.wav"], segments=segments)
    (row,) = find_overlaps([a], [b])
    assert row.samples == ("q",)
    assert row.shared == {**NOTHING, "file": 2}
    whole = plain(tmp_path / "c", wav__scp=["z /long.wav"])
    assert find_overlaps([a], [whole])[0].samples == ("p", "q", "r")


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), min_size=1),
    st.integers(0, 20),
    st.integers(1, 9),
)
def test_stretches_are_found_as_by_comparing_each(parts, start, length):
    stretches = leakage._Stretches()
    for number, (begin, seconds) in enumerate(parts):
        stretches.add(begin, begin + seconds, str(number))
    assert stretches.clips(start, start + length) == {
        str(n) for n, (b, s) in enumerate(parts) if b < start + length and start < b + s
    }
