"""Claims about CUDA: what a GPU computes, trains and writes is what a CPU does.

Everything here skips on a machine without one, the tests of two GPUs also on a machine
with one. Float32 is compared with TF32 switched off; each step is small.
"""

import copy
import json
import math
import os
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import test_audio_encoder
import test_language_model
import tiny
import tiny_system
import torch
import torch.distributed as dist
from test_espnet_model import STAGES, assert_close, make_batch, make_model, rows
from test_language_model import CANDIDATES, inputs, padded, prefix_of
from test_step_checkpoint import run_until
from tiny_qformer import tiny_audio, tiny_batch, tiny_qformer, tiny_text

from espnet2_slit.common.padded import Padded
from espnet2_slit.common.weights import read_checkpoint, read_weights
from espnet2_slit.inference.attention import attention as attention_maps
from espnet2_slit.inference.retrieval import retrieve
from espnet2_slit.inference.slit import SLIT
from espnet2_slit.model import cpu_attention as attention
from espnet2_slit.model import objectives
from espnet2_slit.model.language_model import GenerationOptions
from espnet2_slit.model.load_language_model import load_language_model
from espnet2_slit.train.checkpoint import STEP_FILE

DEVICE, BACKEND, NGPU = "cuda", "nccl", "1"
ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "egs2" / "slit" / "slit1"
SGD = ["--optim", "sgd", "--optim_conf", "{lr: 0.05, weight_decay: 0.01}"]
LM_NAMES = tuple(tiny.LANGUAGE_MODELS)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA device"
    ),
]

paths, build = test_audio_encoder.paths, test_audio_encoder.build
folders, load = test_language_model.folders, test_language_model.load


@pytest.fixture(autouse=True)
def exact_float32(monkeypatch):
    """TF32 has 10 bits of mantissa; cuDNN takes it for convolutions by default."""
    if DEVICE == "cuda":
        monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def moved(batch, device=DEVICE):
    """Its tensors on the device."""
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


def close(found, expected, tolerance=1e-4):
    """To the tolerance, of the largest number where that is above 1."""
    assert_close(found.detach().float().cpu(), expected.detach().float(), tolerance)


def step(model, batch):
    """Loss, stats and gradients of one step."""
    model.zero_grad()
    loss, stats, _ = model(**batch)
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss, **stats}, gradients


def assert_same_step(found, expected, tolerance=1e-4):
    for ours, theirs in zip(found, expected, strict=True):
        assert set(ours) == set(theirs)
        for name, value in theirs.items():
            close(ours[name], value, tolerance)


# ------------------------------------------------------------- losses and gradients


@pytest.mark.parametrize("conf", [{}, {"gather": "detach"}], ids=["full", "detach"])
@pytest.mark.parametrize("stage", STAGES)
def test_losses_and_gradients_are_those_of_the_cpu(stage, conf, tiny_parts):
    if conf and stage != "representation":
        pytest.skip("only the contrastive loss gathers")
    model, batch = make_model(stage, tiny_parts.t5, **conf), make_batch(stage)
    twin = make_model(stage, tiny_parts.t5, **conf).to(DEVICE)
    assert_same_step(step(twin, moved(batch)), step(model, batch))


@pytest.mark.parametrize("stage", STAGES)
def test_losses_of_one_clip_and_in_eval_are_those_of_the_cpu(stage, tiny_parts):
    model, batch = make_model(stage, tiny_parts.llama), make_batch(stage)
    twin = make_model(stage, tiny_parts.llama).to(DEVICE)
    for part in (batch, rows(batch, [0]), rows(batch, [4, 2])):
        for mode in (True, False):
            found = twin.train(mode)(**moved(part))[1]
            for name, value in model.train(mode)(**part)[1].items():
                close(found[name], value)


