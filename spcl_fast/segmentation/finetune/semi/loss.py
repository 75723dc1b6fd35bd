"""The semi-supervised loss: the weighted sum of its terms, and the unlabelled batches they get."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spcl_fast.devices import sent_to
from spcl_fast.segmentation.data.augment import AugmentConfig
from spcl_fast.segmentation.data.sampler import GroupSampler
from spcl_fast.segmentation.data.slices import Slices
from spcl_fast.segmentation.finetune.semi.adversarial import Adversarial
from spcl_fast.segmentation.finetune.semi.config import SemiConfig
from spcl_fast.segmentation.finetune.semi.contrast import Contrast, DenseContrast
from spcl_fast.segmentation.finetune.semi.copy_paste import CopyPaste
from spcl_fast.segmentation.finetune.semi.entropy import EntropyMinimisation
from spcl_fast.segmentation.finetune.semi.mean_teacher import MeanTeacher
from spcl_fast.segmentation.finetune.semi.mixup import MixUp
from spcl_fast.segmentation.finetune.semi.mutual_information import MutualInformation
from spcl_fast.segmentation.finetune.semi.term import Batch, Labelled, Term
from spcl_fast.segmentation.networks import UNet
from spcl_fast.segmentation.pretrain.views import aligned_views
from spcl_fast.segmentation.runs.device import Precision
from spcl_fast.segmentation.runs.ranks import ALONE, Ranks


class SemiLoss(nn.Module):
    """The weighted sum of the terms of a configuration.

    Args:
        student: The segmenter that is trained.
        slices: All training slices; their masks are not used.
        config: The terms.
        augment: Augmentation of the unlabelled views.
        generator: CPU generator of the unlabelled batches and of the terms.
        precision: Precision of the networks.
        ranks: The processes; every term is that of the slices of all of them.
    """

    def __init__(
        self,
        student: UNet,
        slices: Slices,
        config: SemiConfig,
        augment: AugmentConfig,
        generator: torch.Generator,
        precision: Precision = "auto",
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__()
        self.precision: Precision = precision
        self.ranks = ranks
        self.slices, self.config, self.augment = slices, config, augment
        self.generator = generator
        self.terms = _make_terms(student, slices, config)
        self.sample = GroupSampler(
            slices.scan,
            slices.slice_index,
            slices.num_slices,
            num_scans=config.num_scans,
            num_partitions=config.loss.num_partitions,
            slices_per_partition=1,
            generator=generator,
        )

    @property
    def teacher(self) -> UNet | None:
        """The mean teacher, if there is one."""
        teachers = [term.model for term in self.terms.values() if isinstance(term, MeanTeacher)]
        return teachers[0] if teachers else None

    def trained(self) -> list[nn.Parameter]:
        """Return the parameters of the terms that the segmenter's optimiser trains."""
        return [p for term in self.terms.values() for p in term.trained()]  # type: ignore[operator]

    def forward(self, student: UNet, labelled: Labelled, progress: float) -> dict[str, Tensor]:
        """Draw an unlabelled batch; return the weighted value of every term, () each.

        Args:
            student: The segmenter.
            labelled: The labelled slices.
            progress: Share of the training that is done, 0 to 1.
        """
        index = sent_to(labelled.images.device, self.sample())
        views = aligned_views(self.slices.images[index], self.augment, self.generator)
        index = torch.cat([index, index])
        draw, precision = self.generator, self.precision
        batch = Batch(student, labelled, views, index, progress, draw, precision, self.ranks)
        weights = self.config.weights
        return {name: weights[name] * self.terms[name](batch) for name in weights}

    def after_step(self, student: UNet) -> None:
        """Update the terms after an optimiser step."""
        for term in self.terms.values():
            term.after_step(student)  # type: ignore[operator]


def _make_terms(student: UNet, slices: Slices, config: SemiConfig) -> nn.ModuleDict:
    weights = config.weights
    terms: dict[str, Term] = {}
    if "teacher" in weights or "copy_paste" in weights:
        teacher = MeanTeacher(student, config.teacher_decay, config.teacher_ramp)
        terms["teacher"] = teacher
        if "copy_paste" in weights:
            terms["copy_paste"] = CopyPaste(teacher.model)
    if "contrast" in weights:
        terms["contrast"] = Contrast(student, slices, config.loss)
    if "dense_contrast" in weights:
        terms["dense_contrast"] = DenseContrast(student, config.dense)
    if "entropy" in weights:
        terms["entropy"] = EntropyMinimisation()
    if "mixup" in weights:
        terms["mixup"] = MixUp()
    if "adversarial" in weights:
        terms["adversarial"] = Adversarial(student.out.out_channels)
    if "mutual_information" in weights:
        channels = student.channels
        terms["mutual_information"] = MutualInformation(channels[-1], channels[1], channels[0])
    return nn.ModuleDict(terms)
