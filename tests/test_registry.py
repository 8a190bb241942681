"""A method from outside: one ``register``, and the list, the refusals and the contracts are its own."""

import dataclasses

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_contracts as contracts

import diffjax as dj
from diffjax import registry


@dj.base.pytree
class Toy(dj.Method):
    """x0 <- x0 + strength A^+ (y - A x0)"""

    measurement: dj.Measurement = None
    strength: float = 1.0

    paper = "Nobody 2026"
    link = "example.org"
    requires = ("pinv",)
    moves = (dj.kernels.DDIM,)
    noise = "refused"
    instead_of_noise = "MMPS"

    def predict(self, x, t):
        p, A = self.denoise(x, t), self.measurement.A
        y = self.measurement.y.astype(x.dtype)
        return p.with_x0(p.x0 - jnp.asarray(self.strength, x.dtype) * A.pinv(A.residual(p.x0, y)))


def published(denoise, measurement, steps=None, *, table=None, strength=1.0):
    table = dj.timetables.log_snr(denoise.schedule, 8 if steps is None else steps) if table is None else table
    return registry.Setup(Toy(denoise, measurement, strength), dj.kernels.DDIM(), table)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(registry, "METHODS", dict(registry.METHODS))
    return registry.register(registry.Entry("toy", Toy, published, "a toy", steps=8))


def test_it_is_listed(toy):
    row = registry.rows()[-1]
    assert (row["name"], row["paper"], row["needs"], row["noise"], row["calls"]) == (
        "toy",
        "Nobody 2026",
        "A.pinv",
        "refused",
        "8",
    )
    assert registry.get("toy") is toy and toy.settings() == ["strength"] and toy.tasks == registry.ANY


def test_its_refusals_name_the_remedy(toy):
    A = dj.operators.Mask(cases.MASK)
    denoise = cases.build(cases.CASES[0], *cases.arguments())
    curved = dj.operators.from_function(lambda x: jnp.tanh(x), cases.SHAPE)
    y = jnp.zeros(cases.SHAPE)
    with pytest.raises(ValueError, match=r"Toy needs A.pinv, which FromFunction lacks: use MMPS"):
        Toy(denoise, dj.Measurement(y, curved))
    with pytest.raises(ValueError, match="use MMPS"):
        Toy(denoise, dj.Measurement(y, A, 0.1))
    with pytest.raises(ValueError, match=r"Toy moves by DDIM, not by DDPM: use kernels.DDIM\(\)"):
        table = dj.timetables.log_snr(cases.SCHEDULE, 4)
        dj.sample(jax.random.key(0), Toy(denoise, dj.Measurement(y, A)), table, cases.SHAPE, kernel=dj.kernels.DDPM())
    with pytest.raises(ValueError, match="did you mean 'toy'"):
        registry.get("toi")
    with pytest.raises(ValueError, match="choose another name"):
        registry.register(toy)


def test_it_keeps_the_contracts(toy):
    case = cases.case_of(toy)
    assert not case.stochastic  # DDIM with eta 0
    contracts.test_pytree_protocol_and_frozen(case)
    contracts.test_image_alone_equals_image_in_a_batch_on_four_devices(case)
    contracts.test_recorded_draws_replay_the_run_in_two_parts(case)
    contracts.test_one_trace_for_new_arrays(case)
    contracts.test_network_calls_are_as_declared(case)
    contracts.test_gradients_are_finite_and_equal_finite_differences(case)
    contracts.test_teeth_data_and_noise_change_the_result(case)


def test_it_fits_y_and_the_house_may_differ(toy):
    A = dj.operators.Mask(cases.MASK)
    params, y = cases.arguments()
    denoise = dj.denoisers.from_x0(cases.gaussian, params, cases.SCHEDULE)
    house = dataclasses.replace(toy, house={"strength": 0.5})
    m = dj.Measurement(cases.MASK * y, A)
    for entry, exact in ((toy, True), (house, False)):
        method, kernel, table = entry.build(denoise, m)
        x = dj.sample(jax.random.key(0), method, table, cases.SHAPE, kernel=kernel).x
        assert (np.abs(cases.MASK * (x - y)).max() < 1e-5) == exact
    assert house.build(denoise, m, strength=1.0).method.strength == 1.0 and toy.published(denoise, m).method.strength == 1.0


def test_every_method_of_the_library_is_in_the_registry_and_in_the_contract_table():
    """Or it is a base class, or what a registered entry walks by. The registry is of those that take a measurement."""
    exported = {v for v in vars(dj.methods).values() if isinstance(v, type) and issubclass(v, dj.Method)}
    others = {of for of in exported if "measurement" not in {f.name for f in dataclasses.fields(of)}}
    registered = {entry.method for entry in registry.METHODS.values()}
    params, y = cases.arguments()
    tried = {type(cases.build(case, params, y)) for case in cases.CASES}
    assert exported - others <= registered and others <= tried
    assert {e.method for e in registry.METHODS.values() if e.whole is None} <= tried


@pytest.mark.parametrize(
    ("fact", "said"),
    [
        ({"requires": ("pinvv",)}, "did you mean 'pinv'"),
        ({"noise": "ignord"}, "did you mean 'ignored'"),
        ({"gives": "pic"}, "names 'pic'"),
        ({"moves": ("DDIM",)}, "give classes of kernels"),
    ],
)
def test_a_slip_in_a_fact_is_seen(toy, fact, said):
    method = type("Other", (Toy,), fact)
    with pytest.raises(ValueError, match=said):
        registry.register(dataclasses.replace(toy, name="other", method=method))


@pytest.mark.parametrize(("noise", "level"), [("refused", 0.1), ("needed", 0.0)])
def test_a_method_that_names_no_other_has_some_named(noise, level):
    one = dj.base.pytree(
        type(
            "Another", (dj.Method,), {"noise": noise, "__annotations__": {"measurement": dj.Measurement}, "measurement": None}
        )
    )
    denoise = cases.build(cases.CASES[0], *cases.arguments())
    with pytest.raises(ValueError, match="use DPS, which ignores noise_std, or MMPS"):
        one(denoise, dj.Measurement(jnp.zeros(cases.SHAPE), dj.operators.Mask(cases.MASK), level))


def test_facts_are_of_the_vocabulary():
    for row in registry.rows():
        assert row["paper"] and row["link"] and row["noise"] in dj.method.NOISE, row
        assert row["gives"] in ("posterior", "picture", "estimate") and row["calls"].rstrip("+").isdigit(), row


@pytest.mark.parametrize(
    "schedule", [dj.schedules.VE(), dj.schedules.VP(), dj.schedules.EDM(80), dj.schedules.RectifiedFlow()]
)
def test_every_method_has_a_walk_on_formulas(schedule):
    """A paper's own walk may count entries of a table: with the house's settings such methods walk evenly in log-SNR."""
    image = np.zeros((8, 8, 1), np.float32)
    denoise = dj.denoisers.from_x0(lambda x, t: x, None, schedule)
    for name, entry in registry.METHODS.items():
        measured = dj.Measurement(image, dj.operators.Mask(image + 1), 0.1 if entry.method.noise == "needed" else 0.0)
        method, kernel, table = entry.build(denoise, measured)
        walk = dj.plan(method, table, image.shape, kernel=kernel)
        assert len(table) >= entry.steps and table.s[-1] == 0 and walk is not None, name