@pytest.mark.parametrize("window", [0.0, 0.4])
def test_instructed_queries_are_those_of_the_cpu(window):
    batch = tiny_batch()
    qformer = tiny_qformer(query_window_s=window, frames_per_second=10.0)
    found = []
    for device in ("cpu", DEVICE):
        model = copy.deepcopy(qformer).to(device)
        memory = model.encode_frames(tiny_audio(batch).to(device))
        queries = model.forward_queries(memory, tiny_text(batch).to(device)).hidden
        hidden = queries.values * queries.mask()[..., None]
        hidden.cos().sum().backward()
        found.append([hidden, *(p.grad for p in model.parameters())])
    for ours, theirs in zip(found[1], found[0], strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            close(ours, theirs)


def test_recomputed_layers_draw_the_same_dropout_again(tiny_parts):
    found = []
    for checkpointing in (False, True):
        model = make_model("representation", None).to(DEVICE)
        model.qformer.gradient_checkpointing = checkpointing
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.3
        torch.manual_seed(5)
        found.append(step(model, moved(make_batch("representation"))))
    for ours, theirs in zip(*found, strict=True):
        for name, value in theirs.items():
            close(ours[name], value.cpu(), 1e-5)


def test_compiled_layers_give_the_same_queries():
    backend = "inductor" if DEVICE == "cuda" else "eager"
    if DEVICE == "cuda":
        pytest.importorskip("triton")
    qformer, batch = tiny_qformer(layers=2).to(DEVICE), moved(tiny_batch())
    found = []
    for compiled in (False, True):
        if compiled:
            for layer in qformer.layers:
                layer.compile(backend=backend)
        memory = qformer.encode_frames(tiny_audio(batch))
        hidden = qformer.forward_queries(memory).hidden.values
        qformer.zero_grad()
        hidden.cos().sum().backward()
        found.append([hidden, qformer.query_tokens.grad.clone()])
    for ours, theirs in zip(*found, strict=True):
        close(ours, theirs.cpu())


# ---------------------------------------------------------------------- attention


MASKS = {
    "none": None,
    "frames": torch.arange(11) < torch.tensor([11, 4, 7])[:, None, None, None],
    "causal": torch.ones(5, 11, dtype=torch.bool).tril(6),
    "all pairs": torch.rand(3, 1, 5, 11).argsort(-1) < 9,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask", MASKS)
def test_attention_is_that_of_the_cpu(mask, dtype):
    mask, generator = MASKS[mask], torch.Generator().manual_seed(0)
    shapes = [(3, 4, 5, 24), (3, 4, 11, 24), (3, 4, 11, 24)]
    exact = [torch.randn(shape, generator=generator) for shape in shapes]
    exact = [x.to(dtype).float() for x in exact]
    found = []
    for device, kind in (("cpu", torch.float32), (DEVICE, dtype)):
        inputs = [x.clone().to(device, kind).requires_grad_() for x in exact]
        there = None if mask is None else mask.to(device)
        context = attention.attend(*inputs, there, 0.0)
        context.float().sin().sum().backward()
        found.append([context, *(x.grad for x in inputs)])
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    for ours, theirs in zip(found[1], found[0], strict=True):
        close(ours, theirs, tolerance)


def test_attention_leaves_the_cpu_path(monkeypatch):
    if DEVICE == "cuda":
        monkeypatch.setattr(attention, "_Attention", None)
    torch.manual_seed(0)
    # equal values: what is left of the weights is the mean of the kept ones
    value = torch.ones(2, 3, 400, 8, device=DEVICE)
    mask = torch.ones(2, 1, 1, 400, dtype=torch.bool, device=DEVICE)
    for given in (None, mask):
        context = attention.attend(value, value, value, given, 0.5)
        assert abs(context.mean().item() - 1) < 0.02 and context.std() > 0.01


# ---------------------------------------------------------------- frozen parts


@pytest.mark.parametrize("name", test_audio_encoder.NAMES)
def test_frames_are_those_of_the_cpu(name, build):
    encoder = build(name)
    clips = [
        test_audio_encoder.noise(seconds, encoder.sample_rate, i)
        for i, seconds in enumerate((1.5, 0.61, 11.3))
    ]
    speech, lengths = test_audio_encoder.batch(clips)
    expected, counts = encoder(speech, lengths)
    twin = copy.deepcopy(encoder).to(DEVICE)
    for where in ("cpu", DEVICE):  # the caller's tensors may be anywhere
        found, there = twin(speech.to(where), lengths.to(where))
        assert found.device.type == torch.device(DEVICE).type
        assert there.tolist() == counts.tolist()
        close(found, expected, 1e-3)


@pytest.mark.parametrize("name", LM_NAMES)
def test_language_model_computes_and_writes_as_on_the_cpu(name, load):
    lm = load(name)
    twin = copy.deepcopy(lm).to(DEVICE)
    prefix, (prompt, target) = prefix_of(lm), inputs(lm)
    candidates = padded([lm.encode_target(text) for text in CANDIDATES])
    options = GenerationOptions(num_beams=2, max_new_tokens=8)
    sampling = GenerationOptions(1, 8, do_sample=True, seed=1)
    found = []
    for model, device in ((lm, "cpu"), (twin, DEVICE)):
        vectors = prefix.values.clone().to(device).requires_grad_()
        here, asked = Padded(vectors.detach()), prompt.to(device)
        total, count, right = model.loss(Padded(vectors), asked, target.to(device))
        total.backward()
        scores = model.score_candidates(here, asked, candidates.to(device), 7)
        texts = model.generate(here, asked, options)
        state = torch.cuda.get_rng_state() if DEVICE == "cuda" else None
        drawn = model.generate(here, None, sampling)
        assert drawn == model.generate(here, None, sampling)
        if state is not None:
            assert torch.equal(torch.cuda.get_rng_state(), state)
        found.append(([total, vectors.grad, scores], [int(count), int(right), texts]))
    assert found[1][1] == found[0][1]
    for ours, theirs in zip(found[1][0], found[0][0], strict=True):
        close(ours, theirs)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["t5", "llama"])
def test_language_model_in_few_bits_is_near_the_exact_one(name, bits, folders):
    pytest.importorskip("bitsandbytes")
    exact = load_language_model(folders(name)).to(DEVICE)
    lm = load_language_model(folders(name), dtype="bfloat16", load_in_bits=bits)
    assert lm.identity()["load_in_bits"] == bits
    lm = lm.to(DEVICE)  # is there already
    prompt, target = (x.to(DEVICE) for x in inputs(exact))
    losses = []
    for model in (exact, lm):
        vectors = prefix_of(exact).values.to(DEVICE).requires_grad_()
        total, count, _ = model.loss(Padded(vectors), prompt, target)
        total.backward()
        assert vectors.grad.isfinite().all() and vectors.grad.any()
        losses.append(total.item() / int(count))
    assert losses[1] != losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=0.5)
    texts = lm.generate(Padded(vectors.detach()), prompt, GenerationOptions(2, 4))
    assert len(texts) == 3
    with pytest.raises(RuntimeError, match="8 or 4 bits on cuda"):
        lm.to("cpu")


