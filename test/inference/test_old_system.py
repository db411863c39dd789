"""What earlier versions have made opens today: an archive, a cache of features.

`golden/before_rooms` was written by the version whose modules lay side by side in the
package's root: random weights of tiny parts, all packed; two clips and their cache; and
what that version computed from them.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from espnet2_slit.data.feature_cache import check_features, verify_checksums
from espnet2_slit.data.kaldi_matrix import FeatureReader
from espnet2_slit.inference.slit import SLIT

GOLDEN = Path(__file__).parents[1] / "golden" / "before_rooms"
CLIPS = ["wav/0.wav", "wav/1.wav"]


@pytest.fixture
def old(tmp_path, monkeypatch):
    """The old files where a recipe would have them; what was computed from them."""
    shutil.copytree(GOLDEN, tmp_path / "recipe")
    monkeypatch.chdir(tmp_path / "recipe")
    return json.loads(Path("expected.json").read_text())


def test_an_old_archive_gives_what_it_gave(old):
    slit = SLIT.from_pretrained("system.txz", cache_dir="cache")
    audio, text = slit.embed_audio(CLIPS), slit.embed_text(
        ["a dog barks", "birds chirp"]
    )
    np.testing.assert_allclose(audio, old["audio"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(text, old["text"], rtol=0, atol=1e-5)
    options = {"max_new_tokens": 6, "num_beams": 2}
    assert slit.caption(CLIPS, options=options) == old["captions"]


def test_an_old_cache_is_that_of_the_old_systems_encoder(old):
    slit = SLIT.from_pretrained("system.txz", cache_dir="cache")
    content = check_features("dump", slit.encoder_identity)
    assert content["num_clips"] == 2
    check_features("dump", slit.encoder.identity())
    verify_checksums("dump")
    reader = FeatureReader("dump/feats.scp")
    for sample, expected in old["frames"].items():
        assert np.abs(reader[sample]).sum() == pytest.approx(expected, rel=1e-6)
