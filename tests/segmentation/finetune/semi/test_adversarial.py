"""The adversarial term: its value, two optimisers kept apart, and its state across a restart."""

import copy
import io

import numpy as np
import pytest
import torch

from spcl_fast.segmentation.finetune.semi.adversarial import Adversarial, Discriminator


@pytest.fixture
def term():
    torch.manual_seed(3)
    return Adversarial(num_classes=4, width=4)


def soft_maps(shift, seed, n=6):
    """Softmax maps whose first class is preferred by `shift`."""
    logits = torch.randn(n, 4, 32, 32, generator=torch.Generator().manual_seed(seed))
    logits[:, 0] += shift
    return logits.softmax(1)


# the smallest, the next multiple of 16, DCGAN's, a rectangle, ACDC's
@pytest.mark.parametrize("side", [(32, 32), (48, 48), (64, 64), (32, 80), (224, 224)])
def test_discriminator_judges_patches_of_every_side(side):
    scores = Discriminator(4, width=2)(torch.rand(2, 4, *side))
    assert scores.shape == (2, 1, side[0] // 16 - 1, side[1] // 16 - 1)


def test_value_by_numpy_after_the_discriminator_has_stepped(term, make_batch, gradient_norm):
    batch, after = make_batch(), copy.deepcopy(term)
    value = term(batch)
    after.train_discriminator(batch.labelled_logits.softmax(1), batch.probabilities)
    scores = after.discriminator(batch.probabilities).detach().double().numpy()
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(np.log1p(np.exp(-scores)).mean(), rel=1e-5)
    assert gradient_norm(value) > 1e-5


def test_discriminator_loss_by_numpy(term):
    real, fake = soft_maps(2.0, seed=0, n=3), soft_maps(0.0, seed=1)
    before = copy.deepcopy(term.discriminator)
    loss = term.train_discriminator(real, fake)
    real, fake = (before(x).detach().double().numpy() for x in (real, fake))
    expected = np.log1p(np.exp(-real)).mean() + np.log1p(np.exp(fake)).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_discriminator_learns_to_separate():
    torch.manual_seed(3)
    term = Adversarial(num_classes=4, width=4, lr=2e-3)
    losses = [
        term.train_discriminator(soft_maps(2.0, k), soft_maps(0.0, 99 + k)) for k in range(40)
    ]
    assert losses[0] > 1.2  # near 2 log 2, undecided
    assert losses[-1] < 0.4
    assert term.discriminator(soft_maps(2.0, 400)).min() > 0  # labelled is positive
    assert term.discriminator(soft_maps(0.0, 401)).max() < 0


def test_descent_fools_the_discriminator():
    torch.manual_seed(3)
    term = Adversarial(num_classes=4, width=4, lr=2e-3)
    for k in range(40):
        term.train_discriminator(soft_maps(2.0, k), soft_maps(0.0, 99 + k))
    logits = torch.zeros(4, requires_grad=True)  # of the classes, on top of unlabelled noise
    noise = soft_maps(0.0, 500).log()
    value = term._cross_entropy((noise + logits[:, None, None]).softmax(1), 1.0)
    value.backward()
    assert logits.grad.argmin() == 0  # more of the class that marks the labelled slices


def test_optimisers_do_not_touch_each_other(student, term, make_batch):
    assert list(term.trained()) == []
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    for _ in range(2):
        batch = make_batch()
        optimizer.zero_grad()
        weights = {name: p.clone() for name, p in student.named_parameters()}
        discriminator = [p.clone() for p in term.parameters()]
        value = term(batch)
        assert all(p.grad is None for p in student.parameters())
        for name, now in student.named_parameters():
            assert torch.equal(now, weights[name]), name
        pairs = zip(discriminator, term.parameters(), strict=True)
        assert all(not torch.equal(old, now) for old, now in pairs)
        stepped = [p.clone() for p in term.parameters()]
        value.backward()
        assert all(p.grad is None and not p.requires_grad for p in term.parameters())
        optimizer.step()
        assert all(map(torch.equal, stepped, term.parameters()))
        assert not torch.equal(student.out.weight, weights["out.weight"])


def train(student, term, optimizer, make_batch, seeds):
    for seed in seeds:
        value = term(make_batch(seed=seed))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()


def test_killed_and_resumed_run_is_bitwise_the_same(student, term, make_batch):
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    train(student, term, optimizer, make_batch, range(3))
    file = io.BytesIO()
    torch.save({"student": student.state_dict(), "term": term.state_dict()}, file)
    train(student, term, optimizer, make_batch, range(3, 6))
    whole = [
        x.clone() for x in (*student.parameters(), *term.state_dict().values()) if is_tensor(x)
    ]
    moments = copy.deepcopy(term.optimizer.state_dict()["state"])

    file.seek(0)
    state = torch.load(file, weights_only=True)
    torch.manual_seed(77)
    resumed = Adversarial(num_classes=4, width=4)
    resumed.load_state_dict(state["term"])
    student.load_state_dict(state["student"])
    train(student, resumed, optimizer, make_batch, range(3, 6))
    again = [x for x in (*student.parameters(), *resumed.state_dict().values()) if is_tensor(x)]
    assert len(again) == len(whole)
    assert all(map(torch.equal, whole, again))
    for index, values in resumed.optimizer.state_dict()["state"].items():
        assert values["step"] == 6
        assert all(torch.equal(v, moments[index][k]) for k, v in values.items())


def is_tensor(x):
    return isinstance(x, torch.Tensor)


def test_loading_copies_the_state(term, make_batch):
    term(make_batch())
    other = Adversarial(num_classes=4, width=4)
    other.load_state_dict(term.state_dict())
    moments = copy.deepcopy(term.optimizer.state_dict()["state"][0])
    other(make_batch(seed=2))
    assert all(
        torch.equal(v, moments[k]) for k, v in term.optimizer.state_dict()["state"][0].items()
    )


@pytest.mark.parametrize("name", ["num_classes", "width"])  # the sizes there are
def test_sizes_must_be_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
        Adversarial(**{"num_classes": 4, name: 0})
