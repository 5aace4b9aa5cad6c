"""Parts of files, joined in order."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from xraygpt.common.errors import XrayGPTError
from xraygpt.instructions.formats import RowFormat
from xraygpt.instructions.planning import Chunk


def join_parts(parts: Path, name: str, chunks: Iterable[Chunk], out: Path, form: RowFormat) -> bool:
    """Join the parts of one file in order; write nothing if there are none.

    Args:
        parts: Folder of all parts.
        name: ``<split>.<format>``.
        chunks: All chunks.
        out: The file to write.
        form: Its format.

    Returns:
        Whether the file was written.

    Raises:
        XrayGPTError: The disk is full.
    """
    files = [parts / name / chunk.name for chunk in chunks]
    files = [file for file in files if file.is_file()]
    if not files:
        out.unlink(missing_ok=True)
        return False
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    opening, closing = form.brackets
    try:
        with partial.open("wb") as target:
            target.write(opening)
            for i, file in enumerate(files):
                if i:
                    target.write(form.separator)
                with file.open("rb") as source:
                    shutil.copyfileobj(source, target, 1 << 20)
            target.write(closing)
        partial.replace(out)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise XrayGPTError(f"cannot write {out}: {error.strerror}") from None
    return True
