"""Miniature corpora, made once a session."""

import pytest
import trees

from espnet2_slit.data import kaldi_dir, validate
from espnet2_slit.data.corpora import Limits, build_sets


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """tree("clotho") is the root of that corpus in miniature; do not change it."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = getattr(trees, name)(tmp_path_factory.mktemp(name) / name)
        return made[name]

    return make


@pytest.fixture
def build(tmp_path):
    """build(corpus, "test") -> (folder, report); every set made is validated."""

    def make(corpus, split, limits=None, **options):
        limits = limits or Limits(jobs=1)
        (report,) = build_sets(corpus, tmp_path, [split], limits=limits, **options)
        folder = tmp_path / report.name
        assert validate.validate(folder) == report.kept_samples
        return folder, report

    return make


@pytest.fixture
def column():
    """column(folder, "text") -> {id: value}; lists where ids repeat."""

    def read(folder, name):
        found = {}
        for key, value in kaldi_dir.read_pairs(folder / name):
            found.setdefault(key, []).append(value)
        repeated = any(len(values) > 1 for values in found.values())
        return found if repeated else {k: v for k, (v,) in found.items()}

    return read
