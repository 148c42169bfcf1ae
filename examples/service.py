"""A web service over a bundle, with numpy, onnxruntime and the standard library alone.

    python examples/service.py model.vae 8000
    curl localhost:8000 -d '[{"age": 52, "income": 41000, "city": "Roma"}]'

It answers with one object a row: score, p_value, and the columns most to blame. A row may leave a column out (null),
but one that no row names is an error. `application` is plain WSGI: any server that forks or runs threads takes it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import make_server

import numpy as np

import parvae

MAX_BYTES = 16 << 20
NUM_BLAMED = 3


def service(vae: parvae.VAE) -> Callable[..., Iterable[bytes]]:
    """The WSGI application that scores rows by `vae`."""

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        try:
            size = int(environ.get("CONTENT_LENGTH") or 0)
            if not 0 < size <= MAX_BYTES:
                raise ValueError(f"the request holds {size} bytes; post 1 to {MAX_BYTES}")
            rows = json.loads(environ["wsgi.input"].read(size))
            status, answer = "200 OK", answers(vae.score(columns_of(rows, vae.schema)))
        except (ValueError, parvae.Error) as error:  # a parvae.Error names the column, the value and the remedy
            status, answer = "400 Bad Request", {"error": str(error)}
        start_response(status, [("Content-Type", "application/json")])
        return [json.dumps(answer).encode()]

    return application


def columns_of(rows: Any, schema: parvae.Schema) -> dict[str, Any]:
    """Rows of JSON as columns; JSON has no dates, so that texts stand for them."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("post a list of objects, one a row")
    names = dict.fromkeys(name for row in rows for name in row)
    columns: dict[str, Any] = {name: [row.get(name) for row in rows] for name in names}
    dates = [column.name for column in schema.modelled if column.family == "timestamp" and column.name in columns]
    return columns | {name: np.array(columns[name], "M8[us]") for name in dates}


def answers(scores: parvae.Scores) -> list[dict[str, Any]]:
    """One object a row."""
    blamed = [[scores.parts[column] for column in row] for row in scores.most_blamed(NUM_BLAMED)]
    found = zip(scores.score.tolist(), scores.p_value.tolist(), blamed, strict=True)
    return [{"score": score, "p_value": p_value, "blamed": names} for score, p_value, names in found]


if __name__ == "__main__":
    with make_server("127.0.0.1", int(sys.argv[2]), service(parvae.load(sys.argv[1]))) as server:
        server.serve_forever()
