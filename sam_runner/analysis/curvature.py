"""The curvature of a checkpoint: largest Hessian eigenvalues, trace and spectral density, stored as they are found."""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from sam_runner.analysis.answers import Answer, StoredProducts, hold_lock, require_folder, settings_digest
from sam_runner.analysis.options import CurvatureOptions, Measurement
from sam_runner.analysis.subject import Subject
from sam_runner.geometry.density import Density, density_of_probes
from sam_runner.geometry.lanczos import MAX_BASIS, asymmetry, largest_eigenvalues
from sam_runner.geometry.mean_loss import MeanLoss
from sam_runner.geometry.trace import estimate_trace, random_signs
from sam_runner.utils.errors import InputError, TrainingError
from sam_runner.utils.files import write_bytes
from sam_runner.utils.seeding import make_generator

log = logging.getLogger("sam_runner")
TOLERANCE = 1e-3  # of the residuals of the eigenvalues, relative to the largest one
MAX_PRODUCTS = 300
ASYMMETRY = 1e-3  # of the products, relative; rounding in float32 is about 1e-6
METHOD = 2  # increased when numbers change: answers of an earlier method are computed anew


@dataclass(frozen=True)
class Curvature:
    """The curvature of one checkpoint.

    Attributes:
        subject: The checkpoint.
        values: Content of the answer: ``eigenvalues`` (descending), ``residuals``, ``converged``, ``trace``,
            ``trace_error``, ``nodes`` and ``weights`` of the density, ``loss``, ``gradient_norm``.
    """

    subject: Subject
    values: dict[str, Any]

    @property
    def lambda_max(self) -> float:
        """The largest eigenvalue."""
        return float(self.values["eigenvalues"][0])

    @property
    def ratio(self) -> float:
        """lambda_max / lambda_k for the last of the eigenvalues; NaN where it is not positive."""
        last = float(self.values["eigenvalues"][-1])
        return self.lambda_max / last if last > 0 else math.nan

    @property
    def density(self) -> Density | None:
        """The spectral density, or None if it was left out."""
        if "nodes" not in self.values:
            return None
        nodes, weights = (torch.tensor(self.values[key], dtype=torch.float64) for key in ("nodes", "weights"))
        return Density(nodes, weights)

    def summary(self) -> str:
        """Return ``lambda_max ..., trace ..., lambda_max/lambda_5 ...``; what was left out is not in it."""
        parts = [f"lambda_max {self.lambda_max:.6g}"]
        if "trace" in self.values:
            parts.append(f"trace {self.values['trace']:.6g} +- {self.values['trace_error']:.2g}")
        if len(self.values["eigenvalues"]) > 1:
            parts.append(f"lambda_max/lambda_{len(self.values['eigenvalues'])} {self.ratio:.4g}")
        return ", ".join(parts)


def measure_curvature(subject: Subject, how: Measurement, options: CurvatureOptions) -> Curvature:
    """Compute the curvature of a checkpoint, or read it from the answers beside the run.

    Raises:
        InputError: If there are fewer weights than eigenvalues, or the results cannot be written.
        TrainingError: If an operation of the network has no second derivative, or the loss is not finite.
    """
    require_folder(subject.files)
    path = subject.files / f"curvature-{subject.checkpoint}.json"
    with hold_lock(path):
        return _measure_curvature(subject, how, options, path)


def _measure_curvature(subject: Subject, how: Measurement, options: CurvatureOptions, path: Path) -> Curvature:
    settings = {**asdict(how), **asdict(options), "sha256": subject.digest, "method": METHOD}
    answer = Answer(path, settings)
    wanted = {"eigenvalues", *(["trace"] * (options.trace_products > 0)), *(["nodes"] * (options.density_probes > 0))}
    if wanted <= answer.values.keys():
        log.info("%s %s: from %s", subject.label, subject.checkpoint, answer.path)
        _warn(answer.values, is_float32=how.dtype == "float32")
        return Curvature(subject, answer.values)
    loss = subject.loss(how)
    if options.k > len(loss):
        raise InputError(f"--k {options.k} eigenvalues of {len(loss)} weights\n  accepted: 1 to {len(loss)}")
    log.info("%s", describe(subject, loss, how))
    answer.save(**_facts(loss))
    total = 4 * options.k + 16 + options.trace_products + options.density_probes * options.density_steps
    with tqdm(total=total, desc="products", disable=None, leave=False) as bar:
        store = StoredProducts(
            subject.files / f"products-{subject.checkpoint}-{settings_digest(settings)}.bin",
            loss.hessian_products,
            loss.weights,
            after=bar.update,
        )
        _measure(store, loss, options, answer)
    store.delete()
    return Curvature(subject, answer.values)


