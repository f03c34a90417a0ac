"""stub"""
from typing import Any, NamedTuple


class Made(NamedTuple):
    share: Any
    penalty: Any
    tables: Any
    planted: Any
    weighed: Any
    arms: Any


def conclude(made: Made):
    import json
    json.dump({"tables": [[list(k), v] for k, v in made.tables.items()], "planted": made.planted, "weighed": made.weighed, "arms": [[k, v] for k, v in made.arms.items()]}, open("/tmp/good-made.json", "w"))
    raise SystemExit
