"""Readers of public corpora: the publisher's own files -> data directories.

One file a corpus and one line here; `base` holds everything they share. Imports nothing
of this package but the data directories.
"""

from espnet2_slit.data.corpora.audiocaps import AudioCaps
from espnet2_slit.data.corpora.audioset import AudioSet
from espnet2_slit.data.corpora.base import Corpus, Limits, Report, Sample, build_sets
from espnet2_slit.data.corpora.clotho import Clotho
from espnet2_slit.data.corpora.clotho_aqa import ClothoAQA
from espnet2_slit.data.corpora.esc50 import ESC50
from espnet2_slit.data.corpora.fsd50k import FSD50K
from espnet2_slit.data.corpora.macs import MACS
from espnet2_slit.data.corpora.multiple_choice import (
    MMAR,
    MMAU,
    DCASEQuestions,
    MMAUPro,
)
from espnet2_slit.data.corpora.nsynth import NSynth
from espnet2_slit.data.corpora.open_aqa import CompAR, OpenAQA
from espnet2_slit.data.corpora.tables import CorpusError
from espnet2_slit.data.corpora.urbansound8k import UrbanSound8K
from espnet2_slit.data.corpora.vggsound import VGGSound
from espnet2_slit.data.corpora.wavcaps import WavCaps
from espnet2_slit.data.corpora.youtube_captions import AudioSetCaps, AutoACD

READERS: dict[str, type[Corpus]] = {
    reader.name: reader
    for reader in (
        AudioCaps,
        Clotho,
        WavCaps,
        MACS,
        ClothoAQA,
        AudioSet,
        ESC50,
        UrbanSound8K,
        VGGSound,
        FSD50K,
        NSynth,
        AudioSetCaps,
        AutoACD,
        OpenAQA,
        CompAR,
        MMAU,
        MMAUPro,
        MMAR,
        DCASEQuestions,
    )
}

__all__ = [
    "READERS",
    "Corpus",
    "CorpusError",
    "Limits",
    "Report",
    "Sample",
    "build_sets",
]
