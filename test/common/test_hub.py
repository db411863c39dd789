"""`slit fetch` against a mirror of its own: a server that answers as the Hub does."""

import hashlib
import json

import pytest
from hub_mirror import COMMIT, OLDER, Hub, serving

from espnet2_slit.bin import slit as command
from espnet2_slit.bin import slit_fetch
from espnet2_slit.common import hub

constants = pytest.importorskip("huggingface_hub.constants")

WEIGHTS = bytes(range(256)) * 40
FILES = {
    "config.json": b'{"model_type": "whisper"}',
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"another form of the same",
    "tokenizer.json": b"{}",
    "README.md": b"---\nlicense: apache-2.0\n---\n",
    "LICENSE": b"Apache",
    "setup.py": b"raise SystemExit('never fetched')",
    "onnx/model.onnx": b"onnx",
    "onnx/config.json": b"{}",
}


@pytest.fixture
def mirror(monkeypatch, tmp_path):
    """A running Hub; its class, with nothing asked of it yet."""
    monkeypatch.setattr(Hub, "asked", [])
    monkeypatch.setattr(Hub, "fault", None)
    monkeypatch.setattr(
        Hub, "repositories", {"openai/whisper-tiny.en": {"files": dict(FILES)}}
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    with serving() as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        yield Hub


def test_a_part_comes_with_its_licence_and_checksums(mirror, tmp_path, capsys):
    assert command.main(["fetch", "whisper-tiny.en"]) == 0
    out, err = capsys.readouterr()
    folder = tmp_path / "downloads" / "whisper-tiny.en"
    kept = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert kept == {
        "config.json", "model.safetensors", "tokenizer.json", "README.md", "LICENSE",
        "source.json",
    }  # fmt: skip
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    facts = json.loads((folder / "source.json").read_text())
    assert facts["repository"] == "openai/whisper-tiny.en"
    assert facts["revision"] == COMMIT and facts["licence"] == "apache-2.0"
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    assert facts["files"]["model.safetensors"] == {
        "bytes": len(WEIGHTS), "sha256": digest,
    }  # fmt: skip
    assert "licence apache-2.0" in out and "--audio_encoder_path downloads" in out
    # size and licence are said before anything is fetched
    assert "5 files, 0.0 MB, licence apache-2.0" in err


def test_what_is_there_is_not_fetched_again(mirror, tmp_path):
    hub.fetch("whisper-tiny.en", tmp_path / "x")
    asked = len(mirror.asked)
    said = []
    facts = hub.fetch("whisper-tiny.en", tmp_path / "x", say=said.append)
    assert len(mirror.asked) == asked and "is there and whole" in said[0]
    (tmp_path / "x" / "model.safetensors").write_bytes(b"half")
    assert hub.fetch("whisper-tiny.en", tmp_path / "x") == facts
    assert (tmp_path / "x" / "model.safetensors").read_bytes() == WEIGHTS


def test_a_revision_is_pinned_by_its_commit(mirror, tmp_path):
    facts = hub.fetch("whisper-tiny.en", tmp_path / "x", "v1")
    assert facts["revision"] == OLDER
    files = [path for _, path in mirror.asked if "/resolve/" in path]
    assert files and all(f"/resolve/{OLDER}/" in path for path in files)


def test_any_repository_is_fetched_by_its_own_name(mirror, tmp_path):
    mirror.repositories["some/body"] = {
        "files": {"config.json": b"{}", "pytorch_model.bin": b"weights"}
    }
    facts = hub.fetch("some/body", tmp_path / "x")
    assert set(facts["files"]) == {"config.json", "pytorch_model.bin"}
    assert slit_fetch.main(["some/body", "--json", "--out", str(tmp_path / "y")]) == 0


def test_a_mirrored_checkpoint_is_the_published_one_or_none(mirror, tmp_path):
    part = hub.PARTS["beats-iter3"]
    file = "BEATs_iter3_plus_AS2M.pt"
    mirror.repositories[part.repository] = {
        "kind": "datasets", "commit": part.revision,
        "files": {file: b"not those weights", "other.pt": b"x", "README.md": b""},
    }  # fmt: skip
    with pytest.raises(hub.HubError, match="expected SHA-256 d43cbfad") as caught:
        hub.fetch("beats-iter3", tmp_path / "x")
    assert "removed" in str(caught.value) and not (tmp_path / "x" / file).exists()
    assert not (tmp_path / "x" / "source.json").exists()


def test_openbeats_is_one_checkpoint_and_the_options_that_take_it(mirror, tmp_path):
    mirror.repositories["shikhar7ssu/OpenBEATs-Base-i3"] = {
        "files": {"a/b/epoch_latest.pt": b"w", "a/b/other.pt": b"o", "README.md": b""}
    }
    facts = hub.fetch("openbeats-base", tmp_path / "x")
    assert set(facts["files"]) == {"a/b/epoch_latest.pt", "README.md"}
    assert f"--audio_encoder_path {tmp_path}/x/a/b/epoch_latest.pt" in facts["use"]
    assert "fbank_mean=15.29130" in facts["use"]


def test_damage_on_the_way_is_found(mirror, tmp_path):
    mirror.fault = "damage"
    with pytest.raises(hub.HubError, match="expected SHA-256|cannot be reached"):
        hub.fetch("whisper-tiny.en", tmp_path / "x")
    assert not (tmp_path / "x" / "source.json").exists()
    mirror.fault = None
    hub.fetch("whisper-tiny.en", tmp_path / "x")


@pytest.mark.parametrize(
    "words, says",
    [
        (["whisper-tiny.em"], "did you mean whisper-tiny.en"),
        (["nothing like it"], "slit fetch --list"),
        (["no/body"], "no such repository, or a private one"),
        (["gated/one"], "ask for consent first"),
        (["whisper-tiny.en", "--revision", "v9"], "no revision 'v9'"),
        (["empty/one"], "expected weights"),
    ],
)
def test_what_cannot_be_fetched_is_said(words, says, mirror, capsys):
    mirror.repositories["gated/one"] = {"gated": True, "files": {}}
    mirror.repositories["empty/one"] = {"files": {"README.md": b""}}
    assert slit_fetch.main(words) == 1
    err = capsys.readouterr().err
    assert words[0] in err and says in err


def test_the_others_are_fetched_where_one_fails(mirror, tmp_path, capsys):
    assert slit_fetch.main(["no/body", "whisper-tiny.en"]) == 1
    assert (tmp_path / "downloads" / "whisper-tiny.en" / "source.json").is_file()


def test_without_a_network_the_ways_out_are_named(mirror, monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert slit_fetch.main(["minilm"]) == 1
    err = capsys.readouterr().err
    assert "cannot be reached" in err and "HF_ENDPOINT" in err and "copy" in err


def test_offline_mode_is_named(mirror, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert slit_fetch.main(["minilm"]) == 1
    assert "HF_HUB_OFFLINE must not be 1" in capsys.readouterr().err


def test_the_table_names_each_kind_of_part(capsys):
    assert command.main(["fetch", "--list"]) == 0
    shown = capsys.readouterr().out
    for word in ("openbeats", "beats-iter3", "whisper", "ast", "clap", "flan-t5",
                 "smollm2", "qwen", "bert", "minilm"):  # fmt: skip
        assert word in shown
    assert slit_fetch.main(["--list", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in rows] == list(hub.PARTS)
    with pytest.raises(SystemExit) as end:
        slit_fetch.main([])
    assert end.value.code == 2


def test_a_part_is_known_before_it_is_fetched(mirror, tmp_path, capsys):
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    said = f"0 MB, licence apache-2.0, will be downloaded, sha256 {digest}\n"
    assert command.main(["fetch", "--about", "whisper-tiny.en"]) == 0
    assert capsys.readouterr().out == f"whisper-tiny.en, {said}"
    assert not any("/resolve/" in path for _, path in mirror.asked)
    folder = tmp_path / "copied"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert command.main(["fetch", "--about", "copied"]) == 1
    assert "copied: expected weights" in capsys.readouterr().err
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    found = hub.about(str(folder))
    assert found["files"] == ["model.safetensors"] and found["sha256"] == [digest]
    assert (found["licence"], found["bytes"]) == ("mit", len(WEIGHTS))


def test_what_a_fetched_folder_is_comes_from_its_own_note(mirror, tmp_path):
    hub.fetch("whisper-tiny.en", tmp_path / "x")
    (tmp_path / "x" / "README.md").unlink()
    asked = len(mirror.asked)
    assert hub.about(str(tmp_path / "x"))["licence"] == "apache-2.0"
    assert len(mirror.asked) == asked


def test_a_part_that_cannot_be_had_is_an_error_before_it_is_fetched(mirror, capsys):
    assert command.main(["fetch", "--about", "some/thing"]) == 1
    assert "some/thing at http" in capsys.readouterr().err


@pytest.mark.parametrize(
    "card", ["---\n: [\n---\n", "---\nwords\n---\n", "# No card\n"]
)
def test_a_folder_whose_card_says_no_licence_is_known_all_the_same(tmp_path, card):
    (tmp_path / "model.safetensors").write_bytes(WEIGHTS)
    (tmp_path / "README.md").write_text(card)
    assert hub.about(str(tmp_path))["licence"] == hub.NOT_STATED
