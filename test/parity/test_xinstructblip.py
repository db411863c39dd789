"""X-InstructBLIP's own numbers, through an imported system.

The golden files hold what its makers' code computed on a tiny random model: weights
under the released names, inputs, intermediates, results. `A` is as its evaluation
recipes are configured (layout "plain"), `B` as its default configuration ("chat").
Values to match are those of each clip alone: in a batch that code gives clips each
other's instructions. Settings of beam search that transformers 5 decodes otherwise are
left out by the file itself.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_file import Golden
from xinstruct_parts import GOLDEN, parts

from espnet2_slit import SLIT
from espnet2_slit.common.padded import Padded
from espnet2_slit.data.prompt_encoder import Layout
from espnet2_slit.inference.import_xinstructblip import import_xinstructblip, layout_ids
from espnet2_slit.model.audio_encoder import build_audio_encoder
from espnet2_slit.model.language_model import GenerationOptions

golden = Golden(*GOLDEN)
BEATS = Golden("XINSTRUCT_BEATS_GOLDEN", "xinstruct_beats_small.npz")
LAYOUTS = {"A": "plain", "B": "chat"}
SYSTEMS = [name for name in LAYOUTS if f"{name}/config.json" in golden]
CLIPS = range(len(golden["in/frames"]))
EACH_CLIP = [(system, clip) for system in SYSTEMS for clip in CLIPS]
SAME = golden["decode_portable.json"]["same"]


def close(ours, theirs, tolerance=1e-4):
    torch.testing.assert_close(
        ours.detach().float(), theirs.float(), rtol=0, atol=tolerance
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return parts(tmp_path_factory.mktemp("xinstructblip"), golden)


@pytest.fixture(scope="module")
def systems(files, tmp_path_factory):
    """Imported systems by the file's letters; windows have the file's frames."""
    found = {}
    for name in SYSTEMS:
        out = tmp_path_factory.mktemp("exp") / name
        import_xinstructblip(
            files.qformer,
            files.audio_encoder,
            files.language_model,
            out,
            str(files.qformer_tokenizer),
            LAYOUTS[name],
            files.heads,
            "float32",
        )
        found[name] = SLIT.from_pretrained(out).generator
        found[name].model.qformer.query_window_frames = golden["in/frames"].shape[2]
    return found


class Case:
    """One clip of the file in one system."""

    def __init__(self, systems, system, clip):
        self.part, self.at = systems[system], f"{system}/clip{clip}"
        self.model = self.part.model
        self.lm = self.model.language_model
        self.system, self.clip = system, clip
        self.instruction = golden["in/instructions"][clip]
        self.frames = golden["in/frames"][clip].flatten(0, 1)[None]  # (1, n T, D_a)
        self.lengths = torch.tensor([self.frames.shape[1]])

    def __getitem__(self, name):
        return golden[f"{self.at}/{name}"]

    def ids(self, name, instruction=None):
        """Ids of an instruction, (1, L), by the system's own preprocessor."""
        found = self.part.prompt(instruction or self.instruction)[name]
        return Padded(torch.from_numpy(found)[None], torch.tensor([len(found)]))

    def reads(self, instruction=None):
        frames = Padded(self.frames, self.lengths)
        return frames, self.ids("qformer_instruction", instruction)

    def prefix(self):
        with torch.no_grad():
            prefix = self.model.prefix(*self.reads())
        assert prefix.mask().all()
        return prefix.values


@pytest.fixture(params=EACH_CLIP, ids=[f"{s}-clip{c}" for s, c in EACH_CLIP])
def case(request, systems):
    return Case(systems, *request.param)


def embed(lm, ids):
    return lm.frozen.module.get_input_embeddings()(ids)


def first_token(lm, prefix, prompt):
    """(B, V) log-likelihoods of every token as the first."""
    tokens = torch.arange(lm.vocabulary)[:, None]
    return lm.score_candidates(Padded(prefix), prompt, Padded(tokens))


def target(lm, answers):
    rows = [torch.tensor(lm.encode_target(answer)) for answer in answers]
    lengths = torch.tensor([len(row) for row in rows])
    return Padded(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths)


# ----------------------------------------------------------------- waveform to frames


def test_frames_of_a_waveform_are_those_of_filled_windows(tmp_path):
    torch.save(
        {"cfg": BEATS["cfg.json"], "model": BEATS.below("checkpoint")},
        tmp_path / "beats.pt",
    )
    theirs = BEATS["out/frames"]  # (n, T, D_a)
    encoder = build_audio_encoder(
        "beats",
        path=tmp_path / "beats.pt",
        window_s=5.135,
        fill_windows=len(theirs),
        max_windows=32,
    )
    assert encoder.frames_per_window == theirs.shape[1]
    speech = BEATS["in/wave_int16"].float() / 32768
    frames, lengths = encoder(speech[None], torch.tensor([len(speech)]))
    assert lengths[0] >= len(theirs) * theirs.shape[1]
    ours = frames[0, : len(theirs) * theirs.shape[1]].unflatten(0, theirs.shape[:2])
    # the log of a nearly silent band hangs on how a machine sums: 5e-5 of 2.4 seen
    close(ours, theirs, 5e-4)


