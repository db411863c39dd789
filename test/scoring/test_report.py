import html.parser
import re
import shutil
import subprocess

import decoded_case
import numpy as np
import pytest

from espnet2_slit.bin import slit_score
from espnet2_slit.scoring import examples
from espnet2_slit.scoring.examples import read_clip
from espnet2_slit.scoring.train_log import read_training_log, training_stages

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Page(html.parser.HTMLParser):
    """Collects tags and visible text, and that every element is closed."""

    VOID = {"meta", "br", "link", "img", "input"}

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()
        elif tag in self.open and tag not in ("li", "td", "tr"):
            raise AssertionError(f"</{tag}> closes {self.open[-3:]}")

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """A report with everything in it, from ids and texts that are unkind to HTML."""
    root = tmp_path_factory.mktemp("report")
    data, decode = decoded_case.build(root, attention=True)
    for stage in ("representation", "generative", "instruction"):
        decoded_case.train_log(root / "exp" / f"case_{stage}")
    path = decode / "test_caption" / "caption" / "text"
    lines = path.read_text().splitlines()
    lines = [f"{line.split()[0]} <script>alert('x')</script> & co" for line in lines]
    path.write_text("\n".join(lines) + "\n")
    words = ["--decode_dir", str(decode), "--data_dir", str(data), "--resamples", "50"]
    words += ["--java", "no-such-java", "--system", "<b>ours</b>"]
    assert slit_score.main(words) == 0
    return decode / "report" / "index.html"


@pytest.fixture(scope="module")
def page(page_file):
    return Page(page_file.read_text(encoding="utf-8"))


def test_page_has_all_sections(page):
    text = " ".join(page.text)
    for title in (
        "Scores",
        "Learning curves",
        "case_representation",
        "case_generative",
        "case_instruction",
        "Captions beside references",
        "Text-to-audio retrieval",
        "Questions and answers",
        "Confusion matrices",
        "Attention of the queries",
        "Not computed",
    ):
        assert title in text, title
    labels = [a.get("aria-label", "") for t, a in page.tags if t == "figure"]
    for start in (
        "Captioning",
        "Retrieval",
        "Learning curves",
        "Confusion",
        "Attention",
    ):
        assert any(label.startswith(start) for label in labels), start


def test_page_is_one_file(page):
    """No script, nothing from elsewhere: it can be mailed."""
    assert not [t for t, _ in page.tags if t in ("script", "link", "iframe")]
    sources = [a[n] for _, a in page.tags for n in ("src", "href") if a.get(n)]
    sources += [a["xlink:href"] for _, a in page.tags if a.get("xlink:href")]
    assert {s.split(":")[0] if s.startswith("data:") else s[0] for s in sources} <= {
        "data",
        "#",
    }


def test_texts_are_escaped(page_file, page):
    assert "<script" not in page_file.read_text(encoding="utf-8")
    assert "<script>alert('x')</script> & co" in page.text
    assert "<b>ours</b>" in page.text


def test_audio_is_embedded_and_playable(page):
    import base64
    import io

    import soundfile

    players = [a["src"] for t, a in page.tags if t == "audio"]
    assert len(players) > 20
    samples, rate = soundfile.read(
        io.BytesIO(base64.b64decode(players[0].split("base64,")[1]))
    )
    assert rate == 16000 and len(samples) >= 4000 and np.abs(samples).max() > 0.2


