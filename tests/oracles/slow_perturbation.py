"""Perturbation curves, boxes and subsets from their definitions: one pass and one pixel at a time.

A map is a list of lists; part (r, c) of it covers ``down`` x ``across`` pixels.
"""

import copy
import math

import torch
from torch import Tensor, nn


def output(model: nn.Module, image: Tensor, column: int) -> float:
    """Return one raw output for one image."""
    with torch.no_grad():
        return copy.deepcopy(model).eval()(image[None])[0, column].item()


def without(image: Tensor, substitute: Tensor, pixels: list[tuple[int, int]]) -> Tensor:
    """Return an image with some pixels replaced."""
    changed = image.clone()
    for y, x in pixels:
        changed[:, y, x] = substitute[:, y, x]
    return changed


def pixels_of(part: tuple[int, int], image: Tensor, sides: tuple[int, int]) -> list:
    """Return the pixels of a part of a map."""
    (row, column), (down, across) = part, sides
    return [
        (y, x)
        for y in range(row * down, min((row + 1) * down, image.shape[1]))
        for x in range(column * across, min((column + 1) * across, image.shape[2]))
    ]


def curve(model, image, substitute, scores, sides, *, column, steps, most_first):
    """Return shares replaced and outputs, for a map without ties."""
    parts = [(r, c) for r in range(len(scores)) for c in range(len(scores[0]))]
    parts.sort(key=lambda part: scores[part[0]][part[1]], reverse=most_first)
    shares, outputs = [], []
    for k in range(steps + 1):
        count = math.floor(k * len(parts) / steps + 1e-9)
        pixels = [p for part in parts[:count] for p in pixels_of(part, image, sides)]
        shares.append(count / len(parts))
        outputs.append(output(model, without(image, substitute, pixels), column))
    return shares, outputs


def area(shares, upper, lower):
    """Return the area between two curves by trapezoids."""
    total = 0.0
    for k in range(1, len(shares)):
        heights = (upper[k] - lower[k]) + (upper[k - 1] - lower[k - 1])
        total += (shares[k] - shares[k - 1]) * heights / 2
    return total


def drop(model, image, substitute, pixels, column):
    """Return how far an output falls without some pixels."""
    whole = output(model, image, column)
    return whole - output(model, without(image, substitute, pixels), column)


def box_pixels(corner, side):
    """Return the pixels of a box."""
    top, left = corner
    return [(y, x) for y in range(top, top + side) for x in range(left, left + side)]


def gaussian_blur(channel: list[list[float]], sigma: float) -> list[list[float]]:
    """Return one channel blurred, edges repeated, cut off at four standard deviations."""
    reach = int(4 * sigma + 0.5)
    weights = {d: math.exp(-d * d / (2 * sigma * sigma)) for d in range(-reach, reach + 1)}
    total = sum(weights.values())

    def along(line):
        last = len(line) - 1
        return [
            sum(w * line[min(max(i + d, 0), last)] for d, w in weights.items()) / total
            for i in range(len(line))
        ]

    rows = [along(line) for line in channel]
    columns = [along(list(line)) for line in zip(*rows, strict=True)]
    return [list(line) for line in zip(*columns, strict=True)]
