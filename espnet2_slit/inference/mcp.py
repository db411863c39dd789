"""A system as tools of the Model Context Protocol, for assistants on this machine.

Each tool asks the class SLIT; audio is named by its path. It needs the protocol's own
Python SDK (extra: mcp).
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from espnet2_slit import __version__
from espnet2_slit.data.audio import AudioError
from espnet2_slit.inference.requests import InferenceError
from espnet2_slit.inference.search_index import DEFAULT_NAME, SearchIndex
from espnet2_slit.inference.slit import SLIT


def build_server(slit: SLIT, folder: str | os.PathLike | None = None) -> Any:
    """The server with a tool for each thing that the system can do.

    Args:
        slit: system.
        folder: audio to search, indexed in its own `.slit_index`; None for none.

    Raises:
        ImportError: the SDK is not installed.
    """
    try:
        from mcp.server.mcpserver import MCPServer
        from mcp.server.mcpserver.exceptions import ToolError
    except ImportError as error:
        raise ImportError(
            "slit mcp needs the SDK of the Model Context Protocol, which is not"
            " installed. Run: python -m pip install 'espnet2_slit[mcp]'"
        ) from error
    server = MCPServer("slit", version=__version__, log_level="WARNING")

    def caption(path: str) -> str:
        """Describe what is heard in an audio file."""
        return slit.caption(path)

    def answer(path: str, question: str) -> str:
        """Answer a question about an audio file."""
        return slit.answer(path, question)

    def classify(path: str, labels: list[str]) -> dict[str, float]:
        """Score labels for an audio file, the best first."""
        route = "similarity" if slit.representation else "language_model"
        return slit.classify(path, labels, route=route).scores

    def moments(path: str, text: str, top_k: int = 5) -> list[dict[str, Any]]:
        """Find when in an audio file, of any length, a text describes what is heard."""
        return [asdict(hit) for hit in slit.moments(text, path, top_k=top_k)]

    tools: list[Callable] = [classify]
    tools += [caption, answer] if slit.generator else []
    tools += [moments] if slit.representation else []
    if folder:
        index = SearchIndex(Path(folder).expanduser() / DEFAULT_NAME)
        index.update(slit, folder)

        def search(text: str, top_k: int = 5) -> list[dict[str, Any]]:
            """Find the audio files of the folder that a text describes."""
            return [asdict(hit) for hit in index.search(slit, text, top_k)]

        tools.append(search)

    def told(tool: Callable) -> Callable:
        @functools.wraps(tool)
        def work(*args: Any, **options: Any) -> Any:
            try:
                # The protocol owns standard output.
                with contextlib.redirect_stdout(sys.stderr):
                    return tool(*args, **options)
            except (AudioError, InferenceError) as error:
                raise ToolError(str(error)) from error

        return work

    for tool in tools:
        server.tool()(told(tool))
    return server
