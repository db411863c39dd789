"""Cost per row does not grow with the corpus, and memory stays small."""

import cProfile
import json
import pstats
import tracemalloc

import pytest
import trees

from espnet2_slit.data.corpora import Limits, build_sets
from espnet2_slit.data.corpora.wavcaps import WavCaps


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """generated(n): a Freesound part of n rows; every tenth has its (linked) audio."""
    made = {}

    def make(rows):
        if rows in made:
            return made[rows]
        root = tmp_path_factory.mktemp(f"wavcaps{rows}")
        one = trees.sound(root / "one.wav", seconds=0.5)
        audio = root / "FreeSound_flac"
        audio.mkdir()
        with open(root / "fsd_final.json", "w") as out:
            out.write('{"num_captions_per_audio": 1, "data": [')
            for n in range(rows):
                row = {"id": str(n), "caption": f"A sound, {n}", "duration": 3.0}
                row["description"] = "words " * 30
                out.write((", " if n else "") + json.dumps(row))
                if n % 10 == 0:
                    (audio / f"{n}.wav").hardlink_to(one)
            out.write("]}")
        made[rows] = root
        return root

    return make


def prepare(root, out):
    corpus = WavCaps(root, blacklist="none")
    (report,) = build_sets(corpus, out, ["freesound"], limits=Limits(probe=False))
    return report


def test_four_times_the_rows_take_four_times_the_work(generated, tmp_path):
    calls = {}
    for rows in (5_000, 20_000):
        root = generated(rows)
        profile = cProfile.Profile()
        report = profile.runcall(prepare, root, tmp_path / str(rows))
        assert (report.rows, report.kept_samples) == (rows, rows // 10)
        calls[rows] = pstats.Stats(profile).total_calls
    assert calls[20_000] < 4.5 * calls[5_000]  # 16 if each row looked at all others
    assert calls[20_000] < 100 * 20_000


def test_rows_are_not_held_in_memory(generated, tmp_path):
    peaks = []
    for rows in (5_000, 20_000):
        root = generated(rows)
        tracemalloc.start()
        prepare(root, tmp_path / str(rows))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    per_row = (peaks[1] - peaks[0]) / 15_000
    assert per_row < 1000  # bytes: an id, a path and a hash; descriptions are not kept
