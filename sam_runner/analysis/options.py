"""What the three commands of the analysis compute, with their defaults. Torch is not imported here."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Measurement:
    """How the loss of a checkpoint is evaluated.

    Attributes:
        examples: Number of training examples; all of them if there are fewer.
        batchnorm: See `sam_runner.geometry.mean_loss.MeanLoss`.
        dtype: "float32" or "float64".
    """

    examples: int = 1000  # as many as telemetry.curvature_epochs uses
    batchnorm: Literal["train", "eval", "reestimate"] = "train"
    dtype: str = "float32"


@dataclass(frozen=True)
class CurvatureOptions:
    """What sam-curvature computes.

    Attributes:
        k: Number of largest eigenvalues.
        trace_products: Products for the trace; 0: no trace.
        density_probes: Random vectors for the density; 0: no density.
        density_steps: Products for each of them.
        seed: Seed of all random vectors.
    """

    k: int = 5
    trace_products: int = 30
    density_probes: int = 2
    density_steps: int = 30
    seed: int = 0


@dataclass(frozen=True)
class SharpnessOptions:
    """What sam-sharpness computes.

    Attributes:
        radii: Radii of the ball for worst case, average and m-sharpness.
        adaptive_radii: Radii for the adaptive measures, whose ball is scaled by |w|.
        group_sizes: Values of m.
        num_steps: Gradients of each ascent.
        num_restarts: Further ascents from random starts.
        num_directions: Pairs of random directions of an average.
        max_groups: Largest number of groups of m-sharpness.
        seed: Seed of all random vectors.
    """

    radii: tuple[float, ...] = (0.05, 0.1)
    adaptive_radii: tuple[float, ...] = (0.5,)
    group_sizes: tuple[int, ...] = (16, 128)
    num_steps: int = 10
    num_restarts: int = 1
    num_directions: int = 10
    max_groups: int = 16
    seed: int = 0


@dataclass(frozen=True)
class GridOptions:
    """Sizes of the slices of sam-landscape.

    Attributes:
        points: Points of each side of a grid.
        line_points: Points of a line or a path.
        extent: Largest coordinate of filter-normalised directions; 1 moves a filter by its own norm.
        seed: Seed of the random directions.
    """

    points: int = 25
    line_points: int = 51
    extent: float = 1.0
    seed: int = 0
