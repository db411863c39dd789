"""Claims about what other servers of language models are given."""

import numpy as np
import pytest
import soundfile
import tiny_system
import torch

from espnet2_slit.bin import slit as command
from espnet2_slit.inference.prompt_embeds import prompt_embeds
from espnet2_slit.inference.slit import SLIT, InferenceError

GREEDY = {"num_beams": 1, "max_new_tokens": 8}


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_parts):
    return tiny_system.system(tmp_path_factory.mktemp("exp"), tiny_parts)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wav")
    random = np.random.default_rng(0)
    for name, samples in (("a", 9000), ("b", 16000), ("more/a", 12000)):
        (folder / name).parent.mkdir(exist_ok=True)
        soundfile.write(
            folder / f"{name}.wav", random.uniform(-0.3, 0.3, samples), 16000
        )
    return [str(folder / f"{name}.wav") for name in ("a", "b", "more/a")]


def by_transformers(slit, row):
    """The text that the bare language model writes after these embeddings."""
    model = slit.generator.model.language_model
    ids = model.frozen.module.generate(
        inputs_embeds=row[None],
        attention_mask=torch.ones(1, len(row), dtype=torch.long),
        do_sample=False,
        num_beams=1,
        max_new_tokens=GREEDY["max_new_tokens"],
        min_new_tokens=1,
    )
    return model.tokenizer.decode(ids[0], skip_special_tokens=True).strip()


def test_transformers_writes_the_same_text_after_them(model, files, tmp_path, capsys):
    slit = SLIT.from_pretrained(model)
    expected = slit.caption(files, options=GREEDY)
    rows = prompt_embeds(slit, files)
    assert [by_transformers(slit, row) for row in rows] == expected
    words = [*files, "--out", str(tmp_path / "out"), "--model", str(model)]
    assert command.main(["prompt-embeds", *words]) == 0
    names = [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()]
    assert names == [str(tmp_path / "out" / n) for n in ("a.pt", "b.pt", "a.2.pt")]
    for name, row in zip(names, rows, strict=True):
        written = torch.load(name, weights_only=True)
        torch.testing.assert_close(written, row, rtol=0, atol=1e-5)


def test_the_instruction_is_in_them(model, files):
    slit = SLIT.from_pretrained(model)
    question = "How many dogs are there?"
    (row,) = prompt_embeds(slit, files[:1], question)
    expected = slit.caption(files[0], instruction=question, options=GREEDY)
    assert by_transformers(slit, row) == expected
    assert len(row) != len(prompt_embeds(slit, files[:1])[0])


def test_a_model_with_an_encoder_is_refused(tmp_path, tiny_parts, files):
    folder = tiny_system.experiment(tmp_path / "x", tiny_parts, "generative")
    with pytest.raises(InferenceError, match="expected a causal language model"):
        prompt_embeds(SLIT.from_pretrained(folder), files)
