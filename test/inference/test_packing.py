"""Tests of packing: an archive gives the same system elsewhere, and nothing else."""

import io
import json
import os
import shutil
import stat
import tarfile
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import tiny_system
import yaml

from espnet2_slit.bin import slit_pack
from espnet2_slit.inference.pack import pack, publish
from espnet2_slit.inference.slit import SLIT, InferenceError
from espnet2_slit.inference.system import (
    PackingError,
    link,
    link_training,
    open_system,
    read_system,
)
from espnet2_slit.inference.system_info import describe_source

SHORT = {"max_new_tokens": 6, "num_beams": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_parts):
    """A system in a recipe's layout: frozen parts below downloads, relative paths."""
    recipe = tmp_path_factory.mktemp("home of somebody") / "recipe"
    parts = SimpleNamespace(
        beats=recipe / "downloads/encoder.pt",
        llama=recipe / "downloads/language_model",
        tokenizer=recipe / "downloads/tokenizer",
    )
    parts.beats.parent.mkdir(parents=True)
    shutil.copyfile(tiny_parts.beats, parts.beats)
    shutil.copytree(tiny_parts.llama, parts.llama)
    shutil.copytree(tiny_parts.tokenizer, parts.tokenizer)
    before = os.getcwd()
    os.chdir(recipe)
    try:
        relative = SimpleNamespace(
            **{k: v.relative_to(recipe) for k, v in vars(parts).items()}
        )
        tiny_system.system("exp", relative)
    finally:
        os.chdir(before)
    folder = recipe / "exp" / "tiny_instruction"
    (folder / "decode_a").mkdir()
    (folder / "decode_a" / "RESULTS.md").write_text("# RESULTS\n\n| cider_d | 0.5 |\n")
    row = {"set": "a", "task": "caption", "metric": "cider_d", "value": 0.5}
    rows = [
        {**row, "key": "a/caption/cider_d"},
        {**row, "metric": "spice", "value": None, "key": "a/caption/spice"},
    ]
    (folder / "decode_a" / "scores.json").write_text(json.dumps({"scores": rows}))
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("wav") / "x.wav"
    random = np.random.default_rng(0)
    soundfile.write(path, random.uniform(-0.3, 0.3, 12000), 16000)
    return path


@pytest.fixture(scope="module")
def expected(folder, clip):
    return results(SLIT.from_pretrained(folder), clip)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """An archive that needs nothing else."""
    archive = tmp_path_factory.mktemp("archive") / "slit.zip"
    status = slit_pack.main(
        ["--exp", str(folder), "--outpath", str(archive), "--include_frozen", "true",
         "--licence", "apache-2.0"]
    )  # fmt: skip
    assert status == 0
    return archive


def results(slit, clip):
    return slit.caption(clip, options=SHORT), slit.embed_audio(clip).tolist()


def names_of(archive):
    with zipfile.ZipFile(archive) as opened:
        return set(opened.namelist())


def read(archive, name):
    with zipfile.ZipFile(archive) as opened:
        return opened.read(name).decode()


# ---------------------------------------------------------------------------- there


def test_archive_alone_gives_the_same_system(
    whole, clip, expected, tmp_path, monkeypatch
):
    shutil.copyfile(whole, tmp_path / "moved.zip")
    monkeypatch.chdir(tmp_path)
    slit = SLIT.from_pretrained("moved.zip", cache_dir=tmp_path / "cache")
    assert results(slit, clip) == expected
    again = SLIT.from_pretrained("moved.zip", cache_dir=tmp_path / "cache")
    assert results(again, clip) == expected
    assert len(list((tmp_path / "cache").iterdir())) == 1
    places = (slit.encoder.path, slit.generator.options.language_model)
    assert all(place.startswith(str(tmp_path / "cache")) for place in places)


def test_espnet_unpacks_it_to_the_keywords_of_the_class(
    whole, clip, expected, tmp_path
):
    from espnet2.main_funcs.pack_funcs import unpack

    keywords = unpack(whole, tmp_path / "zoo")
    assert results(SLIT(**keywords), clip) == expected


