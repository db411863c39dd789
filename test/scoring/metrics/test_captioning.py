import json
import math
import stat

import numpy as np
import pytest
from caption_case import hypotheses, references

from espnet2_slit.scoring.metrics.bootstrap import (
    AGGREGATES,
    Items,
    NotComputed,
    meteor_from_stats,
    meteor_items,
)
from espnet2_slit.scoring.metrics.captioning import (
    CaptionOptions,
    longest_common_subsequence,
    ngram_scores,
    rouge_l,
    score_captions,
)
from espnet2_slit.scoring.metrics.fluency import FluencyModels
from espnet2_slit.scoring.metrics.java_scorers import (
    CORENLP_JARS,
    MeteorScorer,
    spice_scores,
)
from espnet2_slit.scoring.metrics.tokenization import PTB_JAR, package_file, tokenize

# Printed by pycocoevalcap 1.2 (Java PTB tokens) for the captions of caption_case.
COCO = {
    "bleu_1": 0.7402067033511756,
    "bleu_2": 0.6272766667611767,
    "bleu_3": 0.5321946295030832,
    "bleu_4": 0.4562895063895631,
    "rouge_l": 0.6400733461496626,
    "cider_d": 2.6459143358934236,
    "meteor": 0.34556843592534686,
}
needs_java = pytest.mark.skipif(
    bool(MeteorScorer.needs()) or package_file(PTB_JAR) is None,
    reason="needs Java and pycocoevalcap",
)


@pytest.fixture(scope="module")
def tokens():
    flat = hypotheses + [r for refs in references for r in refs]
    found, _ = tokenize(flat)
    rest = iter(found[len(hypotheses) :])
    return found[: len(hypotheses)], [[next(rest) for _ in refs] for refs in references]


@pytest.fixture(scope="module")
def java_options():
    """METEOR takes seconds to start: one for all tests."""
    options = CaptionOptions(spice=False)
    yield options
    options.close()


@needs_java
def test_scores_are_those_of_pycocoevalcap(java_options):
    result = score_captions(hypotheses, references, java_options)
    assert result.tokenizer == "ptb_java"
    assert result.empty == 2
    for metric, value in COCO.items():
        assert result.scores[metric].value == pytest.approx(value, abs=1e-12), metric


@needs_java
def test_meteor_statistics_give_meteors_own_scores(tokens, java_options):
    """The intervals rest on our formula; METEOR's EVAL is the reference."""
    scorer = java_options.meteor_scorer()
    hyp = [" ".join(t) for t in tokens[0]]
    refs = [[" ".join(t) for t in r] for r in tokens[1]]
    stats = scorer.stats(hyp, refs)
    own = scorer.evaluate(stats)
    items = meteor_items(stats)
    np.testing.assert_allclose(meteor_from_stats(items.stats), own[:-1], atol=1e-12)
    assert items.value == pytest.approx(own[-1], abs=1e-12)
    assert own[6] == pytest.approx(1.0), "a caption equal to a reference"


def test_every_caption_scores_as_in_pycocoevalcap(tokens):
    cider = pytest.importorskip("pycocoevalcap.cider.cider")
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge")
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu")
    hyp, refs = tokens
    theirs_hyp = {i: [" ".join(t)] for i, t in enumerate(hyp)}
    theirs_ref = {i: [" ".join(t) for t in r] for i, r in enumerate(refs)}
    ours = ngram_scores(hyp, refs)
    _, per_clip = cider.Cider().compute_score(theirs_ref, theirs_hyp)
    np.testing.assert_allclose(ours["cider_d"], per_clip, atol=1e-12)
    _, per_clip = rouge.Rouge().compute_score(theirs_ref, theirs_hyp)
    np.testing.assert_allclose(rouge_l(hyp, refs), per_clip, atol=1e-12)
    _, per_clip = bleu.Bleu(4).compute_score(theirs_ref, theirs_hyp, verbose=0)
    each = AGGREGATES["bleu_4"](ours["bleu"], np.eye(len(hyp)))
    np.testing.assert_allclose(each, per_clip[3], atol=1e-9)


def test_bleu_by_hand():
    hyp = ["a dog barks at a cat".split()]
    refs = ["the dog barks at the cat".split(), "a dog barks".split()]
    scores = ngram_scores(hyp, [refs])["bleu"]
    # 1-grams: a (clipped at 1 of 2), dog, barks, at, cat = 5 of 6;
    # 2-grams: "a dog", "dog barks", "barks at" = 3 of 5.
    assert scores[0, :2].tolist() == [5, 3]
    assert scores[0, 4:6].tolist() == [6, 5]
    assert scores[0, 8:].tolist() == [6, 6], "the closest reference has 6 words"
    assert Items("bleu_2", scores).value == pytest.approx(math.sqrt(5 / 6 * 3 / 5))


