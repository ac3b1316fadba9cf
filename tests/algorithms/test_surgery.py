"""Rules on the domains' gradients: the paper's, and combinations with other objectives."""

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from scipy.stats import chi2
from torch import Tensor

from gradsurgery.algorithms import OBJECTIVES
from tests import oracles as rules
from tests.algorithms import oracles
from tests.algorithms.oracles import Drawn, Memory


def shares(name: str, model, data, drawn: Drawn) -> Tensor:
    """The gradients of the domains' shares of an objective: [domains, params]."""
    if name == "mldg":
        return torch.stack(oracles.mldg_gradients(model, data, drawn.ring, 1.0))
    if name == "irm":
        losses = oracles.irm_losses(model, data, 7)
    elif name == "mixup":
        losses = oracles.mixup_losses(model, data, drawn)
    else:
        losses = oracles.risks(model, data)
    rows = torch.stack([oracles.flat_gradient(loss, model) for loss in losses])
    values = torch.stack(losses).detach()
    if name == "vrex":  # d/dL_d of D·(mean + 3·variance) is 1 + 2·3·(L_d − L̄)
        return (1 + 6 * (values - values.mean()))[:, None] * rows
    if name == "eqrm":
        leaf = values.clone().requires_grad_()
        (shares,) = torch.autograd.grad(oracles.kernel_quantile(leaf, 0.75), leaf)
        return len(data) * shares[:, None] * rows
    if name == "group-dro":
        q = oracles.group_dro_weights(model, data, 0.3, Memory())
        return len(data) * torch.tensor(q).double()[:, None] * rows
    return rows


def step_taken(name: str, domains: int, built, drawn: Drawn):
    """The update and the domains' gradients of one step from the same parameters."""
    settings = {"irm.anneal": 0, "irm.penalty": 7, "vrex.anneal": 0, "vrex.penalty": 3}
    settings |= {"group-dro.eta": 0.3, "eqrm.anneal": 0}
    objective, plus, _ = name.partition("+")
    given = {key: value for key, value in settings.items() if key.startswith(f"{objective}.")}
    model, before, data = oracles.network(), oracles.network(), oracles.batches(domains)
    algorithm = built(name, settings=given)
    result = algorithm.step(model, data, oracles.sgd(model.parameters()), step=1)
    moved = oracles.flat_parameters(model) - oracles.flat_parameters(before)
    rows = shares(objective if plus else "erm", before, data, drawn)
    return moved / -oracles.LEARNING_RATE, rows, result


@pytest.mark.parametrize("domains", [2, 3, 5])
@pytest.mark.parametrize("name", ["agr-sum", "mixup+agr-sum", "mldg+agr-sum"])
def test_agr_sum_of_the_objectives_gradients(name, domains, built, drawn):
    update, rows, result = step_taken(name, domains, built, drawn)
    expected = rules.agr_sum(rows.tolist())
    assert 0 < sum(value == 0 for value in expected) < len(expected)
    torch.testing.assert_close(update, torch.tensor(expected, dtype=torch.float64))
    assert result.agreeing == pytest.approx(rules.agreeing_fraction(rows.tolist()))


@pytest.mark.parametrize("domains", [2, 3, 5])
def test_agr_rand_is_the_sum_and_noise_of_sigma(domains, built, drawn):
    update, rows, _ = step_taken("agr-rand", domains, built, drawn)
    agrees = torch.tensor(rules.agreement(rows.tolist()))
    torch.testing.assert_close(update[agrees], rows.sum(0)[agrees])
    noise = (update[~agrees] / rules.agr_rand_sigma(rows.tolist())).square().sum().item()
    # Σ of squares of standard normal draws; wrongly refused once in a million seeds.
    low, high = chi2.ppf([5e-7, 1 - 5e-7], df=int((~agrees).sum()))
    assert low < noise < high


@pytest.mark.parametrize("domains", [2, 3])
@pytest.mark.parametrize("name", ["pcgrad", "irm+pcgrad"])
def test_pcgrad_is_a_result_of_its_algorithm(name, domains, built, drawn):
    update, rows, result = step_taken(name, domains, built, drawn)
    possible = torch.tensor(rules.pcgrad_results(rows.tolist()), dtype=torch.float64)
    assert (possible - update).norm(dim=1).min() < 1e-10 * update.norm()
    cosines = [[rules.cosine(a, b) for a in rows.tolist()] for b in rows.tolist()]
    torch.testing.assert_close(result.cosines, torch.tensor(cosines, dtype=torch.float64))


@pytest.mark.parametrize("domains", [2, 3, 5])
def test_median_of_vrexs_shares(domains, built, drawn):
    update, rows, _ = step_taken("vrex+median", domains, built, drawn)
    torch.testing.assert_close(update, torch.from_numpy(np.median(rows.numpy(), axis=0)))


@pytest.mark.parametrize("domains", [2, 3, 5, 8])
def test_median_of_eqrms_shares(domains, built, drawn):
    update, rows, _ = step_taken("eqrm+median", domains, built, drawn)
    torch.testing.assert_close(update, torch.from_numpy(np.median(rows.numpy(), axis=0)))


@pytest.mark.parametrize("domains", [2, 3, 5])
def test_mgda_of_group_dros_weighted_gradients(domains, built, drawn):
    update, rows, _ = step_taken("group-dro+mgda", domains, built, drawn)
    assert update.norm().item() == pytest.approx(rules.shortest_in_hull(rows.numpy()), rel=1e-5)
    columns = np.vstack([rows.numpy().T, np.ones(domains)])
    distance = nnls(columns, np.append(update.numpy(), 1))[1]  # from the gradients' hull
    assert distance < 1e-6 * update.norm().item()


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_the_mean_of_the_shares_is_the_pooled_gradient(objective, built):
    def moved(name: str) -> Tensor:
        model = oracles.network()
        generator = torch.Generator()
        algorithm = built(name, anneal=0, generator=generator)
        for step in (1, 2):
            generator.manual_seed(step)
            data = oracles.batches(3, seed=step)
            algorithm.step(model, data, oracles.sgd(model.parameters()), step=step)
        return oracles.flat_parameters(model)

    # TorchJD's mean of the domains' gradients is one that knows no pooled pass.
    torch.testing.assert_close(moved(f"{objective}+mean"), moved(f"{objective}+torchjd:Mean"))