def test_frames_are_normalised_as_theirs(systems):
    norm = systems[SYSTEMS[0]].model.qformer.frame_norm
    close(norm(golden["in/frames"]), golden["mid/frames_after_ln"])


# -------------------------------------------------------------------------------- ids


@pytest.mark.parametrize("system", SYSTEMS)
def test_ids_around_audio_and_prompt(system, files, systems):
    ids = golden.below(f"{system}/ids")
    layout = Layout(**layout_ids(files.language_model, LAYOUTS[system]))
    cue, space, prefix = (ids[name].tolist() for name in ("cue", "space", "prefix"))
    assert list(layout.head) == (prefix + cue[1:] if prefix else cue)
    text = systems[system].model.language_model.text
    instructions = [*golden["in/instructions"], golden["in/instruction_shared"]]
    for i, instruction in enumerate(instructions):
        assert text.encode_prompt(instruction) == space + ids[f"prompt{i}"].tolist()
    assert text.head == list(layout.head)


@pytest.mark.parametrize("system", SYSTEMS)
def test_ids_of_answers_and_labels(system, systems):
    ids = golden.below(f"{system}/ids")
    lm = systems[system].model.language_model
    begin, end = ids["special"][:2].tolist()
    assert lm.eos_id == end
    for i, answer in enumerate(golden["in/answers"]):
        assert [begin, *lm.encode_target(answer)] == ids[f"answer{i}"].tolist()
    for i, candidate in enumerate(golden["in/candidates"]):
        expected = ids[f"candidate{i}"].tolist()
        assert [begin, *lm.encode_target(candidate)] == [*expected, end]


def test_qformer_reads_the_instruction_in_their_ids(case):
    mask = case["qformer_attention_mask"][0].bool()
    ours, _ = case.ids("qformer_instruction")
    assert torch.equal(ours[0], case["qformer_ids"][0][mask])


# ------------------------------------------------------------------- frames to prefix


def test_queries_of_every_window(case):
    qformer, (frames, instruction) = case.model.qformer, case.reads()
    with torch.no_grad():
        memory = qformer.encode_frames(frames)
        found = qformer.forward_queries(memory, instruction).hidden.values
    close(found[0].unflatten(0, (memory.windows, -1)), case["queries"][0])


def test_prefix(case):
    close(case.prefix(), case["prefix"])


def test_clips_of_a_batch_read_their_own_instructions(systems):
    """Theirs do not; ours are what each clip is alone."""
    cases = [Case(systems, SYSTEMS[0], clip) for clip in CLIPS]
    frames = Padded.cat([case.reads()[0] for case in cases])
    instructions = Padded.cat([case.reads()[1] for case in cases])
    with torch.no_grad():
        prefix = cases[0].model.prefix(frames, instructions).values
    for case, row in zip(cases, prefix, strict=True):
        close(row, case["prefix"][0])


OWN = [s for s in SYSTEMS if f"{s}/own_qformer_prompt/prefix" in golden]


@pytest.mark.parametrize("system", OWN)
def test_an_instruction_of_the_qformers_own(system, systems):
    case, at = Case(systems, system, 0), f"{system}/own_qformer_prompt"
    other = golden["in/instructions"][1]
    with torch.no_grad():
        prefix = case.model.prefix(*case.reads(other)).values
    close(prefix, golden[f"{at}/prefix"])
    ours = first_token(case.lm, prefix, case.ids("llm_prompt"))
    theirs = golden[f"{at}/generate/next_token_logits"].log_softmax(-1)
    close(ours, theirs)


# ----------------------------------------------------------------- the language model


def test_sequence_that_writing_starts_from(case):
    embedded, used = case.lm._inputs(Padded(case["prefix"]), case.ids("llm_prompt"))
    close(embedded, case["generate/inputs_embeds"])
    assert torch.equal(used.long(), case["generate/attention_mask"])


def test_likelihoods_of_the_first_token(case):
    ours = first_token(case.lm, case.prefix(), case.ids("llm_prompt"))
    close(ours, case["generate/next_token_logits"].log_softmax(-1))


DECODED = [name for name in SAME if "/clip" in name]