def test_brevity_penalty_by_hand():
    scores = ngram_scores([["a", "dog"]], [["a dog barks now".split()]])["bleu"]
    assert Items("bleu_1", scores).value == pytest.approx(math.exp(1 - 4 / 2))


def test_rouge_l_by_hand():
    hyp, ref = "a dog barks loudly".split(), "a big dog barks".split()
    precision, recall, beta = 3 / 4, 3 / 4, 1.2
    expected = (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    assert rouge_l([hyp], [[ref]])[0] == pytest.approx(expected)


def test_longest_common_subsequence_agrees_with_the_table():
    generator = np.random.RandomState(0)
    for _ in range(50):
        a, b = (
            [str(v) for v in generator.randint(4, size=generator.randint(9))]
            for _ in "ab"
        )
        table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1, j + 1] = (
                    table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
                )
        assert longest_common_subsequence(a, b) == table[-1, -1]


def test_cider_d_by_hand_for_equal_captions():
    """Equal to its reference, no word shared with other clips: 10 times cosine 1."""
    captions = ["one two three four".split(), "five six seven eight".split()]
    scores = ngram_scores(captions, [[c] for c in captions])["cider_d"]
    np.testing.assert_allclose(scores, [10, 10])


def test_without_java_everything_that_can_be_is_computed():
    options = CaptionOptions(java="no-such-java")
    result = score_captions(hypotheses, references, options)
    assert result.tokenizer == "python"
    for metric in ("bleu_1", "bleu_4", "rouge_l", "cider_d"):
        # Two of the forty captions are tokenised otherwise.
        assert result.scores[metric].value == pytest.approx(COCO[metric], abs=0.02)
    for metric in ("meteor", "spice", "spider"):
        assert isinstance(result.scores[metric], NotComputed)
        assert "Java" in result.scores[metric].needs


def test_one_clip_has_no_cider_d():
    result = score_captions(
        ["a dog barks"],
        [["a dog barks"]],
        CaptionOptions(tokenizer="python", meteor=False),
    )
    assert result.scores["bleu_1"].value == pytest.approx(1.0)
    assert "two or more clips" in result.scores["cider_d"].needs


def test_only_empty_captions_are_refused():
    with pytest.raises(ValueError, match="2 of 2 hypotheses empty"):
        score_captions(["", " . "], [["a"], ["b"]], CaptionOptions(tokenizer="python"))


def test_a_clip_without_reference_is_refused():
    with pytest.raises(ValueError, match="none for 1 clips, first at position 1"):
        score_captions(["a", "b"], [["a"], []])


def test_large_vocabulary_does_not_overflow():
    """Numbers of n-grams stay exact where 16 bits a word would not do."""
    words = [f"w{i}" for i in range(70_000)]
    hyp = [words[i : i + 7] for i in range(0, 70_000, 7)]
    scores = ngram_scores(hyp, [[h] for h in hyp])
    np.testing.assert_allclose(scores["cider_d"], 10)
    assert Items("bleu_4", scores["bleu"]).value == pytest.approx(1.0)


# ------------------------------------------------------------------ programs and models