def _measure(store: StoredProducts, loss: MeanLoss, options: CurvatureOptions, answer: Answer) -> None:
    """Compute the parts of the answer that are missing; each is saved when it is finished."""
    started = time.perf_counter()
    generator = make_generator(options.seed, "probes")
    probes = random_signs(max(options.density_probes, 2), loss.weights, generator)
    if "asymmetry" not in answer.values:  # the products are those with which density and eigenvalues begin
        units = [probe / probe.norm() for probe in probes[:2]]
        answer.save(asymmetry=asymmetry(store.one, *units))
    if "eigenvalues" not in answer.values:
        found = largest_eigenvalues(
            store.one,
            probes[0],
            options.k,
            tolerance=TOLERANCE,
            max_products=max(MAX_PRODUCTS, 4 * options.k),
            max_basis=max(MAX_BASIS, 2 * options.k + 10),
            seed=options.seed,
        )
        answer.save(eigenvalues=found.values, residuals=found.residuals, converged=found.converged)
        log.info("lambda_max %.6g after %d products", found.values[0], found.num_products)
        _warn(answer.values, is_float32=loss.weights.dtype == torch.float32)
    if options.density_probes and "nodes" not in answer.values:  # starts from the vector of the eigenvalues
        density = density_of_probes(store.one, list(probes[: options.density_probes]), options.density_steps)
        answer.save(nodes=density.nodes.tolist(), weights=density.weights.tolist())
    if options.trace_products and "trace" not in answer.values:
        trace = estimate_trace(store, loss.weights, options.trace_products, seed=options.seed)
        answer.save(trace=trace.value, trace_error=trace.standard_error)
    answer.save(seconds=answer.values.get("seconds", 0.0) + time.perf_counter() - started)


def _warn(values: dict[str, Any], *, is_float32: bool) -> None:
    if values["asymmetry"] > ASYMMETRY:
        log.warning(
            "the Hessian-vector products are not symmetric, by %.2g%%: an operation of the network has a wrong second "
            "derivative%s",
            100 * values["asymmetry"],
            ", or float32 is too coarse; compare with --dtype float64" if is_float32 else "",
        )
    if not values["converged"]:
        log.warning(
            "the eigenvalues have not converged: their errors are at most %.2g%s",
            max(values["residuals"]),
            "; try --dtype float64" if is_float32 else "",
        )


def _facts(loss: MeanLoss) -> dict[str, Any]:
    value, gradient = loss.gradient(loss.weights)
    norm = float(gradient.double().norm())
    if not (math.isfinite(value) and math.isfinite(norm)):
        raise TrainingError(
            f"no curvature: the training loss is {value:g}, the norm of the gradient {norm:g}\n  leave this run out"
        )
    return {
        "loss": value,
        "gradient_norm": norm,
        "num_weights": len(loss),
        "num_examples": loss.num_examples,
        "num_chunks": loss.num_chunks,
    }


def describe(subject: Subject, loss: MeanLoss, how: Measurement) -> str:
    """Return one line about what is measured: examples, loss and batch norm."""
    config = subject.config
    parts = ["cross entropy"]
    if config.label_smoothing:
        parts.append(f"label smoothing {config.label_smoothing:g}")
    if config.optimizer.weight_decay_in_loss:
        parts.append(f"weight decay {config.optimizer.base.weight_decay:g} in the loss")
    else:
        parts.append("without weight decay")
    normalised = {
        "train": f"batch norm by the statistics of chunks of {-(-loss.num_examples // loss.num_chunks)}",
        "eval": "batch norm by the running statistics",
        "reestimate": "batch norm by statistics of these examples",
    }
    if loss.has_batch_statistics:
        parts.append(normalised[how.batchnorm])
    return (
        f"{subject.label} {subject.checkpoint}: {loss.num_examples:,} training images, {len(loss):,} weights, "
        f"{how.dtype}; {', '.join(parts)}"
    )


def curvature_table(found: Sequence[Curvature]) -> pd.DataFrame:
    """Return one row for each checkpoint: label, step, eigenvalues, ratio, loss, folder.

    The columns ``trace``, ``trace_error`` and ``lambda_min`` are there if they were computed.
    """
    rows: list[dict[str, Any]] = []
    for entry in found:
        values, k = entry.values, len(entry.values["eigenvalues"])
        last = {f"lambda_{k}": values["eigenvalues"][-1], f"lambda_max/lambda_{k}": entry.ratio} if k > 1 else {}
        trace: dict[str, float] = {name: values[name] for name in ("trace", "trace_error") if name in values}
        lambda_min = {"lambda_min": min(values["nodes"])} if "nodes" in values else {}
        rows.append(
            {
                "run": entry.subject.label,
                "step": entry.subject.step,
                "lambda_max": entry.lambda_max,
                **last,
                **trace,
                **lambda_min,
                "loss": values["loss"],
                "gradient_norm": values["gradient_norm"],
                "converged": values["converged"],
                "folder": str(entry.subject.folder),
                "checkpoint": entry.subject.checkpoint,
            }
        )
    return pd.DataFrame(rows)


def write_density(entry: Curvature) -> Path | None:
    """Write the smoothed density of a checkpoint as CSV (eigenvalue, density) beside the run; None without one."""
    density = entry.density
    if density is None:
        return None
    grid, curve = density.smooth()
    path = entry.subject.files / f"density-{entry.subject.checkpoint}.csv"
    write_csv(path, pd.DataFrame({"eigenvalue": grid.numpy(), "density": curve.numpy()}))
    return path


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, atomically."""
    write_bytes(path, table.to_csv(index=False, float_format="%.9g").encode())
