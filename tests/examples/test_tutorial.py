"""The tutorial runs as it is committed, and shows what it says it does."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

TUTORIAL = Path(__file__).parents[2] / "examples" / "tutorial.ipynb"
MOST_BYTES = 16_000


def tutorial() -> Any:
    return nbformat.read(TUTORIAL, as_version=4)


def said(cell: Any) -> str:
    """What a cell printed, or showed as text."""
    texts = [
        each.get("text") or each.get("data", {}).get("text/plain", "") for each in cell.outputs
    ]
    return "".join(texts)


def test_it_is_small_and_committed_without_outputs() -> None:
    book = tutorial()
    nbformat.validate(book)
    assert TUTORIAL.stat().st_size < MOST_BYTES
    for cell in book.cells:
        assert len(cell.source.splitlines()) <= 20
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the kernel's own libraries
def test_it_runs_from_top_to_bottom(tmp_path: Path) -> None:
    book = tutorial()
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    code = {cell.source: cell for cell in book.cells if cell.cell_type == "code"}
    trained = next(cell for source, cell in code.items() if "kl_target=3.0" in source)
    assert said(trained).count("KL ") == 8
    verified = next(cell for source, cell in code.items() if "found.ok" in source)
    assert said(verified).startswith("True 8 finished")
    assert "metrics.jsonl" in said(verified)
    plotted = next(cell for source, cell in code.items() if source == "run.plot()")
    figure = plotted.outputs[0].data["application/vnd.plotly.v1+json"]
    assert {trace["yaxis"] for trace in figure["data"]} == {"y", "y2", "y3"}
    fixed = next(cell for source, cell in code.items() if 'controller="fixed"' in source)
    assert said(fixed).count("nats") == 3
