"""Claims about the three models: losses, statistics, gradients, health, ranks."""

import itertools
import math
import traceback

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from espnet2_slit.common.padded import Padded

WIDTH, VOCAB, FRAME_WIDTH = 16, 40, 12
STAGES = ("representation", "generative", "instruction")


def make_model(stage, lm_folder, dtype="float32", seed=0, layers=2, **conf):
    """A tiny model of one stage without audio encoder, in train mode."""
    from espnet2_slit.model.espnet_model import (
        PromptedModel,
        RepresentationModel,
    )
    from espnet2_slit.model.load_language_model import load_language_model
    from espnet2_slit.model.qformer import QFormer

    torch.manual_seed(seed)
    qformer = QFormer(
        FRAME_WIDTH,
        VOCAB,
        width=WIDTH,
        layers=layers,
        heads=2,
        feed_forward=32,
        num_queries=3,
        max_text_length=32,
        dropout=0.0,
        bos_id=VOCAB - 1,
        text_branch=conf.get("carry_text_branch", True),
        language_head=stage == "representation",
    )
    if stage == "representation":
        return RepresentationModel(qformer, joint_width=8, **conf)
    language_model = load_language_model(str(lm_folder), dtype=dtype)
    conf["instructed"] = stage == "instruction"
    return PromptedModel(qformer, language_model, **conf)


def make_batch(stage, size=6, seed=0):
    """Clips 0 and 1 are one clip, texts 2 and 3 are equal; lengths differ."""
    g = torch.Generator().manual_seed(seed)

    def ids(high, longest):
        lengths = torch.randint(3, longest + 1, (size,), generator=g)
        lengths[0] = longest
        values = torch.randint(5, high, (size, longest), generator=g)
        mask = torch.arange(longest) < lengths[:, None]
        return values * mask, lengths

    frame_lengths = torch.randint(4, 10, (size,), generator=g)
    frame_lengths[0] = 9
    feats = torch.randn(size, 9, FRAME_WIDTH, generator=g)
    batch = {
        "feats": feats * (torch.arange(9) < frame_lengths[:, None])[..., None],
        "feats_lengths": frame_lengths,
        "clip_id": torch.arange(size)[:, None] + 100,
        "utt_id": [f"utt{i}" for i in range(size)],
    }
    batch["clip_id"][1:2] = batch["clip_id"][0]
    if stage == "representation":
        batch["qformer_text"], batch["qformer_text_lengths"] = ids(VOCAB - 1, 7)
        batch["text_id"] = torch.arange(size)[:, None] + 200
        if size > 3:
            batch["text_id"][3] = batch["text_id"][2]
        return batch
    batch["llm_target"], batch["llm_target_lengths"] = ids(100, 6)
    if stage == "instruction":
        batch["llm_prompt"], batch["llm_prompt_lengths"] = ids(100, 5)
        batch["qformer_instruction"], batch["qformer_instruction_lengths"] = ids(30, 5)
    return batch


def rows(batch, index):
    """The samples `index` of a batch, padding cut as a loader would do."""
    part = {
        k: [v[i] for i in index] if isinstance(v, list) else v[index]
        for k, v in batch.items()
    }
    for name in [k for k in part if f"{k}_lengths" in part]:
        part[name] = part[name][:, : int(part[f"{name}_lengths"].max())]
    return part


def as_padded(batch, name):
    return Padded(batch[name], batch[f"{name}_lengths"])


def assert_close(actual, expected, tolerance=1e-5):
    """To 1e-5, of the largest number of the tensor where that is above 1."""
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)


def values(stats):
    return {name: float(value) for name, value in stats.items()}


@pytest.fixture(scope="module", params=STAGES)
def stage(request):
    return request.param


@pytest.fixture(scope="module")
def model(stage, tiny_parts):
    return make_model(stage, tiny_parts.t5)


# ---------------------------------------------------------------- losses and stats


def test_loss_is_the_weighted_sum_of_its_parts(tiny_parts):
    weights = {"contrastive": 1.0, "matching": 0.5, "generation": 2.0}
    model = make_model(
        "representation", None, **{f"{k}_weight": v for k, v in weights.items()}
    )
    loss, stats, weight = model(**make_batch("representation"))
    expected = sum(w * float(stats[f"loss_{k}"]) for k, w in weights.items())
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert int(weight) == 6
    assert 0 <= float(stats["recall_audio_to_text"]) <= 1


