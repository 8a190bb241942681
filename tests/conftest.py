"""Tests run on the CPU as eight host devices, in float32 unless they ask for float64 themselves."""

import gc
import os
import sys
from importlib import metadata
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Most tests run a program once: machine code that is not optimised is there sooner. What times programs asks for level 3
quick = {
    "xla_force_host_platform_device_count": 8,
    "xla_backend_optimization_level": 0,
    "xla_cpu_parallel_codegen_split_count": 1,
}
if metadata.version("jaxlib").startswith("0.10."):  # half the time of a compile; later releases ended at an unknown flag
    quick["xla_cpu_use_fusion_emitters"] = "false"
for flag, value in quick.items():
    flags = os.environ.get("XLA_FLAGS", "")
    if flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{flag}={value}".strip()

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # the programs keep nothing in the home of whoever runs the tests
    os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")

gc.set_threshold(200_000, 20, 50)  # traces make many small objects that stay: looking for garbage among them takes long

import jax  # noqa: E402
import pytest  # noqa: E402

jax.devices()  # settled here: programs that are called within the tests find eight, whatever they would ask for

ROOT = Path(__file__).parent
sys.path[:0] = [str(ROOT), str(ROOT / "golden"), str(ROOT / "contracts")]  # tests share helpers


def pytest_addoption(parser):
    parser.addoption(
        "--golden-dir",
        default=str(ROOT / "golden"),
        help="folder of recorded runs: FAMILY/PREFIX_*.npz (an h_ before the prefix is ignored)",
    )


def pytest_generate_tests(metafunc):
    """``golden_file`` is parametrised over the files of the test's ``@pytest.mark.golden(family, *prefixes)``."""
    if "golden_file" in metafunc.fixturenames:
        from golden_files import find

        marker = next(metafunc.definition.iter_markers("golden"))
        files = find(metafunc.config.getoption("--golden-dir"), *marker.args)
        metafunc.parametrize("golden_file", files, ids=[f.stem for f in files])


@pytest.fixture(scope="session")
def golden_dir(request):
    return Path(request.config.getoption("--golden-dir"))


@pytest.fixture(scope="session")
def prior(tmp_path_factory):
    """A tiny prior with random weights, loaded."""
    import tiny_prior

    from diffjax import zoo

    return zoo.load(tiny_prior.write(tmp_path_factory.mktemp("zoo") / "tiny"))
