"""The discriminator: what it sees, whom each turn moves, and how strongly."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.engine.sources import Sample
from training.losses.adversarial import MARGIN, Adversarial, AdversarialTerm, Discriminator, cut
from training.model.one_step import enlarge

SETTINGS = Adversarial(weight=1.5, delay=0)


@pytest.fixture
def term() -> AdversarialTerm:
    torch.manual_seed(0)
    return AdversarialTerm(SETTINGS, 3)


def fake(batch: Sample) -> Tensor:
    return (0.5 * enlarge(batch["lr"]) + 0.5 * batch["soft"]).clone().requires_grad_(True)


def softplus(logits: list[Tensor], sign: float) -> Tensor:
    """Mean over scales of the means."""
    return sum(torch.log1p(torch.exp(sign * row)).mean() for row in logits) / len(logits)


def test_there_are_logits_at_three_scales(batch: Sample) -> None:
    logits = Discriminator((4, 6, 8))(batch["sharp"], enlarge(batch["lr"]))
    assert [tuple(row.shape) for row in logits] == [(2, 16 * 16), (2, 8 * 8), (2, 4 * 4)]


def test_every_pixel_and_the_low_resolution_picture_count(batch: Sample) -> None:
    torch.manual_seed(0)
    x, condition = batch["sharp"].clone().requires_grad_(), enlarge(batch["lr"]).requires_grad_()
    sum(row.mean() for row in Discriminator((4, 6, 8))(x, condition)).backward()
    assert x.grad.abs().amin(dim=(0, 1)).min() > 0
    assert condition.grad.abs().amin(dim=(0, 1)).min() > 0


def test_a_cut_is_the_samples_own_and_the_same_for_all_its_pictures(make_batch: Callable[..., Sample]) -> None:
    batch = make_batch(6)
    places = torch.stack(torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")).expand(6, 2, 32, 32)
    at, twice = cut(batch, 3, places, 2 * places)
    assert at.shape == (6, 2, 32 - MARGIN, 32 - MARGIN)
    assert torch.equal(twice, 2 * at)
    corners = at[:, :, 0, 0]
    assert torch.equal(at - corners[:, :, None, None], places[:, :, : 32 - MARGIN, : 32 - MARGIN])
    assert len({tuple(corner.tolist()) for corner in corners}) > 3
    (alone,) = cut({"index": batch["index"][4:5]}, 3, places[4:5])
    assert torch.equal(alone, at[4:5])


def test_the_generators_gradient_is_weight_times_that_of_an_l1_loss(term: AdversarialTerm, batch: Sample) -> None:
    x = fake(batch)
    loss = term.loss(x, batch)
    loss.backward()
    l1 = torch.autograd.grad(F.l1_loss(x, x.detach() + torch.ones_like(x)), x)[0]
    assert loss.item() == 0
    assert x.grad.norm().item() == pytest.approx(1.5 * l1.norm().item(), rel=1e-4)


def test_the_generators_gradient_is_that_of_the_logistic_loss_in_each_picture(
    term: AdversarialTerm, batch: Sample
) -> None:
    x = fake(batch)
    term.loss(x, batch).backward()
    pictures = cut(batch, 3, x, enlarge(batch["lr"]))
    expected = torch.autograd.grad(softplus(term.discriminator(*pictures), -1), x)[0]
    for found, wanted in zip(x.grad, expected, strict=True):
        torch.testing.assert_close(found / found.norm(), wanted / wanted.norm(), rtol=1e-4, atol=1e-6)


def test_a_pictures_gradient_does_not_depend_on_the_others_of_its_batch(term: AdversarialTerm, batch: Sample) -> None:
    """So that accumulated batches are one large batch: here, one picture hardly moves the discriminator."""
    with torch.no_grad():
        batch["sharp"][0] *= 1e-2
        batch["lr"][0] *= 1e-2
    together = fake(batch)
    term.loss(together, batch).backward()
    for row in range(2):
        one = {name: value[row : row + 1] if value.ndim else value for name, value in batch.items()}
        alone = together.detach()[row : row + 1].requires_grad_()
        (term.loss(alone, one) / 2).backward()
        torch.testing.assert_close(alone.grad, together.grad[row : row + 1], rtol=1e-4, atol=1e-9)


def test_the_generators_turn_leaves_the_discriminator_alone(term: AdversarialTerm, batch: Sample) -> None:
    before = {name: tensor.clone() for name, tensor in term.discriminator.state_dict().items()}
    term.loss(fake(batch), batch).backward()
    assert all(p.grad is None and p.requires_grad for p in term.discriminator.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in term.discriminator.state_dict().items())


def test_the_discriminator_learns_alone_and_then_the_weight_grows() -> None:
    term = AdversarialTerm(replace(SETTINGS, delay=100), 0)
    assert [term.share(step) for step in (0, 99, 100, 150, 200, 5000)] == [0, 0, 0, 0.5, 1, 1]
    assert AdversarialTerm(SETTINGS, 0).share(0) == 1


def test_the_share_scales_the_gradient(batch: Sample) -> None:
    norms: list[float] = []
    for step in (50, 150, 200):
        torch.manual_seed(0)
        x = fake(batch)
        AdversarialTerm(replace(SETTINGS, delay=100), 3).loss(x, {**batch, "step": torch.tensor(step)}).backward()
        norms.append(x.grad.norm().item())
    assert norms[0] == 0
    assert norms[1] == pytest.approx(norms[2] / 2, rel=1e-4)
    assert norms[2] > 0


def test_its_own_turn_moves_all_of_it_and_nothing_else(term: AdversarialTerm, batch: Sample) -> None:
    turn, x = term.turn(), fake(batch)
    turn.module({**batch, "fake": x.detach()})["loss"].backward()
    assert x.grad is None
    assert {id(p) for p in turn.parameters} == {id(p) for p in term.discriminator.parameters()}
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in turn.parameters)
    assert (turn.name, turn.peak_rate) == ("discriminator", SETTINGS.peak_rate)


def test_its_own_loss_is_logistic_on_real_and_fake(term: AdversarialTerm, batch: Sample) -> None:
    x = fake(batch).detach()
    real, false, condition = cut(batch, 3, batch["sharp"], x, enlarge(batch["lr"]))
    with torch.no_grad():
        expected = softplus(term.discriminator(real, condition), -1) + softplus(term.discriminator(false, condition), 1)
        out = term.turn().module({**batch, "fake": x})
    torch.testing.assert_close(out["logistic"], expected)
    torch.testing.assert_close(out["loss"], out["logistic"] + out["penalty"])


def test_the_penalty_is_that_of_r1_for_little_noise(make_batch: Callable[..., Sample]) -> None:
    """E (D(x + sigma n) - D(x))^2 / sigma^2 = |grad D|^2 of each logit, summed over the pixels that it sees."""
    torch.manual_seed(0)
    batch = make_batch(64)
    term = AdversarialTerm(replace(SETTINGS, penalty=1.0, noise=1e-3), 3)
    with torch.no_grad():
        found = term.turn().module({**batch, "fake": batch["soft"]})["penalty"].item()
    real, condition = cut(batch, 3, batch["sharp"], enlarge(batch["lr"]))
    real.requires_grad_(True)
    expected: list[float] = []
    for row in term.discriminator(real, condition):
        picks = range(0, row.shape[1], max(1, row.shape[1] // 9))
        squares = [torch.autograd.grad(row[:, i].sum(), real, retain_graph=True)[0].square() for i in picks]
        expected.append(torch.stack([square.sum((1, 2, 3)).mean() for square in squares]).mean().item())
    assert found == pytest.approx(sum(expected) / 3, rel=0.1)


def test_it_learns_to_tell_them_apart(term: AdversarialTerm, batch: Sample) -> None:
    turn, x = term.turn(), fake(batch).detach()
    optimizer = torch.optim.AdamW(turn.parameters, lr=turn.peak_rate)
    losses: list[float] = []
    for _ in range(15):
        out = turn.module({**batch, "fake": x})
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        losses.append(out["logistic"].item())
    assert losses[-1] < 0.7 * losses[0]


def test_a_batch_costs_the_mean_of_its_pictures(term: AdversarialTerm, batch: Sample) -> None:
    x = fake(batch).detach()
    rows = [{name: value[i : i + 1] for name, value in batch.items() if value.ndim} for i in (0, 1)]
    with torch.no_grad():
        whole = term.turn().module({**batch, "fake": x})
        parts = [term.turn().module({**row, "fake": x[i : i + 1]}) for i, row in enumerate(rows)]
    for name, value in whole.items():
        torch.testing.assert_close(value, (parts[0][name] + parts[1][name]) / 2)
