"""When a column of bytes is an image column, and of what size: rules over its statistics, with reasons in words."""

from __future__ import annotations

from parvae.errors import DataError, SettingError
from parvae.images import fitting_size, require_pillow
from parvae.schema import ImageFacts, Role
from parvae_pipeline.statistics import ColumnStatistics

MIN_IMAGE_SHARE = 0.5
"""A column of bytes with a smaller share of images is no image column; one with more must hold images alone."""


def suggest_encoded(column: ColumnStatistics) -> tuple[Role, str]:
    """Image where most values are PNG, JPEG or WebP files, with what will be done to fit them into one shape."""
    images = column.images
    num_present = column.num_rows - column.num_nulls
    if images.num_images < MIN_IMAGE_SHARE * num_present:
        return Role.IGNORED, f"type {column.arrow_type} is not read yet; turn it into numbers or text to use it"
    return Role.IMAGE, describe(column)


def describe(column: ColumnStatistics) -> str:
    """What the images are, and what is done to those that differ."""
    facts, images = encoded_facts(column), column.images
    height, width = _commonest_size(column)
    notes = [f"encoded images of {height} x {width}, {'colour' if facts.channels == 3 else 'grey'}"]
    if (height, width) != (facts.height, facts.width):
        notes.append(f"scaled down to {facts.height} x {facts.width}")
    num_other = images.sizes.total() + images.num_other_sizes - images.sizes[height, width]
    if num_other:
        notes.append(f"{num_other:,} of other sizes are resized to fit")
    if images.num_grey and images.num_colour:
        notes.append(f"{images.num_grey:,} grey ones are read as colour")
    return "; ".join(notes)


def encoded_facts(column: ColumnStatistics) -> ImageFacts:
    """The facts of a column of encoded images: the commonest size, colour if any image is in colour.

    Raises DataError when an image is null or broken, naming the first row; SettingError when none is an image;
    MissingExtraError where Pillow is not installed.
    """
    images, name = column.images, column.name
    remedy = f"drop or replace such rows, or leave the column out with --columns {name}:ignored"
    if not images.num_images:
        raise SettingError(
            f"column {name!r} ({column.arrow_type}) cannot be image: no value is a PNG, JPEG or WebP file; "
            "leave it to the default or name it ignored"
        )
    if images.has_no_decoder:
        require_pillow(name)
    if images.first_trouble is not None:
        row, trouble = images.first_trouble
        raise DataError(
            f"column {name!r} holds {images.num_broken + images.num_other:,} values that are no readable image "
            f"(first: row {row:,} of the data set: {trouble}); {remedy}"
        )
    if column.num_nulls:
        raise DataError(f"column {name!r} holds images, and {column.num_nulls:,} nulls among them; {remedy}")
    commonest = _commonest_size(column)
    height, width = fitting_size(*commonest)
    return ImageFacts(
        height=height,
        width=width,
        channels=3 if images.num_colour else 1,
        mean=column.moments.mean,
        stddev=column.moments.stddev,
        resizes=len(images.sizes) > 1 or (height, width) != commonest,
    )


def _commonest_size(column: ColumnStatistics) -> tuple[int, int]:
    """(height, width) of most images; of two equally common ones the larger."""
    return max(column.images.sizes.items(), key=lambda item: (item[1], item[0]))[0]
