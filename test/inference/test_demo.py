"""Tests of the demo page: what its buttons do, and the page in a headless browser."""

import csv
import http.client
import json
import os
import re
import shutil
import time
import urllib.parse

import numpy as np
import pytest
import soundfile
import tiny_system

from espnet2_slit.inference import demo, pictures
from espnet2_slit.inference.slit import SLIT, InferenceError

RATE = 16000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three clips in a folder."""
    folder = tmp_path_factory.mktemp("sounds")
    for i in range(3):
        random = np.random.default_rng(i)
        audio = 0.3 * np.sin(0.05 * (i + 1) * np.arange(RATE + 3000 * i))
        audio += 0.05 * random.standard_normal(len(audio))
        soundfile.write(folder / f"clip{i}.wav", audio.astype(np.float32), RATE)
    return folder


@pytest.fixture(scope="module")
def slit(tmp_path_factory, tiny_parts):
    return SLIT.from_pretrained(
        tiny_system.system(tmp_path_factory.mktemp("exp"), tiny_parts)
    )


@pytest.fixture(scope="module")
def page(slit, folder):
    return demo.Page(slit, folder)


def test_buttons_give_what_the_library_gives(page, slit, folder):
    clip = str(folder / "clip1.wav")
    assert page.caption(clip) == slit.caption(clip)
    assert page.ask(clip, " what is it? ") == slit.answer(clip, "what is it?")
    rows, best = page.search("a dog barks")
    assert rows[0][1] == os.path.basename(best)
    assert [row[0] for row in rows] == sorted((row[0] for row in rows), reverse=True)


@pytest.mark.parametrize("route", ["similarity", "matching", "language_model"])
def test_label_shares_keep_the_order_of_the_scores(page, slit, folder, route):
    clip = str(folder / "clip0.wav")
    shares = page.classify(clip, "dog, rain ,dog, bell", route)
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares) == list(
        slit.classify(clip, ["dog", "rain", "bell"], route=route).scores
    )


def test_first_view_works_on_the_clip_that_the_page_brings(page, slit):
    audio, rate = soundfile.read(page.example)
    assert len(audio) == 5 * rate and 0.1 < np.abs(audio).max() < 1
    assert page.caption(page.example) == slit.caption(page.example)
    rows, figure = page.moments(page.example, "a rising hum")
    hits = slit.moments("a rising hum", page.example, top_k=5)
    assert [row[0] for row in rows] == [round(hit.start_s, 2) for hit in hits]
    marked = [patch for patch in figure.axes[0].patches]
    assert len(marked) == len(hits) and figure.axes[0].get_xlim() == (0, 5)


def test_answers_may_be_given_to_choose_from(page, slit, folder):
    clip = str(folder / "clip1.wav")
    words = ["yes", "no", "two"]
    expected = slit.answer(clip, "is it loud?", candidates=words)
    assert page.ask(clip, "is it loud?", "yes, no ,two,,") == expected


def test_many_files_become_a_table(page, slit, folder, tmp_path):
    paths = [str(folder / f"clip{i}.wav") for i in range(3)]
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"RIFF")
    rows, file = page.table([*paths, str(bad)])
    captions = slit.caption(paths)
    assert rows[:3] == [[f"clip{i}.wav", text] for i, text in enumerate(captions)]
    assert rows[3][0] == "bad.wav" and "cannot be read" in rows[3][1]
    assert str(tmp_path) not in rows[3][1]
    assert os.path.basename(file) == "captions.csv"
    with open(file, newline="") as stream:
        assert list(csv.reader(stream)) == [["file", "caption"], *rows]
    rows, _ = page.table(paths[:1], "what is it?")
    assert rows == [["clip0.wav", slit.answer(paths[0], "what is it?")]]
    assert page.table(None) == ([], None)


def test_waveform_of_a_long_file_is_read_bit_by_bit(slit, tmp_path, monkeypatch):
    path = tmp_path / "long.wav"
    loud = np.zeros(3 * RATE)
    loud[2 * RATE] = 0.5
    soundfile.write(path, loud, RATE)
    whole = pictures.envelope(slit, str(path), 30)
    monkeypatch.setattr(pictures, "READ_S", 0.7)
    assert np.array_equal(pictures.envelope(slit, str(path), 30), whole)
    assert whole.argmax() == 20 and whole[20] == pytest.approx(0.5, abs=1e-3)


def test_missing_input_is_said_not_raised(page):
    assert page.caption(None) == demo.NO_AUDIO
    assert page.ask(None, "what?") == demo.NO_AUDIO
    assert page.look(None) is None
    assert page.moments(None, "a dog") == ([], None)
    assert page.search("  ") == ([], None)


def test_attention_is_drawn_by_time_and_band():
    weights = np.zeros(24)
    weights[8 * 1 + 3] = 0.5  # second moment, fourth band of eight
    picture = pictures.attention_map(weights, 8)
    assert picture.shape == (8, 3)
    assert picture[3, 1] == 1 and picture.sum() == 1


def test_picture_covers_the_clip(page, folder):
    figure = page.look(str(folder / "clip2.wav"))
    top = figure.axes[0]
    assert top.get_xlim() == (0, pytest.approx((RATE + 6000) / RATE))
    assert pictures.encoder_bands(page.slit) == 8  # BEATs


def test_spectrogram_shows_the_tone_where_it_is():
    tone = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE).astype(np.float32)
    high = np.sin(2 * np.pi * 4000 * np.arange(RATE) / RATE).astype(np.float32)
    low_bin, high_bin = (
        pictures.log_mel(audio, RATE).mean(axis=1).argmax() for audio in (tone, high)
    )
    assert 0 < low_bin < high_bin < pictures.MEL_BINS


def test_search_needs_a_representation_part(slit, folder, monkeypatch):
    monkeypatch.setattr(slit, "representation", None)
    with pytest.raises(InferenceError, match="representation part"):
        demo.Page(slit, folder)


# ---------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def url(slit, folder):
    pytest.importorskip("gradio", reason="the page needs gradio")
    blocks = demo.launch(slit, folder, port=0, block=False)
    yield blocks.local_url
    blocks.close()


def call(url, name, *data):
    """Press a button as the page does."""
    host = urllib.parse.urlparse(url).netloc
    connection = http.client.HTTPConnection(host, timeout=120)
    body = json.dumps({"data": data})
    kind = {"Content-Type": "application/json"}
    connection.request("POST", f"/gradio_api/call/{name}", body, kind)
    event = json.loads(connection.getresponse().read())["event_id"]
    connection.request("GET", f"/gradio_api/call/{name}/{event}")
    answer = connection.getresponse().read().decode()
    assert "event: complete" in answer, answer
    return json.loads(answer.split("data: ", 1)[1].splitlines()[0])


def test_page_answers_over_http(url, page):
    rows, best = call(url, "search", "a dog barks")
    expected, path = page.search("a dog barks")
    assert rows["data"] == expected
    assert os.path.basename(best["path"]) == os.path.basename(path)


def test_first_view_answers_over_http(url, slit, page):
    """What the page shows at once, with nothing given by the visitor."""
    from gradio_client import Client, handle_file

    client, clip = Client(url, verbose=False), handle_file(page.example)
    started = time.monotonic()
    assert client.predict(clip, api_name="/caption") == slit.caption(page.example)
    rows, picture = client.predict(clip, "a rising hum", api_name="/moments")
    assert len(rows["data"]) > 0 and os.path.getsize(picture) > 1000
    assert time.monotonic() - started < 10


def test_every_input_and_result_has_a_label(url):
    connection = http.client.HTTPConnection(urllib.parse.urlparse(url).netloc)
    connection.request("GET", "/config")
    parts = json.loads(connection.getresponse().read())["components"]
    kinds = {"textbox", "audio", "file", "radio", "label", "image", "dataframe"}
    shown = [part["props"] for part in parts if part["type"] in kinds]
    assert len(shown) >= 15 and all(props.get("label") for props in shown)


def test_page_gives_out_nothing_beside_the_folder(url):
    host = urllib.parse.urlparse(url).netloc
    connection = http.client.HTTPConnection(host, timeout=60)
    connection.request("GET", f"/gradio_api/file={os.path.abspath(__file__)}")
    assert connection.getresponse().status in (403, 404)


BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
# A browser that stays by itself and takes a file for a microphone.
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
)  # fmt: skip


@pytest.fixture
def tab(url, folder):
    """The page in a headless browser; a request that leaves the machine is a fault."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="driving a browser needs playwright"
    )
    if BROWSER is None:
        pytest.skip("no chromium to open the page with")
    microphone = f"--use-file-for-fake-audio-capture={folder / 'clip2.wav'}"
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(
            executable_path=BROWSER, args=[*FLAGS, microphone]
        )
        page = browser.new_page(viewport={"width": 1000, "height": 900})
        page.set_default_timeout(120_000)
        left = []
        page.on("request", lambda request: left.append(request.url))
        page.goto(url)
        page.get_by_role("heading", name="describe, question and search").wait_for()
        yield page
        browser.close()
    local = ("http://127.0.0.1", "http://localhost", "data:", "blob:")
    assert [request for request in left if not request.startswith(local)] == []