# ------------------------------------------------------------------- trainings


def main(command):
    from espnet2_slit.task import SLITTask

    SLITTask.main(cmd=list(map(str, command)))


def history(folder):
    """{"train": {name: value}, "valid": ...} of the first epoch."""
    return read_checkpoint(folder / "checkpoint.pth")["reporter"]["stats"][1]


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory, train_command, tiny_features):
    """Folder of an epoch of each stage in float32 on the CPU, by plain SGD."""
    made = {}

    def folder(stage):
        if stage not in made:
            made[stage] = tmp_path_factory.mktemp(f"cpu_{stage}")
            main(train_command(stage, made[stage], *SGD))
        return made[stage]

    return folder


FORMATS = {
    "float32": [],
    "bfloat16": ["--model_conf", "precision=bfloat16"],
    "amp": ["--use_amp", "true"],  # what the GPU has
    "amp float16": ["--use_amp", "true"],
}


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_trains_on_the_gpu_and_its_files_work_on_the_cpu(
    stage, number_format, on_cpu, train_command, tmp_path, monkeypatch
):
    from espnet2.train import trainer

    from espnet2_slit.task import SLITTask

    if number_format == "amp float16":
        monkeypatch.setattr(trainer, "autocast_args", {"dtype": torch.float16})
    more = [*SGD, *FORMATS[number_format], "--ngpu", NGPU]
    if "float16" in number_format.split():  # the first scales overflow
        more += ["--batch_size", "1"]
    main(train_command(stage, tmp_path, *more))
    states = read_checkpoint(tmp_path / "checkpoint.pth")
    assert (states["scaler"] is not None) == number_format.startswith("amp")
    found, expected = history(tmp_path), history(on_cpu(stage))
    assert found["train"].get("non_finite", 0) == 0
    if number_format == "float32":
        for split in ("train", "valid"):
            for name, value in expected[split].items():
                if "time" not in name and "gpu" not in name:
                    assert found[split][name] == pytest.approx(value, abs=2e-3), name
        mine, theirs = (
            read_weights(folder / "1epoch.pth") for folder in (tmp_path, on_cpu(stage))
        )
        assert set(mine) == set(theirs)
        for name, weight in theirs.items():
            close(mine[name], weight, 1e-3)
    elif number_format != "amp float16":
        assert found["valid"]["loss"] == pytest.approx(
            expected["valid"]["loss"], rel=0.05
        )
    assert math.isfinite(found["valid"]["loss"])
    weights = read_weights(tmp_path / "1epoch.pth")
    first = read_weights(on_cpu(stage) / "1epoch.pth")
    assert all(w.isfinite().all() for w in weights.values())
    assert {n: w.shape for n, w in weights.items()} == {
        n: w.shape for n, w in first.items()
    }
    model, _ = SLITTask.build_model_from_file(model_file=tmp_path / "1epoch.pth")
    assert {p.device.type for p in model.parameters()} == {"cpu"}