@pytest.mark.parametrize("name", DECODED)
def test_written_ids(name, systems, monkeypatch):
    at, _, setting = name.partition("/generate/")
    system, _, clip = at.partition("/clip")
    case = Case(systems, system, int(clip))
    settings = dict(golden["decode.json"][setting])
    options = GenerationOptions(
        # a generation from embeddings began with a token that was counted, not seen
        max_new_tokens=settings.pop("max_length") - 1,
        min_new_tokens=settings.pop("min_length") - 1,
        **settings,
    )
    written = []
    write = case.lm._write

    def spy(*inputs):
        written.extend(map(list, write(*inputs)))
        return written

    monkeypatch.setattr(case.lm, "_write", spy)
    (text,) = case.lm.generate(Padded(case.prefix()), case.ids("llm_prompt"), options)
    theirs = golden[f"{name}/ids"][0, 1:].tolist()

    def until_end(ids):
        return ids[: ids.index(case.lm.eos_id) + 1] if case.lm.eos_id in ids else ids

    assert until_end(written[0]) == until_end(theirs)
    assert text == golden[f"{name}/text"][0]


def trained_inputs(case, prefix, rows):
    """Prefix and prompts in the order of their training.

    It has no blank before the prompt, and in `B` the audio stands there twice.
    """
    if LAYOUTS[case.system] == "chat":
        cue = embed(case.lm, golden[f"{case.system}/ids/cue"]).expand(rows, -1, -1)
        prefix = torch.cat([prefix, cue, prefix], dim=1)
    return prefix, len(golden[f"{case.system}/ids/space"])


def test_loss_and_logits_of_training(case):
    prefix, blank = trained_inputs(case, case.prefix(), 1)
    prompt, length = case.ids("llm_prompt")
    logits = []
    head = case.lm.frozen.module.get_output_embeddings()
    handle = head.register_forward_hook(lambda *call: logits.append(call[2][0]))
    answer = target(case.lm, golden["in/answers"][case.clip : case.clip + 1])
    asked = Padded(prompt[:, blank:], length - blank)
    total, tokens, _ = case.lm.loss(Padded(prefix), asked, answer)
    handle.remove()
    close(total / tokens, case["train/loss"], 1e-5)
    close(logits[0], case["train/target_logits"])


def test_likelihoods_of_labels(case):
    candidates, lengths = target(case.lm, golden["in/candidates"])
    lengths = lengths - 1  # without the end
    assert lengths.tolist() == case["classify/token_count"][0].tolist()
    prompt = case.ids("llm_prompt")
    words = Padded(candidates, lengths)
    sums = case.lm.score_candidates(Padded(case.prefix()), prompt, words)
    close(sums, case["classify/sum_log_likelihood"])
    order = np.argsort(-sums[0].numpy(), kind="stable").tolist()
    assert order == case["classify/ranking"][0].tolist()


MIXED = [s for s in SYSTEMS if f"{s}/batch_mixed/prefix" in golden]


@pytest.mark.parametrize("system", MIXED)
def test_prompts_of_unequal_length_in_one_batch(system, systems):
    """Their prefixes of a batch are of mixed clips, but from there on it is sound."""
    cases = [Case(systems, system, clip) for clip in CLIPS]
    case, at = cases[0], f"{system}/batch_mixed"
    prefix = golden[f"{at}/prefix"]
    prompts = Padded.cat([one.ids("llm_prompt") for one in cases])
    ours = first_token(case.lm, prefix, prompts)
    close(ours, golden[f"{at}/generate/next_token_logits"].log_softmax(-1))
    candidates, count = target(case.lm, golden["in/candidates"])
    words = Padded(candidates, count - 1)
    sums = case.lm.score_candidates(Padded(prefix), prompts, words)
    close(sums, golden[f"{at}/classify/sum_log_likelihood"])
    trained, blank = trained_inputs(case, prefix, len(prefix))
    asked = Padded(prompts.values[:, blank:], prompts.lengths - blank)
    answers = target(case.lm, golden["in/answers"])
    total, tokens, _ = case.lm.loss(Padded(trained), asked, answers)
    close(total / tokens, golden[f"{at}/train/loss"], 1e-5)


SHARED = [s for s in SYSTEMS if f"{s}/batch_same/prefix" in golden]


@pytest.mark.parametrize("system", SHARED)
def test_a_batch_of_one_instruction(system, systems):
    case, at = Case(systems, system, 0), f"{system}/batch_same"
    shared, rows = golden["in/instruction_shared"], len(CLIPS)
    frames = golden["in/frames"].flatten(1, 2)

    def repeated(name):
        return case.ids(name, shared).repeat_each(rows)

    with torch.no_grad():
        prefix = case.model.prefix(Padded(frames), repeated("qformer_instruction"))
    prefix = prefix.values
    close(prefix, golden[f"{at}/prefix"])
    ours = first_token(case.lm, prefix, repeated("llm_prompt"))
    close(ours, golden[f"{at}/generate/next_token_logits"].log_softmax(-1))