def test_experiment_is_opened_from_any_folder(
    folder, clip, expected, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert results(SLIT.from_pretrained(folder), clip) == expected
    assert results(SLIT.from_pretrained(folder / "slit.json"), clip) == expected


def test_archive_without_frozen_parts_asks_for_them(
    folder, clip, expected, tmp_path, monkeypatch
):
    archive = pack(folder, tmp_path / "small.zip")
    monkeypatch.chdir(tmp_path)
    assert not any(name.startswith("frozen") for name in names_of(archive))
    options = {"cache_dir": tmp_path / "cache"}
    with pytest.raises(InferenceError, match="language_model: .*Pass its path"):
        SLIT.from_pretrained(archive, **options)
    downloads = folder.parent.parent / "downloads"
    options["language_model"] = str(downloads / "language_model")
    slit = SLIT.from_pretrained(archive, **options)
    with pytest.raises(InferenceError, match="audio_encoder: .*Pass its path"):
        slit.caption(clip)
    options["audio_encoder"] = str(downloads / "encoder.pt")
    assert results(SLIT.from_pretrained(archive, **options), clip) == expected


def test_archive_says_nothing_of_the_machine(folder, whole, tmp_path):
    small = pack(folder, tmp_path / "small.zip")
    for archive in (whole, small):
        for name in names_of(archive):
            if name.endswith((".yaml", ".json", ".md")):
                assert "somebody" not in read(archive, name), name
                assert "downloads" not in read(archive, name), name


def test_archive_holds_results_card_and_identities(whole, tiny_parts):
    from espnet2_slit.common.identity import fingerprint

    names = names_of(whole)
    assert {"meta.yaml", "slit.json", "README.md", "RESULTS.md"} <= names
    assert {"generator/model.pth", "representation/config.yaml"} <= names
    assert "qformer_tokenizer/tokenizer.json" in names
    card = read(whole, "README.md")
    header = yaml.safe_load(card.split("---")[1])
    assert header["license"] == "apache-2.0" and "espnet" in header["tags"]
    assert fingerprint(tiny_parts.beats) in card and "cider_d" in card
    frozen = json.loads(read(whole, "slit.json"))["frozen"]
    assert frozen["audio_encoder"]["fingerprint"] == fingerprint(tiny_parts.beats)
    assert frozen["language_model"]["included"] is True


def test_the_card_has_what_the_hub_reads(folder, whole, tmp_path):
    """By the Hub's own reader: scores as model-index, task, library, licence."""
    from huggingface_hub import ModelCard

    data = ModelCard(read(whole, "README.md")).data
    assert data.pipeline_tag == "audio-text-to-text"
    assert (data.library_name, data.license) == ("espnet2_slit", "apache-2.0")
    (result,) = data.eval_results  # what was not computed is no score
    assert (result.metric_type, result.metric_value) == ("cider_d", 0.5)
    assert (result.dataset_name, result.metric_name) == ("a", "caption/cider_d")
    alone = folder.parent / "tiny_representation"
    words = ["--exp", str(alone), "--outpath", str(tmp_path / "a.zip")]
    assert slit_pack.main([*words, "--datasets", "me/sounds", "me/more"]) == 0
    data = ModelCard(read(tmp_path / "a.zip", "README.md")).data
    assert data.pipeline_tag == "feature-extraction"
    assert data.datasets == ["me/sounds", "me/more"] and not data.eval_results


def test_archive_says_what_was_trained_on(folder, tmp_path):
    recipe = tmp_path / "home of somebody" / "exp"
    shutil.copytree(folder.parent, recipe)
    config_file = recipe / "tiny_instruction" / "config.yaml"
    config = yaml.safe_load(config_file.read_text())
    for part, name in (("train", "train_qa"), ("valid", "valid_qa")):
        rows = [[f"{tmp_path}/dump/beats/{name}/{file}", file, "text"] for file in "ab"]
        config[f"{part}_data_path_and_name_and_type"] = rows
    config["initialized_from"] = [str(recipe / "tiny_generative" / "best.pth")]
    config_file.write_text(yaml.safe_dump(config))

    archive = pack(recipe / "tiny_instruction", tmp_path / "slit.zip")
    part = describe_source(archive)["parts"]["generator"]
    assert part["trained_on"] == ["train_qa"]
    assert part["validated_on"] == ["valid_qa"]
    assert part["initialized_from"] == ["tiny_generative/best.pth"]
    assert str(tmp_path) not in read(archive, "generator/config.yaml")


def test_changed_frozen_part_is_refused(whole, tmp_path, tiny_parts):
    import tiny

    from espnet2_slit.task import IdentityError

    other = tiny.llama(tmp_path / "other", seed=5)
    with pytest.raises(IdentityError, match="language model is not the one"):
        SLIT.from_pretrained(
            whole, cache_dir=tmp_path / "cache", language_model=str(other)
        )


# -------------------------------------------------------------------------- publish


def test_published_folder_is_opened(whole, folder, clip, expected, tmp_path):
    target = tmp_path / "shared"
    target.mkdir()
    status = slit_pack.main(
        ["--exp", str(folder), "--include_frozen", "true", "--upload", str(target)]
    )
    assert status == 0 and not list(folder.glob("*.zip"))
    assert results(SLIT.from_pretrained(target), clip) == expected
    assert slit_pack.main(["--exp", str(folder), "--upload", str(target)]) == 1


def test_hub_name_is_uploaded_and_opened(whole, clip, expected, tmp_path, monkeypatch):
    import huggingface_hub

    hub = tmp_path / "hub"

    class Api:
        def create_repo(self, name, private, exist_ok):
            assert (name, private, exist_ok) == ("me/model", True, True)

        def upload_folder(self, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, hub / repo_id)

    def snapshot_download(name, revision=None):
        # As the hub's cache: every file is a link to a store elsewhere.
        snapshot, store = tmp_path / "snapshot", tmp_path / "blobs"
        store.mkdir()
        for i, file in enumerate(sorted((hub / name).rglob("*"))):
            if file.is_file():
                link = snapshot / file.relative_to(hub / name)
                link.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, store / str(i))
                link.symlink_to(store / str(i))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert publish(whole, "me/model", private=True).endswith("/me/model")
    assert results(SLIT.from_pretrained("me/model"), clip) == expected


