"""Covariance estimators: how far to trust the sample covariance, given the number of samples.

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
    """What the estimators need to know about n samples about their mean."""

    count: int  # n
    channels: int  # D
    trace: float  # tr S of the sample covariance S with 1 / (n - 1)
    squared_trace: float  # tr S^2
    fourth_moment: float = 0.0  # sum of |x - mean|^4; only Ledoit and Wolf's estimator uses it


def shrink(spectrum: Spectrum, config: GaussianConfig, estimator: str) -> Shrinkage:
    """Return the shrinkage that an estimator chooses at one position.

    The estimators are ``ridge`` (the paper's, Eq. 5), ``relative-ridge``, ``oas`` (Chen, Wiesel, Eldar and Hero 2010)
    and ``ledoit-wolf`` (2004); the last two agree with scikit-learn, which shrinks the covariance with 1 / n.
    """
    mean_variance = spectrum.trace / spectrum.channels
    if estimator == "ridge":
        return Shrinkage(1.0, config.ridge)
    if estimator == "relative-ridge":
        # The absolute ridge keeps a position without variance, such as a masked border, invertible.
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
    """Return the factor from 1 / (n - 1) to 1 / n."""
    return (spectrum.count - 1) / spectrum.count
