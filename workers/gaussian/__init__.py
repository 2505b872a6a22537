"""The Gaussian at one position: moments, covariance, factor, Mahalanobis distance."""