def press(tab, name, button):
    """Open a tab of the page and press its button."""
    tab.get_by_role("tab", name=name, exact=True).click()
    tab.get_by_role("button", name=button, exact=True).click()


def text_of(tab, label):
    """What stands in a text box, once something does."""
    box = tab.get_by_label(label, exact=True)
    box.evaluate_handle("box => box")  # is there
    tab.wait_for_function("box => box.value", arg=box.element_handle())
    return box.input_value()


def test_visitor_uploads_and_asks_everything(tab, slit, page, folder):
    clip = folder / "clip1.wav"
    tab.get_by_label("Clear").first.click()  # the clip that the page brings
    tab.locator("input[type=file]").first.set_input_files(clip)
    tab.get_by_text("clip1.wav").or_(tab.locator("#waveform")).first.wait_for()
    tab.get_by_role("button", name="Play").first.wait_for()

    press(tab, "Caption", "Describe")
    assert text_of(tab, "Caption").strip() == slit.caption(clip).strip()

    tab.get_by_role("tab", name="Ask", exact=True).click()
    tab.get_by_label("Question", exact=True).fill("what is it?")
    tab.get_by_role("button", name="Ask", exact=True).click()
    assert text_of(tab, "Answer").strip() == slit.answer(clip, "what is it?").strip()

    tab.get_by_role("tab", name="Classify", exact=True).click()
    tab.get_by_label("Labels, separated by commas").fill("wind, a bell, thunder")
    tab.get_by_role("button", name="Classify", exact=True).click()
    best = slit.classify(clip, ["wind", "a bell", "thunder"]).label
    tab.get_by_role("heading", name=best).or_(
        tab.get_by_test_id("label-output-value").filter(has_text=best)
    ).first.wait_for()

    press(tab, "Look", "Show where the queries look")
    picture = tab.get_by_alt_text("Spectrogram")
    picture.wait_for()
    assert picture.evaluate("image => image.naturalWidth") > 500

    tab.get_by_role("tab", name="Search", exact=True).click()
    tab.get_by_label("Sound to look for").fill("a dog barks")
    tab.get_by_role("button", name="Search", exact=True).click()
    for _, name in page.search("a dog barks")[0]:
        tab.get_by_text(name, exact=True).filter(visible=True).first.wait_for()


