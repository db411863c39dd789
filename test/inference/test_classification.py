"""Labels by similarity, matching and the language model."""

import numpy as np
import pytest

from espnet2_slit.inference.classification import (
    label_likelihoods,
    label_similarities,
)
from espnet2_slit.inference.requests import InferenceError


def test_language_model_route_takes_the_likeliest_label(slit, clips):
    labels = ["dog_bark", "rain", "water flows in the background"]
    speech = slit.clips(clips)
    sums, lengths = label_likelihoods(slit, speech, labels)
    for normalize, scores in (("sum", sums), ("mean", sums / lengths)):
        found = slit.classify(
            clips, labels, route="language_model", normalize=normalize
        )
        assert [one.label for one in found] == [
            labels[i] for i in scores.argmax(axis=1)
        ]
    assert lengths[2] > lengths[1]


def test_label_templates_are_an_ensemble(slit, clips):
    speech = slit.clips(clips)
    scores = label_similarities(slit, speech, ["dog", "bell"], ["{}", "a {} rings"])
    audio = slit.embed_audio(clips)
    for c, label in enumerate(["dog", "bell"]):
        text = slit.embed_text([label, f"a {label} rings"]).mean(axis=0)
        text /= np.linalg.norm(text)
        expected = (audio @ text).max(axis=1)
        np.testing.assert_allclose(scores[:, c], expected, atol=1e-5)
    with pytest.raises(InferenceError, match="expected '{}' for the label"):
        slit.classify(clips[0], ["dog"], label_templates=["a sound"])


def test_wrong_classification_requests(slit, clips):
    with pytest.raises(InferenceError, match="route: expected one of"):
        slit.classify(clips[0], ["dog"], route="guess")
    with pytest.raises(InferenceError, match="different labels"):
        slit.classify(clips[0], ["dog", "dog"])
    with pytest.raises(InferenceError, match="at least one text"):
        slit.classify(clips[0], [])
