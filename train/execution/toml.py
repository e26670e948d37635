"""TOML files that people write."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]


def read(path: Path) -> tuple[dict[str, Any], str]:
    """Return the content of a file, and its text. Raises ValueError if it is no TOML, OSError if it cannot be read."""
    try:
        text = path.read_bytes().decode()
        return tomllib.loads(text), text
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from error
