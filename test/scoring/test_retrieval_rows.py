"""Rows of retrieval beside the published protocol's."""

import json

import numpy as np
import pytest

from espnet2_slit.scoring.metrics.score_table import ScoreTable
from espnet2_slit.scoring.read import ScoringError
from espnet2_slit.scoring.test_sets import score_predictions

SENTENCES = ["a dog barks", "rain falls", "a bell rings", "an engine hums"]
CLIPS = [f"c{i:02d}" for i in range(12)]


def build(folder, sentences, relevant=()):
    """A set whose clip i has sentence i % 4, and embeddings that tell the sentences."""
    folder.mkdir()
    texts = [sentences[i % len(sentences)] for i in range(len(CLIPS))]
    lines = [f"{c} {t}\n" for c, t in zip(CLIPS, texts, strict=True)]
    (folder / "text").write_text("".join(lines))
    (folder / "wav.scp").write_text("".join(f"{c} {c}.wav\n" for c in CLIPS))
    if relevant:
        (folder / "relevant").write_text("".join(f"{line}\n" for line in relevant))
    (folder / "set.json").write_text(
        json.dumps({"schema": 1, "name": folder.name, "tasks": ["retrieval"]})
    )
    one_hot = np.eye(len(sentences))[np.arange(len(CLIPS)) % len(sentences)]
    arrays = {"audio_ids": np.array(CLIPS), "text_audio_ids": np.array(CLIPS)}
    np.savez(folder.parent / "e.npz", **arrays, audio=one_hot, text=one_hot)
    return folder


def score(folder):
    table = ScoreTable("perfect", resamples=50)
    score_predictions(table, folder, "retrieval", folder.parent / "e.npz")
    return {
        row.key.removeprefix(f"{folder.name}/retrieval/"): row for row in table.rows
    }


def test_equal_texts_have_a_row_in_which_all_their_clips_are_right(tmp_path):
    rows = score(build(tmp_path / "labels", SENTENCES))
    # The published protocol: two clips of three with the same text count as wrong.
    assert rows["text_to_audio/contrastive/recall_at_1"].value == 0
    found = rows["text_to_audio/contrastive/equal_texts/recall_at_1"]
    assert found.value == 1 and found.n == 4 and found.chance == pytest.approx(3 / 12)
    assert found.protocol["relevant_per_query"] == "3"
    back = rows["audio_to_text/contrastive/equal_texts/recall_at_1"]
    assert back.value == 1 and back.n == 12 and back.chance == pytest.approx(1 / 4)
    assert back.protocol["equal_texts"] == "one text, all its clips are right"


def test_texts_that_differ_in_case_alone_are_equal_as_in_training(tmp_path):
    build(tmp_path / "labels", SENTENCES)
    path = tmp_path / "labels" / "text"
    path.write_text(path.read_text().replace("c04 a dog barks", "c04 A dog, barks!"))
    rows = score(tmp_path / "labels")
    assert rows["text_to_audio/contrastive/equal_texts/recall_at_1"].n == 4


def test_without_equal_texts_there_is_no_such_row(tmp_path):
    rows = score(build(tmp_path / "captions", [f"sound {i}" for i in range(12)]))
    assert rows["text_to_audio/contrastive/recall_at_1"].value == 1
    assert not [key for key in rows if "equal_texts" in key]


def test_further_right_clips_have_a_row_with_map_at_16(tmp_path):
    names = [f"sound {i}" for i in range(12)]
    rows = score(build(tmp_path / "dcase", names, ["c03 sound 0", "c05 sound 0"]))
    row = rows["text_to_audio/contrastive/several_relevant/map_at_16"]
    # Sound 0 has three right clips; its own comes first, ten wrong ones tie with the
    # other two and are counted before them: precision 1/1, 2/11, 3/12.
    first = (1 + 2 / 11 + 3 / 12) / 3
    assert row.value == pytest.approx((first + 11) / 12)
    assert row.protocol["relevant_per_query"] == "1-3"
    assert row.protocol["map_divisor"] == "min(relevant, k)"
    assert rows["text_to_audio/contrastive/map_at_10"].value == 1, "as published"


@pytest.mark.parametrize("line", ["c99 sound 0", "c03 no such text"])
def test_relevant_names_only_what_is_there(tmp_path, line):
    names = [f"sound {i}" for i in range(12)]
    build(tmp_path / "dcase", names, [line])
    with pytest.raises(ScoringError, match="a clip id and a text that describes"):
        score(tmp_path / "dcase")
