"""One PNG: the broker's CPU per delivered message, a group of bars for each shape, on a logarithmic axis.

Only this module needs Pillow. Without it the tables are written and the chart is left out.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from bench.plan import Shape
from bench.report import number
from bench.results import Results

COLOURS = ["#8c8c8c", "#c2410c", "#2563eb", "#b91c6b", "#15803d", "#7c3aed", "#a16207"]
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 1200, 190, 90, 96, 44
BAR, GAP = 15, 16


def draw(path: Path, title: str, shapes: list[Shape], brokers: list[str], results: Results) -> bool:
    """Returns whether a chart was written: False without Pillow or without values."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        return False
    medians: dict[tuple[str, str], float] = {}
    for shape in shapes:
        for broker in brokers:
            spread = results.spread(shape.name, broker, "cpu_us_per_delivered")
            if spread and spread.median > 0:
                medians[shape.name, broker] = spread.median
    names = [shape.name for shape in shapes if any((shape.name, broker) in medians for broker in brokers)]
    if not names:
        return False
    low = math.floor(math.log10(min(medians.values())))
    high = math.ceil(math.log10(max(medians.values())))
    height = TOP + BOTTOM + sum(_group_height(name, brokers, medians) + GAP for name in names)
    image = Image.new("RGB", (WIDTH, height), "white")
    canvas = ImageDraw.Draw(image)
    text = ImageFont.load_default(size=13)
    canvas.text((LEFT, 14), title, fill="black", font=ImageFont.load_default(size=20))
    canvas.text(
        (LEFT, 42),
        "CPU of the broker in microseconds per delivered message (logarithmic; shorter is better)",
        "#444",
        text,
    )
    _legend(canvas, text, brokers)
    _axis(canvas, text, low, high, height)
    y = TOP
    for name in names:
        middle = y + _group_height(name, brokers, medians) / 2
        canvas.text((LEFT - 12, middle), name, fill="black", font=text, anchor="rm")
        for index, broker in enumerate(brokers):
            if (name, broker) not in medians:
                continue
            value = medians[name, broker]
            end = _x(math.log10(value), low, high)
            canvas.rectangle((LEFT, y, end, y + BAR - 3), fill=COLOURS[index % len(COLOURS)])
            canvas.text((end + 5, y + BAR / 2 - 1), number(value), fill="#222", font=text, anchor="lm")
            y += BAR
        y += GAP
    image.save(path, optimize=True)
    return True


def _group_height(name: str, brokers: list[str], medians: dict[tuple[str, str], float]) -> int:
    return BAR * sum((name, broker) in medians for broker in brokers)


def _x(exponent: float, low: int, high: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (exponent - low) / max(high - low, 1)


def _legend(canvas: Any, font: Any, brokers: list[str]) -> None:
    x = float(LEFT)
    for index, broker in enumerate(brokers):
        canvas.rectangle((x, 68, x + 12, 80), fill=COLOURS[index % len(COLOURS)])
        canvas.text((x + 18, 74), broker, fill="#222", font=font, anchor="lm")
        x += 18 + canvas.textlength(broker, font=font) + 26


def _axis(canvas: Any, font: Any, low: int, high: int, height: int) -> None:
    for exponent in range(low, high + 1):
        x = _x(exponent, low, high)
        canvas.line((x, TOP - 6, x, height - BOTTOM + 6), fill="#dddddd")
        canvas.text((x, height - BOTTOM + 10), f"{10.0**exponent:g}", fill="#444", font=font, anchor="ma")
