"""Claims about ESPnet's own tables of tasks."""

import espnet
import pytest

import espnet2_slit


def test_espnets_loader_finds_the_class(monkeypatch):
    """In espnet 202611; of 202511, which has no such table, nothing is said."""
    assert espnet2_slit.register() == [
        f"espnet.{name}" for name in ("TASKS", "_HUB_LABELS") if hasattr(espnet, name)
    ]
    monkeypatch.setattr(espnet, "TASKS", {"asr": ("x", "Y")}, raising=False)
    labels = (("text-to-audio", "tts"),)
    monkeypatch.setattr(espnet, "_HUB_LABELS", labels, raising=False)
    for _ in range(2):  # once is enough
        assert espnet2_slit.register() == ["espnet.TASKS", "espnet._HUB_LABELS"]
        assert espnet.TASKS == {"asr": ("x", "Y"), "slit": ("espnet2_slit", "SLIT")}
        assert espnet._HUB_LABELS == (("espnet2_slit", "slit"), *labels)
    assert hasattr(espnet2_slit.SLIT, "from_pretrained")


def test_lightning_takes_the_task():
    pytest.importorskip("lightning")
    from espnet2.train.lightning_espnet_model import task_choices

    from espnet2_slit.task import SLITTask

    assert espnet2_slit.register(lightning=True)
    assert task_choices["slit"] is SLITTask