@pytest.mark.parametrize("more", [[], ["--use_amp", "true"]], ids=["plain", "amp"])
def test_adamw_is_fused_and_a_second_run_goes_on(
    more, train_command, tiny_features, tmp_path
):
    """Two epochs in one go and in two: one state, on the device, of the same values."""
    more = [*more, "--ngpu", NGPU, "--optim_conf", "eps=0.001"]
    for folder, epochs in (("whole", 2), ("two", 1), ("two", 2)):
        command = train_command("instruction", tmp_path / folder, *more, epochs=epochs)
        main([*command, "--resume", "true"])
    one, two = (
        read_checkpoint(tmp_path / name / "checkpoint.pth") for name in ("whole", "two")
    )
    for name, weight in one["model"].items():
        close(two["model"][name], weight, 3e-4)
    assert two["scaler"] == one["scaler"]
    assert two["optimizers"][0]["param_groups"][0]["fused"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_killed_inside_an_epoch_draws_the_same_dropout(
    stage, train_command, tiny_features, tmp_path
):
    more = [*SGD, "--ngpu", NGPU, "--qformer_conf", "dropout=0.1", "--resume", "true"]
    more += ["--checkpoint_minutes", "1e-9", "--num_workers", "1"]
    whole, killed = (
        train_command(stage, tmp_path / name, *more, "--batch_size", "2")
        for name in ("whole", "killed")
    )
    main(whole)
    run_until(4, killed)
    state = read_checkpoint(tmp_path / "killed" / STEP_FILE)
    assert state["step"] == 3
    assert ("cuda" in state["random_states"][0]) == torch.cuda.is_available()
    main(killed)
    mine, theirs = (
        read_weights(tmp_path / name / "1epoch.pth") for name in ("killed", "whole")
    )
    for name, weight in theirs.items():
        close(mine[name], weight, 2e-5)


def test_batches_of_nan_are_skipped_on_the_gpu(
    bad_corpus, train_command, tmp_path, caplog
):
    command = train_command("representation", tmp_path, "--ngpu", NGPU, cached=False)
    main(bad_corpus(command))
    assert "NaN or Inf in the input of: train-2-0" in caplog.text
    weights = read_weights(tmp_path / "1epoch.pth").values()
    assert all(w.isfinite().all() for w in weights)


def test_lora_is_trained_on_the_gpu(train_command, tiny_features, tmp_path):
    pytest.importorskip("peft")
    lora = "lora={r: 2, lora_alpha: 4, target_modules: [q, v], lora_dropout: 0.1}"
    more = ["--language_model_conf", lora, "--ngpu", NGPU, "--use_amp", "true"]
    main(train_command("generative", tmp_path, *more))
    weights = read_weights(tmp_path / "1epoch.pth")
    adapters = [w for n, w in weights.items() if "lora_B" in n]
    assert adapters and all(w.dtype == torch.float32 and w.any() for w in adapters)


# ----------------------------------------------------------------------- ranks


@pytest.fixture
def one_rank(tmp_path):
    """A process group of one rank."""
    if DEVICE == "cuda":
        torch.cuda.set_device(0)
    dist.init_process_group(
        BACKEND, init_method=f"file://{tmp_path}/store", world_size=1, rank=0
    )
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("stage", STAGES)
def test_exchanges_between_ranks_change_nothing_with_one(
    stage, one_rank, tiny_parts, monkeypatch
):
    """Every gather, fetch and mean goes through NCCL, as if there were more ranks."""
    batch = moved(make_batch(stage))
    expected = step(make_model(stage, tiny_parts.t5).to(DEVICE), batch)
    monkeypatch.setattr(objectives, "_is_parallel", lambda: True)
    monkeypatch.setattr(objectives.World, "size", property(lambda self: 2))
    calls = []
    for name in ("all_gather", "all_reduce", "broadcast"):
        original = getattr(dist, name)

        def noting(*args, original=original, name=name, **kwargs):
            calls.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(dist, name, noting)
    found = step(make_model(stage, tiny_parts.t5).to(DEVICE), batch)
    wanted = {"all_reduce"}
    if stage == "representation":
        wanted |= {"all_gather", "broadcast"}
    assert set(calls) == wanted
    for ours, theirs in zip(found, expected, strict=True):
        for name, value in theirs.items():
            close(ours[name], value.cpu(), 1e-5)


def distributed_main(rank, world_size, folder, backend, commands):
    """What ESPnet starts for each rank, with a world of any size."""
    from espnet2_slit.task import SLITTask

    for number, command in enumerate(commands):
        args = SLITTask.get_parser().parse_args(list(map(str, command)))
        args.version, args.distributed = "test", True
        args.multiprocessing_distributed = False
        args.dist_backend = backend
        args.dist_init_method = f"file://{folder}/store{number}"
        args.dist_rank, args.dist_world_size = rank, world_size
        if int(NGPU):
            args.local_rank = rank if torch.cuda.device_count() >= world_size else 0
        try:
            SLITTask.main_worker(args)
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


def spawn(world_size, *arguments, limit_s=120):
    """`distributed_main` in processes of their own; ends them if they wait for ever."""
    import torch.multiprocessing as mp

    arguments = (world_size, *arguments)
    context = mp.spawn(distributed_main, arguments, nprocs=world_size, join=False)
    end = time.monotonic() + limit_s
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < end, f"the ranks still run after {limit_s} s"
    finally:
        for process in context.processes:
            process.kill()


@pytest.mark.parametrize("stage", STAGES)
def test_one_rank_of_espnets_trainer_is_no_rank(stage, on_cpu, train_command, tmp_path):
    more = [*SGD, "--ngpu", NGPU, "--checkpoint_minutes", "1e-9"]
    command = train_command(stage, tmp_path / "exp", *more)
    distributed_main(0, 1, tmp_path, BACKEND, [command])
    mine, theirs = (
        read_weights(folder / "1epoch.pth")
        for folder in (tmp_path / "exp", on_cpu(stage))
    )
    for name, weight in theirs.items():
        close(mine[name], weight, 1e-3)


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_two_ranks_train_the_weights_of_one(
    backend, train_command, tiny_features, tmp_path
):
    """With gloo both ranks may use one GPU, which NCCL refuses."""
    if backend == "nccl" and torch.cuda.device_count() < 2:
        pytest.skip("NCCL needs a GPU for each rank, found fewer than two")
    more = [*SGD, "--batch_size", "5", "--ngpu", NGPU]
    one, two = (
        [train_command(stage, tmp_path / name / stage, *more) for stage in STAGES]
        for name in ("one", "two")
    )
    for command in one:
        main(command)
    spawn(2, str(tmp_path), backend, two)
    for stage in STAGES:
        mine, theirs = (
            read_weights(tmp_path / name / stage / "1epoch.pth")
            for name in ("two", "one")
        )
        for name, weight in theirs.items():
            close(mine[name], weight, 2e-4)


def test_espnets_launcher_starts_a_training(train_command, tiny_features, tmp_path):
    log = tmp_path / "exp" / "train.log"
    words = [sys.executable, "-m", "espnet2.bin.launch", "--cmd", "run.pl"]
    words += ["--log", log, "--ngpu", NGPU, "--multiprocessing_distributed", "true"]
    words += ["--init_file_prefix", tmp_path / ".dist_init_", "--"]
    words += [sys.executable, "-m", "espnet2_slit.bin.slit_train"]
    words += train_command("generative", tmp_path / "exp", "--resume", "true")
    path = f"{RECIPE / 'utils'}{os.pathsep}{os.environ['PATH']}"
    known = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        list(map(str, words)),
        env=os.environ | {"PATH": path, "PYTHONPATH": known},
        capture_output=True,
        text=True,
    )
    text = log.read_text() if log.exists() else ""
    assert done.returncode == 0, done.stderr[-2000:] + text[-3000:]
    assert f"ngpu: {NGPU}" in (tmp_path / "exp" / "config.yaml").read_text()
    assert history(tmp_path / "exp")["train"]["loss"] > 0