def test_stats_keys_are_always_the_same(model, stage):
    keys = set()
    for size in (6, 2, 1):
        for training in (True, False):
            model.train(training)
            _, stats, _ = model(**make_batch(stage, size))
            keys.add(tuple(stats))
            assert all(v is not None and v.numel() == 1 for v in stats.values())
    model.train()
    assert len(keys) == 1
    assert {"loss", "non_finite", "loss_spike", "query_diversity"} <= set(keys.pop())


def test_every_trained_weight_gets_a_gradient(model, stage):
    model.zero_grad()
    model(**make_batch(stage))[0].sum().backward()
    idle = [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and p.grad is None
    ]
    assert idle == []  # DDP would stop with an error


OBJECTIVES = ("contrastive", "matching", "generation")


@pytest.mark.parametrize("layers", [2, 3])  # the last one without and with audio
@pytest.mark.parametrize(
    "kept", [c for n in (1, 2) for c in itertools.combinations(OBJECTIVES, n)]
)
def test_objectives_can_be_switched_off(kept, layers):
    off = {f"{name}_weight": 0.0 for name in OBJECTIVES if name not in kept}
    model = make_model("representation", None, layers=layers, **off)
    loss, stats, _ = model(**make_batch("representation"))
    loss.sum().backward()
    idle = [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and p.grad is None
    ]
    assert idle == []  # DDP would stop with an error
    assert loss.item() == pytest.approx(
        sum(float(stats[f"loss_{k}"]) for k in kept), rel=1e-6
    )


def test_all_objectives_off_is_refused():
    with pytest.raises(ValueError, match="one is positive"):
        make_model(
            "representation",
            None,
            contrastive_weight=0,
            matching_weight=0,
            generation_weight=0,
        )


def test_batch_of_one_trains(model, stage):
    loss, stats, weight = model(**make_batch(stage, 1))
    assert math.isfinite(loss.item()) and int(weight) == 1
    assert float(stats["non_finite"]) == 0


def test_order_of_samples_does_not_matter(stage, tiny_parts):
    batch = make_batch(stage)
    results = []
    for index in ([0, 1, 2, 3, 4, 5], [4, 2, 0, 5, 1, 3]):
        model = make_model(stage, tiny_parts.t5)
        results.append(values(model(**rows(batch, index))[1]))
    assert results[0] == pytest.approx(results[1], abs=1e-5)


def test_padding_of_audio_and_text_changes_nothing(stage, tiny_parts):
    batch = make_batch(stage)
    model = make_model(stage, tiny_parts.t5).eval()
    expected = values(model(**batch)[1])
    padded = {
        k: (
            torch.nn.functional.pad(v, [0, 0] * (v.dim() - 2) + [0, 4], value=3)
            if f"{k}_lengths" in batch
            else v
        )
        for k, v in batch.items()
    }
    assert values(model(**padded)[1]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("prompted", ["generative", "instruction"])
def test_prefix_of_a_clip_does_not_depend_on_its_neighbours(prompted, tiny_parts):
    model = make_model(prompted, tiny_parts.t5).eval()
    batch = make_batch(prompted)

    def prefix(part):
        return model.prefix(*(as_padded(part, n) for n in names)).values

    names = ["feats", "qformer_instruction"][: 1 + (prompted == "instruction")]
    together = prefix(batch)
    for i in range(6):
        alone = prefix(rows(batch, [i]))
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-5)


@pytest.mark.parametrize("prompted", ["generative", "instruction"])
def test_accumulated_halves_give_the_gradient_of_the_whole(prompted, tiny_parts):
    # equal token counts, so that the mean over halves is the mean over all
    model = make_model(prompted, tiny_parts.t5)
    batch = make_batch(prompted)
    batch["llm_target_lengths"] = torch.full((6,), 4)
    model(**rows(batch, range(6)))[0].sum().backward()
    whole = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    for half in ([0, 1, 2], [3, 4, 5]):
        (model(**rows(batch, half))[0].sum() / 2).backward()
    for name, gradient in whole.items():
        actual = dict(model.named_parameters())[name].grad
        assert_close(actual, gradient)