def test_seconds_of_embedded_audio_are_limited(tmp_path, monkeypatch):
    import soundfile

    clips = {}
    for name in "abc":
        path = tmp_path / f"{name}.wav"
        soundfile.write(path, np.zeros(16000), 16000)
        clips[name] = (path, 0.0, None)
    monkeypatch.setattr(examples, "MAX_EMBEDDED_S", 1.5)
    players = examples.Players({"test": clips})
    made = [players.html("test", name) for name in "abca"]
    assert made[0] == made[3]  # each clip once
    assert [text.startswith("<audio") for text in made] == [True, True, False, True]
    assert "left out to keep the page small" in made[2]


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_page_renders_in_a_browser(page_file, tmp_path):
    picture = tmp_path / "page.png"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu"]
    command += [
        "--disable-background-networking",
        f"--user-data-dir={tmp_path}/profile",
    ]
    command += ["--window-size=1150,3000", f"--screenshot={picture}"]
    command += [page_file.resolve().as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    from matplotlib import image

    pixels = image.imread(picture)[..., :3]
    assert pixels.shape[:2] == (3000, 1150)
    bar = np.array([0x2A, 0x6F, 0x97]) / 255  # the first system's colour
    assert (np.abs(pixels - bar).max(axis=-1) < 0.02).sum() > 2000
    assert (pixels.min(axis=-1) < 0.9).mean() > 0.02, "not an empty page"


# ------------------------------------------------------------------------------- curves


def test_log_of_espnets_reporter_is_read(tmp_path):
    """Written by ESPnet's own Reporter, so that a change of its form is noticed."""
    reporter_module = pytest.importorskip("espnet2.train.reporter")
    reporter = reporter_module.Reporter()
    lines = []
    for epoch in (1, 2):
        reporter.set_epoch(epoch)
        for key in ("train", "valid"):
            with reporter.observe(key) as sub:
                for step in range(2):
                    stats = {"loss": 1.0 / epoch + step, "accuracy": 0.25 * epoch}
                    sub.register({**stats, "none": None}, weight=2)
                    if key == "train":
                        sub.register({"iter_time": 0.1, "optim0_lr0": 1e-5})
                    sub.next()
        lines.append(f"[host] 2025 (trainer:394) INFO: {reporter.log_message()}")
    (tmp_path / "train.log").write_text("\n".join(lines))
    stage = read_training_log(tmp_path)
    assert set(stage.curves) == {"loss", "accuracy", "none"}
    assert stage.curves["loss"]["train"] == {1: 1.5, 2: 1.0}
    assert stage.curves["accuracy"]["valid"] == {1: 0.25, 2: 0.5}


def test_resumed_training_joins_its_logs(tmp_path):
    decoded_case.train_log(tmp_path, epochs=3)
    (tmp_path / "train.log").rename(tmp_path / "train.1.log")
    decoded_case.train_log(tmp_path, epochs=2, first=3)
    stage = read_training_log(tmp_path)
    assert list(stage.curves["loss"]["train"]) == [1, 2, 3, 4]
    assert set(stage.curves) == {"loss", "loss_contrastive", "accuracy"}


def test_missing_and_unfinished_logs_are_said(tmp_path):
    assert "no train.log" in read_training_log(tmp_path).note
    (tmp_path / "train.log").write_text("# Started\n")
    assert "no finished epoch" in read_training_log(tmp_path).note


def test_sister_stages_are_found(tmp_path):
    for stage in ("representation", "instruction"):
        decoded_case.train_log(tmp_path / f"mini_{stage}")
    (tmp_path / "other_instruction").mkdir()
    stages = training_stages(tmp_path / "mini_instruction" / "decode_a")
    assert [s.name for s in stages] == ["mini_representation", "mini_instruction"]
    assert training_stages(None, None) == []


def test_long_clips_are_cut_and_crops_are_kept(tmp_path):
    import soundfile

    path = tmp_path / "long.wav"
    samples = np.arange(48000 * 12, dtype=np.float32) / (48000 * 12)
    soundfile.write(path, np.stack([samples, samples], axis=1), 48000)
    clip, rate, cut = read_clip(path)
    assert (rate, cut) == (16000, True) and len(clip) == 160000
    clip, rate, cut = read_clip(path, 3.0, 4.0)
    assert not cut and len(clip) == 16000
    assert clip[8000] == pytest.approx(3.5 / 12, abs=1e-3)


def test_figures_do_not_share_clip_paths(page_file):
    """One id for two shapes would cut one figure with the other's."""
    text = page_file.read_text(encoding="utf-8")
    clips = re.findall(r'<clipPath id="(\w+)"', text)
    assert len(clips) == len(set(clips))