def test_deepspeed_trains_and_its_weights_can_be_read(
    train_command, tiny_features, tmp_path
):
    pytest.importorskip("deepspeed")
    config = json.loads((RECIPE / "conf/full/deepspeed.json").read_text())
    config["train_micro_batch_size_per_gpu"] = 4
    config["optimizer"]["params"]["torch_adam"] = True  # else it compiles its own
    (tmp_path / "deepspeed.json").write_text(json.dumps(config))
    more = ["--use_deepspeed", "true", "--ngpu", NGPU]
    more += ["--deepspeed_config", tmp_path / "deepspeed.json"]
    command = train_command("representation", tmp_path / "exp", *more)
    spawn(1, str(tmp_path), BACKEND, [command])
    (file,) = (tmp_path / "exp").glob("checkpoint_1/1/*model_states.pt")
    from espnet2_slit.task import SLITTask

    conf = tmp_path / "exp" / "config.yaml"
    model, _ = SLITTask.build_model_from_file(conf, None)
    assert set(read_weights(file)) == set(model.state_dict())
    # ESPnet leaves valid.loss.ave.pth as a link to a file that DeepSpeed never wrote
    SLITTask.build_model_from_file(conf, file)


# ------------------------------------------------------------------- inference


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Five clips of different length and sound."""
    folder, files = tmp_path_factory.mktemp("wav"), []
    for i in range(5):
        random = np.random.default_rng(i)
        moments = np.arange(int(16000 * (0.4 + 0.13 * i))) / 16000
        audio = 0.4 * np.sin(2 * np.pi * 200 * (i + 1) * moments)
        audio += 0.1 * random.standard_normal(len(moments))
        files.append(folder / f"{i}.wav")
        soundfile.write(files[-1], audio.astype(np.float32), 16000, subtype="FLOAT")
    return list(map(str, files))


@pytest.fixture(scope="module")
def systems(tmp_path_factory, tiny_parts):
    """One system on the CPU and on the GPU."""
    folder = tiny_system.system(tmp_path_factory.mktemp("exp"), tiny_parts)
    return Namespace(
        folder=folder,
        cpu=SLIT.from_pretrained(folder),
        gpu=SLIT.from_pretrained(folder, device=DEVICE),
    )


def test_texts_are_those_of_the_cpu(systems, clips):
    short = {"max_new_tokens": 6, "num_beams": 2}
    questions = [f"what is {i}?" for i in range(5)]
    found = [
        [
            slit.caption(clips, options=short),
            slit.answer(clips, questions, options=short),
            slit.answer(clips, questions, candidates=["yes", "no", "a dog", "two"]),
        ]
        for slit in (systems.gpu, systems.cpu)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("route", ["similarity", "matching", "language_model"])
def test_label_scores_are_those_of_the_cpu(route, systems, clips):
    labels = ["dog_bark", "rain", "a bell rings", "wind"]
    found, expected = (
        slit.classify(clips, labels, route=route) for slit in (systems.gpu, systems.cpu)
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.label == theirs.label
        assert ours.scores == pytest.approx(theirs.scores, abs=1e-3, rel=1e-3)


def test_embeddings_rankings_and_attention_are_those_of_the_cpu(systems, clips):
    texts = ["a dog barks twice", "loud rain falls on a roof", "birds chirp"]
    found = []
    for slit in (systems.gpu, systems.cpu):
        opened = slit.clips(clips)
        scores = retrieve(slit, opened, texts, 3)
        arrays = [slit.embed_audio(clips), slit.embed_text(texts)]
        arrays += [slit.extract_features(clips)["last_hidden_state"]]
        arrays += attention_maps(slit, opened)
        arrays += attention_maps(slit, opened, "describe the audio")
        found.append([*arrays, *(scores[name] for name in sorted(scores))])
    for ours, theirs in zip(*found, strict=True):
        assert isinstance(ours, np.ndarray)
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def test_commands_encode_and_write_on_the_gpu(
    systems, clips, tiny_corpus, tiny_parts, tmp_path, capsys
):
    from espnet2_slit.bin import slit, slit_encode
    from espnet2_slit.data.kaldi_matrix import FeatureReader

    caches = []
    for ngpu in ("0", NGPU):
        caches.append(tmp_path / f"cache {len(caches)}")
        words = ["--data_dir", tiny_corpus / "data/train", "--output_dir", caches[-1]]
        words += ["--audio_encoder", "beats", "--dtype", "float32", "--ngpu", ngpu]
        words += ["--audio_encoder_conf", f"path={tiny_parts.beats}"]
        assert slit_encode.main(list(map(str, words))) == 0
    cpu, gpu = (FeatureReader(folder / "feats.scp") for folder in caches)
    keys = (tiny_corpus / "data/train/text").read_text().splitlines()
    for key in (line.split()[0] for line in keys):
        np.testing.assert_allclose(gpu[key], cpu[key], rtol=1e-3, atol=1e-3)
    capsys.readouterr()
    words = ["caption", *clips, "--model", systems.folder, "--device", "cuda"]
    words += ["--num_beams", "2", "--max_new_tokens", "6"]
    assert slit.main(list(map(str, words))) == 0
    texts = systems.cpu.caption(clips, options={"max_new_tokens": 6, "num_beams": 2})
    written = [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()]
    assert written == texts
