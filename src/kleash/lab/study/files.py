"""A table as files: CSV as it is read by people and spreadsheets, Parquet for what comes after."""

import csv as standard
import io
from collections.abc import Mapping
from typing import Any


def csv(table: Mapping[str, Any]) -> bytes:
    r"""UTF-8, a header and a line a row; what was not measured is empty.

    Examples:
        >>> csv({"columns": ["arm", "KL, nats"], "rows": [["free", 1.5], ["held", None]]})
        b'arm,"KL, nats"\r\nfree,1.5\r\nheld,\r\n'
    """
    text = io.StringIO()
    standard.writer(text).writerows([table["columns"], *table["rows"]])
    return text.getvalue().encode()


def parquet(table: Mapping[str, Any]) -> bytes:
    """The same with types: a column of numbers, or of texts."""
    import pyarrow as pa
    from pyarrow import parquet as format_

    columns = {
        name: [row[index] for row in table["rows"]] for index, name in enumerate(table["columns"])
    }
    buffer = io.BytesIO()
    format_.write_table(
        pa.table({name: _typed(values) for name, values in columns.items()}), buffer
    )
    return buffer.getvalue()


def _typed(values: list[Any]) -> list[Any]:
    """Whole numbers beside others are numbers; numbers beside texts are texts."""
    if any(isinstance(value, str) for value in values):
        return [None if value is None else str(value) for value in values]
    return [None if value is None else float(value) for value in values]
