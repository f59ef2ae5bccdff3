"""Inline SVG: elements with every text and attribute escaped, and a frame that says in words what is drawn."""

from __future__ import annotations

from collections.abc import Iterable

from markupsafe import Markup, escape

__all__ = ["Value", "element", "figure", "path", "rect", "text"]

Value = str | float


def element(name: str, *inside: str | Markup, **attributes: Value) -> Markup:
    """An element; `_` in the name of an attribute stands for `-`, and `class_` for class.

    Example:
        >>> element("text", "<b>", x=1.25, class_="note")
        Markup('<text x="1.2" class="note">&lt;b&gt;</text>')
    """
    words = [f'{key.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"' for key, value in attributes.items()]
    opening = " ".join([name, *words])
    return Markup(f"<{opening}>{''.join(escape(one) for one in inside)}</{name}>")  # noqa: S704, all is escaped


def figure(
    size: tuple[float, float], title: str, description: str, inside: Iterable[Markup], class_: str = ""
) -> Markup:
    """A picture with its text alternative.

    Args:
        size: width and height, of the page's pixels at most. title: what it is. description: what it shows.
        inside: what is drawn. class_: for the style sheet.
    """
    return element(
        "svg",
        element("title", title),
        element("desc", description),
        *inside,
        viewBox=f"0 0 {_plain(size[0])} {_plain(size[1])}",
        width=size[0],
        height=size[1],
        role="img",
        aria_label=f"{title}. {description}",
        class_=class_,
    )


def rect(x: float, y: float, width: float, height: float, class_: str, *inside: Markup) -> Markup:
    """A rectangle with slightly round corners."""
    return element("rect", *inside, x=x, y=y, width=width, height=height, rx=min(2.0, width / 4), class_=class_)


def text(x: float, y: float, words: str, class_: str = "") -> Markup:
    """A line of text."""
    return element("text", words, x=x, y=y, class_=class_)


def path(points: Iterable[tuple[float, float]], class_: str, *, closed: bool = False) -> Markup:
    """Straight lines from point to point.

    Example:
        >>> path([(0, 0), (1, 2.5)], "line")
        Markup('<path d="M0 0L1 2.5" class="line"></path>')
    """
    steps = "L".join(f"{_plain(x)} {_plain(y)}" for x, y in points)
    return element("path", d=f"M{steps}{'Z' if closed else ''}", class_=class_)


def _plain(value: Value) -> str:
    """A number with a decimal at most."""
    return value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")