# ------------------------------------------------------------------------ bad input


def bad_zip(path, name, content=b"x", mode=None):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("slit.json", "{}")
        info = zipfile.ZipInfo(name)
        if mode is not None:
            info.external_attr = mode << 16
        archive.writestr(info, content)
    return path


def bad_tar(path, name, kind, link=""):
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        archive.addfile(info, io.BytesIO(b""))
    return path


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda p: bad_zip(p, "../evil"), "leads outside"),
        (lambda p: bad_zip(p, "a/../../evil"), "leads outside"),
        (lambda p: bad_zip(p, "/tmp/evil"), "leads outside"),
        (lambda p: bad_zip(p, "..\\evil"), "leads outside"),
        (lambda p: bad_zip(p, "C:/evil"), "leads outside"),
        (lambda p: bad_zip(p, "l", b"/etc/passwd", stat.S_IFLNK | 0o777), "link"),
        (lambda p: bad_zip(p, "./slit.json"), "two entries have one name"),
        (lambda p: bad_tar(p, "../evil", tarfile.REGTYPE), "leads outside"),
        (lambda p: bad_tar(p, "l", tarfile.SYMTYPE, "/etc/passwd"), "link"),
        (lambda p: bad_tar(p, "l", tarfile.LNKTYPE, "/etc/passwd"), "link"),
        (lambda p: bad_tar(p, "d", tarfile.CHRTYPE), "device"),
        (lambda p: p.write_bytes(b"PK\x03\x04 cut off") and p, "neither a zip nor"),
    ],
)
def test_malicious_archive_is_refused_and_leaves_nothing(tmp_path, make, message):
    archive = tmp_path / "in" / "bad.zip"
    archive.parent.mkdir()
    make(archive)
    cache = tmp_path / "out" / "cache"
    with pytest.raises(PackingError, match=message):
        open_system(archive, cache)
    assert not list(cache.iterdir())
    assert list((tmp_path / "out").iterdir()) == [cache]
    assert not (tmp_path / "evil").exists() and not os.path.exists("/tmp/evil")


