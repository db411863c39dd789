import numpy as np
import pytest

from espnet2_slit.scoring.metrics.bootstrap import (
    AGGREGATES,
    compare,
    grouped_mean_items,
    intervals,
    mean_items,
    median_items,
    replicates,
    resampling_counts,
)


def test_counts_are_draws_with_replacement():
    counts = np.concatenate(list(resampling_counts(50, 400, seed=1)))
    assert counts.shape == (400, 50)
    assert (counts.sum(axis=1) == 50).all()
    assert counts.mean(axis=0) == pytest.approx(np.ones(50), abs=0.25)
    again = np.concatenate(list(resampling_counts(50, 400, seed=1)))
    np.testing.assert_array_equal(counts, again)


def test_chunks_do_not_change_the_draws(monkeypatch):
    from espnet2_slit.scoring.metrics import bootstrap

    items = [mean_items(np.arange(30.0))]
    whole = replicates(items, 64, seed=3)
    monkeypatch.setattr(bootstrap, "COUNTS_PER_CHUNK", 100)
    np.testing.assert_allclose(replicates(items, 64, seed=3), whole)


def test_mean_interval_is_about_two_standard_errors():
    generator = np.random.RandomState(0)
    values = generator.randn(400)
    ((low, high),) = intervals([mean_items(values)], resamples=2000)
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)


def test_captions_of_a_clip_are_resampled_together():
    """Five copies of each value: the interval of the clips, not a smaller one."""
    generator = np.random.RandomState(0)
    values = generator.randn(100)
    groups = np.repeat(np.arange(100), 5)
    alone = intervals([mean_items(values)])
    together = intervals([grouped_mean_items(np.repeat(values, 5), groups, 100)])
    np.testing.assert_allclose(together, alone)


@pytest.mark.parametrize("number", [1, 2, 5, 6, 31])
def test_median_is_numpys(number):
    values = np.random.RandomState(number).randint(9, size=number).astype(float)
    items = median_items(values, np.arange(number))
    assert items.value == np.median(values)
    counts = np.random.RandomState(1).randint(4, size=(6, number)).astype(float)
    counts[:, 0] += 1
    for row, found in zip(
        counts, AGGREGATES["median"](items.stats, counts), strict=True
    ):
        assert found == np.median(np.repeat(values, row.astype(int)))


def test_bleu_replicate_is_the_bleu_of_the_repeated_captions():
    from espnet2_slit.scoring.metrics.captioning import ngram_scores

    hyp = ["a dog barks".split(), "rain falls down now".split(), "a bell".split()]
    refs = [
        ["a dog barks loudly".split()],
        ["rain falls".split()],
        ["the bell".split()],
    ]
    stats = ngram_scores(hyp, refs)["bleu"]
    chosen = [0, 0, 2, 1]
    repeated = ngram_scores([hyp[i] for i in chosen], [refs[i] for i in chosen])["bleu"]
    one = AGGREGATES["bleu_2"](stats, np.array([[2.0, 1.0, 1.0]]))
    other = AGGREGATES["bleu_2"](repeated, np.ones((1, 4)))
    assert one == pytest.approx(other)


def test_comparison_finds_a_difference_and_none():
    generator = np.random.RandomState(0)
    base = generator.rand(300)
    noise = 0.02 * generator.randn(300)
    better = compare(mean_items(base + 0.05 + noise), mean_items(base), resamples=2000)
    assert better.low > 0 and better.p_value < 0.01
    assert better.difference == pytest.approx(0.05, abs=0.01)
    # The spread of the items is ten times the difference: only pairing finds it.
    assert better.high - better.low < 0.01
    same = compare(mean_items(base + noise), mean_items(base), resamples=2000)
    assert same.low < 0 < same.high and same.p_value > 0.05


def test_comparison_of_a_system_with_itself():
    items = mean_items(np.random.RandomState(0).rand(20))
    result = compare(items, items, resamples=200)
    assert (result.difference, result.low, result.high, result.p_value) == (0, 0, 0, 1)


def test_different_items_are_refused():
    with pytest.raises(ValueError, match="mean over 3 and mean over 4"):
        compare(mean_items(np.ones(3)), mean_items(np.ones(4)))
    with pytest.raises(ValueError, match=r"found \[3, 4\] units"):
        replicates([mean_items(np.ones(3)), mean_items(np.ones(4))])


def test_one_unit_has_no_interval():
    assert intervals([mean_items(np.ones(1))]) == [(None, None)]
    assert intervals([]) == []
