"""Reads pickles of plain data, and refuses everything else by name; nothing in them is executed.

A pickle is a program that may import and call anything. Here, each imported name must be in a
list. The names in that list are classes of this project that only keep what they are given.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from xraygpt.common.errors import DataError
from xraygpt.common.memory import pause_gc


class EncodingData:
    """Data of a pickled `tiktoken.Encoding`, read without tiktoken.

    Attributes:
        state: The pickled attributes: name, pat_str, mergeable_ranks and special_tokens.
    """

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _DType:
    """Data of a pickled `numpy.dtype`."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = str(code), "<"

    def __setstate__(self, state: Any) -> None:
        self.order = "<" if state[1] == "|" else str(state[1])


class _Number(float):
    """A number from a pickled `numpy.generic`."""

    def __new__(cls, dtype: Any, data: Any) -> Any:
        """Return the number as a Python int or float."""
        is_number = isinstance(dtype, _DType) and dtype.code[:1] in ("i", "u", "f")
        if not is_number or dtype.order not in ("<", ">") or not isinstance(data, bytes):
            raise ValueError("a numpy value that is no number")
        if dtype.code[0] != "f":
            signed = dtype.code[0] == "i"
            return int.from_bytes(data, "little" if dtype.order == "<" else "big", signed=signed)
        (value,) = struct.unpack(dtype.order + {2: "e", 4: "f", 8: "d"}[len(data)], data)
        return value


ENCODINGS = {"tiktoken.core.Encoding": EncodingData, "tiktoken.Encoding": EncodingData}
"""Names that a pickled tokenizer may import."""
NUMBERS: Mapping[str, type] = {
    "numpy.dtype": _DType,
    "numpy.core.multiarray.scalar": _Number,
    "numpy._core.multiarray.scalar": _Number,
}
"""Names that pickled numbers of numpy import."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], path: Path, allowed: Mapping[str, type]) -> None:
        super().__init__(file)
        self._path, self._allowed = path, allowed

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for an imported name, or refuse it."""
        full = f"{module}.{name}"
        if full not in self._allowed:
            raise DataError(
                f"{self._path}: the pickle contains {full}, which is refused, because reading it "
                "could run code; save plain lists, dicts, numbers and texts"
            )
        return self._allowed[full]


def load_pickle(path: Path, allowed: Mapping[str, type] | None = None) -> Any:
    """Read a pickle of lists, tuples, dicts, numbers, texts and bytes.

    Args:
        path: The file.
        allowed: Further names that it may import, and the classes that stand for them.

    Raises:
        DataError: The file cannot be read, or contains anything else.
    """
    try:
        with path.open("rb") as file, pause_gc():
            return _Unpickler(file, path, allowed or {}).load()
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # damaged pickles fail in many ways
        raise DataError(f"{path} is damaged or not a pickle: {error}") from None
