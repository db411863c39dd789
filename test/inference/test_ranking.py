"""Arithmetic of rankings on cases small enough for the head."""

import numpy as np

from espnet2_slit.inference.ranking import (
    rerank_rows,
    similarity,
    top_indices,
    wanted_pairs,
)


def test_scores_of_small_cases():
    audio = np.array([[[1, 0], [0, 1]], [[-1, 0], [0, -1]]], np.float32)
    text = np.array([[0, 1], [-1, 0], [0.6, 0.8]], np.float32)
    expected = [[1, 0], [0, 1], [0.8, -0.6]]
    np.testing.assert_allclose(similarity(audio, text), expected, atol=1e-6)
    np.testing.assert_allclose(similarity(audio, text, block=1), expected, atol=1e-6)
    scores = np.array([[0.1, 0.9, 0.5]])
    assert top_indices(scores, 2).tolist() == [[1, 2]]
    assert top_indices(scores, 9).tolist() == [[1, 2, 0]]
    best = {
        "text_to_audio": np.array([[0], [2]]),
        "audio_to_text": np.array([[1], [0], [1]]),
    }
    wanted = wanted_pairs(best, 4)
    assert [rows.tolist() for rows in wanted] == [[0, 1], [0], [1], []]
    match = np.array([[np.nan, -50.0, 3.0]])
    ranked = rerank_rows(scores, match, np.array([[1, 2]]))
    assert np.argsort(-ranked[0]).tolist() == [2, 1, 0]
    # 10 * 0.9 - 4 < 10 * 0.5 + 3, and the third, not looked at, stays below.
    match = np.array([[np.nan, -4.0, 3.0]])
    ranked = rerank_rows(scores, match, np.array([[1, 2]]), scale=10.0)
    np.testing.assert_allclose(ranked, [[-4.0, 5.0, 8.0]], atol=1e-5)
