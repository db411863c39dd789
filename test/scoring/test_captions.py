"""Captions of clips with labels: does the caption name the right one?"""

import json

from espnet2_slit.scoring.metrics.score_table import ScoreTable
from espnet2_slit.scoring.test_sets import score_predictions

LABELS = ["rain", "baby", "crying baby", "sea waves"]


def test_captions_that_name_other_labels_are_wrong(tmp_path):
    data = tmp_path / "calls"
    data.mkdir()
    truth = {"a": "rain", "b": "crying baby", "c": "rain", "d": "sea waves"}
    said = {
        "a": "The sound of RAIN!",  # right, whatever the case
        "b": "The sound of baby.",  # another label
        "c": "Rain and sea waves.",  # one too many
        "d": "Waves of the sea.",  # the words, not the label
    }
    (data / "wav.scp").write_text("".join(f"{i} {i}.wav\n" for i in truth))
    (data / "text").write_text(
        "".join(f"{i} The sound of {truth[i]}.\n" for i in truth)
    )
    (data / "labels").write_text("\n".join(LABELS) + "\n")
    facts = {"schema": 1, "name": "calls", "tasks": ["caption"]}
    (data / "set.json").write_text(json.dumps(facts))
    path = tmp_path / "captions"
    path.write_text("".join(f"{i} {said[i]}\n" for i in said))
    table = ScoreTable("theirs", resamples=50)
    score_predictions(table, data, "caption", path)
    row = table.row("calls/caption/labels/label_named")
    assert (row.value, row.chance, row.n) == (0.25, 0.5, 4)
