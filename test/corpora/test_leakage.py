"""Test clips that were trained on are found by clip, source and file."""

import pytest
import trees

from espnet2_slit.corpora import Limits, Sample
from espnet2_slit.corpora.audio_index import AudioIndex
from espnet2_slit.corpora.base import SetBuilder, SetPlan
from espnet2_slit.corpora.leakage import find_overlaps, leaking_utterances, report


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
    return {row.kind: row.clips for row in rows}


def test_sets_without_anything_in_common_do_not_overlap(make):
    a = make("a", "x", ("1", "freesound:1"))
    b = make("b", "y", ("1", "freesound:2"))
    assert found(find_overlaps([a], [b])) == {"clip": 0, "source": 0, "file": 0}
    assert list(leaking_utterances(a, [b])) == []


def test_one_recording_in_two_corpora_is_found_by_its_source(make):
    a = make("a", "clotho", ("rain", "freesound:7"), ("wind", "freesound:8"))
    b = make("b", "esc50", ("1-7-A", "freesound:7"), zero_shot=True)
    assert found(find_overlaps([a], [b])) == {"clip": 0, "source": 1, "file": 0}
    assert list(leaking_utterances(a, [b])) == ["clotho_rain-00", "clotho_rain-01"]
    table = report(find_overlaps([a], [b]))
    assert "freesound:7" in table and "NOT ZERO-SHOT" in table


def test_one_clip_and_one_file_are_found_without_sources(make):
    a = make("a", "x", ("1", ""), ("2", ""))
    b = make("b", "x", ("2", ""))
    assert found(find_overlaps([a], [b])) == {"clip": 1, "source": 0, "file": 1}
    assert list(leaking_utterances(a, [b])) == ["x_2-00", "x_2-01"]
    assert "no source known: 4 training, 2 test" in report(find_overlaps([a], [b]))


def test_unknown_sources_are_not_each_others(make):
    a = make("a", "x", ("1", ""), ("2", "freesound:1"))
    b = make("b", "y", ("3", ""), ("4", "freesound:2"))
    rows = find_overlaps([a], [b])
    assert found(rows)["source"] == 0
    assert rows[0].unknown == (2, 2)


def test_every_pair_of_sets_is_compared(make):
    a = make("a", "x", ("1", "s:1"))
    b = make("b", "y", ("1", "s:1"))
    c = make("c", "z", ("1", "s:3"))
    rows = find_overlaps([a, b], [b, c])
    assert len(rows) == 12
    pairs = {(r.train, r.test) for r in rows if r.clips}
    assert pairs == {("a", "b"), ("b", "b")}
