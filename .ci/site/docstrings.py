"""Docstrings say "Example:", as torch's do; the parser of the site knows the plural."""

from typing import Any

from griffe import Extension, Object


class Examples(Extension):
    """Read "Example:" as the section of examples."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rename the section."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("Example:\n", "Examples:\n")
