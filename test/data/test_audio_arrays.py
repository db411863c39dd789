"""Arrays as people pass them: one treatment of numbers for files and arrays."""

import numpy as np
import odd_audio
import pytest
import torch

from espnet2_slit.data.audio import AudioError, to_mono

RATE = odd_audio.RATE
X = odd_audio.X
HOT = X / np.abs(X).max()

SERVED = {
    "float64": (X.astype("f8"), X),
    "float16": (X.astype("f2"), X),
    "bfloat16 tensor": (torch.from_numpy(X).bfloat16(), X),
    "a tensor that wants gradients": (torch.from_numpy(X).requires_grad_(), X),
    "int16": (np.rint(X * 2**15).astype("i2"), X),
    "int32": (np.rint(X.astype("f8") * 2**31).astype("i4"), X),
    "int64 that holds 16 bits": (np.rint(X * 2**15).astype("i8"), X),
    "int64 that holds 24 bits": (np.rint(X.astype("f8") * 2**23).astype("i8"), X),
    "int64 tensor": (torch.from_numpy(np.rint(X * 2**15).astype("i8")), X),
    "a list of integers": (np.rint(X * 2**15).astype(int).tolist(), X),
    "uint8": ((np.rint(X * 127) + 128).astype("u1"), X),
    "uint16": ((np.rint(X * 32767) + 32768).astype("u2"), X),
    "integers as floats": (X.astype("f8") * 2**15, X),
    "24 bits as floats": (X.astype("f8") * 2**23, X),
    "above full scale": (HOT * 7, HOT),
    "opposite channels": (np.stack([X, -X]), X),
    "opposite channels, samples first": (np.stack([X, -X], 1), X),
    "big-endian": (X.astype(">f4"), X),
    "every second sample": (np.repeat(X, 2)[::2], X),
    "silence": (0 * X, 0 * X),
}


@pytest.mark.parametrize("name", SERVED)
def test_numbers_mean_what_they_mean_in_a_file(name):
    audio, expected = SERVED[name]
    found = to_mono(audio, RATE, RATE)
    assert found.dtype == np.float32 and np.abs(found).max() <= 1.0
    tolerance = 1e-2 if "uint8" in name or "bfloat" in name else 5e-4
    np.testing.assert_allclose(found, expected, atol=tolerance)


SPIKE = X.copy()
SPIKE[1000:1010] = 3e29
REFUSED = {
    "spike": (SPIKE, RATE, "10 of 6400 samples are far above full scale"),
    "huge": (X * 1e30, RATE, "no format gives"),
    "float64 beyond float32": (X.astype("f8") * 1e300, RATE, "NaN or infinite"),
    "uint64": (np.ones(RATE, "u8"), RATE, "expected PCM"),
    "beyond 32 bits": (np.full(RATE, 2**40), RATE, "expected PCM"),
    "bool": (np.ones(RATE, bool), RATE, "expected numbers"),
    "complex": (X.astype("c8"), RATE, "expected numbers"),
    "objects": (np.array([None] * RATE), RATE, "expected numbers"),
    "rate 0": (X, 0, "has sample rate 0"),
    "rate 1": (X, 1, "has sample rate 1, expected 1000 to 1000000"),
    "rate nan": (X, float("nan"), "has sample rate nan"),
    "no rate": (X, None, "has sample rate None"),
    "rate in words": (X, "fast", "has sample rate fast"),
    "negative rate": (X, -RATE, "has sample rate -16000"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_sound_is_named(name):
    audio, rate, says = REFUSED[name]
    with pytest.raises(AudioError, match=f"clip x: .*{says}"):
        to_mono(audio, rate, RATE, name="clip x")


def test_rates_of_any_numeric_type_are_one_rate():
    expected = to_mono(X, 8000, RATE)
    for rate in (np.int64(8000), 8000.0, np.float32(8000), "8000", torch.tensor(8000)):
        np.testing.assert_array_equal(to_mono(X, rate, RATE), expected)
