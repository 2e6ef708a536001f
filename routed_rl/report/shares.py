"""95 % intervals of shares, computed from the share and the number of completions."""

import math

Z = 1.959964
"""The 97.5 % quantile of the standard normal distribution."""
Interval = tuple[float, float]


def share_interval(share: float, count: float) -> Interval:
    """Wilson's score interval of a binomial share of `count` draws (Wilson, 1927). For the mean of other numbers from 0 to 1 the
    interval is wide enough too, because their variance is at most that of a share with the same mean."""
    middle = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share))


def difference_interval(first: float, first_count: float, second: float, second_count: float) -> Interval:
    """The interval of `first - second` for independent draws, from Wilson's two intervals (Newcombe, 1998, method 10). If two
    models get the same tasks, their difference is usually known more precisely than this interval says."""
    (first_low, first_high), (second_low, second_high) = share_interval(first, first_count), share_interval(second, second_count)
    return (first - second - math.hypot(first - first_low, second_high - second),
            first - second + math.hypot(first_high - first, second - second_low))


def chance(low: float) -> str:
    """Words to put after a difference whose 95 % interval begins at `low`. They say that the difference may be chance, and are
    empty if `low` is above 0."""
    return "" if low > 0 else ", which may be chance"