def test_visitor_records(tab):
    tab.get_by_role("button", name="Record audio").or_(
        tab.get_by_label("Record audio")
    ).first.click()
    tab.get_by_role("button", name="Record", exact=True).first.click()
    tab.wait_for_timeout(1500)
    tab.get_by_role("button", name="Stop", exact=True).first.click()
    tab.get_by_role("button", name="Play").first.wait_for()
    press(tab, "Caption", "Describe")
    assert text_of(tab, "Caption") != demo.NO_AUDIO


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_cut_off_or_without_a_name(tab, width):
    """On a desk and on a telephone, what a screen reader would read of each tab."""
    tab.set_viewport_size({"width": width, "height": 844})
    tab.get_by_role("tab").first.wait_for()
    names = [one.inner_text() for one in tab.get_by_role("tab").all()]
    assert names == ["Caption", "Ask", "Many files", "Classify", "Moments", "Look",
                     "Search"]  # fmt: skip
    kinds = "button|textbox|radio|tab|link|grid|checkbox|slider|combobox"
    for name in names:
        tab.get_by_role("tab", name=name, exact=True).click()
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        read = tab.locator("main").aria_snapshot()
        controls = re.findall(rf"^\s*- '?({kinds})\b(.*)", read, re.MULTILINE)
        assert len(controls) > 15
        assert [kind for kind, rest in controls if '"' not in rest] == []


def test_keyboard_alone_asks_and_shows_where_it_is(tab, slit, page):
    tab.wait_for_load_state("networkidle")
    reached = []
    while "Describe" not in reached and len(reached) < 40:
        tab.keyboard.press("Tab")
        focus = tab.locator(":focus")
        reached.append(focus.get_attribute("aria-label") or focus.inner_text())
        tab.wait_for_function(  # colours change in 0.2 s
            """e => getComputedStyle(e).outlineWidth == "3px"
                && getComputedStyle(e).outlineColor == "rgb(37, 99, 235)" """,
            arg=focus.element_handle(),
            timeout=10_000,
        )
    assert reached.index("Play") < reached.index("Record audio") < reached.index("Ask")
    tab.keyboard.press("Enter")
    assert text_of(tab, "Caption").strip() == slit.caption(page.example).strip()
