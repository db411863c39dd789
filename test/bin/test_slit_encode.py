"""Claims about the command that fills feature caches."""

import json
import shutil

import pytest

from espnet2_slit.bin import slit_encode


@pytest.mark.parametrize("there, chosen", [(False, "float32"), (True, "bfloat16")])
def test_auto_precision_is_the_machines_where_no_cache_is(
    tmp_path, monkeypatch, there, chosen
):
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: there)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    assert slit_encode.encoder_precision([tmp_path], ngpu=0) == chosen


def test_auto_precision_is_that_of_the_cache_which_another_machine_made(
    tmp_path, monkeypatch, tiny_features, tiny_parts
):
    cache = shutil.copytree(tiny_features / "valid", tmp_path / "valid")
    before = json.loads((cache / "feats.json").read_text())
    assert before["identity"]["precision"] == "float32"
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: True)
    command = ["--data_dir", str(tiny_features.parent / "data" / "valid")]
    command += ["--output_dir", str(cache), "--audio_encoder", "beats"]
    command += ["--audio_encoder_conf", f"path={tiny_parts.beats}"]
    command += ["--audio_encoder_conf", "precision=auto"]
    assert slit_encode.main(command) == 0
    after = json.loads((cache / "feats.json").read_text())
    assert after["identity"] == before["identity"]
    assert after["shards"] == before["shards"]
