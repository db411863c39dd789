from math import comb

import numpy as np
import pytest

from espnet2_slit.scoring.metrics.retrieval import (
    audio_to_text,
    relevant_ranks,
    text_to_audio,
)

# Three audios; texts 0-1 describe audio 0, texts 2-3 audio 1, text 4 audio 2.
OWNER = np.array([0, 0, 1, 1, 2])
#                       audio: 0    1    2
SIMILARITY = np.array(
    [
        [0.9, 0.1, 0.2],
        [0.3, 0.8, 0.4],  # text 1 finds audio 1 first, its own last
        [0.5, 0.6, 0.1],
        [0.7, 0.2, 0.0],
        [0.0, 0.0, 1.0],
    ]
)


def value(result, metric):
    return result.scores[metric].value


def test_text_to_audio_by_hand():
    result = text_to_audio(SIMILARITY, OWNER)
    # Ranks of the own audio: 1, 3, 1, 2, 1.
    assert (result.ranks[:, 0] + 1).tolist() == [1, 3, 1, 2, 1]
    assert result.queries == 5 and result.gallery == 3
    assert value(result, "recall_at_1") == pytest.approx(3 / 5)
    assert value(result, "recall_at_5") == 1.0
    assert value(result, "median_rank") == 1
    assert value(result, "map_at_10") == pytest.approx((1 + 1 / 3 + 1 + 1 / 2 + 1) / 5)


def test_audio_to_text_by_hand():
    result = audio_to_text(SIMILARITY, OWNER)
    # Audio 0 ranks texts 0 3 2 1 4: own at 1 and 4.
    # Audio 1 ranks texts 1 2 3 0 4: own at 2 and 3.
    assert (result.ranks[:2] + 1).tolist() == [[1, 4], [2, 3]]
    assert (result.ranks[2] + 1).tolist() == [1, 6], "one text; padding is the gallery"
    assert result.queries == 3 and result.gallery == 5
    assert value(result, "recall_at_1") == pytest.approx(2 / 3)
    assert value(result, "dcase_recall_at_1") == pytest.approx((1 / 2 + 0 + 1) / 3)
    expected = ((1 + 2 / 4) / 2 + (1 / 2 + 2 / 3) / 2 + 1) / 3
    assert value(result, "map_at_10") == pytest.approx(expected)
    assert value(result, "median_rank") == 1


def test_directions_are_not_interchangeable():
    """Every text finds its audio; every audio's first text is a stranger's."""
    owner = np.array([0, 1, 2])
    similarity = np.array([[3.0, 2.0, 0.0], [0.0, 3.0, 0.0], [9.0, 9.0, 10.0]])
    assert value(text_to_audio(similarity, owner), "recall_at_1") == 1.0
    # Column 0: text 2 (9) before text 0 (3). Column 1: text 2 before text 1.
    assert value(audio_to_text(similarity, owner), "recall_at_1") == pytest.approx(
        1 / 3
    )


def _random(seed, audios=40, each=5):
    generator = np.random.RandomState(seed)
    owner = np.repeat(np.arange(audios), each)
    similarity = generator.randn(len(owner), audios)
    similarity[np.arange(len(owner)), owner] += 1.5
    return similarity, owner


@pytest.mark.parametrize("seed", range(5))
def test_text_to_audio_map_is_at_least_recall_at_1(seed):
    """With one relevant audio mAP@10 is the reciprocal rank; a swap breaks this."""
    result = text_to_audio(*_random(seed))
    reciprocal = np.where(result.ranks < 10, 1 / (result.ranks + 1), 0).mean()
    assert value(result, "map_at_10") == pytest.approx(reciprocal)
    assert value(result, "map_at_10") >= value(result, "recall_at_1")
    assert value(result, "recall_at_10") >= value(result, "map_at_10")


def test_ranks_equal_a_sort():
    similarity, owner = _random(7)
    order = np.argsort(-similarity.T, axis=1)
    expected = [
        sorted(int(np.where(order[a] == t)[0][0]) for t in np.where(owner == a)[0])
        for a in range(40)
    ]
    assert audio_to_text(similarity, owner).ranks.tolist() == expected


def test_ties_count_against_the_system():
    owner = np.arange(20)
    same = np.zeros((20, 20))
    for result in (text_to_audio(same, owner), audio_to_text(same, owner)):
        assert value(result, "recall_at_10") == 0.0
        assert value(result, "median_rank") == 20
        assert value(result, "map_at_10") == 0.0
    # Own texts do not push each other back.
    ranks = relevant_ranks(np.zeros((1, 5)), np.array([[1, 2, -1]]))
    assert ranks.tolist() == [[3, 4, 5]]


def test_items_left_out_of_reranking_may_be_minus_infinity():
    owner = np.arange(3)
    similarity = np.full((3, 3), -np.inf)
    np.fill_diagonal(similarity, 1.0)
    assert value(text_to_audio(similarity, owner), "recall_at_1") == 1.0
    similarity[0, 0] = -np.inf
    assert text_to_audio(similarity, owner).ranks[0, 0] == 2


def test_order_of_texts_does_not_matter():
    similarity, owner = _random(3)
    order = np.random.RandomState(0).permutation(len(owner))
    for score in (text_to_audio, audio_to_text):
        one, other = score(similarity, owner), score(similarity[order], owner[order])
        for metric in one.scores:
            assert value(one, metric) == pytest.approx(value(other, metric))


def test_chance_equals_random_orders():
    generator = np.random.RandomState(0)
    owner = np.repeat(np.arange(30), 5)
    drawn = {"text_to_audio": [], "audio_to_text": []}
    for _ in range(150):
        similarity = generator.rand(150, 30)
        for score in (text_to_audio, audio_to_text):
            drawn[score.__name__].append(score(similarity, owner))
    for name, results in drawn.items():
        for metric, expected in results[0].chance.items():
            mean = np.mean([value(r, metric) for r in results])
            tolerance = 2.0 if metric == "median_rank" else 0.012
            assert mean == pytest.approx(expected, abs=tolerance), (name, metric)
    any_of_five = 1 - comb(145, 10) / comb(150, 10)
    assert results[0].chance["recall_at_10"] == pytest.approx(any_of_five)


def test_map_agrees_with_torchmetrics_definition_on_full_gallery():
    """Ten or fewer texts: nothing is cut off, so it is scikit-learn's AP."""
    from sklearn.metrics import average_precision_score

    generator = np.random.RandomState(1)
    owner = np.repeat(np.arange(2), 5)
    similarity = generator.randn(10, 2)
    expected = np.mean(
        [average_precision_score(owner == a, similarity[:, a]) for a in range(2)]
    )
    assert value(audio_to_text(similarity, owner), "map_at_10") == pytest.approx(
        expected
    )


def test_what_cannot_be_ranked_is_refused():
    similarity, owner = _random(0)
    similarity[3, 4] = np.nan
    with pytest.raises(ValueError, match="found 1 NaN among 8000"):
        text_to_audio(similarity, owner)
    with pytest.raises(ValueError, match="each of 3 audios, found 2"):
        text_to_audio(SIMILARITY, np.array([0, 0, 1, 1, 1]))
    with pytest.raises(ValueError, match=r"\(5, 3\) and \(4,\)"):
        audio_to_text(SIMILARITY, OWNER[:4])
