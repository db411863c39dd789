"""What a run says at its end when it has learned nothing."""

import decoded_case
import pytest

from espnet2_slit.bin import slit_score
from espnet2_slit.scoring.train_log import stage_warnings


def score(data, decode, output):
    words = ["--decode_dir", str(decode), "--data_dir", str(data), "--report", "false"]
    words += ["--java", "no-such-java", "--resamples", "100", "--output_dir", output]
    assert slit_score.main([str(w) for w in words]) == 0
    return (output / "RESULTS.md").read_text()


def test_a_system_that_says_one_sentence_is_told_last(tmp_path, caplog):
    data, decode = decoded_case.build(tmp_path)
    path = decode / "test_caption" / "caption" / "text"
    ids = [line.split()[0] for line in path.read_text().splitlines()]
    path.write_text("".join(f"{i} A dog sounds loudly\n" for i in ids))
    text = score(data, decode, tmp_path / "scored")
    said = "test_caption: all 32 captions are 'A dog sounds loudly'"
    assert f"- {said}" in text.split("### Warnings")[1]
    assert said in [r.message for r in caplog.records][-3:]


def test_a_score_at_chance_is_told_and_one_above_is_not(tmp_path):
    data, decode = decoded_case.build(tmp_path, quality=0)
    text = score(data, decode, tmp_path / "scored").split("### Warnings")[1]
    assert "test_class classification similarity: Accuracy % " in text
    assert "is not above chance, 12.5" in text
    assert "text_to_audio contrastive: R@1 % " in text
    (tmp_path / "better").mkdir()
    data, decode = decoded_case.build(tmp_path / "better")
    assert "### Warnings" not in score(data, decode, tmp_path / "scored")


def log(folder, epochs, first="loss_language_model=2.5"):
    folder.mkdir(exist_ok=True)
    lines = [f"[h] (trainer:1) INFO: 1epoch:train:1-50batch: iter_time=0.1, {first}"]
    for i, (train, valid) in enumerate(epochs, 1):
        lines.append(
            f"[h] (trainer:1) INFO: {i}epoch results: [train] iter_time=0.1, {train}, "
            f"time=2 seconds, total_count=9, [valid] {valid}, time=1 second, "
        )
    (folder / "train.log").write_text("\n".join(lines) + "\n")
    return folder


HEALTHY = (
    "accuracy_matching=0.853, loss_contrastive=0.94, recall_audio_to_text=0.95, "
    "recall_text_to_audio=0.94"
)
IGNORANT = (
    "accuracy_matching=0.667, loss_contrastive=4.158, recall_audio_to_text=0.016, "
    "recall_text_to_audio=0.019"
)


def test_a_representation_stage_that_knows_nothing_is_told(tmp_path):
    folder = log(tmp_path / "mine_representation", [(IGNORANT, IGNORANT)])
    (said,) = stage_warnings(folder)
    assert said.startswith(
        "stage mine_representation has learned nothing: matching accuracy 0.67"
    )
    assert "in-batch recall 0.018" in said


def test_one_objective_that_knows_nothing_is_named(tmp_path):
    half = IGNORANT.split(",")[0] + "," + HEALTHY.split(",", 1)[1]
    (said,) = stage_warnings(log(tmp_path / "x", [(half, half)]))
    assert "the matching objective has learned nothing" in said


def test_what_only_the_training_set_shows_is_not_learned(tmp_path):
    (said,) = stage_warnings(log(tmp_path / "x", [(HEALTHY, IGNORANT)]))
    assert "has learned nothing" in said


@pytest.mark.parametrize(
    ("losses", "count"), [((2.4, 1.1), 0), ((2.49, 2.495), 1), ((2.6,), 1)]
)
def test_a_language_model_loss_that_does_not_fall_is_told(tmp_path, losses, count):
    epochs = [(f"loss_language_model={x}", f"loss_language_model={x}") for x in losses]
    assert len(stage_warnings(log(tmp_path / "g", epochs))) == count


def test_a_healthy_stage_says_nothing(tmp_path):
    folder = log(tmp_path / "r", [(IGNORANT, IGNORANT), (HEALTHY, HEALTHY)])
    assert stage_warnings(folder) == []
    assert stage_warnings(tmp_path) == []