def _fake_java(folder, body):
    path = folder / "java"
    path.write_text(
        "#!/usr/bin/env python3\nimport json, sys\n"
        "if sys.argv[1] == '-version':\n"
        "    print('openjdk version \"11.0.2\"', file=sys.stderr)\n"
        f"else:\n{body}"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def _spice_jar(folder):
    (folder / "lib").mkdir()
    for name in CORENLP_JARS:
        (folder / "lib" / name).write_text("")
    (folder / "spice-1.0.jar").write_text("")
    return str(folder / "spice-1.0.jar")


def test_spice_output_is_read_in_the_order_of_the_clips(tmp_path):
    body = (
        "    source = json.load(open(sys.argv[4]))\n"
        "    out = [{'image_id': i['image_id'], 'scores': {'All': {'f':\n"
        "            len(i['test'].split()) / 10}}} for i in reversed(source)]\n"
        "    json.dump(out, open(sys.argv[sys.argv.index('-out') + 1], 'w'))\n"
    )
    java, jar = _fake_java(tmp_path, body), _spice_jar(tmp_path)
    options = CaptionOptions(tokenizer="python", meteor=False, java=java, spice_jar=jar)
    result = score_captions(
        ["a dog", "rain falls now"], [["a dog"], ["rain falls here"]], options
    )
    assert result.scores["spice"].stats[:, 0].tolist() == [0.2, 0.3]
    cider = result.scores["cider_d"].value
    assert result.scores["spider"].value == pytest.approx((cider + 0.25) / 2)


def test_spice_failure_is_reported_with_what_it_said(tmp_path):
    body = (
        "    print('java.lang.reflect.InaccessibleObjectException: no', "
        "file=sys.stderr)\n    sys.exit(1)\n"
    )
    found = spice_scores(
        ["a"], [["a"]], _spice_jar(tmp_path), _fake_java(tmp_path, body)
    )
    assert isinstance(found, NotComputed)
    assert "Java 8 or 11 (found 11" in found.needs
    assert "InaccessibleObjectException: no" in found.needs


def test_spice_names_the_missing_jars(tmp_path):
    jar = tmp_path / "spice-1.0.jar"
    jar.write_text("")
    found = spice_scores(["a"], [["a"]], str(jar), _fake_java(tmp_path, "    pass\n"))
    assert all(name in found.needs for name in CORENLP_JARS)


@pytest.fixture(scope="module")
def fense_files(tmp_path_factory):
    """A random sentence encoder and a random detector, saved as the real ones are."""
    import tiny
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("fense")
    base = folder / "base"
    tiny.bert_tokenizer(base)
    vocab_size = len(transformers.AutoTokenizer.from_pretrained(base))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    transformers.BertModel(config).save_pretrained(base)
    (base / "1_Pooling").mkdir()
    pooling = {"pooling_mode_mean_tokens": True}
    (base / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    encoder = transformers.BertModel(config)
    state = {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    state["encoder.embeddings.position_ids"] = torch.arange(512)[None]
    state["clf.weight"] = torch.randn(6, 16)
    state["clf.bias"] = torch.zeros(6)
    checkpoint = folder / "echecker.ckpt"
    saved = {"model_type": str(base), "num_classes": 6, "state_dict": state}
    torch.save(saved, checkpoint)
    return base, checkpoint


def test_fense_is_similarity_times_penalty(fense_files):
    import torch
    import transformers

    base, checkpoint = fense_files
    captions = ["a dog barks twice", "loud rain falls on a roof", "a bell rings"]
    wanted = [["a dog barks", "dog barks twice"], ["rain falls"], ["a car passes by"]]
    options = CaptionOptions(
        tokenizer="python",
        meteor=False,
        spice=False,
        sbert_model=str(base),
        fluency_model=str(checkpoint),
    )
    models = options.fluency_models()
    # Make the detector's answers differ: its threshold is passed by one caption only.
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    with torch.no_grad():
        first = [
            models.detector(**tokenizer(c, return_tensors="pt")).last_hidden_state[0, 0]
            for c in captions
        ]
        wanted_logits = torch.tensor([-9.0, 9.0, -9.0])
        models.classifier.weight[-1] = torch.linalg.pinv(torch.stack(first)) @ (
            wanted_logits
        )
    result = score_captions(captions, wanted, options)
    assert result.scores["fluency_error_rate"].stats[:, 0].tolist() == [0, 1, 0]

    encoder = transformers.AutoModel.from_pretrained(base).eval()

    def embed(text):
        with torch.no_grad():
            hidden = encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state
        return torch.nn.functional.normalize(hidden[0].mean(dim=0), dim=0)

    cosine = [
        float(np.mean([float(embed(c) @ embed(r)) for r in refs]))
        for c, refs in zip(captions, wanted, strict=True)
    ]
    expected = np.array(cosine) * [1, 0.1, 1]
    np.testing.assert_allclose(result.scores["fense"].stats[:, 0], expected, atol=1e-5)
    assert isinstance(result.scores["spider_fl"], NotComputed), "SPICE is missing"


def test_fense_needs_are_named():
    options = CaptionOptions(tokenizer="python", meteor=False, spice=False)
    result = score_captions(["a dog", "rain"], [["a dog"], ["rain"]], options)
    assert "--sbert_model" in result.scores["fense"].needs
    assert "--fluency_model" in result.scores["spider_fl"].needs
    assert "SPICE" in result.scores["spider_fl"].needs


def test_detector_that_does_not_fit_is_refused(fense_files, tmp_path):
    import torch

    base, checkpoint = fense_files
    saved = torch.load(checkpoint, weights_only=True)
    del saved["state_dict"]["clf.bias"]
    torch.save(saved, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match="clf.bias.*--fluency_base"):
        FluencyModels("", str(tmp_path / "bad.ckpt"))
