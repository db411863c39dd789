"""Claims about training through ESPnet: stages, files, resume, identities, ranks."""

import json
import logging
import math
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from espnet2_slit.data import kaldi_dir, writer

RECIPE = Path(__file__).resolve().parents[1] / "egs2" / "slit" / "slit1"
STAGES = ("representation", "generative", "instruction")


def main(cmd):
    from espnet2_slit.task import SLITTask

    SLITTask.main(cmd=cmd)


def weights(path):
    return torch.load(path, weights_only=True)


def checkpoint(folder):
    from espnet2_slit.common.weights import read_checkpoint

    return read_checkpoint(Path(folder) / "checkpoint.pth")


def config(folder):
    return yaml.safe_load((Path(folder) / "config.yaml").read_text())


def assert_equal_weights(one, two, **tolerance):
    one, two = weights(one), weights(two)
    assert set(one) == set(two)
    for name in one:
        torch.testing.assert_close(
            one[name], two[name], **(tolerance or dict(rtol=0, atol=0))
        )


@pytest.fixture(scope="module")
def stages(tmp_path_factory, tiny_features, train_command):
    """The three stages, each from the one before: their experiment folders."""
    root = tmp_path_factory.mktemp("exp")
    folders, init = {}, []
    for stage in STAGES:
        folders[stage] = root / stage
        more = ["--keep_nbest_models", "2", *init]
        main(train_command(stage, folders[stage], *more, epochs=2))
        init = ["--init_param", folders[stage] / "valid.loss.best.pth"]
    return folders


# ---------------------------------------------------------------- three stages


@pytest.mark.parametrize("stage", STAGES)
def test_stage_trains_and_leaves_espnets_files(stages, stage):
    names = {p.name for p in stages[stage].iterdir()}
    assert {
        "config.yaml",
        "checkpoint.pth",
        "1epoch.pth",
        "2epoch.pth",
        "latest.pth",
        "valid.loss.best.pth",
        "valid.loss.ave_2best.pth",
        "valid.loss.ave.pth",
    } <= names
    assert not [name for name in names if name.endswith(".tmp")]


@pytest.mark.parametrize("stage", STAGES)
def test_checkpoint_has_no_frozen_weights(stages, stage, tiny_parts):
    states = weights(stages[stage] / "2epoch.pth")
    parts = {name.split(".")[0] for name in states}
    assert parts == (
        {"qformer", "heads", "training_step"}
        if stage == "representation"
        else {"qformer", "language_projection"}
    )
    stored = sum(v.numel() * v.element_size() for v in states.values())
    assert (stages[stage] / "2epoch.pth").stat().st_size < stored + 60_000


