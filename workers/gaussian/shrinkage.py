"""Covariance estimators: how much of the sample covariance to believe, given how many samples there are.

Each gives Sigma = weight S + ridge I for the sample covariance S with 1 / (n - 1).
"""

from dataclasses import dataclass

from schemas.config import GaussianConfig


@dataclass(frozen=True)
class Shrinkage:
    """The two numbers of an estimate Sigma = weight S + ridge I."""

    weight: float
    ridge: float


@dataclass(frozen=True)
class Spectrum:
    """What the estimators need to know of n samples about their mean.

    Attributes
    ----------
    count
        n.
    channels
        D.
    trace
        tr S of the sample covariance S with 1 / (n - 1).
    squared_trace
        tr S^2.
    fourth_moment
        Sum of |x - mean|^4; only Ledoit and Wolf's estimator uses it.
    """

    count: int
    channels: int
    trace: float
    squared_trace: float
    fourth_moment: float = 0.0


def shrink(spectrum: Spectrum, config: GaussianConfig, estimator: str) -> Shrinkage:
    """Return the shrinkage of an estimator.

    Parameters
    ----------
    spectrum
        Of the samples at one position.
    config
        Holds the ridges.
    estimator
        ``ridge`` (the paper's, Eq. 5), ``relative-ridge``, ``oas`` (Chen, Wiesel, Eldar and Hero 2010) or
        ``ledoit-wolf`` (2004); the last two as scikit-learn has them, which shrinks the covariance with 1 / n.
    """
    mean_variance = spectrum.trace / spectrum.channels
    if estimator == "ridge":
        return Shrinkage(1.0, config.ridge)
    if estimator == "relative-ridge":
        # The absolute ridge keeps a position without any variance, such as a masked border, invertible.
        return Shrinkage(1.0, config.relative_ridge * mean_variance + config.ridge)
    rho = _oas(spectrum) if estimator == "oas" else _ledoit_wolf(spectrum)
    biased = _biased(spectrum)
    return Shrinkage((1.0 - rho) * biased, rho * mean_variance * biased + config.ridge)


def _oas(spectrum: Spectrum) -> float:
    """Return the oracle approximating shrinkage (Eq. 23 of the article)."""
    count, channels = spectrum.count, spectrum.channels
    mean_square = spectrum.squared_trace * _biased(spectrum) ** 2 / channels**2
    mean_variance = spectrum.trace * _biased(spectrum) / channels
    excess = (count + 1) * (mean_square - mean_variance**2 / channels)
    return 1.0 if excess <= 0 else min(1.0, (mean_square + mean_variance**2) / excess)


def _ledoit_wolf(spectrum: Spectrum) -> float:
    """Return Ledoit and Wolf's shrinkage (Lemma 3.1 to 3.4 of the article)."""
    count, channels = spectrum.count, spectrum.channels
    mean_variance = spectrum.trace * _biased(spectrum) / channels
    squared_norm = spectrum.squared_trace * _biased(spectrum) ** 2
    noise = (spectrum.fourth_moment / count - squared_norm) / (channels * count)
    spread = squared_norm / channels - mean_variance**2
    return 1.0 if spread <= 0 else max(0.0, min(noise, spread) / spread)


def _biased(spectrum: Spectrum) -> float:
    """Return what turns 1 / (n - 1) into 1 / n."""
    return (spectrum.count - 1) / spectrum.count
