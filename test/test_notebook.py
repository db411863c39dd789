"""The tutorial notebook runs from top to bottom, in a kernel of its own."""

import os
import sys
from pathlib import Path

import pytest
import tiny_system

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def executed(tmp_path_factory, tiny_parts):
    """The notebook with outputs, run on an untrained tiny system in an empty folder."""
    nbclient = pytest.importorskip("nbclient", reason="extra notebook")
    pytest.importorskip("ipykernel", reason="extra notebook")
    import nbformat

    folder = tmp_path_factory.mktemp("notebook")
    model = tiny_system.system(folder / "exp", tiny_parts)
    notebook = nbformat.read(ROOT / "docs" / "tutorial.ipynb", as_version=4)
    # The kernel of this Python, whatever kernels are registered on the machine.
    kernels = folder / "jupyter" / "kernels" / "here"
    kernels.mkdir(parents=True)
    words = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    written = ", ".join(f'"{word}"' for word in words)
    (kernels / "kernel.json").write_text(
        f'{{"argv": [{written}], "display_name": "here", "language": "python"}}'
    )
    set_before = {}
    for name, value in (
        ("SLIT_MODEL", str(model)),
        ("JUPYTER_PATH", str(folder / "jupyter")),
        (
            "PYTHONPATH",
            os.pathsep.join(map(str, [ROOT, os.environ.get("PYTHONPATH", "")])),
        ),
        ("MPLBACKEND", "module://matplotlib_inline.backend_inline"),
    ):
        set_before[name] = os.environ.get(name)
        os.environ[name] = value
    try:
        client = nbclient.NotebookClient(
            notebook,
            timeout=300,
            kernel_name="here",
            resources={"metadata": {"path": str(folder)}},
        )
        client.execute()
    finally:
        for name, value in set_before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
    return notebook


def outputs(notebook, words):
    """Output of the one cell whose code has these words."""
    (cell,) = [c for c in notebook.cells if c.cell_type == "code" and words in c.source]
    text, pictures = "", 0
    for output in cell.outputs:
        text += output.get("text", "")
        data = output.get("data", {})
        text += data.get("text/plain", "")
        pictures += "image/png" in data
    return text, pictures


def test_every_cell_says_what_its_text_promises(executed):
    assert outputs(executed, "slit.caption(files)")[0].count("sounds/") == 3
    assert outputs(executed, "candidates=")[0].split()[-1] in ("yes", "no")
    for route in ("similarity", "matching", "language_model"):
        assert route in outputs(executed, "slit.classify(files, labels")[0]
    assert outputs(executed, "slit.search(text, files)")[0].count(".wav") == 6
    assert "(3, 3, 8)" in outputs(executed, "np.einsum")[0]
    assert outputs(executed, "attention_figure(slit")[1] == 1
    assert "data/train_caption" in outputs(executed, "from_manifest")[0]


def test_notebook_as_it_is_kept_has_no_faults():
    nbformat = pytest.importorskip("nbformat", reason="extra notebook")
    path = ROOT / "docs" / "tutorial.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
    assert path.stat().st_size < 300_000