@pytest.mark.parametrize("stage", STAGES)
def test_average_is_the_mean_of_the_nbest(stages, stage):
    one, two, mean = (
        weights(stages[stage] / name)
        for name in ("1epoch.pth", "2epoch.pth", "valid.loss.ave_2best.pth")
    )
    for name in one:
        if one[name].is_floating_point():
            expected = (one[name] + two[name]) / 2
            torch.testing.assert_close(mean[name], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("stage", STAGES)
def test_config_records_what_was_frozen(stages, stage, tiny_parts):
    options = config(stages[stage])
    identity = options["audio_encoder_identity"]
    assert identity["kind"] == options["audio_encoder"] == "beats"
    assert options["audio_encoder_conf"]["path"] == str(tiny_parts.beats)
    assert len(identity["fingerprint"]) == 64
    assert options["qformer_tokenizer_identity"]["vocab_size"] > 100
    assert (options["language_model_identity"] is None) == (stage == "representation")
    if stage != "representation":
        assert "valid.loss.best.pth" in options["initialized_from"][0]


def test_stage_starts_from_the_one_before(stages, tmp_path, train_command):
    # no epoch is trained: 0epoch weights are those of the start
    from espnet2_slit.task import SLITTask

    for stage, before in zip(STAGES[1:], STAGES, strict=False):
        file = stages[before] / "valid.loss.best.pth"
        cmd = train_command(stage, tmp_path / stage, "--init_param", file)
        args = SLITTask.get_parser().parse_args(cmd)
        model = SLITTask.build_model(args)
        SLITTask.build_optimizers(args, model)
        earlier, now = weights(file), model.state_dict()
        shared = set(earlier) & set(now)
        assert len([n for n in shared if n.startswith("qformer.")]) > 40
        assert all(torch.equal(earlier[n], now[n]) for n in shared)
        assert all(
            n.startswith(("heads.", "training_step", "qformer.language_head."))
            for n in set(earlier) - shared
        )
        assert all(n.startswith("language_projection.") for n in set(now) - shared)


def test_espnet_draws_categories_anew_in_each_epoch(
    tiny_features, tmp_path, train_command, monkeypatch
):
    """With the sampler of the shipped configurations: shares are size^0.5."""
    from espnet2.iterators.category_iter_factory import CategoryIterFactory

    folder = shutil.copytree(tiny_features / "train", tmp_path / "train")
    samples = kaldi_dir.sample_ids(folder)  # 12, one of them rare
    for name, value in (("utt2category", "common"), ("utt2num_samples", "16000")):
        lines = [f"{sample} {value}" for sample in samples]
        writer.write_atomically(folder / name, lines)
    lines = [f"{samples[0]} rare"] + [f"{sample} common" for sample in samples[1:]]
    writer.write_atomically(folder / "utt2category", lines)
    writer.write_categories(folder)
    conf = RECIPE / "conf" / "full" / "train_instruction_flan_t5_base.yaml"
    conf = yaml.safe_load(conf.read_text())
    keys = "iterator_type batch_type upsampling_factor batch_bins valid_iterator_type"
    keys += " valid_batch_type"
    options = [word for key in keys.split() for word in (f"--{key}", conf[key])]
    options += ["--max_batch_size", "6", "--dataset_scaling_factor", "40"]
    command = train_command("instruction", tmp_path / "exp", *options, epochs=2)
    files = [
        word.replace(str(tiny_features / "train"), str(folder)) for word in command
    ]
    files[files.index("--train_shape_file") + 1] = str(folder / "utt2num_samples")
    drawn = []
    build = CategoryIterFactory.build_iter

    def spy(self, *args, **kwargs):
        loader = build(self, *args, **kwargs)
        drawn.append([name for batch in loader.batch_sampler for name in batch])
        return loader

    monkeypatch.setattr(CategoryIterFactory, "build_iter", spy)
    main(files)
    first, second = drawn
    assert len(first) == 480 and first != second
    share = (first + second).count(samples[0]) / 960
    assert share == pytest.approx(1 / (1 + 11**0.5), abs=0.05)  # 0.23, not 1 / 12
    assert (tmp_path / "exp" / "2epoch.pth").is_file()


def test_cached_equals_online(stages, tmp_path, train_command):
    for stage in STAGES:
        init = config(stages[stage])["initialized_from"]
        init = ["--init_param", *init] if init else []
        # not Adam, which makes full steps of rounding noise
        init += ["--optim", "sgd", "--optim_conf", "{lr: 0.05, weight_decay: 0.01}"]
        for name, cached in (("cached", True), ("online", False)):
            main(train_command(stage, tmp_path / name / stage, *init, cached=cached))
        assert_equal_weights(
            tmp_path / "cached" / stage / "1epoch.pth",
            tmp_path / "online" / stage / "1epoch.pth",
            rtol=0,
            atol=1e-5,
        )


# ---------------------------------------------------------------- resume


@pytest.mark.parametrize("stage", STAGES)
def test_resume_equals_going_on(stages, stage, tmp_path, train_command):
    init = config(stages[stage])["initialized_from"]
    more = ["--keep_nbest_models", "2", "--resume", "true"]
    if init:
        more += ["--init_param", *init]
    main(train_command(stage, tmp_path, *more, epochs=1))
    main(train_command(stage, tmp_path, *more, epochs=2))
    for name in ("2epoch.pth", "valid.loss.ave.pth"):
        assert_equal_weights(tmp_path / name, stages[stage] / name)


def test_resume_from_another_checkpoint_is_refused(
    stages, tmp_path, train_command, caplog
):
    from espnet2_slit.task import IdentityError

    start = shutil.copytree(stages["representation"], tmp_path / "start")
    exp, file = tmp_path / "exp", start / "valid.loss.best.pth"
    more = ["--resume", "true", "--init_param", file]
    main(train_command("generative", exp, *more))
    with pytest.raises(IdentityError, match="from no checkpoint, found one that began"):
        main(train_command("generative", exp, *more[:2], epochs=2))
    main(train_command("generative", exp, *more, epochs=2))
    states = {name: value + 1 for name, value in weights(file).items()}
    torch.save(states, file)  # trained anew, under the same name
    with pytest.raises(IdentityError, match=r"exp: expected .* as it was then"):
        main(train_command("generative", exp, *more, epochs=3))
    assert not (exp / "3epoch.pth").exists()


def test_resume_on_other_texts_is_refused(tmp_path, tiny_features, train_command):
    """slit.sh names its training set alike, whatever --local_data_opts made."""
    from espnet2_slit.task import IdentityError

    exp, texts = tmp_path / "exp", tmp_path / "text"

    def words(epochs):
        more = ["--resume", "true"]
        given = train_command("representation", exp, *more, epochs=epochs)
        path = next(word for word in given if word.endswith("train/text,text,text"))
        if not texts.exists():
            shutil.copy(path.partition(",")[0], texts)
        given[given.index(path)] = f"{texts},text,text"
        return given

    main(words(1))
    main(words(2))
    texts.write_text(texts.read_text().replace("\n", " again\n"))
    with pytest.raises(IdentityError, match="texts of now, found one on others"):
        main(words(3))
    assert not (exp / "3epoch.pth").exists()


def test_resume_after_a_kill_between_two_files(stages, tmp_path, train_command):
    folder = tmp_path / "killed"
    shutil.copytree(stages["representation"], folder, symlinks=True)
    # as if killed right after checkpoint.pth of epoch 2
    (folder / "2epoch.pth").unlink()
    for link in ("latest.pth", "valid.loss.best.pth"):
        (folder / link).unlink()
        (folder / link).symlink_to("1epoch.pth")
    for name in ("valid.loss.ave.pth", "valid.loss.ave_2best.pth"):
        (folder / name).unlink()
    (folder / ".3epoch.pth.99.tmp").write_bytes(b"half a file")
    more = ["--keep_nbest_models", "2", "--resume", "true"]
    main(train_command("representation", folder, *more, epochs=2))
    undisturbed = stages["representation"]
    assert {p.name for p in folder.iterdir()} == {p.name for p in undisturbed.iterdir()}
    for path in undisturbed.glob("*.pth"):
        if path.is_symlink():
            assert os.readlink(folder / path.name) == os.readlink(path)
        elif path.name != "checkpoint.pth":
            assert_equal_weights(folder / path.name, path)


def test_resume_of_a_run_that_stopped_early_trains_nothing(
    tmp_path, tiny_features, train_command
):
    more = ["--patience", "1", "--optim_conf", "lr=0.0", "--resume", "true"]
    for _ in range(2):
        main(train_command("generative", tmp_path, *more, epochs=6))
        assert checkpoint(tmp_path)["reporter"]["epoch"] == 3  # 1 was the best


def test_broken_checkpoint_is_named(stages, tmp_path, train_command):
    from espnet2_slit.common.weights import WeightsError

    file = tmp_path / "checkpoint.pth"
    whole = (stages["generative"] / "checkpoint.pth").read_bytes()
    cmd = train_command("generative", tmp_path, "--resume", "true", epochs=3)
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match=r"checkpoint.pth: .* truncated"):
        main(cmd)
    shutil.copy(stages["generative"] / "1epoch.pth", file)
    with pytest.raises(WeightsError, match="found no model, .*reporter"):
        main(cmd)
    shutil.copy(stages["instruction"] / "checkpoint.pth", file)
    with pytest.raises(WeightsError, match="expected an optimizer over"):
        main(cmd)
    shutil.copy(stages["representation"] / "checkpoint.pth", file)
    with pytest.raises(WeightsError, match="trained another model"):
        main(cmd)


