"""Every error a user can mend: each message names the thing, the value, what is allowed and the remedy."""

from collections.abc import Iterable


class Error(Exception):
    """Base of all errors that parvae raises on purpose."""


class DataError(Error, ValueError):
    """Rows, columns or files that do not fit what is asked of them."""


class BundleError(Error, ValueError):
    """A bundle or checkpoint that is damaged, too new, or not one at all."""


class CorruptFileError(Error, ValueError):
    """A compressed file that is damaged, cut short, or not one at all."""


class WrongModelError(Error, ValueError):
    """A compressed file that needs another model than the one given."""


class SettingError(Error, ValueError):
    """A setting or argument outside what is allowed."""


class OutputError(Error):
    """An output that cannot be written: the disk is full, the folder closed, the network gone."""


class MissingExtraError(Error, ImportError):
    """A feature whose optional packages are not installed."""


def listed(names: Iterable[object], *, limit: int = 8) -> str:
    """Names joined for a message, at most `limit` of them.

    >>> listed(["a", "b"])
    "'a', 'b'"
    """
    texts = [repr(name) for name in names]
    more = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return ", ".join(texts[:limit]) + more if texts else "none"
