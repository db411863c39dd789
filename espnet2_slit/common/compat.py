"""The few names that moved between ESPnet 202511 and 202611, and quiet imports.

Owns every difference between the supported ESPnet releases; the rest of the
package imports these names from here and knows one ESPnet only. Names are
resolved when asked for, so that importing this module costs nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import pickle
import sys
from functools import lru_cache
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, Iterator

if TYPE_CHECKING:  # for readers and type checkers; at run time see __getattr__
    from espnet2.beats.encoder import BeatsEncoder  # noqa: F401
    from espnet2.legacy.nets.pytorch_backend.nets_utils import (  # noqa: F401
        make_pad_mask,
        pad_list,
    )
    from espnet2.legacy.utils.cli_utils import get_commandline_args  # noqa: F401

# name -> modules that may hold it: newest ESPnet first
_HOMES = {
    "BeatsEncoder": ("espnet2.beats.encoder", "espnet2.asr.encoder.beats_encoder"),
    "get_commandline_args": (
        "espnet2.legacy.utils.cli_utils",
        "espnet.utils.cli_utils",
    ),
    "make_pad_mask": (
        "espnet2.legacy.nets.pytorch_backend.nets_utils",
        "espnet.nets.pytorch_backend.nets_utils",
    ),
    "pad_list": (
        "espnet2.legacy.nets.pytorch_backend.nets_utils",
        "espnet.nets.pytorch_backend.nets_utils",
    ),
}


def __getattr__(name: str) -> Any:
    """Resolve a moved name in the installed ESPnet (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    prepare_espnet_import()
    for home in _HOMES[name]:
        try:
            module = importlib.import_module(home)
        except ModuleNotFoundError as error:
            # only "this home does not exist here" may be passed over
            if not home.startswith(error.name or "\0"):
                raise
            continue
        if hasattr(module, name):
            globals()[name] = value = getattr(module, name)
            return value
    raise ImportError(
        f"{name}: expected in one of {', '.join(_HOMES[name])}, found in none of them "
        f"(espnet {espnet_version()}). Install espnet 202511 on Python 3.11 or "
        "espnet 202611 on Python 3.12/3.13."
    )


def espnet_version() -> str:
    """Version of the installed ESPnet, "not installed" if there is none."""
    try:
        return importlib.metadata.version("espnet")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def is_installed(module: str) -> bool:
    """True if `module` can be imported; it is not imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def kaldi_io() -> ModuleType:
    """The reader of Kaldi's files, kaldiio (ESPnet 202511) or omniio.kaldi (202611).

    An ark entry that starts with PKL is a pickle: kaldiio would load it, and so run the
    code in it. Here, and in all that reads arks in this process, it raises instead.
    """
    if not is_installed("kaldiio"):
        return importlib.import_module("omniio.kaldi")
    kaldiio = importlib.import_module("kaldiio")
    kaldiio.matio.pickle = SimpleNamespace(load=_refuse_pickle, dump=pickle.dump)
    return kaldiio


def _refuse_pickle(stream: Any, **_: Any) -> None:
    raise pickle.UnpicklingError(
        "expected a matrix or audio in the ark, found a pickled object, which may hold"
        " code and is not loaded. Write the ark without pickles"
    )


@contextlib.contextmanager
def _quiet_import() -> Iterator[None]:
    """Keep ESPnet's imports from writing amid the lines that a command's caller reads.

    Its attention module prints that flash_attn, which nothing here uses, is missing.
    """
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        yield


class _Deferred(ModuleType):
    """A module that is imported when something in it is asked for.

    Unlike importlib.util.LazyLoader's, it may be looked at: `inspect` asks every module
    for its file.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def _defer_import(name: str) -> None:
    """Let the next `import name` cost nothing."""
    if name in sys.modules or not is_installed(name):
        return
    spec = importlib.util.find_spec(name)
    assert spec is not None  # it is installed
    module = _Deferred(name)
    module.__spec__, module.__file__ = spec, spec.origin
    module.__path__ = list(spec.submodule_search_locations or [])
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)


_CHATTY = (
    "espnet2.legacy.nets.pytorch_backend.transformer.attention",
    "espnet.nets.pytorch_backend.transformer.attention",
)


@contextlib.contextmanager
def _unchecked_import() -> Iterator[None]:
    """Import without typeguard's checks of arguments at run time.

    For each function that it checks it parses and compiles the whole module anew: a
    third of the seconds of importing ESPnet.
    """
    import typeguard

    def unchecked(target: Any = None, **_options: Any) -> Any:
        return unchecked if target is None else target

    checked = typeguard.typechecked
    typeguard.typechecked = unchecked  # type: ignore[assignment]
    try:
        yield
    finally:
        typeguard.typechecked = checked


def prepare_espnet_import(*modules: str) -> None:
    """Check what ESPnet needs to be imported, and import it without downloads.

    Args:
        modules: of ESPnet that the caller imports next and that import much.

    Raises:
        ImportError: torchaudio was built for CUDA and torch for the CPU (or the
            other way round), or one of them is missing; the message says what to
            install.
    """
    _prepare()
    with _unchecked_import():
        for module in modules:
            importlib.import_module(module)


def no_espnet3(error: ImportError) -> ImportError:
    """What to raise where ESPnet3 cannot be imported; `error` is why."""
    return ImportError(
        f"espnet {espnet_version()} has no ESPnet3 that can be used here"
        f" ({error}). On Python 3.12 or 3.13: pip install 'espnet[train]>=202611'"
    )


@lru_cache(maxsize=None)
def _prepare() -> None:
    """What all of ESPnet needs, once."""
    _check_audio()
    kaldi_io()
    # ESPnet's preprocessor imports all that is done to text, of which we need nothing.
    # These two take a third of the seconds of importing ESPnet, g2p_en calls
    # nltk.download twice.
    _defer_import("g2p_en")
    _defer_import("tacotron_cleaner")
    _defer_import("tacotron_cleaner.cleaners")
    with _quiet_import(), _unchecked_import():
        importlib.import_module("espnet2.train.preprocessor")
        for module in _CHATTY:
            with contextlib.suppress(ModuleNotFoundError):  # of the other ESPnet
                importlib.import_module(module)


def _check_audio() -> None:
    """torchaudio loads beside this torch."""
    import torch

    try:
        import torchaudio
    except ModuleNotFoundError as error:
        raise ImportError(
            "torchaudio is not installed, but ESPnet imports it. "
            "pip install 'torchaudio>=2.11,<2.12'"
        ) from error
    except OSError as error:
        try:
            found = importlib.metadata.version("torchaudio")
        except importlib.metadata.PackageNotFoundError:
            found = "of unknown version"
        raise ImportError(
            f"torchaudio {found} cannot load its library beside torch "
            f"{torch.__version__} ({error}). Expected: both built for the same "
            f"device; found: torch built for "
            f"{'CUDA ' + torch.version.cuda if torch.version.cuda else 'CPU'}. "
            "Install the torchaudio build of the same index as torch (for CPU: "
            "--index-url https://download.pytorch.org/whl/cpu), or set the "
            "environment up again with tools/."
        ) from error
    del torchaudio
