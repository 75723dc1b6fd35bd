"""A map of the embedding: its two first principal components, coloured by what is known."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spcl_fast.segmentation.report import figures
from spcl_fast.segmentation.report.figures import Picture
from spcl_fast.segmentation.report.runs import RunRecord, load_arrays

NEEDED = ("z", "position", "patient", "phase")
MAX_COLUMNS = 4
MAX_LEGEND = 6
UNKNOWN_COLOUR = "#cbd2d9"
CAPTION = (
    "Every dot is a slice of the training scans, at the first two principal components of its "
    "embedding ({first:.0%} and {second:.0%} of the variance), the same dots in each "
    "panel. Position should run through the cloud as a gradient; if patients form islands "
    "instead, the encoder has learned identity rather than position (patient colours only "
    "separate neighbours). The kNN accuracy also sees what two components hide."
)


def embedding_picture(run: RunRecord) -> Picture | None:
    """Draw every slice in the plane of the two first principal components.

    Args:
        run: A pre-training run.

    Returns:
        The picture; None if there is no readable embedding, which is then in `run.problems`.
    """
    path = run.folder / "embedding.npz"
    if not path.is_file():
        run.problems.append("It has no embedding.npz (unfinished), so its embedding is not drawn.")
        return None
    try:
        arrays = load_arrays(path, NEEDED)
        plane, share = principal_plane(arrays["z"])
    except ValueError as error:
        run.problems.append(f"Its {error}, so its embedding is not drawn.")
        return None
    if np.corrcoef(plane[:, 0], arrays["position"])[0, 1] < 0:
        plane[:, 0] *= -1  # a component has no sign: base left, apex right
    extra = [k for k, v in arrays.items() if k not in NEEDED and _is_label(v, len(plane))]
    names = ["patient", "phase", *extra][: MAX_COLUMNS - 1]
    planes = {"PCA": plane}
    if (map_tsne := tsne_plane(arrays["z"])) is not None:
        planes["t-SNE"] = map_tsne
    columns, rows = 1 + len(names), len(planes)
    figure, axes = figures.panels(rows, columns, width=4.1 * columns, height=4.2 * rows)
    for row, (method, points) in zip(axes, planes.items(), strict=True):
        _position(figure, row[0], points, arrays["position"])
        row[0].set_ylabel(method, fontsize=10, color=figures.FAINT)
        for ax, name in zip(row[1:], names, strict=True):
            _labels(ax, points, arrays[name], name)
    accuracy = run.series("epoch", "knn_position_accuracy")[1]
    known = f", kNN slice-position accuracy {accuracy[-1]:.2f}" if accuracy else ""
    figure.suptitle(
        f"{len(plane)} slices{known}", x=0.01, ha="left", fontsize=11, color=figures.INK
    )
    caption = CAPTION.format(first=share[0], second=share[1])
    return Picture(f"Embedding of {run.name}", caption, figures.to_png(figure))


def principal_plane(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the two first principal components of each row.

    Args:
        z: (n, D) floating point, n >= 3 and D >= 2, finite.

    Returns:
        (n, 2) coordinates and (2,) shares of the variance.

    Raises:
        ValueError: If z is not as said.
    """
    if z.ndim != 2 or z.shape[0] < 3 or z.shape[1] < 2 or not np.isfinite(z).all():
        raise ValueError(f"z must be finite and (n, D) with n >= 3, D >= 2, got {z.shape}")
    centred = z.astype(np.float64) - z.mean(axis=0, dtype=np.float64)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    variance = s**2
    total = max(float(variance.sum()), np.finfo(np.float64).tiny)
    return u[:, :2] * s[:2], variance[:2] / total


def tsne_plane(z: np.ndarray) -> np.ndarray | None:
    """Return the t-SNE coordinates of each row, (n, 2); None without scikit-learn or too few rows.

    Args:
        z: (n, D) floating point, finite.
    """
    try:
        from sklearn.manifold import TSNE  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        return None
    perplexity = min(30.0, (len(z) - 1) / 3)
    if perplexity < 1:
        return None
    tsne = TSNE(n_components=2, perplexity=perplexity, init="pca", random_state=0)
    return np.asarray(tsne.fit_transform(z), dtype=np.float64)


def _is_label(values: np.ndarray, n: int) -> bool:
    """Return whether values is a column of at least two known labels."""
    is_column = values.shape == (n,) and values.dtype.kind in "iu"
    return is_column and len(np.unique(values[values >= 0])) > 1


def _position(figure: Figure, ax: Axes, plane: np.ndarray, position: np.ndarray) -> None:
    dots = ax.scatter(
        plane[:, 0], plane[:, 1], c=position, cmap="viridis", vmin=0, vmax=1, s=11, lw=0
    )
    _frame(ax, "slice position")
    bar = figure.colorbar(dots, ax=ax, shrink=0.8, pad=0.02, ticks=[0, 1])
    bar.ax.set_yticklabels(["base", "apex"], fontsize=8, color=figures.FAINT)
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)


def _labels(ax: Axes, plane: np.ndarray, labels: np.ndarray, name: str) -> None:
    from matplotlib import colormaps

    values = np.unique(labels[labels >= 0])
    unknown = plane[labels < 0]
    ax.scatter(unknown[:, 0], unknown[:, 1], color=UNKNOWN_COLOUR, s=11, lw=0)
    few = len(values) <= MAX_LEGEND
    for index, value in enumerate(values):
        # steps of the golden ratio keep neighbouring numbers far apart on the colour circle
        colour = figures.COLOURS[index] if few else colormaps["hsv"](index * 0.618034 % 1.0)
        text = ("ED", "ES")[value] if name == "phase" and value < 2 else str(value)
        dots = plane[labels == value]
        ax.scatter(dots[:, 0], dots[:, 1], color=colour, s=11, lw=0, label=text)
    _frame(ax, name if few else f"{name} ({len(values)})")
    if few and len(values):
        ax.legend(
            frameon=False,
            fontsize=9,
            markerscale=2,
            handletextpad=0.1,
            columnspacing=0.8,
            loc="upper center",
            bbox_to_anchor=(0.5, 0.0),
            ncols=4,
        )


def _frame(ax: Axes, title: str) -> None:
    figures.style_image(ax)
    ax.set_title(title, loc="left", fontsize=11, fontweight="bold", color=figures.INK)
    for spine in ax.spines.values():
        spine.set_visible(True)
        spine.set_color(figures.GRID)
    ax.margins(0.06)
