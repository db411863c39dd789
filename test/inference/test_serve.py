"""The HTTP server, a real uvicorn on loopback: results of single calls, and limits."""

import base64
import contextlib
import io
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
from tiny_system import RATE, SHORT

from espnet2_slit.inference.batching import Batcher, QueueFull
from espnet2_slit.inference.serve import Limits, build_app

httpx = pytest.importorskip("httpx", reason="clients need httpx")
uvicorn = pytest.importorskip("uvicorn", reason="the server needs uvicorn")
pytest.importorskip("fastapi", reason="the server needs FastAPI")


@contextlib.contextmanager
def server(slit, **options):
    """A running server: (its address, uvicorn's Server, the application)."""
    app = build_app(slit, **options)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}", running, app
    finally:
        running.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def url(slit, clips):
    limits = Limits(megabytes=2, audio_s=60)
    with server(slit, folder=os.path.dirname(clips[0]), limits=limits) as (url, *_):
        yield url


def post(url, task, clip=None, **fields):
    """Send a form, with a file unless there is none."""
    files = None
    if clip is not None:
        with open(clip, "rb") as stream:
            files = {"audio": (os.path.basename(clip), stream.read())}
    return httpx.post(f"{url}/{task}", data=fields, files=files, timeout=60)


WRITING = {"num_beams": "2", "max_new_tokens": "6"}


def test_every_task_answers_as_the_library(url, slit, clips):
    found = post(url, "caption", clips[0], **WRITING)
    assert found.status_code == 200
    assert found.json() == {"caption": slit.caption(clips[0], options=SHORT)}
    found = post(url, "answer", clips[1], question="what is it?", **WRITING).json()
    assert found == {"answer": slit.answer(clips[1], "what is it?", options=SHORT)}
    words = ["yes", "no"]
    found = post(url, "answer", clips[1], question="loud?", candidates=words).json()
    assert found["answer"] == slit.answer(clips[1], "loud?", candidates=words)
    found = post(url, "classify", clips[2], labels=["dog", "rain"]).json()
    expected = slit.classify(clips[2], ["dog", "rain"])
    assert found["label"] == expected.label
    assert found["scores"] == pytest.approx(expected.scores, abs=1e-5)
    found = post(url, "embed", clips[3]).json()["audio"]
    np.testing.assert_allclose(found, slit.embed_audio(clips[3]), atol=1e-5)
    found = post(url, "embed", text="a dog").json()["text"]
    np.testing.assert_allclose(found, slit.embed_text("a dog"), atol=1e-5)
    found = post(url, "moments", clips[6], text="a dog", window_s=["0.3", "0.6"]).json()
    expected = slit.moments("a dog", clips[6], window_s=(0.3, 0.6))
    assert [row["start_s"] for row in found["moments"]] == [h.start_s for h in expected]
    found = post(url, "caption", clips[6], window_s="0.5", **WRITING).json()["captions"]
    assert [row["start_s"] for row in found] == [0.0, 0.5, 1.0]
    found = post(url, "search", text="a bell rings", top_k="3").json()["hits"]
    expected = slit.search("a bell rings", clips, rerank=0, top_k=3)
    assert [row["file"] for row in found] == [
        os.path.basename(h.item) for h in expected
    ]
    found = post(url, "search", text="a bell", moments="true").json()["hits"]
    assert all(row["start_s"] < row["end_s"] for row in found)


def test_json_says_the_same_as_a_form(url, slit, clips):
    with open(clips[4], "rb") as stream:
        audio = base64.b64encode(stream.read()).decode()
    body = {"audio": audio, "question": "what is it?", "num_beams": 2}
    found = httpx.post(f"{url}/answer", json={**body, "max_new_tokens": 6}, timeout=60)
    assert found.json()["answer"] == slit.answer(clips[4], "what is it?", options=SHORT)