def test_accumulated_steps_train(tmp_path, tiny_features, train_command):
    main(train_command("generative", tmp_path, "--accum_grad", "2"))
    states = checkpoint(tmp_path)
    steps = next(iter(states["optimizers"][0]["state"].values()))["step"]
    assert int(steps) == 1  # 3 batches, 2 a step


def test_failed_write_leaves_the_old_file(tmp_path):
    from espnet2_slit.train.checkpoint import atomic_torch_save

    path = tmp_path / "x.pth"
    torch.save({"a": torch.ones(2)}, path)
    with atomic_torch_save(), pytest.raises(Exception, match="pickle"):
        torch.save({"a": torch.zeros(2), "b": lambda: None}, path)
    assert weights(path)["a"].tolist() == [1, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["x.pth"]


# ---------------------------------------------------------------- loading


def load(folder, name="valid.loss.best.pth", **keywords):
    from espnet2_slit.task import SLITTask

    return SLITTask.build_model_from_file(
        folder / "config.yaml", folder / name, "cpu", **keywords
    )


@pytest.mark.parametrize("stage", STAGES)
def test_model_is_built_from_its_files(stages, stage):
    model, args = load(stages[stage])
    assert not model.training and args.model == stage
    saved = weights(stages[stage] / "valid.loss.best.pth")
    assert all(torch.equal(saved[n], v) for n, v in model.state_dict().items())
    frames, lengths = model.encode_audio(torch.zeros(1, 8000), torch.tensor([8000]))
    assert frames.shape[2] == model.audio_encoder.width and int(lengths) > 0
    shared, _ = load(stages[stage], audio_encoder=model.audio_encoder)
    assert shared.audio_encoder is model.audio_encoder
    bare, _ = load(stages[stage], with_audio_encoder=False)
    assert bare.audio_encoder is None


def copy_of(folder, tmp_path, states):
    tmp_path.mkdir(exist_ok=True)
    shutil.copy(folder / "config.yaml", tmp_path)
    torch.save(states, tmp_path / "valid.loss.best.pth")
    return tmp_path


def test_weights_that_do_not_fit_are_listed(stages, tmp_path):
    from espnet2_slit.common.weights import WeightsError

    folder = stages["generative"]
    states = weights(folder / "1epoch.pth")
    less = {k: v for k, v in states.items() if "query_tokens" not in k}
    with pytest.raises(WeightsError, match=r"1 missing \(qformer.query_tokens\)"):
        load(copy_of(folder, tmp_path, less))
    more = {**states, "stranger": torch.ones(1)}
    with pytest.raises(WeightsError, match=r"1 unexpected \(stranger\)"):
        load(copy_of(folder, tmp_path, more))
    other = {**states, "qformer.query_tokens": torch.ones(4, 16)}
    with pytest.raises(WeightsError, match=r"expected \(3, 16\), found \(4, 16\)"):
        load(copy_of(folder, tmp_path, other))
    with pytest.raises(WeightsError, match="do not fit PromptedModel"):
        load(folder, "../representation/valid.loss.best.pth")


def test_broken_weights_file_is_named(stages, tmp_path):
    from espnet2_slit.common.weights import WeightsError

    folder = copy_of(stages["generative"], tmp_path, {"a": torch.ones(1)})
    path = folder / "valid.loss.best.pth"
    whole = (stages["generative"] / "1epoch.pth").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no weights at all"):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=f"{len(content)} bytes"):
            load(folder)
    torch.save([torch.ones(1)], path)
    with pytest.raises(WeightsError, match="found list"):
        load(folder)
    path.unlink()
    with pytest.raises(WeightsError, match="found nothing"):
        load(folder)


def test_pickled_code_is_not_run(stages, tmp_path):
    from espnet2_slit.common.weights import WeightsError

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    folder = copy_of(stages["generative"], tmp_path / "x", {"a": Evil()})
    with pytest.raises(WeightsError):
        load(folder)
    assert not (tmp_path / "executed").exists()


def test_other_frozen_parts_are_refused(stages, tmp_path, tiny_parts):
    import tiny

    from espnet2_slit.task import IdentityError

    folder = stages["instruction"]
    other = tiny.beats_checkpoint(tmp_path / "beats", seed=1)
    with pytest.raises(
        IdentityError, match="the audio encoder .*fingerprint: expected"
    ):
        load(folder, overrides={"audio_encoder_conf": {"path": str(other)}})
    other = tiny.t5(tmp_path / "t5", seed=1)
    with pytest.raises(
        IdentityError, match="the language model .*correct language_model"
    ):
        load(folder, overrides={"language_model": str(other)})
    other = tiny.bert_tokenizer(tmp_path / "tokenizer", vocab_size=150)
    with pytest.raises(IdentityError, match="the qformer tokenizer .*vocab_size"):
        load(folder, overrides={"qformer_tokenizer": str(other)})


def test_moved_frozen_parts_are_accepted(stages, tmp_path, tiny_parts):
    shutil.copytree(tiny_parts.t5, tmp_path / "moved")
    model, _ = load(
        stages["generative"],
        overrides={
            "language_model": str(tmp_path / "moved"),
            "language_model_conf": {"dtype": "bfloat16"},
        },
    )
    assert model.language_model.frozen.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="found langauge_model"):
        load(stages["generative"], overrides={"langauge_model": "x"})


