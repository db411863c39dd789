"""Instruction sets: wordings, questions about labels and captions, balance, mixing."""

import numpy as np
import pytest
import trees

from espnet2_slit.common.templates import TEMPLATES
from espnet2_slit.data import kaldi_dir, validate, writer
from espnet2_slit.data.corpora import CorpusError
from espnet2_slit.data.corpora.audiocaps import AudioCaps
from espnet2_slit.data.corpora.clotho_aqa import ClothoAQA
from espnet2_slit.data.corpora.esc50 import ESC50
from espnet2_slit.data.corpora.fsd50k import FSD50K
from espnet2_slit.data.corpora.instruction import (
    MULTI_LABEL,
    Wording,
    balanced_copies,
    caption_labels,
    join,
    mix,
    read_utterances,
)


@pytest.fixture
def sets(tree, build):
    """A caption, a question and two label sets."""
    made = {
        "captions": build(AudioCaps(tree("audiocaps")), "train")[0],
        "questions": build(ClothoAQA(tree("clotho_aqa")), "train")[0],
        "labels": build(ESC50(tree("esc50")), "train")[0],
        "many_labels": build(FSD50K(tree("fsd50k")), "train")[0],
    }
    return made


def test_every_task_gets_an_instruction_of_its_own(sets, tmp_path, column):
    out = tmp_path / "mixed"
    counts = mix(sets.values(), out, Wording(TEMPLATES))
    assert counts == {
        "audiocaps_caption": 5,
        "clotho_aqa_question": 3,
        "esc50_class": 18,
        "fsd50k_class": 1,
    }
    assert validate.validate(out) == 27
    asked, tasks = column(out, "instruction"), column(out, "utt2task")
    for sample, task in tasks.items():
        if task == "caption":
            assert asked[sample] in TEMPLATES["caption"]
        elif sample.startswith("esc50"):
            assert asked[sample] in TEMPLATES["classification"]
        elif sample.startswith("fsd50k"):
            assert asked[sample] in MULTI_LABEL
    questions = [q for s, q in asked.items() if s.startswith("clotho_aqa")]
    assert any('Who says "hello", if anyone?' in question for question in questions)
    assert not any("{" in question for question in asked.values())
    assert len(set(asked.values())) > 6  # several wordings are used