def test_truncated_archive_is_refused(whole, tmp_path):
    content = whole.read_bytes()
    (tmp_path / "cut.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(PackingError, match="truncated"):
        open_system(tmp_path / "cut.zip", tmp_path / "cache")


def test_things_that_are_no_system(folder, tmp_path):
    with pytest.raises(PackingError, match="no such folder or archive"):
        open_system(tmp_path / "none")
    with pytest.raises(PackingError, match="neither slit.json nor config.yaml"):
        open_system(tmp_path)
    (tmp_path / "slit.json").write_text('{"schema": 9}')
    with pytest.raises(PackingError, match="expected schema 1, found 9"):
        open_system(tmp_path)
    (tmp_path / "slit.json").write_text(
        '{"schema": 1, "generator": {"train_config": "a", "model_file": "b"}}'
    )
    with pytest.raises(PackingError, match="names .*a as its generator part"):
        open_system(tmp_path)
    one = folder.parent / "tiny_representation"
    with pytest.raises(PackingError, match="already has a representation"):
        link(tmp_path, [one, one])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.yaml").write_text("model: instruction\n")
    with pytest.raises(PackingError, match="no weights"):
        link(tmp_path, [tmp_path / "empty"])


def experiment(path, model, started=(), **identity):
    path.mkdir()
    (path / "valid.loss.best.pth").touch()
    facts = {"kind": "beats", "path": str(path), **identity}
    content = {"model": model, "audio_encoder_identity": facts}
    content["initialized_from"] = [f"{folder}/x.pth" for folder in started]
    (path / "config.yaml").write_text(yaml.safe_dump(content))
    return path


def test_a_trained_generator_names_the_representation_it_goes_back_to(tmp_path):
    first = experiment(tmp_path / "a", "representation", ["/gone"])
    second = experiment(tmp_path / "b", "generative", [first])
    third = experiment(tmp_path / "c", "instruction", [second])
    for folder in (second, third):
        path = link_training(folder)
        assert path == folder / "slit.json"
        parts = read_system(folder).parts
        assert parts["generator"][0].resolve() == folder / "config.yaml"
        assert parts["representation"][0].resolve() == first / "config.yaml"
    other = experiment(tmp_path / "d", "representation", fingerprint="of another")
    for started in ([], ["/gone"], [other]):
        alone = experiment(
            tmp_path / f"e{len(list(tmp_path.iterdir()))}", "generative", started
        )
        link_training(alone)
        assert list(read_system(alone).parts) == ["generator"]


def test_command_line_links_and_names_faults(folder, tmp_path, capsys):
    one = folder.parent / "tiny_representation"
    status = slit_pack.main(
        ["--link", str(tmp_path / "sys"), "--generator", str(folder),
         "--representation", str(one), "--model_file", "valid.loss.best.pth"]
    )  # fmt: skip
    assert status == 0
    content = json.loads((tmp_path / "sys" / "slit.json").read_text())
    assert set(content) == {"schema", "representation", "generator"}
    assert not os.path.isabs(content["generator"]["model_file"])
    status = slit_pack.main(
        ["--link", str(tmp_path / "sys"), "--generator", str(folder),
         "--model_file", "typo.pth"]
    )  # fmt: skip
    assert status == 1 and "no weights (typo.pth)" in capsys.readouterr().err
    with pytest.raises(SystemExit) as error:
        slit_pack.main(["--exp", "x"])
    assert error.value.code == 2
