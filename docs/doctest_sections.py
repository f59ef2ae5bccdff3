"""A griffe extension: docstrings say ``Example:`` (one), the Google parser knows ``Examples:`` as code."""

from __future__ import annotations

from typing import Any

import griffe


class DoctestSections(griffe.Extension):
    """Let the Example section of every docstring be shown as a Python session."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rename the section."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