def test_the_same_set_comes_out_again(sets, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        mix(sets.values(), tmp_path / name, Wording(TEMPLATES, 2, 1, seed))
    a, b, c = ((tmp_path / n / "instruction").read_text() for n in "abc")
    assert a == b != c


def test_presence_questions_are_answered_rightly(sets, tmp_path, column):
    out = tmp_path / "mixed"
    counts = mix([sets["labels"], sets["many_labels"]], out, Wording(TEMPLATES, 20))
    assert counts["esc50_presence"] == 360
    answers, asked = column(out, "text"), column(out, "instruction")
    labels = ("dog", "crackling fire", "can opening")
    right = 0
    for sample in answers:
        if "presence" not in sample:
            continue
        own = answers[sample.partition("-presence")[0] + "-class"].split("; ")
        named = [n for n in (*labels, "Bark", "Electric guitar") if n in asked[sample]]
        if not named:
            named = ["Guitar"]
        assert answers[sample] == ("yes" if named[0] in own else "no")
        right += answers[sample] == "yes"
    assert 150 < right < 230  # half of 380


def test_verification_never_calls_a_right_caption_wrong(sets, tmp_path, column):
    captions = tmp_path / "label_captions"
    caption_labels(sets["labels"], captions)
    out = tmp_path / "mixed"
    mix([captions], out, Wording(TEMPLATES, verification=20))
    answers, asked = column(out, "text"), column(out, "instruction")
    labels = ("dog", "crackling fire", "can opening")
    wrong = 0
    for sample, answer in answers.items():
        if "verification" not in sample:
            continue
        said = answers[sample.partition("-verification")[0] + "-caption"].lower()
        (label,) = [name for name in labels if name in said]
        assert (label in asked[sample].lower()) == (answer == "yes")
        wrong += answer == "no"
    assert 140 < wrong < 220  # half of 360


def test_a_label_within_another_word_is_not_that_label(sets, tmp_path, column):
    captions = tmp_path / "label_captions"
    caption_labels(sets["labels"], captions)
    labels = captions / "labels"
    labels.write_text("dog\nbulldog\n")
    text = column(captions, "text")
    said = {id: ("A bulldog.", "A dog.")[i % 2] for i, id in enumerate(text)}
    lines = (f"{id} {caption}\n" for id, caption in said.items())
    (captions / "text").write_text("".join(lines))
    mix([captions], tmp_path / "mixed", Wording(TEMPLATES, verification=20))
    answers = column(tmp_path / "mixed", "text")
    wrong = [s for s, a in answers.items() if "verification" in s and a == "no"]
    assert 140 < len(wrong) < 220  # half of 360: none but these two could be wrong


def test_captions_of_labels_are_sentences(sets, tmp_path, column):
    out = tmp_path / "captions"
    assert caption_labels(sets["many_labels"], out) == 1
    (caption,) = column(out, "text").values()
    assert "Electric guitar and Guitar" in caption
    assert caption[0].isupper() and caption[-1] == "."
    assert validate.validate(out) == 1
    assert "made from labels" in kaldi_dir.read_set(out)["notes"]


def test_equal_labels_have_equal_captions(sets, tmp_path, column):
    # other words of one label would be false negatives of stage 1
    caption_labels(sets["labels"], tmp_path / "captions")
    labels, captions = column(sets["labels"], "text"), column(
        tmp_path / "captions", "text"
    )
    assert len(set(captions.values())) == len(set(labels.values())) < len(captions)


def test_captions_of_labels_can_be_scored(tree, build, tmp_path, column):
    test, _ = build(ESC50(tree("esc50")), "test")
    caption_labels(test, tmp_path / "captions")
    assert validate.validate(tmp_path / "captions") == 6
    facts = kaldi_dir.read_set(tmp_path / "captions")
    assert facts["tasks"] == ["caption", "retrieval"]


@pytest.mark.parametrize(("alpha", "ratio"), [(1.0, 100), (0.5, 10), (0.0, 1)])
def test_balanced_shares_follow_a_power_of_the_size(alpha, ratio):
    sizes = {"large": 10_000, "small": 100}
    copies = balanced_copies(sizes, alpha, 20_200)
    written = {name: copies[name] * sizes[name] for name in sizes}
    assert written["large"] / written["small"] == pytest.approx(ratio)
    assert sum(written.values()) == pytest.approx(20_200)


def test_a_balanced_list_repeats_small_and_thins_large_categories(sets, tmp_path):
    sources = [sets["labels"], sets["questions"]]
    counts = mix(sources, tmp_path / "even", Wording(TEMPLATES), alpha=0, size=60)
    assert counts["clotho_aqa_question"] == 30  # three samples, ten times
    assert 25 < counts["esc50_class"] < 36  # eighteen samples, drawn
    assert validate.validate(tmp_path / "even") == sum(counts.values())


def test_espnet_samples_categories_by_the_root_of_their_size(tmp_path):
    from espnet2.samplers.category_power_sampler import CategoryPowerSampler

    ids = [f"large{n:04d}" for n in range(900)] + [f"small{n:04d}" for n in range(100)]
    trees.lines(tmp_path / "utt2category", [f"{i} {i[:5]}" for i in ids])
    trees.lines(tmp_path / "shape", [f"{i} 100" for i in ids])
    assert writer.write_categories(tmp_path) == 2
    sampler = CategoryPowerSampler(
        batch_bins=1000,
        shape_files=[str(tmp_path / "shape")],
        upsampling_factor=0.5,
        dataset_scaling_factor=4.0,
        category2utt_file=str(tmp_path / "category2utt"),
    )
    drawn = np.concatenate([np.array(batch) for batch in sampler])
    share = np.mean([str(name).startswith("large") for name in drawn])
    assert share == pytest.approx(3 / 4, abs=0.03)  # sqrt(900) : sqrt(100)


def test_joined_sets_keep_their_samples_and_may_leave_some_out(sets, tmp_path, column):
    sources = [sets["captions"], sets["labels"]]
    skip = {"audiocaps_stereo--000_10-00"}
    assert join(sources, tmp_path / "joined", skip) == 22
    assert validate.validate(tmp_path / "joined") == 22
    assert not skip & set(column(tmp_path / "joined", "text"))
    with pytest.raises(CorpusError, match="two sources have the sample"):
        join([sets["labels"], sets["labels"]], tmp_path / "twice")
    assert not (tmp_path / "twice/set.json").exists()


def test_segments_survive_beside_sets_without_them(sets, tmp_path, column):
    cut = tmp_path / "cut"
    cut.mkdir()
    trees.lines(cut / "wav.scp", [f"rec {trees.sound(tmp_path / 'rec.wav', 3)}"])
    trees.lines(cut / "segments", ["one rec 0 1.25", "two rec 1.25 2.5"])
    trees.lines(cut / "text", ["one A dog", "two A cat"])
    mix([cut, sets["labels"]], tmp_path / "mixed", Wording(TEMPLATES))
    assert validate.validate(tmp_path / "mixed") == 20
    segments = column(tmp_path / "mixed", "segments")
    assert segments["one-caption"] == "rec 0 1.25"
    assert [s.split()[1:] for u, s in segments.items() if "esc50" in u][0] == [
        "0",
        "-1",
    ]
    assert [u.segment for u in read_utterances(cut)][1] == ("rec", 1.25, 2.5)


def test_unsorted_and_torn_directories_are_refused(tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    trees.lines(folder / "wav.scp", ["b x.wav", "a x.wav"])
    trees.lines(folder / "text", ["a one", "b two"])
    with pytest.raises(CorpusError, match="slit_data fix"):
        list(read_utterances(folder))
    trees.lines(folder / "wav.scp", ["a x.wav"])
    with pytest.raises(CorpusError, match="`text` has b, wav.scp has not"):
        list(read_utterances(folder))
