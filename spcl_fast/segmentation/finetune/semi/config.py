"""The configuration of the semi-supervised loss: the weight of every term, and its settings."""

from __future__ import annotations

from dataclasses import dataclass, field

from spcl_fast.segmentation.pretrain.loss_config import DenseConfig, LossConfig

TERMS = (
    *("contrast", "dense_contrast", "teacher", "entropy"),
    *("mixup", "adversarial", "mutual_information", "copy_paste"),
)


@dataclass(frozen=True)
class SemiConfig:
    """The terms added to the supervised loss; a weight of 0 leaves a term out.

    Attributes:
        contrast: Weight of the contrastive loss over meta-labels (the paper's method).
        dense_contrast: Weight of the contrastive loss over cells of a decoder map.
        teacher: Weight of the mean teacher (arXiv:1703.01780); with it the teacher is evaluated.
        entropy: Weight of entropy minimisation.
        mixup: Weight of mix-up of labelled slices (arXiv:1710.09412).
        adversarial: Weight of the adversarial term.
        mutual_information: Weight of the discrete mutual information between views.
        copy_paste: Weight of bidirectional copy-paste (arXiv:2305.00673); its pseudo-labels come
            from the mean teacher, which is then kept and evaluated regardless of its own weight.
        teacher_decay: Decay of the teacher's moving average.
        teacher_ramp: Share of the training over which the mean teacher's weight ramps up.
        loss: The contrastive loss over meta-labels.
        dense: The contrastive loss over cells.
        num_scans: Scans per unlabelled batch, with a slice from every position partition of each.
    """

    contrast: float = 0.0
    dense_contrast: float = 0.0
    teacher: float = 0.0
    entropy: float = 0.0
    mixup: float = 0.0
    adversarial: float = 0.0
    mutual_information: float = 0.0
    copy_paste: float = 0.0
    teacher_decay: float = 0.999
    teacher_ramp: float = 0.0
    loss: LossConfig = field(default_factory=LossConfig)
    dense: DenseConfig = field(default_factory=DenseConfig)
    num_scans: int = 4

    def __post_init__(self) -> None:
        """Check the weights."""
        for name in TERMS:
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.num_scans < 1:
            raise ValueError(f"num_scans must be positive, got {self.num_scans}")
        for name in ("teacher_decay", "teacher_ramp"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")

    @property
    def weights(self) -> dict[str, float]:
        """The weights that are not 0, by the name of the term."""
        return {name: getattr(self, name) for name in TERMS if getattr(self, name) > 0}
