"""METEOR 1.5 and SPICE 1.0: the two caption metrics that exist only as Java programs.

Their jars come with pycocoevalcap; nothing of its Python code is imported, because it
writes into site-packages and leaves processes behind.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from espnet2_slit.scoring.metrics.bootstrap import NotComputed
from espnet2_slit.scoring.metrics.tokenization import (
    INSTALL,
    java_version,
    package_file,
)

METEOR_JAR = "meteor/meteor-1.5.jar"
METEOR_FIELDS = 23
SPICE_JAR = "spice/spice-1.0.jar"
# Not in pycocoevalcap; SPICE's parser.
CORENLP_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
DOWNLOAD_CORENLP = (
    "python -c 'from pycocoevalcap.spice.get_stanford_models import "
    "get_stanford_models as g; g()'"
)


class MeteorScorer:
    """One METEOR process, English, with METEOR's own normalisation.

    Args:
        java: the Java executable.
    """

    def __init__(self, java: str = "java") -> None:
        jar = package_file(METEOR_JAR)
        assert jar is not None, self.needs(java)
        command = [java, "-Xmx2G", "-Dfile.encoding=UTF-8", "-Duser.language=en"]
        command += ["-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
        self._process = process = subprocess.Popen(
            command,
            cwd=jar.parent,  # it looks for data/ beside itself
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
        )
        assert process.stdin is not None and process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout

    @staticmethod
    def needs(java: str = "java") -> str:
        """What is missing for METEOR on this machine; "" where nothing is."""
        if java_version(java) is None or package_file(METEOR_JAR) is None:
            return INSTALL
        return ""

    def stats(
        self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]
    ) -> np.ndarray:
        """METEOR's statistics of each caption.

        Args:
            hypotheses: N tokenised captions, words joined by blanks.
            references: N lists of the same.

        Returns:
            (N, 23) float64 for `bootstrap.meteor_items`; the best reference's.

        Raises:
            RuntimeError: the process ended or printed something else.
        """
        rows = np.zeros((len(hypotheses), METEOR_FIELDS))
        for i, (hypothesis, refs) in enumerate(
            zip(hypotheses, references, strict=True)
        ):
            sentences = [s.replace("|||", " ") for s in [*refs, hypothesis]]
            line = self._ask("SCORE ||| " + " ||| ".join(sentences))
            values = line.split()
            if len(values) != METEOR_FIELDS:
                raise RuntimeError(
                    f"METEOR: expected {METEOR_FIELDS} numbers, found {line[:200]!r} "
                    f"for {hypothesis!r} (exit code {self._process.poll()}); "
                    "use --skip_meteor true to go without"
                )
            rows[i] = [float(v) for v in values]
        return rows

    def evaluate(self, stats: np.ndarray) -> np.ndarray:
        """METEOR's own scores of (N, 23) statistics: N per caption, then the set's."""
        lines = [" ".join(f"{v:.1f}" for v in row) for row in stats]
        first = self._ask("EVAL ||| " + " ||| ".join(lines))
        rest = [self._stdout.readline() for _ in lines]
        return np.array([float(first), *map(float, rest)])

    def _ask(self, line: str) -> str:
        try:
            self._stdin.write(line + "\n")
            self._stdin.flush()
        except BrokenPipeError:
            return ""
        return self._stdout.readline().strip()

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._stdin.close()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._stdout.close()


def spice_needs(jar: str = "", java: str = "java") -> str:
    """What is missing for SPICE on this machine; "" where nothing is."""
    path = Path(jar) if jar else package_file(SPICE_JAR)
    if java_version(java) is None or path is None or not path.is_file():
        return INSTALL
    missing = [n for n in CORENLP_JARS if not (path.parent / "lib" / n).is_file()]
    if missing:
        where = Path(*path.parts[-2:-1], "lib")
        return (
            f"{' and '.join(missing)} in {where} beside {path.name} "
            f"({DOWNLOAD_CORENLP}, 0.4 GB) and Java 8 or 11"
        )
    return ""


def spice_scores(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    jar: str = "",
    java: str = "java",
) -> np.ndarray | NotComputed:
    """SPICE F-score of each caption, or NotComputed.

    Args:
        hypotheses: N tokenised captions.
        references: N lists of the same.
        jar: path of spice-1.0.jar, its libraries in lib/ beside it; "": the one of
            pycocoevalcap.
        java: the Java executable.

    Returns:
        (N,) float64, or NotComputed with what is missing or how SPICE failed.
    """
    needs = spice_needs(jar, java)
    if needs:
        return NotComputed(needs)
    path = Path(jar) if jar else package_file(SPICE_JAR)
    assert path is not None  # `needs` would be told
    items = [
        {"image_id": i, "test": h, "refs": r}
        for i, (h, r) in enumerate(zip(hypotheses, references, strict=True))
    ]
    with tempfile.TemporaryDirectory(prefix="slit_spice_") as folder:
        source, target = Path(folder, "in.json"), Path(folder, "out.json")
        cache = Path(folder, "cache")
        cache.mkdir()
        source.write_text(json.dumps(items), encoding="utf-8")
        command = [java, "-Xmx8G", "-jar", str(path.resolve()), str(source)]
        command += ["-cache", str(cache), "-out", str(target), "-subset", "-silent"]
        done = subprocess.run(
            command, cwd=path.parent, capture_output=True, encoding="utf-8"
        )
        if done.returncode != 0 or not target.is_file():
            reason = re.findall(r"[\w.$]*(?:Exception|Error)[^\n]*", done.stderr)
            said = reason[-1] if reason else f"exit code {done.returncode}"
            return NotComputed(
                f"Java 8 or 11 (found {java_version(java)}; SPICE said: {said})"
            )
        found = json.loads(target.read_text(encoding="utf-8"))
    scores = {item["image_id"]: item["scores"]["All"]["f"] for item in found}
    if sorted(scores) != list(range(len(items))):
        return NotComputed(
            f"a complete SPICE output: expected {len(items)} captions, found "
            f"{len(scores)}"
        )
    return np.array([float(scores[i]) for i in range(len(items))])