def test_a_part_that_was_a_folder_is_not_asked_from_the_hub(
    tmp_path, monkeypatch, tiny_parts, tiny_features, train_command
):
    """A relative path of two parts looks like "owner/name"."""
    from espnet2_slit.model import load_language_model as loading
    from espnet2_slit.task import IdentityError

    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "exp"
    shutil.copytree(tiny_parts.t5, "models/t5")
    main(train_command("generative", folder, "--language_model", "models/t5"))
    assert config(folder)["language_model_identity"]["local"] is True
    assert config(folder)["qformer_tokenizer_identity"]["local"] is True
    shutil.move("models/t5", "models/moved")
    asked = []
    loader = loading.load_language_model

    def watch(path, **conf):
        asked.append(path)
        return loader("models/moved", **conf)

    monkeypatch.setattr(loading, "load_language_model", watch)
    gone = "language_model: expected a file or folder at models/t5"
    with pytest.raises(IdentityError, match=gone):
        load(folder, "1epoch.pth")
    more = ["--language_model", "models/t5", "--resume", "true"]
    with pytest.raises(IdentityError, match=gone):
        main(train_command("generative", folder, *more, epochs=2))
    assert asked == []
    # what the user names now is what is asked for
    load(folder, "1epoch.pth", overrides={"language_model": "owner/name"})
    assert asked == ["owner/name"]


@pytest.fixture
def cpu_with_bfloat16(monkeypatch):
    """Switches the CPU's bfloat16 instructions on and off."""

    def switch(there):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: there)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)

    return switch


@pytest.mark.parametrize("there, chosen", [(False, "float32"), (True, "bfloat16")])
def test_config_says_which_precision_auto_was(
    there, chosen, tmp_path, tiny_features, train_command, cpu_with_bfloat16
):
    cpu_with_bfloat16(there)
    more = ["--model_conf", "precision=auto"]
    main(train_command("representation", tmp_path, *more))
    assert config(tmp_path)["model_conf"]["precision"] == chosen


def test_auto_frames_stay_those_of_the_training_on_another_machine(
    tmp_path, train_command, cpu_with_bfloat16
):
    from espnet2_slit.task import SLITTask

    cpu_with_bfloat16(False)
    more = ["--audio_encoder_conf", "precision=auto"]
    main(train_command("generative", tmp_path, *more, cached=False))
    assert config(tmp_path)["audio_encoder_conf"]["precision"] == "float32"
    cpu_with_bfloat16(True)
    model, _ = SLITTask.build_model_from_file(model_file=tmp_path / "1epoch.pth")
    assert model.audio_encoder.precision == "float32"


