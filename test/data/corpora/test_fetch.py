"""Archives of a mirror: resumed, checked, unpacked where they belong or not at all."""

import hashlib
import http.server
import io
import os
import sys
import tarfile
import threading
import urllib.parse
import zipfile

import pytest

from espnet2_slit.bin import slit_corpus
from espnet2_slit.data.corpora import READERS, CorpusError, fetch
from espnet2_slit.data.corpora.fetch import Mirror, download, read_md5, unpack_archive

CONTENT = bytes(range(256)) * 5000  # 1.28 MB: more than one block


def md5(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files`; cuts connections and refuses ranges where told."""

    def do_HEAD(self):
        self.do_GET(head=True)

    def do_GET(self, head=False):
        server = self.server
        wanted = self.headers.get("Range")
        server.asked.append((self.command, self.path, wanted))
        name = urllib.parse.unquote(self.path.partition("?")[0]).lstrip("/")
        if server.errors and not head:
            return self.send_error(server.errors.pop(0))
        if name not in server.files:
            return self.send_error(404)
        content, begin = server.files[name], 0
        if wanted and server.ranges:
            begin = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if begin >= len(content):
                return self.send_error(416)
            self.send_response(206)
            last = f"{len(content) - 1}/{len(content)}"
            self.send_header("Content-Range", f"bytes {begin}-{last}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        if not head:
            cut = server.cuts.pop(0) if server.cuts else None
            self.wfile.write(content[begin:][:cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """A mirror on this machine: `files`, `asked`, and what goes wrong."""
    monkeypatch.setattr(fetch, "WAIT_S", 0.0)
    monkeypatch.setenv("no_proxy", "*")
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.files, made.asked, made.cuts, made.errors = {}, [], [], []
    made.ranges = True
    made.url = f"http://127.0.0.1:{made.server_port}"
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def ranges(server):
    return [wanted for method, _, wanted in server.asked if method == "GET"]


# --------------------------------------------------------------------------- download


def test_a_file_gets_its_name_when_it_is_complete(server, tmp_path):
    server.files["a b.csv"] = CONTENT
    download(f"{server.url}/a%20b.csv", tmp_path / "a", md5(CONTENT))
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert os.listdir(tmp_path) == ["a"]


def test_a_cut_connection_goes_on_where_it_stopped(server, tmp_path):
    server.files["a"], server.cuts = CONTENT, [1000, 300_000]
    download(f"{server.url}/a", tmp_path / "a", md5(CONTENT))
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=1000-", "bytes=301000-"]


def test_a_killed_download_goes_on_in_the_next_run(server, tmp_path):
    server.files["a"] = CONTENT
    (tmp_path / ".a.part").write_bytes(CONTENT[:777])
    download(f"{server.url}/a", tmp_path / "a", md5(CONTENT))
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert ranges(server) == ["bytes=777-"]


def test_a_server_without_ranges_sends_all_of_it_again(server, tmp_path):
    server.files["a"], server.cuts, server.ranges = CONTENT, [1000], False
    download(f"{server.url}/a", tmp_path / "a", md5(CONTENT))
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_download_killed_at_its_very_end_is_not_repeated(server, tmp_path):
    server.files["a"] = CONTENT
    (tmp_path / ".a.part").write_bytes(CONTENT)
    download(f"{server.url}/a", tmp_path / "a", md5(CONTENT))
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert len(server.asked) == 1


@pytest.mark.parametrize("part", [b"of another file", CONTENT + b"longer"])
def test_a_part_of_another_file_is_thrown_away(server, tmp_path, part):
    server.files["a"] = CONTENT
    (tmp_path / ".a.part").write_bytes(part)
    download(f"{server.url}/a", tmp_path / "a", md5(CONTENT))
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_changed_file_is_refused_and_removed(server, tmp_path):
    server.files["a"] = b"<html>Sign in to the hotel's network</html>"
    with pytest.raises(CorpusError, match=f"expected MD5 {md5(CONTENT)}, found "):
        download(f"{server.url}/a", tmp_path / "a", md5(CONTENT))
    assert os.listdir(tmp_path) == []
    assert len(server.asked) == 1


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(server, tmp_path):
    server.files["a"], server.errors = CONTENT, [503, 429]
    download(f"{server.url}/a", tmp_path / "a", md5(CONTENT))
    assert len(server.asked) == 3
    with pytest.raises(CorpusError, match="404"):
        download(f"{server.url}/b", tmp_path / "b", md5(CONTENT))
    assert len(server.asked) == 4


def test_what_arrived_is_kept_when_the_attempts_end(server, tmp_path):
    server.files["a"], server.cuts = CONTENT, [10] * fetch.ATTEMPTS
    with pytest.raises(CorpusError, match="goes on from there"):
        download(f"{server.url}/a", tmp_path / "a", md5(CONTENT))
    assert (tmp_path / ".a.part").read_bytes() == CONTENT[: 10 * fetch.ATTEMPTS]


def test_nobody_listens(server, tmp_path):
    server.shutdown()
    server.socket.close()
    with pytest.raises(CorpusError, match=f"{fetch.ATTEMPTS} attempts"):
        download(f"{server.url}/a", tmp_path / "a", md5(CONTENT))


def test_a_full_disk_is_no_reason_to_ask_again(server, tmp_path, monkeypatch):
    server.files["a"] = CONTENT

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetch, "_bar", full)
    with pytest.raises(OSError, match="No space left"):
        download(f"{server.url}/a", tmp_path / "a", md5(CONTENT))
    assert len(server.asked) == 1


# ----------------------------------------------------------------------------- unpack


def make_zip(members):
    """A zip of (name, content) and (name, content, Unix mode)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content, *mode in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = (mode[0] if mode else 0o100644) << 16
            archive.writestr(info, content)
    return buffer.getvalue()


def make_tar(*members):
    """A gzipped tar of TarInfo settings."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, settings in members:
            info = tarfile.TarInfo(name)
            vars_ = {"type": tarfile.REGTYPE, **settings}
            for key, value in vars_.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(b"x" * info.size))
    return buffer.getvalue()


GOOD = [
    ("audio/rain, wind.wav", b"r"),
    ("audio/caf\u00e9.wav", b"c"),
    ("list.csv", b""),
]
BAD = {
    "outside.zip": make_zip([*GOOD, ("../x.wav", b"x")]),
    "inside_out.zip": make_zip([("audio/../../x.wav", b"x")]),
    "absolute.zip": make_zip([("/tmp/x.wav", b"x")]),
    "backslash.zip": make_zip([("..\\x.wav", b"x")]),
    "link.zip": make_zip([*GOOD, ("link", b"/etc/passwd", 0o120777)]),
    "outside.tar.gz": make_tar(("../x.wav", {"size": 1})),
    "link.tar.gz": make_tar(
        ("x", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"})
    ),
    "hard_link.tgz": make_tar(("x", {"type": tarfile.LNKTYPE, "linkname": "../x"})),
    "pipe.tar.gz": make_tar(("x", {"type": tarfile.FIFOTYPE})),
    "device.tar.gz": make_tar(("x", {"type": tarfile.CHRTYPE})),
}


@pytest.mark.parametrize("name", BAD)
def test_an_archive_that_reaches_outside_is_refused_whole(tmp_path, name):
    (tmp_path / name).write_bytes(BAD[name])
    with pytest.raises(CorpusError, match="refused"):
        unpack_archive(tmp_path / name, tmp_path / "out")
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tar", "a.tar.xz"])
def test_a_damaged_archive_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(CorpusError, match=f"{name}: damaged, or no "):
        unpack_archive(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_good_archives_are_unpacked_whole_and_again(tmp_path):
    for name, content in (
        ("a.zip", make_zip([("audio/", b"", 0o40755), *GOOD])),
        ("b.tar.gz", make_tar(*[(n, {"size": len(c)}) for n, c in GOOD])),
    ):
        (tmp_path / name).write_bytes(content)
        out = tmp_path / name.partition(".")[0]
        unpack_archive(tmp_path / name, out)
        (out / "old").touch()
        unpack_archive(tmp_path / name, out)
        files = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
        assert files == {member for member, _ in GOOD}


def test_what_does_not_fit_is_not_unpacked(tmp_path, monkeypatch):
    (tmp_path / "a.zip").write_bytes(make_zip([("x", b"0" * 5000)]))
    free = type("usage", (), {"free": 4999})
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: free)
    with pytest.raises(CorpusError, match="unpacks to 5 kB, free are 5 kB"):
        unpack_archive(tmp_path / "a.zip", tmp_path / "out")


def test_7z_is_unpacked_with_py7zr(tmp_path):
    py7zr = pytest.importorskip("py7zr")
    with py7zr.SevenZipFile(tmp_path / "a.7z", "w") as archive:
        for name, content in GOOD:
            archive.writestr(content, name)
    unpack_archive(tmp_path / "a.7z", tmp_path / "out")
    for name, content in GOOD:
        assert (tmp_path / "out" / name).read_bytes() == content
    (tmp_path / "target").write_text("x")
    (tmp_path / "link").symlink_to("target")
    with py7zr.SevenZipFile(tmp_path / "b.7z", "w") as archive:
        archive.write(tmp_path / "link", "link")
    with pytest.raises(CorpusError, match="'link' is a link or device, refused"):
        unpack_archive(tmp_path / "b.7z", tmp_path / "linked")
    (tmp_path / "c.7z").write_bytes((tmp_path / "a.7z").read_bytes()[:-9])
    with pytest.raises(CorpusError, match="damaged, or no .7z"):
        unpack_archive(tmp_path / "c.7z", tmp_path / "cut")


def test_7z_without_py7zr_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "py7zr", None)
    (tmp_path / "a.7z").write_bytes(b"7z")
    with pytest.raises(CorpusError, match="pip install py7zr"):
        unpack_archive(tmp_path / "a.7z", tmp_path / "out")


# ------------------------------------------------------------------------ the command


@pytest.fixture
def corpus(tmp_path):
    """(file name -> content, the list of their checksums) of a small corpus."""
    files = {"captions.csv": CONTENT, "my audio.zip": make_zip(GOOD)}
    listed = tmp_path / "md5sums"
    listed.write_text("".join(f"{md5(c)}  {n}\n" for n, c in files.items()))
    return files, listed


def test_fetching_twice_asks_for_nothing_twice(server, corpus, tmp_path, caplog):
    server.files, listed = corpus
    out = tmp_path / "out"
    url = f"{server.url}/{{name}}?download=1"
    words = ["fetch", "--base_url", url, "--md5", str(listed), "--out", str(out)]
    slit_corpus.main(words)
    assert (out / "captions.csv").read_bytes() == CONTENT
    assert (out / "my audio" / "audio" / "rain, wind.wav").read_bytes() == b"r"
    assert ("GET", "/my%20audio.zip?download=1", None) in server.asked
    assert "1.28 MB" in caplog.text and "to fetch" in caplog.text
    asked = len(server.asked)
    slit_corpus.main([*words, "--keep", "false"])
    assert len(server.asked) == asked
    (out / "my audio.zip").unlink()  # unpacked: not needed
    slit_corpus.main(words)
    assert len(server.asked) == asked


@pytest.mark.parametrize("form", ["folder", "file://"])
def test_a_mirror_may_be_a_folder(corpus, tmp_path, form):
    files, listed = corpus
    mirror = tmp_path / "a mirror"
    mirror.mkdir()
    for name, content in files.items():
        (mirror / name).write_bytes(content)
    url = str(mirror) if form == "folder" else mirror.as_uri()
    words = ["fetch", "--base_url", url, "--md5", str(listed), "--keep", "false"]
    slit_corpus.main([*words, "--out", str(tmp_path / "out")])
    assert sorted(os.listdir(tmp_path / "out")) == [
        ".captions.csv.md5",
        ".my audio.zip.md5",
        "captions.csv",
        "my audio",
    ]
    (mirror / "captions.csv").unlink()
    with pytest.raises(SystemExit, match="no such file|No such file"):
        slit_corpus.main([*words, "--out", str(tmp_path / "other")])


def test_a_changed_checksum_is_fetched_anew(corpus, tmp_path):
    files, _ = corpus
    (tmp_path / "m").mkdir()
    for content in (b"old", b"new"):
        (tmp_path / "m" / "captions.csv").write_bytes(content)
        mirror = Mirror(str(tmp_path / "m"), {"captions.csv": md5(content)})
        fetch.fetch(mirror, tmp_path / "out")
        assert (tmp_path / "out" / "captions.csv").read_bytes() == content


def test_a_file_that_is_there_already_is_only_checked(server, tmp_path):
    (tmp_path / "a").write_bytes(CONTENT)
    fetch.fetch(Mirror(server.url, {"a": md5(CONTENT)}), tmp_path)
    assert [method for method, *_ in server.asked] == ["HEAD"]


def test_clotho_is_fetched_and_read(server, tmp_path, monkeypatch, tree):
    pytest.importorskip("py7zr")
    import py7zr

    root = tree("clotho")
    files = {}
    for split in ("development", "validation", "evaluation"):
        buffer = io.BytesIO()
        with py7zr.SevenZipFile(buffer, "w") as archive:
            archive.writeall(root / split, split)
        files[f"clotho_audio_{split}.7z"] = buffer.getvalue()
        table = f"clotho_captions_{split}.csv"
        files[table] = (root / table).read_bytes()
    table = "clotho_metadata_development.csv"
    files[table] = (root / table).read_bytes()
    assert files.keys() == READERS["clotho"].mirror.md5.keys()
    server.files = files
    mirror = Mirror(server.url, {name: md5(c) for name, c in files.items()})
    monkeypatch.setattr(READERS["clotho"], "mirror", mirror)
    slit_corpus.main(["fetch", "clotho", "--out", str(tmp_path / "clotho")])
    words = ["clotho", "--root", str(tmp_path / "clotho"), "--out", str(tmp_path)]
    slit_corpus.main([*words, "--jobs", "1"])
    for split, clips in (("development", 5), ("validation", 2), ("evaluation", 1)):
        report = (tmp_path / f"clotho_{split}" / "corpus_report.txt").read_text()
        assert f"{'clips kept':<28}{clips:>10}" in report


def test_checksums_are_those_of_the_publisher():
    mirror = READERS["clotho"].mirror
    assert mirror.url("a b.csv") == (
        "https://zenodo.org/records/4783391/files/a%20b.csv?download=1"
    )
    assert len(mirror.md5) == 7  # their form is checked when the module is loaded


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "fetch what?"),
        (["--base_url", "{tmp}"], "fetch what?"),
        (["clotho", "--files", "x.csv"], "found x.csv"),
        (["--base_url", "ftp://x", "--md5", "{list}"], "found ftp://x"),
        (["--base_url", "{tmp}", "--md5", "{tmp}/words"], "words line 1: expected"),
        (["--base_url", "{tmp}", "--md5", "{tmp}/empty"], "found none"),
        (["--base_url", "{tmp}", "--md5", "{tmp}/up"], "plain file names"),
        (["--base_url", "{tmp}", "--md5", "{tmp}/no"], "no"),
    ],
)
def test_wrong_calls_end_with_a_sentence(corpus, tmp_path, words, message):
    (tmp_path / "words").write_text("some words\n")
    (tmp_path / "empty").write_text("# nothing\n")
    (tmp_path / "up").write_text(f"{md5(b'')}  ../../.bashrc\n")
    words = [w.format(tmp=tmp_path, list=corpus[1]) for w in words]
    with pytest.raises(SystemExit) as caught:
        slit_corpus.main(["fetch", "--out", str(tmp_path / "out"), *words])
    assert message in str(caught.value.code)


def test_a_list_of_md5sum_is_read(tmp_path):
    digest = "D4090B39CE9F2491908EEBF4D5B09BAE"
    (tmp_path / "list").write_text(f"{digest} *./a b.zip\r\n\n# x\n{digest}  c\n")
    assert read_md5(tmp_path / "list") == {
        "a b.zip": digest.lower(),
        "c": digest.lower(),
    }


def test_what_does_not_fit_is_not_fetched(server, tmp_path, monkeypatch):
    server.files["a"] = CONTENT
    free = type("usage", (), {"free": 1000})
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: free)
    with pytest.raises(CorpusError, match="1.28 MB to fetch, 1 kB free"):
        fetch.fetch(Mirror(server.url, {"a": md5(CONTENT)}), tmp_path)
