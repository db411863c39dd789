"""Tests of the picture of training logs."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import plot_curves  # noqa: E402

LOG = """[vm] (trainer:811) INFO: 1epoch:train:1-50batch: iter_time=0.02, loss=5.0, x=1
[vm] (trainer:811) INFO: 1epoch:train:51-100batch: iter_time=0.02, loss=4.0, x=2
[vm] (trainer:811) INFO: 2epoch:train:1-50batch: iter_time=0.02, loss=3e+00, x=3
"""


def test_steps_go_on_over_the_epochs(tmp_path):
    log = tmp_path / "train.log"
    log.write_text(LOG)
    assert plot_curves.read_steps(log)["loss"] == [(50, 5.0), (100, 4.0), (150, 3.0)]


def test_runs_of_different_length_share_a_picture(tmp_path):
    for name, count in (("a", 3), ("b", 2)):
        lines = LOG.splitlines(keepends=True)[:count]
        (tmp_path / f"{name}.log").write_text("".join(lines))
    out = tmp_path / "curves.svg"
    words = [f"{name}={tmp_path / name}.log" for name in "ab"]
    assert plot_curves.main([*words, "--values", "loss", "x", "--out", str(out)]) == 0
    assert "</svg>" in out.read_text()


def test_log_without_values_is_told(tmp_path, capsys):
    log = tmp_path / "train.log"
    log.write_text("nothing yet\n")
    assert plot_curves.main([f"a={log}", "--out", str(tmp_path / "x.svg")]) == 1
    assert "1epoch:train:1-50batch" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        plot_curves.main([str(log), "--out", str(tmp_path / "x.svg")])