def test_waiting_requests_are_computed_together_with_equal_results(slit, clips):
    """Forty clients of five kinds at once; results are those of single calls."""
    kinds = [
        ("caption", WRITING, lambda c: slit.caption(c, options=SHORT)),
        ("answer", {"question": "loud?", "candidates": ["a", "b"]},
         lambda c: slit.answer(c, "loud?", candidates=["a", "b"])),
        ("answer", {"question": "how?", "candidates": ["a", "b"]},
         lambda c: slit.answer(c, "how?", candidates=["a", "b"])),
        ("classify", {"labels": ["dog", "rain"]},
         lambda c: slit.classify(c, ["dog", "rain"]).label),
    ]  # fmt: skip
    asked = [(k, clip) for k in range(len(kinds)) for clip in clips] * 2
    expected = [kinds[k][2](clip) for k, clip in asked]
    with server(slit) as (url, _, app), ThreadPoolExecutor(len(asked)) as pool:
        futures = [
            pool.submit(post, url, kinds[k][0], clip, **kinds[k][1])
            for k, clip in asked
        ]
        answers = [future.result().json() for future in futures]
        assert app.state.batcher.largest > 1
    for (k, _), answer, wanted in zip(asked, answers, expected, strict=True):
        name = {"caption": "caption", "answer": "answer", "classify": "label"}
        assert answer[name[kinds[k][0]]] == wanted


@pytest.mark.parametrize(
    "task, fields, status, says",
    [
        ("caption", {"num_beam": "2"}, 422, "unknown num_beam. Known: instruction"),
        ("caption", {"num_beams": "two"}, 422, "num_beams: expected integer of at lea"),
        ("caption", {"num_beams": "0"}, 422, "of at least 1, found '0'"),
        ("caption", {"window_s": "999"}, 422, "window_s: expected"),
        ("answer", {}, 422, "question: expected a value, found none"),
        ("answer", {"question": " "}, 422, "question: the text is empty"),
        ("classify", {"labels": ["a", "a"]}, 422, "different labels"),
        (
            "classify",
            {"labels": ["a"], "route": "x"},
            422,
            "expected one of similarity",
        ),
        ("search", {"text": "a"}, 422, "takes no audio, found clip 0.wav"),
        ("moments", {"text": "a", "top_k": "-1"}, 422, "top_k: expected integer"),
    ],
)
def test_requests_that_cannot_be_served_are_told_what_to_do(
    url, clips, task, fields, status, says
):
    found = post(url, task, clips[0], **fields)
    assert (found.status_code, says in found.json()["detail"]) == (
        status,
        True,
    ), found.text


def noise(seconds):
    stream = io.BytesIO()
    audio = np.random.default_rng(0).standard_normal(int(seconds * 8000)) / 9
    soundfile.write(stream, audio, 8000, format="WAV", subtype="PCM_U8")
    return stream.getvalue()


@pytest.mark.parametrize(
    "content, status, says",
    [
        (b"", 422, "the file is empty"),
        (b"RIFFnothing", 422, "x.wav"),
        (noise(70), 413, "lasts 70.0 s, this server takes 60 s"),
        (b"RIFF" + bytes(3_000_000), 413, "at most 2 MB"),
        (noise(0.001), 422, "x.wav: holds 0.0010 s"),
    ],
)
def test_uploads_that_cannot_be_used_are_named(url, content, status, says):
    files = {"audio": ("../x.wav", content)}
    found = httpx.post(f"{url}/caption", files=files, timeout=60)
    assert found.status_code == status and says in found.json()["detail"], found.text
    assert "/tmp" not in found.json()["detail"]


def test_other_bodies_are_refused(url):
    found = httpx.post(f"{url}/caption", content=b"x", headers={"content-type": "a/b"})
    assert found.status_code == 415 and "multipart/form-data" in found.json()["detail"]
    kind = {"content-type": "application/json"}
    for body in (b"{", b"[]", b'{"audio": "%%"}', b'{"audio": 3}', b"{}"):
        found = httpx.post(f"{url}/caption", content=body, headers=kind)
        assert found.status_code == 422, body
    for form in ("multipart/form-data", "multipart/form-data; boundary=x"):
        headers = {"content-type": form}
        found = httpx.post(f"{url}/caption", content=b"--y\r\nz", headers=headers)
        assert found.status_code == 422, found.text
        assert "multipart" in found.json()["detail"]
    assert httpx.get(f"{url}/caption").status_code == 405
    assert httpx.get(f"{url}/nothing").status_code == 404


