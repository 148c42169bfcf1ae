"""Rows for verifying a graph: held-out or sampled rows, and rows that no data set should hold."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from numpy.typing import NDArray

from parvae.noise import standard_normal
from parvae.rows import Arrays
from parvae.schema import FIRST_LEVEL_CODE, NULL_TEXT, UNSEEN_CODE, CategoryFacts, Column, Role, Schema
from parvae_pipeline.hashing import hashed_codes
from parvae_pipeline.model import VariationalAutoencoder

UNSEEN_EXAMPLE = "(a value that training never saw)"
EXTREMES = (np.nan, np.inf, -np.inf, 1e300, -1e300, 0.0)


def graph_inputs(schema: Schema, rows: Arrays) -> Arrays:
    """Rows as the graphs take them: category codes as text."""
    return {
        block.name: category_texts(block.columns, rows[block.name]) if block.role is Role.CATEGORY else rows[block.name]
        for block in schema.inputs
    }


def category_texts(columns: tuple[Column, ...], codes: NDArray[np.int64]) -> NDArray[np.object_]:
    """(n, columns) text for category codes."""
    texts = np.empty(codes.shape, dtype=object)
    for index, column in enumerate(columns):
        facts = column.facts_as(CategoryFacts)
        table = np.array([NULL_TEXT, _unseen_text(facts), *facts.levels], dtype=object)
        texts[:, index] = table[codes[:, index]]
    return texts


def _unseen_text(facts: CategoryFacts) -> str:
    """A text that the column reads as unseen, where there is one."""
    if not facts.buckets or not facts.can_be_unseen:
        return UNSEEN_EXAMPLE
    for number in itertools.count():
        text = f"{UNSEEN_EXAMPLE} {number}"
        if hashed_codes(facts, [text])[0] == UNSEEN_CODE:
            break
    return text


@torch.no_grad()
def sampled_rows(model: VariationalAutoencoder, num_rows: int, seed: int = 0) -> Arrays:
    """Rows drawn from the model, as the network takes them; they stand in where no real row may leave the run."""
    z_noise = torch.from_numpy(standard_normal(seed, (num_rows, model.prior.num_noise)))
    noise = torch.from_numpy(standard_normal(seed, (num_rows, model.num_noise), stream=1))
    return {name: values.numpy() for name, values in model.sample(z_noise, noise).items()}


def edge_rows(schema: Schema, rows: Arrays) -> Arrays:
    """As many rows as there are kinds of trouble: nulls, infinities, extremes, unseen categories, extreme elements."""
    num_rows = len(EXTREMES)
    edges: Arrays = {}
    for block in schema.inputs:
        template = rows[block.name][np.arange(num_rows) % len(rows[block.name])].copy()
        if block.role in (Role.NUMERIC, Role.TIMESTAMP):
            template[:] = np.array(EXTREMES)[:, None]
        elif block.role is Role.BOOLEAN:
            template[:] = np.array([np.nan, 0.0, 1.0, 0.0, 1.0, np.nan])[:, None]
        elif block.role is Role.CATEGORY:
            template[:] = (np.arange(num_rows) % (FIRST_LEVEL_CODE + 1))[:, None]
            template[-1] = UNSEEN_CODE
            for index, column in enumerate(block.columns):
                if not column.facts_as(CategoryFacts).can_be_unseen:
                    template[template[:, index] == UNSEEN_CODE, index] = FIRST_LEVEL_CODE
        elif block.dtype == "uint8":
            template[:] = np.array([0, 1, 0, 1, 0, 1], np.uint8).reshape(-1, *[1] * (template.ndim - 1))
            if block.role is Role.IMAGE:
                template *= 255
        else:
            template[:] = np.clip(np.array(EXTREMES), -3e38, 3e38).astype(np.float32)[:, None]
        edges[block.name] = template
    return edges
