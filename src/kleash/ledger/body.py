"""Reading an entry's body back into its record, and nothing that its record would not have written."""

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from kleash.errors import TamperError
from kleash.ledger.entry import encode


class Body(Protocol):
    """A record that an entry holds."""

    def to_json(self) -> dict[str, Any]:
        """The entry's body."""
        ...


B = TypeVar("B", bound=Body)


def read_body(adapter: TypeAdapter[B], body: Mapping[str, Any], kind: str) -> B:
    """The record that `to_json` wrote.

    Raises:
        TamperError: it is not such a body: a field is missing, unknown or of another type.
    """
    try:
        record = adapter.validate_python(body)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(ascii(part).strip("'") for part in first["loc"])
        raise TamperError(f"not the body of {kind}", got=f"{where}: {first['msg']}") from error
    # As bytes: in Python True is 1 and 1 is 1.0.
    if encode(record.to_json()) != encode(dict(body)):
        raise TamperError(f"not the body of {kind}: a field is unknown or of another type")
    return record
