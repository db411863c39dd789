"""Tools of the Model Context Protocol give what the library gives."""

import asyncio
import json
import os

import pytest

mcp = pytest.importorskip("mcp", reason="the tools need mcp")
pytest.importorskip("mcp.server.mcpserver", reason="the tools need mcp 2")

from espnet2_slit.inference.mcp import build_server  # noqa: E402
from espnet2_slit.inference.search_index import DEFAULT_NAME, SearchIndex  # noqa: E402
from espnet2_slit.inference.slit import SLIT  # noqa: E402


def ask(server, *calls):
    """(names of the tools, results of calls) through a client of the protocol."""

    async def talk():
        async with mcp.Client(server) as client:
            tools = await client.list_tools()
            found = [await client.call_tool(*call) for call in calls]
            return {tool.name for tool in tools.tools}, found

    return asyncio.run(talk())


def test_tools_give_what_the_library_gives(slit, clips):
    path = clips[2]
    server = build_server(slit, os.path.dirname(path))
    names, found = ask(
        server,
        ("caption", {"path": path}),
        ("answer", {"path": path, "question": "what is it?"}),
        ("classify", {"path": path, "labels": ["dog", "rain"]}),
        ("moments", {"path": path, "text": "a dog"}),
        ("search", {"text": "a bell", "top_k": 2}),
        ("caption", {"path": "none.wav"}),
    )
    assert names == {"caption", "answer", "classify", "moments", "search"}
    *served, refused = found
    assert not any(result.is_error for result in served)
    texts = [result.content[0].text for result in served]
    assert texts[0] == slit.caption(path)
    assert texts[1] == slit.answer(path, "what is it?")
    expected = slit.classify(path, ["dog", "rain"]).scores
    assert json.loads(texts[2]) == pytest.approx(expected, abs=1e-5)
    hit = slit.moments("a dog", path)[0]
    assert json.loads(texts[3])["start_s"] == hit.start_s
    index = SearchIndex(os.path.join(os.path.dirname(path), DEFAULT_NAME))
    assert json.loads(texts[4])["item"] == index.search(slit, "a bell", 2)[0].item
    assert refused.is_error and "none.wav" in refused.content[0].text


def test_system_without_a_part_has_no_tool_for_it(folder):
    lone = SLIT.from_pretrained(folder.parent / "tiny_representation")
    names, _ = ask(build_server(lone))
    assert names == {"classify", "moments"}
