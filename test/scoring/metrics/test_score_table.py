import json

import numpy as np
import pytest

from espnet2_slit.scoring.metrics.bootstrap import NotComputed, mean_items, median_items
from espnet2_slit.scoring.metrics.score_table import (
    ScoreTable,
    markdown_tables,
    read_items,
    read_scores,
    show,
    title,
    write_items,
    write_scores,
)


@pytest.fixture
def table():
    table = ScoreTable("ours", resamples=50)
    scores = {
        "recall_at_1": mean_items([1, 0, 1, 1]),
        "median_rank": median_items(np.array([1.0, 3, 1, 1]), np.arange(4)),
    }
    protocol = {"split": "test", "reranked": False}
    where = ("text_to_audio", "contrastive")
    units = ["clip|a", "b", "c", "d"]
    chance = {"recall_at_1": 0.25}
    table.add("set_a", "retrieval", where, scores, protocol, 4, units, chance)
    captions = {"spice": NotComputed("Java"), "vocabulary_size": 12}
    table.add("set_a", "caption", (), captions, protocol, 4, units)
    table.add_missing("set_b", "classification", "decoding", protocol)
    return table


def test_scores_survive_the_file(table, tmp_path):
    write_scores(tmp_path / "scores.json", table, command="x")
    again, content = read_scores(tmp_path / "scores.json")
    assert again.rows == table.rows
    assert content["schema"] == 1 and content["command"] == "x"
    row = again.row("set_a/retrieval/text_to_audio/contrastive/recall_at_1")
    assert (row.value, row.chance, row.n) == (0.75, 0.25, 4)
    assert row.low < 0.75 < row.high
    assert row.where == "text_to_audio/contrastive"


def test_items_survive_the_file_without_pickles(table, tmp_path):
    write_items(tmp_path / "items.npz", table)
    again = read_items(tmp_path / "items.npz")
    assert set(again) == set(table.items)
    for key, (items, units) in table.items.items():
        assert again[key][0].value == items.value
        assert again[key][1].tolist() == units.tolist()
    with np.load(tmp_path / "items.npz", allow_pickle=False) as arrays:
        assert {arrays[n].dtype.kind for n in arrays.files} <= {"U", "f"}


def test_not_computed_is_null_with_its_need_and_listed(table):
    row = table.row("set_a/caption/spice")
    assert row.value is None and row.note == "not computed: needs Java"
    text = markdown_tables(table)
    assert "caption/spice (set_a): not computed: needs Java" in text
    assert "classification/all (set_b): not computed: needs decoding" in text


def test_markdown_shows_chance_and_interval(table):
    text = markdown_tables(table)
    assert "R@1 %" in text and "Median rank" in text
    cell = text.split("**75.0** ")[1]
    assert cell.startswith("[") and "] (25.0)|" in cell


def test_peers_are_rows_of_the_same_tables(table):
    peer = ScoreTable("theirs", resamples=10)
    scores = {"recall_at_1": mean_items([0, 0, 1, 1])}
    where = ("text_to_audio", "contrastive")
    peer.add("set_a", "retrieval", where, scores, {}, 4, list("abcd"))
    lines = markdown_tables(table, [peer]).splitlines()
    head = next(i for i, line in enumerate(lines) if "R@1 %" in line)
    assert lines[head].startswith("|system|dataset|")
    assert lines[head + 2].startswith("|ours|set_a|") and "**75.0**" in lines[head + 2]
    assert (
        lines[head + 3].startswith("|theirs|set_a|") and "**50.0**" in lines[head + 3]
    )


def test_units_must_be_named(table):
    with pytest.raises(ValueError, match="each of 2 units, found 1"):
        table.add("s", "caption", (), {"m": mean_items([1, 2])}, {}, 2, ["a"])


def test_unknown_row_and_unknown_schema_are_named(table, tmp_path):
    with pytest.raises(KeyError, match="set_a/caption/spice"):
        table.row("set_a/nothing")
    (tmp_path / "old.json").write_text(json.dumps({"schema": 99}))
    with pytest.raises(ValueError, match="schema 1, found schema 99"):
        read_scores(tmp_path / "old.json")
    (tmp_path / "items.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match="expected an items.npz"):
        read_items(tmp_path / "items.npz")


def test_failed_write_leaves_the_old_file(tmp_path, table):
    path = tmp_path / "scores.json"
    write_scores(path, table)
    old = path.read_text()
    with pytest.raises(TypeError):
        write_scores(path, table, command=object())
    assert path.read_text() == old
    assert [p.name for p in tmp_path.iterdir()] == ["scores.json"]


@pytest.mark.parametrize(
    ("metric", "number", "shown"),
    [
        ("recall_at_1", 0.5, "50.0"),
        ("cider_d", 0.5, "0.500"),
        ("median_rank", 2.5, "2.5"),
        ("vocabulary_size", 12, "12"),
        ("map_at_10", None, "–"),
    ],
)
def test_values_are_shown_in_their_unit(metric, number, shown):
    assert show(metric, number) == shown
    assert ("%" in title(metric)) == (metric in ("recall_at_1", "map_at_10"))