def test_bad_clip_of_a_batch_does_not_hurt_the_others(slit, clips, tmp_path):
    """Its header is right, its samples are not: only decoding tells."""
    nan = tmp_path / "nan.wav"
    soundfile.write(nan, np.full(RATE, np.nan), RATE, subtype="FLOAT")
    files = [*clips[:3], str(nan), *clips[3:6]]
    expected = slit.caption(clips[:6], options=SHORT)
    with server(slit) as (url, *_), ThreadPoolExecutor(7) as pool:
        found = list(pool.map(lambda f: post(url, "caption", f, **WRITING), files))
    assert found[3].status_code == 422 and "nan.wav" in found[3].json()["detail"]
    del found[3]
    assert [answer.json()["caption"] for answer in found] == expected


def test_page_health_and_version(url):
    assert httpx.get(f"{url}/health").json() == {"status": "ok", "waiting": 0}
    version = httpx.get(f"{url}/version").json()
    assert version["models"] == {
        "representation": "representation",
        "generator": "instruction",
    }
    paths = httpx.get(f"{url}/openapi.json").json()["paths"]
    assert {"/caption", "/answer", "/classify", "/embed", "/search", "/moments"} <= set(
        paths
    )
    form = paths["/answer"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert set(form["schema"]["required"]) == {"audio", "question"}
    assert "parameters" not in paths["/answer"]["post"]


def test_token_is_asked_for(slit, clips):
    with server(slit, token="secret") as (url, *_):
        assert httpx.get(f"{url}/health").status_code == 200
        assert post(url, "embed", text="a").status_code == 401
        wrong = {"Authorization": "Bearer other"}
        right = {"Authorization": "Bearer secret"}
        for headers, status in ((wrong, 401), (right, 200)):
            found = httpx.post(f"{url}/embed", json={"text": "a"}, headers=headers)
            assert found.status_code == status


def test_folder_is_needed_for_search(slit):
    with server(slit) as (url, *_):
        found = post(url, "search", text="a dog")
        assert found.status_code == 422 and "--folder" in found.json()["detail"]


def test_what_waits_when_the_server_ends_is_still_served(slit, clips):
    with ThreadPoolExecutor(14) as pool:
        with server(slit) as (url, running, app):
            futures = [
                pool.submit(post, url, "caption", c, **WRITING) for c in clips * 2
            ]
            while len(app.state.batcher) < 3 and not all(f.done() for f in futures):
                time.sleep(0.005)
            time.sleep(0.3)
            running.should_exit = True
        found = [future.result() for future in futures]
    assert [answer.status_code for answer in found] == [200] * 14
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def test_clients_that_go_away_do_not_stop_it(slit, clips):
    with server(slit) as (url, *_):
        port = int(url.rpartition(":")[2])
        with open(clips[0], "rb") as stream:
            audio = base64.b64encode(stream.read())
        body = b'{"audio": "' + audio + b'"}'
        head = f"POST /caption HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        head += "Content-Type: application/json\r\n\r\n"
        for sent in (head.encode(), head.encode() + body[:99], head.encode() + body):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(sent)
        found = post(url, "caption", clips[0], **WRITING)
        assert found.json() == {"caption": slit.caption(clips[0], options=SHORT)}


# -------------------------------------------------------------------------- the queue


def test_queue_batches_by_kind_and_keeps_the_order():
    seen = []

    def work(items):
        seen.append(list(items))
        return [item * 2 for item in items]

    batcher = Batcher(batch_size=3, capacity=50, patience_s=0.2)
    futures = [batcher.submit(i % 2, work, i) for i in range(8)]
    assert [future.result(10) for future in futures] == [2 * i for i in range(8)]
    assert seen == [[0, 2, 4], [1, 3, 5], [6], [7]] and batcher.largest == 3
    batcher.close()
    with pytest.raises(QueueFull):
        batcher.submit(0, work, 0)


def test_full_queue_refuses_and_close_finishes_what_waits():
    gate = threading.Event()

    def work(items):
        gate.wait(10)
        return list(items)

    batcher = Batcher(batch_size=1, capacity=2, patience_s=0)
    futures = [batcher.submit("a", work, 0)]
    while len(batcher):
        time.sleep(0.001)
    futures += [batcher.submit("a", work, i) for i in (1, 2)]
    with pytest.raises(QueueFull):
        batcher.submit("a", work, 3)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    gate.set()
    closing.join(10)
    assert [future.result(0) for future in futures] == [0, 1, 2]