def test_inference_methods_agree_with_training(tiny_parts):
    model = make_model("representation", None).eval()
    batch = make_batch("representation")
    embedded, memory = model.embed_audio(as_padded(batch, "feats"))
    texts = as_padded(batch, "qformer_text")
    text = model.embed_text(texts)
    torch.testing.assert_close(embedded.norm(dim=-1), torch.ones(6, 3))
    torch.testing.assert_close(text.norm(dim=-1), torch.ones(6))
    index = torch.arange(6)
    logit = model.match(memory, texts, index, index)
    assert logit.shape == (6,)
    assert model.temperature == pytest.approx(0.07)


WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique")


class Waits(TorchDispatchMode):
    """Notes operators of our own that an accelerator would have to be waited for."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(name in str(function) for name in WAITS):
            stack = "".join(traceback.format_stack())
            if "transformers" not in stack:  # its masks are its own business
                self.found.append((str(function), stack))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_step_on_an_accelerator_never_waits_and_computes_the_same(
    stage, precision, tiny_parts, monkeypatch
):
    """Its path is run here; operators that need a number on the host are counted."""
    batch, results = make_batch(stage), []
    for on_host in (True, False):
        model = make_model(stage, tiny_parts.t5, precision=precision)
        if not on_host:
            for room in ("packed_text", "qformer", "language_model"):
                name = f"espnet2_slit.model.{room}.is_on_host"
                monkeypatch.setattr(name, lambda lengths: False)
        with Waits() as waits:
            loss, stats, _ = model(**batch)
            loss.sum().backward()
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        results.append((values(stats), gradients))
    assert waits.found == []
    (expected, gradients), (found, others) = results
    digits = 1e-5 if precision == "float32" else 0.05
    assert found == pytest.approx(expected, abs=digits)
    for mine, other in zip(gradients, others, strict=True):
        assert_close(other, mine, digits)


# ---------------------------------------------------------------- frozen parts


@pytest.mark.parametrize("prompted", ["generative", "instruction"])
@pytest.mark.parametrize("lm", ["t5", "llama"])
def test_language_model_stays_frozen_bf16_and_lets_gradients_through(
    prompted, lm, tiny_parts
):
    model = make_model(prompted, getattr(tiny_parts, lm), dtype="bfloat16")
    model.train()
    model.to(dtype=torch.float32, device="cpu")  # as ESPnet's AbsTask does
    frozen = model.language_model.frozen
    assert frozen.dtype == torch.bfloat16
    assert not any(m.training for m in frozen.module.modules())
    model(**make_batch(prompted))[0].sum().backward()
    assert model.qformer.query_tokens.grad.abs().sum() > 0
    assert all(p.grad is None for p in frozen.module.parameters())


def test_checkpoint_holds_the_trainable_parts_alone(model, stage):
    parts = {name.split(".")[0] for name in model.state_dict()}
    expected = (
        {"qformer", "heads", "training_step"}
        if stage == "representation"
        else {"qformer", "language_projection"}
    )
    assert parts == expected
    assert {n.split(".")[0] for n, _ in model.named_parameters()} <= expected


def test_generative_carries_the_text_branch_untrained(tiny_parts):
    from espnet2_slit.model.espnet_model import text_branch_names

    carried = make_model("generative", tiny_parts.t5)
    names = text_branch_names(carried.qformer)
    text = [n for n, _ in carried.named_parameters() if n.startswith(names)]
    assert text and not any(
        dict(carried.named_parameters())[n].requires_grad for n in text
    )
    lean = make_model("generative", tiny_parts.t5, carry_text_branch=False)
    assert not [n for n in lean.state_dict() if n.startswith(names)]


def test_speech_and_feats_exclude_each_other(model, stage):
    batch = make_batch(stage)
    with pytest.raises(ValueError, match="found both"):
        model(**batch, speech=torch.zeros(6, 100), speech_lengths=torch.full((6,), 100))
    batch.pop("feats")
    with pytest.raises(ValueError, match="found neither"):
        model(**batch)
    with pytest.raises(ValueError, match="built for cached features"):
        model(**batch, speech=torch.zeros(6, 100), speech_lengths=torch.full((6,), 100))


# ---------------------------------------------------------------- health


def test_not_finite_input_is_flagged_and_does_not_crash(model, stage):
    batch = make_batch(stage)
    batch["feats"] = batch["feats"].clone()
    batch["feats"][1, 0, 0] = float("nan")
    loss, stats, _ = model(**batch)
    assert not math.isfinite(loss.item())
    assert float(stats["non_finite"]) == 1
    _, stats, _ = model(**make_batch(stage))  # and is forgotten at the next step
    assert float(stats["non_finite"]) == 0 and float(stats["loss_spike"]) == 0


def test_loss_spike_is_flagged(tiny_parts):
    model = make_model("generative", tiny_parts.t5)
    batch = make_batch("generative")
    assert float(model(**batch)[1]["loss_spike"]) == 0
    model._running_loss = model._running_loss / 10
    assert float(model(**batch)[1]["loss_spike"]) == 1


def test_query_diversity_sees_dead_queries():
    from espnet2_slit.model.espnet_model import query_diversity

    same = torch.ones(2, 3, 8)
    assert float(query_diversity(Padded(same))) == pytest.approx(0, abs=1e-6)
    orthogonal = torch.eye(8)[None, :3].expand(2, -1, -1)
    assert float(query_diversity(Padded(orthogonal))) == pytest.approx(1, abs=1e-6)
    assert math.isnan(float(query_diversity(Padded(torch.ones(2, 1, 8)))))


def test_similarity_spread_sees_a_collapse():
    model = make_model("representation", None)
    batch = make_batch("representation")
    healthy = float(model(**batch)[1]["similarity_spread"])
    torch.nn.init.zeros_(model.heads.text_projection.weight)  # all texts alike
    collapsed = float(model(**batch)[1]["similarity_spread"])
    assert collapsed < 1e-4 < healthy


# ---------------------------------------------------------------- ranks

# 6 clips on two ranks: ESPnet's own split, and uneven ones; the captions of one clip
# (samples 0 and 1) land on different ranks.
SPLITS = (([0, 2, 4], [1, 3, 5]), ([0, 2, 3, 4], [1, 5]), ([0, 2, 3, 4, 5], [1]))


def trainer_step(model, batch, ranks):
    """Loss, statistics and gradients as ESPnet's Trainer and DDP make them."""
    from espnet2.torch_utils.recursive_op import recursive_average

    model.zero_grad()
    loss, stats, weight = model(**batch)
    loss = (loss * weight.type(loss.dtype)).sum()
    stats, weight = recursive_average(stats, weight, ranks > 1)
    (loss / weight * ranks).backward()
    gradients = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            if ranks > 1:
                dist.all_reduce(p.grad)
                p.grad /= ranks
            gradients[name] = p.grad.clone()
    return {k: float(v) for k, v in stats.items()}, gradients


