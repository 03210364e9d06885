"""Statistics of maps and images from their definitions, in plain loops."""

import math

import numpy as np


def pearson(a, b):
    """Return the correlation of two lists."""
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    ab = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    aa = sum((x - mean_a) ** 2 for x in a)
    bb = sum((y - mean_b) ** 2 for y in b)
    return ab / math.sqrt(aa * bb)


def ranks(values):
    """Return ranks; tied values share the mean of theirs."""
    return [sum(y < x for y in values) + (sum(y == x for y in values) + 1) / 2 for x in values]


def small_share(scores, maximum, threshold, *, or_equal):
    """Return the share of scores whose size is below (or at) a share of the maximum."""
    limit = threshold * maximum
    small = [abs(s) <= limit if or_equal else abs(s) < limit for s in scores]
    return sum(small) / len(scores)


def gini(scores):
    """Return half the relative mean absolute difference."""
    sizes = [abs(s) for s in scores]
    differences = sum(abs(a - b) for a in sizes for b in sizes)
    return differences / (2 * len(sizes) * sum(sizes))


def entropy(scores):
    """Return the entropy of the sizes as a share of the largest possible."""
    total = sum(abs(s) for s in scores)
    found = 0.0
    for s in scores:
        if s != 0:
            found -= abs(s) / total * math.log(abs(s) / total)
    return found / math.log(len(scores))


def bootstrap(figure, groups, seed, draws):
    """Return the figure of each draw of groups, images of a group together, in the given order."""
    names = sorted(set(groups))
    random = np.random.default_rng(seed)
    found = []
    for picked in random.integers(len(names), size=(draws, len(names))):
        images = [i for pick in picked for i, name in enumerate(groups) if name == names[pick]]
        found.append(figure(images))
    return found
