"""Claims about bench/road.py: where the time of a road went, by what run.sh printed."""

import importlib.util
import subprocess
import sys
from pathlib import Path

ROAD = Path(__file__).resolve().parents[2] / "bench" / "road.py"
LOG = """2026-01-01T10:00:00 (mini_data.sh) Mini corpus (2,400 clips), 200 MB
some output of a program
2026-01-01T10:05:30 (slit.sh) Stage 2: representation
2026-01-01T10:05:30 (slit.sh) Training representation: exp/mini_representation/train.log
    epoch 1: train loss 2.5
2026-01-01T10:07:00 (slit.sh) Successfully finished. [elapsed=420s]
"""


def test_parts_last_until_the_next_line_with_a_time(tmp_path):
    spec = importlib.util.spec_from_file_location("road", ROAD)
    road = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(road)
    assert road.parts(LOG.splitlines()) == [
        ("mini_data.sh: Mini corpus", 330.0),
        ("slit.sh: Training representation", 90.0),
    ]
    (tmp_path / "run.log").write_text(LOG)
    command = [sys.executable, ROAD, "--log", tmp_path / "run.log"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "420.0 s  in all" in done.stdout, done.stderr