def losses_and_gradients(rank, lm_folder):
    """Every stage and split as one of two ranks; for the process group of ranks.py."""
    results = {}
    for stage in STAGES:
        for i, split in enumerate(SPLITS):
            model = make_model(stage, lm_folder)
            part = rows(make_batch(stage), split[rank])
            results[stage, i] = trainer_step(model, part, 2)
    return results


@pytest.mark.parametrize("split", range(len(SPLITS)))
def test_two_ranks_are_one_rank(two_ranks, stage, split, tiny_parts):
    model = make_model(stage, tiny_parts.t5)
    stats, gradients = trainer_step(model, make_batch(stage), 1)
    first, second = (
        torch.load(two_ranks / f"steps{rank}.pt", weights_only=True)[stage, split]
        for rank in (0, 1)
    )
    assert list(first[0]) == list(second[0]) == list(stats)
    for their_stats, their_gradients in (first, second):
        assert their_stats == pytest.approx(stats, abs=1e-5)
        assert set(their_gradients) == set(gradients)
        for name, gradient in gradients.items():
            assert_close(their_gradients[name], gradient)


# ------------------------------------------------------------------ precision


def test_bfloat16_steps_are_close_and_weights_stay_float32(stage, tiny_parts):
    batch = make_batch(stage)
    exact = make_model(stage, tiny_parts.t5)
    rounded = make_model(stage, tiny_parts.t5, precision="bfloat16")
    loss, found = exact(**batch)[0], rounded(**batch)[0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss, rtol=0.02, atol=0.02)
    assert found.item() != loss.item()  # it did compute in another precision
    found.backward()
    for parameter in rounded.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is None or parameter.grad.isfinite().all()


def test_unknown_precision_is_named(stage, tiny_parts):
    with pytest.raises(
        ValueError, match=r"model_conf.precision: expected one of .*'float64'"
    ):
        make_model(stage, tiny_parts.t5, precision="float64")