def test_a_cache_decides_what_auto_is(
    tmp_path, tiny_features, train_command, cpu_with_bfloat16
):
    cpu_with_bfloat16(True)  # and the tiny features are in float32
    more = ["--audio_encoder_conf", "precision=auto"]
    main(train_command("generative", tmp_path, *more))
    assert config(tmp_path)["audio_encoder_conf"]["precision"] == "float32"


def test_a_training_on_a_cache_alone_can_build_its_encoder(
    tmp_path, tiny_features, train_command
):
    """The encoder of a cache in bfloat16 is opened in bfloat16."""
    main(train_command("generative", tmp_path))
    assert config(tmp_path)["audio_encoder_conf"]["precision"] == "float32"


def test_a_cache_of_another_precision_than_asked_for_is_refused(
    tmp_path, tiny_features, train_command
):
    more = ["--audio_encoder_conf", "precision=bfloat16"]
    with pytest.raises(ValueError, match="precision: expected 'bfloat16'"):
        main(train_command("generative", tmp_path, *more))


def test_resume_with_another_language_model_is_refused(stages, tmp_path, train_command):
    import tiny

    from espnet2_slit.task import IdentityError

    folder = tmp_path / "generative"
    shutil.copytree(stages["generative"], folder, symlinks=True)
    other = tiny.t5(tmp_path / "t5", seed=1)
    start = config(folder)["initialized_from"]
    more = ["--resume", "true", "--language_model", other, "--init_param", *start]
    with pytest.raises(IdentityError, match="the language model is not the one"):
        main(train_command("generative", folder, *more, epochs=3))


