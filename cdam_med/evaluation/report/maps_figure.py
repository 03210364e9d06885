"""The picture of example maps: images, and below each its map by every estimator."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cdam_med.evaluation.report.figure_layout import headed, height_of, new_figure, panel_title
from cdam_med.evaluation.report.results import Results
from data_prep.drawing import signed_rgba
from data_prep.text import printable

DISPLAY_QUANTILE = 0.995
"""Share of a map's scores whose size the colour scale reaches; each map has a scale of its own."""

_MOST_COLUMNS = 14
_MOST_PANELS = 7  # of one image, in a row
_NAME_WIDTH = 18  # characters of a line above an image


def maps_figure(results: Results) -> Figure:
    """Draw the first images, and the map of each by every estimator.

    Orange is above zero, blue below, which maps without a sign don't have; what a score means
    differs between estimators. Every map has its own scale. The white line is the object. Each
    axes is labelled with estimator and image.

    Parameters
    ----------
    results : Results
        What was measured.
    """
    return _of_one(results) if len(results.shown.examples) == 1 else _of_several(results)


def _of_one(results: Results) -> Figure:
    """Draw one image and its maps as panels of one grid."""
    titles = {each.name: each.title for each in results.estimators}
    names = list(results.shown.maps)
    rows = math.ceil((1 + len(names)) / _MOST_PANELS)
    columns = min(_MOST_PANELS, 1 + len(names))
    figure = new_figure(max(1.55 * columns + 0.2, 5.0), 1.85 * rows + 0.6)
    _head(figure, results)
    grid = figure.add_gridspec(
        rows, columns, left=0.01, right=0.99, top=1 - 0.9 / height_of(figure), bottom=0.01,
        wspace=0.06, hspace=0.26,
    )  # fmt: skip
    for number, name in enumerate((None, *names)):
        place = grid[number // columns, number % columns]
        axes = figure.add_subplot(place, label=f"{name or 'image'} 0")
        _draw_map(axes, results, 0, None if name is None else results.shown.maps[name][0])
        panel_title(axes, "Image" if name is None else titles[name])
    return figure


def _of_several(results: Results) -> Figure:
    """Draw images in a row and maps below them, in blocks side by side."""
    shown = results.shown
    count, names = len(shown.examples), list(shown.maps)
    blocks = max(1, _MOST_COLUMNS // (count + 1))
    rows = 1 + math.ceil(len(names) / blocks)
    across = blocks * (count + 1)
    figure = new_figure(1.25 * across + 0.2, 1.33 * rows + 0.95)
    _head(figure, results)
    grid = figure.add_gridspec(
        rows, across, left=0.01, right=0.99, top=1 - 0.85 / height_of(figure), bottom=0.01,
        wspace=0.06, hspace=0.16,
    )  # fmt: skip
    titles = {each.name: each.title for each in results.estimators}
    for block in range(blocks):
        part = names[block * (rows - 1) : (block + 1) * (rows - 1)]
        for row, name in enumerate((None, *part)):
            first = block * (count + 1)
            words = "Image" if name is None else titles[name].replace(" ", "\n")
            label = figure.add_subplot(grid[row, first], label=f"name {block} {row}")
            label.set_axis_off()
            label.text(1, 0.5, words, ha="right", va="center", transform=label.transAxes)
            for index in range(count):
                axes = figure.add_subplot(
                    grid[row, first + 1 + index], label=f"{name or 'image'} {index}"
                )
                _draw_map(axes, results, index, None if name is None else shown.maps[name][index])
                if name is None:
                    axes.set_title(_image_title(results, index), fontsize=6.5, pad=2)
    return figure


def _head(figure: Figure, results: Results) -> None:
    targets = results.shown.targets
    words = f"{_target_words(targets[0])}." if len(set(targets)) == 1 else "the target."
    headed(
        figure,
        "Maps, each on its own scale",
        f"Orange: scores above zero, blue: below (only methods with a sign); of {words}",
    )


def _draw_map(axes: Axes, results: Results, index: int, scores: Tensor | None) -> None:
    examples = results.shown.examples
    pixels = examples.images[index].mean(0).numpy()
    extent = (0.0, float(pixels.shape[1]), float(pixels.shape[0]), 0.0)
    axes.imshow(pixels, cmap="gray", extent=extent, interpolation="bilinear")
    axes.set_axis_off()
    if scores is None:
        return
    values = scores.double().numpy()
    limit = float(np.quantile(np.abs(values), DISPLAY_QUANTILE))
    axes.imshow(signed_rgba(values, limit), extent=extent, interpolation="nearest")
    if examples.masks is not None and bool(examples.masks[index].any()):
        mask = examples.masks[index].numpy()
        axes.contour(
            np.arange(mask.shape[1]) + 0.5, np.arange(mask.shape[0]) + 0.5, mask,
            levels=[0.5], colors="white", linewidths=0.7,
        )  # fmt: skip


def _image_title(results: Results, index: int) -> str:
    examples, targets = results.shown.examples, results.shown.targets
    name = printable(examples.ids[index]).replace("LIDC-IDRI-", "")
    words = printable(examples.labels[index]) or "unlabelled"
    if len(set(targets)) > 1:
        words = f"{words[:9]}, for {_target_words(targets[index])[:8]}"
    shown = name if len(name) <= _NAME_WIDTH else f"…{name[1 - _NAME_WIDTH :]}"
    return f"{shown}\n{words[:_NAME_WIDTH]}"


def _target_words(target: object) -> str:
    if isinstance(target, str):
        return printable(target).replace("_", " ")
    return f"output {target}"