def test_config_of_something_else_is_refused(tmp_path):
    from espnet2_slit.task import SLITTask

    with pytest.raises(FileNotFoundError, match="expected the config.yaml"):
        SLITTask.build_model_from_file(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("model: espnet\n")
    with pytest.raises(ValueError, match="found no model_conf"):
        SLITTask.build_model_from_file(tmp_path / "config.yaml")


# ---------------------------------------------------------------- --init_param


@pytest.mark.parametrize(
    "spec, loaded",
    [
        (":qformer:qformer", True),
        ("::", True),
        (":qformer:qformer:qformer.layers", False),
    ],
)
def test_init_param_with_prefixes_works_as_in_espnet(
    stages, tmp_path, train_command, spec, loaded
):
    from espnet2_slit.task import SLITTask
    from espnet2_slit.train.checkpoint import load_init_params

    file = stages["representation"] / "valid.loss.best.pth"
    cmd = train_command("generative", tmp_path, "--seed", "1")
    model = SLITTask.build_model(SLITTask.get_parser().parse_args(cmd))
    load_init_params(model, [f"{file}{spec}"])
    given, now = weights(file), model.state_dict()
    for name in ("query_tokens", "layers.0.self_attention.output.weight"):
        name = f"qformer.{name}"
        same = torch.equal(given[name], now[name])
        assert same == (loaded or "layers" not in name)


def test_init_param_that_fits_nowhere_is_an_error(stages, tmp_path, train_command):
    from espnet2_slit.common.weights import WeightsError
    from espnet2_slit.train.checkpoint import load_init_params

    file = stages["representation"] / "valid.loss.best.pth"
    model, _ = load(stages["generative"])
    with pytest.raises(WeightsError, match=r"unexpected \(language_projection.audio"):
        load_init_params(model, [f"{file}:heads:language_projection"])
    with pytest.raises(WeightsError, match="expected weights named encoder"):
        load_init_params(model, [f"{file}:encoder:qformer"])
    with pytest.raises(WeightsError, match="found nothing"):
        load_init_params(model, [str(tmp_path / "none.pth")])


def test_init_param_that_leaves_weights_untrained_is_an_error(
    stages, tmp_path, train_command, caplog
):
    from espnet2_slit.common.weights import WeightsError

    lean = tmp_path / "lean"
    main(train_command("generative", lean, "--model_conf", "carry_text_branch=false"))
    file = lean / "valid.loss.best.pth"
    cmd = train_command("instruction", tmp_path / "x", "--init_param", file)
    with pytest.raises(
        WeightsError, match=r"are in none of the files: qformer.embedding"
    ):
        main(cmd)
    main([*cmd, "--ignore_init_mismatch", "true"])  # knowingly
    # text side from stage 1, the rest from stage 2: together they cover the model
    first = stages["representation"] / "valid.loss.best.pth"
    both = ["--init_param", first, file]
    main(train_command("instruction", tmp_path / "y", *both))
    with pytest.raises(WeightsError, match="misshapen"):
        main(
            train_command(
                "generative",
                tmp_path / "z",
                *["--init_param", first, "--qformer_conf", "num_queries=4"],
            )
        )


def test_frozen_parts_are_untouched_by_a_training(
    tmp_path, tiny_parts, tiny_features, train_command, monkeypatch
):
    from espnet2_slit.model.load_language_model import load_language_model
    from espnet2_slit.task import SLITTask

    built = []
    build_model = SLITTask.build_model

    def keep(args):
        built.append(build_model(args))
        return built[-1]

    monkeypatch.setattr(SLITTask, "build_model", keep)
    more = ["--language_model_conf", "dtype=bfloat16"]
    main(train_command("generative", tmp_path, *more, cached=False))
    (model,) = built
    assert model.training is False  # the last thing a trainer does is to validate
    model.train()
    parts = (model.language_model.frozen, model.audio_encoder.frozen)
    assert [part.dtype for part in parts] == [torch.bfloat16, torch.float32]
    for part in parts:
        assert not any(m.training for m in part.module.modules())
        assert all(p.grad is None for p in part.module.parameters())
    fresh = load_language_model(str(tiny_parts.t5), dtype="bfloat16").frozen.module
    trained = model.language_model.frozen.module.state_dict()
    assert all(torch.equal(trained[n], v) for n, v in fresh.state_dict().items())


def test_lora_is_trained_saved_and_loaded(stages, tmp_path, train_command):
    pytest.importorskip("peft")
    more = [
        *["--init_param", stages["generative"] / "valid.loss.best.pth"],
        *["--language_model_conf", "{lora: {r: 2, target_modules: [q, v]}}"],
    ]
    main(train_command("instruction", tmp_path / "lora", *more))
    states = weights(tmp_path / "lora" / "1epoch.pth")
    adapters = [n for n in states if n.startswith("language_model.adapters.")]
    assert adapters and any(
        states[n].abs().sum() > 0 for n in adapters if "lora_B" in n
    )
    model, _ = load(tmp_path / "lora")
    assert all(torch.equal(states[n], model.state_dict()[n]) for n in adapters)


# ---------------------------------------------------------------- options and data


@pytest.mark.parametrize(
    "stage, more, match",
    [
        ("generative", ["--language_model", ""], "expected --language_model"),
        ("representation", ["--language_model", "x"], "expected no --language_model"),
        ("representation", ["--features", ""], "expected speech"),
        ("representation", ["--qformer_tokenizer", "nowhere"], "found 'nowhere'"),
        ("representation", ["--qformer_conf", "heads=3"], "heads 3"),
        ("representation", ["--qformer_conf", "haeds=3"], "haeds"),
        ("representation", ["--model_conf", "temprature=1"], "temprature"),
        ("representation", ["--preprocessor_conf", "max_len=1"], "max_len"),
        (
            "representation",
            ["--preprocessor_conf", "max_text_length=100"],
            "expected at most 64, .* found 100",
        ),
        ("generative", ["--language_model_conf", "dtpye=bfloat16"], "dtpye"),
        ("representation", ["--audio_encoder", "hugging_face"], "kind: expected"),
    ],
)
def test_wrong_options_are_refused(
    tmp_path, tiny_features, train_command, stage, more, match
):
    with pytest.raises((ValueError, TypeError), match=match):
        main(train_command(stage, tmp_path, *more))


def test_data_of_the_wrong_kind_is_refused(tmp_path, tiny_features, train_command):
    cmd = train_command("representation", tmp_path, cached=False)
    with pytest.raises(ValueError, match="expected feats"):
        main([*cmd, "--features", f"{tiny_features}/train/feats.json"])


def by_folders(command):
    """The same training, its data named by --train_dir and --valid_dir."""
    folders, words, names = {}, [], iter(command)
    for word in names:
        if word.endswith("_data_path_and_name_and_type"):
            folders[word[2:7]] = Path(next(names)).parent
        elif word.endswith("_shape_file") or word == "--features":
            next(names)
        else:
            words.append(word)
    return words + [f"--{part}_dir={folder}" for part, folder in folders.items()]


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("stage", STAGES)
def test_folders_stand_for_their_files(
    stage, cached, tmp_path, tiny_features, train_command
):
    from espnet2_slit.task import SLITTask, options

    command = train_command(stage, tmp_path, cached=cached)
    listed, found = (
        SLITTask.get_parser().parse_args(words)
        for words in (command, by_folders(command))
    )
    for part in ("train", "valid"):
        folder = Path(getattr(found, f"{part}_dir"))
        if not cached:  # as `slit data prepare` writes it
            lines = [f"{key} 16000" for key in kaldi_dir.sample_ids(folder)]
            writer.write_atomically(folder / "utt2num_samples", lines)
    options.find_data(found)
    options.check_data_names(found)
    for part in ("train", "valid"):
        option = f"{part}_data_path_and_name_and_type"
        assert set(getattr(found, option)) == set(getattr(listed, option))
        shapes = getattr(found, f"{part}_shape_file")
        assert Path(shapes[0]).name == ("feats_shape" if cached else "utt2num_samples")
    assert found.features == listed.features


def test_folders_train_what_their_files_train(stages, tmp_path, train_command):
    command = by_folders(train_command("representation", tmp_path, epochs=2))
    main([*command, "--keep_nbest_models", "2"])
    assert_equal_weights(
        tmp_path / "2epoch.pth", stages["representation"] / "2epoch.pth"
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_lists_on_disk_give_the_batches_of_lists_in_memory(
    tmp_path, tiny_features, train_command, monkeypatch, workers
):
    from espnet2.train.distributed_utils import DistributedOption

    from espnet2_slit.task import SLITTask

    command = train_command("instruction", tmp_path, f"--num_workers={workers}")
    options = SLITTask.get_parser().parse_args(command)

    def batches():
        single = DistributedOption()
        factory = SLITTask.build_iter_factory(options, single, mode="train")
        kinds = {kind for _, kind in factory.dataset.debug_info.values()}
        return kinds, list(factory.build_iter(1))

    kinds, found = batches()
    monkeypatch.delattr(SLITTask, "build_iter_options")  # what remains is ESPnet's
    espnets, expected = batches()
    assert kinds == {f"indexed_{kind}" for kind in espnets}
    assert espnets == {"text", "kaldi_ark"} and len(found) == len(expected) > 1
    for (ids, batch), (same_ids, same) in zip(found, expected, strict=True):
        assert ids == same_ids and batch.keys() == same.keys()
        assert all(torch.equal(batch[name], same[name]) for name in batch)


def test_folders_beside_other_files_are_refused(tmp_path, tiny_features, train_command):
    command = train_command("generative", tmp_path)
    with pytest.raises(ValueError, match="the folder or the files, not both"):
        main([*command, "--train_dir", str(tiny_features / "valid")])


def test_validation_features_of_another_encoder_are_refused(
    tmp_path, tiny_features, train_command
):
    folder = tmp_path / "dump"
    shutil.copytree(tiny_features, folder)
    path = folder / "valid" / "feats.json"
    content = json.loads(path.read_text())
    content["identity"]["fingerprint"] = "0" * 64
    path.write_text(json.dumps(content))
    cmd = [
        re.sub(f"^{tiny_features}", str(folder), option)
        for option in train_command("representation", tmp_path / "x")
    ]
    with pytest.raises(ValueError, match="not of the configured audio encoder"):
        main(cmd)


def test_collect_stats_builds_no_model(tmp_path, tiny_features, train_command):
    cmd = train_command("generative", tmp_path, "--collect_stats", "true")
    cmd = [option for option in cmd if option != "--resume"]
    main(cmd)
    shapes = (tmp_path / "train" / "feats_shape").read_text().splitlines()
    assert len(shapes) == 12 and shapes[0].endswith(",24")


def test_weight_decay_spares_vectors(tiny_features, tmp_path, train_command):
    from espnet2_slit.task import SLITTask

    args = SLITTask.get_parser().parse_args(train_command("generative", tmp_path))
    model = SLITTask.build_model(args)
    (optimizer,) = SLITTask.build_optimizers(args, model)
    decayed, spared = optimizer.param_groups
    assert decayed["weight_decay"] == 0.05 and spared["weight_decay"] == 0
    assert all(p.dim() > 1 for p in decayed["params"])
    assert all(p.dim() <= 1 for p in spared["params"])
    total = sum(len(g["params"]) for g in optimizer.param_groups)
    assert total == sum(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    "options, expected",
    [
        ([], True),
        (["--optim_conf", "fused=false"], False),
        (["--optim_conf", "foreach=true"], None),
    ],
)
def test_optimizer_is_fused_unless_the_user_says_otherwise(
    options, expected, tiny_features, tmp_path, train_command
):
    from espnet2_slit.task import SLITTask

    command = train_command("generative", tmp_path, *options)
    args = SLITTask.get_parser().parse_args(command)
    (optimizer,) = SLITTask.build_optimizers(args, SLITTask.build_model(args))
    assert optimizer.defaults["fused"] is expected


def test_printed_config_can_be_given_back(monkeypatch, tmp_path):
    from espnet2_slit.task import SLITTask

    options = ["slit_train", "--model", "generative", "--qformer_conf", "width=24"]
    monkeypatch.setattr("sys.argv", options)
    path = tmp_path / "x.yaml"
    with path.open("w") as stream:
        SLITTask.print_config(file=stream)
    args = SLITTask.get_parser().parse_args(["--config", str(path)])
    assert args.model == "generative" and args.qformer_conf == {"width": 24}
    assert args.model_conf == {
        "instructed": False,
        "carry_text_branch": True,
        "precision": "float32",
    }


def test_printed_defaults_do_not_change_what_a_stage_trains(tmp_path, tiny_parts):
    """Such a configuration says `instructed`, and older ones a switch of ESPnet's."""
    import tiny_system

    defaults = "{instructed: false, extract_feats_in_collect_stats: false}"
    folder = tiny_system.experiment(
        tmp_path / "x", tiny_parts, "instruction", model_conf=defaults
    )
    model, _ = load(folder)
    assert model.qformer.embedding.word.weight.requires_grad


def test_defaults_fit_a_bare_installation():
    from espnet2_slit.task import SLITTask

    args = SLITTask.get_parser().parse_args([])
    assert args.num_att_plot == 0
    assert args.best_model_criterion == [("valid", "loss", "min")]
    for name in ("tensorboard", "matplotlib"):
        from espnet2_slit.common.compat import is_installed

        assert getattr(args, f"use_{name}") == is_installed(name)


@pytest.mark.parametrize("stage", STAGES)
def test_recipe_config_is_accepted(stage):
    from espnet2_slit.task import SLITTask

    conf = Path(__file__).parents[1] / "egs2/slit/slit1/conf"
    found = sorted(conf.rglob(f"train_{stage}_*.yaml"))
    assert found
    for path in found:
        args = SLITTask.get_parser().parse_args(["--config", str(path)])
        assert args.model == stage
        assert not re.search(r"[\s:]/\w", path.read_text()), "a path in a config"


# ---------------------------------------------------------------- GPU options


def test_amp_passes_through_and_changes_nothing_on_a_cpu(
    tmp_path, tiny_features, train_command
):
    more = ["--resume", "true"]
    main(train_command("generative", tmp_path / "plain", *more, epochs=2))
    amp = train_command("generative", tmp_path / "amp", *more, "--use_amp", "true")
    main(amp)
    assert checkpoint(tmp_path / "amp")["scaler"] is not None
    amp[amp.index("--max_epoch") + 1] = "2"
    main(amp)  # the loss scale is taken up
    assert_equal_weights(tmp_path / "plain/2epoch.pth", tmp_path / "amp/2epoch.pth")


def test_deepspeed_in_one_process_trains_by_our_trainer(
    tmp_path, tiny_features, train_command
):
    from espnet2_slit.task import SLITTask
    from espnet2_slit.train.trainer import SLITTrainer

    main(train_command("generative", tmp_path, "--use_deepspeed", "true"))
    assert SLITTask.trainer is SLITTrainer
    assert "max_non_finite_batches" in config(tmp_path)


def test_deepspeed_says_what_it_lacks(tmp_path, monkeypatch):
    from argparse import Namespace

    from espnet2_slit.common import compat
    from espnet2_slit.task import SLITTask

    args = Namespace(use_deepspeed=True, distributed=True, deepspeed_config=None)
    monkeypatch.setattr(compat, "is_installed", lambda name: False)
    with pytest.raises(ValueError, match="pip install deepspeed"):
        SLITTask._uses_deepspeed(args)
    monkeypatch.setattr(compat, "is_installed", lambda name: True)
    with pytest.raises(ValueError, match="found None. Give --deepspeed_config"):
        SLITTask._uses_deepspeed(args)
    conf = Path(__file__).parents[1] / "egs2/slit/slit1/conf/full"
    args.deepspeed_config = str(conf / "deepspeed.json")
    assert SLITTask._uses_deepspeed(args)
    optimizer = json.loads((conf / "deepspeed.json").read_text())["optimizer"]
    same = yaml.safe_load((conf / "train_representation_base.yaml").read_text())
    for name, value in same["optim_conf"].items():
        assert optimizer["params"][name] == value, name


# ---------------------------------------------------------------- not finite


def test_batch_of_nan_is_skipped_and_named(tmp_path, bad_corpus, train_command, caplog):
    cmd = train_command("generative", tmp_path, cached=False)
    with caplog.at_level(logging.WARNING):
        main(bad_corpus(cmd))
    errors = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert errors and "NaN or Inf in the input of: train-2-" in errors[0]
    assert "(1 of at most 20" in errors[0]
    states = weights(tmp_path / "1epoch.pth")
    assert all(v.isfinite().all() for v in states.values())
    stats = checkpoint(tmp_path)["reporter"]["stats"][1]["train"]
    assert stats["non_finite"] > 0 and math.isfinite(stats["loss"])


def test_too_many_batches_of_nan_stop_the_run(tmp_path, bad_corpus, train_command):
    from espnet2_slit.train.trainer import NotFiniteError

    cmd = train_command("generative", tmp_path, cached=False)
    cmd = [*cmd, "--max_non_finite_batches", "0"]
    with pytest.raises(NotFiniteError, match="expected at most 0.*train-2-"):
        main(bad_corpus(cmd))


# ---------------------------------------------------------------- ranks


@pytest.fixture(scope="module")
def one_rank(two_ranks, two_rank_commands):
    """The trainings of ranks.py on one rank."""
    for command in two_rank_commands("one"):
        main(command)
    return two_ranks


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_train_the_weights_of_one(one_rank, two_ranks, stage):
    for name in ("1epoch.pth", "2epoch.pth"):
        assert_equal_weights(
            two_ranks / "one" / stage / name,
            two_ranks / "two" / stage / name,
            rtol=1e-5,
            atol=1e-5,
        )


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_report_the_losses_of_one(one_rank, two_ranks, stage):
    stats = [
        checkpoint(two_ranks / where / stage)["reporter"]["stats"][2]["valid"]
        for where in ("one", "two")
    ]
    assert set(stats[0]) == set(stats[1])
    assert stats[1]["loss"] == pytest.approx(stats[0]["loss"], abs=1e-5)


def test_all_ranks_stop_at_nan_on_one_of_them(two_ranks):
    messages = [(two_ranks / f"stopped{rank}").read_text() for rank in (0, 1)]
    assert messages[0] == messages[1]
    assert "train-2-" in messages[0] and "Rank 1:" in messages[0]
